"""Lesson 5's room, skipping a layer: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; runs.py its
tables and the work of a pass; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_5_1", "check_5_2", "check_5_3", "check_5_4", "check_5_5"],
    "plots": [
        "plot_damage",
        "plot_writer",
        "plot_removal",
        "removed",
        "worst_pairs",
        "plot_prices",
        "price_finding",
        "strongest_head",
        "plot_crossing",
    ],
    "runs": [
        "held_out",
        "show_words",
        "show_again",
        "show_hooks",
        "show_first_token",
        "show_other_capitals",
        "show_removal",
        "show_prices",
        "own_forward",
        "operations",
    ],
    "panel": ["skipping_panel"],
    "claims": ["ledger"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
