"""From the text of cells to statements: what each binds, what it may change, what it reads, and how its author wrote it."""

from __future__ import annotations

import ast
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

TIMERS = re.compile(r"\A\s*%%(time|timeit|capture|prun)\b.*\n?")
FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^\n`]*\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
BEGINS = re.compile(r"([ \t]*)(?:(?:async )?def |class |@\w|import \w|from \w|\w+[ \t]*=[^=])")
SHOWS = re.compile(r"(check|show|plot)_\w+|print|display|hint|help")
RETURNS_AND_CHANGES = re.compile(r"pop(item)?|setdefault|send|register_\w+|\w*[a-z\d]_")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Line(NamedTuple):
    """One statement at the top level of the notebook: the names that it binds or changes, those that it reads.

    "fill()" among the changes: it calls fill. within: (a, b) where who changes a changes b, as after a = b["rows"]; after
    def fill that changes rows it is ("fill()", "rows").
    """

    code: str
    source: str
    binds: frozenset[str]
    changes: frozenset[str]
    reads: frozenset[str]
    within: frozenset[tuple[str, str]]
    star: bool
    node: ast.stmt


def lines_of(sources: Sequence[str]) -> tuple[list[Line], list[tuple[str, str]]]:
    """The statements of all cells, and (source, what is wrong) of cells that are not Python."""
    lines: list[Line] = []
    broken: list[tuple[str, str]] = []
    at = 0
    while at < len(sources):
        source = sources[at]
        at += 1
        text, tree, wrong = _parsed(source)
        if tree is None and at < len(sources):  # a function whose head and body are in two cells
            text, tree, _ = _parsed(f"{source}\n{sources[at]}")
            at += tree is not None
        if tree is None:
            broken.append((source, wrong))
            continue
        written = re.split(r"\r\n|\r|\n", text)
        lines += [_line(statement, written) for statement in tree.body]
    return lines, broken


def code_in(text: str) -> list[str]:
    """The code in a cell that is no code cell: all of it, or what is fenced, or what stands under or between prose."""
    fenced = [code for _, code in FENCED.findall(text)]
    if fenced or _parsed(text)[1] is not None:
        return ["\n".join(fenced) if fenced else text]
    blocks: list[list[str]] = []
    indent = None  # of the block that goes on
    for line in text.split("\n"):
        begins = BEGINS.match(line)
        deeper = indent is not None and (not line.strip() or line.startswith((f"{indent} ", f"{indent}\t")))
        if indent is not None and (deeper or line.startswith((f"{indent})", f"{indent}]"))):
            blocks[-1].append(line)
        elif begins:
            indent = begins[1]
            blocks.append([line])
        else:
            indent = None
    return [textwrap.dedent("\n".join(block)) for block in blocks]


def reads(node: ast.AST) -> set[str]:
    """The names that the code looks up outside itself; a function's own variables are not among them."""
    body = [ast.Expr(node)] if isinstance(node, ast.expr) else [node]
    try:
        table = symtable.symtable(ast.unparse(ast.Module(body, [])), "<notebook>", "exec")  # type: ignore[arg-type]
        return set(_outer(table))
    except SyntaxError:  # a return outside a function: found only when all is put together
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}


def outside(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the statement does, not those inside functions and classes."""
    yield statement
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        for decorator in statement.decorator_list:
            yield from outside(decorator)
    elif not isinstance(statement, ast.Lambda):
        for child in ast.iter_child_nodes(statement):
            yield from outside(child)


def root(node: ast.expr) -> str:
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


# ---- parts


def _parsed(source: str) -> tuple[str, ast.Module | None, str]:
    """(the text that was parsed, its tree or None, what is wrong with it)."""
    source = TIMERS.sub("", source)
    if source.lstrip().startswith("%%"):  # a cell in another language
        return source, ast.Module([], []), ""
    try:
        source = _plain(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return source, ast.parse(source), ""
    except SyntaxError as error:  # one about NUL bytes has no line
        return source, None, f"{error.msg}, in line {error.lineno}" if error.lineno else error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        return source, None, str(error) or type(error).__name__


def _plain(source: str) -> str:
    """Without the magics and shell lines of IPython."""
    if re.search(r"^[ \t]*[%!?]|=[ \t]*[%!]|\?[ \t]*$", source, re.MULTILINE):
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(source)
    return source


def _line(statement: ast.stmt, written: Sequence[str]) -> Line:
    binds, within, star = set(), set(), False
    read = reads(statement)
    for node in outside(statement):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            binds.add(node.name)
            within |= {
                (f"{node.name}()", name) for name in _changes(node, inside=True) if name.removesuffix("()") in read
            }
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            star |= any(alias.name == "*" for alias in node.names)
            binds |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            binds.add(node.id)
        within |= _within(node)
    return Line(
        ast.unparse(statement),
        _as_written(statement, written),
        frozenset(binds),
        frozenset(_changes(statement)),
        frozenset(read),
        frozenset(within),
        star,
        statement,
    )


def _as_written(statement: ast.stmt, written: Sequence[str]) -> str:
    """The author's own lines, with the comments right above them."""
    first = min(one.lineno for one in (statement, *getattr(statement, "decorator_list", [])))
    while first > 1 and written[first - 2].lstrip().startswith("#"):
        first -= 1
    return "\n".join(written[first - 1 : statement.end_lineno])


def _changes(node: ast.AST, bare: bool = False, inside: bool = False) -> set[str]:
    """What may be changed when this runs; inside: when the function or the class is used.

    A call whose result is thrown away is made for what it changes: what it is a method of, or gets by its bare name.
    """
    found: set[str] = set()
    children: list[Any] = list(ast.iter_child_nodes(node))
    if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)) and not inside:
        children = getattr(node, "decorator_list", [])
        found = {f"{one.id}()" if isinstance(one, ast.Name) else root(one) for one in children}
    elif isinstance(node, ast.Assign):
        bare = all(isinstance(target, ast.Name) and target.id == "_" for target in node.targets)
    elif isinstance(node, ast.stmt):
        bare = isinstance(node, (ast.Expr, ast.With))
    if isinstance(node, ast.Global):
        found = set(node.names)
    elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, (ast.Store, ast.Del)):
        found = {root(node)}
    elif isinstance(node, ast.AugAssign):
        found = {root(node.target)}
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name:
            found = {f"{name}()"}
        elif isinstance(node.func, ast.Attribute) and (bare or RETURNS_AND_CHANGES.fullmatch(node.func.attr)):
            found = {root(node.func)}
        if (bare and not SHOWS.fullmatch(name)) or name == "next":
            found |= {part for one in (*node.args, *(key.value for key in node.keywords)) for part in _parts(one)}
    return found.union(*(_changes(child, bare, inside) for child in children))


def _within(node: ast.AST) -> set[tuple[str, str]]:
    """(a, b) for each a that this binds to b or to a part of it."""
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value:
        targets, value = [node.target], node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        names = {one.id for one in ast.walk(node.iter) if isinstance(one, ast.Name)}
        return {(one.id, name) for one in ast.walk(node.target) if isinstance(one, ast.Name) for name in names}
    else:
        return set()
    made = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return {
        (kind.format(name), kind.format(part)) for name in made for part in _parts(value) for kind in ("{}", "{}()")
    } | {(f"{name}()", root(value)) for name in made if isinstance(value, (ast.Attribute, ast.Subscript))}


def _parts(value: ast.expr) -> set[str]:
    """The names whose values go, unchanged, into this one's: all three of [a, b.rows, Table(c)]."""
    if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript)):
        return {root(value)}
    if isinstance(value, ast.Call):  # an object of a class keeps what it gets
        if not root(value)[:1].isupper() and not (
            isinstance(value.func, ast.Attribute) and value.func.attr[:1].isupper()
        ):
            return set()
        return {f"{root(value)}()"}.union(*map(_parts, (*value.args, *(key.value for key in value.keywords))))
    if isinstance(value, (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.IfExp, ast.BoolOp, ast.Starred)):
        return set().union(*(_parts(one) for one in ast.iter_child_nodes(value) if isinstance(one, ast.expr)))
    return set()


def _outer(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        used = symbol.is_referenced() or symbol.is_declared_global()
        if used and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _outer(inner)
