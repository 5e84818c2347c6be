"""The pages in docs/ run: their Python blocks, in order, on the model that they name."""

import re
from pathlib import Path

import pytest

import helpers
from helpers.models import POCKET_FOLDER

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_tour_of_the_helpers_runs(capsys):
    if not (POCKET_FOLDER / "model.safetensors").is_file():
        pytest.skip("helpers/pocket has no weights yet")
    code, names = blocks(DOCS / "helpers.md"), {}
    assert len(code) >= 6
    for number, block in enumerate(code, 1):
        exec(compile(block, f"docs/helpers.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "live edits: zero_heads(5, [3, 7]), change('mlp', 6, <lambda>)" in said
    assert "BlockOutOfRange - block 99 does not exist" in said


def test_the_tour_names_only_what_exists():
    text = (DOCS / "helpers.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", text.split("| --- | --- |")[1].split("\n\n")[0])
    assert len(listed) >= 13 and set(listed) <= set(helpers.__all__)
