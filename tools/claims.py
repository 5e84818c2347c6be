"""Measure and judge every claim of the five reports: python tools/claims.py [--model gpt2]

Without an argument, on the pocket model and on the real one: that writes docs/claims.md, helpers/data/claims.csv and the count in the
README (all three are committed). With a model, on that one alone: claims-NAME.md and claims-NAME.csv in the folder that you
call it from. What is measured is kept in .cache/claims, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from helpers import HelpersError, LanguageModel, load_model, set_language
from helpers.course.ledger import Claim, Kept, Verdict, in_order

ROOT = Path(__file__).resolve().parent.parent
BOTH = ("pocket", "smollm2")
TITLES = {"pocket": "the pocket model", "smollm2": "SmolLM2-135M"}
WATER = "There is a lot of liquid water on planet Earth"
LESSONS = {
    1: ("01_downstream_scaling", "Downstream scaling"),
    2: ("02_hooks_vs_hidden_states", "Hooks and hidden states"),
    3: ("03_multi_component_challenge", "The multi-component challenge"),
    4: ("04_head_ablation", "Head ablation"),
    5: ("05_skip_layer", "Skipping a layer"),
}
CELLS = {  # where a lesson measures or discusses each claim
    "1.1": "l1-lie", "1.2": "l1-lie", "1.3": "l1-fades", "1.4": "l1-first-token", "1.5": "l1-writer", "1.6": "l1-lie-why",
    "1.7": "l1-lie-why", "1.8": "l1-sink", "1.9": "l1-stretch",
    "2.1": "l2-every-block", "2.2": "l2-likeness", "2.3": "l2-mask", "2.4": "l2-modes", "2.5": "l2-modes",
    "3.1": "l3-exercise-1", "3.2": "l3-noise", "3.3": "l3-scale", "3.4": "l3-scale", "3.5": "l3-scale", "3.6": "l3-forms",
    "3.7": "l3-look-finding", "3.8": "l3-rest", "3.9": "l3-noise-finding",
    "4.1": "l4-maps", "4.2": "l4-top-one", "4.3": "l4-top-one", "4.4": "l4-top-one", "4.5": "l4-together", "4.6": "l4-maps",
    "4.7": "l4-top-one", "4.8": "l4-together",
    "5.1": "l5-hook", "5.2": "l5-hook-text", "5.3": "l5-hook", "5.4": "l5-price", "5.5": "l5-damage", "5.6": "l5-work-text",
}  # fmt: skip
BEGIN, END = "<!-- claims: begin (make claims writes this part) -->", "<!-- claims: end -->"
HOW = """\
A claim about a model is judged on many prompts. It is split into parts, and each part says with its threshold what must be true
of a prompt. The claim *holds* if all parts are true together on at least 90 % of the prompts. It *does not hold* if its core,
the first part, is true on fewer than half. Between the two it *holds in part*. A claim that is judged at two places fails only
if its core fails at both. A median is taken over the prompts.

*Significant* means: the exact sign test over prompts, two-sided, corrected for the number of heads, blocks or pairs by Holm's
method (Holm 1979) at the level of 5 % for each row. KL is KL(clean ‖ edited), in nats. A mean that replaces a head is taken at
each position, over other prompts of the same length (Wang et al. 2022). The strongest heads are found on some prompts and
judged on others. Prompts are those of the lessons and the first sentences of 24 held-out passages; in lesson 4, capitals that
the model knows (all of them, if it knows too few), after a first sentence that shows the pattern where it needs one. Claim 4.8
counts only the prompts on which no head alone costs the target its first place."""
REAL = (
    "SmolLM2-135M is SmolLM2-135M-Instruct, a model tuned on instructions, computed from weights of 4 bits "
    "([both models](models.md)).\n\n"
)


class Run(NamedTuple):
    """How a ledger was measured."""

    seconds: float
    threads: int
    dtype: str

    def __str__(self) -> str:
        took = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        return f"{took} in {self.dtype} on {self.threads} thread{'s' if self.threads > 1 else ''}"


def measure(lm: LanguageModel, model: str, kept: Path) -> tuple[list[Claim], float]:
    """Run the ledgers of all lessons on `lm`; returns the claims and the seconds that their measurements took."""
    claims: list[Claim] = []
    seconds, weights = 0.0, fingerprint(lm)
    for lesson in LESSONS:
        print(f"lesson {lesson} …", file=sys.stderr, flush=True)
        keep = Kept(kept_file(model, lesson, weights, kept))
        ledger = import_module(f"helpers.lesson{lesson}.claims").ledger
        claims += ledger(lm, keep=keep) if lesson == 4 else ledger(lm, WATER, keep=keep)
        seconds += keep.seconds
    return claims, seconds


# ---- what is kept


def fingerprint(lm: LanguageModel) -> str:
    """Of the weights and of what computes with them."""
    key = hashlib.sha256(f"{torch.__version__} {transformers.__version__} {lm.dtype}".encode())
    for parameter in lm.model.state_dict().values():
        key.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return key.hexdigest()


def kept_file(model: str, lesson: int, weights: str, folder: Path) -> Path:
    """The file of what one lesson measured on one model, with these versions and this code. Verdict functions don't count: they
    only read the numbers, so a sentence can be changed without measuring again."""
    key = hashlib.sha256(weights.encode())
    for file in [*sorted((ROOT / "helpers").glob("*.py")), ROOT / "helpers" / f"lesson{lesson}" / "claims.py"]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [one for one in tree.body if not getattr(one, "name", "").startswith("verdict_")]
        key.update(ast.unparse(tree).encode())
    for file in sorted((ROOT / "helpers" / "data").glob("*.t*")):  # prompts and texts
        key.update(file.read_bytes())
    return folder / f"{plain(model)}-lesson{lesson}-{key.hexdigest()[:12]}.jsonl"


def plain(name: str) -> str:
    """A model's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", Path(name).name if Path(name).is_dir() else name).strip("-")


# ---- the page


def counted(claims: Sequence[Claim]) -> str:
    """One line that counts the verdicts."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in Verdict if counts[verdict])


def cell(claim: Claim) -> str:
    """The verdict first, then the reason, then further numbers."""
    numbers = f"<br><sub>{claim.measured}</sub>" if claim.measured else ""
    return f"**{claim.verdict_text}**<br>{claim.why}.{numbers}".replace("|", "\\|")


def table(ledgers: Mapping[str, Sequence[Claim]], software: bool, folder: str) -> str:
    """One row for each claim, one column for each model, as markdown. folder: of the notebooks, as seen from the page."""
    rows = [f"| claim | the report says | {' | '.join(TITLES.get(model, model) for model in ledgers)} |"]
    rows.append("| --- | --- |" + " --- |" * len(ledgers))
    for claims in zip(*(in_order(claims) for claims in ledgers.values()), strict=True):
        if claims[0].software == software:
            says = claims[0].says.replace("|", "\\|")
            rows.append(f"| {link_to(claims[0].number, folder)} | {says} | {' | '.join(map(cell, claims))} |")
    return "\n".join(rows)


def link_to(number: str, folder: str) -> str:
    """A claim's number, linked to its cell (JupyterLab goes there), and the section for who reads it elsewhere."""
    notebook = f"{LESSONS[int(number[0])][0]}.ipynb"
    section = "opening"
    for one in json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]:
        if heading := re.search(r"^## (\d+) ·", "".join(one["source"]), re.M):
            section = f"section {heading[1]}"
        if one["id"] == CELLS[number]:
            return f"[{number}]({folder}{notebook}#cell-id={one['id']})<br>{section}"
    raise ValueError(f"claim {number} is said to stand in cell {CELLS[number]!r}, which {notebook} does not have")


def page(ledgers: Mapping[str, Sequence[Claim]], runs: Mapping[str, Run], command: str, folder: str) -> str:
    """The ledger as a page: the count, how a verdict is reached, claims about models, claims about software. folder: of the
    notebooks, as seen from the page."""

    took = ", ".join(f"{TITLES.get(model, model)} took {runs[model]}" for model in ledgers)
    counts = "\n".join(f"- **{TITLES.get(model, model)}**: {counted(claims)}." for model, claims in ledgers.items())
    number, real = len(next(iter(ledgers.values()))), REAL if tuple(ledgers) == BOTH else ""
    return f"""# The claims of the five reports, measured

The reports make {number} claims. A function computes each verdict from the numbers beside it.

{counts}

{real}Written by `{command}` with transformers {transformers.__version__} and torch {torch.__version__.split("+")[0]}: {took}.
A run that was stopped goes on where it was.

## How a verdict is reached

{HOW}

## Claims about models

{table(ledgers, False, folder)}

## Claims about software and arithmetic

They would come out alike on any model of the family, or depend on a library rather than on what a model has learned.

{table(ledgers, True, folder)}
"""


def save_csv(ledgers: Mapping[str, Sequence[Claim]], path: Path) -> None:
    """One row for each claim and model."""
    header = ["claim", "about", "the report says", "model", "verdict", "true on", "of prompts", "why", "measured"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for claims in zip(*(in_order(claims) for claims in ledgers.values()), strict=True):
            for model, c in zip(ledgers, claims, strict=True):
                about = "software" if c.software else "model"
                writer.writerow([c.number, about, c.says, model, c.verdict, *(c.over or ("", "")), c.why, c.measured])


def with_count(readme: str, ledgers: Mapping[str, Sequence[Claim]]) -> str:
    """The README with the present count in its marked place. Raises ValueError if the marks are not there once each."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README must hold the marks {BEGIN!r} and {END!r} once each")
    before, rest = readme.split(BEGIN)
    rows = [
        f"| {v} | {' | '.join(str(sum(c.verdict == v for c in claims)) for claims in ledgers.values())} |"
        for v in Verdict
    ]
    number = len(next(iter(ledgers.values())))
    head = (
        f"| of {number} claims | {' | '.join(TITLES[model] for model in ledgers)} |\n| --- |{' ---: |' * len(ledgers)}"
    )
    return f"{before}{BEGIN}\n\n{head}\n" + "\n".join(rows) + f"\n\n{END}{rest.split(END)[1]}"


def save(
    ledgers: Mapping[str, Sequence[Claim]], runs: Mapping[str, Run], root: Path = ROOT, folder: Path | None = None
) -> list[Path]:
    """Write the page and the CSV, and for the course's two models the README's count; returns what was written."""
    if tuple(ledgers) == BOTH:
        readme, markdown, numbers = (
            root / "README.md",
            root / "docs" / "claims.md",
            root / "helpers" / "data" / "claims.csv",
        )
        readme.write_text(with_count(readme.read_text(encoding="utf-8"), ledgers), encoding="utf-8")
        written, command, notebooks = [readme], "make claims", "../notebooks/"
    else:
        (model,) = ledgers
        markdown, numbers = ((folder or Path.cwd()) / f"claims-{plain(model)}.{ending}" for ending in ("md", "csv"))
        written, command = [], f"make claims MODEL={model}"
        notebooks = f"{Path(os.path.relpath(ROOT / 'notebooks', markdown.parent)).as_posix()}/"
    for file in (markdown, numbers):
        file.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_text(page(ledgers, runs, command, notebooks), encoding="utf-8")
    save_csv(ledgers, numbers)
    return [markdown, numbers, *written]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", help="only this one: 'pocket', 'smollm2', a name on the model hub, or a local folder"
    )
    chosen = parser.parse_args(arguments).model
    set_language("en")  # the files are committed
    ledgers: dict[str, list[Claim]] = {}
    runs: dict[str, Run] = {}
    try:
        for model in [chosen] if chosen else BOTH:
            print(f"{model}:", file=sys.stderr, flush=True)
            lm = load_model(model)
            ledgers[model], seconds = measure(lm, model, ROOT / ".cache" / "claims")
            runs[model] = Run(seconds, torch.get_num_threads(), str(lm.dtype).removeprefix("torch."))
            del lm
    except HelpersError as mistake:
        print(f"{type(mistake).__name__}: {mistake}", file=sys.stderr)
        return 1
    for path in save(ledgers, runs):
        print("saved:", path.name, file=sys.stderr)
    for model, claims in ledgers.items():
        print(f"{TITLES.get(model, model)}: {counted(claims)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
