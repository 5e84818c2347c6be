"""Lesson 3's claims about keys, neurons and hidden states, 3.1 to 3.9: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

Lists have one entry for each prompt. The spread of the stream is the standard deviation over all coordinates of all tokens
but the first, where nothing else is said; KL divergences are those of the next word, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor

from helpers.course.ledger import (
    CONSTRUCTION,
    DIVERGENCE,
    FAILS,
    HOLDS,
    PARTLY,
    VERSION,
    Claim,
    Keep,
    Part,
    Prompt,
    Table2,
    compute_now,
    judge,
    middle,
    n,
    several,
)
from helpers.edits import edit, noise_neurons, scale_block, skip_attention, skip_block, skip_mlp, zero_heads, zero_keys
from helpers.hooks import on_output, remove
from helpers.lesson3.runs import model_cache
from helpers.metrics import cosine_similarity, kl, relative_error
from helpers.models import LanguageModel
from helpers.readings import read_site, spread
from helpers.say import say
from helpers.sweeps import sweep_edits
from helpers.tracing import Trace, trace

FAR = 3.0  # standard deviations from the natural mean
RARE = 0.001  # share of natural values that may reach the noise
HALF = 0.5  # the last block compresses a stream if it takes away half of its spread or more
VISIBLE = 0.1  # relative error of the stream, and nats of KL, that count as a visible disruption
LEFT = 0.1  # of a head's output: a head of which no more is left counts as ablated
NEAR_ZERO = 0.1  # of the values' root mean square; of a normal distribution 8 % lie within it


def verdict_3_1(d_model: int, d_head: int, head: int, in_k: int | None, fused: int | None, width: int) -> Claim:
    """in_k, fused: the column at which the keys that the model itself uses were found, in K alone and in the whole output of
    their projection, which has `width` columns."""
    says = say("K of head 3 (index 2) starts at 2·64 = 128, and at n_embd + 128 in the fused QKV")
    expected = head * d_head
    measured = say(
        "found at {place_in_k} of K and at {place_fused} of the projection's {width}; head · d_head = "
        "{expected}, d_model + that = {d_model}",
        place_in_k=_place(in_k),
        place_fused=_place(fused),
        width=width,
        expected=expected,
        d_model=d_model + expected,
    )
    if in_k == expected and fused == d_model + expected:
        why = say(
            "found by search, not by formula: head {head}, d_model {d_model}, d_head {d_head} here; 768 and "
            "64 give 128 and 896",
            head=head,
            d_model=d_model,
            d_head=d_head,
        )
        return Claim("3.1", says, HOLDS, why, measured, software=True)
    if in_k == expected:
        why = say("right inside K, but ") + (
            say("this model's projection makes keys alone: nothing is fused")
            if fused == expected
            else say("this model keeps K in another place of the fused output")
        )
        return Claim("3.1", says, PARTLY, why, measured, software=True)
    return Claim(
        "3.1", says, FAILS, say("this model orders or changes its keys in another way"), measured, software=True
    )


def verdict_3_2(
    distance: Sequence[float], reached: Sequence[float], relative: Sequence[float], divergence: Sequence[float],
    constant: Sequence[float], mean_alone: Sequence[float],
) -> Claim:  # fmt: skip
    """distance: of the noise's mean from the natural one, in natural standard deviations; reached: share of the natural values
    that are as large as the noise's mean; relative: error of the stream right after the block; divergence: KL(clean ‖ edited);
    constant: share of the change that is the same at all tokens; mean_alone: KL with the mean and no randomness at all."""
    pairs = [zip(distance, reached, strict=True), zip(relative, divergence, strict=True)]
    parts = [
        Part(
            say("10 is more than 3 standard deviations away, and at most 0.1 % of the natural values reach it"),
            [abs(far) > FAR and share <= RARE for far, share in pairs[0]],
        ),
        Part(
            say("the stream's relative error and KL(clean ‖ edited) are above 0.1"),
            [error > VISIBLE and nats > VISIBLE for error, nats in pairs[1]],
        ),
    ]
    measured = say(
        "medians: {distance} standard deviations away, {reached} % of values get there, relative error "
        "{relative}, KL {divergence} nats; {constant} % of the change is one vector, the same at every "
        "token, and 10 without randomness gives a KL of {mean_alone}",
        distance=middle(distance),
        reached=middle(100 * r for r in reached),
        relative=middle(relative),
        divergence=middle(divergence),
        constant=middle(100 * c for c in constant),
        mean_alone=middle(mean_alone),
    )
    says = say(
        "noise with mean 10 in the even MLP neurons is far outside their distribution and visibly disrupts the stream"
    )
    return judge("3.2", says, parts, measured)


def verdict_3_3(
    clean: Table2, edited: Table2, with_first: Table2, missing: Sequence[float], cosine: Sequence[float]
) -> Claim:  # fmt: skip
    """clean, edited: spread from the scaled block's output to the end; with_first: the ratio edited / clean with the first token,
    at both ends; missing: share of what the factor took away that is still missing at the end of the stream, along its own
    direction; cosine: of both streams at the end."""
    ratio = [(e[0] / c[0], e[-1] / c[-1]) for c, e in zip(clean, edited, strict=True)]
    parts = [
        Part(
            say("the spread drops, and its ratio to the clean run at least doubles by the end"),
            [a <= HALF and 2 * a <= b for a, b in ratio],
        ),
        Part(say("it rises at every block"), [all(b > a for a, b in pairwise(row)) for row in edited]),
        Part(
            say("at most half of what was taken away is still missing at the end"), [value <= HALF for value in missing]
        ),
    ]
    measured = say(
        "median ratio to the clean run {a} → {b}, with the first token {row_first} → {row_second}; "
        "{missing} % still missing; cosine with the clean stream {cosine}",
        a=middle((a for a, _ in ratio)),
        b=middle((b for _, b in ratio)),
        row_first=middle(row[0] for row in with_first),
        row_second=middle(row[1] for row in with_first),
        missing=middle(100 * m for m in missing),
        cosine=middle(cosine),
    )
    return judge(
        "3.3",
        say("scale 0.1 at block 9: the standard deviation drops there and revives in later layers"),
        parts,
        measured,
    )


def verdict_3_4(clean: Table2, edited: Table2, final_clean: Sequence[float], final_edited: Sequence[float]) -> Claim:
    """clean, edited: spread from the scaled block's output to the end, before the final norm; final_*: after it."""
    ratio = [e[-1] / c[-1] for c, e in zip(clean, edited, strict=True)]
    final = [e / c for c, e in zip(final_clean, final_edited, strict=True)]
    last, usual = ([row[-1] / row[-2] if len(row) > 1 else 1.0 for row in run] for run in (edited, clean))
    parts = [
        Part(
            say("the final norm brings the ratio to the clean run at least twice as near to 1"),
            [2 * abs(f - 1) <= abs(r - 1) for r, f in zip(ratio, final, strict=True)],
        ),
        Part(
            say(
                "the last block itself, before the norm, takes away at least half of the spread, and more than "
                "in the clean run"
            ),
            [x <= HALF and x < y for x, y in zip(last, usual, strict=True)],
        ),
    ]
    measured = say(
        "median ratio to the clean run {e} at the block, {ratio} before the final norm, {final} after "
        "it; the last block takes the spread × {last} (clean × {usual})",
        e=middle((e[0] / c[0] for c, e in zip(clean, edited, strict=True))),
        ratio=middle(ratio),
        final=middle(final),
        last=middle(last),
        usual=middle(usual),
    )
    return judge("3.4", say("scale 10 at block 9: it explodes, and the last layer compresses it"), parts, measured)


def verdict_3_5(with_first: Table2, without: Table2) -> Claim:
    """with_first, without: spread at each point of a clean run, before the final norm, with all tokens and without the first."""

    def rising(row: Sequence[float]) -> bool:
        return all(b > a for a, b in pairwise(row))

    parts = [
        Part(say("without the first token it ends higher than it began"), [row[-1] > row[0] for row in without]),
        Part(say("with it too"), [row[-1] > row[0] for row in with_first]),
        Part(say("without it, it grows at every block"), [rising(row) for row in without]),
        Part(say("with it too"), [rising(row) for row in with_first]),
    ]
    measured = say("median spread without the first token ") + " → ".join(
        middle(row[i] for row in without) for i in (0, -1)
    )
    measured += say(", with it ") + " → ".join(middle(row[i] for row in with_first) for i in (0, -1))
    measured += say(", at most {with_first} on the way", with_first=middle(max(row) for row in with_first))
    return judge("3.5", say("the spread of the activations grows with depth"), parts, measured)


def verdict_3_6(plain: int, asked: int, attention: int, version: str) -> Claim:
    """plain, asked: elements of the tuple that a block returns, without and with output_attentions=True, 0 for a plain
    tensor; attention: the same for its attention module, with output_attentions=True. version: of transformers."""
    says = say("a block's output is a tuple that grows from one element to two with output_attentions=True")
    measured = say(
        "transformers {version}: block: {form_plain}, then {form_asked}; attention module: {form_attention}",
        version=version,
        form_plain=_form(plain),
        form_asked=_form(asked),
        form_attention=_form(attention),
    )
    if (plain, asked) == (1, 2):
        why = say("so it is here; in transformers 5 a block returns a plain tensor")
        return Claim("3.6", says, VERSION, why, measured, software=True)
    if plain == asked == 0:
        why = say(
            "here a plain tensor, whatever is asked; on transformers 4 GPT-2's block returns a tuple of 1, then of 2"
        )
        return Claim("3.6", says, VERSION, why, measured, software=True)
    if 0 < plain < asked:
        return Claim("3.6", says, PARTLY, say("a tuple that grows, but not from one to two"), measured, software=True)
    why = say("it does not grow") if plain else say("without the option it is a plain tensor, with it a tuple")
    return Claim("3.6", says, FAILS, why, measured, software=True)


def verdict_3_7(others: float, block: float, attention: float, mlp: float, heads: Sequence[float]) -> Claim:
    """others: how far the block's other heads moved while one was at zero, the largest difference. KL when a whole block is
    skipped, its attention, its MLP, and each head's output zeroed, medians over the prompts."""
    says = say("hooking sub-layers gives finer control than hooking the block")
    measured = say(
        "median KL(clean ‖ edited) in nats: block {block}, attention {attention}, MLP {mlp}, heads "
        "{lowest} to {highest}",
        block=n(block),
        attention=n(attention),
        mlp=n(mlp),
        lowest=n(min(heads)),
        highest=n(max(heads)),
    )
    if others > 0:
        why = say(
            "with one head at zero, others of its block moved by up to {others}: the hook reaches more than the head",
            others=n(others),
        )
        return Claim("3.7", says, FAILS, why, measured, software=True)
    why = say(
        "{n_heads} places in place of one: with one head at zero the block's others stay exactly as they "
        "were. How far the prediction moves is another question",
        n_heads=len(heads) + 2,
    )
    return Claim("3.7", says, CONSTRUCTION, why, measured, software=True)


def verdict_3_8(left: Sequence[float], keys: Sequence[float], heads: Sequence[float], hit: int) -> Claim:
    """left: length of what the heads write while their keys are zero, clean = 1, without the first token; keys, heads: KL with
    zero keys and with the heads themselves at zero; hit: how many heads use these keys."""
    parts = [
        Part(say("with zero keys at most a tenth of the head's output is left"), [value <= LEFT for value in left])
    ]
    measured = say(
        "median length of the output with zero keys, clean = 1: {left}; median KL {keys} nats with zero "
        "keys, {heads} without the head",
        left=middle(left),
        keys=middle(keys),
        heads=middle(heads),
    )
    note = say("With zero keys a head looks evenly at all tokens before it")
    note += say("; {hit} heads share these keys, and all of them are hit", hit=hit) if hit > 1 else ""
    return judge("3.8", say("zeroing K ablates the head"), parts, measured, note)


def verdict_3_9(negative: Sequence[float], near: Sequence[float]) -> Claim:
    """negative: share of the neurons' natural values, after the activation, that are 0 or below; near: share within a tenth of
    their root mean square of 0."""
    parts = [
        Part(say("more than half of the values are 0 or below"), [value > HALF for value in negative]),
        Part(
            say("more than 8 %, the share in a normal distribution, lie within a tenth of their root mean square "
"of 0"),
            [value > 0.08 for value in near],
        ),
    ]  # fmt: skip
    measured = say(
        "medians: {negative} % are 0 or below, {near} % lie near 0",
        negative=middle(100 * v for v in negative),
        near=middle(100 * v for v in near),
    )
    return judge(
        "3.9", say("after the activation function the neurons are mostly negative or pressed to 0"), parts, measured
    )


VERDICTS: dict[str, Callable[..., Claim]] = {
    "3.1": verdict_3_1,
    "3.2": verdict_3_2,
    "3.3": verdict_3_3,
    "3.4": verdict_3_4,
    "3.5": verdict_3_5,
    "3.6": verdict_3_6,
    "3.7": verdict_3_7,
    "3.8": verdict_3_8,
    "3.9": verdict_3_9,
}


def ledger(lm: LanguageModel, prompt: Prompt, keep: Keep = compute_now) -> list[Claim]:
    """Measure lesson 3's claims on the prompt and on 24 others, and judge them. A prompt needs two tokens or more.

    Keys and heads are edited 5/12 of the way, neurons 7/12, hidden states 3/4: in a model of 12 blocks 5, 7 and 9, the last
    one as in the report. Raises BadPrompt, PromptTooLong.
    """
    runs = [keep(f"3 {one}", partial(measure, lm, one)) for one in several(lm, prompt)]
    every = {name: [run[name] for run in runs] for name in runs[0]}
    block, head = lm.n_blocks * 5 // 12, _key_head(lm)
    places = keep(f"3 places {prompt}", lambda: [find_keys(lm, prompt, block, head), forms(lm, prompt, block)])
    plain, asked, attention = places[1]
    effects = torch.tensor(every["effects"], dtype=torch.float64).quantile(0.5, dim=0).tolist()
    return [
        verdict_3_1(lm.d_model, lm.d_head, head, *places[0]),
        verdict_3_2(
            *(every[name] for name in ("distance", "reached", "relative", "divergence", "constant", "mean_alone"))
        ),
        verdict_3_3(*(every[name] for name in ("clean", "small", "with_first", "missing", "cosine"))),
        verdict_3_4(*(every[name] for name in ("clean", "large", "final_clean", "final_large"))),
        verdict_3_5(every["all_tokens"], every["without"]),
        verdict_3_6(plain, asked, attention, transformers.__version__),
        verdict_3_7(max(every["others"]), effects[0], effects[1], effects[2], effects[3:]),
        verdict_3_8(every["left"], every["zero_keys"], every["zero_heads"], lm.n_heads // lm.n_key_heads),
        verdict_3_9(every["negative"], every["near"]),
    ]


def measure(lm: LanguageModel, prompt: Prompt) -> dict[str, Any]:
    """What the verdicts take, of one prompt."""
    clean = trace(lm, prompt)
    return _scaling(lm, prompt, clean) | _noise(lm, prompt, clean) | _parts(lm, prompt, clean)


def _scaling(lm: LanguageModel, prompt: Prompt, clean: Trace) -> dict[str, Any]:
    late = lm.n_blocks * 3 // 4
    place = late + 1
    runs = []
    for factor in (0.1, 10.0):
        with edit(lm, scale_block(late, factor)):
            runs.append(trace(lm, prompt))
    small, large = runs
    assert clean.final is not None and large.final is not None

    def size(run: Trace) -> list[float]:
        return spread(run.resid, include_first=False)[place:].tolist()

    ratio = spread(small.resid)[place:] / spread(clean.resid)[place:]
    return {
        "clean": size(clean),
        "small": size(small),
        "large": size(large),
        "with_first": [float(ratio[0]), float(ratio[-1])],
        "missing": missing(clean, small, place),
        "cosine": float(cosine_similarity(clean.resid, small.resid, include_first=False)[-1]),
        "final_clean": float(clean.final[:, 1:].std()),
        "final_large": float(large.final[:, 1:].std()),
        "all_tokens": spread(clean.resid).tolist(),
        "without": spread(clean.resid, include_first=False).tolist(),
    }


def missing(clean: Trace, edited: Trace, place: int) -> float:
    """The share of an edit's change at point `place` that is still in the stream at its end, along its own direction, a mean
    over the tokens but the first; 0: all undone, 1: nothing."""
    first, last = ((clean.resid - edited.resid)[point, :, 1:] for point in (place, -1))
    return float(((last * first).sum(dim=-1) / first.pow(2).sum(dim=-1)).mean())


def _noise(lm: LanguageModel, prompt: Prompt, clean: Trace, mean: float = 10.0) -> dict[str, Any]:
    block = lm.n_blocks * 7 // 12
    natural = read_site(lm, prompt, "neurons", block)

    def run(std: float) -> Trace:
        generator = torch.Generator().manual_seed(0)
        with edit(lm, noise_neurons(block, slice(0, None, 2), mean, std, generator)):
            return trace(lm, prompt)

    noisy = run(1.0)
    change = (noisy.resid - clean.resid)[block + 1]
    constant = change.mean(dim=(0, 1)).pow(2).sum() * change.shape[0] * change.shape[1] / change.pow(2).sum()
    return {
        "distance": float((mean - natural.mean()) / natural.std()),
        "reached": float((natural >= mean).double().mean()),
        "relative": float(relative_error(clean.resid, noisy.resid)[block + 1]),
        "divergence": float(kl(clean.last_logits, noisy.last_logits)),
        "constant": float(constant),
        "mean_alone": float(kl(clean.last_logits, run(0.0).last_logits)),
        "negative": float((natural <= 0).double().mean()),
        "near": float((natural.abs() < NEAR_ZERO * natural.pow(2).mean().sqrt()).double().mean()),
    }


def _parts(lm: LanguageModel, prompt: Prompt, clean: Trace) -> dict[str, Any]:
    """What a block's parts do, and what is left of the heads whose keys are zero."""
    block, key = lm.n_blocks * 5 // 12, _key_head(lm)
    group = lm.n_heads // lm.n_key_heads
    hit = list(range(key * group, (key + 1) * group))
    with edit(lm, zero_keys(block, key)):
        evenly = trace(lm, prompt, stop_after=block).heads[block]
    with edit(lm, zero_heads(block, hit)):
        others = trace(lm, prompt, stop_after=block).heads[block]
    rest = [head for head in range(lm.n_heads) if head not in hit]
    own = [zero_heads(block, head) for head in range(lm.n_heads)]
    tried = [
        skip_block(block),
        skip_attention(block),
        skip_mlp(block),
        *own,
        zero_keys(block, key),
        zero_heads(block, hit),
    ]
    effects = sweep_edits(lm, lm.encode(prompt).ids[0], tried, measure=DIVERGENCE, progress=False).tolist()
    return {
        "left": float(evenly[:, 1:, hit].norm() / clean.heads[block][:, 1:, hit].norm()),
        "others": float((others - clean.heads[block])[:, :, rest].abs().max()) if rest else 0.0,
        "effects": effects[:-2],
        "zero_keys": effects[-2],
        "zero_heads": effects[-1],
    }


def _key_head(lm: LanguageModel) -> int:
    """The report's third head, index 2, or the last one of a model with fewer."""
    return min(2, lm.n_key_heads - 1)


@torch.no_grad()
def find_keys(lm: LanguageModel, prompt: Prompt, block: int, head: int) -> tuple[int | None, int | None, int]:
    """Search the projection's output for a head's keys as the model itself stores them in its cache.

    Returns the first column of the match in K alone and in the whole output, None where there is none, and the output's
    width. The cache is the
    model's own, so nothing here assumes the order of the columns. The first token is compared: rotary positions leave it as it is.
    """
    seen: list[Tensor] = []
    handles = [on_output(lm.part(block, lm.parts.keys), lambda value, _: seen.append(value.clone()))]
    try:
        cache = model_cache(lm, prompt)
    finally:
        remove(handles)
    key = cache.layers[block].keys[0, head, 0]
    row = seen[0].reshape(-1, seen[0].shape[-1])[0]
    width = lm.n_key_heads * lm.d_head
    alone = row.split(width)[1] if len(row) == 3 * width else row
    return _match(alone, key), _match(row, key), len(row)


def _match(row: Tensor, key: Tensor) -> int | None:
    same = (row.unfold(0, len(key), 1) == key).all(dim=-1).nonzero().flatten().tolist()
    return same[0] if len(same) == 1 else None


@torch.no_grad()
def forms(lm: LanguageModel, prompt: Prompt, block: int) -> tuple[int, int, int]:
    """How many elements the tuple has that a block returns without and with output_attentions=True, and its attention
    module with it; 0 for a plain tensor."""
    seen: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.__setitem__(name, len(output) if isinstance(output, tuple) else 0)

    inputs = lm.inputs(lm.encode(prompt))
    found = []
    for asked in (False, True):
        handles = [
            lm.blocks[block].register_forward_hook(note("block")),
            lm.attention(block).register_forward_hook(note("attention")),
        ]
        try:
            lm.model(**inputs, output_attentions=asked)
        finally:
            remove(handles)
        found.append(seen["block"])
    return found[0], found[1], seen["attention"]


def _form(elements: int) -> str:
    return say("tuple of {elements}", elements=elements) if elements else say("plain tensor")


def _place(column: int | None) -> str:
    return say("no column") if column is None else say("column {column}", column=column)
