"""Lesson 2's room, hooks and hidden states: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; claims.py what the ledger measures and judges; plots.py its figures; steps.py
what stands in for a step; modes.py its table of ways to run a model; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_2_1", "check_2_2", "check_2_3", "check_2_4"],
    "plots": [
        "plot_anatomy",
        "plot_mask",
        "plot_likeness",
        "plot_words",
        "plot_steps",
        "plot_parts",
        "rank_correlation",
    ],
    "steps": [
        "random_steps",
        "random_step",
        "zero_others",
        "zero_largest",
        "on_facts",
        "four_correlations",
        "block_correlations",
        "words_from",
        "chances_from",
        "attention_from",
        "step_facts",
        "STEP_FACTS",
        "part_costs",
        "mask_facts",
        "MASK_FACTS",
    ],
    "modes": ["modes_table"],
    "panel": ["hidden_states_panel"],
    "claims": ["ledger"],
}

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
