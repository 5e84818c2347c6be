"""Figures of lesson 1: what scaling does to the words, how far an edited run is from a clean one, who wrote what.

Series along the stream have one value per point, (n_blocks + 1,): the embedding, then the output of each block, the last
one before the final norm. Every title is computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from helpers.measurements import Measured
from helpers.plots.style import (
    PALETTE,
    block_axis,
    describe,
    mark_edit,
    new_axes,
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


def plot_factors(found: Mapping[str, Measured], block: int, ax: Axes | None = None) -> Axes:
    """Draw what scaling a block does to the right country, over many prompts, with 95 % intervals.

    found: name of a model -> measured(model, "factors"). A hollow mark: the interval holds 0. Factor 0 has no place on the
    logarithmic axis.
    """
    ax = new_axes(ax)
    told, ends = [], []
    for index, (name, stored) in enumerate(found.items()):
        factors = [factor for factor in stored.labels["factor"] if factor > 0]
        where = {"scaled": block, "factor": factors, "prompts": "all", "measure": "log p"}
        change = stored.at("mean", **where).tolist()
        error = [1.96 * one for one in stored.at("standard error", **where).tolist()]
        kept = stored.at("flags", scaled=block, factor=factors, flag="top-1 kept").float().mean(dim=1).tolist()
        ax.errorbar(factors, change, error, label=name, capsize=3, **series_style(index))
        unsure = [i for i, (one, wide) in enumerate(zip(change, error, strict=True)) if abs(one) <= wide]
        hollow = {**series_style(index), "linestyle": "none", "markerfacecolor": "white", "zorder": 3}
        ax.plot([factors[i] for i in unsure], [change[i] for i in unsure], **hollow)
        ends.append((name, *(change[factors.index(factor)] for factor in (0.5, 1.5))))
        told.append(
            f"{name[0].upper() + name[1:]}, mean over {len(stored.labels['prompt'])} prompts: "
            + "; ".join(
                f"× {factor:g} {_signed(one)} ± {wide:.2f}, the most probable word stays on {100 * share:.0f} %"
                for factor, one, wide, share in zip(factors, change, error, kept, strict=True)
            )
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(factors, [f"{factor:g}" for factor in factors])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xlabel(f"factor on the output of block {block} (1: no edit)")
    ax.set_ylabel("change of log p(right country), nats")
    ax.legend(frameon=False, loc="lower right")
    changes = ", ".join(f"{_signed(halved)} and {_signed(stretched)} on {the}" for the, halved, stretched in ends)
    set_title(ax, f"Block {block} × 0.5 and × 1.5 change log p by {changes}")
    describe(
        ax,
        f"Change of log p of the right country, with 95 % intervals, against the factor on block {block}. {'. '.join(told)}.",
    )
    return ax


def plot_relative(found: Mapping[float, tuple[Tensor, Tensor]], block: int, ax: Axes | None = None) -> Axes:
    """Draw the relative error from the edited block to the last one, one line a factor, and after the final norm.

    found: factor -> relative error at each point of the stream, (n_blocks + 1,), and after the final norm, (1,). The norm
    changes the unit of the stream, so its value is a hollow mark of its own.
    """
    ax = new_axes(ax)
    said, told = [], []
    for index, (factor, (along, normed)) in enumerate(found.items()):
        n_blocks, style = len(along) - 1, series_style(index)
        ax.plot(range(block + 1, n_blocks + 1), along[block + 1 :].tolist(), label=f"× {factor:g}", **style)
        ax.plot([n_blocks + 2], normed.tolist(), **{**style, "markerfacecolor": "white", "markersize": 7})
        said.append(f"× {factor:g}: the relative error {_goes(along, block)}")
        told.append(
            f"× {factor:g}: {along[block + 1]:.3f} after block {block}, {along[-2]:.3f} before the last block, "
            f"{along[-1]:.3f} after it, {float(normed):.3f} after the final norm"
        )
    stream_axis(ax, n_blocks, "", "norm")  # a gap: no name may cover the last block's
    ax.set_xlim(block + 0.5, n_blocks + 2.5)
    ax.set_xlabel("residual stream after block, and after the final norm (hollow)")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("relative error Δ / ‖H‖")
    ax.legend(title=f"block {block}", frameon=False, loc="lower left")
    set_title(ax, "; ".join(said))
    describe(ax, f"Relative error along the stream, without the first token. {'. '.join(told)}.")
    return ax


def _goes(values: Tensor, block: int) -> str:
    begin, end = float(values[block + 1]), float(values[-1])
    return f"{'grows' if end > begin else 'falls'} from {begin:.2f} to {end:.2f}"


def plot_writes(attention: Tensor, mlp: Tensor, coordinate: int, ax: Axes | None = None) -> Axes:
    """Draw what each block's attention and MLP add to one coordinate of one token. attention, mlp: (n_blocks,)."""
    ax = new_axes(ax)
    blocks = range(len(mlp))
    ax.bar(blocks, mlp.tolist(), 0.8, label="MLP", color=PALETTE[0])
    ax.plot(blocks, attention.tolist(), "s", label="attention", color=PALETTE[1], markersize=4)
    writer = int(mlp.abs().argmax())
    against = (mlp * -mlp[writer].sign()).topk(2).indices.sort().values.tolist()
    for block in (writer, *against):
        behind = block - 1 in against  # its label clears the bar before it
        ax.annotate(
            f"block {block}: {_whole(mlp[block])}",
            (block, float(mlp[block])),
            xytext=(-24 if behind else -10, 6 if behind else 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
        )
    block_axis(ax, len(mlp))
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.yaxis.set_major_formatter(lambda value, _: _whole(value))
    ax.set_ylabel(f"added to coordinate {coordinate}")
    ax.legend(frameon=False, loc="lower left")
    taken = -mlp[against].sum() * mlp[writer].sign()
    finding = f"The MLP of block {writer} writes {_whole(mlp[writer])} into coordinate {coordinate}; "
    finding += f"those of blocks {against[0]} and {against[1]} take {_whole(taken)} back"
    set_title(ax, finding)
    each = ", ".join(f"{_whole(mlp[block])} in block {block}" for block in (writer, *against))
    describe(
        ax,
        f"Bars for each block: what its attention and its MLP add to coordinate {coordinate} of the first token. {finding}. "
        f"The MLPs add {each}; attention adds at most {_whole(attention.abs().max())}.",
    )
    return ax


def plot_attention(looks: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draw the share of attention that later tokens give to the first, in each block, for two runs. Values: (n_blocks,)."""
    ax = new_axes(ax)
    for index, (name, values) in enumerate(looks.items()):
        ax.plot(range(len(values)), values.tolist(), label=name, **series_style(index))
    block_axis(ax, len(values))
    ax.set_ylim(0, 1.1)
    ax.set_ylabel("attention to the first token (mean)")
    ax.legend(frameon=False, loc="upper left", ncols=2)
    (name, before), (other, after) = looks.items()
    block = int(before.argmax())
    finding = f"Block {block} gives the first token {before[block]:.2f} of its attention {name}, {after[block]:.2f} with {other}"
    set_title(ax, finding)
    describe(ax, f"Two lines over the blocks. {finding}.")
    return ax


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _whole(value: float | Tensor) -> str:
    """A large number as people write it: 23,229 and −14,239."""
    return f"{float(value):,.0f}".replace("-", "−")


def _finish(ax: Axes, n_blocks: int, block: int, factor: float) -> None:
    stream_axis(ax, n_blocks)
    mark_edit(ax, block + 1, edit_label(block, factor))


def _n(value: float | Tensor) -> str:
    return format_number(float(value) if isinstance(value, torch.Tensor) else value, 3)
