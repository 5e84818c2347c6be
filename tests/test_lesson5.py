"""Lesson 5's text and measure, and the ways to skip that its notebook compares."""

import pytest
import torch

from helpers import edit, held_out_text, load_model, loss_rise, skip_block, sweep_blocks, text_damage, windows
from helpers.errors import BadPrompt
from helpers.exercises.core import tiny_model


def test_the_held_out_text_is_three_paragraphs_and_fills_the_lessons_windows():
    assert len(held_out_text().strip().split("\n\n")) == 3
    assert windows(load_model(), held_out_text(), 64).shape == (3, 64)


def test_the_rise_of_the_loss_is_that_of_the_plain_loop():
    lm = tiny_model(11)
    text = torch.arange(30).view(3, 10)

    def losses():
        return -lm.logits(text)[:, :-1].log_softmax(-1).gather(-1, text[:, 1:, None])[..., 0]

    clean = losses()
    rise = sweep_blocks(lm, text, measure=loss_rise())
    assert rise.shape == (3, lm.n_blocks, 9)
    for block in range(lm.n_blocks):
        with edit(lm, skip_block(block)):
            assert torch.allclose(rise[:, block], losses() - clean, atol=1e-9)
    assert torch.allclose(rise.mean(-1), sweep_blocks(lm, text, measure=text_damage())[..., 0], atol=1e-9)


def test_one_token_has_no_next_token_loss():
    with pytest.raises(BadPrompt, match="two tokens or more"):
        sweep_blocks(tiny_model(), torch.tensor([3]), measure=loss_rise())
