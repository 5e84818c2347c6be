"""In a language that marks every message the payoffs and panels of lessons 2 to 5 still work, and leave no word unmarked.

What code looks up must not be what is said: a model's name, a measure, the title of a row. Lesson 1 has a test of its own.
"""

from importlib import import_module

import pytest
from marking import marking_language, unmarked

from helpers import load_model, smollm2
from helpers.course.exercise import found, judge
from helpers.lesson2 import hidden_states_panel
from helpers.lesson3 import components_panel
from helpers.lesson4 import head_panel
from helpers.lesson5 import skipping_panel

EXERCISES = [one for n in (2, 3, 4, 5) for one in import_module(f"helpers.lesson{n}.exercises").EXERCISES]
ASKED = ("Berlin is the capital of", "Germany", "Greece")  # what the model reads and says
PROMPT = "Paris is the capital of France. Berlin is the capital of"
PANELS = {
    "2": lambda lm: hidden_states_panel(lm, PROMPT),
    "3": lambda lm: components_panel(lm, PROMPT),
    "4": lambda lm: head_panel(lm, PROMPT, " Germany", " France"),
    "5": lambda lm: skipping_panel(lm, PROMPT),
}


@pytest.fixture(scope="module", autouse=True)
def marking(tmp_path_factory):
    with marking_language(tmp_path_factory.mktemp("locale")) as patch:
        patch.setenv("HELPERS_LANGUAGE", "qps")
        patch.setattr(smollm2, "is_here", lambda: False)  # payoffs on the pocket model
        yield


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_a_payoff_is_found_and_marked(exercise):
    said = found(exercise, exercise.solution)
    assert "cannot be shown" not in said and unmarked(said, ASKED) == []
    assert unmarked(exercise.heading) == []
    assert unmarked(judge(exercise, exercise.stub).sentence) == []


@pytest.mark.parametrize("lesson", PANELS)
def test_a_panel_is_marked(lesson):
    panel = PANELS[lesson](load_model())
    told = [panel.text, panel.words, panel.image, panel.title]
    for control in panel.controls.values():
        told.append(f"{getattr(control, 'description', '')} {[label for label, _ in getattr(control, 'options', ())]}")
        assert unmarked(told[-1].replace("[", " ").replace("'", " ")) == []
        if hasattr(control, "options"):
            for _, value in control.options:  # each choice is computed and drawn
                control.value = value
                told += [panel.text, panel.image]
    assert [words for text in told if (words := unmarked(text))] == []
