"""Grade a folder of handed-in notebooks: python tools/grade.py submissions

However they came back: renamed, without metadata, with cells deleted, split or pasted twice. Writes, beside the folder or where --out
says: results.csv, summary.html for the teacher, and students/NAME.html for each student. docs/grading.md is the manual.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grading import report
from grading.box import LIMITS, Box
from grading.course import ROOT, asked
from grading.gather import Handed, gather, read
from grading.results import Result, merged

TOGETHER = 16  # notebooks that are read by one process
NO_FORK = (
    "grading needs processes that are copied by fork, which Windows does not have: grade in WSL, or on Linux or macOS."
)


class _Open(NamedTuple):
    """A notebook of which some exercises are still to come."""

    handed: Handed
    wanted: int
    results: list[Result]


def grade(
    folder: Path, out: Path, limits: dict[str, float] | None = None, at_once: int | None = None, quiet: bool = False
) -> list[Result]:
    """Grade all notebooks below `folder`, write the reports into `out`, and return one result for each student and exercise."""
    from tqdm import tqdm

    handed, left, without = gather(folder)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    results: list[Result] = []
    with Box([folder, out], limits) as box:
        _try_the_box(box, folder, out, quiet)
        with tqdm(total=len(handed), unit="notebook", disable=quiet) as bar:
            for one in _graded(box, handed, at_once or processors(), bar):
                results += one
    results = merged([*results, *_nothing(without, results)])
    report.write(out, results, left, box.measures)
    return results


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _graded(box: Box, handed: list[Handed], at_once: int, bar: Any) -> Iterator[list[Result]]:
    """The results of one notebook after the other, as they are finished."""
    readable = [one for one in handed if not one.problem]
    unread = deque(readable[at : at + TOGETHER] for at in range(0, len(readable), TOGETHER))
    answers: deque[tuple[dict[str, Any], Any]] = deque()

    def requests() -> Iterator[tuple[dict[str, Any], Any] | None]:
        while answers or unread or reading[0]:
            if answers:
                yield answers.popleft()
            elif unread:
                cells = [(one, read(one)) for one in unread.popleft()]  # only now: all of a class would fill the memory
                some = [one for one, _ in cells if not one.problem]
                if some:
                    reading[0] += 1
                    notebooks = [(mine, one.lesson_by_name) for one, mine in cells if not one.problem]
                    yield {"kind": "plan", "notebooks": notebooks}, some
            else:
                yield None

    reading = [0]
    for request, about, reply in box.work(requests(), at_once):
        if request["kind"] == "judge":
            number, answer, open_ = about
            open_.results.append(Result.of(open_.handed, number, answer, reply))
            done = [open_] if len(open_.results) == open_.wanted else []
        else:
            reading[0] -= 1
            done = []
            if "plans" not in reply and len(about) > 1:  # one of them is the culprit
                unread.extend([one] for one in about)
            elif "plans" not in reply:
                bar.update()
                yield _unread(about[0], reply["sentence"])
            else:
                for one, plan in zip(about, reply["plans"], strict=True):
                    if not plan["answers"]:
                        bar.update()
                        yield _unread(one, plan.get("problem") or "No lesson of this course is recognised in it.")
                        continue
                    open_ = _Open(one, len(plan["answers"]), [])
                    for number, answer in plan["answers"].items():
                        if "state" in answer:
                            open_.results.append(Result.of(one, number, answer, answer))
                        else:
                            parts = {name: answer[name] for name in ("statements", "expression", "flags")}
                            answers.append(({"kind": "judge", "number": number, **parts}, (number, answer, open_)))
                    done += [open_] if len(open_.results) == open_.wanted else []
        for open_ in done:
            bar.update()
            yield open_.results
    for one in handed:
        if one.problem:
            bar.update()
            yield _unread(one, one.problem)


def _nothing(without: dict[str, tuple[str, str]], results: list[Result]) -> list[Result]:
    """For who handed in no notebook: a row in each lesson that others handed in."""
    lessons = sorted({int(one.exercise.split(".")[0]) for one in results if one.exercise != "?"})
    numbers = [each.number for lesson in lessons for each in asked(lesson)] or ["?"]
    return [
        Result(student, number, state, sentence, 0, unread=True)
        for student, (state, sentence) in without.items()
        for number in numbers
    ]


def _unread(one: Handed, problem: str) -> list[Result]:
    lesson = one.lesson_by_name
    numbers = [each.number for each in asked(lesson)] if lesson else ["?"]
    empty = {"shown": "", "notes": [], "flags": []}
    return [
        Result.of(one, number, empty, {"state": "no verdict", "sentence": problem, "flags": []}, unread=True)
        for number in numbers
    ]


def _try_the_box(box: Box, folder: Path, out: Path, quiet: bool) -> None:
    """Refuse to start where a learner's code could not even read the course; say what cannot be shut off here."""
    probe = {"kind": "probe", "folders": [str(folder), str(out)]}
    ((_, _, said),) = box.work(iter([(probe, None)]), 1)
    if said.get("unreadable"):
        raise SystemExit(
            f"a user without rights cannot read {said['unreadable']}: put Python and the course where every user can read "
            "them, or grade as an ordinary user."
        )
    if "user" not in said:
        raise SystemExit(f"no process can be started for the exercises: {said['sentence']}")
    if said["writes"]:
        box.measures["open"].append(f"answers can write into {', '.join(said['writes'])}")
    if not quiet:
        for line in box.measures["open"]:
            print(f"Not possible on this system: {line}.", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder per student, or all notebooks in one folder")
    parser.add_argument("--out", type=Path, help="where the reports go (default: FOLDER-graded)")
    parser.add_argument("--seconds", type=int, default=int(LIMITS["cpu"]), help="processor time for one exercise")
    parser.add_argument("--at-once", type=int, default=processors(), help="exercises at the same time")
    args = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit(NO_FORK)
    folder = args.folder.expanduser().resolve()
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {args.folder}: name the one that holds what students handed in.")
    if ROOT.is_relative_to(folder) or Path(sys.prefix).is_relative_to(folder):
        raise SystemExit("the course itself lies in this folder: put what students handed in into a folder of its own.")
    out = (args.out or folder.with_name(f"{folder.name}-graded")).expanduser().resolve()
    if out.is_relative_to(folder):
        raise SystemExit(
            "write the reports outside the folder of submissions, or they would be graded next time: choose --out."
        )
    results = grade(folder, out, {"cpu": args.seconds, "wall": 2 * args.seconds}, args.at_once)
    print(report.counted(results))
    print(f"Read {out / 'summary.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
