"""Tell a learner whose kernel is new what a NameError means: run the notebook from the top.

A kernel that died, or was restarted, knows nothing: the next cell ends in `NameError: name 'lm' is not defined`, and nothing
says why. No import of a lesson can explain that, since it has not run. So this is an IPython extension: tools/ipython_config.py
loads it when a kernel of the course's environment starts.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from helpers.say import say, translatable

ROOMS = [f"helpers.lesson{number}" for number in range(1, 6)]
SET_UP = {"lm", "real", "prompt", "torch"}  # what the first cells of the lessons make, wherever the notebook lies
NEW = translatable(
    "This kernel is new: it has not run this notebook's first cells, or it was started again after them. Run the cells "
    "from the top (menu Run, Run All Above Selected Cell), then this one."
)
ABOVE = translatable(
    "{name} is made in a cell above that has not run yet. Run the cells from the top, in their order, then this one."
)


def advice(name: str | None, known: dict[str, Any]) -> str | None:
    """Return what to say of a NameError of `name`, given the kernel's names; None if it is no name of the lessons."""
    from importlib import import_module

    started = "load_model" in known  # every lesson's first code cell imports it
    if name in made_in_lessons(Path.cwd()):
        return say(ABOVE, name=name) if started else say(NEW)
    if not started and any(name in import_module(room).__all__ for room in ROOMS):
        return say(NEW)
    return None


@cache
def made_in_lessons(folder: Path) -> frozenset[str]:
    """The names that code cells of the lessons in a folder, a kernel's own, make or import."""
    found = set(SET_UP)
    for notebook in folder.glob("0[1-5]_*.ipynb"):
        try:
            cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError):  # a learner's own copy may be anything
            continue
        for cell in cells:
            with suppress(SyntaxError):
                tree = ast.parse("".join(cell["source"])) if cell["cell_type"] == "code" else ast.Module([], [])
                found |= {name for statement in tree.body for name in _made_by(statement)}
    return frozenset(found)


def _made_by(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a cell leaves behind."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    of_comprehensions = {
        name for inner in ast.walk(statement) if isinstance(inner, ast.comprehension) for name in ast.walk(inner.target)
    }
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in of_comprehensions:
            yield node.id
        elif isinstance(node, ast.alias) and node.name != "*":
            yield node.asname or node.name


def _explain(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> None:
    said = advice(error.name, shell.user_ns)
    if said:
        error.add_note(said)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython for each new kernel."""
    shell.set_custom_exc((NameError,), _explain)
