"""What lesson 3 says in words, computed again with plain hooks on the real model and with plain sums."""

import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
import torch

from helpers import load_model

ROOT = Path(__file__).resolve().parents[2]
FACT = "Paris is the capital of France. Berlin is the capital of"
CELLS = {
    cell.id: cell for cell in nbformat.read(ROOT / "notebooks/03_multi_component_challenge.ipynb", as_version=4).cells
}


@pytest.fixture(scope="module")
def real():
    return load_model("smollm2", dtype=torch.float64)


def ends(real, factor):
    """Standard deviation of what the last block hands on, with the first token and without, by forward hooks alone."""
    kept, blocks = {}, real.model.model.layers

    def turn(module, args, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    def keep(module, args, output):
        kept["last"] = output[0] if isinstance(output, tuple) else output

    handles = [blocks[9].register_forward_hook(turn), blocks[-1].register_forward_hook(keep)]
    try:
        with torch.no_grad():
            real.model(real.encode(FACT).ids)
    finally:
        for handle in handles:
            handle.remove()
    last = kept["last"].reshape(-1, kept["last"].shape[-1])
    return float(last.std()), float(last[1:].std())


def test_before_the_norm_no_edited_spread_is_the_clean_one_but_by_the_first_token(real):
    clean, small, large = (ends(real, factor) for factor in (1, 0.1, 10))
    finding = CELLS["l3-scale-finding"].source
    assert f"at {small[1]:.1f} and {large[1]:.1f} beside {clean[1]:.1f}.**" in finding
    assert f"With it × 0.1 ends at {small[0]:.1f}, beside {clean[0]:.1f}." in finding
    assert min(small[1], large[1]) > 2 * clean[1] and "more than twice as wide" in finding
    assert clean[1] ** 2 < 0.2 * clean[0] ** 2 and "is mostly what blocks 28 and 29 leave" in finding


def test_the_recap_gives_the_median_of_the_resting_heads_with_the_extreme():
    table = next(out for out in CELLS["l3-rest-values"].outputs if "The 12 key heads" in str(out))
    row = re.search(r"zero keys : zero output(.*)", table["data"]["text/plain"]).group(1)
    times = [float(number) for number in row.split()]
    middle, extreme = median(times), max(times)
    assert len(times) == 12 and (f"{middle:.1f}", f"{extreme:.0f}") == ("10.7", "90")
    assert f"{middle:.1f} times as much in the median, at the extreme, 18.2, {extreme:.0f} times.**" in (
        CELLS["l3-rest-finding"].source
    )
    recap = CELLS["l3-recap"].source
    assert (
        f"{middle:.1f} times as much without keys as without output (median of 12; the extreme is {extreme:.0f})"
        in recap
    )
    others = re.search(r"of the others (\d+\.\d+)", str(CELLS["l3-rest"].outputs)).group(1)
    assert (
        f"For the others it is {others} times" in recap
        and f"the median is {others}." in CELLS["l3-rest-finding"].source
    )


def test_the_question_of_the_title_has_one_answer():
    recap = CELLS["l3-recap"].source
    assert (
        "None does quite" in recap and "the noise disturbs, but not as noise" in recap and "Only the noise" not in recap
    )


def test_the_place_of_claims_3_3_and_3_4_is_told(real):
    assert (
        f"SmolLM2 after block {real.n_blocks * 3 // 4}, and leave the first token out" in CELLS["l3-ledger-text"].source
    )
