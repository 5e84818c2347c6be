"""The claims ledger: what a report says, what was measured, and a verdict that a function computed.

show_ledger(lesson1.ledger(lm, prompt))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from helpers.tables import Table


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    HOLDS = "holds"
    PARTLY = "holds in part"
    FAILS = "does not hold"


HOLDS, PARTLY, FAILS = Verdict.HOLDS, Verdict.PARTLY, Verdict.FAILS


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. Build it in a verdict function: numbers in, claim out."""

    number: str  # "1.5": lesson and claim
    says: str  # what the report says, in one line
    measured: str  # what was measured just now, rounded
    verdict: Verdict
    why: str  # one line, true of this measurement


def ledger_table(claims: Iterable[Claim], caption: str = "Claims ledger") -> Table:
    """Return the claims as a table, one row each, in order of their numbers."""
    ordered = sorted(claims, key=lambda claim: tuple(int(part) for part in claim.number.split(".")))
    return Table(
        caption,
        ("claim", "the report says", "measured here", "verdict", "why"),
        tuple((c.number, c.says, c.measured, str(c.verdict), c.why) for c in ordered),
    )


def show_ledger(claims: Iterable[Claim], caption: str = "Claims ledger") -> None:
    """Display the ledger, at once, anywhere in a cell."""
    from IPython.display import display

    display(ledger_table(claims, caption))
