"""From the cells of one notebook to, for each exercise, the statements that its answer needs.

An answer is found by its name, or by what the check was called with; cell ids and metadata play no part. Then the notebook is cut
down: only statements run that the answer depends on, in their order. So no other cell can spoil it, and no figure is drawn.
Parsing hostile text can cost much time or memory, so this runs in the box like everything else.
"""

from __future__ import annotations

import ast
import re
import symtable
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from grading import course
from grading.course import Asked

WATCHED_MODULES = {
    "_thread", "atexit", "builtins", "ctypes", "faulthandler", "gc", "grading", "importlib", "inspect", "multiprocessing", "os",
    "pathlib", "resource", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "urllib",
}  # fmt: skip
WATCHED_NAMES = {
    "EXERCISES", "Exercise", "Outcome", "__import__", "_getframe", "compile", "delattr", "eval", "exec", "find", "get_ipython",
    "globals", "judge", "open", "setattr", "solution", "vars", "__builtins__", "__class__", "__code__", "__dict__",
    "__globals__", "__subclasses__",
}  # fmt: skip
REAL = "smollm2"  # no check needs the real model, and each process would load it again
TIMERS = re.compile(r"\A\s*%%(time|timeit|capture|prun)\b.*\n?")


class Line(NamedTuple):
    """One statement at the top level of the notebook: the names that it binds or changes, those that it reads."""

    code: str
    binds: frozenset[str]
    changes: frozenset[str]
    reads: frozenset[str]
    star: bool
    node: ast.stmt


def plan(cells: Sequence[tuple[str, str]], lesson_by_name: int | None = None) -> dict[str, Any]:
    """What to run: {"lesson": 1, "answers": {"1.1": {…}}}; "lesson" is None where none is recognised.

    Of each answer: statements, expression and shown (its code for a reader), notes and flags. Where nothing has to run: state and
    sentence.
    """
    lines, broken = _lines([source for kind, source in cells if kind == "code"])
    elsewhere, _ = _lines([_unfenced(source) for kind, source in cells if kind != "code"])
    lesson = _lesson(cells, lines) or lesson_by_name
    if lesson is None:
        return {"lesson": None, "answers": {}}
    own, ready = course.statements(lesson), {line.code for line in _lines([course.setup(lesson)])[0]}
    lines = [line for line in lines if line.code not in ready and REAL not in line.code]
    given = {name for line in _lines([course.setup(lesson)])[0] for name in line.binds}
    return {
        "lesson": lesson,
        "answers": {one.number: _answer(one, lines, elsewhere, broken, own, given) for one in course.asked(lesson)},
    }


def _answer(
    one: Asked,
    lines: list[Line],
    elsewhere: list[Line],
    broken: list[tuple[str, str]],
    own: frozenset[str],
    given: set[str],
) -> dict[str, Any]:
    notes: list[str] = []
    bound = [at for at, line in enumerate(lines) if one.name in line.binds]
    tried = [at for at in bound if not _is_stub(lines[at], one)]
    called = [argument for line in lines for number, argument in course.checks(line.node) if number == one.number]
    other = [argument for argument in called if not (isinstance(argument, ast.Name) and argument.id == one.name)]
    half = [(source, said) for source, said in broken if _mentions(source, one)]
    expression, wanted = one.name, {one.name}
    if tried:
        if len(tried) > 1:
            notes.append(f"{one.name} is written {len(tried)} times; the last one counts")
        late = {at for at in bound if at > tried[-1]}  # a stub that was pasted below the answer
        lines = [line for at, line in enumerate(lines) if at not in late]
    elif other:
        expression = ast.unparse(other[-1])
        wanted = _reads(other[-1])
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
    shown = "\n\n".join(line.code for line in needed if line.code not in own) or expression
    flags = sorted({flag for line in needed if line.code not in own for flag in _suspicious(line.node)})
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
    names, chosen = set(wanted), {at for at, line in enumerate(lines) if line.star}
    while True:
        more = {
            at
            for at, line in enumerate(lines)
            if at not in chosen and (line.binds & names or (line.changes & names & made) - given)
        }
        if not more:
            return [lines[at] for at in sorted(chosen)]
        chosen |= more
        names |= {name for at in more for name in lines[at].reads}


# ---- reading


def _lines(sources: Sequence[str]) -> tuple[list[Line], list[tuple[str, str]]]:
    """The statements of all cells, and (source, what is wrong) of cells that are not Python."""
    lines: list[Line] = []
    broken: list[tuple[str, str]] = []
    at = 0
    while at < len(sources):
        source = sources[at]
        at += 1
        tree, wrong = _parsed(source)
        if tree is None and at < len(sources):  # a function whose head and body are in two cells
            tree, _ = _parsed(f"{source}\n{sources[at]}")
            at += tree is not None
        if tree is None:
            broken.append((source, wrong))
            continue
        lines += [_line(statement) for statement in tree.body]
    return lines, broken


def _parsed(source: str) -> tuple[ast.Module | None, str]:
    source = TIMERS.sub("", source)
    if source.lstrip().startswith("%%"):  # a cell in another language
        return ast.Module([], []), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(_plain(source)), ""
    except SyntaxError as error:
        return None, f"{error.msg}, in line {error.lineno}"
    except (ValueError, RecursionError, MemoryError) as error:
        return None, str(error) or type(error).__name__


def _plain(source: str) -> str:
    """Without the magics and shell lines of IPython."""
    if re.search(r"^[ \t]*[%!?]|=[ \t]*[%!]|\?[ \t]*$", source, re.MULTILINE):
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(source)
    return source


def _unfenced(source: str) -> str:
    fenced = re.findall(r"```(?:python|py)?\n(.*?)```", source, re.DOTALL)
    return "\n".join(fenced) if fenced else source


def _line(statement: ast.stmt) -> Line:
    binds, changes, star = set(), set(), False
    for node in _outside(statement):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            binds.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            star |= any(alias.name == "*" for alias in node.names)
            binds |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            binds.add(node.id)
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            changes.add(_root(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changes.add(_root(node.func))  # perhaps: rows.append(…)
    if isinstance(statement, ast.Assign):  # rows = list(…) binds; what its calls change there is nobody's state
        changes = {_root(target) for target in statement.targets if isinstance(target, (ast.Subscript, ast.Attribute))}
    return Line(
        ast.unparse(statement), frozenset(binds), frozenset(changes), frozenset(_reads(statement)), star, statement
    )


def _outside(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the statement does, not those inside functions and classes."""
    yield statement
    if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        for child in ast.iter_child_nodes(statement):
            yield from _outside(child)


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _reads(node: ast.AST) -> set[str]:
    """The names that the code looks up outside itself; a function's own variables are not among them."""
    body = [ast.Expr(node)] if isinstance(node, ast.expr) else [node]
    try:
        table = symtable.symtable(ast.unparse(ast.Module(body, [])), "<notebook>", "exec")  # type: ignore[arg-type]
        return set(_outer(table))
    except SyntaxError:  # a return outside a function: found only when all is put together
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}


def _outer(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _outer(inner)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lesson(cells: Sequence[tuple[str, str]], lines: list[Line]) -> int | None:
    """The lesson that the notebook imports and whose checks and names it has."""
    text = "\n".join(source for _, source in cells)
    names = {name for line in lines for name in line.binds}
    points = {
        lesson: 5 * len(re.findall(rf"helpers\.lesson{lesson}\b", text))
        + 3 * len(set(re.findall(rf"check_{lesson}_\d+", text)))
        + sum(one.name in names for one in course.asked(lesson))
        for lesson in course.notebook_paths()
    }
    best = max(points, key=lambda lesson: points[lesson])
    return best if points[best] else None


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
            if isinstance(one.ctx, ast.Store) and _root(one) in {"torch", "helpers"}:
                found.add(f"an assignment to {ast.unparse(one)}")
    return {f"uses {name}" for name in found}
