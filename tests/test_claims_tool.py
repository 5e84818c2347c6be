"""tools/claims.py: one table of all claims, and the committed copies of it agree with each other and the notebooks."""

import csv
import importlib.util
import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.exercises.core import tiny_model

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLAIMS = [
    Claim("2.1", "a | b", "1", HOLDS, "it is so"),
    Claim("1.1", "c", "2, 3", PARTLY, 'in "part"'),
    Claim("1.2", "d", "4", FAILS, "no"),
]
# How many claims each report makes.
NUMBERS = [
    f"{lesson}.{claim}" for lesson, last in {1: 7, 2: 5, 3: 7, 4: 6, 5: 5}.items() for claim in range(1, last + 1)
]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("claims_tool", ROOT / "tools" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """A repository with nothing but a README that has the marked place."""
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    return tmp_path


def stored_rows():
    with (ROOT / "docs" / "claims.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_body_counts_and_lists(tool):
    text = tool.body(CLAIMS)
    assert text.startswith("Verdicts on 3 claims: holds 1, holds in part 1, does not hold 1.\n\n| claim |")
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [row.split(" | ")[0] for row in rows] == ["| 1.1", "| 1.2", "| 2.1"]
    assert "a \\| b" in rows[2]


def test_the_pocket_models_table_goes_to_docs_and_readme(tool, copy):
    written = tool.save(CLAIMS, "pocket", root=copy)
    assert {path.relative_to(copy).as_posix() for path in written} == {"docs/claims.md", "docs/claims.csv", "README.md"}
    readme = (copy / "README.md").read_text(encoding="utf-8")
    folded = readme.split("<summary>")[1]
    assert folded.startswith("Verdicts on 3 claims: holds 1, holds in part 1, does not hold 1.</summary>\n\n| claim |")
    assert tool.ledger_table(CLAIMS).to_markdown() in folded.split("</details>")[0]
    assert readme.split(tool.BEGIN)[0] == README.split(tool.BEGIN)[0]
    assert readme.split(tool.END)[1] == README.split(tool.END)[1]
    tool.save(CLAIMS, "pocket", root=copy)
    assert (copy / "README.md").read_text(encoding="utf-8") == readme, "writing twice changes nothing"
    with (copy / "docs" / "claims.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["claim", "the report says", "measured here", "verdict", "why"]
    assert rows[1] == ["1.1", "c", "2, 3", "holds in part", 'in "part"']


def test_another_model_leaves_the_committed_files_alone(tool, copy):
    folder = copy / "here"
    folder.mkdir()
    written = tool.save(CLAIMS, "openai-community/gpt2", root=copy, folder=folder)
    assert {path.name for path in written} == {"claims-openai-community-gpt2.md", "claims-openai-community-gpt2.csv"}
    assert "make claims MODEL=openai-community/gpt2" in written[0].read_text(encoding="utf-8")
    assert (copy / "README.md").read_text(encoding="utf-8") == README
    assert not (copy / "docs").exists()


@pytest.mark.parametrize("readme", ["no marks", "{BEGIN} {BEGIN} {END}", "{END}"])
def test_a_readme_without_the_place_is_refused(tool, readme):
    with pytest.raises(ValueError, match="once each"):
        tool.with_claims(readme.format(BEGIN=tool.BEGIN, END=tool.END), CLAIMS)


def test_measure_runs_the_lessons_asked_for(tool, monkeypatch):
    asked = []

    class Lesson:
        @staticmethod
        def ledger(lm, prompt):
            asked.append((lm, prompt))
            return [CLAIMS[0]]

    monkeypatch.setattr(tool, "import_module", lambda name: Lesson)
    lm = tiny_model()
    assert tool.measure(lm, [2, 4]) == [CLAIMS[0]] * 2
    assert asked == [(lm, tool.WATER), (lm, "Berlin is the capital of")]


def test_an_unknown_model_is_told_in_one_sentence(tool, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert tool.main(["--model", str(tmp_path / "empty")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.match(r"\w+: .+", said.err) and "Traceback" not in said.err


def test_the_committed_table_has_every_claim_once():
    assert [row[0] for row in stored_rows()[1:]] == NUMBERS
    assert {row[3] for row in stored_rows()[1:]} <= {"holds", "holds in part", "does not hold"}


def test_page_csv_and_readme_are_the_same_table(tool):
    numbered = [
        Claim(n, says, measured, verdict_of(verdict), why) for n, says, measured, verdict, why in stored_rows()[1:]
    ]
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").endswith(tool.body(numbered))
    assert tool.with_claims(README, numbered) == README


def verdict_of(words):
    return {str(verdict): verdict for verdict in (HOLDS, PARTLY, FAILS)}[words]


@pytest.mark.parametrize("lesson", range(1, 6))
def test_the_notebooks_ledger_is_the_committed_one(lesson):
    (path,) = (ROOT / "notebooks").glob(f"{lesson:02d}_*.ipynb")
    (cell,) = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["id"] == f"l{lesson}-ledger"]
    html = "".join("".join(output.get("data", {}).get("text/html", "")) for output in cell["outputs"])
    rows = [
        [unescape(re.sub("</?code>", "`", entry)) for entry in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in html.split("<tr>")[2:]
    ]
    assert rows == [row for row in stored_rows() if row[0].startswith(f"{lesson}.")]


def test_the_tool_speaks_of_the_versions_it_ran_with(tool):
    assert f"torch {torch.__version__.split('+')[0]}" in tool.page(CLAIMS, "pocket")
