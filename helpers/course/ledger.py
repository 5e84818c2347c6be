"""The claims ledger: what a report says, a verdict that a function computed, and the numbers that it was computed from.

    show_ledger(lesson1.ledger(lm, prompt))

A verdict function takes numbers and knows no model. Where a claim is about the model it gets numbers of many prompts and
splits the claim into parts, the core first. Each part is a plain statement, with its threshold, that is true or false of
one prompt. `judge` counts, and the counts decide.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from helpers.errors import BadValue
from helpers.measures import Measure
from helpers.metrics import kl
from helpers.models import LanguageModel
from helpers.say import say, translatable
from helpers.tables import Table, format_number
from helpers.texts import held_out_passages

NEARLY_ALL = 0.9  # of the prompts: there a claim that is true of all its parts holds
LEVEL = 0.05  # of significance, after the correction

Keep = Callable[[str, Callable[[], Any]], Any]  # keep(name, compute): what was computed under this name, now or before
Prompt = str | Tensor
Table2 = Sequence[Sequence[float]]  # [prompt][…]

STORED = Path(__file__).parents[1] / "data" / "claims.csv"  # written by tools/claims.py


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    HOLDS = translatable("holds")
    PARTLY = translatable("holds in part")
    FAILS = translatable("does not hold")
    CONSTRUCTION = translatable("true by construction")
    VERSION = translatable("depends on the library version")
    UNTESTED = translatable("cannot be tested on this model")


HOLDS, PARTLY, FAILS, CONSTRUCTION, VERSION, UNTESTED = Verdict
DIVERGENCE = Measure(lambda outcome: kl(outcome.clean.expand_as(outcome.edited), outcome.edited))  # of the next word


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. Build it in a verdict function: numbers in, claim out."""

    number: str  # "1.5": lesson and claim
    says: str  # what the report says, in one line
    verdict: Verdict
    why: str  # true of the numbers in it and beside it
    measured: str = ""  # further numbers, rounded
    software: bool = False  # about PyTorch, a library or arithmetic; otherwise about the model
    over: tuple[int, int] | None = None  # the prompts on which the whole claim is true, and how many were tried

    @property
    def verdict_text(self) -> str:
        """The verdict and, for a claim about the model, on how many prompts the whole of it is true."""
        if self.over is None:
            return say(self.verdict.value)
        true, tried = self.over
        if self.verdict == HOLDS:
            return say("holds on {true} of {tried} prompts", true=true, tried=tried)
        if self.verdict == PARTLY:
            return say("holds in part: wholly true on {true} of {tried} prompts", true=true, tried=tried)
        verdict = say(self.verdict.value)
        return say("{verdict}: true on {true} of {tried} prompts", verdict=verdict, true=true, tried=tried)


@dataclass(frozen=True)
class Part:
    """One statement of a claim, and whether it is true of each prompt."""

    what: str  # with its threshold: "r is at least 0.95 at block 10"
    true: Sequence[bool]


def judge(
    number: str, says: str, parts: Sequence[Part], measured: str = "", note: str = "", cores: int = 1
) -> Claim:  # fmt: skip
    """Count the parts over the prompts. The claim holds if all of them are true together on nearly all prompts, does not
    hold if its core is true on fewer than half, and holds in part otherwise. The core is the first part; of a claim that
    is judged at several places, the first of each place: then it fails if it fails at all of them."""
    n = len(parts[0].true)
    whole = sum(all(row) for row in zip(*(part.true for part in parts), strict=True))
    core = max(sum(part.true) for part in parts[:cores])
    verdict = HOLDS if whole >= NEARLY_ALL * n else FAILS if 2 * core < n else PARTLY
    why = "; ".join(say("{what}: {true} of {n}", what=part.what, true=sum(part.true), n=n) for part in parts) + (
        f". {note}" if note else ""
    )
    return Claim(number, says, verdict, why, measured, over=(whole, n))


# ---- significance


def sign_test(values: Iterable[float], bound: float = 0.0) -> float:
    """The exact two-sided p of the sign test: could half of the values lie on either side of `bound`? Ties are left out."""
    sides = [value > bound for value in values if value != bound and value == value]
    n, fewer = len(sides), min(sum(sides), len(sides) - sum(sides))
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several tests are significant together (Holm 1979): the chance of one false finding or more is below `level`."""
    found = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        found[i] = True
    return found


def directions(columns: Table2, bound: float = 0.0) -> list[int]:
    """For each column (a head, a block): 1 if its values over the prompts are significantly above `bound`, −1 if below, else 0.

    Sign tests, corrected with Holm's method for the number of columns.
    """
    significant = holm([sign_test(column, bound) for column in columns])
    above = [sum(value > bound for value in column) - sum(value < bound for value in column) for column in columns]
    return [(1 if side > 0 else -1) if sure else 0 for side, sure in zip(above, significant, strict=True)]


def columns_of(rows: Table2) -> list[list[float]]:
    """[prompt][head] turned into [head][prompt]."""
    return [list(column) for column in zip(*rows, strict=True)]


# ---- numbers as they are printed


def n(value: float) -> str:
    return format_number(float(value), 3)


def middle(values: Iterable[float]) -> str:
    """The median, as it is printed."""
    return n(median(values))


# ---- what is measured on


def several(lm: LanguageModel, prompt: Prompt) -> list[Prompt]:
    """The prompt, and the first sentence of each held-out passage; the prompt alone for a model without a tokenizer."""
    if lm.tokenizer is None:
        return [prompt]
    return [prompt, *(passage.split(". ")[0] for passage in held_out_passages())]


def compute_now(name: str, compute: Callable[[], Any]) -> Any:
    """A Keep that keeps nothing."""
    return compute()


class Kept:
    """A Keep with a file: each finished measurement is a line of JSON, so that a run goes on where another one was killed.

    keep = Kept(path); keep("1 first prompt", lambda: measure(...))     # computed once for this file
    keep.seconds                                                       # of processor time, for all that is in the file
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        self.seconds = 0.0
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off by a kill
            for line in whole.splitlines():
                self._take(line)
            if whole != text:
                path.write_text(whole, encoding="utf-8")

    def _take(self, line: str) -> Any:
        name, value, seconds = json.loads(line)
        self.found[name] = value
        self.seconds += seconds
        return value

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        if name in self.found:
            return self.found[name]
        begin = time.process_time()
        value = compute()
        line = json.dumps([name, value, round(time.process_time() - begin, 3)])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return self._take(line)  # as another run will read it


# ---- the ledger


def in_order(claims: Iterable[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: tuple(int(part) for part in claim.number.split(".")))


def ledger_table(claims: Iterable[Claim], caption: str = translatable("Claims ledger")) -> Table:
    """Return the claims as a table, one row each, in order of their numbers."""
    return Table(
        say(caption),
        (say("claim"), say("the report says"), say("verdict"), say("why"), say("measured")),
        tuple((c.number, c.says, c.verdict_text, c.why, c.measured) for c in in_order(claims)),
    )


def show_ledger(claims: Iterable[Claim], caption: str = translatable("Claims ledger")) -> None:
    """Display the ledger, at once, anywhere in a cell."""
    from IPython.display import display

    display(ledger_table(claims, caption))


def committed(lesson: int) -> Table:
    """The stored verdicts of both models, one row for each claim: what `make claims` measured, on 20 prompts or more."""
    rows: dict[str, list[str]] = {}
    with STORED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["claim"].split(".")[0] == str(lesson):
                over = (
                    say(" (wholly true on {true} of {tried})", true=row["true on"], tried=row["of prompts"])
                    if row["of prompts"]
                    else ""
                )
                here = rows.setdefault(row["claim"], [row["claim"], say(row["the report says"])])
                here.append(say(row["verdict"]) + over)
    if not rows:
        raise BadValue("lesson {lesson!r} has no claims: lessons are 1 to 5.", lesson=lesson)
    header = (say("claim"), say("the report says"), say("the pocket model"), "SmolLM2-135M")
    return Table(
        say("Verdicts on lesson {lesson}'s claims, measured beforehand", lesson=lesson),
        header,
        tuple(tuple(row) for row in rows.values()),
    )


def show_committed(lesson: int) -> None:
    """Display the stored verdicts of both models. Raises BadValue for another lesson than 1 to 5."""
    from IPython.display import display

    display(committed(lesson))


def show_parts(*numbers: str, model: str = "smollm2") -> None:
    """Print the parts of stored claims, "1.3" and so on, and on how many prompts each part is true.

    It tells which part keeps a claim from holding. Raises BadValue for a claim that is not stored or was not judged in parts.
    """
    with STORED.open(encoding="utf-8", newline="") as file:
        stored = {row["claim"]: row for row in csv.DictReader(file) if row["model"] == model}
    name = {"pocket": say("The pocket model"), "smollm2": "SmolLM2-135M"}.get(model, model)
    for number in numbers:
        parts = re.findall(r"(?:^|; )([^;]+?): (\d+) of (\d+)", stored[number]["why"] if number in stored else "")
        if not parts:
            raise BadValue("claim {number!r} has no parts that were counted on {model}.", number=number, model=name)
        print(say("{model}, claim {number}, part by part:", model=name, number=number))
        for what, true, tried in parts:
            print("  " + say("{what}: {true} of {n}", what=say(what), true=true, n=tried))
