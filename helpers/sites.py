"""Where the sites of a block are, and how the value there is seen and put back.

A site is the input or the output of one module of the block. What a module passes on is rarely what one wants to look at:
heads lie side by side in one axis, keys between queries and values, and some MLPs work on (batch × pos, width). `site_of`
answers from the family's row in helpers/families.py, by what the row says and never by the family's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from . import errors
from .models import LanguageModel

SITES = ("block", "attention", "mlp", "heads", "keys", "neurons", "preactivation")


@dataclass(frozen=True)
class Site:
    """One place in every block. view(passed on) is the value as people see it; back(value, passed on) puts a new one there."""

    path: str  # of the module, relative to its block; "" is the block itself
    side: Literal["input", "output"]
    view: Callable[[Tensor], Tensor] = lambda passed: passed
    back: Callable[[Tensor, Tensor], Tensor] = lambda value, passed: value
    flat: bool = False  # the module passes on (batch × pos, width): hooks.on_site gives the two axes back


def check_site(site: object) -> None:
    """Raises BadEdit unless blocks have such a site."""
    if site not in SITES:
        raise errors.BadEdit(f"there is no site {site!r} in a block: choose one of {', '.join(SITES)}.")


def site_of(lm: LanguageModel, site: str) -> Site:
    """Where `site` is in the blocks of this model. Raises BadEdit."""
    check_site(site)
    parts = lm.parts
    if site == "block":
        return Site("", "output")
    if site == "attention":
        return Site(parts.attention_delta, "output")
    if site == "mlp":
        return Site(parts.mlp_delta, "output", flat=parts.flat_mlp)
    if site == "heads":
        return Site(parts.heads_out, "input", lambda v: v.unflatten(-1, (lm.n_heads, lm.d_head)), _side_by_side)
    if site == "keys":
        return Site(parts.keys, "output", *_keys(lm))
    if site == "neurons":
        return Site(parts.neurons_out, "input", flat=parts.flat_mlp)
    return Site(parts.preactivation, "output", flat=parts.flat_mlp)


def _side_by_side(value: Tensor, _: Tensor) -> Tensor:
    return value.flatten(-2)


def _keys(lm: LanguageModel) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """How to see the keys, (batch, pos, n_key_heads, d_head), in their projection's output, and how to put them back."""
    layout, number, width = lm.parts.keys_layout, lm.n_key_heads, lm.d_head
    if layout == "alone":
        return lambda v: v.unflatten(-1, (number, width)), _side_by_side
    if layout == "q|k|v":

        def put(new: Tensor, v: Tensor) -> Tensor:
            parts = v.unflatten(-1, (3, number, width)).clone()
            parts[..., 1, :, :] = new
            return parts.flatten(-3)

        return lambda v: v.unflatten(-1, (3, number, width))[..., 1, :, :], put

    def put_per_head(new: Tensor, v: Tensor) -> Tensor:
        parts = v.unflatten(-1, (number, 3, width)).clone()
        parts[..., 1, :] = new
        return parts.flatten(-3)

    return lambda v: v.unflatten(-1, (number, 3, width))[..., 1, :], put_per_head
