"""The figures of the model card that need more than one call of helpers, against the same figures by hand."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import evaluate_pocket  # noqa: E402
import free_rest  # noqa: E402
import train_pocket  # noqa: E402


@pytest.fixture
def data(tmp_path) -> Path:
    np.save(tmp_path / "books_unseen.npy", np.random.default_rng(0).integers(97, size=400).astype(np.uint16))
    np.save(tmp_path / "books_unseen.starts.npy", np.arange(0, 360, 10))
    return tmp_path


def test_loss_by_context_counts_the_tokens_seen_before(data):
    lm = tiny("gpt2")
    found = evaluate_pocket.loss_by_context(lm, data, windows=6)
    rows = evaluate_pocket.passages(data, 32, 6)
    by_hand = torch.tensor([
        [-lm.logits(row[None, :seen])[0, -1].log_softmax(-1)[row[seen]] for seen in range(1, 32)] for row in rows
    ]).mean(0)  # fmt: skip
    assert found["1"] == pytest.approx(by_hand[0].item())
    assert found["2 to 4"] == pytest.approx(by_hand[1:4].mean().item())
    assert found["17 to 64"] == pytest.approx(by_hand[16:].mean().item())


def test_induction_reads_the_place_after_the_first_occurrence():
    """One head looks exactly there, one at the first occurrence itself, one one place further."""
    length = 10

    def model(ids, **_):
        queries = torch.arange(length, 2 * length)
        attention = torch.zeros(len(ids), 3, 2 * length, 2 * length)
        for head, place in enumerate((queries - length + 1, queries - length, queries - length + 2)):
            attention[:, head, queries, place] = 1
        assert torch.equal(ids[:, :length], ids[:, length:])
        return SimpleNamespace(attentions=[attention])

    found = evaluate_pocket.induction(SimpleNamespace(model=model, vocabulary=97), length, rows=2)
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_a_free_entry_takes_its_share_of_the_softmax_and_adds_nothing():
    lm, ids = tiny("gpt2"), torch.arange(10).reshape(2, 5)
    plain = lm.logits(ids)
    rests = free_rest.give_rest(lm, start=-1e9)
    torch.testing.assert_close(lm.logits(ids), plain)
    assert rests[0].share.abs().max() == 0

    query, key, value = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    rest = free_rest.Rest(4, 6, start=0.3).double()
    with torch.no_grad():
        rest.direction.copy_(torch.randn(4, 6))
    mixed, _ = free_rest.attention_with_rest(SimpleNamespace(rest=rest), query, key, value, None)
    for head, place in ((0, 0), (3, 2), (1, 4)):
        q = query[1, head, place]
        scores = torch.cat([key[1, head, : place + 1] @ q, (rest.direction[head] @ q)[None]]) / 6**0.5
        scores[-1] += 0.3
        weights = scores.softmax(0)
        torch.testing.assert_close(mixed[1, place, head], weights[:-1] @ value[1, head, : place + 1])


@pytest.mark.parametrize("everything", [False, True])
def test_only_the_free_entries_learn_unless_everything_may(everything):
    lm = tiny("gpt2", torch.float32)
    rests = free_rest.give_rest(lm)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    windows = SimpleNamespace(
        draw=lambda step, micro: torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(4 * step + micro))
    )
    free_rest.train_rests(lm, rests, windows, SimpleNamespace(steps=3, rate=0.03, everything=everything))
    changed = {name for name, p in lm.model.named_parameters() if not torch.equal(p, before[name])}
    of_rests = {name for name in before if ".rest." in name}
    assert of_rests <= changed
    assert changed == (set(before) if everything else of_rests)


def test_what_people_wrote_into_the_card_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_pocket, "figures", lambda found: "### Figures, measured")
    monkeypatch.setattr(evaluate_pocket, "curve", lambda log: "a curve")
    recipe = asdict(train_pocket.Recipe())
    about = {"step": "3", "tokens": "6144", "recipe": json.dumps(recipe)}
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors", metadata=about)
    (tmp_path / "sizes.json").write_text(json.dumps({"books": {"tokens": 5_000_000}}))
    card = tmp_path / "README.md"
    begin, end = evaluate_pocket.NOTES
    card.write_text(f"old figures\n\n{begin}\n\n## By hand\n\nsaid once\n\n{end}\n\nold ending\n")
    for _ in range(2):
        evaluate_pocket.write_card(tiny("gpt2"), {}, tmp_path, tmp_path, "one core", card)
    text = card.read_text()
    assert text.count("## By hand\n\nsaid once") == text.count("### Figures, measured") == 1
    assert "old figures" not in text and "old ending" not in text and "one core" in text and "in 3 steps" in text
