"""Lesson 4's live measurements against plain hooks, weight surgery and a look at the stored numbers."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
import torch

from helpers import CapitalPrompt, capital_prompts, load_model, trace, zero_heads
from helpers.countries import read_countries
from helpers.course.exercise import tiny_model
from helpers.measurements import measured

study = import_module("helpers.lesson4.study")  # the room itself offers the function `study` under this name

PROMPT = "Berlin is the capital of"


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def facts(lm):
    found = [fact for fact in capital_prompts(lm, 8) if fact.capital != "Berlin"]
    assert {len(lm.token_ids(fact.prompt)) for fact in found} == {5}
    return found


def plain(lm, prompt, replace):
    """Last logits by PyTorch alone. replace: block -> function of the projection's input, which is a copy."""
    handles = [
        lm.model.transformer.h[block].attn.c_proj.register_forward_pre_hook(lambda m, args, f=f: (f(args[0].clone()),))
        for block, f in replace.items()
    ]
    try:
        with torch.no_grad():
            return lm.model(lm.tokenizer(prompt, return_tensors="pt")["input_ids"], use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def columns(lm, head):
    return slice(head * lm.d_head, (head + 1) * lm.d_head)


def test_next_words_are_those_of_each_run(lm):
    table = study.words_table(lm, PROMPT, {"clean": [], "cut": zero_heads(8, 4)}, most=1, also=[" Italy"])
    assert table.header == ("", "' Germany'", "' Italy'")

    def zero(x):
        x[..., columns(lm, 4)] = 0
        return x

    for row, logits in zip(table.rows, (plain(lm, PROMPT, {}), plain(lm, PROMPT, {8: zero})), strict=True):
        p = logits.softmax(-1)
        for cell, token in zip(row[1:], (" Germany", " Italy"), strict=True):
            assert float(cell) == pytest.approx(float(p[lm.token_id(token)]), rel=0.06)
    assert [row[0] for row in table.rows] == ["clean", "cut"]


def test_what_heads_write_is_what_is_lost_when_their_weights_go(lm):
    """With the later parts and the norm's scale held fixed, the logit difference is linear in each head's rows of W_O."""
    target, contrast = " Germany", " France"
    run = trace(lm, PROMPT)
    found = study.written_towards(lm, run, target, contrast)
    stream, norm, unembed = run.resid[-1, 0, -1], lm.model.transformer.ln_f, lm.model.lm_head.weight
    scale = (stream.var(unbiased=False) + norm.eps).sqrt()

    def difference(state):
        logits = unembed @ ((state - state.mean()) / scale * norm.weight + norm.bias)
        return logits[lm.token_id(target)] - logits[lm.token_id(contrast)]

    clean = difference(stream)
    logits = plain(lm, PROMPT, {})
    assert clean.item() == pytest.approx((logits[lm.token_id(target)] - logits[lm.token_id(contrast)]).item(), abs=1e-9)
    for block, head in ((8, 4), (5, 7), (10, 3)):
        rows = lm.model.transformer.h[block].attn.c_proj.weight[columns(lm, head)]
        without = difference(stream - run.heads[block, 0, -1, head] @ rows)
        assert found[block, head].item() == pytest.approx((clean - without).item(), abs=1e-9)


@pytest.mark.parametrize("model", ["pocket", "smollm2"])
def test_stored_facts_are_capital_prompts(model):
    found = measured(model, "heads")
    facts = study.stored_facts(found)
    assert [fact.prompt for fact in facts] == found.labels["prompt"]
    said = measured(model, "phrasings")
    for name in said.labels["phrasing"]:
        assert [fact.target.strip() for fact in study.stored_facts(said, name)] == said.labels["country"]


def test_the_stored_direct_writing_is_the_live_one(lm):
    found = measured("pocket", "heads")
    for i in (3, 40):
        fact = study.stored_facts(found)[i]
        live = study.written_towards(lm, trace(lm, fact.prompt), fact.target, fact.contrast)
        torch.testing.assert_close(live.float(), found["direct"][i], atol=2e-3, rtol=2e-3)


def test_a_swap_takes_the_last_token_of_the_other_prompt(lm, facts):
    heads = [(8, 4), (8, 9), (10, 3)]
    found = study.swap_heads(lm, PROMPT, trace(lm, [fact.prompt for fact in facts]), heads)
    assert found.shape == (len(facts), lm.unembed.weight.shape[0])
    for row in (0, 3):
        said = {}
        for block in (8, 10):

            def keep(x, block=block):
                said[block] = x[0, -1].clone()
                return x

            plain(lm, facts[row].prompt, {block: keep})

        def put(block):
            def swap(x):
                for b, h in heads:
                    if b == block:
                        x[:, -1, columns(lm, h)] = said[block][columns(lm, h)]
                return x

            return swap

        expected = plain(lm, PROMPT, {8: put(8), 10: put(10)}).softmax(-1)
        torch.testing.assert_close(found[row], expected, atol=1e-9, rtol=1e-7)
    first, p = study.named_by(lm, found, facts)
    for row, fact in enumerate(facts):
        token = lm.token_id(fact.target)
        assert bool(first[row]) == (int(found[row].argmax()) == token)
        assert p[row] == found[row, token]


def test_the_prompts_to_swap_are_the_right_ones_of_one_length(lm):
    found = measured("pocket", "heads")
    rows = [dict(row) for row in found.about["prompts"][:6]] + [{**found.about["prompts"][7], "prompt": PROMPT}]
    rows[2]["prompt"] = "Yes. " + rows[2]["prompt"]
    right = torch.tensor([True, False, True, True, False, True, True])
    few = dataclasses.replace(found, tensors={**found.tensors, "right": right}, about={**found.about, "prompts": rows})
    assert [fact.prompt for fact in study.answered_like(lm, few, PROMPT)] == [rows[i]["prompt"] for i in (0, 3, 5)]


def test_sizes_and_first_places_are_counted_from_what_is_stored(capsys):
    found = measured("pocket", "heads")
    change = found.at("change", replacement="mean", measure="logit difference").double().numpy()
    study.show_sizes({"mean": torch.tensor(np.abs(change).mean(0))}, [(8, 4)], 5, {"pocket": found})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    off = found.at("all off", off="mean", block=0, measure="logit difference").double().numpy()
    for row, value in zip(
        rows[-3:], (np.abs(change[:, 8, 4]).mean(), np.abs(change[:, 5]).mean(0).max(), np.abs(off).mean()), strict=True
    ):
        assert float(row[-1]) == pytest.approx(value, rel=6e-3)
    study.show_first_places(found, 8)
    stay, alone = capsys.readouterr().out.splitlines()
    right = found["right"].numpy()
    at_once = found.at("all off flags", off="mean", block=8, flag="target is top-1").numpy()[right]
    single = found.at("flags", replacement="mean", block=8, flag="target is top-1").numpy()[right]
    assert stay.endswith(f"{sum(map(bool, at_once))} of {right.sum()} stay first.")
    assert alone.split(": ")[1].split() == [str(sum(not bool(v) for v in head)) for head in single.T]


def test_who_gains_compares_neighbours_with_all_other_countries(lm, facts):
    clean = trace(lm, [fact.prompt for fact in facts])
    found = study.who_gains(lm, facts, clean, 8, [4, 9])
    mean = clean.heads[8].mean(0)  # (pos, n_heads, d_head)
    region = {one.name: one.region for one in read_countries()}
    words = []
    for row, fact in enumerate(facts):

        def put(x):
            for head in (4, 9):
                x[0, :, columns(lm, head)] = mean[:, head]
            return x

        before, after = (plain(lm, fact.prompt, edit).log_softmax(-1) for edit in ({}, {8: put}))
        words.append(lm.tokenizer.decode([int(after.argmax())]))
        levels = {True: [], False: []}
        for name, where in region.items():
            ids = lm.tokenizer(" " + name)["input_ids"]
            if len(ids) == 1 and " " + name != fact.target:
                levels[where == region[fact.target.strip()]].append([float(run[ids[0]]) for run in (before, after)])
        for name, mine in (("near", True), ("far", False)):
            expected = [sum(column) / len(levels[mine]) for column in zip(*levels[mine], strict=True)]
            assert found[name][:, row].tolist() == pytest.approx(expected, abs=1e-8)
    assert found["top"] == {word: words.count(word) for word in words}
    assert found["right"] == sum(word == fact.target for word, fact in zip(words, facts, strict=True))
    assert list(found["top"].values()) == sorted(found["top"].values(), reverse=True)


def test_leads_are_told_for_each_run(lm, capsys):
    silence = zero_heads(8, 4, positions=-1)
    study.show_leads(lm, PROMPT, {"clean": [], "silence": silence}, " Germany", " Greece")
    said = capsys.readouterr().out.splitlines()
    germany, greece = lm.token_id(" Germany"), lm.token_id(" Greece")

    def quiet(x):
        x[0, -1, columns(lm, 4)] = 0
        return x

    before, after = (plain(lm, PROMPT, edit) for edit in ({}, {8: quiet}))
    change = float((after.log_softmax(-1) - before.log_softmax(-1))[germany])
    for line, name, moved, last in zip(said, ("clean", "silence"), (0.0, change), (before, after), strict=True):
        lead = float(last[germany] - last[greece])
        assert (
            line == f"{name}: log p(' Germany') changes by {moved:+.2f}, logit difference to ' Greece' {lead:.2f} nats"
        )
    assert said[0] != said[1].replace("silence", "clean")


def test_gains_and_agreement_are_told_with_their_numbers(capsys):
    near, far = torch.tensor([[-5.0, -7.0], [-2.0, -2.5]]), torch.tensor([[-9.0, -8.0], [-2.25, -2.0]])
    study.show_gains({"top": {" the": 2}, "right": 0, "near": near, "far": far})
    assert capsys.readouterr().out == (
        "Means instead, first words: ' the' on 2; the right country on 0 of 2.\n"
        "Mean log p of wrong countries of the region: -6.00, then -2.25, a gain of 3.75.\n"
        "Mean log p of countries of other regions: -8.50, then -2.12, a gain of 6.38.\n"
        "The region's lead: 2.50 nats, then -0.12. It shrinks on 2 of 2 prompts; the region still leads on 1.\n"
    )
    zero, mean = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 0.5]])
    study.show_agreement({"zero": zero, "mean": mean, "resample": mean}, -4.577, -4.582)
    assert capsys.readouterr().out == (
        "All heads' sizes add up to 6.0 nats with zeros, 5.5 with means\n"
        "r of two maps: zero and mean -0.99, mean and resample 1.00\nBerlin, head 23.4 → zero: -4.58 now, -4.58 stored\n"
    )


def test_an_r_that_one_head_makes_is_told_from_one_of_all(capsys):
    """Against numpy's r on the heads that are left, and on ranks found by sorting."""
    draw = torch.Generator().manual_seed(4)
    writes, cost = (torch.randn(3, 4, generator=draw) / 10 for _ in range(2))
    writes[1, 2], cost[1, 2] = 2.0, 3.0
    study.show_foretelling(writes, {"means": cost})
    (line,) = capsys.readouterr().out.splitlines()
    a, b = writes.flatten().numpy(), cost.flatten().numpy()
    rest = [i for i in range(12) if i != 6]
    ranks = [[sorted(v.tolist()).index(x) for x in v.tolist()] for v in (a, b)]
    r, without, by_rank = (np.corrcoef(x, y)[0, 1] for x, y in ((a, b), (a[rest], b[rest]), ranks))
    assert r > 0.9 and abs(without) < 0.7 and abs(by_rank) < 0.7, "one head makes it"
    assert line == (
        "What a head writes and what its removal costs, means: "
        f"r {r:.2f}, without the 1 named heads {without:.2f}, by rank {by_rank:.2f}"
    )


def test_equal_values_share_their_rank():
    a, b = torch.tensor([[1.0, 2.0], [2.0, 9.0]]), torch.tensor([[0.0, 5.0], [1.0, 2.0]])
    expected = np.corrcoef([1, 2.5, 2.5, 4], [1, 4, 2, 3])[0, 1]
    assert study.rank_correlation(a, b) == pytest.approx(expected)


def test_the_mean_map_takes_its_means_over_all_and_its_changes_over_a_few(lm, facts):
    found = study.mean_map(lm, facts, 2)
    said = torch.stack([trace(lm, fact.prompt).heads[9, 0] for fact in facts]).mean(0)
    changes = []
    for fact in (facts[0], facts[len(facts) // 2]):
        target, contrast = lm.token_id(fact.target), lm.token_id(fact.contrast)

        def put(x):
            x[0, :, columns(lm, 1)] = said[:, 1]
            return x

        before, after = (plain(lm, fact.prompt, edit) for edit in ({}, {9: put}))
        changes.append(float((after - before)[target] - (after - before)[contrast]))
    assert found[9, 1].item() == pytest.approx(sum(changes) / 2, abs=1e-8)


def test_half_of_all_change_and_the_strongest():
    changes = torch.tensor([[0.1, -0.5], [0.2, 0.2]])
    assert study.half_of(changes) == 1
    assert study.half_of(torch.tensor([[0.2, -0.3], [0.2, 0.3]])) == 2
    assert study.strongest(changes, 2) == [(0, 1), (1, 0)]
    assert study.map_correlation(changes, 3 - 2 * changes) == pytest.approx(-1)


def test_significance_is_corrected_for_the_number_of_heads():
    falls = torch.cat([-torch.ones(9), torch.ones(1)])  # sign test: p = 0.02
    alone, many = falls[:, None, None], torch.zeros(10, 2, 5)
    many[:, 0, 0] = falls
    for i in range(9):
        many[:, (i + 1) // 5, (i + 1) % 5] = torch.tensor([1.0, -1.0] * 5)
    assert study.significant(alone).tolist() == [[True]]
    assert not study.significant(many).any()
    many[:, 1, 1] = -1.0
    assert study.significant(many).nonzero().tolist() == [[1, 1]]


def test_the_output_weight_has_rows_for_heads_in_both_layouts(lm):
    module = lm.model.transformer.h[2].attn.c_proj
    x = torch.randn(module.weight.shape[0], dtype=torch.float64)
    torch.testing.assert_close(x @ study.output_weight(lm, 2) + module.bias, module(x))
    small = tiny_model(0)
    assert study.output_weight(small, 1).shape == (small.n_heads * small.d_head, 32)
    assert study.name_of(23, 4) == "23.4"
    assert CapitalPrompt(PROMPT, " Germany", " France").prompt == PROMPT
