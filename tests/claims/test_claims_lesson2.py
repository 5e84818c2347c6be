import pytest
import torch
from tiny import CONFIGS, tiny

from helpers.claims import lesson2
from helpers.claims.core import FAILS, HOLDS, PARTLY
from helpers.edits import edit, scale_block, skip_block
from helpers.exercises.core import hooks_on, tiny_model
from helpers.tracing import trace

NEAR = {
    "block": 1,
    "without_first": 0.98,
    "without_outliers": 0.97,
    "per_dimension": 0.96,
    "by_chance": 0.97,
    "step": 0.2,
}
MASK = {"masked": 20, "at_first": 12, "r": 0.99, "r_masked": 0.9}
CASES = {
    "2.1": (
        {"misses": [0.0, 1e-16], "against_hidden_state": 1e-16, "tolerance": 1e-13},
        {"misses": [0.0, 1e-3], "against_hidden_state": 1e-3, "tolerance": 1e-13},
    ),
    "2.2": ({**NEAR, "everywhere": [0.96, 0.99, 0.97]}, {**NEAR, "everywhere": [0.99, 0.6, 0.99]}),
    "2.3": ({**MASK, "filled": 0.1}, {**MASK, "filled": 0.9}),
    "2.4": (
        {"probability": 0.1, "as_it_is": 0.6, "with_dropout": 0.6},
        {"probability": 0.0, "as_it_is": 0.0, "with_dropout": 0.0},
    ),
    "2.5": (
        {"train": True, "evaluated": False, "train_no_grad": False},
        {"train": False, "evaluated": False, "train_no_grad": False},
    ),
}


def test_every_verdict_can_go_both_ways(prove_verdicts):
    prove_verdicts(lesson2, CASES)


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        ("2.1", {"misses": [0.0, 0.0], "against_hidden_state": 2.0, "tolerance": 1e-13}, "taken after the final norm"),
        ("2.2", {**NEAR, "everywhere": [0.2, 0.99, 0.97]}, "1 of 3 blocks stay below 0.95, block 0 most"),
        ("2.2", {**NEAR, "everywhere": [0.97, 0.99], "without_first": 0.5}, "without the first token r falls below"),
        ("2.2", {**NEAR, "everywhere": [0.97, 0.99], "per_dimension": 0.5}, "what all tokens share"),
        ("2.2", {**NEAR, "everywhere": [0.97, 0.99], "step": 1.0}, "the step is 1 times as long as the stream"),
        ("2.3", {**MASK, "filled": 0.5}, "by 2 times only"),
        ("2.4", {"probability": 0.0, "as_it_is": 0.0, "with_dropout": 0.6}, "this model's is 0"),
        ("2.5", {"train": True, "evaluated": True, "train_no_grad": False}, "first half only"),
    ],
)
def test_what_holds_in_part(number, arguments, said):
    claim = lesson2.VERDICTS[number](**arguments)
    assert claim.verdict == PARTLY
    assert said in claim.why


def test_not_a_number_never_holds():
    nan = float("nan")
    assert lesson2.verdict_2_1([nan], 0.0, 1e-13).verdict == FAILS
    assert lesson2.verdict_2_2(**{**NEAR, "everywhere": [0.99, nan]}).verdict == FAILS


def test_a_stretched_stream_has_r_1_and_is_no_slight_change():
    lm = tiny_model(3)
    with edit(
        lm, skip_block(2), scale_block(2, 3.0)
    ):  # block 2 of 4 hands on three times what it was given, and no more
        claim = lesson2.ledger(lm, torch.arange(8))[1]
    assert claim.measured.startswith("block 2: r = 1, ")
    assert "the step is 2 times as long as the stream" in claim.why
    assert claim.verdict == PARTLY
    assert lesson2.verdict_2_2(**{**NEAR, "everywhere": [1.0, 1.0], "step": float("nan")}).verdict == PARTLY


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(3)
    ids = torch.arange(8)
    lm.model(ids[None], output_hidden_states=True)  # transformers 5 installs its recorders once
    before, hooks, state = trace(lm, ids), hooks_on(lm.model), torch.get_rng_state()
    claims = lesson2.ledger(lm, ids)
    assert [claim.number for claim in claims] == list(lesson2.VERDICTS)
    assert claims[0].verdict == PARTLY  # exact, but not against the normed last state
    assert claims[3].verdict == HOLDS  # GPT-2's config has dropout
    assert claims[4].verdict == PARTLY  # eval() switches no gradient off
    assert hooks_on(lm.model) == hooks
    assert not any(module.training for module in lm.model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(trace(lm, ids).logits, before.logits)
    assert claims == lesson2.ledger(lm, ids)


def test_without_dropout_train_mode_changes_nothing_until_it_is_switched_on():
    lm = tiny("gpt2", resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
    claim = lesson2.ledger(lm, torch.arange(6))[3]
    assert claim.verdict == PARTLY
    assert "differ by 0 %" in claim.measured


@pytest.mark.parametrize("family", CONFIGS)
def test_the_ledger_knows_every_family(family):
    claims = lesson2.ledger(tiny(family), torch.arange(6))
    assert claims[0].verdict in (HOLDS, PARTLY), claims[0]
    assert claims[4].verdict == PARTLY


def test_train_mode_is_undone_after_an_exception():
    lm = tiny_model(0)
    lm.model.transformer.h[1].train()  # a mixture is kept too
    modes = [module.training for module in lm.model.modules()]
    with pytest.raises(RuntimeError, match="mine"):
        with lesson2.train_mode(lm, 0.5):
            assert lm.model.training
            assert lm.model.transformer.drop.p == 0.5
            raise RuntimeError("mine")
    assert [module.training for module in lm.model.modules()] == modes
    assert lm.model.transformer.drop.p == 0.1
