"""Lesson 4's exercises: what a head's removal reaches, the right hook, means at each position, what heads write, pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from helpers.course.exercise import Exercise, a_model, checker, hooks_on, tiny_model
from helpers.edits import change, edit, replace_heads, skip_attention, zero_heads
from helpers.lesson4.study import direction_of, name_of, output_weight
from helpers.loading import load_model
from helpers.metrics import log_prob
from helpers.models import LanguageModel
from helpers.readings import attention_patterns
from helpers.say import say, translatable
from helpers.tracing import trace

BERLIN, TARGET, CONTRAST = "Berlin is the capital of", " Germany", " Greece"
EXAMPLE = "Paris is the capital of France. "  # SmolLM2 needs to see the pattern
SISTER = 5  # SmolLM2: head 23.5 looks at the capital too
TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 3]])


def _carries(model: str) -> tuple[int, int]:
    """The head that writes most towards the country, in the model of that name, as `a_model` gives it."""
    return (23, 4) if model == "SmolLM2" else (8, 4)


def _wrong_shape(got: Any, shape: Sequence[int]) -> str | None:
    if not isinstance(got, Tensor):
        return say("return a tensor; this is a {kind}.", kind=type(got).__name__)
    if tuple(got.shape) != tuple(shape):
        return say(
            "the shape is {shape} and should be {right_shape}.", shape=tuple(got.shape), right_shape=tuple(shape)
        )
    return None


def _prompt(model: str, capital: str = "Berlin") -> str:
    """The prompt that this model answers with the country."""
    return (EXAMPLE if model == "SmolLM2" else "") + BERLIN.replace("Berlin", capital)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-8)


# ---- 4.1


def what_changes(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> set[str]:
    """Return the letters of exercise 4.1's list that a zeroed head changes in this model, by running it."""

    def patterns() -> list[Tensor]:
        with torch.no_grad():
            return list(lm.model(input_ids=tokens, output_attentions=True, use_cache=False).attentions)

    clean, clean_patterns = trace(lm, tokens), patterns()
    with edit(lm, zero_heads(block, [head])):
        cut, cut_patterns = trace(lm, tokens), patterns()
    other = (head + 1) % lm.n_heads
    pairs = {
        "a": (clean.resid[block], cut.resid[block]),
        "b": (clean_patterns[block][:, head], cut_patterns[block][:, head]),
        "c": (clean.heads[block][:, :, other], cut.heads[block][:, :, other]),
        "d": (clean.attn[block], cut.attn[block]),
        "e": (clean_patterns[block + 1], cut_patterns[block + 1]),
        "f": (clean.last_logits, cut.last_logits),
    }
    return {letter for letter, (before, after) in pairs.items() if not torch.equal(before, after)}


def _check_4_1(answer: Any) -> str | None:
    if isinstance(answer, str) or not isinstance(answer, set | frozenset | list | tuple):
        return say('give a set of letters, for example {"a", "c"}.')
    guess = {str(letter).strip().lower() for letter in answer}
    if not guess <= set("abcdef"):
        return say(
            "{guess} is not in the list: the letters go from a to f.", guess=", ".join(sorted(guess - set("abcdef")))
        )
    truth = what_changes(tiny_model(4), TOKENS, 1, 2)
    too_much = {
        "a": say("a is computed before the edit; nothing flows back to the left."),
        "b": say(
            "b does not change: the pattern (who looks where) is made before the values are mixed, and the "
            "edit comes after that. A picture of the pattern cannot tell you whether a head is switched off."
        ),
        "c": say("c does not change: the heads of one block work side by side, none reads another."),
    }
    missing = {
        "d": say("d is missing: what attention adds is a sum over heads, and one term is gone."),
        "e": say("e is missing: the next block reads the stream that was changed."),
        "f": say("f is missing: everything after the edit may change, the prediction too."),
    }
    for letter in sorted(guess - truth):
        return too_much[letter]
    for letter in sorted(truth - guess):
        return missing[letter]
    return None


def _payoff_4_1(answer: Any) -> str:
    lm, model = a_model()
    block, head = _carries(model)
    prompt = _prompt(model)
    clean, looked = trace(lm, prompt), attention_patterns(lm, prompt)
    with edit(lm, zero_heads(block, head)):
        cut, looks = trace(lm, prompt), attention_patterns(lm, prompt)
    moved = (looks - looked).abs().amax((1, 2, 3, 4))  # of each block
    p = [run.last_logits[0].softmax(-1)[lm.token_id(TARGET)] for run in (clean, cut)]
    return say(
        "On {model} without head {head} no pattern up to block {block} moves (largest change "
        "{largest_up_to}), in later blocks attention moves by up to {largest_after}. The answer{target} "
        "goes from {clean_probability} to {probability}.",
        model=model,
        head=name_of(block, head),
        block=block,
        largest_up_to=f"{float(moved[: block + 1].max()):.2f}",
        largest_after=f"{float(moved[block + 1 :].max()):.2f}",
        target=TARGET,
        clean_probability=f"{float(p[0]):.3f}",
        probability=f"{float(p[1]):.3f}",
    )


# ---- 4.2


def _stub_4_2(lm, tokens, block, head):
    return ...


def solution_4_2(lm, tokens, block, head):
    def hook(module, args):
        heads = args[0].unflatten(-1, (lm.n_heads, lm.d_head)).clone()  # (batch, pos, n_heads, d_head)
        heads[:, :, head] = 0
        return (heads.flatten(-2), *args[1:])

    handle = lm.blocks[block].attn.c_proj.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            return lm.model(tokens).logits
    finally:
        handle.remove()


def _by_pre_hook(zero: Callable[[Tensor, LanguageModel, int], Tensor], keep: bool = False) -> Callable[..., Any]:
    """A learner's function around `zero(projection input, lm, head)`, which returns the new input."""

    def mine(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
        projection = lm.blocks[block].get_submodule("attn.c_proj")
        handle = projection.register_forward_pre_hook(lambda m, args: (zero(args[0].clone(), lm, head),))
        logits = lm.logits(tokens)
        if not keep:
            handle.remove()
        return logits

    return mine


def _zero_slots(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    x[..., head * lm.d_head : (head + 1) * lm.d_head] = 0
    return x


def _zero_slots_of_first_row(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    x[0] = _zero_slots(x[0], lm, head)
    return x


def _zero_stripes(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    spread = x.unflatten(-1, (lm.d_head, lm.n_heads)).clone()
    spread[..., head] = 0
    return spread.flatten(-2)


def _zero_last(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    x[:, -1] = _zero_slots(x[:, -1], lm, head)
    return x


def _zero_position(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    x[:, head] = 0
    return x


def _keep_only(x: Tensor, lm: LanguageModel, head: int) -> Tensor:
    kept = torch.zeros_like(x)
    mine = slice(head * lm.d_head, (head + 1) * lm.d_head)
    kept[..., mine] = x[..., mine]
    return kept


def _before_c_attn(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    module = lm.blocks[block].get_submodule("attn.c_attn")
    handle = module.register_forward_pre_hook(lambda m, args: (_zero_slots(args[0].clone(), lm, head),))
    logits = lm.logits(tokens)
    handle.remove()
    return logits


def _all_attention(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    with edit(lm, skip_attention(block)):
        return lm.logits(tokens)


def _weights_for_good(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    with torch.no_grad():
        output_weight(lm, block)[head * lm.d_head : (head + 1) * lm.d_head] = 0
    return lm.logits(tokens)


def _by_weights_and_back(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    rows = output_weight(lm, block)[head * lm.d_head : (head + 1) * lm.d_head]
    kept = rows.clone()
    try:
        rows.zero_()
        return lm.logits(tokens)
    finally:
        rows.copy_(kept)


def _by_edit(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    with edit(lm, zero_heads(block, head)):
        return lm.logits(tokens)


def _by_slices(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    projection = lm.blocks[block].get_submodule("attn.c_proj")
    mask = torch.ones(lm.n_heads * lm.d_head, dtype=lm.dtype)
    mask[head * lm.d_head : (head + 1) * lm.d_head] = 0
    with projection.register_forward_pre_hook(lambda m, args: args[0] * mask):  # one input may come back bare
        return lm.model(tokens).logits


def _after_the_projection(lm: LanguageModel, tokens: Tensor, block: int, head: int) -> Tensor:
    projection = lm.blocks[block].get_submodule("attn.c_proj")
    handle = projection.register_forward_hook(lambda m, args, output: _zero_slots(output.clone(), lm, head))
    logits = lm.logits(tokens)
    handle.remove()
    return logits


def _check_4_2(answer: Any) -> str | None:
    for seed, block, head in ((5, 1, 2), (6, 3, 0)):
        lm = tiny_model(seed)
        with edit(lm, zero_heads(block, [head])):
            right = lm.logits(TOKENS)
        clean, hooks = lm.logits(TOKENS), hooks_on(lm.model)
        got = answer(lm, TOKENS.clone(), block, head)
        left = hooks_on(lm.model) - hooks
        complaint = _wrong_shape(got, right.shape)
        if complaint:
            return complaint
        if left > 0:
            return say("your hook stays on the model: every later run would have this head off too. Remove its handle.")
        if not _same(lm.logits(TOKENS), clean):
            return say(
                "the model itself has changed: what you did to its weights is still there after your function "
                "has returned."
            )
        if not _same(got, right):
            return _slip_4_2(got, lm, block, head)
        with suppress(Exception):
            answer(lm, TOKENS + 10**6, block, head)  # no such token: the pass fails
        if hooks_on(lm.model) > hooks:
            return say("when the pass fails, your hook stays on the model: remove its handle in a `finally`.")
    return None


def _slip_4_2(got: Tensor, lm: LanguageModel, block: int, head: int) -> str:
    """Which slip gives these logits."""
    if _same(got, lm.logits(TOKENS)):
        return say("nothing changed: a hook that edits must return the new input.")
    with edit(lm, change("attention", block, lambda v: _zero_slots(v.clone(), lm, head))):
        if _same(got, lm.logits(TOKENS)):
            return say(
                "you zeroed columns of the projection's *output* (a forward hook, or the wrong module). There "
                "the heads are already mixed, and those columns belong to none of them: use "
                "register_forward_pre_hook."
            )
    variants = {
        _zero_stripes: say(
            "the reshape takes every n_heads-th number. The heads lie one after the other, so the last axis "
            "splits into (n_heads, d_head), in this order."
        ),
        _zero_slots_of_first_row: say(
            "only the first row of the batch lost its head: `x[0]` is the first prompt. Keep the batch axis."
        ),
        _zero_last: say("the head is off at the last token only; zero it at every position."),
        _zero_position: say(
            "you zeroed all heads at one position: `x[:, head]` picks from the second axis, and that is the "
            "position. Split the last axis into heads first."
        ),
        _keep_only: say("you kept this head and zeroed all others; it is the other way round."),
    }
    for wrong, sentence in variants.items():
        with edit(lm, change("heads", block, _on_heads(wrong, lm, head))):
            if _same(got, lm.logits(TOKENS)):
                return sentence
    if _same(got, _all_attention(lm, TOKENS, block, head)):
        return say("the whole attention of the block is gone: zero one head's numbers, not all of them.")
    if _same(got, _before_c_attn(lm, TOKENS, block, head)):
        return say(
            "you edited what goes into c_attn, which makes queries, keys and values for all heads. Hook attn.c_proj."
        )
    for other in range(lm.n_heads):
        if other != head and _same(got, _by_edit(lm, TOKENS, block, other)):
            return say(
                "asked for head {head}, you removed head {other}: head h has columns h·d_head to (h + 1)·d_head.",
                head=head,
                other=other,
            )
    return say("these logits differ from those of a model without this head; compare each step with the lesson's hook.")


def _payoff_4_2(answer: Any) -> str:
    lm, ids = load_model(), load_model().encode(BERLIN).ids  # the pocket model: its projection is called c_proj
    target = lm.token_id(TARGET)
    clean = log_prob(lm.logits(ids)[0, -1], target)
    worst = {}
    for block in (5, 8):
        found = (
            torch.stack([log_prob(answer(lm, ids, block, h)[0, -1].detach(), target) for h in range(lm.n_heads)])
            - clean
        )
        worst[block] = say(
            "head {name_of} costs most, {found} nats",
            name_of=name_of(block, int(found.argmin())),
            found=f"{-float(found.min()):.3f}",
        )
    return say(
        "On the pocket model, with your function: in block 5 {worst}. In block 8 {worst_2}: the report "
        "looked in a block where little happens for this question.",
        worst=worst[5],
        worst_2=worst[8],
    )


def _on_heads(wrong: Callable[[Tensor, LanguageModel, int], Tensor], lm: LanguageModel, head: int):
    return lambda heads: wrong(heads.flatten(-2).clone(), lm, head).unflatten(-1, (lm.n_heads, lm.d_head))


# ---- 4.3


def _stub_4_3(rows, length):
    return ...


def solution_4_3(rows, length):
    means = []
    for back in range(length, 0, -1):  # 1 is the last token
        said = [row[-back] for row in rows if len(row) >= back]
        means.append(torch.stack(said).mean(dim=0))
    return torch.stack(means)


def _by_nan(rows: list[Tensor], length: int) -> Tensor:
    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest, *rows[0].shape[1:]), torch.nan, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, longest - len(row) :] = row
    return padded.nanmean(dim=0)[-length:]


def _by_sums(rows: list[Tensor], length: int) -> Tensor:
    total = torch.zeros(length, *rows[0].shape[1:], dtype=rows[0].dtype)
    for row in rows:
        few = min(length, len(row))
        total[length - few :] += row[-few:]
    counts = torch.tensor([sum(len(row) >= length - i for row in rows) for i in range(length)], dtype=total.dtype)
    return total / counts.view(-1, *[1] * (total.ndim - 1))


def _by_flip(rows: list[Tensor], length: int) -> Tensor:
    flipped = [row.flip(0) for row in rows]
    return torch.stack([torch.stack([f[i] for f in flipped if len(f) > i]).mean(0) for i in range(length)]).flip(0)


def _in_place_mean(rows: list[Tensor], length: int) -> Tensor:
    found = _by_sums(rows, length)
    rows[0] *= 0
    return found


def _mean_variants(rows: list[Tensor], length: int) -> dict[str, Tensor]:
    right = _by_sums(rows, length)
    whole = [row for row in rows if len(row) >= length]
    from_start = torch.stack([torch.stack([r[i] for r in rows if len(r) > i]).mean(0) for i in range(length)])
    counts = torch.tensor([sum(len(row) >= length - i for row in rows) for i in range(length)], dtype=right.dtype)
    sums = right * counts.view(-1, *[1] * (right.ndim - 1))
    pooled = torch.cat(rows).mean(0)
    return {
        "right": right,
        say(
            "your prompts meet at their first token. Count back from the last one: row[-1], row[-2] and so on."
        ): from_start,
        say(
            "this is one mean over all positions. It loses what a head says at this place on every prompt: "
            "keep one for each."
        ): (pooled.expand(length, *pooled.shape)),
        say("these are sums: divide by the number of prompts that have this position."): sums,
        say("you divided by all prompts. A short prompt has no early position, so it does not count there."): sums
        / len(rows),
        say("the order is turned round: the last row of the result belongs to the last token."): right.flip(0),
        say("the short prompts are missing: they have late positions too, and count there."): (
            torch.stack([row[-length:] for row in whole]).mean(0)
        ),
    }


def _check_4_3(answer: Any) -> str | None:
    draw = torch.Generator().manual_seed(43)
    for lengths, length, width in (((6, 3, 5, 4), 5, (8,)), ((2, 4, 4), 3, (3, 5))):
        rows = [torch.randn(n, *width, generator=draw, dtype=torch.float64) + 0.5 for n in lengths]
        variants = _mean_variants(rows, length)
        right = variants.pop("right")
        mine = [row.clone() for row in rows]
        got = answer(mine, length)
        if len(mine) != len(rows) or not all(torch.equal(a, b) for a, b in zip(mine, rows, strict=True)):
            return say("the rows that you were given have changed: work on copies.")
        if isinstance(got, Tensor) and _same(got, right):
            continue
        if isinstance(got, Tensor) and _same(got, torch.cat(rows).mean(0)):
            return say("one mean came back, over all positions: there is one for each position.")
        for sentence, values in variants.items():
            if isinstance(got, Tensor) and _same(got, values):
                return sentence
        if isinstance(got, Tensor) and len(got) == max(lengths):
            return say(
                "you return {lengths} positions, as many as the longest prompt has; asked are the last {length}.",
                lengths=max(lengths),
                length=length,
            )
        return _wrong_shape(got, right.shape) or say(
            "this is not the mean over the prompts at each position from the end."
        )
    return None


def _wrong_4_3(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_mean_variants(*args).values())[index]


def _payoff_4_3(answer: Any) -> str:
    lm, model = a_model()
    cities = [
        "Rome",
        "Madrid",
        "Cairo",
        "Tokyo",
        "Moscow",
        "Vienna",
        "Warsaw",
        "Lisbon",
        "Oslo",
        "Dublin",
        "Havana",
        "Lima",
    ]
    length = len(lm.token_ids(_prompt(model)))
    said = [trace(lm, _prompt(model, city), stop_after=0).heads[0, 0] for city in cities]
    mean = answer(said, length)
    target, everyone = lm.token_id(TARGET), list(range(lm.n_heads))
    clean = log_prob(lm.logits(_prompt(model))[0, -1], target)
    cost = []
    for edits in (zero_heads(0, everyone), replace_heads(0, everyone, mean[None])):
        with edit(lm, edits):
            cost.append(float(log_prob(lm.logits(_prompt(model))[0, -1], target) - clean))
    return say(
        "On {model} all heads of block 0 at zero change log p({target!r}) by {cost_first} nats, at your "
        "means over 12 other capitals by {cost_second}. What these heads say here, they say on nearly "
        "every such prompt.",
        model=model,
        target=TARGET,
        cost_first=f"{cost[0]:+.2f}",
        cost_second=f"{cost[1]:+.2f}",
    )


# ---- 4.4


def _stub_4_4(z, weight, direction):
    return ...


def solution_4_4(z, weight, direction):
    n_heads, d_head = z.shape
    rows = weight.unflatten(0, (n_heads, d_head))  # the rows of W_O that belong to each head
    written = torch.einsum("hd,hdm->hm", z, rows)  # (n_heads, d_model): what each head adds to the stream
    return written @ direction


def _one_by_one(z: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    n = z.shape[1]
    return torch.stack([z[h] @ weight[h * n : (h + 1) * n] @ direction for h in range(len(z))])


def _direction_first(z: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    return (z.flatten() * (weight @ direction)).view_as(z).sum(-1)


def _each_alone(z: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    return torch.stack(
        [((z * (torch.arange(len(z)) == h)[:, None]).flatten() @ weight) @ direction for h in range(len(z))]
    )


def _in_place_write(z: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    found = _one_by_one(z, weight, direction)
    direction /= direction.norm()
    return found


def _write_variants(z: Tensor, weight: Tensor, direction: Tensor) -> dict[str, Tensor]:
    n_heads, d_head = z.shape
    rows = weight.unflatten(0, (n_heads, d_head))
    written = torch.einsum("hd,hdm->hm", z, rows)
    stripes = weight.unflatten(0, (d_head, n_heads)).transpose(0, 1)
    right = written @ direction
    found = {
        "right": right,
        say(
            "the rows of W_O are split wrongly: head h has the rows h·d_head to (h + 1)·d_head, one after the other."
        ): (torch.einsum("hd,hdm->hm", z, stripes) @ direction),
        say(
            "these are the lengths of what the heads add, in every direction. Take the dot product with `direction`."
        ): (written.norm(dim=-1)),
        say(
            "these are cosines. A head that adds little would count as much as one that adds a lot: leave "
            "the lengths in."
        ): (torch.cosine_similarity(written, direction[None], dim=-1)),
        say("you shortened the direction to length 1: its length turns the result into nats, keep it."): right
        / direction.norm(),
        say("the sign is turned round."): -right,
    }
    if weight.shape[0] == weight.shape[1]:
        turned = weight.t().unflatten(0, (n_heads, d_head))
        found["you took columns of W_O: an output is `z @ weight`, so a head has rows of it."] = (
            torch.einsum("hd,hdm->hm", z, turned) @ direction
        )
    return found


def _check_4_4(answer: Any) -> str | None:
    draw = torch.Generator().manual_seed(44)
    for n_heads, d_head, d_model in ((4, 8, 32), (3, 5, 20)):
        z, weight, direction = (
            torch.randn(shape, generator=draw, dtype=torch.float64)
            for shape in ((n_heads, d_head), (n_heads * d_head, d_model), (d_model,))
        )
        variants = _write_variants(z, weight, direction)
        right = variants.pop("right")
        given = [z.clone(), weight.clone(), direction.clone()]
        got = answer(*given)
        if not all(torch.equal(a, b) for a, b in zip(given, (z, weight, direction), strict=True)):
            return say("a tensor that you were given has changed: work on copies.")
        if isinstance(got, Tensor) and _same(got, right):
            continue
        if isinstance(got, Tensor) and got.numel() == 1 and torch.allclose(got.double(), right.sum()):
            return say("this is what all heads write together: give one number for each head.")
        if isinstance(got, Tensor) and got.shape == (n_heads, d_model):
            return say("these are the vectors that the heads add; take each one's dot product with `direction`.")
        for sentence, values in variants.items():
            if isinstance(got, Tensor) and _same(got, values):
                return sentence
        return _wrong_shape(got, right.shape) or say("this is not z_h times its rows of W_O, times the direction.")
    return None


def _wrong_4_4(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_write_variants(*args).values())[index]


def _payoff_4_4(answer: Any) -> str:
    lm, model = a_model()
    run = trace(lm, _prompt(model))
    towards = direction_of(lm, run, lm.token_id(TARGET), lm.token_id(CONTRAST))
    found = torch.stack([answer(run.heads[b, 0, -1], output_weight(lm, b), towards) for b in range(lm.n_blocks)])
    worst, second, best = (divmod(int(i), lm.n_heads) for i in found.flatten().argsort()[[0, -2, -1]])
    return say(
        "On {model}, on this one prompt, your function finds that head {worst} writes most against the answer, {found_worst} "
        "nats. Most towards{target} against{contrast} writes head {best}, {found_best}, then {second}, {found_second}. All "
        "{found_2} heads together write {found}.",
        model=model,
        best=name_of(*best),
        target=TARGET,
        contrast=CONTRAST,
        found_best=f"{float(found[best]):+.2f}",
        second=name_of(*second),
        found_second=f"{float(found[second]):+.2f}",
        found=f"{float(found.sum()):.2f}",
        found_2=found.numel(),
        worst=name_of(*worst),
        found_worst=f"{float(found[worst]):+.2f}",
    )


# ---- 4.5


def _stub_4_5(lm, tokens, block, target):
    return ...


def solution_4_5(lm, tokens, block, target):
    def log_p():
        return lm.logits(tokens)[0, -1].log_softmax(dim=-1)[target].item()

    clean = log_p()
    effect = torch.zeros(lm.n_heads, lm.n_heads)  # on the diagonal: one head alone
    for i in range(lm.n_heads):
        for j in range(lm.n_heads):
            with edit(lm, zero_heads(block, sorted({i, j}))):
                effect[i, j] = log_p() - clean
    alone = effect.diagonal()
    extra = effect - alone[:, None] - alone[None, :]
    return extra.fill_diagonal_(0)


def _joint(lm: LanguageModel, tokens: Tensor, block: int, target: int, measure=log_prob) -> tuple[float, Tensor]:
    """The clean value and (n_heads, n_heads) values with heads i and j off; one head alone on the diagonal."""
    clean = measure(lm.logits(tokens)[0, -1], target).item()
    joint = torch.zeros(lm.n_heads, lm.n_heads, dtype=torch.float64)
    for i in range(lm.n_heads):
        for j in range(i + 1):
            with edit(lm, zero_heads(block, sorted({i, j}))):
                joint[i, j] = joint[j, i] = measure(lm.logits(tokens)[0, -1], target).item()
    return clean, joint


def _pair_variants(lm: LanguageModel, tokens: Tensor, block: int, target: int) -> dict[str, Tensor]:
    def extra(effect: Tensor) -> Tensor:
        alone = effect.diagonal()
        return effect - alone[:, None] - alone[None, :]

    clean, joint = _joint(lm, tokens, block, target)
    p_clean, p_joint = _joint(lm, tokens, block, target, lambda logits, t: logits.softmax(-1)[t])
    raw_clean, raw_joint = _joint(lm, tokens, block, target, lambda logits, t: logits[t])
    effect = joint - clean
    right = extra(effect).fill_diagonal_(0)
    return {
        "right": right,
        say("these are the joint effects themselves; subtract what each of the two heads does alone."): effect,
        say(
            "the clean value is missing: turn all three log-probabilities into changes before you combine them."
        ): extra(joint).fill_diagonal_(0),
        say("the sign is turned round: joint effect minus the two single effects."): -right,
        say("these are differences of p: use log p."): extra(p_joint - p_clean).fill_diagonal_(0),
        say("the diagonal must be 0: a head makes no pair with itself."): extra(effect),
        say("these are differences of raw logits, which mean nothing alone: take log_softmax first."): (
            extra(raw_joint - raw_clean).fill_diagonal_(0)
        ),
        say("only one of the two single effects is subtracted: a pair has two heads."): (
            (effect - effect.diagonal()[:, None]).fill_diagonal_(0)
        ),
    }


def _check_4_5(answer: Any) -> str | None:
    lm, tokens, block, target = tiny_model(7), TOKENS[:1], 2, 17
    variants = _pair_variants(lm, tokens, block, target)
    right = variants.pop("right")
    hooks = hooks_on(lm.model)
    got = answer(lm, tokens.clone(), block, target)
    complaint = _wrong_shape(got, right.shape)
    if complaint:
        return complaint
    if hooks_on(lm.model) != hooks:
        return say("a hook stays on the model: edit inside `with`, or remove the handle.")
    got = got.double()
    if torch.allclose(got, right, atol=1e-5):
        return None
    off = ~torch.eye(len(right), dtype=torch.bool)
    for sentence, values in variants.items():
        if torch.allclose(got, values, atol=1e-5) or torch.allclose(got * off, values * off, atol=1e-5):
            return sentence
    if torch.allclose(got, right.triu(), atol=1e-5) or torch.allclose(got, right.tril(), atol=1e-5):
        return say("half of the matrix is empty: the pair (i, j) is the pair (j, i), so fill both.")
    return say(
        "this is not effect(i and j) − effect(i) − effect(j), with effect = log p(target) without the "
        "heads − with them."
    )


def _by_rows(lm: LanguageModel, tokens: Tensor, block: int, target: int) -> Tensor:
    clean, joint = _joint(lm, tokens, block, target)
    effect = joint - clean
    rows = [[effect[i, j] - effect[i, i] - effect[j, j] for j in range(lm.n_heads)] for i in range(lm.n_heads)]
    return torch.tensor(rows, dtype=torch.float64) * (1 - torch.eye(lm.n_heads, dtype=torch.float64))


def _one_triangle(lm: LanguageModel, tokens: Tensor, block: int, target: int) -> Tensor:
    upper = solution_4_5(lm, tokens, block, target).triu(1)
    return upper + upper.t()


def _by_masks(lm: LanguageModel, tokens: Tensor, block: int, target: int) -> Tensor:
    def without(heads: set[int]) -> Tensor:
        keep = torch.tensor([h not in heads for h in range(lm.n_heads)])
        with edit(lm, change("heads", block, lambda value: value * keep[:, None])):
            return lm.logits(tokens)[0, -1].log_softmax(-1)[target]

    n, found = lm.n_heads, torch.zeros(lm.n_heads, lm.n_heads, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            found[i, j] = found[j, i] = without({i, j}) - without({i}) - without({j}) + without(set())
    return found


def _payoff_4_5(answer: Any) -> str:
    small = load_model()  # a pass of the real model takes too long for every pair
    found = answer(small, small.encode(BERLIN).ids, 8, small.token_id(TARGET)).double()
    i, j = sorted(divmod(int(found.argmin()), len(found)))
    said = say(
        "On the pocket model the pair of block 8 that is worth most together is {first} and {second}: "
        "without both log p({target!r}) falls by {found} nats more than the two single losses add up to.",
        first=name_of(8, i),
        second=name_of(8, j),
        target=TARGET,
        found=f"{-float(found[i, j]):.3f}",
    )
    lm, model = a_model()
    if model == "the pocket model":
        return said
    block, head = _carries(model)
    runs = []
    for heads in ([], [head], [SISTER], [head, SISTER]):
        with edit(lm, *(zero_heads(block, h) for h in heads)):
            runs.append(log_prob(lm.logits(_prompt(model))[0, -1], lm.token_id(TARGET)))
    extra = float(runs[3] - runs[1] - runs[2] + runs[0])
    more = translatable(" For {head} and {sister} of {model} it falls by {extra} nats more.")
    less = translatable(" For {head} and {sister} of {model} it falls by {extra} nats less.")
    names = {"head": name_of(block, head), "sister": name_of(block, SISTER), "model": model}
    return said + say(more if extra < 0 else less, **names, extra=f"{abs(extra):.2f}")


def _wrong_4_5(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_pair_variants(*args).values())[index]


EXERCISES = (
    Exercise(
        "4.1", translatable("What can a removed head reach?"), 1, 3, ..., _check_4_1,
        translatable("Follow a pass from left to right. What is already computed when the pre-hook on the output "
"projection runs? What reads its result later?"),
        {"d", "e", "f"},
        wrong=({"a", "d", "e", "f"}, {"b", "d", "e", "f"}, {"c", "d", "e", "f"}, {"d", "f"}, {"d", "e"}, {"e", "f"}, "def", {"z"}),
        right=(["d", "e", "f"], ("F", "E", "D"), frozenset({" d", "e ", "f"})),
        payoff=_payoff_4_1,
    ),
    Exercise(
        "4.2", translatable("The hook in the right place"), 2, 8, _stub_4_2, _check_4_2,
        translatable("A pre-hook gets (module, args) and returns the new args, a tuple. args[0] is (batch, pos, "
"d_model). Split its last axis with unflatten(-1, (n_heads, d_head)), clone, zero, flatten(-2). "
"Remove the handle in a `finally`."),
        solution_4_2,
        wrong=(
            _after_the_projection, _by_pre_hook(_zero_stripes), _by_pre_hook(_zero_slots_of_first_row),
            _by_pre_hook(_zero_last), _by_pre_hook(_zero_slots, keep=True), _by_pre_hook(_zero_position),
            _by_pre_hook(_keep_only), _by_pre_hook(_zero_slots), _before_c_attn, _all_attention, _weights_for_good,
            _by_pre_hook(lambda x, lm, head: _zero_slots(x, lm, (head + 1) % lm.n_heads)),
            lambda lm, tokens, block, head: lm.logits(tokens), lambda lm, tokens, block, head: lm.logits(tokens)[0],
        ),
        right=(_by_edit, _by_weights_and_back, _by_slices),
        payoff=_payoff_4_2,
    ),
    Exercise(
        "4.3", translatable("The mean at each position"), 2, 8, _stub_4_3, _check_4_3,
        translatable("row[-1] is a prompt's last token, row[-2] the one before. Go through the positions from "
"`length` to 1 back, and average over the prompts that are long enough."),
        solution_4_3,
        wrong=(*(_wrong_4_3(i) for i in range(1, 7)), _in_place_mean, lambda rows, length: torch.cat(rows).mean(0),
               lambda rows, length: _by_sums(rows, max(map(len, rows)))),
        right=(_by_nan, _by_sums, _by_flip),
        payoff=_payoff_4_3,
    ),
    Exercise(
        "4.4", translatable("What does a head write?"), 2, 8, _stub_4_4, _check_4_4,
        translatable("weight.unflatten(0, (n_heads, d_head)) gives each head its rows of W_O. z_h times these rows is "
"what the head adds to the stream; a dot product with the direction makes one number of it."),
        solution_4_4,
        wrong=(*(_wrong_4_4(i) for i in range(1, 6)), lambda *args: list(_write_variants(*args).values())[-1], _in_place_write,
               lambda z, weight, direction: z.flatten() @ weight @ direction,
               lambda z, weight, direction: torch.einsum("hd,hdm->hm", z, weight.unflatten(0, z.shape))),
        right=(_one_by_one, _direction_first, _each_alone),
        payoff=_payoff_4_4,
    ),
    Exercise(
        "4.5", translatable("Which two heads cost more together?"), 3, 14, _stub_4_5, _check_4_5,
        translatable("effect(S) is log p(target) with the heads S off, minus the clean log p(target). Fill a matrix "
"with effect({i, j}); its diagonal is effect({i}). Then subtract the diagonal along both axes "
"and set the diagonal to 0."),
        solution_4_5,
        wrong=(*(_wrong_4_5(i) for i in range(1, 8)), lambda *args: solution_4_5(*args).triu(), lambda *args: 0.0),
        right=(_by_rows, _one_triangle, _by_masks),
        payoff=_payoff_4_5,
    ),
)  # fmt: skip
check_4_1, check_4_2, check_4_3, check_4_4, check_4_5 = (checker(exercise) for exercise in EXERCISES)
