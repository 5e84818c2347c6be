"""The helpers on a GPU: the same numbers as on the CPU, as the plain loop, and as weights changed by hand.

Skipped where there is no GPU; `make gpu` runs these and prints the tables of docs/speed.md. TEST_DEVICE=cpu tries the
tests themselves on a machine without one.
"""

import os

import pytest
import torch
from reference import far
from test_equality import TARGET, log_p, surgery
from test_generation import POSITIONS
from test_sweeps import every_head, loop, sites
from tiny import CONFIGS, MORE, here, tiny

from helpers import (
    Tokens,
    add_to_block,
    attention_patterns,
    change,
    edit,
    errors,
    mean_heads,
    noise_neurons,
    patch_block,
    read_site,
    replace_heads,
    scale_block,
    skip_block,
    sweep_block_pairs,
    sweep_blocks,
    sweep_edits,
    sweep_heads,
    text_damage,
    trace,
    zero_heads,
)

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU; TEST_DEVICE=cpu tries the tests"
)
ALL = [*CONFIGS, *(family for family in MORE if here(family))]
# In float64 the two devices differ in the last digits alone, except where transformers itself goes through float32.
FAR = {torch.float64: 1e-6, torch.float32: 1e-4}


def pair(family, dtype=torch.float64, **changes):
    """The same random model twice: on the CPU and on the device."""
    there = tiny(family, dtype, **changes)
    there.model.to(DEVICE)
    return tiny(family, dtype, **changes), there


def prompts(number=3, length=6):
    return torch.randint(2, 97, (number, length), generator=torch.Generator().manual_seed(1))


def same(found, expected, dtype=torch.float64):
    assert found.shape == expected.shape
    assert far(found.cpu(), expected.cpu()) < FAR[dtype]


# ---- readings


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", ALL)
def test_a_trace_is_the_cpus_and_lies_on_the_device(family, dtype):
    ours, there = pair(family, dtype)
    found, expected = trace(there, prompts()), trace(ours, prompts())
    for name in ("resid", "attn", "mlp", "final", "logits"):
        assert getattr(found, name).device.type == DEVICE
        same(getattr(found, name), getattr(expected, name), dtype)
    assert there.certificate is not None and there.device.type == DEVICE
    with torch.no_grad():
        plain = there.model(prompts().to(DEVICE), use_cache=False).logits
    assert torch.equal(found.logits, plain)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_readings_means_and_patterns(family):
    ours, there = pair(family)
    for site in ("heads", "keys", "neurons"):
        same(read_site(there, prompts(), site, 1), read_site(ours, prompts(), site, 1))
    same(mean_heads(there, prompts()), mean_heads(ours, prompts()))
    same(attention_patterns(there, prompts()), attention_patterns(ours, prompts()))


def test_gradients():
    ours, there = pair("llama")
    found, expected = (
        trace(lm, prompts(), gradients=lambda t: t.logits[:, -1, TARGET].sum()).gradients for lm in (there, ours)
    )
    for name in ("resid", "attn", "mlp", "heads"):
        same(getattr(found, name), getattr(expected, name))


# ---- edits


@pytest.mark.parametrize("family", CONFIGS)
def test_every_kind_of_edit_is_the_cpus(family):
    ours, there = pair(family)
    clean = trace(ours, prompts()).logits
    for copy in sites(ours):
        with edit(ours, *copy):
            expected = trace(ours, prompts()).logits
        with edit(there, *copy):  # what an edit was given lies on the CPU and is brought
            found = trace(there, prompts()).logits
        assert far(expected, clean) > 1e-6
        same(found, expected)
    same(trace(there, prompts()).logits, clean)


def test_noise_is_the_same_on_every_device():
    ours, there = pair("gpt2")
    found = []
    for lm in (ours, there):
        with edit(lm, noise_neurons(1, slice(0, None, 2), 0.5, 1.0, torch.Generator().manual_seed(4))):
            found.append(trace(lm, prompts()).logits)
    same(found[1], found[0])


def test_a_patch_from_the_cpu_and_one_from_the_device_are_one():
    ours, there = pair("llama")
    source = trace(ours, prompts(1)).resid[2]
    found = []
    for value in (source, source.to(DEVICE)):
        with edit(there, patch_block(1, value)):
            found.append(trace(there, prompts(1)).logits)
    assert torch.equal(*found)


def test_a_function_that_answers_from_another_device_is_refused():
    _, there = pair("gpt2")
    if DEVICE == "cpu":
        pytest.skip("needs two devices")
    elsewhere = change("block", 1, lambda value: value.cpu())
    with pytest.raises(errors.BadEdit, match="device cpu in place of cuda"), edit(there, elsewhere):
        there.logits(prompts())
    assert there.live_edits == [] and there.edit_handles == []


# ---- sweeps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sweep_equals_weights_changed_by_hand(family, dtype):
    _, there = pair(family, dtype)
    rows = prompts().to(DEVICE)
    expected = surgery(there, rows)
    assert expected.abs().min() > 1e-6
    found = sweep_heads(there, rows, TARGET)
    assert found.device.type == "cpu"
    atol = 1e-11 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "gemma3_text"])
def test_any_sweep_equals_the_loop(family, attention):
    ours, there = pair(family, attention=attention)
    rows = prompts()
    expected = loop(there, rows, sites(there)).cpu()
    torch.testing.assert_close(sweep_edits(there, rows, sites(there), TARGET), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(expected, loop(ours, rows, sites(ours)), rtol=0, atol=1e-6)
    for replacement in ("mean", "pooled mean", "resample"):
        both = [
            sweep_heads(
                lm, rows, TARGET, replacement=replacement, generator=torch.Generator().manual_seed(3), measure=None
            )
            for lm in (ours, there)
        ]
        torch.testing.assert_close(*both, rtol=0, atol=1e-6)
    damage = [sweep_block_pairs(lm, rows, measure=text_damage()) for lm in (ours, there)]
    torch.testing.assert_close(*damage, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_in_bfloat16_a_sweep_is_as_near_to_the_truth_as_the_loop(family):
    exact, there = tiny(family), tiny(family, torch.float32)
    rows = prompts(2)
    there.model.to(DEVICE, torch.bfloat16)
    exact.model.to(torch.bfloat16).to(torch.float64)  # the weights that both have
    truth = loop(exact, rows, every_head(exact)).flatten()
    by_one = (
        loop(there, rows, every_head(there), lambda logits: logits[-1].double().log_softmax(-1)[TARGET]).flatten().cpu()
    )
    swept = sweep_heads(there, rows, TARGET).double().flatten()
    assert (swept - truth).norm() < 2 * (by_one - truth).norm() + 1e-3
    assert torch.corrcoef(torch.stack([swept, truth]))[0, 1] > 0.8


def test_a_sweep_that_must_go_one_by_one():
    _, there = pair("llama")
    rows = prompts().to(DEVICE)
    handle = there.blocks[1].register_forward_hook(lambda module, args, output: output)
    torch.testing.assert_close(
        sweep_blocks(there, rows, TARGET).cpu(),
        loop(there, rows, [(skip_block(b),) for b in range(4)]).cpu(),
        rtol=0,
        atol=1e-11,
    )
    handle.remove()
    assert torch.isfinite(log_p(there.model, rows[0]))


# ---- generation


def continued(lm, one, **options):
    ids = prompts(2, 7).to(lm.device)
    with edit(lm, one):
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0, **options,
        )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_a_steered_continuation_is_the_same_with_a_cache_as_without(family, where, dtype):
    _, there = pair(family, torch.float32)
    there.model.to(dtype)
    vector = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 3
    one = add_to_block(1, vector, POSITIONS[where])
    tokens, logits = continued(there, one, use_cache=True)
    again, expected = continued(there, one, use_cache=False)
    if dtype != torch.bfloat16:  # in 8 bits two tokens of nearly the same logit may change places
        assert torch.equal(tokens, again)
        same(logits, expected, torch.float32)
    else:
        apart = (logits[0].float() - expected[0].float()).abs().max()
        assert apart < 0.03 * expected[0].float().abs().max()
    assert there.passes == {}


@pytest.mark.parametrize("cache", ["static", "offloaded"])
def test_other_caches(cache):
    if cache == "offloaded" and DEVICE == "cpu":
        pytest.skip("an offloaded cache needs a GPU")
    _, there = pair("llama")
    one = scale_block(1, 3, [1, 8])
    found = continued(there, one, cache_implementation=cache, disable_compile=True)[1]
    same(found, continued(there, one, use_cache=False)[1])


def test_padding_on_the_left_and_prompts_on_the_cpu():
    _, there = pair("llama", attention="sdpa")
    ids, mask = prompts(2, 7), torch.ones(2, 7, dtype=torch.bool)
    ids[0, :2], mask[0, :2] = 0, False
    alone = there.logits(ids[:1, 2:])[0, -1]
    both = there.logits(Tokens(ids.to(DEVICE), mask.to(DEVICE)))[0, -1]
    same(both, alone)
    values = torch.zeros(1, there.d_head)
    with edit(there, replace_heads(1, [0], values)):
        replaced = there.logits(ids[1:])
    with edit(there, zero_heads(1, [0])):
        assert torch.equal(replaced, there.logits(ids[1:]))
