"""Bad input, one row a kind: its exception, its sentence, and nothing half applied."""
# ruff: noqa: E501  (a row a line is how a table reads best)

import re

import pytest
import torch
from tiny import tiny

import helpers
from helpers import (
    add_to_block,
    change,
    edit,
    errors,
    noise_neurons,
    patch_block,
    replace_heads,
    scale_block,
    scale_mlp,
    skip_block,
    trace,
    wrap,
    zero_heads,
    zero_keys,
)
from helpers.edits import Edit
from helpers.models import Tokens

nan, inf = float("nan"), float("inf")
IDS = torch.arange(2, 24).reshape(2, 11)
G = torch.Generator().manual_seed(0)


def run(lm, *edits, ids=IDS):
    with edit(lm, *edits):
        return trace(lm, ids)


def floating(value):
    return value.float()


ROWS = [
    # blocks
    ("block too large", lambda lm: run(lm, scale_block(4, 0.5)), "BlockOutOfRange",
     r"block 4 does not exist.*blocks 0 to 3; choose.*hidden state 4 is the output of block 3"),
    ("block negative", lambda lm: run(lm, skip_block(-1)), "BlockOutOfRange", r"block -1 does not exist.*0 to 3; choose"),
    ("block as text", lambda lm: run(lm, skip_block("2")), "BlockOutOfRange", r"block '2' \(str\).*choose one from 0 to 3"),
    ("block as bool", lambda lm: run(lm, skip_block(True)), "BlockOutOfRange", r"block True \(bool\).*from 0 to 3"),
    ("block as fraction", lambda lm: run(lm, skip_block(1.5)), "BlockOutOfRange", r"block 1\.5 \(float\).*from 0 to 3"),
    ("stop after no block", lambda lm: trace(lm, IDS, stop_after=9), "BlockOutOfRange", r"block 9 .*0 to 3; choose"),
    ("attention of no block", lambda lm: lm.attention(7), "BlockOutOfRange", r"block 7 .*0 to 3; choose"),
    # factors
    ("factor NaN", lambda lm: run(lm, scale_block(1, nan)), "BadFactor", r"factor nan cannot.*finite number, for example 0\.5"),
    ("factor inf", lambda lm: run(lm, scale_block(1, -inf)), "BadFactor", r"factor -inf cannot.*a finite number"),
    ("factor text", lambda lm: run(lm, scale_block(1, "half")), "BadFactor", r"factor 'half' cannot.*a finite number"),
    ("factor None", lambda lm: run(lm, scale_mlp(1, None)), "BadFactor", r"factor None cannot.*a finite number"),
    ("factor bool", lambda lm: run(lm, scale_mlp(1, True)), "BadFactor", r"factor True cannot.*a finite number"),
    ("factor complex", lambda lm: run(lm, scale_mlp(1, 1j)), "BadFactor", r"factor 1j cannot.*a finite number"),
    ("factor huge", lambda lm: run(lm, scale_mlp(1, 10**400)), "BadFactor", r"factor 10+ cannot.*a finite number"),
    ("mean NaN", lambda lm: run(lm, noise_neurons(1, [0], nan, 1, G)), "BadFactor", r"mean nan cannot.*a finite number"),
    ("std negative", lambda lm: run(lm, noise_neurons(1, [0], 0, -1, G)), "BadFactor", r"std -1 cannot.*finite number, 0 or more"),
    # heads, keys, neurons
    ("head too large", lambda lm: run(lm, zero_heads(1, [0, 4])), "HeadOutOfRange", r"head 4 does not exist.*heads 0 to 3; choose"),
    ("head negative", lambda lm: run(lm, zero_heads(1, -1)), "HeadOutOfRange", r"head -1 does not exist.*heads 0 to 3"),
    ("head twice", lambda lm: run(lm, zero_heads(1, [2, 2])), "HeadOutOfRange", r"\[2, 2\] name one more than once: give each only once"),
    ("no head", lambda lm: run(lm, zero_heads(1, [])), "HeadOutOfRange", r"\[\] does not name heads.*for example 3 or \[0, 3\]"),
    ("head as text", lambda lm: run(lm, zero_heads(1, "3")), "HeadOutOfRange", r"'3' does not name heads: give whole numbers"),
    ("head as fraction", lambda lm: run(lm, zero_heads(1, [1.0])), "HeadOutOfRange", r"\[1\.0\] does not name heads"),
    ("mask as heads", lambda lm: run(lm, zero_heads(1, [True, False])), "HeadOutOfRange", r"\[True, False\] does not name heads"),
    ("key head too large", lambda lm: run(lm, zero_keys(1, 2)), "HeadOutOfRange", r"key head 2 does not exist.*key heads 0 to 1"),
    ("neuron too large", lambda lm: run(lm, noise_neurons(1, [40], 0, 1, G)), "NeuronOutOfRange", r"neuron 40 .*neurons 0 to 39; choose"),
    ("empty slice of neurons", lambda lm: run(lm, noise_neurons(1, slice(50, 60), 0, 1, G)), "NeuronOutOfRange",
     r"slice\(50, 60, None\) chooses none of the 40 neurons: choose from 0 to 39"),
    ("no generator", lambda lm: run(lm, noise_neurons(1, [0], 0, 1, 42)), "BadValue", r"generator must be.*manual_seed\(0\), but this is 42"),
    # positions
    ("position too large", lambda lm: run(lm, scale_block(1, 2, 11)), "PositionOutOfRange",
     r"position 11 does not exist: this prompt has 11 tokens, at positions 0 to 10; choose"),
    ("position too negative", lambda lm: run(lm, scale_block(1, 2, [0, -12])), "PositionOutOfRange", r"position -12 .*0 to 10"),
    ("empty slice", lambda lm: run(lm, scale_block(1, 2, slice(20, 30))), "PositionOutOfRange", r"chooses none of the 11 .*0 to 10"),
    ("position as text", lambda lm: run(lm, scale_block(1, 2, "last")), "PositionOutOfRange", r"positions 'last' cannot.*None for all"),
    ("no position", lambda lm: run(lm, scale_block(1, 2, [])), "PositionOutOfRange", r"positions \[\] cannot be used: give None for all"),
    ("mask as positions", lambda lm: run(lm, scale_block(1, 2, [True] * 11)), "PositionOutOfRange", r"positions \[True.*a list of them"),
    ("slice of texts", lambda lm: run(lm, scale_block(1, 2, slice("a", None))), "PositionOutOfRange", r"slice\('a'.*whole numbers"),
    ("slice without step", lambda lm: run(lm, scale_block(1, 2, slice(0, 9, 0))), "PositionOutOfRange", r"slice\(0, 9, 0\).*whole numbers"),
    # tensors
    ("vector of wrong width", lambda lm: run(lm, add_to_block(1, torch.ones(23))), "BadValue",
     r"the vector has shape \(23,\), which does not fit \(2, 11, 24\).*give that shape"),
    ("vector of NaN", lambda lm: run(lm, add_to_block(1, torch.full((24,), nan))), "BadValue", r"the vector holds .*NaN.*must be real and finite"),
    ("complex vector", lambda lm: run(lm, add_to_block(1, torch.ones(24) * 1j)), "BadValue", r"the vector holds complex"),
    ("patch of another prompt", lambda lm: run(lm, patch_block(1, torch.ones(2, 9, 24))), "BadValue", r"\(2, 9, 24\).*\(2, 11, 24\)"),
    ("patch as a list", lambda lm: run(lm, patch_block(1, [1.0])), "BadValue", r"the patch must be a tensor, but this is a list.*torch\.tensor"),
    ("replacement of wrong shape", lambda lm: run(lm, replace_heads(1, [0, 1], torch.ones(3, 8))), "BadValue",
     r"the replacement has shape \(3, 8\), which does not fit \(2, 11, 2, 8\)"),
    ("replacement as a number", lambda lm: run(lm, replace_heads(1, [0], 0.0)), "BadValue", r"the replacement must be a tensor.*float"),
    # functions
    ("no site", lambda lm: run(lm, change("stream", 1, floating)), "BadEdit", r"no site 'stream'.*choose one of block, attention, mlp"),
    ("no function", lambda lm: run(lm, change("mlp", 1, 0.5)), "BadEdit", r"change needs a function.*but this is 0\.5"),
    ("function returns None", lambda lm: run(lm, change("mlp", 1, lambda v: None)), "BadEdit", r"change\('mlp', 1.*returned None.*\(2, 11, 24\)"),
    ("function returns a number", lambda lm: run(lm, change("mlp", 1, lambda v: 3)), "BadEdit", r"returned a value of type int.*must return the new tensor"),
    ("function returns another shape", lambda lm: run(lm, change("mlp", 1, lambda v: v[:1])), "BadEdit",
     r"tensor of shape \(1, 11, 24\) in place of \(2, 11, 24\): return one of the same shape"),
    ("function returns another dtype", lambda lm: run(lm, change("block", 1, floating)), "BadEdit",
     r"floating\) returned a tensor of dtype torch\.float32 in place of torch\.float64: return one of the same dtype"),
    ("function returns another device", lambda lm: run(lm, change("heads", 1, lambda v: v.to("meta"))), "BadEdit",
     r"device meta in place of cpu: return one of the same device"),
    ("no edit", lambda lm: run(lm, skip_block), "BadEdit", r"function skip_block.* is not an edit: pass edits such as scale_block\(2, 0\.5\)"),
    ("a list of edits", lambda lm: run(lm, [skip_block(1)]), "BadEdit", r"\[skip_block\(1\)\] is not an edit: .*one by one"),
    ("a hand-made edit of no site", lambda lm: run(lm, Edit("mine", "soul", 1, lambda v, s: v)), "BadEdit", r"no site 'soul'.*choose one of"),
    ("good edit, then a bad one", lambda lm: run(lm, skip_block(1), zero_heads(2, 9)), "HeadOutOfRange", r"head 9 .*heads 0 to 3"),
    ("good with, then a bad one inside", lambda lm: run(lm, skip_block(1)) and inside(lm), "BlockOutOfRange", r"block 99 .*0 to 3"),
    # models
    ("edit of a plain model", lambda lm: run(lm.model, skip_block(1)), "BadValue", r"must be a model of the helpers, not a LlamaFor.*wrap\(model\)"),
    ("edit without a model", lambda lm: edit(skip_block(1)), "BadValue", r"must be a model of the helpers, not skip_block\(1\)"),
    ("trace of a plain model", lambda lm: trace(lm.model, IDS), "BadValue", r"must be a model of the helpers.*load_model\(\)"),
    ("wrapping a name", lambda lm: wrap("gpt2"), "BadValue", r"wrap needs a transformers model.*not 'gpt2' \(str\)"),
    ("wrapping a plain module", lambda lm: wrap(torch.nn.Identity()), "BadValue", r"wrap needs a transformers model.*from_pretrained"),
    ("wrapping a model without its head", lambda lm: wrap(lm.model.model), "UnsupportedFamily", r"'llama'.*pass the language model with its head"),
    # prompts
    ("prompt of no kind", lambda lm: trace(lm, 42), "BadPrompt", r"must be text, a list of texts or a tensor.*this is 42 \(int\)"),
    ("prompt None", lambda lm: trace(lm, None), "BadPrompt", r"must be text.*None \(NoneType\)"),
    ("list of lists", lambda lm: trace(lm, [[1, 2]]), "BadPrompt", r"must be text, a list of texts.*\[\[1, 2\]\]"),
    ("no prompts", lambda lm: trace(lm, []), "BadPrompt", r"list of prompts is empty: give at least one"),
    ("text without a tokenizer", lambda lm: trace(lm, "Berlin"), "BadPrompt", r"without a tokenizer.*pass a tensor of ids"),
    ("ids that are fractions", lambda lm: trace(lm, IDS * 0.5), "BadPrompt", r"whole numbers of shape \(pos,\) or \(batch, pos\).*\(2, 11\) torch\.float32"),
    ("ids of three axes", lambda lm: trace(lm, IDS[None]), "BadPrompt", r"whole numbers of shape.*\(1, 2, 11\)"),
    ("no ids", lambda lm: trace(lm, IDS[:, :0]), "BadPrompt", r"whole numbers of shape.*\(2, 0\).*pass one row"),
    ("id too large", lambda lm: trace(lm, IDS + 90), "BadPrompt", r"token id 97 does not exist: this model has tokens 0 to 96"),
    ("id negative", lambda lm: trace(lm, IDS - 3), "BadPrompt", r"token id -1 does not exist: this model has tokens 0 to 96"),
    ("too many ids", lambda lm: trace(lm, torch.ones(33, dtype=torch.long)), "PromptTooLong", r"33 tokens, but .* 32 positions: shorten it by at least 1"),
    ("mask of another shape", lambda lm: trace(lm, Tokens(IDS, IDS[:1] > 0)), "BadPrompt", r"mask must be bool.*\(2, 11\).*lm\.encode"),
    ("mask of padding alone", lambda lm: trace(lm, Tokens(IDS, IDS > 12)), "BadPrompt", r"mask must be bool.*a real token in each row"),
    ("mask of numbers", lambda lm: trace(lm, Tokens(IDS, IDS)), "BadPrompt", r"mask must be bool.*torch\.int64"),
    ("padding side", lambda lm: lm.encode(["a"], padding="middle"), "BadValue", r"padding 'middle' is not a side: choose 'left' or 'right'"),
    ("float64, eager, padded on the left", lambda lm: trace(lm, Tokens(IDS, IDS != 2)), "BadValue", r"gives NaN in float64.*pad on the right"),
    ("target of no kind", lambda lm: lm.token_id(3), "TargetIsNotOneToken", r"must be text, for example ' Germany', but this is 3 \(int\)"),
    # readings
    ("logits of a stopped trace", lambda lm: trace(lm, IDS, stop_after=1).last_logits, "BadValue", r"stopped at a block.*trace again without"),
    ("runs of two prompts", lambda lm: helpers.delta_norm(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 2, 4)), "BadValue",
     r"\(2, 1, 3, 4\) and \(2, 1, 2, 4\): trace the same prompt"),
    ("stream of three axes", lambda lm: helpers.step_norm(torch.ones(2, 3, 4)), "BadValue", r"\(points, batch, pos, d_model\).*\(2, 3, 4\)"),
    ("a trace for its stream", lambda lm: helpers.step_norm(trace(lm, IDS)), "BadValue", r"expected a tensor, but this is a Trace.*resid"),
    ("nothing but a first token", lambda lm: helpers.step_norm(torch.ones(2, 1, 1, 4), include_first=False), "BadValue", r"one token.*longer prompt"),
    ("first token not first", lambda lm: helpers.step_norm(torch.ones(2, 1, 3, 4), False, torch.tensor([[False, True, True]])), "BadValue",
     r"not in the first column: pad on the right"),
    ("mask for another stream", lambda lm: helpers.step_norm(torch.ones(2, 1, 3, 4), mask=torch.ones(3)), "BadValue", r"bool of shape \(1, 3\).*\(3,\)"),
    ("token not in the logits", lambda lm: helpers.log_prob(torch.ones(5), 5), "BadValue", r"token id 5 does not exist.*0 to 4.*lm\.token_id"),
    ("token negative", lambda lm: helpers.logit_difference(torch.ones(5), 1, -1), "BadValue", r"token id -1 does not exist.*0 to 4"),
    ("token as text", lambda lm: helpers.log_prob(torch.ones(5), " Germany"), "BadValue", r"token id ' Germany' .*lm\.token_id"),
    ("tokens for other rows", lambda lm: helpers.log_prob(torch.ones(3, 5), torch.tensor([1, 2])), "BadValue", r"each row.*\(3,\).*\(2,\)"),
    ("two vocabularies", lambda lm: helpers.kl(torch.ones(5), torch.ones(6)), "BadValue", r"differ in shape, \(5,\) and \(6,\)"),
    ("top of many rows", lambda lm: helpers.top_k(lm, torch.ones(3, 5)), "BadValue", r"one position.*\(3, 5\): index one"),
    ("top zero", lambda lm: helpers.top_k(lm, torch.ones(5), 0), "BadValue", r"k = 0 cannot.*whole number from 1 to 5"),
    ("top without a tokenizer", lambda lm: helpers.top_k(lm, torch.ones(5), 2), "BadValue", r"without a tokenizer.*wrap\(model, tokenizer\)"),
    ("interval of one value", lambda lm: helpers.bootstrap_interval(torch.ones(1), G), "BadValue", r"two values or more, but there is 1: measure more"),
    ("interval of NaN", lambda lm: helpers.bootstrap_interval(torch.tensor([1, nan]), G), "BadValue", r"NaN or infinity.*finite numbers only"),
    ("level", lambda lm: helpers.bootstrap_interval(torch.ones(3), G, level=95), "BadValue", r"level 95 cannot.*between 0 and 1"),
    ("draws", lambda lm: helpers.bootstrap_interval(torch.ones(3), G, draws=0), "BadValue", r"draws = 0 cannot.*1 or more"),
    ("interval without a generator", lambda lm: helpers.bootstrap_interval(torch.ones(3), None), "BadValue", r"must be a torch\.Generator.*None"),
    ("loading nothing", lambda lm: helpers.load_model(""), "UnknownModel", r"'' is not the name of a model: use 'pocket'"),
    ("loading a number", lambda lm: helpers.load_model(2), "UnknownModel", r"2 is not the name of a model"),
    ("dtype as text", lambda lm: helpers.load_model(dtype="float33"), "BadValue", r"dtype 'float33' cannot.*torch\.float32"),
    ("dtype of whole numbers", lambda lm: helpers.load_model(dtype=torch.int8), "BadValue", r"dtype torch\.int8 cannot.*floating"),
    ("no threads", lambda lm: helpers.load_model(threads=0), "BadValue", r"threads 0 cannot.*1 or more"),
]  # fmt: skip


def inside(lm):
    """A bad edit inside a good one: the good one goes, too, when the error leaves it."""
    with edit(lm, scale_block(1, 0.5)):
        run(lm, skip_block(99))


def hooks_of(lm):
    return [(name, list(m._forward_hooks), list(m._forward_pre_hooks)) for name, m in lm.model.named_modules()]


@pytest.fixture(scope="module")
def lm():
    model = tiny("llama")
    model.blocks[1].register_forward_hook(lambda *_: None)  # a learner's own: it must stay
    return model


@pytest.fixture(scope="module")
def clean(lm):
    return trace(lm, IDS)


@pytest.mark.parametrize(("do", "kind", "sentence"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_input_gets_its_sentence_and_changes_nothing(lm, clean, do, kind, sentence):
    hooks, generator, threads = hooks_of(lm), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(errors.HelpersError) as caught:
        do(lm)
    said = str(caught.value)
    assert type(caught.value) is getattr(errors, kind)
    assert re.search(sentence, said, re.DOTALL), said
    assert "\n" not in said and len(said) < 700 and "<object" not in said
    assert hooks_of(lm) == hooks and lm.live_edits == [] and lm.edit_handles == []
    assert torch.get_rng_state().equal(generator) and torch.get_num_threads() == threads and not lm.model.training
    after = trace(lm, IDS)
    assert after.resid.equal(clean.resid) and after.logits.equal(clean.logits)


def test_there_are_at_least_forty_kinds_of_bad_input():
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 40


def test_every_kind_of_mistake_has_its_class_and_says_when():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(kind, errors.HelpersError) and kind.__doc__ for kind in kinds)
    assert issubclass(errors.HelpersError, ValueError)


def test_wrapping_what_is_refused_leaves_its_mode_alone():
    model = tiny("llama").model.model.train()
    with pytest.raises(errors.UnsupportedFamily):
        wrap(model)
    assert model.training
