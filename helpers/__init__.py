"""Causal interventions inside language models: hooks that tell the truth.

    from helpers import load_model, edit, scale_block, trace, delta_norm

Names load when they are first used, so that `import helpers` costs next to nothing.
"""

from .lazy import lazy

_WHERE = {
    "loading": ["load_model"],
    "wrapping": ["wrap"],
    "certificate": ["Certificate"],
    "models": ["LanguageModel", "Tokens"],
    "families": ["FAMILIES", "Family"],
    "edits": [
        "edit", "Edit", "change", "scale_block", "scale_attention", "scale_mlp", "skip_block", "skip_attention", "skip_mlp",
        "zero_heads", "replace_heads", "zero_keys", "noise_neurons", "add_to_block", "patch_block",
    ],
    "tracing": ["trace", "Trace", "Gradients"],
    "readings": ["attention_patterns", "read_site", "spread"],
    "metrics": [
        "delta_norm", "relative_error", "cosine_similarity", "survival", "step_norm", "token_norms", "log_prob", "logit_difference",
        "kl", "top_k", "bootstrap_interval",
    ],
    "correlations": ["correlation", "correlation_per_dimension", "random_step_correlation", "within_percentile"],
    "sweeps": [
        "sweep_heads", "sweep_blocks", "sweep_block_pairs", "sweep_factors", "sweep_edits", "windows",
    ],
    "studies": ["study"],
    "replacements": ["mean_heads"],
    "measures": ["Measure", "Outcome", "predictions", "text_damage"],
    "countries": ["capital_prompts", "CapitalPrompt", "PHRASINGS", "answers_right", "positions_of"],
    "measurements": ["measured", "Measured"],
    "texts": ["held_out_passages"],
    "errors": ["HelpersError"],
    "language": ["set_language"],
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, {f"helpers.{module}": names for module, names in _WHERE.items()})
