"""Traces of every family against a pass by hand (tests/reference.py) and against raw hooks that are not ours."""

import numpy as np
import pytest
import torch
import transformers
from reference import far, reference
from tiny import CONFIGS, tiny

from helpers import edit, scale_block, trace
from helpers.models import Tokens

FAMILIES = list(CONFIGS)
# transformers has no sdpa for GPT-Neo and Gemma 2 (on transformers 4 it would run Gemma 2 without its soft caps).
KINDS = [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if not (a == "sdpa" and f in ("gpt_neo", "gemma2"))]
FIELDS = ("resid", "attn", "mlp", "heads", "final", "logits")
# Relative Frobenius distances. Eager attention of most families computes its softmax in float32, whatever the model's dtype.
CLOSE = {torch.float64: 2e-6, torch.float32: 1e-4, torch.bfloat16: 0.1}
# transformers 4 records these families' hidden states by wrapping each block's forward, so that no hook's edit of a block
# shows at that block in its record, `prepend` or not; only a recorder of one's own sees it.
WRAPPED = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"} if transformers.__version__ < "5" else set()
# Every dropout that a family has, switched on.
DROPOUT = {
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "gpt_neo": {"resid_dropout": 0.2, "embed_dropout": 0.2, "attention_dropout": 0.2},
    "gpt_neox": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "opt": {"dropout": 0.2, "attention_dropout": 0.2},
}
DROPOUT |= {family: {"attention_dropout": 0.2} for family in FAMILIES if family not in DROPOUT}


def some_ids(batch=3, length=11, seed=1):
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(side, batch=3, length=11):
    """Rows of 11, 3 and 8 real tokens: more padding than the sliding windows are wide."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row, real in zip(mask, (length, 3, 8), strict=False):
        row[slice(length - real, None) if side == "left" else slice(0, real)] = True
    return Tokens(some_ids(batch, length), mask)


def real(value, mask, field):
    """Only what is at real tokens: padding computes something too, but nobody reads it."""
    return value[:, mask] if field in ("resid", "attn", "mlp", "heads") else value[mask]


@torch.no_grad()
def by_hand(lm, tokens, **given):
    return reference(lm.model, tokens.ids, tokens.mask, **given)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_every_field_agrees_with_a_pass_by_hand(family, attention, dtype):
    lm = tiny(family, dtype, attention)
    assert lm.model.config.use_cache  # on by default, and harmless
    for tokens in (lm.encode(some_ids(1)), lm.encode(some_ids(3)), padded("right"), padded("left")):
        left = not tokens.mask[:, 0].all()
        if left and attention == "eager" and dtype == torch.float64 and family not in ("gpt2", "gpt_neo"):
            continue  # refused with a sentence: tests/test_misuse.py
        found, expected = trace(lm, tokens), by_hand(lm, tokens)
        for field in FIELDS:
            a, b = (real(getattr(one, field), tokens.mask, field) for one in (found, expected))
            assert a.dtype == dtype and a.shape == b.shape
            assert far(a, b) < CLOSE[dtype], (field, tokens.mask)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_sum_of_its_deltas_with_dropout_too(family, training, dtype):
    lm = tiny(family, dtype, **DROPOUT[family])
    lm.model.train(training)
    torch.manual_seed(5)
    found = trace(lm, some_ids())
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for block in range(lm.n_blocks):
        total = found.resid[block] + found.attn[block] + found.mlp[block]
        assert far(total, found.resid[block + 1]) < bound
    assert lm.model.training == training
    if training:  # dropout was really on, and the trace drew nothing from the generator that a plain pass would not
        torch.manual_seed(6)
        assert not trace(lm, some_ids()).logits.equal(found.logits)
        torch.manual_seed(5)
        assert lm.logits(some_ids()).equal(found.logits)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stream_and_deltas_are_what_raw_hooks_see(family, training):
    """In train mode too, where OPT's dropout is a function and not a module: the oracle reads the stream, not the deltas."""
    lm = tiny(family, **DROPOUT[family])
    lm.model.train(training)
    between = {  # the norm that reads the stream between attention and MLP; GPT-NeoX runs both side by side and has none
        "gpt2": "ln_2", "gpt_neo": "ln_2", "opt": "final_layer_norm", "gemma2": "pre_feedforward_layernorm",
        "gemma3_text": "pre_feedforward_layernorm", "gpt_neox": None,
    }.get(family, "post_attention_layernorm")  # fmt: skip
    before, middle, after, handles = [], [], [], []
    for block in lm.blocks:
        seen = lambda m, args, kwargs: before.append((args[0] if args else kwargs["hidden_states"]).clone())  # noqa: E731
        handles.append(block.register_forward_pre_hook(seen, with_kwargs=True))
        handles.append(
            block.register_forward_hook(lambda m, i, o: after.append((o[0] if isinstance(o, tuple) else o).clone()))
        )
        if between:
            norm = block.get_submodule(between)
            handles.append(norm.register_forward_pre_hook(lambda m, args: middle.append(args[0].clone())))
    torch.manual_seed(5)
    with torch.no_grad():
        lm.model(input_ids=some_ids(), use_cache=False)
    for handle in handles:
        handle.remove()
    torch.manual_seed(5)
    found = trace(lm, some_ids())
    assert found.resid[:-1].equal(torch.stack(before))
    assert found.resid[1:].equal(torch.stack(after))
    if between:
        centre = torch.stack([one.reshape(before[0].shape) for one in middle])
        assert far(found.attn, centre - torch.stack(before)) < 1e-13
        assert far(found.mlp, torch.stack(after) - centre) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_out_the_last_point_gives_the_logits(family):
    lm = tiny(family)
    found = trace(lm, some_ids())
    assert far(lm.read_out(found.resid[-1]), found.logits) < 1e-13
    assert far(lm.final_norm(found.resid[-1]), found.final) < 1e-13
    assert found.last_logits.equal(found.logits[:, -1])


def test_last_logits_are_those_of_each_prompts_last_real_token():
    lm = tiny("gpt2")
    for side in ("right", "left"):
        tokens = padded(side)
        found = trace(lm, tokens).last_logits
        for row in range(3):
            alone = trace(lm, tokens.ids[row][tokens.mask[row]])
            assert far(found[row], alone.logits[0, -1]) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_gives_the_same_beginning_and_skips_the_later_work(family):
    lm = tiny(family)
    whole = trace(lm, some_ids())
    worked = []
    handles = [b.register_forward_hook(lambda *_, i=i: worked.append(i)) for i, b in enumerate(lm.blocks)]
    for stop in range(lm.n_blocks):
        worked.clear()
        part = trace(lm, some_ids(), stop_after=stop)
        assert worked == list(range(stop + 1))
        assert part.resid.equal(whole.resid[: stop + 2])
        for field in ("attn", "mlp", "heads"):
            assert getattr(part, field).equal(getattr(whole, field)[: stop + 1])
        assert part.final is None and part.logits is None
    for handle in handles:
        handle.remove()
    assert trace(lm, some_ids()).logits.equal(whole.logits)


@pytest.mark.parametrize("captured", ["never", "before", "in the config"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_shows_whatever_captured_hidden_states_before(family, captured):
    """The hook-order trap: transformers 5 records hidden states with hooks of its own, installed once and never removed."""
    lm = tiny(family)
    ids = some_ids()
    if captured == "before":
        lm.model(input_ids=ids, output_hidden_states=True)
    if captured == "in the config":
        lm.model.config.output_hidden_states = True
        trace(lm, ids, stop_after=1)  # a pass that is left early in the middle of their capturing
    halved = lambda site, block, value, _: value * 0.5 if (site, block) == ("block", 1) else value  # noqa: E731
    expected = by_hand(lm, lm.encode(ids), at=halved)
    with edit(lm, scale_block(1, 0.5)):
        found = trace(lm, ids)
        with torch.no_grad():
            theirs = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    for field in FIELDS:
        assert far(getattr(found, field), getattr(expected, field)) < 2e-6
    assert len(theirs) == lm.n_blocks + 1 and theirs[-1].equal(found.final)
    if family in WRAPPED:
        assert theirs[2].equal(found.resid[1] + found.attn[1] + found.mlp[1])  # from before the edit
        theirs = [state for point, state in enumerate(theirs) if point != 2]
        assert torch.stack(theirs[:-1]).equal(found.resid[[0, 1, 3]])
    else:  # with `prepend` the edit shows in their record as well
        assert torch.stack(theirs[:-1]).equal(found.resid[:-1])
    with torch.no_grad():  # and it is gone from both afterwards
        again = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.stack(again[:-1]).equal(trace(lm, ids).resid[:-1])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_learners_raw_hooks_are_seen(family, in_place):
    lm = tiny(family)

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    def half(module, args, output):
        if in_place:
            first(output).mul_(0.5)
            return None
        return (first(output) * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

    clean = trace(lm, some_ids())
    handles = [lm.blocks[1].register_forward_hook(half), lm.attention(2).register_forward_hook(half)]
    found = trace(lm, some_ids())
    with torch.no_grad():
        logits = lm.model(input_ids=some_ids(), use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert found.resid[:2].equal(clean.resid[:2])
    assert found.resid[2].equal(clean.resid[2] * 0.5)
    # Gemma's attention module is not yet its delta: a norm follows, which undoes a factor.
    by = 1.0 if family.startswith("gemma") else 0.5
    plain = trace_of_block_two(lm, found.resid[2])
    assert far(found.attn[2], plain * by) < 1e-3
    assert far(found.logits, logits) < 1e-12
    assert trace(lm, some_ids()).resid.equal(clean.resid)


def trace_of_block_two(lm, stream):
    """Attention's delta in block 2 when this stream enters it, without the learner's hooks."""

    def enter(module, args, kwargs):
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    handle = lm.blocks[2].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        return trace(lm, some_ids()).attn[2]
    finally:
        handle.remove()


def test_a_trace_is_a_copy_without_gradient():
    lm = tiny("gpt2")
    with torch.enable_grad():
        found = trace(lm, some_ids())
    assert not any(getattr(found, field).requires_grad for field in FIELDS)
    clean = trace(lm, some_ids())
    for field in FIELDS:
        getattr(found, field).zero_()
    assert all(getattr(trace(lm, some_ids()), field).equal(getattr(clean, field)) for field in FIELDS)
    with torch.inference_mode():
        assert trace(lm, some_ids()).logits.equal(clean.logits)


def test_ids_and_masks_are_copies_whatever_becomes_of_the_given_ones():
    lm = tiny("gpt2")
    ids, rows = torch.arange(2, 24).reshape(2, 11), np.arange(2, 24).reshape(2, 11)
    given = Tokens(ids.clone(), torch.ones(2, 11, dtype=torch.bool))
    traces, encoded = [trace(lm, one) for one in (ids, rows, given)], [lm.encode(one) for one in (ids, rows, given)]
    expected, last = ids.clone(), traces[0].last_logits
    for one in (ids, given.ids):
        one[:] = 90
    rows[:], given.mask[:, 1:] = 90, False
    assert all(one.tokens.equal(expected) and one.mask.all() and one.last_logits.equal(last) for one in traces)
    assert all(one.ids.equal(expected) and one.mask.all() for one in encoded)


def test_a_pass_of_ones_own_keeps_its_gradient_through_an_edit():
    lm = tiny("gpt2")
    with edit(lm, scale_block(1, 0.5)):
        lm.model(input_ids=some_ids()).logits.sum().backward()
    assert lm.model.transformer.wte.weight.grad.abs().sum() > 0
