import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from helpers.lesson4 import plots as heads
from helpers.plots.style import EDIT, description, to_png

CHANGES = torch.tensor([-0.3, 0.1, -0.2, 0.0])
MAP = torch.tensor([[-0.4, 0.1, 0.0], [0.05, 0.2, 0.0]])


def words(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def test_head_changes_are_counted():
    ax = heads.plot_head_changes({"log p(a)": CHANGES, "log p(b)": -CHANGES}, 5)
    assert isinstance(ax, Axes)
    assert words(ax) == "Of 4 heads: log p(a) falls for 2 and rises for 1; log p(b) falls for 1 and rises for 2"
    assert "from -0.3 to 0.1 nats" in description(ax)
    assert list(ax.lines[0].get_ydata()) == CHANGES.tolist()
    assert "block 5" in ax.get_xlabel() and "nats" in ax.get_ylabel()
    assert to_png(ax).startswith(b"\x89PNG")


def test_with_intervals_only_sure_changes_count():
    interval = torch.stack([CHANGES - 0.15, CHANGES + 0.15], dim=1)
    ax = heads.plot_head_changes({"zero": CHANGES}, 5, {"zero": interval})
    assert words(ax) == "Of 4 heads, by 95 % intervals: zero falls for 2 and rises for 0"


def test_the_map_is_centred_at_zero_and_marks_the_head():
    ax = heads.plot_head_map(MAP, (1, 2))
    assert isinstance(ax, Axes)
    image = ax.images[0]
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((-0.4, 0.4))
    red, green, blue, _ = image.cmap(image.norm(0.0))
    assert min(red, green, blue) > 0.95, "0 is white"
    frame = ax.patches[-1]
    assert (frame.get_x(), frame.get_y()) == (1.5, 0.5)
    assert to_hex(frame.get_edgecolor()) == to_hex(EDIT)
    assert words(ax) == "Head 0 of block 0 has the largest effect (-0.4); half of all change sits in 1 of 6 heads"
    assert "In the frame: head 2 of block 1, 0." in description(ax)


def test_a_map_of_zeros_can_be_drawn():
    ax = heads.plot_head_map(torch.zeros(2, 3))
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1)
    assert not ax.patches


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([True, True, False, True], "stays for 3 of 4 heads, while the logit difference moves by -0.3 to 0.1 nats"),
        ([False] * 4, "The top token stays for 0 of 4 heads"),
    ],
)
def test_silent_changes_are_counted(kept, said):
    ax = heads.plot_silent_changes(CHANGES, torch.tensor(kept))
    assert isinstance(ax, Axes)
    assert said in words(ax)
    drawn = sum(len(line.get_ydata()) for line in ax.lines if str(line.get_label()).endswith(")"))
    assert drawn == 4


def test_together_is_compared_with_the_sum():
    ax = heads.plot_together(torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([-0.5, -0.1, -0.6]))
    assert isinstance(ax, Axes)
    assert "in 2 of 3 blocks" in words(ax)
    assert "block 2: -0.6 at once against -0.3" in description(ax)
    sure = torch.tensor([[-0.6, -0.2], [-0.1, 0.3], [0.1, 0.2]])
    ax = heads.plot_together(torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([-0.5, -0.1, -0.2]), sure)
    assert "surely more than the sum of their single effects in 1 of 3 blocks, surely less in 1" in words(ax)


def test_top_tokens_name_the_largest_factor():
    clean, edited = torch.tensor([0.5, 0.001]), torch.tensor([0.4, 0.004])
    ax = heads.plot_top_tokens([" a", " b"], clean, edited, "head 1 of block 2 off")
    assert isinstance(ax, Axes)
    assert words(ax) == "' b' changes by the largest factor, from 0.001 to 0.004"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["' a'", "' b'"]
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    assert low < 0.001 and high > 0.5
    assert all(low <= tick <= high for tick in ax.get_xticks())


@pytest.mark.parametrize(
    ("low", "labels"),
    [
        (0.02, ["0.03", "0.1", "0.3"]),
        (2e-6, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (2e-20, ["1e-17", "1e-13", "1e-09", "1e-05", "0.1"]),
    ],
)
def test_an_axis_of_probabilities_has_few_round_ticks(low, labels):
    ax = heads.plot_top_tokens([" a", " b"], torch.tensor([0.5, low]), torch.tensor([0.4, low]), "head 1 off")
    assert [label.get_text() for label in ax.get_xticklabels()] == labels


def test_the_panel_describes_both_halves():
    probabilities = torch.tensor([0.5, 0.1])
    figure = heads.plot_head_panel(MAP, (0, 1), [" a", " b"], probabilities, probabilities / 2)
    assert "In the frame: head 1 of block 0, 0.1." in description(figure)
    assert "' a' 0.5 to 0.25" in description(figure)
    assert "head 1 of block 0 → zero" in description(figure)
    assert to_png(figure).startswith(b"\x89PNG")
