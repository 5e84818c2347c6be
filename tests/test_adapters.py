"""LoRA adapters: the numbers are those of the model into whose weights the adapters are added."""

import copy

import pytest
import torch
from reference import far
from test_trace import FIELDS, by_hand
from tiny import tiny
from torch import nn

from helpers import add_to_block, change, edit, scale_mlp, sweep_heads, trace, wrap, zero_heads, zero_keys
from helpers.errors import UnsupportedFamily

IDS = torch.arange(2, 24).reshape(2, 11)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


class Lora(nn.Module):
    """A low-rank adapter as PEFT builds it: the old layer inside, and no Linear itself."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base, base.in_features, base.out_features
        shapes, g = ((2, base.in_features), (base.out_features, 2)), torch.Generator().manual_seed(0)
        drawn = (0.3 * torch.randn(shape, dtype=base.weight.dtype, generator=g) for shape in shapes)
        self.lora_A, self.lora_B = (nn.Parameter(one) for one in drawn)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted():
    """A model with adapters, and the same with the adapters added to its weights."""
    merged = tiny("llama")
    model = copy.deepcopy(merged.model)
    with torch.no_grad():
        for plain, block in zip(merged.blocks, model.model.layers, strict=True):
            for name in TARGETS:
                owner = "self_attn" if name in TARGETS[:4] else "mlp"
                adapter = Lora(getattr(getattr(block, owner), name))
                setattr(getattr(block, owner), name, adapter)
                getattr(getattr(plain, owner), name).weight += adapter.lora_B @ adapter.lora_A
    return model, merged


def emptied(*columns):
    """The value (batch, pos, heads, d_head) with zeros at some heads."""

    def by_hand(value):
        new = value.clone()
        new[:, :, list(columns)] = 0
        return new

    return by_hand


def agree(lm, merged):
    tokens = merged.encode(IDS)
    for one, site, block, hand in (
        (change("block", 0, lambda v: v), "block", 0, lambda v: v),
        (zero_heads(1, [0, 2]), "heads", 1, emptied(0, 2)),
        (zero_keys(2, 0), "keys", 2, emptied(0)),
        (scale_mlp(1, -2), "mlp", 1, lambda v: v * -2),
        (change("neurons", 3, torch.cos), "neurons", 3, torch.cos),
        (change("preactivation", 0, torch.sin), "preactivation", 0, torch.sin),
    ):
        edits = [one]
        at = lambda s, b, v, _, where=(site, block), hand=hand: hand(v) if (s, b) == where else v  # noqa: E731
        with edit(lm, *edits):
            found = trace(lm, IDS)
        expected = by_hand(merged, tokens, at=at)
        for field in FIELDS:
            assert far(getattr(found, field), getattr(expected, field)) < 2e-6, (edits, field)
    assert (sweep_heads(lm, IDS[0], 5) - sweep_heads(merged, IDS[0], 5)).abs().max() < 1e-5


def test_adapters_on_every_projection():
    model, merged = adapted()
    agree(wrap(model), merged)


def test_a_peft_model_is_wrapped_as_it_is():
    peft = pytest.importorskip("peft", reason="needs peft")
    merged = tiny("llama")
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(merged.model), config).double()
    lm = wrap(model)
    assert lm.model is model
    agree(lm, wrap(copy.deepcopy(model).merge_and_unload()))
    with model.disable_adapter():
        assert far(trace(lm, IDS).resid, by_hand(merged, merged.encode(IDS)).resid) < 2e-6
    learned = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    with edit(lm, add_to_block(1, learned)):
        lm.model(**lm.inputs(lm.encode(IDS))).logits.sum().backward()
    assert learned.grad.any()


def test_peft_that_lengthens_the_prompt_is_refused():
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny("llama").model, config)
    with pytest.raises(UnsupportedFamily, match=r"in front of the prompt.*get_base_model\(\)"):
        wrap(model)
