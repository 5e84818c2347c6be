"""Every edit on every family against the same change made by hand in tests/reference.py."""

import copy
import threading
import warnings

import pytest
import torch
from reference import far
from test_trace import CLOSE, DROPOUT, FAMILIES, FIELDS, KINDS, by_hand, padded, real, some_ids
from tiny import tiny

from helpers import (
    add_to_block,
    change,
    edit,
    noise_neurons,
    patch_block,
    replace_heads,
    scale_attention,
    scale_block,
    scale_mlp,
    skip_attention,
    skip_block,
    skip_mlp,
    trace,
    wrap,
    zero_heads,
    zero_keys,
)  # fmt: skip
from helpers.errors import BadEdit, BlockOutOfRange
from helpers.positions import chosen_columns


def draw(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise():
    return torch.Generator().manual_seed(7)


def with_columns(value, at, new):
    out = value.clone()
    out[:, :, at] = new if isinstance(new, int) else new.to(value)
    return out


def noisy(value, at):
    out = value.clone()
    part = out[..., at]
    out[..., at] = (0.5 + 2 * torch.randn(part.shape, generator=noise(), dtype=torch.float64)).to(value)
    return out


# name: (the edit at block 1, its site, the same by hand). Key heads are 2 in the families with grouped-query attention.
CASES = {
    "scale_block": (lambda p: scale_block(1, -0.5, p), "block", lambda v, s: v * -0.5),
    "skip_block": (lambda p: skip_block(1, p), "block", lambda v, s: s),
    "add_to_block": (lambda p: add_to_block(1, draw(24), p), "block", lambda v, s: v + draw(24).to(v)),
    "patch_block": (lambda p: patch_block(1, draw(11, 24), p), "block", lambda v, s: draw(11, 24).to(v).expand(v.shape)),
    "scale_attention": (lambda p: scale_attention(1, 3, p), "attention", lambda v, s: v * 3),
    "skip_attention": (lambda p: skip_attention(1, p), "attention", lambda v, s: v * 0),
    "scale_mlp": (lambda p: scale_mlp(1, -1, p), "mlp", lambda v, s: -v),
    "skip_mlp": (lambda p: skip_mlp(1, p), "mlp", lambda v, s: v * 0),
    "zero_heads": (lambda p: zero_heads(1, [3, 0], p), "heads", lambda v, s: with_columns(v, [0, 3], 0)),
    "replace_heads": (
        lambda p: replace_heads(1, [2, 1], draw(2, 1), p), "heads", lambda v, s: with_columns(v, [2, 1], draw(2, 1)),
    ),
    "zero_keys": (lambda p: zero_keys(1, 1, p), "keys", lambda v, s: with_columns(v, [1], 0)),
    "noise_neurons": (
        lambda p: noise_neurons(1, slice(0, None, 2), 0.5, 2, noise(), positions=p), "neurons",
        lambda v, s: noisy(v, slice(0, None, 2)),
    ),
    "noise_before": (
        lambda p: noise_neurons(1, [5, 1], 0.5, 2, noise(), before_activation=True, positions=p), "preactivation",
        lambda v, s: noisy(v, [5, 1]),
    ),
} | {
    f"change {site}": (lambda p, site=site: change(site, 1, lambda v: v.cos(), p), site, lambda v, s: v.cos())
    for site in ("block", "attention", "mlp", "heads", "keys", "neurons", "preactivation")
}  # fmt: skip


def at_one_place(site, by_hand, columns=None):
    """The callback of the pass by hand: change one site of block 1, at some columns only if asked."""

    def at(found, block, value, stream):
        if (found, block) != (site, 1):
            return value
        if columns is None:
            return by_hand(value, stream)
        out = value.clone()
        out[:, columns] = by_hand(value, stream)[:, columns]
        return out

    return at


def agree(lm, tokens, edits, at, bound):
    with edit(lm, *edits):
        found = trace(lm, tokens)
    expected = by_hand(lm, tokens, at=at)
    for field in FIELDS:
        a, b = (real(getattr(one, field), tokens.mask, field) for one in (found, expected))
        assert far(a, b) < bound, field
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_edit_agrees_with_the_same_by_hand(family, case):
    lm = tiny(family)
    make, site, hand = CASES[case]
    tokens = lm.encode(some_ids())
    clean = trace(lm, tokens)
    for positions, columns in ((None, None), ([1, -1], [1, 10]), (slice(2, None, 3), [2, 5, 8])):
        found = agree(lm, tokens, [make(positions)], at_one_place(site, hand, columns), 5e-6)
        assert far(found.logits, clean.logits) > 1e-4  # the edit was really there ...
    assert trace(lm, tokens).logits.equal(clean.logits)  # ... and is really gone


@pytest.mark.parametrize("side", ["right", "left", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_edits_agree_on_padded_batches_in_other_dtypes_and_attentions(family, attention, dtype, side):
    lm = tiny(family, dtype, attention)
    tokens = lm.encode(some_ids(1)) if side == "alone" else padded(side)
    for case in ("scale_block", "skip_block", "zero_heads", "zero_keys", "skip_mlp"):
        make, site, hand = CASES[case]
        agree(lm, tokens, [make(None)], at_one_place(site, hand), 2 * CLOSE[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_compose_in_their_order_and_the_outer_with_comes_first(family):
    lm = tiny(family)
    tokens = lm.encode(some_ids())
    vector = draw(24)

    def at(site, block, value, stream):
        if (site, block) == ("block", 1):
            return ((value * 0.5) + vector) * 2
        if (site, block) == ("heads", 2):
            return with_columns(value, [1], 0)
        return value

    one, two, three, four = scale_block(1, 0.5), add_to_block(1, vector), scale_block(1, 2), zero_heads(2, 1)
    found = agree(lm, tokens, [one, two, three, four], at, 2e-6)
    with edit(lm, one):
        with edit(lm, two, four):
            with edit(lm, three):
                assert trace(lm, tokens).logits.equal(found.logits)
        assert trace(lm, tokens).resid[2].equal(trace_at(lm, tokens, one))
    with edit(lm, three), edit(lm, two), edit(lm, one, four):
        assert far(trace(lm, tokens).resid[2], found.resid[2]) > 1e-2


def trace_at(lm, tokens, _):
    """The stream after block 1, read by a raw hook."""
    seen = []
    handle = lm.blocks[1].register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
    lm.logits(tokens)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_work_with_dropout_on(family):
    """Same seed, same dropout: up to the edited block nothing differs; at it the change is exact."""
    lm = tiny(family, **DROPOUT[family])
    lm.model.train()

    def seeded(*edits):
        torch.manual_seed(11)
        with edit(lm, *edits):
            return trace(lm, some_ids())

    clean = seeded()
    skipped, halved = seeded(skip_block(1)), seeded(scale_block(1, 0.5))
    assert skipped.resid[2].equal(clean.resid[1]) and halved.resid[2].equal(clean.resid[2] * 0.5)
    quiet = seeded(skip_attention(1))
    assert quiet.resid[:2].equal(clean.resid[:2]) and not quiet.attn[1].any()
    assert not seeded(skip_mlp(1)).mlp[1].any()
    doubled = seeded(scale_mlp(1, 2))  # dropout commutes with a factor
    assert far(doubled.mlp[1], 2 * clean.mlp[1]) < 1e-12
    for found in (skipped, halved):  # an edit of the block is nobody's delta
        assert found.attn[1].equal(clean.attn[1]) and found.mlp[1].equal(clean.mlp[1])
    assert not seeded(zero_heads(1, [0, 2])).heads[1][:, :, [0, 2]].any()


def test_zeroed_keys_spread_attention_evenly():
    lm = tiny("gpt2")
    with edit(lm, zero_keys(1, [2])), torch.no_grad():
        weights = lm.model(input_ids=some_ids(), output_attentions=True, use_cache=False).attentions[1]
    even = torch.tril(torch.ones(11, 11, dtype=torch.float64))
    even /= even.sum(dim=1, keepdim=True)
    assert torch.allclose(weights[:, 2], even.expand(3, -1, -1), atol=1e-15)
    assert not torch.allclose(weights[:, 1], even.expand(3, -1, -1), atol=1e-2)


def test_noise_is_drawn_anew_in_each_pass_and_the_same_from_the_same_seed():
    lm = tiny("gpt2")
    generator = noise()
    with edit(lm, noise_neurons(1, [0, 1], 0.0, 1.0, generator)):
        one, two = trace(lm, some_ids()), trace(lm, some_ids())
        generator.manual_seed(7)
        again = trace(lm, some_ids())
    assert not one.logits.equal(two.logits) and one.logits.equal(again.logits)


def test_a_function_that_works_in_place_changes_only_what_it_returns():
    """It gets a copy: with `positions`, and for a value that others have recorded, working in place would be wrong."""
    lm = tiny("gpt2")
    clean = trace(lm, some_ids())
    for site in ("block", "attention", "mlp", "heads", "keys", "neurons", "preactivation"):
        with edit(lm, change(site, 1, lambda v: v.mul_(0), positions=4)):
            found = trace(lm, some_ids())
        with edit(lm, change(site, 1, lambda v: v * 0, positions=4)):
            assert trace(lm, some_ids()).logits.equal(found.logits)
        assert found.logits[:, :4].equal(clean.logits[:, :4])
    assert trace(lm, some_ids()).logits.equal(clean.logits)


def returned_values(lm, ids):
    """For each site of the model: its name, and a tensor that a user's function may return there."""
    shapes = {"block": (lm.d_model,), "heads": (lm.n_heads, lm.d_head), "keys": (lm.n_key_heads, lm.d_head)}
    shapes |= dict.fromkeys(("attention", "mlp"), (lm.d_model,)) | dict.fromkeys(
        ("neurons", "preactivation"), (lm.d_mlp,)
    )
    draws = torch.Generator().manual_seed(4)
    for site, shape in shapes.items():
        if not lm.parts.lacks(site):
            yield site, torch.randn((*ids.shape, *shape), generator=draws, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_that_a_function_returns_stays_its_owners(family):
    lm = tiny(family)
    for site, mine in returned_values(lm, some_ids()):
        before = mine.clone()
        with edit(lm, change(site, 1, lambda _, mine=mine: mine)):
            one, two = lm.logits(some_ids()), lm.logits(some_ids())
        assert one.equal(two) and mine.equal(before)


def test_an_in_place_hook_after_a_skip_does_not_reach_the_block_before():
    """A skipped block hands on a copy of its input: the same object has already been recorded one block earlier."""
    lm = tiny("gpt2")
    clean = trace(lm, some_ids())

    def in_place(module, args, output):
        (output[0] if isinstance(output, tuple) else output).mul_(2)

    with edit(lm, skip_block(1)):
        handle = lm.blocks[1].register_forward_hook(in_place)
        with torch.no_grad():
            states = lm.model(input_ids=some_ids(), output_hidden_states=True, use_cache=False).hidden_states
        handle.remove()
    assert states[1].equal(clean.resid[1])


def test_an_edit_keeps_what_it_was_given():
    lm = tiny("gpt2")
    vector, heads, where = torch.ones(24), [0], [2]
    edits = add_to_block(1, vector, where), zero_heads(2, heads)
    with edit(lm, *edits):
        before = trace(lm, some_ids())
    vector.zero_()
    heads.append(1)
    where.append(3)
    with edit(lm, *edits):
        assert trace(lm, some_ids()).logits.equal(before.logits)


def test_numbers_of_numpy_and_torch_are_numbers():
    import numpy as np

    lm = tiny("gpt2")
    with edit(lm, scale_block(np.int64(1), np.float32(0.5), np.int64(3)), zero_heads(2, np.array([0, 3]))):
        found = trace(lm, some_ids())
    with edit(
        lm, scale_block(torch.tensor(1), torch.tensor(0.5), torch.tensor([3])), zero_heads(2, torch.tensor([0, 3]))
    ):
        again = trace(lm, some_ids())
    with edit(lm, scale_block(1, 0.5, 3), zero_heads(2, range(0, 4, 3))):
        expected = trace(lm, some_ids())
    assert found.logits.equal(expected.logits) and again.logits.equal(expected.logits)


def test_positions_choose_columns():
    assert chosen_columns(None, 3) == [0, 1, 2]
    assert chosen_columns([0, -1], 4) == [0, 3]
    assert chosen_columns(slice(None, None, -2), 4) == [3, 1]


def test_edits_show_in_the_models_repr_and_say_where():
    lm = tiny("gpt2")
    with edit(lm, scale_block(1, 0.5, [2, 3]), zero_heads(2, [1])):
        assert "scale_block(1, 0.5) at positions (2, 3), zero_heads(2, [1])" in repr(lm)
    assert "live edits: none" in repr(lm)


def test_an_edit_can_be_used_again_and_inside_itself():
    lm = tiny("gpt2")
    halve = edit(lm, scale_block(1, 0.5))
    clean = trace(lm, some_ids())
    for _ in range(2):
        with halve:
            with halve:
                assert trace(lm, some_ids()).resid[2].equal(clean.resid[2] * 0.25)
            assert trace(lm, some_ids()).resid[2].equal(clean.resid[2] * 0.5)
        assert trace(lm, some_ids()).resid.equal(clean.resid)


def test_an_edit_is_on_for_every_thread_as_its_docstring_says():
    lm = tiny("gpt2")
    seen = []
    with edit(lm, scale_block(1, 0.5)):
        halved = trace(lm, some_ids())
        other = threading.Thread(target=lambda: seen.append(trace(lm, some_ids())))
        other.start()
        other.join()
    assert seen[0].logits.equal(halved.logits)
    assert "another thread" in " ".join(edit.__doc__.split())


def test_two_wrappers_cannot_both_edit_one_model():
    """The inner one's edits would run first, since each wrapper puts its own ahead of all other hooks."""
    one, another = tiny("gpt2"), tiny("gpt2")
    two = wrap(one.model)
    clean = trace(one, some_ids())
    with edit(one, scale_block(1, 0.5)):
        with pytest.raises(BadEdit, match=r"another LanguageModel has edits on this same model.*wrap a model once"):
            edit(two, scale_block(1, 4)).__enter__()
        with edit(another, scale_block(1, 4)), edit(copy.deepcopy(one), scale_block(1, 4)):
            assert trace(one, some_ids()).resid[2].equal(clean.resid[2] * 0.5)
    with edit(two, scale_block(1, 4)):
        assert trace(one, some_ids()).resid[2].equal(clean.resid[2] * 4)
    assert trace(two, some_ids()).resid.equal(clean.resid)


def test_edits_that_were_made_and_not_put_on_are_told():
    lm = tiny("gpt2")
    with pytest.warns(UserWarning, match=r"\[scale_block\(1, 0.5\)\] changed nothing: edits work inside of `with edit"):
        edit(lm, scale_block(1, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with edit(lm, scale_block(1, 0.5)):
            trace(lm, some_ids())
        with pytest.raises(BlockOutOfRange):
            edit(lm, scale_block(9, 0.5))
