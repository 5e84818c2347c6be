"""tools/translated.py names the cells of a translated lesson that need a translator, and no others."""

import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LESSON = "01_downstream_scaling.ipynb"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("translated_tool", ROOT / "tools" / "translated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tool, tmp_path, capsys):
    """A folder with lesson 1 in English and its copy in notebooks/vi."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    shutil.copy(ROOT / "notebooks" / LESSON, notebooks)
    assert tool.main(["vi", "--start"], notebooks) == 0
    capsys.readouterr()
    return notebooks


def change(path, **sources):
    """Change the source of cells: id with _ for -, and what becomes of the source."""
    nb = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in nb.cells}
    for name, new in sources.items():
        cell = cells[name.replace("_", "-")]
        cell.source = new(cell.source)
    nbformat.write(nb, path)


def test_a_copy_has_the_cells_and_no_outputs(folder):
    one, two = (nbformat.read(path, as_version=4) for path in (folder / LESSON, folder / "vi" / LESSON))
    assert [(cell.id, cell.source) for cell in one.cells] == [(cell.id, cell.source) for cell in two.cells]
    assert not any(cell.get("outputs") for cell in two.cells) and any(cell.get("outputs") for cell in one.cells)
    assert not any("translated_from" in cell.metadata for cell in one.cells)


def test_a_translated_lesson_needs_nothing(tool, folder, capsys):
    change(
        folder / "vi" / LESSON,
        l1_title=lambda source: "# Bài 1",
        l1_fades_guess=lambda source: source.replace("shrinks", "giảm").replace("grows", "tăng"),
        l1_stretch=lambda source: source.replace("{p[1.5]:.3f} at × 1.5, but {p[0.5]:.3f} at × 0.5.", "{p[0.5]:.3f} {p[1.5]:.3f}"),
        l1_exercise_1=lambda source: source.replace("# your list", "# danh sách"),
    )  # fmt: skip
    assert tool.main(["vi"], folder) == 0 and capsys.readouterr().out == ""
    assert tool.main(["vi", "--start"], folder) == 0, "what is there is not copied again"
    assert nbformat.read(folder / "vi" / LESSON, as_version=4).cells[0].source == "# Bài 1"


def test_what_has_changed_is_named_until_it_was_seen(tool, folder, capsys):
    change(folder / LESSON, l1_title=lambda source: source + "\n\nMore.")
    assert tool.main(["vi"], folder) == 1
    assert capsys.readouterr().out == "01_downstream_scaling: l1-title: the English text has changed since\n"
    assert tool.main(["vi", "--seen", "l1-title"], folder) == 0
    assert tool.main(["vi"], folder) == 0


def test_code_that_does_something_else_is_named(tool, folder, capsys):
    change(folder / "vi" / LESSON, l1_stretch=lambda source: source.replace("(0.5, 1.5)", "(0.5, 1.6)"))
    assert tool.main(["vi"], folder) == 1
    assert capsys.readouterr().out == "01_downstream_scaling: l1-stretch: its code does something else\n"


def test_cells_that_are_missing_extra_or_moved_are_named(tool, folder, capsys):
    path = folder / "vi" / LESSON
    nb = nbformat.read(path, as_version=4)
    nb.cells[2], nb.cells[3] = nb.cells[3], nb.cells[2]
    nb.cells[-1].id = "l1-another"
    nbformat.write(nb, path)
    assert tool.main(["vi"], folder) == 1
    told = capsys.readouterr().out
    names = [cell.id for cell in nb.cells]
    for line in (
        "l1-recap: missing",
        "l1-another: not in the English lesson",
        f"{names[3]}: moved",
        f"{names[2]}: moved",
    ):
        assert f"01_downstream_scaling: {line}\n" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["xx"], "has no lesson yet"),
        (["../x", "--start"], "not the code of a language"),
        (["vi", "--seen", "l1-nothing"], "there is no cell 'l1-nothing'"),
    ],
)
def test_a_slip_is_told_in_one_sentence(tool, folder, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments, folder)
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [LESSON, "vi"]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ('f(x, "a")  # b', "f(x, 'c')", True),
        ('print(f"{a:.2f} and {b}")', 'print(f"{b} und {a:.2f}")', True),
        ('print(f"{a:.2f}")', 'print(f"{a:.1f}")', False),
        ('f("a")', "f(1)", False),
        ('f("a", "b")', 'f("a")', False),
        ("f(", "f(", False),
    ],
)
def test_the_same_code_says_something_else(tool, one, two, same):
    assert tool._same_code(one, two) is same
