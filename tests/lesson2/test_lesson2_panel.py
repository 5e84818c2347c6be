import pytest
import torch

from helpers import correlation, load_model, trace
from helpers.lesson2.panel import PAIRS, hidden_states_panel, view_block

PROMPT = "Berlin is the capital of"


@pytest.fixture(scope="module")
def lm():
    return load_model()


def test_the_view_is_what_the_trace_recorded(lm):
    run = trace(lm, PROMPT)
    view = view_block(run, 4, 100, "output", True)
    assert torch.equal(view.before, run.resid[4]) and torch.equal(view.after, run.resid[5])
    assert view.names == ("H_4", "H_5") and view.keep.all()
    assert [float(values[4]) for values in view.norms] == pytest.approx(
        [float(run.resid[4].norm()), float(run.attn[4].norm()), float(run.mlp[4].norm())]
    )


def test_every_control_changes_numbers_or_picture(lm):
    panel = hidden_states_panel(lm, PROMPT)
    seen = {panel.image}
    for name, value in {
        "block": 3, "percentile": 95.0, "pair": "match", "by_token": False, "prompt": "Paris is a city in",
    }.items():  # fmt: skip
        panel.controls[name].value = value
        assert "<img alt=" in panel.image
        assert panel.image not in seen
        seen.add(panel.image)


def test_the_line_of_numbers_is_the_measured_r(lm):
    panel = hidden_states_panel(lm, PROMPT, block=2)
    panel.controls["percentile"].value = 100
    run = trace(lm, PROMPT)
    assert panel.text.startswith(f"block 2: r = {correlation(run.resid[2], run.resid[3]):.4f} over")
    assert "fill 100 % of the axis" in panel.text


def test_by_chance_means_one_thing_in_the_panel_and_in_the_cells(lm):
    """A drawn step, for each token as long as the block's own, over the values that the mask keeps. What the mask hides is
    where the block wrote most, so the spread of its step over the kept values says too little."""
    panel = hidden_states_panel(lm, PROMPT, block=2)
    run = trace(lm, PROMPT)
    before, after = run.resid[2], run.resid[3]
    for percentile in (90.0, 99.0, 100.0):
        panel.controls["percentile"].value = percentile
        keep = torch.maximum(before.abs(), after.abs()).flatten()
        keep = keep <= torch.quantile(keep, percentile / 100)
        drawn = torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = drawn / drawn.norm(dim=-1, keepdim=True) * (after - before).norm(dim=-1, keepdim=True)
        pair = torch.stack([before.flatten()[keep], (before + step).flatten()[keep]])
        assert f"and a random step as long gives {float(torch.corrcoef(pair)[0, 1]):.4f}." in panel.text


def test_the_reconstruction_lies_on_the_diagonal(lm):
    panel = hidden_states_panel(lm, PROMPT)
    panel.controls["pair"].value = "match"
    for block in range(lm.n_blocks):  # the last block too: the trace reads before the final norm
        panel.controls["block"].value = block
        assert (panel.result.before - panel.result.after).abs().max() < 1e-12
        assert "every point lies on the diagonal" in panel.image


def test_the_controls_cover_the_model(lm):
    panel = hidden_states_panel(lm, PROMPT)
    assert (panel.controls["block"].min, panel.controls["block"].max) == (0, lm.n_blocks - 1)
    assert panel.controls["block"].value == lm.n_blocks - 2
    assert panel.controls["percentile"].max == 100
    assert [value for _, value in panel.controls["pair"].options] == [value for _, value in PAIRS]


@pytest.mark.parametrize("prompt", ["", "water " * 500])
def test_a_bad_prompt_is_told_and_the_panel_lives_on(lm, prompt):
    panel = hidden_states_panel(lm, PROMPT)
    good = panel.text
    panel.controls["prompt"].value = prompt
    assert "prompt" in panel.text and panel.image == ""
    panel.controls["block"].value = 1
    assert "prompt" in panel.text
    panel.controls["block"].value = lm.n_blocks - 2
    panel.controls["prompt"].value = PROMPT
    assert panel.text == good


def test_a_prompt_of_one_token_is_drawn(lm):
    panel = hidden_states_panel(lm, "The")
    assert "<img alt=" in panel.image and "r = " in panel.text


def test_the_panel_leaves_no_hook_behind(lm):
    before = trace(lm, PROMPT).logits
    panel = hidden_states_panel(lm, PROMPT)
    panel.controls["block"].value = 0
    assert torch.equal(trace(lm, PROMPT).logits, before)
