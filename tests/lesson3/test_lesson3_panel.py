"""Lesson 3's widget, driven as a reader drives it, without a browser."""

import pytest
import torch
from tiny import tiny

from helpers import edit, noise_neurons, scale_block, spread, trace, zero_keys
from helpers.lesson3.panel import COMPONENTS, component_edit, component_shift, components_panel


class Words:
    """A tokenizer of one token per word, word0 to word96."""

    def __call__(self, text, **options):
        return {"input_ids": [int(word.removeprefix("word")) for word in text.split()]}

    def decode(self, ids):
        return f" word{ids[0]}"


PROMPT = "word3 word1 word4 word15 word9"


@pytest.fixture
def lm():
    model = tiny("gpt2")
    model.tokenizer = Words()
    return model


def noise(block, mean, before=False):
    return noise_neurons(block, slice(0, None, 2), mean, 1.0, torch.Generator().manual_seed(0), before)


def test_each_control_reaches_the_numbers(lm):
    panel = components_panel(lm, PROMPT)
    assert panel.controls["block"].value == lm.n_blocks - 1
    panel.controls["block"].value = 1

    def shown(one):
        with edit(lm, one):
            return torch.equal(panel.result.edited, spread(trace(lm, PROMPT).resid, include_first=False))

    assert shown(scale_block(1, 0.1))
    panel.controls["factor"].value = 5.0
    assert shown(scale_block(1, 5.0))
    panel.controls["component"].value = "MLP neurons"
    assert shown(noise(1, 10.0))
    panel.controls["mean"].value = -3.0
    assert shown(noise(1, -3.0))
    panel.controls["before_activation"].value = True
    assert shown(noise(1, -3.0, before=True))
    panel.controls["component"].value = "K of a head"
    panel.controls["head"].value = 3
    assert shown(zero_keys(1, [3]))
    assert "Without the first token the stream ends at" in panel.text
    panel.controls["include_first"].value = True
    assert torch.equal(panel.result.clean, spread(trace(lm, PROMPT).resid))
    assert "The stream ends at" in panel.text and "Without the first token" not in panel.text
    panel.controls["prompt"].value = "word8 word9 word10"
    assert torch.equal(panel.result.clean, spread(trace(lm, "word8 word9 word10").resid))


def test_picture_words_and_line_follow(lm):
    panel = components_panel(lm, PROMPT, block=1)
    first = panel.image
    assert first.startswith("<img alt=") and "block 1 × 0.1" in first
    panel.controls["component"].value = "K of a head"
    assert panel.image != first
    assert "K of head 2 → 0" in panel.text and "next word" in panel.text


def test_a_mistake_shows_its_sentence_and_the_widget_lives_on(lm):
    panel = components_panel(lm, PROMPT)
    panel.controls["prompt"].value = ""
    assert "the prompt is empty" in panel.text and panel.image == ""
    panel.controls["prompt"].value = "word5"
    assert "one token" in panel.text
    panel.controls["prompt"].value = PROMPT
    assert panel.image.startswith("<img")


def test_tokens_are_the_five_best_of_both_runs(lm):
    shift = component_shift(lm, PROMPT, "MLP neurons", block=2)
    clean = trace(lm, PROMPT).last_logits[0].softmax(-1)
    best = [f" word{i}" for i in clean.topk(5).indices.tolist()]
    assert shift.top[0] == best
    assert set(shift.tokens) == {*shift.top[0], *shift.top[1]}
    assert shift.tokens[best[0]][0] == pytest.approx(float(clean.max()))


def test_every_component_has_an_edit_and_the_same_noise_each_time(lm):
    for component in COMPONENTS:
        made, mark = component_edit(component, 1)
        assert "block 1" in mark and made.block == 1
        a, b = (component_shift(lm, PROMPT, component, block=1) for _ in range(2))
        assert torch.equal(a.edited, b.edited)
    assert not lm.live_edits
