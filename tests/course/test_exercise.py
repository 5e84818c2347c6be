from dataclasses import replace

import pytest
import torch

from helpers.course import exercise as core
from helpers.course.exercise import Exercise, checker, judge, solution_source


def stub(x):
    return ...


def solution_9_1(x):
    return 2 * x


def _check(answer):
    got = answer(21)
    if got == 21:
        return "you returned x itself; double it."
    if got != 42:
        return f"expected 42, not {got}."
    return None


DOUBLE = Exercise("9.1", "Double it", 1, 2, stub, _check, "Add x to x.", solution_9_1, (lambda x: x,))
CHOICE = Exercise("9.2", "Guess", 2, 1, ..., lambda a: None if a == "grows" else "no.", "Run it.", "grows", ("fades",))


def test_right_almost_and_not_tried():
    assert judge(DOUBLE, solution_9_1).sentence == "✓ Exercise 9.1"
    assert judge(DOUBLE, lambda x: x).sentence == "Almost: you returned x itself; double it."
    assert judge(DOUBLE, stub).sentence == "Not tried yet. Fill in the function above and run this cell again."
    assert judge(DOUBLE, ...).state == "not tried"
    assert judge(CHOICE, ...) == core.Outcome(
        "not tried", "Not tried yet. Write your answer in place of the three dots above and run this cell again."
    )
    assert judge(CHOICE, "grows").state == "right"
    assert judge(CHOICE, "fades").state == "almost"


def test_an_exception_of_the_learner_becomes_one_sentence():
    def mine(x):
        raise KeyError("block")

    assert judge(DOUBLE, mine).sentence == "Almost: mine raised KeyError: 'block'"


def test_a_wrong_signature_and_a_missing_return_are_told():
    def mine():
        return 42

    assert judge(DOUBLE, mine).sentence.startswith("Almost: mine raised TypeError")

    def forgot(x):
        x * 2

    assert judge(DOUBLE, forgot).sentence == "Almost: forgot returned None; is a `return` missing?"


def test_an_answer_that_the_check_did_not_expect_raises_nothing():
    exercise = Exercise("9.3", "Name it", 1, 1, ..., lambda a: a["name"], "", {"name": None}, ())
    assert judge(exercise, {"name": None}).state == "right"
    outcome = judge(exercise, 3)
    assert outcome.state == "almost"
    assert "cannot be checked" in outcome.sentence
    assert "TypeError" in outcome.sentence


def test_not_implemented_is_not_tried():
    def mine(x):
        raise NotImplementedError

    assert judge(DOUBLE, mine).state == "not tried"


def test_an_interrupt_passes_through():
    def mine(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(DOUBLE, mine)


def test_a_check_prints_one_line_and_returns_nothing(capsys):
    check = checker(DOUBLE)
    assert check(solution_9_1) is None
    assert capsys.readouterr().out == "✓ Exercise 9.1\n"
    assert check.__name__ == "check_9_1"


def test_a_long_sentence_is_printed_in_lines_that_fit_beside_the_file_browser(capsys):
    words = " ".join(["pre-hook"] * 40)
    checker(replace(DOUBLE, check=lambda answer: words))(solution_9_1)
    printed = capsys.readouterr().out.splitlines()
    assert " ".join(printed) == f"Almost: {words}" and len(printed) > 3
    assert all(len(line) <= 96 and not line.endswith("-") for line in printed)


def test_heading():
    assert DOUBLE.heading == "**Exercise 9.1 · Double it** difficulty ●○○ · 2 minutes"


def test_solutions_are_shown_under_a_name_of_their_own():
    assert solution_source(DOUBLE).startswith("def solution_9_1(x):")
    assert solution_source(CHOICE) == "solution_9_2 = 'grows'"


def test_tiny_models_are_seeded_and_leave_the_learners_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = core.tiny_model(1), core.tiny_model(1), core.tiny_model(2)
    assert torch.equal(torch.rand(1), expected)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, again.model(ids).logits)
        assert not torch.equal(first.model(ids).logits, other.model(ids).logits)
    assert first.dtype == torch.float64


def test_hooks_are_counted():
    lm = core.tiny_model()
    before = core.hooks_on(lm.model)
    handle = lm.blocks[1].register_forward_hook(lambda *_: None)
    assert core.hooks_on(lm.model) == before + 1
    handle.remove()
    assert core.hooks_on(lm.model) == before


@pytest.mark.parametrize("number", ["77.1", "x", "", "1.99"])
def test_an_exercise_that_does_not_exist(number):
    with pytest.raises(ValueError, match="does not exist"):
        core.find(number)


def test_a_right_answer_is_followed_by_what_it_found(capsys):
    exercise = Exercise(
        "1.1", "Double", 1, 1, ..., lambda x: None if x == 4 else "no.", "", 4, (), payoff=lambda x: f"It is {x}."
    )
    checker(exercise)(4)
    assert capsys.readouterr().out == "✓ Exercise 1.1\nIt is 4.\n"
    checker(exercise)(5)
    assert "It is" not in capsys.readouterr().out


def test_a_payoff_that_cannot_run_takes_no_check_mark_away(capsys):
    def payoff(answer):
        raise RuntimeError("no model here")

    checker(Exercise("1.1", "Double", 1, 1, ..., lambda x: None, "", 4, (), payoff=payoff))(4)
    assert capsys.readouterr().out == (
        "✓ Exercise 1.1\n(What it finds on a model cannot be shown here: RuntimeError: no model here)\n"
    )


def test_a_later_cell_goes_on_with_a_right_answer_or_with_the_courses():
    from helpers.lesson5.exercises import skip_hook, solution_5_1

    def own(module, args, output):
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    def wrong(module, args, output):
        return output

    assert core.own_or_solution("5.1", own) is own
    assert core.own_or_solution("5.1", wrong) is solution_5_1
    assert core.own_or_solution("5.1", skip_hook) is solution_5_1
