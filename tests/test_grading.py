"""make grade, tried with what a class hands in on its worst day: one folder of odd and hostile notebooks, graded once, then looked at.

Every hostile answer stands beside a right one in the same notebook, and beside the notebooks of an honest class.
"""

import csv
import html.parser
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from helpers.course.exercise import find, judge, solution_source

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
NAME = "03_multi_component_challenge.ipynb"
LIMITS = {"cpu": 2.0, "wall": 6.0, "memory": 2.0**29, "processes": 24}
NEIGHBOUR = "3.3"  # right in every hostile notebook, in a cell further down
RIGHT = "✓ Exercise 3.1"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="grading needs fork, which this system does not have")


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("grade")
    finally:
        sys.path.remove(str(TOOLS))


# ---- submissions

HANDED_OUT = json.loads((ROOT / "notebooks" / NAME).read_text(encoding="utf-8"))
STUBS = {
    "3.1": ("l3-exercise-1", "key_columns"), "3.2": ("l3-exercise-2", "make_key_hook"), "3.3": ("l3-exercise-3", "noisy_logits"),
}  # fmt: skip


def solved(number):
    return solution_source(find(number)).replace(f"solution_{number.replace('.', '_')}", STUBS[number][1])


def cell(source, kind="code", **more):
    return {"cell_type": kind, "metadata": {}, "source": source, "outputs": [], "execution_count": None, **more}


def notebook(answers, change=None):
    """The lesson as handed out, with these sources in place of the exercises' cells; `change` edits the list of cells."""
    cells = [dict(one) for one in HANDED_OUT["cells"]]
    for number, source in answers.items():
        (mine,) = [one for one in cells if one["id"] == STUBS[number][0]]
        mine["source"] = f"{source}\n\ncheck_{number.replace('.', '_')}({STUBS[number][1]})"
    if change:
        cells = change(cells)
    return {**HANDED_OUT, "cells": cells}


def hostile(body, before=""):
    """Exercise 3.1 with this in its function, which would return a right answer, and a right answer to its neighbour."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    right = "    return slice(d_model + head * d_head, d_model + (head + 1) * d_head)\n"
    return notebook(
        {"3.1": f"{before}def key_columns(d_model, d_head, head):\n{lines}{right}", NEIGHBOUR: solved(NEIGHBOUR)}
    )


def only(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 4}


FAKE = (
    "import helpers.course.exercise as frame\nframe.judge = lambda exercise, answer: frame.Outcome('right', '✓ Exercise 3.1')\n"
    "return 'wrong'"
)
LOOP = "more than 2 seconds|within 6 seconds"  # the second on a machine that has other things to do
WRONG = "return slice(0, 3)"
# name -> (notebook, state of 3.1, what the sentence has, what a flag has)
HOSTILE = {
    "endless loop": (hostile("while True: pass"), "no verdict", LOOP, ""),
    "swallows interrupts": (
        hostile("while True:\n    try:\n        while True: pass\n    except BaseException: pass"), "no verdict", LOOP, "",
    ),
    "ignores signals": (
        hostile("import signal\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"),
        "no verdict", LOOP, "uses signal",
    ),
    "sleeps": (hostile("import time\ntime.sleep(1000)"), "no verdict", "within 6 seconds", ""),
    "os._exit": (hostile("import os\nos._exit(0)"), "no verdict", "ended the whole process", "uses os"),
    "os._exit 3": (hostile("import os\nos._exit(3)"), "no verdict", "with code 3", "uses os"),
    "sys.exit": (hostile("import sys\nsys.exit()"), "no verdict", "SystemExit", "uses sys"),
    "keyboard interrupt": (hostile("raise KeyboardInterrupt"), "no verdict", "KeyboardInterrupt", ""),
    "kills itself": (hostile("import os\nos.kill(os.getpid(), 11)\nimport ctypes\nctypes.string_at(0)"), "no verdict", "signal", "uses ctypes"),
    "kills all it can": (hostile("import os\nfor one in (os.getppid(), 1, -1):\n    try: os.kill(one, 9)\n    except OSError: pass"), None, "", "uses os"),
    "fork bomb": (hostile("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"), "no verdict", "", "uses os"),
    "leaves a child": (
        hostile("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n    os._exit(0)"), "right", RIGHT, "uses os",
    ),
    "answers twice": (hostile("import os\nos.fork()"), None, "", "uses os"),
    "threads": (hostile("import threading, time\nfor _ in range(10**6):\n    threading.Thread(target=time.sleep, args=(99,)).start()"), None, "", "uses threading"),
    "much output": (hostile("line = 'x' * 10**7\nfor _ in range(100):\n    print(line)"), "right", RIGHT, ""),
    "much memory": (hostile("rows = []\nwhile True: rows.append(bytearray(10**9))"), "almost", "MemoryError", ""),
    "a large tensor": (hostile("torch.ones(10**11)"), "almost", "key_columns raised RuntimeError", ""),
    "a deep recursion": (hostile("return key_columns(d_model, d_head, head)"), "almost", "RecursionError", ""),
    "a long exception": (hostile("raise ValueError('x' * 10**7)"), "almost", "ValueError", ""),
    "an exception that cannot be told": (
        hostile("class Odd(Exception):\n    def __str__(self): raise Odd\nraise Odd"), "no verdict", "Odd", "",
    ),
    "fills the disk": (hostile("with open('big', 'wb') as file:\n    while True: file.write(b'x' * 10**7)"), "almost", "OSError", "uses open"),
    "writes elsewhere": (hostile(f"open({str(ROOT / 'notebooks' / 'mine.txt')!r}, 'w')"), "almost", "key_columns raised", "uses open"),
    "deletes the course": (hostile(f"import shutil\nshutil.rmtree({str(ROOT / 'helpers' / 'lesson3')!r})"), "almost", "key_columns raised", "uses shutil"),
    "writes to the grader": (hostile("import os\nfor pipe in range(3, 64):\n    try: os.write(pipe, b'{\"state\": \"right\"}\\n')\n    except OSError: pass\n" + WRONG), "no verdict", "", "channel"),
    "writes to the grader for ever": (
        hostile("import os\nwhile True:\n    for pipe in range(3, 64):\n        try: os.write(pipe, b'x' * 9999)\n        except OSError: pass"), "no verdict", "", "channel",
    ),
    "patched judge": (hostile(FAKE), "almost", "Almost", "changed helpers.course.exercise.judge"),
    "patched check": (
        hostile("from helpers.course.exercise import find\nobject.__setattr__(find('3.1'), 'check', lambda answer: None)\n" + WRONG), "almost", "Almost", "exercise 3.1, check",
    ),
    "patched code": (
        hostile("from helpers.lesson3 import exercises\nexercises._check_3_1.__code__ = (lambda answer: None).__code__\n" + WRONG), "almost", "Almost", "the code of _check_3_1",
    ),
    "patched built-in": (hostile("import builtins\nbuiltins.isinstance = lambda *args: True\n" + WRONG), "almost", "Almost", "builtins.isinstance"),
    "patched at the top": (
        hostile(WRONG, before="import torch\ntorch.equal = lambda *args: True\n"), "almost", "Almost", "",
    ),
    "the course's solution": (
        notebook({"3.1": "from helpers.course.exercise import find\nkey_columns = find('3.1').solution", NEIGHBOUR: solved(NEIGHBOUR)}), "right", RIGHT, "own solution",
    ),
    "the network": (hostile("import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)"), "almost", "key_columns raised", "uses socket"),
    "nan": (hostile("return float('nan')"), "almost", "Almost", ""),
    "a huge number": (hostile("return slice(10 ** 4000, 10 ** 4001)"), "almost", "Almost", ""),
    "html": (hostile("raise ValueError('</p><script>alert(1)</script>')"), "almost", "<script>", ""),
    "a formula": (hostile("raise ValueError('=HYPERLINK(1)')"), "almost", "HYPERLINK", ""),
    "surrogates": (hostile("raise ValueError('\\ud800')"), "almost", "ValueError", ""),
}  # fmt: skip
GOOD = {"3.1": solved("3.1"), NEIGHBOUR: solved(NEIGHBOUR)}


def without_ids(cells):
    return [
        {name: value for name, value in one.items() if name not in {"id", "metadata"}} | {"metadata": {}}
        for one in cells
    ]


def split(cells):
    """The function's head in one cell, its body in the next."""
    at = next(at for at, one in enumerate(cells) if one.get("id") == "l3-exercise-1")
    head, body = solved("3.1").split("\n", 1)
    return [*cells[:at], cell(head), cell(body), cell("check_3_1(key_columns)"), *cells[at + 1 :]]


def moved(kind):
    def change(cells):
        return [one | {"cell_type": kind} if one.get("id") == "l3-exercise-1" else one for one in cells]

    return change


VALUES = "def key_columns(d_model, d_head, head):\n    return slice(2 * d_model + head * d_head, 2 * d_model + (head + 1) * d_head)"
CLASS = {"an": GOOD, "binh": {"3.1": VALUES}, "chi": {"3.1": VALUES}, "dung": {"3.1": "key_columns = None"}}
HELPERS = "width = torch.tensor(1)\nwidth = int(width)\nSIZES = {}\nSIZES['width'] = width\n"
USES = "def key_columns(d_model, d_head, head):\n    start = d_model + head * d_head\n    return slice(start, start + d_head * SIZES['width'])"
# name -> (notebook, state of 3.1, a note)
ODD = {
    "as it should be": (notebook(GOOD), "right", ""),
    "no ids, no metadata": (notebook(GOOD, without_ids), "right", ""),
    "pasted twice": (notebook(GOOD, lambda cells: [*cells, *cells]), "right", "written 2 times"),
    "the stub pasted below": (notebook(GOOD, lambda cells: [*cells, cell("def key_columns(d_model, d_head, head):\n    return ...  # later\n")]), "right", ""),
    "a second thought": (notebook(GOOD, lambda cells: [*cells, cell("def key_columns(*sizes):\n    return 'wrong'")]), "almost", "the last one counts"),
    "split": (notebook({}, split), "right", ""),
    "in a markdown cell": (notebook(GOOD, moved("markdown")), "right", "not in a code cell"),
    "under prose": (only(cell(f"My answer:\n\n{solved('3.1')}\n\nThe keys come second.\n", "markdown"), cell("check_3_1(key_columns)")), "right", "not in a code cell"),
    "indented under prose": (only(cell("It is\n\n    " + solved("3.1").replace("\n", "\n    "), "markdown"), cell("check_3_1(key_columns)")), "right", "not in a code cell"),
    "in a fence of tildes": (only(cell(f"My answer:\n~~~ python\n{solved('3.1')}\n~~~\nThat is all.", "markdown"), cell("check_3_1(key_columns)")), "right", "not in a code cell"),
    "in a fence that is left open": (only(cell(f"Mine:\n\n```py\n{solved('3.1')}", "markdown"), cell("check_3_1(key_columns)")), "right", "not in a code cell"),
    "uses the real model": (notebook({"3.1": "def key_columns(d_model, d_head, head):\n    return slice(real.d_model, 2)", NEIGHBOUR: solved(NEIGHBOUR)}), "no verdict", ""),
    "uses what the real model gave": (notebook({"3.1": "def key_columns(d_model, d_head, head):\n    return slice(d_model, len(clean.resid))", NEIGHBOUR: solved(NEIGHBOUR)}), "no verdict", ""),
    "in a raw cell": (notebook(GOOD, moved("raw")), "right", "not in a code cell"),
    "only the exercises": (only(*(cell(source) for source in GOOD.values())), "right", ""),
    "another name": (only(cell("from helpers.lesson3 import *"), cell(solved("3.1").replace("key_columns", "mine") + "\ncheck_3_1(mine)")), "right", "called with mine"),
    "a lambda": (only(cell("check_3_1(lambda d_model, d_head, head: slice(d_model + head * d_head, d_model + head * d_head + d_head))")), "right", "called with"),
    "helpers of one's own": (only(cell("from helpers.lesson3 import *\nimport torch"), cell(HELPERS), cell(USES)), "right", ""),
    "an error further up": (notebook(GOOD, lambda cells: [cell("import nothing_of_this_name\n1 / 0"), *cells]), "right", ""),
    "magics": (only(cell("%matplotlib inline\n!ls\nfrom helpers.lesson3 import *"), cell("%%time\n" + solved("3.1"))), "right", ""),
    "cell deleted": (notebook(GOOD, lambda cells: [one for one in cells if one["id"] != "l3-exercise-1"]), "missing", ""),
    "not Python": (notebook(GOOD | {"3.1": "def key_columns(d_model, d_head, head)\n    return 3"}), "no verdict", ""),
    "untouched": (HANDED_OUT, "not tried", ""),
    "an older format": (
        {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [{"cell_type": "code", "input": [solved("3.1")], "language": "python"}]}]}, "right", "",
    ),
    "as nbgrader's copy": (None, "right", ""),
}  # fmt: skip
RAW = {
    "broken json": b'{"cells": [{"cell_type": ',
    "no json": b"\x00\x01\x02 no notebook",
    "empty": b"",
    "a list": b"[1, 2, 3]",
    "deep": b"[" * 200_000,
    "huge number": b'{"cells": ' + b"9" * 10_000 + b"}",
    "wrong types": b'{"cells": [1, null, {"cell_type": 5, "source": {"a": 1}}]}',
    "deep code": json.dumps(only(cell("x = " + "(" * 5000 + ")" * 5000), cell("y = " + "-" * 100_000 + "1"))).encode(),
}


@pytest.fixture(scope="module")
def graded(tool, tmp_path_factory):
    """All of them, in one run. Returns (folder, out, results by student and exercise)."""
    folder, out = tmp_path_factory.mktemp("handed") / "submissions", tmp_path_factory.mktemp("grades") / "out"
    folder.mkdir()
    copy = importlib.import_module("assignment").assignment(3, with_solutions=False)[0]
    for one in copy["cells"]:
        if one["id"] == "l3-exercise-1":
            one["source"] = solved("3.1")
    odd = {name: nb or copy for name, (nb, _, _) in ODD.items()}
    for name, nb in {**odd, **{name: nb for name, (nb, *_) in HOSTILE.items()}}.items():
        put(folder / name / NAME, json.dumps(nb).encode())
    for name, data in RAW.items():
        put(folder / name / NAME, data)
    for student, answers in CLASS.items():
        put(folder / student / NAME, json.dumps(notebook(answers)).encode())
    put(folder / "utf-16" / NAME, json.dumps(notebook(GOOD)).encode("utf-16"))
    put(folder / "byte order mark" / NAME, b"\xef\xbb\xbf" + json.dumps(notebook(GOOD)).encode())
    latin = json.dumps(notebook(GOOD | {"3.1": "# gelöst\n" + solved("3.1")}), ensure_ascii=False).encode(
        "cp1252", "replace"
    )
    put(folder / "cp1252" / NAME, latin)
    put(folder / f"flat_{NAME}", json.dumps(notebook(GOOD)).encode())
    put(folder / "renamed" / "my answers (3).ipynb", json.dumps(notebook(GOOD)).encode())
    put(folder / "Mai Lan_4711_assignsubmission_file_" / NAME, json.dumps(notebook(GOOD)).encode())
    put(folder / "two files" / NAME, json.dumps(HANDED_OUT).encode())
    put(folder / "two files" / "later.ipynb", json.dumps(notebook(GOOD)).encode())
    put(folder / "as a script" / "lesson3.py", solved("3.1").encode())
    put(folder / "=cmd" / NAME, json.dumps(notebook(GOOD)).encode())
    put(
        folder / "<script>alert(2)<" / NAME if os.name != "nt" else folder / "x" / NAME,
        json.dumps(notebook(GOOD)).encode(),
    )
    put(folder / "as it should be" / ".ipynb_checkpoints" / NAME, b"broken")
    put(folder / "as it should be" / "photo.png", b"x")
    (folder / "link").mkdir()
    (folder / "link" / NAME).symlink_to(folder / "as it should be" / NAME)
    (folder / "link to a folder").symlink_to(folder / "as it should be")
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / NAME)
    out.mkdir()
    (out / "secret.txt").write_text("grades")
    spies = {"reads the grades": out / "secret.txt", "reads another's work": folder / f"flat_{NAME}"}
    for name, path in spies.items():
        put(folder / name / NAME, json.dumps(hostile(f"return open({str(path)!r}).read()")).encode())
    results = tool.grade(folder, out, LIMITS, quiet=True)
    return folder, out, {(one.student, one.exercise): one for one in results}


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_gets_its_own_verdict_and_harms_no_neighbour(graded, name):
    _, state, words, flag = HOSTILE[name]
    one, neighbour = graded[2][name, "3.1"], graded[2][name, NEIGHBOUR]
    assert (neighbour.state, neighbour.points) == ("right", 2)
    assert state is None or one.state == state, one
    assert re.search(words, one.sentence), one
    assert flag in "; ".join(one.flags), one
    assert graded[2][name, "3.2"].state == "not tried"
    assert one.points == (1 if one.state == "right" else 0)


@pytest.mark.parametrize("name", ODD)
def test_an_answer_is_found_however_it_comes_back(graded, name):
    _, state, note = ODD[name]
    one = graded[2][name, "3.1"]
    assert one.state == state, one
    assert note in "; ".join(one.notes)
    assert not one.flags


@pytest.mark.parametrize("name", RAW)
def test_a_file_that_is_no_notebook_is_told(graded, name):
    one = graded[2][name, "3.1"]
    assert one.state in {"no verdict", "missing"} and one.sentence and not one.points


@pytest.mark.parametrize(
    "name",
    [
        "utf-16",
        "byte order mark",
        "cp1252",
        "flat",
        "renamed",
        "Mai Lan",
        "two files",
        "as a script",
        "=cmd",
        "<script>alert(2)<",
    ],
)
def test_encodings_names_and_folders(graded, name):
    assert graded[2][name, "3.1"].state == "right"


def test_links_and_pipes_are_not_opened(graded):
    for name, word in {"link": "link to another file", "pipe": "no file", "link to a folder": "link"}.items():
        told = [one for (student, _), one in graded[2].items() if student.startswith(name)]
        said = (graded[1] / "summary.html").read_text(encoding="utf-8")
        assert all(one.state == "no verdict" and word in one.sentence for one in told)
        assert told or name in said


@pytest.mark.parametrize("name", ["reads the grades", "reads another's work"])
def test_grades_and_other_work_cannot_be_read(graded, name):
    one = graded[2][name, "3.1"]
    if "the submissions and the grades cannot be read" not in (graded[1] / "summary.html").read_text(encoding="utf-8"):
        pytest.skip("this system lets no process be shut in, and the summary says so")
    assert one.state == "almost" and ("FileNotFoundError" in one.sentence or "PermissionError" in one.sentence)
    assert graded[2][name, NEIGHBOUR].state == "right"


def test_nothing_was_left_in_the_course_or_beside_it(graded):
    folder, out, _ = graded
    assert (ROOT / "helpers" / "lesson3" / "exercises.py").exists() and not (ROOT / "notebooks" / "mine.txt").exists()
    assert (out / "secret.txt").read_text() == "grades"
    assert len(list(folder.rglob("*.ipynb"))) > 60


def test_the_table_has_every_result_and_no_formula(graded):
    _, out, results = graded
    with open(out / "results.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["student", "exercise", "state", "sentence", "points", "flags"]
    assert len(rows) == len(results)
    assert not [value for row in rows for value in row.values() if value[:1] in set("=+-@")]
    assert sum(int(row["points"]) for row in rows) == sum(one.points for one in results.values())


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_no_page_runs_or_fetches_what_a_submission_wrote(graded):
    _, out, results = graded
    pages = [out / "summary.html", *(out / "students").glob("*.html")]
    assert len(pages) == 1 + len({student for student, _ in results})
    allowed = "html head meta title style body h1 h2 p strong section details summary pre table thead tbody tr th td div ul li a"
    for page in pages:
        tags = Tags()
        tags.feed(page.read_text(encoding="utf-8"))
        assert {tag for tag, _ in tags.seen} <= set(allowed.split())
        assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
        links = [attributes["href"] for tag, attributes in tags.seen if tag == "a"]
        assert all((page.parent / link).exists() for link in links)


def summary(tool, folder, results, left=()):
    """The text of the teacher's page about these results."""
    tool.report.write(folder, results, list(left), {"shut": [], "open": []})
    return html.unescape((folder / "summary.html").read_text(encoding="utf-8"))


def test_the_summary_tells_who_missed_what_and_the_usual_wrong_answer(tool, graded, tmp_path):
    mine = [one for (student, _), one in graded[2].items() if student in CLASS]
    said = summary(tool, tmp_path, mine, ["notes.txt: neither .ipynb nor .py"])
    results = {(one.student, one.exercise): one for one in mine}
    common = "Almost: these are the head's values. The order is queries, keys, values."
    assert results["binh", "3.1"].sentence == results["chi", "3.1"].sentence == common
    assert f"<td class=number>2</td><td>{common}" in said
    assert "Look at these yourself" not in said and "they are no exam" in said
    page = html.unescape((tmp_path / "students" / "an.html").read_text(encoding="utf-8"))
    assert "3 of 10 points" in page and find("3.2").hint in page and "no exam" in page


def test_the_summary_begins_with_what_to_talk_about_and_folds_many_names(tool, tmp_path):
    def row(number, states):
        return [tool.Result(f"s{n:02}", number, state, f"{state} {number}", 0) for n, state in enumerate(states)]

    results = [
        *row("3.1", ["right"] * 8 + ["almost"] * 4),
        *row("3.2", ["right"] * 3 + ["almost"] * 3 + ["missing"] * 6),
        *row("3.3", ["right"] * 10 + ["not tried"] * 2),
    ]
    said = summary(tool, tmp_path, results)
    first = re.search("<strong>(.*?)</strong>", said)[1]
    assert first.startswith(f"Hardest: exercise 3.2, {find('3.2').title}. Of 6 who tried it, 3 got it right.")
    assert first.endswith("The most common wrong answer is to exercise 3.1, by 4: almost 3.1")
    folded = re.findall("<summary>(.*?)</summary>(.*?)</details>", said)
    assert [(title, names.count("<a ")) for title, names in folded] == [("9 students", 9)]

    assert "Where do its keys begin? Of 2 who" in summary(tool, tmp_path, row("3.1", ["right", "almost"]))
    assert "Hardest" not in summary(tool, tmp_path, row("3.1", ["right", "not tried"]))


def test_a_damaged_file_is_told_once_and_is_no_usual_wrong_answer(tool, graded, tmp_path):
    mine = [one for (student, _), one in graded[2].items() if student in {*CLASS, "broken json", "empty"}]
    said = summary(tool, tmp_path, mine)
    before, not_graded = said.split("<h2>Not graded</h2>")
    assert "the file is damaged" not in before and not_graded.count("the file is damaged") == 2
    page = html.unescape((tmp_path / "students" / "empty.html").read_text(encoding="utf-8"))
    assert page.count("the file is damaged") == page.count("<section") == 1
    assert "0 of 10 points" in page and "exercises 3.1 to 3.5" in page
    assert "points of 10</th>" in said and '<td class="center no-verdict" title="no verdict">!</td>' in said


def test_students_stand_in_the_order_of_their_letters_with_or_without_marks(tool):
    names = ["Anna", "Ảnh", "Çelik", "Dang", "Đặng", "dung", "Öz", "Zoe"]
    handed = [tool.Result(name, "3.1", "right", "✓", 1) for name in reversed(names)]
    assert [one.student for one in tool.merged(handed)] == ["Ảnh", "Anna", *names[2:]]


L1 = "01_downstream_scaling"
FOUND = {  # name of each test -> {path: student}
    "two of one name": {
        "An_4711_assignsubmission_file_/a.ipynb": "An (4711)", "An_4711_assignsubmission_onlinetext_/o.html": "An (4711)",
        "An_4712_assignsubmission_file_/a.ipynb": "An (4712)", "Lan_4713_assignsubmission_file_/a.ipynb": "Lan",
    },
    "a number and none": {"An_4711_assignsubmission_file_/a.ipynb": "An (4711)", "An/a.ipynb": "An"},
    "Moodle numbers each assignment anew": {
        "lesson1/An_4711_assignsubmission_file_/a.ipynb": "An", "lesson3/An_9999_assignsubmission_file_/a.ipynb": "An",
    },
    "Moodle without folders": {
        f"Mai Lan_4711_assignsubmission_file_{L1}.ipynb": "Mai Lan", "Mai Lan_4711_assignsubmission_onlinetext.html": "Mai Lan",
    },
    "a folder for each lesson": {
        "lesson1/anna.ipynb": "anna", f"Lesson 1/bert_{L1}.ipynb": "bert", f"{L1}/chi/x.ipynb": "chi", "lesson3/anna.ipynb": "anna",
    },
    "groups": {
        "group 1/anna.ipynb": "group 1/anna", f"group 1/{L1}_bert.ipynb": "group 1/bert", "group 2/chi.ipynb": "group 2/chi",
        "group 2/dung.ipynb": "group 2/dung", "lesson3/group 1/anna.ipynb": "group 1/anna", "lesson3/group 1/e.ipynb": "group 1/e",
    },
    "two attempts are no group": {
        "anna/try.ipynb": "anna", "anna/final.ipynb": "anna", f"bert/{L1}.ipynb": "bert", f"chi/lesson1/{L1}.ipynb": "chi",
        f"dung/{L1}-Copy1.ipynb": "dung", f"dung/{L1}.ipynb": "dung",
    },
    "copies": {
        f"anna_{L1} (1).ipynb": "anna", f"anna_{L1}-2.ipynb": "anna", f"{L1} (1) anna.ipynb": "anna", f"{L1}-Copy1_anna.ipynb": "anna",
        "lesson 1 anna - Copy (2).ipynb": "anna", f"anna_{L1}.ipynb.txt": "anna", f"{L1} (anna).ipynb": "anna",
    },
    "nobody's name": {f"{L1}-Copy1.ipynb": f"{L1}-Copy1", f"{L1} (1).ipynb": f"{L1} (1)", "photo.png": "", ".ipynb": ".ipynb"},
    "numbers for names": {f"{L1}_471100.ipynb": "471100", f"{L1}-471101.ipynb": "471101"},
    "accents as macOS writes them": {f"Jose\u0301_{L1}.ipynb": "José", f"José_{L1}.ipynb": "José", "Jose\u0301/x.ipynb": "José"},
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_names_of_folders_and_files_tell_whose_they_are(tool, name):
    students = importlib.import_module("grading.students").students
    found = students([tuple(path.split("/")) for path in FOUND[name]])
    assert {"/".join(parts): student for parts, student in found.items()} == FOUND[name]


def test_who_handed_in_no_notebook_has_a_row_and_the_courses_own_files_are_not_told(tool, tmp_path):
    folder, good = tmp_path / "in", json.dumps(notebook(GOOD)).encode()
    for name in (f"an/{NAME}", f"an/lesson3/{NAME}.txt", f"an/course/notebooks/{NAME}"):
        put(folder / name, good)
    for name in (
        "timestamp.txt",
        "glossary.md",
        "course/README.md",
        "course/helpers/edits.py",
        "course/docs/lesson1.png",
    ):
        put(folder / "an" / name, b"x")
    put(folder / "binh" / f"{NAME}.txt", good)
    put(folder / "binh" / "all.zip", b"x")
    put(folder / "chi" / "timestamp.txt", b"x")
    (folder / "dung").mkdir()
    results = {(one.student, one.exercise): one for one in tool.grade(folder, tmp_path / "out", LIMITS, quiet=True)}
    assert [results["an", "3.1"].state, results["an", "3.1"].notes] == ["right", ()]  # the same notebook twice
    for student, only in {"binh": f", only binh/{NAME}.txt, binh/all.zip", "chi": "", "dung": ""}.items():
        mine = [one for (name, _), one in results.items() if name == student]
        assert [one.exercise for one in mine] == ["3.1", "3.2", "3.3", "3.4", "3.5"]
        said = f"No notebook was handed in{only}. Hand in the file whose name ends in .ipynb, not zipped."
        assert {(one.state, one.sentence, one.points) for one in mine} == {("missing", said, 0)}
        assert said in html.unescape((tmp_path / "out" / "students" / f"{student}.html").read_text(encoding="utf-8"))
    summary = html.unescape((tmp_path / "out" / "summary.html").read_text(encoding="utf-8"))
    assert f"<li>an/lesson3/{NAME}.txt: neither .ipynb nor .py</li>" in summary
    assert summary.split("Not graded")[1].split("How it was graded")[0].count("<li>") == 4
    assert "More than one file" not in summary


def test_two_different_files_for_a_lesson_are_told(tool, tmp_path):
    folder = tmp_path / "in"
    put(folder / "an" / "try.ipynb", json.dumps(HANDED_OUT).encode())
    for name in (f"an/{NAME}", f"binh/{NAME}", f"binh/lesson3/{NAME}"):
        put(folder / name, json.dumps(notebook(GOOD)).encode())
    tool.grade(folder, tmp_path / "out", LIMITS, quiet=True)
    said = html.unescape((tmp_path / "out" / "summary.html").read_text(encoding="utf-8"))
    (table,) = re.findall("<h2>More than one file.*?</table>", said)
    assert f"an</a></th><td>3</td><td>an/{NAME}, an/try.ipynb</td>" in table and "binh" not in table


def test_a_folder_that_may_not_be_opened_is_told(tool, monkeypatch, tmp_path):
    for name in ("an/a.ipynb", "an/closed/b.ipynb", "binh/c.ipynb"):
        put(tmp_path / name, b"{}")
    opened = os.scandir

    def scandir(path):
        if Path(path).name in {"binh", "closed"}:  # as for everybody but root
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    handed, left, without = importlib.import_module("grading.gather").gather(tmp_path)
    assert [one.student for one in handed] == ["an"] and left == ["an/closed/: Permission denied"]
    said = "What was handed in cannot be read: binh/: Permission denied."
    assert without == {"binh": ("no verdict", said)}
    (one,) = tool._nothing(without, [])
    assert (one.student, one.exercise, one.state, one.sentence) == ("binh", "?", "no verdict", said)


def test_too_many_cells_and_too_many_files_have_sentences_of_their_own(tool, tmp_path):
    folder = tmp_path / "in"
    put(folder / "an" / NAME, b'{"cells": [' + b"{}," * 100_000 + b"{}]}")
    for number in range(23):
        put(folder / "binh" / f"03_multi_component_challenge ({number}).ipynb", json.dumps(notebook(GOOD)).encode())
        os.utime(folder / "binh" / f"03_multi_component_challenge ({number}).ipynb", (number, 100 - number))
    handed, left, _ = importlib.import_module("grading.gather").gather(folder)
    assert sorted(int(re.findall(r"\d+", one.name)[1]) for one in handed if one.student == "binh") == [*range(20)]
    assert left == ["binh: of 23 files only the 20 newest are graded"]
    results = {(one.student, one.exercise): one for one in tool.grade(folder, tmp_path / "out", LIMITS, quiet=True)}
    an = results["an", "3.1"]
    assert (an.state, an.sentence) == (
        "no verdict", "There are more than 2,000 cells in it. Hand in the lesson with your answers alone.",
    )  # fmt: skip
    assert results["binh", "3.1"].state == "right" and left[0].removeprefix("binh: ") in results["binh", "3.1"].notes


def test_a_cell_that_is_no_python_is_shown_to_its_student(tool):
    plan = importlib.import_module("grading.plan").plan
    for source in ("def key_columns(d_model, d_head, head)\n    return 1", "key_columns = (1,"):
        answer = plan([("code", "from helpers.lesson3 import *"), ("code", source)])["answers"]["3.1"]
        assert answer["state"] == "no verdict" and answer["shown"] == source


START = "start = d_model + head * d_head\n    return slice(start, start + d_head * {})"
READS = "def key_columns(d_model, d_head, head):\n    " + START
LAST = READS.format("cache['a']")
# how a statement at the top gives an answer what it reads: (the cell above the answer, the answer's own factor of 1)
CHANGES = {
    "a counter": ("calls = 0", "def key_columns(d_model, d_head, head):\n    global calls\n    calls += 1\n    " + START.format(1)),
    "an item": ("cache = {}\ncache['a'] = 1", LAST),
    "a method": ("cache = {}\ncache.update(a=1)", LAST),
    "a method whose result is kept": ("cache = {}\none = cache.setdefault('a', 1)", LAST),
    "a loop": ("cache = {}\nfor name in 'ab': cache[name] = 1", LAST),
    "a with": ("cache = {}\nwith torch.no_grad():\n    cache['a'] = 1", LAST),
    "an if": ("cache = {}\nif not cache:\n    cache['a'] = 1", LAST),
    "an item that is added to": ("cache = {'a': 0}\ncache['a'] += 1", LAST),
    "a name that is added to": ("cache = {}\ncache |= {'a': 1}", LAST),
    "del": ("cache = {'b': 1, 'a': 2}\ndel cache['a']", READS.format("(1 if 'a' not in cache else 2)")),
    "del of a shadow": ("int = None\ndel int", READS.format("int(1)")),
    "a function that gets it": ("def fill(some): some['a'] = 1\ncache = {}\nfill(cache)", LAST),
    "a function that gets it by name": ("def fill(some): some['a'] = 1\ncache = {}\nfill(some=cache)", LAST),
    "a result that is thrown away": ("def fill(some): return some.setdefault('a', 1)\ncache = {}\n_ = fill(cache)", LAST),
    "a function that knows it": ("cache = {}\ndef fill(): cache['a'] = 1\nfill()", LAST),
    "a function that knows it and returns": ("cache = {}\ndef fill():\n    cache['a'] = 1\n    return 1\ndone = fill()", LAST),
    "a function that calls one": ("cache = {}\ndef fill(): cache['a'] = 1\ndef all(): fill()\nall()", LAST),
    "a function that declares it": ("cache = {}\ndef fill():\n    global cache\n    cache = {'a': 1}\nfill()", LAST),
    "a class that knows it": ("cache = {}\nclass Fill:\n    def run(self): cache['a'] = 1\nfill = Fill()\nfill.run()", LAST),
    "an object that keeps it": ("cache = {}\nclass Fill:\n    def __init__(self, some): self.some = some\n    def run(self): self.some['a'] = 1\nfill = Fill(cache)\nfill.run()", LAST),
    "a decorator": ("cache = {}\ndef keep(one):\n    cache[one.__name__] = 1\n    return one\n@keep\ndef a(): pass", LAST),
    "a decorator with words": ("cache = {}\ndef keep(name):\n    cache[name] = 1\n    return lambda one: one\n@keep('a')\ndef b(): pass", LAST),
    "another name for it": ("cache = {}\nother = cache\nother['a'] = 1", LAST),
    "a method of another name": ("cache = {}\nother = cache\nother.update(a=1)", LAST),
    "a part of it": ("cache = {'a': [0]}\npart = cache['a']\npart[0] = 1", READS.format("cache['a'][0]")),
    "a method by another name": ("cache = {}\nput = cache.update\nput(a=1)", LAST),
    "a function by another name": ("cache = {}\ndef fill(): cache['a'] = 1\nrun = fill\nrun()", LAST),
    "each of several": ("cache = {'b': 1}\nother = {}\nfor one in (cache, other): one['a'] = 1", LAST),
    "setattr": ("class Sizes: pass\nsetattr(Sizes, 'a', 1)", READS.format("Sizes.a")),
    "an attribute": ("class Sizes: pass\nSizes.a = 1", READS.format("Sizes.a")),
    "next": ("numbers = iter([5, 1])\nfirst = next(numbers)", READS.format("(1 if list(numbers) in ([1], []) else 2)")),
    "a condition's own name": ("cache = {}\nif (other := cache) is cache: other['a'] = 1", LAST),
    "smollm2 in a docstring": ("", READS.format(1).replace("    start", '    """smollm2 has 30 blocks"""\n    start')),
    "smollm2 in a table": ("cache = {'smollm2': 30, 'a': 1}", LAST),
    "a function for the real model": ("def fetch(): return load_model('smollm2')\nwaits = [lambda: load_model('smollm2')]", READS.format("(1 if fetch and waits else 0)")),
    "deleted when all is done": ("cache = {'a': 1}", LAST + "\ncheck_3_1(key_columns)\ndel cache"),
}  # fmt: skip


@pytest.fixture(scope="module")
def lesson_3(tool):
    scope = {"__name__": "__main__"}
    exec(importlib.import_module("grading.course").setup(3), scope)
    return scope


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_what_an_answer_reads_is_run(tool, lesson_3, name):
    above, answer = CHANGES[name]
    plan = importlib.import_module("grading.plan").plan
    one = plan([("code", "from helpers.lesson3 import *"), ("code", above), ("code", answer)])["answers"]["3.1"]
    assert "statements" in one, one
    scope = dict(lesson_3)
    for code in one["statements"]:
        exec(code, scope)
    assert judge(find("3.1"), scope["key_columns"]).sentence == RIGHT


def test_what_an_answer_does_not_need_is_not_run(tool):
    """Results of slow functions that only look at what the answer reads, and what only shows it."""
    plan = importlib.import_module("grading.plan").plan
    above = "cache = {'a': 1}\ndef slow(some): return len(some)\ntook = slow(cache)\nprint(cache)\nmean = took / 2\nreal = load_model('smollm2')"
    answer = plan([("code", above), ("code", LAST), ("code", "check_3_1(key_columns)")])["answers"]["3.1"]
    assert answer["statements"] == ["cache = {'a': 1}", LAST]


def test_all_lessons_of_a_notebook_are_planned_and_a_name_alone_is_no_lesson(tool):
    plan = importlib.import_module("grading.plan").plan
    first = [("code", "from helpers.lesson1 import *"), ("code", "def changed_states(block, n_blocks):\n    return 3")]
    third = [("code", "from helpers.lesson3 import *"), ("code", LAST)]
    both = plan([*first, *third])
    assert both["lessons"] == [1, 3]
    assert {number for number, one in both["answers"].items() if "statements" in one} == {"1.1", "3.1"}
    assert plan([*third, ("code", "check_1_1(lambda block, n_blocks: [])")])["lessons"] == [1, 3]
    assert plan([*third, ("code", "def make_hook(factor): pass")])["lessons"] == [3]


def test_code_is_shown_as_its_author_wrote_it(tool):
    plan = importlib.import_module("grading.plan").plan
    mine = "# the keys come second\n@staticmethod\ndef key_columns(d_model, d_head, head):  # 768, 64, 0\n    return slice( d_model,d_head )  # not yet"
    cells = [
        (
            "code",
            "from helpers.lesson3 import *\nfrom helpers.lesson1 import *\n\n"
            + mine
            + "\n\ncheck_3_1(key_columns)\n# hint('3.1')",
        )
    ]
    assert plan(cells)["answers"]["3.1"]["shown"] == mine


def test_a_cell_with_nul_bytes_is_told_without_a_line(tool):
    plan = importlib.import_module("grading.plan").plan
    answer = plan([("code", "from helpers.lesson3 import *"), ("code", "key_columns = 1\0")])["answers"]["3.1"]
    assert answer["state"] == "no verdict" and "null bytes" in answer["sentence"] and "None" not in answer["sentence"]


def test_a_page_does_not_speak_of_cells_and_says_why_the_real_model_is_missing(tool, graded):
    page = html.unescape((graded[1] / "students" / "untouched.html").read_text(encoding="utf-8"))
    assert "this cell" not in page and page.count("Nothing has been filled in yet.") == 5
    for name, absent in {"uses the real model": "real", "uses what the real model gave": "clean"}.items():
        said = f"Your answer uses `{absent}`, and grading does not run the real model"
        assert graded[2][name, "3.1"].sentence.startswith(said)
        assert graded[2][name, NEIGHBOUR].state == "right"


@pytest.mark.parametrize("lesson", range(1, 6))
def test_the_plan_of_every_exercise_is_found_by_name(tool, lesson):
    """Filled with its solutions, and handed out: what would run is the answer, and nothing that loads a model."""
    plan = importlib.import_module("grading.plan").plan
    assignment = importlib.import_module("assignment").assignment
    for solutions in (True, False):
        cells = [(one["cell_type"], "".join(one["source"])) for one in assignment(lesson, solutions)[0]["cells"]]
        found = plan(cells)
        assert found["lessons"] == [lesson] and len(found["answers"]) >= 4
        for number, answer in found["answers"].items():
            assert answer["flags"] == answer["notes"] == []
            if solutions:
                assert answer["statements"] and not any("load_model" in code for code in answer["statements"]), number
            else:
                assert answer["state"] == "not tried"


def test_a_folder_that_cannot_be_graded_is_told(tool, monkeypatch, tmp_path):
    for words, said in {
        (str(tmp_path / "nothing"),): "there is no folder",
        (str(ROOT),): "the course itself lies in this folder",
        (str(tmp_path), "--out", str(tmp_path / "out")): "outside the folder of submissions",
    }.items():
        monkeypatch.setattr(sys, "argv", ["grade.py", *words])
        with pytest.raises(SystemExit, match=said):
            tool.main()
