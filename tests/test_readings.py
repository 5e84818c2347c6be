"""Readings of a block's inside: they see edits, agree with PyTorch's own numbers, and say what is wrong."""

import pytest
import torch
from tiny import CONFIGS, here, tiny

from helpers import FAMILIES, Tokens, attention_patterns, change, edit, read_site, scale_block, spread, trace, zero_keys
from helpers.errors import BadEdit, BadValue, BlockOutOfRange

IDS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("family", CONFIGS)
def test_patterns_are_causal_and_sum_to_one(family):
    lm = tiny(family)
    patterns = attention_patterns(lm, IDS)
    assert patterns.shape == (lm.n_blocks, 2, lm.n_heads, 6, 6)
    assert torch.allclose(patterns.sum(-1), torch.ones_like(patterns.sum(-1)))
    assert (patterns.triu(1) == 0).all()


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.sinks and here(name)])
def test_what_a_row_lacks_is_what_the_sink_took(family):
    """With zeroed keys each token has the score 0, so n tokens have n of the n + exp(sink) shares."""
    lm = tiny(family)
    assert (attention_patterns(lm, IDS).sum(-1) < 1).all()
    with edit(lm, *(zero_keys(block, range(lm.n_key_heads)) for block in range(lm.n_blocks))):
        found = attention_patterns(lm, IDS).sum(-1)
    seen = torch.arange(1.0, 7, dtype=torch.float64)
    for block in range(lm.n_blocks):
        sink = getattr(lm.attention(block), lm.parts.sinks).detach().exp()[:, None]
        expected = seen / (seen + sink)
        assert torch.allclose(found[block], expected.expand(2, -1, -1), atol=1e-6)


def test_patterns_see_an_edit_and_a_head_without_keys_is_even():
    lm = tiny("gpt2")
    clean = attention_patterns(lm, IDS)
    with edit(lm, zero_keys(1, [2])):
        edited = attention_patterns(lm, IDS)
    even = torch.ones(6, 6, dtype=torch.float64).tril() / torch.arange(1, 7).view(-1, 1)
    assert torch.allclose(edited[1, :, 2], even.expand(2, 6, 6), atol=1e-12)
    assert not torch.allclose(clean[1, :, 2], even.expand(2, 6, 6), atol=1e-3)
    assert torch.equal(clean[1, :, 0], edited[1, :, 0])


def test_a_head_without_keys_says_the_average_of_its_values():
    lm = tiny("gpt2")
    fused = []
    handle = lm.attention(1).c_attn.register_forward_hook(lambda module, args, output: fused.append(output.clone()))
    with edit(lm, zero_keys(1, [2])):
        heads = trace(lm, IDS).heads[1]
    handle.remove()
    values = fused[0][..., 2 * lm.d_model :].unflatten(-1, (lm.n_heads, lm.d_head))[..., 2, :]
    seen = torch.arange(1, 7, dtype=torch.float64).view(1, -1, 1)
    assert torch.allclose(heads[..., 2, :], values.cumsum(dim=1) / seen)


def test_fused_attention_is_refused_with_a_sentence():
    with pytest.raises(BadValue, match="eager"):
        attention_patterns(tiny("gpt2", attention="sdpa"), IDS)


def test_read_site_reads_what_the_pass_uses():
    lm = tiny("gpt2")
    assert torch.equal(read_site(lm, IDS, "block", 2), trace(lm, IDS).resid[3])
    with edit(lm, scale_block(2, 0.5)):
        assert torch.equal(read_site(lm, IDS, "block", 2), trace(lm, IDS).resid[3])
    with edit(lm, change("neurons", 1, torch.zeros_like)):
        assert (read_site(lm, IDS, "neurons", 1) == 0).all()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    read_site(lm, IDS, "keys", 0)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def test_read_site_explains_mistakes():
    lm = tiny("gpt2")
    with pytest.raises(BadEdit, match="neurons"):
        read_site(lm, IDS, "neuron", 1)
    with pytest.raises(BlockOutOfRange):
        read_site(lm, IDS, "neurons", 4)


def test_spread_is_one_number_per_point():
    resid = torch.randn(5, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resid[:, :, 0] *= 100
    assert torch.allclose(spread(resid)[3], resid[3].std())
    assert torch.allclose(spread(resid, include_first=False)[3], resid[3, :, 1:].std())
    with pytest.raises(BadValue, match="one token"):
        spread(resid[:, :, :1], include_first=False)
    with pytest.raises(BadValue, match="shape"):
        spread(resid[0])
    with pytest.raises(BadValue, match="the mask leaves padding only"):
        spread(resid, mask=torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(BadValue, match="fewer than two numbers"):
        spread(resid[:, :1, :1, :1])


def test_the_spread_of_padded_prompts_leaves_padding_out():
    lm = tiny("gpt2")
    ids, mask = torch.arange(2, 12).reshape(2, 5), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    resid = trace(lm, Tokens(ids, mask)).resid
    real = torch.cat([resid[:, 0], resid[:, 1, :3]], 1)
    assert torch.allclose(spread(resid, mask=mask), real.flatten(1).std(1))
    later = torch.cat([resid[:, 0, 1:], resid[:, 1, 1:3]], 1)
    assert torch.allclose(spread(resid, include_first=False, mask=mask), later.flatten(1).std(1))
    assert not torch.allclose(spread(resid), spread(resid, mask=mask))
    with pytest.raises(BadValue, match="the mask must be bool of shape"):
        spread(resid, mask=mask.float())
