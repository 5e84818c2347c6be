"""Figures of lesson 3: attention patterns, single heads, neurons, the spread of the stream, the next token.

Every title is computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from helpers.plots.style import (
    CLEAN,
    EDITED,
    SEQUENTIAL,
    describe,
    mark_edit,
    new_axes,
    new_figure,
    series_style,
    set_title,
    stream_axis,
)
from helpers.tables import format_number

Probability = tuple[str, float]


def evenness(pattern: Tensor) -> float:
    """Return how far a causal pattern, (pos, pos), is from even attention: 0 when row i holds 1 / (i + 1) everywhere."""
    even = torch.ones_like(pattern).tril()
    return float((pattern - even / even.sum(dim=-1, keepdim=True)).abs().max())


def plot_patterns(patterns: Mapping[str, Tensor], tokens: Sequence[str], name: str = "the head") -> Figure:
    """Draw attention patterns side by side, one colour scale for all. patterns: label -> (pos, pos); row = who looks."""
    figure = new_figure((7.0, 3.9))
    panels = figure.subplots(1, len(patterns), squeeze=False)[0]
    labels = [_plain(repr(token)[1:-1]) for token in tokens]
    for index, (ax, (label, pattern)) in enumerate(zip(panels, patterns.items(), strict=True)):
        seen = torch.ones_like(pattern).tril().bool()
        image = ax.imshow(pattern.masked_fill(~seen, float("nan")).tolist(), cmap=SEQUENTIAL, vmin=0, vmax=1)
        ax.set_title(label, fontsize=10)
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        ax.set_yticks(range(len(labels)), labels if index == 0 else [""] * len(labels), fontsize=7)
        ax.set_xlabel("token looked at")
        ax.spines[:].set_visible(False)
    panels[0].set_ylabel("token that looks")
    figure.colorbar(image, ax=list(panels), label="attention weight (row sums to 1)", shrink=0.8)
    finding = patterns_finding(patterns, name)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    last = "; ".join(
        f"{label}: the last token gives at most {_n(pattern[-1].max())} to one token, "
        f"{_n(pattern[-1, 0])} to the first token"
        for label, pattern in patterns.items()
    )
    describe(figure, f"Heat maps of attention weights, {len(tokens)} by {len(tokens)} tokens. {finding}. {last}.")
    return figure


def patterns_finding(patterns: Mapping[str, Tensor], name: str) -> str:
    """Return in one sentence which of the patterns are even."""
    even = [label for label, pattern in patterns.items() if evenness(pattern) < 1e-6]
    if not even:
        return f"No pattern of {name} is even"
    with_them = ", ".join(even)
    return f"{with_them[0].upper()}{with_them[1:]}: {name} looks evenly at all it may see"


def plot_head_effects(effects: Mapping[str, Tensor], block: int, ax: Axes | None = None) -> Axes:
    """Draw one effect per head for each of two ways to remove it. effects: label -> (n_heads,), in thousandths of a nat."""
    ax = new_axes(ax)
    (first, a), (second, b) = effects.items()
    for index, (label, values) in enumerate(effects.items()):
        style = {**series_style(index), "linestyle": "none", "markersize": 7}
        ax.plot(range(len(values)), values.tolist(), label=label, **style)
    for head, pair in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        ax.plot([head, head], pair, color="0.7", linewidth=1, zorder=0)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xticks(range(len(a)))
    ax.set_xlabel(f"head of block {block}")
    ax.set_ylabel("KL to the clean prediction\n(thousandths of a nat, mean over tokens)")
    ax.legend(frameon=False)
    smaller = int((a < b).sum())
    finding = f"“{first}” moves the prediction less than “{second}” in {smaller} of {len(a)} heads of block {block}"
    set_title(ax, finding)
    describe(
        ax,
        f"Two points per head. {finding}. Medians: {_n(a.quantile(0.5))} and {_n(b.quantile(0.5))} thousandths of a nat.",
    )
    return ax


def plot_neurons(natural: Tensor, noise: Tensor, block: int, ax: Axes | None = None) -> Axes:
    """Draw the distribution of neurons after the activation function beside the noise that replaces some of them."""
    ax = new_axes(ax)
    low, high = float(min(natural.min(), noise.min())), float(max(natural.max(), noise.max()))
    bins = torch.linspace(low, high, 61).tolist()
    for values, color, hatch, label in ((natural, CLEAN, None, "natural"), (noise, EDITED, "///", "noise")):
        flat = values.flatten().tolist()
        weights = [100 / len(flat)] * len(flat)
        ax.hist(flat, bins=bins, weights=weights, color=color, alpha=0.75, hatch=hatch, edgecolor="white", label=label)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.set_xlabel("value of a neuron after the activation function")
    ax.set_ylabel("share of values per bin (%, logarithmic)")
    ax.legend(frameon=False)
    distance = (noise.mean() - natural.mean()) / natural.std()
    above = float((natural >= noise.min()).double().mean())
    finding = (
        f"The noise lies {_n(distance)} standard deviations above the natural mean; "
        f"{_n(100 * above)} % of the natural values reach its lower end"
    )
    set_title(ax, finding)
    describe(
        ax,
        f"Histogram, block {block}. {finding}. Natural values: mean {_n(natural.mean())}, "
        f"{_n(natural.min())} to {_n(natural.max())}; noise: mean {_n(noise.mean())}, "
        f"{_n(noise.min())} to {_n(noise.max())}.",
    )
    return ax


def plot_spread(
    series: Mapping[str, Tensor], final: Mapping[str, float], block: int, mark: str, ax: Axes | None = None
) -> Axes:
    """Draw the standard deviation of the stream, clean first, then one or more edited runs, on a logarithmic axis.

    series: label -> (n_points,), before the final norm; final: label -> the value after it, drawn apart at the right.
    block: where the edit sits; mark: its label.
    """
    ax = new_axes(ax)
    for index, (label, values) in enumerate(series.items()):
        style = series_style(index)
        ax.plot(range(len(values)), values.tolist(), label=label, **style)
        ax.plot([len(values)], [final[label]], **{**style, "linestyle": "none", "markerfacecolor": "white"})
    n_points = len(next(iter(series.values())))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # few ticks: each takes a widget's time
    ax.yaxis.set_minor_formatter(lambda value, _: format_number(float(value)))
    stream_axis(ax, n_points - 1, "norm")
    ax.set_ylabel("standard deviation (logarithmic)")
    late = block + 1 > 2 / 3 * n_points  # the mark would run through a legend at the right
    ax.legend(frameon=False, loc="lower center" if late else "lower right")
    mark_edit(ax, block + 1, mark)
    set_title(ax, spread_finding(series, final, block))
    told = "; ".join(
        f"{label}: {_n(values[block + 1])} after block {block}, {_n(values[-1])} after the last block, "
        f"{_n(final[label])} after the final norm"
        for label, values in series.items()
    )
    describe(ax, f"Standard deviation along the stream, edit “{mark}” in block {block}. {told}.")
    return ax


def spread_finding(series: Mapping[str, Tensor], final: Mapping[str, float], block: int) -> str:
    """Return in one sentence where the runs part, where they end, and what the final norm makes of that."""
    clean, *edited = series
    ends = " and ".join(f"{_n(series[label][-1])} ({label})" for label in edited)
    low, high = min(final.values()), max(final.values())
    return (
        f"The stream ends at {ends} beside {_n(series[clean][-1])} ({clean}); "
        f"after the final norm all lie between {_n(low)} and {_n(high)}"
    )


def plot_next_tokens(pairs: Mapping[str, tuple[float, float]], ax: Axes | None = None) -> Axes:
    """Draw next-token probabilities before and after an edit. pairs: token text -> (clean, edited)."""
    ax = new_axes(ax)
    ax.grid(visible=False)
    rows = range(len(pairs))
    for shift, index, color, hatch, label in ((-0.2, 0, CLEAN, None, "clean"), (0.2, 1, EDITED, "///", "edited")):
        ax.barh(
            [row + shift for row in rows],
            [pair[index] for pair in pairs.values()],
            height=0.38, color=color, hatch=hatch, edgecolor="white", label=label,
        )  # fmt: skip
    ax.set_yticks(rows, [_plain(repr(token)) for token in pairs], fontsize=8)
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("probability of the next token")
    ax.legend(frameon=False, loc="lower right")
    before, after = (max(pairs, key=lambda token: pairs[token][i]) for i in (0, 1))
    finding = f"The most probable token stays {before!r}" if before == after else f"From {before!r} to {after!r}"
    set_title(ax, _plain(finding))
    told = "; ".join(f"{token!r} {_n(a)} → {_n(b)}" for token, (a, b) in pairs.items())
    describe(ax, f"Bars, clean and edited. {finding}. {told}.")
    return ax


def plot_shift(
    series: Mapping[str, Tensor], final: Mapping[str, float], pairs: Mapping[str, tuple[float, float]],
    block: int, mark: str, dpi: int = 100,
) -> Figure:  # fmt: skip
    """Draw the spread along the stream and the next tokens side by side: what the widget of lesson 3 shows."""
    figure = new_figure((8.4, 3.8), dpi, layout=None)
    left, right = figure.subplots(
        1,
        2,
        gridspec_kw={"width_ratios": (3, 2), "left": 0.08, "right": 0.98, "bottom": 0.15, "top": 0.78, "wspace": 0.25},
    )
    plot_spread(series, final, block, mark, left)
    words = [figure.get_label()]
    plot_next_tokens(pairs, right)
    words.append(figure.get_label())
    left.set_xlabel("stream after block; norm: after the final norm")
    left.tick_params(axis="x", labelsize=8)
    left.set_title("", loc="left")
    right.set_title(right.get_title(loc="left"), loc="left", fontsize=10, pad=8)
    figure.suptitle(spread_finding(series, final, block).replace("; ", ";\n"), x=0.01, ha="left", fontsize=11)
    describe(figure, " ".join(str(word) for word in words))
    return figure


def _plain(text: str) -> str:
    """Keep matplotlib from reading a token such as `$` as the start of a formula."""
    return text.replace("$", r"\$")


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)
