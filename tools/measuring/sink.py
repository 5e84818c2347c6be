"""The first token: how long it is, who writes it, who looks at it, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import LanguageModel, attention_patterns, edit, skip_attention, skip_mlp, trace
from measuring.blocks import WINDOW, damage
from measuring.files import Table, small, write
from measuring.job import Job

VARIED = [
    "There is a lot of liquid water on planet Earth",
    "Hello, my name is Anna and I live in a small town near the sea",
    "Berlin is a large city with many parks, museums and lakes",
    "When the rain had stopped, the children ran out into the garden",
    "What is the difference between a river and a canal?",
    "He opened the letter slowly, read it twice, and put it into the fire",
    "In the year 1848 there were many changes in the countries of Europe",
    "The price of bread has risen by a tenth since last winter",
    "the the the the the the the the the the the the",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
    "Take two eggs, a cup of milk and some flour, and stir well",
    "\"I will not go,\" said the old man, and he sat down again",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "Dear Sir, I have received your letter of the third of May",
    "Mountains are higher than hills, and seas are deeper than lakes",
    "Once upon a time there was a king who had three daughters",
    "No, she did not know where the key of the house was",
    "After the war the two countries agreed to a treaty of peace",
    "Gold is a metal that does not rust, and so it has been used for coins",
    "A. B. C. D. E. F. G. H.",
    "My brother plays the piano every evening, but I never learned it",
    "Ships carried tea, silk and spices from the east to the harbours of the west",
    "? ! . , ; : ? ! . , ; :",
    "We walked along the road until we came to a bridge over the river",
]  # fmt: skip


def sink_run(lm: LanguageModel, prompt: str) -> dict[str, Tensor]:
    """How long the first token is, who writes it, and how much later tokens look at it."""
    run, patterns = trace(lm, prompt), attention_patterns(lm, prompt)[:, 0]
    lengths = run.resid[:, 0].norm(dim=-1)  # (points, pos)
    first, others = lengths[:, 0], lengths[:, 1:]
    vector = run.resid[:, 0, 0]
    peak = int(vector[int(first.argmax())].abs().argmax())  # the coordinate that is largest where the token is longest
    return {
        "length": first,
        "others": others.median(dim=1).values,
        "longest other": others.max(dim=1).values,
        "largest": vector.abs().max(dim=1).values,
        "coordinate": vector.abs().argmax(dim=1).int(),
        "peak": torch.tensor(peak, dtype=torch.int32),
        "share": patterns[:, :, 1:, 0].mean(-1),  # (block, head)
        "even": (1 / torch.arange(2, lengths.shape[1] + 1)).mean(),
        "attention adds": run.attn[:, 0, 0].norm(dim=-1),
        "mlp adds": run.mlp[:, 0, 0].norm(dim=-1),
        "attention at peak": run.attn[:, 0, 0, peak],
        "mlp at peak": run.mlp[:, 0, 0, peak],
    }


def measure_sink(job: Job, folder: Path) -> None:
    lm, steps = job.lm, job.steps

    def runs() -> dict[str, Tensor]:
        found = [sink_run(lm, prompt) for prompt in VARIED]
        return {key: torch.stack([one[key] for one in found]) for key in found[0]}

    clean = steps("sink", VARIED, runs)
    writer = int(clean["mlp at peak"].mean(0).abs().argmax())

    def without() -> dict[str, Tensor]:
        with edit(lm, skip_mlp(writer, positions=0)):
            return runs()

    skipped = steps("sink without writer", [VARIED, writer], without)
    text = job.texts(WINDOW, 10**6)
    pushes = clean["mlp at peak"].mean(0) * clean["mlp at peak"].mean(0)[writer].sign()
    erasers = [int(b) for b in pushes.sort().indices[:2]]
    edits = {
        f"MLP {writer} skipped at all tokens": skip_mlp(writer),
        f"MLP {writer} skipped at the first token": skip_mlp(writer, positions=0),
        f"MLP {writer} skipped at the others": skip_mlp(writer, positions=slice(1, None)),
        f"attention {writer} skipped at all tokens": skip_attention(writer),
    }
    for eraser in sorted(erasers):
        edits[f"MLP {eraser} skipped at the first token"] = skip_mlp(eraser, positions=0)
        edits[f"MLP {eraser} skipped at the others"] = skip_mlp(eraser, positions=slice(1, None))
    hurt = steps.one("sink text", [text.tolist(), list(edits)], damage, lm, text, list(edits.values()))
    numbers: Table = {
        "first token's length": (clean["length"].float(), ["prompt", "point"], "in the stream's unit"),
        "others' length": (clean["others"].float(), ["prompt", "point"], "median of the other tokens"),
        "longest other": (clean["longest other"].float(), ["prompt", "point"], "length of the longest other token"),
        "largest coordinate": (clean["largest"].float(), ["prompt", "point"], "of the first token, absolute value"),
        "coordinate": (clean["coordinate"], ["prompt", "point"], "number of that coordinate"),
        "peak": (clean["peak"], ["prompt"], "number of the largest coordinate where the first token is longest"),
        "attention to first": (
            small(clean["share"]),
            ["prompt", "block", "head"],
            "share that later tokens give to the first, mean over them",
        ),
        "even attention": (clean["even"].float(), ["prompt"], "that share if attention were spread evenly"),
        "attention adds": (clean["attention adds"].float(), ["prompt", "block"], "length added to the first token"),
        "MLP adds": (clean["mlp adds"].float(), ["prompt", "block"], "length that the MLP adds to the first token"),
        "attention at peak": (clean["attention at peak"].float(), ["prompt", "block"], "added to the peak coordinate"),
        "MLP at peak": (clean["mlp at peak"].float(), ["prompt", "block"], "what the MLP adds to the peak coordinate"),
        "first token's length without writer": (
            skipped["length"].float(),
            ["prompt", "point"],
            "with the writer's MLP skipped at the first token",
        ),
        "attention to first without writer": (
            small(skipped["share"]),
            ["prompt", "block", "head"],
            "the same, share that later tokens give to the first",
        ),
        "text damage": (
            hurt.transpose(0, 1).float(),
            ["edit", "window", "measure"],
            "rise of the loss and KL over held-out text, nats",
        ),
    }
    labels: dict[str, list[Any]] = {
        "prompt": VARIED, "point": list(range(lm.n_blocks + 1)), "edit": list(edits),
        "window": list(range(len(text))), "measure": ["loss", "KL"],
    }  # fmt: skip
    what = f"the first token of {len(VARIED)} varied prompts: its length, who writes it, and who looks at it"
    write(job, "sink", what, numbers, labels, folder, prompts=VARIED, writer=writer, erasers=erasers)
