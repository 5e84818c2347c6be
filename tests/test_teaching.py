"""The teacher's pages and what they promise: numbers, cells, links, the lessons that a student gets, the ways to start."""

import ast
import builtins
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jsonschema
import nbformat
import pytest
import yaml

from helpers.course.restarted import NEW

ROOT = Path(__file__).resolve().parent.parent
TEACHING = (ROOT / "docs/teaching.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def tool(path):
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def plan(number):
    """The plan of a lesson, without the heading."""
    return re.search(rf"^### Lesson {number} · .*?\n(.*?)(?=^##)", TEACHING, re.M | re.S).group(1)


def shown(notebook):
    """What a reader of a notebook sees: its words and its outputs."""
    texts = []
    for cell in notebook.cells:
        texts.append(cell.source if cell.cell_type == "markdown" else "")
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), *output.get("data", {}).values()]
    return "\n".join(text for text in texts if isinstance(text, str))


# ---- lesson plans


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_plan_names_cells_that_are_there_and_takes_90_minutes(path):
    notebook, number = nbformat.read(path, as_version=4), int(path.stem[:2])
    named = re.findall(r"`(l\d-[a-z0-9-]+)`", plan(number))
    assert set(named) <= {cell.id for cell in notebook.cells}
    assert len(set(named)) >= 10
    minutes = [int(row) for row in re.findall(r"^\| (\d+) \|", plan(number), re.M)]
    assert sum(minutes) == 90 and len(minutes) >= 6
    title = re.match(r"# (.*)", notebook.cells[0].source).group(1)
    assert f"### {title}\n" in TEACHING


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_plan_says_in_which_section_its_cells_are(path):
    """JupyterLab shows the headings of sections, and no names of cells."""
    section, order = {}, {}
    for at, cell in enumerate(nbformat.read(path, as_version=4).cells):
        heading = re.findall(r"^## (\d+) ·", cell.source, re.M) if cell.cell_type == "markdown" else []
        section[cell.id] = heading[-1] if heading else list(section.values())[-1] if section else "start"
        order[cell.id] = at
    rows = re.findall(r"^\| \d+ \| ([^|]+) \| [^|]+ \| ([^|]+) \|", plan(int(path.stem[:2])), re.M)
    assert len(rows) >= 6
    for named, cells in rows:
        ids = re.findall(r"`(l\d-[^`]+)`", cells)
        assert named == ", ".join(dict.fromkeys(section[one] for one in ids))
        if "exercise" not in cells:  # an exercise may wait until the results have been seen
            assert ids == sorted(ids, key=order.get)


def planned(path):
    """The cells of a lesson's plan in its order, and the first words that the plan quotes of each."""
    cells = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    rows = re.findall(r"^\| \d+ \| [^|]+ \| [^|]+ \| ([^|]+) \|", plan(int(path.stem[:2])), re.M)
    named = [pair for row in rows for pair in re.findall(r"`(l\d-[^`]+)`(?: \(`([^`]+)`\))?", row)]
    return [(cells[name], words) for name, words in named]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_plan_quotes_the_first_words_of_each_cell(path):
    for cell, words in planned(path):
        assert len(words) >= 6 and cell.source.lstrip().startswith(words), (cell.id, words)


def names(code):
    """(used, given): the names that some code reads, and those that it or what is inside it binds."""
    used, given = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (given if isinstance(node.ctx, ast.Store) else used).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler):
            given.add(node.name)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
        elif isinstance(node, ast.Import):
            given |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            given |= set(import_module(node.module).__all__)
    return used, given


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_plan_can_be_followed_cell_by_cell(path):
    """No cell of a plan needs a name that only a cell gives that the plan leaves out; and the guesses come at its end."""
    known = set(dir(builtins))
    cells = [cell for cell, _ in planned(path) if cell.cell_type == "code"]
    for cell in cells:
        used, given = names(cell.source)
        assert not used - given - known, cell.id
        known |= given
    assert "show_guesses(" in cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_number_of_a_plan_stands_in_its_lesson(path):
    text = shown(nbformat.read(path, as_version=4))
    stated = re.findall(r"(?<![\w.,])-?\d+(?:,\d{3})*\.\d+|\d+,\d{3}|\b\d+ of \d+\b", plan(int(path.stem[:2])))
    assert len(stated) > 10
    for number in stated:
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", text), f"{number} is nowhere in {path.name}"


def test_what_a_plan_quotes_of_a_check_is_what_the_check_says():
    quoted = {
        1: "a block's output is one ahead",
        2: "0 is a value too, and it counts",
        3: "In the fused matrix the queries come first",
    }
    for number, sentence in quoted.items():
        assert sentence in (ROOT / f"helpers/lesson{number}/exercises.py").read_text(encoding="utf-8")
    assert (
        quoted[1] in TEACHING
        and "0 is a value too" in plan(2)
        and "in the fused matrix the queries come first" in plan(3)
    )


def test_cells_that_other_pages_name_are_there():
    ids = {cell.id for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells}
    assert set(re.findall(r"`(l\d-[a-z0-9-]+)`", TEACHING + TROUBLE)) <= ids


# ---- words that a student sees


def test_sentences_in_troubleshooting_are_those_of_the_code():
    assert "This kernel is new: it has not run this notebook's first cells" in NEW and NEW.split(",")[0] in TROUBLE
    said = {
        "helpers/loading.py": "this notebook runs with {name}",
        "helpers/smollm2.py": "the real model is not on this machine and cannot be fetched",
        "deploy/jupyterhub_config.py": "The hub does not start",
        "start.py": "The course needs Python 3.11, 3.12 or 3.13",
    }
    for file, sentence in said.items():
        assert sentence in (ROOT / file).read_text(encoding="utf-8")
        assert sentence.replace(" {name}", "") in TROUBLE


def test_jupyterlabs_own_sentences_are_those_of_the_installed_one():
    folder = Path(sys.prefix) / "share/jupyter/lab/static"
    shown = "".join(path.read_text(encoding="utf-8") for path in folder.glob("jlab_core*.js"))
    for words in (
        'Document is read-only. "Save" is disabled; use "Save as…" instead', "File Save Error for ", "Saving failed", "File Changed",
        "Server Connection Error", "A connection to the Jupyter server could not be established.",
        "Server unavailable or unreachable", "Would you like to restart it?", "appears to have died. It will restart automatically.",
    ):  # fmt: skip
        assert words in shown and words in TROUBLE, words


def test_the_unrelated_package_of_the_same_name_ends_in_the_words_of_the_page(tmp_path):
    code = "from helpers import load_model"
    for folder, expected in (
        ("empty", "No module named 'helpers'"),
        ("other", "cannot import name 'load_model' from 'helpers'"),
    ):
        (tmp_path / folder).mkdir()
        if folder == "other":
            (tmp_path / folder / "helpers.py").write_text("def flatten(lists): ...\n")
        command = [sys.executable, "-S", "-c", code]  # -S: without what is installed
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        ran = subprocess.run(command, cwd=tmp_path / folder, env=env, capture_output=True, text=True)
        assert expected in ran.stderr and expected in TROUBLE


# ---- handing lessons out


def test_lessons_are_handed_out_once_and_no_work_is_overwritten(tmp_path, capsys):
    out = tool("deploy/hand_out.py")
    new = out.hand_out(ROOT, tmp_path / "course")
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} <= set(new) and "docs/glossary.md" in new
    first, second = (tmp_path / "course/notebooks" / path.name for path in NOTEBOOKS[:2])
    assert first.read_bytes() == NOTEBOOKS[0].read_bytes()
    first.write_text("my work")
    second.unlink()
    assert out.hand_out(ROOT, tmp_path / "course") == [f"notebooks/{second.name}"]
    assert first.read_text() == "my work"
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_takes_no_lessons_is_told_in_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    command = [sys.executable, str(ROOT / "deploy/hand_out.py"), str(ROOT), str(tmp_path / "taken")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert re.fullmatch(r"the lessons could not be copied to \S+taken \(.+\): see to the disk\n", ran.stderr)


# ---- ways to start


def test_colab_links_lead_to_the_lessons():
    linked = re.findall(r"colab\.research\.google\.com/github/OWNER/NAME/blob/main/(\S+?)`", TEACHING)
    assert linked == [str(path.relative_to(ROOT)) for path in NOTEBOOKS]


def commands(heading, program):
    """The indented lines below a heading that call a program, each with the lines that go on from it."""
    part = TEACHING.split(f"### {heading}\n")[1].split("\n### ")[0]
    return re.findall(rf"^ {{4,}}((?:sudo )?{program} (?:.*\\\n)*.*)$", part, re.M)


def test_what_conda_users_copy_is_what_the_others_get(tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in [*commands("Conda", "mkdir"), *commands("Conda", "cp")]:
        assert command.replace("$CONDA_PREFIX", ".venv").rpartition("/")[0] in makefile or command.startswith("mkdir")
        subprocess.run(command, shell=True, cwd=ROOT, env=os.environ | {"CONDA_PREFIX": str(tmp_path)}, check=True)
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == {"share/jupyter/lab/settings/overrides.json", "etc/ipython/ipython_config.py"}


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
def test_the_certificate_of_the_page_is_one_that_a_browser_can_be_told_to_trust(tmp_path):
    (command,) = commands("One server", "openssl")
    command = command.replace("sudo ", "").replace("/srv/course-hub", str(tmp_path)).replace("HOST", "localhost")
    subprocess.run(command, shell=True, capture_output=True, check=True)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=tmp_path / "cert.pem")
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    sent, got = ssl.MemoryBIO(), ssl.MemoryBIO()
    here, there = client.wrap_bio(got, sent, server_hostname="localhost"), server.wrap_bio(sent, got, server_side=True)
    for side in (here, there, here, there):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert here.getpeercert()["subjectAltName"] == (("DNS", "localhost"),)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_takes_the_unit_of_the_hub(tmp_path):
    text = (ROOT / "deploy/course-hub.service").read_text(encoding="utf-8")
    folder = re.search(r"^WorkingDirectory=(.*)$", text, re.M)[1]
    assert f"ExecStart={folder}/.venv/bin/python -m jupyterhub -f deploy/jupyterhub_config.py\n" in text
    here = text.replace(f"{folder}/.venv/bin/python", sys.executable).replace(folder, str(ROOT))
    for name, unit, takes in (("right", here, True), ("wrong", here.replace("KillMode", "KilMode"), False)):
        (tmp_path / f"{name}.service").write_text(unit)
        command = ["systemd-analyze", "verify", tmp_path / f"{name}.service"]
        said = subprocess.run(command, capture_output=True, text=True)
        assert (said.returncode == 0 and not said.stderr) == takes, said.stderr


def test_binders_files_are_what_repo2docker_reads():
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    assert lines[-2:] == ["-c ../constraints.txt", "-e .[lab]"]  # pip: -c from the file's folder, -e from the root
    assert (ROOT / "binder/runtime.txt").read_text().strip() == "python-3.12"
    script = ROOT / "binder/postBuild"
    assert os.access(script, os.X_OK)
    if shutil.which("sh"):
        subprocess.run(["sh", "-n", script], check=True)
    for copied in re.findall(r"cp (\S+)", script.read_text()):
        assert (ROOT / copied).is_file()


def test_the_chart_hands_out_the_lessons_of_the_image():
    values = yaml.safe_load((ROOT / "deploy/values.yaml").read_text())
    command = values["singleuser"]["lifecycleHooks"]["postStart"]["exec"]["command"]
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert "COPY . /opt/course" in image and command[2] == "/opt/course"
    assert (ROOT / Path(command[1]).relative_to("/opt/course")).is_file()
    names = values["hub"]["config"]["Authenticator"]["allowed_users"]
    assert len(set(names)) == 30
    for copied in re.findall(r"cp (\S+)", image):
        assert (ROOT / copied).is_file()


# What the chart's own schema (jupyterhub/values.schema.yaml of Zero to JupyterHub, at 02dd73df) says of the keys that we set: it
# refuses any other key beside them, and lets hub.config and the hooks hold what they like.
_NUMBER, _SIZE, _WHOLE = {"type": "number"}, {"type": ["number", "string"]}, {"type": "integer"}
CHART = {
    "hub": {"config": {"type": "object"}},
    "singleuser": {
        "defaultUrl": {"type": "string"},
        "memory": {"guarantee": _SIZE, "limit": _SIZE},
        "cpu": {"guarantee": _NUMBER, "limit": _NUMBER},
        "storage": {"capacity": {"type": "string"}},
        "startTimeout": _WHOLE,
        "lifecycleHooks": {"postStart": {"type": "object"}},
    },
    "cull": {"enabled": {"type": "boolean"}, "every": _WHOLE, "timeout": _WHOLE},
    "proxy": {"service": {"type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]}}},
}


def schema(keys):
    """A JSON schema of nested keys; a dict that says a type or an enum is one already."""
    if isinstance(keys.get("type"), str | list) or "enum" in keys:
        return keys
    inner = {key: schema(value) for key, value in keys.items()}
    return {"type": "object", "properties": inner, "additionalProperties": False}


def test_the_charts_schema_takes_our_values():
    values = yaml.safe_load((ROOT / "deploy/values.yaml").read_text())
    jsonschema.validate(values, schema(CHART))
    for wrong in ({"singleuser": {"memory": {"max": "1G"}}}, {"cull": {"every": "10m"}}, {"singleusr": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema(CHART))


# ---- how many students


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell shared memory")
def test_the_load_tool_measures_a_class_of_two():
    load = tool("tools/classroom_load.py")
    cells = [
        "from helpers import load_model\nfrom helpers.lesson1.panel import scaling_panel\nlm = load_model()",
        "scaling_panel({'pocket': lm, 'SmolLM2': lm}, 'Berlin is the capital of')",
    ]
    row = load.measure(cells, students=2, movers=1, moves=2, until=load.time.monotonic() + 100)
    cell = r"[\d.]+ / [\d.]+"
    found = re.fullmatch(rf"\| 2 \| (\d+) \| (\d+) \| ([\d.]+) \| {cell} \| {cell} \|", row)
    assert found and 100 < int(found[2]) < 1000 and 0.2 < float(found[3]) < 2


def test_the_load_tool_ends_at_its_limit():
    load = tool("tools/classroom_load.py")
    with pytest.raises(TimeoutError, match="the time is over"):
        load.measure(["while True: pass"], students=1, movers=1, moves=1, until=load.time.monotonic() + 6)
