"""Figures of lesson 5: what happens when a block, or a part of it, is skipped.

Values belong to blocks, (n_blocks,), pairs of blocks, (n_blocks, n_blocks), or heads, (n_blocks, n_heads). Every title is
computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers.plots.style import (
    CLEAN,
    DIVERGING,
    EDIT,
    EDITED,
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
)
from helpers.tables import format_number

NEARLY_ZERO = 0.01  # nats: where the logarithmic axes of a cost turn linear, so that 0 and less have a place


def plot_steps(steps: Mapping[str, Tensor], skipped: Sequence[int] = (), ax: Axes | None = None) -> Axes:
    """Draw how far each block moves the stream, one line per run, with the skipped blocks marked.

    steps: label -> ‖H_(l+1) − H_l‖_F of each block l, (n_blocks,); the clean run first, the edited one last.
    """
    ax = new_axes(ax)
    n_blocks = len(next(iter(steps.values())))
    for index, (label, values) in enumerate(steps.items()):
        ax.plot(range(n_blocks), values.tolist(), label=label, **series_style(index))
    block_axis(ax, n_blocks)
    ax.set_ylim(bottom=0, top=1.12 * max(float(values.max()) for values in steps.values()))
    ax.set_ylabel("step ‖H after − H before‖ (Frobenius norm)")
    for block in skipped:
        mark_edit(ax, block, f"block {block} skipped" if len(skipped) == 1 else "")
    if len(steps) > 1:
        ax.legend(frameon=False)
    finding = steps_finding(steps, skipped)
    set_title(ax, finding)
    told = " ".join(f"{label}: {', '.join(_n(v) for v in values)}." for label, values in steps.items())
    describe(ax, f"The length of each block's step. {finding}. {told}")
    return ax


def steps_finding(steps: Mapping[str, Tensor], skipped: Sequence[int] = ()) -> str:
    """Return in one sentence what the last run's steps show at the skipped blocks and beside them."""
    *_, (label, run) = steps.items()
    if not skipped:
        longest, shortest = int(run.argmax()), int(run.argmin())
        block = "Block" if len(steps) == 1 else f"{label[:1].upper()}{label[1:]}: block"
        return f"{block} {longest} takes the longest step, {_n(run[longest])}, block {shortest} the shortest, {_n(run[shortest])}"
    names = name_blocks(skipped)
    there = [float(run[block]) for block in skipped]
    if any(there):
        return f"At {names} the step reads {', '.join(_n(v) for v in there)}, not 0"
    clean = next(iter(steps.values()))
    others = [block for block in range(len(run)) if block not in skipped]
    if not others:
        return f"The step is exactly 0 at {names}"
    moved = [abs(float(run[b] / clean[b]) - 1) if clean[b] else 0.0 for b in others]
    most = max(range(len(others)), key=moved.__getitem__)
    if not moved[most]:
        return f"The step is exactly 0 at {names}, and the others stay as they were"
    return f"The step is exactly 0 at {names}; elsewhere it changes by up to {_n(100 * moved[most])} % (block {others[most]})"


def plot_next_tokens(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], ax: Axes | None = None
) -> Axes:
    """Draw the probability of some next tokens in a clean and in an edited run, side by side, in the order given."""
    ax = new_axes(ax)
    places = range(len(names))
    ax.barh([i - 0.2 for i in places], list(before), height=0.38, color=CLEAN, label="clean")
    ax.barh(
        [i + 0.2 for i in places], list(after), height=0.38, color=EDITED, hatch="///", edgecolor="white", label="edited"
    )  # fmt: skip
    ax.set_yticks(places, [_safe(repr(name)) for name in names])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="0.9", linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("probability of the next token")
    ax.legend(frameon=False, loc="lower right")
    finding = next_token_finding(names, before, after)
    set_title(ax, _safe(finding))
    told = "; ".join(f"{n!r} {_n(b)} and {_n(a)}" for n, b, a in zip(names, before, after, strict=True))
    describe(ax, f"Bars of the next token's probability, clean and edited. {finding}. {told}.")
    return ax


def next_token_finding(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Return in one sentence what became of the most probable next token."""
    old = max(range(len(names)), key=lambda i: before[i])
    new = max(range(len(names)), key=lambda i: after[i])
    if old == new:
        return f"{names[old]!r} stays first: p = {_n(before[old])} before, {_n(after[old])} after"
    return f"{names[new]!r} takes the first place from {names[old]!r}"


def plot_costs(
    cost: Tensor, low: Tensor, high: Tensor, divergence: Tensor, agreement: Tensor, bound: float = 0.1
) -> Figure:
    """Draw what it costs to skip each block alone: loss with its interval and KL on the left, top-1 agreement on the right.

    cost, low, high: rise of the loss in nats per token and its interval, (n_blocks,); divergence: mean KL(clean ‖ edited)
    in nats; agreement: share of the positions whose most probable token stays. bound: what counts as cheap, drawn as a line.
    """
    figure = new_figure((7.0, 4.2))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2, width_ratios=(3, 2)))
    n_blocks = len(cost)
    x = torch.arange(n_blocks)
    reach = torch.stack([cost - low, high - cost]).clamp(min=0)
    left.errorbar(
        (x - 0.12).tolist(), cost.tolist(), yerr=reach.numpy(), fmt=" ", marker="o", color=PALETTE[0], markersize=5,
        capsize=3, label="rise of the loss (95 % interval)",
    )  # fmt: skip
    left.plot((x + 0.15).tolist(), divergence.tolist(), linestyle=" ", marker="s", color=PALETTE[1], label="KL")
    left.axhline(bound, color=EDIT, linestyle=":", linewidth=1.4, label=f"{_n(bound)} nats")
    left.set_yscale("symlog", linthresh=NEARLY_ZERO)
    left.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    least = min(float(low.min()), float(divergence.min()))
    left.set_ylim(min(0.0, 2 * least), 6 * left.get_ylim()[1])  # below 0 only where a cost is
    left.set_ylabel("nats per token (logarithmic, linear near 0)")
    left.legend(frameon=False, fontsize=9)
    right.plot(x.tolist(), (100 * agreement).tolist(), **series_style(2))
    right.set_ylabel("top-1 prediction stays (% of the positions)")
    right.set_ylim(0, 103)
    for ax in (left, right):
        block_axis(ax, n_blocks)
    finding = costs_finding(cost, low, high, bound)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    dearest, cheapest = int(cost.argmax()), int(cost.argmin())
    describe(
        figure,
        f"Two panels over the skipped block. {_line(finding)} The loss rises most without block {dearest}, by "
        f"{_n(cost[dearest])} nats, and least without block {cheapest}, by {_n(cost[cheapest])}. The first choice stays at "
        f"{_n(100 * agreement.min())} to {_n(100 * agreement.max())} % of the positions.",
    )
    return figure


def costs_finding(cost: Tensor, low: Tensor, high: Tensor, bound: float = 0.1) -> str:
    """Return in one sentence which blocks are cheap to skip and which are dear, each with its whole interval."""
    cheap = [block for block in range(len(cost)) if high[block] < bound]
    dear = [block for block in range(len(cost)) if low[block] > bound]
    undecided = len(cost) - len(cheap) - len(dear)
    first = f"{len(cheap)} of {len(cost)} blocks can be skipped, one at a time, for less than {_n(bound)} nats a token"
    second = (
        f"{name_blocks(dear)} cost{'s' if len(dear) == 1 else ''} more (up to {_n(cost.max())})"
        if dear
        else "none surely costs more"
    )
    open_ones = f", {undecided} block{'s are' if undecided > 1 else ' is'} undecided" if undecided else ""
    return f"{first};\n{second}{open_ones}."


def plot_pairs(cost: Tensor, pair_cost: Tensor) -> Figure:
    """Draw what each pair of blocks costs, and how much that is above the sum of the two alone.

    cost: rise of the loss without one block in each passage, (n_passages, n_blocks); pair_cost: without both,
    (n_passages, n_blocks, n_blocks), symmetric. Its diagonals are not used: a block paired with itself is that block alone.
    The maps show means; a dot marks a pair whose surplus has the same sign in every passage.
    """
    passages = len(cost)
    finding, always = pairs_finding(cost, pair_cost), same_sign(surplus(cost, pair_cost))
    cost, pair_cost = cost.mean(0), pair_cost.mean(0)
    n_blocks = len(cost)
    both = pair_cost.clone()
    both.fill_diagonal_(0)
    both = both + torch.diag(cost)
    extra = surplus(cost, pair_cost)
    figure = new_figure((7.0, 3.9))
    left, right = figure.subplots(1, 2)
    widest = max(float(extra.nan_to_num().abs().max()), 2 * NEARLY_ZERO)
    for ax, values, colours, norm, label in (
        (left, both, SEQUENTIAL, _log_norm(min(float(both.min()), 0.0), max(float(both.max()), 2 * NEARLY_ZERO)),
         "rise of the loss (nats)"),
        (right, extra, DIVERGING, _log_norm(-widest, widest), "above the sum of both (nats)"),
    ):  # fmt: skip
        image = ax.imshow(values.numpy(), cmap=colours, norm=norm)
        bar = figure.colorbar(image, ax=ax, shrink=0.8, location="bottom", label=label)
        bar.ax.minorticks_off()
        bar.set_ticks(_marks(float(norm.vmin or 0), float(norm.vmax or 0)))
        bar.ax.xaxis.set_major_formatter(lambda value, _: format_number(float(value), 2))
        ticks = range(0, n_blocks, 1 if n_blocks <= 8 else 2 if n_blocks <= 16 else 4)
        ax.set_xticks(ticks)
        ax.set_yticks(ticks)
        ax.set_xlabel("second skipped block")
    rows, columns = always.nonzero(as_tuple=True)
    right.plot(columns.tolist(), rows.tolist(), linestyle=" ", marker=".", markersize=4, color="black")
    left.set_ylabel("first skipped block")
    left.set_title("both together (diagonal: one alone)", fontsize=10)
    right.set_title(f"surplus (dot: same sign in all {passages})", fontsize=10)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    cheapest, dearest = _extreme_pairs(both)
    describe(
        figure,
        f"Two maps over pairs of skipped blocks. {_line(finding)} The cheapest pair, {_pair(cheapest)}, costs "
        f"{_n(both[cheapest])} nats, the dearest, {_pair(dearest)}, {_n(both[dearest])}.",
    )
    return figure


def surplus(cost: Tensor, pair_cost: Tensor) -> Tensor:
    """Cost of each pair above the sum of its two blocks' own costs, (..., n_blocks, n_blocks), NaN on the diagonal.

    cost: (..., n_blocks); pair_cost: (..., n_blocks, n_blocks).
    """
    extra = pair_cost - cost[..., :, None] - cost[..., None, :]
    return extra.masked_fill(torch.eye(cost.shape[-1], dtype=torch.bool), torch.nan)


def same_sign(values: Tensor) -> Tensor:
    """1 or −1 where all passages have that sign, else 0: (n_passages, ...) to (...) integers."""
    return (values > 0).all(0).int() - (values < 0).all(0).int()


def pairs_finding(cost: Tensor, pair_cost: Tensor) -> str:
    """Return in one sentence whether two blocks together cost more than the sum of each alone; see `plot_pairs`."""
    n_blocks = cost.shape[-1]
    rows, columns = torch.triu_indices(n_blocks, n_blocks, 1)
    each = surplus(cost, pair_cost)[:, rows, columns]
    always, extra = same_sign(each), each.mean(0)
    most = int(extra.argmax())
    first = (
        f"Of {len(extra)} pairs {int((always > 0).sum())} cost more than the sum of their blocks in every passage, "
        f"{int((always < 0).sum())} less"
    )
    if extra[most] <= 0:
        return f"{first}."
    pair = (int(rows[most]), int(columns[most]))
    return f"{first};\nthe surplus is largest for {_pair(pair)}: {_n(extra[most])} nats."


def plot_chainsaw(block: Tensor, attention: Tensor, mlp: Tensor, heads: Tensor, ax: Axes | None = None) -> Axes:
    """Draw how far the prediction moves when a block, its attention, its MLP or one of its heads is taken out.

    block, attention, mlp: mean KL(clean ‖ edited) in nats, (n_blocks,); heads: (n_blocks, n_heads).
    """
    ax = new_axes(ax, (7.0, 4.4))
    n_blocks, n_heads = heads.shape
    floor = 1e-6  # nats: nothing smaller is drawn apart
    for index, (name, values) in enumerate({"block": block, "attention": attention, "MLP": mlp}.items()):
        style = {**series_style(index), "linestyle": " ", "markersize": 7}
        x = torch.arange(n_blocks) + (index - 1) * 0.2
        ax.plot(x.tolist(), values.clamp(min=floor).tolist(), label=f"whole {name}", zorder=3, **style)
    x = (torch.arange(n_blocks)[:, None] + torch.linspace(-0.3, 0.3, n_heads)[None]).flatten()
    ax.plot(
        x.tolist(), heads.clamp(min=floor).flatten().tolist(), linestyle=" ", marker=".", markersize=4, color=QUIET,
        label="one head", zorder=2,
    )  # fmt: skip
    block_axis(ax, n_blocks)
    ax.set_yscale("log")
    ax.set_xlabel("block")
    ax.set_ylabel("KL(clean ‖ edited), nats (logarithmic)")
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)
    finding = chainsaw_finding(block, heads)
    set_title(ax, finding)
    told = ", ".join(
        f"{name} {_n(values.quantile(0.5))}"
        for name, values in {"block": block, "attention": attention, "MLP": mlp, "one head": heads}.items()
    )
    describe(ax, f"Points over the block that is edited. {finding}. Medians in nats: {told}.")
    return ax


def chainsaw_finding(block: Tensor, heads: Tensor) -> str:
    """Return in one sentence how a skipped block compares with its heads, and the strongest head with whole blocks."""
    # quantile: Tensor.median takes the lower of two middle values, the ledger's median their mean
    ratio = (block[:, None] / heads.clamp(min=1e-12)).quantile(0.5)
    strongest = int(heads.argmax())
    row, column = divmod(strongest, heads.shape[1])
    outdone = int((block < heads.max()).sum())
    first = f"A skipped block's KL is {_n(ratio)} times that of one of its heads (median)"
    if not outdone:
        return f"{first}; no head outdoes any whole block"
    return f"{first}; head {column} of block {row} alone outdoes {outdone} of {len(block)} whole blocks"


def _log_norm(low: float, high: float) -> Any:
    return SymLogNorm(NEARLY_ZERO, vmin=low, vmax=high)


def _marks(low: float, high: float) -> list[float]:
    """Few round ticks for a colour bar."""
    sizes = (0.1, 1.0, 10.0) if high >= 1 else (0.1, 0.5)
    found = [0.0, *(sign * value for value in sizes for sign in (1, -1))]
    inside = sorted(value for value in found if low <= value <= high)
    return inside if len(inside) > 1 else [low, high]


def _extreme_pairs(both: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = torch.triu_indices(len(both), len(both), 1)
    values = both[rows, columns]
    pairs = [(int(rows[i]), int(columns[i])) for i in (values.argmin(), values.argmax())]
    return pairs[0], pairs[1]


def _pair(pair: tuple[int, int]) -> str:
    return f"blocks {pair[0]} and {pair[1]}"


def name_blocks(blocks: Sequence[int]) -> str:
    """Name blocks in words: "block 3", or "blocks 0 to 4 and 7"; runs of three or more are drawn together."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts = [p for run in runs for p in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(b) for b in run])]
    named = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
    return ("block " if len(blocks) == 1 else "blocks ") + named


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _safe(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read formulas between dollars


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)
