"""Lesson 3's room, the multi-component challenge: what its notebook imports, and all that belongs to it.

exercises.py its exercises and their checks; runs.py what its cells run; claims.py what the ledger measures and judges;
plots.py its figures; panel.py its widget.
"""

from helpers.course import offers
from helpers.lazy import lazy

_OWN = {
    "exercises": ["check_3_1", "check_3_2", "check_3_3", "check_3_4", "check_3_5"],
    "runs": [
        "END_FACTS", "block_form", "end_facts", "later_blocks", "logits_with", "next_word_kl", "noise_facts", "on_each_form",
        "plot_runs", "replacements", "show_words", "some_prompts", "top_word", "value_lengths", "what_heads_write", "with_lengths_of",
    ],
    "plots": ["plot_look", "plot_replacements", "plot_resting"],
    "panel": ["components_panel"],
    "claims": ["ledger"],
}  # fmt: skip

__all__, __getattr__, __dir__ = lazy(__name__, offers(__name__, _OWN))
