"""How alike two states of the stream are, value by value: Pearson's r, and what it owes to a few large values.

    before, after = clean.resid[10], clean.resid[11]
    correlation(before, after)                       # over all values
    keep = within_percentile(before, after, 99)      # True for the 99 % that are no outliers
    correlation(before[keep], after[keep])

States are (batch, pos, d_model), as in `Trace.resid[l]`. Pure functions that know no model. What is stored
in 16 bits is computed in 32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import errors
from .checks import wide


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r over all values of two tensors of the same shape, −1 to 1; NaN if one of them is constant.

    Raises BadValue for fewer than two values.
    """
    a, b = (state.flatten() for state in _pair(a, b))
    if _constant(a) or _constant(b):
        return math.nan  # not what rounding of the mean makes of it
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def correlation_per_dimension(a: Tensor, b: Tensor) -> Tensor:
    """(d_model,) Pearson's r of each coordinate over all tokens of (batch, pos, d_model). What all tokens share drops out.

    NaN where a coordinate is constant. Raises BadValue for fewer than three tokens: with two, r is always 1 or −1.
    """
    a, b = (state.flatten(0, -2) for state in _pair(a, b))
    if len(a) < 3:
        raise errors.BadValue(
            "r per dimension needs three tokens or more, but there are {n_tokens}: use a longer prompt.",
            n_tokens=len(a),
        )
    none = _constant(a) | _constant(b)
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return ((a * b).sum(dim=0) / (a.norm(dim=0) * b.norm(dim=0))).masked_fill(none, math.nan)


def within_percentile(a: Tensor, b: Tensor, percentile: float) -> Tensor:
    """Mask in the shape of `a`: True where neither |a| nor |b| is among the largest (100 − percentile) % of values.

    One mask for both, cut at the percentile of max(|a|, |b|), so that pairs stay together. 100 keeps everything.
    Raises BadValue.
    """
    a, b = _pair(a, b)
    if not 0 < percentile <= 100:
        raise errors.BadValue(
            "percentile {percentile} cannot be used: choose a number above 0, up to 100, such as 99.",
            percentile=percentile,
        )
    size = torch.maximum(a.abs(), b.abs())
    return size <= torch.quantile(size.flatten(), percentile / 100)


def random_step_correlation(a: Tensor, b: Tensor) -> float:
    """The r to be expected between `a` and `a` plus a random step: for each token a random vector, as long as that of b − a.

    Over all values, or those of some tokens, r = 1 / sqrt(1 + mean(step²) / var(a)): a matter of lengths alone. It
    does not hold for values chosen within a token, as by `within_percentile`: the block's own step may lie in the values that are
    left out, a random one lies in all. NaN if a is constant. Raises BadValue.
    """
    a, b = _pair(a, b)
    return math.nan if _constant(a.flatten()) else float((1 + (b - a).pow(2).mean() / a.var()) ** -0.5)


def _constant(values: Tensor) -> Tensor:
    """Along the first axis."""
    return (values == values[0]).all(dim=0)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = wide(a), wide(b)
    if a.shape != b.shape:
        raise errors.BadValue(
            "the two states differ in shape, {a_shape} and {b_shape}.", a_shape=tuple(a.shape), b_shape=tuple(b.shape)
        )
    if a.numel() < 2:
        raise errors.BadValue(
            "two values or more are needed, but there is {n_values}: pass for example trace(...).resid[3].",
            n_values=a.numel(),
        )
    return a, b
