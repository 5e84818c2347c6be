"""Which tokens an edit is limited to, counted from the start of the text whatever part of it a pass runs over.

With a cache, positions still count from the start of the text, so that edits of a generated text are those of a pass over
the whole of it: one of all tokens too, so it is refused where a cache holds tokens that ran without it. Several texts may be
generated in turns, each with its cache. In `generate` an end that moves is refused; in a loop of one's own without a cache each
pass is taken for a prompt of its own, and -1 for its last token.

Prompts padded on the right count their own tokens, each for itself. In a batch padded on the left, and in one that somebody
gives to `lm.model` with a mask, they count the batch's columns, and one that is padding there is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from . import errors
from .checks import whole_numbers
from .live import Live, Waiting
from .passes import Pass
from .say import say

Positions = int | Sequence[int] | slice | None  # of tokens, as the factories take them


def check_positions(positions: Positions) -> tuple[int, ...] | slice | None:
    """Raises PositionOutOfRange for what can name no position in any text."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        try:
            range(1)[positions]
        except (TypeError, ValueError):
            raise errors.PositionOutOfRange(
                "{positions} cannot be used: give a slice of whole numbers, for example slice(1, None).",
                positions=positions,
            ) from None
        return positions
    try:
        return whole_numbers(positions, errors.PositionOutOfRange, "position")
    except errors.PositionOutOfRange:
        raise errors.PositionOutOfRange(
            "positions {positions!r} cannot be used: give None for all, one position, a list of them, or a slice.",
            positions=positions,
        ) from None


def chosen_columns(positions: Positions, length: int) -> list[int]:
    """Which of the `length` positions of a text are meant. Raises PositionOutOfRange."""
    if positions is None or isinstance(positions, slice):
        columns = list(range(length)[positions or slice(None)])
        if not columns:
            raise errors.PositionOutOfRange(
                "{positions} chooses none of the {length} positions of this prompt: choose from 0 to {last}.",
                positions=positions,
                length=length,
                last=length - 1,
            )
        return columns
    assert not isinstance(positions, int)  # an edit keeps a tuple
    for p in positions:
        if not -length <= p < length:
            raise errors.PositionOutOfRange(
                "position {p} does not exist: this prompt has {length} tokens, at positions 0 to {last}; choose "
                "from them, or count from the end with -1, -2, …",
                p=p,
                length=length,
                last=length - 1,
            )
    return [p % length for p in positions]


def marked(columns: Sequence[int], length: int) -> Tensor:
    """(1, length) True at these columns."""
    found = torch.zeros(1, length, dtype=torch.bool)
    found[:, columns] = True
    return found


def chosen_tokens(positions: Positions, mask: Tensor) -> Tensor:
    """(batch, pos) True at the tokens that are meant in a pass over whole prompts; mask: False where padded.

    Prompts padded on the right count their own tokens, each for itself. Padded on the left, as `generate` needs them, they
    count columns of the batch, as while text is generated. Raises PositionOutOfRange, also where padding is meant.
    """
    if mask[:, -1].all():
        columns = chosen_columns(positions, mask.shape[1])
        _refuse_padding(positions, columns, mask)
        return marked(columns, mask.shape[1])
    chosen = torch.zeros_like(mask)
    for row, real in zip(chosen, mask, strict=True):
        own = real.nonzero().flatten()
        row[own[chosen_columns(positions, len(own))]] = True
    return chosen


def _refuse_padding(positions: Positions, columns: list[int], mask: Tensor) -> None:
    """A slice may begin in the padding of a shorter prompt, where an edit changes nothing, but not end there."""
    real, part = mask[:, columns], isinstance(positions, slice)
    enough = real.any(1) if part else real.all(1)
    if not enough.all():
        raise errors.PositionOutOfRange(
            "{positions} is padding in prompt {number} of this batch, which is padded on the left or was given to lm.model "
            "itself, so that positions count its columns: count from the end, or give prompts padded on the right to the "
            "helpers, where each counts its own tokens.",
            positions=positions if part else say("position {columns}", columns=", ".join(map(str, columns))),
            number=int((~enough).nonzero()[0]),
        )


def columns_now(one: Any, group: Live, index: int, now: Pass, shape: torch.Size) -> list[int]:
    """Which columns of a pass over a part of a text are meant. Positions count from the start of the text.

    shape: (batch, pos) of the pass. What lies ahead may come while text is generated, so it waits; what lies in the cache must
    have run under this edit. Raises PositionOutOfRange.
    """
    end = now.start + shape[1]
    if _from_the_end(one.positions) and (now.start or (now.cache is None and _generating())):
        raise errors.PositionOutOfRange(
            "{one!r} counts from the end of the text, which moves while text is generated: count from its start, for "
            "example slice({end}, None) for all that comes after {end} tokens.",
            one=one,
            end=end,
        )
    found: list[int] = []
    parts = [one.positions] if isinstance(one.positions, slice) else [(p,) for p in one.positions]
    for part in parts:
        what = index, None if isinstance(part, slice) else part[0]
        late = _waiting_here(what, group, now, end)
        if late is not None:
            group.waiting.remove(late)
        try:
            found += chosen_columns(part, end)
        except errors.PositionOutOfRange as error:
            if not _may_come(part, end):
                raise
            error = error.with_traceback(None)  # its frames would keep the pass, and the cache, alive
            now.late.append(Waiting(what, end, error))
            group.waiting.append(now.late[-1])
    since = now.since(group)
    if any(column < since for column in found):
        refuse_before(one, since)
    if found and now.mask is not None:
        mask = real_tokens(one, now.mask, now.start, shape)
        if mask is not None:
            _refuse_padding(one.positions, found, mask)
    return [column - now.start for column in found if column >= now.start]


def refuse_before(one: Any, since: int) -> None:
    """Raises PositionOutOfRange for an edit of tokens before `since`, which ran without it."""
    if since:
        raise errors.PositionOutOfRange(
            "{one!r} means tokens that are in the cache already and ran without this edit, or are in a cache of which that is "
            "not known: begin the `with` before the first pass of the text, or choose positions from {since} on, for example "
            "slice({since}, None).",
            one=one,
            since=since,
        )


def _generating() -> bool:
    """Whether transformers' `generate` has called this pass: without a cache its passes look like those of many prompts."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and str(frame.f_globals.get("__name__")).startswith("transformers."):
            return True
        frame = frame.f_back
    return False


def real_tokens(one: Any, mask: Any, start: int, shape: torch.Size) -> Tensor | None:
    """(batch, start + pos) False where the text is padding, by the mask that the model was called with; None if it says nothing.

    shape: (batch, pos) of a pass that begins at column `start`. A mask of which column sees which, (batch, 1, pos, columns), is
    what `generate` makes for a static cache. Raises PositionOutOfRange for a batch with a mask of which this cannot be told.
    """
    if isinstance(mask, Mapping):  # by kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    length, end = shape[1], start + shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, :end].bool() if mask.shape[1] >= end else None
    if isinstance(mask, Tensor) and mask.ndim == 4:
        if mask.shape[3] < end or mask.shape[2] != length:
            return None  # of a sliding window, which keeps no columns from before it
        sees = mask[:, 0, :, :end]
        sees = sees > torch.finfo(sees.dtype).min / 2 if sees.is_floating_point() else sees.bool()
        last = sees[:, -1, start:]
        # Out of the last one's window a column that sees itself is real, unless it sees all, as a masked row sometimes does.
        real = last | (sees[:, :, start:].diagonal(dim1=1, dim2=2) & ~sees[:, :, -1])
        return torch.cat([real.new_ones(len(real), start), real], 1)
    if shape[0] > 1:
        raise errors.PositionOutOfRange(
            "{one!r} is limited to positions, and which tokens of this batch are padding cannot be told from its mask, of type "
            "{kind}: give lm.model a mask of shape (batch, tokens), or one prompt at a time.",
            one=one,
            kind=type(mask).__name__,
        )
    return None


def _waiting_here(what: tuple[int, int | None], group: Live, now: Pass, end: int) -> Waiting | None:
    """What waits in the text that this pass goes on with, of all texts. Raises PositionOutOfRange for one that is over."""
    known = now.cache is not None and now.cache in group.known
    for late in group.waiting:
        if late.what != what:
            continue
        cache = None if late.cache is None else late.cache()
        goes_on = late.end >= now.start if now.start else end == late.end + 1
        if cache is None or cache is now.cache:
            if not goes_on:
                group.waiting.remove(late)  # said once
                raise late.error  # nobody can go on with that text, and another begins
            return late
        if now.start and goes_on and not known:
            return late  # with a copy of its cache, as when several continuations are tried
    return None


def _from_the_end(positions: tuple[int, ...] | slice) -> bool:
    """Whether it depends on the text's length which tokens are meant."""
    if isinstance(positions, slice):
        return min(positions.start or 0, positions.stop or 0, (positions.step or 1) - 1) < 0
    return min(positions) < 0


def _may_come(part: tuple[int] | slice, end: int) -> bool:
    """Whether a longer text than one of `end` tokens can have this position."""
    if isinstance(part, slice):
        start, stop = part.start or 0, part.stop
        return start >= end and (part.step or 1) > 0 and (stop is None or stop > start)
    return part[0] >= end
