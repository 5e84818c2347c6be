"""A guess before the answer: a small control that asks, and a result that answers it.

    early = predict("Nine more blocks follow. Does Δ shrink, stay or grow?", "shrinks", "stays", "grows")
    ...
    early.answer("grows", "Δ goes from 67 to 134.")       # You said "shrinks". The answer is "grows": Δ goes from 67 to 134.

Nobody has to guess: without one, `answer` prints the finding alone, so a run of all cells gives the same text each time.
The guess lives in the control, and the control in the learner's own notebook run.
"""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

import ipywidgets as widgets

from helpers.errors import BadValue


class Guess:
    """A question with its options. Attributes: `question`, `options`; `guessed`, an option or None; `right`, once answered."""

    def __init__(self, question: str, *options: str) -> None:
        if not question.strip() or len(options) < 2 or len(set(options)) < len(options):
            raise BadValue(
                f"a guess needs a question and two options or more, each once; got {question!r} and {list(options)}."
            )
        self.question, self.options = question, options
        self.right: str | None = None
        self._choice = widgets.ToggleButtons(
            options=[(option, option) for option in options],
            value=None,
            description="",
            tooltips=[f"My guess: {option}" for option in options],
            style=widgets.ToggleButtonsStyle(button_width="auto"),
        )
        self._said = widgets.HTML()
        asked = widgets.HTML(f"<p><strong>Your guess.</strong> {escape(question)}</p>")
        self.widget = widgets.VBox([asked, self._choice, self._said])
        self._choice.observe(self._on_choice, names="value")

    @property
    def guessed(self) -> str | None:
        return self._choice.value

    @guessed.setter
    def guessed(self, option: str | None) -> None:
        if option is not None and option not in self.options:
            raise BadValue(f"{option!r} is not among the options: {', '.join(self.options)}.")
        self._choice.value = option

    def answer(self, right: str, found: str) -> None:
        """Print what was found, beside the guess if there is one. right: one of the options; found: a sentence with its numbers."""
        if right not in self.options:
            raise BadValue(f"{right!r} is not among the options: {', '.join(self.options)}.")
        self.right = right
        if self.guessed is None:
            said = f"It is “{right}”: {found}"
        elif self.guessed == right:
            said = f"You said “{right}”, and so it is: {found}"
        else:
            said = f"You said “{self.guessed}”. It is “{right}”: {found}"
        print("\n".join(textwrap.wrap(said, 96, break_long_words=False, break_on_hyphens=False)))

    def _on_choice(self, change: Any) -> None:
        self._said.value = (
            f'<p role="status" aria-live="polite">You said “{escape(self.guessed)}”. Run on.</p>'
            if self.guessed
            else ""
        )

    def __repr__(self) -> str:
        return f"Your guess. {self.question}  ( {' | '.join(self.options)} )"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"model_id": self.widget.model_id, "version_major": 2, "version_minor": 0}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}


def predict(question: str, *options: str) -> Guess:
    """Ask for a guess, here and now, by mouse, keyboard or screen reader. Returns what answers it later. Raises BadValue."""
    from IPython.display import display

    guess = Guess(question, *options)
    display(guess)
    return guess


def show_guesses(*guesses: Guess) -> None:
    """Print each question with the learner's guess and the answer, and how many were right: for the end of a lesson."""
    made = [guess for guess in guesses if guess.guessed is not None]
    for number, guess in enumerate(guesses, 1):
        answer = "not answered yet" if guess.right is None else guess.right
        print(f"{number}. {guess.question}\n   guess: {guess.guessed or 'none'}; answer: {answer}")
    right = sum(guess.guessed == guess.right for guess in made)
    print(f"{right} right of {len(made)} guesses." if made else "No guesses this time.")
