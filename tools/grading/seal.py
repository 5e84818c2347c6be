"""Notice when a check, or what checks rely on, has been changed by the code that it checks, and undo it.

An answer runs in the process that judges it, so a learner who sets out to deceive can. This finds what is easily done: another
function in a module's place, other code in a function, another method in a class.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch


class Seal:
    """What stood where when it was made. `mend()` puts it back and returns the names of what had been changed."""

    def __init__(self) -> None:
        modules = [
            module for name, module in sys.modules.items() if module and name.split(".")[0] in {"helpers", "grading"}
        ]
        modules += [functools, inspect, torch, torch.nn, torch.nn.functional, torch.linalg]
        classes = [torch.Tensor, *torch.Tensor.__mro__[1:2], torch.nn.Module, torch.nn.Linear, torch.nn.Identity]
        for module in modules:
            if module.__name__.startswith("helpers"):
                classes += [
                    one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == module.__name__
                ]
        self._builtins = dict(vars(builtins))
        self._places: list[tuple[Any, dict[str, Any]]] = [
            (place, {name: value for name, value in vars(place).items() if _matters(value)})
            for place in [*modules, *dict.fromkeys(classes)]
        ]
        exercises = [one for module in modules for one in getattr(module, "EXERCISES", ())]
        self._exercises = [(one, dict(vars(one))) for one in exercises]
        functions = {
            id(value): value for _, kept in self._places for value in kept.values() if isinstance(value, FunctionType)
        }
        functions |= {id(one.check): one.check for one in exercises}
        self._functions = [
            (one, one.__code__, one.__defaults__, one.__kwdefaults__)
            for one in functions.values()
        ]  # fmt: skip

    def mend(self) -> list[str]:
        changed = []
        now = builtins.__dict__  # first, and by nothing that stands in it: what follows relies on them
        for name, value in self._builtins.items():
            if now.get(name) is not value and name != "_":
                changed.append(f"builtins.{name}")
                now[name] = value
        for place, kept in self._places:
            now = vars(place)
            for name, value in kept.items():
                if now.get(name) is not value:
                    changed.append(f"{getattr(place, '__name__', place)}.{name}")
                    type.__setattr__(place, name, value) if isinstance(place, type) else setattr(place, name, value)
        for exercise, kept in self._exercises:
            for name, value in kept.items():
                if vars(exercise).get(name) is not value:
                    changed.append(f"exercise {kept['number']}, {name}")
                    object.__setattr__(exercise, name, value)
        for function, code, defaults, named in self._functions:
            if (function.__code__, function.__defaults__, function.__kwdefaults__) != (code, defaults, named):
                changed.append(f"the code of {function.__name__}")
                function.__code__, function.__defaults__, function.__kwdefaults__ = code, defaults, named
        return changed

    def guarded(self, answer: Any) -> Any:
        """The same function, after each call of which everything is put back; what it returns is guarded too."""
        if not callable(answer) or isinstance(answer, (type, ModuleType, torch.nn.Module)):
            return answer
        inner: Callable[..., Any] = answer

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return self.guarded(inner(*args, **kwargs))
            finally:
                self.mend()

        return call


def _matters(value: Any) -> bool:
    return callable(value) or isinstance(value, (ModuleType, property, staticmethod, classmethod))
