"""A widget's picture is drawn in another way and looks the same."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.ticker import NullLocator
from PIL import Image

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


def test_an_axis_whose_numbers_need_a_factor_beside_them_stays_matplotlibs():
    ax = redrawn.panel_axes()
    ax.plot([0, 1], [1e7 + 0.1, 1e7 + 0.2])
    redrawn.settle(ax)
    assert not isinstance(ax.yaxis.get_major_locator(), NullLocator)
    assert isinstance(ax.xaxis.get_major_locator(), NullLocator)
