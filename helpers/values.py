"""Numbers and tensors that edits are given, checked once, where they come in."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from . import errors


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


class Same:
    """A tensor that is equal to another of the same numbers, dtype and device; one that is being learned, only to itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        a, b = self.tensor, other.tensor
        same_kind = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return a is b or (same_kind and not a.requires_grad and not b.requires_grad and torch.equal(a, b))

    __hash__ = None  # type: ignore[assignment]


def fitted(value: Tensor, like: Tensor, what: str) -> Tensor:
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
