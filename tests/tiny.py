"""Small random models of every supported family, for tests that compare with plain PyTorch."""

import copy
import functools

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from helpers import LanguageModel, wrap

_COMMON = dict(vocab_size=97, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=32)
_GROUPED = dict(_COMMON, intermediate_size=40, num_key_value_heads=2, head_dim=8, pad_token_id=0)
_PLAIN = dict(_COMMON, intermediate_size=40, pad_token_id=0, bos_token_id=0, eos_token_id=0)
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
# The families that came later. `CONFIGS` go through every test of traces, edits and sweeps; these through
# tests/test_families.py, which asks each claim of their rows once.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}  # GPT-OSS's own setting is for contexts of 130,000
_EXPERTS = dict(_GROUPED, num_experts_per_tok=2, moe_intermediate_size=16)
MORE = {
    "gptj": dict(
        vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=32, rotary_dim=4, bos_token_id=0, eos_token_id=0,
    ),
    "falcon": dict(_COMMON, new_decoder_architecture=True, num_kv_heads=2, bos_token_id=0, eos_token_id=0),
    "ministral": dict(_GROUPED, sliding_window=6),
    "smollm3": dict(_GROUPED, bos_token_id=0, eos_token_id=0),
    "seed_oss": _GROUPED,
    "ernie4_5": _GROUPED,
    "hunyuan_v1_dense": dict(_GROUPED, bos_token_id=0, eos_token_id=0),
    "internlm3": _GROUPED,
    "stablelm": {**_PLAIN, "num_key_value_heads": 2},
    "starcoder2": dict(_GROUPED, bos_token_id=0, eos_token_id=0),
    "phi": dict(_PLAIN, hidden_size=32, num_key_value_heads=2),
    "phi3": dict(_PLAIN, num_key_value_heads=2, original_max_position_embeddings=32, bos_token_id=0, eos_token_id=0),
    "gemma": _GROUPED,
    "gemma3": dict(
        text_config=dict(_GROUPED, sliding_window=6, query_pre_attn_scalar=8), image_token_index=96,
        vision_config=dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8,
        ),
    ),
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": dict(_GROUPED, sliding_window=6, bos_token_id=0, eos_token_id=0),
    "exaone4": dict(_GROUPED, sliding_window=6, bos_token_id=0, eos_token_id=0),
    "glm": _GROUPED,
    "glm4": _GROUPED,
    "granite": dict(_GROUPED, residual_multiplier=0.5, logits_scaling=4.0, embedding_multiplier=3.0, attention_multiplier=0.3),
    "cohere": dict(_GROUPED, logit_scale=0.25, bos_token_id=0, eos_token_id=0),
    "cohere2": dict(_GROUPED, logit_scale=0.25, sliding_window=6, bos_token_id=0, eos_token_id=0),
    "mixtral": dict(_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(_EXPERTS, num_experts=4),
    "olmoe": dict(_PLAIN, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": dict(_GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, rope_scaling=None, rope_parameters=_ROPE),
}  # fmt: skip


def here(family: str) -> bool:
    """Whether the installed transformers has this family."""
    return family in CONFIG_MAPPING


def tiny(
    family: str, dtype: torch.dtype = torch.float64, attention: str = "eager", seed: int = 0, **changes
) -> LanguageModel:
    """A random model of 4 blocks and 4 heads, a new one each time; weights are enlarged so that every part visibly matters."""
    given = tuple(changes.items())
    try:
        found = copy.deepcopy(_kept(family, dtype, attention, seed, given))  # made in a quarter of the time
    except TypeError:  # lists and dicts among the changes
        found = _make(family, dtype, attention, seed, given)
    torch.manual_seed(seed)
    return found


def _make(family: str, dtype: torch.dtype, attention: str, seed: int, changes: tuple) -> LanguageModel:
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**(CONFIGS | MORE)[family], **dict(changes)})
    config._experts_implementation = "eager"  # the fused kernels have no float64
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6)
            elif "bias" in name or "norm" in name or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return wrap(model.to(dtype))


_kept = functools.cache(_make)
