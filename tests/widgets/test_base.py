import pytest

from helpers.errors import HelpersError
from helpers.plots.style import describe, new_axes
from helpers.widgets.base import Panel, block_slider, choice, factor_slider, prompt_box, tick


class TooLoud(HelpersError):
    pass


def _panel(title="Test"):
    def compute(block, factor):
        if factor > 2:
            raise TooLoud("factor 3 is too loud: choose 0 to 2.")
        return block * factor

    def draw(number):
        ax = new_axes()
        ax.plot([0, number])
        describe(ax, f"a line that ends at {number}")
        return ax

    controls = {"block": block_slider(12, 2), "factor": factor_slider(0.5)}
    return Panel(title, controls, compute, draw, lambda number: f"ends at {number}")


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
        Panel("x", {"block": block_slider(3)}, lambda block: 1 / block, lambda r: new_axes(), str)


def test_two_panels_do_not_share_state():
    first, second = _panel(), _panel()
    first.controls["block"].value = 7
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
        block_slider(12),
        factor_slider(),
        prompt_box("hello"),
        choice(["Δ", "cosine"]),
        tick(True, "include the first token"),
    ):
        assert control.description
        assert control.style.description_width == "initial"
    assert choice([("one", 1), ("two", 2)], 2).value == 2
