"""No sentence of a lesson is longer than 35 words; and the figures of tools/readability.py are counted right."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST = 35  # words; most sentences have a dozen


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("readability_tool", ROOT / "tools" / "readability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_sentence_of_a_lesson_is_too_long(tool, path):
    told = [(cell, one) for cell, text in tool.markdown_of(path).items() for one in tool.sentences(text)]
    assert [(cell, one) for cell, one in told if tool.length(one) > MOST] == []
    assert len(told) > 150


@pytest.mark.parametrize(
    ("markdown", "sentences"),
    [
        ("One. Two!  Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("It is 0.5 at block 2.\nThen 3.14, e.g. here.", ["It is 0.5 at block 2.", "Then 3.14, eg here."]),
        ("**It falls.** ` Germany` is *at* 0.5.", ["It falls.", "¤ is at 0.5."]),
        ("## 1 · Look\nHere it is.\n\n- one\n- two\n  goes on", ["1", "Look", "Here it is.", "one", "two goes on"]),
        ("| a | b |\n| --- | --- |\n| c | d |\n\nAfter.", ["After."]),
        ("A [link. Here](https://x.org/a.b) and $a. B$.", ["A link.", "Here and ¤."]),
        ("<details><summary>Hint</summary>\n\nUse `a. B`.\n</details>", ["Hint", "Use ¤."]),
        ("```python\nx = 1. \n```\nDone: all of it.", ["Done: all of it."]),
        ("> quoted text\n> goes on", ["quoted text goes on"]),
        ("See Wang et al. 2022. H<sub>l</sub> grows.", ["See Wang et al 2022.", "H l grows."]),
    ],
)
def test_a_text_is_cut_into_its_sentences(tool, markdown, sentences):
    assert [" ".join(one.split()) for one in tool.sentences(markdown)] == sentences


def test_the_figures_are_those_of_a_count_by_hand(tool):
    found = tool.figures(["The cat sat. It " + "really " * 26 + "did.", "Well-known `code x y` is 0.5."])
    assert (found.words, found.sentences, found.median, found.longest) == (3 + 28 + 4, 3, 4, 28)
    assert found.long == pytest.approx(1 / 3)
    letters = 3 + 3 + 3 + 2 + 6 * 26 + 3 + 9 + 2 + 2
    assert found.grade == pytest.approx(4.71 * letters / 34 + 0.5 * 35 / 3 - 21.43)


def test_it_prints_a_row_for_each_lesson(tool, capsys):
    assert tool.main() == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["lesson", "words", "sentences", "median", "longest"]
    assert [row.split()[0] for row in rows] == [path.stem for path in NOTEBOOKS]
