import pytest
import torch
from matplotlib.colors import to_hex

from helpers.lesson4 import plots as heads
from helpers.plots.style import EDIT, description, to_png

MAP = torch.tensor([[-0.4, 0.1, 0.0], [0.05, 0.2, 0.0]])
EVEN = torch.full((2, 3), 0.1)


def words(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def hollow(ax):
    """(hollow, filled) numbers of marks."""
    drawn = [line for line in ax.lines if line.get_marker() not in ("", "None", None)]
    open_ones = sum(len(line.get_ydata()) for line in drawn if line.get_markerfacecolor() == "white")
    return open_ones, sum(len(line.get_ydata()) for line in drawn) - open_ones


def test_two_maps_share_a_scale_that_begins_at_zero_and_name_the_strongest():
    figure = heads.plot_two_maps({"zeros": EVEN, "means": MAP.abs()}, named=2)
    assert figure.get_suptitle() == "With zeros 3 of 6 heads hold half of all change, with means 1"
    images = [ax.images[0] for ax in figure.axes[:2]]
    assert [(image.norm.vmin, image.norm.vmax) for image in images] == [pytest.approx((0, 0.4))] * 2
    red, green, blue, _ = images[0].cmap(images[0].norm(0.0))
    assert min(red, green, blue) > 0.95, "0 is white"
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.0", "1.1"]
    assert "means: half of all change sits in 1 heads, the strongest are 0.0 (0.4), 1.1 (0.2)" in description(figure)
    assert figure.axes[2].get_ylabel() == "mean size of the change of the logit difference (nats)"
    assert to_png(figure).startswith(b"\x89PNG")


def test_heads_that_read_the_capital_are_told_from_those_that_write_against_the_answer():
    looks = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.6, 0.2]])
    writes = torch.tensor([[1.7, 1.3, 0.0], [0.9, -0.5, 0.1]])
    ax = heads.plot_looks_and_writes(looks, writes)
    assert words(ax) == "2 heads look at the capital and write 0.90 to 1.70 nats towards its country: 0.0, 1.0"
    assert "4 of 6 heads write 3.40 of the 3.50 nats" in description(ax)
    assert "1.1 looks 0.60 at the capital and writes -0.50" in description(ax)
    assert {text.get_text() for text in ax.texts} == {"0.0", "0.1", "1.0", "1.1"}
    markers = {line.get_marker(): len(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "None"}
    assert markers == {"o": 2, "^": 3, "v": 1}


def test_without_a_reader_the_title_says_what_is_written():
    ax = heads.plot_looks_and_writes(torch.zeros(1, 2), torch.tensor([[1.0, 0.1]]))
    assert words(ax) == "1 of 2 heads write 1.00 of the 1.10 nats that all heads write"


def test_swaps_count_where_the_other_country_comes_first():
    one = (torch.tensor([False, True, False]), torch.tensor([0.1, 0.6, 0.2]))
    two = (torch.tensor([True, True, False]), torch.tensor([0.7, 0.9, 0.2]))
    ax = heads.plot_swaps({"1.0": one, "1.0, 1.1": two}, ["Rome", "Oslo", "Lima"], "a model")
    assert words(ax) == "Swap heads 1.0, 1.1, and a model names the other prompt's country on 2 of 3 (filled)"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Oslo", "Rome", "Lima"]
    assert hollow(ax) == (3, 3)
    assert "heads 1.0: first on 1 of 3, mean probability 0.3" in description(ax)


def test_together_is_compared_with_the_sum():
    alone, together = torch.tensor([-0.1, -0.2, -0.03]), torch.tensor([-0.3, -0.2, -3.2])
    ax = heads.plot_together(alone, together, torch.full((3,), 0.1))
    assert words(ax) == "The heads of block 2 change log p by -0.03 nats one at a time, by -3.20 all at once"
    assert "next largest gap is at block 0: -0.10 summed, -0.30 at once" in description(ax)
    assert "nats" in ax.get_ylabel() and "block" in ax.get_xlabel()


def test_the_first_place_and_the_shift_are_counted():
    sure = torch.tensor([[True, True, False], [True, False, False]])
    ax = heads.plot_top_one(MAP, torch.tensor([[5, 0, 0], [0, 2, 0]]), sure, 7)
    assert words(ax) == "4 of 6 heads never cost the first place; 2 of them shift log p significantly"
    assert hollow(ax) == (3, 3)
    assert "without 0.0 on 5 (-0.4 nats), 1.1 on 2 (0.2 nats)" in description(ax)
    assert "Not significant, though far out: 1.1 (0.2 nats)." in description(ax)
    assert [text.get_text() for text in ax.texts] == ["0.0", "1.1", "0.1"]
    assert "of 7" in ax.get_ylabel()


def test_phrasings_show_how_far_a_few_heads_make_the_r():
    agree = {
        "a model, zeros": {"x": (0.3, 0.5), "y": (-0.2, 0.4)},
        "a model, means": {"x": (0.97, 0.41), "y": (0.9, 0.6)},
    }
    ax = heads.plot_phrasings(agree, "main")
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in ax.get_title(loc="left").splitlines()] == [
        "r reaches 0.97 (a model, means);",
        "by rank no map agrees better than 0.60 (a model, means)",
    ]
    assert "a model, zeros: x 0.30, by rank 0.50, y -0.20, by rank 0.40" in description(ax)
    assert hollow(ax) == (4, 4)
    low, high = ax.get_xlim()
    assert low < -0.2 and high > 0.97


def test_the_panels_map_marks_the_head():
    pattern = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    figure = heads.plot_head_and_attention(MAP, (2, 3), (1, 2), pattern, ["a", "b"])
    frame = figure.axes[0].patches[-1]
    assert (frame.get_x(), frame.get_y()) == (1.5, 0.5)
    assert to_hex(frame.get_edgecolor()) == to_hex(EDIT)
    assert "Head 0 of block 0 has the largest effect (-0.4); half of all change sits in 1 of 6 heads" in description(
        figure
    )
    assert "In the frame: head 2 of block 1" in description(figure)
    assert "the last token looks most at 'a' (0.75)" in description(figure)


def test_a_map_of_zeros_can_be_drawn():
    figure = heads.plot_head_and_attention(torch.zeros(2, 3), (2, 3), (0, 0), None, ["a"])
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
