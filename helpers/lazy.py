"""Names that load when they are first used, so that importing a package costs next to nothing.

    __all__, __getattr__, __dir__ = lazy(__name__, {"helpers.edits": ["edit", "Edit"]})

Source: PEP 562.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(
    package: str, where: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package's `__init__` needs to offer names of other modules. where: module -> its names."""
    module_of = {name: module for module, names in where.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it offers {', '.join(sorted(module_of))}"
            )
        found = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, found)  # found without asking from now on
        return found

    return list(module_of), get, lambda: sorted(module_of)
