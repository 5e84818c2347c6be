import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.correlations import within_percentile
from helpers.lesson2 import plots as blocks
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


@pytest.mark.parametrize("by_token", [True, False])
def test_a_scatter_shows_the_values_that_are_kept(by_token):
    before, after = states()
    keep = within_percentile(before, after, 90)
    ax = blocks.plot_scatter(before, after, NAMES, keep, by_token)
    assert isinstance(ax, Axes)
    assert sum(len(cloud.get_offsets()) for cloud in ax.collections) == int(keep.sum())
    assert f"{int(keep.sum())} values of H_4 against H_3" in drawn(ax)
    assert ax.get_xlim()[1] < 40 < blocks.plot_scatter(before, after, NAMES).get_xlim()[1]


def test_a_scatter_of_one_token_has_no_others():
    before, after = states(pos=1)
    assert "r = " in drawn(blocks.plot_scatter(before, after, NAMES))


def test_the_title_compares_r_with_chance_and_knows_equal_states():
    before, after = states()
    assert "a random step of the same size would give" in blocks.scatter_finding(before, after, NAMES)
    assert (
        blocks.scatter_finding(before, before.clone(), NAMES)
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


def test_correlations_name_the_lowest_block():
    ax = blocks.plot_correlations({"all": torch.tensor([0.2, 0.96, 0.99]), "some": torch.tensor([0.1, 0.5, 0.6])})
    assert isinstance(ax, Axes)
    assert "r is 0.95 or more at 2 of 3 blocks; the lowest is 0.2, at block 0" in drawn(ax)


def test_downstream_names_the_largest_and_the_smallest():
    delta = {"without A": torch.tensor([0.0, 1.0, 3.0]), "without B": torch.tensor([0.0, 2.0, 1.0])}
    ax = blocks.plot_downstream(delta, 0, "block 0")
    assert isinstance(ax, Axes)
    assert "Δ is largest without A (3) and smallest without B (1); it has grown since block 0 in 1 of 2" in drawn(ax)


def test_the_widgets_picture_draws_both_panels():
    before, after = states()
    norms = (torch.ones(3), torch.ones(3), torch.full((3,), 2.0))
    for by_token in (True, False):
        keep = within_percentile(before, after, 95)
        figure = blocks.plot_block_view(before, after, NAMES, keep, by_token, norms, 1, 40)
        assert isinstance(figure, Figure)
        assert len(figure.axes) == 2 + by_token
        assert "The MLP writes more than attention in each of the 3 blocks" in drawn(figure)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([4], "4"), ([1, 2], "1, 2"), ([1, 2, 3], "1 to 3"), ([0, 2, 3, 4, 7], "0, 2 to 4 and 7")],
)
def test_ranges_in_words(numbers, words):
    assert blocks.in_ranges(numbers) == words
