"""Small rounded tables: the numbers behind a figure, the same digits on every machine.

    show_table(delta, "Δ at each point of the stream")
    show_table({"Δ": delta, "‖H‖": size}, "Difference and size", columns=point_names(lm.n_blocks))

In Jupyter a table is HTML with a caption and headed rows and columns, so that a screen reader can read it;
elsewhere it is aligned text. Numbers keep four significant digits: float64 results agree to far more digits
than that between CPUs, so a stored table can be compared with a new one character by character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .say import say

TINY = 1e-12
NUMBER = re.compile(r"(< )?[-+−×]?\s?[\d.,]+(e[+-]?\d+)?( ?%)?|nan|-?inf")
BREAKS = re.compile(r".[ -]")  # where a browser may break a number
CODE = re.compile("`([^`]+)`")


def format_number(value: Any, digits: int = 4) -> str:
    """Return `value` as short text: at most `digits` significant digits, `0` for an exact zero, `< 1e-12` for less.

    Strings pass through, whole numbers stay whole, booleans become `yes` and `no`, None becomes an empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if hasattr(value, "item"):  # a tensor or numpy scalar
        value = value.item()
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    if isinstance(value, int):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if number == 0:
        return "0"
    if abs(number) < TINY:
        return f"< {TINY:.0e}"
    if 1e-3 <= abs(number) < 1e6:
        return np.format_float_positional(float(f"{number:.{digits - 1}e}"), trim="-")
    return f"{number:.{max(digits - 2, 1)}e}"


def below(value: Any, bound: float = TINY) -> str:
    """Say how a difference that should be nothing compares with `bound`: `< 1e-12`, or the number if it is larger.

    Use it where rounding may leave 0 on one machine and 1e-16 on the next.
    """
    number = abs(float(value))
    return f"< {bound:.0e}" if number < bound else format_number(number)


@dataclass(frozen=True)
class Table:
    """A finished table of strings. `header` has one entry per column, the first heads the row labels."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> tuple[bool, ...]:
        """Which columns hold text: those stand on the left, numbers on the right."""
        columns = range(1, len(self.header))
        return (True, *(any(row[i] and not NUMBER.fullmatch(row[i]) for row in self.rows) for i in columns))

    def __repr__(self) -> str:
        lines = (self.header, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        aligned = [
            "  ".join(
                cell.ljust(width) if word else cell.rjust(width)
                for cell, width, word in zip(line, widths, self.words, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.caption, *aligned])

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col"{_style(word)}>{_html(cell)}</th>'
            for cell, word in zip(self.header, self.words, strict=True)
        )
        body = "\n".join(
            f'<tr><th scope="row"{_style(True, row[0])}>{_html(row[0])}</th>'
            + "".join(
                f"<td{_style(word, cell)}>{_html(cell)}</td>"
                for cell, word in zip(row[1:], self.words[1:], strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        wide = min(28, len(self.caption) // 2)  # over a narrow table a caption would be a tower of short lines
        return (
            f'<table>\n<caption style="min-width: {wide}em">{_html(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

    def to_markdown(self) -> str:
        """Return the table as a markdown table, without its caption."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def make_table(
    data: Any,
    caption: str,
    columns: Sequence[Any] | None = None,
    rows: Sequence[Any] | None = None,
    corner: str = "",
    digits: int = 4,
) -> Table:
    """Build a `Table` from numbers.

    `data` is one series (a single row), a 2-D array or a list of rows, or a mapping from row label to a series or
    a single value. `columns` and `rows` head the columns and rows (columns default to 0, 1, 2 …), `corner` heads the
    row labels. Tensors, arrays, numbers, strings, booleans and None are all welcome as cells.
    Raises ValueError when a row has more or fewer cells than there are columns.
    """
    if isinstance(data, Mapping):
        if rows is not None:
            raise ValueError(say("a mapping brings its own row labels: leave `rows` out"))
        rows, series = list(data), [_cells(value) for value in data.values()]
    else:
        plain = _cells(data)
        series = [_cells(row) for row in plain] if plain and isinstance(plain[0], (list, tuple)) else [plain]
    width = max((len(row) for row in series), default=0)
    names = [format_number(name) for name in (columns if columns is not None else range(width))]
    labels = [format_number(name) for name in (rows if rows is not None else [""] * len(series))]
    if len(labels) != len(series):
        raise ValueError(say("{n_labels} row labels for {n_rows} rows", n_labels=len(labels), n_rows=len(series)))
    for label, row in zip(labels, series, strict=True):
        if len(row) != len(names):
            raise ValueError(
                say(
                    "row {label!r} has {n_cells} cells for {n_columns} columns",
                    label=label,
                    n_cells=len(row),
                    n_columns=len(names),
                )
            )
    body = tuple(
        (label, *(format_number(cell, digits) for cell in row)) for label, row in zip(labels, series, strict=True)
    )
    return Table(caption, (corner, *names), body)


def show_table(
    data: Any,
    caption: str,
    columns: Sequence[Any] | None = None,
    rows: Sequence[Any] | None = None,
    corner: str = "",
    digits: int = 4,
) -> None:
    """Display the table that `make_table` builds from the same arguments, at once, anywhere in a cell."""
    from IPython.display import display

    display(make_table(data, caption, columns, rows, corner, digits))


def _cells(data: Any) -> list[Any]:
    """Return `data` as a plain list: of cells for a series, of lists for a 2-D array."""
    if hasattr(data, "detach"):
        data = data.detach().cpu()
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, (str, bytes)) or not isinstance(data, Sequence):
        return [data]
    return list(data)


def _html(text: str) -> str:
    """Escape a text; what stands between backticks is code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def _style(word: bool, cell: str = "") -> str:
    """Text on the left; a number such as `< 1e-12` on one line, however narrow its column."""
    rules = ["text-align: left"] if word else []
    if NUMBER.fullmatch(cell) and BREAKS.search(cell):
        rules.append("white-space: nowrap")
    return f' style="{"; ".join(rules)}"' if rules else ""
