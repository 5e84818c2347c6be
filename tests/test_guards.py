"""The comparison of stored outputs: every cell of every notebook, and then each section once more; and it finds a planted fault.

Learners run cells again, and go back. So nbval compares each lesson in a fresh process from top to bottom, and in the same kernel
section by section from the last to the first: each cell runs twice, and each section runs alone on what the whole run left behind.
This is done in one thread and without vector instructions, where every printed digit must stay: what is stored was computed with
all that a processor had, and tests/test_browser.py compares with two threads and AVX2. With a wrong line in a copy of the package,
some digits must not stay.
"""

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
SURROUNDINGS = """import torch, helpers
helpers.load_model()
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"""
FAULTS = {  # what is wrong: the file, a line of it, the same line with a fault
    "a measure is 1 % too large": (
        "metrics.py",
        "    return (a - b).flatten(1).norm(dim=1)\n",
        "    return (a - b).flatten(1).norm(dim=1) * 1.01\n",
    ),
    "an edit scales a little too much": (
        "edits.py",
        '    by = real_number(factor, "factor")\n',
        '    by = real_number(factor, "factor") + 0.001\n',
    ),
}


def with_sections_again(nb):
    """The notebook, and after it its sections once more, from the last to the first, with the same stored outputs."""
    sections = [[]]  # the code cells under each heading, the set-up first
    for cell in nb.cells:
        if cell.cell_type == "code":
            sections[-1].append(cell)
        elif re.search(r"^## ", cell.source, re.M):
            sections.append([])
    again = [deepcopy(cell) for section in reversed(sections) for cell in section]
    for cell in again:
        cell.id += "-again"
    return nbformat.from_dict({**nb, "cells": [*nb.cells, *again]})


def compare(notebooks, folder, *options, **env):
    """Run nbval on `notebooks` (file name -> notebook) in a fresh process; return it finished, its report in `stdout`."""
    copies = folder / "notebooks"
    copies.mkdir()
    for name, notebook in notebooks.items():
        nbformat.write(notebook, copies / name)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", str(folder / "pytest.ini"), *options]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", str(copies)]
    return subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)


def test_the_surroundings_take_effect():
    env = {**os.environ, **PLAIN}
    found = subprocess.run([sys.executable, "-c", SURROUNDINGS], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["DEFAULT", "1"]


def test_a_run_shows_what_is_stored_to_the_last_printed_digit_and_each_section_shows_it_again(tmp_path):
    lessons = {path.name: with_sections_again(nbformat.read(path, as_version=4)) for path in LESSONS}
    finished = compare(lessons, tmp_path, **PLAIN)
    assert finished.returncode == 0, finished.stdout


def test_what_changes_is_found(tmp_path):
    v4 = nbformat.v4
    two, no = ([v4.new_output("stream", text=f"{text}\n")] for text in (2, False))
    cells = [
        v4.new_code_cell("n = 1", id="setup", execution_count=1),
        v4.new_markdown_cell("## 1 · Count", id="count-text"),
        v4.new_code_cell("n += 1\nprint(n)", id="count", execution_count=2, outputs=two),
        v4.new_markdown_cell("## 2 · Look", id="look-text"),
        v4.new_code_cell("print(n > 0)", id="look", execution_count=3, outputs=no),
    ]
    finished = compare({"two.ipynb": with_sections_again(v4.new_notebook(cells=cells))}, tmp_path)
    red = re.findall(r"^FAILED .*::Cell (\d+)", finished.stdout, re.M)
    assert red == ["2", "3", "4"], f"look, look again, count again\n{finished.stdout}"


@pytest.mark.parametrize(("file", "line", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_turns_the_comparison_red(file, line, fault, tmp_path):
    package = shutil.copytree(ROOT / "helpers", tmp_path / "planted" / "helpers")
    source = (package / file).read_text(encoding="utf-8")
    assert source.count(line) == 1, f"choose another line of {file} for the fault"
    (package / file).write_text(source.replace(line, fault), encoding="utf-8")
    lesson = {LESSONS[0].name: nbformat.read(LESSONS[0], as_version=4)}
    finished = compare(lesson, tmp_path, "-x", PYTHONPATH=str(package.parent))
    assert finished.returncode == pytest.ExitCode.TESTS_FAILED, finished.stdout
    assert " passed" in finished.stdout, f"red for another reason: the first cells must still pass\n{finished.stdout}"
