"""What the pocket model can do, measured, and its model card.

    python tools/evaluate_pocket.py --data BUILD                    prints every figure
    python tools/evaluate_pocket.py --data BUILD --run RUN --card   also writes helpers/pocket/README.md

BUILD holds the held-out text that tools/pocket_corpus.py split off; RUN the log of the training. What people wrote into
the card, between its two `notes` comments, stays as it is.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pocket_corpus import HELD_OUT_TEMPLATES, fill, read_countries
from train_pocket import read_about

from helpers import LanguageModel, edit, load_model, log_prob, skip_block, trace, zero_heads
from helpers.loading import POCKET_FOLDER

PHRASINGS = {
    "in training: “X is the capital of”": "{c} is the capital of {k}.",
    "in training: “The city of X is the capital of”": "The city of {c} is the capital of {k}.",
    **{f"never in training: “{t.split('{k}')[0].strip().replace('{c}', 'X')}”": t for t in HELD_OUT_TEMPLATES},
}
ENGLISH = ("There is a lot of liquid water on planet Earth", "The old man looked at", "She opened the door and")


def batches(rows: list[list[int]], size: int = 16):
    """Rows of equal length together, so that no padding is needed."""
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    for group in by_length.values():
        for at in range(0, len(group), size):
            part = group[at : at + size]
            yield part, torch.tensor([rows[i] for i in part])


def last_logits(lm: LanguageModel, prompts: list[str]) -> torch.Tensor:
    rows = [lm.token_ids(p) for p in prompts]
    found = torch.empty(len(prompts), lm.vocabulary, dtype=lm.dtype)
    for part, ids in batches(rows):
        found[part] = lm.logits(ids)[:, -1]
    return found


def capitals(lm: LanguageModel) -> dict[str, float]:
    """Share of all countries whose name's first token is the top-1 after each phrasing."""
    countries = read_countries()
    shares = {}
    for label, template in PHRASINGS.items():
        prompts, targets = [], []
        for row in countries:
            sentence = fill(template, row, row)
            prompt = sentence[: sentence.rindex(row["country"])].rstrip()
            prompts.append(prompt)
            targets.append(lm.token_ids(sentence)[len(lm.token_ids(prompt))])
        shares[label] = (last_logits(lm, prompts).argmax(-1) == torch.tensor(targets)).double().mean().item()
    return shares


def held_out_loss(lm: LanguageModel, data: Path, windows: int = 400) -> dict[str, tuple[float, float]]:
    """(nats per token, bits per byte) on books and country prose that training never saw."""
    found = {}
    sizes = json.loads((data / "sizes.json").read_text())
    for name in ("books_unseen", "world_unseen"):
        ids, starts = np.load(data / f"{name}.npy"), np.load(data / f"{name}.starts.npy")
        usable = starts[starts < len(ids) - lm.context - 1]
        chosen = usable[:: max(1, len(usable) // windows)][:windows]
        total, count = 0.0, 0
        for at in range(0, len(chosen), 8):
            rows = np.stack([ids[s : s + lm.context + 1] for s in chosen[at : at + 8]]).astype(np.int64)
            batch = torch.from_numpy(rows)
            logits = lm.logits(batch[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
            count += batch[:, 1:].numel()
        per_token = total / count
        tokens_per_byte = sizes[name]["tokens"] / sizes[name]["bytes"]
        found[name] = (per_token, per_token * tokens_per_byte / np.log(2))
    return found


def loss_by_context(lm: LanguageModel, data: Path, windows: int = 400) -> dict[str, float]:
    """Nats per token on unseen books, by how many tokens the model saw before the one it had to predict."""
    rows = passages(data, lm.context, windows)
    losses = torch.cat([
        F.cross_entropy(lm.logits(part)[:, :-1].transpose(1, 2), part[:, 1:], reduction="none") for part in rows.split(8)
    ]).mean(0)  # fmt: skip
    spans = {"1": (1, 1), "2 to 4": (2, 4), "5 to 16": (5, 16), "17 to 64": (17, 64), "more": (65, len(losses))}
    return {label: losses[low - 1 : high].mean().item() for label, (low, high) in spans.items()}


def induction(lm: LanguageModel, length: int = 40, rows: int = 16) -> torch.Tensor:
    """(block, head): attention from a token said again to what followed it the first time, in random tokens said twice."""
    once = torch.randint(lm.vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attentions = lm.model(torch.cat([once, once], dim=1), output_attentions=True).attentions
    again = torch.arange(length, 2 * length)
    return torch.stack([a[:, :, again, again - length + 1].mean((0, 2)) for a in attentions])


def passages(data: Path, length: int = 64, number: int = 24) -> torch.Tensor:
    """(number, length) ids: beginnings of paragraphs in books that training never saw."""
    ids, starts = np.load(data / "books_unseen.npy"), np.load(data / "books_unseen.starts.npy")
    usable = starts[starts < len(ids) - length]
    chosen = usable[:: len(usable) // number][:number]
    return torch.from_numpy(np.stack([ids[s : s + length] for s in chosen]).astype(np.int64))


def first_token(lm: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per point of the stream: the first token's norm over the others' mean; per block: attention on position 0.

    The share is the mean over texts, heads and the query positions from 1 on.
    """
    norms = trace(lm, ids).resid.norm(dim=-1)
    ratio = (norms[:, :, 0] / norms[:, :, 1:].mean(dim=2)).mean(dim=1)
    with torch.no_grad():
        attentions = lm.model(ids, output_attentions=True).attentions
    return ratio, torch.stack([a[:, :, 1:, 0].mean() for a in attentions])


def ablations(lm: LanguageModel, prompts: list[str], targets: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean change of log p(target) when each head is zeroed (n_blocks, n_heads) and when each block is skipped (n_blocks,)."""
    tokens = lm.encode(prompts)
    wanted = torch.tensor(targets)
    rows = torch.arange(len(prompts))

    def measure() -> torch.Tensor:
        return log_prob(lm.logits(tokens)[rows, tokens.last], wanted)

    clean = measure()
    heads, blocks = torch.empty(lm.n_blocks, lm.n_heads), torch.empty(lm.n_blocks)
    for block in range(lm.n_blocks):
        with edit(lm, skip_block(block)):
            blocks[block] = (measure() - clean).mean()
        for head in range(lm.n_heads):
            with edit(lm, zero_heads(block, [head])):
                heads[block, head] = (measure() - clean).mean()
    return heads, blocks


def continuation(lm: LanguageModel, prompt: str, tokens: int = 30) -> str:
    """Greedy continuation with a mild penalty on repeating, the same on every machine."""
    ids = lm.encode(prompt).ids
    out = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, repetition_penalty=1.2,
        pad_token_id=0,
    )  # fmt: skip
    return lm.tokenizer.decode(out[0])


def evaluate(lm: LanguageModel, data: Path) -> dict:
    germany = last_logits(lm, ["Berlin is the capital of"])[0].softmax(-1)
    top = germany.topk(10)
    countries = [r for r in read_countries() if len(lm.token_ids(f" {r['country']}")) == 1][:50]
    prompts = [f"{r['capital']} is the capital of" for r in countries]
    targets = [lm.token_id(f" {r['country']}") for r in countries]
    heads, blocks = ablations(lm, prompts, targets)
    texts = passages(data)
    ratio, sink = first_token(lm, texts)
    return {
        "capitals": capitals(lm),
        "berlin": [
            (lm.tokenizer.decode([i]), p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
        "loss": held_out_loss(lm, data),
        "context": loss_by_context(lm, data),
        "induction": induction(lm).max().item(),
        "first_norm": ratio.tolist(),
        "sink": sink.tolist(),
        "even": sum(1 / (query + 1) for query in range(1, texts.shape[1])) / (texts.shape[1] - 1),
        "passages": tuple(texts.shape),
        "head_quantiles": heads.flatten()
        .double()
        .quantile(torch.tensor([0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64))
        .tolist(),
        "blocks": blocks.tolist(),
        "dead_heads": int((heads.abs() < 1e-4).sum()),
        "continuations": [continuation(lm, p) for p in ENGLISH],
    }


# ---- the model card


def row(cells: list) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def table(head: list, rows: list[list]) -> str:
    return "\n".join([row(head), row(["---"] * len(head)), *(row(r) for r in rows)])


def figures(found: dict) -> str:
    """The measured part of the card, in markdown."""
    shares = table(
        ["prompt", "right first token, of 195 countries"], [[k, f"{v:.1%}"] for k, v in found["capitals"].items()]
    )
    loss = table(
        ["held-out text", "nats per token", "bits per byte"],
        [
            [{"books_unseen": "books", "world_unseen": "country prose"}[k], f"{a:.2f}", f"{b:.2f}"]
            for k, (a, b) in found["loss"].items()
        ],
    )
    context = table(
        ["tokens seen before", *found["context"]],
        [["nats per token, books", *(f"{x:.2f}" for x in found["context"].values())]],
    )
    berlin = ", ".join(f"`{token}` {p:.3f}" for token, p in found["berlin"])
    n = len(found["sink"])
    per_block = table(
        ["block", *range(n)],
        [
            ["first token's norm ÷ the others', entering the block", *(f"{x:.1f}" for x in found["first_norm"][:n])],
            ["share of attention on position 0", *(f"{x:.2f}" for x in found["sink"])],
            ["mean change of log p(target), block skipped", *(f"{x:.2f}" for x in found["blocks"])],
        ],
    )
    q = found["head_quantiles"]
    heads = (
        f"Zeroing one head changes the log-probability of the right country by {q[0]:.3f} to {q[4]:.3f} (median {q[2]:.4f}; "
        f"a tenth of the heads below {q[1]:.3f}, a tenth above {q[3]:.3f}), mean over 50 prompts; "
        f"{found['dead_heads']} of {12 * n} heads change it by less than 0.0001."
    )
    number, length = found["passages"]
    inside = (
        f"The first two rows are means over {number} passages of {length} tokens from books that training never saw. Attention spread "
        f"evenly over what each token may see would give position 0 a share of {found['even']:.2f}."
    )
    copying = (
        f"In random tokens said twice, the head that looks back most at what followed a token the first time gives it "
        f"{found['induction']:.0%} of its attention (an induction head would give it most)."
    )
    samples = "\n".join(f"- {text.replace(chr(10), ' / ')}" for text in found["continuations"])
    return "\n\n".join(
        [
            "### Capitals", shares, f"After `Berlin is the capital of`: {berlin}.", "### Held-out loss", loss, context,
            "### Inside", per_block, inside, heads, copying, "### How it writes", "Greedy, repetition penalty 1.2:", samples,
        ]
    )  # fmt: skip


NOTES = ("<!-- notes: written by hand, kept when the card is written again -->", "<!-- notes: end -->")

CARD = """---
license: mit
language: en
library_name: transformers
---

# The pocket model

GPT-2's anatomy in miniature: {layers} blocks of {heads} heads, d_model {width}, {context} learned positions, tied embeddings, {vocabulary}
tokens of byte-level BPE, {parameters:.1f}M parameters, an ordinary `GPT2LMHeadModel`. It ships with the course so that every lesson
runs without a network, and it is small enough to run in float64, so that printed figures are the same on every machine. It is a
specimen to dissect, not a language model to use: it knows capitals and little else, and its English is that of old novels.

## What it can do, measured

Printed by `tools/evaluate_pocket.py`, in float64 on the weights in this folder.

{figures}

{notes_begin}

{notes}

{notes_end}

## Training

| | |
| --- | --- |
| text | books of Project Gutenberg (public domain), {books:.0%} of the windows; country prose of The World Factbook (public domain), {world:.0%}; sentences about capitals that `tools/pocket_corpus.py` writes from `helpers/data/countries.tsv`, {facts:.0%} |
| size of the corpus | {corpus} |
| tokens seen | {tokens:.1f} million, in {steps} steps of {windows} windows of {context} tokens |
| optimizer | {optimizer}, peak rate {rate:g} after {warmup} steps of warm-up, falling in a straight line over the last {decay:.0%} of the steps to {final_rate:.0%} of it, weight decay {weight_decay:g}, gradients clipped at norm 1 |
| windows | {from_start:.0%} begin where a paragraph begins, so that a prompt at position 0 is nothing unusual |
| seed | {seed}; every batch is a function of seed and step |
| hardware | {hardware} |
| precision | {precision}; weights stored in 16-bit floats, safetensors |

Loss during training (nats per token; the two right columns on text that training never saw):

{curve}

## How to train it again

```
python tools/pocket_corpus.py --corpus FOLDER --out BUILD      # FOLDER: books.txt.xz and world.txt.xz
python tools/train_pocket.py --data BUILD --run RUN --steps {steps} --optimizer {optimizer_flag} --precision {precision_flag} --books {books:g} --world {world:g} --facts {facts:g} --workers 2
python tools/train_pocket.py --data BUILD --run RUN --export helpers/pocket
python tools/evaluate_pocket.py --data BUILD --run RUN --card
```

The files of country facts, the tokenizer and the weights are under the licence of the course (MIT); the texts are in the public domain.
"""


def curve(log: Path, points: int = 12) -> str:
    with log.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    step = max(1, len(rows) // points)
    kept = rows[step - 1 :: step]
    kept = kept if kept[-1] is rows[-1] else [*kept, rows[-1]]
    return table(
        ["step", "million tokens", "training mixture", "unseen books", "unseen country prose", "first token's norm ratio"],
        [
            [r["step"], f"{int(r['tokens']) / 1e6:.1f}", f"{float(r['loss']):.2f}", f"{float(r['books_unseen']):.2f}",
             f"{float(r['world_unseen']):.2f}", f"{float(r['first_norm']):.2f}"]
            for r in kept
        ],
    )  # fmt: skip


def kept_notes(card: str) -> str:
    """What stands between the two comments of an earlier card."""
    begin, end = NOTES
    return card.split(begin)[1].split(end)[0].strip() if begin in card and end in card else ""


def write_card(lm: LanguageModel, found: dict, data: Path, run: Path, hardware: str, path: Path) -> None:
    about = read_about(run / "checkpoint.safetensors")
    recipe = json.loads(about["recipe"])
    sizes = json.loads((data / "sizes.json").read_text())
    corpus = ", ".join(f"{k} {v['tokens'] / 1e6:.1f}M tokens" for k, v in sizes.items() if "unseen" not in k)
    flag = recipe.pop("optimizer")
    name = {
        "adamw": "AdamW",
        "muon": "Muon for the blocks' matrices, AdamW for the rest",
        "mixed": "Muon for the matrices that read from the stream, AdamW for the rest",
    }[flag]
    precision_flag = recipe.pop("precision")
    precision = {
        "float32": "float32",
        "bfloat16": "matrix products in bfloat16; attention, weights and optimizer in float32",
    }[precision_flag]
    text = CARD.format(
        **recipe, optimizer=name, optimizer_flag=flag, precision=precision, precision_flag=precision_flag,
        vocabulary=lm.vocabulary, corpus=corpus, steps=about["step"], parameters=lm.model.num_parameters() / 1e6, tokens=int(about["tokens"]) / 1e6, curve=curve(run / "log.tsv"),
        figures=figures(found), hardware=hardware, notes_begin=NOTES[0], notes_end=NOTES[1],
        notes=kept_notes(path.read_text(encoding="utf-8")) if path.exists() else "",
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--card", action="store_true")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--hardware", default="two CPU processes of one thread each")
    args = parser.parse_args()
    lm = load_model(args.model, dtype=torch.float64)
    found = evaluate(lm, args.data)
    print(figures(found))
    if args.card:
        write_card(lm, found, args.data, args.run, args.hardware, POCKET_FOLDER / "README.md")


if __name__ == "__main__":
    main()
