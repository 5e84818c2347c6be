"""Lesson 2's claims about hooks and hidden states, 2.1 to 2.5: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

A verdict function takes numbers and returns a Claim; it knows no model. The report looks at one block, from hidden state
10 to 11 of 12: the last block but one. Where its sentence speaks of every block, every block is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.correlations import (
    correlation,
    correlation_per_dimension,
    random_step_correlation,
    within_percentile,
)
from helpers.hooks import on_site, remove
from helpers.models import LanguageModel, Tokens
from helpers.tables import below, format_number
from helpers.tracing import Trace, trace

NEAR_ONE = 0.95  # r from here on counts as "≈ 1"
SLIGHT = 1 / 3  # a step longer than this, beside the stream, is no slight change (r ≈ 0.95 if it were random)
# What 99 % of the values fill of the axis: hardly visible up to the first, well visible from the second.
NARROW, WIDE = 1 / 3, 2 / 3
GPT2_DROPOUT = 0.1  # the probability that GPT-2 was trained with, and its config still has


def verdict_2_1(misses: Sequence[float], against_hidden_state: float, tolerance: float) -> Claim:
    """misses: for each block, how far H + Δ attention + Δ MLP is from the stream after it, as a share of its norm.
    against_hidden_state: the same for the last block, against `hidden_states[-1]`. tolerance: what rounding allows."""
    says = "H_l + Δ attention + Δ MLP is exactly H_l+1, read from output.hidden_states"
    n = len(misses)
    wrong = [block for block, miss in enumerate(misses) if not miss <= tolerance]
    measured = (
        f"largest miss over {n} blocks {below(max(misses), max(tolerance, 1e-12))} of the state; "
        f"last block against hidden_states[-1]: {_n(against_hidden_state)} times its length"
    )
    if wrong:
        why = f"the sum misses the stream after {len(wrong)} of {n} blocks, first at block {wrong[0]}"
        return Claim("2.1", says, measured, FAILS, why)
    if against_hidden_state > tolerance:
        why = f"exact after all {n} blocks; but hidden_states[-1] is taken after the final norm, so there the sum fails"
        return Claim("2.1", says, measured, PARTLY, why)
    return Claim("2.1", says, measured, HOLDS, f"exact after all {n} blocks, the last hidden state included")


def verdict_2_2(
    block: int, everywhere: Sequence[float], without_first: float, without_outliers: float, per_dimension: float,
    by_chance: float, step: float,
) -> Claim:  # fmt: skip
    """everywhere: r between input and output of each block, over all values. For `block`: r without the first token,
    without 1 % outliers, the median of r per dimension, the r that a random step of the same size would give, and the
    length of its step as a share of the stream's, without the first token: r cannot see a stream that is merely stretched."""
    says = "H_10 and H_11 correlate with r ≈ 1: a block changes its hidden state only slightly"
    r = everywhere[block]
    measured = (
        f"block {block}: r = {_n(r)}, without the first token {_n(without_first)}, without outliers {_n(without_outliers)}, "
        f"per dimension {_n(per_dimension)}, step / stream {_n(step)}; all blocks {_n(min(everywhere))} to {_n(max(everywhere))}"
    )
    chance = f"a random step of the same size would give {_n(by_chance)}"
    if not r >= NEAR_ONE:
        return Claim("2.2", says, measured, FAILS, f"r is below {NEAR_ONE} at block {block}; {chance}")
    owed = {"the first token": without_first, "outliers": without_outliers, "what all tokens share": per_dimension}
    owed_to = [name for name, value in owed.items() if not value >= NEAR_ONE]
    far = [i for i, value in enumerate(everywhere) if not value >= NEAR_ONE]
    doubts = [f"without {' or '.join(owed_to)} r falls below {NEAR_ONE}"] if owed_to else []
    if far:
        low = min(far, key=lambda i: everywhere[i])
        doubts.append(f"{len(far)} of {len(everywhere)} blocks stay below {NEAR_ONE}, block {low} most")
    if not step <= SLIGHT:
        doubts.append(f"the step is {_n(step)} times as long as the stream, which is not slight")
    if doubts:
        return Claim("2.2", says, measured, PARTLY, f"near 1 at block {block}, but {', and '.join(doubts)}; {chance}")
    return Claim("2.2", says, measured, HOLDS, f"near 1 at every block and in every way of counting; {chance}")


def verdict_2_3(filled: float, masked: int, at_first: int, r: float, r_masked: float) -> Claim:
    """filled: share of the axis that 99 % of the values fill; masked: outliers, at_first: how many of them at the first
    token; r before and after masking."""
    says = "masking the outliers makes the remaining 99 % visible"
    measured = f"99 % of the values fill {_n(100 * filled)} % of the axis; r {_n(r)} → {_n(r_masked)} without them"
    where = f"{at_first} of {masked} outliers sit at the first token"
    if filled <= NARROW:
        why = f"without the outliers the rest is drawn {_n(1 / filled)} times as large; {where}"
        return Claim("2.3", says, measured, HOLDS, why)
    if filled <= WIDE:
        why = f"the rest gains by {_n(1 / filled)} times only: it was visible, if small; {where}"
        return Claim("2.3", says, measured, PARTLY, why)
    return Claim("2.3", says, measured, FAILS, f"the rest fills most of the axis anyway: nothing hid it; {where}")


def verdict_2_4(probability: float, as_it_is: float, with_dropout: float) -> Claim:
    """probability: the largest dropout probability of the model. as_it_is, with_dropout: how far two passes in train mode
    differ, as a share of what is recorded: with the model's own probability, and with GPT-2's."""
    says = "in train mode the recorded activations are random, because dropout is on"
    measured = (
        f"two passes in train mode differ by {_n(100 * as_it_is)} % with the model's p = {_n(probability)}, "
        f"by {_n(100 * with_dropout)} % with p = {_n(GPT2_DROPOUT)}"
    )
    if as_it_is > 0:
        return Claim("2.4", says, measured, HOLDS, "two passes over the same prompt give two recordings")
    if with_dropout > 0:
        why = "the mode alone makes nothing random: it takes a probability above 0, and this model's is 0"
        return Claim("2.4", says, measured, PARTLY, why)
    return Claim("2.4", says, measured, FAILS, "this model has no dropout: train() changes nothing in it")


def verdict_2_5(train: bool, evaluated: bool, train_no_grad: bool) -> Claim:
    """Does a recorded delta carry a graph (requires_grad) in train mode, in eval mode, in train mode under no_grad()?"""
    says = ".detach() is needed outside eval mode, and eval() switches gradients off"
    told = {"train()": train, "eval()": evaluated, "train() with no_grad()": train_no_grad}
    measured = "a recorded delta carries a graph: " + ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in told.items())
    if not train:
        return Claim("2.5", says, measured, FAILS, "in train mode nothing carries a graph here: detach is not needed")
    if evaluated:
        why = "first half only: eval() switches no gradient off, so detach is needed there too"
        why += "" if train_no_grad else "; no_grad() makes it needless"
        return Claim("2.5", says, measured, PARTLY, why)
    return Claim("2.5", says, measured, HOLDS, "in eval mode nothing carries a graph")


VERDICTS: dict[str, Callable[..., Claim]] = {
    "2.1": verdict_2_1,
    "2.2": verdict_2_2,
    "2.3": verdict_2_3,
    "2.4": verdict_2_4,
    "2.5": verdict_2_5,
}


def ledger(lm: LanguageModel, prompt: str | Tensor) -> list[Claim]:
    """Measure lesson 2's claims on `lm` and judge them. The prompt needs three tokens or more.

    The model's mode and dropout are as before afterwards. Raises BadPrompt, PromptTooLong, BadValue.
    """
    tokens = lm.encode(prompt)
    clean = trace(lm, tokens)
    block = max(0, lm.n_blocks - 2)
    before, after = clean.resid[block], clean.resid[block + 1]
    keep = within_percentile(before, after, 99)
    first = torch.zeros_like(keep)
    first[:, 0] = True
    size = torch.maximum(before.abs(), after.abs())
    pairs = list(zip(clean.resid[:-1], clean.resid[1:], strict=True))
    return [
        verdict_2_1(*_reconstruction(lm, tokens, clean)),
        verdict_2_2(
            block,
            [correlation(a, b) for a, b in pairs],
            correlation(before[:, 1:], after[:, 1:]),
            correlation(before[keep], after[keep]),
            float(correlation_per_dimension(before, after).median()),
            random_step_correlation(before, after),
            float((after - before)[:, 1:].norm() / before[:, 1:].norm()),
        ),
        verdict_2_3(
            float(size[keep].max() / size.max()),
            int((~keep).sum()),
            int((~keep & first).sum()),
            correlation(before, after),
            correlation(before[keep], after[keep]),
        ),
        verdict_2_4(*_train_mode(lm, tokens)),
        verdict_2_5(
            _carries_graph(lm, tokens, train=True),
            _carries_graph(lm, tokens, train=False),
            _carries_graph(lm, tokens, train=True, grad=False),
        ),
    ]


@contextmanager
def train_mode(lm: LanguageModel, probability: float | None = None) -> Iterator[None]:
    """Put the model into train mode with a fixed seed, and all its dropout modules to `probability`; undone at the end."""
    modes = {module: module.training for module in lm.model.modules()}
    dropouts = {module: module.p for module in lm.model.modules() if isinstance(module, nn.Dropout)}
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            lm.model.train()
            for module in dropouts:
                module.p = module.p if probability is None else probability
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module, p in dropouts.items():
                module.p = p


def _reconstruction(lm: LanguageModel, tokens: Tokens, clean: Trace) -> tuple[list[float], float, float]:
    rebuilt = clean.resid[:-1] + clean.attn + clean.mlp
    misses = [_share(sum_, state) for sum_, state in zip(rebuilt, clean.resid[1:], strict=True)]
    with torch.no_grad():
        last = lm.model(**lm.inputs(tokens), output_hidden_states=True).hidden_states[-1]
    return misses, _share(rebuilt[-1], last), 1e3 * torch.finfo(lm.dtype).eps


def _train_mode(lm: LanguageModel, tokens: Tokens) -> tuple[float, float, float]:
    """The model's dropout probability, and how far the deltas of two passes in train mode differ: as it is, and with GPT-2's p."""
    found = []
    for probability in (None, GPT2_DROPOUT):
        with train_mode(lm, probability):
            one, other = trace(lm, tokens), trace(lm, tokens)
        deltas = [torch.stack([run.attn, run.mlp]) for run in (one, other)]
        found.append(_share(deltas[1], deltas[0]))
    own = [module.p for module in lm.model.modules() if isinstance(module, nn.Dropout)]
    return max(own, default=0.0), found[0], found[1]


def _carries_graph(lm: LanguageModel, tokens: Tokens, train: bool, grad: bool = True) -> bool:
    """Does what a hook receives require grad?"""
    seen: list[bool] = []
    handles = on_site(lm, "mlp", 0, lambda value, _: seen.append(value.requires_grad))
    try:
        with train_mode(lm), torch.set_grad_enabled(grad):
            lm.model.train(train)
            lm.model(**lm.inputs(tokens))
    finally:
        remove(handles)
    return seen[0]


def _share(value: Tensor, target: Tensor) -> float:
    """‖value − target‖ / ‖target‖."""
    return float((value - target).norm() / target.norm())


def _n(value: float) -> str:
    return format_number(float(value), 3)
