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
FEW = 0.25  # of the heads: where fewer hold half of all change the work is not distributed, and so few sure shifts may be luck


def verdict_4_1(here: Sequence[float], many: Sequence[Interval]) -> Claim:
    """here: change of log p(target) for each head of the block on the prompt; many: the same over many prompts."""
    return _most_heads("4.1", "log p(target) falls for most heads", "falls", here, many, -1)


def verdict_4_2(here: Sequence[float], many: Sequence[Interval], share: Interval) -> Claim:
    """here, many: as in 4.1, for the contrast. share: change of log p(contrast | not the target), over all heads."""
    claim = _most_heads("4.2", "log p(contrast) rises", "rises", here, many, 1)
    if share[1] > 0:
        note = "among the tokens that are not the target the contrast gains more than its share"
    elif share[2] < 0:
        note = "among the tokens that are not the target it even loses ground"
    else:
        note = "among the tokens that are not the target its gain is not sure"
    measured = f"{claim.measured}; beyond its share {_interval(share)} nats"
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
    if on_many:
        return Claim(number, says, measured, PARTLY, "not on this prompt, but over many prompts for most heads")
    beyond = "over many prompts surely not of most" if against >= n / 2 else "over many prompts no sure majority"
    if on_one:
        return Claim(number, says, measured, PARTLY, f"true of most heads on this prompt; {beyond}")
    return Claim(number, says, measured, FAILS, f"not true of most heads on this prompt; {beyond}")


def verdict_4_3(first: bool, kept: int, heads: int, kept_many: int, many: int) -> Claim:
    """first: the target is the clean top token of the prompt; kept: for how many of `heads` removals it still is.

    many: the prompts whose clean top token is their target; kept_many: how many of them keep it through every removal.
    """
    says = f"the target stays top-1 in all {heads}"
    measured = (
        f"top-1 without any edit: {'yes' if first else 'no'}; with a head off {kept} of {heads}; "
        f"in all {heads} on {kept_many} of the {many} prompts that the model gets right"
    )
    if first and kept == heads:
        if 0 < many == kept_many:
            return Claim("4.3", says, measured, HOLDS, "on this prompt and on every other that the model gets right")
        why = f"here it does; on {many - kept_many} of {many} prompts a removal costs the first place"
        return Claim("4.3", says, measured, PARTLY, why if many else "here it does; no other prompt can test it")
    why = "a removal costs the target its first place" if first else "the target is not first even with every head"
    if 2 * kept_many > many:
        return Claim("4.3", says, measured, PARTLY, f"here {why}; most prompts that the model gets right keep it")
    return Claim("4.3", says, measured, FAILS, f"{why}, and on most prompts a removal costs it too" if many else why)


def verdict_4_4(here: Sequence[float], kept: Sequence[bool], silent: float, hidden: float, sure: int) -> Claim:
    """here: change of the logit difference for each head on the prompt; kept: whether the top token stayed the same.

    Over many prompts, of the removals that keep the top token: silent, their share of all removals; hidden, their share of
    all movement, the sum of |change of the logit difference|; sure, the heads whose mean change in them is surely not 0.
    """
    says = "continuous measures show what the top-1 hides"
    heads = len(here)
    same = [value for value, stays in zip(here, kept, strict=True) if stays]
    moved = f" while the logit difference moves by {_n(min(same))} to {_n(max(same))} nats" if same else ""
    measured = (
        f"here the top token stays for {len(same)} of {heads} heads{moved}; over many prompts for "
        f"{_n(100 * silent)} % of removals, which hold {_n(100 * hidden)} % of all movement; the shift is sure for {sure} heads"
    )
    if hidden <= 0.1:
        return Claim("4.4", says, measured, FAILS, "where the top token stays, hardly anything moves")
    if not sure:
        return Claim("4.4", says, measured, FAILS, "what moves behind the same top token is sure for no head")
    if hidden <= 0.5:
        return Claim("4.4", says, measured, PARTLY, "part of the movement is hidden, but most shows in the top token")
    if sure <= FEW * heads:
        return Claim("4.4", says, measured, PARTLY, "much moves behind the same top token, but surely so for few heads")
    why = "most of what the logit difference sees never reaches the top token, and it is not chance"
    return Claim("4.4", says, measured, HOLDS, why)


def verdict_4_5(half: int, heads: int, together: Interval, extra: Interval, extra_logits: Interval) -> Claim:
    """half: how many of `heads` hold half of the sum of |mean changes of log p(target)|. together: the change with all of
    them off at once; extra: together minus the sum of the single changes, prompt by prompt; extra_logits: the same of the
    logit difference, which knows no ceiling as a probability does.
    """
    says = "heads act as distributed, redundant circuits"
    measured = (
        f"half of all change sits in {half} of {heads} heads; all at once {_interval(together)} nats, which differs from "
        f"the sum of single ones by {_interval(extra)}; in the logit difference by {_interval(extra_logits)}"
    )
    if together[2] >= 0:
        why = "with all heads off the target surely gains" if together[1] > 0 else "no sure cost of all heads at once"
        return Claim("4.5", says, measured, FAILS, f"{why}: there is no loss to share")
    distributed, in_log_p, in_logits = half >= FEW * heads, extra[2] < 0, extra_logits[2] < 0
    if in_log_p and in_logits:
        if distributed:
            why = "many heads have a part in it, and together they are worth more than their sum, by both measures"
            return Claim("4.5", says, measured, HOLDS, why)
        return Claim("4.5", says, measured, PARTLY, "worth more together than their sum, but a few heads do most of it")
    if in_log_p:
        why = "more than the sum in log p alone, which the bend of the softmax can do: no redundancy shown"
    elif in_logits:
        why = "more than the sum against the contrast alone, not in log p: no redundancy shown"
    else:
        why = "all at once surely cost no more than the sum" if extra[1] > 0 else "no sure cost beyond the sum"
        why += ": no redundancy seen"
    if distributed:
        return Claim("4.5", says, measured, PARTLY, f"distributed, but {why}")
    return Claim("4.5", says, measured, FAILS, f"a few heads do most of it, and {why}")


def verdict_4_6(damage: Mapping[str, Interval], gaps: Mapping[str, Interval], strongest: Mapping[str, int]) -> Claim:
    """damage: replacement -> mean KL(clean ‖ edited) over the heads; gaps: "zero − mean" … -> the difference, prompt by
    prompt; strongest: replacement -> the head with the largest mean KL.
    """
    says = "open question: zero, mean, or something else? (tested: the choice matters)"
    measured = "KL " + ", ".join(f"{name} {_n(value[0])}" for name, value in damage.items())
    measured += "; " + ", ".join(f"{name} {_interval(value)}" for name, value in gaps.items())
    apart = [name for name, (_, low, high) in gaps.items() if low > 0 or high < 0]
    mildest = min(damage, key=lambda name: damage[name][0])
    doubt = [name for name in gaps if mildest in name.split(" − ") and name not in apart]
    least = f"{mildest} disturbs least{', but not surely' if doubt else ''}"
    heads = ", ".join(f"{head} ({name})" for name, head in strongest.items())
    names = "the same strongest head" if len(set(strongest.values())) == 1 else f"different strongest heads: {heads}"
    if len(apart) == len(gaps):
        return Claim("4.6", says, measured, HOLDS, f"all differ; {least}, and they name {names}")
    if apart:
        why = f"surely different: {'; '.join(apart)}; {least}, and they name {names}"
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

    changes: replacement -> column of `predictions` -> (n_prompts, n_heads). together: column -> (n_prompts,), with all heads
    of the block at zero. clean: (n_prompts,) log p(target) without an edit. right: (n_prompts,) bool, the
    clean top token is the target.
    """

    block: int
    facts: tuple[CapitalPrompt, ...]
    changes: Mapping[str, Mapping[str, Tensor]]
    together: Mapping[str, Tensor]
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

    The mean is over all prompts, one for each position; a resampled head comes from another of the prompts, drawn with `generator`
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
    found = sweep_edits(lm, prompts, [everything], measure=measure, progress=progress)[:, 0]
    together = dict(zip(measure.columns, found.unbind(-1), strict=True))
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
    found = sweep_heads(lm, prompt, blocks=[block], measure=measure, progress=False)[0]
    here = dict(zip(measure.columns, found.unbind(-1), strict=True))
    first = bool(trace(lm, prompt).last_logits[0].argmax() == lm.token_id(target))
    moved, stays = (study.changes["zero"][name] for name in ("logit difference", "same top-1"))
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
            *hidden_movement(moved, stays.bool()),
            sure_shifts(moved, stays.bool()),
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


def sure_shifts(changes: Tensor, kept: Tensor) -> int:
    """For how many heads the mean change over the prompts that keep the top token is surely not 0.

    changes, kept: (n_prompts, n_heads), nats and bool. A head with fewer than two such prompts is not counted.
    """
    columns = [values[stays] for values, stays in zip(changes.unbind(1), kept.unbind(1), strict=True)]
    found = [interval(values) for values in columns if len(values) > 1]
    return sum(low > 0 or high < 0 for _, low, high in found)


def cooperation(study: Study) -> dict[str, Any]:
    """The arguments of `verdict_4_5`: how the block's heads share their work, with heads at zero."""
    single, together = study.changes["zero"], study.together
    size = single["target"].mean(0).abs().sort(descending=True).values
    return {
        "half": int((size.cumsum(0) < size.sum() / 2).sum()) + 1,
        "heads": len(size),
        "together": interval(together["target"]),
        "extra": interval(together["target"] - single["target"].sum(1)),
        "extra_logits": interval(together["logit difference"] - single["logit difference"].sum(1)),
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
    """On how many prompts the target stays first through every removal, and how many prompts the model gets right."""
    kept = study.changes["zero"]["target is top-1"][study.right]
    return int(kept.bool().all(1).sum()), len(kept)


def _interval(value: Interval) -> str:
    return f"{_n(value[0])} [{_n(value[1])}, {_n(value[2])}]"


def _n(value: float) -> str:
    return format_number(float(value), 3)
