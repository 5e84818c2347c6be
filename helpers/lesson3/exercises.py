"""Lesson 3's exercises: the report's four challenges, and fair noise.

The checks use small random models and tensors that the learner has not seen, made anew for each check. The challenges are
checked by what the learner's hooks write, not by what the model says afterwards: an edit at the wrong place can give the
right answer (zeroed queries leave the same attention pattern as zeroed keys).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helpers.course.exercise import Almost, Exercise, a_model, checker, hooks_on, tiny_model
from helpers.edits import change, edit, noise_neurons
from helpers.hooks import first, with_first
from helpers.lesson3.claims import find_keys
from helpers.lesson3.runs import EXAMPLE, FACT, TARGET, WATER, some_prompts
from helpers.loading import load_model
from helpers.metrics import top_k
from helpers.readings import read_site
from helpers.say import say, translatable
from helpers.tables import format_number

# ---- 3.1 · where a head's keys begin


def key_columns(d_model, d_head, head):
    return ...


def solution_3_1(d_model, d_head, head):
    start = d_model + head * d_head  # d_model columns of queries come first
    return slice(start, start + d_head)


def _in_k_alone(d_model, d_head, head):
    return slice(head * d_head, (head + 1) * d_head)


def _counts_from_one(d_model, d_head, head):
    return slice(d_model + (head - 1) * d_head, d_model + head * d_head)


def _one_head_late(d_model, d_head, head):
    return slice(d_model + (head + 1) * d_head, d_model + (head + 2) * d_head)


def _the_values(d_model, d_head, head):
    return slice(2 * d_model + head * d_head, 2 * d_model + (head + 1) * d_head)


def _gpt2_small(d_model, d_head, head):
    return slice(768 + head * 64, 768 + (head + 1) * 64)


def _head_by_head(d_model, d_head, head):
    return slice((3 * head + 1) * d_head, (3 * head + 2) * d_head)


def _to_the_end(d_model, d_head, head):
    return slice(d_model + head * d_head, 2 * d_model)


def _twelve_heads(d_model, d_head, head):
    return slice(d_model + head * (d_model // 12), d_model + (head + 1) * (d_model // 12))


_usual_3_1 = {
    _in_k_alone: translatable(
        "this is where the head begins inside K alone. In the fused matrix the queries come first, "
        "d_model columns of them."
    ),
    _counts_from_one: translatable(
        "you took one head off. `head` counts from 0 already: the report's third head is head 2."
    ),
    _one_head_late: translatable("this is the next head. Head 0 begins where K begins, with nothing before it."),
    _the_values: translatable("these are the head's values. The order is queries, keys, values."),
    _gpt2_small: translatable("this fits GPT-2 small alone. Derive both numbers from d_model and d_head."),
    _head_by_head: translatable(
        "this is GPT-NeoX's order: q, k, v of one head, then of the next. GPT-2 keeps all queries together first."
    ),
    _to_the_end: translatable(
        "the start is right, but this runs to the end of K, over all later heads. A head is d_head columns wide."
    ),
    _twelve_heads: translatable(
        "this fits models of 12 heads alone. A head is d_head columns wide, however many there are."
    ),
}


def _start_and_width(d_model, d_head, head):
    return slice(d_model + head * d_head, d_head)


def _float_columns(d_model, d_head, head):
    return slice(d_model + head * d_head / 1, d_model + (head + 1) * d_head / 1)


def _columns(answer: Any, width: int) -> list[int]:
    """The columns that an index chooses, of `width`; a slice is asked for, and what chooses the same is as right."""
    if isinstance(answer, slice):
        try:
            return list(range(width)[answer])
        except TypeError:
            raise Almost(say("a slice needs whole numbers: divide with //, not with /.")) from None
    if isinstance(answer, range | list | Tensor):
        return [int(column) for column in answer]
    raise Almost(say("return a slice, slice(start, stop); this is {kind}.", kind=type(answer).__name__))


def _check_3_1(answer: Callable[..., Any]) -> str | None:
    cases = ((1024, 64, 5), (192, 16, 2), (40, 10, 1), (768, 64, 0))
    chosen = lambda function: [_columns(function(*case), 3 * case[0]) for case in cases]  # noqa: E731
    got = chosen(answer)
    if got == chosen(solution_3_1):
        return None
    for wrong, sentence in _usual_3_1.items():
        if got == chosen(wrong):
            return sentence
    d_model, d_head, head = cases[0]
    if not got[0]:
        return say(
            "for d_model {d_model}, d_head {d_head} and head {head} it chooses no column: write start and "
            "stop, not a width.",
            d_model=d_model,
            d_head=d_head,
            head=head,
        )
    for case, columns, right in zip(cases, got, chosen(solution_3_1), strict=True):
        if columns != right:
            d_model, d_head, head = case
            where = (
                say("columns {first_column} to {last_columns}", first_column=columns[0], last_columns=columns[-1])
                if columns
                else say("no column")
            )
            return say(
                "for d_model {d_model}, d_head {d_head} and head {head} it chooses {where}: not exactly this "
                "head's keys.",
                d_model=d_model,
                d_head=d_head,
                head=head,
                where=where,
            )
    return None


def _as_range(d_model, d_head, head):
    return range(d_model + head * d_head, d_model + (head + 1) * d_head)


def _with_a_step(d_model, d_head, head):
    n_heads = d_model // d_head
    return slice((n_heads + head) * d_head, (n_heads + head + 1) * d_head, 1)


def _from_the_end(d_model, d_head, head):
    stop = -d_model - (d_model - (head + 1) * d_head)
    return slice(stop - d_head, stop)


def _payoff_3_1(key_columns: Callable[..., Any]) -> str:
    lm, block, head = load_model(), 5, 2
    columns = _columns(key_columns(lm.d_model, lm.d_head, head), 3 * lm.d_model)
    _, searched, width = find_keys(lm, WATER, block, head)
    small = _columns(key_columns(768, 64, head), 3 * 768)[0]
    return say(
        "In the pocket model your keys of head {head} begin at column {first_column} of {width}; a "
        "search for the keys that the model itself stores finds them at column {searched}. In GPT-2 "
        "small they begin at {small}, 768 more than the report's 128.",
        head=head,
        first_column=columns[0],
        width=width,
        searched=searched,
        small=small,
    )


# ---- 3.2 · challenge 1: silence the keys of one head


def make_key_hook(d_model, d_head, head):
    return ...


def solution_3_2(d_model, d_head, head):
    def hook(module, args, output):
        q, k, v = output.split(d_model, dim=-1)
        k = k.clone()
        k[..., head * d_head : (head + 1) * d_head] = 0
        return torch.cat([q, k, v], dim=-1)

    return hook


def _zeroing(columns: Callable[..., slice]) -> Callable[..., Any]:
    """Return a wrong answer that sets these columns of the fused matrix to zero."""

    def make(d_model, d_head, head):
        def hook(module, args, output):
            new = output.clone()
            new[..., columns(d_model, d_head, head)] = 0
            return new

        return hook

    return make


def _keys_in_place(d_model, d_head, head):
    def hook(module, args, output):
        output[..., solution_3_1(d_model, d_head, head)] = 0
        return output

    return hook


def _only_first_prompt(d_model, d_head, head):
    def hook(module, args, output):
        new = output.clone()
        new[0, :, solution_3_1(d_model, d_head, head)] = 0
        return new

    return hook


def _only_k_comes_back(d_model, d_head, head):
    def hook(module, args, output):
        k = output.split(d_model, dim=-1)[1].clone()
        k[..., head * d_head : (head + 1) * d_head] = 0
        return k

    return hook


def _keys_not_returned(d_model, d_head, head):
    def hook(module, args, output):
        new = output.clone()
        new[..., solution_3_1(d_model, d_head, head)] = 0

    return hook


def _all_keys(d_model, d_head, head):
    return slice(d_model, 2 * d_model)


def _wrong_axis(d_model, d_head, head):
    def hook(module, args, output):
        new = output.clone()
        new[:, solution_3_1(d_model, d_head, head)] = 0
        return new

    return hook


def _in_float32(d_model, d_head, head):
    def hook(module, args, output):
        new = output.float()
        new[..., solution_3_1(d_model, d_head, head)] = 0
        return new

    return hook


_usual_3_2 = {
    _in_k_alone: translatable(
        "you zeroed the head's queries, not its keys: in the fused matrix K begins at column d_model. "
        "The attention pattern would come out even all the same, so only a look at what was written "
        "shows this mistake."
    ),
    _one_head_late: translatable("you zeroed the next head's keys. Heads count from 0."),
    _the_values: translatable("you zeroed the head's values: it would look where it always looks and report nothing."),
    _gpt2_small: translatable("these columns belong to GPT-2 small. Derive them from d_model and d_head."),
    _all_keys: translatable("you zeroed the keys of every head. Only this head's d_head columns of K should go."),
}


def _check_3_2(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(13)
    for d_model, d_head, head in ((640, 80, 1), (48, 8, 3)):  # the first so wide that GPT-2 small's columns exist
        hook = answer(d_model, d_head, head)
        if not callable(hook):
            return say(
                "make_key_hook returned {kind}: return the inner function itself, without calling it.",
                kind=type(hook).__name__,
            )
        clean = torch.randn(2, 5, 3 * d_model, generator=generator, dtype=torch.float64)
        given = clean.clone()
        try:
            got = hook(nn.Identity(), (), given)
        except Exception as error:
            raise Almost(
                say(
                    "called by PyTorch your hook raised {error_kind}: {error}",
                    error_kind=type(error).__name__,
                    error=error,
                )
            ) from None
        if not torch.equal(given, clean):
            return say("your hook wrote into the tensor that it was given. Clone first: somebody may have recorded it.")
        if got is None:
            return say("your hook returned None, which leaves everything as it was. Return the whole fused matrix.")
        if not isinstance(got, Tensor) or got.shape != clean.shape:
            return say("the model expects queries, keys and values side by side again, in the shape that came in.")
        if got.dtype != clean.dtype:
            return say(
                "{clean_dtype} came in and {got_dtype} went out: keep the dtype of the output.",
                clean_dtype=clean.dtype,
                got_dtype=got.dtype,
            )
        right = clean.clone()
        right[..., solution_3_1(d_model, d_head, head)] = 0
        if torch.equal(got, right):
            continue
        if torch.equal(got, clean):
            return say(
                "what you return is what came in. Either your slice lies beyond the axis that it indexes "
                "(columns are the last axis: [..., a:b]), or you changed a copy and returned another one."
            )
        if torch.equal(got[0], right[0]):
            return say(
                "only the first prompt of the batch is edited. Leave the batch axis alone: index the last axis "
                "with [..., columns]."
            )
        for columns, sentence in _usual_3_2.items():
            wrong = clean.clone()
            wrong[..., columns(d_model, d_head, head)] = 0
            if torch.equal(got, wrong):
                return sentence
        return say(
            "{n_columns} columns of the fused matrix differ from what they should be.",
            n_columns=int((got != right).any(dim=(0, 1)).sum()),
        )
    return None


def _by_mask(d_model, d_head, head):
    def hook(module, args, output):
        keep = torch.ones(output.shape[-1])
        keep[d_model + head * d_head : d_model + (head + 1) * d_head] = 0
        return output * keep

    return hook


def _by_fill(d_model, d_head, head):
    columns = torch.arange(d_model + head * d_head, d_model + (head + 1) * d_head)
    return lambda module, args, output: output.index_fill(-1, columns, 0.0)


def _by_view(d_model, d_head, head):
    def hook(module, args, output):
        parts = output.clone().view(*output.shape[:-1], 3, d_model // d_head, d_head)
        parts[..., 1, head, :] = 0
        return parts.view_as(output)

    return hook


def _payoff_3_2(make_key_hook: Callable[..., Any]) -> str:
    lm, block = load_model(), 8
    target = lm.token_id(TARGET)
    before = _probability(lm.logits(FACT), target)
    after = []
    for head in range(lm.n_heads):
        handle = lm.part(block, lm.parts.keys).register_forward_hook(make_key_hook(lm.d_model, lm.d_head, head))
        try:
            after.append(_probability(lm.logits(FACT), target))
        finally:
            handle.remove()
    return say(
        "On the pocket model your hook took the keys of the {n_heads} heads of block {block} in turn. "
        "Head {after_index} needs them most: after “{fact}” {target!r} falls from {before} to {after}.",
        n_heads=lm.n_heads,
        block=block,
        after_index=after.index(min(after)),
        fact=FACT,
        target=TARGET,
        before=_n(before),
        after=_n(min(after)),
    )


def _fact(name: str) -> str:
    """The prompt that asks this model for Germany."""
    return EXAMPLE + FACT if name == "SmolLM2" else FACT


def _probability(logits: Tensor, token: int) -> float:
    """Of `token` as the next word."""
    return float(logits[0, -1].double().softmax(-1)[token])


def _n(value: float) -> str:
    return format_number(value, 3)


# ---- 3.3 · challenge 2: noise into every second neuron


def noisy_logits(lm, ids, block, mean, std, generator):
    return ...


def solution_3_3(lm, ids, block, mean, std, generator):
    def hook(module, args):
        neurons = args[0].clone()
        even = neurons[..., ::2]
        drawn = torch.randn(even.shape, generator=generator, dtype=even.dtype)
        neurons[..., ::2] = mean + std * drawn
        return (neurons,)

    handle = lm.mlp(block).c_proj.register_forward_pre_hook(hook)
    try:
        return lm.logits(ids)
    finally:
        handle.remove()


def _noise_run(hook: Callable[..., Any], name: str, pre: bool) -> Callable[..., Any]:
    """Return a wrong answer: `hook(value, mean, std, generator)` at the MLP's module `name`, on its input or its output."""

    def answer(lm, ids, block, mean, std, generator):
        module = lm.mlp(block).get_submodule(name)
        if pre:
            handle = module.register_forward_pre_hook(lambda m, args: (hook(args[0], mean, std, generator),))
        else:
            handle = module.register_forward_hook(lambda m, args, out: hook(out, mean, std, generator))
        try:
            return lm.logits(ids)
        finally:
            handle.remove()

    return answer


def _even_noise(value, mean, std, generator):
    new = value.clone()
    new[..., ::2] = mean + std * torch.randn(new[..., ::2].shape, generator=generator, dtype=new.dtype)
    return new


def _odd_noise(value, mean, std, generator):
    new = value.clone()
    new[..., 1::2] = mean + std * torch.randn(new[..., 1::2].shape, generator=generator, dtype=new.dtype)
    return new


def _noise_everywhere(value, mean, std, generator):
    return mean + std * torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _noise_on_top(value, mean, std, generator):
    new = value.clone()
    new[..., ::2] += mean + std * torch.randn(new[..., ::2].shape, generator=generator, dtype=new.dtype)
    return new


def _every_second_token(value, mean, std, generator):
    new = value.clone()
    new[:, ::2] = mean + std * torch.randn(new[:, ::2].shape, generator=generator, dtype=new.dtype)
    return new


def _unseeded(value, mean, std, generator):
    new = value.clone()
    new[..., ::2] = mean + std * torch.randn(new[..., ::2].shape, dtype=new.dtype)
    return new


def _always_seed_zero(value, mean, std, generator):
    return _even_noise(value, mean, std, torch.Generator().manual_seed(0))


def _same_for(axis: int) -> Callable[..., Tensor]:
    """Noise that is drawn once for all prompts (0), all tokens (1) or all neurons (2)."""

    def make(value: Tensor, mean: float, std: float, generator: torch.Generator) -> Tensor:
        new = value.clone()
        shape = [1 if i == axis else n for i, n in enumerate(new[..., ::2].shape)]
        new[..., ::2] = mean + std * torch.randn(shape, generator=generator, dtype=new.dtype)
        return new

    return make


def _uniform(value, mean, std, generator):
    new = value.clone()
    even = torch.rand(new[..., ::2].shape, generator=generator, dtype=new.dtype)
    new[..., ::2] = mean + std * 12**0.5 * (even - 0.5)
    return new


def _leaves_the_noise_on(lm, ids, block, mean, std, generator):
    lm.mlp(block).c_proj.register_forward_pre_hook(lambda m, args: (_even_noise(args[0], mean, std, generator),))
    return lm.logits(ids)


def _no_finally(lm, ids, block, mean, std, generator):
    projection = lm.mlp(block).c_proj
    handle = projection.register_forward_pre_hook(lambda m, args: (_even_noise(args[0], mean, std, generator),))
    logits = lm.logits(ids)
    handle.remove()
    return logits


class _Stop(Exception):
    """What a pass of the check stops with."""


def _check_3_3(answer: Callable[..., Any]) -> str | None:
    lm, block, ids = tiny_model(21), 2, torch.arange(14).reshape(2, 7)
    neurons = read_site(lm, ids, "neurons", block)
    plain = lm.logits(ids)

    def ask(mean: float, std: float, seed: int) -> tuple[Tensor, Tensor]:
        """The neurons (batch, pos, d_mlp) that the learner's function left for the projection, and its logits."""
        seen: list[Tensor] = []
        projection = lm.mlp(block).get_submodule("c_proj")
        hooks = hooks_on(lm.model)
        inner = projection.forward

        def keep_and_project(x: Tensor) -> Tensor:  # in place of a recorder: no hook of ours, and behind all of theirs
            seen.append(x.detach().clone())
            return inner(x)

        projection.forward = keep_and_project
        try:
            logits = answer(lm, ids, block, mean, std, torch.Generator().manual_seed(seed))
        finally:
            del projection.forward
        if hooks_on(lm.model) != hooks:
            raise Almost(
                say(
                    "your function left its hook on the model: the next run would be noisy too. Remove the handle in "
                    "a `finally`."
                )
            )
        if not isinstance(logits, Tensor) or logits.shape != plain.shape:
            raise Almost(say("return the logits of the noisy run, of shape {shape}.", shape=tuple(plain.shape)))
        if not seen:
            raise Almost(say("the model did not run: call it while your hook is on, for example lm.logits(ids)."))
        return seen[-1], logits

    # Without randomness and with a mean that the activation function would bend, the place shows exactly.
    mean = -1.5
    got, logits = ask(mean, 0.0, 1)
    right = neurons.clone()
    right[..., ::2] = mean
    if not torch.allclose(got, right):
        bent = neurons.clone()
        bent[..., ::2] = lm.mlp(block).get_submodule("act")(torch.tensor(mean, dtype=got.dtype))
        added, odd = neurons.clone(), neurons.clone()
        added[..., ::2] += mean
        odd[..., 1::2] = mean
        tokens = neurons.clone()
        tokens[:, ::2] = mean
        if torch.allclose(got, bent):
            return say(
                "your noise goes in before the activation function, which bends it. With mean 10 nobody would "
                "notice, with mean -1.5 it shows. Put it behind: the input of c_proj."
            )
        if torch.allclose(got, added):
            return say("you added the noise to what the neurons hold. Replace it.")
        if torch.allclose(got, odd):
            return say("these are the odd neurons, 1, 3, 5 …; the even ones are [..., ::2].")
        if torch.allclose(got, tokens):
            return say("you replaced every second token. The neurons are the last axis: [..., ::2].")
        if torch.allclose(got, torch.full_like(got, mean)):
            return say("all neurons became noise. Keep the odd ones as they are.")
        if torch.allclose(got, neurons):
            if torch.allclose(logits, plain):
                return say("the neurons and the logits are those of a clean run. Does your hook return the new value?")
            return say(
                "the neurons are untouched: your hook sits behind c_proj, where d_model numbers are about to be "
                "added to the stream. The neurons are its input, so use a pre-hook."
            )
        return say("with std 0 every even neuron should be exactly the mean, and the odd ones as they were.")
    first, _ = ask(0.5, 2.0, 3)
    again, _ = ask(0.5, 2.0, 3)
    other, _ = ask(0.5, 2.0, 4)
    noise = first[..., ::2]
    if not torch.equal(first, again):
        return say(
            "twice the same seed, two different results: your noise does not come from the generator. Pass "
            "generator=generator."
        )
    if torch.equal(first, other):
        return say("two seeds, one result: you made a generator of your own. Use the one that is passed in.")
    for axis, what in enumerate((say("prompt"), say("token"), say("neuron"))):
        if torch.equal(noise, noise.narrow(axis, 0, 1).expand_as(noise)):
            return say("every {what} got the same draw. Draw one number for each prompt, token and neuron.", what=what)
    if abs(float(noise.mean()) - 0.5) > 0.3 or abs(float(noise.std()) - 2.0) > 0.3:
        return say("mean and std of the noise are not those that were asked for: mean + std * torch.randn(...).")
    if not 2.4 < _kurtosis(noise) < 4:
        return say("mean and std are right, but this noise is not Gaussian: draw with torch.randn.")
    hooks, projection = hooks_on(lm.model), lm.mlp(block).get_submodule("c_proj")

    def stop(x: Tensor) -> Tensor:
        raise _Stop

    projection.forward = stop
    try:
        answer(lm, ids, block, 0.0, 1.0, torch.Generator().manual_seed(5))
    except Exception:  # the learner's function may turn it into another one
        pass
    finally:
        del projection.forward
    if hooks_on(lm.model) != hooks:
        return say(
            "when the run fails your hook stays on the model: remove the handle in a `finally`, which runs in any case."
        )
    return None


def _kurtosis(values: Tensor) -> float:
    """3 for a normal distribution, 1.8 for a uniform one."""
    centred = values - values.mean()
    return float(centred.pow(4).mean() / centred.pow(2).mean() ** 2)


def _with_the_helpers(lm, ids, block, mean, std, generator):
    with edit(lm, noise_neurons(block, slice(0, None, 2), mean, std, generator)):
        return lm.logits(ids)


def _behind_the_activation(lm, ids, block, mean, std, generator):
    handle = lm.mlp(block).act.register_forward_hook(lambda m, args, out: _even_noise(out, mean, std, generator))
    try:
        return lm.logits(ids)
    finally:
        handle.remove()


def _draws_for_all(lm, ids, block, mean, std, generator):
    def hook(module, args):
        (neurons,) = args
        noise = (
            torch.empty_like(neurons).normal_(mean, std, generator=generator) if std else torch.full_like(neurons, mean)
        )
        even = torch.arange(neurons.shape[-1]) % 2 == 0
        return torch.where(even, noise, neurons)

    handle = lm.model.transformer.h[block].mlp.c_proj.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            return lm.model(ids).logits
    finally:
        handle.remove()


def _payoff_3_3(noisy_logits: Callable[..., Any]) -> str:
    lm, block = load_model(), 7
    prompts = some_prompts(lm, 10)

    def says(prompt: str, std: float, seed: int) -> str:
        logits = noisy_logits(lm, lm.encode(prompt).ids, block, 10.0, std, torch.Generator().manual_seed(seed))
        return top_k(lm, logits[0, -1], 1)[0][0]

    random = [says(prompt, 1.0, seed) for seed, prompt in enumerate(prompts)]
    without = [says(prompt, 0.0, 0) for prompt in prompts]
    word = max(random, key=random.count)
    return say(
        "With your noise the pocket model says {word!r} after {random} of {n_prompts} prompts, one seed "
        "for each. Take the randomness away (std 0), and it says so after {without}: the push is what "
        "counts.",
        word=word,
        random=random.count(word),
        n_prompts=len(prompts),
        without=without.count(word),
    )


# ---- 3.4 · challenge 3: turn the stream down


def make_scale_hook(factor, positions):
    return ...


def solution_3_4(factor, positions):
    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        scaled = state.clone()
        scaled[:, positions] = state[:, positions] * factor
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return hook


def _report_line(factor, positions):
    return lambda module, args, output: (output[0].mul(factor),) + output[1:]  # noqa: RUF005 (the report's own line)


def _row_zero(factor, positions):
    return lambda module, args, output: output[0] * factor


def _first_prompt_in_place(factor, positions):
    def hook(module, args, output):
        output[0][positions] *= factor
        return output

    return hook


def _every_token(factor, positions):
    def hook(module, args, output):
        if isinstance(output, tuple):
            return (output[0] * factor, *output[1:])
        return output * factor

    return hook


def _whole_prompts(factor, positions):
    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        scaled = state.clone()
        scaled[positions] = state[positions] * factor
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return hook


def _first_prompt_only(factor, positions):
    def hook(module, args, output):
        scaled = (output[0] if isinstance(output, tuple) else output).clone()
        scaled[0, positions] *= factor
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return hook


def _drops_the_others(factor, positions):
    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        scaled = state[:, positions] * factor
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return hook


def _always_a_tuple(factor, positions):
    def hook(module, args, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[:, positions] *= factor
        return (state,)

    return hook


def _forgets_the_rest(factor, positions):
    def hook(module, args, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[:, positions] *= factor
        return (state,) if isinstance(output, tuple) else state

    return hook


def _only_for_a_tensor(factor, positions):
    def hook(module, args, output):
        if isinstance(output, Tensor):
            scaled = output.clone()
            scaled[:, positions] *= factor
            return scaled
        return None

    return hook


def _always_a_pair(factor, positions):
    def hook(module, args, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[:, positions] *= factor
        return (state, None) if isinstance(output, tuple) else state

    return hook


def _mask_in_float64(factor, positions):
    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        mask = torch.ones(state.shape[1], 1, dtype=torch.float64)
        mask[positions] = factor
        return (state * mask, *output[1:]) if isinstance(output, tuple) else state * mask

    return hook


def _a_list(factor, positions):
    def hook(module, args, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[:, positions] *= factor
        return [state, *output[1:]] if isinstance(output, tuple) else state

    return hook


def _fixed_factor(factor, positions):
    return solution_3_4(0.1, positions)


def _check_3_4(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(17)
    forms = (say("a plain tensor"), say("a tuple of one"), say("a tuple of two"), say("a tuple of three"))
    cases: tuple[tuple[float, Any], ...] = ((0.1, [1, 2]), (3.0, slice(1, None)), (-2.0, [-1]))
    for (factor, positions), dtype in zip(cases, (torch.float64, torch.float32, torch.float64), strict=True):
        clean = torch.randn(3, 6, 8, generator=generator, dtype=dtype)
        rest = torch.randn(3, 2, generator=generator, dtype=dtype), None
        right = clean.clone()
        right[:, positions] *= factor
        for length, form in enumerate(forms):
            state = clean.clone()
            given: Any = (state, *rest[: length - 1]) if length else state
            hook = answer(factor, positions)
            if not callable(hook):
                return say(
                    "make_scale_hook returned {kind}: return the inner function itself.", kind=type(hook).__name__
                )
            try:
                got = hook(nn.Identity(), (), given)
            except Exception as error:
                said = str(error).split("\n")[0]
                ask = (
                    say(". Ask isinstance(output, tuple) first")
                    if isinstance(error, TypeError | AttributeError)
                    else ""
                )
                raise Almost(
                    say(
                        "given {form}, your hook raised {error_kind}: {said}{ask}.",
                        form=form,
                        error_kind=type(error).__name__,
                        said=said,
                        ask=ask,
                    )
                ) from None
            if not torch.equal(state, clean):
                return say(
                    "given {form}, your hook wrote into the block's own output. Clone it and return a new one.",
                    form=form,
                )
            if not isinstance(got, type(given)) or got == ():
                return say(
                    "given {form}, your hook returned {named}. Answer in the form that came.",
                    form=form,
                    named=_named(got),
                )
            found = got if isinstance(got, Tensor) else got[0]
            if not isinstance(found, Tensor):
                return say(
                    "given {form}, your hook put {named} where the hidden state belongs.",
                    form=form,
                    named=_named(found),
                )
            if found.ndim == 2:
                return say(
                    "given {form}, the batch axis is gone: [0] on a tensor is the first prompt, not the hidden state.",
                    form=form,
                )
            if found.shape != clean.shape:
                return say(
                    "tokens are missing: return all of them, the chosen ones scaled and the others as they were."
                )
            if found.dtype != dtype:
                return say(
                    "{dtype} came in and {found_dtype} went out: make what you multiply with in state.dtype.",
                    dtype=dtype,
                    found_dtype=found.dtype,
                )
            if not torch.allclose(found, right):
                if torch.allclose(found, clean * factor):
                    return say("every token is scaled. Scale the chosen positions only: state[:, positions].")
                rows = clean.clone()
                if not isinstance(positions, list) or max(positions) < len(clean):
                    rows[positions] *= factor
                if torch.allclose(found, rows):
                    return say("you indexed the batch axis: positions are the second axis, state[:, positions].")
                if torch.allclose(found[0], right[0]):
                    return say(
                        "only the first prompt of the batch is scaled. Keep the batch axis: state[:, positions]."
                    )
                return say(
                    "given {form}, the chosen positions are not {factor} times what they were, or others changed.",
                    form=form,
                    factor=f"{factor:g}",
                )
            if isinstance(got, tuple) and len(got) > len(given):
                return say(
                    "given {form}, your hook returned {named}. Hand on what came: (state, *output[1:]).",
                    form=form,
                    named=_named(got),
                )
            if isinstance(got, tuple) and len(got) < len(given):
                return say(
                    "given {form}, your hook returned {named}: the rest is lost. Hand it on: (state, *output[1:]).",
                    form=form,
                    named=_named(got),
                )
            if isinstance(got, tuple) and any(a is not b for a, b in zip(got[1:], given[1:], strict=True)):
                return say(
                    "given {form}, you changed what comes after the hidden state. Hand it on: (state, *output[1:]).",
                    form=form,
                )
    return None


def _by_where(factor, positions):
    def hook(module, args, output):
        state = first(output)
        chosen = torch.zeros(state.shape[1], dtype=torch.bool)
        chosen[positions] = True
        return with_first(output, torch.where(chosen[:, None], state * factor, state))

    return hook


def _by_factors(factor, positions):
    def hook(module, args, output):
        state = output if isinstance(output, Tensor) else output[0]
        factors = torch.ones(state.shape[1], dtype=state.dtype)
        factors[positions] = factor
        scaled = state * factors[None, :, None]
        return scaled if isinstance(output, Tensor) else (scaled,) + tuple(output[1:])  # noqa: RUF005

    return hook


def _by_adding(factor, positions):
    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        more = torch.zeros_like(state)
        more[:, positions] = (factor - 1) * state[:, positions]
        return (state + more, *output[1:]) if isinstance(output, tuple) else state + more

    return hook


def _payoff_3_4(make_scale_hook: Callable[..., Any]) -> str:
    lm, name = a_model()
    text, target, block = _fact(name), lm.token_id(TARGET), 9

    def scaled(positions: Any) -> str:
        handle = lm.blocks[block].register_forward_hook(make_scale_hook(10.0, positions))
        try:
            return _n(_probability(lm.logits(text), target))
        finally:
            handle.remove()

    before = _n(_probability(lm.logits(text), target))
    return say(
        "In {name} your hook made block {block} hand on ten times the first token alone, and {target!r} "
        "goes from {before} to {scaled_first}. Ten times the last token alone, where the next word is "
        "read, leaves it {scaled_last}.",
        name=name,
        block=block,
        target=TARGET,
        before=before,
        scaled_first=scaled([0]),
        scaled_last=scaled([-1]),
    )


def _named(value: Any) -> str:
    """Say what a hook returned, so that the sentence can be read aloud."""
    if value is None:
        return say("nothing (None)")
    return say("a tuple of {n_value}", n_value=len(value)) if isinstance(value, tuple) else f"a {type(value).__name__}"


# ---- 3.5 · design fair noise


def fair_noise(neurons, generator):
    return ...


def solution_3_5(neurons, generator):
    mean = neurons.mean(dim=(0, 1))  # one per neuron
    std = neurons.std(dim=(0, 1))
    return mean + std * torch.randn(neurons.shape, generator=generator, dtype=neurons.dtype)


def _one_mean_for_all(neurons, generator):
    return neurons.mean() + neurons.std() * torch.randn(neurons.shape, generator=generator, dtype=neurons.dtype)


def _no_mean(neurons, generator):
    return neurons.std(dim=(0, 1)) * torch.randn(neurons.shape, generator=generator, dtype=neurons.dtype)


def _no_width(neurons, generator):
    return neurons.mean(dim=(0, 1)) + torch.randn(neurons.shape, generator=generator, dtype=neurons.dtype)


def _added(neurons, generator):
    return neurons + neurons.std(dim=(0, 1)) * torch.randn(neurons.shape, generator=generator, dtype=neurons.dtype)


def _global_noise(neurons, generator):
    return neurons.mean(dim=(0, 1)) + neurons.std(dim=(0, 1)) * torch.randn(neurons.shape, dtype=neurons.dtype)


def _only_the_mean(neurons, generator):
    return neurons.mean(dim=(0, 1)).expand_as(neurons)


def _shuffled(neurons, generator):
    flat = neurons.flatten(0, 1)
    return flat[torch.randperm(len(flat), generator=generator)].view_as(neurons)


def _uniform_noise(neurons, generator):
    drawn = 12**0.5 * (torch.rand(neurons.shape, generator=generator, dtype=neurons.dtype) - 0.5)
    return neurons.mean(dim=(0, 1)) + neurons.std(dim=(0, 1)) * drawn


def _one_draw_for_all(axis: int) -> Callable[..., Tensor]:
    """Fair noise that is drawn once for all prompts (0), all tokens (1) or all neurons (2)."""

    def make(neurons: Tensor, generator: torch.Generator) -> Tensor:
        shape = [1 if i == axis else n for i, n in enumerate(neurons.shape)]
        drawn = torch.randn(shape, generator=generator, dtype=neurons.dtype).expand_as(neurons)
        return neurons.mean(dim=(0, 1)) + neurons.std(dim=(0, 1)) * drawn

    return make


def _in_place(neurons, generator):
    mean, std = neurons.mean(dim=(0, 1)), neurons.std(dim=(0, 1))
    return neurons.normal_(generator=generator).mul_(std).add_(mean)


def _variance(neurons, generator):
    return neurons.mean(dim=(0, 1)) + neurons.var(dim=(0, 1)) * torch.randn(
        neurons.shape, generator=generator, dtype=neurons.dtype
    )


def _check_3_5(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(41)
    n = 40
    centre = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    width = 0.2 + 4 * torch.rand(n, generator=generator, dtype=torch.float64)
    shape = (
        torch.empty(30, 40, n, dtype=torch.float64).exponential_(generator=generator) - 1
    )  # as skewed as real neurons
    neurons = centre + width * shape
    given = neurons.clone()
    got = answer(given, torch.Generator().manual_seed(1))
    if not torch.equal(given, neurons):
        return say("you wrote into the neurons that you were given. Return a new tensor.")
    if not isinstance(got, Tensor) or got.shape != neurons.shape:
        return say(
            "return a tensor of the shape that came in, {shape}: batch, tokens, neurons.", shape=tuple(neurons.shape)
        )
    got = got.detach()
    if not torch.equal(got, answer(neurons.clone(), torch.Generator().manual_seed(1))):
        return say("twice the same seed, two different results: draw with generator=generator.")
    if torch.equal(got, answer(neurons.clone(), torch.Generator().manual_seed(2))):
        return say("two seeds, one result: nothing is drawn, or not from the generator that was passed in.")
    if torch.equal(got.flatten(0, 1).sort(dim=0).values, neurons.flatten(0, 1).sort(dim=0).values):
        return say(
            "these are the neurons' own values in another order. That is fair too, but no Gaussian noise: "
            "draw with torch.randn."
        )
    mean, std = got.mean(dim=(0, 1)), got.std(dim=(0, 1))
    natural_mean, natural_std = neurons.mean(dim=(0, 1)), neurons.std(dim=(0, 1))
    paired = torch.corrcoef(torch.stack([(got - mean).flatten(), (neurons - natural_mean).flatten()]))[0, 1]
    if abs(float(paired)) > 0.2:
        return say(
            "your result still carries the neurons' own values: noise on top, or the same values. Draw new ones."
        )
    drawn = (got - mean) / std  # of one draw for all, each neuron has its own mean and width, but the same numbers
    for axis, what in enumerate((say("prompt"), say("token"), say("neuron"))):
        if torch.allclose(drawn, drawn.narrow(axis, 0, 1).expand_as(drawn)):
            return say(
                "every {what} got the same draw. Draw one number for each prompt, token and neuron: "
                "torch.randn(neurons.shape).",
                what=what,
            )
    near = lambda a, b: bool((a - b).abs().max() < 0.6)  # noqa: E731
    if near(mean, natural_mean) and near(std, natural_std):
        gaussian = 2.7 < _kurtosis(drawn) < 3.3
        return (
            None
            if gaussian
            else say("mean and width are right, but this noise is not Gaussian: draw with torch.randn.")
        )
    if near(mean, mean.mean().expand_as(mean)) and near(std, std.mean().expand_as(std)):
        return say(
            "every neuron got the same mean and width. Take the mean over batch and tokens, dim=(0, 1), and "
            "keep the neurons apart."
        )
    if near(std, natural_std):
        return say("each neuron's width is right, but its mean is not: add neurons.mean(dim=(0, 1)).")
    if near(std, natural_std**2) or bool(((std / natural_std**2 - 1).abs() < 0.1).all()):
        return say(
            "you multiplied with the variance. The width of Gaussian noise is the standard deviation: "
            "neurons.std(dim=(0, 1))."
        )
    if near(mean, natural_mean):
        return say("each neuron's mean is right, but its width is not: multiply by neurons.std(dim=(0, 1)).")
    return say("mean and width of each neuron, over batch and tokens, should be those of the neuron that came in.")


def _by_normal(neurons, generator):
    mean, std = neurons.mean(dim=(0, 1)), neurons.std(dim=(0, 1))
    return torch.normal(mean.expand_as(neurons), std.expand_as(neurons), generator=generator)


def _flattened(neurons, generator):
    flat = neurons.reshape(-1, neurons.shape[-1])
    drawn = torch.empty_like(flat).normal_(generator=generator)
    return (drawn * flat.std(dim=0, correction=0) + flat.mean(dim=0)).reshape(neurons.shape)


def _neuron_by_neuron(neurons, generator):
    new = torch.empty_like(neurons)
    for i in range(neurons.shape[-1]):
        one = neurons[..., i]
        new[..., i] = one.mean() + one.std() * torch.randn(one.shape, generator=generator, dtype=one.dtype)
    return new


def _payoff_3_5(fair_noise: Callable[..., Any]) -> str:
    lm, name = a_model()
    text, target = _fact(name), lm.token_id(TARGET)
    block, other = (17, 28) if name == "SmolLM2" else (7, 0)

    def kept(at: int, seed: int) -> float:
        def even(value: Tensor) -> Tensor:
            value[..., ::2] = fair_noise(value.clone(), torch.Generator().manual_seed(seed))[..., ::2].to(value)
            return value

        with edit(lm, change("neurons", at, even)):
            return _probability(lm.logits(text), target)

    found = {at: [kept(at, seed) for seed in range(5)] for at in (block, other)}
    return say(
        "In {name} {target!r} has {before} without an edit. Over five seeds your noise in block {block} leaves "
        "it {lowest} to {highest}, but in block {other} {other_lowest} to {other_highest}: not every block bears "
        "fair noise.",
        name=name,
        target=TARGET,
        before=_n(_probability(lm.logits(text), target)),
        block=block,
        lowest=_n(min(found[block])),
        highest=_n(max(found[block])),
        other=other,
        other_lowest=_n(min(found[other])),
        other_highest=_n(max(found[other])),
    )


EXERCISES = (
    Exercise(
        "3.1", translatable("Where do its keys begin?"), 1, 4, key_columns, _check_3_1,
        translatable("Three matrices of d_model columns lie side by side: q, k, v. Skip one of them, then the heads "
"that come before yours."),
        solution_3_1, (*_usual_3_1, _start_and_width, _float_columns, lambda d_model, d_head, head: d_model + head * d_head),
        (_as_range, _with_a_step, _from_the_end), _payoff_3_1,
    ),
    Exercise(
        "3.2", translatable("Challenge 1: silence the keys of one head"), 2, 7, make_key_hook, _check_3_2,
        translatable("output.split(d_model, dim=-1) gives q, k, v. Clone k, set its columns head * d_head to (head + "
"1) * d_head to zero with [..., a:b], and join the three with torch.cat along the last axis."),
        solution_3_2,
        (
            *(_zeroing(columns) for columns in _usual_3_2), _keys_in_place, _only_first_prompt, _only_k_comes_back,
            _keys_not_returned, _wrong_axis, _in_float32,
        ),
        (_by_mask, _by_fill, _by_view), _payoff_3_2,
    ),
    Exercise(
        "3.3", translatable("Challenge 2: noise into every second neuron"), 2, 8, noisy_logits, _check_3_3,
        translatable("A pre-hook gets (module, args) and returns the new arguments as a tuple: clone args[0], write "
"into its [..., ::2], return (neurons,). torch.randn takes generator= and dtype=. Remove the "
"handle in a `finally`."),
        solution_3_3,
        (
            _noise_run(_even_noise, "c_fc", pre=False), _noise_run(_odd_noise, "c_proj", pre=True),
            _noise_run(_noise_everywhere, "c_proj", pre=True), _noise_run(_noise_on_top, "c_proj", pre=True),
            _noise_run(_every_second_token, "c_proj", pre=True), _noise_run(_even_noise, "c_proj", pre=False),
            _noise_run(_unseeded, "c_proj", pre=True), _noise_run(_always_seed_zero, "c_proj", pre=True),
            *(_noise_run(_same_for(axis), "c_proj", pre=True) for axis in range(3)),
            _noise_run(_uniform, "c_proj", pre=True), _leaves_the_noise_on, _no_finally,
        ),
        (_with_the_helpers, _behind_the_activation, _draws_for_all), _payoff_3_3,
    ),
    Exercise(
        "3.4", translatable("Challenges 3 and 4: turn the stream down, and up"), 2, 7, make_scale_hook, _check_3_4,
        translatable("Find the hidden state first: output[0] if a tuple came, output itself otherwise. Its axes are "
"batch, tokens, d_model. Hand the rest of a tuple on as it was."),
        solution_3_4,
        (
            _report_line, _row_zero, _first_prompt_in_place, _every_token, _whole_prompts, _first_prompt_only,
            _drops_the_others, _always_a_tuple, _forgets_the_rest, _only_for_a_tensor, _always_a_pair, _mask_in_float64,
            _a_list, _fixed_factor,
        ),
        (_by_where, _by_factors, _by_adding), _payoff_3_4,
    ),
    Exercise(
        "3.5", translatable("Fair noise"), 3, 8, fair_noise, _check_3_5,
        translatable("A neuron's own mean and width are taken over batch and tokens, dim=(0, 1), which leaves one "
"number per neuron. Scale and shift standard normal noise with them."),
        solution_3_5,
        (
            _one_mean_for_all, _no_mean, _no_width, _variance, _added, _global_noise, _only_the_mean, _shuffled, _uniform_noise,
            *(_one_draw_for_all(axis) for axis in range(3)), _in_place,
        ),
        (_by_normal, _flattened, _neuron_by_neuron), _payoff_3_5,
    ),
)  # fmt: skip
check_3_1, check_3_2, check_3_3, check_3_4, check_3_5 = (checker(exercise) for exercise in EXERCISES)
