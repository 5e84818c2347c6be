"""Lesson 4's claims about head ablation, 4.1 to 4.6: measured on one prompt and over many, then judged.

    show_ledger(ledger(lm, "Berlin is the capital of"))

A verdict function takes numbers and returns a Claim; it knows no model. Changes are in nats, without the head minus with
it. An interval is (mean, low, high): a mean over prompts and its 95 % bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.countries import CapitalPrompt, capital_prompts
from helpers.edits import zero_heads
from helpers.measures import predictions
from helpers.metrics import bootstrap_interval, log_prob
from helpers.models import LanguageModel
from helpers.sweeps import Progress, Replacement, sweep_edits, sweep_heads
from helpers.tables import format_number
from helpers.tracing import trace

Interval = tuple[float, float, float]
REPLACEMENTS: tuple[Replacement, ...] = ("zero", "mean", "resample")
MANY = 60  # country prompts of a study
MOSTLY = 0.9  # a claim about all removals holds in part when this share of them agrees


def verdict_4_1(here: Sequence[float], many: Sequence[Interval]) -> Claim:
    """here: change of log p(target) for each head of the block on the prompt; many: the same over many prompts."""
    return _most_heads("4.1", "log p(target) falls for most heads", "falls", here, many, -1)


def verdict_4_2(here: Sequence[float], many: Sequence[Interval], share: Interval) -> Claim:
    """here, many: as in 4.1, for the contrast. share: change of log p(contrast | not the target), over all heads."""
    claim = _most_heads("4.2", "log p(contrast) rises", "rises", here, many, 1)
    if share[1] > 0:
        note = "the contrast gains more than its share of what leaves the target"
    elif share[2] < 0:
        note = "among the tokens that are not the target it even loses ground"
    else:
        note = "among the tokens that are not the target no sure gain: what the target loses is shared out"
    measured = f"{claim.measured}; share of the rest {_interval(share)}"
    return Claim(claim.number, claim.says, measured, claim.verdict, f"{claim.why}; {note}")


def _most_heads(number: str, says: str, verb: str, here: Sequence[float], many: Sequence[Interval], sign: int) -> Claim:
    n = len(here)
    hits = sum(value * sign > 0 for value in here)
    beside = sum(low > 0 if sign > 0 else high < 0 for _, low, high in many)
    against = sum(high < 0 if sign > 0 else low > 0 for _, low, high in many)
    measured = (
        f"{verb} for {hits} of {n} heads on this prompt; over many prompts surely for {beside}, "
        f"surely the other way for {against}"
    )
    on_one, on_many = hits > n / 2, beside > n / 2
    if on_one and on_many:
        return Claim(number, says, measured, HOLDS, "most heads on this prompt, and most over many prompts")
    if on_one:
        return Claim(number, says, measured, PARTLY, "true of this prompt; over many prompts not of most heads")
    if on_many:
        return Claim(number, says, measured, PARTLY, "not on this prompt, but over many prompts for most heads")
    return Claim(number, says, measured, FAILS, "not for most heads, neither on this prompt nor over many")


def verdict_4_3(first: bool, kept: int, heads: int, kept_many: int, pairs: int) -> Claim:
    """first: the target is the clean top token of the prompt; kept: for how many of `heads` removals it still is.

    pairs: removals of a head over all prompts whose clean top token is their target; kept_many: how many keep it.
    """
    says = f"the target stays top-1 in all {heads}"
    measured = (
        f"top-1 without any edit: {'yes' if first else 'no'}; with a head off {kept} of {heads}; "
        f"over many prompts {kept_many} of {pairs} removals"
    )
    here, beyond = first and kept == heads, 0 < pairs == kept_many
    if here and beyond:
        return Claim("4.3", says, measured, HOLDS, "on this prompt and on every other that the model gets right")
    if here:
        why = f"here it does; elsewhere {pairs - kept_many} of {pairs} removals cost the first place"
        return Claim("4.3", says, measured, PARTLY, why if pairs else "here it does; no other prompt can test it")
    if beyond:
        return Claim("4.3", says, measured, PARTLY, "not on this prompt, but on every prompt that the model gets right")
    why = "a removal costs the target its first place" if first else "the target is not first even with every head"
    if pairs and kept_many >= MOSTLY * pairs:
        return Claim("4.3", says, measured, PARTLY, f"{why}; over many prompts nearly every removal leaves it there")
    return Claim("4.3", says, measured, FAILS, f"{why}, and removals over many prompts cost it too" if pairs else why)


def verdict_4_4(here: Sequence[float], kept: Sequence[bool], silent: float, hidden: float) -> Claim:
    """here: change of the logit difference for each head on the prompt; kept: whether the top token stayed the same.

    silent: the share of removals over many prompts that keep the top token; hidden: their share of all movement, the sum
    of |change of the logit difference|.
    """
    says = "continuous measures show what the top-1 hides"
    same = [value for value, stays in zip(here, kept, strict=True) if stays]
    moved = f" while the logit difference moves by {_n(min(same))} to {_n(max(same))} nats" if same else ""
    measured = (
        f"here the top token stays for {len(same)} of {len(here)} heads{moved}; over many prompts for "
        f"{_n(100 * silent)} % of removals, which hold {_n(100 * hidden)} % of all movement"
    )
    if hidden > 0.5:
        return Claim("4.4", says, measured, HOLDS, "most of what the logit difference sees never reaches the top token")
    if hidden > 0.1:
        return Claim("4.4", says, measured, PARTLY, "part of the movement is hidden, but most shows in the top token")
    return Claim("4.4", says, measured, FAILS, "where the top token stays, hardly anything moves")


def verdict_4_5(share: float, alone: Interval, together: Interval, extra: Interval) -> Claim:
    """share: the strongest head's part of the sum of |mean changes|. alone: the sum of the heads' single changes of log
    p(target); together: the change with all of them off at once; extra: together − alone, prompt by prompt.
    """
    says = "heads act as distributed, redundant circuits"
    measured = (
        f"strongest head {_n(100 * share)} % of all change; one at a time {_n(alone[0])}, "
        f"all at once {_n(together[0])} nats, difference {_interval(extra)}"
    )
    distributed, redundant = share <= 0.5, extra[2] < 0
    if together[2] >= 0:
        return Claim("4.5", says, measured, FAILS, "all heads off at once cost nothing here: there is no work to share")
    if distributed and redundant:
        why = "no head carries half, and together they are worth more than their sum: each covers for others"
        return Claim("4.5", says, measured, HOLDS, why)
    if distributed:
        how = "no more than" if extra[1] > 0 else "about"
        return Claim(
            "4.5", says, measured, PARTLY, f"distributed, but all at once cost {how} the sum: no redundancy seen"
        )
    if redundant:
        return Claim("4.5", says, measured, PARTLY, "redundant, but one head carries more than half of the change")
    return Claim("4.5", says, measured, FAILS, "one head carries more than half, and nothing covers for it")


def verdict_4_6(damage: Mapping[str, Interval], gaps: Mapping[str, Interval], strongest: Mapping[str, int]) -> Claim:
    """damage: replacement -> mean KL(clean ‖ edited) over the heads; gaps: "zero − mean" … -> the difference, prompt by
    prompt; strongest: replacement -> the head with the largest mean KL.
    """
    says = "open question: zero, mean, or something else? (tested: the choice matters)"
    measured = "KL " + ", ".join(f"{name} {_n(value[0])}" for name, value in damage.items())
    measured += "; " + ", ".join(f"{name} {_interval(value)}" for name, value in gaps.items())
    apart = [name for name, (_, low, high) in gaps.items() if low > 0 or high < 0]
    mildest = min(damage, key=lambda name: damage[name][0])
    heads = ", ".join(f"{head} ({name})" for name, head in strongest.items())
    names = "the same strongest head" if len(set(strongest.values())) == 1 else f"different strongest heads: {heads}"
    if len(apart) == len(gaps):
        return Claim("4.6", says, measured, HOLDS, f"all differ; {mildest} disturbs least, and they name {names}")
    if apart:
        why = f"surely different: {'; '.join(apart)}; {mildest} disturbs least, and they name {names}"
        return Claim("4.6", says, measured, PARTLY, why)
    return Claim("4.6", says, measured, FAILS, f"no two replacements differ surely, and they name {names}")


VERDICTS: dict[str, Callable[..., Claim]] = {
    "4.1": verdict_4_1,
    "4.2": verdict_4_2,
    "4.3": verdict_4_3,
    "4.4": verdict_4_4,
    "4.5": verdict_4_5,
    "4.6": verdict_4_6,
}


# ---- measuring


@dataclass(frozen=True)
class Study:
    """One block's heads over many prompts.

    changes: replacement -> column of `predictions` -> (n_prompts, n_heads). together: (n_prompts,) change of log p(target)
    with all heads of the block at zero. clean: (n_prompts,) log p(target) without an edit. right: (n_prompts,) bool, the
    clean top token is the target.
    """

    block: int
    facts: tuple[CapitalPrompt, ...]
    changes: Mapping[str, Mapping[str, Tensor]]
    together: Tensor
    clean: Tensor
    right: Tensor

    def share_of_the_rest(self) -> Tensor:
        """(n_prompts, n_heads) change of log p(contrast | not the target), in nats, with heads at zero.

        When the target loses, every other token gains, if only in proportion. This is what the contrast gains beyond that.
        """
        zero = self.changes["zero"]
        before = torch.log1p(-self.clean.exp())[:, None]
        after = torch.log1p(-(self.clean[:, None] + zero["target"]).exp())
        return zero["contrast"] - (after - before)


def study_heads(
    lm: LanguageModel,
    facts: Sequence[CapitalPrompt],
    block: int,
    replacements: Sequence[Replacement] = REPLACEMENTS,
    generator: torch.Generator | None = None,
    progress: Progress = None,
) -> Study:
    """Ablate each head of a block on every prompt, with each replacement ("zero" is always among them).

    The mean is over all tokens of all prompts; a resampled head comes from another of the prompts, drawn with `generator`
    (seed 0 by default), as `sweep_heads` says.
    """
    prompts = [fact.prompt for fact in facts]
    targets, contrasts = [fact.target for fact in facts], [fact.contrast for fact in facts]
    measure = predictions(lm, targets, contrasts)
    changes: dict[str, dict[str, Tensor]] = {}
    names: list[Replacement] = ["zero", *replacements]
    for name in dict.fromkeys(names):
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        found = sweep_heads(
            lm, prompts, blocks=[block], measure=measure, replacement=name, generator=draw, progress=progress
        )
        changes[name] = dict(zip(measure.columns, found[:, 0].unbind(-1), strict=True))
    everything = zero_heads(block, list(range(lm.n_heads)))
    together = sweep_edits(lm, prompts, [everything], targets, progress=progress)[:, 0]
    clean_logits = trace(lm, prompts).last_logits
    ids = torch.tensor([lm.token_id(target) for target in targets], device=lm.device)
    clean, right = log_prob(clean_logits, ids).cpu(), (clean_logits.argmax(-1) == ids).cpu()
    return Study(block, tuple(facts), changes, together, clean, right)


def intervals(values: Tensor, seed: int = 0) -> list[Interval]:
    """(mean, low, high) of each column of (n_prompts, n): the mean over prompts and its 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(seed)
    return [bootstrap_interval(column, generator) for column in values.unbind(1)]


def interval(values: Tensor, seed: int = 0) -> Interval:
    """(mean, low, high) of (n_prompts,) values."""
    return bootstrap_interval(values, torch.Generator().manual_seed(seed))


def ledger(
    lm: LanguageModel,
    prompt: str,
    target: str = " Germany",
    contrast: str = " France",
    block: int | None = None,
    study: Study | None = None,
) -> list[Claim]:
    """Measure lesson 4's claims on `lm` and judge them.

    block: block 5, or the middle one of a model with fewer. study: many prompts that were measured before, of the same
    block; by default up to 60 country prompts. Raises TargetIsNotOneToken, BadPrompt, PromptTooLong, BlockOutOfRange.
    """
    if block is None:
        block = study.block if study else min(5, lm.n_blocks // 2)
    if study is None:
        available = len(capital_prompts(lm))
        study = study_heads(lm, capital_prompts(lm, min(MANY, available)), block)
    measure = predictions(lm, target, contrast)
    found = sweep_edits(lm, prompt, [zero_heads(block, h) for h in range(lm.n_heads)], measure=measure, progress=False)
    here = dict(zip(measure.columns, found.unbind(-1), strict=True))
    first = bool(trace(lm, prompt).last_logits[0].argmax() == lm.token_id(target))
    return [
        verdict_4_1(here["target"].tolist(), intervals(study.changes["zero"]["target"])),
        verdict_4_2(
            here["contrast"].tolist(),
            intervals(study.changes["zero"]["contrast"]),
            interval(study.share_of_the_rest().mean(1)),
        ),
        verdict_4_3(first, int(here["target is top-1"].sum()), lm.n_heads, *_kept(study)),
        verdict_4_4(
            here["logit difference"].tolist(),
            here["same top-1"].bool().tolist(),
            *hidden_movement(study.changes["zero"]["logit difference"], study.changes["zero"]["same top-1"].bool()),
        ),
        verdict_4_5(**cooperation(study)),
        verdict_4_6(**compare_replacements(study)),
    ]


def hidden_movement(changes: Tensor, kept: Tensor) -> tuple[float, float]:
    """(silent, hidden): the share of removals that keep the top token, and their share of all movement, the sum of |change|.

    changes, kept: of one shape, nats and bool.
    """
    size = changes.abs()
    return float(kept.double().mean()), float(size[kept].sum() / size.sum()) if float(size.sum()) else 0.0


def cooperation(study: Study) -> dict[str, Any]:
    """The arguments of `verdict_4_5`: how the block's heads share their work, with heads at zero."""
    single = study.changes["zero"]["target"]
    size = single.mean(0).abs()
    return {
        "share": float(size.max() / size.sum()) if float(size.sum()) else 1.0,
        "alone": interval(single.sum(1)),
        "together": interval(study.together),
        "extra": interval(study.together - single.sum(1)),
    }


def compare_replacements(study: Study) -> dict[str, Any]:
    """The arguments of `verdict_4_6`: how much each replacement disturbs the prediction."""
    divergence = {name: columns["kl"] for name, columns in study.changes.items()}
    names = list(divergence)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {
        "damage": {name: interval(values.mean(1)) for name, values in divergence.items()},
        "gaps": {f"{a} − {b}": interval((divergence[a] - divergence[b]).mean(1)) for a, b in pairs},
        "strongest": {name: int(values.mean(0).argmax()) for name, values in divergence.items()},
    }


def _kept(study: Study) -> tuple[int, int]:
    """How many removals keep the target first, and how many there are, on the prompts that the model gets right."""
    kept = study.changes["zero"]["target is top-1"][study.right]
    return int(kept.sum()), kept.numel()


def _interval(value: Interval) -> str:
    return f"{_n(value[0])} [{_n(value[1])}, {_n(value[2])}]"


def _n(value: float) -> str:
    return format_number(float(value), 3)
