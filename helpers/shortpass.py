"""The short pass that a model is certified by: three prompts of three tokens, and everything that shows on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import errors, hooks
from .causes import several_dtypes
from .models import LanguageModel, Tokens
from .say import say

TRIED = 4  # blocks whose parts also run alone, spread from the first to the last
SIZE = 3  # prompts, and tokens of each: rolled by 0, 1 and 2, each of three tokens is once the first and once the last


@dataclass
class Seen:
    """What one pass showed, by name and block: tensors of (prompts, pos, …) in the model's dtype."""

    at: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: dict[str, list[tuple[tuple, dict[str, Any]]]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def keep(self, name: str) -> Callable[..., None]:
        return hooks.only_here(lambda value, _=None: self.at.setdefault(name, []).append(value.detach().clone()))

    def call(self, name: str) -> Callable[[tuple, dict], None]:
        return lambda args, kwargs: self.calls.setdefault(name, []).append((args, kwargs))

    def stacked(self, name: str) -> Tensor:
        """(n_blocks, prompts, pos, width) in float64 on the CPU."""
        found = [value.reshape(SIZE, SIZE, -1).cpu().double() for value in self.at[name]]
        return torch.stack(found)


def tried_blocks(lm: LanguageModel) -> list[int]:
    return sorted({round(k * (lm.n_blocks - 1) / (TRIED - 1)) for k in range(TRIED)})


def short_pass(lm: LanguageModel) -> Seen:
    step = max(1, lm.vocabulary // 11)
    # Row 1 differs from row 0 in the last token alone: what is equal in both comes from a causal model.
    ids = torch.tensor([[1, 2, 3], [1, 2, 4], [5, 6, 7]]).mul(step).add(1).remainder(lm.vocabulary)
    parts, seen, handles = lm.parts, Seen(), []
    through = {"heads": (parts.heads_out, parts.attention_delta), "neurons": (parts.neurons_out, parts.mlp_delta)}
    try:
        for block, module in enumerate(lm.blocks):
            handles.append(hooks.on_input(module, seen.keep("entered")))
            handles.append(hooks.on_output(module, seen.keep("left")))
            for site in ("attention", "mlp"):
                handles += hooks.on_site(lm, site, block, seen.keep(site))
        for block in tried_blocks(lm):
            handles += hooks.on_site(lm, "heads", block, seen.keep("heads"))
            handles.append(hooks.on_call(lm.part(block, parts.attention), seen.call("attention")))
            for name, (projection, delta) in through.items():
                if projection:
                    handles.append(hooks.on_output(lm.part(block, projection), seen.keep(f"{name} projected")))
                    last = delta in (parts.attention, parts.mlp, projection)  # else a norm or dropout that follows
                    see = seen.keep(f"{name} delta")
                    handles.append((hooks.on_output if last else hooks.on_input)(lm.part(block, delta), see))
        handles.append(hooks.on_call(lm.part(0, ""), seen.call("block 0")))
        handles.append(hooks.on_input(lm.final_norm, seen.keep("last")))
        inputs = lm.inputs(Tokens(ids.to(lm.device), torch.ones_like(ids, dtype=torch.bool)))
        # Not even if the config asks for them: transformers would install recorders that stay.
        found = lm.model(**inputs, output_hidden_states=False, output_attentions=False)
        seen.logits = found.logits.cpu().double()
    except errors.HelpersError:
        raise
    except Exception as error:
        raise errors.UnsupportedFamily(
            "this {family!r} model cannot run a pass of {size} prompts of {size} tokens ({error_kind}: "
            "{error}). {way_out}",
            family=lm.family,
            size=SIZE,
            error_kind=type(error).__name__,
            error=str(error).splitlines()[0] if str(error) else say("no message"),
            way_out=several_dtypes(lm.model) or say("Mend that first, or give a model that can."),
        ) from error
    finally:
        hooks.remove(handles)
    return seen


def run_alone(
    lm: LanguageModel, module: nn.Module, block: int, call: tuple[tuple, dict], site: str, edit: tuple[str, Callable]
) -> Tensor:
    """The value at a site when a part of the model runs by itself, on the first prompt rolled, with an edit."""
    args, kwargs = call
    stream = hooks.entering(args, kwargs)[0]
    rolled = torch.stack([stream.roll(-shift, dims=0) for shift in range(SIZE)])
    # Without a cache: a filled one would show the old keys. Masks and positions are the same for every prompt.
    named = {name: None if hasattr(value, "get_seq_length") else value for name, value in kwargs.items()}
    given = (rolled, *args[1:]) if args else ()
    named = named if args else {**named, "hidden_states": rolled}
    found: list[Tensor] = []
    handles: list[RemovableHandle] = []
    try:
        handles += hooks.on_site(lm, edit[0], block, hooks.only_here(edit[1]), prepend=True)
        keep = hooks.only_here(lambda value, _: found.append(value.detach().cpu().double()))
        handles += hooks.on_site(lm, site, block, keep)
        module(*given, **named)
    finally:
        hooks.remove(handles)
    return found[0]
