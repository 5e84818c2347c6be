"""Lesson 2's exercises: hooks and hidden states. Checks run on small random models and numbers that the learner has not seen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import hooks
from helpers.correlations import correlation, within_percentile
from helpers.course.exercise import Almost, Exercise, NotTried, a_model, checker, hooks_on, tiny_model
from helpers.edits import edit, scale_mlp, skip_attention, skip_block, skip_mlp
from helpers.lesson2.steps import random_steps
from helpers.loading import load_model
from helpers.metrics import delta_norm, relative_error
from helpers.models import LanguageModel
from helpers.say import say, translatable
from helpers.tables import below
from helpers.tracing import Trace, trace

FACT = "Paris is the capital of France. Berlin is the capital of"
WATER = "There is a lot of liquid water on planet Earth"

# ---- 2.1


def _check_2_1(answer: Any) -> str | None:
    if not isinstance(answer, dict) or set(answer) != {7, 11}:
        return say("write a dictionary with the two blocks as keys: {7: …, 11: …}.")
    if ... in answer.values():
        raise NotTried
    seven, eleven = (_pair(answer[7]), _pair(answer[11]))
    if seven == (6, 7):
        return say(
            "(6, 7) for block 7: hidden state 0 is the embedding, so hidden state 7 is what *enters* block 7 "
            "(block 6 made it)."
        )
    if seven == (8, 9):
        return say("(8, 9) for block 7: you added one too many; hidden state 8 is what block 7 hands on.")
    if seven == (8, 7):
        return say("(8, 7) for block 7: the right two in the wrong order; the state before the block comes first.")
    if not isinstance(seven, tuple) or len(seven) != 2:
        return say("{seven!r} for block 7: write a pair of numbers, (before, after).", seven=seven)
    if seven != (7, 8):
        return say(
            "{seven!r} for block 7: look for the state that enters block 7, and for the one that it hands on.",
            seven=seven,
        )
    if eleven == (11, 12):
        return say(
            "(11, 12) for block 11: in a model of 12 blocks hidden state 12 is not what block 11 hands on. "
            "What comes between the last block and the logits?"
        )
    if eleven == (10, 11):
        return say("(10, 11) for block 11: this is the step of block 10, and its own deltas fit there.")
    if eleven is not None:
        return say(
            "{eleven!r} for block 11: write a pair (before, after) between which its deltas fit, or None if "
            "there is none.",
            eleven=eleven,
        )
    return None


def _pair(given: Any) -> Any:
    """A pair as a tuple, its indices counted from the start: hidden_states[-1] is the last of 13."""
    if not isinstance(given, tuple | list):
        return given
    return tuple(at + 13 if isinstance(at, int) and -13 <= at < 0 else at for at in given)


solution_2_1 = {7: (7, 8), 11: None}


def _payoff_2_1(answer: Any) -> str:
    lm, name = a_model()
    run = trace(lm, FACT)
    with torch.no_grad():
        states = lm.model(**lm.inputs(lm.encode(FACT)), output_hidden_states=True).hidden_states
    before, after = answer[7]
    fits = _share(states[before] + run.attn[7] + run.mlp[7], states[after])
    last = _share(run.resid[-2] + run.attn[-1] + run.mlp[-1], states[-1])
    return say(
        "On {name} your pair fits: hidden state {before} and block 7's two deltas miss hidden state "
        "{after} by {fits} of its length. After the last block the same sum misses hidden_states[-1] by "
        "{last} times its length, because the final norm lies between.",
        name=name,
        before=before,
        after=after,
        fits=below(fits, 1e-5),
        last=f"{last:.3g}",
    )


# ---- 2.2


def r_without_outliers(before: Tensor, after: Tensor, percentile: float) -> Any:
    return ...


def _check_2_2(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(5)
    before = 0.5 + torch.randn(1, 9, 40, generator=generator, dtype=torch.float64)
    after = before + 0.6 * torch.randn(1, 9, 40, generator=generator, dtype=torch.float64)
    before[0, 0, 3], after[0, 0, 3] = 60.0, 63.0  # an outlier in both
    before[0, 0, 7], after[0, 0, 7] = -45.0, -40.0  # a negative one
    after[0, 4, 9] = 30.0  # one that is large only afterwards
    percentile = 97.0
    size = torch.maximum(before.abs(), after.abs())
    keep = within_percentile(before, after, percentile)
    given = before.clone(), after.clone()
    got = _number(answer(*given, percentile))
    if not (torch.equal(given[0], before) and torch.equal(given[1], after)):
        return say(
            "you changed `before` or `after` in place; whoever uses these states after you gets your "
            "numbers: index them instead."
        )
    fixed = within_percentile(before, after, 99.0)
    signed = torch.maximum(before, after)
    alone = before.abs() <= torch.quantile(before.abs(), percentile / 100)
    known = {
        say("you kept all values; mask those above the percentile first."): correlation(before, after),
        say("you kept the outliers and left the rest out: turn the comparison round."): correlation(
            before[~keep], after[~keep]
        ),
        say("you compared signed values, so large negative ones stayed: take the size, |value|."): correlation(
            *(x[signed <= torch.quantile(signed, percentile / 100)] for x in (before, after))
        ),
        say(
            "you looked at `before` alone; a value can be an outlier in `after` only: use the larger of both sizes."
        ): correlation(before[alone], after[alone]),
        say("you set outliers to 0 instead of leaving them out: 0 is a value too, and it counts."): correlation(
            before * keep, after * keep
        ),
        say("this is the cosine: Pearson's r takes the mean off each side first."): float(
            torch.nn.functional.cosine_similarity(before[keep], after[keep], dim=0)
        ),
        say("you kept 99 % whatever `percentile` says: use the argument."): correlation(before[fixed], after[fixed]),
        say("percentile 97 means that 97 % stay; you left out 97 %."): correlation(
            *(x[size > torch.quantile(size, 1 - percentile / 100)] for x in (before, after))
        ),
    }
    if abs(got - correlation(before[keep], after[keep])) < 1e-6:
        return None
    for sentence, value in known.items():
        if abs(got - value) < 1e-6:
            return sentence
    return say(
        "r = {got} on the hidden example, where {correlation} was expected.",
        got=f"{got:.4f}",
        correlation=f"{correlation(before[keep], after[keep]):.4f}",
    )


def solution_2_2(before, after, percentile):
    size = torch.maximum(before.abs(), after.abs())
    keep = size <= torch.quantile(size.flatten(), percentile / 100)
    return torch.corrcoef(torch.stack([before[keep], after[keep]]))[0, 1].item()


def _wrong_2_2() -> tuple[Callable[..., Any], ...]:
    def all_values(before, after, percentile):
        return correlation(before, after)

    def only_outliers(before, after, percentile):
        keep = within_percentile(before, after, percentile)
        return correlation(before[~keep], after[~keep])

    def signed(before, after, percentile):
        size = torch.maximum(before, after)
        keep = size <= torch.quantile(size, percentile / 100)
        return correlation(before[keep], after[keep])

    def zeroed(before, after, percentile):
        keep = within_percentile(before, after, percentile)
        return correlation(before * keep, after * keep)

    def before_alone(before, after, percentile):
        keep = before.abs() <= torch.quantile(before.abs(), percentile / 100)
        return correlation(before[keep], after[keep])

    def cosine(before, after, percentile):
        keep = within_percentile(before, after, percentile)
        return torch.nn.functional.cosine_similarity(before[keep], after[keep], dim=0)

    def always_99(before, after, percentile):
        keep = within_percentile(before, after, 99)
        return correlation(before[keep], after[keep])

    def in_place(before, after, percentile):
        before[~within_percentile(before, after, percentile)] = 0
        return correlation(before, after)

    return all_values, only_outliers, signed, zeroed, before_alone, cosine, always_99, in_place


def _right_2_2() -> tuple[Callable[..., Any], ...]:
    def in_numpy(before, after, percentile):
        a, b = before.numpy().ravel(), after.numpy().ravel()
        size = np.maximum(abs(a), abs(b))
        keep = size <= np.percentile(size, percentile)
        return np.corrcoef(a[keep], b[keep])[0, 1]

    def by_the_formula(before, after, percentile):
        size = torch.stack([before.abs(), after.abs()]).amax(dim=0)
        keep = size <= size.flatten().quantile(percentile / 100)
        a, b = before[keep] - before[keep].mean(), after[keep] - after[keep].mean()
        return (a * b).sum() / (a.norm() * b.norm())

    def by_sorting(before, after, percentile):
        size = torch.maximum(before.abs(), after.abs()).flatten()
        chosen = size.argsort()[: int((size.numel() - 1) * percentile / 100) + 1]
        return torch.corrcoef(torch.stack([before.flatten()[chosen], after.flatten()[chosen]]))[0, 1]

    return in_numpy, by_the_formula, by_sorting


def _payoff_2_2(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    run, block = trace(lm, FACT), round(0.77 * lm.n_blocks)
    before, after = run.resid[block], run.resid[block + 1]
    random = random_steps(before, after, 1)
    own, chance = (
        [f"{float(answer(before, x, percentile)):.4f}" for percentile in (100, 99, 95)] for x in (after, random)
    )
    return say(
        "On {name}, block {block}, your r is {own_first} over all values, {own_second} over the lowest "
        "99 % and {own_third} over the lowest 95 %. With a random step of the same length your function "
        "gives {chance_first}, {chance_second} and {chance_third}: outliers or not, r tells little more "
        "than how long the step is.",
        name=name,
        block=block,
        own_first=own[0],
        own_second=own[1],
        own_third=own[2],
        chance_first=chance[0],
        chance_second=chance[1],
        chance_third=chance[2],
    )


# ---- 2.3


def deltas(model: Any, ids: Tensor, block: int) -> Any:
    return ...


def _check_2_3(answer: Callable[..., Any]) -> str | None:
    lm = tiny_model(3)
    ids = torch.tensor([[3, 14, 15, 9, 2, 6], [5, 35, 8, 9, 7, 9]])
    block, passes = 2, []
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def see(value: Tensor, _: Tensor | None = None) -> None:
            seen[name] = value.detach().clone()

        return see

    lm.model(ids, output_hidden_states=True)  # transformers 5 now installs its recorders, which are not the learner's
    lm.model.train()  # GPT-2's own dropout, p = 0.1
    before = hooks_on(lm.model)
    ours = [hooks.on_input(lm.blocks[0], lambda _: passes.append(1))]
    for at in range(lm.n_blocks):
        ours += hooks.on_site(lm, "attention", at, keep(f"attention {at}"))
        ours += hooks.on_site(lm, "mlp", at, keep(f"mlp {at}"))
        ours.append(hooks.on_output(lm.part(at, "attn.c_proj"), keep(f"attention c_proj {at}")))
        ours.append(hooks.on_output(lm.part(at, "mlp.c_proj"), keep(f"mlp c_proj {at}")))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            result = answer(lm.model, ids, block)
    finally:
        hooks.remove(ours)
    if not passes:
        return say("the model never ran: call model(ids) while your hooks are on.")
    if len(passes) > 1:
        return say(
            "you ran the model {n_passes} times; each pass in train mode draws new dropout, so record both "
            "deltas in one.",
            n_passes=len(passes),
        )
    if not lm.model.training:
        return say("you switched the model to eval mode; the question is what happens in the mode that it is in.")
    if not isinstance(result, tuple | list) or len(result) != 2:
        return say("return two things, attention's delta and the MLP's: (attention, mlp).")
    for name, value in zip(("attention", "mlp"), result, strict=True):
        if isinstance(value, tuple | list):
            return say(
                "{name} is a {kind}: an attention module returns (delta, weights); keep its first element.",
                name=name,
                kind=type(value).__name__,
            )
        if not isinstance(value, Tensor):
            return say("{name} is a {kind}, not a tensor.", name=name, kind=type(value).__name__)
        if value.shape != seen[f"mlp {block}"].shape:
            return say(
                "{name} has shape {shape} instead of {right_shape}: `[0]` takes the first element of a tuple, "
                "but on a tensor it takes the first row of the batch.",
                name=name,
                shape=tuple(value.shape),
                right_shape=tuple(seen[f"mlp {block}"].shape),
            )
    attention, mlp = result
    if _same(attention, seen[f"mlp {block}"]) and _same(mlp, seen[f"attention {block}"]):
        return say("the two deltas are swapped: attention first, then the MLP.")
    for name, value in (("attention", attention), ("mlp", mlp)):
        if _same(value, seen[f"{name} c_proj {block}"]):
            return say(
                "{name}: c_proj's output is not yet what is added to the stream; in train mode dropout comes "
                "after it. Hook the dropout, or the whole module.",
                name=name,
            )
        for other in range(lm.n_blocks):
            if other != block and _same(value, seen[f"{name} {other}"]):
                return say(
                    "{name}: this is the delta of block {other}, and block {block} was asked for.",
                    name=name,
                    other=other,
                    block=block,
                )
        if not _same(value, seen[f"{name} {block}"]):
            return say("{name}: this is not what block {block} adds to the stream.", name=name, block=block)
    if attention.requires_grad or mlp.requires_grad:
        return say("the numbers are right, but they still carry the graph of the pass: detach what you keep.")
    left = hooks_on(lm.model) - before
    if left:
        return say(
            "the numbers are right, but hooks are still on the model ({left} of them): remove each handle when done.",
            left=left,
        )
    lm.model.eval()
    elsewhere, clean = answer(lm.model, ids[:1, :4], 1), trace(lm, ids[:1, :4])
    if not (_same(elsewhere[0], clean.attn[1]) and _same(elsewhere[1], clean.mlp[1])):
        return say(
            "right in train mode for block 2, but not in eval mode for block 1 of another prompt: use the arguments."
        )
    with suppress(Almost):
        answer(lm.model, torch.full_like(ids, 10_000), block)  # no such token: the pass raises
    if hooks_on(lm.model) > before:
        return say("when the pass raises an error, your hooks stay on the model: remove them in a `finally`.")
    return None


def solution_2_3(model, ids, block):
    part = model.transformer.h[block]
    kept = {}

    def keep(name):
        def hook(module, args, output):
            kept[name] = output.detach()

        return hook

    handles = [
        part.attn.resid_dropout.register_forward_hook(keep("attention")),
        part.mlp.dropout.register_forward_hook(keep("mlp")),
    ]
    try:
        model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return kept["attention"], kept["mlp"]


def _recorded(
    model: Any, ids: Tensor, modules: list[nn.Module], keep: Callable[[Any], Any], leave: bool = False
) -> Any:
    """What wrong answers to 2.3 do: hook these modules, run, return what was kept."""
    kept: list[Any] = []
    handles = [m.register_forward_hook(lambda module, args, output: kept.append(keep(output))) for m in modules]
    model(ids)
    if not leave:
        hooks.remove(handles)
    return tuple(kept)


def _wrong_2_3() -> tuple[Callable[..., Any], ...]:
    def at_c_proj(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn.c_proj, part.mlp.c_proj], lambda o: o.detach())

    def not_detached(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn.resid_dropout, part.mlp.dropout], lambda o: o)

    def hooks_left(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn.resid_dropout, part.mlp.dropout], lambda o: o.detach(), leave=True)

    def first_row(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn, part.mlp], lambda o: o[0].detach())

    def whole_tuple(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn, part.mlp], lambda o: o)

    def swapped(model, ids, block):
        return solution_2_3(model, ids, block)[::-1]

    def block_before(model, ids, block):
        return solution_2_3(model, ids, block - 1)

    def two_passes(model, ids, block):
        return solution_2_3(model, ids, block)[0], solution_2_3(model, ids, block)[1]

    def in_eval_mode(model, ids, block):
        return solution_2_3(model.eval(), ids, block)

    def no_finally(model, ids, block):
        part = model.transformer.h[block]
        return _recorded(model, ids, [part.attn.resid_dropout, part.mlp.dropout], lambda o: o.detach())

    def always_block_2(model, ids, block):
        return solution_2_3(model, ids, 2)

    return (
        at_c_proj, not_detached, hooks_left, first_row, whole_tuple, swapped, block_before, two_passes, in_eval_mode, no_finally,
        always_block_2,
    )  # fmt: skip


def _right_2_3() -> tuple[Callable[..., Any], ...]:
    def whole_modules(model, ids, block):
        part, kept = model.transformer.h[block], []
        handles = [
            part.attn.register_forward_hook(lambda module, args, output: kept.append(output[0].detach())),
            part.mlp.register_forward_hook(lambda module, args, output: kept.append(output.detach())),
        ]
        try:
            model(ids)
        finally:
            hooks.remove(handles)
        return kept

    def without_gradients(model, ids, block):
        with torch.no_grad():
            return solution_2_3(model, ids, block)

    def by_subtraction(model, ids, block):
        part, kept = model.transformer.h[block], []
        see = lambda module, args: kept.append(args[0].detach().clone())  # noqa: E731
        handles = [part.register_forward_pre_hook(see), part.ln_2.register_forward_pre_hook(see)]
        after = part.register_forward_hook(
            lambda module, args, output: kept.append(hooks.first(output).detach().clone())
        )
        try:
            model(ids)
        finally:
            hooks.remove([*handles, after])
        return kept[1] - kept[0], kept[2] - kept[1]

    return whole_modules, without_gradients, by_subtraction


def _payoff_2_3(answer: Callable[..., Any]) -> str:
    lm = load_model()
    ids, block, kept = lm.encode(WATER).ids, 10, []
    dropouts = [module for module in lm.model.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.p = 0.1
    lm.model.train()
    ours = [
        hooks.on_input(lm.blocks[block], lambda value: kept.append(value.detach().clone())),
        hooks.on_output(lm.blocks[block], lambda value, _: kept.append(value.detach().clone())),
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one, other = answer(lm.model, ids, block), answer(lm.model, ids, block)
    finally:
        hooks.remove(ours)
    differ = _share(other[1], one[1])
    miss = max(_share(kept[i] + sum(found), kept[i + 1]) for i, found in ((0, one), (2, other)))
    return say(
        "On the pocket model, in train mode with dropout of 0.1, your MLP delta of block {block} differs "
        "by {differ} % between two passes over the same prompt. In each of them the state before the "
        "block and your two deltas miss the state after it by {miss}: the passes are random, the sum is "
        "exact.",
        block=block,
        differ=f"{100 * differ:.0f}",
        miss=below(miss),
    )


# ---- 2.4


def mlp_effects(lm: LanguageModel, prompt: Any) -> Any:
    return ...


def _check_2_4(answer: Callable[..., Any]) -> str | None:
    lm = tiny_model(11, n_blocks=5)
    ids = torch.tensor([[7, 21, 3, 40, 9, 12, 30]])
    lm.model(ids, output_hidden_states=True)
    before = hooks_on(lm.model)
    try:
        got = answer(lm, ids)
        left = hooks_on(lm.model) - before
    finally:
        lm.live_edits.clear()
        hooks.remove(lm.edit_handles)
    if left:
        return say(
            "hooks are still on the model ({left} of them): edits belong in a `with edit(...)` block.", left=left
        )
    values = got.detach().double().flatten() if isinstance(got, Tensor) else _listed(got)
    if len(values) != lm.n_blocks:
        return say(
            "this model has {n_blocks} blocks, and you returned {n_values} numbers: one per block is asked for.",
            n_blocks=lm.n_blocks,
            n_values=len(values),
        )
    clean = trace(lm, ids)
    assert clean.final is not None
    after_norm = clean.final

    def effects(make: Callable[[int], Any], measure: Callable[[Any, int], Any]) -> Tensor:
        found = []
        for block in range(lm.n_blocks):
            with edit(lm, make(block)):
                found.append(float(measure(trace(lm, ids), block)))
        return torch.tensor(found, dtype=torch.float64)

    def at_the_end(run: Any, block: int) -> Any:
        return relative_error(clean.resid, run.resid, include_first=False)[-1]

    if _same(values, effects(skip_mlp, at_the_end)):
        return None
    known = {
        say("you skipped the whole block; its attention shall stay."): effects(skip_block, at_the_end),
        say("you skipped the attention; the MLP was asked for."): effects(skip_attention, at_the_end),
        say("the first token is included: leave it out."): effects(
            skip_mlp, lambda run, _: relative_error(clean.resid, run.resid)[-1]
        ),
        say("this is Δ itself: divide it by the length of the clean stream."): effects(
            skip_mlp, lambda run, _: delta_norm(clean.resid, run.resid, include_first=False)[-1]
        ),
        say("this is the error right after the edited block; follow it to the end of the stream."): effects(
            skip_mlp, lambda run, block: relative_error(clean.resid, run.resid, include_first=False)[block + 1]
        ),
        say("this is measured after the final norm; take the stream before it, resid[-1]."): effects(
            skip_mlp, lambda run, _: relative_error(after_norm[None], run.final[None], include_first=False)[0]
        ),
        say("this is the error before the last block has run; resid[-1] is the end of the stream."): effects(
            skip_mlp, lambda run, _: relative_error(clean.resid, run.resid, include_first=False)[-2]
        ),
    }
    known["MLPs stay silenced from one turn of the loop to the next: each shall be missing alone."] = _one_by_one(
        lm, ids, clean
    )
    for sentence, expected in known.items():
        if _same(values, expected):
            return sentence
    return say(
        "the numbers differ from the reference on a small model: skip_mlp(block), relative error, last point of resid."
    )


def _one_by_one(lm: LanguageModel, ids: Tensor, clean: Trace) -> Tensor:
    """What a loop finds that never takes an edit off again."""
    found = []
    for block in range(lm.n_blocks):
        with edit(lm, *(skip_mlp(gone) for gone in range(block + 1))):
            found.append(relative_error(clean.resid, trace(lm, ids).resid, include_first=False)[-1])
    return torch.stack(found).double()


def solution_2_4(lm, prompt):
    clean = trace(lm, prompt)
    effects = []
    for block in range(lm.n_blocks):
        with edit(lm, skip_mlp(block)):
            without = trace(lm, prompt)
        effects.append(relative_error(clean.resid, without.resid, include_first=False)[-1])
    return torch.stack(effects)


def _wrong_2_4() -> tuple[Callable[..., Any], ...]:
    def loop(make: Callable[[int], Any], measure: Callable[..., Any]) -> Callable[..., Any]:
        def answer(lm, prompt):
            clean, found = trace(lm, prompt), []
            for block in range(lm.n_blocks):
                with edit(lm, make(block)):
                    found.append(measure(clean, trace(lm, prompt), block))
            return torch.stack(found)

        return answer

    def whole_curve(lm, prompt):
        clean = trace(lm, prompt)
        with edit(lm, skip_mlp(0)):
            return relative_error(clean.resid, trace(lm, prompt).resid, include_first=False)

    def sums_up(lm, prompt):
        clean, gone, found = trace(lm, prompt), [], []
        for block in range(lm.n_blocks):
            gone.append(skip_mlp(block))
            with edit(lm, *gone):
                found.append(relative_error(clean.resid, trace(lm, prompt).resid, include_first=False)[-1])
        return torch.stack(found)

    def edits_stay(lm, prompt):
        for block in range(lm.n_blocks):
            edit(lm, skip_mlp(block)).__enter__()
        return torch.zeros(lm.n_blocks)

    return (
        loop(skip_block, lambda c, r, b: relative_error(c.resid, r.resid, include_first=False)[-1]),
        loop(skip_attention, lambda c, r, b: relative_error(c.resid, r.resid, include_first=False)[-1]),
        loop(skip_mlp, lambda c, r, b: relative_error(c.resid, r.resid)[-1]),
        loop(skip_mlp, lambda c, r, b: delta_norm(c.resid, r.resid, include_first=False)[-1]),
        loop(skip_mlp, lambda c, r, b: relative_error(c.resid, r.resid, include_first=False)[b + 1]),
        loop(skip_mlp, lambda c, r, b: relative_error(c.final[None], r.final[None], include_first=False)[0]),
        loop(skip_mlp, lambda c, r, b: relative_error(c.resid, r.resid, include_first=False)[-2]),
        whole_curve,
        edits_stay,
        sums_up,
    )


def _right_2_4() -> tuple[Callable[..., Any], ...]:
    def as_numbers(lm, prompt):
        return [float(value) for value in solution_2_4(lm, prompt)]

    def by_hand(lm, prompt):
        clean, found = trace(lm, prompt).resid[-1][:, 1:], []
        for block in lm.blocks:
            handle = block.mlp.register_forward_hook(lambda module, args, output: 0 * output)
            try:
                state = trace(lm, prompt).resid[-1][:, 1:]
            finally:
                handle.remove()
            found.append((state - clean).norm() / clean.norm())
        return torch.stack(found)

    def scaled_to_nothing(lm, prompt):
        clean, found = trace(lm, prompt), {}
        for block in reversed(range(lm.n_blocks)):
            with edit(lm, scale_mlp(block, 0.0)):
                found[block] = relative_error(
                    clean.resid[-1:], trace(lm, prompt).resid[-1:], include_first=False
                ).item()
        return tuple(found[block] for block in range(lm.n_blocks))

    return as_numbers, by_hand, scaled_to_nothing


def _payoff_2_4(answer: Callable[..., Any]) -> str:
    lm, name = a_model()
    run, found = trace(lm, FACT), answer(lm, FACT)
    effects = found.detach().double().flatten() if isinstance(found, Tensor) else _listed(found)
    length = run.mlp[:, :, 1:].flatten(1).norm(dim=1)
    (most, second), longest = effects.argsort(descending=True)[:2].tolist(), int(length.argmax())
    place = int((effects > effects[longest]).sum()) + 1
    return say(
        "On {name} your loop finds that the MLP of block {most} is missed most (error {effects_most} at "
        "the end of the stream), then that of block {second} ({effects_second}), though they write only "
        "{length_most} and {length_second} to these tokens. The MLP that writes most, {length_longest}, "
        "is that of block {longest}: without it the error is {effects_longest}, place {place} of "
        "{n_blocks}.",
        name=name,
        most=most,
        effects_most=f"{effects[most]:.2f}",
        second=second,
        effects_second=f"{effects[second]:.2f}",
        length_most=f"{length[most]:.0f}",
        length_second=f"{length[second]:.0f}",
        length_longest=f"{length[longest]:.0f}",
        longest=longest,
        effects_longest=f"{effects[longest]:.2f}",
        place=place,
        n_blocks=lm.n_blocks,
    )


def _share(value: Tensor, target: Tensor) -> float:
    """‖value − target‖ / ‖target‖."""
    return float((value - target).norm() / target.norm())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.detach().to(b), b, rtol=1e-6, atol=1e-9)


def _listed(values: Any) -> Tensor:
    try:
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Almost(
            say("one number per block is asked for: return a list of numbers or a tensor (n_blocks,).")
        ) from None


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise Almost(
            say("one number is asked for, and you returned a tensor of shape {shape}.", shape=tuple(value.shape))
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Almost(say("one number is asked for, and you returned a {kind}.", kind=type(value).__name__)) from None


EXERCISES = (
    Exercise(
        "2.1", translatable("Which two states?"), 1, 3, ..., _check_2_1,
        translatable("hidden_states[0] is the embedding, before any block, so a list of 12 blocks gives 13 states. "
"And remember what the last of the 13 went through."),
        solution_2_1,
        wrong=(
            {7: (6, 7), 11: (10, 11)}, {7: (8, 9), 11: None}, {7: (7, 8), 11: (11, 12)}, {7: (7, 8), 11: 12}, (7, 8),
            {7: 7, 11: None}, {7: (8, 7), 11: None}, {7: (7, 9), 11: None}, {7: [7, 8], 11: (10, 11)},
        ),
        right=({7: [7, 8], 11: None}, {11: None, 7: (7, 8)}, {7: (-6, -5), 11: None}),
        payoff=_payoff_2_1,
    ),
    Exercise(
        "2.2", translatable("r without the outliers"), 2, 8, r_without_outliers, _check_2_2,
        translatable("size = torch.maximum(before.abs(), after.abs()); torch.quantile wants a share between 0 and 1; "
"index both tensors with the same mask; torch.corrcoef of the two stacked rows has r at [0, 1]."),
        solution_2_2, wrong=_wrong_2_2(), right=_right_2_2(), payoff=_payoff_2_2,
    ),
    Exercise(
        "2.3", translatable("Deltas that are true in any mode"), 2, 10, deltas, _check_2_3,
        translatable("The picture of the block shows two places for a hook. In train mode only one of them is what is "
"added: attn.resid_dropout and mlp.dropout. Keep output.detach(), run the model once, remove "
"both handles in a `finally`."),
        solution_2_3, wrong=_wrong_2_3(), right=_right_2_3(), payoff=_payoff_2_3,
    ),
    Exercise(
        "2.4", translatable("Which MLP is missed most?"), 3, 12, mlp_effects, _check_2_4,
        translatable("One clean trace, then a loop over blocks with `with edit(lm, skip_mlp(block)):` around a second "
"trace. relative_error(…, include_first=False) has one number per point of the stream; the last "
"one is the end, before the final norm."),
        solution_2_4, wrong=_wrong_2_4(), right=_right_2_4(), payoff=_payoff_2_4,
    ),
)  # fmt: skip

check_2_1, check_2_2, check_2_3, check_2_4 = (checker(exercise) for exercise in EXERCISES)
