"""Lesson 1's room, downstream scaling: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; panel.py its
widget; words.py what a run would say next; stored.py what was measured over many prompts.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_1_1", "check_1_2", "check_1_3", "check_1_4", "check_1_5"],
    "words": ["probability", "show_next_words"],
    "plots": ["plot_factors", "plot_relative", "plot_first_token", "plot_writes", "plot_attention"],
    "stored": ["at_the_end", "show_first_token"],
    "panel": ["scaling_panel"],
    "claims": ["ledger"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
