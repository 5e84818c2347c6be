"""The hub of deploy/, started on loopback: two students log in through its page, and a killed hub comes back.

It makes Unix accounts, so it runs as root in a mount and process namespace of its own: the accounts stand in a copy of /etc, and
all processes end with the namespace. Needs Linux, root, chromium, Node.js with `npm ci --prefix deploy`, and the extra `hub`.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from chromium import CHROMIUM, FLAGS

from helpers import smollm2

ROOT = Path(__file__).resolve().parent.parent
CONFIG, PROXY = ROOT / "deploy/jupyterhub_config.py", ROOT / "deploy/node_modules/.bin/configurable-http-proxy"
LESSON = "01_downstream_scaling.ipynb"
STUDENTS = {"ada": "a password of ada", "ben": "a password of ben"}
# Without this nothing outside the page can run a chosen cell. For the test only.
MORE = """
load_subconfig({config!r})
c.Spawner.args = [*c.Spawner.args, "--LabApp.expose_app_in_browser=True"]
"""
# Process 1 of the namespace: starts the hub, kills and starts it again for each line that comes in, and ends at the last.
KEEPER = """
import os, signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody else takes orphans away here
def start():
    with open(os.environ["LOG"], "a") as log:
        return subprocess.Popen(sys.argv[1:], cwd=os.environ["BASE"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))
hub = start()
for line in sys.stdin:
    hub.kill()
    hub.wait()
    hub = start()
"""


def missing():
    """What the test cannot do without, as one sentence, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the hub gives each student a Unix account: its test needs Linux, and root"
    if any(find_spec(name) is None for name in ("jupyterhub", "firstuseauthenticator", "jupyterhub_idle_culler")):
        return "the hub is not installed: pip install -c constraints.txt -e '.[hub]'"
    if not PROXY.exists():
        return "the hub's proxy is not installed: npm ci --prefix deploy"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "this container does not let its root make namespaces, in which the hub is tried"
    return None


WHY = missing()
if WHY and not (os.environ.get("CI") and "installed" in WHY):
    pytestmark = pytest.mark.skip(reason=WHY)


def show_to_all(base):
    """Shell lines for the namespace: the course and its Python can be read by students even if they lie in root's home."""
    parts = ("helpers", "deploy", "notebooks", "docs", "README.md")
    needed = [Path(sys.base_prefix), Path(sys.prefix), *(ROOT / part for part in parts)]
    blocked = {}
    for path in needed:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & 0o001:
                blocked.setdefault(parent, []).append(path)
                break
    text = ""
    for number, (parent, paths) in enumerate(blocked.items()):
        kept = [(path, f"{base}/kept{number}-{index}") for index, path in enumerate(paths)]
        for path, place in kept:
            text += f"{'mkdir' if path.is_dir() else 'touch'} {place}; mount --bind {path} {place}\n"
        text += f"mount -t tmpfs -o mode=755 none {parent}\n"
        for path, place in kept:
            make = f"mkdir -p {path}" if path.is_dir() else f"mkdir -p {path.parent}; touch {path}"
            text += f"{make}; mount --move {place} {path}\n"
    return text


def three_ports():
    for _ in range(50):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", port + 1))
            two.bind(("127.0.0.1", port + 2))
            return port
    pytest.fail("no three free ports in a row")


class Hub:
    def __init__(self, base):
        self.base, self.log = base, base / "hub.log"
        self.folder = base / "hub"
        self.folder.mkdir()
        (self.folder / "names.txt").write_text("# a class\nada\nben\n")
        port = three_ports()
        self.url = f"http://127.0.0.1:{port}"
        config = base / "config.py"
        config.write_text(MORE.format(config=str(CONFIG)))
        shutil.copytree("/etc", base / "etc", symlinks=True, ignore_dangling_symlinks=True)
        (self.folder / "models").mkdir()
        steps = f"set -e\nmount --bind {base}/etc /etc\n"
        if smollm2.is_here():
            steps += f"mount --bind {smollm2.cache_folder()} {self.folder}/models\n"
        (base / "keeper.py").write_text(KEEPER)
        (base / "steps.sh").write_text(steps + show_to_all(base) + 'exec "$@"\n')
        env = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "CAUSAL"))}
        env |= {"COURSE_HUB_FOLDER": str(self.folder), "COURSE_HUB_ADDRESS": self.url}
        env |= {"BASE": str(base), "LOG": str(self.log), "PYTHONPATH": str(ROOT)}
        apart = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
        ]
        self.process = subprocess.Popen(
            [*apart, base / "steps.sh", sys.executable, base / "keeper.py", sys.executable, "-m", "jupyterhub", "-f", config],
            env=env, stdin=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self):
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/hub/login", timeout=5).close()
                return
            assert self.process.poll() is None, self.said()
            time.sleep(0.2)
        pytest.fail(self.said())

    def kill_and_start_again(self):
        known = self.said().count("JupyterHub is now running")
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        for _ in range(300):
            if self.said().count("JupyterHub is now running") > known:
                return self.wait()
            time.sleep(0.2)
        pytest.fail(self.said())

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def hub():
    if WHY:
        pytest.fail(WHY)
    base = Path(tempfile.mkdtemp(prefix="course-hub-", dir="/var/tmp"))  # pytest's own folders are closed to others
    base.chmod(0o755)
    hub = Hub(base)
    try:
        hub.wait()
        yield hub
    finally:
        hub.end()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    playwright_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        message = "the hub's pages need chromium (on Debian: apt install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def log_in(browser, hub, name, password):
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{hub.url}/hub/login")
    page.fill("#username_input", name)
    page.fill("#password_input", password)
    page.click("#login_submit")
    return page


def ready(page):
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("#jp-main-statusbar >> text=/Python 3.* Idle/")


def run_cell(page, index):
    """Run one cell of the open notebook; returns its text outputs and the names of its errors."""
    return page.evaluate(
        """async index => {
            const notebook = jupyterapp.shell.currentWidget.content;
            notebook.activeCellIndex = index;
            notebook.deselectAll();
            await jupyterapp.commands.execute('notebook:run-cell');
            const texts = notebook.model.sharedModel.cells[index].toJSON().outputs.map(
                o => o.ename ?? o.text ?? o.data['text/plain']);
            return texts.map(t => Array.isArray(t) ? t.join('') : t).join('');
        }""",
        index,
    )


def run_code(page, source):
    """Put a cell in front of the open notebook and run it."""
    page.evaluate(
        """source => jupyterapp.shell.currentWidget.content.model.sharedModel.insertCell(
            0, {cell_type: 'code', source, metadata: {}, outputs: []})""",
        source,
    )
    return run_cell(page, 0)


SLOW = """
import time
panel, seen = [value for value in Out.values() if type(value).__name__ == "Panel"][-1], []
def slow(replay, plain=panel._compute, **asked):
    seen.append(asked["block"])
    time.sleep(1.5)
    return plain(replay, **asked)
panel._compute = slow
"""
BY_BEN = """
import os, helpers
def tried(what, *arguments):
    try:
        return what(*arguments) and 'went through'
    except BaseException as error:
        return type(error).__name__
print(tried(os.listdir, {homes!r} + '/ada'), tried(os.listdir, {homes!r}), tried(open, helpers.__file__, 'a'),
      tried(open, {homes!r} + '/../hub/hub.sqlite'), tried(bytearray, 4 * 2**30), os.getuid() == os.stat('.').st_uid != 0)
"""


@pytest.mark.skipif(not smollm2.is_here(), reason="the real model is not in the cache: make real brings it")
def test_two_students_and_a_hub_that_is_killed(hub, browser, note):
    cells = [cell.id for cell in nbformat.read(ROOT / "notebooks" / LESSON, as_version=4).cells]
    began = time.monotonic()
    ada = log_in(browser, hub, "ada", STUDENTS["ada"])
    ready(ada)
    note(f"from the login to the open lesson: {time.monotonic() - began:.1f} s")
    assert ada.url.startswith(f"{hub.url}/user/ada/lab/tree/course/notebooks/{LESSON}")
    assert ada.get_by_text("Would you like to get notified about official Jupyter news?").count() == 0

    for cell in ("l1-setup", "l1-opening"):
        assert "Error" not in run_cell(ada, cells.index(cell))
    assert "Scale a block: ' Germany' goes from 0.94 to 0.008" in run_cell(ada, cells.index("l1-panel"))
    line = ada.locator(".widget-vbox [role=status]").first
    before = line.inner_text()
    handle = ada.locator(".widget-vbox .noUi-handle[role=slider]").first
    handle.focus()
    ada.keyboard.press("ArrowRight")
    ada.wait_for_function(
        "known => document.querySelector('.widget-vbox [role=status]').innerText !== known", arg=before
    )
    assert "after block 3, " in line.inner_text()

    # Quick steps while the kernel computes: the newest position is computed, and no stale one waits in a queue.
    run_code(ada, SLOW)
    handle.focus()
    for _ in range(8):
        ada.keyboard.press("ArrowRight")
    ada.locator(".widget-vbox [role=status]", has_text="after block 11, ").first.wait_for()
    seen = [int(block) for block in run_code(ada, "print(*seen)").split()]
    assert seen[0] == 4 and seen[-1] == 11 and len(seen) <= 4, seen

    ben = log_in(browser, hub, "ben", STUDENTS["ben"])
    ready(ben)
    said = run_code(ben, BY_BEN.format(homes=str(hub.folder / "homes")))
    assert said.split() == ["PermissionError"] * 4 + ["MemoryError", "True"], said
    assert ben.evaluate("async url => (await fetch(url)).status", f"{hub.url}/user/ada/api/contents/course") == 403

    for name, password in (("ada", STUDENTS["ben"]), ("eve", "a password of eve")):
        page = log_in(browser, hub, name, password)
        assert page.locator(".login_error").inner_text().strip() == "Invalid username or password"
        assert "becomes yours: 8 characters or more" in page.locator(".announcement").inner_text()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{hub.url}/user/ada/api/contents", timeout=10)
    assert refused.value.code == 403

    hub.kill_and_start_again()
    for page in (ada, ben):
        page.reload()
        ready(page)
    assert run_code(ada, "print(lm.n_blocks, real.n_blocks)").strip() == "12 30"  # what ran before still stands
    assert run_code(ben, "print(helpers.__name__)").strip() == "helpers"


UNSAFE = [  # names.txt, the address, and what the hub says instead of starting
    ("", "http://127.0.0.1:18000", r"write who may log in into \S+names.txt, one name a line"),
    ("../root", "http://127.0.0.1:18000", "'../root' is no name for a login"),
    ("ada", "http://0.0.0.0:18000", "passwords must not cross a network in the clear"),
    ("ada", "https://127.0.0.1:18000", "needs cert.pem and key.pem"),
    ("ada", "http://127.0.0.1", "with its port"),
]
READ = """
import os, runpy, sys
from pathlib import Path
from traitlets.config import Config
for names, address in {cases!r}:
    Path(os.environ["COURSE_HUB_FOLDER"], "names.txt").write_text(names)
    os.environ["COURSE_HUB_ADDRESS"] = address
    try:
        runpy.run_path({config!r}, {{"get_config": Config}})
        print("it starts")
    except SystemExit as sentence:
        print(sentence)
"""


def test_a_hub_that_would_be_unsafe_does_not_start(tmp_path):
    if WHY:
        pytest.fail(WHY)
    code = READ.format(cases=[case[:2] for case in UNSAFE], config=str(CONFIG))
    env = os.environ | {"COURSE_HUB_FOLDER": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    said = ran.stdout.splitlines()
    assert len(said) == len(UNSAFE), ran.stderr
    for sentence, (_, _, expected) in zip(said, UNSAFE, strict=True):
        assert re.search(expected, sentence)
