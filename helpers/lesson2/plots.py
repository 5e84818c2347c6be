"""Figures of lesson 2: a block from the inside, and its input beside its output.

States are (batch, pos, d_model), norms have one value per block, (n_blocks,). Every title is computed from the numbers
that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from helpers.correlations import correlation, random_step_correlation
from helpers.metrics import top_k
from helpers.models import LanguageModel
from helpers.plots.style import (
    CLEAN,
    EDIT,
    EDITED,
    PALETTE,
    QUIET,
    SEQUENTIAL,
    block_axis,
    describe,
    figure_of,
    mark_edit,
    new_axes,
    new_figure,
    series_style,
    set_title,
    settle,
)
from helpers.tables import format_number

ANATOMY_SIZE = (8.6, 3.4)
FULL = 0.95  # r from here on counts as "near 1", as in the claims ledger
PERFECT = 0.999  # r from here on looks like no change at all
PARTS = ("attention", "MLP")


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
            ax.text(x, 1.45, part, ha="center", va="center", fontsize=8.5, linespacing=1.15, zorder=4)
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


def scatter_finding(before: Tensor, after: Tensor, names: tuple[str, str]) -> str:
    """Return r, and the r that a random step of the same spread would give."""
    r = correlation(before, after)
    if torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(after.abs().max())):
        return f"{names[0]} and {names[1]} are the same: every point lies on the diagonal"
    by_chance = random_step_correlation(before, after)
    return f"r = {_r(r)} between {names[0]} and {names[1]}; a random step of the same size would give {_r(by_chance)}"


def plot_mask(before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor) -> Figure:
    """Draw each value of `before` against the same value of `after`: all of them, and how densely those lie that `keep` leaves.

    before, after: (1, pos, d_model). The second panel is what the small square in the first one holds.
    """
    figure = new_figure((7.6, 3.9))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2))
    everything = torch.ones_like(keep)
    _points(left, before, after, names, everything, by_token=False)
    limit = float(torch.maximum(before.abs(), after.abs())[keep].max())
    left.add_patch(_square(limit))
    a, b = before[keep].numpy(force=True), after[keep].numpy(force=True)
    *_, image = right.hist2d(a, b, bins=60, range=[[-limit, limit]] * 2, cmap=SEQUENTIAL, norm=LogNorm(), zorder=2)
    right.plot([-limit, limit], [-limit, limit], color=EDITED, linewidth=1.2, linestyle="--", zorder=3)
    right.set_xlabel(f"value in {names[0]}")
    right.set_ylabel(f"value in {names[1]}")
    bar = figure.colorbar(image, ax=right, fraction=0.05, pad=0.03)
    bar.set_label("values in a cell", fontsize=9)
    for ax, shown, what in ((left, everything, "all values"), (right, keep, "without outliers")):
        ax.set_aspect("equal")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        ax.set_title(f"{what}: r = {_r(correlation(before[shown], after[shown]))}", loc="left", fontsize=10)
    finding = mask_finding(before, after, keep)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(
        figure,
        f"Two scatter plots of {names[1]} against {names[0]}. {finding}. All {keep.numel()} values: "
        f"r = {_r(correlation(before, after))}; without the outliers: r = {_r(correlation(before[keep], after[keep]))}.",
    )
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


def plot_likeness(series: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draw 1 − r between the input and the output of each block, one line per way to count, on a logarithmic axis.

    series: what was compared -> r, (n_blocks,). The first and the last make the title.
    """
    ax = new_axes(ax, (7.0, 3.8))
    for index, (name, values) in enumerate(series.items()):
        style = series_style(index) | ({"markerfacecolor": "white", "markersize": 8} if index == 1 else {})
        ax.plot(range(len(values)), (1 - values).tolist(), label=name, **style)
    block_axis(ax, len(next(iter(series.values()))))
    ax.set_yscale("log")
    ax.axhline(1 - FULL, color=QUIET, linewidth=1, linestyle=":")
    ax.annotate(
        f"r = {FULL}", (1, 1 - FULL), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points",
        ha="left", color=QUIET, fontsize=9,
    )  # fmt: skip
    ax.set_ylabel("1 − r (lower: more alike)")
    ax.legend(frameon=False, fontsize=9)
    finding = likeness_finding(series)
    set_title(ax, finding)
    lowest = "; ".join(f"{name}: r is {_r(values.min())} to {_r(values.max())}" for name, values in series.items())
    describe(ax, f"1 minus r for each block, one line per way to count. {finding}. {lowest}.")
    return ax


def likeness_finding(series: Mapping[str, Tensor]) -> str:
    """Return in one sentence at how many blocks r looks perfect, counted in the first way and in the last."""
    first, last = next(iter(series.items())), list(series.items())[-1]
    many, few = (int((values >= PERFECT).sum()) for _, values in (first, last))
    return f"r is {PERFECT} or more at {many} of {len(first[1])} blocks; {last[0]}: at {few or 'none'}"


def plot_words(
    lm: LanguageModel, runs: Mapping[str, Tensor], target: str, about: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the probability of `target` after each run as a bar, and write beside it which word comes first.

    runs: what was done -> logits of the next token, (vocabulary,); the first is the clean run. about: the run of the title, the
    one with the lowest probability unless told.
    """
    ax = new_axes(ax, (7.6, 0.9 + 0.42 * len(runs)))
    ids = lm.token_id(target)
    shares = {name: float(logits.softmax(-1)[ids]) for name, logits in runs.items()}
    tops = {name: top_k(lm, logits, 1)[0] for name, logits in runs.items()}
    for row, name in enumerate(runs):
        ax.barh(
            row,
            shares[name],
            height=0.62,
            color=EDITED if row else CLEAN,
            hatch="//" if row else None,
            edgecolor="white",
        )
        word, p = tops[name]
        said = f"{_p(shares[name])}" if word == target else f"{_p(shares[name])}; first is {word!r}, {_p(p)}"
        ax.text(shares[name] + 0.012, row, said, va="center", fontsize=9)
    ax.set_yticks(range(len(runs)), list(runs))
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel(f"probability of {target!r} as the next word")
    finding = words_finding(shares, target, about or min(shares, key=lambda name: shares[name]))
    ax.set_title(finding, x=0, ha="left", fontsize=11)
    told = "; ".join(
        f"{name}: {_p(shares[name])}, most probable is {word!r} with {_p(p)}" for name, (word, p) in tops.items()
    )
    describe(ax, f"Probability of {target!r} as the next word, one bar for each run. {finding}. {told}.")
    return ax


def words_finding(shares: Mapping[str, float], target: str, about: str) -> str:
    """Return in one sentence how far the target's probability moves from the first run to the one called `about`."""
    return f"{target!r} goes from {_p(next(iter(shares.values())))} to {_p(shares[about])} ({about})"


def plot_steps(found: Mapping[int, tuple[Tensor, Tensor]], target: str, ax: Axes | None = None) -> Axes:
    """Draw, for each block, the target's probability with the block's own step, with none, and with random steps.

    found: block -> (probabilities, whether the target comes first), each (2 + n,): own step, no step, n random steps.
    """
    ax = new_axes(ax, (7.0, 1.7 + 0.7 * len(found)))
    for row, (values, _) in enumerate(found.values()):
        random = values[2:].tolist()
        heights = [row + 0.22 * ((7 * i % len(random)) / len(random) - 0.5) for i in range(len(random))]
        first = row == 0
        ax.plot(
            random,
            heights,
            "o",
            markersize=6,
            markerfacecolor="none",
            color=EDITED,
            label="a random step" if first else None,
        )
        ax.plot([values[1]], [row], "X", markersize=9, color=QUIET, label="no step" if first else None)
        ax.plot([values[0]], [row], "D", markersize=8, color=CLEAN, label="its own step" if first else None)
    ax.set_yticks(range(len(found)), [f"block {block}" for block in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel(f"probability of {target!r} as the next word")
    figure_of(ax).legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    finding = steps_finding(found, target)
    set_title(ax, finding)
    told = "; ".join(
        f"block {block}: {_p(values[0])} with its own step, {_p(values[1])} with none, median {_p(values[2:].median())} "
        f"over {len(values) - 2} random steps"
        for block, (values, _) in found.items()
    )
    describe(ax, f"Probability of {target!r} with each step, one row for each block. {finding}. {told}.")
    return ax


def steps_finding(found: Mapping[int, tuple[Tensor, Tensor]], target: str) -> str:
    """Return in one sentence how often the target comes first under random steps."""
    counts = [f"in {int(first[2:].sum())} of {len(first) - 2} at block {block}" for block, (_, first) in found.items()]
    return f"With random steps {target!r} comes first {', '.join(counts)}"


def plot_parts(
    length: Tensor, divergence: Tensor, first: Tensor, target: str, ax: Axes | None = None
) -> Axes:  # fmt: skip
    """Draw what each part of each block costs when it is left out, against the length of what it adds; both logarithmic.

    length, divergence (KL, nats), first (does the target still come first?): (2, n_blocks), attention then MLP.
    """
    ax = new_axes(ax, (7.0, 4.4))
    for part, (name, marker, colour) in enumerate((("attention", "o", PALETTE[0]), ("MLP", "s", PALETTE[1]))):
        for kept in (True, False):
            mine = first[part].bool() == kept
            ax.plot(
                length[part][mine].tolist(), divergence[part][mine].tolist(), marker, color=colour, markersize=7,
                markerfacecolor="none" if kept else colour, label=f"{name}, {target!r} {'stays first' if kept else 'is lost'}",
            )  # fmt: skip
    for part, block in named_parts(length, divergence, first):
        if first[part, block]:
            shift, side = (0, 8 if block % 2 else -15), "center"  # neighbours among the longest
        elif part == 0 or length[part, block] > length.max() / 3:
            shift, side = (-8, -3), "right"
        else:
            shift, side = (8, -3), "left"
        ax.annotate(
            f"{PARTS[part]} {block}", (float(length[part, block]), float(divergence[part, block])), fontsize=9,
            xytext=shift, textcoords="offset points", ha=side,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("length of what the part adds (all tokens, logarithmic)")
    ax.set_ylabel("KL without it, nats (logarithmic)")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    finding = parts_finding(length, divergence, first, target)
    set_title(ax, finding)
    told = "; ".join(
        f"{PARTS[part]} {block}: length {length[part, block]:.0f}, KL {_n(divergence[part, block])}"
        for part, block in named_parts(length, divergence, first)
    )
    describe(ax, f"KL against length, one point for each of {first.numel()} parts. {finding}. {told}.")
    return ax


def named_parts(length: Tensor, divergence: Tensor, first: Tensor) -> list[tuple[int, int]]:
    """The parts that get their names in the figure: those without which the target is lost, and the three longest."""
    lost = [(part, block) for part in range(2) for block in range(length.shape[1]) if not first[part, block]]
    lost.sort(key=lambda at: -float(divergence[at]))
    longest = [divmod(i, length.shape[1]) for i in length.flatten().argsort(descending=True)[:3].tolist()]
    return lost + [at for at in longest if at not in lost]


def parts_finding(length: Tensor, divergence: Tensor, first: Tensor, target: str) -> str:
    """Return in one sentence how many parts can be left out, and how far length ranks what they cost."""
    return (
        f"{target!r} still comes first without any one of {int(first.sum())} of the {first.numel()} parts; "
        f"rank correlation of length and cost: {rank_correlation(length, divergence):.2f}"
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of the same shape, without ties, −1 to 1."""
    return correlation(*(x.flatten().argsort().argsort().double() for x in (a, b)))


def plot_block_view(
    before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor, by_token: bool,
    norms: tuple[Tensor, Tensor, Tensor], block: int, dpi: int,
) -> Figure:  # fmt: skip
    """Draw the widget's picture: the scatter of one block, and the norms of stream and deltas over all blocks."""
    figure = new_figure((8.6, 3.5), dpi, layout=None)
    left = new_axes(figure.add_axes((0.095, 0.14, 0.345, 0.78)))
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
    colorbar: Axes | None = None, legend: bool = True,
) -> None:  # fmt: skip
    """Draw the cloud. colorbar: the axes to draw one on; without a legend it names the cross."""
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
    if by_token and colorbar is not None and bool(rest.any()):
        bar = ax.figure.colorbar(dots, ticks=MaxNLocator(4, integer=True), cax=colorbar)
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


def _p(value: float | Tensor) -> str:
    """A probability: two digits, but three from 0.1 on."""
    number = float(value)
    return format_number(number, 3) if number >= 0.1 else format_number(number, 2) if number >= 1e-4 else "< 0.0001"


def _r(value: float | Tensor) -> str:
    """A correlation: three digits, but more where it is near 1, so that only 1 is called 1."""
    number = float(value)
    return f"{number:.6f}".rstrip("0") if 0.999 <= number < 1 - 1e-6 else _n(number)
