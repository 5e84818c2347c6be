"""From a folder of what came back to students and cells. Files are read, nothing in them runs.

A folder per student, or all files in one: both are understood, and what nbgrader and Moodle make of them too. Links, pipes
and files that are far too large are named, not opened.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grading.course import notebook_paths

LARGEST = 16 * 2**20  # bytes of a notebook; a lesson with its pictures has 0.6 MB
MOST_CODE = 2 * 2**20  # characters of source
ENDINGS = {".ipynb", ".py"}
LEFT_OUT = {".ipynb_checkpoints", "__MACOSX", "__pycache__", ".git"}


@dataclass
class Handed:
    """One file that was handed in. cells: ("code" or another kind, source); problem: why it could not be read, else ""."""

    student: str
    path: Path
    cells: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def lesson_by_name(self) -> int | None:
        """The lesson that the file's or folder's name tells, if any: some notebooks are too broken to tell themselves."""
        for text in (self.path.stem, self.path.parent.name):
            for lesson, path in notebook_paths().items():
                if path.stem in text or re.search(rf"lesson[ _-]?0?{lesson}(?!\d)", text, re.IGNORECASE):
                    return lesson
        return None


def gather(folder: Path) -> tuple[list[Handed], list[str]]:
    """All notebooks below `folder`, and a sentence for each other file, by name. Raises nothing for what students did."""
    handed, left = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            kind = path.lstat().st_mode
        except OSError as error:
            left.append(f"{name}: {error.strerror}")
            continue
        if path.suffix.lower() not in ENDINGS:
            left.append(f"{name}: neither .ipynb nor .py")
            continue
        one = Handed(student_of(path, folder), path)
        if stat.S_ISLNK(kind):
            one.problem = "This is a link to another file, not a notebook. Hand in the notebook itself."
        elif not stat.S_ISREG(kind):
            one.problem = "This is no file but something else by the name of a notebook. Hand in the notebook itself."
        elif path.lstat().st_size > LARGEST:
            one.problem = (
                f"The file is larger than {LARGEST // 2**20} MB. Clear all outputs, save, and hand it in again."
            )
        else:
            _read(one)
        handed.append(one)
    return handed, left


def student_of(path: Path, folder: Path) -> str:
    """The first folder below `folder`; for a file that lies in it, the file's name without the lesson's."""
    parts = path.relative_to(folder).parts
    if len(parts) > 1:
        return re.sub(r"_\d+_assignsubmission_file_?$", "", parts[0])
    name = path.stem
    for other in notebook_paths().values():
        name = name.replace(other.stem, "")
    name = re.sub(r"lesson[ _-]?\d+", "", name, flags=re.IGNORECASE).strip(" _-.()")
    return name if re.search(r"[^\W\d_]", name) else path.stem


def _files(folder: Path) -> list[Path]:
    found = []
    for here, folders, names in os.walk(folder, followlinks=False):
        links = [name for name in folders if Path(here, name).is_symlink() or Path(name).suffix == ".ipynb"]
        folders[:] = sorted(set(folders) - LEFT_OUT - set(links))
        found += [Path(here, name) for name in [*names, *links] if not name.startswith("._") and name != ".DS_Store"]
    return sorted(found)


def _read(one: Handed) -> None:
    try:
        handle = os.open(one.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(handle, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        one.problem = f"The file cannot be read: {error.strerror}."
        return
    text = _decoded(data, one)
    if one.path.suffix.lower() == ".py":
        one.cells = [("code", text)]
    else:
        try:
            one.cells = _cells(json.loads(text))
        except (ValueError, RecursionError, MemoryError) as error:
            where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            one.problem = (
                f"This is not a notebook: the file is damaged{where}, perhaps cut off on its way. "
                "Hand in again the one that opens in JupyterLab."
            )
    if sum(len(source) for _, source in one.cells) > MOST_CODE:
        one.cells, one.problem = [], f"There are more than {MOST_CODE // 2**20} million characters of text in it."


def _decoded(data: bytes, one: Handed) -> str:
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if marked else ("utf-8-sig",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    one.notes.append("the file is not UTF-8; read as Western European text")
    return data.decode("cp1252", errors="replace")


def _cells(notebook: Any) -> list[tuple[str, str]]:
    """Of any version of the format; what is no cell is left out."""
    if not isinstance(notebook, dict):
        raise ValueError("no notebook")
    sheets = [notebook, *(sheet for sheet in _list(notebook.get("worksheets")) if isinstance(sheet, dict))]
    found = []
    for cell in (cell for sheet in sheets for cell in _list(sheet.get("cells")) if isinstance(cell, dict)):
        source = cell.get("source", cell.get("input", ""))
        text = source if isinstance(source, str) else "".join(part for part in _list(source) if isinstance(part, str))
        found.append((str(cell.get("cell_type", "code")), text))
    if not found:
        raise ValueError("no cells")
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
