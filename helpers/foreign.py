"""Code on a model that comes from no library: what the helpers cannot look into, and can only see is there.

A hook of the user's own, a `forward` that was replaced on one module, a module of a class of one's own, a hook on all
modules (`register_module_forward_hook`). Such code may do anything, so a sweep gives it one row at a time; print(lm) names
all but the classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def has_other_hooks(module: nn.Module, ours: set[int]) -> bool:
    """Besides `ours`, by their handles' ids, and those that only look: transformers' recorders, and the marks of a pass."""
    hooks = (*module._forward_hooks.items(), *module._forward_pre_hooks.items())
    return any(
        key not in ours
        and not hasattr(hook, "only_looks")
        and not str(getattr(hook, "__module__", "")).startswith("transformers.")
        for key, hook in hooks
    )


def hooks_on_all_modules() -> list[Any]:
    """Hooks of `register_module_forward_hook` and its like; PyTorch's own counters hang there too, and only look."""
    tables = (
        getattr(nn.modules.module, name, {})  # not public: they may go
        for name in ("_global_forward_pre_hooks", "_global_forward_hooks")
    )
    return [hook for table in tables for hook in table.values() if not _of_a_library(hook)]


def own_forward(module: nn.Module) -> bool:
    """A `forward` that somebody put on this one module; accelerate does so too, to move weights and nothing else."""
    return "forward" in vars(module) and "_hf_hook" not in vars(module)


def named(model: nn.Module, hooked: Iterable[str]) -> str:
    """What print(lm) says of such code, "" if there is none. hooked: names of the modules with hooks of others."""
    replaced = [name for name, module in model.named_modules() if own_forward(module)]
    everywhere = [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks_on_all_modules()]
    kinds = {"hooks of others": hooked, "forward replaced on": replaced, "hooks on all modules": everywhere}
    found = {kind: [name or "the model" for name in names] for kind, names in kinds.items()}
    return "".join(
        f"; {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" for kind, names in found.items() if names
    )


def own_class(module: nn.Module) -> bool:
    """A module of a class that no library wrote, or whose class got another `forward` than the library's."""
    return not (_of_a_library(type(module)) and _of_a_library(type(module).forward))


def _of_a_library(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in LIBRARIES
