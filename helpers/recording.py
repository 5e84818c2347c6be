"""The clean pass that a sweep starts from, and the proof that a walk over the blocks gives what the model itself gives.

A walk calls the blocks one by one and many copies of a prompt together. That equals the plain loop, one edited pass after
the other, only if the model does nothing else than its blocks and its read-out, and if no row of a batch looks at another.
The first is checked in the clean pass, and refused where it fails; helpers/rows.py answers the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import errors, hooks, passes
from .live import live_here
from .models import LanguageModel
from .plan import Plan
from .say import say


@dataclass(frozen=True)
class Clean:
    """One pass of some prompts, without logits."""

    prompts: list[int]  # their numbers
    ids: Tensor  # (prompts, pos)
    streams: Tensor  # (n_blocks + 1, prompts, pos, d_model): what enters each block, and what leaves the last
    calls: list[tuple[tuple, dict[str, Any]]]  # the other arguments that each block was called with


def clean_passes(plan: Plan) -> Iterator[Clean]:
    """All prompts, in groups of one length whose copies have few enough tokens together.

    Raises BadValue where a walk over the blocks would not give what the model itself gives.
    """
    lm, rows = plan.lm, plan.prompts
    alone = plan.in_order or plan.alone.anywhere
    numbers = [[i] for i in range(len(rows))] if alone else groups(rows, plan.n_copies, plan.waiting)
    for number, prompts in enumerate(numbers):
        ids = torch.stack([rows[i] for i in prompts])
        if number == 0 and len(ids) > 1:  # the logits of a whole group would take too much memory
            _record(lm, ids[:1], to_the_end=True)
        streams, calls = _record(lm, ids, to_the_end=number == 0 and len(ids) == 1)
        yield Clean(prompts, ids, streams, calls)


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


def _record(lm: LanguageModel, ids: Tensor, to_the_end: bool) -> tuple[Tensor, list[tuple[tuple, dict[str, Any]]]]:
    """The streams and calls of one pass. to_the_end: compare the logits with `lm.read_out` too.

    Raises BadValue where the model does more than its blocks and its read-out, DidNotRun where it does less.
    """
    calls: list[tuple[tuple, dict[str, Any]]] = []
    streams: list[Tensor] = []
    left: list[Tensor] = []  # what the last block that ran returned
    changed: list[int] = []  # the blocks that something else entered

    ran = [0] * (lm.n_blocks + 1)  # how often each block did, and the final norm
    inputs = lm.inputs(lm.encode(ids))

    def keep(block: int, args: tuple, kwargs: dict[str, Any]) -> None:
        ran[block] += 1
        enters(hooks.entering(args, kwargs))
        rest = {name: _for_any_rows(value, len(ids)) for name, value in kwargs.items() if name != "hidden_states"}
        calls.append((_for_any_rows(args[1:], len(ids)), rest))

    def enters(stream: Tensor) -> None:
        if left and not _same(left.pop().to(stream.device), stream):
            changed.append(len(streams))
        streams.append(stream.clone())

    def leave(output: Tensor, _: Tensor) -> None:
        left[:] = [output.clone()]

    def stop(stream: Tensor) -> None:
        ran[-1] += 1
        enters(stream)
        if not to_the_end:
            raise passes.Left

    handles: list[RemovableHandle] = []
    try:
        try:
            for number, block in enumerate(lm.blocks):  # kept one by one: an interrupt in between shall lose none
                handles.append(hooks.on_call(block, partial(keep, number)))
                handles.append(hooks.on_output(block, hooks.only_here(leave)))
            handles.append(hooks.on_input(lm.final_norm, hooks.only_here(stop), prepend=True))
            output = passes.run_in_a_sweep(lm, inputs, ran)  # live edits are part of the baseline
        finally:
            hooks.remove(handles)
    finally:
        hooks.remove(handles)  # once more: an interrupt may arrive during the first
    if changed:
        place = say("block {block}", block=changed[0]) if changed[0] < lm.n_blocks else say("the final norm")
        raise errors.BadValue(
            "what enters {place} is not what block {changed} returned, and a sweep calls the blocks one by "
            "one: take off what changes the stream in between (a replaced forward?), or do it in a hook on "
            "the block.",
            place=place,
            changed=changed[0] - 1,
        )
    if to_the_end:
        _check_read_out(lm, streams[-1], output.logits)
    return torch.stack([stream.to(streams[-1].device) for stream in streams]), calls


def _check_read_out(lm: LanguageModel, last: Tensor, logits: Tensor) -> None:
    found = lm.read_out(last).double()
    scale, apart = found[found.isfinite()].abs().max(), (found - logits.to(found)).abs().nan_to_num(0, posinf=torch.inf)
    eps = max(torch.finfo(lm.dtype).eps, torch.finfo(logits.dtype).eps)  # some families give float32 logits always
    if apart.max() > 1000 * eps * scale:
        raise errors.BadValue(
            "the model's logits are not its final norm and unembedding of the last block's output: they "
            "differ by {apart}, so a sweep would measure something else. Put back what replaces its forward.",
            apart=f"{apart.max():.2g}",
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def _for_any_rows(value: Any, prompts: int) -> Any:
    """Masks and position embeddings of the first prompt, which broadcast: prompts of one length all have the same.

    And no cache, whatever its argument is called (transformers 5.24 renames it): it would show one call the keys of another.
    """
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == prompts:
        return value[:1]
    if isinstance(value, tuple | list):
        return type(value)(_for_any_rows(one, prompts) for one in value)
    return None if hasattr(value, "get_seq_length") else value


def refuse_what_a_walk_cannot_do(lm: LanguageModel) -> None:
    """Raises BadValue in train mode and for hooks on the whole model, BadEdit for noise that is live."""
    for name, module in lm.model.named_modules():
        if module.training:
            raise errors.BadValue(
                "{name} is in train mode, where dropout makes every copy another experiment: call lm.model.eval() first.",
                name=re.sub(r"\.(\d+)", r"[\1]", f"lm.model.{name}") if name else say("the model"),
            )
    for one in [one for group in live_here(lm) for one in group]:
        if isinstance(one.given, tuple) and any(isinstance(value, torch.Generator) for value in one.given):
            raise errors.BadEdit(
                "{one!r} is on and draws anew in each pass, and a sweep shares one pass among many copies: take it off, or put it "
                "among the edits of each copy, as in sweep_edits(lm, prompt, [[noise, other], ...]).",
                one=one,
            )
    hooked = {id(module) for module in lm.hooks_of_others.values()}
    steps = lm.parts.blocks.split(".")
    for name in [".".join(steps[:n]) for n in range(len(steps) + 1)]:
        if id(lm.model.get_submodule(name)) in hooked:
            raise errors.BadValue(
                "a hook hangs on {name} as a whole, and a sweep calls the blocks one by one: take it off first, "
                "or hang it on a block.",
                name=f"lm.model.{name}" if name else "lm.model",
            )
