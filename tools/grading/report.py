"""What teachers and students read: results.csv, summary.html, and a page for each student. Everything from a submission is escaped."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from helpers.course.exercise import find

from .results import STATES, Result, numbered

MARKS = {"right": "✓", "almost": "≈", "no verdict": "!", "not tried": "…", "missing": "–"}
FORMATIVE = (
    "The course shows its solutions to everyone who asks. So points tell where somebody stands; they are no exam."
)
SKIN = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --half: #9a6700; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --half: #d4a72c; --bad: #ff8a7a; } }
body { font: 17px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding: .3rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
section { border-left: 4px solid var(--line); padding: .1rem 1rem; margin: 1.2rem 0; }
section.right { border-color: var(--good); } section.almost { border-color: var(--half); }
section.no-verdict { border-color: var(--bad); }
td.right { color: var(--good); } td.almost { color: var(--half); } td.no-verdict { color: var(--bad); }
.scroll { overflow-x: auto; } .center { text-align: center; }
pre { background: #8881; padding: .7rem; overflow-x: auto; font-size: .85rem; }
"""


def counted(results: Sequence[Result]) -> str:
    """One line for the terminal."""
    states = Counter(one.state for one in results)
    students = len({one.student for one in results})
    said = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return f"{students} student{'s' * (students != 1)}, {len(results)} exercises: {said or 'nothing found'}."


def write(out: Path, results: Sequence[Result], left: Sequence[str], measures: dict[str, list[str]]) -> None:
    """Write all reports; pages of an earlier run go."""
    pages = out / "students"
    pages.mkdir(parents=True, exist_ok=True)
    for old in pages.glob("*.html"):
        old.unlink()
    by_student: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        by_student[one.student].append(one)
    names = _page_names(by_student)
    for student, mine in by_student.items():
        _put(pages / names[student], student_page(student, mine))
    _put(out / "summary.html", summary_page(by_student, names, left, measures))
    with open(out / "results.csv", "w", newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "exercise", "state", "sentence", "points", "flags"])
        for one in results:
            row = (one.student, one.exercise, one.state, one.sentence, one.points, "; ".join((*one.flags, *one.notes)))
            rows.writerow([_cell(value) for value in row])


def student_page(student: str, results: Sequence[Result]) -> str:
    """What a student reads: for each exercise what the check says, the code that was judged, and a hint."""
    got, of = _points(results)
    parts = [f"<h1>{_html(student)}</h1><p><strong>{got} of {of} points.</strong> {FORMATIVE}</p>"]
    for sentence in dict.fromkeys(one.sentence for one in results if one.unread):
        numbers = [one.exercise for one in results if one.unread and one.sentence == sentence and one.exercise != "?"]
        title = "What was handed in" + (f" (exercises {numbers[0]} to {numbers[-1]})" if numbers else "")
        parts.append(
            f'<section class="no-verdict"><h2>{MARKS["no verdict"]} {_html(title)}</h2><p>{_html(sentence)}</p></section>'
        )
    for one in (one for one in results if not one.unread):
        title = f"Exercise {one.exercise} · {find(one.exercise).title}"
        points = f" · {one.points} of {_worth(one)} points"
        hint = find(one.exercise).hint if one.state in {"almost", "not tried", "missing"} else ""
        parts.append(
            f'<section class="{one.state.replace(" ", "-")}"><h2>{MARKS[one.state]} {_html(title)}</h2>'
            f"<p>{_html(one.state)}{points}</p><p>{_html(one.sentence)}</p>"
            + "".join(f"<p>Note: {_html(note)}.</p>" for note in one.notes)
            + (f"<details><summary>Hint</summary><p>{_html(hint)}</p></details>" if hint else "")
            + (
                f"<details><summary>Your code, as it was judged</summary><pre>{_html(one.shown)}</pre></details>"
                if one.shown
                else ""
            )
            + "</section>"
        )
    return _page(f"Feedback for {student}", "".join(parts))


def summary_page(
    by_student: dict[str, list[Result]], names: dict[str, str], left: Sequence[str], measures: dict[str, list[str]]
) -> str:
    """What a teacher reads: the room, exercise by exercise, the usual wrong answers, who has what, what to look at."""
    results = [one for mine in by_student.values() for one in mine]
    numbers = sorted({one.exercise for one in results if one.exercise != "?"}, key=numbered)
    parts = [f"<h1>Summary</h1><p>{_html(counted(results))} {FORMATIVE}</p>{_found(results, numbers)}"]
    rows = []
    for number in numbers:
        mine = [one for one in results if one.exercise == number]
        states = Counter(one.state for one in mine)
        not_yet = [one for one in mine if one.state != "right"]
        who = _names([one.student for one in not_yet], names)
        rows.append(
            f"<tr><th scope=row>{number} {_html(find(number).title)}</th>"
            + "".join(f"<td class=number>{states[state] or ''}</td>" for state in STATES)
            + f"<td>{who or 'nobody'}</td></tr>"
        )
    head = "".join(f"<th scope=col class=number>{state}</th>" for state in STATES)
    parts.append(
        _table("Who has not got it right", f"<th scope=col>exercise</th>{head}<th scope=col>not right yet</th>", rows)
    )
    rows = []
    for number in numbers:
        for sentence, students in _usual([one for one in results if one.exercise == number])[:3]:
            rows.append(
                f"<tr><th scope=row>{number}</th><td class=number>{len(students)}</td><td>{_html(sentence)}</td>"
                f"<td>{_names(students, names)}</td></tr>"
            )
    parts.append(
        _table(
            "The most common wrong answers",
            "<th scope=col>exercise</th><th scope=col class=number>students</th>"
            "<th scope=col>what the check said</th><th scope=col>who</th>",
            rows,
        )
    )
    legend = ", ".join(f"{MARKS[state]} {state}" for state in STATES)
    for lesson in sorted({numbered(number)[0] for number in numbers}):
        here = [number for number in numbers if numbered(number)[0] == lesson]
        rows = []
        for student, mine in by_student.items():
            state = {one.exercise: one for one in mine if one.exercise in here}
            if state:
                marks = "".join(_mark(state[n]) for n in here)
                points = _points(list(state.values()))[0]
                rows.append(f"<tr><th scope=row>{_link(student, names)}</th><td class=number>{points}</td>{marks}</tr>")
        columns = "".join(f"<th scope=col class=center>{number}</th>" for number in here)
        most = sum(find(number).difficulty for number in here)
        head = f"<th scope=col>student</th><th scope=col class=number>points of {most}</th>{columns}"
        parts.append(_table(f"Everybody, lesson {lesson} ({legend})", head, rows))
    flagged = [one for one in results if one.flags]
    rows = [
        f"<tr><th scope=row>{_link(one.student, names)}</th><td>{one.exercise}</td><td>{one.state}</td>"
        f"<td>{_html('; '.join(one.flags))}</td></tr>"
        for one in flagged
    ]
    if rows:
        columns = "".join(f"<th scope=col>{name}</th>" for name in ("student", "exercise", "state", "what is unusual"))
        parts.append(_table("Look at these yourself: unusual, and perhaps harmless", columns, rows))
    files: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for one in (one for one in results if len(one.files) > 1 and one.exercise != "?"):
        files[one.student, numbered(one.exercise)[0]] |= one.files
    rows = [
        f"<tr><th scope=row>{_link(student, names)}</th><td>{lesson}</td><td>{_html(', '.join(sorted(mine.values())))}</td></tr>"
        for (student, lesson), mine in files.items()
    ]
    if rows:
        columns = "".join(f"<th scope=col>{name}</th>" for name in ("student", "lesson", "files"))
        parts.append(
            _table("More than one file for a lesson: is all of it one student's? The best answers count", columns, rows)
        )
    problems = dict.fromkeys((one.student, one.sentence) for one in results if one.unread)
    said = [f"{_link(student, names)}: {_html(sentence)}" for student, sentence in problems]
    said += [_html(line) for line in left]
    if said:
        parts.append("<h2>Not graded</h2><ul>" + "".join(f"<li>{line}</li>" for line in said) + "</ul>")
    how = [*measures.get("shut", []), *(f"not possible here: {line}" for line in measures.get("open", []))]
    parts.append("<h2>How it was graded</h2><ul>" + "".join(f"<li>{_html(line)}</li>" for line in how) + "</ul>")
    return _page("Summary", "".join(parts))


# ---- parts


def _usual(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Sentences of wrong answers, the most common first; those that differ in numbers alone count as one."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        if one.state in {"almost", "no verdict"} and not one.unread:
            groups[re.sub(r"\d+(\.\d+)?", "#", one.sentence)].append(one)
    found = [
        (Counter(one.sentence for one in group).most_common(1)[0][0], [one.student for one in group])
        for group in groups.values()
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))


def _found(results: Sequence[Result], numbers: Sequence[str]) -> str:
    """What to talk about in the next lesson: the exercise that the fewest got right, and the wrong answer that most gave."""
    tried: dict[str, list[bool]] = defaultdict(list)
    for one in results:
        if one.exercise in numbers and one.state not in {"not tried", "missing"}:
            tried[one.exercise].append(one.state == "right")
    shares = {number: sum(right) / len(right) for number, right in tried.items() if not all(right)}
    if not shares:
        return ""
    number = min(shares, key=shares.__getitem__)
    right, title = tried[number], find(number).title
    end = "" if title.endswith(("?", "!")) else "."
    said = f"Hardest: exercise {number}, {title}{end} Of {len(right)} who tried it, {sum(right)} got it right."
    wrong = [(number, *one) for number in numbers for one in _usual([one for one in results if one.exercise == number])]
    if wrong:
        number, sentence, students = max(wrong, key=lambda one: len(one[2]))
        said += f" The most common wrong answer is to exercise {number}, by {len(students)}: {sentence}"
    return f"<p><strong>{_html(said)}</strong></p>"


def _points(results: Sequence[Result]) -> tuple[int, int]:
    return sum(one.points for one in results), sum(_worth(one) for one in results)


def _worth(one: Result) -> int:
    return find(one.exercise).difficulty if one.exercise != "?" else 0


def _page_names(students: Iterable[str]) -> dict[str, str]:
    """A file name for each student, without what file systems and browsers stumble over; two never share one."""
    names: dict[str, str] = {}
    for student in students:
        name = re.sub(r"[^\w-]+", "-", student).strip("-")[:60] or "student"
        if any(name.casefold() == other.removesuffix(".html").casefold() for other in names.values()):
            name += "-" + sha256(student.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        names[student] = f"{name}.html"
    return names


def _mark(one: Result) -> str:
    return f'<td class="center {one.state.replace(" ", "-")}" title="{one.state}">{MARKS[one.state]}</td>'


def _link(student: str, names: dict[str, str]) -> str:
    return f'<a href="students/{_html(names[student])}">{_html(student)}</a>'


def _names(students: Sequence[str], names: dict[str, str]) -> str:
    """Links to some students' pages; many are folded under their number, so that the table stays a table."""
    links = ", ".join(_link(student, names) for student in students)
    return f"<details><summary>{len(students)} students</summary>{links}</details>" if len(students) > 6 else links


def _html(text: str) -> str:
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def _cell(value: Any) -> Any:
    """A spreadsheet takes a text that begins like this for a formula, and would compute it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def _table(title: str, head: str, rows: Sequence[str]) -> str:
    body = "".join(rows) or "<tr><td>nothing</td></tr>"
    return f"<h2>{_html(title)}</h2><div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _page(title: str, body: str) -> str:
    """No script runs on it, and nothing is fetched."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_html(title)}</title><style>{SKIN}</style></head><body>{body}</body></html>\n"
    )


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")
