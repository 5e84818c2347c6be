"""What the lessons ask, read from the notebooks: each exercise's cell, the name of its answer and its stub."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CHECK = re.compile(r"check_(\d+)_(\d+)$")


class Asked(NamedTuple):
    """One exercise as its notebook gives it. name: what the check gets, `changed_states`; stub: the statement, as Python sees it."""

    number: str
    cell: str
    name: str
    stub: str


def notebook_paths() -> dict[int, Path]:
    """Lesson -> its notebook."""
    return {int(path.name[:2]): path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


@cache
def cells(lesson: int) -> list[dict[str, Any]]:
    """The cells of a lesson's notebook, as they are stored."""
    return json.loads(notebook_paths()[lesson].read_text(encoding="utf-8"))["cells"]


@cache
def asked(lesson: int) -> tuple[Asked, ...]:
    """The exercises of a lesson, in order."""
    found = []
    for cell in cells(lesson):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        for number, argument in checks(tree):
            if isinstance(argument, ast.Name):
                (stub,) = [one for one in tree.body if argument.id in _named(one)]
                found.append(Asked(number, cell["id"], argument.id, ast.unparse(stub)))
    return tuple(found)


@cache
def setup(lesson: int) -> str:
    """The lesson's first code cell, its import, the small model and a prompt, and what later cells import."""
    first, *later = ["".join(cell["source"]) for cell in cells(lesson) if cell["cell_type"] == "code"]
    imports = [
        one for source in later for one in ast.parse(source).body if isinstance(one, (ast.Import, ast.ImportFrom))
    ]
    return "\n".join([first, *map(ast.unparse, imports)])


@cache
def statements(lesson: int) -> frozenset[str]:
    """Every statement of the lesson as it is handed out, so that what a learner wrote can be told from it."""
    given = {test_source(one) for one in asked(lesson)}
    given |= {"".join(cell["source"]) for cell in cells(lesson) if cell["cell_type"] == "code"}
    return frozenset(ast.unparse(one) for source in given for one in ast.parse(source).body)


def test_source(one: Asked) -> str:
    """The locked cell that nbgrader runs after an exercise."""
    return (
        f"# This cell gives the points of exercise {one.number}. There is nothing to do here.\n"
        "from helpers.course.exercise import find, judge\n\n"
        f'outcome = judge(find("{one.number}"), {one.name})\n'
        'assert outcome.state == "right", outcome.sentence'
    )


def checks(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """("1.3", argument) for each call of a check."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
            match = CHECK.fullmatch(node.func.id)
            if match:
                found.append((f"{match[1]}.{match[2]}", node.args[0]))
    return found


def _named(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
