"""Lesson 2's room, hooks and hidden states: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_2_1", "check_2_2", "check_2_3", "check_2_4", "check_2_5"],
    "plots": [
        "plot_anatomy",
        "plot_delta_norms",
        "plot_scatter",
        "plot_correlations",
        "filled_axis",
        "plot_mask",
        "plot_downstream",
    ],
    "panel": ["describe_view", "hidden_states_panel", "view_block"],
    "claims": ["ledger"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
