"""Figures of lesson 5: what happens when a block, or a part of it, is skipped.

Every title is computed from the numbers that are drawn. The plain text of a picture, which screen readers and tests read,
holds them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from helpers.measurements import Measured
from helpers.plots.style import (
    CLEAN,
    MARKERS,
    PALETTE,
    QUIET,
    block_axis,
    describe,
    mark_edit,
    new_axes,
    new_figure,
    series_style,
    set_title,
)
from helpers.say import say, translatable
from helpers.tables import format_number

CHEAP = 0.1  # nats per token, 10 % more perplexity: the line between cheap and costly blocks


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
    ax.set_ylabel(say("step ‖H after − H before‖ (Frobenius norm)"))
    for block in skipped:
        mark_edit(ax, block, say("block {block} skipped", block=block) if len(skipped) == 1 else "")
    if len(steps) > 1:
        ax.legend(frameon=False)
    finding = steps_finding(steps, skipped)
    set_title(ax, finding)
    told = " ".join(f"{label}: {', '.join(_n(v) for v in values)}." for label, values in steps.items())
    describe(ax, say("The length of each block's step. {finding}. {told}", finding=finding, told=told))
    return ax


def steps_finding(steps: Mapping[str, Tensor], skipped: Sequence[int] = ()) -> str:
    """Return in one sentence what the last run's steps show at the skipped blocks and beside them."""
    *_, (label, run) = steps.items()
    if not skipped:
        longest, shortest = int(run.argmax()), int(run.argmin())
        block = (
            say("Block")
            if len(steps) == 1
            else say("{initial}{rest}: block", initial=label[:1].upper(), rest=label[1:])
        )
        return say(
            "{block} {longest} takes the longest step, {run_longest}, block {shortest} the shortest, {run_shortest}",
            block=block,
            longest=longest,
            run_longest=_n(run[longest]),
            shortest=shortest,
            run_shortest=_n(run[shortest]),
        )
    names = name_blocks(skipped)
    there = [float(run[block]) for block in skipped]
    if any(there):
        return say("At {names} the step reads {steps}, not 0", names=names, steps=", ".join(_n(v) for v in there))
    clean = next(iter(steps.values()))
    others = [block for block in range(len(run)) if block not in skipped]
    if not others:
        return say("The step is exactly 0 at {names}", names=names)
    moved = [abs(float(run[b] / clean[b]) - 1) if clean[b] else 0.0 for b in others]
    most = max(range(len(others)), key=moved.__getitem__)
    if not moved[most]:
        return say("The step is exactly 0 at {names}, and the others stay as they were", names=names)
    return say(
        "The step is exactly 0 at {names}; elsewhere it changes by up to {moved} % (block {other})",
        names=names,
        moved=_n(100 * moved[most]),
        other=others[most],
    )


def next_token_finding(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Return in one sentence what became of the most probable next token."""
    old = max(range(len(names)), key=lambda i: before[i])
    new = max(range(len(names)), key=lambda i: after[i])
    if old == new:
        return say(
            "{name!r} stays first: p = {before} before, {after} after",
            name=names[old],
            before=_n(before[old]),
            after=_n(after[old]),
        )
    return say("{names_new!r} takes the first place from {names_old!r}", names_new=names[new], names_old=names[old])


def plot_damage(found: Mapping[str, Measured], bound: float = CHEAP) -> Figure:
    """Draw the rise of the loss without each block, one panel a model; the shape of a mark says on which side of `bound` it is.

    found: name of a model -> its stored part "blocks". The first name is the one that the title is about.
    """
    figure = new_figure((8.5, 4.3))
    sizes = [len(one.labels["block"]) for one in found.values()]
    axes = figure.subplots(1, len(found), width_ratios=[n + 8 for n in sizes], sharey=True, squeeze=False)[0]
    told = []
    for ax, (name, one) in zip(axes, found.items(), strict=True):
        new_axes(ax)
        mean, reach = _rise(one)
        for sign, (marker, colour, face, label) in SIDES.items():
            chosen = (sides(mean, reach, bound) == sign).nonzero().flatten()
            if len(chosen):
                ax.errorbar(
                    chosen.tolist(), mean[chosen].tolist(), yerr=reach[chosen].numpy(), fmt=" ", marker=marker, color=colour,
                    markerfacecolor=face, markersize=6, capsize=2, linewidth=1.2, label=say(label, bound=_n(bound)),
                )  # fmt: skip
        ax.axhline(bound, color=QUIET, linestyle=":", linewidth=1.2)
        ax.set_yscale("log")
        ax.set_ylim(0.01, 16)
        ax.yaxis.set_major_locator(FixedLocator([0.01, 0.1, 1, 10]))
        ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
        block_axis(ax, len(mean))
        ax.set_xlabel(say("skipped block"))
        ax.set_title(name, fontsize=10)
        for block in mean.argsort(descending=True)[:3].tolist() if len(mean) > 20 else [int(mean.argmax())]:
            ax.annotate(
                str(block),
                (block, float(mean[block])),
                xytext=(6, 0),
                textcoords="offset points",
                fontsize=9,
                va="center",
            )
        told.append(f"{name}: " + ", ".join(say("block {b} {v}", b=b, v=_n(v)) for b, v in enumerate(mean)) + ".")
    axes[0].set_ylabel(say("rise of the loss, nats a token (logarithmic)"))
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), frameon=False, ncols=3, loc="outside lower center", fontsize=9)
    finding = damage_finding(*next(iter(found.items())), bound=bound)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(
        figure,
        say(
            "Rise of the loss in nats a token without each block. {line} {told}",
            line=_line(finding),
            told=" ".join(told),
        ),
    )
    return figure


SIDES = {  # sure and unsure are told apart by shape: full above, hollow on the line, a triangle below
    1: ("o", PALETTE[3], PALETTE[3], translatable("the 95 % interval lies above {bound} nats")),
    0: ("s", PALETTE[7], "white", translatable("undecided: the interval holds {bound}")),
    -1: ("v", PALETTE[0], PALETTE[0], translatable("below")),
}


def _rise(found: Measured) -> tuple[Tensor, Tensor]:
    """Mean rise of the loss without each block and half of its 95 % interval, over passages, (n_blocks,)."""
    at = {"part": "block", "measure": "loss"}
    return found.at("mean", **at), 1.96 * found.at("standard error", **at)


def sides(mean: Tensor, reach: Tensor, bound: float = CHEAP) -> Tensor:
    """1 where the whole interval mean ± reach lies above `bound`, −1 where it lies below, else 0."""
    return (mean - reach > bound).int() - (mean + reach < bound).int()


def damage_finding(name: str, found: Measured, bound: float = CHEAP) -> str:
    """Return in two lines what the costliest blocks cost, and how many are cheap."""
    mean, reach = _rise(found)
    first, *rest = [
        say("block {block} {loss}", block=block, loss=_two(mean[block]))
        for block in mean.argsort(descending=True)[:3].tolist()
    ]
    cheap, sure = int((mean < bound).sum()), int((sides(mean, reach, bound) < 0).sum())
    return say(
        "{name}: {first} nats a token when skipped, {rest}, the median block {median};\n{cheap} of "
        "{n_blocks} blocks cost less than {bound}, {sure} of them by the whole interval",
        name=name,
        first=first,
        rest=say(" and ").join(rest),
        median=_two(mean.quantile(0.5)),
        cheap=cheap,
        n_blocks=len(mean),
        bound=_n(bound),
        sure=sure,
    )


def plot_writer(found: Mapping[str, Measured]) -> Figure:
    """Draw what the massive first token is worth: on the left the loss without parts of the block that writes it, on the right
    the attention that later tokens give to the first one, with and without it.

    found: the real model's stored parts "blocks" and "sink".
    """
    blocks, sink = found["blocks"], found["sink"]
    writer = sink.about["writer"]
    whole, reach = (float(value[writer]) for value in _rise(blocks))
    rows = {say("block {writer}, all tokens", writer=writer): (whole, reach)}
    for name, values in zip(sink.labels["edit"], sink["text damage"][..., 0], strict=True):
        if f" {writer} " in name:
            error = 1.96 * float(values.std()) / len(values) ** 0.5
            rows[name.replace(" skipped at", ",")] = (float(values.mean()), error)
    figure = new_figure((8.5, 3.7))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2, width_ratios=(5, 6)))
    places = range(len(rows))
    left.barh(
        places, [mean for mean, _ in rows.values()], xerr=[error for _, error in rows.values()], color=CLEAN, height=0.6
    )
    left.set_yticks(places, list(rows))
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    for place, (mean, error) in zip(places, rows.values(), strict=True):
        left.annotate(
            _two(mean), (mean + error, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    left.set_xlim(0, 1.25 * max(mean for mean, _ in rows.values()))
    left.set_xlabel(say("rise of the loss when skipped, nats a token"))
    share, without = (sink[f"attention to first{more}"].mean((0, 2)) for more in ("", " without writer"))
    for index, (label, values) in enumerate(
        {say("clean"): share, say("MLP {writer} skipped at the first token", writer=writer): without}.items()
    ):
        right.plot(range(len(values)), values.tolist(), label=label, **series_style(index))
    right.axhline(float(sink["even attention"].mean()), color=QUIET, linestyle=":", label=say("if spread evenly"))
    block_axis(right, len(share))
    mark_edit(right, writer, say("the edit"))
    right.set_ylim(0, 1.3)
    right.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    right.set_ylabel(say("attention to the first token"))
    right.legend(facecolor="white", edgecolor="white", framealpha=1, fontsize=8.5, loc="upper left")
    one = rows[f"MLP {writer}, the first token"][0]
    peak = int(share.argmax())
    finding = say(
        "SmolLM2: one MLP at one token carries {one} of the {whole} nats that block {writer} is "
        "worth;\nwithout it block {peak} gives the first token {without_there} of its attention instead "
        "of {share_there}",
        one=_two(one),
        whole=_two(whole),
        writer=writer,
        peak=peak,
        without_there=_two(without[peak]),
        share_there=_two(share[peak]),
    )
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    told = ", ".join(f"{name} {_n(mean)}" for name, (mean, _) in rows.items())
    lines = "; ".join(
        say("block {b} {clean} and {without}", b=b, clean=_two(c), without=_two(w))
        for b, (c, w) in enumerate(zip(share, without, strict=True))
    )
    resting = [
        int((sink[f"attention to first{more}"].mean(0)[writer + 1 :] > 0.5).sum()) for more in ("", " without writer")
    ]
    heads = say(
        "Heads after block {writer} that give the first token more than half of their attention: "
        "{resting_first} clean, {resting_second} without.",
        writer=writer,
        resting_first=resting[0],
        resting_second=resting[1],
    )
    describe(
        figure,
        say(
            "{line}. Rise of the loss: {told}. Attention to the first token, clean and without: {lines}. {heads}",
            line=_line(finding),
            told=told,
            lines=lines,
            heads=heads,
        ),
    )
    return figure


def plot_removal(pairs: Mapping[str, Measured], blocks: Mapping[str, Measured]) -> Figure:
    """Draw the loss with 1 to 8 blocks removed, one panel a model: the cheapest blocks' costs added up, the same blocks removed
    together, blocks chosen greedily, and the best set where all were tried. All are priced on the texts that had no say; the
    few that chose the blocks flatter what they chose.

    pairs, blocks: name of a model -> its stored part of that name.
    """
    figure = new_figure((8.5, 4.0))
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    told = []
    for ax, (name, one) in zip(axes, pairs.items(), strict=True):
        new_axes(ax)
        for index, (label, values) in enumerate(removed(one, blocks[name]).items()):
            ax.plot(one.labels["removed"], values.mean(0).tolist(), label=say(label), **series_style(index))
            told.append(f"{name}, {say(label)}: {', '.join(_two(value) for value in values.mean(0))}.")
        ax.set_title(name, fontsize=10)
        ax.set_xticks(one.labels["removed"])
        ax.set_xlabel(say("number of blocks removed"))
    first = next(iter(pairs.values()))
    texts = len(first.labels["window"]) - len(first.about["prompts"])
    axes[0].set_ylabel(say("rise of the loss on {texts} other\ntexts, nats a token", texts=texts))
    axes[0].set_ylim(bottom=0)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), frameon=False, ncols=4, loc="outside lower center", fontsize=9)
    finding = removal_finding(pairs, blocks)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    describe(figure, f"{_line(finding)}. {' '.join(told)}")
    return figure


CURVES = (
    translatable("costs added up"),
    translatable("the same blocks, removed together"),
    translatable("chosen greedily"),
    translatable("best set of the choosing texts"),
)


def removed(pairs: Measured, blocks: Measured) -> dict[str, Tensor]:
    """(texts, counts) for each of CURVES that is stored: the rise of the loss with 1 to 8 blocks removed, on the texts that had
    no say in which blocks go.

    pairs, blocks: the stored parts of one model.
    """
    curves = {CURVES[0]: unasked(pairs, added_up(pairs, blocks, "cheapest singles"))}
    for label, kind in zip(CURVES[1:], ("cheapest", "greedy", "best"), strict=True):
        if f"{kind} on all text" in pairs.tensors:  # the best set is known of a small model only
            curves[label] = unasked(pairs, pairs.at(f"{kind} on all text", measure="loss"))
    return curves


def unasked(pairs: Measured, values: Tensor) -> Tensor:
    """The rows of the texts that did not choose which blocks go: all but the first few. values: (texts, ...)."""
    return values[len(pairs.about["prompts"]) :]


def added_up(pairs: Measured, blocks: Measured, order: str) -> Tensor:
    """(texts, counts): what these blocks cost one at a time, added up. order: "cheapest singles" or "greedy order"."""
    return blocks.at("damage", part="block", measure="loss")[:, pairs[order].long()].cumsum(1)


def removal_finding(pairs: Mapping[str, Measured], blocks: Mapping[str, Measured]) -> str:
    """Return one line a model: the most blocks, their costs added up, and all of them at once, for both ways to choose."""
    lines = []
    for name, one in pairs.items():
        summed, together, greedy, *_ = (_two(values[:, -1].mean()) for values in removed(one, blocks[name]).values())
        lines.append(
            say(
                "{name}: the {count} cheapest blocks {summed} nats added up, {together} together; the greedy {count}: "
                "{greedy_summed} and {greedy}",
                name=name,
                count=one.labels["removed"][-1],
                summed=summed,
                together=together,
                greedy_summed=_two(unasked(one, added_up(one, blocks[name], "greedy order"))[:, -1].mean()),
                greedy=greedy,
            )
        )
    return "\n".join(lines)


def worst_pairs(found: Measured, count: int = 3) -> dict[str, list[str]]:
    """Rows for a table: the pairs of blocks whose removal costs most above the sum of the two alone, in nats.

    found: a stored part "pairs".
    """
    both = found.at("mean", measure="loss")
    alone = both.diagonal()
    extra = (both - alone[:, None] - alone[None]).tril(-1)
    rows = {}
    for place in extra.flatten().argsort(descending=True)[:count].tolist():
        second, first = divmod(place, len(both))
        numbers = (alone[first], alone[second], both[first, second], extra[second, first])
        rows[say("blocks {first} and {second}", first=first, second=second)] = [
            f"{float(number):.2f}" for number in numbers
        ]
    return rows


def plot_prices(found: Mapping[str, Measured]) -> Figure:
    """Draw what a block, its attention, its MLP and each of its heads cost: on the left as they are, on the right for each
    million parameters. A point is a part, a bar the median.

    found: name of a model -> its stored part "prices"; the first is drawn, all are described.
    """
    name, one = next(iter(found.items()))
    figure = new_figure((8.5, 4.0))
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2))
    damage, price = prices(one)
    draw = torch.Generator().manual_seed(0)
    for ax, values, label in (
        (left, damage, say("KL(clean ‖ edited), nats a token")), (right, price, say("KL for each million parameters")),
    ):  # fmt: skip
        for place, (part, numbers) in enumerate(values.items()):
            x = place + 0.5 * (torch.rand(len(numbers), generator=draw) - 0.5)
            ax.plot(
                x.tolist(), numbers.tolist(), linestyle=" ", marker=MARKERS[place], markersize=5 if part != "head" else 3,
                color=PALETTE[place], alpha=0.6, markeredgewidth=0,
            )  # fmt: skip
            middle = float(numbers.quantile(0.5))
            ax.plot([place - 0.36, place + 0.36], [middle, middle], color="black", linewidth=2)
            ax.annotate(
                _two(middle), (place + 0.38, middle), fontsize=9, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_xticks(range(len(values)), [say(part) for part in values])
        ax.set_xlim(-0.6, len(values) - 0.2)
        ax.set_ylabel(say("{label} (logarithmic)", label=label))
        ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value), 2))
        ax.yaxis.set_minor_locator(NullLocator())
    finding = price_finding(name, one)
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11)
    told = [price_finding(other, stored) for other, stored in found.items()]
    describe(
        figure, say("Points over parts of the model. {told} Black bars are medians.", told=" ".join(map(_line, told)))
    )
    return figure


PARTS = (translatable("block"), translatable("attention"), translatable("MLP"), translatable("head"))


def prices(found: Measured) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each part costs when it is taken out, KL in nats a token, and the same for each million of its parameters.

    found: a stored part "prices". Keys "block", "attention", "MLP", (n_blocks,), and "head", (n_blocks · n_heads,).
    """
    damage = dict(zip(PARTS[:3], found.at("damage", measure="KL").mean(1), strict=True))
    price = {
        name: 1e6 * values / size for (name, values), size in zip(damage.items(), found["parameters"], strict=True)
    }
    heads = found.at("damage of heads", measure="KL").mean(0)
    damage["head"] = heads.flatten()
    price["head"] = (1e6 * heads / found["parameters of a head"][:, None]).flatten()
    return damage, price


def price_finding(name: str, found: Measured) -> str:
    """Return in two lines how a block compares with a head, as it is and per parameter (medians)."""
    (damage, price), heads = prices(found), found.at("damage of heads", measure="KL").mean(0)
    times = float((damage["block"][:, None] / heads.clamp(min=1e-12)).quantile(0.5))
    size = float((found["parameters"][0] / found["parameters of a head"]).quantile(0.5))
    block, head = (_two(price[part].quantile(0.5)) for part in ("block", "head"))
    return say(
        "{name}: without a block the KL is {times} times that without one of its heads (median), and a "
        "block has\n{size} times the parameters: {block} nats for a million parameters in a block, {head} "
        "in a head",
        name=name,
        times=f"{times:.0f}",
        size=f"{size:.0f}",
        block=block,
        head=head,
    )


def price_rows(found: Mapping[str, Measured], ledger: Mapping[str, str], texts: str) -> dict[str, list[str]]:
    """Rows for a table with one column a model: what a million parameters cost in a block and in a head, and three ways to
    compare the two.

    found: name of a model -> its stored part "prices". ledger: the same name -> what claim 5.4 found, a ratio; texts: on how many.
    """
    rows: list[list[str]] = []
    for name, one in found.items():
        price = prices(one)[1]
        block, head = (price[part].quantile(0.5) for part in ("block", "head"))
        own = price["block"][:, None] / price["head"].view(len(price["block"]), -1).clamp(min=1e-12)
        rows.append([_two(block), _two(head), _two(block / head), _two(own.quantile(0.5)), ledger[name]])
    names = [
        say("a block, the median"),
        say("a head, the median"),
        say("block ÷ head, these medians"),
        say("block ÷ each of its own heads, the median"),
        say("the same in the ledger (5.4), one word of each of {texts} texts", texts=texts),
    ]
    return {name: list(row) for name, row in zip(names, zip(*rows, strict=True), strict=True)}


def strongest_head(found: Measured) -> str:
    """Say in one sentence which head moves the prediction most, and how many whole blocks it outdoes.

    found: a stored part "prices".
    """
    heads = found.at("damage of heads", measure="KL").mean(0)
    whole = prices(found)[0]["block"]
    block, head = divmod(int(heads.argmax()), heads.shape[1])
    outdone = int((whole < heads.max()).sum())
    return say(
        "Head {block}.{head} alone: KL {head_kl}, more than {outdone} of the {n_blocks} whole blocks.",
        block=block,
        head=head,
        head_kl=_two(heads.max()),
        outdone=outdone,
        n_blocks=len(whole),
    )


def plot_crossing(chance: Mapping[str, Sequence[float]], blocks: Sequence[int], answer: str) -> Axes:
    """Draw the probability of `answer` when the stream after a block is patched from another prompt, one line per place.

    chance: the place that is patched -> a probability for each of `blocks`. answer: what the other prompt calls for.
    """
    ax = new_axes(None, (7.5, 3.6))
    for index, (place, values) in enumerate(chance.items()):
        ax.plot(list(blocks), list(values), label=say("patched {place}", place=place), **series_style(index))
    ax.set_xticks(range(0, max(blocks) + 1, 3))
    ax.set_xlabel(say("block after which the stream is patched"))
    ax.set_ylabel(f"p({answer!r})")
    ax.set_ylim(-0.02, 1)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0.02, 0.28))
    finding = crossing_finding(chance, blocks, answer)
    set_title(ax, finding)
    told = "; ".join(
        f"{place}: "
        + ", ".join(say("block {block} {p}", block=b, p=_two(v)) for b, v in zip(blocks, values, strict=True))
        for place, values in chance.items()
    )
    describe(ax, f"{finding}. {told}.")
    return ax


def crossing_finding(chance: Mapping[str, Sequence[float]], blocks: Sequence[int], answer: str) -> str:
    """Return in one sentence where the last place takes over from the first."""
    (_, early), *_, (_, late) = chance.items()
    over = [i for i in range(len(blocks)) if late[i] > early[i]]
    if not over or not over[0]:
        return say(
            "The two places do not change over: p({answer!r}) at most {early} and {late}",
            answer=answer,
            early=_two(max(early)),
            late=_two(max(late)),
        )
    here = over[0]
    return say(
        "At block {block} the answer changes place: patched at the last token p({answer!r}) rises from "
        "{before_last} (after block {previous_block}) to {late}",
        block=blocks[here],
        answer=answer,
        before_last=f"{late[here - 1]:.4f}",
        previous_block=blocks[here - 1],
        late=f"{late[here]:.2f}",
    )


def name_blocks(blocks: Sequence[int]) -> str:
    """Name blocks in words: "block 3", or "blocks 0 to 4 and 7"; runs of three or more are drawn together."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts = [
        p
        for run in runs
        for p in ([say("{run} to {last_run}", run=run[0], last_run=run[-1])] if len(run) > 2 else [str(b) for b in run])
    ]
    named = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + say(" and {last_parts}", last_parts=parts[-1])
    return (say("block ") if len(blocks) == 1 else say("blocks ")) + named


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)


def _two(value: float | Tensor) -> str:
    """Two decimals, or the first digit of what is smaller."""
    number = float(value)
    return (
        f"{number:.2f}"
        if abs(number) >= 0.095 or not number
        else format_number(number, 2 if abs(number) >= 0.01 else 1)
    )
