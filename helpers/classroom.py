"""A class on one machine: what every student's kernel reads and none can write is prepared once, before they come.

    CAUSAL_INTERVENTIONS_CACHE=/srv/course/models python -m helpers.classroom

brings the real model, and both models in float64, as the lessons use them. Kernels map these files, so thirty of them hold
one copy. `make hub`, the image in deploy/ and Binder's run this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from . import errors, smollm2
from .cache import copy_in_float64, place_in_float64
from .loading import POCKET_FOLDER


def prepare(tell: Callable[[str], object] = lambda text: None) -> None:
    """tell: is told each step of bringing the real model. Raises CannotStore, and what helpers/smollm2.py raises."""
    if not (pocket := place_in_float64(POCKET_FOLDER)).is_dir():
        copy_in_float64(POCKET_FOLDER, pocket, 0.1e9)
    smollm2.bring_double(tell)


if __name__ == "__main__":
    try:
        prepare(tell=lambda text: print(text, file=sys.stderr, flush=True))
    except errors.HelpersError as mistake:
        sys.exit(f"{type(mistake).__name__}: {mistake}")
