"""The staircase: how a sweep runs many edited copies of a prompt in little work.

One clean pass records the stream that enters each block, and whatever else each block is called with. Then one walk over
the blocks: at block l the copies that are edited there join, starting from the recorded stream, and the block runs once
for all copies edited so far. So nothing that lies before an edit is computed again, weights are read once for many
copies, and logits are computed only where they are looked at. A copy with two edits starts from the copy that has the
first of them, if that is there. Blocks are called as the modules they are: live edits and the user's own hooks on blocks
and their parts work as in a pass, and the sweep's edits run after the live ones, like an inner `with edit`.

Prompts of the same length share a walk, so that nothing is ever padded and no edit can tell a walk from a plain pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import errors, hooks, passes
from .edits import Edit, applied, edit
from .measures import Measure, Outcome
from .models import LanguageModel
from .products import quick_products

Copy = tuple[Edit, ...]  # the edits of one edited copy of a prompt, earliest block first
Change = Callable[[Tensor, Tensor], Tensor]

# The copies of one walk hold this many times the tokens of one call: waiting streams are small next to a block's neurons.
WAITING = 16


@torch.no_grad()
def run(
    lm: LanguageModel,
    rows: list[Tensor],
    copies_of: Callable[[list[int]], Sequence[Copy]],
    number: int,
    measure: Measure,
    chunk: int,
    done: Callable[[int], object],
) -> list[Tensor]:
    """For each prompt, (pos,) ids in `rows`, the measured (number, ...) of its `number` edited copies, on the CPU.

    copies_of(numbers of some prompts) gives their copies, as many each time. done(block passes) is told how it goes, up to
    len(rows) × number × n_blocks.
    """
    _refuse_what_a_walk_cannot_see(lm)
    results: dict[int, Tensor] = {}
    for prompts in groups(rows, number, WAITING * chunk):
        clean = _record(lm, torch.stack([rows[i] for i in prompts]))
        measured: list[list[Tensor]] = [[] for _ in prompts]
        with quick_products():
            for copies in _pieces(copies_of(prompts), WAITING * chunk // clean.ids.numel()):
                streams = _walk(lm, clean, copies, chunk, not measure.every_position, done)
                for p, prompt in enumerate(prompts):
                    measured[p] += _measure(lm, measure, clean, streams[:, p], p, prompt, chunk)
        results |= {prompt: torch.cat(found).cpu() for prompt, found in zip(prompts, measured, strict=True)}
    return [results[prompt] for prompt in range(len(rows))]


@dataclass(frozen=True)
class _Clean:
    """One pass of some prompts, without logits."""

    ids: Tensor  # (prompts, pos)
    streams: Tensor  # (n_blocks + 1, prompts, pos, d_model): what enters each block, and what leaves the last
    calls: list[tuple[tuple, dict[str, Any]]]  # the other arguments that each block was called with


class _Stop(Exception):
    """Leaves the clean pass before the final norm."""


def _record(lm: LanguageModel, ids: Tensor) -> _Clean:
    streams = torch.empty(lm.n_blocks + 1, *ids.shape, lm.d_model, device=lm.device, dtype=lm.dtype)
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def keep(args: tuple, kwargs: dict[str, Any]) -> None:
        streams[len(calls)].copy_(hooks.entering(args, kwargs))
        rest = {name: _one_row(value, len(ids)) for name, value in kwargs.items() if name != "hidden_states"}
        calls.append((_one_row(args[1:], len(ids)), rest))

    def stop(stream: Tensor) -> None:
        streams[lm.n_blocks].copy_(stream)
        raise _Stop

    handles: list[RemovableHandle] = []
    try:
        handles += [hooks.on_call(block, keep) for block in lm.blocks]
        handles.append(hooks.on_input(lm.final_norm, stop, prepend=True))
        with passes.single_pass(lm):
            _until_stopped(lm, ids)
    finally:
        hooks.remove(handles)
    if len(calls) != lm.n_blocks:
        raise errors.BadValue(
            f"{len(calls)} of {lm.n_blocks} blocks ran in a plain pass: a sweep needs all of them, put replaced ones back."
        )
    return _Clean(ids, streams, calls)


def _until_stopped(lm: LanguageModel, ids: Tensor) -> None:
    try:
        lm.model(**lm.inputs(lm.encode(ids)))  # without a cache: a filled one would show later calls the old keys
    except _Stop:
        passes.check_stopped(lm, lm.n_blocks)  # live edits are part of the baseline


def _walk(
    lm: LanguageModel, clean: _Clean, copies: Sequence[Copy], chunk: int, only_last: bool, done: Callable[[int], object]
) -> Tensor:
    """(copies, prompts, pos, d_model): each copy's stream after the last block; if `only_last`, right at last tokens only."""
    prompts, length = clean.ids.shape
    births, order = _births(copies)
    row_of = {copy: row for row, copy in enumerate(order)}
    streams = clean.streams.new_empty(len(copies), prompts, length, lm.d_model)  # rows in the order of birth
    places: dict[tuple[str, int], list[tuple[int, Change]]] = {}
    for row, copy in enumerate(order):
        for one in copies[copy]:
            places.setdefault((one.site, one.block), []).append((row, applied(one)))
    begin = end = 0  # the rows that are in a block at the moment

    def change_at(there: list[tuple[int, Change]]) -> Change:
        def change(value: Tensor, stream: Tensor) -> Tensor:
            here = [(row, function) for row, function in there if begin <= row < end]
            new = value.clone() if here else value
            for row, function in here:
                mine = slice((row - begin) * prompts, (row - begin + 1) * prompts)
                new[mine] = function(new[mine], stream[mine])
            return new

        return change

    changes = [Edit("sweep", site, block, change_at(there)) for (site, block), there in places.items()]
    shortcuts: list[RemovableHandle] = []
    try:
        with (walk := edit(lm, *changes)):
            for block, (rest, named) in enumerate(clean.calls):
                alive = sum(birth <= block for birth, _ in births)
                for row, copy in enumerate(order[:alive]):
                    birth, parent = births[copy]
                    if birth == block:
                        streams[row] = clean.streams[block] if parent is None else streams[row_of[parent]]
                if only_last and block == lm.n_blocks - 1:
                    shortcuts += _last_token_only(lm, changes)
                born = sum(birth < block for birth, _ in births)
                if all(births[copy][1] is None and not _edits_keys(copies[copy], block) for copy in order[born:alive]):
                    shortcuts += _shared_attention(lm, block, born, prompts, lambda: (begin, end))
                for rows in _pieces(range(alive), chunk // (prompts * length)):
                    begin, end = rows[0], rows[-1] + 1
                    output = lm.blocks[block](streams[begin:end].flatten(0, 1), *rest, **named)
                    streams[begin:end] = hooks.first(output).view(len(rows), prompts, length, lm.d_model)
                hooks.remove(shortcuts)
                done(len(copies) * prompts)
            walk.check_ran()
    finally:
        hooks.remove(shortcuts)
    return streams if order == sorted(order) else streams[[row_of[copy] for copy in range(len(copies))]]


def _births(copies: Sequence[Copy]) -> tuple[list[tuple[int, int | None]], list[int]]:
    """For each copy, the block where it joins and the copy that it starts from (None: the clean run); and their order.

    It joins at its last edited block if the copy with all its earlier edits is there as well, else at its first.
    """
    index = {tuple(id(one) for one in copy): number for number, copy in enumerate(copies)}
    births: list[tuple[int, int | None]] = []
    for copy in copies:
        last = copy[-1].block
        parent = index.get(tuple(id(one) for one in copy if one.block < last))
        births.append((copy[0].block, None) if parent is None else (last, parent))
    return births, sorted(range(len(copies)), key=lambda copy: births[copy][0])


def _edits_keys(copy: Copy, block: int) -> bool:
    return any(one.site == "keys" and one.block == block for one in copy)


def _last_token_only(lm: LanguageModel, changes: list[Edit]) -> list[RemovableHandle]:
    """In the last block, let the output projection and the MLP see each prompt's last token alone.

    What they return, (rows, 1, d_model), is added to the stream by broadcasting: right at the last token, and nobody
    reads the others. Not where a live edit, a hook of the user's, or an edit of the sweep would see the shorter tensors.
    """
    last = lm.n_blocks - 1
    own = [one for one in changes if one.block == last]
    live = [one for group in lm.live_edits for one in group if one.block == last]
    watched = _read_out_watched(lm) or hooks.has_other_hooks(lm.blocks[last], lm.edit_handles)
    if lm.parts.flat_mlp or watched or len(live) > len(own) or any(one.site not in ("heads", "keys") for one in own):
        return []

    modules = lm.part(last, lm.parts.heads_out), lm.mlp(last)
    return [hooks.on_input(module, lambda value: value[:, -1:]) for module in modules]


def _shared_attention(
    lm: LanguageModel, block: int, born: int, prompts: int, rows: Callable[[], tuple[int, int]]
) -> list[RemovableHandle]:
    """Copies that join at this block, rows from `born` on, are still equal when attention begins: compute it once for all.

    Attention gets one of them, and its output projection gets them all again, each to be edited there or later.
    """
    if hooks.has_other_hooks(lm.blocks[block], lm.edit_handles):
        return []

    def narrow(value: Tensor) -> Tensor:
        return value[: prompts * (max(born - rows()[0], 0) + 1)]

    def widen(value: Tensor) -> Tensor:
        begin, end = rows()
        old = prompts * max(min(born, end) - begin, 0)
        again = value[old:].repeat(end - max(born, begin), *[1] * (value.ndim - 1)) if end > born else value[old:]
        return torch.cat([value[:old], again]) if old else again

    return [
        hooks.on_input(lm.attention(block), narrow),
        hooks.on_input(lm.part(block, lm.parts.heads_out), widen, prepend=True),
    ]


def _measure(
    lm: LanguageModel, measure: Measure, clean: _Clean, edited: Tensor, p: int, prompt: int, chunk: int
) -> Iterator[Tensor]:
    """(copies, ...) in pieces, from the last streams (copies, pos, d_model) of the p-th prompt of the group, the list's `prompt`."""
    at = slice(0 if measure.every_position else -1, None)
    watched = _read_out_watched(lm)

    def logits(streams: Tensor) -> Tensor:
        found = lm.read_out(streams)[:, at] if watched else lm.read_out(streams[:, at])
        found = found if measure.every_position else found[:, 0]
        return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found

    streams = torch.cat(
        [clean.streams[-1, p : p + 1], edited]
    )  # one reading of the unembedding serves the clean run too
    before: Tensor | None = None
    for some in _pieces(streams, max(3, chunk // (edited.shape[1] if measure.every_position else 1))):
        found = logits(some)
        if before is None:
            before, found = found[0], found[1:]
        value = measure.compute(Outcome(found, before, clean.ids[p], prompt))
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(found):
            got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise errors.BadValue(
                f"a measure must return a tensor with a row for each of {len(found)} copies, not {got}."
            )
        yield value


def _read_out_watched(lm: LanguageModel) -> bool:
    """A hook of the user's on the final norm or the unembedding shall see all positions, as in a pass."""
    return any(hooks.has_other_hooks(module, []) for module in (lm.final_norm, lm.unembed))


def _one_row(value: Any, prompts: int) -> Any:
    """Masks and position embeddings of the first prompt, which broadcast: prompts of one length all have the same."""
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == prompts:
        return value[:1]
    return type(value)(_one_row(one, prompts) for one in value) if isinstance(value, tuple | list) else value


def _pieces(items: Any, most: int) -> list[Any]:
    """Cut into as few pieces as `most` allows, of like size."""
    number = max(1, -(-len(items) // max(1, most)))
    return [items[len(items) * k // number : len(items) * (k + 1) // number] for k in range(number) if len(items)]


def groups(rows: list[Tensor], copies: int, tokens: int) -> Iterator[list[int]]:
    """Numbers of the prompts that run together: of the same length, and few enough for memory."""
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        full = (len(group) + 1) * copies * len(rows[i]) > tokens
        if group and (full or len(rows[i]) != len(rows[group[0]])):
            yield group
            group = []
        group.append(i)
    yield group


def _refuse_what_a_walk_cannot_see(lm: LanguageModel) -> None:
    if lm.model.training:
        raise errors.BadValue(
            "the model is in train mode, where dropout makes every copy another experiment: call lm.model.eval() first."
        )
    steps = lm.parts.blocks.split(".")
    for name in [".".join(steps[:n]) for n in range(len(steps) + 1)]:
        if hooks.has_other_hooks(lm.model.get_submodule(name), [], inside=False):
            raise errors.BadValue(
                f"a hook hangs on {f'lm.model.{name}' if name else 'lm.model'} as a whole, and a sweep calls the blocks one by "
                "one: take it off first, or hang it on a block."
            )
