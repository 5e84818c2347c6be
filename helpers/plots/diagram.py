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

DIAGRAM_SIZE = (7.0, 2.6)
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
    """Draw the stream from left to right, each block's attention (A) and MLP (M) reading from it and writing to it.

    What an edit can reach, everything after it, has the colour of edited runs. Raises ValueError for an unknown
    site or a block that the model does not have.
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
    ax.set_xlim(-1.6, n_blocks + 2.6)
    ax.set_ylim(-1.25, 2.15)
    end = n_blocks + 1.5
    reached = min((_place(mark) for mark in marks), default=end)
    ax.plot([-0.6, reached], [0, 0], color=CLEAN, linewidth=4, solid_capstyle="butt", zorder=1)
    ax.plot([reached, end], [0, 0], color=EDITED, linewidth=4, linestyle=(0, (3, 0.6)), zorder=1)
    _box(ax, -1.05, 0, 0.9, 0.8, say("emb"))
    _box(ax, n_blocks + 0.45, 0, 1.0, 0.8, say("norm"))
    _box(ax, n_blocks + 1.85, 0, 1.1, 0.8, say("logits"))
    for block in range(n_blocks):
        sites = {mark.site for mark in marks if mark.block == block}
        skipped = "skip" in sites
        for offset, name, site in ((-0.21, "A", "attention"), (0.21, "M", "mlp")):
            x = block + offset
            _box(ax, x, 0.95, 0.34, 0.6, name, edited=site in sites, faded=skipped)
            _arrow(ax, (x - 0.1, 0.05), (x - 0.1, 0.62), faded=skipped)
            _arrow(ax, (x + 0.1, 0.62), (x + 0.1, 0.05), faded=skipped)
        ax.text(block, -0.32, str(block), ha="center", va="top", fontsize=9, color=QUIET)
    ax.text((n_blocks - 1) / 2, -0.8, say("block"), ha="center", va="top", fontsize=9, color=QUIET)
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
            ax.plot([x], [0.16], marker="v", color=EDIT, markersize=9, zorder=5)
            ax.plot([x, x], [0.16, 1.5], color=EDIT, linestyle=(0, (4, 3)), linewidth=1.4, zorder=0)
        ax.text(x, 1.55, mark.label, ha="center", va="bottom", fontsize=9, color=EDIT)
    if title:
        set_title(ax, title)
    describe(ax, diagram_words(n_blocks, marks))
    return ax


def diagram_words(n_blocks: int, marks: Sequence[Mark] = ()) -> str:
    """Return what the diagram shows, in words."""
    text = say(
        "The residual stream runs from the embedding (emb) through blocks 0 to {last_block} to the final "
        "norm and the logits. In each block attention (A), then the MLP (M), reads from the stream and "
        "adds its result to it.",
        last_block=n_blocks - 1,
    )
    for mark in marks:
        text += say(
            " An edit, {label}, sits at {site}.", label=mark.label, site=say(SITES[mark.site], block=mark.block)
        )
    return text + (say(" Everything to the right of the first edit can change, nothing to its left.") if marks else "")


def _place(mark: Mark) -> float:
    """Return the x at which an edit reaches the stream."""
    return mark.block + {"block": 0.5, "attention": -0.11, "mlp": 0.31, "skip": -0.5}[mark.site]


def _box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str, edited: bool = False, faded: bool = False
) -> None:
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="#fbe3dc" if edited else "white",
        edgecolor=EDIT if edited else QUIET,
        linewidth=2 if edited else 1,
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
