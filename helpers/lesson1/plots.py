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
from helpers.say import say, translatable
from helpers.tables import format_number

MEASURES = {
    translatable("Δ"): translatable("Δ (Frobenius norm)"),
    translatable("relative error"): translatable("Δ / ‖H clean‖"),
    translatable("cosine similarity"): translatable("cosine, clean and edited"),
    translatable("survival"): translatable("share of the injected error that is there"),
}


def edit_label(block: int, factor: float) -> str:
    """Return the label of the mark in every figure of this lesson."""
    return say("block {block} × {factor}", block=block, factor=format_number(float(factor), 3))


def plot_measure(values: Tensor, block: int, factor: float, measure: str = "Δ", ax: Axes | None = None) -> Axes:
    """Draw one measure (a key of MEASURES) along the stream, with the place of the edit and a title that says what it does."""
    ax = new_axes(ax)
    ax.plot(range(len(values)), values.tolist(), **series_style(0))
    _finish(ax, len(values) - 1, block, factor)
    ax.set_ylabel(say(MEASURES[measure]))
    finding = measure_finding(values, block, measure)
    set_title(ax, finding)
    describe(ax, say("Line along the stream with {edit}. {finding}.", edit=edit_label(block, factor), finding=finding))
    return ax


def measure_finding(values: Tensor, block: int, measure: str = "Δ") -> str:
    """Return in one sentence what a measure does from the edited block to the last one."""
    after, last, name = values[block + 1 :], len(values) - 2, say(measure)
    here = say(
        "{measure} is {value} after block {block}",
        measure=name[0].upper() + name[1:],
        value=_n(after[0]),
        block=block,
    )
    if block == last:
        return say("{here}, the last block", here=here)
    return say(
        "{here}, {course} {value} after block {last}",
        here=here,
        course=_course(after, block),
        value=_n(after[-1]),
        last=last,
    )


def _course(after: Tensor, block: int) -> str:
    """Say how a series goes from its first value, after `block`, to its last."""
    steps, ends = after.diff(), {0, len(after) - 1}
    low, high = int(after.argmin()), int(after.argmax())
    if bool((steps.abs() < 1e-9).all()):
        return say("stays there and is")
    if bool((steps >= 0).all()):
        return say("grows at every block and ends at")
    if bool((steps <= 0).all()):
        return say("falls at every block and ends at")
    if high in ends and low not in ends:
        return say("falls to {low} after block {block} and ends at", low=_n(after[low]), block=block + low)
    if low in ends and high not in ends:
        return say("rises to {high} after block {block} and ends at", high=_n(after[high]), block=block + high)
    if low not in ends:
        return say("moves between {low} and {high} and ends at", low=_n(after[low]), high=_n(after[high]))
    return say("rises with dips and ends at") if after[-1] > after[0] else say("falls with rises and ends at")


def plot_first_token(with_first: Tensor, without: Tensor, block: int, factor: float, ax: Axes | None = None) -> Axes:
    """Draw Δ with and without the first token from the edited block on (before it both are 0).

    The axis is logarithmic where the two are far apart.
    """
    ax = new_axes(ax)
    points = range(block + 1, len(without))
    for index, (name, values) in enumerate({say("all tokens"): with_first, say("without the first"): without}.items()):
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
    ax.set_ylabel(say("Δ (Frobenius norm, logarithmic)") if wide else say("Δ (Frobenius norm)"))
    ax.legend(frameon=False, loc="best" if wide else "lower right")
    low, high = _n(ratio.min()), _n(ratio.max())
    span = low if low == high else say("{low} to {high}", low=low, high=high)
    finding = say("With the first token Δ is {span} times as large as without it", span=span)
    set_title(ax, finding)
    describe(
        ax,
        say(
            "Two lines along the stream, {edit}. {finding}. At the end of the stream Δ is {with_first} over "
            "all tokens and {without} without the first.",
            edit=edit_label(block, factor),
            finding=finding,
            with_first=_n(with_first[-1]),
            without=_n(without[-1]),
        ),
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
        style = series_style(index)
        points = sorted([*zip(factors, change, strict=True), (1.0, 0.0)])  # × 1 is no edit: the curve goes through 0
        marked = [at for at, (factor, _) in enumerate(points) if factor != 1]
        ax.plot(*zip(*points, strict=True), label=name, markevery=marked, **style)
        ax.errorbar(factors, change, error, capsize=3, color=style["color"], linestyle="none")
        unsure = [i for i, (one, wide) in enumerate(zip(change, error, strict=True)) if abs(one) <= wide]
        hollow = {**style, "linestyle": "none", "markerfacecolor": "white", "zorder": 3}
        ax.plot([factors[i] for i in unsure], [change[i] for i in unsure], **hollow)
        ends.append((name, *(change[factors.index(factor)] for factor in (0.5, 1.5))))
        told.append(
            say(
                "{model}, mean over {n_prompts} prompts: ",
                model=name[0].upper() + name[1:],
                n_prompts=len(stored.labels["prompt"]),
            )
            + "; ".join(
                say(
                    "× {factor} {change} ± {error}, the most probable word stays on {share} %",
                    factor=f"{factor:g}",
                    change=_signed(one),
                    error=f"{wide:.2f}",
                    share=f"{100 * share:.0f}",
                )
                for factor, one, wide, share in zip(factors, change, error, kept, strict=True)
            )
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(factors, [f"{factor:g}" for factor in factors])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xlabel(say("factor on the output of block {block} (1: no edit)", block=block))
    ax.set_ylabel(say("change of log p(right country), nats"))
    ax.legend(frameon=False, loc="lower right")
    changes = ", ".join(
        say("{halved} and {stretched} on {model}", halved=_signed(halved), stretched=_signed(stretched), model=the)
        for the, halved, stretched in ends
    )
    set_title(ax, say("Block {block} × 0.5 and × 1.5 change log p by {changes}", block=block, changes=changes))
    describe(
        ax,
        say(
            "Change of log p of the right country, with 95 % intervals, against the factor on block {block}. {told}.",
            block=block,
            told=". ".join(told),
        ),
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
        said.append(say("× {factor}: the relative error {goes}", factor=f"{factor:g}", goes=_goes(along, block)))
        told.append(
            say(
                "× {factor}: {after_block} after block {block}, {before_last} before the last block, "
                "{after_last} after it, {after_norm} after the final norm",
                factor=f"{factor:g}",
                after_block=f"{along[block + 1]:.3f}",
                block=block,
                before_last=f"{along[-2]:.3f}",
                after_last=f"{along[-1]:.3f}",
                after_norm=f"{float(normed):.3f}",
            )
        )
    stream_axis(ax, n_blocks, "", say("norm"))  # a gap: no name may cover the last block's
    ax.set_xlim(block + 0.5, n_blocks + 2.5)
    ax.set_xlabel(say("residual stream after block, and after the final norm (hollow)"))
    ax.set_ylim(bottom=0)
    ax.set_ylabel(say("relative error Δ / ‖H‖"))
    ax.legend(title=say("block {block}", block=block), frameon=False, loc="lower left")
    set_title(ax, "; ".join(said))
    describe(ax, say("Relative error along the stream, without the first token. {told}.", told=". ".join(told)))
    return ax


def _goes(values: Tensor, block: int) -> str:
    begin, end = float(values[block + 1]), float(values[-1])
    return say(
        "{goes} from {begin} to {end}",
        goes=say("grows") if end > begin else say("falls"),
        begin=f"{begin:.2f}",
        end=f"{end:.2f}",
    )


def plot_writes(attention: Tensor, mlp: Tensor, coordinate: int, ax: Axes | None = None) -> Axes:
    """Draw what each block's attention and MLP add to one coordinate of one token. attention, mlp: (n_blocks,)."""
    ax = new_axes(ax)
    blocks = range(len(mlp))
    ax.bar(blocks, mlp.tolist(), 0.8, label=say("MLP"), color=PALETTE[0])
    ax.plot(blocks, attention.tolist(), "s", label=say("attention"), color=PALETTE[1], markersize=4)
    writer = int(mlp.abs().argmax())
    against = (mlp * -mlp[writer].sign()).topk(2).indices.sort().values.tolist()
    for block in (writer, *against):
        behind = block - 1 in against  # its label clears the bar before it
        ax.annotate(
            say("block {block}: {mlp}", block=block, mlp=_whole(mlp[block])),
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
    ax.set_ylabel(say("added to coordinate {coordinate}", coordinate=coordinate))
    ax.legend(frameon=False, loc="lower left")
    taken = -mlp[against].sum() * mlp[writer].sign()
    finding = say(
        "The MLP of block {writer} writes {mlp} into coordinate {coordinate}; ",
        writer=writer,
        mlp=_whole(mlp[writer]),
        coordinate=coordinate,
    )
    finding += say(
        "those of blocks {first} and {second} take {taken} back",
        first=against[0],
        second=against[1],
        taken=_whole(taken),
    )
    set_title(ax, finding)
    each = ", ".join(say("{mlp} in block {block}", mlp=_whole(mlp[block]), block=block) for block in (writer, *against))
    describe(
        ax,
        say(
            "Bars for each block: what its attention and its MLP add to coordinate {coordinate} of the first "
            "token. {finding}. The MLPs add {each}; attention adds at most {attention}.",
            coordinate=coordinate,
            finding=finding,
            each=each,
            attention=_whole(attention.abs().max()),
        ),
    )
    return ax


def plot_attention(looks: Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draw the share of attention that later tokens give to the first, in each block, for two runs. Values: (n_blocks,)."""
    ax = new_axes(ax)
    for index, (name, values) in enumerate(looks.items()):
        ax.plot(range(len(values)), values.tolist(), label=name, **series_style(index))
    block_axis(ax, len(values))
    ax.set_ylim(0, 1.1)
    ax.set_ylabel(say("attention to the first token (mean)"))
    ax.legend(frameon=False, loc="upper left", ncols=2)
    (name, before), (other, after) = looks.items()
    block = int(before.argmax())
    finding = say(
        "Block {block} gives the first token {before} of its attention {name}, {after} with {other}",
        block=block,
        before=f"{before[block]:.2f}",
        name=name,
        after=f"{after[block]:.2f}",
        other=other,
    )
    set_title(ax, finding)
    each = "; ".join(
        say("{name}: {values}", name=one, values=", ".join(f"{value:.2f}" for value in series.tolist()))
        for one, series in looks.items()
    )
    describe(ax, say("Two lines over the blocks. {finding}. From block 0 on, {each}.", finding=finding, each=each))
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
