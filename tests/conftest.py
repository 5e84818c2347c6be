"""Shared by all tests: notes that tests leave for the end of the run, such as measured times."""

import tempfile
from pathlib import Path

import pytest
import tiny_gguf
import torch
from hypothesis.configuration import set_hypothesis_home_dir
from tiny import tiny

from helpers import load_model, smollm2
from helpers.course import ledger as core
from helpers.course.ledger import FAILS, HOLDS, PARTLY, Claim, Verdict

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


# ---- lessons: each verdict function has a case for each verdict that it can give; two models for one panel

NAMES = {name: value for name, value in vars(core).items() if isinstance(value, Verdict)}


def reachable(function):
    """The verdicts that a function's code names; `judge` gives the three of a count."""
    code = function.__code__
    names = set(code.co_names)
    counted = {HOLDS, PARTLY, FAILS} if "judge" in names else set()
    return counted | {NAMES[name] for name in names & set(NAMES)}


@pytest.fixture
def prove_verdicts():
    """cases: claim number -> verdict -> (arguments, words that the reason must hold)."""

    def prove(module, cases):
        assert set(cases) == set(module.VERDICTS), "cases for each verdict function"
        for number, by_verdict in cases.items():
            function = module.VERDICTS[number]
            assert set(by_verdict) == reachable(function), f"{number}: a case for each verdict"
            claims = []
            for verdict, (arguments, words) in by_verdict.items():
                claim = function(**arguments)
                assert isinstance(claim, Claim)
                assert claim.number == number
                assert claim.verdict == verdict, f"{number}: {claim}"
                assert words in claim.why, f"{number}: {claim.why}"
                claims.append(claim)
            assert len({claim.says for claim in claims}) == 1
            assert len({claim.software for claim in claims}) == 1
            assert len({claim.why for claim in claims}) == len(claims)

    return prove


@pytest.fixture(scope="session")
def pocket():
    return load_model()


@pytest.fixture(scope="session")
def llama(pocket):
    lm = tiny("llama", vocab_size=pocket.vocabulary, max_position_embeddings=128)
    lm.tokenizer = pocket.tokenizer
    return lm


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A small file with known numbers, converted: (folder of the file, folder of the model, the numbers)."""
    folder = tmp_path_factory.mktemp("made")
    known = tiny_gguf.write_gguf(folder / "tiny.gguf")
    smollm2._convert_apart(folder / "tiny.gguf", folder / "model")
    return folder, folder / "model", known
