"""Blocks and their parts taken out over held-out text: one at a time, with their prices, in pairs, and more and more."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import (
    LanguageModel,
    log_prob,
    skip_block,
    sweep_block_pairs,
    sweep_blocks,
    sweep_edits,
    sweep_heads,
    text_damage,
)
from measuring.files import Table, mean_and_error, write
from measuring.job import Job

WINDOW, PAIR_WINDOW, REMOVED = 48, 32, 8  # tokens of a window, of one for pairs, and blocks removed at most
ENUMERATE = 12  # blocks at most for which every set of blocks is tried


def clean_loss(lm: LanguageModel, text: Tensor) -> Tensor:
    """(windows,) mean next-token loss of the clean model, nats."""
    return -torch.stack([log_prob(lm.logits(row)[0, :-1], row[1:]).mean() for row in text])


def damage(lm: LanguageModel, text: Tensor, edits: list[Any]) -> Tensor:
    """(windows, edits, 2): rise of the loss and KL, means over positions, nats."""
    return sweep_edits(lm, text, edits, measure=text_damage())[..., :2]


def measure_blocks(job: Job, folder: Path) -> None:
    lm, text = job.lm, job.texts(WINDOW, 10**6)
    parts = ["block", "attention", "mlp"]

    def skipped(part: Any) -> Tensor:
        return sweep_blocks(lm, text, part=part, measure=text_damage())

    found = torch.stack([job.steps.one(f"blocks {part}", text.tolist(), skipped, part) for part in parts])
    means, errors = mean_and_error(found, 1)
    clean = job.steps.one("blocks clean", text.tolist(), clean_loss, lm, text)
    dims = ["part", "window", "block", "measure"]
    table: Table = {
        "damage": (found.float(), dims, "part skipped: rise of the loss, KL (nats), share of top-1 kept, per window"),
        "mean": (means, ["part", "block", "measure"], "mean of damage over windows"),
        "standard error": (errors, ["part", "block", "measure"], "of that mean"),
        "clean loss": (clean.float(), ["window"], "next-token loss of the clean model, nats"),
    }
    labels: dict[str, list[Any]] = {
        "part": parts,
        "window": list(range(len(text))),
        "measure": ["loss", "KL", "top-1 kept"],
    }
    what = f"each block, its attention or its MLP skipped, over {len(text)} held-out passages of {WINDOW} tokens"
    write(job, "blocks", what, table, labels, folder, prompts=text.tolist())


def measure_prices(job: Job, folder: Path) -> None:
    """A block, its attention, its MLP and each of its heads, all on the same text, and how many parameters each has."""
    lm, text = job.lm, job.texts(PAIR_WINDOW, job.setup.pair_windows)
    parts = ["block", "attention", "mlp"]

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    def skipped(part: Any) -> Tensor:
        return sweep_blocks(lm, text, part=part, measure=text_damage())[..., :2]

    def without_head(window: int) -> Tensor:
        return sweep_heads(lm, text[window : window + 1], measure=text_damage())[..., :2]

    found = torch.stack([job.steps.one(f"prices {part}", text.tolist(), skipped, part) for part in parts])
    of_heads = [job.steps.one(f"prices heads {w}", text[w].tolist(), without_head, w) for w in range(len(text))]
    sizes = [[size(module(b)) for b in range(lm.n_blocks)] for module in (lm.blocks.__getitem__, lm.attention, lm.mlp)]
    table: Table = {
        "damage": (
            found.float(),
            ["part", "window", "block", "measure"],
            "part skipped: rise of the loss and KL, nats",
        ),
        "damage of heads": (
            torch.cat(of_heads).float(),
            ["window", "block", "head", "measure"],
            "each head's output set to zero, the same",
        ),
        "parameters": (torch.tensor(sizes), ["part", "block"], "number of parameters of the part"),
        "parameters of a head": (
            torch.tensor(sizes[1]) / lm.n_heads,
            ["block"],
            "its attention's parameters over the number of heads",
        ),
    }
    labels: dict[str, list[Any]] = {"part": parts, "window": list(range(len(text))), "measure": ["loss", "KL"]}
    what = (
        f"each block, its attention, its MLP and each of its heads taken out, over {len(text)} held-out passages of "
        f"{PAIR_WINDOW} tokens"
    )
    write(job, "prices", what, table, labels, folder, prompts=text.tolist())


def measure_pairs(job: Job, folder: Path) -> None:
    lm, steps = job.lm, job.steps
    text, whole = job.texts(PAIR_WINDOW, job.setup.pair_windows), job.texts(WINDOW, 10**6)

    def both(window: int) -> Tensor:
        return sweep_block_pairs(lm, text[window : window + 1], measure=text_damage())[..., :2]

    pairs = torch.cat([steps.one(f"pairs {w}", text[w].tolist(), both, w) for w in range(len(text))])
    mean, error = mean_and_error(pairs, 0)
    skips = [skip_block(block) for block in range(lm.n_blocks)]
    removed: list[int] = []
    costs: list[float] = []
    single = mean[..., 0].diagonal()
    for k in range(1, REMOVED + 1):
        left = [block for block in range(lm.n_blocks) if block not in removed]
        sets = [[skips[b] for b in sorted([*removed, block])] for block in left]
        rise = steps.one(f"greedy {k}", [text.tolist(), removed], damage, lm, text, sets)
        cost = rise[..., 0].mean(0)
        costs.append(cost.min().item())
        removed.append(left[int(cost.argmin())])
    sets = [[skips[b] for b in sorted(removed[:k])] for k in range(1, REMOVED + 1)]
    again = steps.one("greedy on all text", [whole.tolist(), removed], damage, lm, whole, sets)
    table: Table = {
        "mean": (mean, ["block", "other", "measure"], "both blocks skipped, nats; one alone on the diagonal"),
        "standard error": (error, ["block", "other", "measure"], "of that mean over windows, nats"),
        "greedy order": (torch.tensor(removed, dtype=torch.int32), ["removed"], "the block that the k-th step removes"),
        "greedy": (torch.tensor(costs), ["removed"], "rise of the loss with k blocks removed, on the text that chose"),
        "greedy sum": (single[removed].cumsum(0), ["removed"], "sum of these blocks' single rises, same text"),
        "greedy on all text": (again.float(), ["window", "removed", "measure"], "the same sets, all passages, nats"),
        "lowest sum": (
            single.sort().values[:REMOVED].cumsum(0),
            ["removed"],
            "sum of the k cheapest single rises, same text, nats",
        ),
        "cheapest singles": (
            single.sort().indices[:REMOVED].int(),
            ["removed"],
            "the blocks that are cheapest one at a time",
        ),
    }
    cheapest = [[skips[b] for b in sorted(single.sort().indices[:k].tolist())] for k in range(1, REMOVED + 1)]
    together = steps.one("cheapest together", [text.tolist()], damage, lm, text, cheapest)
    table["cheapest together"] = (
        together[..., 0].mean(0).float(),
        ["removed"],
        "rise of the loss with the k cheapest single blocks removed, nats",
    )
    # What was chosen on a few passages is flattered there: all of it is priced on every passage too.
    priced = steps.one("cheapest on all text", [whole.tolist(), single.tolist()], damage, lm, whole, cheapest)
    table["cheapest on all text"] = (priced.float(), ["window", "removed", "measure"], "these sets, all passages, nats")
    if lm.n_blocks <= ENUMERATE:
        every_set = [c for k in range(1, REMOVED + 1) for c in combinations(range(lm.n_blocks), k)]
        edits = [[skips[b] for b in one] for one in every_set]
        every = steps.one("every set", text.tolist(), damage, lm, text, edits)[..., 0].mean(0)
        best = torch.zeros(REMOVED, lm.n_blocks, dtype=torch.uint8)
        cost = torch.full((REMOVED,), float("inf"))
        for chosen, value in zip(every_set, every.tolist(), strict=True):
            k = len(chosen) - 1
            if value < cost[k]:
                cost[k] = value
                best[k] = torch.zeros(lm.n_blocks, dtype=torch.uint8).index_fill(0, torch.tensor(chosen), 1)
        table["best"] = (cost, ["removed"], "lowest rise of the loss of any k blocks, nats: all sets were tried")
        table["best set"] = (best, ["removed", "block"], "whether the block is in the best set of k")
        sets = [[skips[b] for b in row.nonzero().flatten().tolist()] for row in best]
        priced = steps.one("best on all text", [whole.tolist(), best.tolist()], damage, lm, whole, sets)
        table["best on all text"] = (priced.float(), ["window", "removed", "measure"], "these sets, all passages, nats")
    labels: dict[str, list[Any]] = {
        "other": list(range(lm.n_blocks)),
        "measure": ["loss", "KL"],
        "removed": list(range(1, REMOVED + 1)),
        "window": list(range(len(whole))),
    }
    what = (
        f"every pair of blocks skipped, and blocks removed one after another, over {len(text)} held-out passages of "
        f"{PAIR_WINDOW} tokens; the removed sets again over {len(whole)} passages of {WINDOW}"
    )
    write(job, "pairs", what, table, labels, folder, prompts=text.tolist(), all_text=whole.tolist())
