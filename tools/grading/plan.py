"""From the cells of one notebook to, for each exercise, the statements that its answer needs.

An answer is found by its name, or by what the check was called with; cell ids and metadata play no part. Then the notebook is cut
down: only statements run that the answer depends on, in their order. So no other cell can spoil it, and no figure is drawn.
Parsing hostile text can cost much time or memory, so this runs in the box like everything else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from grading import course
from grading.course import Asked
from grading.reading import FUNCTIONS, Line, code_in, lines_of, outside, reads, root

WATCHED_MODULES = {
    "_thread", "atexit", "builtins", "ctypes", "faulthandler", "gc", "grading", "importlib", "inspect", "multiprocessing", "os",
    "pathlib", "resource", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "urllib",
}  # fmt: skip
WATCHED_NAMES = {
    "EXERCISES", "Exercise", "Outcome", "__import__", "_getframe", "compile", "delattr", "eval", "exec", "find", "get_ipython",
    "globals", "judge", "open", "setattr", "solution", "vars", "__builtins__", "__class__", "__code__", "__dict__",
    "__globals__", "__subclasses__",
}  # fmt: skip


def plan(cells: Sequence[tuple[str, str]], lesson_by_name: int | None = None) -> dict[str, Any]:
    """What to run: {"lessons": [1], "answers": {"1.1": {…}}}; "lessons" is empty where none is recognised.

    Of each answer: statements, expression and shown (its code for a reader), notes, flags, and absent: the names that only the
    real model would give. Where nothing has to run: state and sentence.
    """
    lines, broken = lines_of([source for kind, source in cells if kind == "code"])
    elsewhere, _ = lines_of([code for kind, source in cells if kind != "code" for code in code_in(source)])
    lessons = _lessons(cells, [*lines, *elsewhere]) or ([lesson_by_name] if lesson_by_name else [])
    own = frozenset().union(*(course.statements(lesson) for lesson in lessons))
    setups = {lesson: lines_of([course.setup(lesson)])[0] for lesson in lessons}
    ready = {line.code for setup in setups.values() for line in setup}
    everything = [line for line in lines if line.code not in ready]
    answers = {}
    for lesson in lessons:
        given = {name for line in setups[lesson] for name in line.binds}
        for one in course.asked(lesson):
            lines = [line for line in everything if one.name in line.binds or not _loads_the_real_model(line.node)]
            answer = _answer(one, lines, elsewhere, broken, own, given)
            answers[one.number] = answer | {"absent": _absent(everything, lines, given)}
    return {"lessons": lessons, "answers": answers}


def _answer(
    one: Asked,
    lines: list[Line],
    elsewhere: list[Line],
    broken: list[tuple[str, str]],
    own: frozenset[str],
    given: set[str],
) -> dict[str, Any]:
    notes: list[str] = []
    bound = [at for at, line in enumerate(lines) if one.name in line.binds and not isinstance(line.node, ast.Delete)]
    tried = [at for at in bound if not _is_stub(lines[at], one)]
    called = [argument for line in lines for number, argument in course.checks(line.node) if number == one.number]
    other = [argument for argument in called if not (isinstance(argument, ast.Name) and argument.id == one.name)]
    half = [(source, said) for source, said in broken if _mentions(source, one)]
    expression, wanted = one.name, {one.name}
    if tried:
        if len(tried) > 1:
            notes.append(f"{one.name} is written {len(tried)} times; the last one counts")
        late = set(bound)  # a stub that was pasted below the answer, names that were deleted when all was done
        late |= {at for at, line in enumerate(lines) if isinstance(line.node, ast.Delete) and not line.changes}
        lines = [line for at, line in enumerate(lines) if at <= tried[-1] or at not in late]
    elif other:
        expression = ast.unparse(other[-1])
        wanted = reads(other[-1])
        notes.append(f"the check was called with {_short(expression)}, not with {one.name}")
    elif half:
        source, said = half[-1]
        return _without("no verdict", f"This cell is not Python: {said}.") | {"shown": source[:20_000]}
    elif not bound and any(one.name in line.binds for line in elsewhere):
        lines = [*lines, *elsewhere]
        if all(_is_stub(line, one) for line in elsewhere if one.name in line.binds):
            return _without("not tried", "")
        notes.append("the answer was not in a code cell")
    elif bound:
        return _without("not tried", "")
    else:
        return _without("missing", f"There is no {one.name} in this notebook.")
    needed = _needed(lines, wanted, given)
    mine = [line for line in needed if line.code not in own]
    written = dict.fromkeys(line.source for line in mine if not line.code.startswith("from helpers."))
    shown = "\n\n".join(written) or expression
    flags = sorted({flag for line in mine for flag in _suspicious(line.node)})
    if not tried and other:
        flags = sorted({*flags, *_suspicious(other[-1])})
    return {
        "statements": [line.code for line in needed],
        "expression": expression,
        "shown": shown[:20_000],
        "notes": notes,
        "flags": flags,
    }


def _without(state: str, sentence: str) -> dict[str, Any]:
    return {"state": state, "sentence": sentence, "shown": "", "notes": [], "flags": []}


def _is_stub(line: Line, one: Asked) -> bool:
    return line.code == one.stub


def _mentions(source: str, one: Asked) -> bool:
    return (
        re.search(rf"^[ \t]*(?:(?:async )?def|class)[ \t]+{one.name}\b|^[ \t]*{one.name}[ \t]*=", source, re.MULTILINE)
        is not None
    )


def _needed(lines: list[Line], wanted: set[str], given: set[str]) -> list[Line]:
    """The statements on which `wanted` depends, in order. Modules and the lesson's names are not "changed" by a statement here."""
    made = {name for line in lines for name in line.binds if not isinstance(line.node, (ast.Import, ast.ImportFrom))}
    within = {pair for line in lines for pair in line.within}
    names, chosen = set(wanted), {at for at, line in enumerate(lines) if line.star}
    while True:
        changing = names & made
        while more_names := {name for name, whole in within if whole in changing} - changing:
            changing |= more_names
        changing -= given
        more = {
            at for at, line in enumerate(lines) if at not in chosen and (line.binds & names or line.changes & changing)
        }
        if not more:
            return [lines[at] for at in sorted(chosen)]
        chosen |= more
        names |= {name for at in more for name in lines[at].reads}


def _loads_the_real_model(node: ast.stmt) -> bool:
    """No check needs the real model, and each process would load it again. A function that would load it may be defined."""
    for call in (one for one in outside(node) if isinstance(one, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        values = [*call.args, *(key.value for key in call.keywords)]
        if name == "load_model" and any(isinstance(one, ast.Constant) and one.value == "smollm2" for one in values):
            return True
    return False


def _absent(everything: list[Line], lines: list[Line], given: set[str]) -> list[str]:
    """The names that only a statement binds which was left out, or which reads such a name."""
    absent: set[str] = set()
    everything, there = ([one for one in some if not isinstance(one.node, ast.Delete)] for some in (everything, lines))
    while True:
        stays = [line for line in there if isinstance(line.node, (*FUNCTIONS, ast.ClassDef)) or not line.reads & absent]
        bound = given.union(*(line.binds for line in stays))
        more = {name for line in everything for name in line.binds} - bound - absent
        if not more:
            return sorted(absent)
        absent |= more


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lessons(cells: Sequence[tuple[str, str]], lines: list[Line]) -> list[int]:
    """The lesson that the notebook imports and whose checks and names it has, and each other whose exercises are in it.

    One function by the name of an answer makes no lesson: `make_hook` is what anybody would call a hook.
    """
    text = "\n".join(source for _, source in cells)
    names = {name for line in lines for name in line.binds}
    made = {line.node.name for line in lines if isinstance(line.node, FUNCTIONS)}
    points, found = {}, set()
    for lesson in course.notebook_paths():
        imported = len(re.findall(rf"helpers\.lesson{lesson}\b", text))
        checked = len(set(re.findall(rf"check_{lesson}_\d+", text)))
        answered = {one.name for one in course.asked(lesson)}
        points[lesson] = 5 * imported + 3 * checked + len(answered & names)
        if checked or len(answered & made) + bool(imported and answered & made) > 1:
            found.add(lesson)
    best = max(points, key=lambda lesson: points[lesson])
    return sorted(found | {best}) if points[best] else []


def _suspicious(node: ast.AST) -> set[str]:
    """What a learner's code names that no answer needs. Only flagged: there may be good reasons."""
    found = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            found |= {alias.name.split(".")[0] for alias in one.names} & WATCHED_MODULES
        elif isinstance(one, ast.ImportFrom):
            found |= {(one.module or "").split(".")[0]} & WATCHED_MODULES
            found |= {alias.name for alias in one.names} & WATCHED_NAMES
        elif isinstance(one, ast.Name):
            found |= {one.id} & WATCHED_NAMES
            found |= {"the course's solution"} if re.fullmatch(r"solution_\d+_\d+", one.id) else set()
        elif isinstance(one, ast.Attribute):
            found |= {one.attr} & WATCHED_NAMES
            if isinstance(one.ctx, ast.Store) and root(one) in {"torch", "helpers"}:
                found.add(f"an assignment to {ast.unparse(one)}")
    return {f"uses {name}" for name in found}
