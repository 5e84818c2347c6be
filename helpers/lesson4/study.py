"""What lesson 4 measures live: next words under edits, what heads write, swaps between prompts, maps of other phrasings.

Heads are named "23.4", block 23 and head 4, in figures and tables. Changes are in nats, with the edit minus without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.countries import CapitalPrompt, read_countries
from helpers.course.ledger import columns_of, directions
from helpers.edits import Edit, edit, replace_heads
from helpers.errors import TargetIsNotOneToken
from helpers.measurements import Measured
from helpers.measures import Measure, predictions
from helpers.models import LanguageModel
from helpers.replacements import mean_heads
from helpers.say import say
from helpers.sweeps import sweep_edits, sweep_heads
from helpers.tables import Table, format_number, show_table
from helpers.tracing import Trace, trace

Place = tuple[int, int]  # block and head
FAR = 0.3  # nats: heads that write as much or more are named in the figure


def name_of(block: int, head: int) -> str:
    return f"{block}.{head}"


def strongest(changes: Tensor, count: int) -> list[Place]:
    """The heads with the largest changes, whatever their sign. changes: (n_blocks, n_heads)."""
    places = changes.abs().flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [divmod(place, changes.shape[1]) for place in places]


def half_of(changes: Tensor) -> int:
    """How many of the changes, the largest first, make up half of the sum of their sizes."""
    size = changes.abs().flatten().sort(descending=True).values
    return int((size.cumsum(0) < size.sum() / 2).sum()) + 1


def significant(changes: Tensor) -> Tensor:
    """(n_blocks, n_heads) bool: whose change over the prompts, (n_prompts, n_blocks, n_heads), has a significant direction.

    Sign tests at 5 %, corrected for the number of heads with Holm's method.
    """
    sides = directions(columns_of(changes.flatten(1).tolist()))
    return torch.tensor([side != 0 for side in sides]).view(changes.shape[1:])


def stored_facts(found: Measured, phrasing: str | None = None) -> list[CapitalPrompt]:
    """The prompts that a stored result was measured on; of one phrasing, where it has several."""
    prompts: Any = found.about["prompts"]
    return [CapitalPrompt(**row) for row in (prompts if phrasing is None else prompts[phrasing])]


# ---- next words


def words_table(
    lm: LanguageModel, prompt: str, runs: Mapping[str, Edit | Sequence[Edit]], most: int = 2, also: Sequence[str] = ()
) -> Table:
    """The next words of one prompt under several edits: a row for each run, a column for each word that is among the `most`
    likeliest of some run, or in `also`."""
    rows = {}
    for name, edits in runs.items():
        with edit(lm, *([edits] if isinstance(edits, Edit) else edits)):
            rows[name] = trace(lm, prompt).last_logits[0].softmax(-1)
    shown = list(dict.fromkeys(i for row in rows.values() for i in row.topk(most).indices.tolist()))
    shown += [i for i in map(lm.token_id, also) if i not in shown]
    return Table(
        say("Probability of the next word after “… {last_prompt}”", last_prompt=prompt.split(". ")[-1]),
        ("", *(repr(lm.tokenizer.decode([i])) for i in shown)),
        tuple((name, *(format_number(float(row[i]), 2) for i in shown)) for name, row in rows.items()),
    )


def show_words(lm: LanguageModel, prompt: str, runs: Mapping[str, Edit | Sequence[Edit]], **more: Any) -> None:
    """Display `words_table` of the same arguments."""
    from IPython.display import display

    display(words_table(lm, prompt, runs, **more))


def show_leads(
    lm: LanguageModel, prompt: str, runs: Mapping[str, Edit | Sequence[Edit]], target: str, contrast: str
) -> None:
    """Print what each run's edits do to log p(target) of one prompt, and the logit difference to the contrast then."""
    ids = [lm.token_id(target), lm.token_id(contrast)]
    clean = trace(lm, prompt).last_logits[0]
    for name, edits in runs.items():
        with edit(lm, *([edits] if isinstance(edits, Edit) else edits)):
            last = trace(lm, prompt).last_logits[0]
        change = (last.log_softmax(-1) - clean.log_softmax(-1))[ids[0]]
        print(
            say(
                "{name}: log p({target!r}) changes by {change}, logit difference to {contrast!r} {lead} nats",
                name=name,
                target=target,
                change=f"{float(change):+.2f}",
                contrast=contrast,
                lead=f"{float(last[ids[0]] - last[ids[1]]):.2f}",
            )
        )


def show_sizes(maps: Mapping[str, Tensor], heads: Sequence[Place], block: int, models: Mapping[str, Measured]) -> None:
    """Show how far the logit difference moves, in the mean size, for a few heads, for the largest of one block, and with all
    heads of block 0 replaced at once, on each model.

    maps: replacement -> (n_blocks, n_heads), the mean sizes. models: name -> its stored part "heads".
    """
    rows = {say("head {head}", head=name_of(*place)): [one[place] for one in maps.values()] for place in heads}
    rows[say("block {block}, its largest head", block=block)] = [one[block].max() for one in maps.values()]
    for name, found in models.items():
        off = found.at("all off", off=list(maps), block=0, measure="logit difference")  # (replacement, prompt)
        rows[say("{name}, all of block 0", name=name)] = list(off.abs().mean(1))
    show_table(rows, say("Logit difference, mean size of the change (nats)"), columns=list(maps), digits=3)


def show_first_places(found: Measured, block: int) -> None:
    """Print how many right answers stay first with all heads of a block at their means, and how many each head costs alone."""
    here: dict[str, Any] = {"block": block, "flag": "target is top-1"}
    single = found.at("flags", replacement="mean", **here)[found["right"]]  # (n_right, n_heads)
    at_once = found.at("all off flags", off="mean", **here)[found["right"]]
    print(
        say(
            "With all heads of block {block} at their means, {stay} of {right} stay first.\nHeads {first} to {last}, each "
            "alone, cost so many first places: {lost}",
            block=block,
            stay=int(at_once.sum()),
            right=len(single),
            first=name_of(block, 0),
            last=name_of(block, single.shape[1] - 1),
            lost=" ".join(str(int(number)) for number in (~single).sum(0)),
        )
    )


# ---- what a head writes


def output_weight(lm: LanguageModel, block: int) -> Tensor:
    """(n_heads × d_head, d_model): the output projection W_O of a block, rows as in GPT-2, whatever the module is."""
    module: Any = lm.part(block, lm.parts.heads_out)
    weight = module.weight.detach()
    return weight.t() if isinstance(module, nn.Linear) else weight


@torch.no_grad()
def direction_of(lm: LanguageModel, run: Trace, target: int, contrast: int) -> Tensor:
    """(d_model,): a vector in the stream; the dot product with it is a push towards target − contrast, in nats.

    The final norm is linear here, its scale is the run's own at the last token of the first prompt (Elhage et al. 2021).
    target, contrast: token ids.
    """
    norm: Any = lm.final_norm
    aim = lm.unembed.weight[target] - lm.unembed.weight[contrast]
    through = aim * norm.weight
    stream = run.resid[-1, 0, -1]
    if isinstance(norm, nn.LayerNorm):
        stream, through = stream - stream.mean(), through - through.mean()
    assert run.final is not None
    bias = norm.bias if isinstance(norm, nn.LayerNorm) else 0
    return through * (run.final[0, -1] - bias).norm() / (norm.weight * stream).norm()


@torch.no_grad()
def written_towards(lm: LanguageModel, run: Trace, target: str, contrast: str) -> Tensor:
    """(n_blocks, n_heads): what each head writes directly towards target − contrast at the last token, in nats of the logit
    difference. Direct logit attribution: what later blocks make of it is left out. run: of one prompt.
    """
    towards = direction_of(lm, run, lm.token_id(target), lm.token_id(contrast))
    weights = torch.stack([output_weight(lm, block) for block in range(lm.n_blocks)])
    weights = weights.unflatten(1, (lm.n_heads, lm.d_head))
    return torch.einsum("bhd,bhdm,m->bh", run.heads[:, 0, -1], weights, towards)


# ---- swaps


def answered_like(lm: LanguageModel, found: Measured, prompt: str) -> list[CapitalPrompt]:
    """The other prompts of a stored result that the model answers rightly and that have as many tokens as `prompt`."""
    length = len(lm.token_ids(prompt))
    right = [fact for fact, ok in zip(stored_facts(found), found["right"].tolist(), strict=True) if ok]
    return [fact for fact in right if fact.prompt != prompt and len(lm.token_ids(fact.prompt)) == length]


@torch.no_grad()
def swap_heads(lm: LanguageModel, prompt: str, others: Trace, heads: Sequence[Place]) -> Tensor:
    """(n_others, vocabulary): probabilities of the next token of `prompt` when these heads say at its last token what they
    said at the last token of each prompt of `others`, a trace of prompts without padding."""
    said = others.heads[:, :, -1:]  # (n_blocks, n_others, 1, n_heads, d_head)
    swaps = [
        [replace_heads(block, head, said[block][row : row + 1, :, [head]], positions=-1) for block, head in heads]
        for row in range(said.shape[1])
    ]
    return sweep_edits(lm, prompt, swaps, measure=Measure(lambda outcome: outcome.edited.softmax(-1)))


def named_by(lm: LanguageModel, probabilities: Tensor, donors: Sequence[CapitalPrompt]) -> tuple[Tensor, Tensor]:
    """(first, p): whether the donor's country is the most probable token, and its probability. (n_donors,) each."""
    ids = torch.tensor([lm.token_id(fact.target) for fact in donors])
    return probabilities.argmax(-1) == ids, probabilities.gather(1, ids[:, None])[:, 0]


def show_wider_swaps(lm: LanguageModel, prompt: str, found: Measured) -> None:
    """Print on how many other prompts their country comes first when the three strongest heads say what they said there, and
    when all heads of the blocks 8 to 10 do. found: the pocket model's stored part "heads"."""
    facts = [fact for fact in stored_facts(found) if fact.prompt != prompt]
    others = trace(lm, [fact.prompt for fact in facts])
    best = strongest(found.at("mean", prompts="all", replacement="mean", measure="logit difference"), 3)
    for heads in (best, [(block, head) for block in (8, 9, 10) for head in range(lm.n_heads)]):
        first, _ = named_by(lm, swap_heads(lm, prompt, others, heads), facts)
        print(
            say(
                "Pocket model, {heads} heads: {first} of {all}",
                heads=len(heads),
                first=int(first.sum()),
                all=len(facts),
            )
        )


@torch.no_grad()
def who_gains(
    lm: LanguageModel, facts: Sequence[CapitalPrompt], clean: Trace, block: int, heads: Sequence[int]
) -> dict[str, Any]:
    """What takes the target's place when heads of one block say at each position what they say there in the mean over these
    prompts, which all have one length.

    clean: their trace. top: how often each word is the most probable one then. right: on how many prompts it is the target.
    near, far: log p of the wrong countries of the target's region, and of the countries of other regions, a mean over the
    countries, without the edit and with it, (2, n_prompts) each.
    """
    prompts = [fact.prompt for fact in facts]
    with edit(lm, replace_heads(block, heads, clean.heads[block].mean(0, keepdim=True)[:, :, list(heads)])):
        after = lm.logits(prompts)[:, -1].log_softmax(-1)
    both = torch.stack([clean.last_logits.log_softmax(-1), after])  # (2, n_prompts, vocabulary)
    region = {country.name: country.region for country in read_countries()}
    known: dict[str, int] = {}
    for name in region:
        try:
            known[name] = lm.token_id(" " + name)
        except TargetIsNotOneToken:
            continue
    near, far, top, right = [], [], {}, 0  # type: ignore[var-annotated]
    for row, fact in enumerate(facts):
        mine = fact.target.strip()
        same = [i for name, i in known.items() if region[name] == region[mine] and name != mine]
        other = [i for name, i in known.items() if region[name] != region[mine]]
        near.append(both[:, row, same].mean(-1))
        far.append(both[:, row, other].mean(-1))
        word = lm.tokenizer.decode([int(after[row].argmax())])
        top[word] = top.get(word, 0) + 1
        right += word == fact.target
    ordered = dict(sorted(top.items(), key=lambda item: -item[1]))
    return {"top": ordered, "right": right, "near": torch.stack(near, -1), "far": torch.stack(far, -1)}


def show_gains(gain: Mapping[str, Any]) -> None:
    """Print what `who_gains` found: levels and their changes are means over the prompts."""
    near, far = gain["near"], gain["far"]
    lead = near - far
    first = ", ".join(say("{word!r} on {times}", word=word, times=times) for word, times in gain["top"].items())
    print(
        say(
            "Means instead, first words: {gain}; the right country on {right} of {prompts}.",
            gain=first,
            right=gain["right"],
            prompts=lead.shape[1],
        )
    )
    for name, (before, after) in (
        (say("wrong countries of the region"), near.mean(-1).tolist()),
        (say("countries of other regions"), far.mean(-1).tolist()),
    ):
        print(
            say(
                "Mean log p of {name}: {before}, then {after}, a gain of {gain}.",
                name=name,
                before=f"{before:.2f}",
                after=f"{after:.2f}",
                gain=f"{after - before:.2f}",
            )
        )
    print(
        say(
            "The region's lead: {before} nats, then {after}. It shrinks on {shrinks} of {prompts} prompts; the region still "
            "leads on {leads}.",
            before=f"{float(lead[0].mean()):.2f}",
            after=f"{float(lead[1].mean()):.2f}",
            shrinks=int((lead[1] < lead[0]).sum()),
            leads=int((lead[1] > 0).sum()),
            prompts=lead.shape[1],
        )
    )


# ---- other phrasings


def mean_map(lm: LanguageModel, facts: Sequence[CapitalPrompt], count: int) -> Tensor:
    """(n_blocks, n_heads): change of the logit difference with each head at its mean over all of these prompts, at each
    position; averaged over `count` of them, spread over the list."""
    values = mean_heads(lm, [fact.prompt for fact in facts])
    few = [facts[i * len(facts) // count] for i in range(count)]
    measure = predictions(lm, [fact.target for fact in few], [fact.contrast for fact in few])
    swept = sweep_heads(lm, [fact.prompt for fact in few], replacement=values, measure=measure)
    return swept[..., measure.columns.index("logit difference")].mean(0)


def map_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two maps over all heads."""
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's r of two maps: Pearson's r of the ranks, so that no head counts for more than its place in the order."""
    return map_correlation(_ranks(a), _ranks(b))


def agreement(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Two maps' r, which a few strong heads can make alone, and the r of their ranks, where each head counts alike."""
    return map_correlation(a, b), rank_correlation(a, b)


def _ranks(values: Tensor) -> Tensor:
    flat = values.flatten()
    return (flat[:, None] > flat).sum(1) + (flat[:, None] == flat).sum(1) / 2  # equal values share their mean rank


def show_foretelling(writes: Tensor, costs: Mapping[str, Tensor], far: float = FAR) -> None:
    """Print how well what each head writes foretells what its removal costs: r, also without the few heads that write `far`
    or more, which can make an r alone, and by rank.

    writes: (n_blocks, n_heads), nats; costs: what is put in a head's place -> the same of minus the mean change.
    """
    few = writes.abs() >= far
    for kind, cost in costs.items():
        print(
            say(
                "What a head writes and what its removal costs, {kind}: r {r}, without the {few} named heads {rest}, by rank "
                "{rank}",
                kind=kind,
                r=f"{map_correlation(writes, cost):.2f}",
                few=int(few.sum()),
                rest=f"{map_correlation(writes[~few], cost[~few]):.2f}",
                rank=f"{rank_correlation(writes, cost):.2f}",
            )
        )


def show_agreement(maps: Mapping[str, Tensor], live: float, stored: float) -> None:
    """Print the sums and the agreement of three replacements' maps of mean sizes, and one number that was measured again
    beside the stored one."""
    zero, mean, resample = maps["zero"], maps["mean"], maps["resample"]
    print(
        say(
            "All heads' sizes add up to {sum_zero} nats with zeros, {sum_mean} with means\n"
            "r of two maps: zero and mean {r_zero_mean}, mean and resample {r_mean_resample}\nBerlin, head "
            "23.4 → zero: {live} now, {stored} stored",
            sum_zero=f"{float(zero.sum()):.1f}",
            sum_mean=f"{float(mean.sum()):.1f}",
            r_zero_mean=f"{map_correlation(zero, mean):.2f}",
            r_mean_resample=f"{map_correlation(mean, resample):.2f}",
            live=f"{live:.2f}",
            stored=f"{stored:.2f}",
        )
    )
