import pytest
import torch

from helpers import edit, kl, load_model, scale_block
from helpers.course.exercise import hooks_on, tiny_model
from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, UNTESTED
from helpers.lesson1 import claims as lesson1
from helpers.metrics import delta_norm
from helpers.tracing import trace

UP, DOWN, LINE = [1.0, 2.0, 4.0, 8.0], [8.0, 4.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]
FALL, RISE = [2.0, 1.0], [1.0, 2.0]


def four(one):
    return [one] * 4


def dip(relative, delta):
    return {
        "relative": [four(relative)],
        "delta": [four(delta)],
        "survives": [four([0.9, 0.8])],
        "normed": [four(0.5)],
        "with_first": [four(FALL)],
    }


CASES = {
    "1.1": {
        CONSTRUCTION: ({"before": [four(0.0)]}, "4 of 4 runs"),
        FAILS: ({"before": [[0.0, 1e-9, 0.0, 0.0]]}, "in 1 of 4 runs, by up to 1.0e-09"),
    },
    "1.2": {
        CONSTRUCTION: ({"at": [[5.0, 2.5, 2.5, 5.0]], "size": [10.0]}, "in 4 of 4 runs"),
        FAILS: ({"at": [[0.0, 2.5, 2.5, 5.0]], "size": [10.0]}, "in 3 of 4 runs only"),
    },
    "1.3": {
        HOLDS: ({"delta": [four(UP)], "relative": [four(UP)]}, "for every factor: 1 of 1"),
        PARTLY: (
            {"delta": [four(LINE)], "relative": [four(DOWN)]},
            "variance: 0 of 1; the relative error does not shrink: 0 of 1",
        ),
        FAILS: ({"delta": [four(DOWN)], "relative": [four(UP)]}, "for every factor: 0 of 1"),
    },
    "1.4": {
        HOLDS: ({"ratio": [four(30.0)], "length": [50.0]}, "for one factor or more: 1 of 1; for every factor: 1 of 1"),
        PARTLY: ({"ratio": [[1.5, 5.0, 24.0, 59.0]], "length": [50.0]}, "or more: 1 of 1; for every factor: 0 of 1"),
        FAILS: ({"ratio": [four(3.0)], "length": [50.0]}, "or more: 0 of 1"),
        UNTESTED: ({"ratio": [four(1.1)], "length": [2.2]}, "ten times as long as the others on 0 of 1 prompts"),
    },
    "1.5": {
        HOLDS: (
            dip(FALL, FALL),
            "relative error, for every factor: 1 of 1; it lowers Δ itself, before the norm: 1 of 1",
        ),
        PARTLY: (dip(FALL, RISE), "before the norm: 0 of 1"),
        FAILS: (dip(RISE, RISE), "for every factor: 0 of 1"),
    },
    "1.6": {
        HOLDS: ({"miss": 0.0, "moved": 0.0}, "no later assignment"),
        PARTLY: ({"miss": 0.0, "moved": 0.5}, "as long as nobody assigns the name again"),
        FAILS: ({"miss": 0.2, "moved": 0.0}, "does not give"),
    },
    "1.7": {
        HOLDS: ({"saved": 1000, "weights": 10_000_000, "corrupted": 0.0}, "no recorded state moved"),
        PARTLY: ({"saved": 1000, "weights": 10_000_000, "corrupted": 0.5}, "spoils whatever was recorded"),
        FAILS: ({"saved": 0, "weights": 10_000_000, "corrupted": 0.0}, "nothing is saved"),
    },
    "1.8": {
        HOLDS: ({"unmarked": [2.0], "marked": [50.0], "second": [1.0]}, "not: 1 of 1"),
        PARTLY: ({"unmarked": [2.0, 20.0], "marked": [50.0, 50.0], "second": [1.0, 1.0]}, "not: 1 of 2"),
        FAILS: (
            {"unmarked": [50.0], "marked": [50.0], "second": [1.0]},
            "word is ten times as long as the others on 1 of 1",
        ),
        UNTESTED: ({"unmarked": [2.0], "marked": [3.0], "second": [1.0]}, "on 0 of 1 prompts"),
    },
    "1.9": {
        HOLDS: (
            {"divergence": [four(3.0)], "probability": [0.9], "after": [four(0.1)]},
            "×0.5: 1 of 1; at ×1.5 too: 1 of 1",
        ),
        PARTLY: (
            {"divergence": [[3.0, 1.0, 0.1, 0.2]], "probability": [0.9], "after": [four(0.1)]},
            "at ×1.5 too: 0 of 1",
        ),
        FAILS: ({"divergence": [[1.0, 1.0, 9.0, 9.0]], "probability": [0.9], "after": [four(0.1)]}, "×0.5: 0 of 1"),
    },
}


def test_every_verdict_has_its_case(prove_verdicts):
    prove_verdicts(lesson1, CASES)


def test_a_model_without_a_start_mark_is_told():
    assert "no start mark in this model" in lesson1.verdict_1_8([50.0], [0.0], [1.0]).measured
    assert "a start mark 12" in lesson1.verdict_1_8([50.0], [12.0], [1.0]).measured


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(3)
    ids = torch.arange(8)
    hooks, before = hooks_on(lm.model), trace(lm, ids).logits
    claims = lesson1.ledger(lm, ids, block=1)
    assert [claim.number for claim in claims] == list(lesson1.VERDICTS)
    verdicts = {claim.number: claim.verdict for claim in claims}
    assert verdicts["1.1"] == verdicts["1.2"] == CONSTRUCTION
    assert verdicts["1.6"] == verdicts["1.7"] == PARTLY
    assert all(claim.over[1] == 1 for claim in claims if claim.over)
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
    assert claims["1.5"].verdict == FAILS


def test_what_is_measured_is_what_plain_hooks_measure():
    lm = tiny_model(5)
    ids, block, factor = torch.tensor([3, 1, 4, 15, 9, 2]), 1, 1.5
    found = lesson1.measure(lm, ids, block)

    def run(by):
        states, logits = [], []
        handles = [
            lm.blocks[block].register_forward_hook(
                lambda m, a, out: (out[0] * by, *out[1:]) if isinstance(out, tuple) else out * by
            )
        ]
        handles += [lm.blocks[i].register_forward_pre_hook(lambda m, a: states.append(a[0].clone())) for i in (2, 3)]
        handles.append(lm.model.transformer.ln_f.register_forward_pre_hook(lambda m, a: states.append(a[0].clone())))
        with torch.no_grad():
            logits = lm.model(ids[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
        return torch.cat(states), logits

    (clean, clean_logits), (scaled, logits) = run(1.0), run(factor)
    error = (scaled - clean)[:, 1:].flatten(1)
    at = lesson1.FACTORS.index(factor)
    assert found["delta"][at] == pytest.approx(error.norm(dim=1).tolist())
    assert found["relative"][at] == pytest.approx((error.norm(dim=1) / clean[:, 1:].flatten(1).norm(dim=1)).tolist())
    assert found["survives"][at] == pytest.approx([float(e @ error[0] / (error[0] @ error[0])) for e in error])
    assert found["survives"][at][0] == pytest.approx(1)
    assert found["size"] == pytest.approx(float(clean[0, 1:].norm()))
    p, q = clean_logits.softmax(-1), logits.softmax(-1)
    assert found["divergence"][at] == pytest.approx(float((p * (p / q).log()).sum()))
    assert found["probability"] == pytest.approx(float(p.max()))
    assert found["after"][at] == pytest.approx(float(q[p.argmax()]))
    lengths = clean.norm(dim=-1)
    assert found["length"] == pytest.approx(max(float(row[0] / row[1:].median()) for row in lengths))


def test_a_first_token_that_is_made_massive_is_found_where_it_stands():
    """The embedding of one position is made a hundred times as long: whatever word stands there is special, a mark or not."""
    lm = tiny_model(3)
    with torch.no_grad():
        lm.model.transformer.wpe.weight[0] *= 300
    found = lesson1.measure(lm, torch.arange(3, 11), 1)
    assert found["unmarked"] > 10 and found["marked"] > 10 and found["second"] < 10
    assert lesson1.verdict_1_8([found["unmarked"]], [found["marked"]], [found["second"]]).verdict == FAILS


def test_the_in_place_measurement_sees_half_of_the_clean_state_gone():
    lm = tiny_model(4)
    ids = torch.arange(8)
    clean = trace(lm, ids).resid
    saved, weights, corrupted = lesson1.in_place(lm, ids, 1)
    assert saved == 8 * lm.d_model * 8
    assert weights == sum(p.numel() * 8 for p in lm.model.parameters())
    assert corrupted == pytest.approx(0.5)
    assert float(delta_norm(clean, trace(lm, ids).resid).max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ledger_works_in_the_dtypes_of_real_models(dtype):
    lm = tiny_model(3)
    lm.model.to(dtype)
    verdicts = {claim.number: claim.verdict for claim in lesson1.ledger(lm, torch.arange(8), block=1)}
    assert verdicts["1.1"] == verdicts["1.2"] == CONSTRUCTION
    assert verdicts["1.6"] == verdicts["1.7"] == PARTLY


def test_the_divergence_of_the_pocket_model_is_that_of_its_words():
    lm = load_model()
    prompt = "Berlin is the capital of"
    with edit(lm, scale_block(2, 0.5)):
        changed = lm.logits(prompt)[0, -1]
    expected = float(kl(lm.logits(prompt)[0, -1], changed))
    assert lesson1.measure(lm, prompt, 2)["divergence"][0] == pytest.approx(expected)
