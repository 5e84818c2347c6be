"""Exercises of lesson 5: skip a block, silence an MLP at one token, choose what to remove, patch a head, save the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from helpers.course.exercise import Almost, Exercise, a_model, checker, hooks_on, tiny_model
from helpers.edits import edit, patch_block, replace_heads, skip_block, skip_mlp
from helpers.hooks import on_output, remove
from helpers.lesson5.runs import held_out
from helpers.loading import load_model
from helpers.metrics import log_prob, top_k
from helpers.models import LanguageModel
from helpers.say import say, translatable
from helpers.tables import format_number
from helpers.tracing import trace

CAPITAL = "Paris is the capital of France. Berlin is the capital of"

# ---- 5.1


def skip_hook(module, args, output):
    return ...


def solution_5_1(module, args, output):
    stream = args[0]  # args holds everything that the block was called with; the stream comes first
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def _check_5_1(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(52)
    entered, left, pattern = (torch.randn(3, 5, 8, generator=generator) for _ in range(3))
    given, computed = entered.clone(), left.clone()
    got = answer(nn.Identity(), (given, None), computed)
    if isinstance(got, tuple):
        return say(
            "the block returned a tensor, and you return a tuple, all that it was called with: the stream is args[0]."
        )
    if not isinstance(got, Tensor):
        return say(
            "a hook that replaces the output returns a tensor here, but yours returned {kind}.", kind=type(got).__name__
        )
    if got.shape == entered.shape[1:]:
        return say(
            "`[0]` on a tensor takes the first row of the batch. args is a tuple, so args[0] is the whole "
            "stream; stop there."
        )
    if got.shape != entered.shape:
        return say(
            "the stream has shape {entered_shape}, but you returned {shape}.",
            entered_shape=tuple(entered.shape),
            shape=tuple(got.shape),
        )
    if torch.equal(got, left):
        return say("you return what the block computed, so nothing is skipped: hand on what came in.")
    if not got.any():
        return say(
            "you return zeros. That wipes out the whole stream; skipping a block takes away only what this block adds."
        )
    if not torch.equal(got, entered):
        return say("what you return is not the stream that entered the block.")
    if not torch.equal(given, entered):
        return say("you changed the stream in place, and whoever recorded it before now holds something else.")
    if not torch.equal(computed, left):
        return say(
            "you wrote into the block's own output: a recorder that ran before you now holds something else. "
            "Return args[0] itself."
        )
    for more in ((), (pattern,), (None, pattern)):  # transformers 4.57 returns a tuple of one, two or three
        computed = left.clone()
        got = answer(nn.Identity(), (entered.clone(), None), (computed, *more))
        if not isinstance(got, tuple):
            return say(
                "right for a tensor. When output is a tuple (transformers 4), give back a tuple with the stream "
                "in front."
            )
        if len(got) != 1 + len(more) or any(mine is not theirs for mine, theirs in zip(got[1:], more, strict=True)):
            return say("when output is a tuple, everything behind its first element must stay as it was.")
        if not isinstance(got[0], Tensor) or not torch.equal(got[0], entered):
            return say(
                "when output is a tuple, its first element must become the stream that entered the block, args[0]."
            )
        if not torch.equal(computed, left):
            return say(
                "you wrote into the tensor inside the block's tuple. Put args[0] in its place and leave it as it was."
            )
    return None


def _found_5_1(answer: Callable[..., Any]) -> str:
    """Skip two neighbours with the learner's hook and read the most probable next word."""
    lm, name = a_model()
    blocks = (12, 11) if lm.n_blocks > 12 else (7, 0)
    said = []
    for block in blocks:
        handle = lm.blocks[block].register_forward_hook(answer, prepend=True)
        try:
            ((word, chance),) = top_k(lm, lm.logits(CAPITAL)[:, -1], 1)
        finally:
            handle.remove()
        said.append(
            say(
                "without block {block} the next word is {word!r} ({chance})",
                block=block,
                word=word,
                chance=f"{float(chance):.2f}",
            )
        )
    return say("With your hook on {name}, {at_3}. And {at_6}.", name=name, at_3=said[0], at_6=said[1])


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


def _into_the_output(module, args, output):
    return output.copy_(args[0]) if isinstance(output, Tensor) else (output[0].copy_(args[0]), *output[1:])


def _right_by_type(module, args, output):
    if type(output) is tuple:
        return args[:1] + output[1:]
    return args[0]


def _right_by_list(module, args, output):
    if torch.is_tensor(output):
        return args[0].clone()
    parts = list(output)
    parts[0] = args[0]
    return tuple(parts)


def _right_by_star(module, args, output):
    stream, *_ = args
    try:
        _, *rest = output if isinstance(output, tuple) else (output,)
        return (stream, *rest) if isinstance(output, tuple) else stream
    except ValueError:
        return stream


# ---- 5.2


def logits_without(model, mlp, positions, ids):
    return ...


def solution_5_2(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()  # what the MLP returned may be in use elsewhere
        output[:, positions] = 0
        return output

    handle = mlp.register_forward_hook(silence, prepend=True)  # ahead of every recorder
    try:
        return model(ids).logits
    finally:
        handle.remove()  # also when the pass fails


def _check_5_2(answer: Callable[..., Any]) -> str | None:
    for positions in ([0], [1, 4]):
        lm, ids, block = _unseen(57)
        mlp = lm.mlp(block)
        outside: list[Tensor] = []
        inside: list[tuple[Tensor, Tensor]] = []
        handles = [
            on_output(mlp, partial(_note, outside)),
            on_output(mlp.get_submodule("c_proj"), partial(_note_both, inside)),
        ]
        before = hooks_on(lm.model)
        try:
            got = answer(lm.model, mlp, list(positions), ids.clone())
            after = hooks_on(lm.model)
        finally:
            remove(handles)
        complaint = _compare_silenced(got, positions)
        if complaint:
            return complaint
        if after > before:
            return say(
                "{after} of your hooks stayed on the model: keep the handle and remove it, in `finally`.",
                after=after - before,
            )
        if after < before:
            return say(
                "you removed hooks that are not yours: take off your own handle and leave the recorders in peace."
            )
        if any(not torch.equal(now, then) for now, then in inside):
            return say(
                "you changed the MLP's output in place: a recorder inside the MLP now holds your zeros. Work on "
                "a clone, output = output.clone()."
            )
        if outside and outside[-1][:, positions].any():
            return say(
                "the logits are right, but a recorder that hung on the MLP before you saw what was there before "
                "your edit: register yours ahead (prepend)."
            )
    lm, ids, block = _unseen(57)
    before = hooks_on(lm.model)
    try:
        answer(lm.model, lm.mlp(block), [0], ids + 1000)  # tokens that do not exist: the pass fails
    except Almost:
        if hooks_on(lm.model) != before:
            return say("when the pass raised an error, your hook stayed on the model: remove it in `finally`.")
    else:
        return say("a pass over tokens that do not exist should raise its error, and yours hides it.")
    return None


def _note(seen: list[Tensor], value: Tensor, _: Tensor) -> None:
    seen.append(value.detach().clone())


def _note_both(seen: list[tuple[Tensor, Tensor]], value: Tensor, _: Tensor) -> None:
    """The tensor itself and a copy: they differ once somebody has written into it."""
    seen.append((value.detach(), value.detach().clone()))


def _silenced(lm: LanguageModel, block: int, ids: Tensor, positions: list[int] | None) -> Tensor:
    with edit(lm, skip_mlp(block, positions)):
        return lm.logits(ids)


def _compare_silenced(got: Any, positions: list[int]) -> str | None:
    lm, ids, block = _unseen(57)
    wanted = _silenced(lm, block, ids, positions)
    if not isinstance(got, Tensor):
        return say("return the logits, a tensor; yours is {kind} (`model(ids).logits`).", kind=type(got).__name__)
    if got.shape != wanted.shape:
        return say(
            "the logits must have shape {wanted_shape}, (batch, pos, vocabulary), but yours have {shape}.",
            wanted_shape=tuple(wanted.shape),
            shape=tuple(got.shape),
        )
    if torch.allclose(got, wanted, atol=1e-9):
        return None
    others = [p for p in range(ids.shape[1]) if p not in positions]
    mistakes = {
        say("these are the clean logits: your hook returned nothing, or was off before the pass."): lm.logits(ids),
        say("the MLP is silent at every token: only `positions` were asked for."): _silenced(lm, block, ids, None),
        say("you kept the MLP at `positions` and silenced it everywhere else: it is the other way round."): _silenced(
            lm, block, ids, others
        ),
    }
    for sentence, mistake in mistakes.items():
        if torch.allclose(got, mistake, atol=1e-9):
            return sentence
    with edit(lm, skip_block(block, positions)):
        if torch.allclose(got, lm.logits(ids), atol=1e-9):
            return say("you skipped the whole block at these positions: the attention must stay.")
    if positions == [0] and torch.allclose(got[1], lm.logits(ids)[1], atol=1e-9):
        return say("you silenced a row of the batch: positions are the second axis, output[:, positions].")
    return say("the logits are not those of a pass in which this MLP adds nothing at `positions`.")


def _found_5_2(answer: Callable[..., Any]) -> str:
    """The loss over two passages with the massive token's MLP silent at the first token, and at all the others."""
    lm, name = a_model()
    block = 11 if lm.n_blocks > 12 else 0
    text = held_out(lm, 2, 32)

    def loss(positions: list[int]) -> float:
        with torch.no_grad():
            logits = answer(lm.model, lm.mlp(block), positions, text)
        return -float(log_prob(logits[:, :-1], text[:, 1:]).mean())

    clean = -float(log_prob(lm.logits(text)[:, :-1], text[:, 1:]).mean())
    first, others = loss([0]) - clean, loss(list(range(1, 32))) - clean
    return say(
        "On {name}, silencing MLP {block} at the first token alone costs {first} nats a token on two "
        "passages. Silencing it at the other 31 tokens costs {others}.",
        name=name,
        block=block,
        first=f"{first:.2f}",
        others=f"{others:.2f}",
    )


def _all_positions(model, mlp, positions, ids):
    handle = mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output), prepend=True)
    try:
        return model(ids).logits
    finally:
        handle.remove()


def _rows_of_the_batch(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()
        output[[p for p in positions if p < len(output)]] = 0
        return output

    return _with_hook(model, mlp, silence, ids)


def _everything_else(model, mlp, positions, ids):
    def silence(module, args, output):
        new = torch.zeros_like(output)
        new[:, positions] = output[:, positions]
        return new

    return _with_hook(model, mlp, silence, ids)


def _nothing_returned(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()
        output[:, positions] = 0

    return _with_hook(model, mlp, silence, ids)


def _in_place(model, mlp, positions, ids):
    def silence(module, args, output):
        with torch.no_grad():
            output[:, positions] = 0
        return output

    return _with_hook(model, mlp, silence, ids)


def _too_late(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()
        output[:, positions] = 0
        return output

    return _with_hook(model, mlp, silence, ids, prepend=False)


def _only_after_success(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()
        output[:, positions] = 0
        return output

    handle = mlp.register_forward_hook(silence, prepend=True)
    logits = model(ids).logits
    handle.remove()
    return logits


def _stays(model, mlp, positions, ids):
    def silence(module, args, output):
        output = output.clone()
        output[:, positions] = 0
        return output

    mlp.register_forward_hook(silence, prepend=True)
    return model(ids).logits


def _right_by_mask(model, mlp, positions, ids):
    keep = torch.ones(ids.shape[1], 1)
    keep[positions] = 0
    return _with_hook(model, mlp, lambda module, args, output: output * keep.to(output), ids)


def _right_without_gradients(model, mlp, positions, ids):
    with torch.no_grad():
        return solution_5_2(model, mlp, torch.tensor(positions), ids)


def _right_by_filling(model, mlp, positions, ids):
    def silence(module, args, output):
        return output.index_fill(1, torch.tensor(positions), 0.0)

    with torch.inference_mode():
        return _with_hook(model, mlp, silence, ids)


def _with_hook(model: nn.Module, module: nn.Module, hook: Callable[..., Any], ids: Tensor, prepend: bool = True) -> Any:
    handle = module.register_forward_hook(hook, prepend=prepend)
    try:
        return model(ids).logits
    finally:
        handle.remove()


# ---- 5.3


def greedy_skips(lm, ids, count):
    return ...


def solution_5_3(lm, ids, count):
    def loss(blocks):
        with edit(lm, *(skip_block(block) for block in blocks)):
            logits = lm.logits(ids)
        return -log_prob(logits[:, :-1], ids[:, 1:]).mean()  # the logits at t are about token t + 1

    chosen: list[int] = []
    while len(chosen) < count:
        left = [block for block in range(lm.n_blocks) if block not in chosen]
        chosen.append(min(left, key=lambda block: loss([*chosen, block])))
    return chosen


def _check_5_3(answer: Callable[..., Any]) -> str | None:
    lm, ids = _greedy_case()
    for count in (3, 1):
        got = answer(lm, ids.clone(), count)
        if not isinstance(got, list | tuple) or not all(isinstance(block, int) for block in got):
            return say(
                "return a list of {count} block numbers, in the order in which they were chosen: plain numbers, "
                "no tensors (int(...) makes one).",
                count=count,
            )
        got = list(got)
        if lm.live_edits:
            return say("your edits are still on the model: use them in a `with`.")
        if len(got) != count:
            return say("{count} blocks were asked for and you chose {n_chosen}.", count=count, n_chosen=len(got))
        if len(set(got)) < count:
            return say(
                "you chose {got}: a block can be skipped only once, so leave the chosen ones out of the next round.",
                got=got,
            )
        if got == solution_5_3(lm, ids, count):
            continue
        mistakes = {
            say(
                "you ranked the blocks one by one. The second block must be measured while the first is already "
                "skipped."
            ): _by_rank,
            say("you chose the blocks whose loss is highest: the least loss is wanted."): _dearest_first,
            say(
                "the loss compares logits[:, t] with token t, which the model has already read: compare with "
                "token t + 1."
            ): _shifted,
        }
        for sentence, mistake in mistakes.items():
            if got == mistake(lm, ids, count):
                return sentence
        if sorted(got) == sorted(_best_of_all(lm, ids, count)):
            return say(
                "this is the best of all sets, which took many more runs. A greedy choice keeps what it has "
                "chosen, and only adds to it."
            )
        if sorted(got) == sorted(solution_5_3(lm, ids, count)):
            return say("the right blocks, but in another order: give them as they were chosen, not as {got}.", got=got)
        return say("you chose {got}, but in one of the rounds another block leaves a lower loss.", got=got)
    return None


def _found_5_3(answer: Callable[..., Any]) -> str:
    """Greedy removal of four blocks of the pocket model: the real one would need a hundred passes."""
    lm = load_model()
    text = held_out(lm, 4, 24)
    chosen = answer(lm, text, 4)
    clean = _single_losses(lm, text, [])
    together = _single_losses(lm, text, chosen) - clean
    summed = sum(_single_losses(lm, text, [block]) - clean for block in chosen)
    ranked = _by_rank(lm, text, 4)
    return say(
        "On the pocket model your function removes blocks {chosen}, which costs {together} nats a token; "
        "added up one by one they cost {summed}. The four cheapest singles, {ranked}, cost "
        "{single_losses} together.",
        chosen=", ".join(map(str, chosen)),
        together=f"{together:.2f}",
        summed=f"{summed:.2f}",
        ranked=", ".join(map(str, ranked)),
        single_losses=f"{_single_losses(lm, text, ranked) - clean:.2f}",
    )


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


def _best_of_all(lm, ids, count):
    return list(min(combinations(range(lm.n_blocks), count), key=lambda blocks: _single_losses(lm, ids, list(blocks))))


def _one_too_few(lm, ids, count):
    return solution_5_3(lm, ids, count)[:-1]


def _right_with_a_loop(lm, ids, count):
    chosen: list[int] = []
    for _ in range(count):
        best, least = -1, float("inf")
        for block in range(lm.n_blocks):
            if block in chosen:
                continue
            loss = _single_losses(lm, ids, [*chosen, block])
            if loss < least:
                best, least = block, loss
        chosen.append(best)
    return tuple(chosen)


def _right_with_cross_entropy(lm, ids, count):
    chosen: list[int] = []
    while len(chosen) < count:
        losses = {}
        for block in set(range(lm.n_blocks)) - set(chosen):
            with edit(lm, *map(skip_block, [*chosen, block])):
                logits = lm.logits(ids)[:, :-1]
            losses[block] = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        chosen.append(min(losses, key=losses.__getitem__))
    return chosen


def _right_with_nested_edits(lm, ids, count):
    if not count:
        return []
    first = _by_rank(lm, ids, 1)
    while len(first) < count:
        with edit(lm, *map(skip_block, first)):
            left = [block for block in range(lm.n_blocks) if block not in first]
            first = [*first, min(left, key=lambda block: _single_losses(lm, ids, [block]))]
    return first


# ---- 5.4


def patch_head(lm, block, head, ids, other):
    return ...


def solution_5_4(lm, block, head, ids, other):
    value = trace(lm, other).heads[block][:, -1:, head : head + 1]  # (batch, 1, 1, d_head): at the last token
    with edit(lm, replace_heads(block, head, value, positions=-1)):
        return lm.logits(ids)


def _check_5_4(answer: Callable[..., Any]) -> str | None:
    lm, ids, block = _unseen(54)
    other = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(540))  # longer: positions differ
    head, before = 1, hooks_on(lm.model)
    got = answer(lm, block, head, ids.clone(), other.clone())
    if not isinstance(got, Tensor):
        return say("return the logits, a tensor; yours is {kind} (`lm.logits(ids)`).", kind=type(got).__name__)
    wanted = solution_5_4(lm, block, head, ids, other)
    if got.shape != wanted.shape:
        swapped = say(" Is it the other prompt that you edited?") if got.shape[1] == other.shape[1] else ""
        return say(
            "the logits of `ids` have shape {wanted_shape}, but yours have {shape}.{swapped}",
            wanted_shape=tuple(wanted.shape),
            shape=tuple(got.shape),
            swapped=swapped,
        )
    if lm.live_edits or hooks_on(lm.model) != before:
        return say("your edit is still on the model: use it in a `with`.")
    if torch.allclose(got, wanted, atol=1e-9):
        return None
    runs = trace(lm, other).heads[block]
    mistakes: dict[str, Callable[[], Tensor]] = {
        say("these are the clean logits: no patch reached the pass, or its value came from `ids` itself."): lambda: (
            lm.logits(ids)
        ),
        say("the head is off (0): it must get the output that it has on `other`."): lambda: _replaced(
            lm, ids, block, head, torch.zeros(()), -1
        ),
        say("you put the value at every token: only the last one was asked for."): lambda: _replaced(
            lm, ids, block, head, runs[:, -1:, head : head + 1], None
        ),
        say("you took the head's output at the same index. `other` is longer; its last token is at −1."): lambda: (
            _replaced(lm, ids, block, head, runs[:, ids.shape[1] - 1 :][:, :1, head : head + 1], -1)
        ),
        say("you patched the first token: the last one is at position −1."): lambda: _replaced(
            lm, ids, block, head, runs[:, :1, head : head + 1], 0
        ),
        say("you patched every head of the block: one was asked for."): lambda: _replaced(
            lm, ids, block, list(range(lm.n_heads)), runs[:, -1:], -1
        ),
        say("you patched the whole stream after the block: only the head's output was asked for."): lambda: (
            _stream_patched(lm, ids, other, block)
        ),
    }
    for sentence, mistake in mistakes.items():
        if torch.allclose(got, mistake(), atol=1e-9):
            return sentence
    for one in range(lm.n_blocks):
        for another in range(lm.n_heads):
            if torch.allclose(got, solution_5_4(lm, one, another, ids, other), atol=1e-9):
                return say(
                    "you patched head {another} of block {one}, and head {head} of block {block} was asked for.",
                    another=another,
                    one=one,
                    head=head,
                    block=block,
                )
    return say(
        "the logits are not those of a pass in which this head's output at the last token is the one from `other`."
    )


def _replaced(
    lm: LanguageModel, ids: Tensor, block: int, heads: int | list[int], value: Tensor, positions: int | None
) -> Tensor:
    with edit(lm, replace_heads(block, heads, value, positions)):
        return lm.logits(ids)


def _stream_patched(lm: LanguageModel, ids: Tensor, other: Tensor, block: int) -> Tensor:
    with edit(lm, patch_block(block, trace(lm, other).resid[block + 1][:, -1:], positions=-1)):
        return lm.logits(ids)


def _found_5_4(answer: Callable[..., Any]) -> str:
    """Put what the capital head says about Rome into the sentence about Berlin."""
    lm, name = a_model()
    block, head, asked = (23, 4, CAPITAL) if lm.n_blocks > 12 else (8, 4, "Berlin is the capital of")
    ids, other = (lm.encode(text).ids for text in (asked, asked.replace("Berlin", "Rome")))
    words = [lm.token_id(" Germany"), lm.token_id(" Italy")]
    clean = lm.logits(ids)[0, -1].softmax(-1)[words].tolist()
    patched = answer(lm, block, head, ids, other)[0, -1].softmax(-1)[words].tolist()
    return say(
        "On {name}, head {block}.{head} gets what it says about Rome, in a sentence about Berlin. ' "
        "Germany' goes from {clean_first} to {patched_first}, ' Italy' from {clean_second} to "
        "{patched_second}.",
        name=name,
        block=block,
        head=head,
        clean_first=format_number(clean[0], 2),
        patched_first=format_number(patched[0], 2),
        clean_second=format_number(clean[1], 2),
        patched_second=format_number(patched[1], 2),
    )


def _head_off(lm, block, head, ids, other):
    return _replaced(lm, ids, block, head, torch.zeros(()), -1)


def _every_token(lm, block, head, ids, other):
    return _replaced(lm, ids, block, head, trace(lm, other).heads[block][:, -1:, head : head + 1], None)


def _same_index(lm, block, head, ids, other):
    place = ids.shape[1] - 1
    return _replaced(lm, ids, block, head, trace(lm, other).heads[block][:, place : place + 1, head : head + 1], -1)


def _other_way_round(lm, block, head, ids, other):
    return solution_5_4(lm, block, head, other, ids)


def _all_heads(lm, block, head, ids, other):
    return _replaced(lm, ids, block, list(range(lm.n_heads)), trace(lm, other).heads[block][:, -1:], -1)


def _whole_stream(lm, block, head, ids, other):
    return _stream_patched(lm, ids, other, block)


def _head_and_block_swapped(lm, block, head, ids, other):
    return solution_5_4(lm, head, block, ids, other)


def _own_value(lm, block, head, ids, other):
    return solution_5_4(lm, block, head, ids, ids)


def _right_with_a_raw_hook(lm, block, head, ids, other):
    projection = lm.attention(block).c_proj
    columns = slice(head * lm.d_head, (head + 1) * lm.d_head)
    seen = []
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -1, columns].clone()))
    try:
        lm.model(other)
    finally:
        handle.remove()

    def patch(module, args):
        new = args[0].clone()
        new[:, -1, columns] = seen[0]
        return (new,)

    handle = projection.register_forward_pre_hook(patch)
    try:
        return lm.model(ids).logits
    finally:
        handle.remove()


def _right_by_trace(lm, block, head, ids, other):
    value = trace(lm, other).heads[block, :, -1, head][:, None, None]
    with edit(lm, replace_heads(block, [head], value, positions=[ids.shape[1] - 1])):
        return trace(lm, ids).logits


def _right_by_the_output(lm, block, head, ids, other):
    """The output projection is linear, so the head's change can be added behind it."""
    weight = lm.attention(block).c_proj.weight[head * lm.d_head : (head + 1) * lm.d_head]
    change = trace(lm, other).heads[block][:, -1, head] - trace(lm, ids).heads[block][:, -1, head]

    def add(module, args, output):
        new = output.clone()
        new[:, -1] += change @ weight
        return new

    return _with_hook(lm.model, lm.attention(block).c_proj, add, ids)


# ---- 5.5


def skip_for_real(model, block, ids):
    return ...


def solution_5_5(model, block, ids):
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


def _check_5_5(answer: Callable[..., Any]) -> str | None:
    lm, ids, block = _unseen(54)
    modules = list(lm.model.transformer.h)
    before = hooks_on(lm.model)
    with _calls(lm.attention(block), lm.mlp(block)) as calls:
        got = answer(lm.model, block, ids)
    complaint = _compare_logits(got, 54)
    if complaint:
        return complaint
    if any(calls):
        return say(
            "the logits are right, but attention and MLP of block {block} still ran ({first_call} and {call} "
            "calls): a hook only throws their result away.",
            block=block,
            first_call=calls[0],
            call=calls[1],
        )
    complaint = _left_behind(lm, modules, before)
    if complaint:
        return complaint
    try:
        answer(lm.model, block, ids + 1000)  # tokens that do not exist: the pass fails
    except Almost:
        complaint = _left_behind(lm, modules, before)
        return say("when the pass raises an error, {complaint}", complaint=complaint) if complaint else None
    return say("a pass over tokens that do not exist should raise its error, and yours hides it.")


def _left_behind(lm: LanguageModel, modules: list[nn.Module], hooks: int) -> str | None:
    """Say how the model differs from what it was before the learner's function ran."""
    blocks = lm.model.transformer.h
    if len(blocks) != len(modules) or any(now is not then for now, then in zip(blocks, modules, strict=False)):
        return say("the list of blocks is not what it was: put the block back where you found it, in `finally`.")
    if any(getattr(one.forward, "__func__", None) is not type(one).forward for one in blocks):
        return say(
            "the block keeps your forward, so every later pass skips it too: delete the attribute, in `finally`."
        )
    if hooks_on(lm.model) != hooks:
        return say("a hook stayed on the model.")
    if not torch.equal(lm.logits(_unseen(54)[1]), tiny_model(54).logits(_unseen(54)[1])):
        return say("the model no longer gives its own logits after your function: something in it has changed.")
    return None


def _found_5_5(answer: Callable[..., Any]) -> str:
    """Count the operations of a pass with and without the learner's function."""
    from torch.utils.flop_counter import FlopCounterMode

    lm = load_model()
    ids = lm.encode(CAPITAL).ids
    counts = []
    for run in (lambda: lm.model(ids).logits, lambda: answer(lm.model, 5, ids)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    share = 100 * counts[1] / counts[0]
    return say(
        "On the pocket model a pass with your function needs {share} % of the operations of a clean "
        "pass. A hook needs all of them; and one block of {n_blocks} saves less than {share_of_a_block} "
        "%, because the vocabulary's product stays.",
        share=f"{share:.1f}",
        n_blocks=lm.n_blocks,
        share_of_a_block=f"{100 / lm.n_blocks:.1f}",
    )


def _only_a_hook(model, block, ids):
    return _with_hook(model, model.transformer.h[block], solution_5_1, ids)


def _forward_stays(model, block, ids):
    tuples = transformers.__version__.startswith("4.")
    model.transformer.h[block].forward = lambda stream, *_, **__: (stream,) if tuples else stream
    return model(ids).logits


def _block_is_gone(model, block, ids):
    model.transformer.h = nn.ModuleList(module for i, module in enumerate(model.transformer.h) if i != block)
    return model(ids).logits


def _wrong_block(model, block, ids):
    return solution_5_5(model, block + 1, ids)


def _no_finally(model, block, ids):
    module = model.transformer.h[block]
    tuples = transformers.__version__.startswith("4.")
    module.forward = lambda stream, *_, **__: (stream,) if tuples else stream
    logits = model(ids).logits
    del module.forward
    return logits


def _clean(model, block, ids):
    return model(ids).logits


class _HandOn(nn.Module):
    def forward(self, stream, *args, **kwargs):
        return (stream,) if transformers.__version__.startswith("4.") else stream


def _right_by_another_module(model, block, ids):
    blocks = model.transformer.h
    original = blocks[block]
    blocks[block] = _HandOn()
    try:
        return model(ids).logits
    finally:
        blocks[block] = original


def _right_by_the_old_forward(model, block, ids):
    module = model.transformer.h[block]
    old, module.forward = module.forward, _HandOn().forward
    try:
        return model(ids).logits
    finally:
        module.forward = old


def _right_by_a_shorter_list(model, block, ids):
    whole = model.transformer.h
    model.transformer.h = nn.ModuleList([*whole[:block], *whole[block + 1 :]])
    try:
        return model(ids).logits
    finally:
        model.transformer.h = whole


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
        return say("return the logits, a tensor; yours is {kind} (`model(ids).logits`).", kind=type(got).__name__)
    if got.shape != wanted.shape:
        return say(
            "the logits must have shape {wanted_shape}, (batch, pos, vocabulary), but yours have {shape}.",
            wanted_shape=tuple(wanted.shape),
            shape=tuple(got.shape),
        )
    if torch.allclose(got, wanted, atol=1e-9):
        return None
    if torch.allclose(got, lm.logits(ids), atol=1e-9):
        return say("these are the clean logits: nothing was skipped.")
    for other in range(lm.n_blocks):
        if torch.allclose(got, _skipped_logits(lm, other, ids), atol=1e-9):
            return say(
                "you skipped block {other}, but block {block} was asked for: blocks count from 0.",
                other=other,
                block=block,
            )
    return say("the logits are not those of a pass in which this block hands on its input.")


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
        "5.1", translatable("A hook for both forms"), 1, 6, skip_hook, _check_5_1,
        translatable("args is always a tuple with the stream in front. output is a tensor or a tuple: ask "
"isinstance(output, tuple), and give back the same form."),
        solution_5_1,
        (_whole_input, _first_row, _unchanged, _wiped, _tensor_only, _loses_the_rest, _into_the_output),
        (_right_by_type, _right_by_list, _right_by_star), _found_5_1,
    ),
    Exercise(
        "5.2", translatable("One MLP, one token"), 2, 8, logits_without, _check_5_2,
        translatable("A forward hook on `mlp` gets output (batch, pos, d_model): clone it, set output[:, positions] "
"to 0, return it. register_forward_hook(..., prepend=True) puts your hook ahead of others; try … "
"finally takes it off whatever happens."),
        solution_5_2,
        (_all_positions, _rows_of_the_batch, _everything_else, _nothing_returned, _in_place, _too_late, _only_after_success, _stays),
        (_right_by_mask, _right_without_gradients, _right_by_filling), _found_5_2,
    ),
    Exercise(
        "5.3", translatable("Which blocks would you remove?"), 2, 8, greedy_skips, _check_5_3,
        translatable("Write a small function loss(blocks) first: a `with edit(lm, *edits)`, then the mean of "
"-log_prob(logits[:, :-1], ids[:, 1:]). In each round try every block that is left together with "
"those already chosen."),
        solution_5_3, (_by_rank, _dearest_first, _shifted, _the_same_again, _best_of_all, _one_too_few),
        (_right_with_a_loop, _right_with_cross_entropy, _right_with_nested_edits), _found_5_3,
    ),
    Exercise(
        "5.4", translatable("The knife: patch one head"), 3, 8, patch_head, _check_5_4,
        translatable("trace(lm, other).heads[block] is (batch, pos, n_heads, d_head): take the last position and your "
"head, and keep these axes. Then `with edit(lm, replace_heads(block, head, value, "
"positions=-1))`."),
        solution_5_4,
        (_head_off, _every_token, _same_index, _other_way_round, _all_heads, _whole_stream, _head_and_block_swapped, _own_value),
        (_right_with_a_raw_hook, _right_by_trace, _right_by_the_output), _found_5_4,
    ),
    Exercise(
        "5.5", translatable("Save the work"), 3, 8, skip_for_real, _check_5_5,
        translatable("Calling a module runs `module.forward(...)`. An attribute of that name on this one module hides "
"the method of its class, and `del module.forward` brings the method back."),
        solution_5_5, (_only_a_hook, _forward_stays, _block_is_gone, _wrong_block, _no_finally, _clean),
        (_right_by_another_module, _right_by_the_old_forward, _right_by_a_shorter_list), _found_5_5,
    ),
)  # fmt: skip
check_5_1, check_5_2, check_5_3, check_5_4, check_5_5 = (checker(exercise) for exercise in EXERCISES)
