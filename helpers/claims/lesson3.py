"""Lesson 3's claims about keys, neurons and hidden states, 3.1 to 3.7: measured, then judged.

    show_ledger(ledger(lm, "There is a lot of liquid water on planet Earth"))

A verdict function takes numbers and returns a Claim; it knows no model. Standard deviations are taken over all tokens
and coordinates of a point of the stream; KL divergences, in nats, are means over the tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from helpers.claims.core import FAILS, HOLDS, PARTLY, Claim
from helpers.edits import edit, noise_neurons, scale_block, skip_attention, skip_block, skip_mlp, zero_heads
from helpers.hooks import on_output, remove
from helpers.metrics import cosine_similarity, kl, relative_error
from helpers.models import LanguageModel
from helpers.readings import read_site, spread
from helpers.tables import format_number
from helpers.tracing import Trace, trace

FAR = 3.0  # standard deviations from the natural mean
RARE = 0.001  # share of natural values that may reach the noise
HALVED = 0.5  # the last block compresses a stream if it takes away half of its spread or more
VISIBLE = 0.1  # relative error of the stream, and nats of KL, that count as a visible disruption


def verdict_3_1(d_model: int, d_head: int, head: int, in_k: int | None, fused: int | None) -> Claim:
    """in_k, fused: the column at which the keys that the model itself uses were found, in K alone and in the projection."""
    says = "K of head 3 (index 2) starts at 2·64 = 128, and at n_embd + 128 in the fused QKV"
    expected = head * d_head
    measured = (
        f"found at {_place(in_k)} of K and {_place(fused)} of the projection; "
        f"head · d_head = {expected}, d_model + that = {d_model + expected}"
    )
    if in_k == expected and fused == d_model + expected:
        why = f"found by search, not by formula: d_model {d_model}, d_head {d_head} here; 768 and 64 give 128 and 896"
        return Claim("3.1", says, measured, HOLDS, why)
    if in_k == expected:
        return Claim("3.1", says, measured, PARTLY, "right inside K, but this model keeps K in another place")
    return Claim("3.1", says, measured, FAILS, "this model orders or changes its keys in another way")


def verdict_3_2(
    mean: float, natural_mean: float, natural_std: float, reached: float, relative: float, divergence: float,
    constant: float, mean_alone: float,
) -> Claim:  # fmt: skip
    """reached: share of the natural values that are as large as the noise's mean; relative: error of the stream right
    after the block; divergence: KL to the clean prediction; constant: share of the change that is the same at all tokens;
    mean_alone: KL with the mean in the same neurons and no randomness at all."""
    says = (
        "noise with mean 10 in the even MLP neurons is far outside their distribution and visibly disrupts the stream"
    )
    distance = (mean - natural_mean) / natural_std
    measured = (
        f"{_n(distance)} standard deviations away, {_n(100 * reached)} % of values get there; "
        f"relative error {_n(relative)}, KL {_n(divergence)} nats"
    )
    far = abs(distance) > FAR and reached < RARE
    visible = relative > VISIBLE and divergence > VISIBLE
    same = (
        f"{_n(100 * constant)} % of the change is one vector, the same at every token, and the mean alone, without any "
        f"randomness, gives a KL of {_n(mean_alone)} nats"
    )
    if far and visible:
        return Claim("3.2", says, measured, HOLDS, same)
    if far:
        return Claim("3.2", says, measured, PARTLY, "far outside, but the stream or the prediction hardly moves")
    if visible:
        return Claim("3.2", says, measured, PARTLY, f"it disrupts, but such values occur in a clean run too; {same}")
    return Claim("3.2", says, measured, FAILS, "neither far outside nor visible")


def verdict_3_3(
    clean: Sequence[float], edited: Sequence[float], written: float, missing: float, cosine: float
) -> Claim:
    """clean, edited: standard deviation from the scaled block's output to the end; written: size of what the
    later blocks write, clean = 1; missing: share of what the factor took away that is still missing at the end of the
    stream; cosine: of both streams at the end."""
    says = "scale 0.1 at block 9: the standard deviation drops there and revives in later layers"
    before, after = edited[0] / clean[0], edited[-1] / clean[-1]
    measured = (
        f"{_n(edited[0])} → {_n(edited[-1])}, clean {_n(clean[0])} → {_n(clean[-1])}; ratio {_n(before)} → {_n(after)}"
    )
    if before > 0.5:
        return Claim("3.3", says, measured, FAILS, "it does not drop at the block")
    if len(edited) < 2 or edited[-1] <= edited[0]:
        return Claim("3.3", says, measured, FAILS, "it drops and stays down to the end")
    if after <= before:
        return Claim("3.3", says, measured, FAILS, "it grows by no more than the clean run does: nothing revives")
    if after < 2 * before:
        return Claim(
            "3.3", says, measured, PARTLY, "it gains on the clean run, but its share of it does not even double"
        )
    if not all(b > a for a, b in pairwise(edited)):
        return Claim("3.3", says, measured, PARTLY, "it ends much higher than it was, but does not rise at every block")
    why = (
        f"in size: {_n(100 * missing)} % of what was taken away is still missing at the end; later blocks write "
        f"{_n(written)} times their usual amount onto a tenth of the stream (cosine with the clean one {_n(cosine)})"
    )
    return Claim("3.3", says, measured, HOLDS, why)


def verdict_3_4(clean: Sequence[float], edited: Sequence[float], final_clean: float, final_edited: float) -> Claim:
    """clean, edited: standard deviation from the scaled block's output to the end, before the final norm; final_*: after it."""
    says = "scale 10 at block 9: it explodes, and the last layer compresses it"
    measured = (
        f"{_n(edited[0])} → {_n(edited[-1])} before the final norm (clean {_n(clean[0])} → {_n(clean[-1])}), "
        f"{_n(final_edited)} after it (clean {_n(final_clean)})"
    )
    if edited[0] < 2 * clean[0]:
        return Claim("3.4", says, measured, FAILS, "it does not explode")
    last, usual = (run[-1] / run[-2] if len(run) > 1 else 1.0 for run in (edited, clean))
    if last <= HALVED and last < 0.9 * usual:
        why = f"the last block itself takes the stream to {_n(last)} of its spread, before the final norm (clean: {_n(usual)})"
        return Claim("3.4", says, measured, HOLDS, why)
    before, after = edited[-1] / clean[-1], final_edited / final_clean
    if abs(after - 1) < 0.5 * abs(before - 1):
        why = (
            f"the last block takes the spread × {_n(last)} (clean × {_n(usual)}); what brings it back is the final norm, which "
            f"divides any stream by its own size (ratio to the clean run {_n(before)} → {_n(after)})"
        )
        return Claim("3.4", says, measured, PARTLY, why)
    return Claim(
        "3.4", says, measured, FAILS, "it explodes, and neither the last block nor the final norm brings it back"
    )


def verdict_3_5(with_first: Sequence[float], without: Sequence[float]) -> Claim:
    """with_first, without: standard deviation at each point of a clean run, before the final norm, with all tokens and
    without the first."""
    says = "the spread of the activations grows with depth"
    measured = (
        f"{_n(with_first[0])} → {_n(with_first[-1])}; without the first token {_n(without[0])} → {_n(without[-1])}"
    )
    if with_first[-1] <= with_first[0] and without[-1] <= without[0]:
        return Claim("3.5", says, measured, FAILS, "it ends no higher than it began")
    steps = [sum(b > a for a, b in pairwise(series)) for series in (with_first, without)]
    number = len(without) - 1
    if min(steps) == number:
        return Claim("3.5", says, measured, HOLDS, f"it grows at all {number} blocks, with the first token and without")
    why = f"it grows at {steps[0]} of {number} blocks, without the first token at {steps[1]}"
    if 2 * max(steps) <= number:
        return Claim("3.5", says, measured, FAILS, f"{why}: a rise at some blocks, not growth with depth")
    return Claim("3.5", says, measured, PARTLY, why)


def verdict_3_6(plain: int, asked: int, attention: int) -> Claim:
    """plain, asked: elements of the tuple that a block returns, without and with output_attentions=True, 0 for a plain
    tensor; attention: the same for its attention module, with output_attentions=True."""
    says = "a block's output is a tuple that grows from one element to two with output_attentions=True"
    measured = f"block: {_form(plain)}, then {_form(asked)}; attention module: {_form(attention)}"
    if (plain, asked) == (1, 2):
        return Claim(
            "3.6", says, measured, HOLDS, "true of this transformers version; version 5 returns a plain tensor"
        )
    if 0 < plain < asked:
        return Claim("3.6", says, measured, PARTLY, "a tuple that grows, but not from one to two")
    if plain == asked == 0:
        return Claim(
            "3.6", says, measured, FAILS, "this transformers version returns a plain tensor, whatever is asked"
        )
    if not plain:
        return Claim("3.6", says, measured, FAILS, "without the option it is a plain tensor, with it a tuple")
    return Claim("3.6", says, measured, FAILS, "it does not grow")


def verdict_3_7(block: float, attention: float, mlp: float, heads: Sequence[float]) -> Claim:
    """KL to the clean prediction when a whole block is skipped, its attention, its MLP, and each head's output zeroed."""
    says = "hooking sub-layers gives finer control than hooking the block"
    middle = float(torch.tensor(list(heads), dtype=torch.float64).quantile(0.5))
    measured = (
        f"KL in nats: block {_n(block)}, attention {_n(attention)}, MLP {_n(mlp)}, median head {_n(middle)}, "
        f"largest head {_n(max(heads))}"
    )
    if middle >= block:
        return Claim("3.7", says, measured, FAILS, "half of the heads move the prediction as much as the whole block")
    if max(attention, mlp, *heads) < block:
        why = (
            f"{len(heads) + 2} handles in place of one, each smaller; what they do still reaches the rest "
            "only through the block's output"
        )
        return Claim("3.7", says, measured, HOLDS, why)
    why = "more handles, but one of them moves the prediction more than the whole block: parts can cancel each other"
    return Claim("3.7", says, measured, PARTLY, why)


VERDICTS: dict[str, Callable[..., Claim]] = {
    "3.1": verdict_3_1,
    "3.2": verdict_3_2,
    "3.3": verdict_3_3,
    "3.4": verdict_3_4,
    "3.5": verdict_3_5,
    "3.6": verdict_3_6,
    "3.7": verdict_3_7,
}


def ledger(
    lm: LanguageModel, prompt: str, keys: int | None = None, neurons: int | None = None, stream: int | None = None
) -> list[Claim]:
    """Measure lesson 3's claims on `lm` and judge them. The prompt needs two tokens or more.

    The blocks of the edits: keys and heads in block `keys`, noise in block `neurons`, hidden states after block
    `stream`; unless told 5/12, 7/12 and 3/4 of the way: 5, 7 and 9 of 12, the last one as in the report.
    Raises BlockOutOfRange, BadPrompt, PromptTooLong.
    """
    middle = lm.check_block(lm.n_blocks * 5 // 12 if keys is None else keys)
    noisy = lm.check_block(lm.n_blocks * 7 // 12 if neurons is None else neurons)
    late = lm.check_block(lm.n_blocks * 3 // 4 if stream is None else stream)
    head = min(2, lm.n_key_heads - 1)
    clean = trace(lm, prompt)
    small, large = (_scaled(lm, prompt, late, factor) for factor in (0.1, 10.0))
    sizes = spread(clean.resid)
    place = late + 1
    assert clean.final is not None and large.final is not None
    return [
        verdict_3_1(lm.d_model, lm.d_head, head, *find_keys(lm, prompt, middle, head)),
        verdict_3_2(10.0, *_noise(lm, prompt, noisy, 10.0)),
        verdict_3_3(
            sizes[place:].tolist(),
            spread(small.resid)[place:].tolist(),
            float(_written(small, late) / _written(clean, late)),
            _remaining(clean, small, place),
            float(cosine_similarity(clean.resid, small.resid)[-1]),
        ),
        verdict_3_4(
            sizes[place:].tolist(),
            spread(large.resid)[place:].tolist(),
            float(clean.final.std()),
            float(large.final.std()),
        ),
        verdict_3_5(sizes.tolist(), spread(clean.resid, include_first=False).tolist()),
        verdict_3_6(*forms(lm, prompt, middle)),
        verdict_3_7(*_handles(lm, prompt, middle)),
    ]


def _written(run: Trace, block: int) -> Tensor:
    """Return the norm of everything that the blocks after `block` add to the stream; 0 when there are none."""
    return (run.attn + run.mlp)[block + 1 :].norm()


def _remaining(clean: Trace, edited: Trace, place: int) -> float:
    """Return the share of an edit's change at point `place` that is still in the stream at its end, a mean over the
    tokens; 1: nothing undone."""
    first, last = ((clean.resid - edited.resid)[point] for point in (place, -1))
    return float(((last * first).sum(dim=-1) / first.pow(2).sum(dim=-1)).mean())


def _scaled(lm: LanguageModel, prompt: str, block: int, factor: float) -> Trace:
    with edit(lm, scale_block(block, factor)):
        return trace(lm, prompt)


@torch.no_grad()
def find_keys(lm: LanguageModel, prompt: str, block: int, head: int) -> tuple[int | None, int | None]:
    """Search the projection's output for a head's keys as the model itself stores them in its cache.

    Returns the first column of the match in K alone and in the whole output, None where there is none. The cache is the
    model's own, so nothing here assumes the order of the columns. The first token is compared: rotary positions leave it as it is.
    """
    seen: list[Tensor] = []
    handles = [on_output(lm.part(block, lm.parts.keys), lambda value, _: seen.append(value.clone()))]
    try:
        inputs = lm.inputs(lm.encode(prompt)) | {"use_cache": True}
        cache: Any = lm.model(**inputs).past_key_values
    finally:
        remove(handles)
    key = cache.layers[block].keys[0, head, 0]
    row = seen[0].reshape(-1, seen[0].shape[-1])[0]
    width = lm.n_key_heads * lm.d_head
    alone = row.split(width)[1] if len(row) == 3 * width else row
    return _match(alone, key), _match(row, key)


def _match(row: Tensor, key: Tensor) -> int | None:
    same = (row.unfold(0, len(key), 1) == key).all(dim=-1).nonzero().flatten().tolist()
    return same[0] if len(same) == 1 else None


def _noise(lm: LanguageModel, prompt: str, block: int, mean: float) -> tuple[float, ...]:
    """What verdict_3_2 takes after the noise's mean."""
    natural = read_site(lm, prompt, "neurons", block)
    clean = trace(lm, prompt)

    def run(std: float) -> Trace:
        generator = torch.Generator().manual_seed(0)
        with edit(lm, noise_neurons(block, slice(0, None, 2), mean, std, generator)):
            return trace(lm, prompt)

    noisy = run(1.0)
    change = (noisy.resid - clean.resid)[block + 1]
    constant = change.mean(dim=(0, 1)).pow(2).sum() * change.shape[0] * change.shape[1] / change.pow(2).sum()
    return (
        float(natural.mean()),
        float(natural.std()),
        float((natural >= mean).double().mean()),
        float(relative_error(clean.resid, noisy.resid)[block + 1]),
        _divergence(clean.logits, noisy.logits),
        float(constant),
        _divergence(clean.logits, run(0.0).logits),
    )


@torch.no_grad()
def forms(lm: LanguageModel, prompt: str, block: int) -> tuple[int, int, int]:
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


def _handles(lm: LanguageModel, prompt: str, block: int) -> tuple[float, float, float, list[float]]:
    """KL to the clean prediction for the whole block, its attention, its MLP, and each head, removed."""
    clean = lm.logits(prompt)

    def effect(one) -> float:
        with edit(lm, one):
            return _divergence(clean, lm.logits(prompt))

    whole, attention, mlp = (effect(make(block)) for make in (skip_block, skip_attention, skip_mlp))
    return whole, attention, mlp, [effect(zero_heads(block, [head])) for head in range(lm.n_heads)]


def _divergence(clean: Tensor | None, edited: Tensor | None) -> float:
    assert clean is not None and edited is not None
    return float(kl(clean, edited).mean())


def _form(elements: int) -> str:
    return f"tuple of {elements}" if elements else "plain tensor"


def _place(column: int | None) -> str:
    return "no column" if column is None else f"column {column}"


def _n(value: float) -> str:
    return format_number(float(value), 3)
