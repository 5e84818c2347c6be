import math
from dataclasses import replace

import pytest
import torch

from helpers import capital_prompts, edit, load_model, log_prob, replace_heads, trace, zero_heads
from helpers.claims import lesson4
from helpers.claims.core import FAILS, PARTLY
from helpers.exercises.core import hooks_on

PROMPT = "Berlin is the capital of"
DOWN, UP, OPEN = (-0.2, -0.3, -0.1), (0.2, 0.1, 0.3), (0.0, -0.1, 0.1)
REST = (0.0, -0.1, 0.1)
KINDS = {"zero": (0.3, 0.2, 0.4), "mean": (0.1, 0.05, 0.2)}
CASES = {
    "4.1": ({"here": [-1, -1, 1], "many": [DOWN, DOWN, OPEN]}, {"here": [1, -1, 1], "many": [UP, OPEN, OPEN]}),
    "4.2": (
        {"here": [1, 1, -1], "many": [UP, UP, OPEN], "share": UP},
        {"here": [1, -1, -1], "many": [DOWN, UP, OPEN], "share": DOWN},
    ),
    "4.3": (
        {"first": True, "kept": 12, "heads": 12, "kept_many": 60, "many": 60},
        {"first": True, "kept": 11, "heads": 12, "kept_many": 30, "many": 60},
    ),
    "4.4": (
        {"here": [-0.2, 0.1], "kept": [True, True], "silent": 0.95, "hidden": 0.9, "sure": 1},
        {"here": [-0.2, 0.1], "kept": [False, False], "silent": 0.5, "hidden": 0.05, "sure": 1},
    ),
    "4.5": (
        {"half": 4, "heads": 12, "together": (-0.9, -1.0, -0.8), "extra": DOWN, "extra_logits": DOWN},
        {"half": 2, "heads": 12, "together": DOWN, "extra": OPEN, "extra_logits": DOWN},
    ),
    "4.6": (
        {"damage": KINDS, "gaps": {"zero − mean": UP}, "strongest": {"zero": 3, "mean": 5}},
        {"damage": KINDS, "gaps": {"zero − mean": OPEN}, "strongest": {"zero": 3, "mean": 3}},
    ),
}


def test_every_verdict_can_go_both_ways(prove_verdicts):
    prove_verdicts(lesson4, CASES)


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        ("4.1", {"here": [-1, -1, 1], "many": [DOWN, OPEN, UP]}, "this prompt; over many prompts no sure majority"),
        ("4.1", {"here": [-1, -1, 1], "many": [DOWN, UP, UP]}, "this prompt; over many prompts surely not of most"),
        ("4.1", {"here": [1, -1, 1], "many": [DOWN, DOWN, UP]}, "not on this prompt, but over many"),
        ("4.2", {"here": [1, 1], "many": [OPEN, OPEN], "share": OPEN}, "its gain is not sure"),
        ("4.2", {"here": [1, 1], "many": [OPEN, OPEN], "share": DOWN}, "it even loses ground"),
        ("4.2", {"here": [1, 1], "many": [OPEN, OPEN], "share": UP}, "more than its share"),
        ("4.3", {"first": True, "kept": 4, "heads": 4, "kept_many": 9, "many": 10}, "on 1 of 10 prompts a removal"),
        ("4.3", {"first": True, "kept": 4, "heads": 4, "kept_many": 0, "many": 0}, "no other prompt can test it"),
        (
            "4.3",
            {"first": True, "kept": 3, "heads": 4, "kept_many": 6, "many": 10},
            "here a removal costs the target its first place; most prompts that the model gets right keep it",
        ),
        (
            "4.3",
            {"first": False, "kept": 0, "heads": 4, "kept_many": 9, "many": 9},
            "here the target is not first even",
        ),
        (
            "4.4",
            {"here": [-0.2, 0.1], "kept": [True, False], "silent": 0.5, "hidden": 0.3, "sure": 2},
            "most shows in the top token",
        ),
        (
            "4.4",
            {"here": [-0.2, 0.1, 0.1, 0.1], "kept": [True] * 4, "silent": 1.0, "hidden": 1.0, "sure": 1},
            "surely so for few heads",
        ),
        (
            "4.5",
            {"half": 3, "heads": 12, "together": DOWN, "extra": UP, "extra_logits": UP},
            "distributed, but all at once surely cost no more than the sum",
        ),
        (
            "4.5",
            {"half": 3, "heads": 12, "together": DOWN, "extra": DOWN, "extra_logits": OPEN},
            "distributed, but more than the sum in log p alone",
        ),
        (
            "4.5",
            {"half": 3, "heads": 12, "together": DOWN, "extra": OPEN, "extra_logits": DOWN},
            "distributed, but more than the sum against the contrast alone",
        ),
        (
            "4.5",
            {"half": 3, "heads": 12, "together": DOWN, "extra": OPEN, "extra_logits": OPEN},
            "distributed, but no sure cost beyond the sum",
        ),
        (
            "4.5",
            {"half": 2, "heads": 12, "together": DOWN, "extra": DOWN, "extra_logits": DOWN},
            "but a few heads do most of it",
        ),
        (
            "4.6",
            {
                "damage": KINDS,
                "gaps": {"zero − mean": UP, "zero − resample": OPEN},
                "strongest": {"zero": 3, "mean": 3},
            },
            "surely different: zero − mean; mean disturbs least, and they name the same strongest head",
        ),
        (
            "4.6",
            {
                "damage": {**KINDS, "resample": (0.12, 0.06, 0.22)},
                "gaps": {"zero − mean": UP, "zero − resample": UP, "mean − resample": OPEN},
                "strongest": {"zero": 3, "mean": 5, "resample": 5},
            },
            "mean disturbs least, but not surely, and they name different strongest heads: 3 (zero), 5 (mean)",
        ),
    ],
)
def test_what_holds_in_part(number, arguments, said):
    claim = lesson4.VERDICTS[number](**arguments)
    assert claim.verdict == PARTLY
    assert said in claim.why


def test_what_moves_behind_the_top_token_must_be_more_than_chance():
    claim = lesson4.verdict_4_4([-0.2, 0.1], [True, True], 1.0, 1.0, 0)
    assert claim.verdict == FAILS
    assert claim.why == "what moves behind the same top token is sure for no head"


def test_a_shift_is_sure_if_its_interval_does_not_touch_zero():
    changes = torch.tensor([[0.3, 0.3, 1.0], [0.2, -0.3, 2.0], [0.4, 0.1, 3.0], [9.0, 0.0, 4.0]])
    kept = torch.tensor([[True, True, True], [True, True, False], [True, True, False], [False, True, False]])
    assert lesson4.sure_shifts(changes, kept) == 1


def test_half_of_all_change_is_counted_in_heads(study):
    size = sorted(abs(value) for value in study.changes["zero"]["target"].mean(0).tolist())[::-1]
    half = lesson4.cooperation(study)["half"]
    assert sum(size[:half]) >= sum(size) / 2 > sum(size[: half - 1])


def test_a_prompt_counts_as_kept_only_if_every_removal_keeps_it(study):
    kept = study.changes["zero"]["target is top-1"]
    right = torch.tensor([True, True, True, False, False, False])
    changed = kept.clone()
    changed[:] = 1
    changed[0, 2] = changed[5] = 0
    zero = {**study.changes["zero"], "target is top-1": changed}
    assert lesson4._kept(replace(study, changes={"zero": zero}, right=right)) == (2, 3)


def test_a_target_that_is_not_first_can_not_stay_first():
    claim = lesson4.verdict_4_3(False, 0, 12, 0, 0)
    assert claim.verdict == FAILS
    assert claim.why == "the target is not first even with every head"


def test_hidden_movement_is_that_of_removals_that_keep_the_top_token():
    changes = torch.tensor([[-3.0, 1.0], [4.0, -2.0]])
    kept = torch.tensor([[True, True], [False, True]])
    assert lesson4.hidden_movement(changes, kept) == pytest.approx((0.75, 0.6))
    assert lesson4.hidden_movement(torch.zeros(2, 2), kept) == pytest.approx((0.75, 0.0))


def test_no_redundancy_where_nothing_is_lost():
    for together, said in ((UP, "surely gains"), (OPEN, "no sure cost")):
        claim = lesson4.verdict_4_5(4, 12, together, DOWN, DOWN)
        assert claim.verdict == FAILS
        assert said in claim.why


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def facts(lm):
    return capital_prompts(lm, 6)


@pytest.fixture(scope="module")
def study(lm, facts):
    return lesson4.study_heads(lm, facts, 3)


def test_a_study_gives_the_numbers_of_single_passes(lm, facts, study):
    ids = [(lm.token_id(fact.target), lm.token_id(fact.contrast)) for fact in facts]
    for i, fact in enumerate(facts):
        clean = trace(lm, fact.prompt).last_logits[0]
        with edit(lm, zero_heads(3, 2)):
            cut = trace(lm, fact.prompt).last_logits[0]
        for name, token in zip(("target", "contrast"), ids[i], strict=True):
            expected = log_prob(cut, token) - log_prob(clean, token)
            assert study.changes["zero"][name][i, 2].item() == pytest.approx(expected.item(), abs=1e-10)
        assert study.clean[i].item() == pytest.approx(log_prob(clean, ids[i][0]).item(), abs=1e-10)
        assert bool(study.right[i]) == (clean.argmax().item() == ids[i][0])
        with edit(lm, zero_heads(3, list(range(lm.n_heads)))):
            none = trace(lm, fact.prompt).last_logits[0]
        expected = log_prob(none, ids[i][0]) - log_prob(clean, ids[i][0])
        assert study.together["target"][i].item() == pytest.approx(expected.item(), abs=1e-10)


def test_mean_and_resample_replace_by_other_prompts(lm, facts, study):
    heads = [trace(lm, fact.prompt).heads[3, 0, :, 4] for fact in facts]  # (pos, d_head) each
    fact, token = facts[1], lm.token_id(facts[1].target)
    clean = log_prob(trace(lm, fact.prompt).last_logits[0], token)
    length = len(heads[1])  # positions counted back from the end; a shorter prompt's first token stands in
    means = [sum(one[max(len(one) - length + p, 0)] for one in heads) / len(heads) for p in range(length)]
    with edit(lm, replace_heads(3, 4, torch.stack(means).unsqueeze(1))):
        expected = log_prob(trace(lm, fact.prompt).last_logits[0], token) - clean
    assert study.changes["mean"]["target"][1, 4].item() == pytest.approx(expected.item(), abs=1e-10)
    candidates = []
    for other in facts:
        with edit(lm, replace_heads(3, 4, trace(lm, other.prompt).heads[3][:, :, 4:5])):
            candidates.append((log_prob(trace(lm, fact.prompt).last_logits[0], token) - clean).item())
    got = study.changes["resample"]["target"][1, 4].item()
    assert min(abs(got - value) for i, value in enumerate(candidates) if i != 1) < 1e-10
    assert abs(got) > 1e-10, "a prompt is never its own partner"


def test_the_share_of_the_rest_is_a_conditional_probability(lm, facts, study):
    fact = facts[0]
    target, contrast = lm.token_id(fact.target), lm.token_id(fact.contrast)

    def conditional():
        p = trace(lm, fact.prompt).last_logits[0].softmax(-1)
        return math.log(p[contrast] / (1 - p[target]))

    before = conditional()
    with edit(lm, zero_heads(3, 1)):
        expected = conditional() - before
    assert study.share_of_the_rest()[0, 1].item() == pytest.approx(expected, abs=1e-9)


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone(lm, study):
    hooks, before = hooks_on(lm.model), trace(lm, PROMPT).logits
    claims = lesson4.ledger(lm, PROMPT, study=study)
    assert [claim.number for claim in claims] == list(lesson4.VERDICTS)
    assert hooks_on(lm.model) == hooks
    assert torch.equal(trace(lm, PROMPT).logits, before)
    assert {claim.number: claim.measured for claim in claims}["4.6"].startswith("KL zero ")
