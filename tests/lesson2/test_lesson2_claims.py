import pytest
import torch
from tiny import CONFIGS, tiny

from helpers.course.exercise import hooks_on, tiny_model
from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, UNTESTED
from helpers.edits import edit, scale_block, skip_block
from helpers.lesson2 import claims as lesson2
from helpers.tracing import trace

NEAR = {
    "block": 1,
    "everywhere": [[0.96, 0.99, 0.97]],
    "without_first": [0.98],
    "without_outliers": [0.97],
    "per_dimension": [0.96],
    "by_chance": [0.97],
    "step": [0.2],
}
MASK = {"masked": [20], "at_first": [12], "r": [0.99], "r_masked": [0.9]}
CASES = {
    "2.1": {
        CONSTRUCTION: (
            {"misses": [[0.0, 1e-16]], "against_hidden_state": [2.0], "tolerance": 1e-13},
            "but not hidden_states[-1]",
        ),
        FAILS: (
            {"misses": [[0.0, 1e-3]], "against_hidden_state": [1e-3], "tolerance": 1e-13},
            "after 1 of 2 blocks, first at block 1",
        ),
    },
    "2.2": {
        HOLDS: (NEAR, "r is at least 0.95 at block 1: 1 of 1"),
        PARTLY: ({**NEAR, "everywhere": [[0.2, 0.99, 0.97]]}, "at every block: 0 of 1"),
        FAILS: ({**NEAR, "everywhere": [[0.99, 0.6, 0.99]]}, "at block 1: 0 of 1"),
    },
    "2.3": {
        HOLDS: ({**MASK, "filled": [0.01]}, "1 of 1"),
        PARTLY: (
            {"filled": [0.01, 0.9], "masked": [2, 2], "at_first": [1, 1], "r": [0.9, 0.9], "r_masked": [0.8, 0.8]},
            "1 of 2",
        ),
        FAILS: ({**MASK, "filled": [0.3]}, "0 of 1"),
    },
    "2.4": {
        HOLDS: ({"probability": 0.1, "as_it_is": 0.6, "with_dropout": 0.6}, "two recordings"),
        FAILS: ({"probability": 0.1, "as_it_is": 0.0, "with_dropout": 0.0}, "though its dropout is on"),
        UNTESTED: ({"probability": 0.0, "as_it_is": 0.0, "with_dropout": 0.6}, "this model's is 0"),
    },
    "2.5": {
        HOLDS: ({"train": True, "evaluated": False, "train_no_grad": False}, "in eval mode nothing carries a graph"),
        PARTLY: ({"train": True, "evaluated": True, "train_no_grad": False}, "first half only"),
        FAILS: ({"train": False, "evaluated": False, "train_no_grad": False}, "in train mode nothing"),
    },
}


def test_every_verdict_has_its_case(prove_verdicts):
    prove_verdicts(lesson2, CASES)


@pytest.mark.parametrize("name", ["without_first", "without_outliers", "per_dimension"])
def test_r_has_to_be_near_one_in_every_way_of_counting(name):
    assert lesson2.verdict_2_2(**{**NEAR, name: [0.5]}).verdict == PARTLY
    assert lesson2.verdict_2_2(**{**NEAR, "step": [1.0]}).verdict == PARTLY


def test_not_a_number_never_holds():
    nan = float("nan")
    assert lesson2.verdict_2_1([[nan, 0.0]], [0.0], 1e-13).verdict == FAILS
    assert lesson2.verdict_2_2(**{**NEAR, "everywhere": [[0.99, nan]]}).verdict == FAILS
    assert lesson2.verdict_2_2(**{**NEAR, "everywhere": [[nan, 0.99]]}).verdict == PARTLY
    assert lesson2.verdict_2_2(**{**NEAR, "step": [nan]}).verdict == PARTLY


def test_a_stretched_stream_has_r_1_and_is_no_slight_change():
    lm = tiny_model(3)
    with edit(
        lm, skip_block(2), scale_block(2, 3.0)
    ):  # block 2 of 4 hands on three times what it was given, and no more
        found = lesson2.measure(lm, torch.arange(8))
    assert found["everywhere"][2] == pytest.approx(1)
    assert found["step"] == pytest.approx(2)


def test_the_sum_is_compared_with_the_models_own_hidden_states():
    lm, ids = tiny_model(3), torch.arange(8)
    found = lesson2.measure(lm, ids)
    with torch.no_grad():
        states = lm.model(ids[None], output_hidden_states=True).hidden_states
    before_norm = trace(lm, ids).resid[-1]
    expected = float((before_norm - states[-1]).norm() / states[-1].norm())
    assert found["against_hidden_state"] == pytest.approx(expected)
    assert max(found["misses"]) < 1e-13


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(3)
    ids = torch.arange(8)
    lm.model(ids[None], output_hidden_states=True)  # transformers 5 installs its recorders once
    before, hooks, state = trace(lm, ids), hooks_on(lm.model), torch.get_rng_state()
    claims = lesson2.ledger(lm, ids)
    assert [claim.number for claim in claims] == list(lesson2.VERDICTS)
    assert claims[0].verdict == CONSTRUCTION and "but not hidden_states[-1]" in claims[0].why
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
    assert claim.verdict == UNTESTED
    assert "differ by 0 %" in claim.measured and "with p = 0.1" in claim.measured


@pytest.mark.parametrize("family", CONFIGS)
def test_the_ledger_knows_every_family(family):
    claims = lesson2.ledger(tiny(family), torch.arange(6))
    assert claims[0].verdict == CONSTRUCTION, claims[0]
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
