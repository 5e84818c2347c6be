"""One look for every figure of the course: size, colours, markers, the mark of an edit, text alternatives.

    ax = new_axes()
    ax.plot(points, delta, **series_style(0), label="Δ")
    mark_edit(ax, block + 1, "block 2 × 0.5")
    describe(ax, "Δ is 0 up to block 1, jumps to 6.8 at block 2 and reaches 11.0 at block 11.")
    show_figure(ax)

Figures are drawn on the Agg canvas without pyplot: nothing is global, and a figure is freed with its last reference.
"""

from __future__ import annotations

import base64
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from io import BytesIO
from typing import Any, Literal, cast

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
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform
from PIL import Image

from helpers.say import say, translatable

SIZE = (7.0, 4.0)  # inches
DPI = 100  # figures stored in a notebook
SHARP = 2  # pixels a dot, for screens that have them; Jupyter is told the size in dots
WIDGET_DPI = 80  # figures that are redrawn at each key press
NAMES_PER_INCH = 2.5  # on an x axis

# seaborn's "colorblind", written out: seaborn brings pandas, 25 MB for each student's kernel. A test holds the two together.
PALETTE: tuple[str, ...] = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
CLEAN, EDITED = PALETTE[0], PALETTE[1]  # the same two colours for "clean" and "edited" in every lesson
EDIT = PALETTE[3]  # the place of an edit
QUIET = "#595959"  # text and lines that stay in the background, readable on white
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
GRID: dict[str, Any] = {"color": "0.9", "linewidth": 0.8}
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"  # heat maps: from low to high, and signed values centred at 0


def new_axes(ax: Axes | None = None, size: tuple[float, float] = SIZE, dpi: int = DPI) -> Axes:
    """Return `ax`, or the axes of a new white figure of `size` inches, in the style of the course."""
    if ax is None:
        ax = new_figure(size, dpi).subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    return ax


def new_figure(
    size: tuple[float, float] = SIZE, dpi: int = DPI, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Return an empty white figure for functions that need several panels: `new_figure().subplots(1, 2)`.

    layout None: the caller gives the places of the axes. Finding them takes as long as drawing, too long for a widget.
    """
    figure = Figure(figsize=size, dpi=dpi, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panel_axes() -> Axes:
    """Return the axes of a new figure for a widget, at a fixed place: finding one takes as long as drawing."""
    return new_axes(new_figure((7.0, 3.4), WIDGET_DPI, layout=None).add_axes((0.11, 0.15, 0.88, 0.75)))


def settle(ax: Axes, left: float = 42) -> Axes:
    """Make a finished drawing quick to render: no title, for a widget says it in its line of numbers, few and plain ticks,
    and axis labels at fixed places, `left` points from the axes and 20 below. Matplotlib would measure every tick's text to
    find room for them, a third of its work.
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
    """Draw what is written along the axes of a finished drawing from stamps, and all marks of an axis as one line.

    Matplotlib makes five artists for each tick, anew for every picture, and sets each text again: two thirds of its work.
    """
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


def series_style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of the `index`-th series, so that colour is never the only difference."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
        "markersize": 5,
        "linewidth": 1.8,
    }


def point_names(n_blocks: int) -> list[str]:
    """Return names of the `n_blocks + 1` points of the residual stream: `emb`, then the block that wrote it.

    Point i is `output.hidden_states[i]`: the output of block i - 1. The last one is read before the final norm.
    """
    return [say("emb"), *(str(block) for block in range(n_blocks))]


def stream_axis(ax: Axes, n_blocks: int, *after: str) -> None:
    """Label the x axis of `ax` with the points of the stream; the output of block b stands at x = b + 1.

    after: names of further places behind the last point, such as the final norm.
    """
    step = tick_step(ax, n_blocks + 1)
    crowded = step > 2 and figure_of(ax).dpi <= WIDGET_DPI  # a widget puts the further names one line lower
    names = [*point_names(n_blocks), *(f"\n{name}" if crowded else name for name in after)]
    shown = [*range(n_blocks, -1, -step)][::-1]  # the last point is always there
    shown += range(n_blocks + 1, len(names))
    _name_ticks(ax, shown, [names[place] for place in shown])
    ax.set_xlabel(say("residual stream after block (emb: before block 0)"))
    ax.set_xlim(-0.5, len(names) - 0.5)


def block_axis(ax: Axes, n_blocks: int) -> None:
    """Label the x axis of `ax` with block numbers, for values that belong to a block (a step, an effect)."""
    shown = range(0, n_blocks, tick_step(ax, n_blocks))
    _name_ticks(ax, shown, [str(block) for block in shown])
    ax.set_xlabel(say("block"))
    ax.set_xlim(-0.6, n_blocks - 0.4)


def _name_ticks(ax: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    """As `ax.set_xticks`, without making the ticks now: a widget replaces them."""
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_major_formatter(FixedFormatter(names))


def tick_step(ax: Axes, names: int) -> int:
    """Each how many-th of the names on an x axis finds room; a widget names half as many, since each tick takes time."""
    figure = figure_of(ax)
    inches = ax.get_position().width * figure.get_figwidth()
    per_inch = NAMES_PER_INCH if figure.dpi > WIDGET_DPI else NAMES_PER_INCH / 2
    return math.ceil(names / (per_inch * inches))


def set_title(ax: Axes, finding: str) -> None:
    """Put the finding over the figure, on two lines if one is too short. What belongs together, log p(' France'), stays so."""
    whole = finding.replace("(' ", "('\N{NO-BREAK SPACE}").replace("log p(", "log\N{NO-BREAK SPACE}p(")
    whole = re.sub(r" for (\d)", " for\N{NO-BREAK SPACE}\\1", whole)
    lines = textwrap.wrap(whole, 72)
    ax.set_title("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "), loc="left", fontsize=11, pad=20)  # for mark_edit


def mark_edit(ax: Axes, x: float, label: str = translatable("edit")) -> None:
    """Mark the place of an edit, the same way in every figure: a dashed line, and above it a triangle and a label, if any."""
    top = ax.get_xaxis_transform()
    ax.axvline(x, color=EDIT, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1)
    ax.plot([x], [1.0], marker="v", color=EDIT, markersize=8, transform=top, clip_on=False, linestyle="none")
    if not label:
        return
    label = say(label)
    right = x > sum(ax.get_xlim()) / 2
    ax.annotate(
        label,
        (x, 1.0),
        xycoords=top,
        xytext=(-8 if right else 8, 2),  # above the axes: no curve can hide it
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        color=EDIT,
        fontsize=9,
    )


def describe(ax: Axes | Figure, text: str) -> None:
    """Give the figure of `ax` a text alternative: what a reader who cannot see it should know. Compute its numbers."""
    figure_of(ax).set_label(text)


def description(ax: Axes | Figure) -> str:
    """Return the text alternative of a figure. Raises ValueError when it has none: every figure of the course does."""
    text = str(figure_of(ax).get_label())
    if not text:
        raise ValueError(say("this figure has no text alternative: call describe(ax, text) or pass alt="))
    return text


def figure_of(ax: Axes | Figure) -> Figure:
    """Return the figure that `ax` belongs to, or `ax` itself when it is one."""
    return ax if isinstance(ax, Figure) else cast(Figure, ax.get_figure(root=True))


def to_png(ax: Axes | Figure, dpi: float | None = None, effort: int = 6) -> bytes:
    """Return the figure as a PNG with an opaque white face, so that it stays readable in a dark theme.

    effort: of the compression, 1 (quick) to 9 (small).
    """
    figure = figure_of(ax)
    own_dpi, layout = figure.dpi, figure.get_layout_engine()
    figure.set_dpi(dpi or own_dpi)
    figure.set_facecolor("white")
    canvas = FigureCanvasAgg(figure)
    # The layout once, then one drawing: savefig would draw the whole figure an extra time, and widgets redraw often.
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    canvas.draw()
    figure.set_layout_engine(layout)
    buffer = BytesIO()
    opaque = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # half the time of four channels
    opaque.save(buffer, format="png", dpi=(figure.dpi, figure.dpi), compress_level=effort)
    figure.set_dpi(own_dpi)
    return buffer.getvalue()


def to_img(ax: Axes | Figure, dpi: float | None = None) -> str:
    """Return the figure as an HTML `<img>` with its text alternative."""
    data = base64.b64encode(to_png(ax, dpi, effort=1)).decode()
    alt = escape(description(ax), quote=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{data}" style="max-width: 100%">'


def show_figure(ax: Axes | Figure, alt: str | None = None) -> None:
    """Display a figure at once, with its text alternative (`alt`, or what `describe` gave it).

    The picture carries the alternative as metadata, which exporters turn into `alt`. JupyterLab gives output images
    no alternative, so the same words follow under "Figure in words". Raises ValueError when there are none.
    """
    from IPython.display import display

    if alt is not None:
        describe(ax, alt)
    text = description(ax)
    figure = figure_of(ax)
    sharp = _few_colours(to_png(ax, SHARP * figure.dpi))
    width, height = (round(float(inches) * figure.dpi) for inches in figure.get_size_inches())
    display(_Picture(base64.b64encode(sharp).decode(), text, width, height))
    display(_Words(text))


def _few_colours(png: bytes) -> bytes:
    """The same picture with at most 256 colours, a third of the bytes: figures have few, and soft edges between them."""
    buffer = BytesIO()
    with Image.open(BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            buffer, format="png", optimize=True
        )
    return buffer.getvalue()


@dataclass(frozen=True)
class _Picture:
    """A PNG that Jupyter shows with its text alternative in the metadata; elsewhere it prints as its words."""

    png: str  # base64
    text: str
    width: int  # as it is shown
    height: int

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        shown = {"alt": self.text, "width": self.width, "height": self.height}
        return {"image/png": self.png, "text/plain": self.text}, {"image/png": shown}

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Words:
    """The words again, where JupyterLab shows them: folded, under the picture."""

    text: str

    def _repr_html_(self) -> str:
        summary = escape(say("Figure in words"))
        return f"<details><summary>{summary}</summary><p>{escape(self.text)}</p></details>"

    def __repr__(self) -> str:
        return say("(figure in words)")
