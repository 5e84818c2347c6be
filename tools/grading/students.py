"""Who handed in which file, told from the names of folders and files: students, Moodle, nbgrader and browsers all have their own ways.

students([("anna", "01_downstream_scaling.ipynb"), ("lesson1", "bert.ipynb")]) gives "anna" and "bert".
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePath

from grading.course import notebook_paths

Parts = tuple[str, ...]  # of a path, below the folder of all submissions; of a folder itself the last one is ""

ENDINGS = (".ipynb", ".py")
MOODLE = re.compile(r"(.+)_(\d+)_assignsubmission_(?:file|onlinetext)(?:_.*)?", re.DOTALL)
LESSON = re.compile(
    "|".join([*(re.escape(path.stem) for path in notebook_paths().values()), r"lesson[ _-]?\d+"]), re.IGNORECASE
)
COPY = r"\s*-\s*Copy\d*(?![^\W_])|\s+copy(?:\s+\d+)?(?![^\W_])|\s*\(\d+\)"  # JupyterLab, Windows, macOS, browsers
# Learning platforms number a second attempt like this: 01_downstream_scaling-2. Longer numbers are somebody's.
LESSON_AND_COPY = re.compile(rf"(?:{LESSON.pattern})(?:{COPY}|-\d\d?(?!\d))*", re.IGNORECASE)
COPY_AT_END = re.compile(rf"(?:{COPY})+$", re.IGNORECASE)


def students(paths: Iterable[Parts]) -> dict[Parts, str]:
    """The student of each path; "" where none is told.

    The first folder is the student, unless it is named like a lesson and nothing else, or is a group: then its files are. In Moodle's
    names a number tells apart two people of one name. It is kept only where there are two.
    """
    paths = list(paths)
    groups = _groups(paths)
    who = {parts: _who(parts, groups) for parts in paths}
    numbers = defaultdict(set)
    for around, name, number in who.values():
        numbers[around, name].add(number)
    return {
        parts: f"{name} ({number})" if number and len(numbers[around, name]) > 1 else name
        for parts, (around, name, number) in who.items()
    }


def _who(parts: Parts, groups: set[Parts]) -> tuple[Parts, str, str]:
    """(lessons' folders around it, name, Moodle's number or ""). Moodle gives other numbers in the next assignment."""
    around, parts = _below_lessons(parts)
    group = ""
    if (*around, parts[0]) in groups:
        group, parts = f"{_same(parts[0])}/", parts[1:]
    text = _same(parts[0] if len(parts) > 1 else _stem(parts[0]))
    if moodle := MOODLE.fullmatch(text):
        return around, group + moodle[1], moodle[2]
    if len(parts) == 1:
        notebook = parts[0].lower().endswith(ENDINGS)
        person = _person(text) if notebook or LESSON.search(text) else ""
        text = person or (text or parts[0] if notebook else "")
    return around, group + text if text else "", ""


def _groups(paths: list[Parts]) -> set[Parts]:
    """Folders whose notebooks name several people.

    One student may also call two files "try" and "final". So a folder is a group only where most folders look like one.
    """
    people: dict[Parts, list[str]] = defaultdict(list)
    for parts in paths:
        around, rest = _below_lessons(parts)
        if len(rest) > 1 and rest[-1].lower().endswith(".ipynb"):
            people[*around, rest[0]] += [_person(_same(_stem(rest[1])))] if len(rest) == 2 else []
    groups = {folder for folder, names in people.items() if all(names) and len(set(names)) > 1}
    return groups if 2 * len(groups) > len(people) else set()


def _below_lessons(parts: Parts) -> tuple[Parts, Parts]:
    at = 0
    while at < len(parts) - 1 and LESSON.search(parts[at]) and not _person(_same(parts[at])):
        at += 1
    return parts[:at], parts[at:]


def _person(text: str) -> str:
    """What is left of a name without the lesson's and the marks of copies; "" without a letter or a student's number."""
    name = COPY_AT_END.sub("", LESSON_AND_COPY.sub("", text)).strip(" _-.")
    name = re.sub(r"^\((.*)\)$", r"\1", name)
    return name if re.search(r"[^\W\d_]|\d{3}", name) else ""


def _stem(name: str) -> str:
    return PurePath(name).stem.removesuffix(".ipynb") if name else ""


def _same(text: str) -> str:
    """macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", text)
