"""Write the table of docs/families.md from what small models of each family do: python tools/families_table.py"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table() -> str:
    from tiny import CONFIGS, MORE, here, tiny

    from helpers import edit, errors, skip_attention, sweep_heads, trace
    from helpers.sites import SITES, site_of

    ids = torch.arange(2, 11)
    lines = [
        "| family | sites | key heads of query heads | block | certificate, eager, in float64, bfloat16 | heads: sweep − loop |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in [*CONFIGS, *MORE]:
        if not here(family):
            continue
        lm = tiny(family)
        missing = []
        for site in SITES:
            try:
                site_of(lm, site)
            except errors.BadEdit:
                missing.append(site)
        clean = trace(lm, ids).mlp[1]
        with edit(lm, skip_attention(1)):
            parallel = trace(lm, ids).mlp[1].equal(clean)
        swept = sweep_heads(lm, ids, 7)
        off = max(abs(swept[b, h].item() - alone(lm, ids, b, h)) for b in range(lm.n_blocks) for h in range(lm.n_heads))
        digits = [min(tiny(family, dtype).certificate.digits.values()) for dtype in (torch.float64, torch.bfloat16)]
        sites = "all" if not missing else f"no {', '.join(missing)}"
        lines.append(
            f"| `{family}` | {sites} | {lm.n_key_heads} of {lm.n_heads} | {'parallel' if parallel else 'one after the other'} | "
            f"{digits[0]}, {digits[1]} digits | {'< 1e-7' if off < 1e-7 else f'{off:.0e}'} |"
        )
    return "\n".join(lines) + "\n"


def alone(lm, ids, block: int, head: int) -> float:
    """One head of one block zeroed in a pass of its own."""
    from helpers import edit, zero_heads

    before = lm.logits(ids)[0, -1].log_softmax(-1)[7]
    with edit(lm, zero_heads(block, [head])):
        return (lm.logits(ids)[0, -1].log_softmax(-1)[7] - before).item()


def main() -> None:
    page = ROOT / "docs" / "families.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
