"""Edits while text is generated: positions count from the start of the text, with any cache as without one."""

import asyncio
import copy

import pytest
import torch
from test_trace import FAMILIES
from tiny import tiny

from helpers import Tokens, add_to_block, change, edit, scale_block, skip_block, trace, zero_heads
from helpers.errors import BadEdit, BadValue, PositionOutOfRange

IDS = torch.arange(2, 16).reshape(2, 7)


def generated(lm, *edits, ids=IDS, number=6, **options):
    """(tokens, logits of each step): a continuation by the most probable token."""
    with edit(lm, *edits):
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=number, min_new_tokens=number, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0, **options,
        )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


def vector():
    return torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3


POSITIONS = {
    "all": None, "the first": 0, "some": [1, 4], "one that comes": 9, "the prompt": slice(0, 7), "what comes": slice(7, None),
    "across": slice(5, 9), "every other": slice(1, None, 2), "first and later": [0, 8],
}  # fmt: skip


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_steered_continuation_is_the_same_with_a_cache_as_without(family, where):
    lm = tiny(family)
    one = add_to_block(1, vector(), POSITIONS[where])
    tokens, logits = generated(lm, one, use_cache=True)
    again, expected = generated(lm, one, use_cache=False)
    assert torch.equal(tokens, again)
    assert (logits - expected).abs().max() < 1e-4
    _, clean = generated(lm, use_cache=False)
    first = {"one that comes": 3, "what comes": 1}.get(where, 0)  # the step that first sees an edited token
    assert torch.equal(clean[:first], expected[:first]) and not torch.equal(clean[first], expected[first])
    assert lm.passes == {}


@pytest.mark.parametrize("site", ["block", "attention", "mlp", "heads", "keys", "neurons", "preactivation"])
def test_every_site_counts_from_the_start(site):
    lm = tiny("llama")
    one = change(site, 1, lambda value: value.cos(), slice(3, 10, 2))
    assert (generated(lm, one)[1] - generated(lm, one, use_cache=False)[1]).abs().max() < 1e-4


def test_a_continuation_by_hand_agrees_with_a_whole_pass():
    """Token by token with a cache, against one pass over the whole text with the same edit."""
    lm = tiny("qwen3")
    one, ids = zero_heads(1, [0, 2], [2, 5, 6]), torch.arange(2, 11)[None]
    with edit(lm, one), torch.no_grad():
        expected = trace(lm, ids).logits
        out = lm.model(input_ids=ids[:, :4], use_cache=True)
        found = [out.logits]
        for at in range(4, 9):
            cached = {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}
            out = lm.model(input_ids=ids[:, at : at + 1], use_cache=True, **cached)
            found.append(out.logits)
    assert (torch.cat(found, dim=1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("cache", ["static", "offloaded"])
def test_other_caches(cache):
    if cache == "offloaded" and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs a GPU")
    lm = tiny("llama")
    one = scale_block(1, 3, [1, 8])
    found = generated(lm, one, cache_implementation=cache, disable_compile=True)[1]
    assert (found - generated(lm, one, use_cache=False)[1]).abs().max() < 1e-4


def test_beams_and_padding_on_the_left():
    lm = tiny("llama", attention="sdpa")
    one = add_to_block(1, vector(), [3, 8])
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :2], mask[0, :2] = 0, 0
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with edit(lm, one):
        found = [lm.model.generate(ids, attention_mask=mask, use_cache=c, **options) for c in (True, False)]
    assert torch.equal(*found)


def test_positions_that_cannot_be_known_are_refused():
    lm = tiny("llama")
    for where in (-1, [0, -2], slice(-3, None), slice(None, None, -1)):
        with pytest.raises(PositionOutOfRange, match=r"counts from the end.*moves.*slice\(8, None\)"):
            generated(lm, scale_block(1, 2, where))
        with pytest.raises(PositionOutOfRange, match=r"counts from the end.*moves.*slice\(7, None\)"):
            generated(lm, scale_block(1, 2, where), use_cache=False)
        generated(lm, scale_block(1, 2, where), number=1)  # there the end stays where it is
    with pytest.raises(PositionOutOfRange, match=r"position 40 does not exist"):
        generated(lm, scale_block(1, 2, 40))
    with pytest.raises(PositionOutOfRange, match="chooses none"):
        generated(lm, scale_block(1, 2, slice(40, None)))
    assert lm.live_edits == [] and lm.edit_handles == []


def test_a_cache_that_was_filled_without_the_edit_is_refused():
    lm = tiny("llama")
    with torch.no_grad():
        out = lm.model(input_ids=IDS, use_cache=True)
        cached = {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}
        with edit(lm, scale_block(1, 2, [0, 7])), pytest.raises(PositionOutOfRange, match="in the cache already"):
            lm.model(input_ids=IDS[:, :1], **cached)


def test_a_text_that_ends_before_the_position_is_not_taken_for_another():
    lm = tiny("llama")
    with edit(lm, scale_block(1, 2, slice(9, None))):
        lm.model(input_ids=IDS)
        with pytest.raises(PositionOutOfRange, match="chooses none of the 7 positions"):
            lm.model(input_ids=torch.arange(2, 16)[None])
        with pytest.raises(PositionOutOfRange, match="chooses none of the 7 positions"):
            trace(lm, IDS)  # one whole prompt: nothing more will come
        lm.model(input_ids=torch.arange(2, 10)[None], use_cache=False)
        lm.model(input_ids=torch.arange(2, 12)[None][:, :9], use_cache=False)
        lm.model(input_ids=torch.arange(2, 12)[None], use_cache=False)


TWO = [torch.arange(2, 12)[None], torch.arange(20, 30)[None]]


def go_on(lm, text, begin, end, cached):
    out = lm.model(input_ids=text[:, begin:end], use_cache=True, **cached)
    return out.logits, {name: value for name, value in out.items() if hasattr(value, "get_seq_length")}


@pytest.mark.parametrize("where", [8, [1, 8], slice(7, None), [5, 9], slice(5, 9)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt"])
def test_two_texts_are_generated_in_turns_each_with_its_cache(family, where):
    """Against one pass over each whole text, with a hook by hand in place of the edit."""
    lm = tiny(family)
    add = torch.zeros(10, 24, dtype=torch.float64)
    add[where] = vector()
    found, cached = [[], []], [{}, {}]
    with edit(lm, add_to_block(1, vector(), where)), torch.no_grad():
        for begin, end in [(0, 4), *((at, at + 1) for at in range(4, 10))]:
            for number, text in enumerate(TWO):
                start = 0 if begin == 0 else begin + number  # the second is a token ahead
                if start < 10:
                    logits, cached[number] = go_on(lm, text, start, end + number, cached[number])
                    found[number].append(logits)
    handle = lm.blocks[1].register_forward_hook(
        lambda m, args, out: (out[0] + add, *out[1:]) if isinstance(out, tuple) else out + add
    )
    for text, parts in zip(TWO, found, strict=True):
        assert (torch.cat(parts, 1) - lm.logits(text)).abs().max() < 1e-4
    handle.remove()


def test_a_text_that_stays_too_short_is_told_though_another_reaches_the_position():
    lm = tiny("llama")
    with (
        pytest.raises(PositionOutOfRange, match="position 8 does not exist: this prompt has 5 tokens"),
        torch.no_grad(),
    ):
        with edit(lm, scale_block(1, 2, 8)):
            _, short = go_on(lm, TWO[0], 0, 4, {})
            _, long = go_on(lm, TWO[1], 0, 6, {})
            _, short = go_on(lm, TWO[0], 4, 5, short)
            _, long = go_on(lm, TWO[1], 6, 10, long)
    with (
        pytest.raises(PositionOutOfRange, match="position 8 does not exist: this prompt has 4 tokens"),
        torch.no_grad(),
    ):
        with edit(lm, scale_block(1, 2, 8)):
            _, short = go_on(lm, TWO[0], 0, 4, {})
            del short  # nobody can go on with it: the next text says so at once
            go_on(lm, TWO[1], 0, 10, {})
            raise AssertionError


def test_several_continuations_of_copied_caches():
    lm = tiny("llama")
    one = add_to_block(1, vector(), slice(6, None))
    texts = [torch.cat([TWO[0][:, :5], torch.arange(start, start + 4)[None]], 1) for start in (40, 50, 60)]
    with edit(lm, one), torch.no_grad():
        first, cached = go_on(lm, TWO[0], 0, 5, {})
        tries = [copy.deepcopy(cached) for _ in texts]
        found = [[first] for _ in texts]
        for begin, end in ((5, 6), (6, 7), (7, 9)):
            for number, text in enumerate(texts):
                logits, tries[number] = go_on(lm, text, begin, end, tries[number])
                found[number].append(logits)
    with edit(lm, one):
        for text, parts in zip(texts, found, strict=True):
            assert (torch.cat(parts, 1) - lm.logits(text)).abs().max() < 1e-4


def test_prompts_padded_on_the_right_do_not_slip_into_generate():
    lm = tiny("llama", torch.float32)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[0, 4:] = False
    with pytest.raises(BadValue, match=r"generate would go on after the padding.*padding='left'"):
        lm.inputs(Tokens(IDS, mask))
    assert set(lm.inputs(Tokens(IDS, mask), right_padding=True)) == {"input_ids", "use_cache"}
    left = mask.flip(1).long()
    out = lm.model.generate(IDS, attention_mask=left, max_new_tokens=3, do_sample=False, pad_token_id=0)
    alone = lm.model.generate(IDS[:1, 3:], max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(out[:1, 7:], alone[:, 4:])


@pytest.mark.parametrize("cache", [True, False])
def test_padding_on_the_left_that_gives_nan_is_refused_under_an_edit(cache):
    """float64, eager, a softmax in float32: the text of the padded row would be token 0 again and again."""
    lm = tiny("llama")
    left = torch.ones_like(IDS)
    left[0, :3] = 0
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "use_cache": cache}
    with edit(lm, skip_block(1)):
        with pytest.raises(BadValue, match="padding on the left gives NaN in float64"):
            lm.model.generate(IDS, attention_mask=left, **options)
        hole = torch.ones_like(IDS)
        hole[1, 2:4] = 0  # every token sees one
        assert lm.model(input_ids=IDS, attention_mask=hole).logits.isfinite().all()
        right = lm.model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        assert right.shape == (len(IDS), IDS.shape[1] + 3)
    narrow = tiny("llama", torch.float32)
    with edit(narrow, skip_block(1)):
        found = narrow.model.generate(IDS, attention_mask=left, **options)
        alone = narrow.model.generate(IDS[:1, 3:], **options)
    assert found[:1, 3:].equal(alone)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_so_is_padding_that_generate_prepared_for_a_static_cache(family):
    """There the model gets a mask of 4 axes, or a dict of them."""
    left = torch.ones_like(IDS)
    left[0, :3] = 0
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    exact, narrow, other = tiny(family), tiny(family, torch.float32), tiny(family)
    with edit(exact, skip_block(1)), pytest.raises(BadValue, match="padding on the left gives NaN in float64"):
        exact.model.generate(IDS, attention_mask=left, **options)
    for lm, mask in ((narrow, left), (other, torch.ones_like(IDS))):
        with edit(lm, skip_block(1)):
            assert lm.model.generate(IDS, attention_mask=mask, **options).shape == (len(IDS), IDS.shape[1] + 3)


@pytest.mark.parametrize("where", [0, -1, [1, -2], slice(2, 5), slice(-3, None), slice(None, None, -2), [6]])
@pytest.mark.parametrize("cache", [True, False])
def test_a_learners_own_pass_is_edited_at_the_same_positions(where, cache):
    lm = tiny("llama")
    with edit(lm, add_to_block(1, vector(), where)), torch.no_grad():
        found = lm.model(input_ids=IDS, use_cache=cache).logits
    columns = torch.arange(7)[where if where != slice(None, None, -2) else [6, 4, 2, 0]]
    add = torch.zeros(7, 24, dtype=torch.float64)
    add[columns] = vector()

    def by_hand(module, args, output):
        return (output[0] + add, *output[1:]) if isinstance(output, tuple) else output + add

    handle = lm.blocks[1].register_forward_hook(by_hand)
    expected = lm.logits(IDS)
    handle.remove()
    assert torch.equal(found, expected)


def interrupted(lm, at, error, **inputs):
    """A pass in which block `at` raises."""

    def stop(module, args):
        raise error

    handle = lm.blocks[at].register_forward_pre_hook(stop)
    try:
        lm.model(**inputs)
    except type(error):
        return
    finally:
        handle.remove()
    raise AssertionError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("in the middle")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_pass_that_was_interrupted_leaves_nothing_to_the_next(error, at):
    lm = tiny("llama")
    one, later = add_to_block(1, vector(), [2, 3]), add_to_block(0, vector(), 8)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with edit(lm, one), torch.no_grad():
        expected = lm.logits(IDS)
        interrupted(lm, at, error, input_ids=IDS, attention_mask=torch.ones_like(mask))
        assert torch.equal(lm.logits(IDS), expected)
        interrupted(lm, at, error, input_ids=IDS)
        assert torch.equal(lm.model(input_ids=IDS, use_cache=False).logits, expected)
        interrupted(lm, at, error, input_ids=IDS)
        assert torch.equal(lm.model.lm_head(lm.model.model(input_ids=IDS).last_hidden_state), expected)
        filled = go_on(lm, IDS, 0, 4, {})[1]
        interrupted(lm, at, error, input_ids=IDS[:, 4:], **filled)
        assert torch.equal(trace(lm, IDS).logits, expected)
    assert lm.passes == {}
    long = torch.arange(2, 12)[None]
    with edit(lm, later), torch.no_grad():
        interrupted(lm, at, error, input_ids=IDS)  # position 8 would wait, for a text that nobody goes on with
        found = lm.model(input_ids=long).logits
        interrupted(lm, at, error, input_ids=IDS)
    with edit(lm, later):
        assert torch.equal(found, lm.logits(long))


def test_a_whole_pass_within_a_pass_is_not_taken_for_one_that_was_interrupted():
    lm = tiny("llama")
    inner = []

    def look(value):
        if not inner:
            inner.append(None)
            inner[0] = lm.model(input_ids=IDS[:, :3], use_cache=False).logits
        return value * 2

    with edit(lm, change("block", 1, look, [1, 2])), torch.no_grad():
        found = lm.model(input_ids=IDS, use_cache=False).logits
    with edit(lm, scale_block(1, 2, [1, 2])):
        assert torch.equal(found, lm.logits(IDS)) and torch.equal(inner[0], lm.logits(IDS[:, :3]))


def test_two_tasks_that_wait_inside_of_their_withs_are_told():
    lm = tiny("llama")

    async def one(factor, wait):
        with edit(lm, scale_block(1, factor)):
            if wait:
                await asyncio.sleep(0)
            return lm.logits(IDS)

    async def together(wait):
        return await asyncio.gather(one(2, wait), one(3, wait), return_exceptions=True)

    for found, factor in zip(asyncio.run(together(False)), (2, 3), strict=True):
        with edit(lm, scale_block(1, factor)):
            assert torch.equal(found, lm.logits(IDS))
    found, refused = asyncio.run(together(True))
    with edit(lm, scale_block(1, 2)):
        assert torch.equal(found, lm.logits(IDS))
    assert isinstance(refused, BadEdit) and "another asyncio task has edits on this model" in str(refused)
    assert lm.live_edits == [] and lm.edit_handles == []

    async def nested():
        with edit(lm, scale_block(1, 2)):
            await asyncio.sleep(0)
            with edit(lm, scale_block(2, 3)):
                return lm.logits(IDS)

    found = asyncio.run(nested())
    with edit(lm, scale_block(1, 2), scale_block(2, 3)):
        assert torch.equal(found, lm.logits(IDS))
