"""The exported model is the package's: the same prompts and edits, run by onnxruntime and by helpers.

`make page` builds dist/model.onnx; without it the tests skip, except in CI, where they fail.
"""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from helpers import (
    add_to_block,
    attention_patterns,
    capital_prompts,
    edit,
    held_out_passages,
    load_model,
    patch_block,
    scale_attention,
    scale_block,
    scale_mlp,
    skip_attention,
    skip_block,
    skip_mlp,
    trace,
    zero_heads,
    zero_keys,
)  # fmt: skip

onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "dist" / "model.onnx"
CLOSE = 0.003  # nats
INPUTS = ("block", "attention", "mlp", "heads", "keys", "add")
OUTPUTS = ("logits", "resid", "attention_delta", "mlp_delta", "patterns")
PROMPTS = [
    "Berlin is the capital of",
    "There is a lot of liquid water on planet Earth",
    "The",
    "The old man looked at her, and said: “I am",
    "Paris is the capital of France. Hanoi is the capital of",
    "🙂 naïve – 42\n",
]


def needs(path: Path) -> None:
    if not path.exists():
        message = f"this test needs {path.relative_to(ROOT)}: run make page"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="module")
def lm():
    return load_model()


@pytest.fixture(scope="module")
def session():
    needs(MODEL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def neutral(lm, batch, length):
    """The inputs of a pass that changes nothing, as the module's docstring lists them."""
    per_block, per_head = (batch, lm.n_blocks, length), (batch, lm.n_blocks, lm.n_heads, length)
    return {
        **{name: torch.ones(per_block) for name in ("block", "attention", "mlp")},
        **{name: torch.ones(per_head) for name in ("heads", "keys")},
        "add": torch.zeros(*per_block, lm.d_model),
    }


def run(session, ids, inputs):
    feeds = {"ids": ids.numpy(), **{name: value.numpy() for name, value in inputs.items()}}
    return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, session.run(OUTPUTS, feeds), strict=True)}


def draw_edits(lm, rng, inputs, row, length):
    """Some random edits, as the package's and written into one row of the inputs. At most one patch, before any scale."""
    edits = []
    for block in sorted(rng.sample(range(lm.n_blocks), rng.randint(1, 4))):
        chosen = sorted(rng.sample(range(length), rng.randint(1, length)))
        where, at = (None, slice(None)) if rng.random() < 0.5 else (chosen, chosen)
        factor = rng.choice([0.0, 0.1, 0.5, 1.5, 2.0, 3.0])
        heads = sorted(rng.sample(range(lm.n_heads), rng.randint(1, 4)))
        kind = rng.randrange(10)
        if kind in (0, 1):
            edits.append((scale_attention, scale_mlp)[kind](block, factor, where))
            inputs[("attention", "mlp")[kind]][row, block, at] *= factor
        elif kind in (2, 3):
            edits.append((zero_heads, zero_keys)[kind - 2](block, heads, where))
            rows = inputs[("heads", "keys")[kind - 2]][row, block]
            for head in heads:
                rows[head, at] = 0
        elif kind in (4, 5, 6):
            edits.append((skip_block, skip_attention, skip_mlp)[kind - 4](block, where))
            for name in (("attention", "mlp"), ("attention",), ("mlp",))[kind - 4]:
                inputs[name][row, block, at] = 0
            if rng.random() < 0.5:
                edits.append(scale_block(block, factor, where))
                inputs["block"][row, block, at] *= factor
        elif kind == 7:
            edits.append(scale_block(block, factor, where))
            inputs["block"][row, block, at] *= factor
        else:
            value = torch.randn(length, lm.d_model, generator=torch.Generator().manual_seed(rng.randrange(10**6)))
            inputs["add"][row, block, at] = value[at]
            if kind == 8:
                edits.append(add_to_block(block, value, where))
            else:
                edits.append(patch_block(block, value, where))
                inputs["block"][row, block, at] = 0
    return edits


@pytest.mark.parametrize("prompt", PROMPTS)
def test_random_edits_give_the_packages_numbers(lm, session, prompt, note):
    """6 × 36 = 216 sets of edits, several of them side by side in one batch."""
    rng = random.Random(prompt)
    ids = lm.encode(prompt).ids
    length, worst = ids.shape[1], 0.0
    for _ in range(12):
        inputs = neutral(lm, 3, length)
        each = [draw_edits(lm, rng, inputs, row, length) for row in range(3)]
        found = run(session, ids.repeat(3, 1), inputs)
        for row, edits in enumerate(each):
            with edit(lm, *edits):
                expected = trace(lm, ids)
                patterns = attention_patterns(lm, ids)[:, 0]
            logp = expected.logits[0, -1].log_softmax(-1)
            difference = (found["logits"][row].double().log_softmax(-1) - logp).abs().max().item()
            worst = max(worst, difference)
            assert difference < CLOSE, edits
            scale = expected.resid.abs().max().item()
            # Of a skipped block the package shows the parts that it throws away; here they are the zeros that are added.
            skipped = any(one.name.startswith("skip_block") for one in edits)
            sites = {"resid": expected.resid, "attention_delta": expected.attn, "mlp_delta": expected.mlp}
            for name, values in list(sites.items())[: 1 if skipped else 3]:
                assert (found[name][row] - values[:, 0]).abs().max() < 1e-4 * scale, (name, edits)
            assert (found["patterns"][row] - patterns).abs().max() < 1e-3, edits
    note(f"exported model, {prompt!r}: log-probabilities at most {worst:.1e} nats from the package's, 36 sets of edits")


def test_an_edit_is_not_lost(lm, session):
    """Each input by itself changes the prediction: none was left out of the graph, or joined with another."""
    ids = lm.encode(PROMPTS[0]).ids
    clean = run(session, ids, neutral(lm, 1, ids.shape[1]))["logits"]
    seen = []
    for name in INPUTS:
        inputs = neutral(lm, 1, ids.shape[1])
        inputs[name][0, 8, ..., -1] += 1  # not all coordinates of `add`: a LayerNorm takes out their mean
        changed = run(session, ids, inputs)["logits"]
        assert (changed - clean).abs().max() > 1e-3, name
        seen.append(changed)
    for i, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-3 for other in seen[:i]), INPUTS[i]


def test_the_page_reads_text_as_the_package_does(lm):
    """The page's tokenizer is the npm package of the same name: compared on 1,500 texts and more."""
    needs(ROOT / "page" / "node_modules" / ".installed")
    rng = random.Random(0)
    texts = [*PROMPTS, "", " ", "  two", "<|endoftext|>", "a<|endoftext|>b", "\r\n\t", "don't we'll I'M", "x" * 300]
    texts += [fact.prompt + fact.target for fact in capital_prompts(lm)]
    texts += [line for passage in held_out_passages() for line in passage.splitlines()]
    alphabet = [
        *"aZ9 .,'\n\t-_", "ß", "é", "e\u0301", "Đ", "ữ", "日", "本", "ا", "ש", "🙂", "👩‍🚀", "\u00a0", "\u200b", "½", "٣",
    ]  # fmt: skip
    while len(texts) < 1500:
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))))
    command = [shutil.which("node"), "page/test/tokenize.mjs"]
    answer = subprocess.run(command, cwd=ROOT, input=json.dumps(texts), capture_output=True, text=True, check=True)
    for text, ids in zip(texts, json.loads(answer.stdout), strict=True):
        assert ids == lm.tokenizer(text, verbose=False)["input_ids"], text
