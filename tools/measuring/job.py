"""One model and what is asked of it: phrasings, how many prompts, how much text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers import LanguageModel, held_out_passages, windows
from helpers.countries import PHRASINGS
from measuring.steps import Steps


@dataclass(frozen=True)
class Setup:
    """What is asked of one model. phrasings: name → template and the countries whose sentences stand in front."""

    phrasings: dict[str, tuple[str, tuple[str, ...]]]  # the first one is the main one
    in_phrasings: int  # prompts in the maps of the other phrasings
    pair_windows: int


_BARE = {name: (template, ()) for name, template in PHRASINGS.items()}
_SHOWN = {name: (template, ("France",)) for name, template in PHRASINGS.items()}
_MAIN = PHRASINGS["is the capital of"]
POCKET = Setup({**_BARE, "one example": (_MAIN, ("France",))}, 60, 6)
# A model trained on instructions goes on with " the" unless an example shows what is wanted.
OTHER = Setup({**_SHOWN, "two examples": (_MAIN, ("France", "Egypt")), "no example": (_MAIN, ())}, 30, 6)
NOT_MAPPED = ("no example",)  # asked for its answers only


@dataclass
class Job:
    """One model and what every part needs."""

    name: str
    lm: LanguageModel
    setup: Setup
    steps: Steps
    weights: dict[str, str]

    def texts(self, length: int, most: int) -> Tensor:
        """(windows, length) token ids: the first tokens of each held-out passage."""
        return torch.cat([windows(self.lm, passage, length, most=1) for passage in held_out_passages()[:most]])
