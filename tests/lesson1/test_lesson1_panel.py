import pytest
import torch

from helpers import delta_norm, edit, load_model, scale_block, trace
from helpers.errors import BadFactor, BadPrompt, BlockOutOfRange
from helpers.lesson1.panel import MEASURES, scaling_curve, scaling_panel

PROMPT = "Berlin is the capital of"


@pytest.fixture(scope="module")
def lm():
    return load_model()


def test_the_curve_is_the_one_by_hand(lm):
    clean = trace(lm, PROMPT)
    with edit(lm, scale_block(4, 1.5)):
        scaled = trace(lm, PROMPT)
    expected = delta_norm(clean.resid, scaled.resid, include_first=False)
    assert torch.equal(scaling_curve(lm, PROMPT, 4, 1.5).values, expected)


def test_every_control_changes_the_picture(lm):
    panel = scaling_panel(lm, PROMPT)
    seen = {panel.image}
    for name, value in {
        "block": 5, "factor": 2.0, "include_first": True, "measure": "relative error", "prompt": "Paris is a city",
    }.items():  # fmt: skip
        panel.controls[name].value = value
        assert panel.image not in seen
        assert panel.text.split(". ")[-1] in panel.image
        assert "next token" in panel.words
        seen.add(panel.image)


def test_factor_one_changes_nothing(lm):
    panel = scaling_panel(lm, PROMPT, factor=1.0)
    assert panel.text.startswith("' Germany' stays first: ")
    assert panel.text.endswith(f". Δ is 0 after block 2, stays there and is 0 after block {lm.n_blocks - 1}.")
    panel.controls["measure"].value = "cosine similarity"
    assert torch.allclose(panel.result.values, torch.ones(lm.n_blocks + 1, dtype=torch.float64))


def test_the_sliders_cover_the_model_and_factors_to_three(lm):
    panel = scaling_panel(lm, PROMPT)
    assert (panel.controls["block"].min, panel.controls["block"].max) == (0, lm.n_blocks - 1)
    assert (panel.controls["factor"].min, panel.controls["factor"].max) == (0.0, 3.0)
    assert panel.controls["measure"].options == tuple((name, name) for name in MEASURES)
    panel.controls["block"].value = lm.n_blocks - 1
    assert "the last block" in panel.text


@pytest.mark.parametrize("prompt", ["", "water " * 500])
def test_a_bad_prompt_is_told_and_the_panel_lives_on(lm, prompt):
    panel = scaling_panel(lm, PROMPT)
    good = panel.text
    panel.controls["prompt"].value = prompt
    assert "prompt" in panel.text and panel.image == ""
    panel.controls["prompt"].value = PROMPT
    assert panel.text == good


def test_one_token_without_the_first_is_told(lm):
    panel = scaling_panel(lm, PROMPT)
    panel.controls["prompt"].value = "The"
    assert "one token" in panel.text and panel.image == ""
    panel.controls["include_first"].value = True
    assert ". Δ is" in panel.text


def test_mistakes_have_their_own_class(lm):
    with pytest.raises(BlockOutOfRange):
        scaling_curve(lm, PROMPT, 99, 0.5)
    with pytest.raises(BadFactor):
        scaling_curve(lm, PROMPT, 2, float("nan"))
    with pytest.raises(BadPrompt):
        scaling_curve(lm, "", 2, 0.5)


def test_the_words_are_the_five_likeliest_of_both_runs(lm):
    curve = scaling_curve(lm, PROMPT, 4, 0.0)
    clean = trace(lm, PROMPT).last_logits[0].softmax(-1)
    with edit(lm, scale_block(4, 0.0)):
        scaled = trace(lm, PROMPT).last_logits[0].softmax(-1)
    best = {lm.tokenizer.decode([i]) for p in (clean, scaled) for i in p.topk(5).indices.tolist()}
    assert set(curve.words.names) == best
    assert curve.words.clean[0] == pytest.approx(float(clean.max()))
    assert max(curve.words.edited) == pytest.approx(float(scaled.max()))


def test_survival_is_the_part_along_the_injected_error(lm):
    panel = scaling_panel(lm, PROMPT, block=3, factor=1.5)
    panel.controls["measure"].value = "survival"
    clean = trace(lm, PROMPT).resid[:, 0, 1:]
    with edit(lm, scale_block(3, 1.5)):
        error = trace(lm, PROMPT).resid[:, 0, 1:] - clean
    by_hand = [float((one * error[4]).sum() / (error[4] ** 2).sum()) for one in error]
    assert panel.result.values.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert by_hand[4] == pytest.approx(1) and by_hand[:4] == [0, 0, 0, 0]
    panel.controls["factor"].value = 1.0
    assert "no error can survive" in panel.text and panel.image == ""
    panel.controls["factor"].value = 0.9
    assert ". Survival is 1 after block 3" in panel.text


def test_the_panel_leaves_no_hook_behind(lm):
    before = trace(lm, PROMPT).logits
    panel = scaling_panel(lm, PROMPT)
    panel.controls["factor"].value = 0.0
    assert torch.equal(trace(lm, PROMPT).logits, before)
