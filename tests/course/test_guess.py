"""A guess: asked, kept, answered; and the same text for all who make none."""

from types import SimpleNamespace

import pytest

from helpers.course.guess import Guess, predict, show_guesses
from helpers.errors import BadValue


def asked():
    return Guess("Does Δ shrink, stay or grow?", "shrinks", "stays", "grows")


def test_without_a_guess_only_the_finding_is_said(capsys):
    guess = asked()
    guess.answer("grows", "Δ goes from 67 to 134.")
    assert capsys.readouterr().out == "It is “grows”: Δ goes from 67 to 134.\n"
    assert guess.guessed is None and guess.right == "grows"


@pytest.mark.parametrize(
    ("said", "begins"),
    [("shrinks", "You said “shrinks”. It is “grows”:"), ("grows", "You said “grows”, and so it is:")],
)
def test_a_guess_is_answered(capsys, said, begins):
    guess = asked()
    guess._choice.value = said  # as a click does
    guess.answer("grows", "Δ goes from 67 to 134.")
    assert capsys.readouterr().out.startswith(begins)


def test_a_click_is_told_to_a_screen_reader():
    guess = asked()
    assert 'role="status"' not in guess._said.value
    guess._choice.value = "stays"
    assert 'role="status"' in guess._said.value and "stays" in guess._said.value


def test_a_stored_notebook_shows_the_question_and_no_answer():
    guess = asked()
    before = guess._repr_mimebundle_()["text/plain"]
    assert before == "Your guess. Does Δ shrink, stay or grow?  ( shrinks | stays | grows )"
    guess.guessed = "stays"
    assert guess._repr_mimebundle_()["text/plain"] == before


def test_predict_displays_and_returns(capsys):
    assert isinstance(predict("Which?", "a", "b"), Guess)
    assert "Your guess. Which?" in capsys.readouterr().out


def test_the_end_shows_guesses_and_answers(capsys):
    first, second, third = asked(), Guess("Who?", "a", "b"), Guess("When?", "c", "d")
    first.guessed, second.guessed = "stays", "a"
    first.right, second.right = "grows", "a"
    show_guesses(first, second, third)
    out = capsys.readouterr().out
    assert "1. Does Δ shrink, stay or grow?\n   guess: stays; answer: grows" in out
    assert "3. When?\n   guess: none; answer: not answered yet" in out
    assert out.endswith("1 right of 2 guesses.\n")
    show_guesses(third)
    assert capsys.readouterr().out.endswith("No guesses this time.\n")


@pytest.mark.parametrize(
    "make", [lambda: Guess("", "a", "b"), lambda: Guess("Who?", "a"), lambda: Guess("Who?", "a", "a")]
)
def test_a_question_without_a_choice_is_refused(make):
    with pytest.raises(BadValue, match="two options or more"):
        make()


def test_an_option_that_is_none_is_refused():
    guess = asked()
    with pytest.raises(BadValue, match="'falls' is not among the options: shrinks, stays, grows"):
        guess.answer("falls", "")
    with pytest.raises(BadValue, match="'falls' is not among"):
        guess.guessed = "falls"


def test_a_cell_that_asks_again_keeps_the_guess(monkeypatch):
    """A click on an option makes its cell the one that runs next: whoever presses Shift+Enter then asks again."""
    asked = predict("Up or down?", "up", "down")
    asked.guessed = "down"
    shell = SimpleNamespace(user_ns={"asked": asked, "other": 3})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    again = predict("Up or down?", "up", "down")
    assert again is not asked and again.guessed == "down"
    assert predict("Up or down?", "up", "sideways").guessed is None  # another question
    again.guessed = "up"
    shell.user_ns["asked"] = again
    assert predict("Up or down?", "up", "down").guessed == "up"
