"""Shared by all tests: notes that tests leave for the end of the run, such as measured times."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis.configuration import set_hypothesis_home_dir

torch.set_num_threads(1)  # the tests' models are tiny, and two workers with two threads each would wait for one another
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # not in the repository


@pytest.fixture
def note(record_property):
    """`note("redraw 80 ms")`: a line for the terminal, printed before pytest's closing line, never asserted on."""

    def write(line: str) -> None:
        record_property("note", line)

    return write


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [line for report in reports for name, line in getattr(report, "user_properties", []) if name == "note"]
    if lines:
        terminalreporter.section("notes")
        for line in lines:
            terminalreporter.write_line(line)
