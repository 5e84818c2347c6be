"""The next words of a clean and of an edited run, and the table that every widget shows them in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from helpers.models import LanguageModel
from helpers.plots.style import CLEAN, EDITED
from helpers.say import say
from helpers.tables import Table, format_number, make_table

CELL = "padding: 1px 8px"


@dataclass(frozen=True)
class Words:
    """Some next tokens, the clean run's most probable first: their text and their probability in both runs."""

    names: list[str]
    clean: list[float]
    edited: list[float]


def next_words(lm: LanguageModel, clean: Tensor, edited: Tensor, most: int = 5) -> Words:
    """The `most` likeliest tokens of both runs together. clean, edited: logits (vocabulary,)."""
    most = min(most, len(clean))
    tops = [*clean.topk(most).indices.tolist(), *edited.topk(most).indices.tolist()]
    return these_words(lm, clean, edited, tops)


def these_words(lm: LanguageModel, clean: Tensor, edited: Tensor, ids: Sequence[int]) -> Words:
    """The tokens `ids`, each once. clean, edited: logits (vocabulary,)."""
    old, new, chosen = clean.softmax(-1), edited.softmax(-1), list(dict.fromkeys(ids))
    return Words([lm.tokenizer.decode([i]) for i in chosen], old[chosen].tolist(), new[chosen].tolist())


def words_side_by_side(
    lm: LanguageModel, runs: Mapping[str, Tensor], caption: str, most: int = 3, digits: int = 2
) -> Table:
    """The `most` likeliest next words of each run, with their probability in every run. runs: label -> logits (vocabulary,)."""
    shares = {label: logits.softmax(-1) for label, logits in runs.items()}
    ids = dict.fromkeys(i for row in shares.values() for i in row.topk(most).indices.tolist())
    rows = {repr(lm.tokenizer.decode([i])): [float(row[i]) for row in shares.values()] for i in ids}
    return make_table(rows, caption, columns=list(runs), corner=say("next word"), digits=digits)


def words_table(words: Words, change: bool = False) -> str:
    """An HTML table, so that it can be read aloud and follows the page's colours: each probability over a bar as long.

    change: with the change of log p, in nats, in a last column.
    """
    names = (say("clean"), say("edited"), say("Δ log p (nats)"))[: 3 if change else 2]
    head = "".join(f'<th scope="col" style="text-align: right; {CELL}">{escape(name)}</th>' for name in names)
    rows = []
    for name, before, after in zip(words.names, words.clean, words.edited, strict=True):
        cells = _cell(before, CLEAN) + _cell(after, EDITED)
        if change:
            moved = format_number(math.log(after / before), 2) if before > 0 and after > 0 else "–"
            cells += f'<td style="text-align: right; {CELL}">{moved}</td>'
        label = f'<th scope="row" style="text-align: left; font-weight: normal; {CELL}">{escape(repr(name))}</th>'
        rows.append(f'<tr style="border-top: 1px solid #ddd">{label}{cells}</tr>')
    corner = escape(say("next token"))
    return (
        '<table style="border-collapse: collapse; line-height: 1.3"><thead><tr>'
        f'<th scope="col" style="text-align: left; {CELL}">{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(probability: float, colour: str) -> str:
    bar = f"height: 5px; width: {100 * probability:.1f}%; background: {colour}"
    number = format_number(probability, 2)
    return f'<td style="text-align: right; min-width: 76px; {CELL}">{number}<div style="{bar}"></div></td>'
