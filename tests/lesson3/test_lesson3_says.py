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


def states(real, factor):
    """What blocks 11, 28 and 29 hand on, (pos, d_model) each, with block 9 scaled, by forward hooks alone."""
    kept, blocks = {}, real.model.model.layers

    def turn(module, args, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    def keep(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        kept[module] = state.reshape(-1, state.shape[-1])

    handles = [blocks[9].register_forward_hook(turn), *(blocks[i].register_forward_hook(keep) for i in (11, 28, 29))]
    try:
        with torch.no_grad():
            real.model(real.encode(FACT).ids)
    finally:
        for handle in handles:
            handle.remove()
    return [kept[blocks[i]] for i in (11, 28, 29)]


def test_before_the_norm_both_edited_runs_are_longer_and_the_spread_hides_it(real):
    clean, small, large = (states(real, factor) for factor in (1, 0.1, 10))
    finding = CELLS["l3-scale-finding"].source
    middles = [f"{median(run[2].norm(dim=1).tolist()):,.0f}" for run in (small, large, clean)]
    assert "the median token has {} and {}, beside {} in the clean run.**".format(*middles) in finding
    said = f"With the first token the spread of × 0.1 ends at {small[2].std():.1f}, beside {clean[2].std():.1f}."
    assert said in finding
    assert clean[2][1:].var() < 0.2 * clean[2].var() and "is mostly what blocks 28 and 29 leave" in finding
    assert f"it raises the spread from {large[1][1:].std():.1f} to {large[2][1:].std():.1f}." in finding


def test_under_a_tenth_another_token_is_massive(real):
    """So leaving the first token out does not leave the massive one out: the median of the lengths does."""
    tokens = real.token_strings(FACT)
    longest = []
    for factor in (1, 0.1, 10):
        lengths = states(real, factor)[0].norm(dim=1)
        longest.append(tokens[int(lengths.argmax())])
        assert lengths.max() > 8 * lengths.median()
    assert longest == ["Paris", " is", "Paris"]
    assert f"another token is massive, `{longest[1]}`: hence the jump" in CELLS["l3-scale-finding"].source


def test_a_tensors_first_element_is_one_prompt():
    """The pocket model on three copies of the prompt, with block 9's first row made anew and not in place."""
    lm, water = load_model(), "There is a lot of liquid water on planet Earth"
    ids = lm.encode([water] * 3).ids

    def first_row(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        state = torch.cat([0.1 * state[:1], state[1:]])
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with torch.no_grad():
        before = lm.model(ids).logits[:, -1].log_softmax(-1)
        with lm.model.transformer.h[9].register_forward_hook(first_row):
            after = lm.model(ids).logits[:, -1].log_softmax(-1)
    moved = (before.exp() * (before - after)).sum(-1)
    assert moved[1:].abs().max() < 1e-12
    finding = CELLS["l3-forms-finding"].source
    assert f"the first moves by {moved[0]:.3f} nats, the other two not at all.**" in finding


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
