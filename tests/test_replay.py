"""A restarted pass against a whole one: plain forward hooks on the transformers model, never the helpers' own passes."""

import copy
import functools
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from tiny import CONFIGS, tiny
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers import (
    Tokens,
    add_to_block,
    change,
    edit,
    exact,
    noise_neurons,
    scale_block,
    skip_attention,
    skip_block,
    skip_mlp,
    trace,
    wrap,
    zero_heads,
    zero_keys,
)
from helpers.errors import BadEdit, BadPrompt, BlockOutOfRange
from helpers.replay import Replay

IDS = torch.tensor([[5, 3, 8, 2, 11, 40, 7]])


def whole_pass(lm, ids=IDS, scale=None, mask=None):
    """States after each block and the logits, by hooks that PyTorch offers; scale: {block: factor} on a block's output."""
    states, handles = [], []

    def hook(block):
        def see(module, args, output):
            state = output[0] if isinstance(output, tuple) else output
            state = state * (scale or {}).get(block, 1)
            states.append(state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return see

    for block, module in enumerate(lm.model.get_submodule(lm.parts.blocks)):
        handles.append(module.register_forward_hook(hook(block)))
    try:
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states), logits


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("blocks", [(0,), (2,), (3,), (1, 3)])
def test_a_restart_equals_the_whole_edited_pass(family, blocks):
    lm = tiny(family)
    replay = Replay(lm)
    clean, edited = replay(IDS, *(scale_block(block, 0.5) for block in blocks))
    expected, logits = whole_pass(lm, scale=dict.fromkeys(blocks, 0.5))
    assert torch.allclose(edited.resid[1:], expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.last_logits, logits[:, -1], rtol=1e-11, atol=1e-11)
    unedited, clean_logits = whole_pass(lm)
    assert torch.allclose(clean.resid[1:], unedited, rtol=1e-12, atol=1e-12)
    assert torch.allclose(clean.last_logits, clean_logits[:, -1], rtol=1e-11, atol=1e-11)
    assert (expected - unedited)[-1].abs().max() > 1e-2  # there is something to see


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "made",
    [
        lambda: zero_heads(1, [2]),
        lambda: zero_keys(2, [1]),  # with a filled cache attention would see the old keys
        lambda: skip_block(0),
        lambda: skip_attention(3),
        lambda: skip_mlp(1),
        lambda: add_to_block(2, torch.ones(24), positions=[0, -1]),
        lambda: noise_neurons(1, slice(0, None, 2), 1.0, 1.0, torch.Generator().manual_seed(0)),
        lambda: change("heads", 2, torch.Tensor.neg_),
    ],
)
def test_every_kind_of_edit_comes_out_as_in_a_whole_pass(family, made):
    lm = tiny(family)
    _, edited = Replay(lm)(IDS, made())
    with edit(lm, made()):
        expected, logits = whole_pass(lm)
    assert torch.allclose(edited.resid[1:], expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.last_logits, logits[:, -1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("family", "attention"), [*((one, "eager") for one in CONFIGS), ("llama", "sdpa")])
def test_only_the_blocks_from_the_edit_on_run_again(family, attention):
    lm = tiny(family, attention=attention)
    calls = []
    for number, block in enumerate(lm.blocks):
        see = lambda module, args, number=number: calls.append(number)  # noqa: E731
        see.only_looks = True  # else a hook of the user's makes every pass a whole one
        block.register_forward_pre_hook(see)
    replay = Replay(lm)
    replay(IDS, scale_block(2, 0.5))
    calls.clear()
    replay(IDS, scale_block(2, 0.7))
    assert calls == [2, 3] and replay.version == 1
    replay(IDS)
    assert calls == [2, 3]
    replay(IDS[:, :4], scale_block(3, 0.7))  # another prompt
    assert calls == [2, 3, 0, 1, 2, 3, 3]
    with torch.inference_mode():
        replay(IDS[:, :4], scale_block(3, 0.6))
    assert calls == [2, 3, 0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_of_unequal_length_read_out_at_their_own_ends(family):
    lm = tiny(family)
    ids = torch.tensor([[5, 3, 8, 2], [7, 9, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    _, edited = Replay(lm)(Tokens(ids, mask), scale_block(1, 0.5))
    for row, length in ((0, 4), (1, 2)):
        _, logits = whole_pass(lm, ids[row : row + 1, :length], {1: 0.5})
        assert torch.allclose(edited.last_logits[row], logits[0, -1], rtol=1e-10, atol=1e-10)


def test_a_hook_of_the_users_is_seen_in_both_passes_and_not_kept():
    lm = tiny("gpt2")
    replay = Replay(lm)
    replay(IDS, scale_block(2, 0.5))
    handle = lm.blocks[0].register_forward_hook(
        lambda m, a, out: (out[0] * 3, *out[1:]) if isinstance(out, tuple) else out * 3
    )
    clean, edited = replay(IDS, scale_block(2, 0.5))
    handle.remove()
    for run, scale in ((clean, {0: 3}), (edited, {0: 3, 2: 0.5})):
        assert torch.allclose(run.resid[1:], whole_pass(lm, scale=scale)[0], rtol=1e-12, atol=1e-12)
    clean, _ = replay(IDS)
    assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)


def test_a_live_edit_is_seen_in_both_passes():
    lm = tiny("llama")
    replay = Replay(lm)
    replay(IDS)
    with edit(lm, scale_block(0, 2.0)):
        clean, edited = replay(IDS, scale_block(2, 0.5))
    assert torch.allclose(clean.resid[1:], whole_pass(lm, scale={0: 2.0})[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={0: 2.0, 2: 0.5})[0], rtol=1e-12, atol=1e-12)


def fused_step(lm):
    weights = [weight for weight in lm.model.parameters() if weight.ndim > 1]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)  # counts no version
    optimizer.step()
    optimizer.zero_grad()


def shuffle(weight):
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(1))
    weight.data[:] = weight.data.flatten()[order].view_as(weight)


def in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


CHANGES = {
    "in place": lambda lm: in_place(lm.blocks[0].mlp.down_proj.weight),
    "assigned": lambda lm: setattr(
        lm.blocks[0].mlp.down_proj, "weight", torch.nn.Parameter(lm.blocks[0].mlp.down_proj.weight.detach() * 2)
    ),
    "module swapped": lambda lm: setattr(lm.blocks[0].mlp, "down_proj", torch.nn.Linear(40, 24, bias=False).double()),
    "forward replaced": lambda lm: setattr(lm.blocks[0].mlp, "forward", torch.zeros_like),
    "forward of the class": lambda lm: None,  # see below
    "fused step": fused_step,
    "one number, through .data": lambda lm: lm.blocks[0].mlp.down_proj.weight.data[3, 5].add_(9),
    "a norm's number, through .data": lambda lm: lm.blocks[0].input_layernorm.weight.data[3].mul_(3),
    "shuffled through .data": lambda lm: shuffle(lm.blocks[0].mlp.down_proj.weight),
    "given through .data": lambda lm: setattr(
        lm.blocks[0].mlp.down_proj.weight, "data", lm.blocks[0].mlp.down_proj.weight.data.neg()
    ),
    "a scaling": lambda lm: setattr(lm.blocks[0].self_attn, "scaling", 2.0),
    "an epsilon": lambda lm: setattr(lm.blocks[0].input_layernorm, "variance_epsilon", 0.5),
    "an activation": lambda lm: setattr(lm.blocks[0].mlp, "act_fn", torch.nn.Tanh().eval()),
    "the config": lambda lm: setattr(lm.model.config, "_attn_implementation", "sdpa"),
    "a buffer": lambda lm: lm.model.model.rotary_emb.inv_freq.data.mul_(0.3),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_model_makes_a_new_clean_pass(how, monkeypatch):
    lm = tiny("llama")
    replay = Replay(lm)
    before = replay(IDS)[0]
    version = replay.version
    if how == "forward of the class":
        kind = type(lm.blocks[0].mlp)
        plain = kind.forward
        monkeypatch.setattr(kind, "forward", functools.wraps(plain)(lambda self, x: plain(self, x) * 2))
    CHANGES[how](lm)
    gc.collect()
    clean, edited = replay(IDS, scale_block(2, 0.5))
    assert how == "the config" or not torch.allclose(clean.resid, before.resid)
    assert replay.version == version + 1
    assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)


def columns_swapped(weight):
    weight.data[:, [3, 5]] = weight.data[:, [5, 3]]


def columns_negated(weight):
    weight.data[:, [7, 11]] *= -1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.neg_(),
        lambda w: w.data.mul_(2),
        lambda w: w.data.mul_(0.5),
        lambda w: w.data[16:32].neg_(),
        columns_negated,
        columns_swapped,
        lambda w: w.data.view(torch.uint8)[5, 9].bitwise_xor_(1),
    ],
)
def test_numbers_that_are_written_past_pytorchs_count_are_seen(write, dtype):
    """Of 64 x 64 numbers: minus and twice of them add a multiple of 2 ** 64 to the sum of their bits, in float64."""
    lm = tiny("llama", dtype, hidden_size=64, intermediate_size=64)
    replay, weight = Replay(lm), lm.blocks[1].mlp.down_proj.weight
    replay(IDS)
    kept, version = weight.detach().clone(), weight._version
    write(weight)
    assert not weight.equal(kept) and weight._version == version
    clean, edited = replay(IDS, scale_block(2, 0.5))
    torch.testing.assert_close(clean.resid[1:], whole_pass(lm)[0])
    torch.testing.assert_close(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0])
    assert replay.version == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_rows_that_change_places_are_seen_in_a_model_of_many(dtype):
    """Of 5,000 rows and more: a float32 sum of all of them is too coarse for it."""
    lm = tiny("llama", dtype, hidden_size=64, vocab_size=5000)
    replay, weight = Replay(lm), lm.blocks[1].mlp.up_proj.weight
    replay(IDS)
    weight.data[[3, 4]] = weight.data[[4, 3]]
    torch.testing.assert_close(replay(IDS)[0].resid[1:], whole_pass(lm)[0])
    assert replay.version == 2


def test_a_mask_that_is_moved_within_its_only_row_is_seen():
    lm = tiny("gpt_neo")
    replay, mask = Replay(lm), lm.blocks[1].attn.attention.bias
    before, _ = replay(IDS)
    mask.data.copy_(mask.data.roll(8, -1))
    clean, _ = replay(IDS)
    torch.testing.assert_close(clean.resid[1:], whole_pass(lm)[0])
    assert not torch.allclose(clean.resid, before.resid)


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "mlp.up_proj", "input_layernorm"])
def test_what_is_shared_with_another_block_than_before_is_seen(name):
    """All modules and weights are the same two times: only who has them differs."""
    lm, (path, _, last) = tiny("llama"), name.rpartition(".")

    def share(block):
        setattr(lm.blocks[2].get_submodule(path), last, getattr(lm.blocks[block].get_submodule(path), last))

    share(0)
    replay = Replay(lm)
    before, _ = replay(IDS)
    share(1)
    clean, edited = replay(IDS, scale_block(3, 0.5))
    torch.testing.assert_close(clean.resid[1:], whole_pass(lm)[0])
    torch.testing.assert_close(edited.resid[1:], whole_pass(lm, scale={3: 0.5})[0])
    assert not torch.allclose(clean.resid, before.resid) and replay.version == 2


def test_a_norm_turned_round_and_a_matrix_without_numbers():
    lm = tiny("llama", hidden_size=64)
    lm.blocks[0].mlp.register_buffer("nothing", torch.empty(0, 3))
    replay = Replay(lm)
    replay(IDS)
    lm.blocks[1].input_layernorm.weight.data.neg_()
    torch.testing.assert_close(replay(IDS)[0].resid[1:], whole_pass(lm)[0])
    replay(IDS)
    assert replay.version == 2


@pytest.mark.parametrize("place", ["a kind of attention", "one block's", "a file", "a class", "a module"])
def test_a_function_of_ones_own_may_go_by_anything_so_nothing_is_kept(place, monkeypatch):
    """It stays the same function, while the number that it goes by is another one at the second pass."""
    strength, of_llama = [1.0], place in ("a kind of attention", "one block's", "a file")
    lm = tiny("llama" if of_llama else "gpt_neo")
    attention = lm.blocks[1].self_attn if of_llama else lm.blocks[1].attn.attention
    library = sys.modules[type(attention).__module__]
    plain = library.eager_attention_forward if of_llama else type(attention)._attn

    @functools.wraps(plain)  # so that it has the library's name
    def mine(*args, **named):
        value, weights = plain(*args, **named)
        return value * strength[0], weights

    if place == "a kind of attention":
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "mine", mine)
        lm.model.set_attn_implementation("mine")
    elif place == "one block's":
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "mine", mine)
        attention.config = copy.copy(lm.config)
        attention.config._attn_implementation = "mine"
    elif place == "a file":
        monkeypatch.setattr(library, "eager_attention_forward", mine)
    elif place == "a class":
        monkeypatch.setattr(type(attention), "_attn", mine)
    else:
        attention._attn = functools.partial(mine, attention)
    replay = Replay(lm)
    before, _ = replay(IDS)
    strength[0] = 2.0
    clean, edited = replay(IDS, scale_block(2, 0.5))
    assert not torch.allclose(clean.resid, before.resid)
    torch.testing.assert_close(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)


def test_a_setting_of_the_process_makes_a_new_clean_pass():
    lm = tiny("llama", torch.float32, attention="sdpa")
    replay = Replay(lm)
    plain, _ = replay(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        clean, edited = replay(IDS, scale_block(2, 0.5))
        assert torch.equal(clean.resid[1:], whole_pass(lm)[0])
        assert torch.equal(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0])
    assert not torch.equal(clean.resid, plain.resid)
    assert torch.equal(replay(IDS)[0].resid, plain.resid)
    version = replay.version
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        replay(IDS)
        assert replay.version == version + 1


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this PyTorch has the older setting alone")
def test_the_newer_settings_of_float32_products_make_a_new_clean_pass():
    lm, products = tiny("llama", torch.float32), torch.backends.mkldnn.matmul
    replay, before = Replay(lm), products.fp32_precision
    replay(IDS)
    products.fp32_precision = "bf16"
    try:
        with pytest.raises(RuntimeError, match="legacy"):
            torch.get_float32_matmul_precision()
        clean, edited = replay(IDS, scale_block(2, 0.5))
        assert replay.version == 2
        assert torch.equal(clean.resid[1:], whole_pass(lm)[0])
        assert torch.equal(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0])
    finally:
        products.fp32_precision = before
    torch.get_float32_matmul_precision()


def test_a_module_that_is_of_another_class_now_which_the_model_had_before():
    lm = tiny("llama")
    lm.blocks[0].mlp.act_fn = torch.nn.Tanh().eval()
    lm.blocks[1].mlp.act_fn = torch.nn.SiLU().eval()
    lm.blocks[3].mlp.act_fn = torch.nn.SiLU().eval()
    replay = Replay(lm)
    before, _ = replay(IDS)
    lm.blocks[1].mlp.act_fn.__class__ = torch.nn.Tanh
    clean, _ = replay(IDS)
    torch.testing.assert_close(clean.resid[1:], whole_pass(lm)[0])
    assert not torch.allclose(clean.resid, before.resid)


def test_modules_of_ones_own_make_every_pass_a_whole_one():
    lm, factor = tiny("llama"), [1.0]

    class Mine(torch.nn.Module):
        def forward(self, x):
            return x * factor[0]

    lm.blocks[0].mlp.down_proj = torch.nn.Sequential(lm.blocks[0].mlp.down_proj, Mine()).eval()
    replay = Replay(lm)
    replay(IDS)
    factor[0] = 3.0
    clean, edited = replay(IDS, scale_block(2, 0.5))
    assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)


def test_the_parts_in_float64_of_this_package_are_none_of_ones_own():
    """The real model of the lessons has them: its panel would lose the map of all heads at each move of a slider."""
    lm = tiny("llama")
    exact.own_dtype(lm.model)
    lm.model.eval()
    assert type(lm.model.model.rotary_emb).__module__ == "helpers.exact"
    replay = Replay(lm)
    replay(IDS)
    version = replay.version
    clean, edited = replay(IDS, scale_block(2, 0.5))
    assert replay.version == version
    assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)
    type(lm.blocks[0].mlp).forward, kept = lambda module, x: x, type(lm.blocks[0].mlp).forward  # this is
    try:
        replay(IDS)
        replay(IDS)
        assert replay.version == version + 2
    finally:
        type(lm.blocks[0].mlp).forward = kept


def test_an_adapter_that_is_switched_off_makes_a_new_clean_pass():
    peft = pytest.importorskip("peft")
    lm = tiny("llama")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["down_proj", "q_proj"])
    lm = wrap(peft.get_peft_model(lm.model, settings).eval())
    replay = Replay(lm)
    adapted, _ = replay(IDS)
    with lm.model.disable_adapter():
        clean, edited = replay(IDS, scale_block(2, 0.5))
        assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(clean.resid, adapted.resid)
    next(one for one in lm.model.modules() if hasattr(one, "lora_A")).scaling["default"] = 9.0
    assert torch.allclose(replay(IDS)[0].resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("write", [lambda t: t.zero_(), lambda t: t.data.zero_(), lambda t: t.numpy().fill(7)])
def test_what_is_handed_out_may_be_written_into(write):
    lm = tiny("gpt2")
    replay = Replay(lm)
    for run in (*replay(IDS, scale_block(2, 0.5)), *replay(IDS), replay.clean(IDS)):
        for value in vars(run).values():
            write(value)
        clean, edited = replay(IDS, scale_block(2, 0.5))
        assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)
    assert replay.version == 1


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        lm = copy.deepcopy(tiny("llama"))
    assert next(lm.model.parameters()).is_inference()
    replay = Replay(lm)
    replay(IDS)
    _, edited = replay(IDS, scale_block(2, 0.5))
    assert torch.allclose(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)
    assert replay.version == 1
    with torch.inference_mode():
        lm.blocks[0].mlp.down_proj.weight.mul_(2)
    assert torch.allclose(replay(IDS)[0].resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)


def test_in_train_mode_each_pass_is_a_whole_one_of_its_own():
    lm = tiny("gpt2")
    replay = Replay(lm)
    replay(IDS)
    lm.model.train()
    torch.manual_seed(0)
    first, _ = replay(IDS)
    second, _ = replay(IDS)
    assert not torch.equal(first.resid, second.resid)  # dropout: nothing was kept
    lm.model.eval()
    clean, _ = replay(IDS)
    assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)


def test_no_hook_stays_and_mistakes_come_before_any_pass():
    lm = tiny("llama")
    before = whole_pass(lm)[1]
    replay = Replay(lm)
    with pytest.raises(BlockOutOfRange):
        replay(IDS, scale_block(9, 0.5))
    with pytest.raises(BadPrompt):
        replay(torch.tensor([[1000]]), scale_block(1, 0.5))

    def broken(value):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        replay(IDS, change("block", 2, broken))
    replay(IDS, scale_block(1, 0.5))
    assert torch.equal(whole_pass(lm)[1], before)
    assert not lm.live_edits and not lm.edit_handles
    assert all(not module._forward_pre_hooks for module in lm.blocks)


def test_the_clean_pass_cannot_be_spoiled_by_an_edit_in_place():
    lm = tiny("gpt2")
    replay = Replay(lm)
    clean = replay.clean(IDS)
    kept = clean.resid.clone()
    replay(IDS, change("block", 2, lambda value: value.mul_(5)))
    assert torch.equal(replay.clean(IDS).resid, kept)
    assert torch.allclose(trace(lm, IDS).resid, kept)


def test_ids_that_the_caller_writes_into_are_another_prompt():
    lm, ids = tiny("gpt2"), IDS.clone()
    replay = Replay(lm)
    replay(ids)
    ids[0, 2] = 9
    clean, _ = replay(ids)
    assert torch.allclose(clean.resid[1:], whole_pass(lm, ids)[0], rtol=1e-12, atol=1e-12)


def test_what_is_handed_out_twice_is_not_the_same_memory():
    lm = tiny("gpt2")
    replay = Replay(lm)
    for _ in range(2):
        clean, unedited = replay(IDS)
        unedited.resid.zero_()
        assert torch.allclose(clean.resid[1:], whole_pass(lm)[0], rtol=1e-12, atol=1e-12)
        lm.blocks[0].register_forward_hook(lambda *_: None)  # the second time nothing is kept


def test_a_restart_edits_nothing_that_another_thread_runs():
    """The other thread's plain pass comes while a restart is in the middle of a block that it edits."""
    lm = tiny("llama")
    replay, expected = Replay(lm), whole_pass(lm)[1]
    replay(IDS)
    with ThreadPoolExecutor(1) as pool:

        def in_between(value):
            if not started:  # else it is the other thread's own pass that is edited
                started.append(True)
                seen.append(pool.submit(whole_pass, lm).result()[1])
            return value * 0.5

        for block in (0, 2):
            started, seen = [], []
            _, edited = replay(IDS, change("block", block, in_between))
            assert len(seen) == 1 and torch.equal(seen[0], expected)
            torch.testing.assert_close(edited.resid[1:], whole_pass(lm, scale={block: 0.5})[0], rtol=1e-12, atol=1e-12)


def test_edits_of_another_thread_that_come_during_a_restart_are_told():
    lm = tiny("llama")
    replay = Replay(lm)
    replay(IDS)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:

        def in_between(value):
            pool.submit(stack.enter_context, edit(lm, scale_block(3, 0.5))).result()
            return value

        with pytest.raises(BadEdit, match="another thread uses the same model"):
            replay(IDS, change("block", 1, in_between))
        pool.submit(stack.close).result()
    _, edited = replay(IDS, scale_block(2, 0.5))
    torch.testing.assert_close(edited.resid[1:], whole_pass(lm, scale={2: 0.5})[0], rtol=1e-12, atol=1e-12)


def test_what_is_kept_of_a_clean_pass_is_no_larger_than_the_lessons_need():
    lm = tiny("gpt2")
    clean = Replay(lm).clean(IDS)
    seen, states = trace(lm, IDS), 3 * lm.n_blocks + 2  # resid, attn, mlp, final: no logits but the last token's
    assert sum(kept.untyped_storage().nbytes() for kept in vars(clean).values()) == (
        states * seen.final.nbytes + seen.last_logits.nbytes
    )
    for name in vars(clean):
        assert torch.equal(getattr(clean, name), getattr(seen, name))


def test_a_panel_whose_sliders_move_reads_no_weights_in_between():
    """`since` says that no code ran; what PyTorch records is seen all the same, and a new value of `since` reads all again."""
    lm, moment = tiny("gpt2"), [1]
    replay, another = Replay(lm, since=lambda: moment[0]), Replay(lm)
    first = replay.clean(IDS).last_logits
    lm.blocks[1].mlp.c_fc.weight.data.mul_(2)  # no cell ran: nobody can have written this
    assert replay.clean(IDS).last_logits.equal(first)
    moment[0] = 2
    changed = replay.clean(IDS).last_logits
    torch.testing.assert_close(changed, lm.logits(IDS)[:, -1], rtol=0, atol=1e-12)
    assert not changed.equal(first) and another.clean(IDS).last_logits.equal(changed)
    with torch.no_grad():
        lm.blocks[1].mlp.c_fc.weight.mul_(2)
    assert not replay.clean(IDS).last_logits.equal(changed), "PyTorch counts this one"
