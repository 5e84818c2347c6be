"""Sweeps against the plain loop, one edited pass after the other, and against plain PyTorch hooks."""

import copy as copying
import functools
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from reference import reference
from tiny import CONFIGS, MORE, here, tiny
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers import (
    add_to_block,
    change,
    edit,
    errors,
    noise_neurons,
    patch_block,
    replace_heads,
    scale_attention,
    scale_block,
    scale_mlp,
    skip_attention,
    skip_block,
    skip_mlp,
    trace,
    zero_heads,
    zero_keys,
)  # fmt: skip
from helpers.measures import Measure, predictions, text_damage
from helpers.progress import somebody_watches
from helpers.replacements import mean_heads
from helpers.rows import where_rows_run_alone
from helpers.sweeps import (
    sweep_block_pairs,
    sweep_blocks,
    sweep_edits,
    sweep_factors,
    sweep_heads,
    windows,
)  # fmt: skip

TARGET = 7
SDPA = [
    family for family in CONFIGS if family not in ("gpt_neo", "gemma2")
]  # the two have eager attention only, somewhere
CASES = [(family, "eager") for family in CONFIGS] + [(family, "sdpa") for family in SDPA]


def texts(*lengths, seed=1):
    """Prompts of these lengths, as ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 97, (length,), generator=generator) for length in lengths]


def as_tokens(rows):
    from helpers import Tokens

    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return Tokens(ids, torch.arange(ids.shape[1]) < lengths[:, None])


def loop(lm, prompts, copies, of=lambda logits: logits[-1].log_softmax(-1)[TARGET], together=True):
    """after − before, (prompts, copies): for each copy one pass of the prompts of one length, or of each prompt alone."""
    batches = {}
    for row, prompt in enumerate(prompts):
        batches.setdefault(len(prompt) if together else row, []).append(row)

    def passes():
        found = {}
        for rows in batches.values():
            logits = lm.logits(torch.stack([prompts[row] for row in rows]))
            found |= {row: of(one) for row, one in zip(rows, logits, strict=True)}
        return torch.stack([found[row] for row in range(len(prompts))])

    before, table = passes(), []
    for copy in copies:
        with edit(lm, *copy):
            table.append(passes() - before)
    return torch.stack(table, dim=1)


def drawing(lm, generator):
    """Edits that share one source of numbers, none in the order of its block."""

    def shaken(value):
        return value + torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)

    return [
        (noise_neurons(2, [0, 1, 2], 0.0, 1.0, generator),),
        (noise_neurons(1, slice(0, None, 2), 0.0, 1.0, generator),),
        (skip_mlp(1),),
        (change("attention", 0, shaken), noise_neurons(0, [3], 1.0, 0.5, generator)),
        (replace_heads(0, 1, torch.ones(())), change("block", 3, shaken, positions=-1)),
    ]


@pytest.mark.parametrize("chunk", [1, 11, 768])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_edits_that_draw_from_one_generator_draw_as_in_the_loop(family, chunk):
    lm = tiny(family)
    prompts, generator = texts(9, 5, 9, 7), torch.Generator()
    copies = drawing(lm, generator)
    generator.manual_seed(3)
    expected = []
    for prompt in prompts:
        before, row = lm.logits(prompt)[0, -1].log_softmax(-1)[TARGET], []
        for copy in copies:
            with edit(lm, *copy):
                row.append(lm.logits(prompt)[0, -1].log_softmax(-1)[TARGET] - before)
        expected.append(torch.stack(row))
    generator.manual_seed(3)
    found = sweep_edits(lm, as_tokens(prompts), copies, TARGET, chunk=chunk)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)


def test_noise_that_is_live_is_refused_and_has_its_place_among_the_copies():
    lm, prompt, noise = tiny("llama"), texts(7)[0], noise_neurons(1, [0], 0.0, 1.0, torch.Generator())
    with edit(lm, noise), pytest.raises(errors.BadEdit, match=r"noise_neurons.* is on and draws anew in each pass"):
        sweep_heads(lm, prompt, TARGET)
    assert sweep_edits(lm, prompt, [[noise, zero_heads(2, 0)]], TARGET).shape == (1,)


def every_head(lm):
    return [(zero_heads(block, [head]),) for block in range(lm.n_blocks) for head in range(lm.n_heads)]


def tolerance(lm):
    if lm.dtype == torch.float32:
        return 1e-5
    return (
        1e-6 if lm.family == "gpt_neo" else 1e-12
    )  # gpt_neo multiplies queries and keys in float32 whatever its dtype


# ---- the same numbers as the loop


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_heads_equal_the_loop_in_every_family(family, attention):
    lm = tiny(family, attention=attention)
    prompts = texts(9, 5, 9)
    expected = loop(lm, prompts, every_head(lm)).view(3, 4, 4)
    assert expected.abs().min() > 1e-6  # every head matters, so a sweep that forgets one shows
    together = sweep_heads(lm, as_tokens(prompts), TARGET)
    torch.testing.assert_close(together, expected, rtol=0, atol=tolerance(lm))
    alone = sweep_heads(lm, prompts[1], TARGET)
    torch.testing.assert_close(alone, expected[1], rtol=0, atol=tolerance(lm))


@pytest.mark.parametrize("where", [-1, [0, -2], slice(1, None)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "gpt_neox"])
def test_heads_at_some_positions_against_a_pass_by_hand(family, where):
    lm = tiny(family)
    prompts = texts(6, 4, 6)
    values = torch.randn(4, 6, 4, lm.d_head, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def said(ids, **how):
        return reference(lm.model, ids, **how).logits[:, -1].log_softmax(-1)[:, TARGET]

    def by_hand(ids, becomes):
        """Each head of each block in a row of its own, (4, 4)."""

        def at(site, index, value, entered):
            if site == "heads":
                value = value.clone()
                for head in range(4):
                    row = value[4 * index + head]
                    row[where, head] = becomes[index, -len(ids) :, head][where] if becomes is not None else 0
            return value

        return said(ids.expand(16, -1), at=at).view(4, 4)

    other = torch.tensor([3, 1, 4, 1, 5, 9])  # the one prompt to draw from
    theirs = {}

    def keep(site, index, value, entered):
        if site == "heads":
            theirs[index] = value[0].clone()
        return value

    with torch.no_grad():
        reference(lm.model, other[None], at=keep)
    resampled = torch.stack([theirs[block] for block in range(4)])
    drawing = {"reference": other[None], "generator": torch.Generator()}
    for replacement, becomes, more in (("zero", None, {}), (values, values, {}), ("resample", resampled, drawing)):
        found = sweep_heads(lm, as_tokens(prompts), TARGET, positions=where, replacement=replacement, **more)
        with torch.no_grad():
            table = torch.stack([by_hand(ids, becomes) - said(ids[None]) for ids in prompts])
        torch.testing.assert_close(found, table, rtol=0, atol=2e-6)  # softmax and norms in float32
        everywhere = sweep_heads(lm, as_tokens(prompts), TARGET, replacement=replacement, **more)
        assert (found - everywhere).abs().max() > 1e-3
    with pytest.raises(errors.PositionOutOfRange, match="position 4 does not exist: this prompt has 4 tokens"):
        sweep_heads(lm, as_tokens(prompts), TARGET, positions=4)


@pytest.mark.parametrize("replacement", ["zero", "mean", "pooled mean", "resample"])
def test_some_blocks_give_their_rows_of_the_whole_map(replacement):
    lm = tiny("gpt2")
    blocks = [lm.n_blocks - 1, 0]

    def swept(prompts, **only):
        draw = torch.Generator().manual_seed(3)
        return sweep_heads(lm, prompts, TARGET, replacement=replacement, generator=draw, **only)

    prompts = torch.stack(texts(5, 5, 5))
    whole = swept(prompts)
    assert torch.allclose(swept(prompts, blocks=blocks), whole[:, blocks], atol=1e-12)
    if replacement in ("zero", "pooled mean"):
        assert torch.allclose(swept(prompts[0], blocks=range(1)), swept(prompts[0])[:1], atol=1e-12)


@pytest.mark.parametrize("family", CONFIGS)
def test_float32_and_bfloat16_stay_within_their_digits(family):
    lm = tiny(family, torch.float32)
    (prompt,) = texts(8)
    expected = loop(lm, [prompt], every_head(lm))[0].view(4, 4)
    torch.testing.assert_close(sweep_heads(lm, prompt, TARGET), expected, rtol=0, atol=tolerance(lm))
    lm.model.to(torch.bfloat16)
    coarse = sweep_heads(lm, prompt, TARGET)
    assert coarse.dtype == torch.float32  # measured in float32
    assert torch.corrcoef(torch.stack([coarse.flatten(), expected.flatten()]))[0, 1] > 0.9


def sites(lm):
    """Edits of every site, some at certain positions, alone and combined."""
    vector = torch.linspace(-1, 1, lm.d_model)
    copies = [
        (scale_block(1, 0.5),), (add_to_block(3, vector, positions=-1),), (skip_block(0),), (skip_block(3),), (skip_mlp(3),),
        (skip_attention(2),), (scale_attention(3, 0.3),), (scale_mlp(1, 3.0, positions=[0, 2]),), (zero_keys(2, [1]),),
        (zero_keys(3, [0]),), (zero_heads(3, [0], positions=slice(1, None)),), (add_to_block(2, vector),),
        (zero_heads(1, [0]), skip_mlp(3)), (skip_block(1), scale_block(1, 2.0)), (skip_mlp(3), zero_heads(1, [2])),
        (change("neurons", 3, lambda v: v.flip(1)),), (change("preactivation", 2, torch.abs),),
        (change("block", 3, lambda v: v - v.mean(1, keepdim=True)),),
    ]  # fmt: skip
    return copies


@pytest.mark.parametrize("family", CONFIGS)
def test_any_edits_equal_the_loop(family):
    lm = tiny(family)
    prompts = texts(7, 7, 6)
    expected = loop(lm, prompts, sites(lm))
    assert (expected.abs().amax(0) > 1e-6).all()
    found = sweep_edits(lm, as_tokens(prompts), sites(lm), TARGET)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance(lm))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
@pytest.mark.parametrize("chunk", [1, 768])
def test_prompts_of_several_lengths_get_values_padded_as_they_are(family, chunk):
    """Against a pass by hand over each prompt alone, with its own part of the values."""
    lm = tiny(family)
    prompts = texts(6, 4, 9, 6)
    others = trace(lm, as_tokens([prompt.flip(0) for prompt in prompts]))
    stream, heads = others.resid[2], others.heads[1][:, :, [0, 2]]
    last = stream[range(4), [5, 3, 8, 5]][:, None]

    def by_hand(number, copy):
        def at(site, index, value, entered):
            length, value = value.shape[1], value.clone()
            if copy == 0 and (site, index) == ("block", 1):
                return stream[number : number + 1, :length]
            if copy == 1 and (site, index) == ("heads", 1):
                value[:, 1:, [0, 2]] = heads[number, 1:length]
            if copy == 2 and (site, index) == ("block", 1):
                value[:, -1] = last[number]
            return value

        said = lambda **how: reference(lm.model, prompts[number][None], **how).logits[0, -1].log_softmax(-1)[TARGET]  # noqa: E731
        return said(at=at) - said()

    edits = [
        patch_block(1, stream),
        replace_heads(1, [0, 2], heads, positions=slice(1, None)),
        patch_block(1, last, positions=-1),
    ]
    found = sweep_edits(lm, as_tokens(prompts), edits, TARGET, chunk=chunk)
    with torch.no_grad():
        expected = torch.tensor([[by_hand(number, copy) for copy in range(3)] for number in range(4)])
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)
    # And as in one padded pass, whose softmax in float32 adds up other lengths, on some processors in another order.
    with edit(lm, patch_block(1, stream)):
        padded = lm.logits(as_tokens(prompts))[range(4), [5, 3, 8, 5]].log_softmax(-1)[:, TARGET]
    before = lm.logits(as_tokens(prompts))[range(4), [5, 3, 8, 5]].log_softmax(-1)[:, TARGET]
    torch.testing.assert_close(found[:, 0], padded - before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "side", "says"),
    [
        (torch.ones(2, 5, 24), "right", "values for 5 positions, and the longest prompt has 6"),
        (torch.ones(2, 7, 24), "right", "values for 7 positions, and the longest prompt has 6"),
        (torch.ones(3, 6, 24), "right", "values for 3 prompts, and 2 are swept"),
        (torch.ones(2, 6, 24), "left", "padded on the left"),
    ],
)
def test_values_that_do_not_stand_as_the_prompts_do_are_refused(value, side, says):
    lm = tiny("llama", torch.float32)
    lm.tokenizer = Words()
    tokens = lm.encode(["a bb ccc a bb ccc", "a bb"], padding=side)
    with pytest.raises(errors.BadValue, match=says):
        sweep_edits(lm, tokens, [patch_block(1, value)], TARGET)
    one_for_all = sweep_edits(lm, tokens, [patch_block(1, value[:2, :1])], TARGET)
    assert one_for_all.shape == (2, 1) and one_for_all.abs().min() > 0


def test_edits_of_one_copy_run_in_the_order_given():
    lm = tiny("gpt2")
    (prompt,) = texts(6)
    copies = [(skip_block(1), scale_block(1, 2.0)), (scale_block(1, 2.0), skip_block(1))]
    found = sweep_edits(lm, prompt, copies, TARGET)
    torch.testing.assert_close(found, loop(lm, [prompt], copies)[0], rtol=0, atol=1e-12)
    assert (found[0] - found[1]).abs() > 1e-6


@pytest.mark.parametrize("part", ["block", "attention", "mlp"])
def test_blocks_pairs_and_factors_equal_the_loop(part):
    lm = tiny("llama")
    prompts = texts(6, 8)
    skip = {"block": skip_block, "attention": skip_attention, "mlp": skip_mlp}[part]
    scale = {"block": scale_block, "attention": scale_attention, "mlp": scale_mlp}[part]
    one = loop(lm, prompts, [(skip(b),) for b in range(4)])
    torch.testing.assert_close(sweep_blocks(lm, as_tokens(prompts), TARGET, part=part), one, rtol=0, atol=1e-12)
    square = [(skip(a),) if a == b else (skip(a), skip(b)) for a in range(4) for b in range(4)]
    pairs = sweep_block_pairs(lm, as_tokens(prompts), TARGET, part=part)
    torch.testing.assert_close(pairs, loop(lm, prompts, square).view(2, 4, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(sweep_block_pairs(lm, prompts[0], TARGET, part=part), pairs[0], rtol=0, atol=1e-12)
    factors = [0.0, 0.5, 1.0, 3.0]
    scaled = sweep_factors(lm, as_tokens(prompts), 2, torch.tensor(factors), TARGET, part=part)
    torch.testing.assert_close(scaled, loop(lm, prompts, [(scale(2, f),) for f in factors]), rtol=0, atol=1e-12)
    assert scaled[:, 2].abs().max() < 1e-12  # a factor of 1 changes nothing


def test_chunks_change_memory_and_nothing_else():
    lm = tiny("gpt2")
    prompts = texts(6, 6, 4, 6, 9)
    whole = loop(lm, prompts, every_head(lm)).view(5, 4, 4)
    damage = sweep_block_pairs(lm, as_tokens(prompts), measure=text_damage())
    for chunk in (1, 7, 20, 64, 100_000):
        found = sweep_heads(lm, as_tokens(prompts), TARGET, chunk=chunk)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12, msg=lambda text: f"chunk {chunk}: {text}")
        again = sweep_block_pairs(lm, as_tokens(prompts), measure=text_damage(), chunk=chunk)
        torch.testing.assert_close(again, damage, rtol=0, atol=1e-12, msg=lambda text: f"chunk {chunk}: {text}")


# ---- edits and hooks that are on already


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "gemma2", "qwen3"])
def test_live_edits_are_part_of_the_baseline(family):
    lm = tiny(family)
    prompts = texts(7, 5)
    live = [scale_block(1, 0.5), change("heads", 2, lambda v: v + 0.3), zero_keys(3, [0]), skip_mlp(0, positions=-1)]
    plain = sweep_heads(lm, as_tokens(prompts), TARGET)
    with edit(lm, *live):
        with edit(lm, scale_mlp(3, 2.0, positions=-1)):
            expected = loop(lm, prompts, every_head(lm)).view(2, 4, 4)
            found = sweep_heads(lm, as_tokens(prompts), TARGET)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance(lm))
    assert (found - plain).abs().max() > 1e-3


def stubborn(module, args, output):
    """A hook that works on certain positions and on all forms of output: it must see whole prompts."""
    state = output[0] if isinstance(output, tuple) else output
    new = torch.cat([state[:, :2] * 0.5, state[:, 2:] + 0.1 * state[:, :1]], dim=1)
    return (new, *output[1:]) if isinstance(output, tuple) else new


@pytest.mark.parametrize(
    "where",
    ["transformer.h.3.mlp", "transformer.h.3", "transformer.h.1.attn.c_attn", "transformer.h.2.attn", "transformer.ln_f",
     "transformer.h.3.attn.c_proj", "transformer.wte", "lm_head"],
)  # fmt: skip
def test_hooks_of_the_users_own_are_seen_wherever_they_hang(where):
    lm = tiny("gpt2")
    prompts = texts(7, 5)
    plain = sweep_heads(lm, as_tokens(prompts), TARGET)
    handle = lm.model.get_submodule(where).register_forward_hook(stubborn)
    expected = loop(lm, prompts, every_head(lm)).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)
    assert (expected - plain).abs().max() > 1e-4
    handle.remove()
    assert torch.equal(sweep_heads(lm, as_tokens(prompts), TARGET), plain)


def mixed(output):
    """Something that no row would get alone: 0.3 of the batch's largest numbers are taken off."""
    state = output[0] if isinstance(output, tuple) else output
    new = state - 0.3 * state.amax(0, keepdim=True)
    return (new, *output[1:]) if isinstance(output, tuple) else new


class Around(torch.nn.Module):
    """A wrapper of one's own around a block."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **named):
        return mixed(self.block(*args, **named))

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)


class Coarse(torch.nn.Linear):
    """A matrix product whose input is rounded by the largest number in the batch."""

    def forward(self, value):
        step = value.abs().amax() / 127
        return super().forward((value / step).round() * step)


def wrap_a_block(lm):
    lm.model.get_submodule(lm.parts.blocks)[1] = Around(lm.blocks[1]).eval()


def subclass_an_mlp(lm):
    mlp = lm.mlp(1)
    mlp.__class__ = type("Mine", (type(mlp),), {"forward": lambda self, x: mixed(super(type(self), self).forward(x))})


def quantise_a_linear(lm):
    path, _, name = lm.parts.neurons_out.rpartition(".")
    old, owner = lm.part(1, lm.parts.neurons_out), lm.part(1, path)
    new = Coarse(old.in_features, old.out_features, bias=old.bias is not None)
    new.weight, new.bias = old.weight, old.bias
    setattr(owner, name, new.eval())


def hook_all_modules(lm):
    kind = type(lm.mlp(0))
    return register_module_forward_hook(lambda m, args, output: mixed(output) if type(m) is kind else None)


def prehook_all_modules(lm):
    kind = type(lm.mlp(0))
    return register_module_forward_pre_hook(lambda m, args: (mixed(args[0]),) if type(m) is kind else None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize(
    "change_it", [wrap_a_block, subclass_an_mlp, quantise_a_linear, hook_all_modules, prehook_all_modules]
)
def test_code_of_ones_own_that_mixes_rows_sees_them_as_in_the_loop(family, change_it):
    if (family, change_it) in [("gpt2", quantise_a_linear)]:
        pytest.skip("its projections are Conv1D")
    if family == "opt" and change_it not in (wrap_a_block, quantise_a_linear):
        pytest.skip("its MLP is no module of its own")
    lm = tiny(family)
    prompts = texts(7, 7)
    plain = sweep_heads(lm, as_tokens(prompts), TARGET)
    handle = change_it(lm)
    try:
        expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
        found = sweep_heads(lm, as_tokens(prompts), TARGET)
    finally:
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance(lm))
    assert (expected - plain).abs().max() > 1e-4


def test_another_forward_on_a_class_of_the_library_is_code_of_ones_own(monkeypatch):
    lm = tiny("llama")
    prompts, kind = texts(7, 7), type(lm.mlp(0))
    old = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: mixed(old(self, x)))
    expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)


def test_a_hook_between_the_final_norm_and_the_unembedding_sees_one_row_of_whole_prompts():
    lm = tiny("opt", word_embed_proj_dim=16)
    prompts = texts(7, 7)
    plain = sweep_heads(lm, as_tokens(prompts), TARGET)
    handle = lm.model.model.decoder.project_out.register_forward_hook(lambda m, args, out: out - out.mean((0, 1)))
    expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=tolerance(lm))
    assert (expected - plain).abs().max() > 1e-3
    handle.remove()


@pytest.mark.parametrize("wrapped", ["partialmethod", "no_grad", "cached"])
def test_what_lends_a_function_a_librarys_name_hides_it_not(wrapped, monkeypatch):
    lm = tiny("llama")
    prompts, kind = texts(7, 7), type(lm.mlp(0))
    old = kind.forward

    @functools.wraps(old)
    def mine(self, x):
        return mixed(old(self, x))

    if wrapped == "partialmethod":
        mine = functools.partialmethod(lambda self, function, x: function(self, x), mine)
    else:
        mine = torch.no_grad()(mine) if wrapped == "no_grad" else functools.cache(mine)
    monkeypatch.setattr(kind, "forward", mine)
    expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [TorchFunctionMode, TorchDispatchMode])
def test_a_mode_of_ones_own_sees_what_it_sees_in_the_loop(kind):
    """Such as one that tries out 8 bits, with one step for all that is in the batch."""

    def computed(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        if function not in (torch.nn.functional.linear, torch.ops.aten.mm.default):
            return found
        step = found.abs().amax() / 127
        return (found / step).round() * step

    mine = type(
        "Mine", (kind,), {"__torch_function__": computed, "__torch_dispatch__": computed, "__module__": __name__}
    )
    lm, prompts = tiny("llama"), texts(7, 7)
    plain = sweep_heads(lm, as_tokens(prompts), TARGET)
    with mine():
        expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
        torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)
    assert (expected - plain).abs().max() > 1e-3


def test_a_function_of_ones_own_in_torch_nn_functional(monkeypatch):
    lm, prompts, old = tiny("llama"), texts(7, 7), torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: mixed(old(x)))
    expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", ["a kind of attention", "one block's kind of attention", "a file", "a module"])
def test_a_function_in_a_librarys_place_is_code_of_ones_own(place, monkeypatch):
    """One that meddles with the first prompt of a batch, as code for a single prompt does."""
    lm = tiny("gpt_neo" if place == "a module" else "llama")
    prompts, library = texts(7, 7), sys.modules[type(lm.blocks[0]).__module__]
    attention = lm.blocks[2].attn.attention if place == "a module" else None
    plain = attention._attn if attention else library.eager_attention_forward

    @functools.wraps(plain)
    def first_prompt(*args, **named):
        value, weights = plain(*args, **named)
        value = value.clone()
        value[0, 1:] *= 0.5
        return value, weights

    if place == "a kind of attention":
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "mine", first_prompt)
        lm.model.set_attn_implementation("mine")
    elif place == "one block's kind of attention":
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "mine", first_prompt)
        lm.attention(2).config = copying.copy(lm.config)
        lm.attention(2).config._attn_implementation = "mine"
    elif place == "a file":
        monkeypatch.setattr(library, "eager_attention_forward", first_prompt)
    else:
        attention._attn = first_prompt
    expected = loop(lm, prompts, every_head(lm), together=False).view(2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, as_tokens(prompts), TARGET), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", [family for family in CONFIGS | MORE if here(family)])
def test_a_model_of_the_library_is_nobodys_own(family):
    alone = where_rows_run_alone(tiny(family, dtype=torch.float32))
    assert not alone.anywhere and not alone.read_out and not any(alone.blocks)


def test_a_users_pre_hook_on_a_block_runs_once():
    lm = tiny("gpt2")
    (prompt,) = texts(6)
    handle = lm.blocks[2].register_forward_pre_hook(lambda m, args: (args[0] * 0.5, *args[1:]))
    expected = loop(lm, [prompt], every_head(lm))[0].view(4, 4)
    torch.testing.assert_close(sweep_heads(lm, prompt, TARGET), expected, rtol=0, atol=1e-12)
    handle.remove()


def test_hidden_states_asked_for_before_make_no_difference():
    lm = tiny("llama", attention="eager")
    (prompt,) = texts(6)
    before = sweep_heads(lm, prompt, TARGET)
    lm.model(prompt[None], output_hidden_states=True, output_attentions=True)
    lm.model.config.use_cache = True
    assert torch.equal(sweep_heads(lm, prompt, TARGET), before)


# ---- replacements


def by_hand(lm, prompt, block, head, value):
    """log p(target) after − before by the forward pass in plain PyTorch, with one head's output replaced by (pos, d_head)."""

    def at(site, index, old, stream):
        if (site, index) != ("heads", block):
            return old
        new = old.clone()
        new[0, :, head] = value
        return new

    after, before = reference(lm.model, prompt[None], at=at), reference(lm.model, prompt[None])
    after, before = (run.logits[0, -1].log_softmax(-1)[TARGET] for run in (after, before))
    return (after - before).item()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_mean_ablation_takes_the_mean_of_each_position_from_the_end(family):
    lm, within = tiny(family), 1e-12 if family == "gpt2" else 1e-5  # Llama's softmax runs in float32 whatever its dtype
    prompts = texts(4, 9, 6)
    heads = [reference(lm.model, prompt[None]).heads[:, 0] for prompt in prompts]  # (blocks, pos, heads, d_head)
    means = torch.zeros(4, 9, 4, lm.d_head, dtype=torch.float64)
    for back in range(1, 10):  # 1 is the last token
        there = [one[:, max(len(one[0]) - back, 0)] for one in heads]
        means[:, 9 - back] = sum(there) / 3
    torch.testing.assert_close(mean_heads(lm, as_tokens(prompts), chunk=10), means, rtol=0, atol=within)
    found = sweep_heads(lm, as_tokens(prompts), TARGET, replacement="mean")
    for i, block, head in ((0, 0, 1), (1, 3, 3), (2, 2, 0)):
        expected = by_hand(lm, prompts[i], block, head, means[block, 9 - len(prompts[i]) :, head])
        assert found[i, block, head].item() == pytest.approx(expected, abs=within) and abs(expected) > 10 * within
    of_others = sweep_heads(lm, prompts[0], TARGET, replacement="mean", reference=as_tokens(prompts))
    torch.testing.assert_close(of_others, found[0], rtol=0, atol=1e-12)
    given = sweep_heads(lm, as_tokens(prompts), TARGET, replacement=means)
    torch.testing.assert_close(given, found, rtol=0, atol=within)


def test_a_tensor_of_ones_own_has_a_position_for_each_of_the_longest_prompt_or_one_for_all():
    lm = tiny("gpt2")
    prompts = as_tokens(texts(4, 9, 6))
    for wrong in (4, 8):
        with pytest.raises(
            errors.BadValue, match=f"the replacement has {wrong} positions, and the longest prompt has 9"
        ):
            sweep_heads(lm, prompts, TARGET, replacement=torch.ones(4, wrong, 4, lm.d_head, dtype=torch.float64))
    for_all = torch.randn(4, 4, lm.d_head, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = sweep_heads(lm, prompts, TARGET, replacement=for_all)
    for longer in (for_all[:, None], for_all[:, None].expand(-1, 9, -1, -1), for_all[:, None].expand(-1, 12, -1, -1)):
        assert torch.equal(sweep_heads(lm, prompts, TARGET, replacement=longer), plain)


@torch.no_grad()
def test_a_prompt_longer_than_all_references_takes_the_mean_of_their_first_tokens():
    lm = tiny("gpt2")
    (prompt,), others = texts(7), texts(4, 3, seed=2)
    found = sweep_heads(lm, prompt, TARGET, replacement="mean", reference=as_tokens(others))
    first, second = (reference(lm.model, other[None]).heads[1, 0, :, 2] for other in others)  # (pos, d_head)
    value = torch.stack([first[0] + second[0]] * 4 + [first[p + 1] + second[p] for p in range(3)]) / 2
    assert found[1, 2].item() == pytest.approx(by_hand(lm, prompt, 1, 2, value), abs=1e-12)


@torch.no_grad()
def test_the_pooled_mean_runs_over_all_real_tokens():
    lm = tiny("gpt2")
    prompts = texts(4, 9, 6)
    heads = torch.cat([reference(lm.model, prompt[None]).heads[:, 0] for prompt in prompts], dim=1).mean(1)
    torch.testing.assert_close(mean_heads(lm, as_tokens(prompts), pooled=True, chunk=10), heads, rtol=0, atol=1e-12)
    found = sweep_heads(lm, as_tokens(prompts), TARGET, replacement="pooled mean")
    assert found[1, 3, 2].item() == pytest.approx(by_hand(lm, prompts[1], 3, 2, heads[3, 2]), abs=1e-12)
    given = sweep_heads(lm, as_tokens(prompts), TARGET, replacement=heads)
    torch.testing.assert_close(given, found, rtol=0, atol=1e-12)
    alone = sweep_heads(lm, prompts[0], TARGET, replacement="pooled mean")  # its own tokens, averaged
    own = reference(lm.model, prompts[0][None]).heads[2, 0, :, 1].mean(0)
    assert alone[2, 1].item() == pytest.approx(by_hand(lm, prompts[0], 2, 1, own), abs=1e-12)


def test_resampled_heads_come_from_another_prompt_last_tokens_aligned():
    lm = tiny("gpt2")
    prompts = texts(4, 9, 6)
    recorded = [trace(lm, prompt).heads[:, 0] for prompt in prompts]  # (blocks, pos, heads, d_head)
    draws = torch.randint(1, 3, (3,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = []
    for i, prompt in enumerate(prompts):
        other = recorded[(i + draws[i]) % 3]
        rows = [max(0, p + other.shape[1] - len(prompt)) for p in range(len(prompt))]
        copies = [(replace_heads(b, h, other[b, rows][:, h : h + 1]),) for b in range(4) for h in range(4)]
        expected.append(loop(lm, [prompt], copies)[0].view(4, 4))
    for chunk in (512, 30):
        found = sweep_heads(
            lm,
            as_tokens(prompts),
            TARGET,
            replacement="resample",
            generator=torch.Generator().manual_seed(5),
            chunk=chunk,
        )
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-12)
    itself = sweep_heads(
        lm, prompts[0], TARGET, replacement="resample", reference=prompts[0], generator=torch.Generator()
    )
    assert itself.abs().max() < 1e-12  # its own heads put back change nothing


# ---- measures


def test_predictions_by_hand():
    lm = tiny("gpt2")
    prompts = texts(6, 8)
    measure = predictions(lm, [3, 4], [10, 11])
    found = sweep_heads(lm, as_tokens(prompts), measure=measure)
    assert found.shape == (2, 4, 4, len(measure.columns))
    tops = set()
    for i, prompt in enumerate(prompts):
        clean = lm.logits(prompt)[0, -1]
        for block, head in ((0, 0), (2, 3), (3, 1)):
            with edit(lm, zero_heads(block, [head])):
                after = lm.logits(prompt)[0, -1]
            change = after.log_softmax(0) - clean.log_softmax(0)
            row = dict(zip(measure.columns, found[i, block, head].tolist(), strict=True))
            assert row["target"] == pytest.approx(change[3 + i].item(), abs=1e-12)
            assert row["contrast"] == pytest.approx(change[10 + i].item(), abs=1e-12)
            difference = (after[3 + i] - after[10 + i]) - (clean[3 + i] - clean[10 + i])
            assert row["logit difference"] == pytest.approx(difference.item(), abs=1e-12)
            expected = kl_div(after.log_softmax(0), clean.log_softmax(0), log_target=True, reduction="sum").item()
            assert row["kl"] == pytest.approx(expected, abs=1e-12)
            assert row["same top-1"] == float(after.argmax() == clean.argmax())
            assert row["target is top-1"] == float(after.argmax() == 3 + i)
            tops.add(row["same top-1"])
    plain = predictions(lm, 3)
    assert len(plain.columns) == 4
    assert torch.equal(sweep_heads(lm, prompts[0], measure=plain), found[0, ..., :4])
    top = int(lm.logits(prompts[0])[0, -1].argmax())
    share = sweep_heads(lm, prompts[0], measure=predictions(lm, top))[..., 2:]
    assert torch.equal(share[..., 0], share[..., 1])


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3_text"])
def test_text_damage_by_hand(family):
    lm = tiny(family)
    text = torch.stack(texts(12, 12, 12))
    found = sweep_blocks(lm, text, measure=text_damage())
    assert found.shape == (3, 4, 3)
    for i, ids in enumerate(text):
        clean = lm.logits(ids)[0]
        for block in range(4):
            with edit(lm, skip_block(block)):
                after = lm.logits(ids)[0]
            loss = cross_entropy(after[:-1], ids[1:]) - cross_entropy(clean[:-1], ids[1:])
            divergence = kl_div(after.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean")
            same = (after.argmax(-1) == clean.argmax(-1)).double().mean()
            torch.testing.assert_close(found[i, block], torch.stack([loss, divergence, same]), rtol=0, atol=1e-12)
    assert found[..., 2].min() < 1 and found[..., 1].min() > 0


OVER_COPIES = {
    "mean": lambda outcome: outcome.edited[:, TARGET] - outcome.edited[:, TARGET].mean(),
    "rank": lambda outcome: outcome.edited[:, TARGET].argsort().argsort(),
    "matrix": lambda outcome: outcome.edited @ outcome.edited.T,
}


@pytest.mark.parametrize("name", OVER_COPIES)
def test_a_measure_over_the_copies_sees_all_of_them_or_is_refused(name):
    lm, (prompt,) = tiny("gpt2"), texts(6)
    copies = every_head(lm)
    logits = []
    for copy in copies:
        with edit(lm, *copy):
            logits.append(lm.logits(prompt)[0, -1])
    expected = OVER_COPIES[name](SimpleNamespace(edited=torch.stack(logits)))
    found = sweep_edits(lm, prompt, copies, measure=OVER_COPIES[name])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for chunk in (1, 7, 12):  # one copy at a time; several walks; one walk in pieces
        with pytest.raises(errors.BadValue, match=f"than {chunk}, so that all come at once"):
            sweep_edits(lm, torch.stack([prompt, prompt]), copies, measure=OVER_COPIES[name], chunk=chunk)


def test_a_function_is_a_measure():
    lm = tiny("gpt2")
    prompts = as_tokens(texts(6, 4, 6))
    seen = []

    def top(outcome):
        assert outcome.edited.shape[1:] == outcome.clean.shape == (97,)
        assert len(outcome.ids) == [6, 4, 6][outcome.prompt]
        seen.append(outcome.prompt)
        return outcome.edited.argmax(-1)

    found = sweep_blocks(lm, prompts, measure=top)
    assert found.shape == (3, 4) and found.dtype == torch.long and set(seen) == {0, 1, 2}
    everywhere = Measure(lambda outcome: outcome.edited - outcome.clean, every_position=True)
    assert sweep_blocks(lm, texts(5)[0], measure=everywhere).shape == (4, 5, 97)
    first = sweep_edits(lm, texts(5)[0], [scale_block(3, 1.0)], measure=everywhere)
    assert first.abs().max() < 1e-12


# ---- as little work as promised


def test_each_block_runs_for_the_copies_that_need_it():
    lm = tiny("gpt2")
    (prompt,) = texts(6)
    rows = {block: [] for block in range(4)}
    shapes = []

    def watch(module, see):
        hook = lambda module, args: see(args[0])  # noqa: E731
        hook.only_looks = True  # else a hook of the user's makes a sweep careful
        module.register_forward_pre_hook(hook)

    for block, module in enumerate(lm.blocks):
        watch(module, lambda x, block=block: rows[block].append(len(x)))
    watch(lm.mlp(3).c_fc, lambda x: shapes.append(x.shape[1]))
    sweep_heads(lm, prompt, TARGET)
    assert {block: sum(sizes) - 1 for block, sizes in rows.items()} == {0: 4, 1: 8, 2: 12, 3: 16}  # − 1: the clean pass
    assert shapes == [6, 1]  # the last MLP: the clean pass, and the last token of all copies
    for sizes in rows.values():
        sizes.clear()
    sweep_block_pairs(lm, prompt, TARGET)
    # A pair starts from the copy that skips its first block: 1, 2, 3, 4 copies join.
    assert {block: sum(sizes) - 1 for block, sizes in rows.items()} == {0: 1, 1: 3, 2: 6, 3: 10}


# ---- misuse, and nothing left behind


def hooks_of(lm):
    return {
        name: (dict(module._forward_hooks), dict(module._forward_pre_hooks))
        for name, module in lm.model.named_modules()
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["measure", "edit", "hook"])
def test_nothing_is_left_behind(error, place):
    lm = tiny("gpt2")
    (prompt,) = texts(6)

    def fail(*_):
        raise error

    handle = lm.blocks[2].register_forward_hook(lambda m, args, output: fail()) if place == "hook" else None
    clean = None if handle else lm.logits(prompt)
    before = hooks_of(lm)
    copies = [skip_block(0), change("mlp", 3, fail) if place == "edit" else skip_block(1), zero_heads(3, [0])]
    with edit(lm, scale_block(0, 1.0)):
        during = hooks_of(lm)
        with pytest.raises(error):
            sweep_edits(lm, prompt, copies, measure=fail if place == "measure" else None, **(
                {} if place == "measure" else {"target": TARGET}
            ))  # fmt: skip
        assert {name: [list(kind) for kind in both] for name, both in hooks_of(lm).items()}.keys() == during.keys()
        assert [len(kind) for both in hooks_of(lm).values() for kind in both] == [
            len(kind) for both in during.values() for kind in both
        ]
        assert len(lm.live_edits) == 1
    assert hooks_of(lm) == before and not lm.live_edits
    if handle is None:
        assert torch.equal(lm.logits(prompt), clean)


class Words:
    """A tokenizer of two words, one of them two tokens long."""

    def __call__(self, text, **_):
        return {"input_ids": [5, 6] if text == " Liechtenstein" else [len(word) for word in text.split()]}

    def decode(self, ids):
        return f"<{ids[0]}>"

    def convert_ids_to_tokens(self, ids):
        return [f"<{i}>" for i in ids]


class Mine(torch.nn.Module):
    """A module that a learner put in the place of a block."""

    def __init__(self, block):
        super().__init__()
        self.forward = block.forward
        self.eval()  # a module is born in train mode, which a sweep refuses


MISUSE = [
    (lambda lm: sweep_heads(lm, "one two"), errors.BadValue, "give a target"),
    (lambda lm: sweep_heads(lm, "one two", 3, measure=text_damage()), errors.BadValue, "not both"),
    (lambda lm: sweep_heads(lm, "one two", " Liechtenstein"), errors.TargetIsNotOneToken, "is 2 tokens here"),
    (lambda lm: sweep_heads(lm, "one two", 97), errors.TargetIsNotOneToken, "tokens 0 to 96"),
    (lambda lm: sweep_heads(lm, ["one two", "three"], [3, 4, 5]), errors.BadValue, "2 prompts and 3 targets"),
    (lambda lm: predictions(lm, [3, 4], [5]), errors.BadValue, "differ in number"),
    (lambda lm: sweep_heads(lm, [], 3), errors.BadPrompt, "empty"),
    (lambda lm: sweep_heads(lm, "", 3), errors.BadPrompt, "empty"),
    (lambda lm: sweep_heads(lm, "one", 3, chunk=0), errors.BadValue, "chunk 0"),
    (lambda lm: sweep_heads(lm, "one", 3, replacement="median"), errors.BadValue, "'median' is unknown"),
    (lambda lm: sweep_heads(lm, "one", 3, replacement=torch.zeros(5, 6)), errors.BadValue, "n_blocks, n_heads, d_head"),
    (lambda lm: sweep_heads(lm, "one", 3, replacement=torch.zeros(4, 9, 5, 6)), errors.BadValue, "pos, n_heads, d_head"),
    (lambda lm: sweep_heads(lm, "one two", 3, replacement="mean"), errors.BadValue, "that prompt's own output"),
    (lambda lm: sweep_heads(lm, ["one", "two"], 3, replacement="resample"), errors.BadValue, "generator"),
    (
        lambda lm: sweep_heads(lm, "one", 3, replacement="resample", generator=torch.Generator()),
        errors.BadValue, "needs other prompts",
    ),
    (lambda lm: sweep_heads(lm, "one", 3, blocks=[]), errors.BadValue, "list of block numbers"),
    (lambda lm: sweep_heads(lm, "one", 3, blocks=2), errors.BadValue, "blocks 2 cannot"),
    (lambda lm: sweep_heads(lm, "one", 3, blocks=[0, 4]), errors.BlockOutOfRange, "block 4"),
    (lambda lm: sweep_blocks(lm, "one", 3, part="heads"), errors.BadValue, "part 'heads'"),
    (lambda lm: sweep_factors(lm, "one", 9, [1.0], 3), errors.BlockOutOfRange, "block 9"),
    (lambda lm: sweep_factors(lm, "one", 1, [float("nan")], 3), errors.BadFactor, "nan"),
    (lambda lm: sweep_factors(lm, "one", 1, [], 3), errors.BadValue, r"factors \[\] cannot be used: give a list"),
    (lambda lm: sweep_edits(lm, "one", skip_block(0), 3), errors.BadEdit, "list of edits"),
    (lambda lm: sweep_edits(lm, "one", [[]], 3), errors.BadEdit, "empty list"),
    (lambda lm: sweep_edits(lm, "one", [0], 3), errors.BadEdit, "not an edit"),
    (lambda lm: sweep_edits(lm, "one", [skip_block(4)], 3), errors.BlockOutOfRange, "block 4"),
    (lambda lm: sweep_edits(lm, "one", [change("mlp", 1, lambda v: None)], 3), errors.BadEdit, "must return"),
    (lambda lm: sweep_edits(lm, "one", [skip_block(0, positions=1)], 3), errors.PositionOutOfRange, "position 1"),
    (lambda lm: sweep_heads("one", lm, 3), errors.BadValue, "first argument must be a model"),
    (lambda lm: sweep_blocks("one", lm, 3), errors.BadValue, "first argument must be a model"),
    (lambda lm: sweep_block_pairs("one", lm, 3), errors.BadValue, "first argument must be a model"),
    (lambda lm: sweep_edits("one", lm, [skip_block(0)], 3), errors.BadValue, "first argument must be a model"),
    (lambda lm: sweep_factors("one", lm, 1, [0.5], 3), errors.BadValue, "first argument must be a model"),
    (lambda lm: mean_heads("one", lm), errors.BadValue, "first argument must be a model"),
    (lambda lm: windows("one two", lm, 2), errors.BadValue, "first argument must be a model"),
    (lambda lm: sweep_factors(lm, "one", 1, 0.5, 3), errors.BadValue, "factors 0.5 cannot be used"),
    (lambda lm: sweep_factors(lm, "one", 1, torch.tensor(0.5), 3), errors.BadValue, "factors 0.5 cannot be used"),
    (lambda lm: sweep_blocks(lm, "one", part=["mlp"]), errors.BadValue, "part .* is unknown"),
    (lambda lm: sweep_blocks(lm, "one", measure=3), errors.BadValue, "a measure must be a function"),
    (lambda lm: sweep_blocks(lm, "one", measure=lambda o: 0.5), errors.BadValue, "a float"),
    (lambda lm: sweep_blocks(lm, "one", measure=lambda o: o.clean), errors.BadValue, r"shape \(97,\)"),
    (lambda lm: sweep_blocks(lm, "one", measure=text_damage()), errors.BadPrompt, "two tokens"),
    (
        lambda lm: sweep_blocks(lm, ["one two", "one"], measure=Measure(lambda o: o.edited.argmax(-1), every_position=True)),
        errors.BadValue, r"shape \(1,\) for a copy of prompt 1 and \(2,\) for one of prompt 0",
    ),
    (lambda lm: windows(lm, "one two", 3), errors.BadPrompt, "no window of 3"),
    (lambda lm: windows(lm, "one two", 33), errors.PromptTooLong, "32 positions"),
    (lambda lm: (lm.model.train(), sweep_blocks(lm, "one", 3)), errors.BadValue, "the model is in train mode"),
    (lambda lm: (lm.mlp(2).train(), sweep_blocks(lm, "one", 3)), errors.BadValue, r"h\[2\].mlp is in train mode"),
    (
        lambda lm: sweep_heads(lm, "one", 3, replacement=torch.zeros(4, 4, 6, dtype=torch.complex64)),
        errors.BadValue, "complex",
    ),
    (lambda lm: sweep_heads(lm, "one", 3, replacement=torch.zeros(5, 6)), errors.BadValue, "is for sweep_edits"),
    (
        lambda lm: (lm.model.transformer.h.__setitem__(1, lm.blocks[2]), sweep_heads(lm, "one", 3)),
        errors.DidNotRun, r"each block once in a pass: lm.model.transformer.h\[1\] ran 2 times",
    ),
    (
        lambda lm: (lm.model.register_forward_hook(lambda m, args, out: None), sweep_blocks(lm, "one", 3)),
        errors.BadValue, "lm.model as a whole",
    ),
    (
        lambda lm: (lm.model.transformer.register_forward_hook(lambda m, args, out: None), sweep_blocks(lm, "one", 3)),
        errors.BadValue, "lm.model.transformer as a whole",
    ),
    (
        lambda lm: (lm.model.transformer.h.__setitem__(1, Mine(lm.blocks[1])), sweep_heads(lm, "one", 3)),
        errors.DidNotRun, "block 1 is of class Mine now",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "says"), MISUSE)
def test_a_mistake_gets_its_sentence(act, kind, says):
    lm = tiny("gpt2")
    lm.tokenizer = Words()
    with pytest.raises(kind, match=says):
        act(lm)
    assert not lm.live_edits and not lm.edit_handles


def test_a_block_of_another_class_can_be_skipped_in_a_sweep_as_in_the_loop():
    lm = tiny("gpt2")
    ids = torch.tensor([[3, 5, 8]])
    plain = sweep_blocks(lm, ids, 3)
    lm.model.transformer.h[1] = Mine(lm.blocks[1])
    torch.testing.assert_close(sweep_blocks(lm, ids, 3), plain, rtol=0, atol=1e-12)


def test_texts_and_lists_of_texts():
    lm = tiny("gpt2")
    lm.tokenizer = Words()
    both = sweep_heads(lm, ["a bb ccc", "dddd e"], [" ffff", 9])
    assert both.shape == (2, 4, 4)
    torch.testing.assert_close(sweep_heads(lm, "a bb ccc", 4), both[0], rtol=0, atol=1e-12)
    assert torch.equal(windows(lm, "a bb ccc dddd eeeee", 2), torch.tensor([[1, 2], [3, 4]]))
    assert torch.equal(windows(lm, "a bb ccc dddd eeeee", 2, most=1), torch.tensor([[1, 2]]))


def test_each_window_begins_as_a_text_does():
    class Marked(Words):
        def __call__(self, text, add_special_tokens=True, **options):
            ids = super().__call__(text, **options)["input_ids"]
            return {"input_ids": [7, *ids] if add_special_tokens else ids}

    lm = tiny("gpt2")
    lm.tokenizer = Marked()
    assert torch.equal(windows(lm, "a bb ccc dddd eeeee", 3), torch.tensor([[7, 1, 2], [7, 3, 4]]))


def test_noise_draws_from_its_generator():
    lm = tiny("gpt2")
    (prompt,) = texts(6)
    make = lambda: noise_neurons(1, slice(0, None, 2), 0.0, 1.0, torch.Generator().manual_seed(3))  # noqa: E731
    found = sweep_edits(lm, prompt, [make()], TARGET)
    torch.testing.assert_close(found, loop(lm, [prompt], [(make(),)])[0], rtol=0, atol=1e-12)


# ---- progress


def test_a_function_that_is_told_and_runs_the_model_does_not_get_the_sweeps_edits():
    lm = tiny("gpt2")
    (prompt,) = texts(6)
    with pytest.raises(errors.BadEdit, match="runs the model itself"):
        sweep_heads(lm, prompt, TARGET, progress=lambda done, total: lm.model(prompt[None]))
    torch.testing.assert_close(lm.model(prompt[None]).logits, lm.logits(prompt))


def test_progress_is_told_to_a_function_and_to_nobody_else(capfd):
    lm = tiny("gpt2")
    prompts = as_tokens(texts(6, 4))
    told = []
    sweep_heads(lm, prompts, TARGET, progress=lambda done, total: told.append((done, total)), chunk=8)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (2 * 16 * 4, 2 * 16 * 4) and {total for _, total in told} == {2 * 16 * 4}
    sweep_heads(lm, prompts, TARGET)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("asked", "shown"), [(True, True), (False, False)])
def test_a_bar_is_shown_for_a_long_sweep_if_asked(monkeypatch, asked, shown):
    import tqdm

    lm = tiny("gpt2")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    original = tqdm.tqdm.__init__
    monkeypatch.setattr(tqdm.tqdm, "__init__", lambda self, **named: original(self, **{**named, "delay": 0}))
    sweep_heads(lm, texts(6)[0], TARGET, progress=asked)
    assert ("sweep  " in written.getvalue()) == shown


def test_a_bar_under_a_cell_is_one_line_that_goes_away(monkeypatch):
    import IPython.display
    import tqdm

    lm = tiny("gpt2")
    lines, handles, written = [], [], io.StringIO()

    class Handle:
        def update(self, data, raw):
            lines.append(data)

    def display(data, raw, display_id):
        handles.append(display_id)
        lines.append(data)
        return Handle()

    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": True}})
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(sys, "stderr", written)
    sweep_heads(lm, texts(6)[0], TARGET)
    assert lines == []  # a short sweep needs none
    original = tqdm.tqdm.__init__
    monkeypatch.setattr(
        tqdm.tqdm, "__init__", lambda self, **named: original(self, **{**named, "delay": 0, "mininterval": 0})
    )
    sweep_heads(lm, texts(6)[0], TARGET, chunk=8)
    assert handles == [True] and len(lines) > 3  # shown once, then it moves
    full = [line["text/plain"] for line in lines if line["text/plain"]][-1]
    assert "100 %" in full and "█" in full
    assert lines[-1] == {"text/plain": ""} and written.getvalue() == ""


@pytest.mark.parametrize(
    ("content", "watched"),
    [
        ({"allow_stdin": True}, True),
        ({"allow_stdin": False}, False),
        ({}, False),
    ],  # by hand; by nbclient; from a widget
)
def test_in_a_notebook_only_a_person_gets_a_bar(monkeypatch, content, watched):
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": content})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel)))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert somebody_watches() is watched
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not somebody_watches()
