"""Causal interventions inside language models: hooks that tell the truth.

    from helpers import load_model, edit, scale_block, trace, delta_norm

Names load when they are first used, so that `import helpers` costs next to nothing.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "loading": ["load_model"],
    "models": ["wrap", "LanguageModel", "Tokens"],
    "families": ["FAMILIES"],
    "edits": [
        "edit", "Edit", "change", "scale_block", "scale_attention", "scale_mlp", "skip_block", "skip_attention", "skip_mlp",
        "zero_heads", "replace_heads", "zero_keys", "noise_neurons", "add_to_block", "patch_block",
    ],
    "tracing": ["trace", "Trace"],
    "readings": ["attention_patterns", "read_site", "spread"],
    "metrics": [
        "delta_norm", "relative_error", "cosine_similarity", "survival", "step_norm", "token_norms", "log_prob", "logit_difference",
        "kl", "top_k", "bootstrap_interval",
    ],
    "correlations": ["correlation", "correlation_per_dimension", "random_step_correlation", "within_percentile"],
    "sweeps": [
        "sweep_heads", "sweep_blocks", "sweep_block_pairs", "sweep_factors", "sweep_edits", "mean_heads", "windows",
    ],
    "measures": ["Measure", "Outcome", "predictions", "text_damage"],
    "countries": ["capital_prompts", "CapitalPrompt"],
    "texts": ["held_out_passages"],
    "errors": ["HelpersError"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helpers' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
    found = getattr(import_module(f"helpers.{_MODULE_OF[name]}"), name)
    globals()[name] = found  # found without asking from now on
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
