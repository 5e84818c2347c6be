"""From a folder of what came back to students and cells. Files are read, nothing in them runs.

A folder per student, or all files in one: both are understood, and what nbgrader and Moodle make of them too (students.py). Links,
pipes and files that are far too large are named, not opened.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from grading.course import ROOT, notebook_paths
from grading.students import ENDINGS, Parts, students

LARGEST = 16 * 2**20  # bytes of a notebook; a lesson with its pictures has 0.6 MB
MOST_CODE = 2 * 2**20  # characters of source
MOST_CELLS = 2000  # a lesson has 40
MOST_FILES = 20  # of one student for one lesson
LEFT_OUT = {".ipynb_checkpoints", "__MACOSX", "__pycache__", ".git", ".venv"}


@dataclass
class Handed:
    """One file that was handed in. name: its path below the folder; problem: why it could not be read, else "".

    digest: of its cells, so that a copy is told from another attempt. The cells themselves are read when they are planned.
    """

    student: str
    path: Path
    name: str
    problem: str = ""
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def lesson_by_name(self) -> int | None:
        """The lesson that the file's or folder's name tells, if any: some notebooks are too broken to tell themselves."""
        for text in (self.path.stem, self.path.parent.name):
            for lesson, path in notebook_paths().items():
                if path.stem in text or re.search(rf"lesson[ _-]?0?{lesson}(?!\d)", text, re.IGNORECASE):
                    return lesson
        return None


def gather(folder: Path) -> tuple[list[Handed], list[str], dict[str, tuple[str, str]]]:
    """All notebooks below `folder`, a sentence about what is left out, and (state, sentence) of students without any notebook.

    Raises nothing for what students did.
    """
    files, folders, refused = _walk(folder)
    who = students([*files, *folders, *refused])
    handed, others = [], defaultdict(list)
    for parts in files:
        path = folder.joinpath(*parts)
        try:
            kind = path.lstat()
        except OSError as error:
            refused[parts] = str(error.strerror)
            continue
        if path.suffix.lower() not in ENDINGS:
            others[who[parts]].append("/".join(parts))
        else:
            handed.append(Handed(who[parts], path, "/".join(parts), _problem(kind)))
    left = [f"{'/'.join(parts) or 'the folder itself'}: {said}" for parts, said in refused.items() if not who[parts]]
    without, known = {}, {one.student for one in handed}
    for student in sorted(set(who.values()) | set(others)):
        closed = [f"{'/'.join(parts)}: {said}" for parts, said in refused.items() if student and who[parts] == student]
        more = others[student]
        if not student:
            left += [f"{name}: neither .ipynb nor .py" for name in more]
        elif student in known:
            left += closed + ([f"{_few(more)}: neither .ipynb nor .py"] if more else [])
        elif closed:
            without[student] = ("no verdict", f"What was handed in cannot be read: {'; '.join(closed)}.")
        else:
            only = f", only {_few(more)}" if more else ""
            without[student] = (
                "missing",
                f"No notebook was handed in{only}. Hand in the file whose name ends in .ipynb, not zipped.",
            )
    return _newest(handed, left), left, without


def _walk(folder: Path) -> tuple[list[Parts], list[Parts], dict[Parts, str]]:
    """Files; folders; and what may not be opened, with the system's reason."""
    refused: dict[Parts, str] = {}

    def closed(error: OSError) -> None:
        refused[*Path(error.filename).relative_to(folder).parts, ""] = str(error.strerror)

    files, places = [], []
    for here, folders, names in os.walk(folder, onerror=closed, followlinks=False):
        links = [name for name in folders if os.path.islink(Path(here, name)) or Path(name).suffix == ".ipynb"]
        folders[:] = sorted(set(folders) - LEFT_OUT - set(links))
        below = Path(here).relative_to(folder).parts
        places.append((*below, ""))
        files += [(*below, name) for name in [*names, *links] if not _not_theirs((*below, name))]
    return sorted(files), places, refused


def _not_theirs(parts: Parts) -> bool:
    """What the system, nbgrader or the course put there: a student may have handed in the whole course."""
    if parts[-1].startswith("._") or parts[-1] in {".DS_Store", "timestamp.txt"}:
        return True
    if parts[-1].lower().endswith(".ipynb"):
        return False
    return (ROOT / "docs" / parts[-1]).is_file() or any(
        ROOT.joinpath(*parts[at:]).is_file() for at in range(len(parts))
    )


def _problem(kind: os.stat_result) -> str:
    if stat.S_ISLNK(kind.st_mode):
        return "This is a link to another file, not a notebook. Hand in the notebook itself."
    if not stat.S_ISREG(kind.st_mode):
        return "This is no file but something else by the name of a notebook. Hand in the notebook itself."
    if kind.st_size > LARGEST:
        return f"The file is larger than {LARGEST // 2**20} MB. Clear all outputs, save, and hand it in again."
    return ""


def _newest(handed: list[Handed], left: list[str]) -> list[Handed]:
    """Without what is too much of one student for one lesson."""
    groups: dict[tuple[str, int | None], list[Handed]] = defaultdict(list)
    for one in handed:
        groups[one.student, one.lesson_by_name].append(one)
    for (student, _), group in groups.items():
        if len(group) > MOST_FILES:
            said = f"of {len(group)} files only the {MOST_FILES} newest are graded"
            left.append(f"{student}: {said}")
            group.sort(key=lambda one: (one.path.lstat().st_mtime, one.name))
            del group[:-MOST_FILES]
            for one in group:
                one.notes.append(said)
    return [one for group in groups.values() for one in group]


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def read(one: Handed) -> list[tuple[str, str]]:
    """Its cells: ("code" or another kind, source). Where it cannot be read there are none, and one.problem says why."""
    try:
        handle = os.open(one.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(handle, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        one.problem = f"The file cannot be read: {error.strerror}."
        return []
    text = _decoded(data, one)
    if one.path.suffix.lower() == ".py":
        cells = [("code", text)]
    else:
        try:
            cells = _cells(json.loads(text))
        except (ValueError, RecursionError, MemoryError) as error:
            where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            one.problem = (
                f"This is not a notebook: the file is damaged{where}, perhaps cut off on its way. "
                "Hand in again the one that opens in JupyterLab."
            )
            return []
    if len(cells) > MOST_CELLS:
        one.problem = f"There are more than {MOST_CELLS:,} cells in it. Hand in the lesson with your answers alone."
    elif sum(len(source) for _, source in cells) > MOST_CODE:
        one.problem = f"There are more than {MOST_CODE // 2**20} million characters of text in it."
    one.digest = sha256(repr(cells).encode("utf-8", "replace")).hexdigest()
    return [] if one.problem else cells


def _decoded(data: bytes, one: Handed) -> str:
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if marked else ("utf-8-sig",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    note = "the file is not UTF-8; read as Western European text"
    one.notes += [note] if note not in one.notes else []
    return data.decode("cp1252", errors="replace")


def _cells(notebook: Any) -> list[tuple[str, str]]:
    """Of any version of the format; what is no cell is left out."""
    if not isinstance(notebook, dict):
        raise ValueError("no notebook")
    sheets = [notebook, *(sheet for sheet in _list(notebook.get("worksheets")) if isinstance(sheet, dict))]
    found = []
    cells = (cell for sheet in sheets for cell in _list(sheet.get("cells")) if isinstance(cell, dict))
    for cell in islice(cells, MOST_CELLS + 1):
        source = cell.get("source", cell.get("input", ""))
        text = source if isinstance(source, str) else "".join(part for part in _list(source) if isinstance(part, str))
        found.append((str(cell.get("cell_type", "code")), text))
    if not found:
        raise ValueError("no cells")
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
