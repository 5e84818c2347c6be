"""Lesson 3's room, the multi-component challenge: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_3_1", "check_3_2", "check_3_3", "check_3_4", "check_3_5", "check_3_6", "check_3_7"],
    "plots": ["evenness", "plot_patterns", "plot_head_effects", "plot_neurons", "plot_spread"],
    "panel": ["component_shift", "components_panel", "draw_shift"],
    "claims": ["ledger"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
