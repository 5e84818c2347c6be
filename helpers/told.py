"""Every value in bytes that another value does not have: functions with all that they refer to, objects with their class.

What stands in a user's own file, cell or line is followed into its code, each object once. What an installed package contains
counts by its name and the package's version. What cannot be followed is refused, since it might change unseen.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import logging
import struct
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from . import errors
from .edits import Edit
from .models import LanguageModel
from .referred import by_name, named, reads, referred, resolves, theirs, theirs_by_file

_ATOMS = (
    bool, float, complex, str, bytes, bytearray, range, type(None), type(...), type(NotImplemented), torch.dtype, torch.device,
    torch.Size,
)  # fmt: skip
_CONTAINERS = (dict, list, tuple, set, frozenset)
# What a class of one's own may be a kind of, and what it holds as such, whatever its own methods say.
_BUILT_IN: dict[Any, Callable[[Any], Any]] = {
    dict: lambda value: dict(dict.items(value)), list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)), set: lambda value: set.union(set(), value),
    frozenset: lambda value: frozenset.union(frozenset(), value), int: int.__pos__, float: float.__pos__,
    complex: complex.__pos__, str: str.__str__, bytes: lambda value: bytes.__getitem__(value, slice(None)),
}  # fmt: skip
# What Python itself makes, and what each is made of.
_MADE_OF: dict[type, tuple[str, ...]] = {
    slice: ("start", "stop", "step"),
    MethodType: ("__func__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools._lru_cache_wrapper: ("__wrapped__",),
    CodeType: (
        "co_code", "co_exceptiontable", "co_flags", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_names",
        "co_varnames", "co_freevars", "co_cellvars", "co_consts",
    ),
}  # fmt: skip
_DESCRIPTORS = (
    types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)  # fmt: skip
# Small values of Python's own library, which say in pickle's way what they are made of.
_PICKLED = ("collections", "_collections", "re", "operator", "_operator", "datetime", "fractions", "decimal", "types")
_OF_A_CLASS = (  # what Python writes into a class, and nothing computes with
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate_func__", "__annotations_cache__",
    "__annotate__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__type_params__",
    "__slotnames__", "__abstractmethods__", "_abc_impl", "__dataclass_params__", "__conditional_annotations__",
    "_autograd_function_id", "_backward_cls",
)  # fmt: skip
_POINTER, _MANAGED_DICT = struct.calcsize("P"), 1 << 4  # Py_TPFLAGS_MANAGED_DICT: it lies outside of the object
_OF_A_TENSOR = ("_is_hf", "_dynamo")  # what transformers and torch.compile note on it
_BY_SAVING = ("architectures", "dtype", "torch_dtype")  # save_pretrained writes these into a live config


class Teller:
    """Gives `write` the bytes of one value after the other. known: objects that have a name, by their ids.

    names: what it met that another process finds by its name in a module of the user's own, as "module:name".
    """

    def __init__(self, write: Callable[[Any], object], known: Mapping[int, str] | None = None) -> None:
        self.write, self.known = write, known or {}
        self.names: set[str] = set()
        self.waiting: deque[tuple[Callable[[Any], object], object]] = deque()  # what is met, and told after what met it
        # What was followed, kept alive so that no other object gets its id.
        self.met: dict[int, tuple[int, object]] = {}
        self.inside: dict[int, int] = {}  # the containers that are being told, and how deep
        self.reads_grad = False  # whether code that was met reads a `grad`, which else is a leftover of training

    def put(self, *parts: object) -> None:
        for part in parts:
            told = part if isinstance(part, bytes | np.ndarray) else str(part).encode(errors="surrogatepass")
            self.write(len(told).to_bytes(8, "big"))
            self.write(told)

    def tell(self, value: Any) -> None:
        """Raises BadValue for what might change unseen."""
        try:
            self._tell(value)
            while self.waiting:
                follow, met = self.waiting.popleft()
                follow(met)
        except RecursionError:
            raise errors.BadValue(
                "a {kind} holds lists in lists too deep for a study to tell whether it has changed: give it in a flatter form.",
                kind=type(value).__name__,
            ) from None

    def _tell(self, value: Any) -> None:
        kind = type(value)
        if id(value) in self.known:
            self.put("known", self.known[id(value)])
        elif kind in _ATOMS:
            self.put(kind.__name__, repr(value))
        elif kind is int:
            self.put("int", hex(value))
        elif kind in _CONTAINERS or kind is types.MappingProxyType:
            self._container(value)
        elif kind in _MADE_OF:
            self.put(kind.__name__)
            self._all(*(getattr(value, name) for name in _MADE_OF[kind]))
        elif isinstance(value, PurePath):
            self.put(kind.__name__, value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic) and kind.__module__ == "numpy":
            # Its kind too: * of a matrix is another product.
            self.put("array", kind.__name__, value.dtype.str, value.shape)
            if value.dtype.names:  # one after the other: between them there may be bytes that nobody wrote
                for name in value.dtype.names:
                    self._all(name, value[name])  # type: ignore[index]
            elif value.dtype.hasobject:
                self._tell(value.tolist())
            else:
                self.put(value.tobytes())
        elif isinstance(value, ModuleType):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, BuiltinFunctionType | types.MethodWrapperType):
            owner = value.__self__
            self.put("builtin", getattr(value, "__module__", None), value.__qualname__)
            if owner is not None and not isinstance(owner, ModuleType) and not resolves(value):
                self._tell(owner)  # the method of an object
        elif isinstance(value, _DESCRIPTORS):
            self.put("descriptor", value.__objclass__.__qualname__, value.__name__)
        else:
            self._object(value)

    def _all(self, *values: object) -> None:
        for value in values:
            self._tell(value)

    def _later(self, follow: Callable[[Any], object], value: Any) -> None:
        """An object counts by its number wherever it is met, and is followed once: not here, or chains would become too deep."""
        if id(value) not in self.met:
            self.met[id(value)] = len(self.met), value
            self.waiting.append((follow, value))
        self.put("number", self.met[id(value)][0])

    def _name(self, module: str, name: str, value: object) -> None:
        if module != "__main__" and by_name(module, name) is value:
            self.names.add(f"{module}:{name}")

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
                teller = Teller(told.extend, self.known)
                teller.inside, teller.reads_grad = (
                    self.inside,
                    self.reads_grad,
                )  # a register of functions that look into it
                teller.tell(one)
                self.names |= teller.names
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
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            self._refuse(value)
        if type(value) not in (Tensor, nn.Parameter):
            self._tell(type(value))
        if own := {name: one for name, one in vars(value).items() if not name.startswith(_OF_A_TENSOR)}:
            self._tell(own)
        self.put("tensor", value.dtype, tuple(value.shape), bytes_of(value))
        if self.reads_grad and value.is_leaf and value.grad is not None:
            self.put("grad")
            self._tell(value.grad)

    # ---- code

    def _function(self, value: FunctionType) -> None:
        if hasattr(value, "_torchdynamo_orig_callable") and theirs_by_file(value):  # functools.wraps lends it
            self.put("compiled")
            self._tell(value._torchdynamo_orig_callable)
            return
        if theirs_by_file(value):
            self.put("of a package", named(value))
            if resolves(value):
                return
        else:
            self._name(value.__module__ or "", value.__qualname__, value)
        self._later(self._inside_function, value)

    def _inside_function(self, value: FunctionType) -> None:
        self.reads_grad |= reads(value.__code__, "grad")
        own = {
            name: one for name, one in vars(value).items() if not name.startswith("_torchdynamo")
        }  # lent by functools.wraps
        self._all(value.__code__, value.__defaults__, value.__kwdefaults__, own)
        for cell in value.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:
                self.put("empty")
            else:
                self._tell(held)
        if not theirs_by_file(value):
            self._referred(value)

    def _referred(self, function: FunctionType) -> None:
        """The globals and modules that its code names, in order."""
        for where, name, attributes, value in referred(function):
            self.put(where, name, len(attributes))
            if where == "absent":
                continue
            for position, attribute in enumerate(attributes):  # mylib.f: of a module of one's own only what is used
                if not isinstance(value, ModuleType):
                    break
                if theirs(value.__name__):
                    self._put_into_a_package(value, attributes[position:])
                    break
                if not hasattr(value, attribute):
                    self.put("absent", attribute)
                    break
                self.put(attribute, position)
                module, value = value, getattr(value, attribute)
                if not isinstance(value, ModuleType):
                    self._name(module.__name__, attribute, value)
            self._tell(value)

    def _put_into_a_package(self, value: Any, attributes: Sequence[str]) -> None:
        """What stands under these names in a package's module counts by its own name: somebody may have put it there."""
        for name in attributes:
            if isinstance(value, ModuleType):
                value = getattr(value, name, None)
        if isinstance(value, FunctionType | type) and (resolves(value) or theirs_by_file(value)):
            self.put(named(value))
        elif isinstance(value, BuiltinFunctionType):
            self.put("builtin", value.__module__, value.__qualname__)
        elif (
            isinstance(value, FunctionType | type | functools.partial | functools._lru_cache_wrapper)
            or type(value).__module__ == "torch._ops"
            or not theirs(type(value).__module__)
        ):
            self._tell(value)

    def _module(self, value: ModuleType) -> None:
        self.put("module", value.__name__)
        if theirs(value.__name__):
            self.put(named(value))
        else:
            self._name(value.__name__, "", value)
            self._later(self._inside_module, value)

    def _inside_module(self, value: ModuleType) -> None:
        for name, one in sorted(vars(value).items()):
            if not name.startswith("__") or name in ("__getattr__", "__dir__"):
                self.put(name)
                self._tell(one)

    def _class(self, value: type) -> None:
        self.put("class", value.__qualname__)
        if theirs(value.__module__):
            self.put(named(value))
            if resolves(value) or value.__module__ == "builtins":
                return
        else:
            self._name(value.__module__, value.__qualname__, value)
        self._later(self._inside_class, value)

    def _inside_class(self, value: type) -> None:
        self._all(value.__bases__, *(() if type(value) is type else (type(value),)))
        for name, one in sorted(vars(value).items()):
            if name == "_value2member_map_" and isinstance(value, enum.EnumMeta):
                continue  # of a Flag: grows with each combination that is made
            if name == "__dataclass_fields__":
                one = {field: about.metadata for field, about in one.items() if about.metadata}
            elif name in _OF_A_CLASS:
                continue
            self.put(name)
            self._tell(one)

    # ---- objects

    def _object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, LanguageModel | PreTrainedTokenizerBase):
            raise errors.BadValue(
                "a study cannot tell whether the {kind} that a function uses has changed since its shards were written: load it "
                "inside the function, or give the function what it needs of it, for example token = lm.token_id(' Germany').",
                kind=kind.__name__,
            )
        if isinstance(value, logging.Logger) or (
            kind.__module__ == "_thread" and kind.__name__ != "_local"
        ):  # compute nothing
            self.put(kind.__qualname__)
        elif kind.__module__ == "typing" or isinstance(value, types.GenericAlias | types.UnionType):
            self.put(repr(value))
            self._all(getattr(value, "__origin__", None), getattr(value, "__args__", ()))
        elif isinstance(value, np.dtype) or (
            kind.__module__ == "torch._ops" and str(value).startswith(("aten.", "prims."))
        ):
            self.put(kind.__qualname__, value)
        elif kind.__module__ == "torch._ops":  # an operator of somebody's own, whose code lies in tables
            self._refuse(value)
        elif kind.__qualname__ == "OptimizedModule" and kind.__module__.startswith("torch."):
            self.put("compiled")
            self._tell(value._orig_mod)
        elif isinstance(value, PretrainedConfig):
            self._tell(settings(value))
        elif isinstance(value, Edit) and type(value.given) is not object and theirs_by_file(value.change):
            self._all("edit", value.name, value.site, value.block, value.positions, value.given)
        elif (name := resolves(value)) is not None:
            self.put("of a package", name)
        elif _is_seen_whole(kind):
            self._later(self._state, value)
        elif kind.__module__ in _PICKLED:
            made: Any = (
                copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(4)
            )
            self.put("made", kind.__qualname__)
            self._tell(
                made if isinstance(made, str) else [list(one) if hasattr(one, "__next__") else one for one in made]
            )
        else:
            self._refuse(value)

    def _state(self, value: Any) -> None:
        kind = type(value)
        self._tell(kind)
        for built_in, plain in _BUILT_IN.items():
            if isinstance(value, built_in):
                self._tell(plain(value))
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
            self._tell(one)

    def _refuse(self, value: object) -> None:
        raise errors.BadValue(
            "a study cannot tell whether a value of type {kind} has changed since its shards were written: "
            "build functions and options from numbers, texts, tensors, edits, and lists or dicts of them.",
            kind=type(value).__name__,
        )


def _is_seen_whole(kind: type) -> bool:
    """Whether its objects hold nothing but attributes: no more bytes than those need, as a class written in C would have."""
    built_in = next(base for base in kind.__mro__ if base in (*_BUILT_IN, object))
    written = (vars(base).values() for base in kind.__mro__ if "__slots__" in vars(base))
    slots = sum(isinstance(one, types.MemberDescriptorType) for values in written for one in values)
    tables = (kind.__weakrefoffset__ > 0) + (kind.__dictoffset__ != 0 and not kind.__flags__ & _MANAGED_DICT)
    return kind.__basicsize__ <= built_in.__basicsize__ + _POINTER * (slots + tables)


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
