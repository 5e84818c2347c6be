"""What a result depends on, as one short text: the weights, the code, and everything that was asked.

    of_model(lm)                 # 64 hexadecimal digits: weights, config, versions, the code of the helpers
    of_value([edits, measure])   # the same for numbers, tensors, edits, and functions with all that they refer to

Two equal fingerprints mean the same computation; two different ones may still give the same numbers.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from . import errors
from .edits import Edit
from .models import LanguageModel


def of_model(lm: LanguageModel) -> str:
    """Of the weights, wherever they are, and of all that computes with them: another version gives another fingerprint.

    Reads every weight once. Raises BadValue for weights that are nowhere.
    """
    key = hashlib.sha256()
    for part in (torch.__version__, transformers.__version__, _code(), lm.dtype, lm.parts, _settings(lm.config)):
        key.update(repr(part).encode())
    for name, module in lm.model.named_modules():
        key.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {_own_forward(module)}".encode())
        for own, value in _weights(module):
            key.update(f"{own} {value.dtype} {tuple(value.shape)}".encode())
            key.update(_bytes(value))
    return key.hexdigest()


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers; what accelerate offloaded is brought for the moment."""
    bring: Any = nullcontext()
    if hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        bring = align_module_device(module, "cpu")
    with bring:
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if value.is_meta:
                raise errors.BadValue(
                    "the weight {name} of a {kind} is on the meta device, so its numbers do not exist: load the "
                    "model whole, or let accelerate offload it.",
                    name=name,
                    kind=type(module).__name__,
                )
            yield name, value


def _own_forward(module: nn.Module) -> str:
    """The name of a forward that somebody put on this one module; accelerate's, which moves weights only, is none."""
    found = None if hasattr(module, "_hf_hook") else vars(module).get("forward")
    return "" if found is None else str(getattr(found, "__qualname__", type(found).__qualname__))


def _settings(config: Any) -> str:
    """The config without what says where the model came from."""
    names = (
        name for name in config.to_dict() if not name.startswith(("_name", "transformers")) and name not in _BY_SAVING
    )
    return repr([(name, repr(getattr(config, name, None))) for name in sorted(names)]) + str(
        config._attn_implementation
    )


_BY_SAVING = ("architectures", "dtype", "torch_dtype")  # save_pretrained writes these into a live config


@functools.cache
def _code() -> str:
    """Of the helpers' own modules, comments left out."""
    key = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        key.update(ast.dump(ast.parse(file.read_text(encoding="utf-8"))).encode())
    return key.hexdigest()


def _bytes(value: Tensor) -> Any:
    whole = value.detach().cpu().contiguous().flatten()
    return whole.view(torch.uint8).numpy() if whole.numel() else b""


# ---- of what was asked


def of_value(value: object) -> str:
    """Of numbers, texts, tensors, edits, measures, functions, and lists or dicts of them. Raises BadValue for another type.

    A function counts by its code, its defaults, and the values that it refers to; functions of installed packages by their
    names, since the packages' versions belong to the model's fingerprint.
    """
    key = hashlib.sha256()
    for part in _told(value, ()):
        key.update(len(part).to_bytes(8, "big") + part)
    return key.hexdigest()


def _told(value: Any, seen: tuple[int, ...]) -> Iterator[bytes]:
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | range | slice | torch.dtype | Path
    ):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield bytes(_bytes(value))
    elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        yield f"array {value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, torch.device | torch.Size):
        yield repr(value).encode()
    elif isinstance(value, ModuleType):
        yield f"module {value.__name__}".encode()
    elif isinstance(value, FunctionType | MethodType | BuiltinFunctionType | functools.partial | type):
        yield from _told_callable(value, seen)
    elif (name := _of_a_package(value)) is not None:
        yield name.encode()
    elif isinstance(value, dict):
        yield f"dict {len(value)}".encode()
        for own, one in value.items():
            yield from (*_told(own, seen), *_told(one, seen))
    elif isinstance(value, list | tuple | set | frozenset):
        items = [b"".join(_told(one, seen)) for one in value]
        yield f"{type(value).__name__} {len(items)}".encode()
        yield from items if isinstance(value, list | tuple) else sorted(items)
    elif isinstance(value, Edit) and type(value.given) is not object:
        yield from _told(("edit", value.name, value.site, value.block, value.positions, value.given), seen)
    elif is_dataclass(value) or type(value).__module__.startswith("helpers."):
        yield type(value).__qualname__.encode()
        names = [one.name for one in fields(value)] if is_dataclass(value) else sorted(vars(value))
        for each in names:
            if not (isinstance(value, Edit) and each == "given"):  # here only itself; its function says what it does
                yield from (each.encode(), *_told(getattr(value, each), seen))
    elif callable(value) and hasattr(value, "__module__") and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}".encode()  # an operator of PyTorch or NumPy
    else:
        raise errors.BadValue(
            "a study cannot tell whether a value of type {kind} has changed since its shards were written: "
            "build functions and options from numbers, texts, tensors, edits, and lists or dicts of them.",
            kind=type(value).__name__,
        )


def _told_callable(value: Any, seen: tuple[int, ...]) -> Iterator[bytes]:
    if isinstance(value, functools.partial):
        yield from _told(("partial", value.func, value.args, value.keywords), seen)
    elif isinstance(value, MethodType):
        yield from _told(("method", value.__func__, value.__self__), seen)
    elif isinstance(value, type | BuiltinFunctionType) or _installed(value):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if isinstance(value, FunctionType) and value.__closure__:  # a function that a function of a package has made
            yield from _told([cell.cell_contents for cell in value.__closure__], (*seen, id(value)))
    elif id(value) not in seen:  # a function may call itself
        seen = (*seen, id(value))
        yield from _told_code(value.__code__)
        yield from _told((value.__defaults__, value.__kwdefaults__), seen)
        yield from _told([cell.cell_contents for cell in value.__closure__ or ()], seen)
        for name in sorted(_names(value.__code__)):
            if name in value.__globals__:
                yield from (name.encode(), *_told(value.__globals__[name], seen))
            elif not hasattr(builtins, name):
                yield name.encode()  # an attribute


def _installed(function: Any) -> bool:
    """Whether it belongs to a package, and not to a user's own file, cell or line."""
    return _in_packages(function.__code__.co_filename) or function.__module__.partition(".")[0] == "helpers"


def _in_packages(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _of_a_package(value: object) -> str | None:
    """The name of an object that an installed module has made for itself, for example a table of transformers."""
    module = sys.modules.get(type(value).__module__)
    if module is None or not _in_packages(getattr(module, "__file__", None) or ""):
        return None
    return next((f"{module.__name__}.{name}" for name, one in vars(module).items() if one is value), None)


def _told_code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    for constant in code.co_consts:
        yield from _told_code(constant) if isinstance(constant, CodeType) else (repr(constant).encode(),)


def _names(code: CodeType) -> set[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)
