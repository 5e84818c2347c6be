"""Figures of lesson 1: how far an edited run is from a clean one, along the residual stream.

Series have one value per point of the stream, (n_blocks + 1,): the embedding, then the output of each block, the last one
before the final norm. Every title is computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from helpers.plots.style import (
    describe,
    mark_edit,
    new_axes,
    new_figure,
    series_style,
    set_title,
    stream_axis,
)
from helpers.tables import format_number

MEASURES = {
    "Δ": "Δ (Frobenius norm)",
    "relative error": "Δ / ‖H clean‖",
    "cosine similarity": "cosine, clean and edited",
    "survival": "share of the injected error that is there",
}


def edit_label(block: int, factor: float) -> str:
    """Return the label of the mark in every figure of this lesson."""
    return f"block {block} × {format_number(float(factor), 3)}"


def plot_measure(values: Tensor, block: int, factor: float, measure: str = "Δ", ax: Axes | None = None) -> Axes:
    """Draw one measure (a key of MEASURES) along the stream, with the place of the edit and a title that says what it does."""
    ax = new_axes(ax)
    ax.plot(range(len(values)), values.tolist(), **series_style(0))
    _finish(ax, len(values) - 1, block, factor)
    ax.set_ylabel(MEASURES[measure])
    finding = measure_finding(values, block, measure)
    set_title(ax, finding)
    describe(ax, f"Line along the stream with {edit_label(block, factor)}. {finding}.")
    return ax


def measure_finding(values: Tensor, block: int, measure: str = "Δ") -> str:
    """Return in one sentence what a measure does from the edited block to the last one."""
    after, last = values[block + 1 :], len(values) - 2
    here = f"{measure[0].upper() + measure[1:]} is {_n(after[0])} after block {block}"
    if block == last:
        return f"{here}, the last block"
    return f"{here}, {_course(after, block)} {_n(after[-1])} after block {last}"


def _course(after: Tensor, block: int) -> str:
    """Say how a series goes from its first value, after `block`, to its last."""
    steps, ends = after.diff(), {0, len(after) - 1}
    low, high = int(after.argmin()), int(after.argmax())
    if bool((steps.abs() < 1e-9).all()):
        return "stays there and is"
    if bool((steps >= 0).all()):
        return "grows at every block and ends at"
    if bool((steps <= 0).all()):
        return "falls at every block and ends at"
    if high in ends and low not in ends:
        return f"falls to {_n(after[low])} after block {block + low} and ends at"
    if low in ends and high not in ends:
        return f"rises to {_n(after[high])} after block {block + high} and ends at"
    if low not in ends:
        return f"moves between {_n(after[low])} and {_n(after[high])} and ends at"
    return "rises with dips and ends at" if after[-1] > after[0] else "falls with rises and ends at"


def plot_growth(delta: Tensor, size: Tensor, relative: Tensor, cosine: Tensor, block: int, factor: float) -> Figure:
    """Draw the two views side by side: Δ beside the stream's own norm, and the relative error beside the cosine."""
    figure = new_figure((7.0, 4.0))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2))
    points = range(len(delta))
    for index, (name, values) in enumerate({"Δ": delta, "‖H‖ clean": size}.items()):
        left.plot(points, values.tolist(), label=name, **series_style(index))
    for index, (name, values) in enumerate({"relative error": relative, "cosine": cosine}.items()):
        right.plot(points, values.tolist(), label=name, **series_style(index + 2))
    for ax, unit in ((left, "Frobenius norm"), (right, "no unit")):
        _finish(ax, len(delta) - 1, block, factor)
        ax.set_xlabel("residual stream after block")
        ax.set_ylabel(unit)
        ax.legend(frameon=False)
    finding = growth_finding(delta, relative, block)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(
        figure,
        f"Two panels along the stream, {edit_label(block, factor)}. {finding}. ".replace("\n", " ")
        + f"The norm of the clean stream goes from {_n(size[block + 1])} to {_n(size[-1])} over the same blocks, "
        f"the cosine between the two runs from {_n(cosine[block + 1])} to {_n(cosine[-1])}.",
    )
    return figure


def growth_finding(delta: Tensor, relative: Tensor, block: int) -> str:
    """Return in one sentence how Δ and the relative error go from the edited block to the end of the stream."""
    up, relatively_up = bool(delta[-1] > delta[block + 1]), bool(relative[-1] > relative[block + 1])
    joined = "and" if up == relatively_up else "but"
    return (
        f"Δ {_goes(up)} from {_n(delta[block + 1])} to {_n(delta[-1])}, {joined} relative to the stream\n"
        f"the error {_goes(relatively_up)} from {_n(relative[block + 1])} to {_n(relative[-1])}"
    )


def _goes(up: bool) -> str:
    return "grows" if up else "falls"


def plot_first_token(with_first: Tensor, without: Tensor, block: int, factor: float, ax: Axes | None = None) -> Axes:
    """Draw Δ with and without the first token from the edited block on (before it both are 0).

    The axis is logarithmic where the two are far apart.
    """
    ax = new_axes(ax)
    points = range(block + 1, len(without))
    for index, (name, values) in enumerate({"all tokens": with_first, "without the first": without}.items()):
        ax.plot(points, values[block + 1 :].tolist(), label=name, **series_style(index))
    ratio = with_first[block + 1 :] / without[block + 1 :]
    wide = float(ratio.max()) > 5
    if wide:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(0, 1.05 * float(with_first.max()))
    _finish(ax, len(without) - 1, block, factor)
    ax.set_ylabel("Δ (Frobenius norm, logarithmic)" if wide else "Δ (Frobenius norm)")
    ax.legend(frameon=False, loc="best" if wide else "lower right")
    low, high = _n(ratio.min()), _n(ratio.max())
    span = low if low == high else f"{low} to {high}"
    finding = f"With the first token Δ is {span} times as large as without it"
    set_title(ax, finding)
    describe(
        ax,
        f"Two lines along the stream, {edit_label(block, factor)}. {finding}. At the end of the stream Δ is "
        f"{_n(with_first[-1])} over all tokens and {_n(without[-1])} without the first.",
    )
    return ax


def plot_token_norms(norms: Tensor, ax: Axes | None = None) -> Axes:
    """Draw the length of the first token's stream beside the mean of the others. norms: (n_points, pos), one prompt."""
    ax = new_axes(ax)
    first, others = norms[:, 0], norms[:, 1:].mean(dim=1)
    for index, (name, values) in enumerate({"first token": first, "mean of the others": others}.items()):
        ax.plot(range(len(norms)), values.tolist(), label=name, **series_style(index))
    stream_axis(ax, len(norms) - 1)
    ax.set_ylabel("length of the stream ‖h‖")
    ax.legend(frameon=False)
    ratio = (first / others)[1:]
    finding = (
        f"The first token's stream is at most {_n(ratio.max())} times as long as the others' "
        f"(after block {int(ratio.argmax())})"
    )
    set_title(ax, finding)
    describe(
        ax,
        f"Two lines along the stream of the clean run. {finding}; at the end it is {_n(first[-1])} against "
        f"{_n(others[-1])}.",
    )
    return ax


def plot_end(last_points: Mapping[float, Sequence[float]], names: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw Δ at the end of the stream, one line per factor.

    last_points: factor -> Δ before the last block, after it, and after the final norm; names: what the three are called.
    """
    ax = new_axes(ax)
    for index, (factor, values) in enumerate(last_points.items()):
        ax.plot(range(3), list(values), label=f"× {format_number(factor, 3)}", **series_style(index))
    ax.set_xticks(range(3), list(names))
    ax.set_xlim(-0.3, 2.3)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Δ (Frobenius norm)")
    ax.legend(title="factor", frameon=False)
    block_dips = sum(after < before for before, after, _ in last_points.values())
    norm_dips = sum(final < after for _, after, final in last_points.values())
    finding = f"The last block lowers Δ for {block_dips} of {len(last_points)} factors, the final norm for {norm_dips}"
    set_title(ax, finding)
    told = "; ".join(
        f"× {format_number(f, 3)}: {', '.join(_n(v) for v in values)}" for f, values in last_points.items()
    )
    describe(ax, f"One line per factor over {', '.join(names)}. {finding}. {told}.")
    return ax


def _finish(ax: Axes, n_blocks: int, block: int, factor: float) -> None:
    stream_axis(ax, n_blocks)
    mark_edit(ax, block + 1, edit_label(block, factor))


def _n(value: float | Tensor) -> str:
    return format_number(float(value) if isinstance(value, torch.Tensor) else value, 3)
