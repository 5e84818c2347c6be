"""Lesson 1's exercises: which states can change, a hook that is right, what survives, who carries Δ, and a repair.

The checks use random streams and small random models that the learner has not seen, made anew for each check. A payoff runs
the learner's function on the real model, or on the pocket model where the real one has not been brought.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from helpers.course.exercise import Almost, Exercise, a_model, checker, hooks_on, tiny_model
from helpers.edits import edit, scale_block
from helpers.lesson1.words import probability
from helpers.metrics import survival as survival_of
from helpers.models import LanguageModel
from helpers.say import say, translatable
from helpers.tables import format_number
from helpers.tracing import Trace, trace

PROMPT = "Paris is the capital of France. Berlin is the capital of"
WORD = " Germany"


def _clean_and_scaled(lm: LanguageModel, factor: float) -> tuple[Trace, Trace]:
    """The lesson's prompt, and the same with block 2 scaled."""
    with edit(lm, scale_block(2, factor)):
        scaled = trace(lm, PROMPT)
    return trace(lm, PROMPT), scaled


def _n(value: float | Tensor, digits: int = 2) -> str:
    return format_number(float(value), digits)


# ---- 1.1 · which hidden states can change


def changed_states(block, n_blocks):
    return ...


def solution_1_1(block, n_blocks):
    return list(range(block + 1, n_blocks + 1))


def _check_1_1(answer: Callable[..., Any]) -> str | None:
    for block, n_blocks in ((1, 4), (4, 7), (0, 3), (5, 6)):
        try:
            states = sorted(int(state) for state in answer(block, n_blocks))
        except (TypeError, ValueError):
            return say("return a list of whole numbers, the indices of the hidden states.")
        here = say("for block {block} of {n_blocks}", block=block, n_blocks=n_blocks)
        if states == solution_1_1(block, n_blocks):
            continue
        if states == list(range(block + 1)):
            return say(
                "{here} you listed what was computed before the edit; an edit reaches only what comes after it.",
                here=here,
            )
        if states == list(range(block, n_blocks + 1)):
            return say(
                "{here} hidden state {block} is the block's input; its output is hidden state {next_block}.",
                here=here,
                block=block,
                next_block=block + 1,
            )
        if states == list(range(block, n_blocks)):
            return say(
                "{here} you counted blocks; a block's output is one ahead: block {block} writes state {next_block}.",
                here=here,
                block=block,
                next_block=block + 1,
            )
        if states == list(range(block + 2, n_blocks + 1)):
            return say(
                "{here} state {next_block} is missing: it is what block {block} itself hands on, and that is edited.",
                here=here,
                next_block=block + 1,
                block=block,
            )
        if states == list(range(block + 1, n_blocks)):
            return say(
                "{here} the last one is missing: there are {n_states} hidden states, 0 to {n_blocks}.",
                here=here,
                n_states=n_blocks + 1,
                n_blocks=n_blocks,
            )
        if states == [block + 1]:
            return say(
                "{here} state {next_block} is where the edit sits, but every later block reads what it left there.",
                here=here,
                next_block=block + 1,
            )
        return say(
            "{here} {states} is not right. Which state does this block write, and who reads it?",
            here=here,
            states=states,
        )
    return None


_wrong_1_1 = (
    lambda block, n_blocks: list(range(block + 1)),
    lambda block, n_blocks: list(range(block, n_blocks + 1)),
    lambda block, n_blocks: list(range(block, n_blocks)),
    lambda block, n_blocks: list(range(block + 2, n_blocks + 1)),
    lambda block, n_blocks: list(range(block + 1, n_blocks)),
    lambda block, n_blocks: [block + 1],
    lambda block, n_blocks: 3,
    lambda block, n_blocks: list(range(3, 31)),
)
_right_1_1 = (
    lambda block, n_blocks: range(block + 1, n_blocks + 1),
    lambda block, n_blocks: torch.arange(n_blocks + 1)[block + 1 :],
    lambda block, n_blocks: {state for state in range(n_blocks + 1) if state > block},
    lambda block, n_blocks: tuple(1 + later for later in range(block, n_blocks)),
)


def _found_1_1(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    clean, half = _clean_and_scaled(lm, 0.5)
    moved = [i for i, (a, b) in enumerate(zip(clean.resid, half.resid, strict=True)) if not torch.equal(a, b)]
    said = (
        say("as your function says")
        if moved == sorted(int(i) for i in answer(2, lm.n_blocks))
        else say("not as it says")
    )
    return say(
        "On {name} an edit of block 2 changes hidden states {first} to {last}, {said}. The {first} "
        "before them are the same to the last bit: what was computed before the edit cannot know of it.",
        name=name,
        first=moved[0],
        last=moved[-1],
        said=said,
    )


# ---- 1.2 · a hook that is right everywhere


def make_hook(factor):
    return ...


def solution_1_2(factor):
    def hook(module, args, output):
        if isinstance(output, tuple):
            return (output[0] * factor, *output[1:])
        return output * factor

    return hook


def _check_1_2(answer: Callable[..., Any]) -> str | None:
    factors = (0.3, 2.0)
    hooks = [answer(factor) for factor in factors]  # both live before one of them runs
    if not all(callable(hook) for hook in hooks):
        return say(
            "make_hook returned {kind}: return the inner function itself, without calling it.",
            kind=type(hooks[0]).__name__,
        )
    generator = torch.Generator().manual_seed(11)
    for hook, factor, other in zip(hooks, factors, factors[::-1], strict=True):
        clean = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
        said = _of_a_tensor(hook, factor, other, clean) or _of_tuples(hook, factor, clean)
        if said:
            return said
    return None


def _of_a_tensor(hook: Callable[..., Any], factor: float, other: float, clean: Tensor) -> str | None:
    given = clean.clone()
    got = _as_pytorch_calls(hook, given, say("a plain tensor (transformers 5)"))
    if not torch.equal(given, clean):
        return say(
            "your hook changed the block's output in place. Return a new tensor: what others recorded must stay."
        )
    if got is None:
        return say(
            "your hook returned None, and PyTorch takes that for «leave the output as it is». Return the new one."
        )
    if not isinstance(got, Tensor):
        return say(
            "given a plain tensor your hook returned a {kind}; the next block expects a tensor.",
            kind=type(got).__name__,
        )
    if got.shape == clean.shape[1:]:
        return say(
            "given a plain tensor, output[0] is the first row of the batch, not the hidden state. Ask what came in."
        )
    if torch.allclose(got, clean * factor):
        return None
    if torch.equal(got, clean * other):
        return say(
            "with two hooks alive, both used the factor that came last, {other}. Keep each in its own closure.",
            other=other,
        )
    if torch.allclose(got, clean * (1 - factor)):
        return say("you hand on 1 − factor times the state; that is how far it moves. Hand on factor times the state.")
    if torch.equal(got[:1], clean[:1] * factor):
        return say("given a batch of two prompts, you scaled the first one only.")
    return say("given a plain tensor and the factor {factor}, the result is not {factor} times it.", factor=factor)


def _of_tuples(hook: Callable[..., Any], factor: float, clean: Tensor) -> str | None:
    for count in (1, 2, 3):
        rest = tuple(torch.ones(2, 3, dtype=torch.float64) for _ in range(count - 1))
        given = (clean.clone(), *rest)
        got = _as_pytorch_calls(hook, given, say("a tuple of {count} (transformers 4)", count=count))
        if not torch.equal(given[0], clean) or any(not bool((one == 1).all()) for one in rest):
            return say("given a tuple, your hook changed it in place. Build a new tuple around a new tensor.")
        same = isinstance(got, tuple) and len(got) == count
        if not same or any(a is not b for a, b in zip(got[1:], rest, strict=True)):
            return say(
                "given a tuple of {count}, return a tuple of {count}: the scaled state, then the rest just as it came.",
                count=count,
            )
        if not isinstance(got[0], Tensor) or got[0].shape != clean.shape or not torch.allclose(got[0], clean * factor):
            return say(
                "given a tuple and the factor {factor}, its first element is not {factor} times what it was.",
                factor=factor,
            )
    return None


def _as_pytorch_calls(hook: Callable[..., Any], output: Any, kind: str) -> Any:
    try:
        return hook(nn.Identity(), (), output)
    except Exception as error:
        raise Almost(
            say(
                "given {kind}, your hook raised {error_kind}: {error}",
                kind=kind,
                error_kind=type(error).__name__,
                error=error,
            )
        ) from None


def _first_row(factor):
    return lambda module, args, output: output[0] * factor


def _in_place(factor):
    return lambda module, args, output: (output[0] if isinstance(output, tuple) else output).mul_(factor)


def _tuples_only(factor):
    return lambda module, args, output: (output[0] * factor, *output[1:])


def _tensors_only(factor):
    return lambda module, args, output: output * factor


def _loses_the_rest(factor):
    return lambda module, args, output: (output[0] if isinstance(output, tuple) else output) * factor


def _scales_the_rest(factor):
    def hook(module, args, output):
        return tuple(one * factor for one in output) if isinstance(output, tuple) else output * factor

    return hook


def _moves_by_the_factor(factor):
    return solution_1_2(1 - factor)


def _forgets_to_return(factor):
    def hook(module, args, output):
        output = output * factor

    return hook


def _one_prompt_only(factor):
    def hook(module, args, output):
        new = output.clone()
        new[0] = output[0] * factor
        return new

    return hook


def _one_name_for_all() -> Callable[[float], Any]:
    outside = {}  # plays the notebook's global scope

    def make(factor):
        outside["scaling_factor"] = factor
        return lambda module, args, output: output * outside["scaling_factor"]

    return make


_wrong_1_2 = (
    _first_row, _in_place, _tuples_only, _tensors_only, _loses_the_rest, _scales_the_rest, _moves_by_the_factor,
    _forgets_to_return, _one_prompt_only, _one_name_for_all(), lambda factor: factor,
)  # fmt: skip


def _asks_for_a_tensor(factor):
    def hook(module, args, output):
        return output.mul(factor) if torch.is_tensor(output) else (output[0].mul(factor), *output[1:])

    return hook


def _works_on_a_copy(factor):
    def hook(module, args, output):
        new = (output[0] if isinstance(output, tuple) else output).clone()
        new *= factor
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


class _AsAnObject:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, module, args, output):
        if type(output) is tuple:
            first, *rest = output
            return (torch.mul(first, self.factor), *rest)
        return torch.mul(output, self.factor)


_right_1_2 = (_asks_for_a_tensor, _works_on_a_copy, lambda factor: _AsAnObject(factor))


def _found_1_2(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    clean = trace(lm, PROMPT)
    with lm.blocks[2].register_forward_hook(answer(0.5), prepend=True):
        half = trace(lm, PROMPT)
    share = half.resid[3].norm() / clean.resid[3].norm()
    return say(
        "With your hook on block 2 of {name}, '{word}' goes from {before} to {after}. The state after "
        "block 2 is {share} of what it was: the hook did what it says.",
        name=name,
        word=WORD,
        before=_n(probability(lm, clean, WORD)),
        after=_n(probability(lm, half, WORD)),
        share=_n(share),
    )


# ---- 1.3 · how much survives


def survival(clean, scaled, block):
    return ...


def solution_1_3(clean, scaled, block):
    difference = (scaled - clean)[block + 1 :].flatten(1)  # one row per point, from the edit on
    first = difference[0]
    return difference @ first / (first @ first)


def _lengths(clean, scaled, block):
    difference = (scaled - clean)[block + 1 :].flatten(1)
    return difference.norm(dim=1) / difference[0].norm()


def _cosines(clean, scaled, block):
    difference = (scaled - clean)[block + 1 :].flatten(1)
    return torch.nn.functional.cosine_similarity(difference, difference[:1])


def _not_squared(clean, scaled, block):
    difference = (scaled - clean)[block + 1 :].flatten(1)
    return difference @ difference[0] / difference[0].norm()


def _whole_stream(clean, scaled, block):
    first = (scaled - clean)[block + 1].flatten()
    return (scaled - clean).flatten(1) @ first / (first @ first)


def _from_the_last(clean, scaled, block):
    difference = (scaled - clean)[block + 1 :].flatten(1)
    return difference @ difference[-1] / (difference[-1] @ difference[-1])


def _without_the_first(clean, scaled, block):
    return solution_1_3(clean[:, :, 1:], scaled[:, :, 1:], block)


def _the_scaled_run(clean, scaled, block):
    first = (scaled - clean)[block + 1].flatten()
    return scaled[block + 1 :].flatten(1) @ first / (first @ first)


_usual_1_3 = {
    _lengths: translatable(
        "you compared lengths, but a new error of the same length is no survivor. Take the part along "
        "the first error: a dot product."
    ),
    _cosines: translatable(
        "you computed the cosine, which forgets how long the error is. Divide by the first error's "
        "length squared, and by nothing else."
    ),
    _not_squared: translatable(
        "the dot product is right; divide by the first error's length squared, so that the first number is 1."
    ),
    _from_the_last: translatable(
        "you compared with the error at the end. The first error, right at the edit, is the measure."
    ),
    _without_the_first: translatable(
        "you left the first token out. Use all that you are given: the caller decides which tokens count."
    ),
    _the_scaled_run: translatable(
        "you took the scaled run itself at each point. Take its difference from the clean run."
    ),
}


def _check_1_3(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(7)
    for block in (1, 3):
        clean = torch.randn(8, 2, 5, 6, generator=generator, dtype=torch.float64)
        steps = torch.randn(8, 2, 5, 6, generator=generator, dtype=torch.float64)
        steps[: block + 1] = 0
        scaled = clean + steps.cumsum(dim=0)
        given = clean.clone(), scaled.clone()
        got = torch.as_tensor(answer(*given, block)).double()
        if not (torch.equal(given[0], clean) and torch.equal(given[1], scaled)):
            return say("your function changed the streams that it was given. Work on new tensors.")
        right = solution_1_3(clean, scaled, block)
        if got.shape == (8,):
            return say("you answered for the whole stream. Start at the edit: clean[block + 1 :].")
        if got.shape != right.shape:
            return say(
                "the answer has shape {shape}; one number per point from the edit on is {right_shape}.",
                shape=tuple(got.shape),
                right_shape=tuple(right.shape),
            )
        if torch.allclose(got, right):
            continue
        for wrong, sentence in _usual_1_3.items():
            if torch.allclose(got, wrong(clean, scaled, block)):
                return sentence
        at = int((got - right).abs().argmax())
        return say(
            "{at} points after the edit you give {got}, but of the first error {right} is there.",
            at=at,
            got=_n(got[at], 3),
            right=_n(right[at], 3),
        )
    return None


def _in_the_given_tensor(clean, scaled, block):
    scaled -= clean
    return solution_1_3(0 * clean, scaled, block)


def _by_einsum(clean, scaled, block):
    error = scaled[block + 1 :] - clean[block + 1 :]
    return torch.einsum("lbpd,bpd->l", error, error[0]) / (error[0] ** 2).sum()


def _in_a_loop(clean, scaled, block):
    first = scaled[block + 1] - clean[block + 1]
    later = range(block + 1, len(clean))
    return [float(((scaled[i] - clean[i]) * first).sum() / first.norm() ** 2) for i in later]


_right_1_3 = (_by_einsum, _in_a_loop, lambda clean, scaled, block: survival_of(clean, scaled, block)[block + 1 :])


def _found_1_3(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    whole = tuple(run.resid for run in _clean_and_scaled(lm, 0.5))
    clean, half = (resid[:, :, 1:] for resid in whole)
    error = (half - clean)[3:].flatten(1).norm(dim=1)
    with_first = torch.as_tensor(answer(*whole, 2)).double()
    left = torch.as_tensor(answer(clean, half, 2)).double()
    most = int(left.argmax())
    return say(
        "On {name}, with block 2 halved and without the first token, your function goes from 1 to at "
        "most {left} (after block {most}). It is {before_last} before the last block and {last_left} after "
        "it. The error at the end is {last_error} times as long as the one that you made, and holds "
        "{last_left} of it: later blocks wrote the rest. With the first token the share ends at {with_first}.",
        name=name,
        left=_n(left[most], 3),
        most=2 + most,
        before_last=_n(left[-2]),
        last_left=_n(left[-1], 1),
        last_error=_n(error[-1] / error[0]),
        with_first=_n(with_first[-1], 3),
    )


# ---- 1.4 · who carries the difference


def top_dimensions(clean, scaled, block, k):
    return ...


def solution_1_4(clean, scaled, block, k):
    difference = scaled[block + 1] - clean[block + 1]  # (batch, pos, d_model)
    carried = difference.pow(2).sum(dim=(0, 1))  # (d_model,)
    return carried.topk(k).indices


def _without_first_token(clean, scaled, block, k):
    return solution_1_4(clean[:, :, 1:], scaled[:, :, 1:], block, k)


def _one_point_early(clean, scaled, block, k):
    return solution_1_4(clean, scaled, block - 1, k)


def _at_the_end(clean, scaled, block, k):
    return solution_1_4(clean, scaled, len(clean) - 2, k)


def _kept_the_tokens(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).pow(2).sum(dim=(0, 2)).topk(k).indices


def _with_signs(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).sum(dim=(0, 1)).abs().topk(k).indices


def _squared_too_late(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).abs().sum(dim=(0, 1)).topk(k).indices


def _largest_single(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).abs().amax(dim=(0, 1)).topk(k).indices


def _first_prompt(clean, scaled, block, k):
    return solution_1_4(clean[:, :1], scaled[:, :1], block, k)


def _smallest(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).pow(2).sum(dim=(0, 1)).argsort()[:k]


def _of_the_scaled_run(clean, scaled, block, k):
    return scaled[block + 1].pow(2).sum(dim=(0, 1)).topk(k).indices


_usual_1_4 = {
    _without_first_token: translatable("you left the first token out. This question is about all tokens."),
    _one_point_early: translatable("you read the block's input. Its output is one point later: clean[block + 1]."),
    _at_the_end: translatable("you read the end of the stream. The output of `block` is clean[block + 1]."),
    _kept_the_tokens: translatable(
        "you summed over coordinates and kept the tokens. Sum over batch and tokens, keep d_model."
    ),
    _with_signs: translatable("you summed signed differences, and plus cancels minus. Square before you sum."),
    _squared_too_late: translatable(
        "you summed absolute values. Δ² is a sum of squares, in which large values count for more."
    ),
    _largest_single: translatable(
        "you took the largest single difference. A coordinate carries what it adds up to over all tokens."
    ),
    _first_prompt: translatable("you looked at the first prompt of the batch only. Sum over the batch too."),
    _smallest: translatable("these coordinates carry the least. Sort the other way round, or use topk."),
    _of_the_scaled_run: translatable(
        "these coordinates are large in the scaled run itself. Take the difference of the two runs first."
    ),
}


def _check_1_4(answer: Callable[..., Any]) -> str | None:
    for seed, block, k in ((29, 2, 3), (35, 1, 4)):
        generator = torch.Generator().manual_seed(seed)
        clean = 9 * torch.randn(6, 2, 7, 24, generator=generator, dtype=torch.float64)
        difference = torch.randn(6, 2, 7, 24, generator=generator, dtype=torch.float64) ** 3
        difference[:, :, 0] *= 3
        scaled = clean + difference
        given = clean.clone(), scaled.clone()
        got = _indices(answer(*given, block, k))
        if not (torch.equal(given[0], clean) and torch.equal(given[1], scaled)):
            return say("your function changed the streams that it was given. Work on new tensors.")
        if got is None or len(got) != k:
            return say("return {k} whole numbers when k is {k}, the indices of the coordinates.", k=k)
        if set(got) == set(solution_1_4(clean, scaled, block, k).tolist()):
            continue
        for wrong, sentence in _usual_1_4.items():
            if set(got) == set(wrong(clean, scaled, block, k).tolist()):
                return sentence
        carried = (scaled[block + 1] - clean[block + 1]).pow(2).sum(dim=(0, 1))
        if max(got) >= len(carried) or min(got) < -len(carried):
            return say(
                "these streams have coordinates 0 to {last}; you returned {got}.", last=len(carried) - 1, got=got
            )
        best = carried.topk(k).values.sum()
        return say(
            "yours carry {share} of Δ², but {k} others carry {best}.",
            share=_n(carried[got].sum(), 3),
            k=k,
            best=_n(best, 3),
        )
    return None


def _indices(got: Any) -> list[int] | None:
    try:
        return [int(i) for i in got]
    except (TypeError, ValueError):
        return None


def _with_norms(clean, scaled, block, k):
    return (scaled - clean)[block + 1].flatten(0, 1).norm(dim=0).argsort(descending=True)[:k]


def _with_numpy(clean, scaled, block, k):
    carried = ((scaled[block + 1] - clean[block + 1]).numpy() ** 2).sum(axis=(0, 1))
    return carried.argsort()[-k:]


def _with_sorted(clean, scaled, block, k):
    carried = (scaled[block + 1] - clean[block + 1]).square().mean((0, 1)).tolist()
    return sorted(range(len(carried)), key=carried.__getitem__, reverse=True)[:k]


_right_1_4 = (_with_norms, _with_numpy, _with_sorted)


def _found_1_4(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    clean, scaled = (run.resid for run in _clean_and_scaled(lm, 1.5))
    loudest = int(next(iter(answer(clean, scaled, 11, 3))))
    error = (scaled - clean)[12].flatten(0, 1)  # (tokens, d_model)
    share, whole = error[:, loudest].pow(2).sum() / error.pow(2).sum(), error.norm()
    error[:, loudest] = 0
    return say(
        "On {name}, with block 2 × 1.5, your function names coordinate {loudest} after block 11; it "
        "alone carries {share} % of Δ². Without this one of {d_model} numbers Δ falls from {whole} to "
        "{error}.",
        name=name,
        loudest=loudest,
        share=_n(100 * share),
        d_model=lm.d_model,
        whole=_n(whole, 4),
        error=_n(error.norm(), 4),
    )


# ---- 1.5 · repair it


GRID = [quarter / 4 for quarter in range(2, 13)]  # 0.5, 0.75, … 3.0


def repair_factor(lm, prompt, block, factor, later):
    return ...


def solution_1_5(lm, prompt, block, factor, later):
    clean = trace(lm, prompt).resid[-1]
    best, smallest = None, float("inf")
    for candidate in [quarter / 4 for quarter in range(2, 13)]:  # 0.5, 0.75, … 3.0
        with edit(lm, scale_block(block, factor), scale_block(later, candidate)):
            distance = (trace(lm, prompt).resid[-1] - clean).norm()
        if distance < smallest:
            best, smallest = candidate, distance
    return best


def _distance(
    lm: LanguageModel, prompt: Tensor, block: int, factor: float, later: int, candidate: float, point: int = -1
) -> float:
    """How far the repaired run is from the clean one at `point`."""
    clean = trace(lm, prompt).resid[point]
    with edit(lm, scale_block(block, factor), scale_block(later, candidate)):
        return float((trace(lm, prompt).resid[point] - clean).norm())


def _inverse(lm, prompt, block, factor, later):
    return 1 / factor


def _nothing(lm, prompt, block, factor, later):
    return 1.0


def _at_the_later_block(lm, prompt, block, factor, later):
    return min(GRID, key=lambda candidate: _distance(lm, prompt, block, factor, later, candidate, later + 1))


def _largest(lm, prompt, block, factor, later):
    return max(GRID, key=lambda candidate: _distance(lm, prompt, block, factor, later, candidate))


def _no_candidate(lm, prompt, block, factor, later):
    return 3.5


def _leaves_a_hook(lm, prompt, block, factor, later):
    lm.blocks[block].register_forward_hook(lambda module, args, output: None)
    return solution_1_5(lm, prompt, block, factor, later)


def _removes_when_all_goes_well(lm, prompt, block, factor, later):
    handle = lm.blocks[0].register_forward_hook(lambda module, args, output: None)
    best = solution_1_5(lm, prompt, block, factor, later)
    handle.remove()
    return best


_usual_1_5 = {
    _inverse: translatable(
        "1 / factor would undo the edit at its own place. By now later blocks have added what they "
        "always add, and that would be scaled too. Try the candidates and measure."
    ),
    _nothing: translatable("1.0 repairs nothing. Are both edits on while you trace?"),
    _at_the_later_block: translatable(
        "this is best right after the later block. The question is the end of the stream, resid[-1]."
    ),
    _largest: translatable("this candidate makes the distance largest; keep the smallest."),
}


def _check_1_5(answer: Callable[..., Any]) -> str | None:
    cases = ((5, 1, 0.6, 2), (10, 0, 0.5, 1), (9, 3, 0.2, 4))  # the last one needs more than 2
    for seed, block, factor, later in cases:
        lm = tiny_model(seed, n_blocks=5)
        prompt = torch.arange(seed, seed + 9)
        hooks = hooks_on(lm.model)
        try:
            got = float(answer(lm, prompt, block, factor, later))
        except (TypeError, ValueError):
            return say("return one number, the best factor.")
        if hooks_on(lm.model) != hooks:
            return say(
                "your function left a hook on the model. Use `with edit(...)`, or remove the handle in a `finally`."
            )
        if not GRID[0] <= got <= GRID[-1]:
            return say(
                "{got} is not between {grid} and {last_grid}, the smallest and the largest candidate.",
                got=_n(got),
                grid=GRID[0],
                last_grid=GRID[-1],
            )
        right = solution_1_5(lm, prompt, block, factor, later)
        best, yours = (_distance(lm, prompt, block, factor, later, one) for one in (right, got))
        if yours <= best * (1 + 1e-9):  # a finer search than the candidates is welcome
            continue
        for wrong, sentence in _usual_1_5.items():
            if abs(got - wrong(lm, prompt, block, factor, later)) < 1e-6:
                return sentence
        return say(
            "× {got} leaves the end {yours} from the clean run; another candidate {best}.",
            got=_n(got, 3),
            yours=_n(yours, 3),
            best=_n(best, 3),
        )
    return _after_an_exception(answer)


def _after_an_exception(answer: Callable[..., Any]) -> str | None:
    """The third pass fails: what the learner has put on the model must come off all the same."""
    lm, passes = tiny_model(3), []

    def fail(module: nn.Module, args: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            raise KeyError(say("a pass that fails"))

    with lm.blocks[-1].register_forward_pre_hook(fail):
        hooks = hooks_on(lm.model)
        with suppress(Almost):  # the learner's function lets the exception through, as it should
            answer(lm, torch.arange(6), 0, 0.5, 1)
        left = hooks_on(lm.model) - hooks
    return (
        say("when a pass fails, your function leaves a hook on the model. Remove it in a `finally`.") if left else None
    )


def _with_min(lm, prompt, block, factor, later):
    clean = trace(lm, prompt).resid[-1]

    def distance(candidate):
        with edit(lm, scale_block(block, factor)), edit(lm, scale_block(later, candidate)):
            return float((trace(lm, prompt).resid[-1] - clean).norm())

    return min([0.5 + 0.25 * i for i in range(11)], key=distance)


def _finer(lm, prompt, block, factor, later):
    clean = trace(lm, prompt).resid[-1]
    found = []
    for i in range(0, 126):
        candidate = torch.tensor(0.5 + i / 50, dtype=torch.float64)
        with edit(lm, scale_block(block, factor), scale_block(later, candidate)):
            found.append((float((trace(lm, prompt).resid[-1] - clean).pow(2).sum()), float(candidate)))
    return min(found)[1]


def _with_hooks(lm, prompt, block, factor, later):
    clean, found = trace(lm, prompt).resid[-1], {}
    for candidate in GRID:
        first = lm.blocks[block].register_forward_hook(solution_1_2(factor))
        second = lm.blocks[later].register_forward_hook(solution_1_2(candidate))
        try:
            found[candidate] = float(torch.dist(trace(lm, prompt).resid[-1], clean))
        finally:
            first.remove()
            second.remove()
    return torch.tensor(min(found, key=found.__getitem__))


_right_1_5 = (_with_min, _finer, _with_hooks)


def _found_1_5(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    print(say("Now on {model}, which takes up to half a minute …", model=name), flush=True)
    _, half = _clean_and_scaled(lm, 0.5)
    said = []
    for later in (3, 6):
        best = float(answer(lm, PROMPT, 2, 0.5, later))
        with edit(lm, scale_block(2, 0.5), scale_block(later, best)):
            said.append(
                say(
                    "× {best} brings it to {probability}",
                    best=_n(best, 3),
                    probability=_n(probability(lm, trace(lm, PROMPT), WORD)),
                )
            )
    return say(
        "On {name}, halving block 2 leaves '{word}' at {after}. A repair right after it, at block 3: "
        "{at_3}. At block 6: {at_6}. What the blocks in between have written by then no factor takes "
        "back.",
        name=name,
        word=WORD,
        after=_n(probability(lm, half, WORD), 1),
        at_3=said[0],
        at_6=said[1],
    )


EXERCISES = (
    Exercise(
        "1.1",
        translatable("Where can it change?"),
        1,
        4,
        changed_states,
        _check_1_1,
        translatable(
            "Hidden state 0 is the embedding, before block 0. So block 0 writes hidden state 1. Which one "
            "does `block` write, and which ones are computed from it?"
        ),
        solution_1_1,
        _wrong_1_1,
        _right_1_1,
        _found_1_1,
    ),
    Exercise(
        "1.2",
        translatable("A hook that is right everywhere"),
        2,
        9,
        make_hook,
        _check_1_2,
        translatable(
            "Ask `isinstance(output, tuple)` and answer in the form that came. Multiply with `*`, which "
            "makes a new tensor. The inner function sees `factor` of its own call of make_hook."
        ),
        solution_1_2,
        _wrong_1_2,
        _right_1_2,
        _found_1_2,
    ),
    Exercise(
        "1.3",
        translatable("How much survives?"),
        2,
        10,
        survival,
        _check_1_3,
        translatable(
            "Flatten the difference at each point to one long vector. The part of a vector v along a vector "
            "u is (v · u) / (u · u); u is the difference right at the edit."
        ),
        solution_1_3,
        (*_usual_1_3, _whole_stream, _in_the_given_tensor, lambda clean, scaled, block: 0.5),
        _right_1_3,
        _found_1_3,
    ),
    Exercise(
        "1.4",
        translatable("Who carries the difference?"),
        2,
        9,
        top_dimensions,
        _check_1_4,
        translatable(
            "The output of `block` is point block + 1. Subtract, square, sum over batch and tokens: what is "
            "left has one number per coordinate. `topk(k).indices` finds the largest."
        ),
        solution_1_4,
        (*_usual_1_4, lambda clean, scaled, block, k: range(k)),
        _right_1_4,
        _found_1_4,
    ),
    Exercise(
        "1.5",
        translatable("Repair it"),
        3,
        13,
        repair_factor,
        _check_1_5,
        translatable(
            "Trace the clean run once. Then, for each candidate, trace with two edits in one `with edit(lm, "
            "..., ...)` and keep the candidate whose resid[-1] is nearest to the clean one."
        ),
        solution_1_5,
        (*_usual_1_5, _no_candidate, _leaves_a_hook, _removes_when_all_goes_well),
        _right_1_5,
        _found_1_5,
    ),
)
check_1_1, check_1_2, check_1_3, check_1_4, check_1_5 = (checker(exercise) for exercise in EXERCISES)
