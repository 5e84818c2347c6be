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

from helpers.correlations import correlation
from helpers.metrics import top_k
from helpers.models import LanguageModel
from helpers.plots.redrawn import settle
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
)
from helpers.say import say, translatable
from helpers.tables import format_number

ANATOMY_SIZE = (8.6, 3.4)
PERFECT = 0.999  # r from here on looks like no change at all
PARTS = (translatable("attention"), translatable("MLP"))


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
        delta = say("attention") if name == "attn" else "MLP"
        ax.text(places[-1] - 0.22, 0.5, rf"$\Delta_{{\mathrm{{{delta}}}}}$", ha="right", va="center", fontsize=10)
    ax.text(-0.15, 2.75, say("1  the report's hooks: before dropout"), color=EDIT, fontsize=9)
    ax.text(5.25, 2.75, say("2  what is really added: after dropout"), color=EDIT, fontsize=9)
    ax.text(5.4, -0.6, say("residual stream"), ha="center", va="center", fontsize=9, color=QUIET)
    describe(
        ax,
        say(
            "A GPT-2 block. The residual stream H_l runs from left to right. Attention reads it through "
            "ln_1, c_attn, the heads, c_proj and resid_dropout, and its delta is added to the stream; then "
            "the MLP reads the sum through ln_2, c_fc, GELU, c_proj and dropout, and its delta is added. The "
            "result is H_l+1. Places for hooks: 1, the output of each c_proj, before dropout; 2, the output "
            "of each dropout, which is what is added."
        ),
    )
    return ax


def plot_delta_norms(
    stream: Tensor, attention: Tensor, mlp: Tensor, block: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw, for each block, the norm of the stream that enters it and of the two deltas that it adds; `block` is marked."""
    ax = new_axes(ax)
    n_blocks = len(attention)
    series = {say("stream that enters, ‖H‖"): stream, say("‖Δ attention‖"): attention, say("‖Δ MLP‖"): mlp}
    for index, (name, values) in enumerate(series.items()):
        ax.plot(range(n_blocks), values.tolist(), label=name, **series_style(index))
    _logarithmic(ax)
    block_axis(ax, n_blocks)
    ax.set_ylabel(say("Frobenius norm (logarithmic)"))
    ax.legend(fontsize=9, facecolor="white", edgecolor="none", framealpha=0.9)  # the mark may run behind it
    if block is not None:
        mark_edit(ax, block, say("block {block}", block=block))
    finding = delta_finding(attention, mlp)
    set_title(ax, finding)
    describe(
        ax,
        say(
            "Three lines over the blocks. {finding}. The stream's norm goes from {stream} before block 0 to "
            "{last_stream} before block {last_block}.",
            finding=finding,
            stream=_n(stream[0]),
            last_stream=_n(stream[-1]),
            last_block=n_blocks - 1,
        ),
    )
    return ax


def delta_finding(attention: Tensor, mlp: Tensor) -> str:
    """Return in one sentence where attention writes more than the MLP."""
    larger = [block for block in range(len(attention)) if attention[block] > mlp[block]]
    if not larger:
        return say("The MLP writes more than attention in each of the {n_blocks} blocks", n_blocks=len(mlp))
    if len(larger) == len(mlp):
        return say("Attention writes more than the MLP in each of the {n_blocks} blocks", n_blocks=len(mlp))
    where = (
        say("block {larger}", larger=larger[0])
        if len(larger) == 1
        else say("blocks {in_ranges}", in_ranges=in_ranges(larger))
    )
    return say(
        "Attention writes more than the MLP in {where}, the MLP more in the other {n_others}",
        where=where,
        n_others=len(mlp) - len(larger),
    )


def scatter_finding(before: Tensor, after: Tensor, names: tuple[str, str], r: float, by_chance: float) -> str:
    """Return r, and the r of a random step that is as long for each token."""
    if torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(after.abs().max())):
        return say(
            "{first_name} and {name} are the same: every point lies on the diagonal", first_name=names[0], name=names[1]
        )
    return say(
        "r = {r} between {first_name} and {name}; a random step as long gives {by_chance}",
        r=_r(r),
        first_name=names[0],
        name=names[1],
        by_chance=_r(by_chance),
    )


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
    right.set_xlabel(say("value in {first_name}", first_name=names[0]))
    right.set_ylabel(say("value in {name}", name=names[1]))
    bar = figure.colorbar(image, ax=right, fraction=0.05, pad=0.03)
    bar.set_label(say("values in a cell"), fontsize=9)
    for ax, shown, what in ((left, everything, say("all values")), (right, keep, say("without outliers"))):
        ax.set_aspect("equal")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        ax.set_title(f"{what}: r = {_r(correlation(before[shown], after[shown]))}", loc="left", fontsize=10)
    finding = mask_finding(before, after, keep)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(
        figure,
        say(
            "Two scatter plots of {name} against {first_name}. {finding}. All {n_values} values: r = "
            "{r_all}; without the outliers: r = {r_kept}.",
            name=names[1],
            first_name=names[0],
            finding=finding,
            n_values=keep.numel(),
            r_all=_r(correlation(before, after)),
            r_kept=_r(correlation(before[keep], after[keep])),
        ),
    )
    return figure


def mask_finding(before: Tensor, after: Tensor, keep: Tensor) -> str:
    """Return in one sentence how much of the axis the kept values had, before the others were masked."""
    share = 100 * filled_axis(before, after, keep)
    masked = int((~keep).sum())
    return say(
        "{keep} % of the values fill {share} % of the axis; {masked} outliers take the rest",
        keep=_n(100 * float(keep.double().mean())),
        share=_n(share),
        masked=masked,
    )


def filled_axis(before: Tensor, after: Tensor, keep: Tensor) -> float:
    """Return how much of the axis (0 to the largest |value|) the kept values reach over, 0 to 1."""
    size = torch.maximum(before.abs(), after.abs())
    return float(size[keep].max() / size.max())


def plot_likeness(series: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draw r between the input and the output of each block, one line per way to count; the axis stretches what is near 1.

    series: what was compared -> r, (n_blocks,). The first and the last make the title.
    """
    ax = new_axes(ax, (7.0, 3.8))
    for index, (name, values) in enumerate(series.items()):
        style = series_style(index) | ({"markerfacecolor": "white", "markersize": 8} if index == 1 else {})
        ax.plot(range(len(values)), (1 - values).tolist(), label=name, **style)  # 1 − r, read as r
    block_axis(ax, len(next(iter(series.values()))))
    ax.set_yscale("log")
    ax.invert_yaxis()
    ax.yaxis.set_major_formatter(lambda miss, _: f"{1 - miss:.9g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhline(1 - PERFECT, color=EDIT, linewidth=1, linestyle=":")
    ax.set_ylabel(say("r (higher: more alike)"))
    ax.legend(frameon=False, fontsize=9)
    finding = likeness_finding(series)
    set_title(ax, finding)
    lowest = "; ".join(
        say("{name}: r is {lowest} to {highest}", name=name, lowest=_r(values.min()), highest=_r(values.max()))
        for name, values in series.items()
    )
    describe(
        ax,
        say(
            "r for each block, one line per way to count; a dotted line marks {perfect}. {finding}. {lowest}.",
            perfect=PERFECT,
            finding=finding,
            lowest=lowest,
        ),
    )
    return ax


def likeness_finding(series: Mapping[str, Tensor]) -> str:
    """Return in one sentence at how many blocks r looks perfect, counted in the first way and in the last."""
    first, last = next(iter(series.items())), list(series.items())[-1]
    many, few = (int((values >= PERFECT).sum()) for _, values in (first, last))
    return say(
        "r is {perfect} or more at {many} of {n_blocks} blocks; {last}: at {few}",
        perfect=PERFECT,
        many=many,
        n_blocks=len(first[1]),
        last=last[0],
        few=few or say("none"),
    )


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
        said = (
            f"{_p(shares[name])}"
            if word == target
            else say(
                "{probability}; first is {word!r}, {first_probability}",
                probability=_p(shares[name]),
                word=word,
                first_probability=_p(p),
            )
        )
        ax.text(shares[name] + 0.012, row, said, va="center", fontsize=9)
    ax.set_yticks(range(len(runs)), list(runs))
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel(say("probability of {target!r} as the next word", target=target))
    finding = words_finding(shares, target, about or min(shares, key=lambda name: shares[name]))
    ax.set_title(finding, x=0, ha="left", fontsize=11)
    told = "; ".join(
        say(
            "{name}: {probability}, most probable is {word!r} with {first_probability}",
            name=name,
            probability=_p(shares[name]),
            word=word,
            first_probability=_p(p),
        )
        for name, (word, p) in tops.items()
    )
    describe(
        ax,
        say(
            "Probability of {target!r} as the next word, one bar for each run. {finding}. {told}.",
            target=target,
            finding=finding,
            told=told,
        ),
    )
    return ax


def words_finding(shares: Mapping[str, float], target: str, about: str) -> str:
    """Return in one sentence how far the target's probability moves from the first run to the one called `about`."""
    return say(
        "{target!r} goes from {before} to {after} ({about})",
        target=target,
        before=_p(next(iter(shares.values()))),
        after=_p(shares[about]),
        about=about,
    )


def plot_steps(found: Mapping[int, Tensor], target: str, ax: Axes | None = None) -> Axes:
    """Draw, for each block, the target's probability with the block's own step, with none, and with random steps.

    found: block -> (2 + n, 2), probability and whether the target comes first: own step, no step, n random steps.
    """
    ax = new_axes(ax, (7.0, 1.7 + 0.7 * len(found)))
    for row, values in enumerate(one[:, 0] for one in found.values()):
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
            label=say("a random step") if first else None,
        )
        ax.plot([values[1]], [row], "X", markersize=9, color=QUIET, label=say("no step") if first else None)
        ax.plot([values[0]], [row], "D", markersize=8, color=CLEAN, label=say("its own step") if first else None)
    ax.set_yticks(range(len(found)), [say("block {block}", block=block) for block in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel(say("probability of {target!r} as the next word", target=target))
    figure_of(ax).legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    finding = steps_finding(found, target)
    set_title(ax, finding)
    told = "; ".join(
        say(
            "block {block}: {own} with its own step, {none} with none, median {random} over {n_random} random steps",
            block=block,
            own=_p(values[0]),
            none=_p(values[1]),
            random=_p(values[2:].median()),
            n_random=len(values) - 2,
        )
        for block, values in ((block, one[:, 0]) for block, one in found.items())
    )
    describe(
        ax,
        say(
            "Probability of {target!r} with each step, one row for each block. {finding}. {told}.",
            target=target,
            finding=finding,
            told=told,
        ),
    )
    return ax


def steps_finding(found: Mapping[int, Tensor], target: str) -> str:
    """Return in one sentence how often the target comes first under random steps."""
    counts = [
        say("in {first} of {tried} at block {block}", first=int(first[2:].sum()), tried=len(first) - 2, block=block)
        for block, first in ((block, one[:, 1]) for block, one in found.items())
    ]
    return say("With random steps {target!r} comes first {counts}", target=target, counts=", ".join(counts))


def plot_parts(
    length: Tensor, divergence: Tensor, first: Tensor, target: str, ax: Axes | None = None
) -> Axes:  # fmt: skip
    """Draw what each part of each block costs when it is left out, against the length of what it adds; both logarithmic.

    length, divergence (KL, nats), first (does the target still come first?): (2, n_blocks), attention then MLP.
    """
    ax = new_axes(ax, (7.0, 4.4))
    for part, (name, marker, colour) in enumerate(((say("attention"), "o", PALETTE[0]), (say("MLP"), "s", PALETTE[1]))):
        for kept in (True, False):
            mine, fate = first[part].bool() == kept, say("stays first") if kept else say("is lost")
            ax.plot(
                length[part][mine].tolist(), divergence[part][mine].tolist(), marker, color=colour, markersize=7,
                markerfacecolor="none" if kept else colour, label=f"{name}, {target!r} {fate}",
            )  # fmt: skip
    for part, block in named_parts(length, divergence, first):
        if first[part, block]:
            shift, side = (0, 8 if block % 2 else -15), "center"  # neighbours among the longest
        elif part == 0 or length[part, block] > length.max() / 3:
            shift, side = (-8, -3), "right"
        else:
            shift, side = (8, -3), "left"
        ax.annotate(
            f"{say(PARTS[part])} {block}", (float(length[part, block]), float(divergence[part, block])), fontsize=9,
            xytext=shift, textcoords="offset points", ha=side,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(say("length of what the part adds (all tokens, logarithmic)"))
    ax.set_ylabel(say("KL without it, nats (logarithmic)"))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    finding = parts_finding(length, divergence, first, target)
    set_title(ax, finding)
    told = "; ".join(
        say(
            "{part} {block}: length {length}, KL {divergence}",
            part=say(PARTS[part]),
            block=block,
            length=f"{length[part, block]:.0f}",
            divergence=_n(divergence[part, block]),
        )
        for part, block in named_parts(length, divergence, first)
    )
    describe(
        ax,
        say(
            "KL against length, one point for each of {n_parts} parts. {finding}. {told}.",
            n_parts=first.numel(),
            finding=finding,
            told=told,
        ),
    )
    return ax


def named_parts(length: Tensor, divergence: Tensor, first: Tensor) -> list[tuple[int, int]]:
    """The parts that get their names in the figure: those without which the target is lost, and the three longest."""
    lost = [(part, block) for part in range(2) for block in range(length.shape[1]) if not first[part, block]]
    lost.sort(key=lambda at: -float(divergence[at]))
    longest = [divmod(i, length.shape[1]) for i in length.flatten().argsort(descending=True)[:3].tolist()]
    return lost + [at for at in longest if at not in lost]


def parts_finding(length: Tensor, divergence: Tensor, first: Tensor, target: str) -> str:
    """Return in one sentence how many parts can be left out, and how far length ranks what they cost."""
    return say(
        "{target!r} still comes first without any one of {n_first} of the {n_parts} parts; rank "
        "correlation of length and cost: {rank_correlation}",
        target=target,
        n_first=int(first.sum()),
        n_parts=first.numel(),
        rank_correlation=f"{rank_correlation(length, divergence):.2f}",
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of the same shape, without ties, −1 to 1."""
    return correlation(*(x.flatten().argsort().argsort().double() for x in (a, b)))


def plot_block_view(
    before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor, likeness: tuple[float, float], by_token: bool,
    norms: tuple[Tensor, Tensor, Tensor], block: int, dpi: int,
) -> Figure:  # fmt: skip
    """Draw the widget's picture: the scatter of one block, and the norms of stream and deltas over all blocks.

    likeness: r over the values kept, with the block's own step and with a random one.
    """
    figure = new_figure((8.6, 3.5), dpi, layout=None)
    left = new_axes(figure.add_axes((0.095, 0.14, 0.345, 0.78)))
    right = new_axes(figure.add_axes((0.63, 0.14, 0.36, 0.78)))
    _points(
        left, before, after, names, keep, by_token, figure.add_axes((0.455, 0.14, 0.013, 0.78)) if by_token else None,
        legend=not by_token,
    )  # fmt: skip
    plot_delta_norms(*norms, block=block, ax=right)
    right.yaxis.set_major_locator(LogLocator(numticks=5))
    right.set_ylabel(say("Frobenius norm (logarithmic)"), fontsize=9)
    for ax in (left, right):
        settle(ax)
    finding = scatter_finding(before[keep], after[keep], names, *likeness)
    describe(
        figure,
        say(
            "{cloud} {finding}. Beside it, norms over the blocks: {delta_finding}.",
            cloud=_cloud(before, after, names, keep),
            finding=finding,
            delta_finding=delta_finding(norms[1], norms[2]),
        ),
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
    words = [
        str(p[0])
        if len(p) == 1
        else say("{lowest} to {highest}", lowest=p[0], highest=p[-1])
        if len(p) > 2
        else f"{p[0]}, {p[1]}"
        for p in parts
    ]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + say(" and ") + words[-1]


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
    ax.scatter(  # under the others, which it would hide
        before[first].numpy(force=True), after[first].numpy(force=True), s=22, marker="x", linewidths=0.9, color=PALETTE[4],
        zorder=1.5, label=say("first token"),
    )  # fmt: skip
    colour = {"c": position[rest].numpy(force=True), "cmap": SEQUENTIAL} if by_token else {"color": CLEAN}
    dots = ax.scatter(
        before[rest].numpy(force=True), after[rest].numpy(force=True), s=7, linewidths=0, zorder=2, label=say("others"), **colour
    )  # fmt: skip
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(say("value in {first_name}", first_name=names[0]))
    ax.set_ylabel(say("value in {name}", name=names[1]))
    if legend:
        ax.legend(frameon=False, fontsize=8, loc="upper left", handletextpad=0.2)
    if colorbar is not None and not bool(rest.any()):
        colorbar.set_axis_off()
    elif by_token and colorbar is not None:
        bar = ax.figure.colorbar(dots, ticks=MaxNLocator(4, integer=True), cax=colorbar)
        bar.set_label(say("token position") if legend else say("token position (×: the first)"), fontsize=8)


def _square(limit: float) -> FancyBboxPatch:
    return FancyBboxPatch(
        (-limit, -limit), 2 * limit, 2 * limit, boxstyle="square,pad=0", facecolor="none", edgecolor=EDIT,
        linewidth=1.2, linestyle=(0, (4, 3)), zorder=4,
    )  # fmt: skip


def _cloud(before: Tensor, after: Tensor, names: tuple[str, str], keep: Tensor) -> str:
    largest = float(torch.maximum(before.abs(), after.abs())[keep].max())
    return say(
        "Scatter plot of {keep} values of {name} against {first_name}, with the diagonal. The largest is "
        "{largest} in size.",
        keep=int(keep.sum()),
        name=names[1],
        first_name=names[0],
        largest=_n(largest),
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
