"""FAMILIES: the one table that says where each architecture keeps its parts. No other file knows a module's name."""

from __future__ import annotations

from dataclasses import dataclass

from . import errors


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts. Paths of the second group are relative to a block."""

    blocks: str
    final_norm: str
    attention: str
    mlp: str
    attention_delta: str  # the module whose output is added to the residual stream
    mlp_delta: str
    heads_out: str  # the output projection: its input is the heads, side by side
    keys: str  # the module whose output holds the keys ...
    keys_layout: str  # ... "alone", "q|k|v" (all queries, all keys, all values) or "per head" (q, k, v of each head)
    preactivation: str  # the module whose output goes into the activation function
    neurons_out: str  # the projection back to the stream: its input is the neurons after the activation
    functional_dropout: bool = False  # dropout between a delta and the stream that is no module, so no hook can see it
    before_mlp: str = ""  # only for those: the norm that reads the stream between attention and MLP
    flat_mlp: bool = False  # the MLP's modules pass on (batch × pos, width)


_LLAMA = Family(
    "model.layers", "model.norm", "self_attn", "mlp", "self_attn", "mlp", "self_attn.o_proj",
    "self_attn.k_proj", "alone", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip
_GEMMA = Family(
    "model.layers", "model.norm", "self_attn", "mlp", "post_attention_layernorm", "post_feedforward_layernorm",
    "self_attn.o_proj", "self_attn.k_proj", "alone", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.c_proj",
        "attn.c_attn", "q|k|v", "mlp.c_fc", "mlp.c_proj",
    ),
    "gpt_neo": Family(
        "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.attention.out_proj",
        "attn.attention.k_proj", "alone", "mlp.c_fc", "mlp.c_proj",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "post_attention_dropout",
        "post_mlp_dropout", "attention.dense", "attention.query_key_value", "per head", "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "opt": Family(
        "model.decoder.layers", "model.decoder.final_layer_norm", "self_attn", "fc2", "self_attn", "fc2",
        "self_attn.out_proj", "self_attn.k_proj", "alone", "fc1", "fc2",
        functional_dropout=True, before_mlp="final_layer_norm", flat_mlp=True,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
}  # fmt: skip


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise errors.UnsupportedFamily(
            f"{name!r} models are not in the table of families; it has {', '.join(FAMILIES)}. "
            "Choose a model of one of these, or add a row to helpers.families.FAMILIES that says where the parts are."
        )
    return FAMILIES[name]
