"""Lesson 1 in a language that marks every message: nothing that the package says is left unmarked, and no number or name differs.

A small model of 30 blocks stands in for the real one: what it says is of no interest here.
"""

import re
from itertools import count
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from marking import MARKED, letters, marked, marking_language, unmarked
from matplotlib.text import Text
from transformers import AutoModelForCausalLM, GPT2Config

import helpers.lesson1
from helpers import HelpersError, smollm2, trace, wrap
from helpers.course.exercise import found, judge
from helpers.course.guess import Guess
from helpers.lesson1 import claims
from helpers.lesson1.exercises import EXERCISES
from helpers.plots import style

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "01_downstream_scaling.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """place -> text, in English and in the marking language: all that a learner of lesson 1 reads from the package."""
    with marking_language(tmp_path_factory.mktemp("locale")) as patch:
        patch.setattr(helpers.lesson1, "load_model", models(helpers.load_model))
        patch.setattr(smollm2, "is_here", lambda: False)  # payoffs on the pocket model
        patch.setattr(claims, "several", lambda lm, prompt, whole=claims.several: whole(lm, prompt)[:2])
        both = []
        for language in ("en", "qps"):
            patch.setenv("HELPERS_LANGUAGE", language)
            both.append(everything_said(patch))
    return both


def models(load_model):
    """load_model of the lesson: the pocket model, and under any other name a small one with as many blocks as the real one."""
    pocket = load_model()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=pocket.vocabulary, n_positions=64, n_layer=30, n_head=4, n_embd=32, bos_token_id=0, eos_token_id=0
    )
    large = wrap(AutoModelForCausalLM.from_config(config, attn_implementation="eager").double(), pocket.tokenizer)
    return lambda name="pocket", **options: pocket if name == "pocket" else large


def everything_said(patch):
    told, figure = {}, count()

    def drawn(ax, *options, whole=style.to_png, **more):
        for text in style.figure_of(ax).findobj(Text):
            if text.get_text().strip():
                told.setdefault(f"figure {next(figure)}", text.get_text())
        return whole(ax, *options, **more)

    shell = InteractiveShell.instance()
    with patch.context() as inner:
        inner.setattr(style, "to_png", drawn)
        try:
            for cell in CODE:
                told |= run(shell, cell)
            told |= said_by_the_panel(shell.user_ns["panel"])
            told["error"] = mistake(shell.user_ns["lm"])
        finally:
            InteractiveShell.clear_instance()
    for exercise in EXERCISES:
        told[f"{exercise.number} heading"] = exercise.heading
        for number, answer in enumerate([exercise.stub, *exercise.wrong]):
            told[f"{exercise.number} answer {number}"] = judge(exercise, answer).sentence
        told[f"{exercise.number} payoff"] = found(exercise, exercise.solution)
    for number in (exercise.number for exercise in EXERCISES):
        with capture_output() as caught:
            helpers.lesson1.hint(number)
        told[f"{number} hint"] = caught.stdout
    return told


def run(shell, cell):
    """One cell, and a guess where it asks for one: the first wrong, the second right, the others left to chance or silence."""
    source = cell.source.replace("scaling_panel(", "panel = scaling_panel(")
    with capture_output() as caught:
        shell.run_cell(source, store_history=False).raise_error()
    told = {cell.id: caught.stdout}
    for number, output in enumerate(caught.outputs):
        for kind in ("text/plain", "text/html"):
            told[f"{cell.id} {number} {kind}"] = output.data.get(kind, "")
    for name in ("stretch", "fades"):
        guess = shell.user_ns.get(name)
        if isinstance(guess, Guess) and guess.guessed is None:
            guess.guessed = guess.options[0 if name == "stretch" else 2]
            told[f"{name} said"] = guess._said.value
            told[f"{name} asks"] = guess.widget.children[0].value
    return told


def said_by_the_panel(panel):
    told = {"panel": repr(panel), "panel words": panel.words, "panel picture": panel.image}
    for name, control in panel.controls.items():
        told[f"panel {name}"] = f"{control.description} {[label for label, _ in getattr(control, 'options', ())]}"
    panel.controls["measure"].value = "survival"
    panel.controls["block"].value = 29
    return told | {"panel again": panel.text, "panel picture again": panel.image}


def mistake(lm):
    with pytest.raises(HelpersError) as caught:
        trace(lm, "")
    return "\n".join([str(caught.value), *caught.value.__notes__])


def own_words():
    """What the notebook's own code says: it is translated with the notebook."""
    strings = []
    for cell in CODE:
        strings += re.findall(r'"([^"\n]*)"|\'([^\'\n]*)\'', cell.source)
    pieces = {piece.strip() for pair in strings for text in pair for piece in re.split(r"\{[^{}]*\}", text)}
    return sorted((piece for piece in pieces if re.search(r"[A-Za-z]{2}", piece)), key=len, reverse=True)


def test_the_same_is_said_in_both_languages(said):
    english, marking = said
    assert english.keys() == marking.keys() and len(english) > 150
    assert {place for place in english if letters(english[place]) != letters(marking[place])} == set()


def test_every_message_is_marked(said):
    """Left over, once marked pieces, the notebook's own words, quoted tokens and terms are taken out: no word."""
    english, marking = said
    own, left = own_words(), {}
    for place, text in marking.items():
        if re.search(r"\w+Error", english[place]):  # the words of Python and PyTorch
            continue
        words = unmarked(text, own)
        if words:
            left[place] = words
    assert left == {}
    assert sum("⟦" in text for text in marking.values()) > 120


def test_a_sentence_that_is_not_said_would_be_found():
    assert MARKED.sub("", marked("Δ goes from {begin} to {end}")).split() == ["{begin}{end}"]
    assert marked("{x!r} is") == "{x!r}⟦ is⟧"
