"""FAMILIES: the one table that says where each architecture keeps its parts, and what it does that others do not.

A row is data. Other files ask its properties ("is the MLP flat?", "what multiplies the deltas?") and know no family by
name. docs/families.md says what works where, and how to write a row for an architecture that is not in the table: pass
it to `wrap(model, tokenizer, family=Family(...))`, which tries it on the model and refuses it where it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from . import errors
from .say import say


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts, and what it does that a plain decoder does not.

    Paths of modules, `blocks` and `final_norm` from the model, the others from a block. "a|b" is a where a block has it,
    else b: names differ between versions of transformers.

        blocks            the list of blocks
        final_norm        the norm after the last block
        attention, mlp    the two sub-layers
        attention_delta   the module whose output is added to the stream: a norm after the sub-layer, where there is one
        mlp_delta         likewise
        heads_out         the output projection: its input is the heads, side by side
        keys              the module whose output holds the keys; of a norm over all key heads together, the norm
        keys_layout       what else it holds: "alone", nothing; "q|k|v", all queries, all keys, all values; "by key head",
                          for each key head the queries that it serves, its key, its value
        preactivation     the module whose output goes into the activation function; "" where no MLP is shared by all tokens
        neurons_out       the projection back to the stream: its input is the neurons after the activation; "" likewise

    All others are empty for a plain decoder. A setting is a name in the model's config; one that a config lacks, or that is
    None, counts as not there, and a copy that a block or the model keeps of it counts more.

        preactivation_layout  "gate|up": the first half of the preactivation's module goes into the activation function
        flat_mlp              the MLP works on (batch × pos, width)
        delta_factor          setting: both deltas are multiplied by it on their way into the stream
        hidden_dropout        setting: dropout between a delta and the stream that is no module, so that no hook sees it
        before_mlp            only with it: the norm that reads the stream between attention and MLP; "" in parallel blocks
        after_norm            a module between the final norm and the unembedding, where a model has it
        logit_factor          setting: logits are multiplied by it
        logit_divisor         setting: logits are divided by it
        logit_cap             setting: logits become cap × tanh(logits / cap)
        sinks                 attention's parameter (n_heads,) of a score that competes with the tokens' and has no value
        exact_softmax         eager attention computes its softmax in the model's own dtype, even in float64
        needs                 a setting, the value that it must have, and a sentence for all others
    """

    blocks: str
    final_norm: str
    attention: str
    mlp: str
    attention_delta: str
    mlp_delta: str
    heads_out: str
    keys: str
    keys_layout: Literal["alone", "q|k|v", "by key head"]
    preactivation: str
    neurons_out: str

    preactivation_layout: Literal["alone", "gate|up"] = "alone"
    flat_mlp: bool = False
    delta_factor: str = ""
    hidden_dropout: str = ""
    before_mlp: str = ""
    after_norm: str = ""
    logit_factor: str = ""
    logit_divisor: str = ""
    logit_cap: str = ""
    sinks: str = ""
    exact_softmax: bool = False
    needs: tuple[str, Any, str] | None = None

    @property
    def paths(self) -> dict[str, str]:
        """By name, the paths inside a block that every block must have."""
        optional = {self.neurons_out and "preactivation": self.preactivation, "before_mlp": self.before_mlp}
        names = ("attention", "mlp", "attention_delta", "mlp_delta", "heads_out", "keys", "neurons_out")
        found = {name: getattr(self, name) for name in names} | optional
        return {name: path for name, path in found.items() if name and path}

    def lacks(self, site: str) -> str | None:
        """Why a site of `helpers.change` does not exist in this family; None where it does."""
        if site in ("neurons", "preactivation") and not self.neurons_out:
            return say(
                "its MLP is a mixture of experts, and each token runs through neurons of its own experts only: edit "
                "'mlp', what all of them together add to the stream"
            )
        return None

    def module_of(self, site: str) -> str:
        """The path inside a block of the module whose input or output is a site; "" is the block itself."""
        return {
            "block": "",
            "attention": self.attention_delta,
            "mlp": self.mlp_delta,
            "heads": self.heads_out,
            "keys": self.keys,
            "neurons": self.neurons_out,
            "preactivation": self.preactivation,
        }[site]


_LLAMA = Family(
    "model.layers", "model.norm", "self_attn", "mlp", "self_attn", "mlp", "self_attn.o_proj",
    "self_attn.k_proj", "alone", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip
_GEMMA = replace(
    _LLAMA, attention_delta="post_attention_layernorm", mlp_delta="post_feedforward_layernorm",
    logit_cap="final_logit_softcapping",
)  # fmt: skip
_GATE_UP: dict[str, Any] = {"preactivation": "mlp.gate_up_proj", "preactivation_layout": "gate|up"}
_EXPERTS = replace(_LLAMA, preactivation="", neurons_out="")
_OLMO2 = replace(
    _LLAMA, attention_delta="post_attention_layernorm", mlp_delta="post_feedforward_layernorm", keys="self_attn.k_norm",
)  # fmt: skip
_GPT2 = Family(
    "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.c_proj",
    "attn.c_attn", "q|k|v", "mlp.c_fc", "mlp.c_proj", exact_softmax=True,
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, heads_out="attn.attention.out_proj", keys="attn.attention.k_proj", keys_layout="alone"),
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "post_attention_dropout",
        "post_mlp_dropout", "attention.dense", "attention.query_key_value", "by key head", "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "opt": Family(
        "model.decoder.layers", "model.decoder.final_layer_norm", "self_attn", "fc2", "self_attn", "fc2",
        "self_attn.out_proj", "self_attn.k_proj", "alone", "fc1", "fc2",
        flat_mlp=True, hidden_dropout="dropout", before_mlp="final_layer_norm", after_norm="model.decoder.project_out",
        needs=(
            "do_layer_norm_before", True,
            "this OPT model normalises after its sub-layers (do_layer_norm_before=False, as opt-350m), so no plain sum "
            "of deltas exists in it; every other OPT size works.",
        ),
    ),
    "gptj": Family(
        "transformer.h", "transformer.ln_f", "attn", "mlp", "attn", "mlp", "attn.out_proj",
        "attn.k_proj", "alone", "mlp.fc_in", "mlp.fc_out",
    ),
    "falcon": Family(
        "transformer.h", "transformer.ln_f", "self_attention", "mlp", "self_attention", "mlp", "self_attention.dense",
        "self_attention.query_key_value", "by key head", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
        hidden_dropout="hidden_dropout", exact_softmax=True,
        needs=(
            "alibi", False,
            "this Falcon model adds a bias for the distance to its scores (alibi=True, as falcon-rw), so zeroed keys do not look "
            "evenly and its blocks cannot take another batch, as sweeps need; falcon-7b, 11B, 40b and 180B work.",
        ),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "seed_oss": _LLAMA,
    "ernie4_5": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "internlm3": _LLAMA,
    "stablelm": replace(_LLAMA, mlp_delta="dropout"),
    "starcoder2": replace(_LLAMA, preactivation="mlp.c_fc", neurons_out="mlp.c_proj"),
    "phi": replace(
        _LLAMA, final_norm="model.final_layernorm", heads_out="self_attn.dense", preactivation="mlp.fc1",
        neurons_out="mlp.fc2", hidden_dropout="resid_pdrop",
    ),
    "phi3": replace(
        _LLAMA, attention_delta="resid_attn_dropout", mlp_delta="resid_mlp_dropout", keys="self_attn.qkv_proj",
        keys_layout="q|k|v", **_GATE_UP,
    ),
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": replace(  # whose class never caps its logits, whatever the config says
        _GEMMA, blocks="model.language_model.layers", final_norm="model.language_model.norm", logit_cap="",
    ),
    "olmo": _LLAMA,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "exaone4": replace(_GEMMA, logit_cap=""),
    "glm": replace(_LLAMA, **_GATE_UP),
    "glm4": replace(
        _LLAMA, attention_delta="post_self_attn_layernorm", mlp_delta="post_mlp_layernorm", **_GATE_UP,
    ),
    "granite": replace(_LLAMA, delta_factor="residual_multiplier", logit_divisor="logits_scaling"),
    "cohere": replace(_LLAMA, logit_factor="logit_scale"),
    "cohere2": replace(_LLAMA, logit_factor="logit_scale"),
    "mixtral": replace(_EXPERTS, mlp="mlp|block_sparse_moe", mlp_delta="mlp|block_sparse_moe"),
    "qwen3_moe": _EXPERTS,
    "olmoe": replace(_EXPERTS, keys="self_attn.k_norm"),
    "gpt_oss": replace(_EXPERTS, sinks="sinks"),
}  # fmt: skip

# What no row can help, since these have no attention heads that write into one stream from left to right.
_NOT_ATTENTION = (
    "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "jamba", "bamba", "zamba", "zamba2", "falcon_h1",
    "nemotron_h", "granitemoehybrid", "lfm2", "lfm2_moe", "kimi_linear", "qwen3_next",
)  # fmt: skip
_ENCODERS = (
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "deberta", "deberta-v2", "modernbert",
    "mpnet", "longformer", "big_bird", "ernie", "esm", "nomic_bert", "eurobert", "xlm", "vit", "clip",
)  # fmt: skip
_ENCODER_DECODERS = (
    "t5",
    "mt5",
    "umt5",
    "longt5",
    "bart",
    "mbart",
    "pegasus",
    "marian",
    "m2m_100",
    "whisper",
    "led",
    "t5gemma",
)


def family_named(name: str, config: Mapping[str, Any] | None = None) -> Family:
    """A row of the table. config: the model's, as a mapping, if it is at hand. Raises UnsupportedFamily."""
    if name in FAMILIES:
        return FAMILIES[name]
    kind = (
        say("an encoder-decoder model") if name in _ENCODER_DECODERS or (config or {}).get("is_encoder_decoder")
        else say("an encoder") if name in _ENCODERS
        else say("a state-space or recurrent model, in part at least") if name in _NOT_ATTENTION
        else ""
    )  # fmt: skip
    if kind:
        raise errors.UnsupportedFamily(
            "{name!r} is {kind}, and the helpers work on decoder-only transformers, where attention and MLP "
            "of each block add to one residual stream: choose one of those, {families}.",
            name=name,
            kind=kind,
            families=", ".join(FAMILIES),
        )
    raise errors.UnsupportedFamily(
        "{name!r} models are not in the table of families; it has {families}. If this is a decoder-only transformer, try the "
        "row of one that it resembles, wrap(model, tokenizer, family='llama'), which is refused where it does not fit, or "
        "tell where its parts are, family=Family(...).",
        name=name,
        families=", ".join(FAMILIES),
    )


def row_of(family: Family | str | None, config: Any) -> tuple[str, Family]:
    """The name and the row to use for a model with this config: its own, another family's, or one that a user wrote.

    Raises UnsupportedFamily or BadValue.
    """
    own = str(getattr(config, "model_type", "") or type(config).__name__)
    if isinstance(family, Family):
        wrong = [
            f.name
            for f in fields(Family)
            if f.name.endswith("_layout") and getattr(family, f.name) not in _LAYOUTS[f.name]
        ]
        if wrong:
            raise errors.BadValue(
                "{wrong} {value!r} is unknown: choose one of {layouts}.",
                wrong=wrong[0],
                value=getattr(family, wrong[0]),
                layouts=", ".join(map(repr, _LAYOUTS[wrong[0]])),
            )
        row = family
    elif family is None or isinstance(family, str):
        row = family_named(family or own, config.to_dict() if hasattr(config, "to_dict") else None)
    else:
        raise errors.BadValue(
            "family {family!r} cannot be used: give a Family(...), or the name of a row of FAMILIES.", family=family
        )
    if row.needs and getattr(config, row.needs[0], row.needs[1]) != row.needs[1]:
        raise errors.UnsupportedFamily(row.needs[2])
    return own, row


_LAYOUTS = {"keys_layout": ("alone", "q|k|v", "by key head"), "preactivation_layout": ("alone", "gate|up")}
