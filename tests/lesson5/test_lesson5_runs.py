"""What lesson 5 runs: checked against plain modules."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from tiny import tiny

from helpers import edit, load_model, measured, skip_block, trace
from helpers.course.exercise import hooks_on, tiny_model
from helpers.lesson5 import runs
from helpers.texts import held_out_passages


@pytest.fixture(scope="module")
def lm():
    return load_model()


def test_the_text_is_the_beginning_of_each_passage(lm):
    text = runs.held_out(lm, 3, 12)
    assert text.shape == (3, 12)
    for ids, passage in zip(text, held_out_passages()[:3], strict=True):
        assert passage.startswith(lm.tokenizer.decode(ids))


def test_words_of_each_run(lm, capsys):
    prompt = "Berlin is the capital of"
    runs.show_words(lm, prompt, {"clean": [], "without block 0": [skip_block(0)]}, most=4)
    said = capsys.readouterr().out
    with edit(lm, skip_block(0)):
        chances = lm.logits(prompt)[0, -1].softmax(-1)
    line = next(line for line in said.splitlines() if line.startswith("without block 0"))
    word, chance = repr(lm.tokenizer.decode([int(chances.argmax())])), float(chances.max())
    assert f"{word} {chance:.2g}" in line
    assert "4th" in said and "Next words after" in said


def test_other_capitals_are_patched_one_by_one(lm, capsys):
    found, prompt = measured("pocket", "heads"), "Berlin is the capital of"
    right = found["right"] & (torch.arange(len(found["right"])) < 12)  # a dozen will do
    few = dataclasses.replace(found, tensors={**found.tensors, "right": right})
    runs.show_other_capitals(lm, prompt, "Berlin", few, blocks=(3, 11))
    said = capsys.readouterr().out.splitlines()
    length = len(lm.tokenizer(prompt)["input_ids"])
    facts = [row for row, ok in zip(found.about["prompts"], few["right"].tolist(), strict=True) if ok]
    facts = [
        row for row in facts if row["prompt"] != prompt and len(lm.tokenizer(row["prompt"])["input_ids"]) == length
    ]
    assert len(facts) > 3

    def patched(block, place, fact):
        """By PyTorch alone."""
        module, kept = lm.model.transformer.h[block], []

        def first_of(output):
            return output[0] if isinstance(output, tuple) else output

        def keep(_, args, output):
            kept.append(first_of(output).clone())

        def put(_, args, output):
            first_of(output)[:, place] = kept[0][:, place]

        for text, hook in ((fact["prompt"], keep), (prompt, put)):
            handle = module.register_forward_hook(hook, prepend=True)
            try:
                with torch.no_grad():
                    logits = lm.model(lm.tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False).logits
            finally:
                handle.remove()
        return int(logits[0, -1].argmax()) == lm.tokenizer(fact["target"])["input_ids"][0]

    wanted = [sum(patched(block, place, fact) for fact in facts) for place in (0, -1) for block in (3, 11)]
    assert [line.split(" comes first on ")[1] for line in said] == [f"{n} of {len(facts)}." for n in wanted]
    assert said[0].startswith("Patched at 'Berlin' after block 3:")
    assert len(set(wanted)) > 1


def test_stored_numbers_are_measured_again(lm, capsys):
    runs.show_again(lm, measured("pocket", "blocks"), [0, 7], passages=2)
    _, head, then, now = capsys.readouterr().out.splitlines()
    assert head.split() == ["block", "0", "block", "7"]
    assert then.split()[1:] == now.split()[1:] and now.startswith("now")


def test_three_hooks_and_what_their_records_show(lm, capsys):
    before = hooks_on(lm.model)
    runs.show_hooks(lm, "water on planet Earth", block=5)
    said = capsys.readouterr().out
    assert said.splitlines()[-1].split()[-2:] == ["0", "yes"], "the right hook skips, and the record shows it"
    assert hooks_on(lm.model) == before or before == 0  # transformers may have put its recorders on, once


def test_the_first_token_is_measured_where_it_is_said(lm, capsys):
    run = trace(lm, "water on planet Earth")
    runs.show_first_token({"clean": run}, point=3, coordinate=7)
    said = capsys.readouterr().out
    lengths = run.resid[3, 0].norm(dim=-1)
    assert f"{float(lengths[0] / lengths[1:].quantile(0.5)):.2f}" in said
    assert f"{abs(float(run.resid[3, 0, 0, 7])):.2f}" in said


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_own_forward_gives_the_skipped_logits_and_is_gone_afterwards(family):
    lm, ids = tiny(family), torch.arange(6)
    clean = lm.logits(ids)
    with edit(lm, skip_block(1)):
        wanted = lm.logits(ids)
    with runs.own_forward(lm, [1]):
        assert torch.equal(lm.logits(ids), wanted)
    assert torch.equal(lm.logits(ids), clean)
    with pytest.raises(RuntimeError), runs.own_forward(lm, [0, 1]):
        raise RuntimeError
    assert not any("forward" in vars(block) for block in lm.blocks)


def test_a_hook_saves_no_operation_and_an_own_forward_saves_the_blocks():
    lm, ids = tiny_model(3), torch.arange(8)
    counts = {}
    for name, way in (
        ("clean", nullcontext()),
        ("hook", edit(lm, skip_block(2))),
        ("forward", runs.own_forward(lm, [2])),
    ):
        with way:
            counts[name] = runs.operations(lm, ids)
    assert counts["hook"] == counts["clean"]
    d, n, hidden = 32, 8, 128
    products = 2 * n * d * (3 * d + d + 2 * hidden)  # queries, keys and values; output; both layers of the MLP
    attention = 2 * 2 * n * n * d  # scores, and the weighted sum of the values
    assert counts["clean"] - counts["forward"] == products + attention
