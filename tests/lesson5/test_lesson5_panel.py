import pytest
import torch

from helpers import edit, kl, load_model, skip_attention, skip_block, skip_mlp, step_norm, trace
from helpers.errors import BadPrompt, BlockOutOfRange
from helpers.lesson5.panel import BlockPicker, draw_steps, skip_effect, skipping_panel
from helpers.plots.redrawn import panel_axes

PROMPT = "Berlin is the capital of"


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.mark.parametrize(
    ("part", "skip"), [("whole block", skip_block), ("attention", skip_attention), ("MLP", skip_mlp)]
)
def test_the_numbers_are_those_by_hand(lm, part, skip):
    clean = trace(lm, PROMPT)
    with edit(lm, skip(2), skip(7)):
        skipped = trace(lm, PROMPT)
    result = skip_effect(lm, PROMPT, (2, 7), part)
    assert torch.allclose(result.steps, step_norm(skipped.resid))
    assert torch.equal(result.clean_steps, step_norm(clean.resid))
    assert result.divergence == pytest.approx(float(kl(clean.last_logits[0], skipped.last_logits[0])))
    chances = skipped.last_logits[0].softmax(-1)
    assert max(result.after) == pytest.approx(float(chances.max()))
    assert (result.steps[[2, 7]] == 0).all() == (part == "whole block")


def test_every_control_changes_the_picture(lm):
    panel = skipping_panel(lm, PROMPT)
    seen = {panel.image}
    for name, value in {"blocks": (0, 3), "part": "attention", "prompt": "Paris is a city"}.items():
        panel.controls[name].value = value
        assert panel.image not in seen
        assert "The length of each block&#x27;s step" in panel.image and "next token" in panel.words
        seen.add(panel.image)
    panel.controls["part"].value = "whole block"
    assert panel.text.startswith("Without blocks 0 and 3: ")
    assert panel.text.endswith("step there: 0, 0.")


def test_a_box_skips_its_block(lm):
    panel = skipping_panel(lm, PROMPT, blocks=())
    assert panel.text.startswith("Nothing is skipped.")
    picker = panel.controls["blocks"]
    assert [box.description for box in picker.boxes] == [f"block {block}" for block in range(lm.n_blocks)]
    picker.boxes[4].value = True
    assert panel.result.blocks == (4,)
    picker.boxes[1].value = True
    assert panel.result.blocks == (1, 4)
    picker.boxes[4].value = False
    assert panel.result.blocks == (1,)


def test_setting_the_value_ticks_the_boxes_and_tells_once():
    picker = BlockPicker((2,))
    picker.set_size(6)
    told = []
    picker.observe(lambda change: told.append(change["new"]), names="value")
    picker.value = (0, 5)
    assert told == [(0, 5)]
    assert [box.value for box in picker.boxes] == [True, False, False, False, False, True]


def test_fewer_boxes_forget_the_blocks_that_are_gone():
    picker = BlockPicker((2, 11))
    picker.set_size(12)
    told = []
    picker.observe(lambda change: told.append(change["new"]), names="value")
    picker.set_size(4)
    assert picker.value == (2,) and told == [(2,)]
    assert [box.value for box in picker.boxes] == [False, False, True, False]
    picker.set_size(12)
    assert picker.value == (2,) and len(picker.children) == 1 + 12
    picker.boxes[11].value = True
    assert picker.value == (2, 11)


def test_all_blocks_can_be_skipped(lm):
    result = skip_effect(lm, PROMPT, range(lm.n_blocks))
    assert (result.steps == 0).all()
    assert list(draw_steps(result, panel_axes()).lines[1].get_ydata()) == [0] * lm.n_blocks


@pytest.mark.parametrize("prompt", ["", "water " * 500])
def test_a_bad_prompt_is_told_and_the_panel_lives_on(lm, prompt):
    panel = skipping_panel(lm, PROMPT)
    good = panel.text
    panel.controls["prompt"].value = prompt
    assert "prompt" in panel.text and panel.image == ""
    panel.controls["prompt"].value = PROMPT
    assert panel.text == good


def test_mistakes_have_their_own_class(lm):
    with pytest.raises(BlockOutOfRange):
        skip_effect(lm, PROMPT, (99,))
    with pytest.raises(BadPrompt):
        skip_effect(lm, "", (2,))


def test_the_panel_leaves_no_hook_behind(lm):
    before = trace(lm, PROMPT).logits
    panel = skipping_panel(lm, PROMPT)
    panel.controls["blocks"].value = (1, 2, 3)
    assert torch.equal(trace(lm, PROMPT).logits, before)
