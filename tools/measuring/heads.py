"""Every head replaced, one at a time; where it looks; what it writes directly towards the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import (
    CapitalPrompt,
    Edit,
    LanguageModel,
    attention_patterns,
    log_prob,
    positions_of,
    replace_heads,
    sweep_edits,
    trace,
)
from helpers.countries import read_countries
from measuring.capitals import CHANGES, FLAGS, by_length, changes, described, ids_of, in_order, main_facts
from measuring.files import Table, mean_and_error, small, write
from measuring.job import Job
from measuring.packed import Packed, shared
from measuring.steps import SEED

IN_A_ROW = 15  # prompts that share their beginning and run as one row
REPLACEMENTS = ("zero", "mean", "resample")
ROLES = ("first token", "capital", "example's capital", "example's country", "itself", "the rest")
Site = tuple[int, list[int]]  # a block and some of its heads


def replacements(lm: LanguageModel, ids: Tensor, kind: str) -> list[Tensor]:
    """For each prompt, what its heads' outputs become, (n_blocks, pos, n_heads, d_head). All prompts have one length.

    "mean": their mean over these prompts at each position (Wang et al. 2022). "resample": their output on another one of
    these prompts (Chan et al. 2022), drawn with SEED.
    """
    heads = trace(lm, ids, stop_after=lm.n_blocks - 1).heads  # (n_blocks, prompts, pos, n_heads, d_head)
    if kind == "zero":
        return [torch.zeros_like(heads[:, 0])] * len(ids)
    if kind == "mean":
        return [heads.mean(dim=1)] * len(ids)
    drawn = torch.randint(1, len(ids), (len(ids),), generator=torch.Generator().manual_seed(SEED))
    return [heads[:, (p + int(step)) % len(ids)] for p, step in enumerate(drawn)]


def replaced(lm: LanguageModel, facts: Sequence[CapitalPrompt], kind: str, sites: Sequence[Site]) -> Tensor:
    """(prompts, len(sites), 5): CHANGES and FLAGS with the heads of each site replaced. All prompts have one length."""
    ids = ids_of(lm, facts)
    values = replacements(lm, ids, kind)

    def edits(value: Tensor) -> list[Edit]:  # value: (n_blocks, pos, n_heads, d_head)
        return [replace_heads(block, heads, value[block][:, heads]) for block, heads in sites]

    found = []
    if shared(ids.tolist()) >= len(ids[0]) // 3:
        for some in torch.arange(len(facts)).split(IN_A_ROW):
            few = [facts[i] for i in some.tolist()]
            row = Packed(lm, ids[some].tolist())
            measure, columns = changes(lm, few)
            value = row.laid_out([values[i] for i in some.tolist()])
            swept = sweep_edits(row, row.ids, edits(value), measure=row.measure(measure), chunk=1536)
            found.append(columns(swept).transpose(0, 1))
    else:
        for p, fact in enumerate(facts):
            measure, columns = changes(lm, [fact])
            found.append(columns(sweep_edits(lm, ids[p : p + 1], edits(values[p]), measure=measure)))
    return torch.cat(found)


def head_map(lm: LanguageModel, facts: Sequence[CapitalPrompt], kind: str) -> Tensor:
    """(prompts, n_blocks, n_heads, 5): CHANGES and FLAGS with each head replaced, one at a time."""
    sites = [(block, [head]) for block in range(lm.n_blocks) for head in range(lm.n_heads)]
    return replaced(lm, facts, kind, sites).unflatten(1, (lm.n_blocks, lm.n_heads))


def blocks_off(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> Tensor:
    """(prompts, 3, n_blocks, 5): all heads of a block replaced at once, in each of the three ways."""
    sites = [(block, list(range(lm.n_heads))) for block in range(lm.n_blocks)]
    return torch.stack([replaced(lm, facts, kind, sites) for kind in REPLACEMENTS], dim=1)


def role_of_positions(lm: LanguageModel, fact: CapitalPrompt, examples: Sequence[str]) -> list[int]:
    """For each position of a prompt, the index of its role in ROLES. A capital at the start counts as capital."""
    roles = [ROLES.index("the rest")] * len(lm.token_ids(fact.prompt))
    roles[0] = ROLES.index("first token")
    if examples:
        shown = fact.prompt[: fact.prompt.index(f" {examples[-1]}. ") + len(examples[-1]) + 1]
        places = {country.name: country.capital for country in read_countries()}
        for role, text in (("example's capital", places[examples[-1]]), ("example's country", examples[-1])):
            for position in positions_of(lm, shown, text):
                roles[position] = roles[position] if position == 0 else ROLES.index(role)
    for position in positions_of(lm, fact.prompt, fact.capital):
        roles[position] = ROLES.index("capital")
    roles[-1] = ROLES.index("itself")
    return roles


def last_looks(lm: LanguageModel, facts: Sequence[CapitalPrompt], examples: Sequence[str]) -> Tensor:
    """(prompts, n_blocks, n_heads, len(ROLES)): the last token's attention, summed over the positions of each role."""
    rows = attention_patterns(lm, ids_of(lm, facts))[:, :, :, -1].transpose(0, 1)  # (prompts, n_blocks, n_heads, pos)
    found = torch.zeros(*rows.shape[:3], len(ROLES), dtype=rows.dtype)
    for p, fact in enumerate(facts):
        found[p].index_add_(-1, torch.tensor(role_of_positions(lm, fact, examples)), rows[p])
    return found


@torch.no_grad()
def direct(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    """What each part writes directly towards target − contrast at the last token, in nats of the logit difference.

    Heads (prompts, n_blocks, n_heads), MLPs (prompts, n_blocks), and the rest (prompts,): embedding and biases. Together
    they are the clean logit difference, which is checked. The final norm is linear here: its scale is the clean run's
    (Elhage et al. 2021).
    """
    run = trace(lm, ids_of(lm, facts))
    norm, unembed = lm.final_norm, lm.unembed.weight
    assert run.final is not None and run.logits is not None
    targets = torch.tensor([lm.token_id(fact.target) for fact in facts])
    contrasts = torch.tensor([lm.token_id(fact.contrast) for fact in facts])
    aim = unembed[targets] - unembed[contrasts]  # (prompts, d_model)
    centred = isinstance(norm, nn.LayerNorm)
    bias = norm.bias if centred else torch.zeros_like(norm.weight)

    def centre(value: Tensor) -> Tensor:
        return value - value.mean(dim=-1, keepdim=True) if centred else value

    linear = norm.weight * centre(run.resid[-1, :, -1])
    scale = (run.final[:, -1] - bias).norm(dim=-1) / linear.norm(dim=-1)
    aim_in_stream = aim * norm.weight * scale[:, None]  # (prompts, d_model)

    def towards(value: Tensor) -> Tensor:  # (…, prompts, d_model) → (…, prompts)
        return (centre(value) * aim_in_stream).sum(-1)

    heads = []
    for block in range(lm.n_blocks):
        module: Any = lm.part(block, lm.parts.heads_out)
        weight = module.weight.t() if isinstance(module, nn.Linear) else module.weight  # (heads × d_head, d_model)
        written = torch.einsum("phd,hdm->hpm", run.heads[block][:, -1], weight.unflatten(0, (lm.n_heads, lm.d_head)))
        heads.append(towards(written).t())
    by_head, by_mlp = torch.stack(heads, dim=1), towards(run.mlp[:, :, -1]).t()
    difference = (run.logits[:, -1].gather(1, targets[:, None]) - run.logits[:, -1].gather(1, contrasts[:, None]))[:, 0]
    attention_biases = towards(run.attn[:, :, -1]).sum(0) - by_head.sum((1, 2))
    rest = towards(run.resid[0, :, -1]) + attention_biases + (aim * bias).sum(-1)
    total = by_head.sum((1, 2)) + by_mlp.sum(1) + rest
    assert torch.allclose(total, difference, atol=1e-2), "the parts do not add up to the logit difference"
    return by_head, by_mlp, rest


def measure_heads(job: Job, folder: Path) -> None:
    lm, steps = job.lm, job.steps
    facts, right = main_facts(job)
    phrasing, (_, examples) = next(iter(job.setup.phrasings.items()))
    groups = by_length(lm, facts)
    texts = [fact.prompt for fact in facts]
    some = [[facts[i] for i in group] for group in groups]

    def grouped(name: str, work: Callable[..., Any], *more: Any) -> dict[str, Tensor]:
        found = [steps(f"{name} {n}", [f.prompt for f in few], work, lm, few, *more) for n, few in enumerate(some)]
        return {key: in_order([one[key] for one in found], groups) for key in found[0]}

    def look(lm: LanguageModel, few: list[CapitalPrompt]) -> dict[str, Tensor]:
        by_head, by_mlp, rest = direct(lm, few)
        logits = lm.logits(ids_of(lm, few))[:, -1]
        log_p = log_prob(logits, torch.tensor([lm.token_id(fact.target) for fact in few]))
        looks = last_looks(lm, few, examples)
        return {"looks": looks, "heads": by_head, "mlp": by_mlp, "rest": rest, "log p": log_p}

    looked = grouped("attention", look)
    (off,) = grouped("blocks off", blocks_off).values()
    off = off.transpose(0, 1)
    maps = torch.cat([one for kind in REPLACEMENTS for one in grouped(f"heads {kind}", head_map, kind).values()])
    maps = maps.unflatten(0, (len(REPLACEMENTS), len(facts)))  # (replacement, prompt, block, head, 5)
    n = len(CHANGES)
    means, errors = (
        torch.stack(both)
        for both in zip(mean_and_error(maps[..., :n], 1), mean_and_error(maps[:, right][..., :n], 1), strict=True)
    )
    off_means, off_errors = (
        torch.stack(both)
        for both in zip(mean_and_error(off[..., :n], 1), mean_and_error(off[:, right][..., :n], 1), strict=True)
    )
    look_mean, look_error = mean_and_error(looked["looks"], 0)
    direct_mean, direct_error = mean_and_error(looked["heads"], 0)
    difference = looked["heads"].sum((1, 2)) + looked["mlp"].sum(1) + looked["rest"]
    effect = ["replacement", "prompt", "block", "head"]
    table: Table = {
        "change": (small(maps[..., :n]), [*effect, "measure"], "after − before, nats, each prompt"),
        "flags": (maps[..., n:].to(torch.uint8), [*effect, "flag"], "whether it is so with the head replaced"),
        "mean": (means, ["prompts", "replacement", "block", "head", "measure"], "mean of change over prompts, nats"),
        "standard error": (errors, ["prompts", "replacement", "block", "head", "measure"], "of that mean, nats"),
        "all off": (
            small(off[..., :n]),
            ["off", "prompt", "block", "measure"],
            "all heads of a block at once, nats",
        ),
        "all off flags": (
            off[..., n:].to(torch.uint8),
            ["off", "prompt", "block", "flag"],
            "whether it is so then",
        ),
        "all off mean": (
            off_means,
            ["prompts", "off", "block", "measure"],
            "mean of all off over prompts, nats",
        ),
        "all off standard error": (off_errors, ["prompts", "off", "block", "measure"], "of that mean, nats"),
        "right": (right.to(torch.uint8), ["prompt"], "whether the clean model's most probable token is the target"),
        "clean log p": (looked["log p"].float(), ["prompt"], "log p(target) of the clean model, nats"),
        "clean logit difference": (difference.float(), ["prompt"], "target − contrast of the clean model, nats"),
        "attention to capital": (
            small(looked["looks"][..., ROLES.index("capital")]),
            ["prompt", "block", "head"],
            "of the last token, summed over the capital's tokens",
        ),
        "attention": (look_mean, ["block", "head", "role"], "mean over prompts of the last token's attention"),
        "attention standard error": (look_error, ["block", "head", "role"], "of that mean"),
        "direct": (small(looked["heads"]), ["prompt", "block", "head"], "written towards target − contrast, nats"),
        "direct mean": (direct_mean, ["block", "head"], "mean of direct over prompts, nats"),
        "direct standard error": (direct_error, ["block", "head"], "of that mean, nats"),
        "direct of MLPs": (small(looked["mlp"]), ["prompt", "block"], "the same for each MLP, nats"),
        "direct of the rest": (looked["rest"].float(), ["prompt"], "the same for embedding and biases, nats"),
    }
    labels: dict[str, list[Any]] = {
        "replacement": list(REPLACEMENTS), "off": list(REPLACEMENTS), "measure": list(CHANGES), "flag": list(FLAGS), "prompt": texts,
        "prompts": ["all", "right"], "role": list(ROLES),
    }  # fmt: skip
    what = (
        f"every head replaced, one at a time, over {len(facts)} capital prompts in {len(groups)} groups of one length; "
        "the mean is per position within a group, resampling takes another prompt of the group"
    )
    more = {"phrasing": phrasing, "examples": list(examples), "prompts": described(facts)}
    write(job, "heads", what, table, labels, folder, **more)
