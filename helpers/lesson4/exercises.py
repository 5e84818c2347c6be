"""Lesson 4's exercises: what a head's removal reaches, the right hook, log-probabilities, means, interactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.course.exercise import Exercise, checker, hooks_on, tiny_model
from helpers.edits import change, edit, zero_heads
from helpers.metrics import log_prob
from helpers.models import LanguageModel
from helpers.tracing import trace

TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 3]])


def _wrong_shape(got: Any, shape: Sequence[int]) -> str | None:
    if not isinstance(got, Tensor):
        return f"return a tensor; this is a {type(got).__name__}."
    if tuple(got.shape) != tuple(shape):
        return f"the shape is {tuple(got.shape)} and should be {tuple(shape)}."
    return None


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
        return 'give a set of letters, for example {"a", "c"}.'
    guess = {str(letter).strip().lower() for letter in answer}
    if not guess <= set("abcdef"):
        return f"{sorted(guess - set('abcdef'))} is not in the list: the letters go from a to f."
    truth = what_changes(tiny_model(4), TOKENS, 1, 2)
    too_much = {
        "a": "a is computed before the edit; nothing flows back to the left.",
        "b": "b does not change: the pattern (who looks where) is made before the values are mixed, and the edit comes after "
        "that. A picture of the pattern cannot tell you whether a head is switched off.",
        "c": "c does not change: the heads of one block work side by side, none reads another.",
    }
    missing = {
        "d": "d is missing: what attention adds is a sum over heads, and one term is gone.",
        "e": "e is missing: the next block reads the stream that was changed.",
        "f": "f is missing: everything after the edit may change, the prediction too.",
    }
    for letter in sorted(guess - truth):
        return too_much[letter]
    for letter in sorted(truth - guess):
        return missing[letter]
    return None


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
            return "your hook stays on the model: every later run would have this head off too. Remove its handle."
        if _same(got, clean):
            return "nothing changed: a hook that edits must return the new input."
        with edit(lm, change("attention", block, lambda v: _zero_slots(v.clone(), lm, head))):
            if _same(got, lm.logits(TOKENS)):
                return (
                    "you zeroed columns of the projection's *output* (a forward hook, or the wrong module). There the heads "
                    "are already mixed, and those columns belong to none of them: use register_forward_pre_hook."
                )
        variants = {
            _zero_stripes: "the reshape takes every n_heads-th number. The heads lie one after the other, so the last axis "
            "splits into (n_heads, d_head), in this order.",
            _zero_slots_of_first_row: "only the first row of the batch lost its head: `x[0]` is the first prompt. Keep the "
            "batch axis.",
            _zero_last: "the head is off at the last token only; zero it at every position.",
        }
        for wrong, sentence in variants.items():
            with edit(lm, change("heads", block, _on_heads(wrong, lm, head))):
                if _same(got, lm.logits(TOKENS)):
                    return sentence
        for other in range(lm.n_heads):
            with edit(lm, zero_heads(block, [other])):
                if other != head and _same(got, lm.logits(TOKENS)):
                    return f"asked for head {head}, you removed head {other}: head h has columns h·d_head to (h + 1)·d_head."
        if not _same(got, right):
            return (
                "these logits differ from those of a model without this head; compare each step with the lesson's hook."
            )
    return None


def _on_heads(wrong: Callable[[Tensor, LanguageModel, int], Tensor], lm: LanguageModel, head: int):
    return lambda heads: wrong(heads.flatten(-2).clone(), lm, head).unflatten(-1, (lm.n_heads, lm.d_head))


# ---- 4.3


def _stub_4_3(clean_logits, edited_logits, mask, target):
    return ...


def solution_4_3(clean_logits, edited_logits, mask, target):
    rows = torch.arange(len(mask))
    last = mask.sum(dim=1) - 1  # prompts are padded on the right
    before = clean_logits[rows, last].log_softmax(dim=-1)[:, target]
    after = edited_logits[rows, last].log_softmax(dim=-1)[:, target]
    return after - before


def _change_variants(clean: Tensor, edited: Tensor, mask: Tensor, target: int) -> dict[str, Tensor]:
    rows, last = torch.arange(len(mask)), mask.sum(dim=1) - 1
    a, b = clean[rows, last], edited[rows, last]
    right = log_prob(b, target) - log_prob(a, target)
    column = log_prob(edited[:, -1], target) - log_prob(clean[:, -1], target)
    return {
        "right": right,
        "the sign is turned round: after minus before, so that a fall is negative.": -right,
        "these are differences of p. Take the logarithm first: log p tells 0.02 → 0.01 from 0.52 → 0.51.": (
            b.softmax(-1) - a.softmax(-1)
        )[:, target],
        "these are differences of raw logits, which mean nothing alone: if every logit rises by 1, no probability changes. "
        "Use log_softmax.": (b - a)[:, target],
        "you read the last column, which is padding for the shorter prompts: take each row's last real token.": column,
        "the logarithm is to base 2 or 10; here log is the natural one, and the unit is the nat.": right
        / torch.log(torch.tensor(2.0)),
    }


def _check_4_3(answer: Any) -> str | None:
    draw = torch.Generator().manual_seed(43)
    clean = torch.randn(3, 7, 50, generator=draw, dtype=torch.float64)
    edited = clean + 0.5 * torch.randn(3, 7, 50, generator=draw, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor([7, 4, 5])[:, None]
    target = 11
    variants = _change_variants(clean, edited, mask, target)
    got = answer(clean.clone(), edited.clone(), mask.clone(), target)
    right = variants.pop("right")
    if isinstance(got, Tensor) and _same(got, right):
        return None
    if isinstance(got, float) or (isinstance(got, Tensor) and got.ndim == 0):
        return "one number came back where each prompt has its own: keep the batch axis."
    complaint = _wrong_shape(got, right.shape)
    if complaint:
        return complaint
    for sentence, values in variants.items():
        if _same(got, values):
            return sentence
    return "the numbers differ from log p(target) after minus before, at each prompt's last real token."


def _wrong_4_3(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_change_variants(*args).values())[index]


# ---- 4.4


def _stub_4_4(heads, mask, head):
    return ...


def solution_4_4(heads, mask, head):
    real = heads[:, :, head][mask]  # (real tokens, d_head): the mask drops the padding and joins batch and position
    return real.mean(dim=0)


def _mean_variants(heads: Tensor, mask: Tensor, head: int) -> dict[str, Tensor]:
    mine = heads[:, :, head]
    weights = mask.unsqueeze(-1).to(mine)
    per_prompt = (mine * weights).sum(1) / weights.sum(1)
    return {
        "right": mine[mask].mean(0),
        "padding is in your mean: it holds numbers too, but they belong to no text. Select with the mask first.": mine.mean(
            (0, 1)
        ),
        "you zeroed the padding and then divided by all positions: divide by the number of real tokens.": (
            mine * weights
        ).mean((0, 1)),
        "you averaged within each prompt first, so that a token of a short prompt counts more; average over tokens.": (
            per_prompt.mean(0)
        ),
        "the mean runs over all heads together: choose the head first.": heads[mask].mean((0, 1)),
        "the mean ran over d_head too and left one number: a head's output is a vector, and so is its mean.": (
            mine[mask].mean()
        ),
    }


def _check_4_4(answer: Any) -> str | None:
    draw = torch.Generator().manual_seed(44)
    heads = torch.randn(3, 6, 4, 8, generator=draw, dtype=torch.float64) + 0.5
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4])[:, None]
    for head in (0, 2):
        variants = _mean_variants(heads, mask, head)
        right = variants.pop("right")
        got = answer(heads.clone(), mask.clone(), head)
        if isinstance(got, Tensor) and _same(got, right):
            continue
        for sentence, values in variants.items():
            if isinstance(got, Tensor) and _same(got, values):
                return sentence
        if isinstance(got, Tensor) and got.shape == (len(mask), heads.shape[-1]):
            return "there is one mean for each prompt; mean ablation uses one for all."
        return _wrong_shape(got, right.shape) or "this is not the mean of the head's outputs over all real tokens."
    return None


def _wrong_4_4(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_mean_variants(*args).values())[index]


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
    effect = joint - clean
    right = extra(effect).fill_diagonal_(0)
    return {
        "right": right,
        "these are the joint effects themselves; subtract what each of the two heads does alone.": effect,
        "the clean value is missing: turn all three log-probabilities into changes before you combine them.": extra(
            joint
        ).fill_diagonal_(0),
        "the sign is turned round: joint effect minus the two single effects.": -right,
        "these are differences of p: use log p.": extra(p_joint - p_clean).fill_diagonal_(0),
        "the diagonal must be 0: a head makes no pair with itself.": extra(effect),
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
        return "a hook stays on the model: edit inside `with`, or remove the handle."
    got = got.double()
    if torch.allclose(got, right, atol=1e-5):
        return None
    off = ~torch.eye(len(right), dtype=torch.bool)
    for sentence, values in variants.items():
        if torch.allclose(got, values, atol=1e-5) or torch.allclose(got * off, values * off, atol=1e-5):
            return sentence
    if torch.allclose(got, right.triu(), atol=1e-5) or torch.allclose(got, right.tril(), atol=1e-5):
        return "half of the matrix is empty: the pair (i, j) is the pair (j, i), so fill both."
    return "this is not effect(i and j) − effect(i) − effect(j), with effect = log p(target) without the heads − with them."


def _wrong_4_5(index: int) -> Callable[..., Tensor]:
    return lambda *args: list(_pair_variants(*args).values())[index]


EXERCISES = (
    Exercise(
        "4.1", "What can a removed head reach?", 1, 3, ..., _check_4_1,
        "Follow the picture of the stream from left to right. What is already computed when the pre-hook on the output "
        "projection runs? What reads its result later?",
        {"d", "e", "f"},
        wrong=({"a", "d", "e", "f"}, {"b", "d", "e", "f"}, {"c", "d", "e", "f"}, {"d", "f"}, {"d", "e"}, "def", {"z"}),
    ),
    Exercise(
        "4.2", "The hook in the right place", 2, 8, _stub_4_2, _check_4_2,
        "A pre-hook gets (module, args) and returns the new args, a tuple. args[0] is (batch, pos, d_model). Split its last "
        "axis with unflatten(-1, (n_heads, d_head)), clone, zero, flatten(-2). Remove the handle in a `finally`.",
        solution_4_2,
        wrong=(
            _after_the_projection, _by_pre_hook(_zero_stripes), _by_pre_hook(_zero_slots_of_first_row),
            _by_pre_hook(_zero_last), _by_pre_hook(_zero_slots, keep=True),
            _by_pre_hook(lambda x, lm, head: _zero_slots(x, lm, (head + 1) % lm.n_heads)),
            lambda lm, tokens, block, head: lm.logits(tokens), lambda lm, tokens, block, head: lm.logits(tokens)[0],
        ),
    ),
    Exercise(
        "4.3", "A change in log p", 2, 6, _stub_4_3, _check_4_3,
        "mask.sum(dim=1) − 1 is the position of each row's last real token. Select that row of the logits, take log_softmax "
        "over the vocabulary, and only then the target's entry.",
        solution_4_3,
        wrong=(*(_wrong_4_3(i) for i in range(1, 6)), lambda *args: solution_4_3(*args).mean()),
    ),
    Exercise(
        "4.4", "The mean that replaces a head", 2, 6, _stub_4_4, _check_4_4,
        "Indexing with a boolean tensor of shape (batch, pos) selects the real tokens and joins the two axes: x[mask] has "
        "shape (real tokens, …).",
        solution_4_4,
        wrong=(
            *(_wrong_4_4(i) for i in range(1, 6)),
            lambda heads, mask, head: heads[:, :, head].mean(1), lambda heads, mask, head: heads[:, :, head],
        ),
    ),
    Exercise(
        "4.5", "Do two heads cover for each other?", 3, 10, _stub_4_5, _check_4_5,
        "effect(S) is log p(target) with the heads S off, minus the clean log p(target). Fill a matrix with effect({i, j}); "
        "its diagonal is effect({i}). Then subtract the diagonal along both axes and set the diagonal to 0.",
        solution_4_5,
        wrong=(*(_wrong_4_5(i) for i in range(1, 5)), lambda *args: solution_4_5(*args).triu(), lambda *args: 0.0),
    ),
)  # fmt: skip
check_4_1, check_4_2, check_4_3, check_4_4, check_4_5 = (checker(exercise) for exercise in EXERCISES)
