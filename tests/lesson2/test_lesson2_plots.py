import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.correlations import within_percentile
from helpers.lesson2 import plots as blocks
from helpers.loading import load_model
from helpers.plots.style import description, to_png

NAMES = ("H_3", "H_4")


def states(step=0.2, pos=6):
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(1, pos, 30, generator=generator, dtype=torch.float64)
    before[0, 0, 4] = -40.0
    return before, before + step * torch.randn(1, pos, 30, generator=generator, dtype=torch.float64)


def drawn(ax):
    assert to_png(ax, 40).startswith(b"\x89PNG")
    return description(ax)


def test_the_anatomy_names_both_places_for_a_hook():
    ax = blocks.plot_anatomy()
    assert isinstance(ax, Axes)
    words = drawn(ax)
    assert "before dropout" in words and "resid_dropout" in words
    assert {text.get_text() for text in ax.texts} >= {
        "ln_1",
        "c_attn",
        "c_proj",
        "dropout",
        "ln_2",
        "c_fc",
        "attn",
        "mlp",
    }


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ([9, 9, 9, 0.1, 9.0], "Attention writes more than the MLP in blocks 0 to 2 and 4, the MLP more in the other 1"),
        ([0, 9, 0, 0, 0.0], "Attention writes more than the MLP in block 1, the MLP more in the other 4"),
        ([0, 0, 0, 0, 0.0], "The MLP writes more than attention in each of the 5 blocks"),
        ([9, 9, 9, 9, 9.0], "Attention writes more than the MLP in each of the 5 blocks"),
    ],
)
def test_the_title_says_who_writes_more(attention, said):
    assert blocks.delta_finding(torch.tensor(attention), torch.ones(5)) == said


def test_delta_norms_have_three_lines_and_the_mark_of_a_block():
    ax = blocks.plot_delta_norms(torch.arange(1.0, 6), torch.ones(5), torch.full((5,), 2.0), block=3)
    assert isinstance(ax, Axes)
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["‖Δ MLP‖"] == [2.0] * 5
    assert any(text.get_text() == "block 3" for text in ax.texts)
    assert "from 1 before block 0 to 5 before block 4" in drawn(ax)


def test_the_title_compares_r_with_chance_and_knows_equal_states():
    before, after = states()
    found = blocks.scatter_finding(before, after, NAMES, 0.9876, 0.9512)
    assert found == "r = 0.988 between H_3 and H_4; a random step as long gives 0.951"
    assert (
        blocks.scatter_finding(before, before.clone(), NAMES, 1.0, 1.0)
        == "H_3 and H_4 are the same: every point lies on the diagonal"
    )


def test_the_mask_figure_counts_what_it_hides():
    before, after = states()
    keep = within_percentile(before, after, 99)
    figure = blocks.plot_mask(before, after, NAMES, keep)
    assert isinstance(figure, Figure)
    share = blocks.filled_axis(before, after, keep)
    assert 0 < share < 0.1
    assert blocks.filled_axis(before, after, torch.ones_like(keep)) == 1
    assert f"{int((~keep).sum())} outliers take the rest" in drawn(figure)


def test_the_mask_figure_shows_every_kept_value_once():
    before, after = states()
    keep = within_percentile(before, after, 95)
    figure = blocks.plot_mask(before, after, NAMES, keep)
    left, right = figure.axes[:2]
    assert sum(len(cloud.get_offsets()) for cloud in left.collections) == keep.numel()
    (density,) = right.collections
    assert np.nansum(density.get_array().filled(0)) == int(keep.sum())
    assert left.get_aspect() == right.get_aspect() == 1


@pytest.mark.parametrize(
    ("value", "said"), [(0.99985, "0.99985"), (1 - 1e-9, "1"), (0.9312, "0.931"), (-0.03, "-0.03")]
)
def test_only_a_perfect_r_is_called_1(value, said):
    assert blocks._r(value) == said


def test_likeness_counts_the_blocks_that_look_perfect_and_marks_the_threshold():
    ax = blocks.plot_likeness({"all": torch.tensor([0.2, 0.9995, 0.9999]), "without": torch.tensor([0.1, 0.5, 0.6])})
    assert "r is 0.999 or more at 2 of 3 blocks; without: at none" in drawn(ax)
    assert ax.get_yscale() == "log"
    assert ax.lines[0].get_ydata() == pytest.approx([0.8, 0.0005, 0.0001], rel=1e-3)
    assert list(ax.lines[2].get_ydata()) == pytest.approx([0.001, 0.001])
    low, high = ax.get_ylim()
    assert low > high, "the more alike, the higher"
    labels = [ax.yaxis.get_major_formatter()(miss, None) for miss in (1, 0.1, 0.001, 1e-5)]
    assert labels == ["0", "0.9", "0.999", "0.99999"]


def test_words_draw_the_probability_and_name_who_comes_first():
    lm = load_model()
    germany, france = lm.token_id(" Germany"), lm.token_id(" France")
    flat = torch.zeros(lm.vocabulary, dtype=torch.float64)
    here, there = flat.index_fill(0, torch.tensor([germany]), 12.0), flat.index_fill(0, torch.tensor([france]), 12.0)
    ax = blocks.plot_words(lm, {"clean run": here, "without it": there}, " Germany")
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([float(x.softmax(-1)[germany]) for x in (here, there)])
    words = drawn(ax)
    assert "' Germany' goes from 0.964 to < 0.0001" in words and "(without it)" in words
    assert "to 0.964 (clean run)" in drawn(
        blocks.plot_words(lm, {"clean run": here, "off": there}, " Germany", "clean run")
    )
    assert "without it: < 0.0001, most probable is ' France' with 0.964" in words


def test_steps_count_how_often_the_word_comes_first():
    first = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    values = torch.tensor([0.9, 0.1, 0.6, 0.2, 0.7])
    found = {4: torch.stack([values, first], dim=1), 9: torch.stack([values / 2, 0 * first], dim=1)}
    ax = blocks.plot_steps(found, " Germany")
    assert "With random steps ' Germany' comes first in 2 of 3 at block 4, in 0 of 3 at block 9" in drawn(ax)
    assert list(ax.lines[0].get_xdata()) == pytest.approx([0.6, 0.2, 0.7])


def test_parts_name_the_lost_and_the_longest_and_rank_them():
    length = torch.tensor([[1.0, 2.0, 3.0], [4.0, 50.0, 60.0]])
    cost = torch.tensor([[9.0, 0.2, 0.3], [0.4, 0.5, 0.1]])
    first = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert blocks.named_parts(length, cost, first) == [(0, 0), (1, 2), (1, 1), (1, 0)]
    ax = blocks.plot_parts(length, cost, first, " Germany")
    words = drawn(ax)
    assert "' Germany' still comes first without any one of 5 of the 6 parts" in words
    assert "attention 0: length 1, KL 9" in words and "MLP 2: length 60, KL 0.1" in words
    assert {text.get_text() for text in ax.texts} == {"attention 0", "MLP 0", "MLP 1", "MLP 2"}
    filled = [line for line in ax.lines if line.get_markerfacecolor() != "none"]
    assert sum(len(line.get_xdata()) for line in filled) == 1


def test_the_rank_correlation_is_spearmans():
    a, b = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = pd.Series(a.flatten().numpy()).rank().corr(pd.Series(b.flatten().numpy()).rank())
    assert blocks.rank_correlation(a, b) == pytest.approx(expected)


def test_the_widgets_picture_draws_both_panels():
    before, after = states()
    norms = (torch.ones(3), torch.ones(3), torch.full((3,), 2.0))
    for by_token in (True, False):
        keep = within_percentile(before, after, 95)
        figure = blocks.plot_block_view(before, after, NAMES, keep, (0.9, 0.8), by_token, norms, 1, 40)
        assert isinstance(figure, Figure)
        assert len(figure.axes) == 2 + by_token
        assert "The MLP writes more than attention in each of the 3 blocks" in drawn(figure)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([4], "4"), ([1, 2], "1, 2"), ([1, 2, 3], "1 to 3"), ([0, 2, 3, 4, 7], "0, 2 to 4 and 7")],
)
def test_ranges_in_words(numbers, words):
    assert blocks.in_ranges(numbers) == words
