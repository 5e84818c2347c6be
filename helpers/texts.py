"""Short texts that the pocket model has not seen.

text = torch.cat([windows(lm, passage, 32, most=1) for passage in held_out_passages()])     # (24, 32) token ids
damage = sweep_blocks(lm, text, measure=text_damage())                                      # (24, n_blocks, 3)
"""

from __future__ import annotations

from pathlib import Path

HELD_OUT_FILE = Path(__file__).resolve().parent / "data" / "held_out.txt"


def held_out_passages() -> list[str]:
    """Return 24 short passages of plain English, written for this course and for nothing else.

    Each is about something else, so that they can count as independent of each other, and makes 48 tokens or more.
    """
    return HELD_OUT_FILE.read_text(encoding="utf-8").strip().split("\n\n")
