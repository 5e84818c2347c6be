"""Lesson 1's claims about downstream scaling, 1.1 to 1.7: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

A verdict function takes numbers and returns a Claim; it knows no model. Where a claim speaks of several factors, the
arguments map each factor to its numbers. Δ leaves the first token out, as the report recommends, except in 1.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.edits import edit, scale_block
from helpers.hooks import on_output
from helpers.metrics import delta_norm, relative_error
from helpers.models import LanguageModel
from helpers.tables import format_number
from helpers.tracing import trace

FACTORS = (0.5, 0.75, 1.25, 1.5)
CURVED = 0.01  # a curve is nonlinear when a straight line misses more than this share of its variance


def verdict_1_1(before: Mapping[float, float]) -> Claim:
    """before: factor -> the largest Δ at any point before the edit."""
    wrong = [factor for factor, value in before.items() if value != 0]
    return Claim(
        "1.1",
        "Δ is 0 at every point before the scaled block",
        f"largest Δ before the block: {_n(max(before.values()))}, over {len(before)} factors",
        FAILS if wrong else HOLDS,
        f"something before the block moved for factor {_list(wrong)}: the edit is not where it should be"
        if wrong
        else "exactly 0, not nearly: an edit cannot reach back to what was computed before it",
    )


def verdict_1_2(at: Mapping[float, float], size: float) -> Claim:
    """at: factor -> Δ right after the scaled block; size: ‖H clean‖ at that point."""
    jumps = [factor for factor, value in at.items() if value > 0]
    arithmetic = all(abs(value - abs(1 - factor) * size) <= 1e-6 * size for factor, value in at.items())
    measured = ", ".join(f"×{_n(factor)}: {_n(value)}" for factor, value in at.items())
    says = "Δ jumps at the scaled block"
    if not jumps:
        return Claim("1.2", says, measured, FAILS, "no factor moves the stream there: the edit was not recorded")
    if len(jumps) < len(at):
        return Claim("1.2", says, measured, PARTLY, f"it jumps for factor {_list(jumps)} only")
    why = "|1 − factor| · ‖H‖: plain arithmetic, not yet a reaction of the model" if arithmetic else "for every factor"
    return Claim("1.2", says, measured, HOLDS, why)


def verdict_1_3(delta: Mapping[float, Sequence[float]], relative: Mapping[float, Sequence[float]]) -> Claim:
    """delta, relative: factor -> Δ and relative error at each point from the scaled block to the last, before the final norm."""
    says = "Δ keeps growing after it, nonlinearly: the model does not heal itself"
    measured = "; ".join(
        f"×{_n(f)}: Δ {_n(d[0])} → {_n(d[-1])}, relative {_n(relative[f][0])} → {_n(relative[f][-1])}"
        for f, d in delta.items()
    )
    higher = [f for f, d in delta.items() if d[-1] > d[0]]
    everywhere = [f for f, d in delta.items() if all(b > a for a, b in pairwise(d))]
    curved = [f for f, d in delta.items() if _unexplained_by_a_line(d) > CURVED]
    shrinks = [f for f, r in relative.items() if r[-1] < r[0]]
    n = len(delta)
    if 2 * len(higher) <= n:  # a claim about growth does not hold, not even in part, where most curves end lower
        why = f"Δ ends higher than it began for {len(higher) or 'none'} of {n} factors"
        why += ", and relative to the stream it shrinks for all: part of the damage fades" if len(shrinks) == n else ""
        return Claim("1.3", says, measured, FAILS, why)
    if len(everywhere) == len(curved) == n and not shrinks:
        return Claim("1.3", says, measured, HOLDS, "Δ and the relative error grow for every factor, in a curve")
    why = (
        f"Δ ends higher for {len(higher)} of {n} factors, grows at every block for {len(everywhere)}, "
        f"in a curve for {len(curved)}; relative to the stream the error falls for {len(shrinks)}"
    )
    return Claim("1.3", says, measured, PARTLY, why)


def verdict_1_4(ratio: Mapping[float, float]) -> Claim:
    """ratio: factor -> the largest value, over the points after the edit, of Δ with the first token / Δ without it."""
    low, high = min(ratio.values()), max(ratio.values())
    says = "with the first token included Δ grows by an order of magnitude"
    measured = f"Δ with / without the first token: at most {_n(high)}"
    if low >= 10:
        return Claim(
            "1.4", says, measured, HOLDS, "for every factor at least tenfold: the first token carries almost all"
        )
    if high >= 2:
        return Claim("1.4", says, measured, PARTLY, "the first token weighs more than its share, but less than tenfold")
    return Claim(
        "1.4",
        says,
        measured,
        FAILS,
        "less than twofold: the edit does not hit this model's first token much harder than the others",
    )


def verdict_1_5(before: Mapping[float, float], last: Mapping[float, float], normed: Mapping[float, float]) -> Claim:
    """before, last, normed: factor -> Δ entering the last block, leaving it, and after the final norm."""
    says = "Δ dips at the last layer, for factors from 0.5 to 1.5"
    measured = "; ".join(f"×{_n(f)}: {_n(before[f])} → {_n(last[f])}, after the norm {_n(normed[f])}" for f in before)
    block_dips = [f for f in before if last[f] < before[f]]
    norm_dips = [f for f in before if normed[f] < last[f]]
    n = len(before)
    if len(block_dips) == n:
        return Claim(
            "1.5", says, measured, HOLDS, "the last block itself lowers Δ, before the final norm, for every factor"
        )
    if block_dips:
        why = f"the last block lowers Δ for factor {_list(block_dips)} only"
        why += f"; the final norm lowers it for {len(norm_dips)} of {n}" if norm_dips else ""
        return Claim("1.5", says, measured, PARTLY, why)
    if norm_dips:
        return Claim("1.5", says, measured, PARTLY, "the drop is the final norm's, not the last block's")
    return Claim("1.5", says, measured, FAILS, "neither the last block nor the final norm lowers Δ")


def verdict_1_6(miss: float, moved: float) -> Claim:
    """miss: largest difference between the global-variable hook and one hook per factor, over all scenarios.
    moved: how far the same hook's result moves, as a share, when the outer name is assigned again."""
    says = "one hook with a scaling_factor set outside serves every scenario"
    measured = (
        f"differs from a hook of its own by {_n(miss)}; a later assignment moves its result by {_n(100 * moved)} %"
    )
    if miss > 0:
        return Claim("1.6", says, measured, FAILS, "it does not give what a hook with its own factor gives")
    if moved > 0:
        why = "it works as long as nobody assigns the name again; a closure or an argument has no such condition"
        return Claim("1.6", says, measured, PARTLY, why)
    return Claim("1.6", says, measured, HOLDS, "it works, and no later assignment reaches it")


def verdict_1_7(saved: int, weights: int, corrupted: float) -> Claim:
    """saved: bytes that the in-place edit does not allocate; weights: bytes of the model's parameters;
    corrupted: how far a state recorded before the edit moved, as a share of its norm."""
    says = "in-place `.mul_()` saves memory"
    measured = (
        f"{saved} bytes of {_n(weights / 1e6)} MB of weights ({_n(100 * saved / weights)} %); "
        f"a recorded clean state moved by {_n(100 * corrupted)} %"
    )
    if saved <= 0:
        return Claim("1.7", says, measured, FAILS, "nothing is saved")
    if corrupted > 0:
        why = "it saves one activation, and spoils whatever was recorded before it"
        return Claim("1.7", says, measured, PARTLY, why)
    return Claim("1.7", says, measured, HOLDS, "it saves one activation, and no recorded state moved")


VERDICTS: dict[str, Callable[..., Claim]] = {
    "1.1": verdict_1_1,
    "1.2": verdict_1_2,
    "1.3": verdict_1_3,
    "1.4": verdict_1_4,
    "1.5": verdict_1_5,
    "1.6": verdict_1_6,
    "1.7": verdict_1_7,
}


def ledger(lm: LanguageModel, prompt: str, block: int = 2, factors: Sequence[float] = FACTORS) -> list[Claim]:
    """Measure lesson 1's claims on `lm` and judge them. The prompt needs two tokens or more, the model a block after `block`.

    Raises BlockOutOfRange, BadPrompt, PromptTooLong, BadFactor.
    """
    clean = trace(lm, prompt)
    runs = {}
    for factor in factors:
        with edit(lm, scale_block(block, factor)):
            runs[factor] = trace(lm, prompt)
    place = block + 1
    delta = {f: delta_norm(clean.resid, run.resid, include_first=False) for f, run in runs.items()}
    with_first = {f: delta_norm(clean.resid, run.resid) for f, run in runs.items()}
    relative = {f: relative_error(clean.resid, run.resid, include_first=False) for f, run in runs.items()}
    assert clean.final is not None
    normed = {
        f: float(delta_norm(clean.final[None], run.final[None], include_first=False))  # type: ignore[index]
        for f, run in runs.items()
    }
    return [
        verdict_1_1({f: float(with_first[f][:place].max()) for f in runs}),
        verdict_1_2({f: float(d[place]) for f, d in delta.items()}, float(clean.resid[place][:, 1:].norm())),
        verdict_1_3(
            {f: d[place:].tolist() for f, d in delta.items()}, {f: r[place:].tolist() for f, r in relative.items()}
        ),
        verdict_1_4({f: float((with_first[f][place:] / d[place:]).max()) for f, d in delta.items()}),
        verdict_1_5({f: float(d[-2]) for f, d in delta.items()}, {f: float(d[-1]) for f, d in delta.items()}, normed),
        verdict_1_6(*_global_name(lm, prompt, block, {f: run.resid for f, run in runs.items()})),
        verdict_1_7(*_in_place(lm, prompt, block, clean.resid[place])),
    ]


def _global_name(lm: LanguageModel, prompt: str, block: int, expected: Mapping[float, Tensor]) -> tuple[float, float]:
    """Run the report's scenarios with one hook that looks its factor up outside, then assign that name once more."""
    outside = {"scaling_factor": 1.0}  # what a notebook's global scope is: a dictionary that every cell can write to
    miss = 0.0
    handle = on_output(lm.blocks[block], lambda value, _: value * outside["scaling_factor"], prepend=True)
    try:
        for factor, resid in expected.items():
            outside["scaling_factor"] = factor
            miss = max(miss, float((trace(lm, prompt).resid - resid).abs().max()))
        first = trace(lm, prompt).resid[block + 1]
        outside["scaling_factor"] += 1.0  # another cell, another experiment, the same name
        second = trace(lm, prompt).resid[block + 1]
    finally:
        handle.remove()
    return miss, float((second - first).norm() / first.norm())


def _in_place(lm: LanguageModel, prompt: str, block: int, clean: Tensor, factor: float = 0.5) -> tuple[int, int, float]:
    """Record a block's output, then scale it in place: the bytes saved, the model's bytes, and how far the record moved."""
    recorded: list[Tensor] = []
    saved: list[int] = []

    def record(value: Tensor, _: Tensor) -> None:
        recorded.append(value)  # as the report does: the tensor itself, not a copy

    def scale_in_place(value: Tensor, _: Tensor) -> Tensor:
        new = value.mul_(factor)
        saved.append(value.numel() * value.element_size() if new.data_ptr() == value.data_ptr() else 0)
        return new

    handles = [on_output(lm.blocks[block], see) for see in (record, scale_in_place)]
    try:
        trace(lm, prompt)
    finally:
        for handle in handles:
            handle.remove()
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    return saved[0], weights, float((recorded[0] - clean).norm() / clean.norm())


def _unexplained_by_a_line(values: Sequence[float]) -> float:
    """Return the share of the variance that the best straight line leaves: 0 for a line."""
    y = torch.tensor(values, dtype=torch.float64)
    if len(y) < 3 or float(y.var()) == 0:
        return 0.0
    x = torch.arange(len(y), dtype=torch.float64)
    r = torch.corrcoef(torch.stack([x, y]))[0, 1]
    return float(1 - r**2)


def _n(value: float) -> str:
    return format_number(float(value), 3)


def _list(factors: Sequence[float]) -> str:
    return ", ".join(_n(factor) for factor in factors)
