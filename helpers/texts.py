"""A text that the pocket model has not seen, and what an edit costs on a text, token by token.

text = windows(lm, held_out_text(), 64)                       # (n_windows, 64) ids
rise = sweep_blocks(lm, text, measure=loss_rise())            # (n_windows, n_blocks, 63) nats
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from . import errors
from .measures import Measure, Outcome
from .metrics import log_prob

HELD_OUT_FILE = Path(__file__).resolve().parent / "data" / "held_out.txt"


def held_out_text() -> str:
    """Return three plain paragraphs that were written for this course, after the pocket model's training text was fixed."""
    return HELD_OUT_FILE.read_text(encoding="utf-8")


def loss_rise() -> Measure:
    """How much the next-token loss rises at each position but the last: after − before, in nats, (copies, pos − 1)."""

    def compute(outcome: Outcome) -> Tensor:
        following = outcome.ids[1:]
        if not len(following):
            raise errors.BadPrompt("a next-token loss needs two tokens or more, but this prompt has one.")
        after = log_prob(outcome.edited[:, :-1], following.expand(len(outcome.edited), -1))
        return log_prob(outcome.clean[:-1], following) - after

    return Measure(compute, every_position=True)
