"""Code on a model that comes from no library: what the helpers cannot look into, and can only see is there.

A hook of the user's own, a `forward` that was replaced on one module, a module of a class of one's own, a hook on all
modules (`register_module_forward_hook`), a mode (`with TorchFunctionMode`), a function in the place of a library's: on a
module, in its class, in the file of that class, in torch.nn.functional, or registered as a kind of attention. Such code may do
anything, so a sweep gives it one row at a time, and a Replay keeps nothing (but does not look into torch.nn.functional);
print(lm) names the hooks and the forwards.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.overrides import _get_current_function_mode_stack  # not public, as the next
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
_KNOWN = (*LIBRARIES, __package__)  # exact.py has modules, too
# Whose functions a library's file may hold: its own, Python's, and those of what it is built on.
_BUILT_ON = (
    "builtins", "einops", "flash_attn", "huggingface_hub", "kernels", "numpy", "safetensors", "triton", "typing_extensions",
)  # fmt: skip
_WRITERS = frozenset({*_KNOWN, *_BUILT_ON, *sys.stdlib_module_names})
# What a function may be wrapped in, and where it is there.
_INSIDE = {
    property: "fget", functools.cached_property: "func", functools.partial: "func", functools.partialmethod: "func",
    staticmethod: "__func__", classmethod: "__func__", types.MethodType: "__func__",
}  # fmt: skip


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
    return [hook for table in tables for hook in table.values() if not of_a_library(hook)]


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


def modules_of_ones_own(model: nn.Module) -> set[int]:
    """Ids of the modules whose class, `forward`, methods or kind of attention no library wrote; hooks aside."""
    modules = list(model.modules())
    kinds = {type(module) for module in modules}
    own = {kind for kind in kinds if not of_a_library(kind) or any(map(own_function, computes_with(kind)))}
    attentions = {kind for kind in map(attention_of, modules) if any(map(own_function, attention_functions(kind)))}
    return {
        id(one)
        for one in modules
        if type(one) in own or attention_of(one) in attentions or own_forward(one) or own_method(one)
    }


def runs_everywhere(config: Any) -> bool:
    """Whether code that no library wrote runs in all modules, or as the model's kind of attention."""
    attention = attention_functions(config._attn_implementation)
    return bool(hooks_on_all_modules() or own_modes()) or any(map(own_function, attention))


def own_modes() -> list[Any]:
    """The modes that are on and no library's own: each sees, and may change, all that torch computes."""
    modes = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
    return [mode for mode in modes if not of_a_library(type(mode))]


def attention_of(module: nn.Module) -> str | None:
    """The kind of attention that the config of this one module names: a block's may be another than the model's."""
    return getattr(vars(module).get("config"), "_attn_implementation", None)


def computes_with(kind: type[nn.Module]) -> list[Any]:
    """What a class has, its bases too, and what the file that it was written in holds."""
    found = [value for base in kind.__mro__ if issubclass(base, nn.Module) for value in list(vars(base).values())]
    around = sys.modules.get(kind.__module__)
    return found + list(vars(around).values() if around else ())


def own_method(module: nn.Module) -> bool:
    """A function that somebody put on this one module, in a method's place."""
    return any(map(own_function, list(vars(module).values())))


def attention_functions(kind: str | None) -> list[Any]:
    """What was registered under the name of a kind of attention: the function, and the one that makes its mask."""
    # Two seconds to import, which whoever has a model has spent.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return [table.get(kind) for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]


def own_function(value: Any) -> bool:
    """Whether somebody else than a library wrote it, or what it wraps: said by its name, which functools.wraps lends, and by its
    own globals.
    """
    while inside := _INSIDE.get(type(value)):
        value = getattr(value, inside)
    if isinstance(value, type) or not callable(value):
        return False
    names = {getattr(value, "__module__", None), getattr(value, "__globals__", {}).get("__name__")} - {None}
    if any(str(name).partition(".")[0] not in _WRITERS for name in names):
        return True
    # torch.no_grad() and its like give what they wrap the name that it has, and globals of their own.
    wrapped = getattr(value, "__dict__", {}).get("__wrapped__")
    return wrapped is not None and own_function(wrapped)


def of_a_library(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in _KNOWN
