"""What every stored notebook must be: executed in order, clean, small, and comparable cell by cell.

nbval runs a cell without an execution count but compares nothing, so a stripped notebook would pass it unseen: the
rules below are what keeps nbval honest. A rule takes a notebook (and its number) and yields what is wrong with it;
each is also shown a small broken notebook, which it must reject.
"""

import ast
import copy
import itertools
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = [
    "01_downstream_scaling",
    "02_hooks_vs_hidden_states",
    "03_multi_component_challenge",
    "04_head_ablation",
    "05_skip_layer",
]
MOST_BYTES = 700_000
WIDEST = 102  # characters: what JupyterLab shows beside its file browser on a small screen, without scrolling sideways
PUBLIC_HOSTS = {
    "aclanthology.org",
    "arxiv.org",
    "distill.pub",
    "doi.org",
    "docs.pytorch.org",
    "github.com",
    "huggingface.co",
    "jupyter.org",
    "openreview.net",
    "pytorch.org",
    "transformer-circuits.pub",
    "www.lesswrong.com",
    "www.alignmentforum.org",
    "www.cs.toronto.edu",
}
NBVAL_MARK = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_\w+)", re.M)
BEHIND_THE_SCENES = re.compile(r"^\s*(!|%%|%(pip|conda|cd|env|run|reset|load)\b|.*\bget_ipython\()", re.M)
MACHINE = re.compile(
    r"(?<![\w.])/(home|root|Users|tmp|work|opt|mnt|usr|var)/\w|\b[A-Z]:\\\\?\w|\bat 0x[0-9a-f]{6,}|\bfile:"
)
URL = re.compile(r"https?://[^\s\"'<>)\]`\\]+")
ROUNDING_NOISE = re.compile(r"\d(\.\d+)?e-(1[3-9]|[2-9]\d)\b")
NOT_ROUNDED = re.compile(r"\d\.\d{7,}")


def code(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def outputs(nb):
    return [(cell, output) for cell in code(nb) for output in cell.outputs]


def text_of(output):
    """All text that a reader of `output` sees."""
    data = output.get("data", {})
    parts = [
        output.get("text", ""),
        data.get("text/plain", ""),
        re.sub(r'src="data:[^"]*"', "", data.get("text/html", "")),
    ]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


def counts_run_in_order(nb, number):
    counts = [cell.execution_count for cell in code(nb) if cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: run the notebook from top to bottom, then store it"


def no_cell_is_empty(nb, number):
    yield from (f"{cell.id} is empty" for cell in nb.cells if not cell.source.strip())


def no_errors(nb, number):
    yield from (f"{cell.id} raised {out.ename}" for cell, out in outputs(nb) if out.output_type == "error")


def no_stderr(nb, number):
    for cell, out in outputs(nb):
        if out.output_type == "stream" and out.name == "stderr":
            yield f"{cell.id} writes to stderr: {out.text[:80]!r}"


def no_widget_metadata(nb, number):
    if "widgets" in nb.metadata:
        yield "the notebook stores widget states"


def no_timing_metadata(nb, number):
    for cell in nb.cells:
        extra = set(cell.metadata) - {"tags", "nbgrader", "jupyter", "editable", "slideshow"}
        if extra:
            yield f"{cell.id} has metadata {sorted(extra)}"


def no_svg(nb, number):
    for cell, out in outputs(nb):
        if any("svg" in kind for kind in out.get("data", {})) or "<svg" in text_of(out):
            yield f"{cell.id} shows an SVG, whose text differs between machines"


def small(nb, number):
    size = len(nbformat.writes(nb).encode())
    if size >= MOST_BYTES:
        yield f"{size} bytes, allowed are fewer than {MOST_BYTES}"


def ids_tell(nb, number):
    for cell in nb.cells:
        words = cell.id.split("-")
        right = words[0] == f"l{number}" and len(words) > 1 and all(re.fullmatch(r"[a-z0-9]+", word) for word in words)
        if not right or not any(re.fullmatch(r"[a-z]{3,}\d*", word) for word in words[1:]):
            yield f"id {cell.id!r}: write l{number}- and words that tell what the cell does"


def ids_are_unique(nb, number):
    yield from (
        f"id {name!r} is used {times} times" for name, times in Counter(c.id for c in nb.cells).items() if times > 1
    )


def opens_as_every_lesson(nb, number):
    if nb.cells[0].cell_type != "markdown" or not nb.cells[0].source.startswith("# "):
        yield "the first cell is not a title"
    first = code(nb)[0].source
    lines = [line for line in first.splitlines() if line.strip()]
    if len(lines) > 3 or "helpers" not in first or "load_model" not in first:
        yield "the first code cell is not three lines at most that import helpers, load the model and name the prompt"


def one_title(nb, number):
    markdown = "\n".join(re.sub(r"```.*?```", "", c.source, flags=re.S) for c in nb.cells if c.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", markdown, re.M)]
    if levels.count(1) != 1:
        yield f"{levels.count(1)} titles of the first level"
    jumps = [b for a, b in itertools.pairwise(levels) if b > a + 1]
    if jumps:
        yield f"a heading skips a level (to {jumps[0]}), which loses readers with a screen reader"


def length(nb, number):
    if not 25 <= len(nb.cells) <= 45:
        yield f"{len(nb.cells)} cells; a lesson has 25 to 45"


def nothing_is_ignored(nb, number):
    for cell in nb.cells:
        marks = [tag for tag in cell.metadata.get("tags", []) if "nbval" in tag or tag in ("raises-exception", "skip")]
        marks += NBVAL_MARK.findall(cell.source) if cell.cell_type == "code" else []
        if marks:
            yield f"{cell.id} is exempt from comparison: {marks}"


def no_trailing_semicolon(nb, number):
    yield from (f"{cell.id} ends in ;" for cell in code(nb) if cell.source.rstrip().endswith(";"))


def no_magic(nb, number):
    for cell in code(nb):
        if BEHIND_THE_SCENES.search(cell.source):
            yield f"{cell.id} installs, shells out or uses a magic: a lesson is plain Python"


def code_fits(nb, number):
    for cell in code(nb):
        yield from (f"{cell.id}: {line!r}" for line in cell.source.splitlines() if len(line) > WIDEST)


def pictures_have_alt(nb, number):
    for cell, out in outputs(nb):
        for kind in out.get("data", {}):
            if kind.startswith("image/") and not out.metadata.get(kind, {}).get("alt", "").strip():
                yield f"{cell.id} shows a picture without alt text: use show_figure"
        html = out.get("data", {}).get("text/html", "")
        if any(not re.search(r'\balt="[^"]+"', image) for image in re.findall(r"<img\b[^>]*>", html)):
            yield f"{cell.id} shows an <img> without alt text"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            bare = re.findall(r"!\[\s*\]\(", cell.source)
            bare += [
                image for image in re.findall(r"<img\b[^>]*>", cell.source) if not re.search(r'\balt="[^"]+"', image)
            ]
            if bare:
                yield f"{cell.id} has a picture without alt text"


def pictures_have_numbers(nb, number):
    """nbval does not compare pictures: words and numbers with them are what guards them."""
    for cell in code(nb):
        kinds = [kind for out in cell.outputs for kind in out.get("data", {})]
        text = "".join(text_of(out) for out in cell.outputs)
        if any(kind.startswith("image/") for kind in kinds) and not re.search(r"\d", text):
            yield f"{cell.id} shows a picture and no number"


def no_machine(nb, number):
    for cell in nb.cells:
        text = "\n".join([cell.source, *(text_of(out) for out in cell.get("outputs", []))])
        found = MACHINE.search(text)
        if found:
            yield f"{cell.id} names a place on one machine: {found.group()!r}"
        for url in URL.findall(text):
            if urlparse(url).netloc not in PUBLIC_HOSTS:
                yield f"{cell.id} links to {url}: not a public source of papers, code or documentation"


def numbers_are_rounded(nb, number):
    for cell, out in outputs(nb):
        found = ROUNDING_NOISE.search(text_of(out)) or NOT_ROUNDED.search(text_of(out))
        if found:
            yield f"{cell.id} prints {found.group()!r}, which differs between CPUs: round it, or print a comparison"


# ---- the second edition: lessons that say what was found


def findings(nb):
    return [cell for cell in nb.cells if cell.cell_type == "markdown" and cell.id.endswith(("-finding", "-recap"))]


def second_edition(nb):
    return any(cell.id.endswith("-finding") for cell in nb.cells)


def words(nb):
    """Words of prose: without code, formulas' signs, links' addresses, the list of references and what is folded away."""
    cells = [
        re.split(r"### References|\*\*References\.\*\*", cell.source)[0]
        for cell in nb.cells
        if cell.cell_type == "markdown"
    ]
    text = "\n".join(cells)
    text = re.sub(r"```.*?```|<details>.*?</details>|\]\([^)]*\)|<[^>]+>", " ", text, flags=re.S)
    return len(re.findall(r"\w[\w'’.-]*", text))


def is_short(nb, number):
    if not second_edition(nb):
        return
    if len(nb.cells) > 40:
        yield f"{len(nb.cells)} cells; a lesson has 25 to 40"
    if words(nb) > 2400:
        yield f"{words(nb)} words of prose; a lesson has 2,400 at most"
    for cell in code(nb):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > 15:
            yield f"{cell.id} has {len(lines)} lines; a code cell has 15 at most: display code lives in the room"


def one_import(nb, number):
    if not second_edition(nb):
        return
    for cell in code(nb):
        lines = [line for line in cell.source.splitlines() if re.match(r"\s*(from|import) .*helpers", line)]
        if lines and (cell is not code(nb)[0] or len(lines) > 1):
            yield f"{cell.id} imports helpers again: a notebook imports its room once"


NUMBER = re.compile(r"(?<![\w.,])[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
NAMES = "blocks?|heads?|tokens?|coordinates?|dimensions?|neurons?|layers?|lessons?|sections?|claims?"
NAME_BEFORE = re.compile(rf"(?:\b(?:{NAMES})\s|×\s?)$", re.I)


def values(text):
    """Numbers as people and programs write them: 9,736, −6.11, 2e-05."""
    found = re.findall(r"(?<![\w.])[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return [abs(float(number.replace(",", "").replace("−", "-"))) for number in found]


def stands_in(number, seen, percent=False):
    """Whether a number is the rounding of one that is seen; without its sign, which a verb may carry."""
    plain = number.replace(",", "").replace("−", "-")
    digits, wanted = len(plain.partition(".")[2]), abs(float(plain))
    scales = (1, 100) if percent else (1,)
    return any(abs(value * scale - wanted) <= 0.5 * 10**-digits * (1 + 1e-9) for value in seen for scale in scales)


def findings_are_measured(nb, number):
    """Each number in a finding is in the outputs above it in its section; in the recap, anywhere above."""
    for place, cell in enumerate(nb.cells):
        if cell not in findings(nb):
            continue
        start = 0
        if cell.id.endswith("-finding"):
            heads = [
                i
                for i, one in enumerate(nb.cells[:place])
                if one.cell_type == "markdown" and re.search(r"^## ", one.source, re.M)
            ]
            start = heads[-1] if heads else 0
        above = [one for one in nb.cells[start:place] if one.cell_type == "code"]
        seen = values("\n".join(text_of(out) for one in above for out in one.outputs))
        named = seen + values("\n".join(one.source for one in [*above, code(nb)[0]]))
        text = re.sub(r"```.*?```|\]\([^)]*\)|^#.*$|SmolLM2-135M|GPT-2", " ", cell.source, flags=re.S | re.M)
        for match in NUMBER.finditer(text):
            name = NAME_BEFORE.search(text[: match.start()])
            percent = text[match.end() :].lstrip().startswith("%")
            if not stands_in(match.group(), named if name else seen, percent):
                yield f"{cell.id} says {match.group()!r}, which no output above it in its section shows"


def findings_say_it(nb, number):
    """A finding begins with the sentence to remember, in bold, with its number, and names the model that it is about."""
    for cell in nb.cells:
        if cell.id.endswith("-finding"):
            bold = re.match(r"\*\*(.+?)\*\*", cell.source.strip(), re.S)
            if not bold or not NUMBER.search(bold.group(1)):
                yield f"{cell.id} does not begin with a bold sentence that has a number"
            if not re.search(r"SmolLM2|pocket model|both models", cell.source):
                yield f"{cell.id} does not say which model it is about"


RULES = [
    is_short,
    one_import,
    findings_are_measured,
    findings_say_it,
    counts_run_in_order,
    no_cell_is_empty,
    no_errors,
    no_stderr,
    no_widget_metadata,
    no_timing_metadata,
    no_svg,
    small,
    ids_tell,
    ids_are_unique,
    opens_as_every_lesson,
    one_title,
    length,
    nothing_is_ignored,
    no_trailing_semicolon,
    no_magic,
    code_fits,
    pictures_have_alt,
    pictures_have_numbers,
    no_machine,
    numbers_are_rounded,
]


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request):
    """The notebook as stored, with its number."""
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4), int(request.param[:2])


def test_the_lessons_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == LESSONS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(lesson, rule):
    assert list(rule(*lesson)) == []


def test_is_a_valid_notebook(lesson):
    nbformat.validate(lesson[0])
    assert (lesson[0].nbformat, lesson[0].nbformat_minor) >= (4, 5), "cells of older formats have no ids"


# ---- each rule rejects a notebook that breaks it


def good():
    """A notebook of 25 cells that keeps every rule."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# A lesson\n\n![the stream](stream.png)", id="l1-title-text"),
        v4.new_code_cell("from helpers import load_model\nlm = load_model()", id="l1-setup", execution_count=1),
    ]
    for i in range(2, 25):
        cells.append(v4.new_code_cell(f"print({i})", id=f"l1-number-{i}", execution_count=i))
        cells[-1].outputs = [v4.new_output("stream", text=f"{i}\n")]
    picture = v4.new_output("display_data", {"image/png": "iVBO", "text/plain": "Δ ends at 11.0"})
    picture.metadata = {"image/png": {"alt": "Δ ends at 11.0"}}
    cells[5].outputs.append(picture)
    return v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def broken(change):
    nb = copy.deepcopy(good())
    change(nb)
    return nb


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def shown(**data):
    return nbformat.v4.new_output("display_data", {key.replace("_", "/"): value for key, value in data.items()})


def edit_source(index, source):
    return lambda nb: nb.cells[index].update(source=source)


def add_output(output):
    return lambda nb: nb.cells[4].outputs.append(output)


def finding(source="**On SmolLM2 it is 24.**", more=lambda nb: None, name="l1-depth-finding"):
    """A notebook that states a finding, with whatever else is broken."""

    def change(nb):
        nb.cells.append(nbformat.v4.new_markdown_cell(source, id=name))
        more(nb)

    return change


BREAKS = [
    (is_short, finding(more=lambda nb: nb.cells.extend([nb.cells[-1]] * 16))),
    (is_short, finding("**On SmolLM2 it is 24.** " + "word " * 2400)),
    (is_short, finding(more=edit_source(3, "print(3)\n" * 16))),
    (one_import, finding(more=edit_source(3, "from helpers.lesson1 import edit"))),
    (findings_are_measured, finding("**On SmolLM2 it is 240.**")),
    (findings_are_measured, finding("**On SmolLM2 it is 23.9.**")),
    (findings_are_measured, finding("Three things: 25.", name="l1-recap")),
    (findings_say_it, finding("On SmolLM2 it is **24**.")),
    (findings_say_it, finding("**It is 24.**")),
    (counts_run_in_order, lambda nb: nb.cells[3].update(execution_count=None)),
    (counts_run_in_order, lambda nb: nb.cells[3].update(execution_count=30)),
    (no_cell_is_empty, edit_source(3, " \n")),
    (no_errors, add_output(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))),
    (no_stderr, add_output(stream("a warning", "stderr"))),
    (no_widget_metadata, lambda nb: nb.metadata.update(widgets={"application/vnd.jupyter.widget-state+json": {}})),
    (no_timing_metadata, lambda nb: nb.cells[3].metadata.update(execution={"iopub.execute_input": "2026-01-01"})),
    (no_svg, add_output(nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg/>"}))),
    (no_svg, add_output(shown(text_html="<div><svg/></div>"))),
    (small, add_output(stream("x" * MOST_BYTES))),
    (ids_tell, lambda nb: nb.cells[3].update(id="3f9ac0de")),
    (ids_tell, lambda nb: nb.cells[3].update(id="l2-first-token")),
    (ids_tell, lambda nb: nb.cells[3].update(id="l1-3")),
    (ids_are_unique, lambda nb: nb.cells[3].update(id=nb.cells[4].id)),
    (opens_as_every_lesson, edit_source(0, "No title")),
    (opens_as_every_lesson, edit_source(1, "import torch\nfrom helpers import load_model\nlm = load_model()\nx = 1")),
    (opens_as_every_lesson, edit_source(1, "import torch")),
    (one_title, edit_source(0, "# One\n\n# Two")),
    (one_title, edit_source(0, "# One\n\n### Three")),
    (length, lambda nb: nb.cells.pop()),
    (length, lambda nb: nb.cells.extend([nb.cells[-1]] * 21)),
    (nothing_is_ignored, lambda nb: nb.cells[3].metadata.update(tags=["nbval-ignore-output"])),
    (nothing_is_ignored, lambda nb: nb.cells[3].metadata.update(tags=["raises-exception"])),
    (nothing_is_ignored, edit_source(3, "# NBVAL_IGNORE_OUTPUT\nprint(3)")),
    (no_trailing_semicolon, edit_source(3, "plot(3);\n")),
    (no_magic, edit_source(3, "%pip install helpers")),
    (no_magic, edit_source(3, "!ls")),
    (no_magic, edit_source(3, "%%capture\nprint(3)")),
    (code_fits, edit_source(3, f"print({'x' * WIDEST!r})")),
    (pictures_have_alt, add_output(shown(image_png="iVBO", text_plain="1"))),
    (pictures_have_alt, add_output(shown(text_html='<img src="x.png">'))),
    (pictures_have_alt, add_output(shown(text_html='<img alt="" src="x.png">'))),
    (pictures_have_alt, edit_source(0, "# One\n\n![](stream.png)")),
    (pictures_have_numbers, lambda nb: nb.cells[4].update(outputs=[shown(image_png="iVBO", text_plain="<Figure>")])),
    (no_machine, add_output(stream("/home/ada/model.bin"))),
    (no_machine, add_output(stream("C:\\\\Users\\\\ada"))),
    (no_machine, add_output(stream("<Module at 0x7f31aa20>"))),
    (no_machine, edit_source(0, "# One\n\n[the model](http://gpu-server:8080/x)")),
    (numbers_are_rounded, add_output(stream("difference 2.2e-16"))),
    (numbers_are_rounded, add_output(stream("0.30000000000000004"))),
]


def test_every_rule_is_shown_a_broken_notebook():
    assert {rule for rule, _ in BREAKS} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_notebook_passes(rule):
    assert list(rule(good(), 1)) == []


@pytest.mark.parametrize(
    "text",
    ["**On SmolLM2 it is 24.**", "**SmolLM2 loses 24, at block 5.**", "**11 on the pocket model, 11.0 at the end.**"],
)
def test_a_true_finding_passes(text):
    nb = broken(finding(text, edit_source(4, "print(4, 5)")))
    assert [list(rule(nb, 1)) for rule in (is_short, one_import, findings_are_measured, findings_say_it)] == [[]] * 4


@pytest.mark.parametrize(
    ("number", "seen", "percent", "right"),
    [
        ("134", [133.6], False, True),
        ("134", [134.6], False, False),
        ("9,736", [9736.2], False, True),
        ("−6.11", [6.108], False, True),
        ("6.1", [6.108], False, True),
        ("6.110", [6.108], False, False),
        ("99", [0.99], True, True),
        ("99", [0.99], False, False),
        ("0.94", [], False, False),
    ],
)
def test_a_number_stands_for_what_rounds_to_it(number, seen, percent, right):
    assert stands_in(number, seen, percent) == right


def test_numbers_are_read_as_they_are_written():
    assert values("Δ 9,736 (2e-05), −6.11 and 23.4; block12 is a name") == [9736, 2e-05, 6.11, 23.4]


@pytest.mark.parametrize(("rule", "change"), BREAKS, ids=[f"{i}-{rule.__name__}" for i, (rule, _) in enumerate(BREAKS)])
def test_a_broken_notebook_is_rejected(rule, change):
    assert list(rule(broken(change), 1)) != []


def test_the_place_of_an_option_tells_nothing():
    """Nobody should be able to guess right by choosing always the first or always the last option."""
    places = []
    for lesson in LESSONS:
        asked, answers = {}, {}
        for cell in nbformat.read(FOLDER / f"{lesson}.ipynb", 4).cells:
            if cell.cell_type == "code":
                for node in ast.walk(ast.parse(cell.source)):
                    match node:
                        case ast.Assign(targets=[ast.Name(name)], value=ast.Call(ast.Name("predict"), [_, *options])):
                            asked[name] = [option.value for option in options]
                        case ast.Call(ast.Attribute(ast.Name(name), "answer"), [ast.Constant(right), *_]):
                            answers[name] = right
        assert asked and asked.keys() == answers.keys()
        places += [(asked[name].index(right), len(asked[name])) for name, right in answers.items()]
    assert sum(place == 0 for place, _ in places) <= len(places) / 2
    assert sum(place == count - 1 for place, count in places) <= len(places) / 2
