"""Lesson 3's verdicts: a case that holds and one that does not for each, those in between, and the measurements."""

import pytest
import torch
from tiny import CONFIGS, tiny

from helpers.claims import lesson3
from helpers.claims.core import FAILS, HOLDS, PARTLY
from helpers.edits import edit, patch_block, scale_block, skip_block
from helpers.tracing import trace

NOISE = {
    "mean": 10.0,
    "natural_mean": 0.0,
    "natural_std": 0.4,
    "reached": 0.0,
    "relative": 2.0,
    "divergence": 3.0,
    "constant": 0.99,
    "mean_alone": 2.9,
}
CASES = {
    "3.1": (
        {"d_model": 768, "d_head": 64, "head": 2, "in_k": 128, "fused": 896},
        {"d_model": 768, "d_head": 64, "head": 2, "in_k": None, "fused": 448},
    ),
    "3.2": (
        NOISE,
        {**NOISE, "natural_mean": 9.0, "natural_std": 2.0, "reached": 0.4, "relative": 0.01, "divergence": 0.0},
    ),
    "3.3": (
        {"clean": [9.0, 10.0, 11.0], "edited": [0.9, 2.0, 4.0], "written": 1.1, "missing": 0.99, "cosine": 0.7},
        {"clean": [9.0, 10.0, 11.0], "edited": [0.9, 0.8, 0.7], "written": 1.1, "missing": 0.99, "cosine": 0.7},
    ),
    "3.4": (
        {"clean": [9.0, 10.0, 11.0], "edited": [90.0, 95.0, 20.0], "final_clean": 1.0, "final_edited": 1.0},
        {"clean": [9.0, 10.0, 11.0], "edited": [90.0, 95.0, 100.0], "final_clean": 1.0, "final_edited": 9.0},
    ),
    "3.5": (
        {"with_first": [1.0, 2.0, 3.0], "without": [0.5, 1.0, 2.0]},
        {"with_first": [3.0, 2.0, 1.0], "without": [2.0, 3.0, 2.0]},
    ),
    "3.6": ({"plain": 1, "asked": 2, "attention": 2}, {"plain": 0, "asked": 0, "attention": 2}),
    "3.7": (
        {"block": 1.0, "attention": 0.5, "mlp": 0.4, "heads": [0.1, 0.2, 0.3]},
        {"block": 0.1, "attention": 0.5, "mlp": 0.4, "heads": [0.2, 0.2, 0.3]},
    ),
}


def test_each_verdict_holds_and_fails(prove_verdicts):
    prove_verdicts(lesson3, CASES)


@pytest.mark.parametrize(
    ("number", "changed", "expected", "word"),
    [
        ("3.1", {"fused": 128}, PARTLY, "another place"),
        ("3.2", {"relative": 0.01}, PARTLY, "hardly moves"),
        ("3.2", {"reached": 0.02}, PARTLY, "clean run too"),
        ("3.3", {"edited": [8.0, 9.0, 10.0]}, FAILS, "does not drop"),
        ("3.3", {"edited": [0.9, 5.0, 4.0]}, PARTLY, "not rise at every block"),
        ("3.3", {"edited": [0.9, 1.2, 1.5]}, PARTLY, "does not even double"),
        ("3.3", {"edited": [0.9, 0.95, 1.0]}, FAILS, "nothing revives"),
        ("3.3", {"clean": [9.0], "edited": [0.9]}, FAILS, "stays down"),
        ("3.4", {"edited": [90.0, 95.0, 96.0]}, PARTLY, "is the final norm"),
        ("3.4", {"edited": [90.0, 95.0, 80.0]}, PARTLY, "is the final norm"),  # a sixth off is not yet compression
        ("3.4", {"clean": [9.0, 10.0, 2.0]}, PARTLY, "clean × 0.2"),  # the last block does the same in a clean run
        ("3.4", {"edited": [10.0, 11.0, 5.0]}, FAILS, "not explode"),
        ("3.5", {"with_first": [1.0, 3.0, 2.0]}, PARTLY, "1 of 2 blocks"),
        ("3.5", {"with_first": [1.0, 9.0, 8.0, 7.0], "without": [1.0, 9.0, 8.0, 7.0]}, FAILS, "1 of 3 blocks"),
        ("3.6", {"asked": 3}, PARTLY, "not from one to two"),
        ("3.6", {"plain": 2}, FAILS, "does not grow"),
        ("3.6", {"plain": 0}, FAILS, "plain tensor, with it a tuple"),
        ("3.7", {"heads": [0.1, 0.1, 1.5]}, PARTLY, "cancel"),
    ],
)
def test_cases_in_between(number, changed, expected, word):
    claim = lesson3.VERDICTS[number](**{**CASES[number][0], **changed})
    assert claim.verdict == expected
    assert word in claim.why


def test_keys_are_found_by_search():
    lm = tiny("gpt2")
    for head in range(lm.n_heads):
        expected = (head * lm.d_head, lm.d_model + head * lm.d_head)
        assert lesson3.find_keys(lm, torch.arange(6), 2, head) == expected
    in_k, fused = lesson3.find_keys(tiny("gpt_neox"), torch.arange(6), 2, 1)
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
    before = lm.logits(ids)
    claims = lesson3.ledger(lm, ids)
    assert [claim.number for claim in claims] == list(lesson3.VERDICTS)
    assert torch.equal(lm.logits(ids), before)
    assert claims[1].measured == lesson3.ledger(lm, ids)[1].measured  # the noise is seeded


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
    assert lesson3._remaining(short, nothing_written, late + 1) == pytest.approx(1)
    assert lesson3._remaining(clean, restored, late + 1) == pytest.approx(0)


def test_the_ledger_of_a_gpt2_finds_its_keys():
    claims = lesson3.ledger(tiny("gpt2"), torch.arange(7))
    assert claims[0].verdict == HOLDS
