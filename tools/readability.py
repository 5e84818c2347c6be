"""How easily a lesson reads: python tools/readability.py

One row for each notebook, over its markdown: words, sentences, the median and the longest sentence in words, the share of sentences
over 25 words, and a grade. The grade is the Automated Readability Index (Senter and Smith 1967): 4.71 · characters per word +
0.5 · words per sentence − 21.43, about the year at school. It counts letters and no syllables, so it needs no dictionary. Code,
formulas, numbers' decimals, link addresses and tables are left out; a list item and a heading are sentences of their own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LONG = 25  # words
BLOCK = re.compile(r"```.*?```|\$\$.*?\$\$", re.S)
CODE = re.compile(r"``.*?``|`[^`]*`|\$[^$\n]+\$")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
TAG = re.compile(r"</?[a-zA-Z][^>]*>")
ITEM = re.compile(r"^\s*(?:[-*+] |\d+\. |>|#+ )\s*")
END = re.compile(r" · |(?<=[.!?…])[\"”’)*_]*\s+(?=[\"“‘(*_]*[A-ZΔ‖0-9`¤])")
WORD = re.compile(r"\w[\w’'\-.]*\w|\w")
SHORT = re.compile(r"\b(e\.g|i\.e|cf|et al|vs|Fig|No)\.")


class Figures(NamedTuple):
    """What is counted of one text."""

    words: int
    sentences: int
    median: float  # words a sentence
    longest: int
    long: float  # share of sentences of more than LONG words
    grade: float


def sentences(markdown: str) -> list[str]:
    """The sentences of a markdown text, without its markup. What stands in `code` or $formula$ counts as one word, ¤."""
    text = TAG.sub(" ", BLOCK.sub("\n\n", markdown))
    text = LINK.sub(r"\1", CODE.sub("¤", text))
    found = []
    for paragraph in paragraphs(text.splitlines()):
        plain = SHORT.sub(lambda match: match[0].replace(".", ""), re.sub(r"[*_]{1,2}", "", paragraph))
        found += [sentence.strip() for sentence in END.split(plain) if WORD.search(sentence)]
    return found


def paragraphs(lines: Iterable[str]) -> list[str]:
    """Lines joined to paragraphs; list items and headings stand alone, and tables are left out."""
    found, open_ = [], False
    for line in lines:
        begins, bare = ITEM.match(line), ITEM.sub("", line).strip()
        if not bare or line.lstrip().startswith("|"):
            open_ = False
        elif begins and not (line.lstrip().startswith(">") and open_):
            found.append(bare)
            open_ = not line.lstrip().startswith("#")
        elif open_:
            found[-1] += " " + bare
        else:
            found.append(bare)
            open_ = True
    return found


def length(sentence: str) -> int:
    """In words; a piece of code is one."""
    return len(WORD.findall(sentence.replace("¤", " x ")))


def figures(texts: Iterable[str]) -> Figures:
    """Count the sentences of several markdown texts."""
    told = [sentence for text in texts for sentence in sentences(text)]
    lengths = [length(sentence) for sentence in told]
    words = sum(lengths)
    letters = sum(len(re.sub(r"\W", "", word)) for sentence in told for word in WORD.findall(sentence))
    named = sum(len(WORD.findall(sentence)) for sentence in told)
    grade = 4.71 * letters / max(named, 1) + 0.5 * words / max(len(told), 1) - 21.43
    long = sum(n > LONG for n in lengths) / max(len(told), 1)
    return Figures(words, len(told), median(lengths or [0]), max(lengths, default=0), long, grade)


def markdown_of(path: Path) -> dict[str, str]:
    """Cell id -> text of each markdown cell."""
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "markdown"}


def main() -> int:
    print(f"{'lesson':<32}{'words':>7}{'sentences':>11}{'median':>8}{'longest':>9}{f'over {LONG}':>9}{'grade':>7}")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        one = figures(markdown_of(path).values())
        print(
            f"{path.stem:<32}{one.words:>7}{one.sentences:>11}{one.median:>8.0f}{one.longest:>9}{one.long:>9.1%}{one.grade:>7.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
