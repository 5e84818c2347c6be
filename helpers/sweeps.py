"""Many interventions in few forward passes.

    effects = sweep_heads(lm, "Berlin is the capital of", " Germany")     # (n_blocks, n_heads): log p(target) after − before
    effects = sweep_heads(lm, prompts, targets, replacement="mean")       # (n_prompts, n_blocks, n_heads)
    damage = sweep_blocks(lm, windows(lm, text, 64), measure=text_damage())     # (n_windows, n_blocks, 3)

Every sweep gives the numbers of the plain loop `with edit(lm, one): lm.logits(prompt)`, to the last digits of the dtype, for
a fraction of its work (helpers/staircase.py explains how). All share the arguments of `sweep_edits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import errors, staircase
from .causes import refuse_nowhere
from .checks import finite_tensor
from .copies import Copy, check_list, check_values_per_prompt, copy_of, for_prompts
from .edits import Edit, put_heads, scale_attention, scale_block, scale_mlp, skip_attention, skip_block, skip_mlp
from .live import edited_as_a_whole
from .measures import Measure, Outcome, Targets, Trial, log_prob_change, predictions, text_damage
from .models import LanguageModel, check_model
from .plan import CopiesOf, Plan
from .positions import Positions, check_positions
from .progress import Progress, bar
from .recording import clean_passes, refuse_what_a_walk_cannot_do
from .replacements import CHUNK, Prompts, Replacement, head_values, mean_heads, prompt_rows
from .rows import where_rows_run_alone
from .say import translatable

__all__ = [
    "Measure",
    "Outcome",
    "Progress",
    "Replacement",
    "mean_heads",
    "predictions",
    "sweep_block_pairs",
    "sweep_blocks",
    "sweep_edits",
    "sweep_factors",
    "sweep_heads",
    "text_damage",
    "windows",
]

Measured = Measure | Callable[[Outcome], Tensor] | None
Part = Literal["block", "attention", "mlp"]

_SKIP: dict[str, Callable[[int], Edit]] = {"block": skip_block, "attention": skip_attention, "mlp": skip_mlp}
_SCALE: dict[str, Callable[[int, float], Edit]] = {
    "block": scale_block,
    "attention": scale_attention,
    "mlp": scale_mlp,
}


def sweep_edits(
    lm: LanguageModel,
    prompts: Prompts,
    edits: Sequence[Edit | Sequence[Edit]],
    target: Targets | None = None,
    *,
    measure: Measured = None,
    chunk: int = CHUNK,
    progress: Progress = None,
) -> Tensor:
    """Any interventions, each an edit or several at once, on each prompt: (n_prompts, len(edits), ...) on the CPU.

    prompts: one text, or ids (pos,): the result then has no prompt axis; or several texts, ids (n_prompts, pos), Tokens.
    edits: a value such as `patch_block`'s may have a row for each prompt, (n_prompts, pos, d_model); each prompt gets its own,
    of which a shorter one than the longest uses the beginning, as in a batch that is padded on the right.
    target: one text or token id for all prompts, or a list with one for each. The result is log p(target) at the last
    token, after − before, in nats. measure: instead of a target, a Measure such as `predictions` or `text_damage`, or a
    function of an Outcome that returns (copies, ...), each copy's numbers from that copy alone. chunk: tokens, copies ×
    positions, that go through a block at once; memory grows with it, not with the number of prompts or edits. progress:
    None shows a bar for a sweep longer than a second or two if somebody watches (a terminal, or a cell that a person runs;
    never where a program executes a notebook); True or False decides; a function is called with (done, total).

    Raises what `edit` and `lm.encode` raise, TargetIsNotOneToken, and BadValue in train mode, where dropout would make
    every copy another experiment, or when the model does more than its blocks and its read-out (a hook on the whole model,
    a replaced forward), which a walk over the blocks would not do. Where a live edit, code of yours (a hook, a module
    of your own class) or weights of 8 bits might look at several rows of a batch, rows run one by one: as right, and slower. So do
    copies where an edit draws random numbers or has a function of yours (noise_neurons, change): prompt by prompt, in their order.
    """
    check_list(edits)
    copies = [copy_of(lm, one) for one in edits]
    tokens = lm.encode(prompts)
    check_values_per_prompt(copies, tokens)
    rows = prompt_rows(lm, tokens)
    of_prompts = lambda chosen: for_prompts(copies, chosen, len(rows), len(rows[chosen[0]]))  # noqa: E731
    drawn = not all(one.pure for copy in copies for one in copy)
    found = _sweep(lm, rows, lambda: of_prompts, (len(copies),), target, measure, chunk, progress, drawn)
    return found[0] if _single(prompts) else found


def sweep_heads(
    lm: LanguageModel,
    prompts: Prompts,
    target: Targets | None = None,
    *,
    blocks: Sequence[int] | None = None,
    measure: Measured = None,
    replacement: Replacement | Tensor = "zero",
    positions: Positions = None,
    reference: Prompts | None = None,
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
    progress: Progress = None,
) -> Tensor:
    """Every head of every block ablated, one at a time: (n_prompts, n_blocks, n_heads, ...); no prompt axis for one text.

    blocks: only these, in this order; the block axis is then as long as the list. replacement: what the head's output
    becomes (Wang et al. 2022 and Li & Janson 2024 compare them). "zero"; "mean", its mean at each position over the
    reference prompts; "pooled mean", one mean over all their tokens (`mean_heads` gives both); "resample", its output on
    another prompt, drawn once for each prompt with `generator`; or a tensor that broadcasts to (n_blocks, n_heads, d_head)
    or (n_blocks, pos, n_heads, d_head). Positions are counted back from the last token; where the reference prompts are
    shorter, their first token's output stands in, while a tensor must be as long as the longest prompt. positions: ablated
    there alone, as in an edit: None for all tokens, or for example -1 for the last. reference: prompts for means and resample;
    without it the swept ones, and resample never gives a prompt to itself. All else as in `sweep_edits`.
    """
    chosen_blocks = _blocks(lm, blocks)
    sites = [(block, head) for block in chosen_blocks for head in range(lm.n_heads)]
    rows = prompt_rows(lm, prompts)
    positions = check_positions(positions)
    replacement = finite_tensor(replacement, "the replacement") if isinstance(replacement, Tensor) else replacement
    pool = None if reference is None else prompt_rows(lm, reference)

    def ablations() -> CopiesOf:
        values_of = head_values(lm, rows, replacement, pool, generator, chunk)

        def copies_of(chosen: list[int]) -> list[Copy]:
            heads = finite_tensor(values_of(chosen), "the replacement").split(1, dim=-2)
            return [(put_heads(block, [head], heads[head][block], positions=positions),) for block, head in sites]

        return copies_of

    found = _sweep(lm, rows, ablations, (len(chosen_blocks), lm.n_heads), target, measure, chunk, progress)
    return found[0] if _single(prompts) else found


def sweep_blocks(
    lm: LanguageModel,
    prompts: Prompts,
    target: Targets | None = None,
    *,
    part: Part = "block",
    measure: Measured = None,
    chunk: int = CHUNK,
    progress: Progress = None,
) -> Tensor:
    """Each block skipped, or its attention or MLP alone: (n_prompts, n_blocks, ...). All else as in `sweep_edits`."""
    copies = [(_of_part(_SKIP, part)(block),) for block in _blocks(lm)]
    rows = prompt_rows(lm, prompts)
    found = _sweep(lm, rows, lambda: lambda _: copies, (lm.n_blocks,), target, measure, chunk, progress)
    return found[0] if _single(prompts) else found


def sweep_block_pairs(
    lm: LanguageModel,
    prompts: Prompts,
    target: Targets | None = None,
    *,
    part: Part = "block",
    measure: Measured = None,
    chunk: int = CHUNK,
    progress: Progress = None,
) -> Tensor:
    """Each pair of blocks skipped, or of their attentions or MLPs: (n_prompts, n_blocks, n_blocks, ...).

    Symmetric, with single blocks on the diagonal. All else as in `sweep_edits`.
    """
    skips = [_of_part(_SKIP, part)(block) for block in _blocks(lm)]
    pairs = [(a, b) for a in range(lm.n_blocks) for b in range(a, lm.n_blocks)]
    copies: list[Copy] = [(skips[a],) if a == b else (skips[a], skips[b]) for a, b in pairs]
    rows = prompt_rows(lm, prompts)
    found = _sweep(lm, rows, lambda: lambda _: copies, (len(pairs),), target, measure, chunk, progress)
    number = {pair: k for k, pair in enumerate(pairs)}
    square = [[number[min(a, b), max(a, b)] for b in range(lm.n_blocks)] for a in range(lm.n_blocks)]
    found = found[:, torch.tensor(square)]
    return found[0] if _single(prompts) else found


def sweep_factors(
    lm: LanguageModel,
    prompts: Prompts,
    block: int,
    factors: Sequence[float] | Tensor,
    target: Targets | None = None,
    *,
    part: Part = "block",
    measure: Measured = None,
    chunk: int = CHUNK,
    progress: Progress = None,
) -> Tensor:
    """One block's output, or what its attention or MLP adds, times each factor: (n_prompts, n_factors, ...).

    All else as in `sweep_edits`.
    """
    scale = _of_part(_SCALE, part)
    given = factors.tolist() if isinstance(factors, Tensor) else factors
    if isinstance(given, str) or not isinstance(given, Iterable) or not (edits := [scale(block, f) for f in given]):
        raise errors.BadValue("factors {given!r} cannot be used: give a list, for example [0.5, 2.0].", given=given)
    return sweep_edits(lm, prompts, edits, target, measure=measure, chunk=chunk, progress=progress)


def windows(lm: LanguageModel, text: str, length: int, most: int | None = None) -> Tensor:
    """(n_windows, length) token ids: a text cut into windows that do not overlap; what remains at its end is left out.

    Each begins with the special tokens that the tokenizer puts in front of a text.
    most: the number of windows at most. Raises PromptTooLong or BadPrompt.
    """
    check_model(lm)
    if length > lm.context:
        raise errors.PromptTooLong(
            "windows of {length} tokens do not fit: this model has {context} positions.",
            length=length,
            context=lm.context,
        )
    front, ids = lm.front_and_text(text)
    own = length - len(front)
    number = len(ids) // own if own > 0 else 0
    number = number if most is None else min(number, most)
    if number < 1:
        raise errors.BadPrompt(
            "a text of {n_tokens} tokens makes no window of {length}: give more text or shorter windows.",
            n_tokens=len(ids),
            length=length,
        )
    return torch.tensor([front + ids[k * own : (k + 1) * own] for k in range(number)], device=lm.device)


# ---- what the sweeps share


@torch.no_grad()
def _sweep(
    lm: LanguageModel,
    rows: list[Tensor],
    make: Callable[[], CopiesOf],
    shape: tuple[int, ...],
    target: Targets | None,
    measure: Measured,
    chunk: int,
    progress: Progress,
    in_order: bool = False,
) -> Tensor:
    """(n_prompts, *shape, ...). The door of all sweeps. What `make` runs to give `copies_of` (means) is part of the sweep."""
    if (target is None) == (measure is None):
        raise errors.BadValue("give a target, for example ' Germany', or a measure, and not both.")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise errors.BadValue("chunk {chunk!r} cannot be used: give a number of tokens, 1 or more.", chunk=chunk)
    if measure is None:
        assert target is not None
        measure = log_prob_change(lm, target)
    elif not isinstance(measure, Measure):
        measure = Measure(measure)
    measure.check_number(len(rows))
    trial = Trial(measure, chunk)
    refuse_nowhere(lm.model)
    refuse_what_a_walk_cannot_do(lm)
    number, found = torch.Size(shape).numel(), dict[int, Tensor]()
    whole = edited_as_a_whole(lm, translatable("this sweep"), by_this_thread=True)
    with whole as check, bar(len(rows) * number * lm.n_blocks, progress) as done:
        plan = Plan(lm, rows, make(), number, measure, trial, chunk, where_rows_run_alone(lm), in_order)
        for clean in clean_passes(plan):
            found.update(zip(clean.prompts, staircase.run(plan, clean, done), strict=True))
            check()
    return torch.stack([found[prompt] for prompt in range(len(rows))]).unflatten(1, shape)


def _single(prompts: Prompts) -> bool:
    return isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim == 1)


def _blocks(lm: LanguageModel, blocks: Sequence[int] | None = None) -> list[int]:
    check_model(lm)
    if blocks is None:
        return list(range(lm.n_blocks))
    if isinstance(blocks, str | int) or not isinstance(blocks, Iterable) or not (found := list(blocks)):
        raise errors.BadValue(
            "blocks {blocks!r} cannot be used: give a list of block numbers, for example [5].", blocks=blocks
        )
    return [lm.check_block(block) for block in found]


def _of_part(table: dict[str, Callable[..., Edit]], part: str) -> Callable[..., Edit]:
    if not isinstance(part, str) or part not in table:
        raise errors.BadValue("part {part!r} is unknown: choose 'block', 'attention' or 'mlp'.", part=part)
    return table[part]
