"""A guess before the answer: a small control that asks, and a result that answers it.

    early = predict("Nine more blocks follow. Does Δ shrink, stay or grow?", "shrinks", "stays", "grows")
    ...
    early.answer("grows", "Δ goes from 67 to 134.")       # You said "shrinks". The answer is "grows": Δ goes from 67 to 134.

Nobody has to guess: without one, `answer` prints the finding alone, so a run of all cells gives the same text each time.
The guess lives in the control, and the control in the learner's own notebook run: a cell that asks again keeps what was said.
"""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

import ipywidgets as widgets

from helpers.errors import BadValue
from helpers.say import say


class Guess:
    """A question with its options. Attributes: `question`, `options`; `guessed`, an option or None; `right`, once answered."""

    def __init__(self, question: str, *options: str) -> None:
        if not question.strip() or len(options) < 2 or len(set(options)) < len(options):
            raise BadValue(
                "a guess needs a question and two options or more, each once; got {question!r} and {options}.",
                question=question,
                options=list(options),
            )
        self.question, self.options = question, options
        self.right: str | None = None
        self._choice = widgets.ToggleButtons(
            options=[(option, option) for option in options],
            value=None,
            description="",
            tooltips=[say("My guess: {option}", option=option) for option in options],
            style=widgets.ToggleButtonsStyle(button_width="auto"),
        )
        self._said = widgets.HTML()
        head = escape(say("Your guess."))
        asked = widgets.HTML(f"<p><strong>{head}</strong> {escape(question)}</p>")
        self.widget = widgets.VBox([asked, self._choice, self._said])
        self._choice.observe(self._on_choice, names="value")

    @property
    def guessed(self) -> str | None:
        return self._choice.value

    @guessed.setter
    def guessed(self, option: str | None) -> None:
        if option is not None and option not in self.options:
            raise BadValue(
                "{option!r} is not among the options: {options}.", option=option, options=", ".join(self.options)
            )
        self._choice.value = option

    def answer(self, right: str, found: str) -> None:
        """Print what was found, beside the guess if there is one. right: one of the options; found: a sentence with its numbers."""
        if right not in self.options:
            raise BadValue(
                "{right!r} is not among the options: {options}.", right=right, options=", ".join(self.options)
            )
        self.right = right
        if self.guessed is None:
            said = say("It is “{right}”: {found}", right=right, found=found)
        elif self.guessed == right:
            said = say("You said “{right}”, and so it is: {found}", right=right, found=found)
        else:
            said = say("You said “{guessed}”. It is “{right}”: {found}", guessed=self.guessed, right=right, found=found)
        print("\n".join(textwrap.wrap(said, 96, break_long_words=False, break_on_hyphens=False)))

    def _on_choice(self, change: Any) -> None:
        said = say("You said “{guessed}”. Now run the next cell.", guessed=self.guessed) if self.guessed else ""
        self._said.value = said and f'<p role="status" aria-live="polite">{escape(said)}</p>'

    def __repr__(self) -> str:
        return say("Your guess. {question}  ( {options} )", question=self.question, options=" | ".join(self.options))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"model_id": self.widget.model_id, "version_major": 2, "version_minor": 0}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}


def predict(question: str, *options: str) -> Guess:
    """Ask for a guess, here and now, by mouse, keyboard or screen reader. Returns what answers it later. Raises BadValue.

    A click makes this cell the one that runs next: where it runs again, the guess that was made stays.
    """
    from IPython import get_ipython
    from IPython.display import display

    guess = Guess(question, *options)
    shell = get_ipython()
    for earlier in list(shell.user_ns.values()) if shell else []:
        if isinstance(earlier, Guess) and (earlier.question, earlier.options) == (question, options):
            guess.guessed = earlier.guessed or guess.guessed
    display(guess)
    return guess


def show_guesses(*guesses: Guess) -> None:
    """Print each question with the learner's guess and the answer, and how many were right: for the end of a lesson."""
    made = [guess for guess in guesses if guess.guessed is not None]
    for number, guess in enumerate(guesses, 1):
        answer = say("not answered yet") if guess.right is None else guess.right
        print(
            say(
                "{number}. {question}\n   guess: {guess}; answer: {answer}",
                number=number,
                question=guess.question,
                guess=guess.guessed or say("none"),
                answer=answer,
            )
        )
    right = sum(guess.guessed == guess.right for guess in made)
    print(
        say("{right} right of {tried} guesses.", right=right, tried=len(made)) if made else say("No guesses this time.")
    )
