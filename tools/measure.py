"""Measure once what a lesson cannot wait for, and store it small: python tools/measure.py [--model smollm2] [--only heads]

Parts: sink, factors, blocks, heads, phrasings, pairs, prices. Each becomes one file in helpers/data/measured, which
`helpers.measurements` reads. Finished steps are kept in .cache/measured, so a run that was killed goes on where it was;
they are used again only for the same weights, the same prompts and the same versions. Seeds are fixed: the same machine
and versions write the same bytes. `--show` prints the findings of the stored files and measures nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from findings import findings
from packed import Packed, shared
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import helpers
from helpers import (
    CapitalPrompt,
    Edit,
    HelpersError,
    LanguageModel,
    answers_right,
    attention_patterns,
    capital_prompts,
    edit,
    held_out_passages,
    kl,
    load_model,
    log_prob,
    positions_of,
    predictions,
    replace_heads,
    scale_block,
    skip_attention,
    skip_block,
    skip_mlp,
    sweep_block_pairs,
    sweep_blocks,
    sweep_edits,
    sweep_heads,
    text_damage,
    trace,
    windows,
)
from helpers.countries import PHRASINGS
from helpers.measurements import MEASURED_FOLDER, read

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "measured"
SEED = 0
EDITION = 1  # one more when a measurement's definition changes: older steps in the cache are then not used
PARTS = ("sink", "factors", "blocks", "heads", "phrasings", "pairs", "prices")
IN_A_ROW = 15  # prompts that share their beginning and run as one row
COUNT = 60  # prompts of the head map and of the factor curves
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0)
WINDOW, PAIR_WINDOW, REMOVED = 48, 32, 8  # tokens of a window, of one for pairs, and blocks removed at most
ENUMERATE = 12  # blocks at most for which every set of blocks is tried
REPLACEMENTS = ("zero", "mean", "resample")
CHANGES = ("log p", "logit difference", "KL")  # of the target; target − contrast; KL(clean ‖ edited): all in nats
FLAGS = ("top-1 kept", "target is top-1")
WHERE = ("first token", "the others")
ROLES = ("first token", "capital", "example's capital", "example's country", "itself", "the rest")


@dataclass(frozen=True)
class Setup:
    """What is asked of one model. phrasings: name → template and the countries whose sentences stand in front."""

    phrasings: dict[str, tuple[str, tuple[str, ...]]]  # the first one is the main one
    in_phrasings: int  # prompts in the maps of the other phrasings
    pair_windows: int
    replacements: tuple[str, ...] = REPLACEMENTS


_BARE = {name: (template, ()) for name, template in PHRASINGS.items()}
_SHOWN = {name: (template, ("France",)) for name, template in PHRASINGS.items()}
_MAIN = PHRASINGS["is the capital of"]
POCKET = Setup({**_BARE, "one example": (_MAIN, ("France",))}, 60, 6)
# A model trained on instructions goes on with " the" unless an example shows what is wanted.
OTHER = Setup({**_SHOWN, "two examples": (_MAIN, ("France", "Egypt")), "no example": (_MAIN, ())}, 30, 6)
NOT_MAPPED = ("no example",)  # asked for its answers only

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


# ---- steps that are kept, and files


class Steps:
    """Finished steps of one model: `steps("name", inputs, work, *args)` calls `work(*args)` only once.

    work returns a tensor or a dict of tensors; a tensor comes back as {"x": tensor}, and `steps.one` gives it alone.
    """

    def __init__(self, folder: Path, key: dict[str, Any], bar: Callable[[str], object]) -> None:
        self.folder, self.key, self.bar = folder, key, bar
        self.seconds = 0.0

    def __call__(self, name: str, inputs: object, work: Callable[..., Any], *args: Any) -> dict[str, Tensor]:
        self.bar(name)
        path = self.folder / f"{name.replace(' ', '-')}-{sha256_of([self.key, name, inputs])[:16]}.safetensors"
        if path.is_file():
            found = load_file(path)
        else:
            start = time.process_time()
            done = work(*args)
            named = {"x": done} if isinstance(done, Tensor) else done
            found = {key: value.detach().contiguous().clone() for key, value in named.items()}
            found["seconds"] = torch.tensor(time.process_time() - start)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(f".{os.getpid()}")
            save_file(found, half)
            os.replace(half, path)  # whole or not there at all
        self.seconds += found.pop("seconds").item()
        return found

    def one(self, name: str, inputs: object, work: Callable[..., Tensor], *args: Any) -> Tensor:
        (found,) = self(name, inputs, work, *args).values()
        return found


@dataclass
class Job:
    """One model and what every part needs."""

    name: str
    lm: LanguageModel
    setup: Setup
    steps: Steps
    weights: dict[str, str]

    def texts(self, length: int, most: int) -> Tensor:
        """(windows, length) token ids: the first tokens of each held-out passage."""
        return torch.cat([windows(self.lm, passage, length, most=1) for passage in held_out_passages()[:most]])


def sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def weights_of(lm: LanguageModel) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, in the order of their names, as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(lm.model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def code_of() -> str:
    """SHA-256 over the modules of the helpers that the numbers pass through, and this tool."""
    package = Path(helpers.__file__).parent
    names = (
        "applying countries edits families hooks loading measures metrics models passes positions products readings recording "
        "replacements staircase sweeps tracing"
    )
    digest = hashlib.sha256()
    for path in [*(package / f"{name}.py" for name in names.split()), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


Site = tuple[int, list[int]]  # a block and some of its heads
Table = dict[str, tuple[Tensor, list[str], str]]  # name → tensor, its axes, what it holds


def write(
    job: Job, part: str, what: str, table: Table, labels: dict[str, list[Any]], folder: Path, **more: Any
) -> None:
    """One file: the tensors, and a header that says all about them."""
    labels = {"block": list(range(job.lm.n_blocks)), "head": list(range(job.lm.n_heads)), **labels}
    used = {dim for _, dims, _ in table.values() for dim in dims}
    for name, (tensor, dims, _) in table.items():
        sizes = [len(labels[dim]) for dim in dims]
        assert list(tensor.shape) == sizes, f"{part} {name}: shape {tuple(tensor.shape)}, labels {sizes}"
    about = {
        "what": what,
        "model": job.name,
        "dtype": str(job.lm.dtype).removeprefix("torch."),
        "seed": SEED,
        "edition": EDITION,
        "sha256": {**job.weights, "helpers and tool": code_of(), "prompts": sha256_of(more.get("prompts"))},
        "versions": versions(),
        "dims": {name: dims for name, (_, dims, _) in table.items()},
        "labels": {dim: values for dim, values in labels.items() if dim in used},
        "units": {name: unit for name, (_, _, unit) in table.items()},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.name}-{part}.safetensors"
    half = path.with_suffix(f".{os.getpid()}")
    # One key only: safetensors writes several in no fixed order, and the same results shall make the same bytes.
    save_file(
        {name: tensor.contiguous() for name, (tensor, _, _) in table.items()},
        half,
        {"about": json.dumps(about, ensure_ascii=False, sort_keys=True)},
    )
    os.replace(half, path)


def versions() -> dict[str, str]:
    import transformers

    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "causal-interventions-course": metadata.version("causal-interventions-course"),
    }


def small(values: Tensor) -> Tensor:
    """As float16, three digits: for numbers of single prompts."""
    return values.to(torch.float16)


def mean_and_error(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean over prompts and its standard error, float32."""
    error = values.std(dim=dim) / values.shape[dim] ** 0.5
    return values.mean(dim=dim).float(), error.float()


# ---- capital prompts


@dataclass(frozen=True)
class Asked:
    """The prompts of one phrasing: all that fit the model, and for each whether it is answered right."""

    facts: list[CapitalPrompt]
    right: list[bool]


def ask(job: Job, phrasing: str) -> Asked:
    template, examples = job.setup.phrasings[phrasing]
    facts = capital_prompts(job.lm, template=template, examples=examples)
    inputs = [fact.prompt for fact in facts]
    right = job.steps.one(f"answers {phrasing}", inputs, lambda: torch.tensor(answers_right(job.lm, facts)))
    return Asked(facts, right.tolist())


def by_length(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> list[list[int]]:
    """Numbers of the prompts of one token length, shortest first."""
    groups: dict[int, list[int]] = {}
    for i, fact in enumerate(facts):
        groups.setdefault(len(lm.token_ids(fact.prompt)), []).append(i)
    return [groups[length] for length in sorted(groups)]


def choose(lm: LanguageModel, asked: Asked, count: int) -> list[int]:
    """Numbers of `count` prompts: of the shortest lengths that are enough, first those that the model answers right.

    None whose capital's name holds the answer. Within right and wrong ones they are spread over the table.
    """
    pool: list[int] = []
    for group in by_length(lm, asked.facts):
        pool += [i for i in group if not asked.facts[i].given_away]
        if len(pool) >= count:
            break
    pool.sort()
    right, wrong = ([i for i in pool if asked.right[i] is ok] for ok in (True, False))
    chosen = spread(right, count)
    return sorted(chosen + spread(wrong, count - len(chosen)))


def spread(items: list[int], count: int) -> list[int]:
    return items if len(items) <= count else [items[k * len(items) // count] for k in range(count)]


def main_facts(job: Job) -> tuple[list[CapitalPrompt], Tensor]:
    """The prompts of the head map, and which of them the model answers right."""
    asked = ask(job, next(iter(job.setup.phrasings)))
    chosen = choose(job.lm, asked, COUNT)
    return [asked.facts[i] for i in chosen], torch.tensor([asked.right[i] for i in chosen])


def ids_of(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> Tensor:
    return torch.tensor([lm.token_ids(fact.prompt) for fact in facts])


def described(facts: Sequence[CapitalPrompt]) -> list[dict[str, str]]:
    return [asdict(fact) for fact in facts]


# ---- heads


def changes(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A measure for these prompts, and a function that takes CHANGES and FLAGS from its columns, in that order."""
    measure = predictions(lm, [fact.target for fact in facts], [fact.contrast for fact in facts])
    wanted = ["target", "logit difference", "kl", "same top-1", "target is top-1"]
    at = torch.tensor([measure.columns.index(column) for column in wanted])
    return measure, lambda found: found[..., at]


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
        places = {country.name: country.capital for country in helpers.countries.read_countries()}
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


def in_order(pieces: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    """Results of groups of prompts, put back into the prompts' order."""
    order = [i for group in groups for i in group]
    return torch.cat(list(pieces))[torch.tensor(order).argsort()]


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
    kinds = job.setup.replacements
    maps = torch.cat([one for kind in kinds for one in grouped(f"heads {kind}", head_map, kind).values()])
    maps = maps.unflatten(0, (len(kinds), len(facts)))  # (replacement, prompt, block, head, 5)
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
        "replacement": list(kinds), "off": list(REPLACEMENTS), "measure": list(CHANGES), "flag": list(FLAGS), "prompt": texts,
        "prompts": ["all", "right"], "role": list(ROLES),
    }  # fmt: skip
    what = (
        f"every head replaced, one at a time, over {len(facts)} capital prompts in {len(groups)} groups of one length; "
        "the mean is per position within a group, resampling takes another prompt of the group"
    )
    more = {"phrasing": phrasing, "examples": list(examples), "prompts": described(facts)}
    write(job, "heads", what, table, labels, folder, **more)


# ---- other phrasings


def correlations(maps: Tensor) -> Tensor:
    """(n, n) Pearson correlations of n maps, each read as one list of numbers."""
    return torch.corrcoef(maps.flatten(1).double()).float()


def measure_phrasings(job: Job, folder: Path) -> None:
    lm, steps = job.lm, job.steps
    names = list(job.setup.phrasings)
    asked = {name: ask(job, name) for name in names}
    facts, _ = main_facts(job)
    shortest = by_length(lm, facts)[0]
    excluded = {example for _, examples in job.setup.phrasings.values() for example in examples}
    fit = [f for f in (facts[i] for i in shortest) if not {f.target.strip(), f.contrast.strip()} & excluded]
    countries = [fact.target for fact in fit]
    mapped = [name for name in names if name not in NOT_MAPPED]
    by_target = {name: {fact.target: fact for fact in asked[name].facts} for name in mapped}
    countries = [one for one in countries if all(one in by_target[name] for name in mapped)]
    countries = [countries[i] for i in spread(list(range(len(countries))), job.setup.in_phrasings)]
    # The same contrast in every phrasing, so that the maps differ in nothing else.
    pairs = {fact.target: fact.contrast for fact in facts}
    maps, prompts, right = [], {}, []
    for name in mapped:
        few = [by_target[name][one] for one in countries]
        few = [CapitalPrompt(f.prompt, f.target, pairs[f.target], f.capital) for f in few]
        ids_of(lm, few)  # all of one length, or this raises
        prompts[name] = described(few)
        texts = [fact.prompt for fact in few]
        maps.append(steps.one(f"phrasing {name}", texts, head_map, lm, few, "zero"))
        answered = dict(zip([fact.target for fact in asked[name].facts], asked[name].right, strict=True))
        right.append([answered[one] for one in countries])
    values = torch.stack(maps)[..., :2]  # (phrasing, country, block, head, 2)
    means, errors = mean_and_error(values, 1)
    halves = [values[:, half::2].mean(1) for half in (0, 1)]
    reliability = torch.stack(
        [
            torch.stack([correlations(torch.stack([h[k, ..., m] for h in halves]))[0, 1] for m in range(2)])
            for k in range(len(mapped))
        ]
    )
    everyone = sorted({fact.target.strip() for one in asked.values() for fact in one.facts})
    table_of = torch.full((len(names), len(everyone)), -1, dtype=torch.int8)
    for k, name in enumerate(names):
        for fact, ok in zip(asked[name].facts, asked[name].right, strict=True):
            table_of[k, everyone.index(fact.target.strip())] = int(ok)
    table: Table = {
        "change": (small(values), ["phrasing", "country", "block", "head", "measure"], "head set to zero, nats"),
        "mean": (means, ["phrasing", "block", "head", "measure"], "mean over countries, nats"),
        "standard error": (errors, ["phrasing", "block", "head", "measure"], "of that mean, nats"),
        "right": (torch.tensor(right).to(torch.uint8), ["phrasing", "country"], "whether the clean model is right"),
        "correlation": (
            torch.stack([correlations(means[..., m]) for m in range(2)]),
            ["measure", "phrasing", "other"],
            "Pearson, over all heads, of two phrasings' mean maps",
        ),
        "reliability": (
            reliability.t().contiguous().float(),
            ["measure", "phrasing"],
            "Pearson, over all heads, of one phrasing's maps from two halves of the countries: what 1 would be here",
        ),
        "answers": (table_of, ["asked", "every country"], "1 right, 0 wrong, −1 not asked, of all that fit the model"),
    }
    labels: dict[str, list[Any]] = {
        "phrasing": mapped, "other": mapped, "asked": names, "country": [one.strip() for one in countries],
        "every country": everyone, "measure": list(CHANGES[:2]),
    }  # fmt: skip
    what = f"every head set to zero in {len(mapped)} phrasings of the same {len(countries)} questions, and who is right"
    write(job, "phrasings", what, table, labels, folder, prompts=prompts)


# ---- blocks over held-out text


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


# ---- factor curves


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


# ---- first token, sink, massive activation


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


# ---- the command

MEASURES: dict[str, Callable[[Job, Path], None]] = {
    "sink": measure_sink, "factors": measure_factors, "blocks": measure_blocks, "heads": measure_heads,
    "phrasings": measure_phrasings, "pairs": measure_pairs, "prices": measure_prices,
}  # fmt: skip


def short_name(model: str) -> str:
    """The last part of a model's name, without what a file's name should not hold."""
    return "".join(c if c.isalnum() or c in "._" else "_" for c in Path(model).name)


def job_for(name: str, bar: Callable[[str], object], cache: Path = CACHE) -> Job:
    lm = load_model(name)
    setup = POCKET if name == "pocket" else OTHER
    weights = {"weights": weights_of(lm)}
    key = {"edition": EDITION, "seed": SEED, "dtype": str(lm.dtype), **weights, **versions()}
    folder = cache / f"{short_name(name)}-{sha256_of(key)[:12]}"
    return Job(short_name(name), lm, setup, Steps(folder, key, bar), weights)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pocket", help="'pocket', 'smollm2', a name on the model hub, or a folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--show", action="store_true", help="print what the stored files say, and measure nothing")
    parser.add_argument("--out", type=Path, default=MEASURED_FOLDER, help="folder for the files")
    chosen = parser.parse_args(arguments)
    try:
        name = short_name(chosen.model)
        if not chosen.show:
            with tqdm(chosen.only, unit="part", disable=None) as bar:
                job = job_for(chosen.model, lambda step: bar.set_postfix_str(step))
                for part in bar:
                    bar.set_description(part)
                    job.steps.seconds = 0.0
                    MEASURES[part](job, chosen.out)
                    tqdm.write(f"{name} {part}: {job.steps.seconds:.0f} s of processor time", file=sys.stderr)
        for part in chosen.only:
            print(f"\n{name}, {part}")
            for line in findings(read(chosen.out, name, part)):
                print(f"- {line}")
    except HelpersError as mistake:
        print(f"{type(mistake).__name__}: {mistake}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
