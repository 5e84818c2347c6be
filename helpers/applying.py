"""What an edit is, and how edits go on a model and come off again.

`edit` checks every edit against the model before the first hook is registered, so that nothing is ever half applied.
helpers/passes.py counts them in each pass, helpers/positions.py knows which tokens are meant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import get_ident

import torch
from torch import Tensor

from . import errors, passes
from .causes import did_not_run, refuse_compiled_around, refuse_own_checkpoint
from .hooks import on_pass, on_site, to_the_front
from .live import Live, elsewhere, live_here
from .models import LanguageModel, check_model
from .positions import (
    Positions,
    check_positions,
    chosen_columns,
    chosen_tokens,
    columns_now,
    marked,
    refuse_before,
)
from .say import say
from .sites import site_of


@dataclass(frozen=True)
class Edit:
    """One intervention. `change(value, stream)` gives the new value of the whole site; `check(lm)` raises if it cannot.

    given: what it was made from besides its name and place, so that two edits are equal only if they do the same; by
    default nothing is equal to it but itself.
    """

    name: str
    site: str
    block: int
    change: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)
    # None, a tuple or a slice, whatever it was given as; a slice has no hash before Python 3.12.
    positions: Positions = field(default=None, hash=False)
    check: Callable[[LanguageModel], object] = field(default=lambda lm: None, repr=False, compare=False)
    given: object = field(default_factory=object, repr=False, hash=False)
    # Where its value has one row for each of several prompts: how many, of how many positions, and an edit with the rows of
    # some of the prompts, of at most so many tokens.
    prompts: int | None = field(default=None, repr=False, compare=False)
    length: int | None = field(default=None, repr=False, compare=False)
    for_prompts: Callable[[Sequence[int], int], Edit] | None = field(default=None, repr=False, compare=False)
    # What it does depends on the value and the stream alone, and not on random numbers or earlier calls; False where nobody knows.
    pure: bool = field(default=False, repr=False, compare=False)
    made: object = field(default=None, repr=False, compare=False)  # the change that these and `given` belong to

    def __post_init__(self) -> None:
        if self.made not in (None, self.change):  # dataclasses.replace gave it another change: it is another edit
            others = {"given": object(), "prompts": None, "length": None, "for_prompts": None, "pure": False}
            for name, value in others.items():
                object.__setattr__(self, name, value)
        object.__setattr__(self, "made", self.change)
        object.__setattr__(self, "positions", check_positions(self.positions))

    def for_some(self, numbers: Sequence[int], prompts: int, length: int) -> Edit:
        """The edit for some of the prompts, of at most `length` tokens, where its value has a row for each of them."""
        if not self.for_prompts or self.prompts != prompts or prompts == 1:
            return self
        some = self.for_prompts(numbers, length)
        # Its block or positions may have been replaced since it was made (dataclasses.replace): only the value is new.
        names = ("change", "given", "prompts", "length", "for_prompts", "made")
        return replace(self, **{name: getattr(some, name) for name in names})

    def __repr__(self) -> str:
        where = "" if self.positions is None else f" at positions {self.positions}"
        return self.name + where


class edit:
    """Context manager that applies edits to `lm` and takes them off again, also after an exception or an interrupt.

    `with edit(lm, one, another) as lm:` makes no copy: until the block ends, every pass of `lm.model`, from here or from
    another thread or asyncio task, is edited. Raises a HelpersError at once, before anything is registered, if one of the edits
    does not fit the model, the model is compiled, or another thread or task has edits on it. A pass in which one of the edits does not
    run exactly once raises DidNotRun; a position that no pass reached raises PositionOutOfRange when the `with` ends.
    """

    forgotten = False  # True between being made and being put on
    private = False  # True: other threads' calls are not edited

    def __init__(self, lm: LanguageModel, *edits: Edit) -> None:
        check_edits(lm, edits)
        self.lm, self.edits = lm, edits
        self.entered: list[Live] = []
        self.forgotten = True

    def __del__(self) -> None:
        if self.forgotten:
            warnings.warn(
                say("{edits} changed nothing: edits work inside of `with edit(lm, …):`.", edits=list(self.edits)),
                stacklevel=2,
            )

    def __enter__(self) -> LanguageModel:
        self.forgotten = False
        for one in self.edits:
            refuse_compiled_around(self.lm, one.site, one.block)
        self._refuse_another_lm()
        group = Live(self.edits, self.private)
        try:
            self.entered.append(group)
            # First there, then a look around: of two threads, one at least sees the other.
            self.lm.live_edits.append(group)
            if not self.private:
                self.lm.stamps[group.thread] = object()
                self._refuse_others(group)
            group.hung = True
            _hang(self.lm, group)
            group.ready = True
            return self.lm
        except BaseException:  # an interrupt in here: Python would not call __exit__
            self._leave(group)
            raise

    def __exit__(self, kind: object = None, *_: object) -> None:
        group = self.entered[-1]
        try:
            passes.drop_interrupted(self.lm)
            self._leave(group)
        except BaseException:  # an interrupt in here: finish, then let it through
            self._leave(group)
            raise
        if kind is None:
            for late in group.waiting:
                raise late.error

    def _refuse_another_lm(self) -> None:
        """Raises BadEdit if another LanguageModel has edits on this same model: `prepend` would turn their order round."""
        others = {getattr(hook, "lm", self.lm) for hook in list(self.lm.model._forward_pre_hooks.values())} - {self.lm}
        if any(other.model is self.lm.model for other in others):
            raise errors.BadEdit(
                "another LanguageModel has edits on this same model, and their order would be turned round: wrap a model "
                "once, and use that one everywhere."
            )

    def _refuse_others(self, group: Live) -> None:
        """Raises BadEdit if another thread or asyncio task has edits on this model."""
        if elsewhere(self.lm):
            raise errors.BadEdit(
                "another thread has edits on this model, and both would be edited by both: give each thread its "
                "own copy (copy.deepcopy(lm)), or wait until the other's `with` has ended."
            )
        if any(other.task not in (None, group.task) and not other.task.done() for other in live_here(self.lm)):
            raise errors.BadEdit(
                "another asyncio task has edits on this model, and both would be edited by both: give each task its own "
                "copy (copy.deepcopy(lm)), do not await inside the `with`, or hold an asyncio.Lock around it."
            )

    def check_ran(self) -> None:
        """For code that calls blocks one by one, inside the `with`: every edit has run since it began. Raises DidNotRun."""
        group = self.entered[-1]
        for one, number in zip(group, group.fired, strict=True):
            if number == 0:
                raise did_not_run(self.lm, say("{one!r} did nothing", one=one), one.site, one.block)

    def _leave(self, group: Live) -> None:
        group.on = False
        if group.hung:
            _take_off(self.lm, group)
        if any(other is group for other in self.lm.live_edits):
            self.lm.live_edits.remove(group)  # last: until the hooks are off, other threads shall see that they are on
        self.entered = [other for other in self.entered if other is not group]


def check_edits(lm: LanguageModel, edits: Sequence[Edit]) -> None:
    """Raises a HelpersError if one of the edits does not fit the model."""
    check_model(lm)
    for one in edits:
        if not isinstance(one, Edit):
            raise errors.BadEdit(
                "{one!r} is not an edit: pass edits such as scale_block(2, 0.5) or zero_heads(5, [3]), one by one.",
                one=one,
            )
        lm.check_block(one.block)
        site_of(lm, one.site)
        one.check(lm)


class edit_here(edit):
    """The same for calls by this thread alone, whatever part of the model they call: a sweep's edits."""

    private = True


def _hang(lm: LanguageModel, group: Live) -> None:
    """Hang these edits on the model in their order, after those that are there and ahead of every other hook."""
    older = [other for other in live_here(lm) if other is not group]
    for index in reversed(range(len(group))):
        see = _counted(lm, group, index)
        group.handles += on_site(lm, group[index].site, group[index].block, see, prepend=True)
        lm.edit_handles += [handle for handle in group.handles if handle not in lm.edit_handles]
    for other in reversed(older):
        to_the_front(other.handles)
    if not group.private and all(other.private for other in older):
        on_pass(lm, lm.edit_handles)  # a sweep calls blocks, and nothing that these marks hang on


def _take_off(lm: LanguageModel, group: Live) -> None:
    others = [other for other in lm.live_edits if other is not group]
    mine = list(group.handles)
    if not group.private and all(other.private for other in others):  # and the marks, which no group has
        kept = {id(handle) for other in others for handle in other.handles}
        mine += [handle for handle in list(lm.edit_handles) if id(handle) not in kept]
        lm.passes.pop(get_ident(), None)
    for handle in mine:
        handle.remove()
        if handle in lm.edit_handles:
            lm.edit_handles.remove(handle)


def _counted(lm: LanguageModel, group: Live, index: int) -> Callable[[Tensor, Tensor], Tensor | None]:
    """An edit that is live: it counts itself, and knows where in the text the pass begins."""
    one = group[index]
    function = applied(one)

    def see(value: Tensor, stream: Tensor) -> Tensor | None:
        if not group.on or (group.private and group.thread != get_ident()):
            return None
        refuse_own_checkpoint()
        group.fired[index] += 1
        now = passes.current(lm)
        if now is None:
            return function(value, stream)
        now.count(group, index)
        if one.positions is None:
            if now.start:
                refuse_before(one, now.since(group))
            return function(value, stream)
        if now.single and not now.start:
            return function(value, stream, None if now.mask is None else chosen_tokens(one.positions, now.mask))
        columns = columns_now(one, group, index, now, value.shape[:2])
        return function(value, stream, marked(columns, value.shape[1])) if columns else None

    return see


def applied(one: Edit) -> Callable[..., Tensor]:
    """The edit as a function of a site's whole value, the stream, and where to change it: (batch or 1, pos), by default at
    its positions, counted in columns.
    """

    def see(value: Tensor, stream: Tensor, chosen: Tensor | None = None) -> Tensor:
        new = one.change(value, stream)
        if not isinstance(new, Tensor):
            raise errors.BadEdit(
                "{one!r} returned {kind}: its function must return the new tensor, of shape {shape} here.",
                one=one,
                kind="None" if new is None else say("a value of type {kind}", kind=type(new).__name__),
                shape=tuple(value.shape),
            )
        for what in ("shape", "dtype", "device"):
            if getattr(new, what) != getattr(value, what):
                raise errors.BadEdit(
                    "{one!r} returned a tensor of {what} {got} in place of {wanted}: return one of the same {what}.",
                    one=one,
                    what=what,
                    got=_short(getattr(new, what)),
                    wanted=_short(getattr(value, what)),
                )
        if chosen is None and one.positions is None:
            return new
        if chosen is None:
            chosen = marked(chosen_columns(one.positions, value.shape[1]), value.shape[1])
        return torch.where(chosen.to(value.device).view(*chosen.shape, *[1] * (value.ndim - 2)), new, value)

    return see


def _short(what: object) -> object:
    return tuple(what) if isinstance(what, torch.Size) else what
