"""Make the lessons into nbgrader's assignments: python tools/assignment.py [--out dist/assignment]

The notebooks are the only source. Into the folder come `source` (with solutions, for `nbgrader generate_assignment`) and
`release` (what students get), one folder for each lesson, and nbgrader's configuration: the folder is a course directory.
docs/grading.md is the manual.
"""

from __future__ import annotations

import argparse
import ast
import copy
import inspect
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from grading import course
from grading.course import ROOT, Asked

from helpers.course.exercise import Exercise, find, solution_source

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
FORMATIVE = """\
**This copy is for handing in.** Write your answers into the cells of the exercises and keep their names. The cell after each
exercise gives the points. Until the answer is right it ends with an error, whose last line says why. The course shows its
solutions to everyone who asks. So points tell you and your teacher where you stand; they are no exam."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "assignment")
    out = parser.parse_args().out
    write(out)
    print(
        f"Made {out}: source and release of {len(course.notebook_paths())} lessons. docs/grading.md says how to go on."
    )
    return 0


def write(out: Path) -> None:
    """Write the source and the release version of every lesson below `out`, and what nbgrader needs beside them."""
    for lesson, path in course.notebook_paths().items():
        for kind in ("source", "release"):
            folder = out / kind / f"lesson{lesson}"
            folder.mkdir(parents=True, exist_ok=True)
            notebook, linked = assignment(lesson, with_solutions=kind == "source")
            (folder / path.name).write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            here = {path.name, *(file.name for file in linked)}
            for file in linked:
                (folder / file.name).write_text(page(file.read_text(encoding="utf-8"), here), encoding="utf-8")
    shutil.copy(ROOT / "deploy" / "nbgrader_config.py", out)


def assignment(lesson: int, with_solutions: bool) -> tuple[dict[str, Any], list[Path]]:
    """One lesson as a notebook for nbgrader, and the pages to which it links, which must lie beside it."""
    path = course.notebook_paths()[lesson]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    exercises = {one.cell: one for one in course.asked(lesson)}
    cells, linked = [], set()
    for number, cell in enumerate(notebook["cells"]):
        cell = copy.deepcopy(cell)
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        else:
            for link in re.findall(r"\]\((\.\./[^)#\s]+)", "".join(cell["source"])):
                linked.add((path.parent / link).resolve())
            cell["source"] = [re.sub(r"\]\((\.\./[^)#\s]*/)", "](", line) for line in cell["source"]]
        cells.append(cell)
        if number == 0:
            cells.append(_locked({"cell_type": "markdown", "id": f"l{lesson}-handing-in", "source": _lines(FORMATIVE)}))
        if one := exercises.get(cell["id"]):
            exercise = find(one.number)
            cell["metadata"] = {"nbgrader": _marks(cell["id"], solution=True)}
            if with_solutions:
                cell["source"] = _lines(with_solution("".join(cell["source"]), one, exercise))
            cells.append(_test(one, exercise))
    notebook["cells"] = cells
    return notebook, sorted(linked)


def page(text: str, here: set[str]) -> str:
    """A page as it lies beside a lesson: a link to a file that lies there too leads to it, of another one the words are left."""

    def link(found: re.Match[str]) -> str:
        words, name, anchor = found.groups()
        return f"[{words}]({name}{anchor})" if name in here else words

    return re.sub(r"\[([^\[\]]+)\]\((?:\.\./)?(?:\w+/)*([\w.-]+\.(?:md|ipynb|py))(#[^)\s]*|)\)", link, text)


def with_solution(source: str, one: Asked, exercise: Exercise) -> str:
    """The cell with its solution between nbgrader's markers. Without them it is the cell that students see, line by line.

    The stub's own `return ...` stays below the solution, where Python never comes.
    """
    lines = source.split("\n")
    tree = ast.parse(source)
    if not callable(exercise.solution):
        (stub,) = [node for node in tree.body if ast.unparse(node) == one.stub]
        value = exercise.solution
        shown = f"{{{', '.join(map(repr, sorted(value)))}}}" if isinstance(value, set) else repr(value)
        inserted, at = f"{one.name} = {shown}", stub.end_lineno
        assert at is not None
    else:
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == one.name]
        if list(inspect.signature(exercise.solution).parameters) != [argument.arg for argument in function.args.args]:
            raise SystemExit(f"exercise {one.number}: the solution and the stub have different parameters.")
        text = solution_source(exercise)
        (solved,) = ast.parse(text).body
        assert isinstance(solved, ast.FunctionDef)
        inserted = textwrap.dedent("\n".join(text.split("\n")[solved.body[0].lineno - 1 :]))
        at = function.body[0].lineno - 1
    indent = "" if not callable(exercise.solution) else "    "
    block = textwrap.indent(f"{BEGIN}\n{inserted}\n{END}", indent).split("\n")
    return "\n".join([*lines[:at], *block, *lines[at:]])


def _test(one: Asked, exercise: Exercise) -> dict[str, Any]:
    """The tag lets a run of all cells go on where an exercise is not solved yet."""
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": f"{one.cell}-test",
        "execution_count": None,
        "outputs": [],
        "source": _lines(course.test_source(one)),
    }
    cell["metadata"] = {
        "nbgrader": {**_marks(f"{one.cell}-test", grade=True, locked=True), "points": exercise.difficulty},
        "tags": ["raises-exception"],
    }
    return cell


def _locked(cell: dict[str, Any]) -> dict[str, Any]:
    return {**cell, "metadata": {"nbgrader": _marks(cell["id"], locked=True)}}


def _marks(grade_id: str, grade: bool = False, locked: bool = False, solution: bool = False) -> dict[str, Any]:
    return {
        "grade": grade,
        "grade_id": grade_id,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    sys.exit(main())
