"""Lesson 1's claims about downstream scaling, 1.1 to 1.9: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

Numbers come as [prompt][factor], for each of FACTORS, or as [prompt][factor][point] from the scaled block's output to the
end of the stream, before the final norm. Δ leaves the first token out, as the report recommends, where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

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
from helpers.edits import edit, scale_block
from helpers.hooks import on_output
from helpers.metrics import delta_norm, kl, relative_error, token_norms
from helpers.models import LanguageModel
from helpers.say import say
from helpers.tracing import trace

FACTORS = (0.5, 0.75, 1.25, 1.5)
CURVED = 0.01  # a curve is nonlinear when a straight line misses more than this share of its variance
TENFOLD = 10  # an order of magnitude; a first token that much longer than the others is a massive one
STRONG = 1.0  # nats of KL that count as extreme
Table3 = Sequence[Sequence[Sequence[float]]]


def verdict_1_1(before: Table2) -> Claim:
    """before: the largest Δ at any point before the edit, first token included."""
    largest, number = max(max(row) for row in before), sum(map(len, before))
    says = say("Δ is 0 at every point before the scaled block")
    moved = sum(value != 0 for row in before for value in row)
    if moved:
        why = say(
            "something before the block moved in {moved} of {number} runs, by up to {largest}: the edit is misplaced",
            moved=moved,
            number=number,
            largest=n(largest),
        )
        return Claim("1.1", says, FAILS, why, software=True)
    why = say("exactly 0 in {number} of {number} runs: an edit cannot reach what was computed before it", number=number)
    return Claim("1.1", says, CONSTRUCTION, why, software=True)


def verdict_1_2(at: Table2, size: Sequence[float]) -> Claim:
    """at: Δ right after the scaled block; size: ‖H‖ of the clean run at that point, for each prompt."""
    says = say("Δ jumps at the scaled block")
    number = sum(map(len, at))
    right = sum(
        abs(value - abs(1 - factor) * length) <= 1e-3 * length
        for row, length in zip(at, size, strict=True)
        for factor, value in zip(FACTORS, row, strict=True)
    )
    measured = say("median Δ {deltas}", deltas=_each(at))
    if right == number:
        why = say(
            "Δ = |1 − factor| · ‖H‖ in {number} of {number} runs, to 0.001 of ‖H‖: arithmetic, not a "
            "reaction of the model",
            number=number,
        )
        return Claim("1.2", says, CONSTRUCTION, why, measured, software=True)
    why = say(
        "Δ = |1 − factor| · ‖H‖ in {right} of {number} runs only: the edit was not recorded as it should be",
        right=right,
        number=number,
    )
    return Claim("1.2", says, FAILS, why, measured, software=True)


def verdict_1_3(delta: Table3, relative: Table3) -> Claim:
    """delta, relative: Δ and relative error at each point."""
    parts = [
        Part(say("Δ ends higher than it began, for every factor"), [all(d[-1] > d[0] for d in row) for row in delta]),
        Part(say("it grows at every block"), [all(b > a for d in row for a, b in pairwise(d)) for row in delta]),
        Part(
            say("a straight line misses more than 1 % of its variance"),
            [all(_unexplained_by_a_line(d) > CURVED for d in row) for row in delta],
        ),
        Part(say("the relative error does not shrink"), [all(r[-1] >= r[0] for r in row) for row in relative]),
    ]
    measured = "; ".join(
        say(
            "×{factor}: Δ {delta_begin} → {delta_end}, relative error {error_begin} → {error_end}",
            factor=factor,
            delta_begin=middle(row[i][0] for row in delta),
            delta_end=middle(row[i][-1] for row in delta),
            error_begin=middle(row[i][0] for row in relative),
            error_end=middle(row[i][-1] for row in relative),
        )
        for i, factor in enumerate(FACTORS)
    )
    return judge("1.3", say("Δ keeps growing after it, nonlinearly: the model does not heal itself"), parts, measured)


def verdict_1_4(ratio: Table2, length: Sequence[float]) -> Claim:
    """ratio: the largest value, over the points after the edit, of Δ with the first token / Δ without it. length: the
    first token's length over the others' median, the largest value over these points."""
    says = say("with the first token included Δ grows by an order of magnitude")
    measured = say(
        "median growth {growth}; the first token is {length} times as long as the others (median)",
        growth=_each(ratio),
        length=middle(length),
    )
    massive = sum(value >= TENFOLD for value in length)
    if 2 * massive < len(length):
        why = say(
            "it takes a massive first token, and here the first token is ten times as long as the others on "
            "{massive} of {n_prompts} prompts",
            massive=massive,
            n_prompts=len(length),
        )
        return Claim("1.4", says, UNTESTED, why, measured)
    parts = [
        Part(say("Δ grows at least tenfold for one factor or more"), [max(row) >= TENFOLD for row in ratio]),
        Part(say("for every factor"), [min(row) >= TENFOLD for row in ratio]),
    ]
    return judge("1.4", says, parts, measured)


def verdict_1_5(relative: Table3, delta: Table3, survives: Table3, normed: Table2, with_first: Table3) -> Claim:
    """relative, delta, survives, with_first: relative error, Δ, the share of the original error that is left, and Δ with the
    first token, each before the last block and after it; normed: relative error after the final norm."""
    parts = [
        Part(
            say("the last block lowers the relative error, for every factor"),
            [all(b < a for a, b in r) for r in relative],
        ),
        Part(say("it lowers Δ itself, before the norm"), [all(b < a for a, b in row) for row in delta]),
    ]
    norm = sum(
        all(f < r[1] for f, r in zip(final, row, strict=True)) for final, row in zip(normed, relative, strict=True)
    )
    most = FACTORS.index(1.5)
    first = sum(row[most][1] < row[most][0] for row in with_first)

    def path(table: Table3, i: int) -> str:
        return f"{middle(row[i][0] for row in table)} → {middle(row[i][1] for row in table)}"

    measured = say("relative error before and after the last block, and after the norm: ") + "; ".join(
        f"×{factor} {path(relative, i)} → {middle(row[i] for row in normed)}" for i, factor in enumerate(FACTORS)
    )
    measured += say("; share of the original error that survives, before and after the last block: ") + "; ".join(
        f"×{factor} {path(survives, i)}" for i, factor in enumerate(FACTORS)
    )
    note = say(
        "The final norm lowers the relative error further on {norm} of {n_prompts} prompts; with the "
        "first token the last ",
        norm=norm,
        n_prompts=len(normed),
    )
    note += say("block lowers Δ at ×1.5 on {first} of {n_prompts}", first=first, n_prompts=len(normed))
    return judge("1.5", say("Δ dips at the last layer, for factors from 0.5 to 1.5"), parts, measured, note)


def verdict_1_6(miss: float, moved: float) -> Claim:
    """miss: largest difference between the global-variable hook and one hook per factor, over all scenarios.
    moved: how far the same hook's result moves, as a share, when the outer name is assigned again."""
    says = say("one hook with a scaling_factor set outside serves every scenario")
    measured = say(
        "differs from a hook of its own by {miss}; a later assignment moves its result by {moved} %",
        miss=n(miss),
        moved=n(100 * moved),
    )
    if miss > 0:
        why = say("it does not give what a hook with its own factor gives")
        return Claim("1.6", says, FAILS, why, measured, software=True)
    if moved > 0:
        why = say("it works as long as nobody assigns the name again; a closure or an argument has no such condition")
        return Claim("1.6", says, PARTLY, why, measured, software=True)
    return Claim("1.6", says, HOLDS, say("it works, and no later assignment reaches it"), measured, software=True)


def verdict_1_7(saved: int, weights: int, corrupted: float) -> Claim:
    """saved: bytes that the in-place edit does not allocate; weights: bytes of the model's parameters;
    corrupted: how far a state recorded before the edit moved, as a share of its norm."""
    says = say("in-place `.mul_()` saves memory")
    measured = say(
        "{saved} bytes beside {weights} MB of weights ({share} %); a recorded clean state moved by {corrupted} %",
        saved=saved,
        weights=n(weights / 1e6),
        share=n(100 * saved / weights),
        corrupted=n(100 * corrupted),
    )
    if saved <= 0:
        return Claim("1.7", says, FAILS, say("nothing is saved"), measured, software=True)
    if corrupted > 0:
        why = say("it saves one activation, and spoils whatever was recorded before it")
        return Claim("1.7", says, PARTLY, why, measured, software=True)
    return Claim(
        "1.7", says, HOLDS, say("it saves one activation, and no recorded state moved"), measured, software=True
    )


def verdict_1_8(unmarked: Sequence[float], marked: Sequence[float], second: Sequence[float]) -> Claim:
    """How long the first token is beside the others, as in 1.4: an ordinary word with nothing before it, and the model's start
    mark in front of the prompt (0 where it has none). second: the same of the first word when another stands before it."""
    says = say("the first token is special because it is a BOS or start mark")
    measured = say(
        "length over the others' (median): the first word {unmarked}, in second place {second}, ",
        unmarked=middle(unmarked),
        second=middle(second),
    )
    measured += (
        say("a start mark {marked}", marked=middle(marked)) if max(marked) else say("no start mark in this model")
    )
    word, mark = ([value >= TENFOLD for value in values] for values in (unmarked, marked))
    number, special = len(word), sum(a or b for a, b in zip(word, mark, strict=True))
    if 2 * special < number:
        why = say(
            "no first token is special here, word or mark: ten times as long as the others on {special} of "
            "{number} prompts",
            special=special,
            number=number,
        )
        return Claim("1.8", says, UNTESTED, why, measured)
    part = Part(
        say("a start mark in first place is ten times as long as the others, and an ordinary word is not"),
        [b and not a for a, b in zip(word, mark, strict=True)],
    )
    note = say(
        "An ordinary first word is ten times as long as the others on {word} of {number} prompts, the "
        "same word in second place on {second}",
        word=sum(word),
        number=number,
        second=sum(value >= TENFOLD for value in second),
    )
    return judge("1.8", says, [part], measured, note)


def verdict_1_9(divergence: Table2, probability: Sequence[float], after: Table2) -> Claim:
    """divergence: KL(clean ‖ edited) of the next word, in nats; probability: that of the clean run's most probable next word,
    after: the same word's in the edited runs."""
    first, last = FACTORS.index(0.5), FACTORS.index(1.5)
    parts = [
        Part(
            say("KL(clean ‖ edited) of the next word is above 1 nat at ×0.5"),
            [row[first] > STRONG for row in divergence],
        ),
        Part(say("at ×1.5 too"), [row[last] > STRONG for row in divergence]),
    ]
    measured = say(
        "median KL in nats {divergence}; the clean top word's probability {probability}, then {after}",
        divergence=_each(divergence),
        probability=middle(probability),
        after=_each(after),
    )
    return judge("1.9", say("the model is extremely sensitive to early changes"), parts, measured)


VERDICTS: dict[str, Callable[..., Claim]] = {
    "1.1": verdict_1_1,
    "1.2": verdict_1_2,
    "1.3": verdict_1_3,
    "1.4": verdict_1_4,
    "1.5": verdict_1_5,
    "1.6": verdict_1_6,
    "1.7": verdict_1_7,
    "1.8": verdict_1_8,
    "1.9": verdict_1_9,
}


def ledger(lm: LanguageModel, prompt: Prompt, block: int = 2, keep: Keep = compute_now) -> list[Claim]:
    """Measure lesson 1's claims on the prompt and on 24 others, and judge them.

    The prompt needs two tokens or more, the model a block after `block`. Raises BlockOutOfRange, BadPrompt, PromptTooLong.
    """
    prompts = several(lm, prompt)
    runs = [keep(f"1 {one} block {block}", partial(measure, lm, one, block)) for one in prompts]
    every = {name: [run[name] for run in runs] for name in runs[0]}
    once = keep(
        f"1 hooks {prompt} block {block}", lambda: [global_name(lm, prompt, block), in_place(lm, prompt, block)]
    )
    last = {
        name: [[point[-2:] for point in row] for row in every[name]]
        for name in ("relative", "delta", "survives", "with_first")
    }
    return [
        verdict_1_1(every["before"]),
        verdict_1_2(every["at"], every["size"]),
        verdict_1_3(every["delta"], every["relative"]),
        verdict_1_4(every["ratio"], every["length"]),
        verdict_1_5(normed=every["normed"], **last),
        verdict_1_6(*once[0]),
        verdict_1_7(*once[1]),
        verdict_1_8(every["unmarked"], every["marked"], every["second"]),
        verdict_1_9(every["divergence"], every["probability"], every["after"]),
    ]


def measure(lm: LanguageModel, prompt: Prompt, block: int) -> dict[str, Any]:
    """What the verdicts take, of one prompt."""
    ids = lm.encode(prompt).ids[0]
    clean = trace(lm, ids)
    place = block + 1
    assert clean.final is not None
    top = int(clean.last_logits[0].argmax())
    found: dict[str, Any] = {
        "size": float(clean.resid[place][:, 1:].norm()),
        "length": _relative_length(clean.resid[place:, 0], 0),
        **_first_places(lm, ids, place),
        "probability": float(clean.last_logits[0].softmax(-1)[top]),
    }
    per_factor: list[dict[str, Any]] = []
    for factor in FACTORS:
        with edit(lm, scale_block(block, factor)):
            run = trace(lm, ids)
        assert run.final is not None
        delta = delta_norm(clean.resid, run.resid, include_first=False)
        with_first = delta_norm(clean.resid, run.resid)
        errors = (run.resid - clean.resid)[place:, :, 1:].flatten(1)
        per_factor.append(
            {
                "before": float(with_first[:place].max()),
                "at": float(delta[place]),
                "delta": delta[place:].tolist(),
                "with_first": with_first[place:].tolist(),
                "relative": relative_error(clean.resid, run.resid, include_first=False)[place:].tolist(),
                "ratio": float((with_first[place:] / delta[place:]).max()),
                "survives": (errors @ errors[0] / errors[0].dot(errors[0])).tolist(),
                "normed": float(relative_error(clean.final[None], run.final[None], include_first=False)),
                "divergence": float(kl(clean.last_logits, run.last_logits)),
                "after": float(run.last_logits[0].softmax(-1)[top]),
            }
        )
    return found | {name: [one[name] for one in per_factor] for name in per_factor[0]}


def _first_places(lm: LanguageModel, ids: Tensor, place: int) -> dict[str, float]:
    """What 1.8 takes. A start mark that the tokenizer itself puts in front is taken off first."""
    marks = (getattr(where, "bos_token_id", None) for where in (lm.tokenizer, lm.model.config))
    mark = next((one for one in marks if one is not None and one < lm.vocabulary), None)
    words = ids[1:] if int(ids[0]) == mark and len(ids) > 2 else ids

    def length(front: Tensor, position: int) -> float:
        return _relative_length(trace(lm, torch.cat([front, words])).resid[place:, 0], position)

    return {
        "unmarked": length(words[:0], 0),
        "marked": 0.0 if mark is None else length(words.new_tensor([mark]), 0),
        "second": length(words[1:2], 1),
    }


def _relative_length(resid: Tensor, position: int) -> float:
    """The length of a token over the median of those after it; the largest value over the points of (n_points, pos, d_model)."""
    lengths = token_norms(resid[:, None])[:, 0]
    return float((lengths[:, position] / lengths[:, position + 1 :].median(dim=1).values).max())


def global_name(lm: LanguageModel, prompt: Prompt, block: int) -> tuple[float, float]:
    """Run the report's scenarios with one hook that looks its factor up outside, then assign that name once more."""
    outside = {"scaling_factor": 1.0}  # what a notebook's global scope is: a dictionary that every cell can write to
    expected = {}
    for factor in FACTORS:
        with edit(lm, scale_block(block, factor)):
            expected[factor] = trace(lm, prompt).resid
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


def in_place(lm: LanguageModel, prompt: Prompt, block: int, factor: float = 0.5) -> tuple[int, int, float]:
    """Record a block's output, then scale it in place: the bytes saved, the model's bytes, and how far the record moved."""
    clean = trace(lm, prompt).resid[block + 1]
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


def _each(table: Table2) -> str:
    """The median of each factor."""
    columns: Iterable[tuple[float, Sequence[float]]] = zip(FACTORS, zip(*table, strict=True), strict=True)
    return ", ".join(say("{column} at ×{factor}", column=middle(column), factor=factor) for factor, column in columns)
