"""Lesson 1's exercises: which states can change, a hook that is right, who carries Δ, what survives, and a repair.

The checks use random streams and small random models that the learner has not seen, made anew for each check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helpers.course.exercise import Almost, Exercise, checker, hooks_on, tiny_model
from helpers.edits import edit, scale_block
from helpers.models import LanguageModel
from helpers.tables import format_number
from helpers.tracing import trace

# ---- 1.1 · which hidden states can change


def changed_states(block, n_blocks):
    return ...


def solution_1_1(block, n_blocks):
    return list(range(block + 1, n_blocks + 1))


def _check_1_1(answer: Callable[..., Any]) -> str | None:
    for block, n_blocks in ((2, 12), (1, 4), (4, 7)):
        try:
            states = sorted(int(state) for state in answer(block, n_blocks))
        except (TypeError, ValueError):
            return "return a list of whole numbers, the indices of the hidden states."
        here = f"for block {block} of {n_blocks}"
        if states == solution_1_1(block, n_blocks):
            continue
        if states == list(range(block + 1)):
            return f"{here} you listed what was computed before the edit; an edit reaches only what comes after it."
        if states == list(range(block, n_blocks + 1)):
            return f"{here} hidden state {block} is the block's input; its output is hidden state {block + 1}."
        if states == list(range(block, n_blocks)):
            return f"{here} you counted blocks; a block's output is one ahead: block {block} writes state {block + 1}."
        if states == list(range(block + 1, n_blocks)):
            return f"{here} the last one is missing: there are {n_blocks + 1} hidden states, 0 to {n_blocks}."
        if states == [block + 1]:
            return f"{here} state {block + 1} is where the edit sits, but every later block reads what it left there."
        return f"{here} {states} is not right. Which state does this block write, and who reads it?"
    return None


_wrong_1_1 = (
    lambda block, n_blocks: list(range(block + 1)),
    lambda block, n_blocks: list(range(block, n_blocks + 1)),
    lambda block, n_blocks: list(range(block, n_blocks)),
    lambda block, n_blocks: list(range(block + 1, n_blocks)),
    lambda block, n_blocks: [block + 1],
    lambda block, n_blocks: 3,
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
    half, double = answer(0.5), answer(2.0)
    if not callable(half) or not callable(double):
        return f"make_hook returned {type(half).__name__}: return the inner function itself, without calling it."
    generator = torch.Generator().manual_seed(11)
    clean = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    extra = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    given = clean.clone()
    got = _as_pytorch_calls(half, given, "a plain tensor (transformers 5)")
    if not torch.equal(given, clean):
        return "your hook changed the block's output in place. Return a new tensor: what others recorded must stay."
    if got is None:
        return "your hook returned None, and PyTorch takes that for «leave the output as it is». Return the new one."
    if not isinstance(got, Tensor):
        return f"given a plain tensor your hook returned a {type(got).__name__}; the next block expects a tensor."
    if got.shape == clean.shape[1:]:
        return "given a plain tensor, output[0] is the first row of the batch, not the hidden state. Ask what came in."
    if torch.equal(got, clean * 2.0):
        return "with two hooks alive, × 0.5 and × 2, both used the factor that came last. Keep each in its own closure."
    if not torch.equal(got, clean * 0.5):
        return "given a plain tensor and the factor 0.5, the result is not half of it, for every row of the batch."
    pair = (clean.clone(), extra)
    got = _as_pytorch_calls(double, pair, "a tuple (transformers 4)")
    if not torch.equal(pair[0], clean):
        return "given a tuple, your hook changed the hidden state in place. Build a new tuple around a new tensor."
    if not isinstance(got, tuple) or len(got) != 2 or got[1] is not extra:
        return "given a tuple of two, return a tuple of two: the scaled state, then the rest just as it came."
    if not isinstance(got[0], Tensor) or not torch.equal(got[0], clean * 2.0):
        return "given a tuple and the factor 2, its first element is not twice what it was."
    return None


def _as_pytorch_calls(hook: Callable[..., Any], output: Any, kind: str) -> Any:
    try:
        return hook(nn.Identity(), (), output)
    except Exception as error:
        raise Almost(f"given {kind}, your hook raised {type(error).__name__}: {error}") from None


def _first_row(factor):
    return lambda module, args, output: output[0] * factor


def _in_place(factor):
    return lambda module, args, output: (output[0] if isinstance(output, tuple) else output).mul_(factor)


def _tuples_only(factor):
    return lambda module, args, output: (output[0] * factor, *output[1:])


def _loses_the_rest(factor):
    return lambda module, args, output: (output[0] if isinstance(output, tuple) else output) * factor


def _forgets_to_return(factor):
    def hook(module, args, output):
        output = output * factor

    return hook


def _one_name_for_all() -> Callable[[float], Any]:
    outside = {}  # plays the notebook's global scope

    def make(factor):
        outside["scaling_factor"] = factor
        return lambda module, args, output: output * outside["scaling_factor"]

    return make


_wrong_1_2 = (_first_row, _in_place, _tuples_only, _loses_the_rest, _forgets_to_return, _one_name_for_all())

# ---- 1.3 · who carries the difference


def top_dimensions(clean, scaled, block, k):
    return ...


def solution_1_3(clean, scaled, block, k):
    difference = scaled[block + 1, :, 1:] - clean[block + 1, :, 1:]  # (batch, pos - 1, d_model)
    carried = difference.pow(2).sum(dim=(0, 1))  # (d_model,)
    return carried.topk(k).indices


def _by_first_token(clean, scaled, block, k):
    return (scaled[block + 1] - clean[block + 1]).pow(2).sum(dim=(0, 1)).topk(k).indices


def _one_point_early(clean, scaled, block, k):
    return solution_1_3(clean, scaled, block - 1, k)


def _kept_the_tokens(clean, scaled, block, k):
    return (scaled[block + 1, :, 1:] - clean[block + 1, :, 1:]).pow(2).sum(dim=(0, 2)).topk(k).indices


def _with_signs(clean, scaled, block, k):
    return (scaled[block + 1, :, 1:] - clean[block + 1, :, 1:]).sum(dim=(0, 1)).abs().topk(k).indices


def _smallest(clean, scaled, block, k):
    difference = scaled[block + 1, :, 1:] - clean[block + 1, :, 1:]
    return difference.pow(2).sum(dim=(0, 1)).argsort()[:k]


def _of_the_scaled_run(clean, scaled, block, k):
    return scaled[block + 1, :, 1:].pow(2).sum(dim=(0, 1)).topk(k).indices


_usual_1_3 = {
    _by_first_token: "you kept the first token, which outshouts the others here. Leave position 0 out.",
    _one_point_early: "you read the block's input. Its output is one point later: clean[block + 1].",
    _kept_the_tokens: "you summed over coordinates and kept the tokens. Sum over batch and tokens, keep d_model.",
    _with_signs: "you summed signed differences, and plus cancels minus. Square before you sum.",
    _smallest: "these coordinates carry the least. Sort the other way round, or use topk.",
    _of_the_scaled_run: "these coordinates are large in the scaled run itself. Take the difference of the two runs first.",
}


def _check_1_3(answer: Callable[..., Any]) -> str | None:
    for seed, block, k in ((3, 2, 3), (5, 1, 4)):
        generator = torch.Generator().manual_seed(seed)
        clean = 9 * torch.randn(6, 2, 7, 24, generator=generator, dtype=torch.float64)
        difference = torch.randn(6, 2, 7, 24, generator=generator, dtype=torch.float64) ** 3
        difference[:, :, 0] *= 20  # a first token as loud as GPT-2's
        scaled = clean + difference
        got = _indices(answer(clean.clone(), scaled.clone(), block, k))
        if got is None or len(got) != k:
            return f"return {k} whole numbers when k is {k}, the indices of the coordinates."
        if set(got) == set(solution_1_3(clean, scaled, block, k).tolist()):
            continue
        for wrong, sentence in _usual_1_3.items():
            if set(got) == set(wrong(clean, scaled, block, k).tolist()):
                return sentence
        return "these are not the coordinates with the largest share of Δ² after the block."
    return None


def _indices(got: Any) -> list[int] | None:
    try:
        return [int(i) for i in got]
    except (TypeError, ValueError):
        return None


# ---- 1.4 · how much survives


def survival(clean, scaled, block):
    return ...


def solution_1_4(clean, scaled, block):
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


_usual_1_4 = {
    _lengths: "you compared lengths, but a new error of the same length is no survivor. Take the part along the first "
    "error: a dot product.",
    _cosines: "you computed the cosine, which forgets how long the error is. Divide by the first error's length "
    "squared, and by nothing else.",
    _not_squared: "the dot product is right; divide by the first error's length squared, so that the first number is 1.",
    _from_the_last: "you compared with the error at the end. The first error, right at the edit, is the measure.",
}


def _check_1_4(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(7)
    for block in (1, 3):
        clean = torch.randn(8, 2, 5, 6, generator=generator, dtype=torch.float64)
        steps = torch.randn(8, 2, 5, 6, generator=generator, dtype=torch.float64)
        steps[: block + 1] = 0
        scaled = clean + steps.cumsum(dim=0)
        got = torch.as_tensor(answer(clean.clone(), scaled.clone(), block)).double()
        right = solution_1_4(clean, scaled, block)
        if got.shape == (8,):
            return "you answered for the whole stream. Start at the edit: clean[block + 1 :]."
        if got.shape != right.shape:
            return f"the answer has shape {tuple(got.shape)}; one number per point from the edit on is {tuple(right.shape)}."
        if torch.allclose(got, right):
            continue
        for wrong, sentence in _usual_1_4.items():
            if torch.allclose(got, wrong(clean, scaled, block)):
                return sentence
        return "the first number should be 1, the others the share of the first error that is still in the stream."
    return None


# ---- 1.5 · repair it


GRID = [tenth / 10 for tenth in range(5, 31)]


def repair_factor(lm, prompt, block, factor, later):
    return ...


def solution_1_5(lm, prompt, block, factor, later):
    clean = trace(lm, prompt).resid[-1]
    best, smallest = None, float("inf")
    for candidate in [tenth / 10 for tenth in range(5, 31)]:  # 0.5, 0.6, … 3.0
        with edit(lm, scale_block(block, factor), scale_block(later, candidate)):
            distance = (trace(lm, prompt).resid[-1] - clean).norm()
        if distance < smallest:
            best, smallest = candidate, distance
    return best


def _distances(lm: LanguageModel, prompt: Tensor, block: int, factor: float, later: int, point: int) -> list[float]:
    """Return, for each factor of GRID, how far the repaired run is from the clean one at `point`."""
    clean = trace(lm, prompt).resid[point]
    found = []
    for candidate in GRID:
        with edit(lm, scale_block(block, factor), scale_block(later, candidate)):
            found.append(float((trace(lm, prompt).resid[point] - clean).norm()))
    return found


def _inverse(lm, prompt, block, factor, later):
    return 1 / factor


def _nothing(lm, prompt, block, factor, later):
    return 1.0


def _at_the_later_block(lm, prompt, block, factor, later):
    distances = _distances(lm, prompt, block, factor, later, later + 1)
    return GRID[distances.index(min(distances))]


def _largest(lm, prompt, block, factor, later):
    distances = _distances(lm, prompt, block, factor, later, -1)
    return GRID[distances.index(max(distances))]


def _leaves_a_hook(lm, prompt, block, factor, later):
    lm.blocks[block].register_forward_hook(lambda module, args, output: None)
    return solution_1_5(lm, prompt, block, factor, later)


_usual_1_5 = {
    _inverse: "1 / factor would undo the edit at its own place. By now later blocks have added what they always add, "
    "and that would be scaled too. Try the candidates and measure.",
    _nothing: "1.0 repairs nothing. Are both edits on while you trace?",
    _at_the_later_block: "this is best right after the later block. The question is the end of the stream, resid[-1].",
    _largest: "this candidate makes the distance largest; keep the smallest.",
}


def _check_1_5(answer: Callable[..., Any]) -> str | None:
    for seed, block, factor, later in ((1, 0, 0.5, 2), (2, 1, 0.6, 2)):
        lm = tiny_model(seed, n_blocks=5)
        prompt = torch.arange(seed, seed + 9)
        hooks = hooks_on(lm.model)
        try:
            got = float(answer(lm, prompt, block, factor, later))
        except (TypeError, ValueError):
            return "return one number, the best factor."
        if hooks_on(lm.model) != hooks:
            return "your function left a hook on the model. Use `with edit(...)`, or remove the handle in a `finally`."
        right = solution_1_5(lm, prompt, block, factor, later)
        if abs(got - right) < 0.051:  # a finer search than the grid is welcome
            continue
        for wrong, sentence in _usual_1_5.items():
            if abs(got - wrong(lm, prompt, block, factor, later)) < 1e-6:
                return sentence
        return (
            f"{format_number(got)} leaves the end of the stream farther from the clean run than another candidate does."
        )
    return None


EXERCISES = (
    Exercise(
        "1.1",
        "Where can it change?",
        1,
        3,
        changed_states,
        _check_1_1,
        "Hidden state 0 is the embedding, before block 0. So block 0 writes hidden state 1. Which one does `block` "
        "write, and which ones are computed from it?",
        solution_1_1,
        _wrong_1_1,
    ),
    Exercise(
        "1.2",
        "A hook that is right everywhere",
        2,
        7,
        make_hook,
        _check_1_2,
        "Ask `isinstance(output, tuple)` and answer in the form that came. Multiply with `*`, which makes a new "
        "tensor. The inner function sees `factor` of its own call of make_hook.",
        solution_1_2,
        _wrong_1_2,
    ),
    Exercise(
        "1.3",
        "Who carries the difference?",
        2,
        7,
        top_dimensions,
        _check_1_3,
        "The output of `block` is point block + 1. Cut off position 0, subtract, square, sum over batch and tokens: "
        "what is left has one number per coordinate. `topk(k).indices` finds the largest.",
        solution_1_3,
        tuple(_usual_1_3),
    ),
    Exercise(
        "1.4",
        "How much survives?",
        3,
        8,
        survival,
        _check_1_4,
        "Flatten the difference at each point to one long vector. The part of a vector v along a vector u is "
        "(v · u) / (u · u); u is the difference right at the edit.",
        solution_1_4,
        (*_usual_1_4, _whole_stream, lambda clean, scaled, block: 0.5),
    ),
    Exercise(
        "1.5",
        "Repair it",
        3,
        10,
        repair_factor,
        _check_1_5,
        "Trace the clean run once. Then, for each candidate, trace with two edits in one `with edit(lm, ..., ...)` and "
        "keep the candidate whose resid[-1] is nearest to the clean one.",
        solution_1_5,
        (*_usual_1_5, _leaves_a_hook),
    ),
)
check_1_1, check_1_2, check_1_3, check_1_4, check_1_5 = (checker(exercise) for exercise in EXERCISES)
