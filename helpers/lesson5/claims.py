"""Lesson 5's claims about skipping a block, 5.1 to 5.6: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

What edits cost is measured on the course's held-out passages: tables are [passage][block] or [passage][block][head].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from helpers.course.ledger import (
    CONSTRUCTION,
    DIVERGENCE,
    FAILS,
    HOLDS,
    PARTLY,
    UNTESTED,
    VERSION,
    Claim,
    Keep,
    Part,
    Prompt,
    Table2,
    columns_of,
    compute_now,
    directions,
    judge,
    middle,
    n,
)
from helpers.edits import edit, skip_block
from helpers.hooks import entering, with_first
from helpers.lesson5.plots import name_blocks
from helpers.measures import text_damage
from helpers.metrics import step_norm
from helpers.models import LanguageModel, Tokens
from helpers.say import say
from helpers.sweeps import sweep_blocks, sweep_heads, windows
from helpers.texts import held_out_passages
from helpers.tracing import trace

CHEAP = 0.1  # nats per token, 10 % more perplexity: below it a block counts as redundant, above it as needed
WINDOW = 32  # tokens at the beginning of each held-out passage, on which the loss of a skipped block is measured
SHORT = 8  # tokens of each passage after which the next word without each head is looked at
SAW = 4  # a block's KL over a head's: KL grows with the square of a small push, so this is a push twice as long
LOSS = text_damage().columns.index("loss")


def verdict_5_1(steps: Sequence[float]) -> Claim:
    """steps: ‖H_(l+1) − H_l‖_F at block l while block l is skipped, for every block."""
    zero = sum(step == 0 for step in steps)
    says = say("the step is exactly 0 at the skipped block")
    measured = say(
        "0 at {zero} of {n_blocks} blocks, each skipped in turn; the largest step is {steps}",
        zero=zero,
        n_blocks=len(steps),
        steps=n(max(steps)),
    )
    if zero == len(steps):
        why = say("exactly, not nearly: the same numbers come out that went in")
        return Claim("5.1", says, CONSTRUCTION, why, measured, software=True)
    wrong = name_blocks([block for block, step in enumerate(steps) if step != 0])
    why = say("something moves the stream at {wrong}: the edit does not sit where it should", wrong=wrong)
    return Claim("5.1", says, FAILS, why, measured, software=True)


def verdict_5_2(equal: Sequence[Sequence[int]]) -> Claim:
    """equal: for each skipped block, the indices i at which `hidden_states[i]` equals `hidden_states[i − 1]` exactly."""
    says = say("block index and hidden-state index differ by one")
    right = [block for block, found in enumerate(equal) if list(found) == [block + 1]]
    last = len(equal) - 1
    measured = say(
        "hidden_states[b + 1] equals hidden_states[b] when block b is skipped: {n_right} of {tried} blocks",
        n_right=len(right),
        tried=len(equal),
    )
    if len(right) == len(equal):
        why, verdict = say("block b reads entry b and writes entry b + 1; entry 0 is the embedding"), HOLDS
    elif right == list(range(last)):
        why = say(
            "for every block but the last: entry {next_last} is not what block {last} writes, but what the "
            "final norm makes of it",
            next_last=last + 1,
            last=last,
        )
        verdict = PARTLY
    elif right:
        why, verdict = (
            say("for {name_blocks} only", name_blocks=name_blocks(right)),
            PARTLY if 2 * len(right) > len(equal) else FAILS,
        )
    else:
        why, verdict = say("no entry shows the skipped block where the rule puts it"), FAILS
    return Claim("5.2", says, verdict, why, measured, software=True)


def verdict_5_3(error: str, line: float | None, repair: float | None, mended: float, version: str) -> Claim:
    """error: what the pass with the report's line raised, or "". The others are the step that `hidden_states` shows at the
    skipped block, after an earlier clean pass: with the report's `return input` (None if it raised), with `return input[0]`
    (None if that raised), and with the right hook, registered ahead. version: of transformers."""
    says = say("the one-line hook `return input` does it")
    measured = say(
        "transformers {version}: `return input`: {error}; `return input[0]`: ",
        version=version,
        error=error or say("step {line}", line=n(line or 0)),
    )
    measured += (say("raises") if repair is None else say("step {repair}", repair=n(repair))) + say(
        "; registered ahead: step {mended}", mended=n(mended)
    )
    if line == 0:
        why = say(
            "it works here, where a block returns a tuple as its input is one; where a block returns a "
            "tensor, it raises"
        )
        return Claim("5.3", says, VERSION, why, measured, software=True)
    if line is not None:
        why = say("it runs, but what is recorded is the state before the hook")
        return Claim("5.3", says, PARTLY, why, measured, software=True)
    why = say(
        "it fails here: input is a tuple, and the next block wants a tensor; it works for GPT-2 on transformers 4. "
    )
    if repair is None:
        why += say("`return input[0]` does not run here either")
    elif repair == 0:
        why += say("Here `return input[0]` is as short, and skips")
    else:
        why += say("Here `return input[0]` skips the block, but the recorder ran first")
        why += say("; `prepend=True` mends it") if mended == 0 else ""
    return Claim("5.3", says, VERSION, why, measured, software=True)


def verdict_5_4(block: Table2, heads: Sequence[Table2], share: Sequence[float]) -> Claim:
    """block: KL(clean ‖ edited) in nats without each block; heads: without each single head of each block; share: of a block's
    parameters that one head has, for each block."""
    ratio, fair, above = [], [], []
    for whole, rows in zip(block, heads, strict=True):
        times = [b / max(one, 1e-12) for b, row in zip(whole, rows, strict=True) for one in row]
        per_parameter = [s * b / max(one, 1e-12) for b, row, s in zip(whole, rows, share, strict=True) for one in row]
        ratio.append(median(times))
        fair.append(median(per_parameter))
        above.append(all(b > max(row) for b, row in zip(whole, rows, strict=True)))
    parts = [
        Part(
            say("KL without a block is at least 4 times that without one of its heads (median)"),
            [r >= SAW for r in ratio],
        ),
        Part(say("every block does more damage than any of its heads"), above),
        Part(say("a block does more damage than a head also per parameter removed (median)"), [r > 1 for r in fair]),
    ]
    measured = say(
        "a block's KL over a head's, median: {ratio}; per parameter removed {fair}, where a block has "
        "{share} times a head's parameters",
        ratio=middle(ratio),
        fair=middle(fair),
        share=middle(1 / s for s in share),
    )
    return judge("5.4", say("skipping is a chainsaw next to head-level edits"), parts, measured)


def verdict_5_5(rise: Table2, bound: float = CHEAP) -> Claim:
    """rise: how much the loss rises without each block, in nats per token."""
    says = say("some blocks are redundant, others are not")
    sides = directions(columns_of(rise), bound)
    cheap, needed = ([block for block, side in enumerate(sides) if side == sign] for sign in (-1, 1))
    mean = [sum(column) / len(column) for column in columns_of(rise)]
    measured = say(
        "mean rise of the loss {mean} to {mean_2} nats a token, over {n_passages} passages",
        mean=n(min(mean)),
        mean_2=n(max(mean)),
        n_passages=len(rise),
    )
    why = say(
        "significantly below {bound} nats a token (sign test, Holm): {cheap}; above it: {needed}; of "
        "{n_blocks} blocks, one at a time",
        bound=n(bound),
        cheap=name_blocks(cheap) if cheap else say("none"),
        needed=name_blocks(needed) if needed else say("none"),
        n_blocks=len(sides),
    )
    mixed = HOLDS if cheap and needed else PARTLY if 0 < len(cheap) + len(needed) < len(sides) else FAILS
    return Claim("5.5", says, mixed, why, measured)


def verdict_5_6() -> Claim:
    """A claim about practice: nothing to measure."""
    why = say(
        "a statement about practice, which no measurement on a model can test. Whole blocks are left out "
        "in practice, but to save work, not to correct a model: ShortGPT (Men et al. 2024), early exit "
        "(LayerSkip, Elhoushi et al. 2024)"
    )
    return Claim(
        "5.6", say("skipping is hardly ever used to correct a model in practice"), UNTESTED, why, software=True
    )


VERDICTS: dict[str, Callable[..., Claim]] = {
    "5.1": verdict_5_1,
    "5.2": verdict_5_2,
    "5.3": verdict_5_3,
    "5.4": verdict_5_4,
    "5.5": verdict_5_5,
    "5.6": verdict_5_6,
}


def ledger(
    lm: LanguageModel, prompt: Prompt, text: Tensor | None = None, block: int | None = None, keep: Keep = compute_now
) -> list[Claim]:
    """Measure lesson 5's claims on `lm` and judge them.

    text: (n_passages, pos) token ids on which costs are measured; the beginnings of the course's held-out passages if None.
    block: where the report's hook is tried, 5 (or the one before the last) if None. Raises BlockOutOfRange, BadPrompt,
    PromptTooLong.
    """
    tried = min(5, lm.n_blocks - 2) if block is None else lm.check_block(block)
    tokens = lm.encode(prompt)
    text = held_out_windows(lm) if text is None else text
    hooks = keep(f"5 hooks {prompt} {tried}", lambda: vars(try_hooks(lm, tokens, tried)))
    skips = keep(f"5 skips {prompt}", lambda: [_steps_at_skipped(lm, tokens), _equal_states(lm, tokens)])
    costs = [keep(f"5 {row.tolist()}", partial(measure, lm, row)) for row in text]
    every = {name: [one[name] for one in costs] for name in costs[0]}
    return [
        verdict_5_1(skips[0]),
        verdict_5_2(skips[1]),
        verdict_5_3(**hooks, version=transformers.__version__),
        verdict_5_4(every["block"], every["heads"], head_share(lm)),
        verdict_5_5(every["loss"]),
        verdict_5_6(),
    ]


def held_out_windows(lm: LanguageModel) -> Tensor:
    """(n_passages, WINDOW) token ids: the beginning of each held-out passage."""
    return torch.cat([windows(lm, passage, WINDOW, most=1) for passage in held_out_passages()])


def measure(lm: LanguageModel, passage: Tensor) -> dict[str, Any]:
    """What edits cost on one passage of ids (pos,): loss, the rise of the next-token loss without each block, in nats per token;
    block and heads, KL(clean ‖ edited) of the next word after its first tokens, without each block and each head."""
    short = passage[:SHORT]
    return {
        "loss": sweep_blocks(lm, passage, measure=text_damage(), progress=False)[..., LOSS].tolist(),
        "block": sweep_blocks(lm, short, measure=DIVERGENCE, progress=False).tolist(),
        "heads": sweep_heads(lm, short, measure=DIVERGENCE, progress=False).tolist(),
    }


def head_share(lm: LanguageModel) -> list[float]:
    """For each block, the share of its parameters that one head has: its attention's, divided by the number of heads."""

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return [size(lm.attention(b)) / lm.n_heads / size(lm.blocks[b]) for b in range(lm.n_blocks)]


@dataclass(frozen=True)
class RawHooks:
    """What three hooks of the learner's own did at one block; see `verdict_5_3`."""

    error: str
    line: float | None
    repair: float | None
    mended: float


def try_hooks(lm: LanguageModel, tokens: Tokens, block: int) -> RawHooks:
    """Skip a block as the report does, with the nearest repair, and right; read the step off `output.hidden_states`.

    These hooks are hung on the plain module, without the care of helpers.hooks: that is what is tried here. A clean pass
    that records goes before them, as in the report, so that transformers 5 has its recorders in place.
    """
    module = lm.blocks[block]

    def whole(module: Any, args: Any, output: Any) -> Any:
        return args

    def inside(module: Any, args: Any, output: Any) -> Any:
        return args[0]

    def right(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return with_first(output, entering(args, kwargs))

    def step() -> float:
        states = _hidden_states(lm, tokens)
        return float((states[block + 1] - states[block]).norm())

    _hidden_states(lm, tokens)
    found: list[tuple[str, float | None]] = []
    for hook in (whole, inside):
        handle = module.register_forward_hook(hook)
        try:
            found.append(("", step()))
        except Exception as error:  # whichever error: that the report's line fails is the finding
            found.append((type(error).__name__, None))
        finally:
            handle.remove()
    handle = module.register_forward_hook(right, prepend=True, with_kwargs=True)
    try:
        mended = step()
    finally:
        handle.remove()
    return RawHooks(found[0][0], found[0][1], found[1][1], mended)


@torch.no_grad()
def _hidden_states(lm: LanguageModel, tokens: Tokens) -> tuple[Tensor, ...]:
    return lm.model(**lm.inputs(tokens), output_hidden_states=True).hidden_states


def _steps_at_skipped(lm: LanguageModel, tokens: Tokens) -> list[float]:
    found = []
    for block in range(lm.n_blocks):
        with edit(lm, skip_block(block)):
            found.append(float(step_norm(trace(lm, tokens, stop_after=block).resid)[block]))
    return found


def _equal_states(lm: LanguageModel, tokens: Tokens) -> list[list[int]]:
    found = []
    for block in range(lm.n_blocks):
        with edit(lm, skip_block(block)):
            states = _hidden_states(lm, tokens)
        found.append([i for i in range(1, len(states)) if torch.equal(states[i], states[i - 1])])
    return found
