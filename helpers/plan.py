"""What a sweep will do, once its door has checked everything: it travels from there through all that the sweep runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .copies import Copy
from .measures import Measure, Trial
from .models import LanguageModel
from .rows import Alone

CopiesOf = Callable[[list[int]], Sequence[Copy]]  # the numbers of some prompts give their copies, as many each time


@dataclass(frozen=True)
class Plan:
    """One sweep: nothing in it is checked again."""

    lm: LanguageModel
    prompts: list[Tensor]  # (pos,) ids each
    copies_of: CopiesOf
    n_copies: int  # of each prompt
    measure: Measure
    trial: Trial
    chunk: int  # tokens, copies × positions, in a block at once
    alone: Alone
    in_order: bool  # one copy of one prompt at a time, in the order of the plain loop: an edit may draw random numbers

    @property
    def waiting(self) -> int:
        """Tokens of all copies in one walk: waiting streams are small next to a block's neurons."""
        return 1 if self.in_order else 16 * self.chunk
