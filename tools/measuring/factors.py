"""A block's output times a factor: what the model then says, and how far the error goes along the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import CapitalPrompt, LanguageModel, edit, kl, log_prob, scale_block, sweep_edits, trace
from measuring.capitals import CHANGES, FLAGS, by_length, changes, described, ids_of, in_order, main_facts
from measuring.files import Table, mean_and_error, small, write
from measuring.job import Job

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0)
WHERE = ("first token", "the others")


def factor_blocks(lm: LanguageModel) -> list[int]:
    """Block 2, one in the middle, and the last but two."""
    return [2, lm.n_blocks // 2, lm.n_blocks - 3]


@torch.no_grad()
def factor_where(lm: LanguageModel, facts: Sequence[CapitalPrompt], block: int) -> Tensor:
    """(prompts, len(WHERE), len(FACTORS), 5): CHANGES and FLAGS with the block's output scaled at some tokens only."""
    measure, columns = changes(lm, facts)
    places = [0, slice(1, None)]
    edits = [scale_block(block, factor, positions=place) for place in places for factor in FACTORS]
    return columns(sweep_edits(lm, ids_of(lm, facts), edits, measure=measure)).unflatten(1, (len(WHERE), len(FACTORS)))


@torch.no_grad()
def factor_run(lm: LanguageModel, facts: Sequence[CapitalPrompt], block: int) -> dict[str, Tensor]:
    """Per prompt: predictions (factor, prompt, 5) and stream (factor, prompt, 2, 3, points + 1)."""
    ids = ids_of(lm, facts)
    clean = trace(lm, ids)
    assert clean.final is not None
    targets = torch.tensor([lm.token_id(fact.target) for fact in facts])
    contrasts = torch.tensor([lm.token_id(fact.contrast) for fact in facts])
    before = clean.last_logits
    states, said = torch.cat([clean.resid, clean.final[None]]), []
    stream = torch.full((len(FACTORS), len(facts), 2, 3, lm.n_blocks + 2), float("nan"), dtype=lm.dtype)
    for f, factor in enumerate(FACTORS):
        with edit(lm, scale_block(block, factor)):
            edited = trace(lm, ids)
        assert edited.final is not None
        after = edited.last_logits
        rise = log_prob(after, targets) - log_prob(before, targets)
        other = log_prob(after, contrasts) - log_prob(before, contrasts)
        kept, is_target = (after.argmax(-1) == before.argmax(-1)), (after.argmax(-1) == targets)
        said.append(torch.stack([rise, rise - other, kl(before, after), kept.to(rise), is_target.to(rise)], dim=-1))
        error = torch.cat([edited.resid, edited.final[None]]) - states  # (points + 1, prompt, pos, d_model)
        for w, first in enumerate((0, 1)):  # with the first token, and without
            e, h = (value[:, :, first:].flatten(2) for value in (error, states))
            injected = e[block + 1]
            stream[f, :, w, 0] = e.norm(dim=-1).t()
            stream[f, :, w, 1] = (e.norm(dim=-1) / h.norm(dim=-1)).t()
            survives = (e * injected).sum(-1) / (injected * injected).sum(-1)
            stream[f, :, w, 2, block + 1 : -1] = survives[block + 1 : -1].t()
    return {"said": torch.stack(said), "stream": stream}


def measure_factors(job: Job, folder: Path) -> None:
    lm = job.lm
    facts, right = main_facts(job)
    groups = by_length(lm, facts)
    said, stream = [], []
    for block in factor_blocks(lm):
        runs = []
        for n, group in enumerate(groups):
            few = [facts[i] for i in group]
            texts = [fact.prompt for fact in few]
            runs.append(job.steps(f"factors {block} {n}", texts, factor_run, lm, few, block))
        said.append(in_order([run["said"].transpose(0, 1) for run in runs], groups).transpose(0, 1))
        stream.append(in_order([run["stream"].transpose(0, 1) for run in runs], groups).transpose(0, 1))
    every, streams = torch.stack(said), torch.stack(stream)  # (block, factor, prompt, …)
    n_changes = len(CHANGES)
    means, errors = (
        torch.stack(both)
        for both in zip(
            mean_and_error(every[..., :n_changes], 2),
            mean_and_error(every[:, :, right][..., :n_changes], 2),
            strict=True,
        )
    )
    along_mean, along_error = mean_and_error(streams, 2)
    along = ["scaled", "factor", "first token", "along", "point"]
    first_block = factor_blocks(lm)[0]
    pieces = []
    for n, group in enumerate(groups):
        few = [facts[i] for i in group]
        inputs = [fact.prompt for fact in few]
        pieces.append(job.steps.one(f"factors where {n}", inputs, factor_where, lm, few, first_block))
    where = in_order(pieces, groups).permute(1, 2, 0, 3)  # (where, factor, prompt, 5)
    where_mean, where_error = mean_and_error(where[..., :n_changes], 2)

    def clean_log_p() -> Tensor:
        return torch.cat([log_prob(lm.logits(f.prompt)[0, -1:], torch.tensor([lm.token_id(f.target)])) for f in facts])

    clean = job.steps.one("factors clean", [fact.prompt for fact in facts], clean_log_p)
    table: Table = {
        "change": (small(every[..., :n_changes]), ["scaled", "factor", "prompt", "measure"], "after − before, nats"),
        "flags": (
            every[..., n_changes:].to(torch.uint8),
            ["scaled", "factor", "prompt", "flag"],
            "whether it is so then",
        ),
        "mean": (means, ["prompts", "scaled", "factor", "measure"], "mean of change over prompts, nats"),
        "standard error": (errors, ["prompts", "scaled", "factor", "measure"], "of that mean, nats"),
        "stream": (along_mean, along, "mean over prompts; delta in the stream's unit, the others without unit"),
        "stream standard error": (along_error, along, "of that mean"),
        "stream median": (streams.median(2).values.float(), along, "the same, median over prompts"),
        "where mean": (
            where_mean,
            ["where", "factor", "measure"],
            f"block {first_block} scaled at some tokens only, nats",
        ),
        "where standard error": (where_error, ["where", "factor", "measure"], "of that mean, nats"),
        "where flags": (
            where[..., n_changes:].to(torch.uint8),
            ["where", "factor", "prompt", "flag"],
            "whether it is so then",
        ),
        "right": (right.to(torch.uint8), ["prompt"], "whether the clean model's most probable token is the target"),
        "clean log p": (clean.float(), ["prompt"], "log p(target) of the clean model, nats"),
    }
    labels: dict[str, list[Any]] = {
        "scaled": factor_blocks(lm), "factor": list(FACTORS), "prompt": [fact.prompt for fact in facts],
        "prompts": ["all", "right"], "measure": list(CHANGES), "flag": list(FLAGS), "first token": ["with", "without"],
        "where": list(WHERE), "along": ["delta", "relative error", "survival"], "point": [*range(lm.n_blocks + 1), "norm"],
    }  # fmt: skip
    what = (
        f"a block's output times a factor, over {len(facts)} capital prompts; point l enters block l, point {lm.n_blocks} leaves "
        "the last block, norm is after the final norm; survival is the later error's component along the injected one"
    )
    write(job, "factors", what, table, labels, folder, prompts=described(facts))
