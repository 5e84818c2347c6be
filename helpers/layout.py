"""Whether a model's parts lie where the row of its family says, and where they lie inside PEFT's wrapper."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from . import errors
from .families import Family
from .say import say

if TYPE_CHECKING:
    from .models import LanguageModel


def module_at(path: str, module: nn.Module) -> Any:
    """A module inside another, by its path; `get_submodule` in a tenth of its time, since an edit looks many up.

    Raises AttributeError.
    """
    found: Any = module
    for step in path.split(".") if path else ():
        inner = getattr(found, "_modules", {}).get(step)
        found = getattr(found, step) if inner is None else inner
    if not isinstance(found, nn.Module):
        raise AttributeError(f"{path} is no module")
    return found


def check_parts(lm: LanguageModel) -> int:
    """Every path of every block is there, and its shapes fit; returns the number of key heads. Raises UnsupportedFamily.

    AttributeError, IndexError or TypeError: a path leads nowhere.
    """
    if lm.unembed is None:
        raise AttributeError(say("no output embeddings"))
    _ = lm.final_norm, lm.blocks[0]
    found = 0
    for index in range(lm.n_blocks):
        for path in lm.parts.paths.values():
            lm.part(index, path)
        if lm.parts.sinks:
            getattr(lm.part(index, lm.parts.attention), lm.parts.sinks)
        width = features(lm.part(index, lm.parts.heads_out), 0)
        if width != lm.n_heads * lm.d_head:
            raise errors.UnsupportedFamily(
                "block {index}: the output projection reads {width} numbers per token, but {n_heads} heads of "
                "{d_head} make {expected}; this model's heads are laid out in another way.",
                index=index,
                width=width,
                n_heads=lm.n_heads,
                d_head=lm.d_head,
                expected=lm.n_heads * lm.d_head,
            )
        outputs = features(lm.part(index, lm.parts.keys), 1)
        queries = 0 if lm.parts.keys_layout == "alone" else lm.n_heads
        number, rest = divmod(outputs - queries * lm.d_head, lm.d_head * (2 if queries else 1))
        found = found or number
        if rest or number < 1 or lm.n_heads % number or number != found:
            raise errors.UnsupportedFamily(
                "block {index}: the keys' module writes {outputs} numbers per token, which is no fitting number "
                "of key heads of {d_head} for {n_heads} heads; this model's keys are laid out in another way.",
                index=index,
                outputs=outputs,
                d_head=lm.d_head,
                n_heads=lm.n_heads,
            )
    return found


def inside_peft(model: Any, parts: Family) -> Family:
    """The row for the same model inside PEFT's wrapper. Raises UnsupportedFamily."""
    inner = model.get_base_model()
    path = next((name for name, module in model.named_modules() if module is inner), None)
    config = getattr(model, "active_peft_config", None)
    if path is None or getattr(config, "is_prompt_learning", False):
        raise errors.UnsupportedFamily(
            "this PEFT model ({kind}) puts tokens or keys of its own in front of the prompt, so its "
            "positions are not the prompt's: wrap the model inside, model.get_base_model(), or use adapters "
            "such as LoRA.",
            kind=type(config).__name__,
        )
    after = f"{path}.{parts.after_norm}" if parts.after_norm else ""
    return replace(parts, blocks=f"{path}.{parts.blocks}", final_norm=f"{path}.{parts.final_norm}", after_norm=after)


def longrope_limit(config: Any) -> int | None:
    """Up to how many tokens the rotary positions are those of short prompts, in a model with "longrope"; None in others.

    A pass takes all prompts of a batch by the longest one of them.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (given, *given.values()):  # some have one for each kind of layer
        if isinstance(one, dict) and "longrope" in (one.get("rope_type"), one.get("type")):
            found = one.get("original_max_position_embeddings")
            return found or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    return None


def features(module: Any, side: int) -> int:
    """Numbers per token that a projection reads (side 0) or writes (side 1); of a norm, both are its width.

    Raises UnsupportedFamily for a module that does not say so: of a bare matrix it cannot be told which side is which.
    """
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.in_features, module.out_features)[side]
    weight = getattr(module, "weight", None)
    if weight is None or (weight.ndim > 1 and type(module).__name__ != "Conv1D"):  # transformers' has (in, out)
        raise errors.UnsupportedFamily(
            "a {kind} in this model does not say how many numbers it reads and writes: give it in_features and out_features, "
            "as nn.Linear has them, or subclass nn.Linear.",
            kind=type(module).__name__,
        )
    return weight.shape[side if weight.ndim > 1 else 0]
