"""What a function's code refers to by name, and whether that is the user's own or of an installed package."""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from . import errors
from .foreign import LIBRARIES

_HERE = Path(__file__).parent
_PYTHON = tuple({Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib")})
_BY_TEXT: dict[str, Any] = {
    "eval()": eval, "exec()": exec, "globals()": globals, "__import__()": __import__,
    "importlib.import_module()": importlib.import_module, "sys.modules": sys.modules,
}  # fmt: skip
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def referred(function: FunctionType) -> Iterator[tuple[str, str, tuple[str, ...], Any]]:
    """(where, name, attributes, value) of all that its code, and the code inside it, loads from outside of it.

    where: "global", "imported", "builtin", or "absent". attributes: those that are read of it at once, as in `mylib.part.f`.
    Raises BadValue for code that looks up names as text.
    """
    told = function.__globals__
    own = told.get("__builtins__", builtins)
    known = own if isinstance(own, dict) else vars(own)
    for kind, name, attributes, level in _loads(function.__code__):
        if kind == "import":
            module = _imported(name, level, told)
            for each in attributes if module is not None else ():
                if module is not None and not hasattr(module, each):  # a part of the package, which the import loads
                    _imported(f"{module.__name__}.{each}", 0, told)
            _refuse_by_text(function, module, attributes)
            if module is None:
                yield "absent", name, attributes, None
            for each in attributes if module is not None else ():
                yield "imported", name, (each,), module
            if module is not None and not attributes:  # import a.b as c, or a.b.f: the whole
                yield "imported", name, (), module
        elif name in told:
            _refuse_by_text(function, told[name], attributes)
            yield "global", name, attributes, told[name]
        elif name in known:
            _refuse_by_text(function, known[name], ())
            yield "builtin", name, (), known[name]
        else:
            yield "absent", name, attributes, None


def _refuse_by_text(function: FunctionType, value: Any, attributes: Sequence[str]) -> None:
    """Raises BadValue for what looks up names or modules as text: reached at once, as in `importlib.import_module`."""
    for attribute in attributes:
        if isinstance(value, ModuleType):
            value = getattr(value, attribute, None)
    for name, one in _BY_TEXT.items():
        if value is one:
            raise errors.BadValue(
                "a study cannot tell what {name} in {function} will find, so it could not see that this has changed: "
                "refer to it by its name.",
                name=name,
                function=function.__qualname__,
            )


def reads(code: CodeType, name: str) -> bool:
    """Whether it, or code inside it, reads an attribute or a global of this name."""
    inside = (one for one in code.co_consts if isinstance(one, CodeType))
    return name in code.co_names or any(reads(one, name) for one in inside)


def _loads(code: CodeType) -> list[tuple[str, str, tuple[str, ...], int]]:
    steps = [one for one in dis.get_instructions(code) if one.opname not in ("EXTENDED_ARG", "CACHE")]
    found: dict[tuple[str, str, tuple[str, ...], int], None] = {}
    for number, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            level, names = steps[number - 2].argval, steps[number - 1].argval
            wanted = tuple(name for name in names or () if name != "*")
            found["import", step.argval, wanted, level or 0] = None
            top, dot, _ = step.argval.partition(".")
            if dot and not names and steps[number + 1].opname != "IMPORT_FROM":  # import a.b, not as c: gives a
                found["import", top, (), 0] = None
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            end = number + 1
            while end < len(steps) and steps[end].opname in _ATTRIBUTES:
                end += 1
            found["name", step.argval, tuple(one.argval for one in steps[number + 1 : end]), 0] = None
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= dict.fromkeys(_loads(inner))
    return list(found)


def _imported(name: str, level: int, told: dict[str, Any]) -> ModuleType | None:
    """What the function's own `import` would give: loaded here if it is the user's."""
    try:
        if level:
            name = importlib.util.resolve_name("." * level + name, told.get("__package__") or told["__name__"])
        return importlib.import_module(name)
    except (ImportError, KeyError, ValueError):
        return None


# ---- whose it is


def theirs(module: str) -> bool:
    """Whether a module is of Python, of a package, or one of the helpers, by its name."""
    top = module.partition(".")[0]
    found = sys.modules.get(module)
    if module == "__main__":
        return False
    if top in (*LIBRARIES, "builtins") or found is None:
        return top in (*LIBRARIES, "builtins", *sys.builtin_module_names)
    file = getattr(found, "__file__", None)
    return in_packages(file) if file else top in sys.stdlib_module_names


def theirs_by_file(function: Any) -> bool:
    """Whether a function was written there: its `__module__` may be borrowed, by functools.wraps for example."""
    if not isinstance(function, FunctionType):
        return False
    file, module = function.__code__.co_filename, str(function.__globals__.get("__name__"))
    if file.startswith("<frozen "):
        return True
    return theirs(module) if file.startswith("<") or module.partition(".")[0] in LIBRARIES else in_packages(file)


@functools.cache
def in_packages(file: str) -> bool:
    where = Path(file)
    if not {"site-packages", "dist-packages"}.isdisjoint(where.parts):
        return True
    return where.parent == _HERE or any(where.resolve().is_relative_to(one) for one in _PYTHON)


def named(value: Any) -> str:
    """Its name, and the version of its package; those of the helpers and their libraries belong to the model's fingerprint."""
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
    name = "" if isinstance(value, ModuleType) else getattr(value, "__qualname__", "")
    return f"{module}.{name} {version_of(module.partition('.')[0])}"


@functools.cache
def version_of(top: str) -> str:
    if top in sys.stdlib_module_names or top in ("", "helpers"):
        return sys.version if top != "helpers" else ""
    said = getattr(sys.modules.get(top), "__version__", None)
    if said is None:
        try:
            said = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:  # it is called otherwise, or is a file that somebody put there
            names = importlib.metadata.packages_distributions().get(top, ())
            said = [importlib.metadata.version(name) for name in names] or _file_of(top)
    return str(said)


def _file_of(top: str) -> str:
    file = getattr(sys.modules.get(top), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def by_name(module: str, path: str) -> Any:
    """What stands in a loaded module under a name such as "Class.method", None if nothing does; the module for ""."""
    value: Any = sys.modules.get(module)
    for part in path.split(".") if path else ():
        value = getattr(value, part, None)
    return value


def resolves(value: Any) -> str | None:
    """The name of an object that a package's module has under this very name, for example an operator or a table."""
    kind = type(value)
    for name in dict.fromkeys((getattr(value, "__module__", None), kind.__module__, kind.__module__.partition(".")[0])):
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or not theirs(module.__name__):
            continue
        said = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if isinstance(said, str) and by_name(module.__name__, said) is value:
            return f"{module.__name__}.{said} {version_of(module.__name__.partition('.')[0])}"
        for own, one in vars(module).items() if not isinstance(value, FunctionType | type) else ():
            if one is value:
                return f"{module.__name__}.{own} {version_of(module.__name__.partition('.')[0])}"
    return None
