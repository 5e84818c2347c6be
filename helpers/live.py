"""Which edits are live on a model, and in which threads and asyncio tasks.

An edit changes every pass of its model, whoever calls it; a sweep's own edits change only the calls of their own thread.
So whoever runs several passes that belong together asks here whether all of them ran under the same edits.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakSet

from torch.utils.hooks import RemovableHandle

from . import errors
from .say import say

if TYPE_CHECKING:
    from .models import LanguageModel


@dataclass(eq=False)
class Waiting:
    """A position that a text did not have yet when it had `end` tokens; it may come while text is generated."""

    what: tuple[int, int | None]  # the edit's number, and the position or None for a slice
    end: int
    error: errors.PositionOutOfRange
    cache: ReferenceType[Any] | None = None  # which text it is, where that has a cache


class Live(list):
    """The edits of one `with`, and what has become of them so far. Equal only to itself."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]

    def __init__(self, edits: Iterable[Any], private: bool = False) -> None:
        super().__init__(edits)
        self.private = private  # a sweep's own: calls by other threads are not edited
        self.handles: list[RemovableHandle] = []  # of its hooks, in the order in which they were put on
        self.ready = False  # True once all of them hang
        self.on = True  # False from the end of the `with`: a copy of the model may still carry the hooks
        self.hung = False  # True once its hooks may hang on the model
        self.thread, self.task = get_ident(), _task()
        self.fired = [0] * len(self)  # how often each has run
        self.waiting: list[Waiting] = []  # of several texts, if they are generated in turns

    # Made for the first cache, since most edits never see one.

    @cached_property
    def known(self) -> WeakSet[Any]:
        """Caches that these edits saw filled; what part of each is written on it, under `name`."""
        return WeakSet()

    @cached_property
    def name(self) -> str:
        return uuid.uuid4().hex


def _task() -> Any:
    """The asyncio task that runs here, if one does; nobody has one who never imported asyncio."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio and asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


def live_here(lm: LanguageModel) -> list[Live]:
    """The edits that this thread's passes run under, in groups: all but those of sweeps in other threads."""
    return [group for group in list(lm.live_edits) if not group.private or group.thread == get_ident()]


def editing(lm: LanguageModel) -> Any:
    """Differs, for this thread, when edits have been put on or taken off since, or another thread has done so in between."""
    others = {thread: stamp for thread, stamp in list(lm.stamps.items()) if thread != get_ident()}
    return [(group, group.ready and group.on) for group in live_here(lm)], others


def elsewhere(lm: LanguageModel) -> bool:
    """Whether edits of another thread change this one's passes now."""
    return any(group.thread != get_ident() for group in live_here(lm))


@contextmanager
def edited_as_a_whole(lm: LanguageModel, what: str, by_this_thread: bool = False) -> Iterator[Callable[[], None]]:
    """Raises BadEdit at the end, or when the function that it gives is called, if edits came or went since `what` began.

    by_this_thread: also at once, if edits of another thread are on.
    """
    if by_this_thread and elsewhere(lm):
        raise errors.BadEdit(
            "another thread has edits on this model, which would change what is swept here: wait until its `with` has ended, "
            "or give each thread its own copy (copy.deepcopy(lm))."
        )
    before = editing(lm)

    def check() -> None:
        if editing(lm) != before:
            raise errors.BadEdit(
                "edits were put on or taken off while {what} ran, so it is edited in part: another thread "
                "uses the same model. Give each thread its own copy, or take turns.",
                what=say(what),
            )

    try:
        yield check
    except errors.HelpersError:
        check()  # then that is why
        raise
    check()


def run_inside() -> errors.BadEdit:
    return errors.BadEdit(
        "a function that runs inside a pass or a sweep of this model, an edit's or a hook's, runs the model itself, and "
        "each would meet the other's edits: compute before what it needs, or let it run a copy of the model "
        "(copy.deepcopy(lm))."
    )
