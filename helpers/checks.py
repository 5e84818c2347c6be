"""Numbers, indices and tensors as people give them, checked once, where they come in."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

from . import errors
from .say import say, translatable


def kind_of(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if len(repr(value)) < 60 else f"a {type(value).__name__}"


def whole(value: object) -> int | None:
    """The int that a whole number stands for, NumPy's and PyTorch's included; None for anything else, bools too."""
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


# One and many: another language may not form the second from the first.
_MANY = {
    translatable("head"): translatable("heads"),
    translatable("key head"): translatable("key heads"),
    translatable("neuron"): translatable("neurons"),
    translatable("position"): translatable("positions"),
    translatable("token"): translatable("tokens"),
}


def _said(name: str) -> tuple[str, str]:
    """A name as it is said of one and of many."""
    return say(name), say(_MANY.get(name, f"{name}s"))


def whole_numbers(values: object, kind: type[errors.HelpersError], name: str) -> tuple[int, ...]:
    """Whole numbers from a single one or several. Raises `kind`."""
    single = whole(values)
    given = [values] if single is not None else list(values) if isinstance(values, Iterable) else []
    found = [whole(value) for value in given]
    if not found or None in found:
        raise kind(
            say(
                "{values!r} does not name {names}: give whole numbers, counted from 0, for example 3 or [0, 3].",
                values=values,
                names=_said(name)[1],
            )
        )
    return tuple(value for value in found if value is not None)


def check_indices(
    values: Sequence[int] | int, number: int, kind: type[errors.HelpersError], name: str, owner: str
) -> list[int]:
    """A list of indices in 0 … number − 1, without repeats; a single index counts as a list of one."""
    found = list(whole_numbers(values, kind, name))
    for value in found:
        if not 0 <= value < number:
            raise kind(
                say(
                    "{name} {value} does not exist: {owner} {names} 0 to {last}; choose from them.",
                    name=_said(name)[0],
                    value=value,
                    owner=say(owner),
                    names=_said(name)[1],
                    last=number - 1,
                )
            )
    if len(set(found)) < len(found):
        raise kind(
            say("{names} {found} name one more than once: give each only once.", names=_said(name)[1], found=found)
        )
    return found


def real_number(value: object, name: str, least: float = -math.inf) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number with hundreds of digits
        number = math.nan
    if not math.isfinite(number) or number < least:
        allowed = "a finite number" if least == -math.inf else f"a finite number, {least:g} or more"
        raise errors.BadFactor(
            "{name} {value!r} cannot be used: give {allowed}, for example 0.5.", name=name, value=value, allowed=allowed
        )
    return number


def finite_tensor(value: object, name: str) -> Tensor:
    """A copy of a tensor of real, finite numbers; the tensor itself if it requires a gradient. Raises BadValue."""
    if not isinstance(value, Tensor):
        raise errors.BadValue(
            "{name} must be a tensor, but this is a {kind}: make one with torch.tensor(...).",
            name=name,
            kind=type(value).__name__,
        )
    if value.is_complex() or not torch.isfinite(value).all():
        raise errors.BadValue(
            "{name} holds complex numbers, NaN or infinity: every number must be real and finite.", name=name
        )
    # What its owner does to it later must not change the edit; but one that is being learned is used as it is then.
    return value if value.requires_grad else value.detach().clone()


def wide(values: Tensor) -> Tensor:
    """The same numbers, in 32 bits where they are stored in 16. Raises BadValue for what is no tensor."""
    if not isinstance(values, Tensor):
        raise errors.BadValue(
            "expected a tensor, but this is a {kind}: pass for example trace(...).resid.", kind=type(values).__name__
        )
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
