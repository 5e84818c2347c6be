"""Lesson 3's figures: titles follow the numbers, and every figure has words."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.lesson3 import plots as c
from helpers.plots.style import description, figure_of, new_axes, to_png

EVEN = torch.ones(4, 4, dtype=torch.float64).tril() / torch.arange(1, 5).view(-1, 1)
SHARP = torch.eye(4, dtype=torch.float64)
TOKENS = ["a", " b", " c", " d"]


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def test_evenness():
    assert c.evenness(EVEN) < 1e-12
    assert c.evenness(SHARP) == 0.75


def test_patterns_say_which_are_even():
    figure = c.plot_patterns({"clean": SHARP, "keys at zero": EVEN}, TOKENS, "head 2")
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "Keys at zero: head 2 looks evenly at all it may see"
    assert "keys at zero: the last token gives at most 0.25" in description(figure)
    assert to_png(figure)[:4] == b"\x89PNG"
    assert c.patterns_finding({"clean": SHARP}, "head 2") == "No pattern of head 2 is even"


def test_head_effects_count():
    less, more = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 4.0])
    ax = c.plot_head_effects({"keys": less, "output": more}, 5)
    assert isinstance(ax, Axes)
    assert "in 2 of 3 heads of block 5" in title(ax)
    assert "Medians: 2 and 2" in description(ax)
    assert "in 1 of 3" in title(c.plot_head_effects({"output": more, "keys": less}, 5))


def test_neurons_title_measures_distance_and_overlap():
    natural = torch.linspace(-1, 1, 101, dtype=torch.float64)
    far = c.plot_neurons(natural, natural + 10, 7)
    assert "0 % of the natural values" in title(far)
    assert f"{float(10 / natural.std()):.3g}" in title(far)
    near = c.plot_neurons(natural, natural, 7)
    assert "100 % of the natural values" in title(near)
    assert "block 7" in description(near)


def test_spread_draws_on_given_axes_and_says_where_runs_end():
    clean = torch.tensor([1.0, 2.0, 4.0, 8.0])
    edited = torch.tensor([1.0, 2.0, 40.0, 44.0])
    ax = new_axes()
    assert c.plot_spread({"clean": clean, "× 10": edited}, {"clean": 1.0, "× 10": 1.25}, 1, "block 1 × 10", ax) is ax
    assert title(ax) == "The stream ends at 44 (× 10) beside 8 (clean); after the final norm all lie between 1 and 1.25"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["emb", "0", "1", "2", "norm"]
    assert "× 10: 40 after block 1, 44 after the last block, 1.25 after the final norm" in description(ax)


def test_next_tokens_say_whether_the_first_changed():
    same = c.plot_next_tokens({" a": (0.5, 0.4), " b": (0.1, 0.2)})
    assert title(same) == "The most probable token stays ' a'"
    assert title(c.plot_next_tokens({" a": (0.5, 0.1), " b": (0.1, 0.2)})) == "From ' a' to ' b'"
    assert "' b' 0.1 → 0.2" in description(same)


def test_dollars_are_no_formula():
    tokens = ["$", "$ \\frac", "{", " d"]
    assert to_png(c.plot_patterns({"clean": SHARP}, tokens))
    ax = c.plot_next_tokens({"$": (0.5, 0.1), "$ \\frac{": (0.1, 0.2)})
    assert to_png(ax)
    assert "'$' 0.5 → 0.1" in description(ax)


def test_shift_joins_both():
    series = {"clean": torch.tensor([1.0, 2.0, 4.0]), "edited": torch.tensor([1.0, 1.0, 2.0])}
    figure = c.plot_shift(series, {"clean": 1.0, "edited": 1.0}, {" a": (0.5, 0.1)}, 0, "block 0 × 0.5")
    assert len(figure.axes) == 2
    assert "The stream ends at 2" in figure.get_suptitle()
    words = description(figure_of(figure))
    assert "block 0 × 0.5" in words and "' a' 0.5 → 0.1" in words
