"""What the stored measurements say, in plain sentences with their numbers; tools/measure.py prints them."""

from __future__ import annotations

from torch import Tensor

from helpers.measurements import Measured


def findings(found: Measured) -> list[str]:
    """A few sentences for one part. Every number is read from the stored tensors."""
    says = {
        "sink": _sink,
        "factors": _factors,
        "blocks": _blocks,
        "heads": _heads,
        "phrasings": _phrasings,
        "prices": _prices,
    }
    return says.get(found.part, _pairs)(found)


def _plus(value: Tensor, error: Tensor) -> str:
    """A mean and its 95 % interval by the normal approximation."""
    return f"{value.item():+.3f} (95 % interval ±{1.96 * error.item():.3f})"


def _top(values: Tensor, count: int, lowest: bool = True) -> list[tuple[int, ...]]:
    """Indices of the lowest (or highest) entries, in order."""
    order = values.flatten().argsort(descending=not lowest)[:count].tolist()
    width = values.shape[-1]
    return [(i,) if values.ndim == 1 else (i // width, i % width) for i in order]


def _sink(found: Measured) -> list[str]:
    ratio = (found["first token's length"] / found["others' length"]).median(dim=0).values
    peak = int(ratio.argmax())
    share = found["attention to first"].mean((0, 2))
    even = found["even attention"].mean().item()
    writer, (one, two) = found.about["writer"], found.about["erasers"]
    adds, push = found["MLP adds"].mean(0), found["MLP at peak"].mean(0)
    without = (found["first token's length without writer"] / found["others' length"]).median(dim=0).values
    looks = found["attention to first without writer"].mean((0, 2))
    coordinates = found["peak"].unique().tolist()
    some = f"{len(coordinates)} different ones" if len(coordinates) > 1 else f"number {coordinates[0]} on every prompt"
    lines = [
        f"The first token is longest before block {peak}: {ratio[peak]:.1f} times the others (median of "
        f"{len(found['peak'])} prompts); its largest coordinate there is {some}.",
        f"MLP {writer} pushes that coordinate most: it adds a vector of length {adds[writer]:.0f}, {push[writer]:+.0f} of it there; "
        f"MLPs {one} and {two} push the other way most ({push[one]:+.0f}, {push[two]:+.0f}).",
        f"Later tokens give the first at most {share.max():.2f} of their attention (block {int(share.argmax())}); spread evenly it "
        f"would be {even:.2f}.",
        f"With MLP {writer} skipped at the first token its length before block {peak} is {without[peak]:.1f} times the others', and "
        f"block {int(share.argmax())} gives it {looks[int(share.argmax())]:.2f}.",
    ]
    damage = found["text damage"][..., 0]
    for name, rise in zip(found.labels["edit"], damage, strict=True):
        lines.append(
            f"{name}: the loss over held-out text changes by {_plus(rise.mean(), rise.std() / len(rise) ** 0.5)} nats."
        )
    return lines


def _factors(found: Measured) -> list[str]:
    lines = [
        f"The clean model is right on {int(found['right'].sum())} of {len(found['right'])} prompts; the target's mean probability "
        f"is {found['clean log p'].exp().mean():.2f}."
    ]
    for block in found.labels["scaled"]:
        said = []
        for factor in (0.5, 0.75, 1.25, 1.5):
            where = {"scaled": block, "factor": factor}
            kept = found.at("flags", **where, flag="top-1 kept").float().mean()
            said.append(
                f"× {factor:g} {found.at('mean', **where, prompts='all', measure='log p'):+.2f} (top-1 kept {kept:.0%})"
            )
        lines.append(f"Block {block} times a factor, change of log p(target): {', '.join(said)}.")
    block = found.labels["scaled"][0]
    for first in ("with", "without"):
        at = {"scaled": block, "factor": 1.5, "first token": first}
        delta = found.at("stream", **at, along="delta")[:-1]
        last = [found.at("stream", **at, along="relative error")[k].item() for k in (-3, -2, -1)]
        survives = [found.at("stream", **at, along="survival")[k].item() for k in (-3, -2)]
        peak = int(delta.argmax())
        lines.append(
            f"Block {block} × 1.5 {first} the first token: Δ is largest at point {peak} ({delta.max():.0f}); relative error before "
            f"the last block, after it, after the norm {last[0]:.2f}, {last[1]:.2f}, {last[2]:.2f}; of the original error "
            f"{survives[0]:.2f} survives before the last block, {survives[1]:.2f} after it."
        )
    for where in found.labels["where"]:
        numbers = [found.at("where mean", where=where, factor=f, measure="log p").item() for f in (0.5, 1.5)]
        lines.append(
            f"Block {block} scaled at {where} only: log p {numbers[0]:+.2f} for × 0.5, {numbers[1]:+.2f} for × 1.5."
        )
    return lines


def _blocks(found: Measured) -> list[str]:
    lines = [f"Clean loss over {len(found['clean loss'])} passages: {found['clean loss'].mean():.2f} nats a token."]
    for part in found.labels["part"]:
        loss = found.at("mean", part=part, measure="loss")
        errors = found.at("standard error", part=part, measure="loss")
        dear = ", ".join(f"{b} {_plus(loss[b], errors[b])}" for (b,) in _top(loss, 4, lowest=False))
        cheap = ", ".join(f"{b} {loss[b]:+.3f}" for (b,) in _top(loss, 4))
        lines.append(f"{part} skipped, rise of the loss: most for {dear}; least for {cheap}.")
    cheap_ones = int((found.at("mean", part="block", measure="loss") < 0.1).sum())
    lines.append(f"{cheap_ones} of {len(found.labels['block'])} blocks cost less than 0.1 nats when skipped alone.")
    return lines


def _heads(found: Measured) -> list[str]:
    right = int(found["right"].sum())
    lines = [f"The clean model is right on {right} of {len(found['right'])} prompts ({found.about['phrasing']})."]
    for measure in ("log p", "logit difference"):
        for kind in found.labels["replacement"]:
            at = {"prompts": "all", "replacement": kind, "measure": measure}
            effect, error = found.at("mean", **at), found.at("standard error", **at)
            some = ", ".join(f"{b}.{h} {_plus(effect[b, h], error[b, h])}" for b, h in _top(effect, 4))
            against = ", ".join(f"{b}.{h} {effect[b, h]:+.3f}" for b, h in _top(effect, 2, lowest=False))
            lines.append(f"{kind}: {measure} falls most without {some}; rises most without {against}.")
    effect = found.at("mean", prompts="all", replacement="mean", measure="logit difference")
    for b, h in _top(effect, 6):
        roles = sorted(zip(found["attention"][b, h].tolist(), found.labels["role"], strict=True), reverse=True)[:2]
        looks = ", ".join(f"{share:.2f} to {role}" for share, role in roles)
        lines.append(
            f"Head {b}.{h} looks {looks}; it writes {found['direct mean'][b, h]:+.2f} towards target − contrast."
        )
    direct = found["direct mean"]
    writers = ", ".join(f"{b}.{h} {direct[b, h]:+.2f}" for b, h in _top(direct, 5, lowest=False))
    difference = found["clean logit difference"].mean()
    mlps = found["direct of MLPs"].mean(0)
    dear = ", ".join(f"{b} {mlps[b]:+.2f}" for (b,) in _top(mlps, 3, lowest=False))
    lines.append(
        f"Of the logit difference {difference:.2f} all heads write {direct.sum():.2f}, all MLPs {mlps.sum():.2f}; "
        f"most the heads {writers} and the MLPs {dear}."
    )
    off = {k: found.at("all off mean", prompts="all", off=k, measure="log p") for k in ("zero", "mean")}
    for (b,) in _top(off["zero"], 3):
        lines.append(
            f"All heads of block {b} off: log p {off['zero'][b]:+.3f} with zero, {off['mean'][b]:+.3f} with the mean."
        )
    return lines


def _phrasings(found: Measured) -> list[str]:
    lines = []
    for name, row in zip(found.labels["asked"], found["answers"], strict=True):
        lines.append(f"{name}: right for {int((row == 1).sum())} of {int((row >= 0).sum())} countries.")
    names = found.labels["phrasing"]
    table = found.at("correlation", measure="logit difference")
    same = found.at("reliability", measure="logit difference")
    for i, name in enumerate(names):
        others = ", ".join(f"{table[i, j]:.2f} with {other}" for j, other in enumerate(names) if j != i)
        lines.append(f"Head map of “{name}” (two halves of its own prompts correlate {same[i]:.2f}): {others}.")
        effect = found.at("mean", phrasing=name, measure="logit difference")
        lines.append(f"  strongest: {', '.join(f'{b}.{h} {effect[b, h]:+.2f}' for b, h in _top(effect, 5))}")
    return lines


def _pairs(found: Measured) -> list[str]:
    loss, other = found.at("mean", measure="loss"), found.at("mean", measure="loss").diagonal()
    surplus = loss - other[:, None] - other[None]
    surplus = surplus.tril(-1)  # each pair once, the rest zero
    more, less = _top(surplus, 3, lowest=False), _top(surplus, 3)
    order = found["greedy order"].tolist()
    lines = [
        "Two blocks together cost more than their sum: "
        + ", ".join(f"{b} and {a} {surplus[a, b]:+.2f}" for a, b in more)
        + ".",
        "Two blocks together cost less than their sum: "
        + ", ".join(f"{b} and {a} {surplus[a, b]:+.2f}" for a, b in less)
        + ".",
    ]
    all_text, cheapest = (found.at(f"{kind} on all text", measure="loss") for kind in ("greedy", "cheapest"))
    for k in (2, 4, len(order)):
        best = f" The best {k}: {found['best'][k - 1]:+.2f}." if "best" in found.tensors else ""
        lines.append(
            f"Greedy removal of {k} blocks ({order[:k]}): loss {found['greedy'][k - 1]:+.2f}, the sum of their single costs "
            f"{found['greedy sum'][k - 1]:+.2f}; over all passages {all_text[:, k - 1].mean():+.2f}. "
            f"The {k} cheapest singles together: {found['cheapest together'][k - 1]:+.2f}, sum {found['lowest sum'][k - 1]:+.2f}; "
            f"over all passages {cheapest[:, k - 1].mean():+.2f}." + best
        )
    return lines


def _prices(found: Measured) -> list[str]:
    damage, heads = found.at("damage", measure="KL").mean(1), found.at("damage of heads", measure="KL").mean(0)
    sizes, size = found["parameters"], found["parameters of a head"][:, None]
    per = {
        part: (damage[i].quantile(0.5), (1e6 * damage[i] / sizes[i]).quantile(0.5))
        for i, part in enumerate(found.labels["part"])
    }
    per["head"] = (heads.quantile(0.5), (1e6 * heads / size).quantile(0.5))
    lines = [
        f"{part}: KL {kl.item():.4f} nats when it is taken out, {price.item():.3f} for each million parameters (medians)."
        for part, (kl, price) in per.items()
    ]
    times = (damage[0][:, None] / heads).quantile(0.5).item()
    larger = (sizes[0][:, None] / size).quantile(0.5).item()
    return [
        *lines,
        f"A block's KL is {times:.1f} times that of one of its heads (median), and it has {larger:.0f} times the parameters.",
    ]
