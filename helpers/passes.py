"""The proof that what was asked for happened: what runs in one pass of a model, and why something did not.

While edits are live, two pairs of hooks mark where a pass begins and ends: on `lm.model` itself, and on the module inside
it that holds the blocks (which runs too when somebody calls the model without its head, or through another wrapper).
Between the two, each edit counts itself. At the end each must have run exactly once, else the pass raises DidNotRun: so an
edit that hangs on a module that is compiled, replaced, left out or stepped around is never silently nothing. A pass knows
where in the text it begins, too: with a cache, its first column is the first new token.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from . import errors
from .causes import did_not_run, norm_ran, refuse_checkpointing, refuse_compiled, refuse_nowhere, stack_of
from .live import Live, Waiting, edited_as_a_whole, live_here, run_inside
from .say import say, translatable

if TYPE_CHECKING:
    from .models import LanguageModel

KNOWN = "_tokens_under_edits"  # {name of a Live: from which column of the text on, and to which}: a copy of a cache has it too


@dataclass(eq=False)
class Pass:
    """One run of the model under edits, in one thread."""

    model: nn.Module  # whose call this is
    groups: list[Live]  # the edits that were live when it began
    single: bool  # the helpers' own pass of whole prompts: no more text will come
    mask: Any  # of an own pass (batch, pos), False where padded, or None; of another, what the model was called with
    frame: FrameType | None = None  # of that call: the pass is over once no code runs in it
    stack: nn.Module | None = None  # the module with the blocks, once it has begun
    start: int = 0  # tokens of the text before the first column: those in the cache
    cache: Any = None
    late: list[Waiting] = field(default_factory=list)  # what this pass did not reach
    fired: dict[tuple[int, int], int] = field(default_factory=dict)
    checked: bool = False

    def count(self, group: Live, index: int) -> None:
        key = id(group), index
        self.fired[key] = self.fired.get(key, 0) + 1

    def since(self, group: Live) -> int:
        """From which column of the text on every token, those in the cache included, ran under these edits."""
        if not self.start:
            return 0  # also in a cache that was emptied and is used again
        since, end = getattr(self.cache, KNOWN, {}).get(group.name, (0, 0))
        return since if end >= self.start else self.start

    def drop(self) -> None:
        """It ended in the middle: what it did not reach waits no longer."""
        for group in self.groups:
            group.waiting = [late for late in group.waiting if late not in self.late]


def current(lm: LanguageModel) -> Pass | None:
    """The pass that this thread is in, as far as edits watch it."""
    running = lm.passes.get(get_ident())
    return running[-1] if running and isinstance(running[-1], Pass) else None


class Left(Exception):
    """A recorder raises it to leave a pass of ours once all that was asked for is there."""


@dataclass(frozen=True)
class Ours:
    """Marks the pass that comes next as one of the helpers' own, over whole prompts."""

    mask: Tensor | None  # as in Pass


def run(lm: LanguageModel, inputs: dict[str, Any], blocks: int | None = None, mask: Tensor | None = None) -> Any:
    """The model's output in one pass of ours over whole prompts; None if a recorder left it, after its first `blocks` blocks.

    inputs: what the model is called with, from `lm.inputs`. mask: (batch, pos) False where padded. Raises DidNotRun, and
    BadEdit if another thread's `with` began or ended meanwhile, or inside of another pass of ours, BadValue for weights that
    are nowhere.
    """
    refuse_nowhere(lm.model)
    with edited_as_a_whole(lm, translatable("this pass")):
        return _run(lm, inputs, blocks, mask)


def run_in_a_sweep(lm: LanguageModel, inputs: dict[str, Any], ran: Sequence[int]) -> Any:
    """The same for a sweep, which looks itself whether edits come or go, and whose walk will call the blocks one by one.

    ran: how often each block, and last the final norm, have run when the pass is over, as the sweep's recorders count.
    Raises DidNotRun unless each did once.
    """
    output = _run(lm, inputs, lm.n_blocks)
    for block, number in enumerate(ran[:-1]):
        if number != 1:
            raise did_not_run(lm, say("a sweep needs each block once in a pass"), "block", block, number)
    if ran[-1] != 1:
        raise norm_ran(ran[-1])
    return output


def _run(lm: LanguageModel, inputs: dict[str, Any], blocks: int | None, mask: Tensor | None = None) -> Any:
    running = lm.passes.setdefault(get_ident(), [])
    drop_interrupted(lm)
    depth = len(running)
    try:
        _refuse_inside(lm, running)
        running.append(Ours(mask))
        try:
            return lm.model(**inputs)
        except Left:
            missing = _not_run(lm, running[-1], blocks) if isinstance(running[-1], Pass) else None
            if missing:
                raise missing from None
            return None
    finally:
        del running[depth:]
        if not running:
            lm.passes.pop(get_ident(), None)


def _refuse_inside(lm: LanguageModel, running: list[Any]) -> None:
    """Raises BadEdit inside of a pass of ours or of a sweep: the recorders and edits there would take this pass for their own."""
    if any(isinstance(one, Ours) for one in running) or any(group.private for group in live_here(lm)):
        raise run_inside()


# ---- what the two pairs of hooks do


def begin(lm: LanguageModel, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    if module.__dict__.get("_compiled_call_impl") is not None:
        refuse_compiled(module)  # since the `with` began
    refuse_checkpointing(lm)
    _refuse_copy(lm, module)
    running = lm.passes.setdefault(get_ident(), [])
    drop_interrupted(lm)
    now = running[-1] if running else None
    if not (isinstance(now, Pass) and now.model is lm.model and now.stack is None and module is not lm.model):
        mask = now.mask if isinstance(now, Ours) else _mask_in(module, args, kwargs)
        if not isinstance(now, Ours):
            refuse_nowhere(module)
            for real in _real_tokens(mask):
                if not real[:, :1].all():  # a row that begins with padding
                    lm.check_left_padding(real)
        groups = [group for group in live_here(lm) if group.ready]
        now = Pass(module, groups, isinstance(now, Ours), mask, sys._getframe(2))
        running.append(now)
    elif now.mask is None and not now.single:
        now.mask = _mask_in(module, args, kwargs)  # some wrapper's own
    if kwargs.get("cu_seq_lens_q") is not None:
        _refuse_packed(now)
    if module is not lm.model or stack_of(lm) is lm.model:
        now.stack = module
        now.cache, now.start = _cached((*args, *kwargs.values()))


def _refuse_packed(now: Pass) -> None:
    """Raises BadEdit where several texts share a row, in which a column is no position: `generate_batch`, packing."""
    for one in (one for group in now.groups for one in group):
        if one.positions is not None:
            raise errors.BadEdit(
                "{one!r} is limited to positions, and in this pass several texts lie one behind the other in one row "
                "(generate_batch, or packing), where it would meet others: edit all tokens, or use generate.",
                one=one,
            )


def drop_interrupted(lm: LanguageModel) -> None:
    """Forget passes that are over: after a KeyboardInterrupt PyTorch calls no hook that would have said so."""
    running = lm.passes.get(get_ident(), [])
    while running and isinstance(running[-1], Pass):
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame is not running[-1].frame:
            frame = frame.f_back
        if frame is not None:
            return
        running.pop().drop()


def _refuse_copy(lm: LanguageModel, module: nn.Module) -> None:
    """Raises DidNotRun for a deep copy of an edited model: it was copied with these hooks, which no `with` takes off there."""
    replica = getattr(module, "_is_replica", False)  # DataParallel's, which shares them
    if lm.live_edits and not replica and module is not lm.model and module is not stack_of(lm):
        raise errors.DidNotRun(
            "this {kind} was copied while edits were on the model and carries their hooks: make the copy before the `with`, "
            "or with copy.deepcopy(lm), which leaves them out.",
            kind=type(module).__name__,
        )


def end(lm: LanguageModel, module: nn.Module, output: Any) -> None:
    running = lm.passes.get(get_ident(), [])
    numbers = [n for n, one in enumerate(running) if isinstance(one, Pass) and module in (one.model, one.stack)]
    if not numbers:
        return  # the first edit was put on while this pass ran
    now = running[numbers[-1]]
    if output is None:  # an exception; at a pass of ours that a recorder left, `run` looks
        if not now.single:
            now.drop()
            del running[numbers[-1] :]
        if not running:
            lm.passes.pop(get_ident(), None)
        return
    missing = None if now.checked else _not_run(lm, now)
    now.checked = True
    if missing or now.model is module:
        del running[numbers[-1] :]
        if not running:
            lm.passes.pop(get_ident(), None)
    if missing:
        raise missing
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    cache, _ = (now.cache, 0) if now.cache is not None else _cached(values)
    if cache is not None and now.stack is module:
        for late in now.late:
            late.cache = ref(cache)
        known = {group.name: (now.since(group), int(cache.get_seq_length())) for group in now.groups}
        with suppress(AttributeError):  # a cache of another library's, that takes no attribute
            setattr(cache, KNOWN, known)
        for group in now.groups:
            group.known.add(cache)


def _mask_in(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    if len(args) > 1:
        kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    mask = kwargs.get("attention_mask")
    return getattr(kwargs.get("input_ids"), "real_tokens", None) if mask is None else mask  # said by lm.inputs


def _real_tokens(mask: Any) -> Iterator[Tensor]:
    """(batch, pos) False where a mask says padding: one of 2 axes, or what `generate` makes of it for a static cache, numbers to
    add of 4 axes, perhaps a dict with one for each kind of attention, where padding at the start may look at nothing.
    """
    for one in mask.values() if isinstance(mask, Mapping) else [mask]:
        if isinstance(one, Tensor) and one.ndim == 2:
            yield one.bool()
        elif isinstance(one, Tensor) and one.ndim == 4 and one.is_floating_point():
            yield (one >= torch.finfo(torch.float32).min).any(-1)[:, 0]


def _cached(values: Iterable[Any]) -> tuple[Any, int]:
    """The cache among some arguments, by what it can do (its name changes between versions), and the tokens in it."""
    for value in values:
        if hasattr(value, "get_seq_length"):
            return value, int(value.get_seq_length())
        while isinstance(value, tuple) and value and isinstance(value[0], tuple):  # a tuple for each block, as of old
            value = value[0]
        if isinstance(value, tuple) and len(value) >= 2 and all(isinstance(v, Tensor) and v.ndim == 4 for v in value):
            return None, value[0].shape[-2]
    return None, 0


def _not_run(lm: LanguageModel, now: Pass, blocks: int | None = None) -> errors.DidNotRun | None:
    """What to raise if an edit (in the first `blocks` blocks, of a pass that was left there) did not run just once."""
    for group in now.groups:
        for index, one in enumerate(group):
            number = now.fired.get((id(group), index), 0)
            if group.on and number != 1 and (blocks is None or one.block < blocks):
                did = say("did nothing") if number == 0 else say("was done {number} times", number=number)
                what = say("{one!r} {did} in this pass", one=one, did=did)
                return did_not_run(lm, what, one.site, one.block, number)
    return None
