import subprocess
import sys

import pytest

from helpers.course.restarted import ABOVE, NEW, advice


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
