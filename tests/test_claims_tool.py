"""tools/claims.py: one page of all claims on both models, a run that goes on where it was killed, and committed copies that agree
with each other and with the notebooks."""

import csv
import importlib.util
import json
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.course.exercise import tiny_model
from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, UNTESTED, Claim, Verdict, committed, ledger_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
POCKET = [
    Claim("2.1", "a | b", CONSTRUCTION, "it is so", software=True),
    Claim("1.1", "c", PARTLY, 'in "part" | more', "2, 3", over=(4, 25)),
    Claim("1.2", "d", UNTESTED, "p is 0", "4"),
]
REAL = [
    Claim("1.1", "c", HOLDS, "all of it", "5", over=(24, 25)),
    Claim("1.2", "d", FAILS, "no", over=(0, 25)),
    Claim("2.1", "a | b", CONSTRUCTION, "it is so", software=True),
]
# How many claims each report makes.
NUMBERS = [
    f"{lesson}.{claim}" for lesson, last in {1: 9, 2: 5, 3: 9, 4: 8, 5: 6}.items() for claim in range(1, last + 1)
]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("claims_tool", ROOT / "tools" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def both(tool):
    return {"pocket": POCKET, "smollm2": REAL}, {name: tool.Run(130.0, 1, "float32") for name in tool.BOTH}


@pytest.fixture
def copy(tmp_path):
    """A repository with nothing but a README that has the marked place."""
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    return tmp_path


def stored_rows():
    with (ROOT / "helpers" / "data" / "claims.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stored_claims():
    """model -> the claims of the committed CSV."""
    found = {}
    for row in stored_rows():
        over = (int(row["true on"]), int(row["of prompts"])) if row["of prompts"] else None
        claim = Claim(row["claim"], row["the report says"], Verdict(row["verdict"]), row["why"], row["measured"],
                      row["about"] == "software", over)  # fmt: skip
        found.setdefault(row["model"], []).append(claim)
    return found


def test_the_page_has_a_column_for_each_model_and_the_verdict_first(tool, both):
    text = tool.page(*both, "make claims", "../notebooks/")
    assert "The reports make 3 claims." in text
    assert "- **the pocket model**: holds in part 1, true by construction 1, cannot be tested on this model 1." in text
    assert "the pocket model took 2 min in float32 on 1 thread" in text
    models, software = text.split("## Claims about models")[1].split("## Claims about software and arithmetic")
    header, _, *rows = (line for line in models.splitlines() if line.startswith("|"))
    assert header == "| claim | the report says | the pocket model | SmolLM2-135M |"
    assert rows[0] == (
        "| [1.1](../notebooks/01_downstream_scaling.ipynb#cell-id=l1-lie)<br>section 2 | c | "
        '**holds in part: wholly true on 4 of 25 prompts**<br>in "part" \\| more.<br><sub>2, 3</sub> | '
        "**holds on 24 of 25 prompts**<br>all of it.<br><sub>5</sub> |"
    )
    assert [re.match(r"\| \[(.*?)\]", row)[1] for row in rows] == ["1.1", "1.2"]
    assert (
        "[2.1](../notebooks/02_hooks_vs_hidden_states.ipynb#cell-id=l2-every-block)<br>section 1 | a \\| b" in software
    )
    for said in ("90 %", "fewer than half", "sign test", "Holm", "KL(clean ‖ edited)", "Wang et al. 2022"):
        assert said in text.replace("\n", " ")


def test_both_models_go_to_docs_and_the_count_to_the_readme(tool, both, copy):
    written = tool.save(*both, root=copy)
    assert {path.relative_to(copy).as_posix() for path in written} == {
        "docs/claims.md",
        "helpers/data/claims.csv",
        "README.md",
    }
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert "| holds in part | 1 | 0 |" in readme and "| does not hold | 0 | 1 |" in readme
    assert readme.split(tool.BEGIN)[0] == README.split(tool.BEGIN)[0]
    assert readme.split(tool.END)[1] == README.split(tool.END)[1]
    tool.save(*both, root=copy)
    assert (copy / "README.md").read_text(encoding="utf-8") == readme, "writing twice changes nothing"
    with (copy / "helpers" / "data" / "claims.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["claim"], row["model"], row["verdict"], row["true on"]) for row in rows[:2]] == [
        ("1.1", "pocket", "holds in part", "4"),
        ("1.1", "smollm2", "holds", "24"),
    ]


def test_another_model_leaves_the_committed_files_alone(tool, copy):
    folder = copy / "here"
    folder.mkdir()
    runs = {"openai-community/gpt2": tool.Run(1.0, 2, "float32")}
    written = tool.save({"openai-community/gpt2": REAL}, runs, root=copy, folder=folder)
    assert {path.name for path in written} == {"claims-openai-community-gpt2.md", "claims-openai-community-gpt2.csv"}
    text = written[0].read_text(encoding="utf-8")
    assert "make claims MODEL=openai-community/gpt2" in text and "1 s in float32 on 2 threads" in text
    (link,) = set(re.findall(r"\]\((.*?)01_downstream", text))
    assert (folder / link).resolve() == ROOT / "notebooks"
    assert (copy / "README.md").read_text(encoding="utf-8") == README
    assert not (copy / "docs").exists()


@pytest.mark.parametrize("readme", ["no marks", "{BEGIN} {BEGIN} {END}", "{END}"])
def test_a_readme_without_the_place_is_refused(tool, both, readme):
    with pytest.raises(ValueError, match="once each"):
        tool.with_count(readme.format(BEGIN=tool.BEGIN, END=tool.END), both[0])


def lessons(monkeypatch, tool, killed_in=None):
    """Five lessons that each measure two things; returns what was measured. One of them is killed half-way."""
    measured = []

    def lesson(number):
        def ledger(lm, prompt=None, keep=None):
            assert (prompt is None) == (number == 4)
            for step in ("a", "b"):

                def work(step=step):
                    if (number, step) == killed_in:
                        raise KeyboardInterrupt
                    measured.append((number, step))
                    return number

                assert keep(step, work) == number
            return [Claim(f"{number}.1", "so", HOLDS, "yes")]

        return SimpleNamespace(ledger=ledger)

    monkeypatch.setattr(tool, "import_module", lambda name: lesson(int(name.removesuffix(".claims")[-1])))
    # Not named after all code of the package, which takes a second to read; the test below does that.
    monkeypatch.setattr(tool, "kept_file", lambda model, lesson, weights, folder: folder / f"{model}-{lesson}.jsonl")
    return measured


@pytest.mark.parametrize("killed_in", [(1, "a"), (3, "a"), (3, "b"), (5, "b")])
def test_a_killed_run_goes_on_where_it_was(tool, monkeypatch, tmp_path, killed_in):
    lm = tiny_model()
    first = lessons(monkeypatch, tool, killed_in)
    with pytest.raises(KeyboardInterrupt):
        tool.measure(lm, "m", tmp_path)
    second = lessons(monkeypatch, tool)
    claims, _ = tool.measure(lm, "m", tmp_path)
    assert first + second == [(number, step) for number in range(1, 6) for step in "ab"], (
        "nothing twice, nothing left out"
    )
    assert [claim.number for claim in claims] == ["1.1", "2.1", "3.1", "4.1", "5.1"]
    third = lessons(monkeypatch, tool)
    assert tool.measure(lm, "m", tmp_path)[0] == claims and third == []


def test_what_was_kept_is_used_for_the_same_model_versions_and_code_only(tool, monkeypatch, tmp_path):
    lm = tiny_model()
    weights = tool.fingerprint(lm)
    assert tool.fingerprint(tiny_model()) == weights
    assert tool.fingerprint(tiny_model(seed=1)) != weights
    changed = tiny_model()
    with torch.no_grad():
        changed.unembed.weight[3, 2] += 1e-9
    assert tool.fingerprint(changed) != weights
    monkeypatch.setattr(tool.transformers, "__version__", "0.0")
    assert tool.fingerprint(lm) != weights

    root = tmp_path / "root"
    for name in ("helpers/lesson1", "helpers/data"):
        (root / name).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", root)
    lesson, core = root / "helpers" / "lesson1" / "claims.py", root / "helpers" / "edits.py"
    lesson.write_text("def verdict_1_1(x):\n    return x\n\n\ndef measure(x):\n    return x\n")
    core.write_text("A = 1\n")
    kept = tool.kept_file("m", 1, weights, tmp_path)
    lesson.write_text("# a comment\ndef verdict_1_1(x):\n    return 'so'\n\n\ndef measure(x):\n    return x\n")
    assert tool.kept_file("m", 1, weights, tmp_path) == kept, "a verdict reads the numbers and changes none"
    lesson.write_text("def verdict_1_1(x):\n    return x\n\n\ndef measure(x):\n    return x + 1\n")
    assert tool.kept_file("m", 1, weights, tmp_path) != kept
    lesson.write_text("def verdict_1_1(x):\n    return x\n\n\ndef measure(x):\n    return x\n")
    assert tool.kept_file("m", 1, weights, tmp_path) == kept
    core.write_text("A = 2\n")
    assert tool.kept_file("m", 1, weights, tmp_path) != kept
    assert tool.kept_file("m", 1, "other", tmp_path) != kept


def test_an_unknown_model_is_told_in_one_sentence(tool, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert tool.main(["--model", str(tmp_path / "empty")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"^\w+: .+$", said.err.splitlines()[-1]) and "Traceback" not in said.err


# ---- the committed copies


def test_the_committed_table_has_every_claim_once_for_each_model(tool):
    stored = stored_claims()
    assert tuple(stored) == tool.BOTH
    for claims in stored.values():
        assert [claim.number for claim in claims] == NUMBERS
    for claim in (claim for claims in stored.values() for claim in claims if claim.over):
        assert claim.over[1] >= 20 or claim.number == "4.8", (
            claim
        )  # 4.8 counts only prompts that no head alone turns over


def test_page_csv_and_readme_are_the_same_ledger(tool):
    stored = stored_claims()
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for software in (False, True):
        assert tool.table(stored, software, "../notebooks/") in text
    for model, claims in stored.items():
        assert f"- **{tool.TITLES[model]}**: {tool.counted(claims)}." in text
    assert tool.HOW in text
    assert tool.with_count(README, stored) == README
    assert "docs/claims.md" in README


@pytest.mark.parametrize("lesson", range(1, 6))
def test_the_notebooks_ledger_is_the_committed_one(lesson):
    (path,) = (ROOT / "notebooks").glob(f"{lesson:02d}_*.ipynb")
    (cell,) = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["id"] == f"l{lesson}-ledger"]
    live = ledger_table(claim for claim in stored_claims()["pocket"] if claim.number.startswith(f"{lesson}."))
    tables = ["".join(output.get("data", {}).get("text/html", "")) for output in cell["outputs"]]
    assert any(tables)
    for html in filter(None, tables):
        header, *rows = (
            tuple(unescape(re.sub("</?code>", "`", entry)) for entry in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row))
            for row in html.split("<tr>")[1:]
        )
        table = live if header == live.header else committed(lesson)
        assert (header, rows) == (table.header, list(table.rows))
