"""Shared by all tests: notes that tests leave for the end of the run, such as measured times.

The process that only hands tests out to its workers reads this file first: what takes seconds to import is imported where it is used.
"""

import contextlib
import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # not in the repository


def pytest_collectstart():
    import torch

    torch.set_num_threads(1)  # the models are tiny, and two workers with two threads each would wait for one another


@pytest.fixture(autouse=True, scope="session")
def quick_masks():
    """On transformers 4.57 masks are made by broadcasting, as 5 makes them, and not by `vmap`.

    For a model of four blocks `vmap` took three quarters of each pass. tests/test_masks.py holds both ways equal.
    """
    from transformers import __version__, masking_utils

    with pytest.MonkeyPatch.context() as patch:
        if __version__.startswith("4."):
            patch.setattr(masking_utils, "_vmap_for_bhqkv", broadcast_in_place_of(masking_utils._vmap_for_bhqkv))
            # It only lets `vmap` index a tensor by a tensor.
            patch.setattr(masking_utils, "TransformGetItemToIndex", contextlib.nullcontext)
        yield


def broadcast_in_place_of(vmapped):
    """The same mask (batch, head, query, key) from one call; under `__wrapped__` lies what it stands for."""

    @functools.wraps(vmapped)
    def maker(mask_function):
        def make(batch, head, query, key):
            found = mask_function(batch[:, None, None, None], head[:, None, None], query[:, None], key)
            return found.expand(len(batch), len(head), len(query), len(key))

        return make

    return maker


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """PyTorch's switch holds for the whole process: a test that leaves it off is told, not the ones that run after it."""
    import torch

    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on, "this test left gradients switched off"


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


def reachable(function):
    """The verdicts that a function's code names; `judge` gives the three of a count."""
    from helpers.course import ledger

    verdicts = {name: value for name, value in vars(ledger).items() if isinstance(value, ledger.Verdict)}
    names = set(function.__code__.co_names)
    counted = {ledger.HOLDS, ledger.PARTLY, ledger.FAILS} if "judge" in names else set()
    return counted | {verdicts[name] for name in names & set(verdicts)}


@pytest.fixture
def prove_verdicts():
    """cases: claim number -> verdict -> (arguments, words that the reason must hold)."""
    from helpers.course.ledger import Claim

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
    from helpers import load_model

    return load_model()


@pytest.fixture(scope="session")
def llama(pocket):
    from tiny import tiny

    lm = tiny("llama", vocab_size=pocket.vocabulary, max_position_embeddings=128)
    lm.tokenizer = pocket.tokenizer
    return lm


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A small file with known numbers, converted: (folder of the file, folder of the model, the numbers)."""
    import tiny_gguf

    from helpers import smollm2

    folder = tmp_path_factory.mktemp("made")
    known = tiny_gguf.write_gguf(folder / "tiny.gguf")
    smollm2._convert_apart(folder / "tiny.gguf", folder / "model")
    return folder, folder / "model", known
