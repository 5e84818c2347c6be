"""Every later family of the table: what its row claims, against weight surgery and patched forwards on a copy of the model.

The names of weights below are this file's own, so that a wrong row cannot agree with itself. tests/test_trace.py and
others compare the first ten families with a pass by hand.
"""

import copy

import pytest
import torch
from reference import far
from test_edits import returned_values
from test_generation import generated
from test_gradients import IDS as TWO
from test_gradients import by_plain_hooks, number_of, slopes_by_pushing
from test_positions import LONG, SHORT, padded
from test_replay import whole_pass
from test_sweeps import loop, sites, texts
from tiny import CONFIGS, MORE, here, tiny

from helpers import (
    FAMILIES,
    add_to_block,
    attention_patterns,
    change,
    edit,
    errors,
    noise_neurons,
    read_site,
    scale_block,
    skip_attention,
    skip_block,
    skip_mlp,
    sweep_edits,
    sweep_heads,
    trace,
    zero_heads,
    zero_keys,
)  # fmt: skip
from helpers.families import family_named
from helpers.replay import Replay

# What models of these families come with: other settings change where the parts are, or what they do.
VARIANTS = {
    "falcon, one key head": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": None}),
    "falcon, a key head for each": ("falcon", {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": None}),
    "falcon, sequential": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": None},
    ),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "cohere, normed": ("cohere", {"use_qk_norm": True}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "phi3, short": ("phi3", {"hidden_size": 32, "partial_rotary_factor": 0.5}),
}  # fmt: skip
CASES = {family: (family, {}) for family in MORE if here(family)} | VARIANTS
EXPERTS = [family for family in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss") if here(family)]

# ---- where the weights are, independently of helpers/families.py

LLAMA = {
    "blocks": "model.layers",
    "k": "self_attn.k_proj",
    "o": "self_attn.o_proj",
    "pre": "mlp.gate_proj",
    "out": "mlp.down_proj",
}
WEIGHTS = dict.fromkeys(MORE, LLAMA) | {
    "gptj": {"blocks": "transformer.h", "k": "attn.k_proj", "o": "attn.out_proj", "pre": "mlp.fc_in", "out": "mlp.fc_out"},
    "falcon": {
        "blocks": "transformer.h", "k": "self_attention.query_key_value", "o": "self_attention.dense",
        "pre": "mlp.dense_h_to_4h", "out": "mlp.dense_4h_to_h",
    },
    "gpt_neox": {
        "blocks": "gpt_neox.layers", "k": "attention.query_key_value", "o": "attention.dense", "pre": "mlp.dense_h_to_4h",
        "out": "mlp.dense_4h_to_h",
    },
    "starcoder2": LLAMA | {"pre": "mlp.c_fc", "out": "mlp.c_proj"},
    "phi": LLAMA | {"o": "self_attn.dense", "pre": "mlp.fc1", "out": "mlp.fc2"},
    "phi3": LLAMA | {"k": "self_attn.qkv_proj", "pre": "mlp.gate_up_proj"},
    "glm": LLAMA | {"pre": "mlp.gate_up_proj"},
    "glm4": LLAMA | {"pre": "mlp.gate_up_proj"},
    "gemma3": LLAMA | {"blocks": "model.language_model.layers"},
}  # fmt: skip
NORMED_KEYS = ("olmo2", "olmo3", "olmoe")  # one norm over all key heads: only after it can one of them be zero alone


def surgery(lm, family, block, cut):
    """Logits of a copy of the model after `cut(block's module, names)` has changed its weights."""
    model = copy.deepcopy(lm.model)
    names = WEIGHTS[family]
    with torch.no_grad():
        cut(model.get_submodule(names["blocks"])[block], names)
        return model(input_ids=IDS, use_cache=False).logits


def zero_rows(module, rows):
    module.weight[rows] = 0
    if getattr(module, "bias", None) is not None:
        module.bias[rows] = 0


IDS = torch.randint(2, 97, (3, 11), generator=torch.Generator().manual_seed(1))
CLOSE = 1e-9  # float64; some families multiply queries and keys, or make their softmax, in float32


def edited(lm, *edits):
    with edit(lm, *edits):
        return lm.logits(IDS)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    family, changes = CASES[request.param]
    return family, tiny(family, **changes)


def columns(lm, heads):
    return torch.cat([torch.arange(h * lm.d_head, (h + 1) * lm.d_head) for h in heads])


# ---- traces


def test_the_stream_is_the_librarys_own_and_the_sum_of_its_deltas(case):
    _, lm = case
    found = trace(lm, IDS)
    with torch.no_grad():
        theirs = lm.model(input_ids=IDS, use_cache=False, output_hidden_states=True)
    assert far(found.resid[:-1], torch.stack(list(theirs.hidden_states[:-1]))) < 1e-14
    assert far(found.logits, theirs.logits) < 1e-14
    assert far(found.resid[:-1] + found.attn + found.mlp, found.resid[1:]) < 1e-14
    assert found.attn.abs().amax((1, 2, 3)).min() > 1e-3 and found.mlp.abs().amax((1, 2, 3)).min() > 1e-3
    # transformers 4 gives GPT-J's logits in float32 whatever the model's dtype is.
    assert far(lm.read_out(found.resid[-1]), found.logits) < (1e-13 if found.logits.dtype == torch.float64 else 1e-7)


def test_heads_are_what_the_output_projection_reads(case):
    family, lm = case
    names, found = WEIGHTS[family], trace(lm, IDS)
    for block, module in enumerate(lm.model.get_submodule(names["blocks"])):
        projection = module.get_submodule(names["o"])
        delta = torch.nn.functional.linear(found.heads[block].flatten(-2), projection.weight, projection.bias)
        if family in ("olmo2", "olmo3", "exaone4"):
            delta = module.post_attention_layernorm(delta)
        if family == "gemma3":
            delta = module.post_attention_layernorm(delta)
        if family == "glm4":
            delta = module.post_self_attn_layernorm(delta)
        if family == "granite":
            delta = delta * lm.model.config.residual_multiplier
        assert far(found.attn[block], delta) < 1e-12


def test_a_site_that_is_read_is_what_the_trace_holds(case):
    _, lm = case
    found, patterns = trace(lm, IDS), attention_patterns(lm, IDS)
    for site, values in (
        ("block", found.resid[1:]),
        ("attention", found.attn),
        ("mlp", found.mlp),
        ("heads", found.heads),
    ):
        assert all(read_site(lm, IDS, site, block).equal(values[block]) for block in range(lm.n_blocks)), site
    assert (patterns.triu(1) == 0).all() and patterns.sum(-1).max() < 1 + 1e-6
    if not lm.parts.sinks:
        assert patterns.sum(-1).min() > 1 - 1e-6


# ---- gradients


def test_a_trace_with_gradients_is_the_trace_and_they_are_autograds(case):
    """The streams' and the heads' against raw hooks with retain_grad; the MLP's is that of the stream it is added to."""
    _, lm = case
    plain, found = trace(lm, TWO), trace(lm, TWO, gradients=lambda seen: number_of(seen.logits))
    for field in ("resid", "attn", "mlp", "heads", "final", "logits"):
        assert getattr(found, field).equal(getattr(plain, field)), field
    resid, heads = by_plain_hooks(lm)
    assert far(found.gradients.resid, resid) < 1e-12 and far(found.gradients.heads, heads) < 1e-12
    assert far(found.gradients.mlp, resid[1:]) < 1e-12


def test_gradients_of_deltas_agree_with_finite_differences_here_too(case):
    _, lm = case
    for field in ("attn", "mlp"):
        # With a larger step tokens go to other experts; a smaller one measures the rounding of softmaxes in float32.
        for found, slope in slopes_by_pushing(lm, field, 3e-4):
            assert abs(found - slope) < 5e-2 * max(1, abs(slope)), field


def test_gradients_of_edited_passes(case):
    """A factor that is learned, and deltas of a pass in which parts add nothing."""
    _, lm = case
    with edit(lm, skip_mlp(1), skip_attention(2)):
        plain, found = trace(lm, TWO), trace(lm, TWO, gradients=lambda seen: number_of(seen.logits))
    assert found.resid.equal(plain.resid) and not found.mlp[1].any() and not found.attn[2].any()
    mine = torch.zeros(*TWO.shape, lm.d_model, dtype=torch.float64, requires_grad=True)
    with edit(lm, change("mlp", 1, lambda _: mine), skip_attention(2)):
        number_of(lm.model(input_ids=TWO, use_cache=False).logits).backward()
    assert not mine.any() and far(mine.grad, found.gradients.mlp[1]) < 1e-12
    lm.model.zero_grad()


# ---- edits


def test_a_tensor_that_a_function_returns_stays_its_owners_here_too(case):
    _, lm = case
    for site, mine in returned_values(lm, IDS):
        before = mine.clone()
        with edit(lm, change(site, 1, lambda _, mine=mine: mine)):
            one, two = lm.logits(IDS), lm.logits(IDS)
        assert one.equal(two) and mine.equal(before), site


def test_positions_of_padded_prompts_and_of_a_text_that_grows(case):
    _, lm = case
    vector = 3 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with edit(lm, add_to_block(1, vector, [1, -1])):
        both, alone = trace(lm, padded("right")).resid, [trace(lm, ids).resid for ids in (LONG, SHORT)]
    assert far(both[:, :1], alone[0]) < CLOSE and far(both[:, 1:, :4], alone[1]) < CLOSE
    assert far(trace(lm, SHORT).resid, alone[1]) > 1e-2
    one = add_to_block(1, vector, [1, 9])  # a token of the prompt, and one that comes: the third that is generated
    (tokens, logits), (again, expected), (_, clean) = (
        generated(lm, *some, number=4, use_cache=cache) for some, cache in (((one,), True), ((one,), False), ((), True))
    )
    assert tokens.equal(again) and (logits - expected).abs().max() < 1e-4 < (logits - clean).abs().max()


def test_a_replay_equals_the_whole_edited_pass(case):
    _, lm = case
    clean, found = Replay(lm)(TWO, scale_block(1, 0.5), scale_block(3, 0.5))
    for run, scale in ((clean, None), (found, {1: 0.5, 3: 0.5})):
        states, logits = whole_pass(lm, TWO, scale)
        assert far(run.resid[1:], states) < 1e-12 and far(run.last_logits, logits[:, -1]) < 1e-6
    assert far(clean.resid, found.resid) > 1e-2


def test_zeroed_heads_are_zeroed_columns_of_the_output_projection(case):
    family, lm = case

    def cut(module, names):
        module.get_submodule(names["o"]).weight[:, columns(lm, [1, 3])] = 0

    expected = surgery(lm, family, 2, cut)
    assert far(edited(lm, zero_heads(2, [1, 3])), expected) < CLOSE and far(lm.logits(IDS), expected) > 1e-4


def test_zeroed_keys_are_zeroed_rows_of_the_keys_projection(case):
    family, lm = case
    head, width = lm.n_key_heads - 1, lm.d_head
    rows = torch.arange(head * width, (head + 1) * width)
    if family == "phi3":
        rows = rows + lm.n_heads * width
    if family in ("falcon", "gpt_neox"):  # each key head's queries, key and value lie together
        rows = torch.arange(width) + ((head + 1) * (lm.n_heads // lm.n_key_heads + 2) - 2) * width

    def cut(module, names):
        if family in NORMED_KEYS:
            module.self_attn.k_norm.weight[rows] = 0
        else:
            zero_rows(module.get_submodule(names["k"]), rows)

    expected = surgery(lm, family, 1, cut)
    assert far(edited(lm, zero_keys(1, [head])), expected) < CLOSE and far(lm.logits(IDS), expected) > 1e-4


def test_a_head_without_keys_looks_evenly(case):
    _, lm = case
    group = lm.n_heads // lm.n_key_heads
    with edit(lm, zero_keys(0, [0])):
        patterns = attention_patterns(lm, IDS[:, :4])[0]
    mine, others = patterns[:, :group], patterns[:, group:]
    mine = mine / mine.sum(-1, keepdim=True)  # a sink takes a share of its own
    even = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    assert far(mine, even.expand_as(mine)) < 1e-6
    if others.numel():
        assert far(others, attention_patterns(lm, IDS[:, :4])[0][:, group:]) < 1e-6


def test_skipped_parts_are_parts_that_return_zeros(case):
    family, lm = case
    for part, skip in (("attention", skip_attention), ("mlp", skip_mlp)):

        def cut(module, names, part=part):
            if part == "attention":
                zero_rows(module.get_submodule(names["o"]), slice(None))
                return
            inner = module.get_submodule("mlp" if hasattr(module, "mlp") else "block_sparse_moe")
            plain = inner.forward
            inner.forward = lambda *args, **kwargs: (
                (torch.zeros_like(found[0]), *found[1:])
                if isinstance(found := plain(*args, **kwargs), tuple)
                else torch.zeros_like(found)
            )

        expected = surgery(lm, family, 1, cut)
        assert far(edited(lm, skip(1)), expected) < CLOSE and far(lm.logits(IDS), expected) > 1e-4


def test_a_skipped_block_is_one_that_returns_its_input(case):
    family, lm = case

    def cut(module, names):
        plain = module.forward

        def forward(*args, **kwargs):
            found = plain(*args, **kwargs)
            entered = args[0] if args else kwargs["hidden_states"]
            return (entered, *found[1:]) if isinstance(found, tuple) else entered

        module.forward = forward

    expected = surgery(lm, family, 2, cut)
    assert far(edited(lm, skip_block(2)), expected) < CLOSE and far(lm.logits(IDS), expected) > 1e-4


def test_neurons_are_columns_of_their_projection_and_preactivations_rows(case):
    family, lm = case
    if family in EXPERTS:
        pytest.skip("a mixture of experts has no neurons of all tokens")
    chosen = [0, 3, lm.d_mlp - 1]

    def zero(value):
        value[..., chosen] = 0
        return value

    def cut_out(module, names):
        module.get_submodule(names["out"]).weight[:, chosen] = 0

    def cut_pre(module, names):
        zero_rows(module.get_submodule(names["pre"]), chosen)

    for site, cut in (("neurons", cut_out), ("preactivation", cut_pre)):
        expected = surgery(lm, family, 1, cut)
        assert far(edited(lm, change(site, 1, zero)), expected) < CLOSE and far(lm.logits(IDS), expected) > 1e-5


# ---- sweeps


def test_sweeps_equal_the_loop(case):
    _, lm = case
    prompts = texts(7, 5)
    every_head = [(zero_heads(block, [head]),) for block in range(lm.n_blocks) for head in range(lm.n_heads)]
    for prompt in prompts:
        expected = loop(lm, [prompt], every_head)[0].view(lm.n_blocks, lm.n_heads)
        assert expected.abs().min() > 1e-9
        atol = 1e-9 if expected.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(sweep_heads(lm, prompt, 7), expected, rtol=0, atol=atol, check_dtype=False)
    # Each site; key heads are as many as they are here.
    copies = [c for c in sites(lm) if not any(lm.parts.lacks(one.site) for one in c)]
    copies = [c for c in copies if not any(one.site == "keys" for one in c) or lm.n_key_heads > 1]
    expected = loop(lm, prompts[:1], copies)[0]
    torch.testing.assert_close(sweep_edits(lm, prompts[0], copies, 7), expected, rtol=0, atol=atol, check_dtype=False)


# ---- what a family lacks


@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_has_no_neurons_and_says_so(family):
    lm = tiny(family)
    assert lm.d_mlp == 0
    noise = [noise_neurons(1, [0], 0.0, 1.0, torch.Generator(), before_activation=before) for before in (False, True)]
    for one in (*noise, change("neurons", 1, torch.zeros_like), change("preactivation", 1, torch.zeros_like)):
        with pytest.raises(
            errors.BadEdit, match=rf"{family} models have no site '\w+': its MLP is a mixture of experts"
        ):
            edit(lm, zero_heads(0, [1]), one)
    with pytest.raises(errors.BadEdit, match="edit 'mlp', what all of them together add"):
        read_site(lm, IDS, "neurons", 0)
    with pytest.raises(errors.BadEdit, match="mixture of experts"):
        sweep_edits(lm, IDS[0], [change("neurons", 0, torch.zeros_like)], 7)


DROPOUT = {
    "gptj": ["resid_pdrop", "attn_pdrop", "embd_pdrop"], "falcon": ["hidden_dropout", "attention_dropout"], "phi": ["resid_pdrop"],
    "phi3": ["resid_pdrop"], "stablelm": ["hidden_dropout"], "starcoder2": ["residual_dropout"],
}  # fmt: skip


@pytest.mark.parametrize("family", DROPOUT)
def test_the_sum_holds_in_train_mode_or_the_trace_says_why_it_cannot(family):
    lm = tiny(family, **dict.fromkeys(DROPOUT[family], 0.3))
    lm.model.train()
    if family in ("falcon", "phi"):
        with pytest.raises(errors.BadValue, match=r"in train mode .* drop out .*lm.model.eval\(\)"):
            trace(lm, IDS)
        lm = tiny(family, **dict.fromkeys(DROPOUT[family], 0.0))
        lm.model.train()
    torch.manual_seed(5)
    found = trace(lm, IDS)
    assert far(found.resid[:-1] + found.attn + found.mlp, found.resid[1:]) < 1e-14


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("bert", {}, "'bert' is an encoder,"), ("t5", {}, "an encoder-decoder model"), ("mamba", {}, "a state-space or recurrent"),
        ("something-new", {"is_encoder_decoder": True}, "an encoder-decoder model"), ("jamba", {}, "in part at least"),
    ],
)  # fmt: skip
def test_models_that_no_row_can_help_are_told_so(name, config, kind):
    with pytest.raises(errors.UnsupportedFamily, match="decoder-only transformers") as caught:
        family_named(name, config)
    assert kind in str(caught.value) and "family=Family" not in str(caught.value)


def test_an_unknown_decoder_is_told_how_to_write_a_row():
    with pytest.raises(
        errors.UnsupportedFamily,
        match=r"'mpt' models are not in the table.*wrap\(model, tokenizer, family='llama'\).*family=Family",
    ):
        family_named("mpt", {})


def test_a_falcon_with_a_bias_for_distance_is_refused():
    with pytest.raises(errors.UnsupportedFamily, match="alibi=True, as falcon-rw"):
        tiny("falcon", alibi=True)


def test_every_row_of_the_table_has_its_tests():
    assert set(FAMILIES) == set(CONFIGS) | set(MORE)


# ---- settings that change after the model was made

SETTINGS = {
    family: name
    for family, row in FAMILIES.items()
    for name in (row.delta_factor, row.logit_factor, row.logit_divisor, row.logit_cap)
    if name and here(family) and family in CONFIGS | MORE
} | {"granite": "residual_multiplier", "gemma3": "final_logit_softcapping"}  # the last is never read in that class


@pytest.mark.parametrize("family", SETTINGS)
@pytest.mark.parametrize("where", ["config", "modules"])
def test_a_setting_counts_as_the_model_itself_reads_it(family, where):
    """Some models read their config in each pass, others keep a copy: a trace and a sweep follow either."""
    lm, name = tiny(family), SETTINGS[family]
    if where == "config":
        setattr(lm.config, name, 1.7 * (getattr(lm.config, name) or 3.0))
    for number, module in enumerate(one for one in lm.model.modules() if name in vars(one) and where == "modules"):
        setattr(module, name, (1.7 + number / 10) * vars(module)[name])  # of each block another
    found = trace(lm, IDS)
    assert far(found.resid[:-1] + found.attn + found.mlp, found.resid[1:]) < 1e-14
    assert far(lm.read_out(found.resid[-1]), found.logits) < 1e-13
    before, effects = lm.logits(IDS[:1])[0, -1].log_softmax(-1)[5], sweep_heads(lm, IDS[0], 5)
    for block in range(lm.n_blocks):
        with edit(lm, zero_heads(block, [1])):
            assert abs(lm.logits(IDS[:1])[0, -1].log_softmax(-1)[5] - before - effects[block, 1]) < CLOSE


def test_an_edit_of_a_delta_takes_the_factor_that_its_block_has_now():
    if not here("granite"):
        pytest.skip("not in this transformers")
    lm = tiny("granite")
    step = torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    block = lm.blocks[2]
    with edit(lm, change("mlp", 2, lambda value: value + step)):
        for factor in (0.3, 2.0):
            block.residual_multiplier = factor
            found = lm.logits(IDS)
            plain = copy.deepcopy(lm).model
            plain.model.layers[2].mlp.register_forward_hook(lambda m, args, out, f=factor: out + step / f)
            with torch.no_grad():
                assert far(found, plain(IDS, use_cache=False).logits) < 1e-12


@pytest.mark.parametrize("family", ["opt", "falcon", "phi"])
def test_dropout_that_a_block_still_has_is_not_forgotten_with_its_setting(family):
    name = FAMILIES[family].hidden_dropout
    lm = tiny(family, **{name: 0.4})
    setattr(lm.config, name, 0.0)
    lm.model.train()
    if family != "opt":
        with pytest.raises(errors.BadValue, match=rf"{name}=0\.4"):
            trace(lm, IDS)
        return
    found = trace(lm, IDS)
    assert far(found.resid[:-1] + found.attn + found.mlp, found.resid[1:]) < 1e-14
