"""Exercises of lesson 5: skip a block, see that it is skipped, save its work, choose what to skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from helpers.course.exercise import Exercise, checker, hooks_on, tiny_model
from helpers.edits import edit, skip_block
from helpers.hooks import on_input, on_output, remove
from helpers.metrics import log_prob
from helpers.models import LanguageModel
from helpers.tables import format_number

# ---- 5.1


def equal_states(block, n_blocks):
    return ...


def solution_5_1(block, n_blocks):
    # Block b reads hidden_states[b] and writes hidden_states[b + 1]; entry 0 is the embedding.
    if block == n_blocks - 1:
        return ()  # hidden_states[n_blocks] has been through the final norm: it equals nothing before it
    return (block, block + 1)


def _check_5_1(answer: Callable[..., Any]) -> str | None:
    for n_blocks in (12, 5):
        for block in range(n_blocks):
            got = answer(block, n_blocks)
            asked = f"for block {block} of {n_blocks} you answer {got!r}"
            if not isinstance(got, tuple) or len(got) not in (0, 2):
                return f"{asked}: return a pair of indices such as (3, 4), or () where no two entries are equal."
            pair = tuple(sorted(got))
            if block == n_blocks - 1:
                if pair:
                    return (
                        f"{asked}. The last entry is not the last block's output but what the final norm makes of it."
                    )
            elif pair == (block - 1, block):
                return f"{asked}. Entry 0 is the embedding, so entry {block} is what block {block} reads, not what it writes."
            elif pair == (block + 1, block + 2):
                return f"{asked}. That is one too far: block {block} writes entry {block + 1}, and block {block + 1} reads it."
            elif not pair:
                return f"{asked}, but a block that hands on its input leaves two equal entries behind."
            elif pair != (block, block + 1):
                return f"{asked}. Ask which entry block {block} reads, and which one it writes."
    return None


def _before(block, n_blocks):
    return (block - 1, block) if block < n_blocks - 1 else ()


def _too_far(block, n_blocks):
    return (block + 1, block + 2) if block < n_blocks - 1 else ()


def _last_too(block, n_blocks):
    return (block, block + 1)


def _one_index(block, n_blocks):
    return block + 1


# ---- 5.2


def skip_hook(module, args, output):
    return ...


def solution_5_2(module, args, output):
    stream = args[0]  # args holds everything that the block was called with; the stream comes first
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def _check_5_2(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(52)
    entered, left, pattern = (torch.randn(2, 5, 8, generator=generator) for _ in range(3))
    given = entered.clone()
    got = answer(nn.Identity(), (given, None), left.clone())
    if isinstance(got, tuple):
        return (
            "the block returned a tensor, and you return a tuple, all that it was called with: the stream is args[0]."
        )
    if not isinstance(got, Tensor):
        return f"a hook that replaces the output returns a tensor here, but yours returned {type(got).__name__}."
    if got.shape == entered.shape[1:]:
        return "`[0]` on a tensor takes the first row of the batch. args is a tuple, so args[0] is the whole stream; stop there."
    if got.shape != entered.shape:
        return f"the stream has shape {tuple(entered.shape)}, but you returned {tuple(got.shape)}."
    if torch.equal(got, left):
        return "you return what the block computed, so nothing is skipped: hand on what came in."
    if not got.any():
        return (
            "you return zeros. That wipes out the whole stream; skipping a block takes away only what this block adds."
        )
    if not torch.equal(got, entered):
        return "what you return is not the stream that entered the block."
    if not torch.equal(given, entered):
        return "you changed the stream in place, and whoever recorded it before now holds something else."
    got = answer(nn.Identity(), (entered.clone(), None), (left.clone(), pattern))
    if not isinstance(got, tuple):
        return "right for a tensor. When output is a tuple (transformers 4.57), give back a tuple with the stream in front."
    if len(got) != 2 or not torch.equal(got[1], pattern):
        return "when output is a tuple, everything behind its first element must stay as it was."
    if not torch.equal(got[0], entered):
        return "when output is a tuple, its first element must become the stream that entered the block, args[0]."
    return None


def _whole_input(module, args, output):
    return args


def _first_row(module, args, output):
    return args[0][0]


def _unchanged(module, args, output):
    return output


def _wiped(module, args, output):
    return torch.zeros_like(args[0])


def _tensor_only(module, args, output):
    return args[0]


def _loses_the_rest(module, args, output):
    return (args[0],) if isinstance(output, tuple) else args[0]


# ---- 5.3


def run_skipped(model, block, ids):
    return ...


def solution_5_3(model, block, ids):
    def skip(module, args, output):
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    handle = model.transformer.h[block].register_forward_hook(skip, prepend=True)  # ahead of every recorder
    try:
        return model(ids).logits
    finally:
        handle.remove()  # also when the pass fails


def _check_5_3(answer: Callable[..., Any]) -> str | None:
    lm, ids, block = _unseen(53)
    recorded: list[Tensor] = []
    handles = [on_input(lm.blocks[0], lambda value: recorded.append(value.detach().clone()))]
    handles += [on_output(one, lambda value, _: recorded.append(value.detach().clone())) for one in lm.blocks]
    before = hooks_on(lm.model)
    try:
        got = answer(lm.model, block, ids)
        after = hooks_on(lm.model)
    finally:
        remove(handles)
    complaint = _compare_logits(got, 53)
    if complaint:
        return complaint
    if after > before:
        return f"{after - before} of your hooks stayed on the model: keep the handle and remove it, in `finally`."
    if after < before:
        return "you removed hooks that are not yours: take off your own handle and leave the recorders in peace."
    last = recorded[-lm.n_blocks - 1 :]  # of the last pass: the embedding, then the output of each block
    step = float((last[block + 1] - last[block]).norm())
    if step:
        return (
            f"the block is skipped, but a recorder that was there before you sees a step of {format_number(step, 3)}, not 0: "
            "your hook runs after it. Register yours ahead (prepend)."
        )
    return None


def _hook_late(model, block, ids):
    handle = model.transformer.h[block].register_forward_hook(solution_5_2)
    try:
        return model(ids).logits
    finally:
        handle.remove()


def _hook_stays(model, block, ids):
    model.transformer.h[block].register_forward_hook(solution_5_2, prepend=True)
    return model(ids).logits


def _hook_on_neighbour(model, block, ids):
    return solution_5_3(model, block - 1, ids)


def _hook_without_effect(model, block, ids):
    handle = model.transformer.h[block].register_forward_hook(_unchanged, prepend=True)
    logits = model(ids).logits
    handle.remove()
    return logits


def _all_hooks_cleared(model, block, ids):
    module = model.transformer.h[block]
    module.register_forward_hook(solution_5_2, prepend=True)
    logits = model(ids).logits
    module._forward_hooks.clear()
    return logits


# ---- 5.4


def skip_for_real(model, block, ids):
    return ...


def solution_5_4(model, block, ids):
    import transformers

    tuples = transformers.__version__.startswith("4.")  # a block returned a tuple before transformers 5

    def shortcut(stream, *args, **kwargs):
        return (stream,) if tuples else stream

    module = model.transformer.h[block]
    module.forward = shortcut  # an attribute of this one module; it hides the method of its class
    try:
        return model(ids).logits
    finally:
        del module.forward  # the method of the class is back


def _check_5_4(answer: Callable[..., Any]) -> str | None:
    lm, ids, block = _unseen(54)
    modules = list(lm.model.transformer.h)
    before = hooks_on(lm.model)
    with _calls(lm.attention(block), lm.mlp(block)) as calls:
        got = answer(lm.model, block, ids)
    complaint = _compare_logits(got, 54)
    if complaint:
        return complaint
    if any(calls):
        return (
            f"the logits are right, but attention and MLP of block {block} still ran ({calls[0]} and {calls[1]} calls): "
            "a hook only throws their result away."
        )
    if any(now is not then for now, then in zip(lm.model.transformer.h, modules, strict=False)) or len(
        lm.model.transformer.h
    ) != len(modules):
        return "the list of blocks is not what it was: put the block back where you found it."
    if any("forward" in vars(module) for module in modules):
        return "the block keeps your forward, so every later pass skips it too: delete the attribute, in `finally`."
    if hooks_on(lm.model) != before:
        return "a hook stayed on the model."
    if not torch.equal(lm.logits(ids), tiny_model(54).logits(ids)):
        return "the model no longer gives its own logits after your function."
    return None


def _only_a_hook(model, block, ids):
    return solution_5_3(model, block, ids)


def _forward_stays(model, block, ids):
    tuples = transformers.__version__.startswith("4.")
    model.transformer.h[block].forward = lambda stream, *_, **__: (stream,) if tuples else stream
    return model(ids).logits


def _block_is_gone(model, block, ids):
    model.transformer.h = nn.ModuleList(module for i, module in enumerate(model.transformer.h) if i != block)
    return model(ids).logits


def _wrong_block(model, block, ids):
    return solution_5_4(model, block + 1, ids)


# ---- 5.5


def greedy_skips(lm, ids, count):
    return ...


def solution_5_5(lm, ids, count):
    def loss(blocks):
        with edit(lm, *(skip_block(block) for block in blocks)):
            logits = lm.logits(ids)
        return -log_prob(logits[:, :-1], ids[:, 1:]).mean()  # the logits at t are about token t + 1

    chosen: list[int] = []
    while len(chosen) < count:
        left = [block for block in range(lm.n_blocks) if block not in chosen]
        chosen.append(min(left, key=lambda block: loss([*chosen, block])))
    return chosen


def _check_5_5(answer: Callable[..., Any]) -> str | None:
    lm, ids = _greedy_case()
    count = 3
    got = answer(lm, ids.clone(), count)
    if not isinstance(got, list | tuple) or not all(isinstance(block, int) for block in got):
        return (
            f"return a list of {count} block numbers, in the order in which they were chosen: plain numbers, no tensors "
            "(int(...) makes one)."
        )
    got = list(got)
    if len(got) != count:
        return f"{count} blocks were asked for and you chose {len(got)}."
    if len(set(got)) < count:
        return f"you chose {got}: a block can be skipped only once, so leave the chosen ones out of the next round."
    if got == solution_5_5(lm, ids, count):
        return None if not lm.live_edits else "your edits are still on the model: use them in a `with`."
    mistakes = {
        "you ranked the blocks one by one. The second block must be measured while the first is already skipped.": _by_rank,
        "you chose the blocks whose loss is highest: the least loss is wanted.": _dearest_first,
        "the loss compares logits[:, t] with token t, which the model has already read: compare with token t + 1.": _shifted,
    }
    for sentence, mistake in mistakes.items():
        if got == mistake(lm, ids, count):
            return sentence
    return f"you chose {got}, but another order leaves a lower loss at each round."


def _greedy_case() -> tuple[LanguageModel, Tensor]:
    """A model on which each of the usual mistakes chooses other blocks than the right way."""
    lm = tiny_model(1, n_blocks=6)
    return lm, torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(55))


def _single_losses(lm: LanguageModel, ids: Tensor, blocks: list[int], shift: bool = True) -> float:
    with edit(lm, *(skip_block(block) for block in blocks)):
        logits = lm.logits(ids)
    return -float((log_prob(logits[:, :-1], ids[:, 1:]) if shift else log_prob(logits, ids)).mean())


def _by_rank(lm, ids, count):
    return sorted(range(lm.n_blocks), key=lambda block: _single_losses(lm, ids, [block]))[:count]


def _dearest_first(lm, ids, count):
    chosen: list[int] = []
    while len(chosen) < count:
        left = [block for block in range(lm.n_blocks) if block not in chosen]
        chosen.append(max(left, key=lambda block: _single_losses(lm, ids, [*chosen, block])))
    return chosen


def _shifted(lm, ids, count):
    chosen: list[int] = []
    while len(chosen) < count:
        left = [block for block in range(lm.n_blocks) if block not in chosen]
        chosen.append(min(left, key=lambda block: _single_losses(lm, ids, [*chosen, block], shift=False)))
    return chosen


def _the_same_again(lm, ids, count):
    return _by_rank(lm, ids, 1) * count


# ---- what the checks share


def _unseen(seed: int) -> tuple[LanguageModel, Tensor, int]:
    """A model, two rows of ids and a block that are not the notebook's; the same ones for the same seed."""
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(seed))
    return tiny_model(seed), ids, 2


def _skipped_logits(lm: LanguageModel, block: int, ids: Tensor) -> Tensor:
    with edit(lm, skip_block(block)):
        return lm.logits(ids)


def _compare_logits(got: Any, seed: int) -> str | None:
    """Say what is wrong with logits that should be those of a pass without the block; compares on a fresh model."""
    lm, ids, block = _unseen(seed)
    wanted = _skipped_logits(lm, block, ids)
    if not isinstance(got, Tensor):
        return f"return the logits, a tensor; yours is {type(got).__name__} (`model(ids).logits`)."
    if got.shape != wanted.shape:
        return f"the logits must have shape {tuple(wanted.shape)}, (batch, pos, vocabulary), but yours have {tuple(got.shape)}."
    if torch.allclose(got, wanted, atol=1e-9):
        return None
    if torch.allclose(got, lm.logits(ids), atol=1e-9):
        return "these are the clean logits: nothing was skipped."
    for other in range(lm.n_blocks):
        if torch.allclose(got, _skipped_logits(lm, other, ids), atol=1e-9):
            return f"you skipped block {other}, but block {block} was asked for: blocks count from 0."
    return "the logits are not those of a pass in which this block hands on its input."


@contextmanager
def _calls(*modules: nn.Module) -> Iterator[list[int]]:
    """Count how often each module is called."""
    counts = [0] * len(modules)

    def count(index: int) -> Callable[[Tensor, Tensor], None]:
        def see(value: Tensor, _: Tensor) -> None:
            counts[index] += 1

        return see

    handles = [on_output(module, count(index)) for index, module in enumerate(modules)]
    try:
        yield counts
    finally:
        remove(handles)


EXERCISES = (
    Exercise(
        "5.1", "Which two states are equal?", 1, 4, equal_states, _check_5_1,
        "Write down what hidden_states[0] is. Which entry does block 0 read, and which one does it write? Then look at the "
        "end of the list: between the last block and the logits stands the final norm. Is the last entry taken before it?",
        solution_5_1, (_before, _too_far, _last_too, _one_index),
    ),
    Exercise(
        "5.2", "A hook for both forms", 1, 6, skip_hook, _check_5_2,
        "args is always a tuple with the stream in front. output is a tensor or a tuple: ask isinstance(output, tuple), and "
        "give back the same form.",
        solution_5_2, (_whole_input, _first_row, _unchanged, _wiped, _tensor_only, _loses_the_rest),
    ),
    Exercise(
        "5.3", "Skipped for everybody", 2, 8, run_skipped, _check_5_3,
        "register_forward_hook takes prepend=True, which puts your hook ahead of those that are there already. A try … finally "
        "takes it off whatever happens.",
        solution_5_3, (_hook_late, _hook_stays, _hook_on_neighbour, _hook_without_effect, _all_hooks_cleared),
    ),
    Exercise(
        "5.4", "Save the work", 2, 8, skip_for_real, _check_5_4,
        "Calling a module runs `module.forward(...)`. An attribute of that name on this one module hides the method of its "
        "class, and `del module.forward` brings the method back.",
        solution_5_4, (_only_a_hook, _forward_stays, _block_is_gone, _wrong_block),
    ),
    Exercise(
        "5.5", "Design your own: which three blocks to skip?", 3, 12, greedy_skips, _check_5_5,
        "Write a small function loss(blocks) first: a `with edit(lm, *edits)`, then the mean of -log_prob(logits[:, :-1], "
        "ids[:, 1:]). In each round try every block that is left together with those already chosen.",
        solution_5_5, (_by_rank, _dearest_first, _shifted, _the_same_again),
    ),
)  # fmt: skip
check_5_1, check_5_2, check_5_3, check_5_4, check_5_5 = (checker(exercise) for exercise in EXERCISES)
