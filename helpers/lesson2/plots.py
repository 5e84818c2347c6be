"""Figures of lesson 2: a block from the inside, and its input beside its output.

States are (batch, pos, d_model), norms have one value per block, (n_blocks,). Every title is computed from the numbers
that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from helpers.correlations import correlation, random_step_correlation
from helpers.plots.style import (
    CLEAN,
    EDIT,
    PALETTE,
    QUIET,
    SEQUENTIAL,
    block_axis,
    describe,
    mark_edit,
    new_axes,
    new_figure,
    series_style,
    set_title,
    settle,
    stream_axis,
)
from helpers.tables import format_number

ANATOMY_SIZE = (7.0, 3.0)
FULL = 0.95  # r from here on counts as "near 1" in titles, as in the claims ledger


def plot_anatomy(ax: Axes | None = None) -> Axes:
    """Draw one GPT-2 block: what reads the stream, what writes to it, and the two places where a hook can listen."""
    ax = new_axes(ax, ANATOMY_SIZE)
    ax.set_axis_off()
    ax.set_xlim(-0.9, 11.6)
    ax.set_ylim(-0.9, 3.1)
    ax.plot([-0.1, 10.75], [0, 0], color=CLEAN, linewidth=4, solid_capstyle="butt", zorder=1)
    for x, text in ((-0.5, "$H_l$"), (11.2, "$H_{l+1}$")):
        ax.text(x, 0, text, ha="center", va="center", fontsize=12)
    branches = (
        ("attn", 0.0, ("ln_1", "c_attn", "heads", "c_proj", "resid_\ndropout")),
        ("mlp", 5.55, ("ln_2", "c_fc", "GELU", "c_proj", "dropout")),
    )
    for name, start, parts in branches:
        places = [start + 0.3 + 1.02 * i for i in range(len(parts))]
        module = FancyBboxPatch(
            (places[1] - 0.5, 0.85), places[-1] - places[1] + 1.0, 1.0,
            boxstyle="round,pad=0,rounding_size=0.12", facecolor="0.95", edgecolor="none", zorder=0,
        )  # fmt: skip
        ax.add_patch(module)
        ax.text(places[1] - 0.45, 0.9, name, fontsize=8, color=QUIET, va="bottom")
        for i, (x, part) in enumerate(zip(places, parts, strict=True)):
            box = FancyBboxPatch(
                (x - 0.43, 1.15), 0.86, 0.6, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor="white", edgecolor=EDIT if i > 2 else QUIET, linewidth=1.8 if i > 2 else 1, zorder=3,
            )  # fmt: skip
            ax.add_patch(box)
            ax.text(x, 1.45, part, ha="center", va="center", fontsize=7.5, linespacing=0.9, zorder=4)
            if i:
                _arrow(ax, (places[i - 1] + 0.43, 1.45), (x - 0.43, 1.45))
        _arrow(ax, (places[0], 0.05), (places[0], 1.15))
        _arrow(ax, (places[-1], 1.15), (places[-1], 0.22))
        ax.text(places[-1], 0, "+", ha="center", va="center", fontsize=13, zorder=4,
                bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": QUIET})  # fmt: skip
        for x, text, height in ((places[3], "1", 2.05), (places[4], "2", 2.05)):
            ax.plot([x], [1.87], marker="v", color=EDIT, markersize=7, zorder=5)
            ax.text(x, height, text, ha="center", va="bottom", color=EDIT, fontsize=10, fontweight="bold")
        delta = "attention" if name == "attn" else "MLP"
        ax.text(places[-1] - 0.22, 0.5, rf"$\Delta_{{\mathrm{{{delta}}}}}$", ha="right", va="center", fontsize=10)
    ax.text(-0.15, 2.75, "1  the report's hooks: before dropout", color=EDIT, fontsize=9)
    ax.text(5.25, 2.75, "2  what is really added: after dropout", color=EDIT, fontsize=9)
    ax.text(5.4, -0.6, "residual stream", ha="center", va="center", fontsize=9, color=QUIET)
    describe(
        ax,
        "A GPT-2 block. The residual stream H_l runs from left to right. Attention reads it through ln_1, c_attn, the "
        "heads, c_proj and resid_dropout, and its delta is added to the stream; then the MLP reads the sum through ln_2, "
        "c_fc, GELU, c_proj and dropout, and its delta is added. The result is H_l+1. Places for hooks: 1, the output of "
        "each c_proj, before dropout; 2, the output of each dropout, which is what is added.",
    )
    return ax


def plot_delta_norms(
    stream: Tensor, attention: Tensor, mlp: Tensor, block: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw, for each block, the norm of the stream that enters it and of the two deltas that it adds; `block` is marked."""
    ax = new_axes(ax)
    n_blocks = len(attention)
    series = {"stream that enters, ‖H‖": stream, "‖Δ attention‖": attention, "‖Δ MLP‖": mlp}
    for index, (name, values) in enumerate(series.items()):
        ax.plot(range(n_blocks), values.tolist(), label=name, **series_style(index))
    _logarithmic(ax)
    block_axis(ax, n_blocks)
    ax.set_ylabel("Frobenius norm (logarithmic)")
    ax.legend(frameon=False, fontsize=9)
    if block is not None:
        mark_edit(ax, block, f"block {block}")
    finding = delta_finding(attention, mlp)
    set_title(ax, finding)
    describe(
        ax,
        f"Three lines over the blocks. {finding}. The stream's norm goes from {_n(stream[0])} before block 0 to "
        f"{_n(stream[-1])} before block {n_blocks - 1}.",
    )
    return ax


def delta_finding(attention: Tensor, mlp: Tensor) -> str:
    """Return in one sentence where attention writes more than the MLP."""
    larger = [block for block in range(len(attention)) if attention[block] > mlp[block]]
    if not larger:
        return f"The MLP writes more than attention in each of the {len(mlp)} blocks"
    if len(larger) == len(mlp):
        return f"Attention writes more than the MLP in each of the {len(mlp)} blocks"
    where = f"block {larger[0]}" if len(larger) == 1 else f"blocks {in_ranges(larger)}"
    return f"Attention writes more than the MLP in {where}, the MLP more in the other {len(mlp) - len(larger)}"


def plot_scatter(
    before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor | None = None, by_token: bool = True,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw each value of `before` against the same value of `after`, with the diagonal on which nothing changes.

    before, after: (1, pos, d_model). keep: mask of the values to draw, all unless given. by_token: colour by position;
    the first token has a marker of its own in either case.
    """
    ax = new_axes(ax, size=(7.0, 4.6))
    keep = torch.ones_like(before, dtype=torch.bool) if keep is None else keep
    _points(ax, before, after, names, keep, by_token, True)
    finding = scatter_finding(before[keep], after[keep], names)
    set_title(ax, finding)
    describe(ax, f"{_cloud(before, after, names, keep)} {finding}.")
    return ax


def scatter_finding(before: Tensor, after: Tensor, names: tuple[str, str]) -> str:
    """Return r, and the r that a random step of the same spread would give."""
    r = correlation(before, after)
    if torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(after.abs().max())):
        return f"{names[0]} and {names[1]} are the same: every point lies on the diagonal"
    by_chance = random_step_correlation(before, after)
    return f"r = {_n(r)} between {names[0]} and {names[1]}; a random step of the same size would give {_n(by_chance)}"


def plot_mask(before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor, by_token: bool = True) -> Figure:
    """Draw the same values twice: all of them, and only those that `keep` leaves, on axes of their own."""
    figure = new_figure((7.0, 3.9))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2))
    everything = torch.ones_like(keep)
    _points(left, before, after, names, everything, by_token)
    _points(right, before, after, names, keep, by_token, True)
    for ax, shown, what in ((left, everything, "all values"), (right, keep, "without outliers")):
        ax.set_title(f"{what}: r = {_n(correlation(before[shown], after[shown]))}", loc="left", fontsize=10)
    limit = float(torch.maximum(before.abs(), after.abs())[keep].max())
    left.add_patch(_square(limit))
    finding = mask_finding(before, after, keep)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(figure, f"Two scatter plots of {names[1]} against {names[0]}. {finding}.")
    return figure


def mask_finding(before: Tensor, after: Tensor, keep: Tensor) -> str:
    """Return in one sentence how much of the axis the kept values had, before the others were masked."""
    share = 100 * filled_axis(before, after, keep)
    masked = int((~keep).sum())
    return f"{_n(100 * float(keep.double().mean()))} % of the values fill {_n(share)} % of the axis; {masked} outliers take the rest"


def filled_axis(before: Tensor, after: Tensor, keep: Tensor) -> float:
    """Return how much of the axis (0 to the largest |value|) the kept values reach over, 0 to 1."""
    size = torch.maximum(before.abs(), after.abs())
    return float(size[keep].max() / size.max())


def plot_correlations(series: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draw r between the input and the output of each block, one line per way to count. The first series makes the title."""
    ax = new_axes(ax)
    for index, (name, values) in enumerate(series.items()):
        ax.plot(range(len(values)), values.tolist(), label=name, **series_style(index))
    first = next(iter(series.values()))
    block_axis(ax, len(first))
    ax.set_ylabel("r between input and output of the block")
    ax.legend(frameon=False, fontsize=9)
    finding = correlation_finding(first)
    set_title(ax, finding)
    lowest = "; ".join(f"{name}: {_n(values.min())} to {_n(values.max())}" for name, values in series.items())
    describe(ax, f"One line per way to count, over the blocks. {finding}. {lowest}.")
    return ax


def correlation_finding(values: Tensor) -> str:
    """Return in one sentence at how many blocks r is near 1, and where it is lowest."""
    near = int((values >= FULL).sum())
    low = int(values.argmin())
    return f"r is {FULL} or more at {near} of {len(values)} blocks; the lowest is {_n(values[low])}, at block {low}"


def plot_downstream(delta: Mapping[str, Tensor], block: int, label: str, ax: Axes | None = None) -> Axes:
    """Draw Δ along the stream, (n_blocks + 1,), for several edits of the same block. delta: what was edited -> Δ."""
    ax = new_axes(ax)
    for index, (name, values) in enumerate(delta.items()):
        ax.plot(range(len(values)), values.tolist(), label=name, **series_style(index))
    n_blocks = len(next(iter(delta.values()))) - 1
    stream_axis(ax, n_blocks)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Δ (Frobenius norm)")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    mark_edit(ax, block + 1, label)
    finding = downstream_finding(delta, block)
    set_title(ax, finding)
    told = "; ".join(
        f"{name}: {_n(v[block + 1])} after block {block}, {_n(v[-1])} at the end" for name, v in delta.items()
    )
    describe(ax, f"One line per edit along the stream. {finding}. {told}.")
    return ax


def downstream_finding(delta: Mapping[str, Tensor], block: int) -> str:
    """Return in one sentence which edit is felt most at the end of the stream, and which least."""
    ends = {name: float(values[-1]) for name, values in delta.items()}
    most, least = max(ends, key=lambda name: ends[name]), min(ends, key=lambda name: ends[name])
    grown = sum(bool(values[-1] > values[block + 1]) for values in delta.values())
    return (
        f"At the end of the stream Δ is largest {most} ({_n(ends[most])}) and smallest {least} ({_n(ends[least])}); "
        f"it has grown since block {block} in {grown} of {len(delta)}"
    )


def plot_block_view(
    before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor, by_token: bool,
    norms: tuple[Tensor, Tensor, Tensor], block: int, dpi: int,
) -> Figure:  # fmt: skip
    """Draw the widget's picture: the scatter of one block, and the norms of stream and deltas over all blocks."""
    figure = new_figure((8.6, 3.5), dpi, layout=None)
    left = new_axes(figure.add_axes((0.08, 0.14, 0.36, 0.78)))
    right = new_axes(figure.add_axes((0.63, 0.14, 0.36, 0.78)))
    _points(
        left, before, after, names, keep, by_token, figure.add_axes((0.455, 0.14, 0.013, 0.78)) if by_token else None,
        legend=not by_token,
    )  # fmt: skip
    plot_delta_norms(*norms, block=block, ax=right)
    right.yaxis.set_major_locator(LogLocator(numticks=5))
    right.set_ylabel("Frobenius norm (logarithmic)", fontsize=9)
    for ax in (left, right):
        settle(ax)
    finding = scatter_finding(before[keep], after[keep], names)
    describe(
        figure,
        f"{_cloud(before, after, names, keep)} {finding}. Beside it, norms over the blocks: "
        f"{delta_finding(norms[1], norms[2])}.",
    )
    return figure


def in_ranges(numbers: Sequence[int]) -> str:
    """Return rising whole numbers in words: [1, 2, 3, 5] -> "1 to 3 and 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    words = [str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" if len(p) > 2 else f"{p[0]}, {p[1]}" for p in parts]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _points(
    ax: Axes, before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor, by_token: bool,
    colorbar: Axes | bool | None = None, legend: bool = True,
) -> None:  # fmt: skip
    """Draw the cloud. colorbar: True for one beside `ax`, or the axes to draw it on; without a legend it names the cross."""
    position = torch.arange(before.shape[1]).view(1, -1, 1).expand_as(before)
    first = keep & (position == 0)
    rest = keep & (position > 0)
    limit = 1.05 * float(torch.maximum(before.abs(), after.abs())[keep].max())
    ax.plot([-limit, limit], [-limit, limit], color=QUIET, linewidth=0.9, linestyle="--", zorder=1)
    ax.scatter(
        before[first].numpy(force=True), after[first].numpy(force=True), s=22, marker="x", linewidths=0.9, color=PALETTE[4], zorder=3,
        label="first token",
    )  # fmt: skip
    colour = {"c": position[rest].numpy(force=True), "cmap": SEQUENTIAL} if by_token else {"color": CLEAN}
    dots = ax.scatter(
        before[rest].numpy(force=True), after[rest].numpy(force=True), s=7, linewidths=0, zorder=2, label="others", **colour
    )  # fmt: skip
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(f"value in {names[0]}")
    ax.set_ylabel(f"value in {names[1]}")
    if legend:
        ax.legend(frameon=False, fontsize=8, loc="upper left", handletextpad=0.2)
    if by_token and colorbar and bool(rest.any()):
        place = {"ax": ax, "fraction": 0.05, "pad": 0.02} if colorbar is True else {"cax": colorbar}
        bar = ax.figure.colorbar(dots, ticks=MaxNLocator(4, integer=True), **place)
        bar.set_label("token position" if legend else "token position (×: the first)", fontsize=8)


def _square(limit: float) -> FancyBboxPatch:
    return FancyBboxPatch(
        (-limit, -limit), 2 * limit, 2 * limit, boxstyle="square,pad=0", facecolor="none", edgecolor=EDIT,
        linewidth=1.2, linestyle=(0, (4, 3)), zorder=4,
    )  # fmt: skip


def _cloud(before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor) -> str:
    largest = float(torch.maximum(before.abs(), after.abs())[keep].max())
    return (
        f"Scatter plot of {int(keep.sum())} values of {names[1]} against {names[0]}, with the diagonal. "
        f"The largest is {_n(largest)} in size."
    )


def _logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.yaxis.set_minor_locator(NullLocator())


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, linewidth=1, color=QUIET, shrinkA=0, shrinkB=0, zorder=2
        )
    )


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)
