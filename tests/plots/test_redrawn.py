"""A widget's picture is drawn in another way and looks the same."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.ticker import NullLocator
from PIL import Image

from helpers.lesson3.plots import plot_spread
from helpers.plots import redrawn, style


def grey(ax):
    return np.asarray(Image.open(BytesIO(style.to_png(ax))).convert("L"), float)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_widgets_ticks_are_drawn_another_way_and_look_the_same(monkeypatch, scale):
    def drawn():
        ax = redrawn.panel_axes()
        ax.plot(range(13), [3 + 2 * i for i in range(13)])
        style.stream_axis(ax, 12)
        ax.set_yscale(scale)
        ax.set_ylabel("Δ (Frobenius norm)")
        return redrawn.settle(ax)

    quick = grey(drawn())
    monkeypatch.setattr(redrawn, "_plain_ticks", lambda ax: None)
    own, bare = drawn(), drawn()
    assert own.get_yticklabels()  # these are matplotlib's
    for axis in (bare.xaxis, bare.yaxis):
        axis.set_major_locator(NullLocator())
        axis.label.set_visible(False)
    own, bare = grey(own), grey(bare)
    assert np.abs(quick - own).mean() < 0.5 * np.abs(bare - own).mean()  # half a pixel off: 0.33; upside down: 0.93


@pytest.mark.parametrize("include_first", [True, False])
def test_nothing_is_cut_off_at_the_sides(include_first):
    """The longest axis labels of a widget: 30 blocks and the norm behind them, numbers below 1 on a logarithmic axis."""
    runs = {name: torch.logspace(-1, 2, 31) * scale for name, scale in (("clean", 1), ("edited", 2))}
    ax = redrawn.panel_axes()
    plot_spread(runs, {"clean": 1.0, "edited": 2.0}, 9, "block 9 × 10", ax, include_first=include_first)
    picture = grey(redrawn.settle(ax))
    assert picture[:, :2].min() == 255 and picture[:, -2:].min() == 255
    assert picture[:, :40].min() < 128, "the label at the left is there"


def test_an_axis_whose_numbers_need_a_factor_beside_them_stays_matplotlibs():
    ax = redrawn.panel_axes()
    ax.plot([0, 1], [1e7 + 0.1, 1e7 + 0.2])
    redrawn.settle(ax)
    assert not isinstance(ax.yaxis.get_major_locator(), NullLocator)
    assert isinstance(ax.xaxis.get_major_locator(), NullLocator)
