"""A forward pass by hand in plain PyTorch, for every family: the oracle that the helpers are compared with.

It calls the model's own projections, norms and activation functions and does the rest itself (heads, rotation of
positions, masks, softmax, dropped connections), without a hook and without anything from `helpers`. An intervention is a
plain function `at(site, block, value, stream)` that returns the value to go on with.
"""

import math
from types import SimpleNamespace

import torch


def unchanged(site, block, value, stream):
    return value


def reference(model, ids, mask=None, at=unchanged):
    """One pass in eval mode: resid, attn, mlp, heads, final and logits, shaped as `helpers.trace` documents them."""
    config = model.config
    family = config.model_type
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    stream = _embedded(model, family, ids, places)
    blocks = {"gpt2": "transformer.h", "gpt_neo": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(family)
    blocks = blocks or ("model.decoder.layers" if family == "opt" else "model.layers")
    seen = SimpleNamespace(resid=[stream], attn=[], mlp=[], heads=[])
    for index, block in enumerate(model.get_submodule(blocks)):
        hold = lambda site, value, stream=None, index=index: at(site, index, value, stream)  # noqa: E731
        entered = stream
        parts = PARTS[family](block, config, index)
        q, k, v = parts.qkv(parts.before_attention(stream), hold)
        if parts.theta:
            q, k = (_rotated(x, places, parts.theta, parts.rotated or x.shape[-1]) for x in (q, k))
        heads = hold("heads", _attend(q, k, v, mask, parts).to(stream.dtype))
        seen.heads.append(heads)
        attn = hold("attention", parts.after_attention(parts.out(heads.flatten(-2))))
        middle = stream if parts.parallel else stream + attn
        mlp = hold("mlp", parts.after_mlp(parts.mlp(parts.before_mlp(middle), hold)))
        stream = middle + mlp + attn if parts.parallel else middle + mlp
        stream = hold("block", stream, entered)
        for name, value in (("attn", attn), ("mlp", mlp), ("resid", stream)):
            getattr(seen, name).append(value)
    last = {"gpt2": "transformer.ln_f", "gpt_neo": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(
        family
    )
    last = last or ("model.decoder.final_layer_norm" if family == "opt" else "model.norm")
    final = model.get_submodule(last)(stream)
    logits = model.get_output_embeddings()(final)
    if getattr(config, "final_logit_softcapping", None):
        logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
    stacked = {name: torch.stack(value) for name, value in vars(seen).items()}
    return SimpleNamespace(**stacked, final=final, logits=logits)


def _embedded(model, family, ids, places):
    if family in ("gpt2", "gpt_neo"):
        return model.transformer.wte(ids) + model.transformer.wpe(places)
    if family == "opt":  # positions are stored two rows further down
        table = model.model.decoder.embed_positions.weight
        return model.model.decoder.embed_tokens(ids) + table[places + 2]
    weights = model.get_input_embeddings().weight
    if family.startswith("gemma"):
        return weights[ids] * torch.tensor(model.config.hidden_size**0.5, dtype=torch.float32).to(weights.dtype)
    return weights[ids]


def _rotated(x, places, theta, width):
    """Rotary positions for x (batch, pos, heads, d_head): pairs (i, i + width/2) turn by an angle that grows with position."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    angles = places.float()[:, :, None] * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)[:, :, None, :]
    width = angles.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    a, b = turned.chunk(2, dim=-1)
    quarter = torch.cat([-b, a], dim=-1)
    return torch.cat([turned * angles.cos().to(x.dtype) + quarter * angles.sin().to(x.dtype), rest], dim=-1)


def _attend(q, k, v, mask, parts):
    """(batch, pos, heads, d_head): each head's mix of the values that it may see; key heads are shared in groups."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * parts.scale
    if parts.softcap:
        scores = parts.softcap * torch.tanh(scores / parts.softcap)
    length = q.shape[1]
    back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (back >= 0) & (back < (parts.window or length))
    visible = visible[None, None] & mask[:, None, None, :]
    weights = scores.masked_fill(~visible, -1e30).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def _heads(value, number):
    return value.unflatten(-1, (number, -1))


def _same(value):
    return value


def _plain_mlp(into, activation, out):
    def run(value, hold):
        return out(hold("neurons", activation(hold("preactivation", into(value)))))

    return run


USUAL = {
    "theta": None, "rotated": None, "window": None, "softcap": None, "parallel": False, "after_attention": _same,
    "after_mlp": _same,
}  # fmt: skip


def _parts(**given):
    return SimpleNamespace(**{**USUAL, **given})


def _gpt2(block, config, index):
    def qkv(value, hold):
        q, k, v = (_heads(x, config.n_head) for x in block.attn.c_attn(value).split(config.n_embd, dim=-1))
        return q, hold("keys", k), v

    return _parts(
        before_attention=block.ln_1, qkv=qkv, out=block.attn.c_proj, before_mlp=block.ln_2,
        mlp=_plain_mlp(block.mlp.c_fc, block.mlp.act, block.mlp.c_proj), scale=(config.n_embd // config.n_head) ** -0.5,
    )  # fmt: skip


def _gpt_neo(block, config, index):
    inner = block.attn.attention

    def qkv(value, hold):
        q, k, v = (_heads(p(value), config.num_heads) for p in (inner.q_proj, inner.k_proj, inner.v_proj))
        return q, hold("keys", k), v

    return _parts(
        before_attention=block.ln_1, qkv=qkv, out=inner.out_proj, before_mlp=block.ln_2, scale=1.0,
        mlp=_plain_mlp(block.mlp.c_fc, block.mlp.act, block.mlp.c_proj),
        window=config.window_size if config.attention_layers[index] == "local" else None,
    )  # fmt: skip


def _gpt_neox(block, config, index):
    number, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def qkv(value, hold):
        q, k, v = block.attention.query_key_value(value).unflatten(-1, (number, 3 * width)).split(width, dim=-1)
        return q, hold("keys", k), v

    rope = getattr(config, "rope_parameters", None) or {}
    return _parts(
        before_attention=block.input_layernorm, qkv=qkv, out=block.attention.dense, scale=width**-0.5,
        before_mlp=block.post_attention_layernorm, parallel=config.use_parallel_residual,
        mlp=_plain_mlp(block.mlp.dense_h_to_4h, block.mlp.act, block.mlp.dense_4h_to_h),
        theta=rope.get("rope_theta", 10000.0), rotated=int(width * rope.get("partial_rotary_factor", 0.25)),
    )  # fmt: skip


def _opt(block, config, index):
    attention, number = block.self_attn, config.num_attention_heads

    def qkv(value, hold):
        q, k, v = (_heads(p(value), number) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        return q, hold("keys", k), v

    return _parts(
        before_attention=block.self_attn_layer_norm, qkv=qkv, out=attention.out_proj,
        before_mlp=block.final_layer_norm, mlp=_plain_mlp(block.fc1, block.activation_fn, block.fc2),
        scale=(config.hidden_size // number) ** -0.5,
    )  # fmt: skip


def _llama(block, config, index):
    attention, mlp = block.self_attn, block.mlp
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    normed = config.model_type in ("qwen3", "gemma3_text")
    gemma = config.model_type.startswith("gemma")

    def qkv(value, hold):
        q = _heads(attention.q_proj(value), config.num_attention_heads)
        k = hold("keys", _heads(attention.k_proj(value), config.num_key_value_heads))
        v = _heads(attention.v_proj(value), config.num_key_value_heads)
        return (attention.q_norm(q), attention.k_norm(k), v) if normed else (q, k, v)

    def gated(value, hold):
        opened = mlp.act_fn(hold("preactivation", mlp.gate_proj(value)))
        return mlp.down_proj(hold("neurons", opened * mlp.up_proj(value)))

    everywhere = "sliding_attention" if config.model_type == "mistral" else "full_attention"
    kind = (getattr(config, "layer_types", None) or [everywhere] * 99)[index]
    return _parts(
        before_attention=block.input_layernorm, qkv=qkv, out=attention.o_proj, mlp=gated,
        after_attention=block.post_attention_layernorm if gemma else _same,
        before_mlp=block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm,
        after_mlp=block.post_feedforward_layernorm if gemma else _same,
        scale=(config.query_pre_attn_scalar if gemma else width) ** -0.5, theta=_theta(config, kind),
        window=config.sliding_window if kind == "sliding_attention" else None,
        softcap=getattr(config, "attn_logit_softcapping", None),
    )  # fmt: skip


def _theta(config, kind):
    rope = getattr(config, "rope_parameters", None)
    if rope:  # transformers 5
        return rope.get(kind, rope)["rope_theta"]
    if kind == "sliding_attention" and config.model_type == "gemma3_text":
        return config.rope_local_base_freq
    return config.rope_theta


PARTS = {"gpt2": _gpt2, "gpt_neo": _gpt_neo, "gpt_neox": _gpt_neox, "opt": _opt}
PARTS |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), _llama)


def far(found, expected):
    """Frobenius distance relative to what is expected: one number whatever the dtype and scale."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp(min=math.ulp(1.0))).item()
