"""Lesson 5's claims about skipping a block, 5.1 to 5.5: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

A verdict function takes numbers and returns a Claim; it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.edits import edit, skip_block
from helpers.hooks import entering, with_first
from helpers.measures import text_damage
from helpers.metrics import bootstrap_interval, step_norm
from helpers.models import LanguageModel, Tokens
from helpers.plots.skipping import name_blocks
from helpers.sweeps import sweep_blocks, sweep_heads, windows
from helpers.tables import format_number
from helpers.texts import held_out_passages
from helpers.tracing import trace

CHEAP = 0.1  # nats per token, 10 % more perplexity: below it a block counts as redundant, above it as needed
WINDOW = 32  # tokens at the beginning of each held-out passage, on which the loss of a skipped block is measured
FEW, SHORT = 4, 16  # passages, and tokens of each, on which every head is ablated
SAW = 4  # a block's KL over a head's: KL grows with the square of a small push, so this is a push twice as long
LOSS, KL = (text_damage().columns.index(name) for name in ("loss", "kl"))


def verdict_5_1(steps: Sequence[float]) -> Claim:
    """steps: ‖H_(l+1) − H_l‖_F at block l while block l is skipped, for every block."""
    zero = sum(step == 0 for step in steps)
    says = "the step is exactly 0 at the skipped block"
    measured = f"0 at {zero} of {len(steps)} blocks, each skipped in turn; the largest step is {_n(max(steps))}"
    if zero == len(steps):
        return Claim("5.1", says, measured, HOLDS, "exactly, not nearly: the same numbers come out that went in")
    if 2 * zero > len(steps):
        wrong = [block for block, step in enumerate(steps) if step != 0]
        return Claim("5.1", says, measured, PARTLY, f"not at {name_blocks(wrong)}")
    return Claim(
        "5.1", says, measured, FAILS, "something still moves the stream: the edit does not sit where it should"
    )


def verdict_5_2(equal: Sequence[Sequence[int]]) -> Claim:
    """equal: for each skipped block, the indices i at which `hidden_states[i]` equals `hidden_states[i − 1]` exactly."""
    says = "block index and hidden-state index differ by one"
    right = [block for block, found in enumerate(equal) if list(found) == [block + 1]]
    last = len(equal) - 1
    measured = (
        f"hidden_states[b + 1] equals hidden_states[b] when block b is skipped: {len(right)} of {len(equal)} blocks"
    )
    if len(right) == len(equal):
        return Claim(
            "5.2", says, measured, HOLDS, "block b reads entry b and writes entry b + 1; entry 0 is the embedding"
        )
    if right == list(range(last)):
        why = f"for every block but the last: entry {last + 1} is not what block {last} writes, but what the final norm makes of it"
        return Claim("5.2", says, measured, PARTLY, why)
    if 2 * len(right) > len(equal):
        return Claim("5.2", says, measured, PARTLY, f"for {name_blocks(right)} only")
    why = f"for {name_blocks(right)} only" if right else "no entry shows the skipped block where the rule puts it"
    return Claim("5.2", says, measured, FAILS, why)


def verdict_5_3(error: str, line: float | None, repair: float | None, mended: float) -> Claim:
    """error: what the pass with the report's line raised, or "". The others are the step that `hidden_states` shows at the
    skipped block, after an earlier clean pass: with the report's `return input` (None if it raised), with `return input[0]`
    (None if that raised), and with the right hook, registered ahead."""
    says = "the one-line hook `return input` does it"
    measured = f"`return input`: {error or f'step {_n(line or 0)}'}; `return input[0]`: " + (
        "raises" if repair is None else f"step {_n(repair)}"
    )
    measured += f"; registered ahead: {_n(mended)}"
    if line == 0:
        return Claim("5.3", says, measured, HOLDS, "in this version a block returns a tuple, as its input is one")
    if line is not None:
        return Claim("5.3", says, measured, PARTLY, "it runs, but what is recorded is the state before the hook")
    why = "input is a tuple and the next block wants a tensor; "
    if repair is None:
        return Claim("5.3", says, measured, FAILS, why + "and `input[0]` does not run either")
    if repair == 0:
        return Claim("5.3", says, measured, FAILS, why + "`return input[0]` is as short, and skips")
    why += "`input[0]` skips the block, but the recorder ran first" + (
        "; `prepend=True` mends it" if mended == 0 else ""
    )
    return Claim("5.3", says, measured, FAILS, why)


def verdict_5_4(block: Sequence[float], heads: Sequence[Sequence[float]]) -> Claim:
    """block: mean KL(clean ‖ edited) in nats without each block; heads: the same without each single head of each block."""
    says = "skipping is a chainsaw next to head-level edits"
    ratio = median(whole / max(one, 1e-12) for whole, row in zip(block, heads, strict=True) for one in row)
    above = sum(whole > max(row) for whole, row in zip(block, heads, strict=True))
    strongest = max(max(row) for row in heads)
    outdone = sum(whole < strongest for whole in block)
    measured = (
        f"KL without a block is {_n(ratio)} times that without one of its heads (median); it is above every head of its own "
        f"in {above} of {len(block)} blocks; the strongest head outdoes {outdone} of {len(block)} blocks"
    )
    if ratio <= SAW:
        return Claim(
            "5.4",
            says,
            measured,
            FAILS,
            "one head (median) pushes the prediction half as far as its whole block, or further",
        )
    if above == len(block) and not outdone:
        return Claim("5.4", says, measured, HOLDS, "every block does more damage than any head")
    if above == len(block):
        why = "a block does more damage than any of its own heads, yet the strongest head of all does more than some whole blocks"
        return Claim("5.4", says, measured, PARTLY, why)
    return Claim("5.4", says, measured, PARTLY, "for most heads, but some do as much damage alone as their block")


def verdict_5_5(rise: Sequence[float], low: Sequence[float], high: Sequence[float], bound: float = CHEAP) -> Claim:
    """rise, low, high: how much the loss rises without each block, in nats per token, and its 95 % interval."""
    says = "some blocks are redundant, others are not"
    cheap = [block for block, top in enumerate(high) if top < bound]
    dear = [block for block, bottom in enumerate(low) if bottom > bound]
    measured = (
        f"loss + {_n(min(rise))} to + {_n(max(rise))} nats a token; surely under {_n(bound)}: {len(cheap)} of {len(rise)} blocks, "
        f"surely over: {len(dear)}"
    ).replace("+ -", "− ")
    if cheap and dear:
        why = f"the model hardly misses {name_blocks(cheap)}, one at a time, and it needs {name_blocks(dear)}"
        return Claim("5.5", says, measured, HOLDS, why)
    if cheap and len(cheap) < len(rise):
        return Claim("5.5", says, measured, PARTLY, "some are redundant, one at a time, but none is surely needed")
    if dear and len(dear) < len(rise):
        return Claim("5.5", says, measured, PARTLY, "some are needed, but none is surely redundant on this text")
    return Claim("5.5", says, measured, FAILS, "on this text the blocks cannot be told apart in this way")


VERDICTS: dict[str, Callable[..., Claim]] = {
    "5.1": verdict_5_1,
    "5.2": verdict_5_2,
    "5.3": verdict_5_3,
    "5.4": verdict_5_4,
    "5.5": verdict_5_5,
}


def ledger(
    lm: LanguageModel,
    prompt: str | Tensor,
    text: Tensor | None = None,
    block: int | None = None,
    damage: Damage | None = None,
) -> list[Claim]:
    """Measure lesson 5's claims on `lm` and judge them.

    text: (n_passages, pos) token ids on which costs are measured; the beginnings of the course's held-out passages if None.
    damage: what was measured on a text before, instead. block: where the report's hook is tried, 5 (or the one before the
    last) if None. Raises BlockOutOfRange, BadPrompt, PromptTooLong.
    """
    tried = min(5, lm.n_blocks - 2) if block is None else lm.check_block(block)
    tokens = lm.encode(prompt)
    raw = try_hooks(lm, tokens, tried)
    if damage is None:
        damage = measure_damage(lm, held_out_windows(lm) if text is None else text)
    costs = skip_costs(damage.loss)
    return [
        verdict_5_1(_steps_at_skipped(lm, tokens)),
        verdict_5_2(_equal_states(lm, tokens)),
        verdict_5_3(raw.error, raw.line, raw.repair, raw.mended),
        verdict_5_4(damage.block.tolist(), damage.heads.tolist()),
        verdict_5_5(costs.rise.tolist(), costs.low.tolist(), costs.high.tolist()),
    ]


def held_out_windows(lm: LanguageModel) -> Tensor:
    """(n_passages, WINDOW) token ids: the beginning of each held-out passage."""
    return torch.cat([windows(lm, passage, WINDOW, most=1) for passage in held_out_passages()])


@dataclass(frozen=True)
class Damage:
    """What edits cost on a text of several passages.

    loss: (n_passages, n_blocks) rise of the next-token loss without each block, in nats per token. block: (n_blocks,) mean
    KL(clean ‖ edited) without it; heads: (n_blocks, n_heads) the same without each single head, on the same tokens.
    """

    loss: Tensor
    block: Tensor
    heads: Tensor


def measure_damage(lm: LanguageModel, text: Tensor) -> Damage:
    """Skip each block on a text (n_passages, pos), and ablate each head at the beginning of its first few passages."""
    short = text[:FEW, :SHORT]
    return Damage(
        sweep_blocks(lm, text, measure=text_damage())[..., LOSS],
        sweep_blocks(lm, short, measure=text_damage()).mean(0)[..., KL],
        sweep_heads(lm, short, measure=text_damage()).mean(0)[..., KL],
    )


@dataclass(frozen=True)
class Costs:
    """Rise of the next-token loss without each block, in nats per token, and its 95 % interval over passages; (n_blocks,)."""

    rise: Tensor
    low: Tensor
    high: Tensor


def skip_costs(loss: Tensor, seed: int = 0) -> Costs:
    """The mean of (n_passages, n_blocks) and its interval: a bootstrap over whole passages, drawn with `seed`.

    Not over tokens: those of one passage are not independent of each other.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor([bootstrap_interval(one, generator) for one in loss.T], dtype=torch.float64)
    return Costs(*found.T)


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


def _n(value: float) -> str:
    return format_number(float(value), 3)
