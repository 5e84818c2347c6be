"""Lesson 4's room, head ablation: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_4_1", "check_4_2", "check_4_3", "check_4_4", "check_4_5"],
    "plots": ["plot_head_changes", "plot_head_map", "plot_silent_changes", "plot_together"],
    "panel": ["draw_view", "head_map", "head_panel", "head_view"],
    "claims": ["ledger", "hidden_movement", "compare_replacements", "study_heads", "cooperation"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
