import math

import pytest
import torch

from helpers import capital_prompts, edit, load_model, log_prob, replace_heads, trace, zero_heads
from helpers.countries import read_countries
from helpers.course.exercise import hooks_on
from helpers.course.ledger import FAILS, HOLDS, PARTLY, UNTESTED
from helpers.lesson4 import claims as lesson4

A, B = "block 5", "the strongest"
DOWN, UP = [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]
YES, NO = [True, True], [True, False]


def both(first, second=None):
    return {A: [first], B: [first if second is None else second]}


def replaced(zero, mean):
    return {"zero": [zero], "mean": [mean], "resample": [mean]}


NAMED = {A: {"zero": "5.1", "mean": "5.2", "resample": "5.2"}, B: {"zero": "8.4", "mean": "8.4", "resample": "8.4"}}
SHARED = {
    "single": both([-0.1, -0.1, -0.1]),
    "together": {A: [-0.9], B: [-0.9]},
    "single_odds": both([-0.1, -0.1, -0.1]),
    "together_odds": {A: [-0.9], B: [-0.9]},
    "zero": {A: [0.1], B: [-0.9]},
}
CASES = {
    "4.1": {
        HOLDS: ({"zero": both(DOWN), "mean": both(DOWN), "strongest": ["8.4"]}, "of the strongest: 1 of 1"),
        PARTLY: ({"zero": both(UP, DOWN), "mean": both(DOWN), "strongest": ["8.4"]}, "of block 5: 0 of 1"),
        FAILS: ({"zero": both(UP), "mean": both(DOWN), "strongest": ["8.4"]}, "of the strongest: 0 of 1"),
    },
    "4.2": {
        HOLDS: ({"zero": both(UP), "beyond": {A: [0.1], B: [0.1]}}, "of the strongest: 1 of 1"),
        PARTLY: ({"zero": both(DOWN, UP), "beyond": {A: [0.1], B: [0.1]}}, "of block 5: 0 of 1"),
        FAILS: ({"zero": both(DOWN), "beyond": {A: [0.1], B: [0.1]}}, "of the strongest: 0 of 1"),
    },
    "4.3": {
        HOLDS: ({"first": both(YES), "right": 1, "tried": 2}, "without each of the strongest: 1 of 1"),
        PARTLY: ({"first": both(YES, NO), "right": 1, "tried": 2}, "without each of the strongest: 0 of 1"),
        FAILS: ({"first": both(NO), "right": 1, "tried": 2}, "without each of block 5: 0 of 1"),
        UNTESTED: ({"first": {A: [], B: []}, "right": 0, "tried": 2}, "on none of the prompts"),
    },
    "4.4": {
        HOLDS: ({"changes": [[-0.2, 0.1]], "kept": [[True, False]]}, "at least half of the movement of the logit difference: 1 of 1"),
        PARTLY: ({"changes": [[-0.2, 0.1]] * 2, "kept": [[True, False], [False, True]]}, "1 of 2"),
        FAILS: ({"changes": [[-0.2, 0.1]], "kept": [[False, True]]}, "0 of 1"),
        UNTESTED: ({"changes": [[-0.2, 0.1]], "kept": [[True, True]]}, "changes at 0 of 2 removals"),
    },
    "4.5": {
        HOLDS: (SHARED, "than the sum of single ones, in log p and in the logit difference: 1 of 1"),
        PARTLY: ({**SHARED, "together": {A: [-0.2], B: [-0.9]}}, "in log p and in the logit difference: 0 of 1"),
        FAILS: ({**SHARED, "together": {A: [0.1], B: [0.0]}}, "all of block 5 at their mean lower log p(target): 0 of 1"),
    },
    "4.6": {
        HOLDS: ({"damage": {A: replaced(0.3, 0.1), B: replaced(0.3, 0.1)}, "strongest": NAMED}, "block 5: KL"),
        PARTLY: ({"damage": {A: replaced(0.3, 0.1), B: replaced(0.1, 0.1)}, "strongest": NAMED}, "1.5-fold: 0 of 1"),
        FAILS: ({"damage": {A: replaced(0.0, 0.0), B: replaced(0.14, 0.1)}, "strongest": NAMED}, "1.5-fold: 0 of 1"),
    },
    "4.7": {
        HOLDS: ({"gain": both([0.2, -0.1])}, "over the strongest: 1 of 1"),
        PARTLY: ({"gain": both([0.2, -0.1], [-0.2, 0.1])}, "over the strongest: 0 of 1"),
        FAILS: ({"gain": both([-0.2, 0.1])}, "over block 5: 0 of 1"),
    },
    "4.8": {
        HOLDS: ({"first": both(YES), "together": {A: [False], B: [False]}}, "all of block 5 at once"),
        PARTLY: ({"first": both(YES), "together": {A: [True], B: [False]}}, "no head alone does: 0 of 1; all of the strongest"),
        FAILS: ({"first": both(YES), "together": {A: [True], B: [True]}}, "all of block 5 at once"),
        UNTESTED: ({"first": both(YES, NO), "together": {A: [False], B: [False]}}, "on each of 1 prompts some head alone"),
    },
}  # fmt: skip


def test_every_verdict_has_its_case(prove_verdicts):
    prove_verdicts(lesson4, CASES)


def test_errors_are_counted_where_no_head_alone_makes_one():
    first = {A: [YES, NO, YES], B: [YES, YES, YES]}
    claim = lesson4.verdict_4_8(first, {A: [False, False, True], B: [False, False, False]})
    assert claim.over == (1, 2)


def test_half_of_all_change_is_counted_in_heads():
    assert lesson4._half([0.1, -0.5, 0.2, 0.2]) == 1
    assert lesson4._half([0.2, -0.3, 0.2, 0.3]) == 2
    assert lesson4._half([0.0, 0.0]) == 1


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def facts(lm):
    return capital_prompts(lm, 6)


@pytest.fixture(scope="module")
def study(lm, facts):
    return lesson4.study_sites(lm, facts, {"": [(3, head) for head in range(lm.n_heads)]})[""]


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


def test_the_mean_is_that_of_the_same_position_and_the_other_prompt_is_another(lm, facts, study):
    """All six prompts have five tokens, so that position and place from the end are the same thing."""
    assert {len(lm.token_ids(fact.prompt)) for fact in facts} == {5}
    heads = torch.stack([trace(lm, fact.prompt).heads[3, 0] for fact in facts])  # (n_prompts, pos, n_heads, d_head)
    fact, token = facts[1], lm.token_id(facts[1].target)
    clean = log_prob(trace(lm, fact.prompt).last_logits[0], token)

    def changed(value):
        with edit(lm, replace_heads(3, 4, value)):
            return (log_prob(trace(lm, fact.prompt).last_logits[0], token) - clean).item()

    by_position = changed(heads.mean(0)[:, 4:5])
    assert study.changes["mean"]["target"][1, 4].item() == pytest.approx(by_position, abs=1e-10)
    assert abs(by_position - changed(heads.mean((0, 1))[4])) > 1e-6, "not the mean over all positions"
    candidates = [changed(one[:, 4:5]) for one in heads]
    got = study.changes["resample"]["target"][1, 4].item()
    assert min(abs(got - value) for i, value in enumerate(candidates) if i != 1) < 1e-10
    assert abs(got) > 1e-10, "a prompt is never its own partner"


def test_means_of_prompts_of_other_lengths_are_aligned_at_the_end():
    short, long = torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 4, 5)
    short[:] = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    long[:] = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])[None, :, None, None]
    expected = [10.0, 20.0, 15.5, 21.0, 26.5]
    assert lesson4.position_means([short, long], 5)[0, :, 0, 0].tolist() == expected
    assert lesson4.position_means([short, long], 3)[0, :, 0, 0].tolist() == expected[2:]
    assert lesson4.position_means([short, long], 6)[0, :, 0, 0].tolist() == [10.0, *expected]
    many = [short + i for i in range(lesson4.ENOUGH)]
    assert lesson4.position_means([long, *many], 3)[0, 0, 0, 0].item() == pytest.approx(1 + (lesson4.ENOUGH - 1) / 2)


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


def test_countries_of_the_region_are_compared_with_all_others(lm, facts, study):
    fact = facts[2]
    known = {c.name: c.region for c in read_countries()}
    home = known[fact.target.strip()]
    near, far = [], []
    clean = trace(lm, fact.prompt).last_logits[0].log_softmax(-1)
    with edit(lm, zero_heads(3, 5)):
        change = trace(lm, fact.prompt).last_logits[0].log_softmax(-1) - clean
    for name, region in known.items():
        ids = lm.tokenizer(" " + name)["input_ids"]
        if len(ids) == 1 and " " + name != fact.target:
            (near if region == home else far).append(change[ids[0]].item())
    expected = sum(near) / len(near) - sum(far) / len(far)
    assert study.changes["zero"]["same region"][2, 5].item() == pytest.approx(expected, abs=1e-10)


def test_prompts_are_those_that_the_model_knows_and_no_head_is_chosen_and_judged_by_the_same(lm):
    template, finding, judging, answered = lesson4.choose_prompts(lm)
    assert template == lesson4.TEMPLATE
    assert len(finding) == lesson4.FIND and len(judging) >= 20
    assert not {fact.prompt for fact in finding} & {fact.prompt for fact in judging}
    for fact in finding[:3] + judging[:3]:
        assert lm.logits(fact.prompt)[0, -1].argmax().item() == lm.token_id(fact.target)
    assert answered > len(finding) + len(judging)


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone(lm, monkeypatch):
    monkeypatch.setattr(lesson4, "FIND", 3)
    monkeypatch.setattr(lesson4, "JUDGE", 4)
    prompt = "Berlin is the capital of"
    hooks, before = hooks_on(lm.model), trace(lm, prompt).logits
    kept = {}

    def keep(name, compute):
        kept[name] = compute() if name not in kept else kept[name]
        return kept[name]

    claims = lesson4.ledger(lm, prompt, keep=keep)
    assert [claim.number for claim in claims] == list(lesson4.VERDICTS)
    assert claims[0].over[1] in (4, 5)  # Berlin's is one of them
    assert hooks_on(lm.model) == hooks
    assert torch.equal(trace(lm, prompt).logits, before)
    monkeypatch.setattr(lesson4, "_removals", None)  # what is kept is not measured again
    assert lesson4.ledger(lm, prompt, keep=keep) == claims
