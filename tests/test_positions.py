"""Positions of an edit where prompts are padded, and where a cache was filled before."""

import pytest
import torch
from test_trace import FAMILIES
from tiny import tiny

from helpers import Tokens, add_to_block, edit, read_site, trace, zero_heads
from helpers.errors import PositionOutOfRange
from helpers.replay import Replay

LONG, SHORT = torch.arange(2, 9), torch.arange(11, 15)  # 7 and 4 tokens


def padded(side):
    ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.bool)
    where = slice(3, 7) if side == "left" else slice(0, 4)
    ids[0], mask[0], ids[1, where], mask[1, where] = LONG, True, SHORT, True
    return Tokens(ids, mask)


def steer(positions):
    return add_to_block(1, torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64), positions)


@pytest.mark.parametrize("where", [-1, [0, -2], 3, slice(-2, None), slice(1, 3), slice(None, None, -2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_on_the_right_each_prompt_counts_its_own_tokens(family, where):
    lm = tiny(family)
    with edit(lm, steer(where)):
        both, alone = trace(lm, padded("right")), [trace(lm, ids).resid for ids in (LONG, SHORT)]
        assert torch.equal(lm.logits(padded("right")), both.logits)
    assert (both.resid[:, :1] - alone[0]).abs().max() < 1e-12
    assert (both.resid[:, 1:, :4] - alone[1]).abs().max() < 1e-12
    assert (trace(lm, SHORT).resid - alone[1]).abs().max() > 0.1  # it was edited


def test_a_site_that_is_read_is_edited_at_each_prompts_own_tokens():
    lm = tiny("llama")
    with edit(lm, zero_heads(1, [0], positions=-1)):
        heads = read_site(lm, padded("right"), "heads", 1)[:, :, 0].abs().sum(-1)
    assert (heads == 0).nonzero().tolist() == [[0, 6], [1, 3]]


def test_a_replay_of_padded_prompts_counts_like_a_trace():
    lm = tiny("gpt2")
    replay = Replay(lm)
    replay(padded("right"))  # a clean pass is there
    _, edited = replay(padded("right"), steer(-1))
    with edit(lm, steer(-1)):
        assert torch.equal(edited.resid, trace(lm, padded("right")).resid)


def test_a_position_that_the_shorter_prompt_does_not_have_is_an_error():
    lm = tiny("llama")
    with (
        edit(lm, steer(5)),
        pytest.raises(PositionOutOfRange, match="position 5 does not exist: this prompt has 4 tokens"),
    ):
        trace(lm, padded("right"))
    with edit(lm, steer(slice(4, None))), pytest.raises(PositionOutOfRange, match="chooses none of the 4 positions"):
        trace(lm, padded("right"))
    trace(lm, LONG)


def test_padded_on_the_left_positions_are_columns_and_padding_is_refused():
    lm = tiny("llama", torch.float32)
    tokens = padded("left")
    for where in (-1, [4, 6], slice(-2, None), slice(2, 5), slice(None)):
        with edit(lm, steer(where)):
            both = trace(lm, tokens).resid
        own = [p - 3 for p in torch.arange(7)[where].reshape(-1).tolist() if p >= 3]
        with edit(lm, steer(own)):
            assert (both[:, 1:, 3:] - trace(lm, SHORT).resid).abs().max() < 1e-4
    for where in (0, [5, 2], -6, slice(0, 3)):
        with edit(lm, steer(where)), pytest.raises(PositionOutOfRange, match=r"is padding in prompt 1 of this batch"):
            trace(lm, tokens)


@pytest.mark.parametrize("cache", [True, False])
def test_a_batch_given_to_the_model_itself_is_refused_where_padding_is_meant(cache):
    lm = tiny("llama", torch.float32)
    for side, where in (("left", 1), ("right", -1), ("right", slice(-2, None))):
        tokens = padded(side)
        with edit(lm, steer(where)), torch.no_grad(), pytest.raises(PositionOutOfRange, match="is padding in prompt 1"):
            lm.model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=cache)
    left = padded("left")
    options = {"attention_mask": left.mask.long(), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with edit(lm, steer(1)), pytest.raises(PositionOutOfRange, match="position 1 is padding in prompt 1"):
        lm.model.generate(left.ids, **options)
    with edit(lm, steer(slice(7, None))):
        assert lm.model.generate(left.ids, **options).shape == (2, 10)


@pytest.mark.parametrize("where", [[4], slice(4, None), [5, 8]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompts_cache_may_be_filled_before_the_with(family, where):
    """Four tokens without the edit, the rest under it, in two passes: as in one pass over the whole text."""
    lm = tiny(family)
    text = torch.arange(2, 12)[None]

    def go_on(begin, end, **cached):
        out = lm.model(input_ids=text[:, begin:end], use_cache=True, **cached)
        return out.logits, {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}

    with torch.no_grad():
        _, cached = go_on(0, 4)
        with edit(lm, steer(where)):
            some, cached = go_on(4, 7, **cached)
            more, cached = go_on(7, 10, **cached)
            whole = lm.logits(text)
        assert (torch.cat([some, more], 1) - whole[:, 4:]).abs().max() < 1e-4
        late = slice(3, None) if isinstance(where, slice) else [*where, 3]
        with edit(lm, steer(late)), pytest.raises(PositionOutOfRange, match="choose positions from 10 on"):
            go_on(9, 10, **cached)


def test_the_first_token_that_ran_under_an_edit_is_named():
    lm = tiny("llama")
    with torch.no_grad():
        out = lm.model(input_ids=LONG[None, :4], use_cache=True)
        cached = {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}
        with edit(lm, steer([3, 5])), pytest.raises(PositionOutOfRange, match="choose positions from 4 on"):
            lm.model(input_ids=LONG[None, 4:6], **cached)
