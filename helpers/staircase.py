"""The staircase: how a sweep runs many edited copies of a prompt in little work.

One clean pass records the stream that enters each block, and whatever else each block is called with. Then one walk over
the blocks: at block l the copies that are edited there join, starting from the recorded stream, and the block runs once
for all copies edited so far. So nothing that lies before an edit is computed again, weights are read once for many
copies, and logits are computed only where they are looked at. A copy with two edits starts from the copy that has the
first of them, if that is there. Blocks are called as the modules they are: live edits and the user's own hooks on blocks
and their parts work as in a pass, and the sweep's edits run after the live ones, like an inner `with edit`.

Prompts of the same length share a walk, so that nothing is ever padded and no edit can tell a walk from a plain pass.
helpers/recording.py says what is refused, and helpers/rows.py where rows run alone, so that the numbers stay those of the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import errors, hooks
from .applying import Edit, applied, edit_here
from .copies import Copy
from .live import run_inside
from .measures import Outcome
from .plan import Plan
from .products import quick_products
from .recording import Clean
from .say import say

Change = Callable[[Tensor, Tensor], Tensor]


def run(plan: Plan, clean: Clean, done: Callable[[int], object]) -> list[Tensor]:
    """For each prompt of a clean pass the measured (number of copies, ...), on the CPU.

    done(block passes) is told how it goes. Raises BadValue.
    """
    measured: list[list[Tensor]] = [[] for _ in clean.prompts]
    with quick_products():
        walks = _pieces(plan.copies_of(clean.prompts), plan.waiting // clean.ids.numel())
        for copies in walks:
            streams = _walk(plan, clean, copies, done)
            for p, found in enumerate(measured):
                found += _measure(plan, clean, streams[:, p], p, cut=len(walks) > 1)
    return [torch.cat(found).cpu() for found in measured]


# ---- the walk


def _walk(plan: Plan, clean: Clean, copies: Sequence[Copy], done: Callable[[int], object]) -> Tensor:
    """(copies, prompts, pos, d_model): each copy's stream after the last block; right at last tokens only, if only they count."""
    lm = plan.lm
    prompts, length = clean.ids.shape
    stairs = _stairs(copies)
    edits = _CopyEdits(stairs, prompts, length)
    streams = clean.streams.new_empty(len(copies), prompts, length, lm.d_model)
    with (walk := edit_here(lm, *edits.on_all_rows())):
        for block in range(lm.n_blocks):
            for row in range(stairs.before(block), stairs.before(block + 1)):  # the copies that join here
                parent = stairs.parents[row]
                streams[row] = clean.streams[block] if parent is None else streams[parent]
            _run_block(plan, clean, block, stairs, edits, streams)
            done(len(copies) * prompts)
        walk.check_ran()
    return streams[stairs.row_of_copy]


def _run_block(plan: Plan, clean: Clean, block: int, stairs: _Stairs, edits: _CopyEdits, streams: Tensor) -> None:
    """One block for all copies that have joined by now: streams (copies, prompts, pos, d_model) are written anew."""
    _, prompts, length, d_model = streams.shape
    rest, named = clean.calls[block]
    at_once = 1 if plan.alone.blocks[block] else plan.chunk // (prompts * length)
    handles: list[RemovableHandle] = []
    try:
        try:
            for part, see, prepend in _shortcuts(plan, block, stairs, edits):
                handles.append(hooks.on_input(plan.lm.part(block, part), hooks.only_here(see), prepend))
            for here in _pieces(range(stairs.before(block + 1)), at_once):
                edits.here = here
                some = slice(here[0], here[-1] + 1)
                output = plan.lm.blocks[block](streams[some].flatten(0, 1), *rest, **named)
                streams[some] = hooks.first(output).view(len(here), prompts, length, d_model)
            edits.here = range(0)
        finally:
            hooks.remove(handles)
    finally:
        hooks.remove(handles)  # once more: an interrupt may arrive during the first


@dataclass(frozen=True)
class _Stairs:
    """The copies in the order in which they join: row by row, the block of the step and the row that it starts from."""

    copies: list[Copy]
    steps: list[int]  # rising
    parents: list[int | None]  # None: the clean run
    row_of_copy: Tensor  # (copies,) where each of the given copies stands here

    def before(self, block: int) -> int:
        """How many copies have joined before this block."""
        return sum(step < block for step in self.steps)


def _stairs(copies: Sequence[Copy]) -> _Stairs:
    """A copy joins at its last edited block if the copy with all its earlier edits is there as well, else at its first."""
    number = {tuple(id(one) for one in copy): n for n, copy in enumerate(copies)}
    joins: list[tuple[int, int | None]] = []
    for copy in copies:
        last = copy[-1].block
        parent = number.get(tuple(id(one) for one in copy if one.block < last))
        joins.append((copy[0].block, None) if parent is None else (last, parent))
    order = sorted(range(len(copies)), key=lambda n: joins[n][0])
    row_of = {n: row for row, n in enumerate(order)}
    parents = [None if (parent := joins[n][1]) is None else row_of[parent] for n in order]
    rows = torch.tensor([row_of[n] for n in range(len(copies))])
    return _Stairs([copies[n] for n in order], [joins[n][0] for n in order], parents, rows)


class _CopyEdits:
    """The edits of all copies as edits of the model, each of which changes its own copy's rows and no others.

    here: the copies that are in a block at the moment, by their row in the stairs; none in between, when the caller's progress
    is told. An edit sees one prompt at a time, as in the plain loop: its function may look at all rows that it gets.
    """

    def __init__(self, stairs: _Stairs, prompts: int, length: int) -> None:
        self.prompts = prompts
        self.here = range(0)
        self.busy = False  # a function is running: if it runs the model, that must not be taken for these copies
        self.places: dict[tuple[str, int], list[tuple[int, list[Change]]]] = {}
        for row, copy in enumerate(stairs.copies):
            for one in copy:
                of_prompts = [one.for_some([p], prompts, length) for p in range(prompts)]
                there = self.places.setdefault((one.site, one.block), [])
                there.append((row, [applied(mine) for mine in of_prompts]))

    def sites(self, block: int) -> set[str]:
        return {site for site, edited in self.places if edited == block}

    def on_all_rows(self) -> list[Edit]:
        name = lambda site, block: say("the sweep of {site!r} in block {block}", site=site, block=block)  # noqa: E731
        return [Edit(name(*place), *place, self._change(there)) for place, there in self.places.items()]

    def _change(self, there: list[tuple[int, list[Change]]]) -> Change:
        def change(value: Tensor, stream: Tensor) -> Tensor:
            if self.busy or not self.here:
                raise run_inside()
            now = [(row, changes) for row, changes in there if row in self.here]
            new = value.clone() if now else value
            self.busy = True
            for row, changes in now:
                start = (row - self.here.start) * self.prompts
                for p, function in enumerate(changes):
                    mine = slice(start + p, start + p + 1)
                    new[mine] = function(new[mine], stream[mine])
            self.busy = False  # after an error the walk is over
            return new

        return change


# ---- work that is left out where nobody can see it


def _shortcuts(
    plan: Plan, block: int, stairs: _Stairs, edits: _CopyEdits
) -> list[tuple[str, Callable[[Tensor], Tensor], bool]]:
    """For the calls of one block: attention once for copies that are still equal, and in the last block the last token only.

    Each is a part, what it gets instead of its input, and whether before others see it.
    """
    lm, parts, sites = plan.lm, plan.lm.parts, edits.sites(block)
    inputs: list[tuple[str, Callable[[Tensor], Tensor], bool]] = []
    if not plan.alone.blocks[block]:
        # What the output projection and the MLP return for the last token alone, (rows, 1, d_model), is added to the stream
        # by broadcasting: right at the last token, and nobody reads the others. Not where an edit would see it.
        last = block == lm.n_blocks - 1 and not plan.measure.every_position and not plan.alone.read_out
        if last and not parts.flat_mlp and not sites - {"heads", "keys"}:
            inputs += [(part, lambda value: value[:, -1:], False) for part in (parts.heads_out, parts.mlp)]
        joined = range(stairs.before(block), stairs.before(block + 1))
        if joined and all(stairs.parents[row] is None for row in joined) and "keys" not in sites:
            narrow, widen = _shared_attention(joined.start, edits)
            inputs += [(parts.attention, narrow, False), (parts.heads_out, widen, True)]
    return inputs


def _shared_attention(joined: int, edits: _CopyEdits) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Copies that join at this block, rows from `joined` on, are still equal when attention begins: compute it once for all.

    Attention gets one of them, and its output projection gets them all again, each to be edited there or later.
    """

    def narrow(value: Tensor) -> Tensor:
        return value[: edits.prompts * (max(joined - edits.here.start, 0) + 1)]

    def widen(value: Tensor) -> Tensor:
        begin, end = edits.here.start, edits.here.stop
        old = edits.prompts * max(min(joined, end) - begin, 0)
        again = value[old:].repeat(end - max(joined, begin), *[1] * (value.ndim - 1)) if end > joined else value[old:]
        return torch.cat([value[:old], again]) if old else again

    return narrow, widen


# ---- what is read off


def _measure(plan: Plan, clean: Clean, edited: Tensor, p: int, cut: bool) -> Iterator[Tensor]:
    """(copies, ...) in pieces, from the last streams (copies, pos, d_model) of the p-th prompt of the group.

    cut: whether these are not all of its copies.
    """
    every = plan.measure.every_position
    at = slice(0 if every else -1, None)

    def logits(streams: Tensor) -> Tensor:
        if plan.alone.read_out:  # whole prompts, one by one, as in a pass
            found = torch.cat([plan.lm.read_out(one[None])[:, at] for one in streams])
        else:
            found = plan.lm.read_out(streams[:, at])
        found = found if every else found[:, 0]
        return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found

    # One reading of the unembedding serves the clean run too.
    streams = torch.cat([clean.streams[-1, p : p + 1], edited])
    before: Tensor | None = None
    pieces = _pieces(streams, max(3, plan.chunk // (edited.shape[1] if every else 1)))
    for some in pieces:
        found = logits(some)
        if before is None:
            before, found = found[0], found[1:]
        value = _measured(plan, clean, p, found, before)
        if cut or len(pieces) > 1:
            plan.trial(clean.prompts[p], found, value, lambda some: _measured(plan, clean, p, some, before))
        plan.trial.check_shape(clean.prompts[p], value.shape[1:])
        yield value


def _measured(plan: Plan, clean: Clean, p: int, edited: Tensor, before: Tensor) -> Tensor:
    value = plan.measure.compute(Outcome(edited, before, clean.ids[p], clean.prompts[p]))
    if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(edited):
        got = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            got = say("one of shape {shape}", shape=tuple(value.shape))
        raise errors.BadValue(
            "a measure must return a tensor with a row for each of {n_copies} copies, not {got}.",
            n_copies=len(edited),
            got=got,
        )
    return value


def _pieces(items: Any, most: int) -> list[Any]:
    """Cut into as few pieces as `most` allows, of like size."""
    number = max(1, -(-len(items) // max(1, most)))
    return [items[len(items) * k // number : len(items) * (k + 1) // number] for k in range(number) if len(items)]
