"""The held-out passages that lesson 5 measures on."""

import re

import pytest
import torch

from helpers import held_out_passages, load_model, sweep_blocks, text_damage, windows
from helpers.course.exercise import tiny_model
from helpers.errors import BadPrompt
from helpers.lesson5.claims import WINDOW, held_out_windows

GPT2_WORDS = re.compile(r"'(?:[stdm]|ll|ve|re)| ?\w+| ?[^\s\w]+")  # a token of GPT-2 never reaches over one of these


def test_there_are_enough_passages_for_an_interval_and_each_is_another():
    passages = held_out_passages()
    assert len(passages) == 24
    assert len({" ".join(passage.split()[:3]) for passage in passages}) == 24
    assert not any("\n" in passage for passage in passages)


def test_each_passage_fills_its_window_on_this_model_and_on_gpt2():
    lm = load_model()
    text = held_out_windows(lm)
    assert text.shape == (24, WINDOW)
    for passage, ids in zip(held_out_passages(), text, strict=True):
        assert passage.startswith(lm.tokenizer.decode(ids))
        assert windows(lm, passage, 48, most=1).shape == (1, 48)
        assert len(GPT2_WORDS.findall(passage)) >= 48


def test_one_token_has_no_next_token_loss():
    with pytest.raises(BadPrompt, match="two tokens or more"):
        sweep_blocks(tiny_model(), torch.tensor([3]), measure=text_damage())
