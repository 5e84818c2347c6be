"""A picture of the residual stream and of the place of an edit, drawn by code, the same in every lesson.

show_figure(stream_diagram(lm.n_blocks, [Mark(2, "× 0.5")]))
show_figure(stream_diagram(lm.n_blocks, [Mark(5, "head 3 → 0", "attention")]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from helpers.plots.style import CLEAN, EDIT, EDITED, QUIET, describe, new_axes, set_title
from helpers.say import say, translatable

DIAGRAM_SIZE = (7.0, 3.0)
TOUCHED = "#fdebc8"  # a part that an edit can reach
HIGH = 0.95  # the parts' distance from the stream
SITES = {
    "block": translatable("the output of block {block}"),
    "attention": translatable("the attention of block {block}"),
    "mlp": translatable("the MLP of block {block}"),
    "skip": translatable("block {block}, which is skipped"),
}


@dataclass(frozen=True)
class Mark:
    """The place of one edit: `site` is "block" (its output), "attention", "mlp", or "skip" (the whole block)."""

    block: int
    label: str
    site: str = "block"


def stream_diagram(n_blocks: int, marks: Sequence[Mark] = (), title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the stream from left to right: attention above it, MLPs below, each reading from it and adding to it.

    What an edit can reach, everything after it, is dashed, in the colour of edited runs, and named in the picture.

    Raises ValueError for an unknown site or a block that the model does not have.
    """
    for mark in marks:
        if mark.site not in SITES:
            raise ValueError(
                say("site {site!r} is unknown: choose one of {sites}", site=mark.site, sites=", ".join(SITES))
            )
        if not 0 <= mark.block < n_blocks:
            raise ValueError(
                say(
                    "block {block} does not exist: blocks go from 0 to {last_block}",
                    block=mark.block,
                    last_block=n_blocks - 1,
                )
            )
    ax = new_axes(ax, DIAGRAM_SIZE)
    ax.set_axis_off()
    ax.set_xlim(-2.9, n_blocks + 2.6)
    ax.set_ylim(-2.0, 2.1)
    end = n_blocks + 1.5
    reached = min((_place(mark) for mark in marks), default=end)
    ax.plot([-1.2, reached], [0, 0], color=CLEAN, linewidth=4, solid_capstyle="butt", zorder=1)
    ax.plot([reached, end], [0, 0], color=EDITED, linewidth=4, linestyle=(0, (3, 0.6)), zorder=1)
    _box(ax, -1.75, 0, 1.9, 0.62, say("embedding"))
    _box(ax, n_blocks + 0.45, 0, 1.0, 0.62, say("norm"), touched=bool(marks))
    _box(ax, n_blocks + 1.85, 0, 1.2, 0.62, say("logits"), touched=bool(marks))
    for height, name in ((HIGH, say("attention")), (-HIGH, say("MLP")), (-1.62, say("block"))):
        ax.text(-0.75, height, name, ha="right", va="center", fontsize=9, color=QUIET)
    for block in range(n_blocks):
        sites = {mark.site for mark in marks if mark.block == block}
        skipped = "skip" in sites
        for x, y, site in ((block - 0.2, HIGH, "attention"), (block + 0.2, -HIGH, "mlp")):
            touched = x > reached
            _box(ax, x, y, 0.44, 0.5, "", edited=site in sites, touched=touched, faded=skipped)
            near, far = 0.06 * (1 if y > 0 else -1), y - 0.25 * (1 if y > 0 else -1)
            _arrow(ax, (x - 0.1, near), (x - 0.1, far), faded=skipped)
            _arrow(ax, (x + 0.1, far), (x + 0.1, near), faded=skipped)
        ax.text(block, -1.62, str(block), ha="center", va="center", fontsize=9, color=QUIET)
    if marks:
        if reached > 1.5:
            ax.text(-1.9, 1.72, say("stays as it was"), ha="left", va="center", fontsize=9, color=CLEAN)
        ax.text((reached + end) / 2, 1.72, say("can change"), ha="center", va="center", fontsize=9, color="#8a5800")
    for mark in marks:
        x = _place(mark)
        if mark.site == "skip":
            arc = FancyArrowPatch(
                (mark.block - 0.5, 0.05),
                (mark.block + 0.5, 0.05),
                connectionstyle="arc3,rad=0.9",
                color=EDIT,
                arrowstyle="-|>",
                mutation_scale=9,
                linewidth=1.6,
                zorder=4,
            )
            ax.add_patch(arc)
            x = mark.block
        elif mark.site == "block":
            ax.plot([x], [0.2], marker="v", color=EDIT, markersize=9, zorder=5)
            ax.plot([x, x], [0.2, 1.5], color=EDIT, linestyle=(0, (4, 3)), linewidth=1.4, zorder=0)
        ax.text(x, 1.55, mark.label, ha="center", va="bottom", fontsize=11, fontweight="bold", color=EDIT)
    if title:
        set_title(ax, title)
    describe(ax, diagram_words(n_blocks, marks))
    return ax


def diagram_words(n_blocks: int, marks: Sequence[Mark] = ()) -> str:
    """Return what the diagram shows, in words."""
    text = say(
        "The residual stream runs from the embedding through blocks 0 to {last_block} to the final norm and the logits. In each "
        "block attention, drawn above it, then the MLP, drawn below, reads from the stream and adds its result to it.",
        last_block=n_blocks - 1,
    )
    for mark in marks:
        text += say(
            " An edit, {label}, sits at {site}.", label=mark.label, site=say(SITES[mark.site], block=mark.block)
        )
    return text + (say(" Everything to the right of the first edit can change, nothing to its left.") if marks else "")


def _place(mark: Mark) -> float:
    """Return the x at which an edit reaches the stream."""
    return mark.block + {"block": 0.5, "attention": -0.1, "mlp": 0.3, "skip": -0.5}[mark.site]


def _box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    edited: bool = False,
    touched: bool = False,
    faded: bool = False,
) -> None:
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="#fbe3dc" if edited else TOUCHED if touched else "white",
        edgecolor=EDIT if edited else QUIET,
        linewidth=2 if edited else 1,
        linestyle=(0, (3, 1.5)) if touched and not edited else "-",
        alpha=0.35 if faded else 1,
        zorder=3,
    )
    ax.add_patch(box)
    ax.text(x, y, text, ha="center", va="center", fontsize=8, alpha=0.35 if faded else 1, zorder=4)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], faded: bool = False) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=6,
            linewidth=0.9,
            color=QUIET,
            shrinkA=0,
            shrinkB=0,
            alpha=0.25 if faded else 1,
            zorder=2,
        )
    )
