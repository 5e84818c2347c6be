"""Random steps, zeroed values, costs of parts and ways to run a model, against plain PyTorch."""

import pytest
import torch

from helpers import attention_patterns, capital_prompts, correlation, load_model, trace
from helpers.course.exercise import hooks_on
from helpers.lesson2 import modes, steps

PROMPT = "Berlin is the capital of"


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def run(lm):
    return trace(lm, PROMPT)


def last_logits(lm, hooks=()):
    """What the model predicts after PROMPT under plain hooks: pairs of module and hook."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        with torch.no_grad():
            return lm.model(lm.encode(PROMPT).ids).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def test_a_random_step_is_as_long_as_the_blocks_own_for_each_token(run):
    before, after = run.resid[7], run.resid[8]
    states = steps.random_steps(before, after, 3)
    assert states.shape == (3, *before.shape[1:])
    for state in states:
        assert torch.allclose((state - before[0]).norm(dim=-1), (after - before)[0].norm(dim=-1))
    assert (states[0] - states[1]).abs().max() > 0.1
    cosines = torch.cosine_similarity(states - before, after - before, dim=-1)
    assert cosines.abs().max() < 0.4  # directions in 192 dimensions
    assert torch.equal(states, steps.random_steps(before, after, 3))
    assert not torch.equal(states, steps.random_steps(before, after, 3, seed=1))


def test_others_at_zero_are_as_many_as_the_mask_hides_and_none_of_these(run):
    state = run.resid[5]
    keep = state.abs() < 8
    hidden = int((~keep).sum())
    assert hidden > 3
    for one in steps.zero_others(state, keep, 4):
        gone = one != state[0]
        assert int(gone.sum()) == hidden and not one[gone].any()
        assert not (gone & ~keep[0]).any()


def test_the_measure_of_a_word_is_what_the_model_says(lm, run):
    found = steps.chances_from(lm, PROMPT, 3, torch.cat([run.resid[4], 0.3 * run.resid[4]]), " Germany")
    edited = last_logits(lm, [(lm.model.transformer.h[3], lambda module, args, output: 0.3 * run.resid[4])])
    for row, logits in zip(found, (last_logits(lm), edited), strict=True):
        p = logits.softmax(-1)
        assert float(row[0]) == pytest.approx(float(p[lm.token_id(" Germany")]), rel=1e-9)
        assert bool(row[1]) == (int(p.argmax()) == lm.token_id(" Germany"))


def test_the_cost_of_a_part_is_that_of_a_plain_hook(lm, run):
    length, cost, first = steps.part_costs(lm, PROMPT, " Germany")
    assert length.shape == cost.shape == first.shape == (2, lm.n_blocks)
    clean = last_logits(lm).log_softmax(-1)
    for block in (0, 2, 11):
        blocks = lm.model.transformer.h[block]
        nothing = {
            0: (blocks.attn, lambda module, args, output: (0 * output[0], *output[1:])),
            1: (blocks.mlp, lambda module, args, output: 0 * output),
        }
        for part, hook in nothing.items():
            without = last_logits(lm, [hook]).log_softmax(-1)
            assert float(cost[part, block]) == pytest.approx(float((clean.exp() * (clean - without)).sum()), rel=1e-6)
            assert bool(first[part, block]) == (int(without.argmax()) == lm.token_id(" Germany"))
            added = (run.attn, run.mlp)[part][block]
            assert float(length[part, block]) == pytest.approx(float(added.pow(2).sum().sqrt()))


def test_four_ways_to_count_r():
    generator = torch.Generator().manual_seed(2)
    before, noise = (torch.randn(1, 6, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    after = before + 0.5 * noise
    before[0, 0], after[0, 0] = 50 * before[0, 0], 50 * before[0, 0]
    keep = before.abs() < 3

    def plain(a, b):
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    every, later, kept, single = steps.four_correlations(before, after, keep)
    assert every == pytest.approx(plain(before, after)) and later == pytest.approx(plain(before[0, 1:], after[0, 1:]))
    assert kept == pytest.approx(plain(before[keep], after[keep]))
    columns = torch.tensor([plain(before[0, :, i], after[0, :, i]) for i in range(20)])
    assert single == pytest.approx(float(columns.median()))


def test_every_block_gets_its_three_correlations(run):
    every, chance, later = steps.block_correlations(run.resid).values()
    assert every.shape == chance.shape == later.shape == (12,)
    assert float(every[10]) == pytest.approx(correlation(run.resid[10], run.resid[11]))
    assert float(later[3]) == pytest.approx(correlation(run.resid[3][:, 1:], run.resid[4][:, 1:]))
    assert 0 < float(chance[10]) < 1


def test_words_are_said_from_each_state(lm, run):
    found = steps.words_from(lm, PROMPT, 3, {"own": run.resid[4], "less": 0.3 * run.resid[4]})
    less = last_logits(lm, [(lm.model.transformer.h[3], lambda module, args, output: 0.3 * run.resid[4])])
    assert list(found) == ["own", "less"]
    assert torch.allclose(found["own"], last_logits(lm)) and torch.allclose(found["less"], less)


def test_attention_on_the_first_token_is_read_from_each_state_alone(lm, run):
    def attention():
        return float(attention_patterns(lm, PROMPT)[6, 0, :, 1:, 0].mean())

    clean = attention()
    handle = lm.model.transformer.h[3].register_forward_hook(lambda module, args, output: 0 * output)
    try:
        empty = attention()
    finally:
        handle.remove()
    assert abs(empty - clean) > 0.01
    states = {"own": run.resid[4], "none": 0 * run.resid[4]}
    assert steps.attention_from(lm, PROMPT, 3, states, reader=6) == f"own {clean:.2f}, none {empty:.2f}"
    assert attention() == pytest.approx(clean)


def test_facts_of_steps_are_counted(run):
    before, found = run.resid[4], torch.tensor([[0.9, 1], [0.8, 1], [0.1, 0], [0.5, 1], [0.2, 0]])
    random = steps.random_steps(before, run.resid[5], 3)
    smallest = min(float(torch.corrcoef(torch.stack([before.flatten(), one.flatten()]))[0, 1]) for one in random)
    facts = dict(zip(steps.STEP_FACTS, steps.step_facts(before, random, found, "3 of 7"), strict=True))
    assert facts["smallest r"] == f"{smallest:.5f}" and facts["random, first"] == "1 of 3"
    assert [float(facts[name]) for name in ("own step", "no step", "random, median")] == pytest.approx([0.9, 0.8, 0.2])
    assert facts["other capitals"] == "3 of 7"


def test_mask_facts_are_counted():
    before = torch.zeros(1, 4, 50, dtype=torch.float64)
    before[0, 0, 7], before[0, 2, 9], before[0, 3] = 900.0, 2.0, 1.0
    facts = dict(zip(steps.MASK_FACTS, steps.mask_facts(before, -before), strict=True))
    assert facts == {
        "masked": "2 of 200",
        "of them at the first token": 1,
        "largest value": "-900",
        "its coordinate": 7,
        "% of the axis for the other 99 %": pytest.approx(100 / 900),
    }


def test_facts_are_counted_as_by_hand(lm):
    """One in twelve of the list; block 0 with an empty state says nothing, its own output everything."""
    puts = [(0, lambda before, after: after), (0, lambda before, after: 0 * after), (11, steps.zero_largest)]
    found = [steps.on_facts(lm, block, put, 6) for block, put in puts]
    known = kept = 0
    for one in capital_prompts(lm, count=6, examples=["France"]):
        target, ids = lm.token_id(one.target), lm.encode(one.prompt).ids
        clean = trace(lm, one.prompt)
        if int(clean.last_logits.argmax()) != target:
            continue
        known += 1
        a, b = clean.resid[11], clean.resid[12]
        size = torch.maximum(a.abs(), b.abs())
        state = torch.where(size <= torch.quantile(size, 0.99), b, 0)
        handle = lm.model.transformer.h[11].register_forward_hook(lambda module, args, output, state=state: state)
        with torch.no_grad():
            kept += int(lm.model(ids).logits[0, -1].argmax()) == target
        handle.remove()
    assert known > 0
    assert found == [f"{known} of {known}", f"0 of {known}", f"{kept} of {known}"]


def test_modes_and_gradients_are_two_switches(lm):
    before, hooks, state = [m.training for m in lm.model.modules()], hooks_on(lm.model), torch.get_rng_state()
    table = modes.modes_table(lm, PROMPT)
    found = {row[0]: row[1:] for row in table.rows}
    assert [way for way, row in found.items() if row[0] != "0 %"] == ["train()", "train() and no_grad()"]
    assert [row[1] != "0 %" for row in found.values()] == [row[0] != "0 %" for row in found.values()]
    assert [way for way, row in found.items() if row[2] == "yes"] == ["train()", "eval()"]
    assert [way for way, row in found.items() if row[3] != "0"] == ["train()", "eval()"]
    assert [way for way, row in found.items() if row[4] == "no"] == ["eval() and inference_mode()"]
    assert [m.training for m in lm.model.modules()] == before and hooks_on(lm.model) == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in lm.model.parameters())


def test_dropout_misses_about_a_third():
    """With p = 0.1 a delta is off by sqrt(p / (1 - p)) = 1/3 of its length before dropout, sqrt(p) of it after."""
    row = next(iter(modes.modes_table(load_model(), PROMPT).rows))
    assert 24 <= int(row[2].removesuffix(" %")) <= 40


@pytest.mark.parametrize("nodes", [0, 1, 4])
def test_graph_nodes_are_counted(nodes):
    value = torch.ones(2)
    if nodes:
        value = value.requires_grad_() * 1  # MulBackward and the leaf's AccumulateGrad
        for _ in range(nodes - 1):
            value = value.exp()
    assert modes.graph_nodes(value) == (nodes + 1 if nodes else 0)
