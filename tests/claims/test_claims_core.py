from pathlib import Path

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim, ledger_table, show_ledger

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = [
    Claim("1.10", "the report's tenth", "0", HOLDS, "it does"),
    Claim("1.2", "Δ jumps", "6.8", FAILS, "it does not"),
    Claim("1.3", "Δ grows | always", "11", PARTLY, "at first"),
]


def test_the_ledger_is_a_table_in_order_of_the_numbers():
    table = ledger_table(CLAIMS)
    assert [row[0] for row in table.rows] == ["1.2", "1.3", "1.10"]
    assert [row[3] for row in table.rows] == ["does not hold", "holds in part", "holds"]
    assert "| 1.3 | Δ grows \\| always | 11 | holds in part | at first |" in table.to_markdown()


def test_show_ledger_displays(capsys):
    assert show_ledger(CLAIMS, "Lesson 1") is None
    assert capsys.readouterr().out.startswith("Lesson 1\n")


def test_every_lesson_with_claims_proves_its_verdicts():
    for path in (ROOT / "helpers" / "claims").glob("lesson[0-9]*.py"):
        test = Path(__file__).with_name(f"test_claims_{path.stem}.py")
        assert "prove_verdicts(" in test.read_text(encoding="utf-8"), f"{path.stem} needs {test.name}"
