import csv
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import load_model
from helpers.course import ledger as core
from helpers.course.exercise import tiny_model
from helpers.course.ledger import (
    CONSTRUCTION,
    FAILS,
    HOLDS,
    PARTLY,
    Claim,
    Kept,
    Part,
    directions,
    holm,
    judge,
    ledger_table,
    several,
    show_ledger,
    sign_test,
)
from helpers.errors import BadValue

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = [
    Claim("1.10", "the report's tenth", HOLDS, "it does", "0", over=(18, 20)),
    Claim("1.2", "Δ jumps", FAILS, "it does not", "6.8", over=(1, 20)),
    Claim("1.3", "Δ grows | always", PARTLY, "at first", "11", over=(3, 20)),
    Claim("1.1", "Δ is 0", CONSTRUCTION, "no wonder"),
]


def test_the_ledger_is_a_table_in_order_of_the_numbers():
    table = ledger_table(CLAIMS)
    assert [row[0] for row in table.rows] == ["1.1", "1.2", "1.3", "1.10"]
    assert [row[2] for row in table.rows] == [
        "true by construction",
        "does not hold: true on 1 of 20 prompts",
        "holds in part: wholly true on 3 of 20 prompts",
        "holds on 18 of 20 prompts",
    ]
    assert (
        "| 1.3 | Δ grows \\| always | holds in part: wholly true on 3 of 20 prompts | at first | 11 |"
        in table.to_markdown()
    )


def test_show_ledger_displays(capsys):
    assert show_ledger(CLAIMS, "Lesson 1") is None
    assert capsys.readouterr().out.startswith("Lesson 1\n")


def test_every_lesson_with_claims_proves_its_verdicts():
    for path in (ROOT / "helpers").glob("lesson[0-9]"):
        test = ROOT / "tests" / path.name / f"test_{path.name}_claims.py"
        assert "prove_verdicts(" in test.read_text(encoding="utf-8"), f"{path.stem} needs {test.name}"


@pytest.mark.parametrize(
    ("parts", "cores", "verdict", "over"),
    [
        ([[1] * 9 + [0]], 1, HOLDS, (9, 10)),
        ([[1] * 8 + [0] * 2], 1, PARTLY, (8, 10)),
        ([[1] * 5 + [0] * 5], 1, PARTLY, (5, 10)),
        ([[1] * 4 + [0] * 6], 1, FAILS, (4, 10)),
        ([[1] * 9 + [0], [0] + [1] * 9], 1, PARTLY, (8, 10)),  # each on nine of ten, but together on eight
        ([[0] * 10, [1] * 10], 1, FAILS, (0, 10)),  # without its core nothing is left of a claim
        ([[0] * 10, [1] * 10], 2, PARTLY, (0, 10)),  # two places, and at one of them it is true
        ([[1] * 10, [0] * 10], 1, PARTLY, (0, 10)),
    ],
)
def test_the_counts_decide(parts, cores, verdict, over):
    claim = judge("9.1", "so", [Part(f"part {i}", list(map(bool, row))) for i, row in enumerate(parts)], cores=cores)
    assert (claim.verdict, claim.over) == (verdict, over)
    assert claim.why == "; ".join(f"part {i}: {sum(row)} of 10" for i, row in enumerate(parts))


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), max_size=10))
def test_the_sign_test_is_that_of_all_possible_signs(values):
    n, ups = len([v for v in values if v]), len([v for v in values if v > 0])
    as_uneven = [
        sum(signs) for signs in itertools.product((0, 1), repeat=n) if abs(2 * sum(signs) - n) >= abs(2 * ups - n)
    ]
    assert sign_test(values) == pytest.approx(len(as_uneven) / 2**n)


def test_the_sign_test_leaves_out_ties_and_what_is_no_number():
    assert sign_test([1.0] * 6 + [0.0, float("nan")]) == 2 / 2**6
    assert sign_test([1.0] * 6, bound=1.0) == 1.0


def test_holm_stops_at_the_first_that_is_not_significant():
    # Sorted: 0.01 <= 0.05 / 4, 0.015 <= 0.05 / 3, 0.03 > 0.05 / 2, so 0.04 is not tried.
    assert holm([0.03, 0.01, 0.04, 0.015]) == [False, True, False, True]
    assert holm([0.04, 0.04]) == [False, False]
    assert holm([]) == []


def test_directions_are_corrected_for_the_number_of_columns():
    column = [1.0] * 6  # p = 0.031 alone
    assert directions([column]) == [1]
    assert directions([column, [1.0, -1.0] * 3]) == [0, 0]
    assert directions([[-1.0] * 12, [1.0] * 12, [1.0, -1.0] * 6]) == [-1, 1, 0]


def test_a_model_with_a_tokenizer_is_judged_on_twenty_prompts_or_more():
    prompts = several(load_model(), "Berlin is the capital of")
    assert prompts[0] == "Berlin is the capital of"
    assert len(set(prompts)) == len(prompts) >= 20
    assert several(tiny_model(), "x") == ["x"]


def test_what_is_kept_is_not_computed_again(tmp_path):
    path = tmp_path / "deep" / "kept.jsonl"
    first = Kept(path)
    assert first("a", lambda: {"x": (0.1, float("inf"))}) == {"x": [0.1, float("inf")]}, "as another run will read it"
    first("b", lambda: [True, None])
    again = Kept(path)
    assert again("a", lambda: pytest.fail("computed again")) == {"x": [0.1, float("inf")]}
    assert again("b", lambda: pytest.fail("computed again")) == [True, None]
    assert again.seconds == pytest.approx(first.seconds)


def test_a_line_that_a_kill_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_text(json.dumps(["a", 1, 2.5]) + "\n" + '["b", [1, 2', encoding="utf-8")
    keep = Kept(path)
    assert keep("a", lambda: pytest.fail("computed again")) == 1
    assert keep.seconds == 2.5
    assert keep("b", lambda: 7) == 7
    assert [json.loads(line)[:2] for line in path.read_text(encoding="utf-8").splitlines()] == [["a", 1], ["b", 7]]


def test_what_fails_leaves_no_line(tmp_path):
    keep = Kept(tmp_path / "kept.jsonl")
    with pytest.raises(KeyboardInterrupt):
        keep("a", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert Kept(tmp_path / "kept.jsonl")("a", lambda: 3) == 3


def test_the_stored_verdicts_stand_side_by_side():
    table = core.committed(4)
    assert table.header[2:] == ("the pocket model", "SmolLM2-135M")
    assert [row[0] for row in table.rows] == [f"4.{n}" for n in range(1, 9)]
    with core.STORED.open(encoding="utf-8") as file:
        stored = {(row["claim"], row["model"]): row for row in csv.DictReader(file)}
    for number, _, pocket, real in table.rows:
        assert pocket.startswith(stored[number, "pocket"]["verdict"])
        assert real.startswith(stored[number, "smollm2"]["verdict"])
        assert ("of" in real) == bool(stored[number, "smollm2"]["of prompts"])
    with pytest.raises(BadValue, match="lessons are 1 to 5"):
        core.committed(6)


def test_the_parts_of_a_stored_claim_are_counted(capsys):
    core.show_parts("1.4", "1.5")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "SmolLM2-135M, claim 1.4, part by part:" and said[3] == "SmolLM2-135M, claim 1.5, part by part:"
    with core.STORED.open(encoding="utf-8") as file:
        stored = {(row["claim"], row["model"]): row["why"] for row in csv.DictReader(file)}
    for line in said[1:3]:
        assert line.startswith("  ") and line.strip() in stored["1.4", "smollm2"]
    assert len(said) == 6, "a note that follows the parts is no part"
    core.show_parts("1.3", model="pocket")
    assert capsys.readouterr().out.startswith("The pocket model, claim 1.3, part by part:\n  Δ ends higher")
    for number in ("1.1", "9.9"):
        with pytest.raises(BadValue, match="no parts"):
            core.show_parts(number)
