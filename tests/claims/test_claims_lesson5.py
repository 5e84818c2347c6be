import pytest
import torch
from tiny import tiny

from helpers.claims import lesson5
from helpers.claims.core import FAILS, HOLDS, PARTLY
from helpers.edits import edit, skip_block
from helpers.exercises.core import hooks_on, tiny_model
from helpers.tracing import trace

CASES = {
    "5.1": ({"steps": [0.0, 0.0, 0.0]}, {"steps": [1.5, 2.0, 1e-9]}),
    "5.2": ({"equal": [[1], [2], [3]]}, {"equal": [[], [1], []]}),
    "5.3": (
        {"error": "", "line": 0.0, "repair": None, "mended": 0.0},
        {"error": "TypeError", "line": None, "repair": 8.1, "mended": 0.0},
    ),
    "5.4": (
        {"block": [1.0, 2.0], "heads": [[0.1, 0.02], [0.2, 0.1]]},
        {"block": [1.0, 2.0], "heads": [[0.9, 0.8], [1.9, 3.0]]},
    ),
    "5.5": (
        {"rise": [2.0, 0.01, 0.2], "low": [1.5, -0.02, 0.05], "high": [2.5, 0.04, 0.4]},
        {"rise": [0.1, 0.11], "low": [0.05, 0.06], "high": [0.2, 0.2]},
    ),
}


def test_every_verdict_can_go_both_ways(prove_verdicts):
    prove_verdicts(lesson5, CASES)


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        ("5.1", {"steps": [0.0, 2.0, 0.0]}, "not at block 1"),
        ("5.2", {"equal": [[1], [2], []]}, "entry 3 is not what block 2 writes"),
        ("5.2", {"equal": [[1], [], [3]]}, "for blocks 0 and 2 only"),
        ("5.3", {"error": "", "line": 3.0, "repair": None, "mended": 0.0}, "the state before the hook"),
        ("5.4", {"block": [1.0, 0.1], "heads": [[0.3, 0.2], [0.01, 0.02]]}, "more than some whole blocks"),
        ("5.4", {"block": [1.0, 0.1], "heads": [[0.3, 0.02], [0.15, 0.02]]}, "as much damage alone as their block"),
        ("5.5", {"rise": [0.01, 0.1], "low": [0.0, 0.05], "high": [0.02, 0.2]}, "none is surely needed"),
        ("5.5", {"rise": [0.3, 0.1], "low": [0.2, 0.05], "high": [0.4, 0.2]}, "none is surely redundant"),
    ],
)
def test_what_holds_in_part(number, arguments, said):
    claim = lesson5.VERDICTS[number](**arguments)
    assert claim.verdict == PARTLY
    assert said in claim.why


def test_reasons_of_failure_are_told_apart():
    neither = lesson5.verdict_5_3("TypeError", None, None, 0.0)
    assert neither.verdict == FAILS and "does not run either" in neither.why
    assert "`prepend=True` mends it" in lesson5.verdict_5_3("TypeError", None, 8.1, 0.0).why
    assert "mends" not in lesson5.verdict_5_3("TypeError", None, 8.1, 8.1).why
    assert "as short, and skips" in lesson5.verdict_5_3("TypeError", None, 0.0, 0.0).why
    assert "for block 0 only" in lesson5.verdict_5_2([[1], [], []]).why
    for all_alike in (([0.5, 0.6], [0.4, 0.5], [0.6, 0.7]), ([0.01, 0.02], [0.0, 0.01], [0.02, 0.03])):
        assert lesson5.verdict_5_5(*all_alike).verdict == FAILS


def test_a_chainsaw_pushes_at_least_twice_as_far():
    assert lesson5.verdict_5_4([0.41, 0.41], [[0.1, 0.1], [0.1, 0.1]]).verdict == HOLDS
    assert lesson5.verdict_5_4([0.39, 0.39], [[0.1, 0.1], [0.1, 0.1]]).verdict == FAILS


def test_agreement_of_a_minority_is_no_agreement_in_part():
    assert lesson5.verdict_5_1([0.0, 0.0, 2.0, 1.0]).verdict == FAILS
    assert lesson5.verdict_5_2([[1], [], [], []]).verdict == FAILS
    assert lesson5.verdict_5_3("TypeError", None, 0.0, 0.0).verdict == FAILS, "the report's own line raises"


def test_the_ledger_measures_all_claims_and_leaves_the_model_alone():
    lm = tiny_model(5)
    lm.model(torch.arange(4)[None], output_hidden_states=True)  # transformers 5 installs its recorders once, for good
    ids, text = torch.arange(8), torch.arange(48).view(3, 16)
    hooks, before = hooks_on(lm.model), trace(lm, ids).logits
    claims = {claim.number: claim for claim in lesson5.ledger(lm, ids, text)}
    assert list(claims) == list(lesson5.VERDICTS)
    assert claims["5.1"].verdict == HOLDS
    assert claims["5.2"].verdict == PARTLY, "the final norm"
    assert claims["5.3"].measured.endswith("registered ahead: 0")
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


def test_the_ledger_reads_the_model_in_front_of_it():
    """Silenced blocks cost nothing to skip; the one that still speaks does."""
    lm = tiny_model(3)
    with torch.no_grad():
        for block in (lm.blocks[0], *lm.blocks[2:]):
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    text = trace(lm, torch.arange(16)).logits.argmax(-1).repeat(3, 1)
    costs = lesson5.skip_costs(lesson5.measure_damage(lm, text).loss)
    assert costs.rise[[0, 2, 3]].abs().max() < 1e-9
    assert costs.rise[1].abs() > 1e-3
    assert (costs.low <= costs.rise).all() and (costs.rise <= costs.high).all()


def test_costs_are_those_of_the_plain_loop():
    lm = tiny_model(7)
    text = torch.arange(36).view(3, 12)
    damage = lesson5.measure_damage(lm, text)
    costs = lesson5.skip_costs(damage.loss)

    def loss():
        logprobs = lm.logits(text)[:, :-1].log_softmax(-1)
        return -logprobs.gather(-1, text[:, 1:, None]).mean()

    clean = loss()
    with edit(lm, skip_block(2)):
        assert float(costs.rise[2]) == pytest.approx(float(loss() - clean), abs=1e-9)
    assert costs.low[2] >= damage.loss[:, 2].min() and costs.high[2] <= damage.loss[:, 2].max(), "drawn by passage"
    assert lesson5.ledger(lm, text[0], damage=damage) == lesson5.ledger(lm, text[0], text)


def test_the_interval_counts_passages_not_tokens():
    """Two passages that disagree leave an interval as wide as both, however many tokens each of them has."""
    costs = lesson5.skip_costs(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert (float(costs.low), float(costs.high)) == (0.0, 1.0)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gemma3_text"])
def test_other_families_can_be_judged(family):
    lm = tiny(family)
    claims = lesson5.ledger(lm, torch.arange(6), torch.arange(40).view(2, 20))
    assert [claim.number for claim in claims] == list(lesson5.VERDICTS)
    assert claims[0].verdict == HOLDS
