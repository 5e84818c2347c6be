"""The same questions in other words: who is right, and whether the same heads matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import CapitalPrompt
from measuring.capitals import CHANGES, ask, by_length, described, ids_of, main_facts, spread
from measuring.files import Table, mean_and_error, small, write
from measuring.heads import head_map
from measuring.job import NOT_MAPPED, Job


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
