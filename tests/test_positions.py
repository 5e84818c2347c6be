"""Positions of an edit where prompts are padded, and where a cache was filled before."""

import copy

import pytest
import torch
import transformers
from test_trace import FAMILIES
from tiny import tiny

from helpers import Tokens, add_to_block, edit, read_site, skip_mlp, trace, wrap, zero_heads
from helpers.errors import BadEdit, PositionOutOfRange
from helpers.positions import real_tokens
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


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_padding_on_the_right_is_known_in_a_pass_of_ones_own_too(family):
    """By what `lm.inputs` gives, and in a trace by another LanguageModel of the same model; columns that all have are edited."""
    lm = tiny(family)
    another, inputs = wrap(lm.model), lm.inputs(padded("right"), right_padding=True)
    for where in (-1, 5, slice(-2, None)):
        for run in (lambda: lm.model(**inputs), lambda: trace(another, padded("right"))):
            with (
                edit(lm, steer(where)),
                torch.no_grad(),
                pytest.raises(PositionOutOfRange, match="padding in prompt 1"),
            ):
                run()
    with edit(lm, steer([1, 3])), torch.no_grad():
        both = lm.model(**inputs).logits
    assert (both[1:, :4] - steered_by_hand(lm, SHORT[None], [1, 3])).abs().max() < 1e-9


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


def cached_in(out):
    return {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}


def steered_by_hand(lm, text, columns):
    """Logits of one pass over the whole text, with a plain hook that steers these columns."""
    add = torch.zeros(text.shape[1], 24, dtype=lm.dtype)
    add[columns] = torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(lm.dtype)
    handle = lm.blocks[1].register_forward_hook(
        lambda m, args, out: (out[0] + add, *out[1:]) if isinstance(out, tuple) else out + add
    )
    try:
        return lm.logits(text)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_positions_are_those_in_a_filled_cache_too(family):
    lm = tiny(family)
    text = torch.arange(2, 12)[None]
    with torch.no_grad():
        before = lm.model(input_ids=text[:, :4], use_cache=True)
        again = copy.deepcopy(cached_in(before))
        with (
            edit(lm, steer(None)),
            pytest.raises(PositionOutOfRange, match=r"ran without.*for example slice\(4, None\)"),
        ):
            lm.model(input_ids=text[:, 4:7], use_cache=True, **cached_in(before))
        with edit(lm, steer(slice(4, None))):
            later = lm.model(input_ids=text[:, 4:], use_cache=True, **again).logits
        assert (later - steered_by_hand(lm, text, slice(4, None))[:, 4:]).abs().max() < 1e-4
        with edit(lm, steer(None)):
            some = lm.model(input_ids=text[:, :4], use_cache=True)
            tries = [copy.deepcopy(cached_in(some)) for _ in range(2)]  # a copy is known as what it was copied from
            more = [lm.model(input_ids=text[:, 4:7], use_cache=True, **one) for one in tries]
            last = [lm.model(input_ids=text[:, 7:], **cached_in(one)).logits for one in more]
            with (
                edit(lm, skip_mlp(2)),
                pytest.raises(PositionOutOfRange, match=r"skip_mlp\(2\) means tokens .* from 10 on"),
            ):
                lm.model(input_ids=text[:, :1], **cached_in(copy.deepcopy(more[0])))
    expected = steered_by_hand(lm, text, slice(None))
    for one, end in zip(more, last, strict=True):
        assert (torch.cat([some.logits, one.logits, end], 1) - expected).abs().max() < 1e-4


def test_generate_on_a_cache_that_was_filled_before():
    lm = tiny("llama")
    ids, options = torch.arange(2, 9)[None], {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached = cached_in(lm.model(input_ids=ids[:, :4], use_cache=True))
    with edit(lm, steer(None)), pytest.raises(PositionOutOfRange, match="choose positions from 4 on"):
        lm.model.generate(ids, attention_mask=torch.ones_like(ids), **copy.deepcopy(cached), **options)
    with edit(lm, steer(slice(4, None))):
        found = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **cached, **options)
        assert found.equal(lm.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["by position", "to the stack", "of four axes", "additive", "by kind of layer"])
def test_padding_is_known_however_the_mask_is_given(side, form):
    if form == "by kind of layer" and transformers.__version__ < "5":
        pytest.skip("transformers 5 takes a mask for each kind of layer")
    lm = tiny("qwen2", torch.float32, attention="sdpa" if form == "of four axes" else "eager")
    tokens = padded(side)
    sees = tokens.mask[:, None, None] & torch.ones(7, 7, dtype=torch.bool).tril()
    sees = sees | ~sees.any(-1, keepdim=True)  # as in some kinds of attention, where a row must not be all masked
    added = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)

    @torch.no_grad()
    def run():
        if form == "by position":
            lm.model(tokens.ids, tokens.mask.long())
        elif form == "to the stack":
            lm.model.model(tokens.ids, tokens.mask.long())
        else:
            mask = {"of four axes": sees, "additive": added, "by kind of layer": {"full_attention": added}}[form]
            lm.model(input_ids=tokens.ids, attention_mask=mask)

    for where in (1, slice(0, 2)) if side == "left" else (-1, 4, slice(5, None)):
        with edit(lm, steer(where)), pytest.raises(PositionOutOfRange, match="is padding in prompt 1"):
            run()
    for where in (3, slice(2, 5), None):
        with edit(lm, steer(where)):
            run()


def test_a_mask_of_another_kind_is_refused_for_a_batch():
    shape = torch.Size((2, 7))
    with pytest.raises(PositionOutOfRange, match=r"cannot be told from its mask, of type object"):
        real_tokens(steer(1), object(), 0, shape)
    assert real_tokens(steer(1), object(), 0, torch.Size((1, 7))) is None
    assert real_tokens(steer(1), torch.ones(2, 1, 7, 7), 3, shape) is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_static_cache_knows_the_padding_too(family, attention):
    left = padded("left")
    options = {"attention_mask": left.mask.long(), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    static = {"cache_implementation": "static", "disable_compile": True}
    for where in (1, [2, 8], slice(0, 3)):
        lm = tiny(family, torch.float32, attention=attention)  # 4.57 cannot use its static cache again after an error
        with edit(lm, steer(where)), pytest.raises(PositionOutOfRange, match="is padding in prompt 1"):
            lm.model.generate(left.ids, pad_token_id=0, **options, **static)
    lm = tiny(family, torch.float32, attention=attention)
    for where in (3, [4, 8], slice(2, 5), slice(7, None), None):
        with edit(lm, steer(where)):
            found = lm.model.generate(left.ids, pad_token_id=0, **options, **static)
            assert found.equal(lm.model.generate(left.ids, pad_token_id=0, use_cache=False, **options))


def test_texts_that_share_a_row_are_refused():
    """As in continuous batching and in packing: three tokens of one text, then four of another."""
    lm, ids = tiny("llama"), LONG[None]
    shared = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), "cu_seq_lens_q": torch.tensor([0, 3, 7])}
    with edit(lm, steer(0)):
        with pytest.raises(
            BadEdit, match=r"is limited to positions, and in this pass several texts lie one behind the"
        ):
            lm.model(ids, **shared)
        lm.model(ids)
    with edit(lm, steer(None)):
        both = lm.model(ids, use_cache=False, **shared).logits
        alone = [lm.model(one[None], use_cache=False).logits for one in (LONG[:3], LONG[3:])]
    torch.testing.assert_close(both, torch.cat(alone, 1), rtol=0, atol=1e-12)
