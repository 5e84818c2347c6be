"""What makes a widget's picture quick to draw again: fixed places, few ticks, and what stands along the axes stamped.

    ax = panel_axes()
    ax.plot(points, delta)
    settle(ax)               # at the end: no more ticks or labels after it

Matplotlib makes five artists for each tick, anew for every picture, sets each text again and measures all of them to find
room for the labels. Here the marks of an axis are one line, and each text is drawn once and kept as a small picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT, MarkerStyle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform

from helpers.plots.style import GRID, WIDGET_DPI, figure_of, new_axes, new_figure


def panel_axes() -> Axes:
    """Return the axes of a new figure for a widget, at a fixed place: finding one takes as long as drawing."""
    return new_axes(new_figure((7.0, 3.4), WIDGET_DPI, layout=None).add_axes((0.11, 0.15, 0.86, 0.75)))


def settle(ax: Axes, left: float = 42) -> Axes:
    """Make a finished drawing quick to render: no title, for a widget says it in its line of numbers, few and plain ticks,
    and axis labels at fixed places, `left` points from the axes and 20 below.
    """
    ax.set_title("", loc="left", y=1.0)
    if ax.get_yscale() == "linear":
        ax.yaxis.set_major_locator(MaxNLocator(4))
    box, points = ax.get_window_extent(), figure_of(ax).dpi / 72
    ax.xaxis.set_label_coords(0.5, -20 * points / box.height)
    ax.yaxis.set_label_coords(-left * points / box.width, 0.5)
    _plain_ticks(ax)
    return ax


def _plain_ticks(ax: Axes) -> None:
    """Draw what is written along the axes of a finished drawing from stamps, and all marks of an axis as one line."""
    away = rcParams["xtick.major.size"] + rcParams["xtick.major.pad"]  # points
    dash = {
        "markersize": rcParams["xtick.major.size"],
        "markeredgewidth": rcParams["xtick.major.width"],
        "color": "black",
    }
    sides = (
        (ax.xaxis, TICKDOWN, ax.get_xaxis_transform(), ax.get_xaxis_text1_transform(away)),
        (ax.yaxis, TICKLEFT, ax.get_yaxis_transform(), ax.get_yaxis_text1_transform(away)),
    )
    for axis, mark, along, (beside, upright, across) in sides:
        low, high = sorted(axis.get_view_interval())
        places = [float(place) for place in axis.get_majorticklocs() if low <= place <= high]
        names = axis.get_major_formatter().format_ticks(places)
        if (
            axis.get_major_formatter().get_offset()
        ):  # "1e6" at the end of the axis: without it the names say something else
            continue
        grid = axis.get_tick_params().get("gridOn")
        axis.set_major_locator(NullLocator())
        axis.label.set_visible(False)

        def at(place: float, beside: float, flat: bool = axis is ax.xaxis) -> tuple[float, float]:
            return (place, beside) if flat else (beside, place)

        marks = [at(place, 0) for place in places]
        lines = [Line2D(*_columns(marks), transform=along, marker=MarkerStyle(mark), linestyle="none", **dash)]
        if grid:
            ends = [end for place in places for end in (at(place, 0), at(place, 1), (math.nan, math.nan))]
            lines.insert(0, Line2D(*_columns(ends), transform=along, **GRID))
        texts = [
            Text(*place, name, transform=beside, va=upright, ha=across)
            for place, name in zip(marks, names, strict=True)
        ]
        ax.add_artist(_Along(figure_of(ax), lines, [*texts, axis.label]))


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


class _Along(Artist):
    """Lines and stamped texts along an axis: below the curves, and no concern of a legend that looks for a free place."""

    def __init__(self, figure: Figure, lines: Sequence[Line2D], texts: Sequence[Text]) -> None:
        super().__init__()
        self.set_zorder(0.5)
        self._lines, self._texts = lines, texts
        for line in lines:
            line.set_figure(figure)

    def draw(self, renderer: RendererBase) -> None:
        dpi = cast(Figure, self.get_figure(root=True)).dpi
        for line in self._lines:
            line.draw(renderer)
        gc = renderer.new_gc()
        for text in self._texts:
            x, y = text.get_transform().transform(text.get_position())
            across, upright = text.get_horizontalalignment(), text.get_verticalalignment()
            turned, mode, size = text.get_rotation(), str(text.get_rotation_mode()), float(text.get_fontsize())
            stamp, left, low = _stamp(text.get_text(), across, upright, turned, mode, size, dpi)
            renderer.draw_image(gc, round(x) + left, round(y) + low, stamp)
        gc.restore()


@lru_cache(maxsize=500)
def _stamp(
    name: str, across: str, upright: str, turned: float, mode: str, size: float, dpi: float
) -> tuple[np.ndarray, int, int]:
    """A picture of a text, (height, width, 4), and how far right of its place and above it the lower left corner is, in pixels."""
    figure = Figure(dpi=dpi)
    how: dict[str, Any] = {"ha": across, "va": upright, "rotation": turned, "rotation_mode": mode, "fontsize": size}
    text = figure.text(0, 0, name, transform=IdentityTransform(), **how)
    box = text.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    left, low = math.floor(box.x0) - 1, math.floor(box.y0) - 1  # a pixel for soft edges
    figure.set_size_inches((math.ceil(box.width) + 3) / dpi, (math.ceil(box.height) + 3) / dpi)
    text.set_position((-left, -low))
    canvas = FigureCanvasAgg(figure)
    text.draw(canvas.get_renderer())
    return np.flipud(canvas.buffer_rgba()).copy(), left, low  # draw_image wants the lowest row first
