import pytest
import torch

from helpers.claims import lesson1
from helpers.claims.core import FAILS, HOLDS, PARTLY
from helpers.exercises.core import hooks_on, tiny_model
from helpers.metrics import delta_norm
from helpers.tracing import trace

CASES = {
    "1.1": ({"before": {0.5: 0.0, 1.5: 0.0}}, {"before": {0.5: 0.0, 1.5: 1e-9}}),
    "1.2": ({"at": {0.5: 5.0, 1.5: 5.0}, "size": 10.0}, {"at": {0.5: 0.0, 1.5: 0.0}, "size": 10.0}),
    "1.3": (
        {"delta": {0.5: [1.0, 2.0, 4.0, 8.0]}, "relative": {0.5: [0.1, 0.2, 0.3, 0.4]}},
        {"delta": {0.5: [8.0, 7.0, 6.0]}, "relative": {0.5: [0.5, 0.4, 0.3]}},
    ),
    "1.4": ({"ratio": {0.5: 30.0, 1.5: 11.0}}, {"ratio": {0.5: 1.1, 1.5: 1.2}}),
    "1.5": (
        {"before": {0.5: 9.0}, "last": {0.5: 8.0}, "normed": {0.5: 4.0}},
        {"before": {0.5: 9.0}, "last": {0.5: 9.5}, "normed": {0.5: 10.0}},
    ),
    "1.6": ({"miss": 0.0, "moved": 0.0}, {"miss": 0.2, "moved": 0.0}),
    "1.7": (
        {"saved": 1000, "weights": 10_000_000, "corrupted": 0.0},
        {"saved": 0, "weights": 10_000_000, "corrupted": 0.0},
    ),
}


def test_every_verdict_can_go_both_ways(prove_verdicts):
    prove_verdicts(lesson1, CASES)


def test_growth_for_half_of_the_factors_is_no_growth():
    delta = {0.5: [1.0, 2.0, 3.0], 1.5: [3.0, 2.0, 1.0]}
    claim = lesson1.verdict_1_3(delta, {0.5: [1, 1, 2], 1.5: [3, 2, 1]})
    assert claim.verdict == FAILS and "for 1 of 2 factors" in claim.why


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        ("1.2", {"at": {0.5: 5.0, 1.5: 0.0}, "size": 10.0}, "for factor 0.5 only"),
        (
            "1.3",
            {
                "delta": {0.5: [1.0, 3.0, 2.0], 1.5: [3.0, 2.0, 1.0], 2.0: [1.0, 0.5, 2.0]},
                "relative": {0.5: [0.5, 0.4, 0.3], 1.5: [3, 2, 4], 2.0: [3, 2, 4]},
            },
            "higher for 2 of 3 factors, grows at every block for 0",
        ),
        (
            "1.3",
            {"delta": {0.5: [1.0, 2.0, 4.0]}, "relative": {0.5: [0.5, 0.4, 0.3]}},
            "relative to the stream the error falls for 1",
        ),
        ("1.4", {"ratio": {0.5: 3.0, 1.5: 12.0}}, "less than tenfold"),
        ("1.5", {"before": {0.5: 9.0}, "last": {0.5: 9.5}, "normed": {0.5: 4.0}}, "final norm's, not the last block's"),
        (
            "1.5",
            {"before": {0.5: 9.0, 1.5: 9.0}, "last": {0.5: 9.5, 1.5: 8.0}, "normed": {0.5: 4.0, 1.5: 4.0}},
            "for factor 1.5 only; the final norm lowers it for 2 of 2",
        ),
        ("1.6", {"miss": 0.0, "moved": 0.5}, "as long as nobody assigns the name again"),
        ("1.7", {"saved": 100, "weights": 1000, "corrupted": 0.5}, "spoils whatever was recorded"),
    ],
)
def test_what_holds_in_part(number, arguments, said):
    claim = lesson1.VERDICTS[number](**arguments)
    assert claim.verdict == PARTLY
    assert said in claim.why


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(3)
    ids = torch.arange(8)
    hooks, before = hooks_on(lm.model), trace(lm, ids).logits
    claims = lesson1.ledger(lm, ids, block=1)
    assert [claim.number for claim in claims] == list(lesson1.VERDICTS)
    verdicts = {claim.number: claim.verdict for claim in claims}
    assert verdicts["1.1"] == verdicts["1.2"] == HOLDS
    assert verdicts["1.6"] == verdicts["1.7"] == PARTLY
    assert hooks_on(lm.model) == hooks
    assert torch.equal(trace(lm, ids).logits, before)


def test_the_ledger_reads_the_model_in_front_of_it():
    """With all blocks after the edit silenced Δ stays where it is, so it neither grows nor dips."""
    lm = tiny_model(3)
    with torch.no_grad():
        for block in lm.blocks[2:]:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    claims = {claim.number: claim for claim in lesson1.ledger(lm, torch.arange(8), block=1)}
    assert claims["1.3"].verdict == FAILS
    assert "last block" in claims["1.5"].why


def test_the_in_place_measurement_sees_half_of_the_clean_state_gone():
    lm = tiny_model(4)
    ids = torch.arange(8)
    clean = trace(lm, ids).resid
    saved, weights, corrupted = lesson1._in_place(lm, ids, 1, clean[2])
    assert saved == 8 * lm.d_model * 8
    assert weights == sum(p.numel() * 8 for p in lm.model.parameters())
    assert corrupted == pytest.approx(0.5)
    assert float(delta_norm(clean, trace(lm, ids).resid).max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ledger_works_in_the_dtypes_of_real_models(dtype):
    lm = tiny_model(3)
    lm.model.to(dtype)
    verdicts = {claim.number: claim.verdict for claim in lesson1.ledger(lm, torch.arange(8), block=1)}
    assert verdicts["1.1"] == verdicts["1.2"] == HOLDS
    assert verdicts["1.6"] == verdicts["1.7"] == PARTLY
