"""Lesson 3's figures: titles follow the numbers, and every figure has words."""

import pytest
import torch

from helpers.lesson3 import plots as c
from helpers.plots.style import description, new_axes, to_png

EVEN = torch.full((4,), 0.25, dtype=torch.float64)
SHARP = torch.tensor([0.1, 0.7, 0.1, 0.1], dtype=torch.float64)
TOKENS = ["a", " b", " $c", " d"]
COSTS = {"one": {"push": 10.0, "fair": 0.05}, "two": {"push": 5.0, "fair": 0.1}}


def title(ax, where="left"):
    return ax.get_title(loc=where).replace("\n", " ")


def test_a_look_says_where_the_head_looked_and_whether_it_is_even_now():
    ax = c.plot_look({"clean": SHARP, "keys at zero": EVEN}, TOKENS, "head 2")
    assert title(ax) == "Head 2 gave ' b' 0.7 of its attention, and now gives 0.25 to each of 4 tokens"
    assert "'a' 0.1 → 0.25" in description(ax)
    assert to_png(ax)[:4] == b"\x89PNG"  # the dollar of a token is no formula
    ax = c.plot_look({"clean": EVEN, "other": SHARP}, TOKENS, "head 2")
    assert title(ax).endswith("now gives 0.7 at most")


def test_resting_heads_are_counted():
    share, ratio = torch.tensor([0.95, 0.99, 0.5, 0.4]), torch.tensor([3.0, 90.0, 2.0, 0.5])
    ax = c.plot_resting(share, ratio, ["15.0", "18.2", "20.1", "23.1"], "18.2")
    assert title(ax).startswith("2 of the 2 key heads that rest (over 0.9 on the first token)")
    assert title(ax).endswith("18.2: 90 times")
    assert "Of the others 1 of 2 do" in description(ax)
    filled, hollow = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert len(filled.get_xdata()) == 3 and hollow.get_markerfacecolor() == "white"
    lower = torch.tensor([0.3, 90.0, 2.0, 0.5])
    assert title(c.plot_resting(share, lower, ["15.0", "18.2", "20.1", "23.1"], "18.2")).startswith("1 of the 2")


def test_replacements_name_the_dearest_and_the_fairest():
    ax = c.plot_replacements(COSTS)
    assert title(ax, "right") == "one: 10 nats for push, 0.05 for fair two: 5 nats for push, 0.1 for fair"
    assert "push: one 10, two 5" in description(ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["push", "fair"]


def test_spread_draws_on_given_axes_and_says_where_runs_end():
    clean = torch.tensor([1.0, 2.0, 4.0, 8.0])
    edited = torch.tensor([1.0, 2.0, 40.0, 44.0])
    ax = new_axes()
    assert c.plot_spread({"clean": clean, "× 10": edited}, {"clean": 1.0, "× 10": 1.25}, 1, "block 1 × 10", ax) is ax
    assert title(ax) == "The stream ends at 44 (× 10) beside 8 (clean); after the final norm all lie between 1 and 1.25"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["emb", "0", "1", "2", "norm"]
    assert "× 10: 40 after block 1, 44 after the last block, 1.25 after the final norm" in description(ax)


@pytest.mark.parametrize(("word", "alike"), [(" b", "not alike: ' a', ' b'"), (" a", "the same: ' a'")])
def test_spread_with_words_says_whether_they_changed(word, alike):
    runs = {"clean": torch.tensor([1.0, 2.0]), "× 10": torch.tensor([1.0, 20.0])}
    ax = c.plot_spread(runs, {"clean": 1.0, "× 10": 1.25}, 0, "block 0", says={"clean": " a", "× 10": word})
    assert title(ax) == f"After the final norm the spreads lie between 1 and 1.25; the next words are {alike}"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["clean: ' a'", f"× 10: '{word}'"]
    assert alike in description(ax)
