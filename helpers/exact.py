"""Float64 from the first product to the last, for models of the Llama family.

    own_dtype(model)      # load_model("smollm2", dtype=torch.float64) does this

transformers computes Llama's RMSNorm, its rotary table and eager attention's softmax in float32, whatever the dtype of
the model. So a model in float64 has digits that depend on the processor from the eighth on: other instruction sets add
float32 numbers in another order. Here these three parts are computed by the same formulas in the model's own dtype. The
modules keep their names and weights, so hooks and edits find them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME = "eager in its own dtype"  # of the attention function that is registered with transformers


class _Rotary(nn.Module):
    """cos and sin of the rotary position embedding, (batch, pos, d_head) each, in the dtype of the stream."""

    def __init__(self, theta: float, d_head: int) -> None:
        super().__init__()
        self.theta, self.d_head = theta, d_head

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.d_head, 2, dtype=x.dtype, device=x.device) / self.d_head
        angles = position_ids[..., None].to(x.dtype) * self.theta**-steps
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of all heads, (batch, pos, n_heads, d_head), and its pattern, (batch, n_heads, pos, pos)."""
    key, value = (one.repeat_interleave(module.num_key_value_groups, dim=1) for one in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = nn.functional.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def own_dtype(model: Any) -> None:
    """Let a Llama model compute norms, rotary table and attention in its own dtype. Nothing else about it changes."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.config._attn_implementation = NAME
    config, inner = model.config, model.model
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    inner.rotary_emb = _Rotary(rope["rope_theta"], config.head_dim)
    for parent in (inner, *inner.layers):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, child.variance_epsilon, device="meta")
                norm.weight = child.weight
                setattr(parent, name, norm)
