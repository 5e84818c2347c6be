"""What a sweep reads off the logits of the edited copies.

sweep_heads(lm, prompts, measure=predictions(lm, " Germany", " France"))     # named columns along the last axis
sweep_blocks(lm, windows(lm, text, 64), measure=text_damage())               # every position of a text
sweep_heads(lm, prompt, measure=lambda outcome: outcome.edited.softmax(-1).amax(-1))    # one of your own
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import errors
from .models import LanguageModel

Target = str | int
Targets = Target | Sequence[Target]


@dataclass(frozen=True)
class Outcome:
    """What one prompt's copies predict: edited (copies, vocabulary) and clean (vocabulary,) logits at the last token.

    A measure that asks for every position gets (copies, pos, vocabulary) and (pos, vocabulary), without padding.
    ids: (pos,) the prompt's tokens. prompt: its number in the list.
    """

    edited: Tensor
    clean: Tensor
    ids: Tensor
    prompt: int


@dataclass(frozen=True)
class Measure:
    """Numbers from an Outcome: compute(outcome) gives (copies, ...). columns: names along the last axis, if it has one."""

    compute: Callable[[Outcome], Tensor]
    columns: tuple[str, ...] = ()
    every_position: bool = False
    prompts: int | None = None  # the number of prompts that it can be used with, if that matters


def predictions(lm: LanguageModel, target: Targets, contrast: Targets | None = None) -> Measure:
    """How the next-token prediction changes, in columns: change of log p(target) in nats; KL(clean ‖ edited) in nats; 1
    where the most probable token stayed; 1 where it is the target; with a contrast also the changes of log p(contrast) and
    of the logit difference target − contrast. target and contrast: one for all prompts, or one for each.
    """
    columns = ("target", "kl", "same top-1", "target is top-1")
    targets = _token_ids(lm, target)
    contrasts = None if contrast is None else _token_ids(lm, contrast)

    def compute(outcome: Outcome) -> Tensor:
        edited, clean = outcome.edited, outcome.clean
        wanted = _chosen(targets, outcome.prompt)
        top = edited.argmax(-1)
        edited_logprobs, clean_logprobs = edited.log_softmax(-1), clean.log_softmax(-1)
        found = [
            edited_logprobs[:, wanted] - clean_logprobs[wanted],
            (clean_logprobs.exp() * (clean_logprobs - edited_logprobs)).sum(-1).clamp(min=0),
            (top == clean.argmax(-1)).to(edited),
            (top == wanted).to(edited),
        ]
        if contrasts is not None:
            other = _chosen(contrasts, outcome.prompt)
            found.append(edited_logprobs[:, other] - clean_logprobs[other])
            found.append(found[0] - found[-1])  # the log of a ratio: the normalisation cancels
        return torch.stack(found, dim=-1)

    names = columns if contrast is None else (*columns, "contrast", "logit difference")
    return Measure(compute, names, prompts=_number(targets, contrasts))


def text_damage() -> Measure:
    """How the prediction of a text suffers, in columns, each a mean over its positions: next-token loss in nats, after −
    before; KL(clean ‖ edited) in nats; share of positions whose most probable token stayed.
    """

    def compute(outcome: Outcome) -> Tensor:
        if len(outcome.ids) < 2:
            raise errors.BadPrompt("a next-token loss needs two tokens or more, but this prompt has one.")
        edited, clean = outcome.edited.log_softmax(-1), outcome.clean.log_softmax(-1)
        change = clean - edited  # (copies, pos, vocabulary)
        rise = change[:, :-1].gather(-1, outcome.ids[1:, None].expand(len(edited), -1, -1)).squeeze(-1)
        divergence = (change * clean.exp()).sum(-1).clamp(min=0)
        agreement = (edited.argmax(-1) == clean.argmax(-1)).to(edited)
        return torch.stack([rise.mean(-1), divergence.mean(-1), agreement.mean(-1)], dim=-1)

    return Measure(compute, ("loss", "kl", "same top-1"), every_position=True)


def log_prob_change(lm: LanguageModel, target: Targets) -> Measure:
    targets = _token_ids(lm, target)

    def compute(outcome: Outcome) -> Tensor:
        wanted = _chosen(targets, outcome.prompt)
        # log p = logit − logsumexp: cheaper than a log_softmax of the whole vocabulary for one number.
        after = outcome.edited[:, wanted] - outcome.edited.logsumexp(-1)
        return after - (outcome.clean[wanted] - outcome.clean.logsumexp(-1))

    return Measure(compute, prompts=_number(targets))


def _token_ids(lm: LanguageModel, target: Targets) -> int | list[int]:
    def one(value: Target) -> int:
        if isinstance(value, str):
            return lm.token_id(value)
        if not 0 <= value < lm.vocabulary:
            raise errors.TargetIsNotOneToken(
                f"token id {value} does not exist: this model has tokens 0 to {lm.vocabulary - 1}."
            )
        return value

    return one(target) if isinstance(target, str | int) else [one(value) for value in target]


def _chosen(ids: int | list[int], prompt: int) -> int:
    return ids if isinstance(ids, int) else ids[prompt]


def _number(*given: int | list[int] | None) -> int | None:
    """How many prompts these token ids are for, None if for any number."""
    numbers = {len(ids) for ids in given if isinstance(ids, list)}
    if len(numbers) > 1:
        raise errors.BadValue(f"targets and contrasts differ in number, {sorted(numbers)}: give one for each prompt.")
    return numbers.pop() if numbers else None
