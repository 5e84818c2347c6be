"""What lesson 2 says of single draws and of places, held against its cells."""

import re
from pathlib import Path

import nbformat
import pytest
import torch

from helpers import load_model, smollm2

ROOT = Path(__file__).resolve().parents[2]
CELLS = {
    cell.id: cell for cell in nbformat.read(ROOT / "notebooks/02_hooks_vs_hidden_states.ipynb", as_version=4).cells
}


def shown(name):
    return "\n".join(out.get("text", "") or out["data"]["text/plain"] for out in CELLS[name].outputs)


def test_by_chance_is_one_number_in_the_table_and_in_the_panel():
    table = re.search(r"random step +[\d.]+ +[\d.]+ +([\d.]+)", shown("l2-likeness")).group(1)
    assert f"a random step as long gives {table}." in shown("l2-widget")
    assert f"against {float(table):.3f} by chance;" in CELLS["l2-likeness-finding"].source


def test_the_one_no_of_the_modes_is_told():
    """The last column's only "no" is that of inference_mode(), whose record PyTorch refuses where gradients are computed."""
    last = {line[:34].strip(): line.split()[-1] for line in shown("l2-modes").splitlines()[2:]}
    assert len(last) == 6
    assert [way for way, usable in last.items() if usable == "no"] == ["eval() and inference_mode()"]
    with torch.inference_mode():
        record = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        (record * torch.ones(2, requires_grad=True)).sum().backward()
    said = "`inference_mode()` holds 0 too, but later gradients may not use its record: the one *no* on the right."
    assert said in CELLS["l2-modes-finding"].source


@pytest.mark.skipif(not smollm2.is_here(), reason="the real model is not in the cache: make real brings it")
def test_what_the_slider_of_the_mask_shows_is_said():
    """Of the stream before and after block 23, by PyTorch's own hooks: r over all values, and over the lowest 99.5 %."""
    real, states = load_model("smollm2", dtype=torch.float64), []
    fact = "Paris is the capital of France. Berlin is the capital of"
    hook = real.blocks[23].register_forward_hook(lambda module, args, output: states.extend([args[0], output]))
    with hook, torch.no_grad():
        real.model(real.encode(fact).ids)
    before, after = (state.flatten() for state in states)
    size = torch.maximum(before.abs(), after.abs())
    keep = size <= size.quantile(0.995)
    whole, most = (float(torch.corrcoef(torch.stack([before[one], after[one]]))[0, 1]) for one in (size >= 0, keep))
    said = f"At 99.5 r is {most:.3f} instead of {whole:.4f}. The {int((~keep).sum())} values that went made r look perfect."
    assert CELLS["l2-exercise-4-text"].source.startswith(said)


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
