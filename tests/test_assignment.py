"""make assignment: nbgrader's source and release versions, made from the notebooks, and the whole way from handing out to feedback."""

import ast
import importlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.course.exercise import find

nbformat = pytest.importorskip("nbformat")  # the environment with transformers 4.57 has no notebooks
pwd = pytest.importorskip("pwd")  # nbgrader's exchange is not for Windows
ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
LESSONS = range(1, 6)
each = pytest.mark.parametrize("lesson", LESSONS)


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("assignment")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    out = tmp_path_factory.mktemp("assignment")
    tool.write(out)
    return out


def notebook(folder, kind, lesson):
    (path,) = (folder / kind / f"lesson{lesson}").glob("*.ipynb")
    return nbformat.read(path, as_version=4)


def marked(cells, **wanted):
    marks = [(cell, cell.metadata.get("nbgrader", {})) for cell in cells]
    return [cell for cell, mark in marks if all(mark.get(name) == value for name, value in wanted.items())]


@each
@pytest.mark.parametrize("kind", ["source", "release"])
def test_every_cell_is_valid_and_its_grade_id_is_its_own(folder, lesson, kind):
    nb = notebook(folder, kind, lesson)
    nbformat.validate(nb)
    ids = [cell.metadata.nbgrader.grade_id for cell in nb.cells if "nbgrader" in cell.metadata]
    assert len(ids) == len(set(ids)) > 8
    assert all(cell.id == cell.metadata.nbgrader.grade_id for cell in nb.cells if "nbgrader" in cell.metadata)
    assert not [cell for cell in nb.cells if cell.get("outputs")]
    assert all(cell.source.strip() for cell in nb.cells)


@each
def test_the_release_is_the_lesson_with_tests_and_a_word_on_grades(folder, lesson):
    (path,) = (ROOT / "notebooks").glob(f"{lesson:02d}_*.ipynb")
    lesson_cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    cells = notebook(folder, "release", lesson).cells
    assert [cell.id for cell in cells if cell.id in lesson_cells] == list(lesson_cells)
    for cell in cells:
        if cell.cell_type == "code" and cell.id in lesson_cells:
            assert cell.source == lesson_cells[cell.id]
    assert "SOLUTION" not in "".join(cell.source for cell in cells)
    assert "they are no exam" in cells[1].source and cells[1].metadata.nbgrader.locked
    here = folder / "release" / f"lesson{lesson}"
    pages = [page.read_text(encoding="utf-8") for page in here.glob("*.md")]
    assert bool(pages) == (lesson in {1, 3, 4, 5})
    for link in [word for text in [*pages, *(cell.source for cell in cells)] for word in text.split("](")[1:]]:
        target = link.split(")")[0].split("#")[0]
        if "://" not in target and target:
            assert (here / target).exists()


@each
def test_a_locked_test_follows_each_exercise_and_is_worth_its_difficulty(folder, lesson):
    cells = notebook(folder, "source", lesson).cells
    answers, tests = marked(cells, solution=True), marked(cells, grade=True)
    assert [cells[cells.index(answer) + 1] for answer in answers] == tests
    numbers = [f"{lesson}.{place}" for place in range(1, len(tests) + 1)]
    for number, test in zip(numbers, tests, strict=True):
        assert f'find("{number}")' in test.source
        assert test.metadata.nbgrader.locked and test.metadata.nbgrader.points == find(number).difficulty


@each
def test_the_source_passes_its_tests_and_the_release_says_what_the_check_says(tool, folder, lesson):
    """The cells run as they stand; a payoff, which would load the real model, is not asked for."""
    for kind in ("source", "release"):
        cells = notebook(folder, kind, lesson).cells
        scope = {}
        exec(tool.course.setup(lesson), scope)
        for cell, test in zip(marked(cells, solution=True), marked(cells, grade=True), strict=True):
            tree = ast.parse(cell.source)
            tree.body = [one for one in tree.body if not isinstance(one, ast.Expr)]
            exec(compile(tree, cell.id, "exec"), scope)
            if kind == "source":
                exec(test.source, scope)
            else:
                with pytest.raises(AssertionError, match=r"^Not tried yet\."):
                    exec(test.source, scope)


def test_a_solution_with_other_parameters_is_refused(tool):
    exercise = find("1.1")
    asked = next(one for one in tool.course.asked(1) if one.number == "1.1")
    with pytest.raises(SystemExit, match=r"1\.1: the solution and the stub have different parameters"):
        tool.with_solution("def changed_states(other):\n    return ...\n", asked, exercise)


# ---- the whole way, with nbgrader itself


RUN = """
import contextlib, json, os, sys
from jupyter_core.application import NoStart
from nbgrader.apps import NbGraderApp
for folder, words in json.loads(sys.argv[1]):
    os.chdir(folder)
    NbGraderApp.clear_instance()
    app = NbGraderApp.instance()
    app.initialize(words)
    with contextlib.suppress(NoStart):  # how a Jupyter command says that its part has run; a failure ends the process
        app.start()
"""


def has_nbgrader():
    return importlib.util.find_spec("nbgrader") is not None


@pytest.mark.skipif(
    not has_nbgrader() and not os.environ.get("CI"), reason="needs nbgrader: pip install -e '.[classroom]'"
)
def test_from_handing_out_to_feedback(tool, folder, tmp_path):
    """Lesson 3, cut down to its exercises. One student is right, one is wrong and reaches for the gradebook."""
    course, exchange = tmp_path / "course", tmp_path / "exchange"
    nb = notebook(folder, "source", 3)
    nb.cells = [cell for cell in nb.cells if "nbgrader" in cell.metadata]
    nb.cells.insert(0, nbformat.v4.new_code_cell(tool.course.setup(3)))
    shutil.copytree(folder / "release" / "lesson3", course / "release" / "lesson3")  # --force writes it again
    (course / "source" / "lesson3").mkdir(parents=True)
    nbformat.write(nb, course / "source" / "lesson3" / "03_multi_component_challenge.ipynb")
    (course / "nbgrader_config.py").write_text((folder / "nbgrader_config.py").read_text())
    exchange.mkdir()
    exchange.chmod(0o777)
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}

    def nbgrader(*steps):
        """Each step is (folder, words); one process for all, since importing nbgrader takes seconds."""
        steps = [(str(at), [*words.split(), f"--Exchange.root={exchange}"]) for at, words in steps]
        run = [sys.executable, "-c", RUN, json.dumps(steps)]
        said = subprocess.run(run, env=surroundings, capture_output=True, text=True, timeout=240)
        assert said.returncode == 0, said.stderr

    home = tmp_path / "home"
    home.mkdir()
    nbgrader(
        (course, "generate_assignment lesson3 --force"),
        (course, "release_assignment lesson3"),
        (home, "fetch_assignment lesson3 --course=causal-interventions"),
    )
    released = course / "release" / "lesson3" / "03_multi_component_challenge.ipynb"
    assert "SOLUTION" not in released.read_text() and "return ..." in released.read_text()
    by_hand = (
        course / "submitted" / "ben" / "lesson3"
    )  # the exchange takes the user's own name: one copy goes through it
    by_hand.mkdir(parents=True)
    shutil.copy(released, by_hand)

    # Without the call of the check, which would go on to show on a model what a right answer finds.
    solutions = {cell.id: re.sub(r"(?m)^check_.*", "", cell.source) for cell in marked(nb.cells, solution=True)}
    thief = (
        "def key_columns(d_model, d_head, head):\n    import sqlite3\n"
        f"    with sqlite3.connect({str(course / 'gradebook.db')!r}) as book:\n"
        "        book.execute('UPDATE grade SET manual_score = 99')\n    return slice(0, 1)\n"
    )
    for folder, answers in {home / "lesson3": solutions, by_hand: {"l3-exercise-1": thief}}.items():
        mine = nbformat.read(folder / released.name, as_version=4)
        for cell in mine.cells:
            cell.source = answers.get(cell.id, cell.source)
        nbformat.write(mine, folder / released.name)
    anna = pwd.getpwuid(os.getuid()).pw_name
    nbgrader(
        (home, "submit lesson3 --course=causal-interventions"),
        (course, "collect lesson3"),
        (course, f"autograde lesson3 --student {anna} --force"),
        (course, "autograde lesson3 --student ben --force"),
        (course, "generate_feedback lesson3"),
    )
    with sqlite3.connect(course / "gradebook.db") as book:
        scores = book.execute(
            "SELECT s.student_id, b.name, g.auto_score, g.manual_score FROM grade g JOIN submitted_notebook n ON g.notebook_id = n.id "
            "JOIN submitted_assignment s ON n.assignment_id = s.id JOIN base_cell b ON g.cell_id = b.id"
        ).fetchall()
    points = {(student, name): score for student, name, score, _ in scores}
    assert {name: points[anna, name] for name in (cell.id for cell in marked(nb.cells, grade=True))} == {
        cell.id: cell.metadata.nbgrader.points for cell in marked(nb.cells, grade=True)
    }
    assert {score for (student, _), score in points.items() if student == "ben"} == {0}
    assert all(manual is None for *_, manual in scores)
    (page,) = (course / "feedback" / anna).rglob("*.html")
    assert "AssertionError" not in page.read_text()
    (page,) = (course / "feedback" / "ben").rglob("*.html")
    assert "AssertionError" in page.read_text() and "Not tried yet" in page.read_text()
