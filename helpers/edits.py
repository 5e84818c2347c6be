"""Interventions: what to change, and where.

    with edit(lm, scale_block(2, 0.5), zero_heads(5, [3])):
        changed = trace(lm, prompt)
    # here the model is as it was

An edit is a small immutable value; making one touches no model. `edit` checks every edit against the model before the
first hook is registered, so that nothing is ever half applied. Edits at the same place run in the order given, those of
an outer `with` first. Every factory takes `positions`: None for all tokens, a position, several, or a slice (positions
count columns of the batch from the start of the text, padding included; negative ones count from the end). With a cache
they still count from the start of the text, so that edits of a generated text are those of a pass over the whole of it.
A position that the prompt does not have is only found when the prompt is there: a pass of ours raises PositionOutOfRange,
and in `generate`, where it may still come, the end of the `with` does.

Each edit proves that it happened: helpers/passes.py.

"attention" and "mlp" are what the two parts add to the residual stream. In Gemma 2 and 3 that is their output after the
norm that follows it; in OPT in train mode it is the value before its dropout, which no hook can see.

An edit hangs on the model itself, so it changes every pass of it, those of other threads too; two threads cannot both edit it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from . import errors, passes
from .checks import check_indices, whole_numbers
from .hooks import on_pass, on_site, remove
from .models import LanguageModel, check_model
from .passes import Live, Pass, Waiting
from .sites import site_of

Positions = int | Sequence[int] | slice | None  # of tokens, as the factories take them


@dataclass(frozen=True)
class Edit:
    """One intervention. `change(value, stream)` gives the new value of the whole site; `check(lm)` raises if it cannot.

    given: what it was made from besides its name and place, so that two edits are equal only if they do the same; by
    default nothing is equal to it but itself.
    """

    name: str
    site: str
    block: int
    change: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)
    positions: Positions = field(default=None, hash=False)  # a slice has no hash before Python 3.12
    check: Callable[[LanguageModel], object] = field(default=lambda lm: None, repr=False, compare=False)
    given: object = field(default_factory=object, repr=False, hash=False)
    # Where its value has one row for each of several prompts: how many, and the same edit for some of them.
    prompts: int | None = field(default=None, repr=False, compare=False)
    for_prompts: Callable[[Sequence[int]], Edit] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        where = "" if self.positions is None else f" at positions {self.positions}"
        return self.name + where


class edit:
    """Context manager that applies edits to `lm` and takes them off again, also after an exception or an interrupt.

    `with edit(lm, one, another) as lm:` makes no copy: until the block ends, every pass of `lm.model`, from here or from
    another thread, is edited. Raises a HelpersError at once, before anything is registered, if one of the edits does not
    fit the model, the model is compiled, or another thread has edits on it. A pass in which one of the edits does not
    run exactly once raises DidNotRun; a position that no pass reached raises PositionOutOfRange when the `with` ends.
    """

    def __init__(self, lm: LanguageModel, *edits: Edit) -> None:
        check_model(lm)
        for one in edits:
            if not isinstance(one, Edit):
                raise errors.BadEdit(
                    f"{one!r} is not an edit: pass edits such as scale_block(2, 0.5) or zero_heads(5, [3]), one by one."
                )
            lm.check_block(one.block)
            site_of(lm, one.site)
            one.check(lm)
        self.lm, self.edits = lm, edits
        self.entered: list[Live] = []

    def __enter__(self) -> LanguageModel:
        passes.refuse_compiled(self.lm.model)
        group = Live(self.edits)
        try:
            self.entered.append(group)
            self.lm.live_edits.append(
                group
            )  # first there, then a look around: of two threads, one at least sees the other
            if any(other.thread != group.thread for other in list(self.lm.live_edits)):
                raise errors.BadEdit(
                    "another thread has edits on this model, and both would be edited by both: give each thread its own copy "
                    "(copy.deepcopy(lm)), or wait until the other's `with` has ended."
                )
            group.hung = True
            _register(self.lm, self.lm.live_edits)
            return self.lm
        except BaseException:  # an interrupt in here: Python would not call __exit__
            self._leave(group)
            raise

    def __exit__(self, kind: object = None, *_: object) -> None:
        group = self.entered[-1]
        try:
            self._leave(group)
        except BaseException:  # an interrupt in here: finish, then let it through
            self._leave(group)
            raise
        if kind is None:
            for late in group.waiting.values():
                raise late.error

    def check_ran(self) -> None:
        """For code that calls blocks one by one, inside the `with`: every edit has run since it began. Raises DidNotRun."""
        group = self.entered[-1]
        for one, number in zip(group, group.fired, strict=True):
            if number == 0:
                raise errors.DidNotRun(f"{one!r} did nothing: {passes.why(self.lm, one.site, one.block)}")

    def _leave(self, group: Live) -> None:
        group.on = False
        if group.hung:
            _register(self.lm, [other for other in self.lm.live_edits if other is not group])
        if any(other is group for other in self.lm.live_edits):
            self.lm.live_edits.remove(group)  # last: until the hooks are off, other threads shall see that they are on
        self.entered = [other for other in self.entered if other is not group]


def _register(lm: LanguageModel, groups: list[Live]) -> None:
    """Hang these edits on the model and no others, ahead of every other hook, in their order.

    All are taken off and put on again, since `prepend` would run the newest first; the last one goes on first.
    """
    remove(lm.edit_handles)
    for group in reversed(groups):
        for index in reversed(range(len(group))):
            see = _counted(lm, group, index)
            lm.edit_handles += on_site(lm, group[index].site, group[index].block, see, prepend=True)
    if groups:
        on_pass(lm, lm.edit_handles)
    else:
        lm.passes.pop(get_ident(), None)


def _counted(lm: LanguageModel, group: Live, index: int) -> Callable[[Tensor, Tensor], Tensor | None]:
    """An edit that is live: it counts itself, and knows where in the text the pass begins."""
    one = group[index]
    function = applied(one)

    def see(value: Tensor, stream: Tensor) -> Tensor | None:
        if not group.on:
            return None
        passes.refuse_own_checkpoint()
        group.fired[index] += 1
        now = passes.current(lm)
        if now is None:
            return function(value, stream)
        now.count(group, index)
        if one.positions is None or (now.single and not now.start):
            return function(value, stream)
        columns = _columns_now(one, group, index, now, value.shape[1])
        return function(value, stream, columns) if columns else None

    return see


def applied(one: Edit) -> Callable[..., Tensor]:
    """The edit as a function of a site's whole value, the stream, and the columns to change (by default its positions)."""

    def see(value: Tensor, stream: Tensor, columns: list[int] | None = None) -> Tensor:
        new = one.change(value, stream)
        if not isinstance(new, Tensor):
            raise errors.BadEdit(
                f"{one!r} returned {'None' if new is None else f'a value of type {type(new).__name__}'}: its function must return "
                f"the new tensor, of shape {tuple(value.shape)} here."
            )
        for what in ("shape", "dtype", "device"):
            if getattr(new, what) != getattr(value, what):
                raise errors.BadEdit(
                    f"{one!r} returned a tensor of {what} {_short(getattr(new, what))} in place of {_short(getattr(value, what))}: "
                    f"return one of the same {what}."
                )
        if columns is None and one.positions is None:
            return new
        chosen = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
        chosen[chosen_columns(one.positions, value.shape[1]) if columns is None else columns] = True
        return torch.where(chosen.view(1, -1, *[1] * (value.ndim - 2)), new, value)

    return see


def _short(what: object) -> object:
    return tuple(what) if isinstance(what, torch.Size) else what


def chosen_columns(positions: Positions, length: int) -> list[int]:
    """Which of the `length` positions of a text are meant. Raises PositionOutOfRange."""
    if positions is None or isinstance(positions, slice):
        columns = list(range(length)[positions or slice(None)])
        if not columns:
            raise errors.PositionOutOfRange(
                f"{positions} chooses none of the {length} positions of this prompt: choose from 0 to {length - 1}."
            )
        return columns
    columns = list(whole_numbers(positions, errors.PositionOutOfRange, "position"))
    for p in columns:
        if not -length <= p < length:
            raise errors.PositionOutOfRange(
                f"position {p} does not exist: this prompt has {length} tokens, at positions 0 to {length - 1}; "
                "choose from them, or count from the end with -1, -2, …"
            )
    return [p % length for p in columns]


def _columns_now(one: Edit, group: Live, index: int, now: Pass, length: int) -> list[int]:
    """Which columns of a pass over a part of a text are meant. Positions count from the start of the text.

    What lies ahead may come while text is generated, so it waits; what lies in the cache must have run under this edit.
    Raises PositionOutOfRange.
    """
    end = now.start + length
    if now.start and _from_the_end(one.positions):
        raise errors.PositionOutOfRange(
            f"{one!r} counts from the end of the text, which moves while text is generated with a cache: count from its start, "
            f"for example slice({end}, None) for all that comes after {end} tokens."
        )
    found: list[int] = []
    parts = [one.positions] if isinstance(one.positions, slice) else whole_numbers(one.positions, errors.BadEdit, "")
    for part in parts:
        key = index, None if isinstance(part, slice) else part
        late = group.waiting.get(key)
        if late and not (late.end >= now.start > 0 or (not now.start and end == late.end + 1)):
            raise late.error  # that text is over, and another begins
        try:
            found += chosen_columns(part, end)
            group.waiting.pop(key, None)
        except errors.PositionOutOfRange as error:
            if not _may_come(part, end):
                raise
            group.waiting[key] = Waiting(end, error)
    if any(column < now.start for column in found) and not now.knows(group):
        raise errors.PositionOutOfRange(
            f"{one!r} means tokens that are in the cache already, which was filled without this edit: begin the `with` before "
            f"the first pass of the text, or choose positions from {now.start} on."
        )
    return [column - now.start for column in found if column >= now.start]


def _from_the_end(positions: Positions) -> bool:
    """Whether it depends on the text's length which tokens are meant."""
    if isinstance(positions, slice):
        return min(positions.start or 0, positions.stop or 0, (positions.step or 1) - 1) < 0
    return min(whole_numbers(positions, errors.BadEdit, "")) < 0


def _may_come(part: int | slice, end: int) -> bool:
    """Whether a longer text than one of `end` tokens can have this position."""
    if isinstance(part, slice):
        start, stop = part.start or 0, part.stop
        return start >= end and (part.step or 1) > 0 and (stop is None or stop > start)
    return part >= end


# ---- checks of what the factories are given


def _number(value: object, name: str, least: float = -math.inf) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number with hundreds of digits
        number = math.nan
    if not math.isfinite(number) or number < least:
        allowed = "a finite number" if least == -math.inf else f"a finite number, {least:g} or more"
        raise errors.BadFactor(f"{name} {value!r} cannot be used: give {allowed}, for example 0.5.")
    return number


def _positions(positions: Positions) -> Positions:
    if positions is None:
        return None
    if isinstance(positions, slice):
        try:
            range(1)[positions]
        except (TypeError, ValueError):
            raise errors.PositionOutOfRange(
                f"{positions} cannot be used: give a slice of whole numbers, for example slice(1, None)."
            ) from None
        return positions
    try:
        return whole_numbers(positions, errors.PositionOutOfRange, "position")
    except errors.PositionOutOfRange:
        raise errors.PositionOutOfRange(
            f"positions {positions!r} cannot be used: give None for all, one position, a list of them, or a slice."
        ) from None


def _tensor(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise errors.BadValue(
            f"{name} must be a tensor, but this is a {type(value).__name__}: make one with torch.tensor(...)."
        )
    if value.is_complex() or not torch.isfinite(value).all():
        raise errors.BadValue(f"{name} holds complex numbers, NaN or infinity: every number must be real and finite.")
    # What its owner does to it later must not change the edit; but one that is being learned is used as it is then.
    return value if value.requires_grad else value.detach().clone()


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


def _fits(value: Tensor, like: Tensor, what: str) -> Tensor:
    """`value` in the dtype and on the device of `like`, broadcast to its shape."""
    try:
        return value.to(like).broadcast_to(like.shape)
    except RuntimeError:
        raise errors.BadValue(
            f"{what} has shape {tuple(value.shape)}, which does not fit {tuple(like.shape)} at this place: give that shape, "
            "or one that broadcasts to it."
        ) from None


def _rows_of(value: Tensor, axes: int, make: Callable[[Tensor], Edit]) -> dict[str, Any]:
    """What an Edit says of a value whose first axis, of all its `axes`, has one row for each of several prompts."""
    if value.ndim != axes or len(value) < 2:
        return {}
    return {"prompts": len(value), "for_prompts": lambda numbers: make(value[list(numbers)])}


# ---- the edits


def change(site: str, block: int, function: Callable[[Tensor], Tensor], positions: Positions = None) -> Edit:
    """Any edit of your own: `function(value)` returns the new value of a site, in the same shape, dtype and device.

    site: "block" (batch, pos, d_model), "attention" or "mlp" (what they add to the stream), "heads" (batch, pos, n_heads,
    d_head), "keys" (batch, pos, n_key_heads, d_head), "neurons" or "preactivation" (batch, pos, d_mlp). The function
    gets a copy, so it may also work in place, but it must return the result. Raises BadEdit.
    """
    if not callable(function):
        raise errors.BadEdit(f"change needs a function that takes a tensor and returns one, but this is {function!r}.")
    name = f"change({site!r}, {block!r}, {getattr(function, '__name__', 'function')})"
    return Edit(name, site, block, lambda value, _: function(value.clone()), _positions(positions), given=function)


def _scale(name: str, site: str, block: int, factor: float | Tensor, positions: Positions) -> Edit:
    by = _number(factor, "factor")
    name = f"{name}({block}, {by:g})"
    if isinstance(factor, Tensor) and factor.requires_grad:  # it is being learned: use it as it is in each pass
        learned = factor
        times = lambda value, _: value * learned.to(value).reshape(())  # noqa: E731
        return Edit(name, site, block, times, _positions(positions), given=_Same(factor))
    return Edit(name, site, block, lambda value, _: value * by, _positions(positions), given=by)


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
    return Edit(
        f"skip_block({block})",
        "block",
        block,
        lambda value, stream: stream.clone(),
        _positions(positions),
        given="skip",
    )


def skip_attention(block: int, positions: Positions = None) -> Edit:
    """Attention in `block` adds nothing to the stream, (batch, pos, d_model). `edit` raises BlockOutOfRange."""
    zero = lambda value, _: torch.zeros_like(value)  # noqa: E731
    return Edit(f"skip_attention({block})", "attention", block, zero, _positions(positions), given="skip")


def skip_mlp(block: int, positions: Positions = None) -> Edit:
    """The MLP in `block` adds nothing to the stream, (batch, pos, d_model). `edit` raises BlockOutOfRange."""
    zero = lambda value, _: torch.zeros_like(value)  # noqa: E731
    return Edit(f"skip_mlp({block})", "mlp", block, zero, _positions(positions), given="skip")


def add_to_block(block: int, vector: Tensor, positions: Positions = None) -> Edit:
    """Add a tensor that broadcasts to (batch, pos, d_model), usually one (d_model,) direction, to the stream after `block`.

    The edit keeps a copy; of a vector that requires a gradient, as in learning a steering vector, it uses the vector itself,
    as it is in each pass. Raises BadValue, also in the pass if the shape does not fit.
    """
    vector = _tensor(vector, "the vector")
    return Edit(
        f"add_to_block({block}, {tuple(vector.shape)})", "block", block,
        lambda value, _: value + _fits(vector, value, "the vector"), _positions(positions), given=_Same(vector),
        **_rows_of(vector, 3, lambda some: add_to_block(block, some, positions)),
    )  # fmt: skip


def patch_block(block: int, value: Tensor, positions: Positions = None) -> Edit:
    """Replace the stream after `block` by a tensor that broadcasts to (batch, pos, d_model), for example another run's.

    A copy is kept, or, of a tensor that requires a gradient, the tensor itself. Raises BadValue, also in the pass if the
    shape does not fit.
    """
    given = _tensor(value, "the patch")
    return Edit(
        f"patch_block({block}, {tuple(given.shape)})", "block", block,
        lambda old, _: _fits(given, old, "the patch").clone(), _positions(positions), given=_Same(given),
        **_rows_of(given, 3, lambda some: patch_block(block, some, positions)),
    )  # fmt: skip


def zero_heads(block: int, heads: Sequence[int] | int, positions: Positions = None) -> Edit:
    """Set the outputs of these heads, (batch, pos, n_heads, d_head), to zero, before the output projection mixes them.

    heads: one, or several. Raises HeadOutOfRange (here or in `edit`, which knows the model).
    """
    one = replace_heads(block, heads, torch.zeros(()), positions)
    return replace(one, name=f"zero_heads({block}, {heads})")


def replace_heads(block: int, heads: Sequence[int] | int, value: Tensor, positions: Positions = None) -> Edit:
    """Set the outputs of these heads to `value`, which broadcasts to (batch, pos, len(heads), d_head).

    Zero ablation is a zero, mean ablation the heads' mean over a set of prompts, resample ablation the heads' outputs
    on another prompt (Wang et al. 2022 compare them): see `sweep_heads(..., replacement=...)`. A copy is kept, or, of a tensor
    that requires a gradient, the tensor itself. Raises BadValue, HeadOutOfRange.
    """
    given = _tensor(value, "the replacement")
    listed = list(whole_numbers(heads, errors.HeadOutOfRange, "head"))

    def put(old: Tensor, _: Tensor) -> Tensor:
        new = old.clone()
        new[:, :, listed] = _fits(given, old[:, :, listed], "the replacement")
        return new

    name = f"replace_heads({block}, {heads}, {tuple(given.shape)})"
    check = lambda lm: lm.check_heads(listed)  # noqa: E731
    each = _rows_of(given, 4, lambda some: replace_heads(block, heads, some, positions))
    return Edit(name, "heads", block, put, _positions(positions), check, (tuple(listed), _Same(given)), **each)


def zero_keys(block: int, heads: Sequence[int] | int, positions: Positions = None) -> Edit:
    """Set the keys of these heads to zero: their scores become 0 and they attend evenly over all they may see.

    With grouped-query attention several heads share one key head; `heads` then counts key heads. Raises HeadOutOfRange.
    """
    listed = list(whole_numbers(heads, errors.HeadOutOfRange, "key head"))

    def zero(old: Tensor, _: Tensor) -> Tensor:
        new = old.clone()
        new[:, :, listed] = 0
        return new

    name = f"zero_keys({block}, {heads})"
    check = lambda lm: lm.check_heads(listed, of_keys=True)  # noqa: E731
    return Edit(name, "keys", block, zero, _positions(positions), check, tuple(listed))


def noise_neurons(
    block: int, neurons: Sequence[int] | int | slice, mean: float, std: float, generator: torch.Generator,
    before_activation: bool = False, positions: Positions = None,
) -> Edit:  # fmt: skip
    """Replace MLP neurons by Gaussian noise, after the activation function or before it.

    neurons: indices, or a slice such as slice(0, None, 2). Each pass draws anew from `generator`, so seed it again to
    see the same noise twice. (Zhang & Nanda 2023 explain why noise takes a model off its distribution.)
    Raises BadFactor, BadValue, NeuronOutOfRange.
    """
    mean, std = _number(mean, "mean"), _number(std, "std", least=0.0)
    if not isinstance(generator, torch.Generator):
        raise errors.BadValue(
            f"generator must be a torch.Generator, for example torch.Generator().manual_seed(0), but this is {generator!r}."
        )

    chosen: slice | tuple[int, ...] = (
        neurons if isinstance(neurons, slice) else whole_numbers(neurons, errors.NeuronOutOfRange, "neuron")
    )

    def listed(width: int) -> list[int]:
        if not isinstance(chosen, slice):
            return check_indices(chosen, width, errors.NeuronOutOfRange, "neuron", "each MLP has")
        try:
            found = list(range(width)[chosen])
        except (TypeError, ValueError):
            found = []
        if not found:
            raise errors.NeuronOutOfRange(
                f"{chosen} chooses none of the {width} neurons: choose from 0 to {width - 1}."
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
    return Edit(name, site, block, noise, _positions(positions), check, (chosen, mean, std, generator))
