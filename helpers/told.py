"""Every value in bytes that another value does not have: functions with all that they refer to, objects with their class.

What stands in a user's own file, cell or line is followed into its code, each object once. What an installed package contains
counts by its name and the package's version. What cannot be followed is refused, since it might change unseen.
"""

from __future__ import annotations

import copyreg
import functools
import logging
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import errors
from .edits import Edit
from .referred import named, referred, resolves, theirs, theirs_by_file

_ATOMS = (
    bool, float, complex, str, bytes, bytearray, range, type(None), type(...), type(NotImplemented), torch.dtype, torch.device,
    torch.Size,
)  # fmt: skip
_CONTAINERS = (dict, list, tuple, set, frozenset)
_BUILT_IN: tuple[Any, ...] = (
    *_CONTAINERS,
    int,
    float,
    complex,
    str,
    bytes,
)  # what a class of one's own may be a kind of
_DESCRIPTORS = (
    types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)  # fmt: skip
# Small values of Python's own library, which say in pickle's way what they are made of.
_PICKLED = ("collections", "_collections", "re", "operator", "_operator", "datetime", "fractions", "decimal", "types")
_OF_A_CLASS = (  # what Python writes into a class, and nothing computes with
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate_func__", "__annotations_cache__",
    "__annotate__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__type_params__",
    "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__conditional_annotations__",
    "_autograd_function_id", "_backward_cls",
)  # fmt: skip
_BY_SAVING = ("architectures", "dtype", "torch_dtype")  # save_pretrained writes these into a live config


class Teller:
    """Gives `write` the bytes of one value after the other. known: objects that have a name, by their ids."""

    def __init__(self, write: Callable[[Any], object], known: Mapping[int, str] | None = None) -> None:
        self.write, self.known = write, known or {}
        # What was followed, kept alive so that no other object gets its id.
        self.met: dict[int, tuple[int, object]] = {}
        self.inside: dict[int, int] = {}  # the containers that are being told, and how deep

    def put(self, *parts: object) -> None:
        for part in parts:
            told = part if isinstance(part, bytes | np.ndarray) else str(part).encode(errors="surrogatepass")
            self.write(len(told).to_bytes(8, "big"))
            self.write(told)

    def tell(self, value: Any) -> None:
        """Raises BadValue for what might change unseen."""
        kind = type(value)
        if id(value) in self.known:
            self.put("known", self.known[id(value)])
        elif kind in _ATOMS:
            self.put(kind.__name__, repr(value))
        elif kind is int:
            self.put("int", hex(value))
        elif kind in _CONTAINERS or kind is types.MappingProxyType:
            self._container(value)
        elif kind is slice:
            self.put("slice")
            self._all(value.start, value.stop, value.step)
        elif isinstance(value, PurePath):
            self.put(kind.__name__, value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic) and kind.__module__ == "numpy":
            self.put("array", value.dtype.descr if value.dtype.names else value.dtype.str, value.shape)
            if value.dtype.hasobject:
                self.tell(value.tolist())
            else:
                self.put(value.tobytes())
        elif isinstance(value, ModuleType):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif not self._callable(value):
            self._object(value)

    def _all(self, *values: object) -> None:
        for value in values:
            self.tell(value)

    def _new(self, value: object) -> bool:
        """Whether it is met for the first time; an object that is followed once counts by its number after that."""
        if id(value) in self.met:
            self.put("again", self.met[id(value)][0])
            return False
        self.met[id(value)] = len(self.met), value
        return True

    def _container(self, value: Any) -> None:
        if id(value) in self.inside:
            return self.put("inside", self.inside[id(value)])
        self.inside[id(value)] = len(self.inside)
        if isinstance(value, dict | types.MappingProxyType):
            self.put("dict", len(value))
            for name, one in value.items():
                self._all(name, one)
        elif isinstance(value, set | frozenset):  # in no order: each by itself
            items: list[bytes] = []
            for one in value:
                told = bytearray()
                Teller(told.extend, self.known).tell(one)
                items.append(bytes(told))
            self.put(type(value).__name__, len(items), *sorted(items))
        else:
            self.put(type(value).__name__, len(value))
            if all(type(one) in (float, bool, str) for one in value):  # quick, for the long ones
                self.put("plain", repr(list(value)))
            else:
                self._all(*value)
        del self.inside[id(value)]

    def _tensor(self, value: Tensor) -> None:
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            self._refuse(value)
        if type(value) not in (Tensor, nn.Parameter):
            self._all(type(value), vars(value))
        self.put("tensor", value.dtype, tuple(value.shape), bytes_of(value))

    # ---- code

    def _callable(self, value: Any) -> bool:
        """Functions in all forms; False for what is none of them."""
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self.put("method")
            self._all(value.__func__, value.__self__)
        elif isinstance(value, BuiltinFunctionType | types.MethodWrapperType):
            owner = value.__self__
            self.put("builtin", getattr(value, "__module__", None), value.__qualname__)
            if owner is not None and not isinstance(owner, ModuleType) and not resolves(value):
                self.tell(owner)  # the method of an object
        elif type(value) in (functools.partial, functools.partialmethod):
            self.put(type(value).__name__)
            self._all(value.func, value.args, value.keywords)
        elif type(value) in (staticmethod, classmethod):
            self.put(type(value).__name__)
            self.tell(value.__func__)
        elif type(value) is property or isinstance(value, types.DynamicClassAttribute):
            self.put("property")
            self._all(value.fget, value.fset, value.fdel)
        elif type(value) is functools.cached_property:
            self.put("cached_property")
            self.tell(value.func)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.put("lru_cache")
            self.tell(value.__wrapped__)
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, _DESCRIPTORS):
            self.put("descriptor", value.__objclass__.__qualname__, value.__name__)
        else:
            return False
        return True

    def _function(self, value: FunctionType) -> None:
        if theirs_by_file(value):
            self.put("of a package", named(value))
            if resolves(value):
                return None
        if not self._new(value):
            return None
        self._code(value.__code__)
        self._all(value.__defaults__, value.__kwdefaults__, dict(vars(value)))
        for cell in value.__closure__ or ():
            try:
                found = cell.cell_contents
            except ValueError:
                self.put("empty")
            else:
                self.tell(found)
        if not theirs_by_file(value):
            self._referred(value)
        return None

    def _code(self, code: CodeType) -> None:
        self.put("code", code.co_code, code.co_exceptiontable, code.co_flags)
        self.put(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._all(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_consts)

    def _referred(self, function: FunctionType) -> None:
        """The globals and modules that its code names, in order."""
        for where, name, attributes, found in referred(function):
            self.put(where, name, len(attributes))
            if where == "absent":
                continue
            for position, attribute in enumerate(attributes):  # mylib.f: of a module of one's own only what is used
                if not isinstance(found, ModuleType) or theirs(found.__name__):
                    break
                if not hasattr(found, attribute):
                    self.put("absent", attribute)
                    break
                self.put(attribute, position)
                found = getattr(found, attribute)
            self.tell(found)

    def _module(self, value: ModuleType) -> None:
        self.put("module", value.__name__)
        if theirs(value.__name__):
            self.put(named(value))
        elif self._new(value):
            for name, one in sorted(vars(value).items()):
                if not name.startswith("__") or name in ("__getattr__", "__dir__"):
                    self.put(name)
                    self.tell(one)

    def _class(self, value: type) -> None:
        self.put("class", value.__qualname__)
        if theirs(value.__module__):
            self.put(named(value))
            if resolves(value) or value.__module__ == "builtins":
                return
        if self._new(value):
            self._all(value.__bases__, *(() if type(value) is type else (type(value),)))
            for name, one in sorted(vars(value).items()):
                if name not in _OF_A_CLASS:
                    self.put(name)
                    self.tell(one)

    # ---- objects

    def _object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, logging.Logger) or kind.__module__ == "_thread":  # they compute nothing
            self.put(kind.__qualname__)
        elif kind.__module__ == "typing" or isinstance(value, types.GenericAlias | types.UnionType):
            self.put(repr(value))
        elif isinstance(value, np.dtype) or (
            kind.__module__ == "torch._ops" and str(value).startswith(("aten.", "prims."))
        ):
            self.put(kind.__qualname__, value)
        elif isinstance(value, PretrainedConfig):
            self.tell(settings(value))
        elif isinstance(value, Edit) and type(value.given) is not object and theirs_by_file(value.change):
            self._all("edit", value.name, value.site, value.block, value.positions, value.given)
        elif (name := resolves(value)) is not None:
            self.put("of a package", name)
        elif self._can_be_followed(kind):
            if self._new(value):
                self._state(value)
        elif kind.__module__ in _PICKLED:
            made: Any = (
                copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(4)
            )
            self.put("made", kind.__qualname__)
            self.tell(
                made if isinstance(made, str) else [list(one) if hasattr(one, "__next__") else one for one in made]
            )
        else:
            self._refuse(value)

    def _can_be_followed(self, kind: type) -> bool:
        """Whether all that its objects hold can be seen: nothing that a class written in C keeps for itself."""
        if theirs(kind.__module__) and not kind.__module__.startswith("helpers."):
            return issubclass(kind, nn.Module | torch.utils._contextlib._DecoratorContextManager)
        return all(
            not theirs(base.__module__)
            or base in (object, *_BUILT_IN)
            or issubclass(base, nn.Module)
            or base.__module__ in ("abc", "typing", "enum", "collections.abc", "contextlib")
            or base.__module__.startswith("helpers.")
            for base in kind.__mro__
        )

    def _state(self, value: Any) -> None:
        kind = type(value)
        self.tell(kind)
        for built_in in _BUILT_IN:
            if isinstance(value, built_in):
                plain = dict(dict.items(value)) if built_in is dict else built_in(value)
                self.put(repr(plain)) if built_in is str else self.tell(plain)
        state = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            for name, one in vars(base).items():
                if isinstance(one, types.MemberDescriptorType) and hasattr(value, name):
                    state[name] = one.__get__(value)
        for name, one in sorted(state.items(), key=lambda pair: str(pair[0])):
            if isinstance(value, Edit) and name == "given" and type(one) is object:
                continue  # here only itself; its function says what it does
            self.put(name)
            if isinstance(value, nn.Module) and "hooks" in name and isinstance(one, dict):
                # Their keys are numbers that count all hooks ever made.
                one = list(one.values()) if name.endswith("hooks") else len(one)
            self.tell(one)

    def _refuse(self, value: object) -> None:
        raise errors.BadValue(
            "a study cannot tell whether a value of type {kind} has changed since its shards were written: "
            "build functions and options from numbers, texts, tensors, edits, and lists or dicts of them.",
            kind=type(value).__name__,
        )


def bytes_of(value: Tensor) -> bytes | np.ndarray:
    """Its numbers, without a copy where they are on the CPU: (n,) of type uint8."""
    whole = value.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return whole.view(torch.uint8).numpy() if whole.numel() else b""


def settings(config: Any) -> dict[str, Any]:
    """A config without what says where the model came from."""
    names = (
        name for name in config.to_dict() if not name.startswith(("_name", "transformers")) and name not in _BY_SAVING
    )
    found = {name: getattr(config, name, None) for name in sorted(names)}
    for name, value in found.items():
        if value is not None and hasattr(value, "to_dict") and not isinstance(value, PretrainedConfig):
            found[name] = value.to_dict()  # how it is quantised
    found |= {name: getattr(config, name, None) for name in ("_attn_implementation", "_experts_implementation")}
    return {name: in_order(value) for name, value in found.items()}


def in_order(value: Any) -> Any:
    """With the names in each dict sorted, as saving does it; modules look up in them, and ask for no order."""
    if isinstance(value, dict):
        return {name: in_order(one) for name, one in sorted(value.items(), key=lambda pair: str(pair[0]))}
    return [in_order(one) for one in value] if isinstance(value, list | tuple) else value
