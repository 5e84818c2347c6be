"""What was asked for happened, or the pass raises: replaced, left out, compiled, checkpointed and shared modules, and threads."""

import copy
import io
import pickle
import sys
import threading

import pytest
import torch
from reference import far
from test_trace import FAMILIES, by_hand
from tiny import tiny
from torch.utils.checkpoint import checkpoint

from helpers import (
    add_to_block,
    attention_patterns,
    change,
    edit,
    read_site,
    scale_block,
    skip_block,
    skip_mlp,
    sweep_blocks,
    sweep_edits,
    sweep_heads,
    trace,
    wrap,
    zero_heads,
)  # fmt: skip
from helpers.errors import BadEdit, BadValue, DidNotRun

IDS = torch.arange(2, 24).reshape(2, 11)


def blocks_of(lm):
    path, _, name = lm.parts.blocks.rpartition(".")
    return lm.model.get_submodule(path), name


def under(lm, *edits):
    with edit(lm, *edits):
        return lm.model(input_ids=IDS, use_cache=False).logits


def hooks_of(lm):
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in lm.model.modules()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_was_put_in_later_is_the_one_that_is_edited(family):
    lm = tiny(family)
    owner, name = blocks_of(lm)
    getattr(owner, name)[1] = copy.deepcopy(getattr(owner, name)[1])
    with torch.no_grad():
        found = under(lm, skip_block(1))
    skipped = by_hand(lm, lm.encode(IDS), at=lambda site, b, value, s: s if (site, b) == ("block", 1) else value)
    assert far(found, skipped.logits) < 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_is_replaced_inside_the_with_is_an_error(family):
    lm = tiny(family)
    owner, name = blocks_of(lm)
    with pytest.raises(
        DidNotRun, match=r"skip_block\(1\) did nothing in this pass: \S+\[1\] did not run, since it was replaced"
    ):
        with edit(lm, skip_block(1)):
            getattr(owner, name)[1] = copy.deepcopy(getattr(owner, name)[2])
            lm.model(input_ids=IDS, use_cache=False)
    assert lm.live_edits == [] and lm.edit_handles == [] and lm.passes == {}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2"])
def test_an_early_exit_names_the_blocks_that_do_not_run(family):
    lm = tiny(family)
    whole = trace(lm, IDS)
    lm.model.config.num_hidden_layers = 2
    for do in (
        lambda: trace(lm, IDS), lambda: trace(lm, IDS, stop_after=1), lambda: read_site(lm, IDS, "mlp", 3),
        lambda: attention_patterns(lm, IDS), lambda: under(lm, skip_block(3)), lambda: under(lm, skip_block(1), skip_block(2)),
    ):  # fmt: skip
        with pytest.raises(
            DidNotRun, match=r"\[[23]\]\S* did not run, since lm\.model\.config\.num_hidden_layers is 2"
        ):
            do()
    assert trace(lm, IDS, stop_after=0).resid.equal(whole.resid[:2])
    under(lm, skip_block(1))  # this one runs


def test_nothing_that_was_not_written_is_handed_out():
    lm = tiny("llama")
    lm.model.model.layers.pop(3)
    found = trace(lm, IDS)  # three blocks now, and three are traced
    expected = by_hand(lm, lm.encode(IDS))
    assert far(found.resid, expected.resid) < 2e-6 and found.attn.shape[0] == 3


def test_a_replaced_forward_is_named():
    lm = tiny("llama")
    clean = trace(lm, IDS)
    lm.blocks[1].forward = lambda hidden_states, *args, **kwargs: hidden_states
    for do in (
        lambda: trace(lm, IDS), lambda: read_site(lm, IDS, "keys", 1), lambda: under(lm, zero_heads(1, 0)),
        lambda: sweep_heads(lm, IDS, 5),
    ):  # fmt: skip
        with pytest.raises(
            DidNotRun, match=r"layers\[1\]\S* did not run, since the forward of lm\.model\.model\.layers\[1\]"
        ):
            do()
    found = under(lm, scale_block(0, 1.0))  # the stream itself goes through: what runs can be edited
    del lm.blocks[1].forward
    assert found.equal(under(lm, skip_block(1)))
    assert trace(lm, IDS).logits.equal(clean.logits)


def test_a_fused_mlp_has_no_neurons_to_edit():
    lm = tiny("llama")
    mlp = lm.mlp(2)
    mlp.forward = lambda x: torch.nn.functional.linear(
        mlp.act_fn(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T), mlp.down_proj.weight
    )
    with pytest.raises(
        DidNotRun, match=r"layers\[2\]\.mlp\.down_proj did not run, since the forward of .*mlp was replaced"
    ):
        under(lm, change("neurons", 2, torch.zeros_like))
    with pytest.raises(DidNotRun, match="neurons"):
        read_site(lm, IDS, "neurons", 2)


def test_another_module_in_a_blocks_place_is_refused_before_anything_hangs():
    lm = tiny("llama")
    lm.model.model.layers[1] = torch.nn.Identity()
    before = hooks_of(lm)
    for do in (lambda: trace(lm, IDS), lambda: under(lm, skip_block(0), zero_heads(1, 0))):
        with pytest.raises(DidNotRun, match=r"block 1 is of class Identity now and has no"):
            do()
    assert hooks_of(lm) == before and lm.live_edits == []


def test_a_module_at_two_places_is_refused():
    lm = tiny("llama")
    lm.model.model.layers[2] = lm.model.model.layers[1]
    for do in (lambda: trace(lm, IDS), lambda: under(lm, scale_block(1, 2)), lambda: read_site(lm, IDS, "mlp", 2)):
        with pytest.raises(DidNotRun, match=r"ran 2 times, since the same module stands at several places"):
            do()


@pytest.mark.parametrize(
    "act", [lambda lm: sweep_heads(lm, IDS, 7), lambda lm: sweep_edits(lm, IDS, [skip_block(0)], 7)]
)
def test_an_early_exit_names_the_first_block_that_a_sweep_misses(act):
    lm = tiny("llama")
    lm.model.config.num_hidden_layers = 2
    with pytest.raises(DidNotRun) as error:
        act(lm)
    assert str(error.value).count("did not run") == 1
    assert "layers[2] did not run, since lm.model.config.num_hidden_layers is 2" in str(error.value)


def test_one_block_in_train_mode_is_seen():
    """OPT drops out in a function that no hook sees, Phi where nothing tells the deltas apart; layers checkpoint by their mode."""
    lm = tiny("opt")
    lm.blocks[2].train()
    found = trace(lm, IDS)
    assert far(found.resid[1:], found.resid[:-1] + found.attn + found.mlp) < 1e-12
    lm = tiny("phi", resid_pdrop=0.3)
    lm.blocks[2].train()
    with pytest.raises(BadValue, match="cannot be told apart"):
        trace(lm, IDS)
    lm = tiny("llama")
    lm.model.gradient_checkpointing_enable()
    lm.blocks[2].train()
    with pytest.raises(BadEdit, match="checkpointing is on"):
        under(lm, scale_block(0, 2))


def test_layerdrop_is_named():
    lm = tiny("opt", layerdrop=1.0)
    lm.model.train()
    with pytest.raises(DidNotRun, match=r"layerdrop.*lm\.model\.eval\(\)"):
        under(lm, skip_block(1))


def compile_whole(lm):
    lm.model.compile(backend="eager")


def compile_a_part(lm):
    lm.blocks[2].mlp.compile(backend="eager")


def compile_a_forward(lm):
    lm.blocks[0].forward = torch.compile(lm.blocks[0].forward, backend="eager")


def compile_and_put_back(lm):
    lm.model.model.layers[3] = torch.compile(lm.model.model.layers[3], backend="eager")


@pytest.mark.parametrize("compile", [compile_whole, compile_a_part, compile_a_forward, compile_and_put_back])
def test_compiled_models_are_refused_everywhere(compile):
    lm = tiny("llama")
    compile(lm)
    there = {
        compile_a_part: change("mlp", 2, lambda value: value / 2),
        compile_a_forward: skip_block(0),
    }.get(compile, skip_block(3))
    for do in (
        lambda: trace(lm, IDS), lambda: under(lm, there), lambda: read_site(lm, IDS, "mlp", 1),
        lambda: attention_patterns(lm, IDS), lambda: wrap(lm.model),
    ):  # fmt: skip
        with pytest.raises(DidNotRun, match=r"compiled by torch\.compile.*Use the plain model"):
            do()
    assert lm.live_edits == [] and lm.edit_handles == []


@pytest.mark.parametrize("compile", [compile_a_part, compile_a_forward, compile_and_put_back])
def test_an_edit_beside_a_compiled_part_is_right(compile):
    lm = tiny("llama")
    expected = (
        under(lm, skip_block(1)),
        under(lm, scale_block(2, 0.5)),
    )  # the second holds a compiled MLP, if that is it
    compile(lm)
    found = under(lm, skip_block(1)), under(lm, scale_block(2, 0.5))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
    assert not torch.allclose(found[0], lm.model(input_ids=IDS, use_cache=False).logits)


def test_a_forward_that_shall_never_be_compiled_is_not_taken_for_compiled():
    lm = tiny("llama")
    expected = under(lm, skip_mlp(2))
    mlp = lm.blocks[2].mlp
    mlp.forward = torch.compiler.disable(mlp.forward)
    assert under(lm, skip_mlp(2)).equal(expected) and trace(lm, IDS).mlp[2].abs().sum() > 0


def test_compiling_around_the_model_is_refused_too():
    with pytest.raises(DidNotRun, match="compiled"):
        wrap(torch.compile(tiny("gpt2").model, backend="eager"))


def test_an_error_in_a_pass_leaves_the_next_one_right():
    lm = tiny("gpt2")
    expected = under(lm, skip_block(1))

    def fail(*_):
        raise KeyboardInterrupt

    with edit(lm, skip_block(1)):
        handle = lm.blocks[2].register_forward_hook(fail)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                lm.model(input_ids=IDS)
        handle.remove()
        assert lm.model(input_ids=IDS, use_cache=False).logits.equal(expected)
        assert lm.logits(IDS).equal(expected)
        trace(lm, IDS, stop_after=0)
    assert lm.passes == {}


def test_the_model_without_its_head_counts_as_a_pass():
    lm = tiny("llama")
    with edit(lm, skip_block(1)):
        lm.model.model(input_ids=IDS)
        with pytest.raises(DidNotRun):
            lm.model.config.num_hidden_layers = 1
            lm.model.model(input_ids=IDS)
    with edit(lm, skip_block(1)):
        pass  # no pass, no error


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused_when_gradients_are_made(reentrant):
    lm = tiny("llama")
    lm.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    lm.model.train()
    with pytest.raises(BadEdit, match="gradient checkpointing is on"):
        under(lm, scale_block(1, 2))
    with pytest.raises(BadEdit, match="gradient checkpointing is on"):
        trace(lm, IDS, gradients=lambda found: found.logits.sum())
    with torch.no_grad():
        under(lm, scale_block(1, 2))  # nothing runs twice without a backward pass
    trace(lm, IDS)


def test_a_checkpoint_of_ones_own_is_refused():
    lm = tiny("gpt2")
    with edit(lm, scale_block(1, 2)), pytest.raises(BadEdit, match="gradient checkpointing is on"):
        checkpoint(lambda ids: lm.model(input_ids=ids, use_cache=False).logits, IDS, use_reentrant=False)


def all_at_once(work, number=4):
    old, errors = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-5)

    def guarded(k):
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    try:
        threads = [threading.Thread(target=guarded, args=(k,)) for k in range(number)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    finally:
        sys.setswitchinterval(old)
    return errors


def test_threads_that_trace_one_model_each_get_their_own_numbers():
    lm = tiny("llama")
    expected = [trace(lm, IDS + k) for k in range(4)]
    before = hooks_of(lm)

    def work(k):
        for _ in range(25):
            found = trace(lm, IDS + k)
            for field in ("resid", "attn", "mlp", "heads", "final", "logits"):
                assert getattr(found, field).equal(getattr(expected[k], field)), field
            assert read_site(lm, IDS + k, "mlp", 1).equal(expected[k].mlp[1])

    assert all_at_once(work) == []
    assert hooks_of(lm) == before


def test_threads_that_edit_one_model_are_right_or_refused():
    lm = tiny("llama")
    edits = [zero_heads(1, k) for k in range(4)]
    expected = []
    for one in edits:
        with edit(lm, one):
            expected.append(lm.logits(IDS))
    before, right = hooks_of(lm), []

    def work(k):
        for _ in range(25):
            try:
                with edit(lm, edits[k]):
                    found = lm.logits(IDS)
            except BadEdit as error:
                assert "thread" in str(error)
                continue
            assert found.equal(expected[k])
            right.append(k)

    assert all_at_once(work) == [] and right
    assert hooks_of(lm) == before and lm.live_edits == [] and lm.edit_handles == [] and lm.passes == {}


def test_a_trace_during_which_another_thread_edits_is_refused():
    lm = tiny("gpt2")
    one = edit(lm, scale_block(3, 2))

    def other(*_):
        thread = threading.Thread(target=one.__enter__)
        thread.start()
        thread.join()

    handle = lm.blocks[0].register_forward_hook(other)
    with pytest.raises(BadEdit, match="put on or taken off while this pass ran"):
        trace(lm, IDS)
    handle.remove()
    one.__exit__(None, None, None)
    assert lm.live_edits == []


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_threads_that_sweep_trace_and_wrap_one_model_each_get_their_own_numbers(family):
    lm = tiny(family)
    prompts = [torch.arange(2 + k, 8 + 2 * k) for k in range(4)]
    swept, traced = [sweep_heads(lm, p, 7) for p in prompts], [trace(lm, p) for p in prompts]
    before = hooks_of(lm)

    def work(k):
        for _ in range(4):
            if k < 2:
                torch.testing.assert_close(sweep_heads(lm, prompts[k], 7), swept[k], rtol=0, atol=1e-6)
            elif k == 2:
                found = trace(lm, prompts[2])
                assert all(
                    getattr(found, name).equal(getattr(traced[2], name)) for name in ("resid", "heads", "logits")
                )
            else:
                assert wrap(lm.model).certificate.digits == lm.certificate.digits

    assert all_at_once(work) == []
    assert hooks_of(lm) == before and lm.live_edits == [] and lm.edit_handles == [] and lm.passes == {}


def test_a_sweep_beside_a_thread_that_edits_is_right_or_refused():
    lm, prompt = tiny("llama"), torch.arange(2, 8)
    swept, clean = sweep_heads(lm, prompt, 7), lm.logits(prompt)
    with edit(lm, scale_block(1, 3)):
        edited = lm.logits(prompt)

    def work(k):
        for _ in range(10):
            if k == 0:
                with edit(
                    lm, scale_block(1, 3)
                ):  # the only one that edits: never refused, and never a copy of the sweep's
                    assert lm.logits(prompt).equal(edited)
                assert lm.logits(prompt).equal(clean)
                continue
            try:
                torch.testing.assert_close(sweep_heads(lm, prompt, 7), swept, rtol=0, atol=1e-6)
            except BadEdit as error:
                assert "another thread" in str(error)

    assert all_at_once(work, 3) == []
    assert lm.live_edits == [] and lm.edit_handles == [] and lm.passes == {}


@pytest.mark.parametrize("act", [lambda lm: trace(lm, IDS), lambda lm: sweep_heads(lm, IDS, 7)])
def test_an_edit_of_another_thread_that_came_and_went_during_a_pass_is_seen(act):
    lm = tiny("gpt2")

    def elsewhere(*_):
        def come_and_go():
            with edit(lm, scale_block(2, 2)):
                pass

        thread = threading.Thread(target=come_and_go)
        thread.start()
        thread.join()

    handle = lm.blocks[0].register_forward_hook(elsewhere)
    with pytest.raises(BadEdit, match=r"put on or taken off while this (pass|sweep) ran"):
        act(lm)
    handle.remove()
    assert lm.live_edits == [] and lm.edit_handles == []


@pytest.mark.parametrize("replacement", ["mean", "pooled mean"])
def test_an_edit_of_another_thread_that_was_on_while_a_sweep_took_its_means_is_seen(replacement, monkeypatch):
    lm = tiny("gpt2")

    def under_an_edit(*args, **options):
        one = edit(lm, scale_block(0, 3))
        thread = threading.Thread(target=one.__enter__)
        thread.start()
        thread.join()
        found = trace(*args, **options)
        one.__exit__()
        return found

    monkeypatch.setattr("helpers.replacements.trace", under_an_edit)
    with pytest.raises(BadEdit, match="put on or taken off while this sweep ran"):
        sweep_heads(lm, torch.arange(2, 14).reshape(2, 6), 7, replacement=replacement)
    assert lm.live_edits == [] and lm.edit_handles == []


def test_a_function_that_runs_the_model_inside_a_pass_or_a_sweep_of_it_is_told_so():
    lm, prompt = tiny("gpt2"), torch.arange(2, 8)
    other, busy = copy.deepcopy(lm), []

    def runs(act):
        def function(value):
            if not busy:  # as a careful user would write it
                busy.append(1)
                act()
                busy.clear()
            return value

        return function

    for act in (lambda: trace(lm, prompt), lambda: lm.logits(prompt), lambda: sweep_blocks(lm, prompt, 7)):
        mine = change("block", 1, runs(act))
        for run in (lambda: sweep_edits(lm, prompt, [mine, skip_mlp(2)], 7), lambda: trace(lm, prompt)):
            busy.clear()
            with pytest.raises(BadEdit, match="runs the model itself"), edit(lm, mine):
                run()
    busy.clear()
    with pytest.raises(BadEdit, match="runs the model itself"):
        raw = change("block", 1, runs(lambda: lm.model(prompt[None])))
        sweep_edits(lm, prompt, [skip_mlp(0), raw], 7)
    busy.clear()
    on_a_copy = change("block", 1, runs(lambda: trace(other, prompt)))
    assert sweep_edits(lm, prompt, [on_a_copy], 7).item() == 0
    assert lm.live_edits == [] and lm.edit_handles == [] and lm.passes == {}


def test_a_copy_of_an_edited_model_is_not_edited_for_ever():
    lm = tiny("gpt2")
    clean = lm.logits(IDS)
    with edit(lm, scale_block(1, 2)):
        copied = copy.deepcopy(lm.model)
    with torch.no_grad():
        assert copied(input_ids=IDS, use_cache=False).logits.equal(clean)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_copy_of_the_plain_model_under_edits_says_what_it_carries(family):
    lm = tiny(family)
    clean = lm.logits(IDS)
    with edit(lm, scale_block(1, 2)):
        copied = copy.deepcopy(lm.model)
        for run in (lambda: copied(input_ids=IDS), lambda: wrap(copied)):
            with pytest.raises(DidNotRun, match=r"was copied while edits were on the model.*copy\.deepcopy\(lm\)"):
                run()
        edited = lm.logits(IDS)
    assert lm.passes == {} and wrap(copied).logits(IDS).equal(clean)
    with edit(lm, scale_block(1, 2)):
        assert lm.logits(IDS).equal(edited)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma3_text"])
def test_a_copy_that_is_made_under_edits_is_a_plain_model_of_its_own(family):
    """Its logits are those of an untouched model, inside of the `with` and after it, and it can be edited like another."""
    lm = tiny(family)
    clean, looked = lm.logits(IDS), []
    lm.blocks[0].register_forward_hook(
        lambda *_: looked.append(1)
    )  # a learner's own stays on the copy, as on any module
    edits = [scale_block(1, 2, positions=[0, -1]), zero_heads(2, [1]), change("neurons", 0, torch.neg), skip_mlp(3)]
    with edit(lm, scale_block(0, 3)):
        once = lm.logits(IDS)
        with edit(lm, *edits):
            copied = copy.deepcopy(lm)
            assert copied.logits(IDS).equal(clean) and not lm.logits(IDS).equal(clean)
            assert "live edits: none" in repr(copied) and len(lm.live_edits) == 2
            with torch.no_grad():
                assert copied.model(input_ids=IDS, use_cache=False).logits.equal(clean)
            with edit(copied, scale_block(0, 3)):
                assert copied.logits(IDS).equal(once)
            assert copied.logits(IDS).equal(clean)
    assert copied.logits(IDS).equal(clean) and lm.logits(IDS).equal(clean) and looked
    assert sum(len(hooks) for both in hooks_of(copied) for hooks in both) == 1
    assert copied.edit_handles == [] and copied.passes == {} and copied.unembed is not lm.unembed
    expected = sweep_heads(lm, IDS, 5)
    assert torch.equal(sweep_heads(copied, IDS, 5), expected)


def test_equal_edits_do_the_same():
    ones = torch.ones(24)
    assert add_to_block(1, ones) == add_to_block(1, torch.ones(24)) != add_to_block(1, -ones)
    assert scale_block(1, 0.1234567) != scale_block(1, 0.12345671)
    assert change("mlp", 1, torch.neg) == change("mlp", 1, torch.neg) != change("mlp", 1, torch.abs)
    assert change("mlp", 1, lambda v: -v) != change("mlp", 1, lambda v: v)
    learned = ones.clone().requires_grad_()
    assert (
        add_to_block(1, learned)
        == add_to_block(1, learned)
        != add_to_block(1, learned.detach().clone().requires_grad_())
    )
    found = {
        skip_block(1, slice(0, 2)): "a",
        skip_block(1, slice(0, 3)): "b",
        add_to_block(1, ones): 1,
        add_to_block(1, -ones): 2,
    }
    assert len(found) == 4 and found[skip_block(1, slice(0, 2))] == "a"


def test_the_repr_names_hooks_of_others():
    lm = tiny("gpt2")
    assert "hooks of others" not in repr(lm)
    handle = lm.blocks[3].register_forward_hook(lambda m, i, o: None)
    with edit(lm, skip_block(1)):
        assert repr(lm).endswith("live edits: skip_block(1); hooks of others: transformer.h.3)")
    handle.remove()
    assert "hooks of others" not in repr(lm)


def test_the_repr_names_replaced_forwards_and_hooks_on_all_modules():
    lm = tiny("gpt2")
    assert repr(lm).endswith("live edits: none)")
    mlp = lm.mlp(1)
    mlp.forward = lambda value, plain=mlp.forward: 0.5 * plain(value)
    assert repr(lm).endswith("live edits: none; forward replaced on: transformer.h.1.mlp)")
    handle = torch.nn.modules.module.register_module_forward_hook(halve)
    try:
        assert repr(lm).endswith("forward replaced on: transformer.h.1.mlp; hooks on all modules: halve)")
    finally:
        handle.remove()
    del mlp.forward
    lm.model.forward = lm.model.forward
    assert repr(lm).endswith("forward replaced on: the model)")


def halve(module, args, output):
    return None


def test_an_edited_model_says_why_it_cannot_be_pickled():
    lm = tiny("gpt2")
    expected = lm.logits(IDS)
    with edit(lm, skip_block(1)):
        for store in (pickle.dumps, lambda lm: torch.save(lm, io.BytesIO()), copy.copy):
            with pytest.raises(BadEdit, match=r"pickle.*outside of the `with`.*copy\.deepcopy\(lm\)"):
                store(lm)
        assert copy.deepcopy(lm).logits(IDS).equal(expected)
    assert pickle.loads(pickle.dumps(lm)).logits(IDS).equal(expected)


# ---- weights that are nowhere

NOWHERE = "is on the meta device and nothing brings it back for a pass"


@pytest.mark.parametrize("certify", [True, False])
@pytest.mark.parametrize(
    "part", ["", "model.embed_tokens", "model.layers.2.mlp.down_proj", "model.rotary_emb", "lm_head"]
)
def test_a_model_with_weights_on_the_meta_device_is_not_wrapped(part, certify):
    """A product with such a weight is no error: it gives memory that nobody wrote."""
    model = tiny("llama", tie_word_embeddings=False).model
    model.get_submodule(part).to("meta")
    with pytest.raises(BadValue, match=NOWHERE) as caught:
        wrap(model, certify=certify)
    assert str(caught.value).startswith(f"the weight {part or 'model.embed_tokens'}")


@pytest.mark.parametrize("part", ["", "model.layers.2.mlp.down_proj", "lm_head"])
@pytest.mark.parametrize(
    "use",
    [
        lambda lm: lm.logits(IDS),
        lambda lm: trace(lm, IDS),
        lambda lm: attention_patterns(lm, IDS),
        lambda lm: read_site(lm, IDS, "mlp", 2),
        lambda lm: sweep_heads(lm, IDS, 5),
        lambda lm: under(lm, skip_block(2)),
        lambda lm: under(lm, skip_block(1)),  # an edit looks at its own block, its pass at all
    ],
)
def test_weights_that_go_after_wrap_are_refused_at_each_door(part, use):
    lm = tiny("llama", tie_word_embeddings=False)
    lm.model.get_submodule(part).to("meta")
    with pytest.raises(BadValue, match=NOWHERE):
        use(lm)
    assert not lm.live_edits and "live edits: none" in repr(lm)


def test_a_hook_of_accelerates_that_brings_nothing_is_no_excuse():
    hooks = pytest.importorskip("accelerate.hooks")
    model, spread = tiny("llama").model, tiny("llama")
    model.model.layers[2].mlp.to("meta")
    hooks.add_hook_to_module(
        model, hooks.AlignDevicesHook(io_same_device=True)
    )  # as dispatch_model puts on every model
    with pytest.raises(BadValue, match=rf"layers\.2\.mlp\.gate_proj\.weight {NOWHERE}"):
        wrap(model)
    expected = spread.logits(IDS)
    for block in spread.blocks:  # one hook on each, which brings all inside
        weights = {name: weight.clone() for name, weight in block.state_dict().items()}
        bring = hooks.AlignDevicesHook("cpu", offload=True, weights_map=weights, place_submodules=True)
        hooks.add_hook_to_module(block, bring)
    assert spread.part(2, "mlp.down_proj").weight.is_meta and wrap(spread.model).logits(IDS).equal(expected)
