"""Figures of lesson 3: where a head looks, heads that rest, noise and its price, the spread of the stream.

Every title is computed from the numbers that are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor

from helpers.plots.style import (
    CLEAN,
    EDITED,
    QUIET,
    WIDGET_DPI,
    describe,
    figure_of,
    mark_edit,
    new_axes,
    series_style,
    set_title,
    stream_axis,
)
from helpers.say import say
from helpers.tables import format_number

REST = 0.9  # share of attention on the first token from which a key head is said to rest


def plot_look(rows: Mapping[str, Tensor], tokens: Sequence[str], name: str, ax: Axes | None = None) -> Axes:
    """Draw whom the last token looks at in two runs, clean first. rows: label -> (pos,) attention weights that sum to 1."""
    ax = new_axes(ax, size=(7.0, 4.4))
    ax.grid(visible=False)
    places = range(len(tokens))
    (before, clean), (after, edited) = rows.items()
    for shift, values, color, hatch, label in ((-0.2, clean, CLEAN, None, before), (0.2, edited, EDITED, "///", after)):
        ax.barh(
            [place + shift for place in places], values.tolist(),
            height=0.38, color=color, hatch=hatch, edgecolor="white", label=label,
        )  # fmt: skip
    for place, pair in enumerate(zip(clean.tolist(), edited.tolist(), strict=True)):
        if pair[0] >= 0.005:  # else nothing that a reader would see
            ax.text(max(pair) + 0.01, place, f"{pair[0]:.2f} → {pair[1]:.2f}", va="center", fontsize=9, color=QUIET)
    ax.set_yticks(places, [_plain(repr(token)) for token in tokens], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * max(float(clean.max()), float(edited.max())) + 0.06)
    ax.set_xlabel(say("share of the last token's attention"))
    ax.legend(frameon=False, loc="lower right")
    most = int(clean.argmax())
    even = float((edited - 1 / len(tokens)).abs().max()) < 1e-6
    now = (
        say("{edited} to each of {n_tokens} tokens", edited=_n(edited[0], 2), n_tokens=len(tokens))
        if even
        else say("{edited} at most", edited=_n(edited.max(), 2))
    )
    finding = say(
        "{initial}{rest} gave {token!r} {clean} of its attention, and now gives {now}",
        initial=name[0].upper(),
        rest=name[1:],
        token=tokens[most],
        clean=_n(clean[most], 2),
        now=now,
    )
    set_title(ax, _plain(finding))
    told = "; ".join(
        f"{t!r} {_n(a)} → {_n(b)}" for t, a, b in zip(tokens, clean.tolist(), edited.tolist(), strict=True)
    )
    describe(
        ax,
        say(
            "Two bars per token, {before} and {after}. {finding}. {told}.",
            before=before,
            after=after,
            finding=finding,
            told=told,
        ),
    )
    return ax


def plot_resting(share: Tensor, ratio: Tensor, names: Sequence[str], mark: str, ax: Axes | None = None) -> Axes:
    """Draw how much dearer zero keys are than a zero output, against how much a head rests on the first token.

    share: (n,) attention to the first token; ratio: (n,) KL with zero keys over KL with the output at zero; names: of the
    key heads; mark: the one to name, besides the lowest.
    """
    ax = new_axes(ax)
    above = ratio > 1
    for chosen, color, marker, face, label in (
        (above, EDITED, "o", EDITED, say("zero keys change it more")),
        (~above, CLEAN, "s", "white", say("zero output changes it more")),
    ):
        ax.plot(
            share[chosen].tolist(), ratio[chosen].tolist(),
            linestyle="none", marker=marker, color=color, markerfacecolor=face, markersize=6, label=f"{label}: {int(chosen.sum())}",
        )  # fmt: skip
    ax.axhline(1, color=QUIET, linewidth=1)
    ax.axvline(REST, color=QUIET, linewidth=1, linestyle=":")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"× {format_number(float(value))}")
    ax.set_xlim(max(0, float(share.min()) - 0.15), 1.02)
    ax.set_xlabel(say("attention to the first token, mean of the query heads of a key head (clean run)"))
    ax.set_ylabel(say("change of the next word,\nzero keys : zero output (KL, logarithmic)"))
    ax.legend(frameon=False, loc="upper left", title=say("key heads"))
    place = names.index(mark)
    at = float(share[place]), float(ratio[place])
    ax.annotate(
        f"{mark}: × {_n(at[1], 2)}",
        at,
        xytext=(-10, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
    )
    resting = share > REST
    finding = say(
        "{above} of the {resting} key heads that rest (over {rest} on the first token) change the next "
        "word more without keys than without output; {mark}: {at} times",
        above=int((above & resting).sum()),
        resting=int(resting.sum()),
        rest=REST,
        mark=mark,
        at=_n(at[1], 2),
    )
    set_title(ax, finding)
    rest = int((above & ~resting).sum()), int((~resting).sum())
    describe(
        ax,
        say(
            "One point for each of {n_heads} key heads. {finding}. Of the others {rest_first} of "
            "{rest_second} do. Median ratio of those that rest {resting_median}, of the others "
            "{others_median}.",
            n_heads=len(names),
            finding=finding,
            rest_first=rest[0],
            rest_second=rest[1],
            resting_median=_n(ratio[resting].quantile(0.5)),
            others_median=_n(ratio[~resting].quantile(0.5)),
        ),
    )
    return ax


def plot_replacements(costs: Mapping[str, Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Draw what each replacement of the neurons costs on each model. costs: model -> replacement -> KL in nats a token."""
    ax = new_axes(ax, size=(7.0, 3.6))
    ax.grid(visible=True, axis="x", color="0.9", linewidth=0.8)
    models, kinds = list(costs), list(next(iter(costs.values())))
    rows = range(len(kinds))
    for index, model in enumerate(models):
        values = [costs[model][kind] for kind in kinds]
        style = {**series_style(index), "linestyle": "none", "markersize": 8}
        ax.plot(values, rows, **style, markerfacecolor="white" if index else style["color"], label=model)
        for row, value in zip(rows, values, strict=True):
            ax.annotate(
                _n(value), (value, row), xytext=(0, 9 if index == 0 else -17), textcoords="offset points", ha="center",
                fontsize=8, color=QUIET,
            )  # fmt: skip
    ax.set_yticks(rows, kinds)
    ax.set_ylim(len(kinds) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.set_xlabel(say("cost: KL to the clean prediction, nats a token (logarithmic)"))
    ax.legend(frameon=False, loc="lower right")
    dearest, fairest = kinds[0], kinds[-1]
    finding = "; ".join(
        say(
            "{model}: {highest} nats for {dearest}, {lowest} for {fairest}",
            model=model,
            highest=_n(costs[model][dearest]),
            dearest=dearest,
            lowest=_n(costs[model][fairest]),
            fairest=fairest,
        )
        for model in models
    )
    ax.set_title("\n".join(finding.split("; ")), loc="right", fontsize=11)
    told = "; ".join(f"{kind}: " + ", ".join(f"{model} {_n(costs[model][kind])}" for model in models) for kind in kinds)
    describe(ax, say("One row per replacement, one mark per model. {finding}. {told}.", finding=finding, told=told))
    return ax


def plot_spread(
    series: Mapping[str, Tensor], final: Mapping[str, float], block: int, mark: str, ax: Axes | None = None,
    says: Mapping[str, str] | None = None, include_first: bool = True,
) -> Axes:  # fmt: skip
    """Draw the standard deviation of the stream, clean first, then one or more edited runs, on a logarithmic axis.

    series: label -> (n_points,), before the final norm; final: label -> the value after it, drawn apart at the right.
    block: where the edit sits; mark: its label; says: label -> the next word of that run, for the legend; include_first: whether
    the values count the first token.
    """
    ax = new_axes(ax)
    for index, (label, values) in enumerate(series.items()):
        style = series_style(index)
        named = f"{label}: {_plain(repr(says[label]))}" if says else label
        ax.plot(range(len(values)), values.tolist(), label=named, **style)
        ax.plot([len(values)], [final[label]], **{**style, "linestyle": "none", "markerfacecolor": "white"})
    n_points = len(next(iter(series.values())))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # few ticks: each takes a widget's time
    ax.yaxis.set_minor_formatter(lambda value, _: format_number(float(value)))
    lower = n_points > 20 and figure_of(ax).dpi > WIDGET_DPI  # a widget sees to that itself
    stream_axis(ax, n_points - 1, "\nnorm" if lower else say("norm"))
    without = "" if include_first else say(" without the first token")
    ax.set_ylabel(
        say("standard deviation (logarithmic)")
        if include_first or figure_of(ax).dpi <= WIDGET_DPI  # a widget has one line's room, and says it in its numbers
        else say("standard deviation{without}\n(logarithmic)", without=without)
    )
    late = block + 1 > 2 / 3 * n_points  # the mark would run through a legend at the right
    ax.legend(frameon=False, loc="lower center" if late else "lower right")
    mark_edit(ax, block + 1, mark)
    set_title(ax, _plain(words_finding(final, says)) if says else spread_finding(series, final, include_first))
    told = "; ".join(
        say(
            "{label}: {value} after block {block}, {last_values} after the last block, {final} after the final norm",
            label=label,
            value=_n(values[block + 1]),
            block=block,
            last_values=_n(values[-1]),
            final=_n(final[label]),
        )
        for label, values in series.items()
    )
    spoken = f" {words_finding(final, says)}." if says else ""
    describe(
        ax,
        say(
            "Standard deviation{without} along the stream, edit “{mark}” in block {block}. {told}.{spoken}",
            without=without,
            mark=mark,
            block=block,
            told=told,
            spoken=spoken,
        ),
    )
    return ax


def spread_finding(series: Mapping[str, Tensor], final: Mapping[str, float], include_first: bool) -> str:
    """Return in one sentence where the runs end, and what the final norm makes of that."""
    clean, *edited = series
    ends = say(" and ").join(f"{_n(series[label][-1])} ({label})" for label in edited)
    low, high = min(final.values()), max(final.values())
    return say(
        "{what} ends at {ends} beside {last_serie} ({clean}); after the final norm all lie between {low} and {high}",
        what=say("The stream") if include_first else say("Without the first token the stream"),
        ends=ends,
        last_serie=_n(series[clean][-1]),
        clean=clean,
        low=_n(low),
        high=_n(high),
    )


def words_finding(final: Mapping[str, float], says: Mapping[str, str]) -> str:
    """Return in one sentence how alike the runs are after the final norm, and whether their next words are."""
    low, high = min(final.values()), max(final.values())
    words = ", ".join(repr(word) for word in dict.fromkeys(says.values()))
    alike = say("not alike") if len(set(says.values())) > 1 else say("the same")
    return say(
        "After the final norm the spreads lie between {low} and {high}; the next words are {alike}: {words}",
        low=_n(low),
        high=_n(high),
        alike=alike,
        words=words,
    )


def _plain(text: str) -> str:
    """Keep matplotlib from reading a token such as `$` as the start of a formula."""
    return text.replace("$", r"\$")


def _n(value: float | Tensor, digits: int = 3) -> str:
    return format_number(float(value), digits)
