"""Figures of lesson 4: which heads matter, where they look, what they write, what they do together.

Changes are in nats: with the edit minus without, so that a fall is negative. A head is named "23.4", block 23 and head 4.
Every title is computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers.lesson4.study import half_of, map_correlation, name_of, strongest
from helpers.plots.style import (
    DIVERGING,
    EDIT,
    PALETTE,
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
)
from helpers.tables import format_number

FINE = 150  # dpi: small names stay sharp


def plot_two_maps(maps: Mapping[str, Tensor], named: int = 4, measure: str = "logit difference") -> Figure:
    """Draw two maps of all heads side by side, one scale, the `named` strongest of each by name.

    maps: what is put in a head's place -> (n_blocks, n_heads) changes in nats.
    """
    figure = new_figure((7.0, 5.2), FINE)
    panels = figure.subplots(1, 2, sharey=True)
    reach = max(float(values.abs().max()) for values in maps.values()) or 1.0
    words = []
    for ax, (kind, values) in zip(panels, maps.items(), strict=True):
        n_blocks, n_heads = values.shape
        image = ax.imshow(values.tolist(), cmap=DIVERGING, vmin=-reach, vmax=reach, origin="lower", aspect="auto")
        for block, head in strongest(values, named):
            value = float(values[block, head])
            color = "white" if abs(value) > 0.6 * reach else "black"
            ax.text(head, block, name_of(block, head), ha="center", va="center", fontsize=6.5, color=color)
        top = ", ".join(f"{name_of(*place)} ({_n(values[place])})" for place in strongest(values, named))
        ax.set_title(f"each head → {kind}\nhalf of all change in {half_of(values)} heads", loc="left", fontsize=9)
        ax.set_xticks(range(n_heads))
        ax.set_yticks(range(0, n_blocks, 2 if n_blocks < 20 else 5))
        ax.set_xlabel("head")
        words.append(f"{kind}: half of all change sits in {half_of(values)} heads, the strongest are {top}")
    panels[0].set_ylabel("block")
    bar = figure.colorbar(image, ax=panels.tolist(), ticks=MaxNLocator(5))
    bar.set_label(f"change of the {measure} (nats)")
    (one, a), (two, b) = maps.items()
    finding = f"With {one} {half_of(a)} of {a.numel()} heads hold half of all change, with {two} {half_of(b)}"
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    size = f"{a.shape[0]} blocks by {a.shape[1]} heads"
    describe(figure, f"Two maps of {size}. {'. '.join(words)}. Their r is {_r(map_correlation(a, b))}.")
    return figure


def plot_looks_and_writes(looks: Tensor, writes: Tensor, far: float = 0.3, ax: Axes | None = None) -> Axes:
    """Draw each head by the attention that it gives to the capital and by what it writes towards target − contrast.

    looks, writes: (n_blocks, n_heads), shares and nats. far: from which size on a head has its name.
    """
    ax = new_axes(ax, dpi=FINE)
    strong = [place for place in strongest(writes, writes.numel()) if abs(float(writes[place])) >= far]
    rest = torch.ones_like(writes, dtype=torch.bool)
    for place in strong:
        rest[place] = False
    ax.plot(looks[rest], writes[rest], marker="o", linestyle="none", color=QUIET, markerfacecolor="white", markersize=4,
            label=f"the other {int(rest.sum())} heads")  # fmt: skip
    for sign, name, marker, color in ((1, "for the answer", "^", PALETTE[0]), (-1, "against it", "v", PALETTE[1])):
        chosen = [place for place in strong if float(writes[place]) * sign > 0]
        if chosen:
            ax.plot([float(looks[p]) for p in chosen], [float(writes[p]) for p in chosen], marker=marker, linestyle="none",
                    color=color, markersize=8, label=f"{name} ({len(chosen)})")  # fmt: skip
        for place in chosen:
            ax.annotate(name_of(*place), (float(looks[place]), float(writes[place])), xytext=(7, 4),
                        textcoords="offset points", fontsize=9)  # fmt: skip
    ax.axhline(0, color=QUIET, linewidth=1)
    ax.set_xlim(-0.03, 1.05)
    ax.set_xlabel("attention of the last token to the capital (mean over prompts)")
    ax.set_ylabel("written towards target − contrast\n(nats of the logit difference)")
    ax.legend(frameon=False, loc="upper center", fontsize=9)
    total = float(writes.sum())
    part = sum(float(writes[place]) for place in strong)
    sums = f"{len(strong)} of {writes.numel()} heads write {part:.2f} of the {total:.2f} nats that all heads write"
    readers = [place for place in strong if float(looks[place]) > 0.5 and float(writes[place]) > 0]
    finding = sums
    if readers:
        low, high = (f(float(writes[place]) for place in readers) for f in (min, max))
        names = ", ".join(name_of(*place) for place in readers)
        finding = f"{len(readers)} heads look at the capital and write {low:.2f} to {high:.2f} nats towards its country: {names}"
    set_title(ax, finding)
    listed = "; ".join(
        f"{name_of(*place)} looks {float(looks[place]):.2f} at the capital and writes {float(writes[place]):+.2f}"
        for place in strong
    )
    describe(ax, f"Points, one for each head. {finding}. {sums}: {listed}.")
    return ax


def plot_swaps(
    named: Mapping[str, tuple[Tensor, Tensor]], donors: Sequence[str], model: str, ax: Axes | None = None
) -> Axes:
    """Draw how probable each other prompt's answer becomes when heads say what they said there.

    named: the swapped heads -> (first, p), (n_donors,) each: whether the donor's country is the top token, its probability.
    A filled mark: it is. donors: the capitals.
    """
    ax = new_axes(ax, (7.0, 4.2), FINE)
    last = list(named.values())[-1][1]
    order = last.argsort(descending=True)
    for index, (name, (first, p)) in enumerate(named.items()):
        style = {**series_style(index), "linestyle": "none", "markersize": 6}
        first, p = first[order], p[order]
        places = torch.arange(len(order))
        ax.plot(places[first], p[first], label=f"heads {name}: first on {int(first.sum())}", **style)
        ax.plot(places[~first], p[~first], markerfacecolor="white", **style)
    ax.set_xticks(range(len(donors)), [donors[i] for i in order.tolist()], rotation=60, ha="right", fontsize=8)
    ax.set_ylim(-0.03, 1.3)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel("capital of the prompt that the heads' output came from")
    ax.set_ylabel("probability of that capital's country")
    ax.legend(frameon=False, loc="upper right", ncols=len(named), fontsize=8, handletextpad=0.1, columnspacing=0.8)
    name, (first, _) = list(named.items())[-1]
    finding = f"Swap heads {name}, and {model} names the other prompt's country on {int(first.sum())} of {len(first)} (filled)"
    set_title(ax, finding)
    parts = "; ".join(
        f"heads {n}: first on {int(a.sum())} of {len(a)}, mean probability {_n(b.mean())}"
        for n, (a, b) in named.items()
    )
    describe(ax, f"Points for each of {len(donors)} capitals. {finding}. {parts}.")
    return ax


def plot_together(alone: Tensor, together: Tensor, error: Tensor, ax: Axes | None = None) -> Axes:
    """Draw, for each block, the sum of its heads' single effects beside the effect of all of them at once. (n_blocks,) each.

    error: half of the 95 % interval of `together`.
    """
    ax = new_axes(ax, dpi=FINE)
    x = torch.arange(len(alone))
    points = {**series_style(1), "linestyle": "none"}
    ax.errorbar(x, together, yerr=error, label="all heads of the block at once (95 % interval)", capsize=3, **points)
    points = {**series_style(0), "linestyle": "none", "markerfacecolor": "white", "markersize": 7}
    ax.plot(x, alone, label="one head at a time, summed", **points)
    ax.axhline(0, color=QUIET, linewidth=1)
    block_axis(ax, len(alone))
    ax.set_ylabel("mean change of log p(target) (nats)")
    ax.legend(frameon=False, loc="lower left")
    gap = int((together - alone).abs().argmax())
    finding = (
        f"The heads of block {gap} change log p by {float(alone[gap]):.2f} nats one at a time, "
        f"by {float(together[gap]):.2f} all at once"
    )
    set_title(ax, finding)
    others = [block for block in range(len(alone)) if block != gap]
    largest = max(others, key=lambda block: abs(float(together[block] - alone[block])))
    describe(
        ax,
        f"Two points for each block. {finding}. The next largest gap is at block {largest}: {float(alone[largest]):.2f} summed, "
        f"{float(together[largest]):.2f} at once.",
    )
    return ax


def plot_top_one(
    change: Tensor, lost: Tensor, sure: Tensor, prompts: int, named: int = 3, ax: Axes | None = None
) -> Axes:
    """Draw, for each head, how far log p(target) moves and on how many prompts the target loses its first place.

    change: (n_blocks, n_heads) mean change in nats; lost: number of prompts; sure: whether the change is significant (filled).
    """
    ax = new_axes(ax, dpi=FINE)
    for chosen, name, face in ((sure, "significant", None), (~sure, "not significant", "white")):
        style = {**series_style(0 if face is None else 2), "linestyle": "none", "markersize": 5}
        if face:
            style["markerfacecolor"] = face
        ax.plot(change[chosen], lost[chosen], label=f"{name} ({int(chosen.sum())} heads)", **style)
    for place in strongest(lost.double(), named):
        ax.annotate(name_of(*place), (float(change[place]), float(lost[place])), xytext=(6, 3), textcoords="offset points",
                    fontsize=9)  # fmt: skip
    ax.set_xlabel("mean change of log p(target) without the head (nats)")
    ax.set_ylabel(f"prompts (of {prompts}) on which the\ntarget loses its first place")
    ax.legend(frameon=False, loc="upper right")
    quiet = lost == 0
    finding = (
        f"{int(quiet.sum())} of {change.numel()} heads never cost the first place; {int((quiet & sure).sum())} of them shift log p "
        "significantly"
    )
    set_title(ax, finding)
    top = ", ".join(f"{name_of(*p)} on {int(lost[p])} ({_n(change[p])} nats)" for p in strongest(lost.double(), named))
    describe(ax, f"Points, one for each head. {finding}. The first place is lost most often without {top}.")
    return ax


def plot_phrasings(agreement: Mapping[str, Mapping[str, float]], main: str, ax: Axes | None = None) -> Axes:
    """Draw how well the maps of other phrasings agree with the main one's.

    agreement: what the map is of (model and replacement) -> phrasing -> Pearson's r over all heads.
    """
    ax = new_axes(ax, (7.0, 3.2), FINE)
    phrasings = list(next(iter(agreement.values())))
    for index, (name, values) in enumerate(agreement.items()):
        shift = (index - (len(agreement) - 1) / 2) * 0.12
        y = [place + shift for place in range(len(phrasings))]
        ax.plot(
            [values[one] for one in phrasings],
            y,
            label=name,
            **{**series_style(index), "linestyle": "none", "markersize": 8},
        )
    ax.axvline(0, color=QUIET, linewidth=1)
    ax.set_yticks(range(len(phrasings)), [f"“{one}”" for one in phrasings])
    ax.set_ylim(-0.5, len(phrasings))
    ax.set_xlim(-0.4, 1.05)
    ax.grid(axis="x", color="0.9")
    ax.set_xlabel(f"agreement (Pearson's r over all heads) with the map of “{main}”")
    ax.legend(frameon=False, loc="upper left", ncols=len(agreement), fontsize=9, handletextpad=0.2)
    low = {name: min(values.values()) for name, values in agreement.items()}
    (one, a), *_, (two, b) = low.items()
    finding = (
        f"{two[0].upper()}{two[1:]}: maps of other phrasings agree (r at least {_r(b)}); {one}: r falls to {_r(a)}"
    )
    set_title(ax, finding)
    listed = "; ".join(f"{n}: " + ", ".join(f"{one} {_r(r)}" for one, r in v.items()) for n, v in agreement.items())
    describe(ax, f"Points for {len(phrasings)} phrasings. {finding}. {listed}.")
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


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)


def _r(value: float) -> str:
    return f"{value:.2f}"
