"""Lesson 3's verdicts: a case for each, and the measurements."""

import pytest
import torch
from tiny import CONFIGS, tiny

from helpers.course.exercise import hooks_on
from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, VERSION
from helpers.edits import edit, patch_block, scale_block, skip_block
from helpers.lesson3 import claims as lesson3
from helpers.tracing import trace

KEYS = {"d_model": 768, "d_head": 64, "head": 2, "in_k": 128, "fused": 896, "width": 2304}
NOISE = {
    "distance": [25.0],
    "reached": [0.0],
    "relative": [2.0],
    "divergence": [3.0],
    "constant": [0.99],
    "mean_alone": [2.9],
}
SMALL = {
    "clean": [[9.0, 10.0, 11.0]],
    "edited": [[0.9, 2.0, 4.0]],
    "with_first": [[0.1, 0.4]],
    "missing": [0.3],
    "cosine": [0.7],
}
LARGE = {"clean": [[9.0, 10.0, 11.0]], "edited": [[90.0, 95.0, 20.0]], "final_clean": [1.0], "final_edited": [1.0]}
CASES = {
    "3.1": {
        HOLDS: (KEYS, "found by search"),
        PARTLY: ({**KEYS, "fused": 128, "width": 768}, "nothing is fused"),
        FAILS: ({**KEYS, "in_k": None, "fused": 448}, "another way"),
    },
    "3.2": {
        HOLDS: (NOISE, "reach it: 1 of 1; the stream's relative error and KL(clean ‖ edited) are above 0.1: 1 of 1"),
        PARTLY: ({**NOISE, "relative": [0.01]}, "are above 0.1: 0 of 1"),
        FAILS: ({**NOISE, "reached": [0.02]}, "reach it: 0 of 1"),
    },
    "3.3": {
        HOLDS: (SMALL, "at least doubles by the end: 1 of 1"),
        PARTLY: ({**SMALL, "missing": [1.12]}, "still missing at the end: 0 of 1"),
        FAILS: ({**SMALL, "edited": [[0.9, 1.2, 1.5]]}, "at least doubles by the end: 0 of 1"),
    },
    "3.4": {
        HOLDS: (LARGE, "than in the clean run: 1 of 1"),
        PARTLY: ({**LARGE, "edited": [[90.0, 95.0, 80.0]]}, "twice as near to 1: 1 of 1"),
        FAILS: ({**LARGE, "final_edited": [9.0]}, "twice as near to 1: 0 of 1"),
    },
    "3.5": {
        HOLDS: (
            {"with_first": [[1.0, 2.0, 3.0]], "without": [[0.5, 1.0, 2.0]]},
            "at every block: 1 of 1; with it too: 1 of 1",
        ),
        PARTLY: (
            {"with_first": [[1.0, 9.0, 3.0]], "without": [[0.5, 1.0, 2.0]]},
            "at every block: 1 of 1; with it too: 0 of 1",
        ),
        FAILS: ({"with_first": [[1.0, 2.0, 3.0]], "without": [[2.0, 3.0, 2.0]]}, "higher than it began: 0 of 1"),
    },
    "3.6": {
        VERSION: ({"plain": 0, "asked": 0, "attention": 2, "version": "5.0"}, "here a plain tensor"),
        PARTLY: ({"plain": 1, "asked": 3, "attention": 2, "version": "5.0"}, "not from one to two"),
        FAILS: ({"plain": 2, "asked": 2, "attention": 2, "version": "5.0"}, "does not grow"),
    },
    "3.7": {
        CONSTRUCTION: (
            {"others": 0.0, "block": 1.0, "attention": 0.5, "mlp": 0.4, "heads": [0.1, 0.2]},
            "4 places in place of one",
        ),
        FAILS: (
            {"others": 0.2, "block": 1.0, "attention": 0.5, "mlp": 0.4, "heads": [0.1, 0.2]},
            "others of its block moved",
        ),
    },
    "3.8": {
        HOLDS: ({"left": [0.05], "keys": [0.1], "heads": [0.1], "hit": 3}, "3 heads share these keys"),
        PARTLY: ({"left": [0.05, 0.6], "keys": [0.1, 0.1], "heads": [0.1, 0.1], "hit": 1}, "is left: 1 of 2"),
        FAILS: ({"left": [0.6], "keys": [0.1], "heads": [0.1], "hit": 1}, "is left: 0 of 1"),
    },
    "3.9": {
        HOLDS: ({"negative": [0.9], "near": [0.4]}, "0 or below: 1 of 1"),
        PARTLY: ({"negative": [0.9], "near": [0.05]}, "root mean square of 0: 0 of 1"),
        FAILS: ({"negative": [0.4], "near": [0.4]}, "0 or below: 0 of 1"),
    },
}


def test_every_verdict_has_its_case(prove_verdicts):
    prove_verdicts(lesson3, CASES)


def test_what_depends_on_the_version_says_what_this_one_does():
    claim = lesson3.verdict_3_6(1, 2, 2, "4.57.1")
    assert claim.verdict == VERSION
    assert claim.measured.startswith("transformers 4.57.1: block: tuple of 1, then tuple of 2")
    assert "plain tensor, with it a tuple" in lesson3.verdict_3_6(0, 2, 2, "4.57.1").why


def test_keys_that_are_alone_are_told_from_keys_in_another_place():
    assert "another place of the fused output" in lesson3.verdict_3_1(**{**KEYS, "fused": 64}).why


def test_a_last_block_that_does_the_same_in_a_clean_run_compresses_nothing():
    assert lesson3.verdict_3_4(**{**LARGE, "clean": [[9.0, 10.0, 2.0]]}).verdict == PARTLY


def test_keys_are_found_by_search():
    lm = tiny("gpt2")
    for head in range(lm.n_heads):
        expected = (head * lm.d_head, lm.d_model + head * lm.d_head, 3 * lm.d_model)
        assert lesson3.find_keys(lm, torch.arange(6), 2, head) == expected
    assert lesson3.find_keys(tiny("llama"), torch.arange(1, 7), 2, 1) == (8, 8, 16)
    in_k, fused, _ = lesson3.find_keys(tiny("gpt_neox"), torch.arange(6), 2, 1)
    assert (in_k, fused) != (tiny("gpt_neox").d_head, tiny("gpt_neox").d_model + tiny("gpt_neox").d_head)


def test_forms_are_those_that_a_hook_sees():
    lm = tiny("gpt2")
    seen = []
    handle = lm.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    lm.logits(torch.arange(6))
    handle.remove()
    plain, asked, attention = lesson3.forms(lm, torch.arange(6), 1)
    assert plain == (len(seen[0]) if isinstance(seen[0], tuple) else 0)
    assert asked >= plain
    assert attention == 2


@pytest.mark.parametrize("family", CONFIGS)
def test_the_ledger_judges_every_family_and_leaves_nothing(family):
    lm, ids = tiny(family), torch.arange(7)
    lm.model(ids[None], output_attentions=True)  # transformers 5 installs its recorders once, for good
    hooks, before = hooks_on(lm.model), lm.logits(ids)
    claims = lesson3.ledger(lm, ids)
    assert [claim.number for claim in claims] == list(lesson3.VERDICTS)
    assert hooks_on(lm.model) == hooks
    assert torch.equal(lm.logits(ids), before)
    assert claims == lesson3.ledger(lm, ids)  # the noise is seeded
    assert claims[6].verdict == CONSTRUCTION


def test_what_is_missing_is_measured_against_the_edit():
    """Were every later block skipped, all that the factor took would be missing; were its output restored, nothing."""
    lm, ids = tiny("gpt2"), torch.arange(7)
    clean = trace(lm, ids)
    late = lm.n_blocks - 2
    with edit(lm, scale_block(late, 0.1), patch_block(late + 1, clean.resid[late + 1] * 0.1)):
        nothing_written = trace(lm, ids)
    with edit(lm, scale_block(late, 0.1), patch_block(late + 1, clean.resid[late + 2])):
        restored = trace(lm, ids)
    with edit(lm, skip_block(late + 1)):
        short = trace(lm, ids)
    assert lesson3.missing(short, nothing_written, late + 1) == pytest.approx(1)
    assert lesson3.missing(clean, restored, late + 1) == pytest.approx(0)


def test_what_is_left_of_a_head_with_zero_keys_is_the_mean_of_its_values():
    """An independent computation: with zero keys every token weighs the values before it evenly."""
    lm, ids = tiny("gpt2"), torch.arange(7)
    block, head = lm.n_blocks * 5 // 12, 2
    seen = []
    handle = lm.blocks[block].attn.c_attn.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    lm.logits(ids)
    handle.remove()
    values = seen[0][0].split(lm.d_model, dim=-1)[2].view(7, lm.n_heads, lm.d_head)[:, head]
    evenly = values.cumsum(0) / torch.arange(1, 8)[:, None]
    clean = trace(lm, ids).heads[block][0, :, head]
    expected = float(evenly[1:].norm() / clean[1:].norm())
    assert lesson3.measure(lm, ids)["left"] == pytest.approx(expected)


def test_grouped_keys_hit_all_heads_that_share_them():
    lm, ids = tiny("llama"), torch.arange(7)
    claim = next(claim for claim in lesson3.ledger(lm, ids) if claim.number == "3.8")
    assert "2 heads share these keys" in claim.why


def test_neurons_are_counted_as_a_hook_sees_them():
    lm, ids = tiny("gpt2"), torch.arange(7)
    seen = []
    handle = lm.blocks[lm.n_blocks * 7 // 12].mlp.c_proj.register_forward_pre_hook(
        lambda m, a: seen.append(a[0].detach())
    )
    lm.logits(ids)
    handle.remove()
    found = lesson3.measure(lm, ids)
    values = seen[0].flatten().tolist()
    size = (sum(v * v for v in values) / len(values)) ** 0.5
    assert found["negative"] == pytest.approx(sum(v <= 0 for v in values) / len(values))
    assert found["near"] == pytest.approx(sum(abs(v) < 0.1 * size for v in values) / len(values))


def test_the_ledger_of_a_gpt2_finds_its_keys():
    claims = lesson3.ledger(tiny("gpt2"), torch.arange(7))
    assert claims[0].verdict == HOLDS
