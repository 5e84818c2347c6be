"""Interventions: what to change, and where.

    with edit(lm, scale_block(2, 0.5), zero_heads(5, [3])):
        changed = trace(lm, prompt)
    # here the model is as it was

An edit is a small immutable value; making one touches no model. `edit` checks every edit against the model before the
first hook is registered, so that nothing is ever half applied. Edits at the same place run in the order given, those of
an outer `with` first. Every factory takes `positions`: None for all tokens, a position, several, or a slice, counted from
the start of the text; negative ones from its end (helpers/positions.py: padding, caches). A position that the prompt does not
have is only found when the prompt is there: a pass of ours raises PositionOutOfRange, and in `generate`, where it may still
come, the end of the `with` does. Tokens in a cache that was filled before the `with` ran without the edit: choose those after it.

"attention" and "mlp" are what the two parts add to the residual stream. In Gemma 2 and 3 that is their output after the
norm that follows it; in OPT in train mode it is the value before its dropout, which no hook can see.

An edit hangs on the model itself (helpers/applying.py), so it changes every pass of it, those of other threads too; two
threads cannot both edit it. Each proves that it happened (helpers/passes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import errors
from .applying import Edit
from .applying import applied as applied
from .applying import edit as edit
from .checks import check_indices, finite_tensor, real_number, whole_numbers
from .positions import Positions
from .say import translatable


def change(site: str, block: int, function: Callable[[Tensor], Tensor], positions: Positions = None) -> Edit:
    """Any edit of your own: `function(value)` returns the new value of a site, in the same shape, dtype and device.

    site: "block" (batch, pos, d_model), "attention" or "mlp" (what they add to the stream), "heads" (batch, pos, n_heads,
    d_head), "keys" (batch, pos, n_key_heads, d_head), "neurons" or "preactivation" (batch, pos, d_mlp). The function
    gets a copy, so it may also work in place, but it must return the result, which is copied too. Raises BadEdit.
    """
    if not callable(function):
        raise errors.BadEdit(
            "change needs a function that takes a tensor and returns one, but this is {function!r}.", function=function
        )

    def own(value: Tensor, _: Tensor) -> Tensor:
        new = function(value.clone())
        # Its owner may keep what the function returned, and some models write into what they are handed (Falcon, OLMo).
        return new.clone() if isinstance(new, Tensor) else new

    name = f"change({site!r}, {block!r}, {getattr(function, '__name__', 'function')})"
    return Edit(name, site, block, own, positions, given=function)


def _scale(name: str, site: str, block: int, factor: float | Tensor, positions: Positions) -> Edit:
    by = real_number(factor, "factor")
    name = f"{name}({block}, {by:g})"
    if isinstance(factor, Tensor) and factor.requires_grad:  # it is being learned: use it as it is in each pass
        learned = factor
        times = lambda value, _: value * learned.to(value).reshape(())  # noqa: E731
        return Edit(name, site, block, times, positions, given=_Same(factor), pure=True)
    return Edit(name, site, block, lambda value, _: value * by, positions, given=by, pure=True)


def scale_block(block: int, factor: float | Tensor, positions: Positions = None) -> Edit:
    """Multiply the residual stream after `block` by `factor`, any finite number: 1 changes nothing, 0 empties the stream.

    A factor that is a tensor of one number and requires a gradient keeps it. Raises BadFactor; `edit` raises BlockOutOfRange.
    """
    return _scale("scale_block", "block", block, factor, positions)


def scale_attention(block: int, factor: float | Tensor, positions: Positions = None) -> Edit:
    """Multiply what attention adds to the stream in `block`, (batch, pos, d_model), by `factor`. Raises BadFactor."""
    return _scale("scale_attention", "attention", block, factor, positions)


def scale_mlp(block: int, factor: float | Tensor, positions: Positions = None) -> Edit:
    """Multiply what the MLP adds to the stream in `block`, (batch, pos, d_model), by `factor`. Raises BadFactor."""
    return _scale("scale_mlp", "mlp", block, factor, positions)


def skip_block(block: int, positions: Positions = None) -> Edit:
    """Hand on the stream that entered `block`, (batch, pos, d_model): the block computes, and its result is thrown away.

    `edit` raises BlockOutOfRange.
    """
    entered = lambda _, stream: stream.clone()  # noqa: E731
    return Edit(f"skip_block({block})", "block", block, entered, positions, given="skip", pure=True)


def skip_attention(block: int, positions: Positions = None) -> Edit:
    """Attention in `block` adds nothing to the stream, (batch, pos, d_model). `edit` raises BlockOutOfRange.

    What the MLP reads changes with it, but not in a parallel block (docs/families.md), where both read what entered the block.
    """
    zero = lambda value, _: torch.zeros_like(value)  # noqa: E731
    return Edit(f"skip_attention({block})", "attention", block, zero, positions, given="skip", pure=True)


def skip_mlp(block: int, positions: Positions = None) -> Edit:
    """The MLP in `block` adds nothing to the stream, (batch, pos, d_model). `edit` raises BlockOutOfRange."""
    zero = lambda value, _: torch.zeros_like(value)  # noqa: E731
    return Edit(f"skip_mlp({block})", "mlp", block, zero, positions, given="skip", pure=True)


def add_to_block(block: int, vector: Tensor, positions: Positions = None) -> Edit:
    """Add a tensor that broadcasts to (batch, pos, d_model), usually one (d_model,) direction, to the stream after `block`.

    The edit keeps a copy; of a vector that requires a gradient, as in learning a steering vector, it uses the vector itself,
    as it is in each pass. Raises BadValue, also in the pass if the shape does not fit.
    """
    vector = finite_tensor(vector, "the vector")
    return Edit(
        f"add_to_block({block}, {tuple(vector.shape)})", "block", block,
        lambda value, _: value + _fitted(vector, value, "the vector"), positions, given=_Same(vector), pure=True,
        **_rows_of(vector, 3, lambda some: add_to_block(block, some)),
    )  # fmt: skip


def patch_block(block: int, value: Tensor, positions: Positions = None) -> Edit:
    """Replace the stream after `block` by a tensor that broadcasts to (batch, pos, d_model), for example another run's.

    A copy is kept, or, of a tensor that requires a gradient, the tensor itself. Raises BadValue, also in the pass if the
    shape does not fit.
    """
    given = finite_tensor(value, "the patch")
    return Edit(
        f"patch_block({block}, {tuple(given.shape)})", "block", block,
        lambda old, _: _fitted(given, old, "the patch").clone(), positions, given=_Same(given), pure=True,
        **_rows_of(given, 3, lambda some: patch_block(block, some)),
    )  # fmt: skip


def zero_heads(block: int, heads: Sequence[int] | int, positions: Positions = None) -> Edit:
    """Set the outputs of these heads, (batch, pos, n_heads, d_head), to zero, before the output projection mixes them.

    heads: one, or several. Raises HeadOutOfRange (here or in `edit`, which knows the model).
    """
    return replace(replace_heads(block, heads, torch.zeros(()), positions), name=f"zero_heads({block}, {heads})")


def replace_heads(block: int, heads: Sequence[int] | int, value: Tensor, positions: Positions = None) -> Edit:
    """Set the outputs of these heads to `value`, which broadcasts to (batch, pos, len(heads), d_head).

    Zero ablation is a zero, mean ablation the heads' mean over a set of prompts, resample ablation the heads' outputs
    on another prompt (Wang et al. 2022 compare them): see `sweep_heads(..., replacement=...)`. A copy is kept, or, of a tensor
    that requires a gradient, the tensor itself. Raises BadValue, HeadOutOfRange.
    """
    given = finite_tensor(value, "the replacement")
    listed = list(whole_numbers(heads, errors.HeadOutOfRange, "head"))
    return replace(
        put_heads(block, listed, given, positions=positions),
        name=f"replace_heads({block}, {heads}, {tuple(given.shape)})",
        check=lambda lm: lm.check_heads(listed),
        given=(tuple(listed), _Same(given)),
        **_rows_of(given, 4, lambda some: replace_heads(block, listed, some)),
    )


def put_heads(block: int, heads: list[int], value: Tensor, site: str = "heads", positions: Positions = None) -> Edit:
    """`replace_heads` for code that knows its block, heads and tensor: nothing is checked. site: "keys" for key heads."""
    side_by_side = heads == list(range(heads[0], heads[0] + len(heads)))
    at = slice(heads[0], heads[0] + len(heads)) if side_by_side else heads  # of a slice the part is no copy

    def put(old: Tensor, _: Tensor) -> Tensor:
        new = old.clone()
        part = new[:, :, at]
        part.copy_(_fitted(value, part, "the replacement"))
        if not side_by_side:
            new[:, :, at] = part
        return new

    each = _rows_of(value, 4, lambda some: put_heads(block, heads, some, site))
    return Edit(f"put_heads({block}, {heads})", site, block, put, positions, pure=True, **each)


def zero_keys(block: int, heads: Sequence[int] | int, positions: Positions = None) -> Edit:
    """Set the keys of these heads to zero: their scores become 0 and they attend evenly over all they may see.

    With grouped-query attention several heads share one key head; `heads` then counts key heads. Raises HeadOutOfRange.
    """
    listed = list(whole_numbers(heads, errors.HeadOutOfRange, "key head"))
    return replace(
        put_heads(block, listed, torch.zeros(()), "keys", positions),
        name=f"zero_keys({block}, {heads})",
        check=lambda lm: lm.check_heads(listed, of_keys=True),
        given=tuple(listed),
    )


def noise_neurons(
    block: int, neurons: Sequence[int] | int | slice, mean: float, std: float, generator: torch.Generator,
    before_activation: bool = False, positions: Positions = None,
) -> Edit:  # fmt: skip
    """Replace MLP neurons by Gaussian noise, after the activation function or before it.

    neurons: indices, or a slice such as slice(0, None, 2). Each pass draws anew from `generator`, so seed it again to
    see the same noise twice. (Zhang & Nanda 2023 explain why noise takes a model off its distribution.)
    Raises BadFactor, BadValue, NeuronOutOfRange.
    """
    mean, std = real_number(mean, "mean"), real_number(std, "std", least=0.0)
    if not isinstance(generator, torch.Generator):
        raise errors.BadValue(
            "generator must be a torch.Generator, for example torch.Generator().manual_seed(0), but this is "
            "{generator!r}.",
            generator=generator,
        )

    chosen: slice | tuple[int, ...] = (
        neurons if isinstance(neurons, slice) else whole_numbers(neurons, errors.NeuronOutOfRange, "neuron")
    )

    def listed(width: int) -> list[int]:
        if not isinstance(chosen, slice):
            return check_indices(chosen, width, errors.NeuronOutOfRange, "neuron", translatable("each MLP has"))
        try:
            found = list(range(width)[chosen])
        except (TypeError, ValueError):
            found = []
        if not found:
            raise errors.NeuronOutOfRange(
                "{chosen} chooses none of the {width} neurons: choose from 0 to {last}.",
                chosen=chosen,
                width=width,
                last=width - 1,
            )
        return found

    def noise(old: Tensor, _: Tensor) -> Tensor:
        new = old.clone()
        at = listed(old.shape[-1])
        part = new[..., at]
        # Drawn in float64 on the generator's device: the same numbers for every dtype and every device of the model.
        drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64, device=generator.device)
        new[..., at] = (mean + std * drawn).to(part)
        return new

    site = "preactivation" if before_activation else "neurons"
    name = f"noise_neurons({block}, mean {mean:g}, std {std:g})"
    check = lambda lm: listed(lm.d_mlp)  # noqa: E731
    return Edit(name, site, block, noise, positions, check, (chosen, mean, std, generator))


# ---- the tensors that edits are given


def _fitted(value: Tensor, like: Tensor, what: str) -> Tensor:
    """`value` in the dtype and on the device of `like`, broadcast to its shape."""
    try:
        return value.to(like).broadcast_to(like.shape)
    except RuntimeError:
        raise errors.BadValue(
            "{what} has shape {shape}, which does not fit {right_shape} at this place: give that shape, or "
            "one that broadcasts to it.",
            what=what,
            shape=tuple(value.shape),
            right_shape=tuple(like.shape),
        ) from None


def _rows_of(value: Tensor, axes: int, make: Callable[[Tensor], Edit]) -> dict[str, Any]:
    """What an Edit says of a value of `axes` axes with a row for each of several prompts, padded on the right like they are."""
    if value.ndim != axes or len(value) < 2:
        return {}
    return {"prompts": len(value), "length": value.shape[1], "for_prompts": lambda some, n: make(value[list(some), :n])}


class _Same:
    """A tensor that is equal to another of the same numbers, dtype and device; one that is being learned, only to itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        a, b = self.tensor, other.tensor
        same_kind = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return a is b or (same_kind and not a.requires_grad and not b.requires_grad and torch.equal(a, b))

    __hash__ = None  # type: ignore[assignment]
