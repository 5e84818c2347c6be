"""Lesson 4's room, head ablation: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; study.py what it measures live;
plots.py its figures; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_4_1", "check_4_2", "check_4_3", "check_4_4", "check_4_5"],
    "study": [
        "agreement", "answered_like", "half_of", "mean_map", "named_by", "output_weight", "show_agreement", "show_first_places",
        "show_foretelling", "show_gains", "show_leads", "show_sizes", "show_wider_swaps", "show_words", "significant",
        "stored_facts", "strongest", "swap_heads", "who_gains", "written_towards",
    ],
    "plots": [
        "plot_looks_and_writes", "plot_phrasings", "plot_swaps", "plot_together", "plot_top_one", "plot_two_maps",
    ],
    "panel": ["head_panel"],
    "claims": ["ledger"],
}  # fmt: skip

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
