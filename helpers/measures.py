"""What a sweep reads off the logits of the edited copies.

sweep_heads(lm, prompts, measure=predictions(lm, " Germany", " France"))     # named columns along the last axis
sweep_blocks(lm, windows(lm, text, 64), measure=text_damage())               # every position of a text
sweep_heads(lm, prompt, measure=lambda outcome: outcome.edited.softmax(-1).amax(-1))    # one of your own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import errors
from .checks import kind_of, whole
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
    """Numbers from an Outcome: compute(outcome) gives (copies, ...). columns: names along the last axis, if it has one.

    A copy's numbers must not depend on the other copies in the Outcome: how many come at once is the sweep's business. Where
    they come in several pieces, a sweep tries that on its first prompt, and raises BadValue.
    """

    compute: Callable[[Outcome], Tensor]
    columns: tuple[str, ...] = ()
    every_position: bool = False
    prompts: int | None = None  # the number of prompts that it can be used with, if that matters
    by_copy: bool = False  # known to read each copy by itself, so that a sweep need not try it

    def __post_init__(self) -> None:
        if not callable(self.compute):
            raise errors.BadValue(
                "a measure must be a function of an Outcome, or one such as text_damage(), and not {value}.",
                value=kind_of(self.compute),
            )

    def check_number(self, prompts: int) -> None:
        """Raises BadValue unless it can be used with that many prompts."""
        if self.prompts not in (None, prompts):
            raise errors.BadValue(
                "there are {n_prompts} prompts and {n_targets} targets: give one target, or one for each prompt.",
                n_prompts=prompts,
                n_targets=self.prompts,
            )


class Trial:
    """Tries a measure once: are a copy's numbers the same whichever copies come with it? Else they would depend on `chunk`.

    And looks at each result: is it of the shape of the first? Else no tensor could hold them all.
    """

    def __init__(self, measure: Measure, chunk: int) -> None:
        self.done, self.chunk = measure.by_copy, chunk
        self.kept: tuple[int, Tensor, Tensor] | None = None  # a copy that came by itself
        self.first: tuple[int, torch.Size] | None = None  # a prompt, and the shape of a copy's numbers there

    def check_shape(self, prompt: int, shape: torch.Size) -> None:
        """shape: of what the measure gave for a copy of a prompt. Raises BadValue."""
        self.first = self.first or (prompt, shape)
        check_alike(self.first, (prompt, shape))

    def __call__(self, prompt: int, edited: Tensor, value: Tensor, of: Callable[[Tensor], Tensor]) -> None:
        """edited: a prompt's logits, of which the measure made `value`; of(logits) measures others. Raises BadValue."""
        if self.done:
            return
        if len(edited) > 1:
            half = len(edited) // 2
            together, parts = value, [of(edited[:half]), of(edited[half:])]
        elif self.kept is None or self.kept[0] != prompt:
            self.kept = self.kept or (prompt, edited, value)
            return
        else:
            together, parts = of(torch.cat([self.kept[1], edited])), [self.kept[2], value]
        self.done, self.kept = True, None
        if any(part.shape[1:] != together.shape[1:] for part in parts) or not _equal_up_to_rounding(
            together, torch.cat(parts), edited
        ):
            raise errors.BadValue(
                "this measure gives a copy other numbers when other copies come with it, and a prompt's copies come in "
                "pieces here: let it read each copy by itself and compare copies in the result of the sweep, or give a "
                "larger chunk than {chunk}, so that all come at once.",
                chunk=self.chunk,
            )


def check_alike(first: tuple[int, Sequence[int]], other: tuple[int, Sequence[int]]) -> None:
    """first, other: a prompt, and the shape of what a measure gives for its copies. Raises BadValue."""
    if other[1] != first[1]:
        raise errors.BadValue(
            "this measure gives numbers of shape {wanted} for a copy of prompt {first} and {got} for one of prompt {prompt}, "
            "and one result cannot hold both: give as many for each, for example a mean over positions, or sweep prompts of "
            "each length apart.",
            wanted=tuple(first[1]),
            first=first[0],
            got=tuple(other[1]),
            prompt=other[0],
        )


def _equal_up_to_rounding(a: Tensor, b: Tensor, logits: Tensor) -> bool:
    different = ~((a == b) | ((a != a) & (b != b)))  # NaN is equal to NaN here
    if not a.is_floating_point() or not different.any():
        return not different.any()
    size = sum(one[one.isfinite()].abs().amax().item() if one.isfinite().any() else 0.0 for one in (a, logits))
    eps = max(torch.finfo(one.dtype).eps for one in (a, logits))
    return bool(((a - b).abs()[different] <= 32 * eps * size).all())


def predictions(lm: LanguageModel, target: Targets, contrast: Targets | None = None) -> Measure:
    """How the next-token prediction changes, in columns: change of log p(target) in nats; KL(clean ‖ edited) in nats; 1
    where the most probable token stayed; 1 where it is the target; with a contrast also the changes of log p(contrast) and
    of the logit difference target − contrast. target and contrast: one for all prompts, or one for each.
    """
    columns = ("target", "kl", "same top-1", "target is top-1")
    targets = token_ids(lm, target)
    contrasts = None if contrast is None else token_ids(lm, contrast)

    def compute(outcome: Outcome) -> Tensor:
        edited, clean = outcome.edited, outcome.clean
        wanted = _chosen(targets, outcome.prompt)
        top = edited.argmax(-1)
        edited_logprobs, clean_logprobs = edited.log_softmax(-1), clean.log_softmax(-1)
        found = [
            _change(edited_logprobs[:, wanted], clean_logprobs[wanted]),
            _divergence(clean_logprobs, _change(clean_logprobs, edited_logprobs)),
            (top == clean.argmax(-1)).to(edited),
            (top == wanted).to(edited),
        ]
        if contrasts is not None:
            other = _chosen(contrasts, outcome.prompt)
            found.append(_change(edited_logprobs[:, other], clean_logprobs[other]))
            found.append(found[0] - found[-1])  # the log of a ratio: the normalisation cancels
        return torch.stack(found, dim=-1)

    names = columns if contrast is None else (*columns, "contrast", "logit difference")
    return Measure(compute, names, prompts=_number(targets, contrasts), by_copy=True)


def text_damage() -> Measure:
    """How the prediction of a text suffers, in columns, each a mean over its positions: next-token loss in nats, after −
    before; KL(clean ‖ edited) in nats; share of positions whose most probable token stayed.
    """

    def compute(outcome: Outcome) -> Tensor:
        if len(outcome.ids) < 2:
            raise errors.BadPrompt("a next-token loss needs two tokens or more, but this prompt has one.")
        edited, clean = outcome.edited.log_softmax(-1), outcome.clean.log_softmax(-1)
        change = _change(clean, edited)  # (copies, pos, vocabulary)
        rise = change[:, :-1].gather(-1, outcome.ids[1:, None].expand(len(edited), -1, -1)).squeeze(-1)
        divergence = _divergence(clean, change)
        agreement = (edited.argmax(-1) == clean.argmax(-1)).to(edited)
        return torch.stack([rise.mean(-1), divergence.mean(-1), agreement.mean(-1)], dim=-1)

    return Measure(compute, ("loss", "kl", "same top-1"), every_position=True, by_copy=True)


def log_prob_change(lm: LanguageModel, target: Targets) -> Measure:
    targets = token_ids(lm, target)

    def compute(outcome: Outcome) -> Tensor:
        wanted = _chosen(targets, outcome.prompt)
        # log p = logit − logsumexp: cheaper than a log_softmax of the whole vocabulary for one number.
        after = outcome.edited[:, wanted] - outcome.edited.logsumexp(-1)
        return _change(after, outcome.clean[wanted] - outcome.clean.logsumexp(-1))

    return Measure(compute, prompts=_number(targets), by_copy=True)


def _change(after: Tensor, before: Tensor) -> Tensor:
    """after − before, of log-probabilities: 0 where both are minus infinity, since what was impossible stayed so."""
    impossible = before == -torch.inf
    return (after - before).masked_fill_(impossible & (after == -torch.inf), 0) if impossible.any() else after - before


def _divergence(clean: Tensor, change: Tensor) -> Tensor:
    """KL(clean ‖ edited) over the last axis, from log p(clean) and log p(clean) − log p(edited)."""
    impossible = clean == -torch.inf  # adds nothing
    change = change.masked_fill(impossible, 0) if impossible.any() else change
    return (clean.exp() * change).sum(-1).clamp(min=0)


def token_ids(lm: LanguageModel, target: Targets) -> int | list[int]:
    """The id of a target, or of each of several. Raises TargetIsNotOneToken."""

    def one(value: object) -> int:
        if isinstance(value, str):
            return lm.token_id(value)
        found = whole(value)
        if found is None:
            raise errors.TargetIsNotOneToken(
                "a target must be text, for example ' Germany', or a token id, but this is {kind}.", kind=kind_of(value)
            )
        if not 0 <= found < lm.vocabulary:
            raise errors.TargetIsNotOneToken(
                "token id {found} does not exist: this model has tokens 0 to {vocabulary}.",
                found=found,
                vocabulary=lm.vocabulary - 1,
            )
        return found

    several = (
        not isinstance(target, str)
        and whole(target) is None
        and isinstance(target, Iterable)
        and getattr(target, "ndim", 1) > 0
    )
    return [one(value) for value in target] if several else one(target)  # type: ignore[union-attr]


def _chosen(ids: int | list[int], prompt: int) -> int:
    return ids if isinstance(ids, int) else ids[prompt]


def _number(*given: int | list[int] | None) -> int | None:
    """How many prompts these token ids are for, None if for any number."""
    numbers = {len(ids) for ids in given if isinstance(ids, list)}
    if len(numbers) > 1:
        raise errors.BadValue(
            "targets and contrasts differ in number, {numbers}: give one for each prompt.", numbers=sorted(numbers)
        )
    return numbers.pop() if numbers else None
