"""Lesson 2's claims about hooks and hidden states, 2.1 to 2.5: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

The report looks at one block, from hidden state 10 to 11 of 12: the last block but one. Where its sentence speaks of every
block, every block is measured. Lists have one entry for each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helpers.correlations import (
    correlation,
    correlation_per_dimension,
    random_step_correlation,
    within_percentile,
)
from helpers.course.ledger import (
    CONSTRUCTION,
    FAILS,
    HOLDS,
    PARTLY,
    UNTESTED,
    Claim,
    Keep,
    Part,
    Prompt,
    Table2,
    compute_now,
    judge,
    middle,
    n,
    several,
)
from helpers.hooks import on_site, remove
from helpers.models import LanguageModel, Tokens
from helpers.say import say
from helpers.tables import below, format_number
from helpers.tracing import Trace, trace

NEAR_ONE = 0.95  # r from here on counts as "≈ 1"
SLIGHT = 1 / 3  # a step longer than this, beside the stream, is no slight change (r ≈ 0.95 if it were random)
NARROW = 0.1  # of the axis: where 99 % of the values fill no more, they are hardly visible
GPT2_DROPOUT = 0.1  # the probability that GPT-2 was trained with, and its config still has


def verdict_2_1(misses: Table2, against_hidden_state: Sequence[float], tolerance: float) -> Claim:
    """misses: for each block, how far H + Δ attention + Δ MLP is from the stream after it, as a share of its norm.
    against_hidden_state: the same for the last block, against `hidden_states[-1]`. tolerance: what rounding allows."""
    says = say("H_l + Δ attention + Δ MLP is exactly H_l+1, read from output.hidden_states")
    number, blocks = len(misses), len(misses[0])
    largest = max((miss for row in misses for miss in row), key=lambda miss: (miss != miss, miss))  # NaN is the largest
    measured = say(
        "largest miss {largest} of the state, over {blocks} blocks and {number} prompts",
        largest=below(largest, max(tolerance, 1e-12)),
        blocks=blocks,
        number=number,
    )
    wrong = [block for block in range(blocks) if not all(row[block] <= tolerance for row in misses)]
    if wrong:
        why = say(
            "the sum misses the stream by more than rounding after {n_wrong} of {blocks} blocks, first at "
            "block {wrong}",
            n_wrong=len(wrong),
            blocks=blocks,
            wrong=wrong[0],
        )
        return Claim("2.1", says, FAILS, why, measured, software=True)
    why = say(
        "a block adds two parts and nothing else: exact up to rounding after {blocks} of {blocks} blocks", blocks=blocks
    )
    if max(against_hidden_state) > tolerance:
        why += say(", but not hidden_states[-1]: it is taken after the final norm")
        measured += say(
            "; hidden_states[-1] differs by {against_hidden_state} times its length (median)",
            against_hidden_state=middle(against_hidden_state),
        )
    return Claim("2.1", says, CONSTRUCTION, why, measured, software=True)


def verdict_2_2(
    block: int, everywhere: Table2, without_first: Sequence[float], without_outliers: Sequence[float],
    per_dimension: Sequence[float], by_chance: Sequence[float], step: Sequence[float],
) -> Claim:  # fmt: skip
    """everywhere: r between input and output of each block, over all values. For `block`: r without the first token,
    without 1 % outliers, the median of r per dimension, the r that a random step of the same size would give, and the
    length of its step as a share of the stream's, without the first token: r cannot see a stream that is merely stretched."""
    r = [row[block] for row in everywhere]
    ways = {
        say("at every block"): [min(row, key=lambda x: (x == x, x)) for row in everywhere],
        say("without the first token"): without_first,
    }
    ways |= {say("without outliers"): without_outliers, say("per dimension (median)"): per_dimension}
    parts = [
        Part(
            say("r is at least {near_one} at block {block}", near_one=NEAR_ONE, block=block),
            [value >= NEAR_ONE for value in r],
        )
    ]
    parts += [Part(way, [value >= NEAR_ONE for value in values]) for way, values in ways.items()]
    parts.append(Part(say("the step is at most a third of the stream"), [value <= SLIGHT for value in step]))
    measured = say("median r at block {block} {r}, ", block=block, r=middle(r)) + ", ".join(
        f"{way} {middle(v)}" for way, v in list(ways.items())[1:]
    )
    measured += say(
        "; smallest over the blocks {way}; step / stream {step}; ",
        way=middle(ways[say("at every block")]),
        step=middle(step),
    )
    measured += say("a random step of the same size would give r = {by_chance}", by_chance=middle(by_chance))
    says = say("H_10 and H_11 correlate with r ≈ 1: a block changes its hidden state only slightly")
    return judge("2.2", says, parts, measured)


def verdict_2_3(
    filled: Sequence[float], masked: Sequence[int], at_first: Sequence[int], r: Sequence[float], r_masked: Sequence[float]
) -> Claim:  # fmt: skip
    """filled: share of the axis that 99 % of the values fill; masked: outliers, at_first: how many of them at the first
    token; r before and after masking."""
    measured = say(
        "99 % of the values fill {filled} % of the axis (median); r {r} → ",
        filled=middle(100 * value for value in filled),
        r=middle(r),
    )
    measured += say(
        "{r_masked} without the outliers; {at_first} of {masked} outliers sit at the first token",
        r_masked=middle(r_masked),
        at_first=sum(at_first),
        masked=sum(masked),
    )
    parts = [Part(say("99 % of the values fill at most a tenth of the axis"), [value <= NARROW for value in filled])]
    return judge("2.3", say("masking the outliers makes the remaining 99 % visible"), parts, measured)


def verdict_2_4(probability: float, as_it_is: float, with_dropout: float) -> Claim:
    """probability: the largest dropout probability of the model. as_it_is, with_dropout: how far two passes in train mode
    differ, as a share of what is recorded: with the model's own probability, and with GPT-2's."""
    says = say("in train mode the recorded activations are random, because dropout is on")
    measured = say(
        "two passes in train mode differ by {as_it_is} % with the model's p = {probability}",
        as_it_is=n(100 * as_it_is),
        probability=n(probability),
    )
    if with_dropout > 0:
        measured += say(
            ", by {with_dropout} % with p = {gpt2_dropout}",
            with_dropout=n(100 * with_dropout),
            gpt2_dropout=n(GPT2_DROPOUT),
        )
    if as_it_is > 0:
        return Claim(
            "2.4", says, HOLDS, say("two passes over the same prompt give two recordings"), measured, software=True
        )
    if probability > 0:
        why = say("two passes over the same prompt are equal, though its dropout is on")
        return Claim("2.4", says, FAILS, why, measured, software=True)
    why = say("the mode alone makes nothing random: it takes a dropout probability above 0, and this model's is 0")
    return Claim("2.4", says, UNTESTED, why, measured, software=True)


def verdict_2_5(train: bool, evaluated: bool, train_no_grad: bool) -> Claim:
    """Does a recorded delta carry a graph (requires_grad) in train mode, in eval mode, in train mode under no_grad()?"""
    says = say(".detach() is needed outside eval mode, and eval() switches gradients off")
    told = {"train()": train, "eval()": evaluated, "train() with no_grad()": train_no_grad}
    measured = say("a recorded delta carries a graph: ") + ", ".join(f"{k} {format_number(v)}" for k, v in told.items())
    if not train:
        why = say("in train mode nothing carries a graph here: detach is not needed")
        return Claim("2.5", says, FAILS, why, measured, software=True)
    if evaluated:
        why = say("first half only: eval() switches no gradient off, so detach is needed there too")
        why += "" if train_no_grad else say("; no_grad() makes it needless")
        return Claim("2.5", says, PARTLY, why, measured, software=True)
    return Claim("2.5", says, HOLDS, say("in eval mode nothing carries a graph"), measured, software=True)


VERDICTS: dict[str, Callable[..., Claim]] = {
    "2.1": verdict_2_1,
    "2.2": verdict_2_2,
    "2.3": verdict_2_3,
    "2.4": verdict_2_4,
    "2.5": verdict_2_5,
}


def ledger(lm: LanguageModel, prompt: Prompt, keep: Keep = compute_now) -> list[Claim]:
    """Measure lesson 2's claims on the prompt and on 24 others, and judge them. A prompt needs three tokens or more.

    The model's mode and dropout are as before afterwards. Raises BadPrompt, PromptTooLong, BadValue.
    """
    runs = [keep(f"2 {one}", partial(measure, lm, one)) for one in several(lm, prompt)]
    every = {name: [run[name] for run in runs] for name in runs[0]}
    modes = keep(f"2 modes {prompt}", lambda: measure_modes(lm, prompt))
    return [
        verdict_2_1(every["misses"], every["against_hidden_state"], 1e3 * torch.finfo(lm.dtype).eps),
        verdict_2_2(
            max(0, lm.n_blocks - 2),
            *(
                every[name]
                for name in ("everywhere", "without_first", "r_masked", "per_dimension", "by_chance", "step")
            ),
        ),
        verdict_2_3(*(every[name] for name in ("filled", "masked", "at_first", "r", "r_masked"))),
        verdict_2_4(*modes[0]),
        verdict_2_5(*modes[1]),
    ]


def measure(lm: LanguageModel, prompt: Prompt) -> dict[str, Any]:
    """What the verdicts take, of one prompt."""
    tokens = lm.encode(prompt)
    clean = trace(lm, tokens)
    block = max(0, lm.n_blocks - 2)
    before, after = clean.resid[block], clean.resid[block + 1]
    keep = within_percentile(before, after, 99)
    size = torch.maximum(before.abs(), after.abs())
    misses, against = reconstruction(lm, tokens, clean)
    return {
        "misses": misses,
        "against_hidden_state": against,
        "everywhere": [correlation(a, b) for a, b in zip(clean.resid[:-1], clean.resid[1:], strict=True)],
        "without_first": correlation(before[:, 1:], after[:, 1:]),
        "per_dimension": float(correlation_per_dimension(before, after).median()),
        "by_chance": random_step_correlation(before, after),
        "step": float((after - before)[:, 1:].norm() / before[:, 1:].norm()),
        "filled": float(size[keep].max() / size.max()),
        "masked": int((~keep).sum()),
        "at_first": int((~keep)[:, 0].sum()),
        "r": correlation(before, after),
        "r_masked": correlation(before[keep], after[keep]),
    }


def measure_modes(lm: LanguageModel, prompt: Prompt) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """The arguments of 2.4 and 2.5, of one prompt."""
    tokens = lm.encode(prompt)
    graphs = (carries_graph(lm, tokens, train, grad) for train, grad in ((True, True), (False, True), (True, False)))
    return two_passes(lm, tokens), tuple(graphs)


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


def reconstruction(lm: LanguageModel, tokens: Tokens, clean: Trace) -> tuple[list[float], float]:
    rebuilt = clean.resid[:-1] + clean.attn + clean.mlp
    misses = [_share(sum_, state) for sum_, state in zip(rebuilt, clean.resid[1:], strict=True)]
    with torch.no_grad():
        last = lm.model(**lm.inputs(tokens), output_hidden_states=True).hidden_states[-1]
    return misses, _share(rebuilt[-1], last)


def two_passes(lm: LanguageModel, tokens: Tokens) -> tuple[float, float, float]:
    """The model's dropout probability, and how far the deltas of two passes in train mode differ: as it is, and with GPT-2's p."""
    found = []
    for probability in (None, GPT2_DROPOUT):
        with train_mode(lm, probability):
            one, other = trace(lm, tokens), trace(lm, tokens)
        deltas = [torch.stack([run.attn, run.mlp]) for run in (one, other)]
        found.append(_share(deltas[1], deltas[0]))
    own = [module.p for module in lm.model.modules() if isinstance(module, nn.Dropout)]
    return max(own, default=0.0), found[0], found[1]


def carries_graph(lm: LanguageModel, tokens: Tokens, train: bool, grad: bool = True) -> bool:
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
