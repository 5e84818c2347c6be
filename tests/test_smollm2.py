"""The real model: converted, right, with the same digits everywhere. tests/test_bringing.py has the days when it does not come.

What needs the model itself is skipped where it is not in the cache; `make test` brings it.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import torch
from safetensors.torch import load_file

import helpers.smollm2 as smollm2
from helpers import held_out_passages, load_model, top_k
from helpers.rows import where_rows_run_alone
from helpers.snapshot import snapshot

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


@pytest.mark.pinned
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


@pytest.mark.pinned
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
@pytest.mark.parametrize("name", ["pocket", "smollm2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_in_the_lessons_models_is_a_strangers(name, dtype):
    """Else sweeps would run each row alone and panels a whole pass at each move: right, slow, and no number would tell."""
    lm = load_model(name, dtype=dtype)
    assert not where_rows_run_alone(lm).anywhere
    assert snapshot(lm) == snapshot(lm) is not None


@needs_model
def test_the_weights_are_mapped_from_the_file_in_both_dtypes():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what is mapped")
    kept = [load_model("smollm2", threads=1), load_model("smollm2", dtype=torch.float64, threads=1)]
    listed = maps.read_text()
    for lm, folder in zip(kept, (smollm2.place(), smollm2.place(double=True)), strict=True):
        assert str(folder / "model.safetensors") in listed and lm.model.num_parameters() == 134_515_008
