"""Learners run cells again, and go back: a section that is run once more, after all the others, shows what it showed before.

Each notebook is run from top to bottom in one kernel, then section by section from the last to the first. So each cell
runs twice, and each section runs alone on what the whole run left behind. The kernel has two threads and AVX2; tests/test_guards.py
compares in one thread without vector instructions, and what is stored was computed with all that a processor had. All three agree.
"""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient
from test_notebooks_rules import FOLDER, LESSONS, text_of

SURROUNDINGS = {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
WIDGET = re.compile(r"model_id=\S+|'[0-9a-f]{32}'")


def sections(nb):
    """The numbers of the code cells under each heading, the set-up first."""
    found = [[]]
    for number, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            found[-1].append(number)
        elif re.search(r"^## ", cell.source, re.M):
            found.append([])
    return [numbers for numbers in found if numbers]


def shown(cell):
    # A kernel may send what is printed in one piece or in several.
    return re.sub(r"\n+", "\n", WIDGET.sub("", "\n".join(text_of(out) for out in cell.outputs)))


def differences(nb):
    """Ids of the cells that show something else than what is stored, and when their section is run again."""
    cells = [number for numbers in sections(nb) for number in numbers]
    stored = {number: shown(nb.cells[number]) for number in cells}
    client = NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    with client.setup_kernel(env={**os.environ, **SURROUNDINGS}):
        for number, cell in enumerate(nb.cells):
            client.execute_cell(cell, number)
        first = {number: shown(nb.cells[number]) for number in cells}
        for numbers in reversed(sections(nb)):
            for number in numbers:
                client.execute_cell(nb.cells[number], number)
    changed = [nb.cells[number].id for number in cells if first[number] != stored[number]]
    return changed, [nb.cells[number].id for number in cells if shown(nb.cells[number]) != first[number]]


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_run_shows_what_is_stored_and_each_section_can_be_run_again(lesson):
    assert differences(nbformat.read(FOLDER / f"{lesson}.ipynb", as_version=4)) == ([], [])


def test_what_changes_is_found():
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell("n = 1", id="setup"),
        v4.new_markdown_cell("## 1 · Count", id="count-text"),
        v4.new_code_cell("n += 1\nprint(n)", id="count", outputs=[v4.new_output("stream", text="2\n")]),
        v4.new_markdown_cell("## 2 · Look", id="look-text"),
        v4.new_code_cell("print(n > 0)", id="look", outputs=[v4.new_output("stream", text="False\n")]),
    ]
    assert differences(v4.new_notebook(cells=cells)) == (["look"], ["count"])
