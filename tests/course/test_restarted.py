import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.course import restarted
from helpers.course.restarted import ABOVE, NEW, advice, made_in_lessons


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("lm", {}, NEW),
        ("real", {"load_model": 1}, ABOVE.format(name="real")),
        ("scaling_panel", {}, NEW),
        ("check_5_5", {}, NEW),
        ("scaling_panel", {"load_model": 1}, None),  # not of this lesson, or misspelt: Python's own message is enough
        ("my_own", {}, None),
        (None, {}, None),
    ],
)
def test_only_names_of_the_lessons_are_explained(name, known, said):
    assert advice(name, known) == said


def test_names_that_cells_make_are_known_from_the_notebooks_in_the_kernels_folder(monkeypatch, tmp_path):
    lessons = Path(restarted.__file__).parents[2] / "notebooks"
    assert {"rest_guess", "pairs", "fact", "in_place"} <= made_in_lessons(lessons)
    assert not {"module", "output", "i", "kl"} & made_in_lessons(lessons)  # of functions and of the package
    monkeypatch.chdir(lessons)
    assert advice("rest_guess", {}) == NEW and advice("pairs", {"load_model": 1}) == ABOVE.format(name="pairs")
    cells = [{"cell_type": "code", "source": source} for source in (["%%time"], "mine = 1")]
    (tmp_path / "01_mine.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "02_broken.ipynb").write_text("{")
    assert "mine" in made_in_lessons(tmp_path)


def run(*cells):
    """What a new kernel with the extension prints for these cells."""
    command = [sys.executable, "-m", "IPython", "--colors=nocolor", "--ext=helpers.course.restarted", "--no-banner"]
    ran = subprocess.run(command, input="\n".join(cells), capture_output=True, text=True, timeout=120)
    return ran.stdout + ran.stderr


def test_a_new_kernel_says_run_from_the_top(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    said = run("trace(lm, prompt)", "unknown", "1 / 0", "load_model = 1", "real")
    assert said.count(NEW) == 1 and said.count(ABOVE.format(name="real")) == 1
    assert said.index("name 'trace' is not defined") < said.index(NEW) < said.index("name 'unknown' is not defined")
    assert "ZeroDivisionError" in said
