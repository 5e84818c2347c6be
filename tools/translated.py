"""Lessons in another language: python tools/translated.py LANGUAGE [--start | --seen CELL …]

A translated lesson lies in notebooks/LANGUAGE under the name of the English one, with the same cells and the same code: only
markdown, comments and the texts in quotation marks differ. Without an option: names every cell that is missing, extra or moved, whose
code does something else, or whose English text has changed since it was translated; exit code 1 if there is one.
--start: copies the lessons that are not there yet, without outputs. --seen: what is said in these cells is up to date again.
docs/translating.md shows the whole way.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STAMP = "translated_from"  # in a cell's metadata: which English text it says


def stamp(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


class _WithoutTexts(ast.NodeTransformer):
    """Each text becomes one mark, each f-string the sorted list of what it puts in: another language has another order."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("…") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        put_in = sorted(ast.unparse(value) for value in node.values if isinstance(value, ast.FormattedValue))
        return ast.Tuple([ast.Constant("…"), *map(ast.Constant, put_in)], ast.Load()) if put_in else ast.Constant("…")


def does(source: str) -> str:
    """What a cell's code does, whatever its texts and comments say. Raises SyntaxError."""
    return ast.dump(_WithoutTexts().visit(ast.parse(source)))


def start(english: Any) -> Any:
    """A copy to translate: without outputs, each cell with the stamp of its English text."""
    copy = nbformat.from_dict(english)
    for cell in copy.cells:
        cell.metadata[STAMP] = stamp(cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return copy


def differences(english: Any, other: Any) -> Iterator[str]:
    """One line for each cell that needs a translator."""
    originals = {cell.id: cell for cell in english.cells}
    others = {cell.id: cell for cell in other.cells}
    yield from (f"{name}: missing" for name in originals if name not in others)
    yield from (f"{name}: not in the English lesson" for name in others if name not in originals)
    shared = [name for name in originals if name in others]
    places = [name for name in others if name in originals]
    yield from (f"{name}: moved" for name, there in zip(shared, places, strict=True) if name != there)
    for name in shared:
        one, two = originals[name], others[name]
        if one.cell_type != two.cell_type:
            yield f"{name}: {two.cell_type} in place of {one.cell_type}"
        elif one.cell_type == "code" and not _same_code(one.source, two.source):
            yield f"{name}: its code does something else"
        if two.metadata.get(STAMP) != stamp(one.source):
            yield f"{name}: the English text has changed since"


def _same_code(one: str, two: str) -> bool:
    try:
        return does(one) == does(two)
    except SyntaxError:
        return False


def main(arguments: Sequence[str] | None = None, notebooks: Path = NOTEBOOKS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("language", help="the folder in notebooks, for example vi")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--start", action="store_true", help="copy the lessons that are not there yet")
    what.add_argument("--seen", nargs="+", metavar="CELL", default=[], help="ids of cells that are up to date")
    asked = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", asked.language):
        parser.error(f"{asked.language!r} is not the code of a language: write for example vi or pt_BR")
    folder = notebooks / asked.language
    if asked.start:
        folder.mkdir(exist_ok=True)
    lessons = sorted(notebooks.glob("*.ipynb"))
    known: set[str] = set()
    told = 0
    for path in lessons:
        english, place = nbformat.read(path, as_version=4), folder / path.name
        if asked.start and not place.exists():
            nbformat.write(start(english), place)
            print("written:", place.relative_to(notebooks.parent).as_posix())
        if not place.exists():
            continue
        other = nbformat.read(place, as_version=4)
        for cell in other.cells:
            if cell.id in asked.seen:
                originals = {one.id: one.source for one in english.cells}
                cell.metadata[STAMP] = stamp(originals.get(cell.id, ""))
                known.add(cell.id)
        if known & {cell.id for cell in other.cells}:
            nbformat.write(other, place)
        for line in differences(english, other):
            print(f"{path.stem}: {line}")
            told += 1
    unknown = [name for name in asked.seen if name not in known]
    if unknown:
        parser.error(f"there is no cell {unknown[0]!r} in notebooks/{asked.language}: ids are like l1-title")
    if not any((folder / path.name).exists() for path in lessons):
        parser.error(f"notebooks/{asked.language} has no lesson yet: begin with --start")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
