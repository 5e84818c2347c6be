"""Sweeps of what could make a walk differ from the plain loop: each case is right, or refused with a sentence."""

import dataclasses

import pytest
import torch
from tiny import tiny
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from helpers import (
    Tokens,
    add_to_block,
    change,
    edit,
    errors,
    patch_block,
    replace_heads,
    scale_block,
    skip_block,
    trace,
    zero_heads,
)
from helpers.sweeps import mean_heads, sweep_blocks, sweep_edits, sweep_heads

TARGET = 7


def prompts(number=3, length=6, seed=1):
    return torch.randint(2, 97, (number, length), generator=torch.Generator().manual_seed(seed))


def log_p(model, ids):
    """log p(target) of one prompt by a plain pass of the transformers model."""
    with torch.no_grad():
        return model(ids[None], use_cache=False).logits[0, -1].double().log_softmax(-1)[TARGET]


def without_head(lm, ids, block, head):
    """log p(target) with one head's columns of the output projection set to 0: surgery on the weights, no hook."""
    weight = lm.part(block, lm.parts.heads_out).weight
    columns = slice(head * lm.d_head, (head + 1) * lm.d_head)
    cut = weight[columns] if lm.family == "gpt2" else weight[:, columns]  # GPT-2 keeps (in, out)
    kept = cut.detach().clone()
    with torch.no_grad():
        cut.zero_()
        found = log_p(lm.model, ids)
        cut.copy_(kept)
    return found


def surgery(lm, rows):
    """(n_prompts, n_blocks, n_heads): every head's effect, one plain pass at a time."""
    heads = [(block, head) for block in range(lm.n_blocks) for head in range(lm.n_heads)]
    found = [[without_head(lm, ids, *site) - log_p(lm.model, ids) for site in heads] for ids in rows]
    return torch.tensor(found).view(len(rows), lm.n_blocks, lm.n_heads)


def mixes(h):
    return h.mean(0, keepdim=True).expand_as(h)


def only_the_first(module, args, output):
    """A hook as people write it who run one prompt at a time."""
    state = output[0] if isinstance(output, tuple) else output
    new = state.clone()
    new[0] = new[0] * 0.7 + 0.1
    return (new, *output[1:]) if isinstance(output, tuple) else new


# ---- functions and hooks that look at several rows


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_change_that_mixes_rows_gets_one_prompt_at_a_time(family):
    lm, rows = tiny(family), prompts()
    found = sweep_edits(lm, rows, [change("heads", 1, mixes), change("block", 2, mixes)], TARGET)
    assert found.abs().max() < 1e-12  # the mean over one row is that row


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_live_edit_that_mixes_rows_does_not_see_the_sweeps_copies(family):
    lm, rows = tiny(family), prompts()
    plain = sweep_heads(lm, rows, TARGET)
    with edit(lm, change("heads", 1, mixes), change("block", 3, mixes)):
        found = sweep_heads(lm, rows, TARGET)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain, surgery(lm, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("where", ["block", "attention", "embedding", "norm", "head"])
def test_a_hook_that_touches_one_row(family, where):
    lm, rows = tiny(family), prompts()
    module = {
        "block": lm.blocks[1], "attention": lm.attention(2), "embedding": lm.model.get_input_embeddings(),
        "norm": lm.final_norm, "head": lm.unembed,
    }[where]  # fmt: skip
    plain = surgery(lm, rows)
    handle = module.register_forward_hook(only_the_first)
    expected = surgery(lm, rows)
    assert (expected - plain).abs().max() > 1e-4
    torch.testing.assert_close(sweep_heads(lm, rows, TARGET), expected, rtol=0, atol=1e-12)
    handle.remove()


def test_a_forward_that_one_module_got():
    lm, rows = tiny("gpt2"), prompts()
    old = lm.mlp(2).forward
    lm.mlp(2).forward = lambda x: torch.cat([old(x[:1]) * 0.5, old(x[1:])])
    torch.testing.assert_close(sweep_heads(lm, rows, TARGET), surgery(lm, rows), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_eight_bit_weights_whose_scale_comes_from_the_whole_batch():
    lm, rows = tiny("llama", torch.float32), prompts()
    torch.ao.quantization.quantize_dynamic(lm.model.model.layers[2].mlp, {nn.Linear}, inplace=True)
    lm.model.eval()  # new modules begin in train mode
    expected = []
    for ids in rows:
        with torch.no_grad():
            before = lm.model(ids[None], use_cache=False).logits[0, -1].log_softmax(-1)[TARGET]
        for block in range(4):
            for head in range(4):
                columns = slice(head * lm.d_head, (head + 1) * lm.d_head)

                def cut(module, args, columns=columns):
                    value = args[0].clone()
                    value[..., columns] = 0
                    return (value,)

                handle = lm.part(block, "self_attn.o_proj").register_forward_pre_hook(cut)
                expected.append(log_p(lm.model, ids) - before)
                handle.remove()
    torch.testing.assert_close(
        sweep_heads(lm, rows, TARGET).double(), torch.tensor(expected).view(3, 4, 4).double(), rtol=0, atol=1e-5
    )


# ---- models that do more than their blocks


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_forward_that_changes_the_logits_is_refused(family, number):
    lm = tiny(family)
    old = lm.model.forward

    def halved(*args, **named):
        output = old(*args, **named)
        output.logits = output.logits * 0.5
        return output

    lm.model.forward = halved
    with pytest.raises(errors.BadValue, match="logits are not its final norm"):
        sweep_heads(lm, prompts(number), TARGET)
    lm.model.forward = old
    assert sweep_heads(lm, prompts(number), TARGET).isfinite().all()


def test_an_inner_forward_that_changes_the_last_state_is_refused():
    lm = tiny("llama")
    old = lm.model.model.forward

    def shifted(*args, **named):
        output = old(*args, **named)
        output.last_hidden_state = output.last_hidden_state + 1
        return output

    lm.model.model.forward = shifted
    with pytest.raises(errors.BadValue, match="logits are not its final norm"):
        sweep_blocks(lm, prompts(), TARGET)


def test_an_inner_forward_that_works_between_the_blocks_is_refused():
    lm = tiny("gpt2")
    transformer = lm.model.transformer

    def mine(input_ids, **_):
        state = transformer.wte(input_ids) + transformer.wpe(torch.arange(input_ids.shape[1]))
        for number, block in enumerate(transformer.h):
            out = block(state)
            state = (out[0] if isinstance(out, tuple) else out) * (0.5 if number == 1 else 1.0)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=transformer.ln_f(state))

    transformer.forward = mine
    with pytest.raises(errors.BadValue, match="what enters block 2 is not what block 1 returned"):
        sweep_heads(lm, prompts(), TARGET)


# ---- weights elsewhere


def test_weights_on_the_meta_device_without_a_way_back_are_refused():
    lm = tiny("llama", torch.float32)
    lm.model.model.layers[2].mlp.up_proj.to("meta")
    with pytest.raises(errors.BadValue, match=r"layers\.2\.mlp\.up_proj\.weight is on the meta device"):
        sweep_heads(lm, prompts(), TARGET)


@pytest.mark.parametrize("to", ["cpu", "disk"])
def test_blocks_that_accelerate_offloads_give_the_same_numbers(to, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    lm, rows = tiny("llama", torch.float32), prompts()
    expected = surgery(lm, rows)
    for number, block in enumerate(lm.blocks[1:]):
        if to == "cpu":
            accelerate.cpu_offload(block, execution_device="cpu")
        else:
            accelerate.disk_offload(block, str(tmp_path / str(number)), execution_device="cpu")
    assert lm.part(2, "mlp.up_proj").weight.is_meta
    torch.testing.assert_close(sweep_heads(lm, rows, TARGET).double(), expected, rtol=0, atol=1e-5)
    assert lm.part(2, "mlp.up_proj").weight.is_meta


# ---- caches


@pytest.mark.parametrize("name", ["past_key_values", "cache", "whatever_comes_next"])
def test_a_block_is_never_called_with_a_cache_again(name):
    from transformers import DynamicCache

    from helpers.recording import _for_any_rows

    kept = _for_any_rows({name: DynamicCache()}[name], 1), _for_any_rows((DynamicCache(), torch.ones(1, 3)), 1)
    assert kept[0] is None and kept[1][0] is None and torch.equal(kept[1][1], torch.ones(1, 3))


def test_a_model_that_caches_against_our_asking():
    """Restarts of a walk must not append to the cache of the clean pass."""
    lm, rows = tiny("llama"), prompts()
    expected, old = surgery(lm, rows), lm.model.model.forward
    lm.model.model.forward = lambda *args, **named: old(*args, **{**named, "use_cache": True})
    torch.testing.assert_close(sweep_heads(lm, rows, TARGET), expected, rtol=0, atol=1e-12)


# ---- a value for each prompt


@pytest.mark.parametrize("number", [2, 40])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_patch_per_prompt(family, number):
    lm, rows = tiny(family), prompts(number)
    draw = torch.Generator().manual_seed(3)
    patch = torch.randn(number, 6, lm.d_model, generator=draw, dtype=torch.float64)
    vectors = torch.randn(number, 1, lm.d_model, generator=draw, dtype=torch.float64)
    heads = torch.randn(number, 6, 1, lm.d_head, generator=draw, dtype=torch.float64)
    patched, added = patch_block(1, patch, positions=-1), add_to_block(2, vectors)
    copies = [patched, added, (patched, added), replace_heads(3, 2, heads), scale_block(0, 0.5)]
    found = sweep_edits(lm, rows, copies, TARGET, chunk=50)
    assert found.shape == (number, 5)
    for i in (0, number // 2, number - 1):

        def patch_hook(module, args, output, i=i):
            state = (output[0] if isinstance(output, tuple) else output).clone()
            state[:, -1] = patch[i, -1]
            return (state, *output[1:]) if isinstance(output, tuple) else state

        def add_hook(module, args, output, i=i):
            state = (output[0] if isinstance(output, tuple) else output) + vectors[i]
            return (state, *output[1:]) if isinstance(output, tuple) else state

        def head_hook(module, args, i=i):
            value = args[0].unflatten(-1, (lm.n_heads, lm.d_head)).clone()
            value[:, :, 2] = heads[i, :, 0]
            return (value.flatten(-2),)

        before = log_p(lm.model, rows[i])
        for column, hooked in enumerate(
            [[(1, patch_hook)], [(2, add_hook)], [(1, patch_hook), (2, add_hook)], [(3, head_hook)]]
        ):
            handles = [
                lm.part(block, lm.parts.heads_out).register_forward_pre_hook(hook)
                if hook is head_hook
                else lm.blocks[block].register_forward_hook(hook)
                for block, hook in hooked
            ]
            assert found[i, column].item() == pytest.approx((log_p(lm.model, rows[i]) - before).item(), abs=1e-12)
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize(
    "replaced", [{"block": 1}, {"positions": (0, -1)}, {"block": 3, "name": "mine"}, {"change": lambda a, _: -a}]
)
def test_an_edit_of_which_something_was_replaced(replaced):
    lm, rows = tiny("gpt2"), torch.arange(2, 26).reshape(4, 6)
    values = torch.randn(4, 6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = dataclasses.replace(patch_block(2, values), **replaced)
    with edit(lm, one):
        expected = lm.logits(rows)[:, -1].log_softmax(-1)[:, TARGET]
    expected = expected - lm.logits(rows)[:, -1].log_softmax(-1)[:, TARGET]
    torch.testing.assert_close(sweep_edits(lm, rows, [one], TARGET)[:, 0], expected, rtol=0, atol=1e-12)
    again = dataclasses.replace(patch_block(2, values), **replaced)
    assert one != patch_block(2, values) and (one == again) == ("change" not in replaced)


def test_positions_and_heads_that_can_be_read_only_once_are_read_once():
    lm, rows = tiny("gpt2"), torch.arange(2, 14).reshape(2, 6)
    draw = torch.Generator().manual_seed(0)
    stream, heads = (torch.randn(2, 6, *width, dtype=torch.float64, generator=draw) for width in ((24,), (2, 6)))
    once = [
        patch_block(2, stream, (place for place in [1, 3])),
        add_to_block(1, stream, iter([-1])),
        replace_heads(1, iter([0, 2]), heads, map(int, "25")),
    ]
    found = sweep_edits(lm, rows, once, TARGET)
    before = lm.logits(rows)[:, -1].log_softmax(-1)[:, TARGET]
    for column, one in enumerate(
        [patch_block(2, stream, [1, 3]), add_to_block(1, stream, -1), replace_heads(1, [0, 2], heads, [2, 5])]
    ):
        with edit(lm, one):
            after = lm.logits(rows)[:, -1].log_softmax(-1)[:, TARGET]
        torch.testing.assert_close(found[:, column], after - before, rtol=0, atol=1e-12)


def test_a_patch_for_another_number_of_prompts_gets_a_sentence():
    lm = tiny("gpt2")
    with pytest.raises(errors.BadValue, match="values for 5 prompts, and 3 are swept"):
        sweep_edits(lm, prompts(3), [skip_block(0), patch_block(1, torch.zeros(5, 6, 24))], TARGET)


def test_prompts_on_both_sides_of_longropes_limit_are_never_in_one_batch():
    """Phi-3's long contexts: one longer prompt would give all of a batch other rotary positions."""
    factors = {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [4.0, 5.0, 6.0]}
    lm = tiny("phi3", max_position_embeddings=64, original_max_position_embeddings=16, rope_scaling=factors)
    rows = [torch.arange(2, 2 + length) for length in (8, 16, 17, 40)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    all_of_them = Tokens(ids, torch.arange(40) < torch.tensor([len(row) for row in rows])[:, None])
    for read in (trace, lambda lm, tokens: lm.logits(tokens)):
        with pytest.raises(errors.BadValue, match=r"8 to 40 tokens, .* more than 16 .* up to 16 tokens apart"):
            read(lm, all_of_them)
    short = Tokens(ids[:2, :16], all_of_them.mask[:2, :16])
    assert (trace(lm, short).resid[:, 0, :8] - trace(lm, rows[0]).resid[:, 0]).abs().max() < 1e-6
    alone = torch.stack([trace(lm, row).heads[:, 0, -1] for row in rows]).mean(0)
    torch.testing.assert_close(mean_heads(lm, all_of_them)[:, -1], alone, rtol=0, atol=1e-6)
    expected = [without_head(lm, row, 1, 2) - log_p(lm.model, row) for row in rows]
    found = sweep_heads(lm, all_of_them, TARGET)[:, 1, 2]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


def test_blocks_may_come_from_numpy():
    np = pytest.importorskip("numpy")
    lm, (row,) = tiny("gpt2"), prompts(1)
    expected = sweep_heads(lm, row, TARGET)[[3, 1]]
    for blocks in (np.array([3, 1]), torch.tensor([3, 1])):  # fewer copies at once: other last bits on some processors
        torch.testing.assert_close(sweep_heads(lm, row, TARGET, blocks=blocks), expected, rtol=0, atol=1e-12)
    assert zero_heads(1, [0]).prompts is None
