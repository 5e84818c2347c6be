import pytest
import torch
from tiny import tiny

from helpers import scale_block
from helpers.course.panels import Panel, block_slider, choice, factor_slider, index_slider, prompt_box, tick
from helpers.errors import BadValue, HelpersError, NoNetwork
from helpers.plots.style import describe, new_axes

SIX = tiny("gpt2", n_layer=6)
FOUR = tiny("llama")  # 4 blocks, 4 heads, 2 key heads


class TooLoud(HelpersError):
    pass


def _draw(number):
    ax = new_axes()
    ax.plot([0, number])
    describe(ax, f"a line that ends at {number}")
    return ax


def _panel(title="Test", models=SIX):
    def compute(replay, block, factor):
        if factor > 2:
            raise TooLoud("factor 3 is too loud: choose 0 to 2.")
        return block * factor

    return Panel(
        title,
        models,
        {"block": block_slider(2), "factor": factor_slider(0.5)},
        compute,
        _draw,
        lambda number: f"ends at {number}",
        sizes=lambda lm: {"block": lm.n_blocks},
    )


def test_a_panel_is_drawn_before_anyone_touches_it():
    panel = _panel()
    assert panel.text == "ends at 1.0"
    assert 'alt="a line that ends at 1.0"' in panel.image


def test_a_control_changes_numbers_and_picture():
    panel = _panel()
    before = panel.image
    panel.controls["block"].value = 5
    assert panel.result == 2.5
    assert panel.text == "ends at 2.5"
    assert panel.image != before


def test_a_mistake_is_shown_as_its_sentence_and_the_panel_lives_on():
    panel = _panel()
    panel.controls["factor"].value = 3.0
    assert panel.text == "factor 3 is too loud: choose 0 to 2."
    assert panel.image == ""
    assert panel.result is None
    panel.controls["factor"].value = 1.0
    assert panel.text == "ends at 2.0"
    assert "<img" in panel.image


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        Panel("x", SIX, {"block": block_slider()}, lambda replay, block: 1 / block, lambda r: new_axes(), str)


def test_two_panels_do_not_share_state():
    first, second = _panel(), _panel()
    first.controls["block"].value = 4
    assert second.text == "ends at 1.0"


def test_the_line_is_announced_and_escaped():
    panel = _panel()
    panel._summary = lambda number: "a < b"
    panel.update()
    assert 'aria-live="polite"' in panel._line.value
    assert "a &lt; b" in panel._line.value


def test_the_stored_output_has_no_picture_bytes():
    data = _panel("Scale a block")._repr_mimebundle_()
    assert data["text/plain"] == "Scale a block: ends at 1.0"
    assert set(data) == {"text/plain", "application/vnd.jupyter.widget-view+json"}


def test_controls_have_visible_labels():
    for control in (
        block_slider(),
        factor_slider(),
        prompt_box("hello"),
        choice(["Δ", "cosine"]),
        tick(True, "include the first token"),
    ):
        assert control.description
        assert control.style.description_width == "initial"
    assert choice([("one", 1), ("two", 2)], 2).value == 2


# ---- several models


def test_one_model_needs_no_list():
    assert list(_panel().controls) == ["block", "factor"]
    assert list(_panel(models={"six": SIX}).controls) == ["block", "factor"]


def test_with_several_models_the_first_control_chooses():
    panel = _panel(models={"six": SIX, "four": FOUR})
    assert list(panel.controls) == ["model", "block", "factor"]
    assert panel.controls["model"].description == "model"
    assert [value for _, value in panel.controls["model"].options] == ["six", "four"]
    assert panel.replay.lm is SIX
    panel.controls["model"].value = "four"
    assert panel.replay.lm is FOUR


def test_ranges_follow_the_model_and_values_are_clamped_with_one_drawing():
    panel = _panel(models={"six": SIX, "four": FOUR})
    panel.controls["block"].value = 5
    drawn = []
    panel._draw = lambda number: drawn.append(number) or _draw(number)
    panel.controls["model"].value = "four"
    assert (panel.controls["block"].max, panel.controls["block"].value) == (3, 3)
    assert drawn == [1.5] and panel.text == "ends at 1.5"
    panel.controls["model"].value = "six"
    assert (panel.controls["block"].max, panel.controls["block"].value) == (5, 3)


def test_the_computation_gets_the_chosen_models_replay_and_keeps_its_clean_pass():
    ids = torch.tensor([[1, 2, 3]])
    panel = Panel(
        "x",
        {"six": SIX, "four": FOUR},
        {"block": index_slider()},
        lambda replay, block: replay(ids, scale_block(block, 0.5))[0],
        lambda run: _draw(0),
        lambda run: str(len(run.resid)),
        sizes=lambda lm: {"block": lm.n_blocks},
    )
    first, kept = panel.result, panel.replay._kept
    assert len(first.resid) == 7
    panel.controls["model"].value = "four"
    assert len(panel.result.resid) == 5
    panel.controls["model"].value = "six"
    assert panel.replay._kept is kept and torch.equal(panel.result.resid, first.resid)


def test_a_model_is_loaded_when_it_is_first_chosen_and_only_then():
    asked, said = [], []

    def load():
        asked.append(1)
        return FOUR

    panel = _panel(models={"six": SIX, "later": load})
    panel.say = lambda text, plain=panel.say: (said.append(text), plain(text))
    assert asked == []
    panel.controls["model"].value = "later"
    panel.controls["model"].value = "six"
    panel.controls["model"].value = "later"
    assert asked == [1]
    assert said[0] == "Loading later …"
    assert panel.controls["block"].max == 3


def test_a_model_that_cannot_be_loaded_shows_its_sentence_and_is_tried_again_when_chosen_again():
    answers = [NoNetwork("the real model is not here yet: make real brings it."), FOUR]

    def load():
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    panel = _panel(models={"six": SIX, "real": load})
    panel.controls["model"].value = "real"
    assert panel.text == "the real model is not here yet: make real brings it."
    assert panel.image == panel.words == ""
    panel.controls["factor"].value = 1.0  # no second try behind a slider
    assert "make real" in panel.text and len(answers) == 1
    panel.controls["model"].value = "six"
    assert panel.text == "ends at 2.0" and "<img" in panel.image
    panel.controls["model"].value = "real"
    assert panel.text == "ends at 2.0" and panel.replay.lm is FOUR


def test_a_first_model_that_cannot_be_loaded_still_gives_a_panel():
    def load():
        raise NoNetwork("it is not here.")

    panel = _panel(models={"real": load, "six": SIX})
    assert panel.text == "it is not here."
    panel.controls["model"].value = "six"
    assert (panel.text, panel.controls["block"].max) == ("ends at 1.0", 5)


@pytest.mark.parametrize("models", [None, {}, {"six": SIX, "bare": SIX.model}, SIX.model])
def test_what_is_no_model_is_told_at_once(models):
    with pytest.raises(BadValue):
        _panel(models=models)
