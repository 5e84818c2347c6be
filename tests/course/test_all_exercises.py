"""Every exercise of every lesson: the solution passes, the stub is not tried yet, wrong answers are told apart."""

import ast
import json
import re
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch

from helpers.course import exercise as core
from helpers.course.exercise import judge, solution_source

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted(path.name for path in (ROOT / "helpers").glob("lesson[0-9]"))
EXERCISES = [exercise for lesson in LESSONS for exercise in import_module(f"helpers.{lesson}.exercises").EXERCISES]
each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)


def _notebook(exercise) -> list[dict]:
    (path,) = (ROOT / "notebooks").glob(f"{int(exercise.number.split('.')[0]):02d}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_lesson_has_four_exercises_or_more_that_rise_in_difficulty():
    for lesson in LESSONS:
        mine = [e for e in EXERCISES if e.number.startswith(lesson.removeprefix("lesson") + ".")]
        assert len(mine) >= 4
        assert mine[0].difficulty <= mine[-1].difficulty
        assert len({e.number for e in mine}) == len(mine)


@each
def test_the_solution_is_right(exercise):
    assert judge(exercise, exercise.solution).sentence == f"✓ Exercise {exercise.number}"


@each
def test_the_stub_is_not_tried_yet(exercise):
    outcome = judge(exercise, exercise.stub)
    assert outcome.state == "not tried"
    assert ("function" in outcome.sentence) == callable(exercise.solution)  # the sentence fits what was asked for


def test_half_an_answer_is_not_tried_yet():
    """The lesson's own comment shows {7: (before, after), 11: ...}: dots that stay are no wrong answer."""
    assert judge(core.find("2.1"), {7: (7, 8), 11: ...}).state == "not tried"


@pytest.mark.pinned
@each
def test_wrong_answers_are_told_apart(exercise):
    assert len(exercise.wrong) >= 3
    outcomes = [judge(exercise, answer) for answer in exercise.wrong]
    assert [outcome.state for outcome in outcomes] == ["almost"] * len(outcomes)
    assert len({outcome.sentence for outcome in outcomes}) == len(outcomes), [o.sentence for o in outcomes]
    assert not [o.sentence for o in outcomes if "cannot be checked" in o.sentence]  # foreseen, not merely survived


@pytest.mark.pinned
@each
def test_other_right_answers_are_right(exercise):
    for answer in exercise.right:
        assert judge(exercise, answer).sentence == f"✓ Exercise {exercise.number}"


def carrying_a_graph(answer):
    """The same answer as a learner writes it who forgets no_grad: what it returns requires a gradient."""

    def marked(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.requires_grad:
            return value.clone().requires_grad_()
        if type(value) in (list, tuple):
            return type(value)(map(marked, value))
        return {key: marked(one) for key, one in value.items()} if isinstance(value, dict) else value

    def call(*args, **kwargs):
        with torch.enable_grad():
            return marked(answer(*args, **kwargs))

    return call if callable(answer) else answer


@pytest.mark.pinned
@each
def test_a_right_answer_is_told_what_it_found(exercise):
    """Also where the answer keeps a graph: PyTorch's warning must not break into the sentence."""
    torch.set_warn_always(True)  # or it is given once, and a later exercise would pass
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*requires_grad")
            answer = carrying_a_graph(exercise.solution)
            assert "UserWarning" not in judge(exercise, answer).sentence
            if exercise.payoff is None:
                return
            said = core.found(exercise, answer)
    finally:
        torch.set_warn_always(False)
    assert re.search(r"\d", said) and 1 <= len(re.findall(r"[.!?](?= |$)", said)) <= 4, said
    assert "cannot be shown here" not in said


@each
def test_a_crash_of_the_learner_is_told(exercise):
    if not callable(exercise.solution):
        return

    def mine(*args, **kwargs):
        raise RuntimeError("my own mistake")

    assert judge(exercise, mine).sentence == "Almost: mine raised RuntimeError: my own mistake"


@each
def test_hint_and_solution_can_be_read(exercise, capsys):
    assert core.find(exercise.number) is exercise
    core.hint(exercise.number)
    assert len(capsys.readouterr().out) > 20
    source = solution_source(exercise)
    name = f"solution_{exercise.number.replace('.', '_')}"
    (statement,) = ast.parse(source).body
    found = statement.name if isinstance(statement, ast.FunctionDef) else statement.targets[0].id
    assert found == name
    core.show_solution(exercise.number)
    assert source in capsys.readouterr().out


@each
def test_the_notebook_gives_heading_stub_and_check(exercise):
    cells = _notebook(exercise)
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert exercise.heading in prose
    check = f"check_{exercise.number.replace('.', '_')}("
    (cell,) = [c for c in cells if c["cell_type"] == "code" and check in "".join(c["source"])]
    printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    assert printed == exercise.not_tried + "\n"


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_notebook_says_how_many_exercises_and_how_long_they_take(lesson):
    mine = [e for e in EXERCISES if e.number.startswith(lesson.removeprefix("lesson") + ".")]
    title = "".join(_notebook(mine[0])[0]["source"])
    words = {4: "four", 5: "five", 6: "six", 7: "seven"}
    assert f"{sum(e.minutes for e in mine)} minutes of them for {words[len(mine)]} exercises" in title


@each
def test_a_shown_solution_needs_nothing_that_the_notebook_lacks(exercise):
    """Pasted below the notebook's own imports, a solution is still right: it leans on no name of its module alone."""
    if not callable(exercise.solution):
        return
    scope = {}
    for cell in _notebook(exercise):
        if cell["cell_type"] == "code":
            for statement in ast.parse("".join(cell["source"])).body:
                if isinstance(statement, (ast.Import, ast.ImportFrom)):
                    exec(compile(ast.Module([statement], []), "notebook", "exec"), scope)
    exec(solution_source(exercise), scope)
    pasted = scope[f"solution_{exercise.number.replace('.', '_')}"]
    assert judge(exercise, pasted).state == "right"
