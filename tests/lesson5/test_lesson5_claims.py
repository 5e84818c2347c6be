import pytest
import torch
from tiny import tiny

from helpers.course.exercise import hooks_on, tiny_model
from helpers.course.ledger import CONSTRUCTION, FAILS, HOLDS, PARTLY, UNTESTED, VERSION
from helpers.edits import edit, skip_block
from helpers.lesson5 import claims as lesson5
from helpers.tracing import trace

RAISES = {"error": "TypeError", "line": None, "repair": 8.1, "mended": 0.0, "version": "5.0"}
SAWN = {"block": [[1.0, 2.0]], "heads": [[[0.1, 0.02], [0.2, 0.1]]], "share": [0.25, 0.25]}
MANY = 12
CASES = {
    "5.1": {
        CONSTRUCTION: ({"steps": [0.0, 0.0, 0.0]}, "exactly"),
        FAILS: ({"steps": [0.0, 2.0, 0.0]}, "at block 1"),
    },
    "5.2": {
        HOLDS: ({"equal": [[1], [2], [3]]}, "entry 0 is the embedding"),
        PARTLY: ({"equal": [[1], [2], []]}, "entry 3 is not what block 2 writes"),
        FAILS: ({"equal": [[], [1], []]}, "no entry"),
    },
    "5.3": {
        VERSION: (RAISES, "`prepend=True` mends it"),
        PARTLY: ({**RAISES, "error": "", "line": 3.0}, "the state before the hook"),
    },
    "5.4": {
        HOLDS: (SAWN, "per parameter removed (median): 1 of 1"),
        PARTLY: ({**SAWN, "share": [0.01, 0.01]}, "per parameter removed (median): 0 of 1"),
        FAILS: ({**SAWN, "heads": [[[0.9, 0.8], [1.9, 3.0]]]}, "(median): 0 of 1; every block"),
    },
    "5.5": {
        HOLDS: ({"rise": [[2.0, 0.01, 0.1]] * MANY}, "block 1; above it: block 0; of 3 blocks"),
        PARTLY: ({"rise": [[0.3, 0.1, 0.1]] * MANY}, "Holm): none; above it: block 0"),
        FAILS: ({"rise": [[0.3, 0.2, 0.4]] * MANY}, "above it: blocks 0 to 2"),
    },
    "5.6": {UNTESTED: ({}, "Men et al. 2024")},
}


def test_every_verdict_has_its_case(prove_verdicts):
    prove_verdicts(lesson5, CASES)


def test_what_the_reports_line_does_is_told_apart():
    neither = lesson5.verdict_5_3(**{**RAISES, "repair": None})
    assert neither.verdict == VERSION and "does not run here either" in neither.why
    assert "mends" not in lesson5.verdict_5_3(**{**RAISES, "mended": 8.1}).why
    assert "as short, and skips" in lesson5.verdict_5_3(**{**RAISES, "repair": 0.0}).why
    works = lesson5.verdict_5_3("", 0.0, None, 0.0, "4.57")
    assert works.verdict == VERSION and "it works here" in works.why and works.measured.startswith("transformers 4.57:")


def test_agreement_of_a_minority_is_no_agreement_in_part():
    assert lesson5.verdict_5_2([[1], [], [], []]).verdict == FAILS
    assert lesson5.verdict_5_2([[1], [], [3]]).verdict == PARTLY


def test_every_block_must_do_more_than_its_heads():
    assert lesson5.verdict_5_4([[1.0, 0.1]], [[[0.03, 0.02], [0.15, 0.001]]], [0.25] * 2).verdict == PARTLY


def test_a_few_passages_show_nothing_for_sure():
    claim = lesson5.verdict_5_5([[2.0, 0.01]] * 3)
    assert claim.verdict == FAILS and "Holm): none; above it: none" in claim.why


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(5)
    lm.model(torch.arange(4)[None], output_hidden_states=True)  # transformers 5 installs its recorders once, for good
    ids, text = torch.arange(8), torch.arange(48).view(3, 16)
    hooks, before = hooks_on(lm.model), trace(lm, ids).logits
    claims = {claim.number: claim for claim in lesson5.ledger(lm, ids, text)}
    assert list(claims) == list(lesson5.VERDICTS)
    assert claims["5.1"].verdict == CONSTRUCTION
    assert claims["5.2"].verdict == PARTLY, "the final norm"
    assert claims["5.3"].verdict == VERSION and claims["5.3"].measured.endswith("registered ahead: step 0")
    assert claims["5.4"].over[1] == 3
    assert hooks_on(lm.model) == hooks
    assert torch.equal(trace(lm, ids).logits, before)


def test_the_reports_line_is_judged_by_what_it_does_here():
    """On transformers 4 a block returns a tuple and the line works; on 5 it raises, and its repair fools the record."""
    lm = tiny_model(5)
    tokens = lm.encode(torch.arange(8))
    returned = []
    handle = lm.blocks[1].register_forward_hook(lambda module, args, output: returned.append(output))
    raw = lesson5.try_hooks(lm, tokens, 1)
    handle.remove()
    assert raw.mended == 0
    if isinstance(returned[0], tuple):
        assert raw.line == 0 and raw.error == ""
    else:
        assert raw.error == "TypeError" and raw.line is None and raw.repair > 0


def test_what_is_measured_is_that_of_the_plain_loop():
    lm, ids = tiny_model(7), torch.arange(14)
    found = lesson5.measure(lm, ids)

    def loss():
        return -lm.logits(ids)[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).mean()

    def silent(head):
        """The head's rows of the output projection at zero: weight surgery instead of a hook."""
        weight = lm.blocks[2].attn.c_proj.weight
        rows = slice(head * lm.d_head, (head + 1) * lm.d_head)
        kept = weight[rows].clone()
        with torch.no_grad():
            weight[rows] = 0
            logits = lm.logits(ids[: lesson5.SHORT])[0, -1].log_softmax(-1)
            weight[rows] = kept
        return logits

    clean, short = loss(), lm.logits(ids[: lesson5.SHORT])[0, -1].log_softmax(-1)
    with edit(lm, skip_block(2)):
        assert found["loss"][2] == pytest.approx(float(loss() - clean), abs=1e-9)
        skipped = lm.logits(ids[: lesson5.SHORT])[0, -1].log_softmax(-1)
    assert found["block"][2] == pytest.approx(float((short.exp() * (short - skipped)).sum()))
    assert found["heads"][2][1] == pytest.approx(float((short.exp() * (short - silent(1))).sum()))


def test_a_heads_share_is_counted_in_parameters():
    lm = tiny("gpt2")
    block = lm.blocks[0]
    of_attention = sum(p.numel() for p in block.attn.parameters())
    assert lesson5.head_share(lm)[0] == pytest.approx(of_attention / 4 / sum(p.numel() for p in block.parameters()))


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gemma3_text"])
def test_other_families_can_be_judged(family):
    lm = tiny(family)
    claims = lesson5.ledger(lm, torch.arange(6), torch.arange(40).view(2, 20))
    assert [claim.number for claim in claims] == list(lesson5.VERDICTS)
    assert claims[0].verdict == CONSTRUCTION
