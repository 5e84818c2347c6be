"""What a result depends on, as one short text: the weights, the code, and everything that was asked.

    of_model(lm)                 # 64 hexadecimal digits: weights, settings, versions, the code of the helpers
    of_value([edits, measure])   # the same for numbers, tensors, edits, and functions with all that they refer to

Two equal fingerprints mean the same computation; two different ones may still give the same numbers. helpers/told.py says
how far a value is followed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import causes, foreign
from .models import LanguageModel
from .referred import by_name, theirs, theirs_by_file, version_of
from .snapshot import of_process
from .told import Teller, bytes_of, in_order, settings

# Attributes of modules that do not compute: what PyTorch, transformers and accelerate note about loading, saving, training
# and sharing out, and what a pass writes.
_NOTES = (
    "training", "gradient_checkpointing", "name_or_path", "loss_type", "warnings_issued", "all_tied_weights_keys", "_is_torch_compile",
    "hf_device_map", "max_seq_len_cached", "compute_type_is_set", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron",
    "_parameters", "_buffers", "_modules", "_hf_hook", "_old_forward", "forward",
)  # fmt: skip
_NOTES_BEGIN = (
    "_tp_", "_ep_", "_fsdp_", "_pp_", "_keys_", "_keep_in", "_skip_keys", "_no_split", "_is_hf", "_is_full_backward",
    "_non_persistent", "_weight_conversions", "_use_kernels",
)  # fmt: skip
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.Size)
_SMALL = ("fractions", "decimal", "datetime", "collections", "_collections")
_FOLLOWED = (Tensor, nn.Module, FunctionType, MethodType, BuiltinFunctionType, functools.partial, type)


def of_model(lm: LanguageModel) -> str:
    """Of the weights, wherever they are, and of all that computes with them: another version gives another fingerprint.

    Counted too: the numbers and switches that modules keep as plain attributes, and code of your own on the model (a class,
    a `forward`, a function in place of a library's). Reads every weight once. Raises BadValue for weights that are nowhere,
    and for code of your own that cannot be followed.
    """
    causes.refuse_nowhere(lm.model)
    key = hashlib.sha256()
    modules = dict(lm.model.named_modules())
    teller = Teller(key.update, {id(module): name for name, module in modules.items()} | {id(lm): "lm"})
    teller.put(torch.__version__, transformers.__version__, _code(), lm.dtype, repr(lm.parts))
    teller.tell(of_process())
    teller.tell(settings(lm.config))
    read: set[int] = set()
    for name, module in modules.items():
        kind = type(module)
        teller.put(name, f"{kind.__module__}.{kind.__qualname__}")
        if theirs(kind.__module__):
            teller.put(version_of(kind.__module__.partition(".")[0]))
        for own, value in _weights(module):
            teller.put(own, value.dtype, tuple(value.shape), bytes_of(value))
        for own, value in _attributes(module, lm):
            teller.put(own)
            teller.tell(value)
        for own, value in _own_code(kind, read):
            teller.put(own)
            teller.tell(value)
    teller.tell(foreign.attention_functions(lm.config._attn_implementation))
    return key.hexdigest()


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers; what accelerate offloaded is brought for the moment."""
    bring: Any = nullcontext()
    if hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        bring = align_module_device(module, "cpu")
    with bring:
        yield from (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))


def _attributes(module: nn.Module, lm: LanguageModel) -> Iterator[tuple[str, Any]]:
    """What a module computes with besides its weights, of names and kinds that another process makes again."""
    for name, value in sorted(vars(module).items()):
        if name in _NOTES or name.startswith(_NOTES_BEGIN) or (name.startswith("_") and "hooks" in name):
            continue
        if isinstance(value, PretrainedConfig):
            if value is not lm.config:
                yield name, settings(value)
        elif _counts(value):
            yield name, in_order(value)
    # A forward that somebody put on this one module; accelerate's, which moves weights only, is none.
    own = vars(module).get("_old_forward" if hasattr(module, "_hf_hook") else "forward")
    if own is not None and getattr(own, "__func__", None) is not type(module).forward:
        yield "forward", own


def _counts(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic) or type(value).__module__ in _SMALL:
        return True
    if isinstance(value, dict):
        return all(_counts(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(_counts(one) for one in value)
    if isinstance(value, (*_PLAIN, *_FOLLOWED)):
        return True
    return not theirs(type(value).__module__)  # the user's own: followed, or refused


def _own_code(kind: type, read: set[int]) -> Iterator[tuple[str, Any]]:
    """A class that no library wrote; in one that a library wrote and in its file, what somebody put in the place of its own."""
    for base in kind.__mro__:
        if id(base) in read:
            continue
        read.add(id(base))
        if not theirs(base.__module__):
            yield base.__qualname__, base
            continue
        module = sys.modules.get(base.__module__)
        spaces = [base] if module is None or id(module) in read else [base, module]
        for space in (*spaces, *(one for one in (torch, nn.functional) if id(one) not in read)):
            read.add(id(space))
            for name, value in sorted(vars(space).items()):
                yield from _put_there(space, name, value)


def _put_there(space: Any, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A function that no library wrote, in a library's class or file.

    Of a library's in the place of another it is not told: libraries put theirs on torch's classes in use, other ones in each
    process, so no worker would have the same key.
    """
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if isinstance(value, FunctionType) and not theirs_by_file(value):
        yield f"{space.__name__}.{name}", value


@functools.cache
def _code() -> str:
    """Of the helpers' own modules, comments left out."""
    key = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        key.update(ast.dump(ast.parse(file.read_text(encoding="utf-8"))).encode())
    return key.hexdigest()


def of_value(value: object) -> str:
    """Of numbers, texts, tensors, edits, measures, functions, objects of your own classes, and lists or dicts of them.

    A function counts by its code, its defaults, and the values that it refers to, through your own modules and classes;
    functions of installed packages by their names and the packages' versions. Raises BadValue for another type.
    """
    key = hashlib.sha256()
    Teller(key.update).tell(value)
    return key.hexdigest()


def names_in(value: object) -> tuple[str, ...]:
    """What a value refers to in modules of the user's own, as "module:name": another process imports these from their files."""
    teller = Teller(lambda part: None)
    teller.tell(value)
    return tuple(sorted(teller.names))


def of_names(names: Sequence[str]) -> str:
    """Of what stands under these names in this process. Raises ImportError."""
    parts = [name.split(":") for name in names]
    for module, _ in parts:
        importlib.import_module(module)
    return of_value([by_name(module, name) for module, name in parts])
