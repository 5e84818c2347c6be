"""How one student did in one exercise, and which of several answers counts."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from helpers.course.exercise import find

STATES = ("right", "almost", "no verdict", "not tried", "missing")  # best first: of two files the better one counts
NOT_TRIED = "Nothing has been filled in yet."  # the check's own sentence speaks of the cell that is to be run again
WITHOUT_REAL = (
    "Your answer uses `{name}`, and grading does not run the real model: use what the check gives your answer, "
    "or load_model(), the pocket model."
)


@dataclass(frozen=True)
class Result:
    """How one student did in one exercise. points: those that were got; flags: for the teacher; notes: for both.

    unread: the whole notebook could not be read, and the sentence is about that. files: (digest, name) of each it was looked for in.
    """

    student: str
    exercise: str
    state: str
    sentence: str
    points: int
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    shown: str = ""
    unread: bool = False
    files: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls, handed: Any, number: str, answer: dict[str, Any], reply: dict[str, Any], unread: bool = False
    ) -> Result:
        """answer: from the plan; reply: from the box. The points are the exercise's difficulty."""
        right, state = reply["state"] == "right", reply["state"]
        sentence = NOT_TRIED if state == "not tried" else reply["sentence"]
        unknown = re.search(r"NameError: name '(\w+)' is not defined", sentence)
        if not right and unknown and unknown[1] in answer.get("absent", ()):
            state, sentence = "no verdict", WITHOUT_REAL.format(name=unknown[1])
        return cls(
            handed.student,
            number,
            state,
            sentence,
            find(number).difficulty if right else 0,
            (*handed.notes, *answer["notes"]),
            tuple(sorted({*answer["flags"], *reply["flags"]})),
            answer["shown"],
            unread,
            ((handed.digest or handed.name, handed.name),),
        )


def merged(results: Iterable[Result]) -> list[Result]:
    """One result for each student and exercise: the best, where somebody handed in more than one file."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for one in results:
        groups[one.student, one.exercise].append(one)
    found = []
    for group in groups.values():
        best = min(group, key=lambda one: STATES.index(one.state))
        files = dict(file for one in group for file in one.files)  # copies count once
        if len(files) > 1:
            note = f"{len(files)} files were handed in; the best answer counts"
            best = Result(**{**vars(best), "notes": (*best.notes, note), "files": tuple(files.items())})
        found.append(best)
    known = {one.student for one in found if one.exercise != "?"}
    return sorted((one for one in found if one.exercise != "?" or one.student not in known), key=_order)


def _order(one: Result) -> tuple[Any, ...]:
    # Đặng comes after Dang, not after Zoe
    letters = unicodedata.normalize("NFKD", one.student.casefold()).replace("đ", "d")
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain, one.student, numbered(one.exercise)


def numbered(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in number.split(".")) if number != "?" else (0,)
