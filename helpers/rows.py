"""Where the rows of a batch must run alone, in a sweep that would run many copies of a prompt together.

A library's models never let one row look at another. Code of the user's own may (helpers/foreign.py finds it), an edit that is
live may, and weights of 8 bits take their scale from the whole batch: there each row runs alone, as in the plain loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from . import foreign
from .layout import module_at
from .models import LanguageModel


@dataclass(frozen=True)
class Alone:
    """Where rows must run alone: inside which blocks, in the read-out, and anywhere at all."""

    blocks: list[bool]
    read_out: bool
    anywhere: bool


def where_rows_run_alone(lm: LanguageModel) -> Alone:
    strange = foreign.modules_of_ones_own(lm.model) | {id(module) for module in lm.hooks_of_others.values()}
    strange |= {id(module) for module in lm.model.modules() if _scales_by_the_batch(module)}
    everywhere = foreign.runs_everywhere(lm.config) or any(map(foreign.own_function, list(vars(functional).values())))
    *blocks, anywhere = [
        everywhere or any(id(one) in strange for one in module.modules()) for module in (*lm.blocks, lm.model)
    ]
    read_out = [lm.final_norm, lm.unembed, *_after_norm(lm)]
    reads = everywhere or any(id(one) in strange for module in read_out for one in module.modules())
    # `with`s of this thread alone: beside those of another a sweep is refused. Private ones are other sweeps' own.
    live = {one.block for group in list(lm.live_edits) if not group.private for one in group}
    blocks = [mixes or index in live for index, mixes in enumerate(blocks)]
    return Alone(blocks, reads, anywhere or any(blocks))


def _after_norm(lm: LanguageModel) -> list[nn.Module]:
    """What stands between the final norm and the unembedding, where a model has that."""
    try:
        return [module_at(lm.parts.after_norm, lm.model)] if lm.parts.after_norm else []
    except AttributeError:
        return []


def _scales_by_the_batch(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ or any(map(_odd, module.parameters(recurse=False)))


def _odd(weight: Tensor) -> bool:
    """No plain floating-point weight. Those of 4 bits are made plain before they are used, whatever the batch."""
    if type(weight).__name__ == "Params4bit":
        return False
    return type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point() or weight.itemsize < 2
