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

from helpers.lesson4.study import FAR, half_of, map_correlation, name_of, strongest
from helpers.plots.redrawn import settle
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
)
from helpers.say import say
from helpers.tables import format_number


def plot_two_maps(maps: Mapping[str, Tensor], named: int = 4, measure: str = "logit difference") -> Figure:
    """Draw two maps of all heads side by side, one scale, the `named` strongest of each by name.

    maps: what is put in a head's place -> (n_blocks, n_heads), the mean over prompts of the size of each prompt's change, in
    nats. A mean with signs would not do: plus on one prompt and minus on another cancel.
    """
    figure = new_figure((7.0, 5.2))
    panels = figure.subplots(1, 2, sharey=True)
    reach = max(float(values.max()) for values in maps.values()) or 1.0
    words = []
    for ax, (kind, values) in zip(panels, maps.items(), strict=True):
        n_blocks, n_heads = values.shape
        image = ax.imshow(values.tolist(), cmap="Greys", vmin=0, vmax=reach, origin="lower", aspect="auto")
        for block, head in strongest(values, named):
            color = "white" if float(values[block, head]) > 0.5 * reach else "black"
            ax.text(head, block, name_of(block, head), ha="center", va="center", fontsize=6.5, color=color)
        top = ", ".join(f"{name_of(*place)} ({_n(values[place])})" for place in strongest(values, named))
        ax.set_title(
            say("each head → {kind}\nhalf of all change in {half_of} heads", kind=kind, half_of=half_of(values)),
            loc="left",
            fontsize=9,
        )
        ax.set_xticks(range(n_heads))
        ax.set_yticks(range(0, n_blocks, 2 if n_blocks < 20 else 5))
        ax.set_xlabel(say("head"))
        words.append(
            say(
                "{kind}: half of all change sits in {half_of} heads, the strongest are {top}",
                kind=kind,
                half_of=half_of(values),
                top=top,
            )
        )
    panels[0].set_ylabel(say("block"))
    bar = figure.colorbar(image, ax=panels.tolist(), ticks=MaxNLocator(5))
    bar.set_label(say("mean size of the change of the {measure} (nats)", measure=measure))
    (one, a), (two, b) = maps.items()
    finding = say(
        "With {one} {n_half_a} of {n_heads} heads hold half of all change, with {two} {n_half_b}",
        one=one,
        n_half_a=half_of(a),
        n_heads=a.numel(),
        two=two,
        n_half_b=half_of(b),
    )
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    size = say("{n_blocks} blocks by {n_heads} heads", n_blocks=a.shape[0], n_heads=a.shape[1])
    describe(
        figure,
        say(
            "Two maps of {size}. {words}. Their r is {r}.",
            size=size,
            words=". ".join(words),
            r=_r(map_correlation(a, b)),
        ),
    )
    return figure


def plot_looks_and_writes(looks: Tensor, writes: Tensor, far: float = FAR, ax: Axes | None = None) -> Axes:
    """Draw each head by the attention that it gives to the capital and by what it writes towards target − contrast.

    looks, writes: (n_blocks, n_heads), shares and nats. far: from which size on a head has its name.
    """
    ax = new_axes(ax)
    strong = [place for place in strongest(writes, writes.numel()) if abs(float(writes[place])) >= far]
    rest = torch.ones_like(writes, dtype=torch.bool)
    for place in strong:
        rest[place] = False
    ax.plot(looks[rest], writes[rest], marker="o", linestyle="none", color=QUIET, markerfacecolor="white", markersize=4,
            label=say("the other {rest} heads", rest=int(rest.sum())))  # fmt: skip
    for sign, name, marker, color in (
        (1, say("for the answer"), "^", PALETTE[0]),
        (-1, say("against it"), "v", PALETTE[1]),
    ):
        chosen = [place for place in strong if float(writes[place]) * sign > 0]
        if chosen:
            ax.plot([float(looks[p]) for p in chosen], [float(writes[p]) for p in chosen], marker=marker, linestyle="none",
                    color=color, markersize=8, label=f"{name} ({len(chosen)})")  # fmt: skip
        for place in chosen:
            ax.annotate(name_of(*place), (float(looks[place]), float(writes[place])), xytext=(7, 4),
                        textcoords="offset points", fontsize=9)  # fmt: skip
    ax.axhline(0, color=QUIET, linewidth=1)
    ax.set_xlim(-0.03, 1.05)
    ax.set_xlabel(say("attention of the last token to the capital (mean over prompts)"))
    ax.set_ylabel(say("written towards target − contrast\n(nats of the logit difference)"))
    ax.legend(frameon=False, loc="upper center", fontsize=9)
    total = float(writes.sum())
    part = sum(float(writes[place]) for place in strong)
    sums = say(
        "{n_strong} of {writes} heads write {part} of the {total} nats that all heads write",
        n_strong=len(strong),
        writes=writes.numel(),
        part=f"{part:.2f}",
        total=f"{total:.2f}",
    )
    readers = [place for place in strong if float(looks[place]) > 0.5 and float(writes[place]) > 0]
    finding = sums
    if readers:
        low, high = (f(float(writes[place]) for place in readers) for f in (min, max))
        names = ", ".join(name_of(*place) for place in readers)
        finding = say(
            "{n_readers} heads look at the capital and write {low} to {high} nats towards its country: {names}",
            n_readers=len(readers),
            low=f"{low:.2f}",
            high=f"{high:.2f}",
            names=names,
        )
    set_title(ax, finding)
    listed = "; ".join(
        say(
            "{name_of} looks {look} at the capital and writes {write}",
            name_of=name_of(*place),
            look=f"{float(looks[place]):.2f}",
            write=f"{float(writes[place]):+.2f}",
        )
        for place in strong
    )
    describe(
        ax, say("Points, one for each head. {finding}. {sums}: {listed}.", finding=finding, sums=sums, listed=listed)
    )
    return ax


def plot_swaps(
    named: Mapping[str, tuple[Tensor, Tensor]], donors: Sequence[str], model: str, ax: Axes | None = None
) -> Axes:
    """Draw how probable each other prompt's answer becomes when heads say what they said there.

    named: the swapped heads -> (first, p), (n_donors,) each: whether the donor's country is the top token, its probability.
    A filled mark: it is. donors: the capitals.
    """
    ax = new_axes(ax, (7.0, 4.2))
    last = list(named.values())[-1][1]
    order = last.argsort(descending=True)
    for index, (name, (first, p)) in enumerate(named.items()):
        style = {**series_style(index), "linestyle": "none", "markersize": 6}
        first, p = first[order], p[order]
        places = torch.arange(len(order))
        ax.plot(
            places[first],
            p[first],
            label=say("heads {name}: first on {n_first}", name=name, n_first=int(first.sum())),
            **style,
        )
        ax.plot(places[~first], p[~first], markerfacecolor="white", **style)
    ax.set_xticks(range(len(donors)), [donors[i] for i in order.tolist()], rotation=60, ha="right", fontsize=8)
    ax.set_ylim(-0.03, 1.3)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel(say("capital of the prompt that the heads' output came from"))
    ax.set_ylabel(say("probability of that capital's country"))
    ax.legend(frameon=False, loc="upper right", ncols=len(named), fontsize=8, handletextpad=0.1, columnspacing=0.8)
    name, (first, _) = list(named.items())[-1]
    finding = say(
        "Swap heads {name}, and {model} names the other prompt's country on {n_first} of {first} (filled)",
        name=name,
        model=model,
        n_first=int(first.sum()),
        first=len(first),
    )
    set_title(ax, finding)
    parts = "; ".join(
        say(
            "heads {n}: first on {n_lost} of {n_tokens}, mean probability {mean}",
            n=n,
            n_lost=int(a.sum()),
            n_tokens=len(a),
            mean=_n(b.mean()),
        )
        for n, (a, b) in named.items()
    )
    describe(
        ax,
        say(
            "Points for each of {n_donors} capitals. {finding}. {parts}.",
            n_donors=len(donors),
            finding=finding,
            parts=parts,
        ),
    )
    return ax


def plot_together(alone: Tensor, together: Tensor, error: Tensor, ax: Axes | None = None) -> Axes:
    """Draw, for each block, the sum of its heads' single effects beside the effect of all of them at once. (n_blocks,) each.

    error: half of the 95 % interval of `together`.
    """
    ax = new_axes(ax)
    x = torch.arange(len(alone))
    points = {**series_style(1), "linestyle": "none"}
    ax.errorbar(
        x, together, yerr=error, label=say("all heads of the block at once (95 % interval)"), capsize=3, **points
    )
    points = {**series_style(0), "linestyle": "none", "markerfacecolor": "white", "markersize": 7}
    ax.plot(x, alone, label=say("one head at a time, summed"), **points)
    ax.axhline(0, color=QUIET, linewidth=1)
    block_axis(ax, len(alone))
    ax.set_ylabel(say("mean change of log p(target) (nats)"))
    ax.legend(frameon=False, loc="lower left")
    gap = int((together - alone).abs().argmax())
    finding = say(
        "The heads of block {gap} change log p by {alone} nats one at a time, by {together} all at once",
        gap=gap,
        alone=f"{float(alone[gap]):.2f}",
        together=f"{float(together[gap]):.2f}",
    )
    set_title(ax, finding)
    others = [block for block in range(len(alone)) if block != gap]
    largest = max(others, key=lambda block: abs(float(together[block] - alone[block])))
    describe(
        ax,
        say(
            "Two points for each block. {finding}. The next largest gap is at block {largest}: {alone} "
            "summed, {together} at once.",
            finding=finding,
            largest=largest,
            alone=f"{float(alone[largest]):.2f}",
            together=f"{float(together[largest]):.2f}",
        ),
    )
    return ax


def plot_top_one(
    change: Tensor, lost: Tensor, sure: Tensor, prompts: int, named: int = 3, ax: Axes | None = None
) -> Axes:
    """Draw, for each head, how far log p(target) moves and on how many prompts the target loses its first place.

    change: (n_blocks, n_heads) mean change in nats; lost: number of prompts; sure: whether the change is significant (filled).
    """
    ax = new_axes(ax)
    for chosen, name, face in ((sure, say("significant"), None), (~sure, say("not significant"), "white")):
        style = {**series_style(0 if face is None else 2), "linestyle": "none", "markersize": 5}
        if face:
            style["markerfacecolor"] = face
        ax.plot(
            change[chosen],
            lost[chosen],
            label=say("{name} ({chosen} heads)", name=name, chosen=int(chosen.sum())),
            **style,
        )
    asked = [p for p in strongest(change.masked_fill(sure, 0), 1) if not bool(sure[p])]  # far out, and not significant
    for place in dict.fromkeys([*strongest(lost.double(), named), *asked]):
        ax.annotate(name_of(*place), (float(change[place]), float(lost[place])), xytext=(6, 3), textcoords="offset points",
                    fontsize=9)  # fmt: skip
    ax.set_xlabel(say("mean change of log p(target) without the head (nats)"))
    ax.set_ylabel(say("prompts (of {prompts}) on which the\ntarget loses its first place", prompts=prompts))
    ax.legend(frameon=False, loc="upper right")
    quiet = lost == 0
    finding = say(
        "{quiet} of {change} heads never cost the first place; {quiet_sure} of them shift log p significantly",
        quiet=int(quiet.sum()),
        change=change.numel(),
        quiet_sure=int((quiet & sure).sum()),
    )
    set_title(ax, finding)
    top = ", ".join(
        say("{name_of} on {lost} ({change} nats)", name_of=name_of(*p), lost=int(lost[p]), change=_n(change[p]))
        for p in strongest(lost.double(), named)
    )
    words = say(
        "Points, one for each head. {finding}. The first place is lost most often without {top}.",
        finding=finding,
        top=top,
    )
    if asked:
        far = ", ".join(say("{name_of} ({change} nats)", name_of=name_of(*p), change=_n(change[p])) for p in asked)
        words = say("{words} Not significant, though far out: {far}.", words=words, far=far)
    describe(ax, words)
    return ax


def plot_phrasings(agree: Mapping[str, Mapping[str, tuple[float, float]]], main: str, ax: Axes | None = None) -> Axes:
    """Draw how well the maps of other phrasings agree with the main one's: filled marks r, hollow ones the r of ranks.

    agree: what the map is of (model and replacement) -> phrasing -> both r, over all heads.
    """
    ax = new_axes(ax, (7.0, 3.6))
    phrasings = list(next(iter(agree.values())))
    for index, (name, values) in enumerate(agree.items()):
        y = [place + ((len(agree) - 1) / 2 - index) * 0.2 for place in range(len(phrasings))]
        style = {**series_style(index), "linestyle": "none", "markersize": 7}
        ax.plot([values[one][0] for one in phrasings], y, label=name, **style)
        ax.plot([values[one][1] for one in phrasings], y, **{**style, "markerfacecolor": "white"})
    ax.axvline(0, color=QUIET, linewidth=1)
    ax.set_yticks(range(len(phrasings)), [f"“{one}”" for one in phrasings])
    ax.set_ylim(-0.5, len(phrasings))
    ax.set_xlim(-0.4, 1.05)
    ax.grid(axis="x", color="0.9")
    ax.set_xlabel(say("agreement with the map of “{main}”: r (filled), by rank (hollow)", main=main))
    ax.legend(frameon=False, loc="upper left", ncols=len(agree), fontsize=9, handletextpad=0.2)
    found = [(name, *both) for name, values in agree.items() for both in values.values()]
    by_r, by_rank = max(found, key=lambda one: one[1]), max(found, key=lambda one: one[2])
    finding = say(
        "r reaches {r} ({name}); by rank no map agrees better than {rank} ({name_rank})",
        r=_r(by_r[1]),
        name=by_r[0],
        rank=_r(by_rank[2]),
        name_rank=by_rank[0],
    )
    lines = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in finding.split("; ")]  # one for each part
    set_title(ax, "; ".join(lines))
    listed = "; ".join(
        f"{name}: " + ", ".join(say("{one} {r}, by rank {rank}", one=one, r=_r(r), rank=_r(rank)) for one, (r, rank) in values.items())
        for name, values in agree.items()
    )  # fmt: skip
    describe(
        ax, say("Points for {n} phrasings. {finding}. {listed}.", n=len(phrasings), finding=finding, listed=listed)
    )
    return ax


def _map(ax: Axes, changes: Tensor, step: int, marked: tuple[int, int] | None) -> AxesImage:
    n_blocks, n_heads = changes.shape
    reach = float(changes.abs().nan_to_num().max()) or 1.0
    image = ax.imshow(changes.tolist(), cmap=DIVERGING, vmin=-reach, vmax=reach, origin="lower", aspect="auto")
    ax.grid(visible=False)
    ax.set_xticks(range(0, n_heads, step))
    ax.set_yticks(range(0, n_blocks, step))
    ax.set_xlabel(say("head"))
    ax.set_ylabel(say("block"))
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
    return say(
        "Head {head} of block {block} has the largest effect ({change}); half of all change sits in "
        "{half} of {changes} heads",
        head=top % n_heads,
        block=top // n_heads,
        change=_n(changes.flatten()[top]),
        half=half,
        changes=changes.numel(),
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
            0.5, 0.5, say("press “map all heads”\nto see what each one does"), transform=left.transAxes, ha="center", va="center",
            color=QUIET, fontsize=9,
        )  # fmt: skip
        words = say(
            "No map of the {shape_first} blocks by {shape_second} heads yet.",
            shape_first=shape[0],
            shape_second=shape[1],
        )
    else:
        bar = figure.colorbar(image, cax=figure.add_axes((0.425, 0.13, 0.013, 0.78)), ticks=MaxNLocator(4))
        bar.set_label(say("change of {measure} (nats)", measure=measure), fontsize=9)
        words = say(
            "Map of {shape_first} blocks by {shape_second} heads. {map_finding}.",
            shape_first=shape[0],
            shape_second=shape[1],
            map_finding=map_finding(changes),
        )
    settle(left, left=20)
    right = new_axes(figure.add_axes((0.6, 0.3, 0.39, 0.61)))
    words = say(
        "{words} In the frame: head {marked_second} of block {marked_first}.",
        words=words,
        marked_second=marked[1],
        marked_first=marked[0],
    )
    if pattern is not None:
        words = say(
            "{words} Beside it its attention: {attention_finding}.",
            words=words,
            attention_finding=attention_finding(pattern, tokens),
        )
        _pattern(right, pattern, tokens)
    else:
        right.set_axis_off()
        right.text(
            0.5, 0.5, say("this model does not tell its attention"), transform=right.transAxes, ha="center", color=QUIET, fontsize=9
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
    ax.set_title(say("attention of this head: dark 0, bright 1"), loc="left", fontsize=9, y=1.02)
    ax.set_xlabel(say("token looked at"), fontsize=9)
    ax.set_ylabel(say("token that looks (last: bottom)"), fontsize=9)
    ax.xaxis.set_label_coords(0.5, -0.36)
    ax.yaxis.set_label_coords(-0.02, 0.5)


def attention_finding(pattern: Tensor, tokens: Sequence[str]) -> str:
    """Return in one phrase whom the last token looks at most. pattern: (pos, pos)."""
    most = int(pattern[-1].argmax())
    return say("the last token looks most at {token!r} ({pattern})", token=tokens[most], pattern=_n(pattern[-1, most]))


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)


def _r(value: float) -> str:
    return f"{value:.2f}"
