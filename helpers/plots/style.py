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
from html import escape
from io import BytesIO
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator
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
