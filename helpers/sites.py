"""Where the sites of a block are, and how the value there is seen and put back.

A site is the input or the output of one module of the block. What a module passes on is rarely what one wants to look at:
heads lie side by side in one axis, keys between queries and values, and some MLPs work on (batch × pos, width). `site_of`
answers from the family's row in helpers/families.py, by what the row says and never by the family's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

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
        raise errors.BadEdit(
            "there is no site {site!r} in a block: choose one of {sites}.", site=site, sites=", ".join(SITES)
        )


def site_of(lm: LanguageModel, site: str, block: int = 0) -> Site:
    """Where `site` is in the blocks of this model. Raises BadEdit, also for a site that the model's family does not have.

    block: whose value is viewed and put back, since blocks may multiply their deltas by numbers of their own.
    """
    check_site(site)
    parts = lm.parts
    lacking = parts.lacks(site)
    if lacking is not None:
        raise errors.BadEdit(
            "{family} models have no site {site!r}: {lacking}.", family=lm.family, site=site, lacking=lacking
        )
    path = parts.module_of(site)
    if site in ("attention", "mlp"):
        return Site(path, "output", *_scaled(lm, block), flat=site == "mlp" and parts.flat_mlp)
    if site == "heads":
        return Site(path, "input", lambda v: v.unflatten(-1, (lm.n_heads, lm.d_head)), _side_by_side)
    if site == "keys":
        return Site(path, "output", *_keys(lm))
    if site == "neurons":
        return Site(path, "input", flat=parts.flat_mlp)
    if site == "preactivation" and parts.preactivation_layout == "gate|up":
        return Site(path, "output", _first_half, _with_first_half, flat=parts.flat_mlp)
    return Site(path, "output", flat=site == "preactivation" and parts.flat_mlp)


View = Callable[[Tensor], Tensor]
Back = Callable[[Tensor, Tensor], Tensor]


def _side_by_side(value: Tensor, _: Tensor) -> Tensor:
    return value.flatten(-2)


def _scaled(lm: LanguageModel, block: int) -> tuple[View, Back]:
    """A delta that the block multiplies on its way into the stream: people see what the stream gets."""
    if not lm.parts.delta_factor:
        return lambda passed: passed, lambda value, _: value
    # Asked for each time: it is an attribute of the block, which may change.
    return lambda passed: passed * lm.delta_factor(block), lambda value, _: value / lm.delta_factor(block)


def _first_half(passed: Tensor) -> Tensor:
    return passed.chunk(2, dim=-1)[0]


def _with_first_half(value: Tensor, passed: Tensor) -> Tensor:
    return torch.cat([value, passed.chunk(2, dim=-1)[1]], dim=-1)


def _keys(lm: LanguageModel) -> tuple[View, Back]:
    """How to see the keys, (batch, pos, n_key_heads, d_head), in their projection's output, and how to put them back."""
    number, width = lm.n_key_heads, lm.d_head
    if lm.parts.keys_layout == "alone":
        return lambda v: v.unflatten(-1, (number, width)), _side_by_side
    if lm.parts.keys_layout == "q|k|v":
        mine = slice(lm.n_heads * width, (lm.n_heads + number) * width)

        def put(new: Tensor, v: Tensor) -> Tensor:
            v = v.clone()
            v[..., mine] = new.flatten(-2)
            return v

        return lambda v: v[..., mine].unflatten(-1, (number, width)), put

    served = lm.n_heads // number  # for each key head: the queries that it serves, its key, its value

    def put_by_key_head(new: Tensor, v: Tensor) -> Tensor:
        parts = v.unflatten(-1, (number, served + 2, width)).clone()
        parts[..., -2, :] = new
        return parts.flatten(-3)

    return lambda v: v.unflatten(-1, (number, served + 2, width))[..., -2, :], put_by_key_head


def hides_deltas(lm: LanguageModel) -> bool:
    """Whether dropout hides what is added to the stream now, so that it only shows as a difference of the stream itself.

    Raises BadValue in train mode where even that cannot be: attention's and the MLP's deltas are dropped out together.
    """
    name = lm.parts.hidden_dropout
    # Not lm.model.training: somebody may train some blocks alone.
    if not (name and any(one.training for block in lm.blocks for one in block.modules())):
        return False
    # Blocks keep the number from when they were made, as a copy or in a module that both deltas go through.
    copies = [lm.setting(name, block) for block in lm.blocks]
    modules = [one.p for block in lm.blocks for one in block.children() if isinstance(one, nn.Dropout)]
    value = max((found for found in (lm.setting(name), *copies, *modules) if found), default=0)
    if value and not lm.parts.before_mlp:
        raise errors.BadValue(
            "in train mode the blocks of {family} models drop out the deltas where no hook sees it "
            "({setting}={value}), and attention and MLP side by side, so that what each adds to the stream "
            "cannot be told apart: call lm.model.eval() first.",
            family=lm.family,
            setting=name,
            value=value,
        )
    return bool(value)
