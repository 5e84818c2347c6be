"""Lesson 4's claims about head ablation, 4.1 to 4.8: measured over many countries, then judged.

    show_ledger(ledger(lm, "Berlin is the capital of"))

Changes are in nats, without the head minus with it. They are looked at where the report looks, in block 5, and where the
effect lives: a sweep over all heads finds the strongest on some prompts, and others judge them, so that no head is chosen
and judged by the same numbers. Tables are [prompt][head], for each of these sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from helpers.countries import TEMPLATE, CapitalPrompt, capital_prompts, read_countries
from helpers.course.ledger import (
    UNTESTED,
    Claim,
    Keep,
    Part,
    Table2,
    columns_of,
    compute_now,
    directions,
    holm,
    judge,
    middle,
    sign_test,
)
from helpers.edits import replace_heads
from helpers.errors import TargetIsNotOneToken
from helpers.measures import Measure, Outcome, predictions
from helpers.models import LanguageModel
from helpers.recording import groups
from helpers.say import say, translatable
from helpers.sweeps import CHUNK, Replacement, sweep_edits, sweep_heads
from helpers.tracing import trace

Sites = Mapping[str, Table2]
REPLACEMENTS: tuple[Replacement, ...] = ("zero", "mean", "resample")  # lesson4/panel.py has them for translators
# An instruction-tuned model may need to see the pattern before it answers in one word.
TEMPLATES = (TEMPLATE, "Paris is the capital of France. {capital} is the capital of")
FIND, JUDGE = 20, 24  # prompts on which the strongest heads are found, and at most so many on which they are judged
ENOUGH = 10  # prompts of one length: as many as a mean at each position needs here
FEW = 0.25  # of the heads: where fewer hold half of all change, the work is not distributed
FURTHER = 1.5  # a replacement moves the prediction further than another if its KL is that many times as large
COLUMNS = ("target", "kl", "same top-1", "target is top-1", "contrast", "logit difference", "same region", "clean target",
           "clean is target")  # fmt: skip


def verdict_4_1(zero: Sites, mean: Sites, strongest: Sequence[str]) -> Claim:
    """zero, mean: site -> change of log p(target) with each head at zero, or at its mean. strongest: their names, "8.4"."""
    parts = [
        Part(
            say("it falls for more than half of {site}", site=site),
            [2 * sum(v < 0 for v in row) > len(row) for row in rows],
        )
        for site, rows in zero.items()
    ]
    measured = say(
        "{significant_zero}; {significant_mean}; strongest (block.head): {strongest}",
        significant_zero=_significant(zero, "zero"),
        significant_mean=_significant(mean, "mean"),
        strongest=", ".join(strongest),
    )
    return judge("4.1", say("log p(target) falls for most heads"), parts, measured, cores=len(parts))


def verdict_4_2(zero: Sites, beyond: Mapping[str, Sequence[float]]) -> Claim:
    """zero: site -> change of log p(contrast) with each head at zero; beyond: its change among the tokens that are not the
    target, log p(contrast | not the target), a mean over the site's heads for each prompt."""
    parts = [
        Part(
            say("it rises for more than half of {site}", site=site),
            [2 * sum(v > 0 for v in row) > len(row) for row in rows],
        )
        for site, rows in zero.items()
    ]
    shares = ", ".join(f"{site} {middle(values)}" for site, values in beyond.items())
    measured = say(
        "{significant}; beyond what any other token gains from the target's loss, median in nats: {shares}",
        significant=_significant(zero, "zero"),
        shares=shares,
    )
    return judge("4.2", say("log p(contrast) rises"), parts, measured, cores=len(parts))


def verdict_4_3(first: Mapping[str, Sequence[Sequence[bool]]], right: int, tried: int) -> Claim:
    """first: site -> for each prompt whose clean top token is the target, whether it still is, head by head. right of `tried`
    prompts are such."""
    says = say("the target stays top-1 whichever head is removed (the report tried block 5)")
    measured = say("without any edit the target is top-1 on {right} of {tried} prompts", right=right, tried=tried)
    rows = next(iter(first.values()))
    if not rows:
        return Claim(
            "4.3", says, UNTESTED, say("the target is top-1 on none of the prompts, even with every head"), measured
        )
    parts = [
        Part(say("it stays top-1 without each of {site}", site=site), [all(row) for row in table])
        for site, table in first.items()
    ]
    kept = ", ".join(
        say("{sum} of {len} removals of {site}", sum=sum(map(sum, table)), len=sum(map(len, table)), site=site)
        for site, table in first.items()
    )
    return judge("4.3", says, parts, say("{measured}; kept by {kept}", measured=measured, kept=kept), cores=len(parts))


def verdict_4_4(changes: Table2, kept: Sequence[Sequence[bool]]) -> Claim:
    """changes: of the logit difference without each head of the whole model; kept: whether the top token stayed the same."""
    says = say("continuous measures show what the top-1 hides")
    number, flips = len(changes) * len(changes[0]), sum(not stays for row in kept for stays in row)
    sure = directions(columns_of(changes))
    never = [all(column) for column in columns_of(kept)]
    unseen = sum(side != 0 and quiet for side, quiet in zip(sure, never, strict=True))
    measured = say(
        "the top token changes at {flips} of {number} removals; the shift is significant (sign test, "
        "Holm) for {n_sure} of {n_heads} heads, and for {unseen} of them the top token never changes",
        flips=flips,
        number=number,
        n_sure=len(sure) - sure.count(0),
        n_heads=len(sure),
        unseen=unseen,
    )
    if not flips:
        return Claim(
            "4.4",
            says,
            UNTESTED,
            say("the top token changes at 0 of {number} removals: it hides everything", number=number),
            measured,
        )
    share = [
        sum(abs(v) for v, stays in zip(row, quiet, strict=True) if stays) / (sum(map(abs, row)) or 1.0)
        for row, quiet in zip(changes, kept, strict=True)
    ]
    measured += say(
        "; median share of the movement that keeps the top token {share} %", share=middle(100 * s for s in share)
    )
    what = say("removals that keep the top token make up at least half of the movement of the logit difference")
    return judge("4.4", says, [Part(what, [s >= 0.5 for s in share])], measured)


def verdict_4_5(
    single: Sites, together: Mapping[str, Sequence[float]], single_odds: Sites,
    together_odds: Mapping[str, Sequence[float]], zero: Mapping[str, Sequence[float]],
) -> Claim:  # fmt: skip
    """single, together: site -> change of log p(target) with each head at its mean, and with all of them at once; *_odds: the same
    of the logit difference, which knows no ceiling as a probability does; zero: `together` with zeros in place of means."""
    cores, rest = [], []
    for site, rows in single.items():
        odds = zip(single_odds[site], together_odds[site], strict=True)
        cores.append(
            Part(
                say("all of {site} at their mean lower log p(target)", site=site),
                [value < 0 for value in together[site]],
            )
        )
        rest += [
            Part(
                say("it takes a quarter or more of {site} to make up half of the single changes", site=site),
                [_half(row) >= FEW * len(row) for row in rows],
            ),
            Part(
                say(
                    "all of {site} at once cost more than the sum of single ones, in log p and in the logit difference",
                    site=site,
                ),
                [t < sum(row) and o < sum(r) for row, t, (r, o) in zip(rows, together[site], odds, strict=True)],
            ),
        ]
    measured = "; ".join(
        say(
            "{site}: median change at once {together} nats with means, {zero} with zeros, sum of single ones {rows}",
            site=site,
            together=middle(together[site]),
            zero=middle(zero[site]),
            rows=middle(sum(row) for row in rows),
        )
        for site, rows in single.items()
    )
    return judge(
        "4.5", say("heads act as distributed, redundant circuits"), [*cores, *rest], measured, cores=len(cores)
    )


def verdict_4_6(
    damage: Mapping[str, Mapping[str, Sequence[float]]], strongest: Mapping[str, Mapping[str, str]]
) -> Claim:
    """damage: site -> replacement -> KL(clean ‖ edited), a mean over the heads for each prompt; strongest: site -> replacement ->
    the head with the largest mean KL."""
    parts, measured = [], []
    tests = {
        (site, a, b): sign_test(x - y for x, y in zip(kinds[a], kinds[b], strict=True))
        for site, kinds in damage.items()
        for i, a in enumerate(kinds)
        for b in list(kinds)[i + 1 :]
    }
    apart = [names for names, sure in zip(tests, holm(list(tests.values())), strict=True) if sure]
    for site, kinds in damage.items():
        pairs = list(zip(kinds["zero"], kinds["mean"], strict=True))
        parts.append(
            Part(
                say("{site}: KL with zero and with the mean differ at least 1.5-fold", site=site),
                [a != b and max(a, b) >= FURTHER * min(a, b) for a, b in pairs],
            )
        )
        different = [say("{a} and {b}", a=say(a), b=say(b)) for where, a, b in apart if where == site]
        measured.append(
            say(
                "{site}: median KL {medians}; significantly different (sign test, Holm): {different}; strongest "
                "head {heads}",
                site=site,
                medians=", ".join(f"{say(kind)} {middle(values)}" for kind, values in kinds.items()),
                different=", ".join(different) or say("none"),
                heads=", ".join(f"{head} ({say(kind)})" for kind, head in strongest[site].items()),
            )
        )
    return judge(
        "4.6",
        say("open question: zero, mean, or something else? (tested: the choice matters)"),
        parts,
        "; ".join(measured),
        cores=len(parts),
    )


def verdict_4_7(gain: Sites) -> Claim:
    """gain: site -> change of log p of the wrong countries of the target's region, minus that of all other regions' countries, a
    mean over the countries, without each head."""
    parts = [
        Part(
            say("wrong countries of the region gain more than others, in the mean over {site}", site=site),
            [sum(row) > 0 for row in rows],
        )
        for site, rows in gain.items()
    ]
    sizes = ", ".join(f"{site} {middle(sum(row) / len(row) for row in rows)}" for site, rows in gain.items())
    significant = _significant(gain, "zero", translatable("gain"), translatable("lose"))
    measured = say(
        "median difference of the mean change of log p, in nats: {sizes}; {significant}",
        sizes=sizes,
        significant=significant,
    )
    return judge(
        "4.7",
        say("the gain of wrong tokens is largest within the same group, such as Europe"),
        parts,
        measured,
        cores=len(parts),
    )


def verdict_4_8(first: Mapping[str, Sequence[Sequence[bool]]], together: Mapping[str, Sequence[bool]]) -> Claim:
    """first: as in 4.3; together: whether the target is still top-1 with all heads of the site at zero."""
    says = say("small shifts add up to errors")
    small = [
        all(map(all, rows)) for rows in zip(*first.values(), strict=True)
    ]  # of each prompt: no head alone costs it
    if not any(small):
        why = say("the target is top-1 on none of the prompts, even with every head")
        if small:
            why = say(
                "on each of {n_prompts} prompts some head alone costs the target its first place: no shift is small",
                n_prompts=len(small),
            )
        return Claim("4.8", says, UNTESTED, why)
    parts = [
        Part(
            say("all of {site} at once cost the target its first place, where no head alone does", site=site),
            [not keeps for keeps, counts in zip(kept, small, strict=True) if counts],
        )
        for site, kept in together.items()
    ]
    return judge("4.8", says, parts, cores=len(parts))


VERDICTS: dict[str, Callable[..., Claim]] = {
    "4.1": verdict_4_1,
    "4.2": verdict_4_2,
    "4.3": verdict_4_3,
    "4.4": verdict_4_4,
    "4.5": verdict_4_5,
    "4.6": verdict_4_6,
    "4.7": verdict_4_7,
    "4.8": verdict_4_8,
}


def _half(changes: Sequence[float]) -> int:
    """How many of the changes, the largest first, make up half of the sum of their sizes."""
    sizes = sorted(map(abs, changes), reverse=True)
    gathered, number = 0.0, 0
    while number < len(sizes) and gathered < sum(sizes) / 2:
        gathered, number = gathered + sizes[number], number + 1
    return max(number, 1)


def _significant(sites: Sites, kind: str, up: str = translatable("rise"), down: str = translatable("fall")) -> str:
    found = {site: directions(columns_of(rows)) for site, rows in sites.items()}
    told = ", ".join(
        say(
            "{n_down} {down} and {n_up} {up} of {site}",
            n_down=sides.count(-1),
            down=say(down),
            n_up=sides.count(1),
            up=say(up),
            site=site,
        )
        for site, sides in found.items()
    )
    return say("significant (sign test, Holm), with each head at {kind}: {told}", kind=say(kind), told=told)


# ---- measuring


@dataclass(frozen=True)
class Study:
    """Some heads over many prompts.

    heads: (block, head) of each. changes: replacement -> column -> (n_prompts, n_heads), the columns those of `predictions` and
    "same region". together: replacement -> column -> (n_prompts,), with all of the heads at zero, or at their means. clean:
    (n_prompts,) log p(target) without an edit. right: (n_prompts,) bool, the clean top token is the target.
    """

    heads: tuple[tuple[int, int], ...]
    facts: tuple[CapitalPrompt, ...]
    changes: Mapping[str, Mapping[str, Tensor]]
    at_once: Mapping[str, Mapping[str, Tensor]]
    clean: Tensor
    right: Tensor

    @property
    def together(self) -> Mapping[str, Tensor]:
        """column -> (n_prompts,), with all of the heads at zero."""
        return self.at_once["zero"]

    def share_of_the_rest(self) -> Tensor:
        """(n_prompts, n_heads) change of log p(contrast | not the target), in nats, with heads at zero.

        When the target loses, every other token gains, if only in proportion. This is what the contrast gains beyond that.
        """
        zero = self.changes["zero"]
        before = torch.log1p(-self.clean.exp())[:, None]
        after = torch.log1p(-(self.clean[:, None] + zero["target"]).exp())
        return zero["contrast"] - (after - before)


def study_sites(
    lm: LanguageModel,
    facts: Sequence[CapitalPrompt],
    sites: Mapping[str, Sequence[tuple[int, int]]],
    reference: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    keep: Keep = compute_now,
) -> dict[str, Study]:
    """Put each head at zero, at its mean and at its value on another prompt, and all of a site's at once, on every prompt.

    sites: name -> (block, head) of each. The mean is taken at each position, counted from the end, over the reference prompts
    (Wang et al. 2022), those of the study if None. Where they have the length of the prompt, a head's mean is what it says at
    that place whatever the country. The other prompt is one of them, drawn with `generator` (seed 0 by default).
    """
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    texts = [fact.prompt for fact in facts] if reference is None else list(reference)
    rows = [lm.encode(text).ids[0] for text in texts]
    outputs = cache(lambda: outputs_of_heads(lm, rows))
    countries = cache(lambda: _country_ids(lm))
    means = cache(lambda length: position_means(outputs(), length))
    found = []
    for fact in facts:
        ids = lm.encode(fact.prompt).ids[0]
        others = [i for i, text in enumerate(texts) if text != fact.prompt and len(rows[i]) == len(ids)]
        others = others or [i for i, text in enumerate(texts) if text != fact.prompt] or [0]
        partner = others[int(torch.randint(len(others), (1,), generator=draw))]  # drawn also where the result is kept

        def remove(fact: CapitalPrompt = fact, ids: Tensor = ids, partner: int = partner) -> list[Any]:
            other = outputs()[partner]
            other = other[:, (torch.arange(len(ids)) + other.shape[1] - len(ids)).clamp(min=0)]  # last tokens meet
            measure = _country_measure(lm, fact, countries())
            return _removals(lm, ids, sites.values(), means(len(ids)), other, measure)

        found.append(keep(f"4 {fact} {sites} beside {texts[partner]} of {len(texts)}", remove))
    table = torch.tensor(found, dtype=torch.float64)  # (n_prompts, copies, columns)
    studies, begin = {}, 0
    for site, heads in sites.items():
        own = table[:, begin : begin + 3 * len(heads) + 2]
        begin += own.shape[1]
        parts = [own[:, k * len(heads) : (k + 1) * len(heads)] for k in range(3)]
        changes: dict[str, dict[str, Tensor]] = {
            kind: dict(zip(COLUMNS, part.unbind(-1), strict=True))
            for kind, part in zip(REPLACEMENTS, parts, strict=True)
        }
        at_once = {
            kind: dict(zip(COLUMNS, own[:, k].unbind(-1), strict=True)) for k, kind in ((-2, "zero"), (-1, "mean"))
        }
        clean, right = (at_once["zero"][name] for name in ("clean target", "clean is target"))
        studies[site] = Study(tuple(heads), tuple(facts), changes, at_once, clean, right.bool())
    return studies


@torch.no_grad()
def outputs_of_heads(lm: LanguageModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """(n_blocks, pos, n_heads, d_head) of each prompt of ids (pos,)."""
    found: dict[int, Tensor] = {}
    for chosen in groups(list(rows), 1, CHUNK // 2):
        heads = trace(lm, torch.stack([rows[i] for i in chosen]), stop_after=lm.n_blocks - 1).heads
        found |= {i: heads[:, k] for k, i in enumerate(chosen)}
    return [found[i] for i in range(len(rows))]


def position_means(outputs: Sequence[Tensor], length: int) -> Tensor:
    """(n_blocks, length, n_heads, d_head): the mean of (n_blocks, pos, n_heads, d_head) at each position, counted from the end.

    Over the outputs of just that length, if there are enough of them. Where none is long enough, the first position that has a
    mean stands in.
    """
    same = [heads for heads in outputs if heads.shape[1] == length]
    used = same if len(same) >= ENOUGH else outputs
    reach = min(length, max(heads.shape[1] for heads in used))
    places = [torch.stack([h[:, -back] for h in used if h.shape[1] >= back]).mean(0) for back in range(reach, 0, -1)]
    return torch.stack([places[max(0, i + reach - length)] for i in range(length)], dim=1)


def _removals(
    lm: LanguageModel, ids: Tensor, sites: Iterable[Sequence[tuple[int, int]]], means: Tensor, other: Tensor, measure: Measure
) -> list[Any]:  # fmt: skip
    """For each site: each head at zero, at its mean, as on the other prompt; then all of them at zero, and at their means."""
    tried: list[Any] = []
    for heads in sites:
        zero, mean, resample = (
            [replace_heads(b, h, v[b][None, :, h : h + 1]) for b, h in heads] for v in (means * 0, means, other)
        )
        tried += [*zero, *mean, *resample, zero, mean]
    return sweep_edits(lm, ids, tried, measure=measure, progress=False).tolist()


def _country_ids(lm: LanguageModel) -> list[tuple[str, int]]:
    """(region, token id) of each country whose name is one token."""
    found = []
    for country in read_countries():
        try:
            found.append((country.region, lm.token_id(" " + country.name)))
        except TargetIsNotOneToken:
            continue
    return found


def _country_measure(lm: LanguageModel, fact: CapitalPrompt, countries: Sequence[tuple[str, int]]) -> Measure:
    """`predictions`; how much more the wrong countries of the target's region gain in log p than those of other regions; log p of
    the target in the clean run, and whether it is its top token."""
    plain, target = predictions(lm, fact.target, fact.contrast), lm.token_id(fact.target)
    home = next((region for region, token in countries if token == target), None)
    near = [token for region, token in countries if region == home and token != target]
    far = [token for region, token in countries if region != home]

    def compute(outcome: Outcome) -> Tensor:
        clean = outcome.clean.log_softmax(-1)
        change = outcome.edited.log_softmax(-1) - clean
        gain = torch.full_like(change[:, 0], torch.nan)  # for a target that is no country, or has no neighbours
        if near and far:
            gain = change[:, near].mean(-1) - change[:, far].mean(-1)
        same = torch.stack([clean[target], (clean.argmax() == target).to(clean)]).expand(len(change), 2)
        return torch.cat([plain.compute(outcome), gain[:, None], same], dim=-1)

    return Measure(compute, COLUMNS)


def choose_prompts(
    lm: LanguageModel, keep: Keep = compute_now
) -> tuple[str, list[CapitalPrompt], list[CapitalPrompt], int]:
    """(template, prompts to find the strongest heads on, prompts to judge them on, how many prompts the model answers right).

    The template is the one on which the model names the right country most often. Where it does so often enough, the prompts
    are those that it gets right. They have a length that `ENOUGH` prompts share, so that a mean at each position makes sense.
    """
    best: tuple[str, list[CapitalPrompt], list[bool]] | None = None
    for template in TEMPLATES:
        facts = capital_prompts(lm, template=template)
        facts = [
            fact for fact in facts if fact.prompt.count(fact.target.strip()) == 0
        ]  # the pattern tells the answer for France
        right = keep(f"4 right {template}", partial(_answered, lm, facts))
        if best is None or sum(right) > sum(best[2]):
            best = template, facts, right
    assert best is not None
    template, facts, right = best
    lengths = [len(lm.token_ids(fact.prompt)) for fact in facts]
    common = [lengths.count(length) >= ENOUGH for length in lengths]
    fits = [f for f, often, known in zip(facts, common, right, strict=True) if often and known]
    if len(fits) < 1.5 * FIND:
        fits = [f for f, often in zip(facts, common, strict=True) if often] or facts
    number = min(len(fits), FIND + JUDGE)
    fits = [fits[i * len(fits) // number] for i in range(number)]
    few = min(FIND, number - FIND) if number > 1.5 * FIND else max(1, number // 2)
    finding = [fits[i * number // few] for i in range(few)]
    return template, finding, [fact for fact in fits if fact not in finding], sum(right)


def _map(lm: LanguageModel, fact: CapitalPrompt) -> list[list[float]]:
    """[head of the whole model][column], with each head at zero."""
    measure = predictions(lm, fact.target, fact.contrast)
    return sweep_heads(lm, fact.prompt, measure=measure, progress=False).flatten(0, 1).tolist()


def _answered(lm: LanguageModel, facts: Sequence[CapitalPrompt]) -> list[bool]:
    """Whether the most probable next token is the target."""
    rows = [lm.encode(fact.prompt).ids[0] for fact in facts]
    top: dict[int, int] = {}
    for chosen in groups(rows, 1, CHUNK // 2):
        last = lm.logits(torch.stack([rows[i] for i in chosen]))[:, -1]
        top |= dict(zip(chosen, last.argmax(-1).tolist(), strict=True))
    return [top[i] == lm.token_id(fact.target) for i, fact in enumerate(facts)]


def ledger(
    lm: LanguageModel,
    prompt: str | None = None,
    target: str = " Germany",
    contrast: str = " France",
    block: int | None = None,
    keep: Keep = compute_now,
) -> list[Claim]:
    """Measure lesson 4's claims on `lm` and judge them.

    prompt: one more prompt to judge on, with its target and contrast; Berlin's if None. block: block 5, or the middle one of a
    model with fewer. Raises TargetIsNotOneToken, BadPrompt, PromptTooLong, BlockOutOfRange.
    """
    block = lm.check_block(min(5, lm.n_blocks // 2) if block is None else block)
    template, finding, judging, _ = choose_prompts(lm, keep)
    first = CapitalPrompt(template.format(capital="Berlin") if prompt is None else prompt, target, contrast)
    finding = [fact for fact in finding if fact.prompt != first.prompt]
    judging = [first, *(fact for fact in judging if fact.prompt != first.prompt)]
    maps = [keep(f"4 map {fact}", partial(_map, lm, fact)) for fact in [*finding, first]]
    everywhere = dict(zip(COLUMNS, torch.tensor(maps, dtype=torch.float64).unbind(-1), strict=False))
    size = everywhere["target"][: len(finding)].mean(0).abs()  # the first prompt is judged on
    order = size.argsort(descending=True)[: lm.n_heads].tolist()
    strongest = sorted(divmod(place, lm.n_heads) for place in order)
    reference = [fact.prompt for fact in capital_prompts(lm, template=template)]
    sites = {
        say("the heads of block {block}", block=block): [(block, head) for head in range(lm.n_heads)],
        say("the {n_heads} strongest heads", n_heads=lm.n_heads): strongest,
    }
    studies = study_sites(lm, judging, sites, reference, keep=keep)

    def table(column: str, kind: str = "zero") -> dict[str, list[list[float]]]:
        return {site: study.changes[kind][column].tolist() for site, study in studies.items()}

    def at_once(column: str, kind: str) -> dict[str, list[float]]:
        return {site: study.at_once[kind][column].tolist() for site, study in studies.items()}

    def of_right(values: Tensor, study: Study) -> list[Any]:
        return values[study.right].bool().tolist()

    one = next(iter(studies.values()))
    stays = {site: of_right(study.changes["zero"]["target is top-1"], study) for site, study in studies.items()}
    regional = {
        site: [row for row in rows if row[0] == row[0]] for site, rows in table("same region").items()
    }  # NaN: the target is no country
    damage = {
        site: {kind: columns["kl"].mean(1).tolist() for kind, columns in study.changes.items()}
        for site, study in studies.items()
    }
    largest = {
        site: {
            kind: "{}.{}".format(*study.heads[int(columns["kl"].mean(0).argmax())])
            for kind, columns in study.changes.items()
        }
        for site, study in studies.items()
    }
    return [
        verdict_4_1(table("target"), table("target", "mean"), [f"{b}.{h}" for b, h in strongest]),
        verdict_4_2(table("contrast"), {site: study.share_of_the_rest().mean(1).tolist() for site, study in studies.items()}),
        verdict_4_3(stays, int(one.right.sum()), len(judging)),
        verdict_4_4(everywhere["logit difference"].tolist(), everywhere["same top-1"].bool().tolist()),
        verdict_4_5(table("target", "mean"), at_once("target", "mean"), table("logit difference", "mean"),
                    at_once("logit difference", "mean"), at_once("target", "zero")),
        verdict_4_6(damage, largest),
        verdict_4_7(regional),
        verdict_4_8(stays, {site: of_right(study.at_once["zero"]["target is top-1"], study) for site, study in studies.items()}),
    ]  # fmt: skip
