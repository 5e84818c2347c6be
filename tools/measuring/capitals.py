"""Capital prompts: which are asked, which the model answers right, and what an edit changes in its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from helpers import CapitalPrompt, LanguageModel, answers_right, capital_prompts, predictions
from measuring.job import Job

COUNT = 60  # prompts of the head map and of the factor curves
CHANGES = ("log p", "logit difference", "KL")  # of the target; target − contrast; KL(clean ‖ edited): all in nats
FLAGS = ("top-1 kept", "target is top-1")


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


def in_order(pieces: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    """Results of groups of prompts, put back into the prompts' order."""
    order = [i for group in groups for i in group]
    return torch.cat(list(pieces))[torch.tensor(order).argsort()]


def changes(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A measure for these prompts, and a function that takes CHANGES and FLAGS from its columns, in that order."""
    measure = predictions(lm, [fact.target for fact in facts], [fact.contrast for fact in facts])
    wanted = ["target", "logit difference", "kl", "same top-1", "target is top-1"]
    at = torch.tensor([measure.columns.index(column) for column in wanted])
    return measure, lambda found: found[..., at]
