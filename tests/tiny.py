"""Small random models of every supported family, for tests that compare with plain PyTorch."""

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from helpers import LanguageModel, wrap

_COMMON = dict(vocab_size=97, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=32)
_GROUPED = dict(_COMMON, intermediate_size=40, num_key_value_heads=2, head_dim=8, pad_token_id=0)
CONFIGS = {
    "gpt2": dict(
        vocab_size=97, n_embd=24, n_layer=4, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neo": dict(
        vocab_size=97, hidden_size=24, num_layers=4, num_heads=4, max_position_embeddings=32, window_size=4,
        attention_types=[[["global", "local"], 2]], bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": dict(_COMMON, intermediate_size=40, hidden_dropout=0.1, attention_dropout=0.1),
    "opt": dict(_COMMON, ffn_dim=40, word_embed_proj_dim=24, dropout=0.1, pad_token_id=1),
    "llama": _GROUPED,
    "mistral": dict(_GROUPED, sliding_window=6),
    "qwen2": {k: v for k, v in _GROUPED.items() if k != "head_dim"},
    "qwen3": _GROUPED,
    "gemma2": dict(_GROUPED, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3_text": dict(_GROUPED, sliding_window=6, query_pre_attn_scalar=8),
}  # fmt: skip


def tiny(
    family: str, dtype: torch.dtype = torch.float64, attention: str = "eager", seed: int = 0, **changes
) -> LanguageModel:
    """A random model of 4 blocks and 4 heads; weights are enlarged so that every part visibly matters."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**CONFIGS[family], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
            elif "bias" in name or "norm" in name or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return wrap(model.to(dtype))
