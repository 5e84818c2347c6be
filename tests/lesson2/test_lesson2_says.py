"""What lesson 2 says of single draws and of places, held against its cells."""

import re
from pathlib import Path

import nbformat

from helpers import load_model

ROOT = Path(__file__).resolve().parents[2]
CELLS = {
    cell.id: cell for cell in nbformat.read(ROOT / "notebooks/02_hooks_vs_hidden_states.ipynb", as_version=4).cells
}


def test_a_bar_of_one_draw_says_so_and_the_text_gives_the_median():
    shown = "\n".join(str(out) for out in CELLS["l2-mask"].outputs)
    assert re.search(r"70 others zero, one draw: 0\.\d+", shown) and not re.search(r"70 others zero: ", shown)
    middle, lowest = re.search(r"20 draws: median ([\d.]+), lowest ([\d.]+?)\\n", shown).groups()
    assert f"the median of 20 draws is {middle}, the lowest {lowest}." in CELLS["l2-mask-finding"].source


def test_the_blocks_of_the_ledger_are_told():
    """helpers/lesson2/claims.py takes the last block but one of each model."""
    places = [load_model(*name).n_blocks - 2 for name in ((), ("smollm2",))]
    told = "the last block but one: {} of the pocket model, {} of SmolLM2.".format(*places)
    assert told in CELLS["l2-ledger-text"].source
