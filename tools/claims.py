"""Measure and judge every claim of the five reports on one model: python tools/claims.py [--model gpt2]

Runs the ledgers of all lessons, prints one table and saves it: for the pocket model docs/claims.md, docs/claims.csv and
the README's table (all three are committed), for any other model claims-NAME.md and claims-NAME.csv in the folder that
you call it from.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import transformers

from helpers import HelpersError, LanguageModel, load_model
from helpers.claims.core import Claim, Verdict, ledger_table

ROOT = Path(__file__).resolve().parent.parent
WATER = "There is a lot of liquid water on planet Earth"
PROMPTS = {1: WATER, 2: WATER, 3: WATER, 4: "Berlin is the capital of", 5: WATER}  # of each lesson, as in its notebook
BEGIN, END = "<!-- claims: begin (make claims writes this part) -->", "<!-- claims: end -->"


def measure(lm: LanguageModel, lessons: Sequence[int] = tuple(PROMPTS)) -> list[Claim]:
    """Run the ledgers of these lessons on `lm`, in order."""
    claims: list[Claim] = []
    for lesson in lessons:
        print(f"lesson {lesson} …", file=sys.stderr, flush=True)
        claims += import_module(f"helpers.claims.lesson{lesson}").ledger(lm, PROMPTS[lesson])
    return claims


def counted(claims: Sequence[Claim]) -> str:
    """One line that counts the verdicts."""
    counts = Counter(claim.verdict for claim in claims)
    return f"Verdicts on {len(claims)} claims: {', '.join(f'{verdict} {counts[verdict]}' for verdict in Verdict)}."


def body(claims: Sequence[Claim]) -> str:
    """The count and the table, as markdown."""
    return f"{counted(claims)}\n\n{ledger_table(claims).to_markdown()}\n"


def page(claims: Sequence[Claim], model: str) -> str:
    """The table as a page of its own: which model, which versions, how to measure again."""
    again = "make claims" + ("" if model == "pocket" else f" MODEL={model}")
    return (
        f"# The claims of the five reports, measured on {'the pocket model' if model == 'pocket' else model}\n\n"
        f"Written by `{again}`, with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}. "
        f"Each verdict is computed from the numbers beside it.\n\n{body(claims)}"
    )


def save_csv(claims: Sequence[Claim], path: Path) -> None:
    """One row for each claim, in the order of the table."""
    table = ledger_table(claims)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])


def with_claims(readme: str, claims: Sequence[Claim]) -> str:
    """The README with the present table in its marked place, folded away under its count.

    Raises ValueError if the marks are not there once each.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README must hold the marks {BEGIN!r} and {END!r} once each")
    before, rest = readme.split(BEGIN)
    folded = f"<details>\n<summary>{counted(claims)}</summary>\n\n{ledger_table(claims).to_markdown()}\n\n</details>"
    return f"{before}{BEGIN}\n\n{folded}\n\n{END}{rest.split(END)[1]}"


def save(claims: Sequence[Claim], model: str, root: Path = ROOT, folder: Path | None = None) -> list[Path]:
    """Write the page and the CSV, and for the pocket model the README's table; returns what was written."""
    if model == "pocket":
        readme = root / "README.md"
        readme.write_text(with_claims(readme.read_text(encoding="utf-8"), claims), encoding="utf-8")
        stem = root / "docs" / "claims"
        written = [readme]
    else:
        name = re.sub(r"[^\w.-]+", "-", Path(model).name if Path(model).is_dir() else model).strip("-")
        stem = (folder or Path.cwd()) / f"claims-{name}"
        written = []
    markdown, table = stem.parent / f"{stem.name}.md", stem.parent / f"{stem.name}.csv"
    markdown.parent.mkdir(exist_ok=True)
    markdown.write_text(page(claims, model), encoding="utf-8")
    save_csv(claims, table)
    return [markdown, table, *written]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pocket", help="'pocket', a name on the model hub, or a local folder")
    model = parser.parse_args(arguments).model
    try:
        claims = measure(load_model(model))
    except HelpersError as mistake:
        print(f"{type(mistake).__name__}: {mistake}", file=sys.stderr)
        return 1
    print(page(claims, model))
    print("saved:", ", ".join(path.name for path in save(claims, model)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
