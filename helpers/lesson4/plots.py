"""Figures of lesson 4: what the prediction loses without a head.

Changes are in nats: log p without the head minus log p with it, so that a fall is negative. Every title is computed from
the numbers that are drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers.plots.style import (
    CLEAN,
    DIVERGING,
    DPI,
    EDIT,
    EDITED,
    QUIET,
    SEQUENTIAL,
    WIDGET_DPI,
    block_axis,
    describe,
    new_axes,
    new_figure,
    series_style,
    set_title,
    settle,
    tick_step,
)
from helpers.tables import format_number


def plot_head_changes(
    changes: Mapping[str, Tensor],
    block: int,
    intervals: Mapping[str, Tensor] | None = None,
    finding: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each head of one block, one or more changes side by side, with intervals where there are some.

    changes: name -> (n_heads,) in nats. intervals: name -> (n_heads, 2), low and high. finding: the title; by default
    how many heads each series falls and rises for (with intervals: how many intervals lie below and above 0).
    """
    ax = new_axes(ax)
    n_heads = len(next(iter(changes.values())))
    width = 0.6 / len(changes)
    for index, (name, values) in enumerate(changes.items()):
        x = torch.arange(n_heads) + (index - (len(changes) - 1) / 2) * width
        style = {**series_style(index), "linestyle": "none"}
        if intervals is None:
            ax.vlines(x, 0, values, color=style["color"], linewidth=1.8)
            ax.plot(x, values, label=name, **style)
        else:
            reach = (values - intervals[name][:, 0], intervals[name][:, 1] - values)
            ax.errorbar(x, values, yerr=torch.stack(reach).clamp(min=0), label=name, capsize=2, **style)
    ax.axhline(0, color=QUIET, linewidth=1)
    ax.set_xticks(range(n_heads))
    ax.set_xlabel(f"head of block {block}, switched off")
    ax.set_ylabel("change of log p (nats)")
    ax.legend(frameon=False)
    counts = changes_finding(changes, intervals)
    set_title(ax, finding or counts)
    ranges = "; ".join(f"{name} from {_n(v.min())} to {_n(v.max())} nats" for name, v in changes.items())
    describe(ax, f"Points for each of the {n_heads} heads of block {block}. {counts}. Changes: {ranges}.")
    return ax


def changes_finding(changes: Mapping[str, Tensor], intervals: Mapping[str, Tensor] | None = None) -> str:
    """Return in one sentence for how many heads each series falls and rises."""
    parts = []
    for name, values in changes.items():
        low, high = (values, values) if intervals is None else (intervals[name][:, 0], intervals[name][:, 1])
        parts.append(f"{name} falls for {int((high < 0).sum())} and rises for {int((low > 0).sum())}")
    heads = f"Of {len(values)} heads" if intervals is None else f"Of {len(values)} heads, by 95 % intervals"
    return f"{heads}: {'; '.join(parts)}"


def plot_head_map(
    changes: Tensor,
    marked: tuple[int, int] | None = None,
    measure: str = "change of log p (nats)",
    ax: Axes | None = None,
) -> Axes:
    """Draw (n_blocks, n_heads) changes as a map, white at 0, with the head (block, head) in a frame."""
    ax = new_axes(ax, size=(7.0, 5.0))
    n_blocks, n_heads = changes.shape
    image = _map(ax, changes, tick_step(ax, max(n_blocks, n_heads)), marked)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label(measure)
    finding = map_finding(changes)
    set_title(ax, finding)
    here = ""
    if marked is not None:
        here = f" In the frame: head {marked[1]} of block {marked[0]}, {_n(changes[marked])}."
    describe(ax, f"Map of {n_blocks} blocks by {n_heads} heads. {finding}.{here}")
    return ax


def _map(ax: Axes, changes: Tensor, step: int, marked: tuple[int, int] | None) -> AxesImage:
    n_blocks, n_heads = changes.shape
    reach = float(changes.abs().nan_to_num().max()) or 1.0
    image = ax.imshow(changes.tolist(), cmap=DIVERGING, vmin=-reach, vmax=reach, origin="lower", aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(0, n_heads, step))
    ax.set_yticks(range(0, n_blocks, step))
    ax.set_xlabel("head")
    ax.set_ylabel("block")
    if marked is not None:
        block, head = marked
        for color, line in (("white", 4.5), (EDIT, 2.2)):  # a light edge, so that the frame shows on every colour
            ax.add_patch(Rectangle((head - 0.5, block - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=line))
    return image


def map_finding(changes: Tensor) -> str:
    """Return in one sentence which head on the map has the largest effect, and how many heads hold half of all change."""
    n_heads = changes.shape[1]
    top = int(changes.abs().argmax())
    size = changes.abs().flatten().sort(descending=True).values
    share = size.cumsum(0) / size.sum() if float(size.sum()) else torch.ones_like(size)
    half = int((share < 0.5).sum()) + 1
    return (
        f"Head {top % n_heads} of block {top // n_heads} has the largest effect ({_n(changes.flatten()[top])}); "
        f"half of all change sits in {half} of {changes.numel()} heads"
    )


def plot_silent_changes(changes: Tensor, kept: Tensor, ax: Axes | None = None) -> Axes:
    """Draw all changes in order of size, with another mark where the most probable token is no longer the same.

    changes: (n,) change of the logit difference in nats; kept: (n,) bool, the most probable token stayed.
    """
    ax = new_axes(ax)
    order = changes.argsort()
    values, same = changes[order], kept[order]
    places = torch.arange(len(values))
    for index, (name, chosen) in enumerate((("same top token", same), ("another top token", ~same))):
        style = {**series_style(index), "linestyle": "none", "markersize": 5 + 2 * index}
        if chosen.any():
            ax.plot(places[chosen], values[chosen], label=f"{name} ({int(chosen.sum())})", **style)
    ax.axhline(0, color=QUIET, linewidth=1)
    ax.set_xlabel("heads of all blocks, in order of their effect")
    ax.set_ylabel("change of the logit difference (nats)")
    ax.legend(frameon=False)
    finding = f"The top token stays for {int(kept.sum())} of {len(kept)} heads"
    if kept.any():
        finding += f", while the logit difference moves by {_n(changes[kept].min())} to {_n(changes[kept].max())} nats"
    set_title(ax, finding)
    describe(ax, f"Points, one for each head, sorted by their effect. {finding}.")
    return ax


def plot_together(alone: Tensor, together: Tensor, extra: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """Draw, for each block, the sum of its heads' single effects beside the effect of all of them at once. (n_blocks,) each.

    extra: (n_blocks, 2), the interval of together − alone, low and high: the title then counts the blocks whose interval
    does not touch 0.
    """
    ax = new_axes(ax)
    series = {"sum of the heads, one at a time": alone, "all heads at once": together}
    for index, (name, values) in enumerate(series.items()):
        ax.plot(range(len(values)), values.tolist(), label=name, **series_style(index))
    ax.axhline(0, color=QUIET, linewidth=1)
    block_axis(ax, len(alone))
    ax.set_ylabel("mean change of log p(target) (nats)")
    ax.legend(frameon=False)
    finding = together_finding(alone, together, extra)
    set_title(ax, finding)
    worst = int(together.argmin())
    describe(
        ax,
        f"Two lines over the blocks. {finding}. The largest loss is at block {worst}: {_n(together[worst])} at once "
        f"against {_n(alone[worst])} for the sum.",
    )
    return ax


def together_finding(alone: Tensor, together: Tensor, extra: Tensor | None = None) -> str:
    """Return in one sentence in how many blocks all heads at once cost more than the sum of their single effects."""
    if extra is None:
        more = int((together < alone).sum())
        return f"All heads of a block at once cost more than the sum of their single effects in {more} of {len(alone)} blocks"
    more, less = int((extra[:, 1] < 0).sum()), int((extra[:, 0] > 0).sum())
    return (
        f"All heads of a block at once cost surely more than the sum of their single effects in {more} of {len(alone)} blocks, "
        f"surely less in {less}"
    )


def plot_top_tokens(tokens: Sequence[str], clean: Tensor, edited: Tensor, label: str, ax: Axes | None = None) -> Axes:
    """Draw the probability of each token in the clean and in the edited run, on a logarithmic axis, where equal steps are
    equal changes of log p. clean, edited: (len(tokens),).
    """
    ax = new_axes(ax)
    y = torch.arange(len(tokens))
    ax.hlines(y, clean, edited, color="0.6", linewidth=2)
    for name, values, color, marker, size in (("clean", clean, CLEAN, "o", 7), (label, edited, EDITED, "D", 4)):
        ax.plot(values, y, label=name, color=color, marker=marker, linestyle="none", markersize=size)
    ax.set_yticks(range(len(tokens)), [repr(token) for token in tokens])
    ax.set_ylim(len(tokens) + 1.4, -0.6)  # most probable on top; two free rows for the legend, whose marks are no data
    ax.set_xscale("log")
    low, high = float(torch.minimum(clean, edited).min()), float(torch.maximum(clean, edited).max())
    ax.set_xlim(low / 1.5, min(1.0, high * 1.5))
    ticks = _round_probabilities(low / 1.5, high * 1.5)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.grid(axis="x", color="0.9")
    ax.set_xlabel("probability of the next token (logarithmic)")
    ax.legend(frameon=False, loc="lower right")
    moved = int((edited / clean).log().abs().argmax())
    finding = f"{tokens[moved]!r} changes by the largest factor, from {_n(clean[moved])} to {_n(edited[moved])}"
    set_title(ax, finding)
    listed = ", ".join(f"{t!r} {_n(a)} to {_n(b)}" for t, a, b in zip(tokens, clean, edited, strict=True))
    describe(ax, f"Probabilities of {len(tokens)} tokens, clean and {label}. {finding}. {listed}.")
    return ax


def _round_probabilities(low: float, high: float, most: int = 6) -> list[float]:
    """Where an axis of probabilities has its ticks: 1, 0.3, 0.1 …, over a wide range 1, 0.1, 0.01 … or fewer."""
    tens = [10.0**-power for power in range(0, 40) if low <= 10.0**-power <= high]
    finer = sorted([*tens, *(3 * 10.0**-power for power in range(1, 40) if low <= 3 * 10.0**-power <= high)])
    return finer if len(finer) <= most else sorted(tens[:: -(-len(tens) // most)])


def plot_head_and_attention(
    changes: Tensor | None,
    shape: tuple[int, int],
    marked: tuple[int, int],
    pattern: Tensor | None,
    tokens: Sequence[str],
    measure: str = "log p(target)",
) -> Figure:
    """Draw the map with one head in a frame, and beside it whom that head looks at: what the widget of lesson 4 shows.

    changes: (n_blocks, n_heads) = shape, or None where no map is there yet. pattern: (pos, pos) attention weights, row =
    who looks, or None where the model does not tell them. tokens: of the prompt.
    """
    figure = new_figure((8.2, 3.9), WIDGET_DPI, layout=None)
    left = new_axes(figure.add_axes((0.055, 0.13, 0.36, 0.78)))
    empty = torch.full(shape, torch.nan)
    image = _map(left, empty if changes is None else changes, -(-max(shape) // 6), marked)
    if changes is None:
        left.text(
            0.5, 0.5, "press “map all heads”\nto see what each one does", transform=left.transAxes, ha="center", va="center",
            color=QUIET, fontsize=9,
        )  # fmt: skip
        words = f"No map of the {shape[0]} blocks by {shape[1]} heads yet."
    else:
        bar = figure.colorbar(image, cax=figure.add_axes((0.425, 0.13, 0.013, 0.78)), ticks=MaxNLocator(4))
        bar.set_label(f"change of {measure} (nats)", fontsize=9)
        words = f"Map of {shape[0]} blocks by {shape[1]} heads. {map_finding(changes)}."
    settle(left, left=20)
    right = new_axes(figure.add_axes((0.6, 0.3, 0.39, 0.61)))
    words = f"{words} In the frame: head {marked[1]} of block {marked[0]}."
    if pattern is not None:
        words = f"{words} Beside it its attention: {attention_finding(pattern, tokens)}."
        _pattern(right, pattern, tokens)
    else:
        right.set_axis_off()
        right.text(
            0.5, 0.5, "this model does not tell its attention", transform=right.transAxes, ha="center", color=QUIET, fontsize=9
        )  # fmt: skip
    describe(figure, words)
    return figure


def _pattern(ax: Axes, pattern: Tensor, tokens: Sequence[str]) -> None:
    """Attention weights as a square; the future, which no token sees, stays white."""
    unseen = torch.ones_like(pattern).triu(1).bool()
    ax.imshow(pattern.masked_fill(unseen, float("nan")).tolist(), cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    ax.grid(visible=False)
    every = -(-len(tokens) // 16)
    shown = [*range(len(tokens) - 1, -1, -every)][::-1]  # the last token always has its name
    ax.set_xticks(shown, [repr(tokens[i])[1:-1].replace("$", r"\$") for i in shown], rotation=90, fontsize=7)
    ax.set_yticks([])
    ax.set_title("attention of this head: dark 0, bright 1", loc="left", fontsize=9, y=1.02)
    ax.set_xlabel("token looked at", fontsize=9)
    ax.set_ylabel("token that looks (last: bottom)", fontsize=9)
    ax.xaxis.set_label_coords(0.5, -0.36)
    ax.yaxis.set_label_coords(-0.02, 0.5)


def attention_finding(pattern: Tensor, tokens: Sequence[str]) -> str:
    """Return in one phrase whom the last token looks at most. pattern: (pos, pos)."""
    most = int(pattern[-1].argmax())
    return f"the last token looks most at {tokens[most]!r} ({_n(pattern[-1, most])})"


def plot_head_panel(
    changes: Tensor,
    marked: tuple[int, int],
    tokens: Sequence[str],
    clean: Tensor,
    edited: Tensor,
    measure: str = "log p(target)",
    replacement: str = "zero",
    dpi: int = DPI,
) -> Figure:
    """Draw the map with one head in a frame, and beside it what the replacement of that head does to the next token."""
    figure = new_figure((10.0, 4.4), dpi, layout=None)
    left, right = figure.add_axes((0.055, 0.13, 0.4, 0.73)), figure.add_axes((0.665, 0.13, 0.325, 0.73))
    plot_head_map(changes, marked, f"change of {measure} (nats)", new_axes(left))
    map_words = figure.get_label()
    plot_top_tokens(tokens, clean, edited, f"head {marked[1]} of block {marked[0]} → {replacement}", new_axes(right))
    for ax, width in ((left, 58), (right, 48)):
        ax.set_title("\n".join(textwrap.wrap(ax.get_title(loc="left"), width)), loc="left", fontsize=9, pad=6)
    describe(figure, f"{map_words} {figure.get_label()}")
    return figure


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)
