"""Lesson 3's exercises: the report's four challenges, two questions before them and one design after them.

The checks use small random models and tensors that the learner has not seen, made anew for each check. The four
challenges are checked by what the learner's hooks write, not by what the model says afterwards: an edit at the wrong
place can give the right answer (zeroed queries leave the same attention pattern as zeroed keys).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from helpers.course.exercise import Almost, Exercise, checker, hooks_on, tiny_model
from helpers.edits import edit, scale_block
from helpers.readings import read_site, spread
from helpers.tracing import trace

# ---- 3.1 · a head without keys

guess = ...
solution_3_1 = "all it may see, evenly"
_usual_3_1 = {
    "nobody": "softmax has no way to say nothing: whatever the scores are, the weights of a row sum to 1.",
    "itself": "the token's own key is zero like all the others, so its score is 0 as well: no better a match than any other token.",
    "the first token": "a trained head may rest there, but only because the first token's key earns it; that key is zero now.",
}


def _check_3_1(answer: Any) -> str | None:
    if answer == solution_3_1:
        return None
    if isinstance(answer, str) and answer in _usual_3_1:
        return _usual_3_1[answer]
    return f"choose one of the four answers, word for word: {', '.join(map(repr, (*_usual_3_1, solution_3_1)))}."


# ---- 3.2 · where a head's keys begin


def key_columns(d_model, d_head, head):
    return ...


def solution_3_2(d_model, d_head, head):
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


_usual_3_2 = {
    _in_k_alone: "this is where the head begins inside K alone. In the fused matrix the queries come first, d_model columns of them.",
    _counts_from_one: "you took one head off. `head` counts from 0 already: the report's third head is head 2.",
    _one_head_late: "this is the next head. Head 0 begins where K begins, with nothing before it.",
    _the_values: "these are the head's values. The order is queries, keys, values.",
    _gpt2_small: "this fits GPT-2 small alone. Derive both numbers from d_model and d_head.",
    _head_by_head: "this is GPT-NeoX's order: q, k, v of one head, then of the next. GPT-2 keeps all queries together first.",
    _to_the_end: "the start is right, but this runs to the end of K, over all later heads. A head is d_head columns wide.",
}


def _check_3_2(answer: Callable[..., Any]) -> str | None:
    cases = ((1024, 64, 5), (192, 16, 2), (40, 10, 1))
    got = [answer(*case) for case in cases]
    if not all(isinstance(one, slice) for one in got):
        return f"return a slice, slice(start, stop); this is {type(got[0]).__name__}."
    if got == [solution_3_2(*case) for case in cases]:
        return None
    for wrong, sentence in _usual_3_2.items():
        if got == [wrong(*case) for case in cases]:
            return sentence
    d_model, d_head, head = cases[0]
    return f"for d_model {d_model}, d_head {d_head} and head {head} it gives {got[0].start} to {got[0].stop}: not this head's K."


# ---- 3.3 · challenge 1: silence the keys of one head


def make_key_hook(d_model, d_head, head):
    return ...


def solution_3_3(d_model, d_head, head):
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
        output[..., solution_3_2(d_model, d_head, head)] = 0
        return output

    return hook


def _only_first_prompt(d_model, d_head, head):
    def hook(module, args, output):
        new = output.clone()
        new[0, :, solution_3_2(d_model, d_head, head)] = 0
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
        new[..., solution_3_2(d_model, d_head, head)] = 0

    return hook


def _all_keys(d_model, d_head, head):
    return slice(d_model, 2 * d_model)


_usual_3_3 = {
    _in_k_alone: "you zeroed the head's queries, not its keys: in the fused matrix K begins at column d_model. The attention "
    "pattern would come out even all the same, so only a look at what was written shows this mistake.",
    _one_head_late: "you zeroed the next head's keys. Heads count from 0.",
    _the_values: "you zeroed the head's values: it would look where it always looks and report nothing.",
    _gpt2_small: "these columns belong to GPT-2 small. Derive them from d_model and d_head.",
    _all_keys: "you zeroed the keys of every head. Only this head's d_head columns of K should go.",
}


def _check_3_3(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(13)
    for d_model, d_head, head in ((48, 8, 3), (60, 10, 1)):
        hook = answer(d_model, d_head, head)
        if not callable(hook):
            return (
                f"make_key_hook returned {type(hook).__name__}: return the inner function itself, without calling it."
            )
        clean = torch.randn(2, 5, 3 * d_model, generator=generator, dtype=torch.float64)
        given = clean.clone()
        try:
            got = hook(nn.Identity(), (), given)
        except Exception as error:
            raise Almost(f"called by PyTorch your hook raised {type(error).__name__}: {error}") from None
        if not torch.equal(given, clean):
            return "your hook wrote into the tensor that it was given. Clone first: somebody may have recorded it."
        if got is None:
            return "your hook returned None, which leaves everything as it was. Return the whole fused matrix."
        if not isinstance(got, Tensor) or got.shape != clean.shape:
            return "the model expects queries, keys and values side by side again, in the shape that came in."
        right = clean.clone()
        right[..., solution_3_2(d_model, d_head, head)] = 0
        if torch.equal(got, right):
            continue
        if torch.equal(got[0], right[0]):
            return "only the first prompt of the batch is edited. Leave the batch axis alone: index the last axis with [..., columns]."
        for columns, sentence in _usual_3_3.items():
            wrong = clean.clone()
            wrong[..., columns(d_model, d_head, head)] = 0
            if torch.equal(got, wrong):
                return sentence
        return (
            f"{int((got != right).any(dim=(0, 1)).sum())} columns of the fused matrix differ from what they should be."
        )
    return None


# ---- 3.4 · challenge 2: noise into every second neuron


def noisy_logits(lm, ids, block, mean, std, generator):
    return ...


def solution_3_4(lm, ids, block, mean, std, generator):
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


def _same_for_all_tokens(value, mean, std, generator):
    new = value.clone()
    new[..., ::2] = mean + std * torch.randn(new[0, 0, ::2].shape, generator=generator, dtype=new.dtype)
    return new


def _leaves_the_noise_on(lm, ids, block, mean, std, generator):
    lm.mlp(block).c_proj.register_forward_pre_hook(lambda m, args: (_even_noise(args[0], mean, std, generator),))
    return lm.logits(ids)


def _check_3_4(answer: Callable[..., Any]) -> str | None:
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
                "your function left its hook on the model: the next run would be noisy too. Remove the handle in a `finally`."
            )
        if not isinstance(logits, Tensor) or logits.shape != plain.shape:
            raise Almost(f"return the logits of the noisy run, of shape {tuple(plain.shape)}.")
        if not seen:
            raise Almost("the model did not run: call it while your hook is on, for example lm.logits(ids).")
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
            return (
                "your noise goes in before the activation function, which bends it. With mean 10 nobody would notice, with "
                "mean -1.5 it shows. Put it behind: the input of c_proj."
            )
        if torch.allclose(got, added):
            return "you added the noise to what the neurons hold. Replace it."
        if torch.allclose(got, odd):
            return "these are the odd neurons, 1, 3, 5 …; the even ones are [..., ::2]."
        if torch.allclose(got, tokens):
            return "you replaced every second token. The neurons are the last axis: [..., ::2]."
        if torch.allclose(got, torch.full_like(got, mean)):
            return "all neurons became noise. Keep the odd ones as they are."
        if torch.allclose(got, neurons):
            if torch.allclose(logits, plain):
                return "the neurons and the logits are those of a clean run. Does your hook return the new value?"
            return (
                "the neurons are untouched: your hook sits behind c_proj, where d_model numbers are about to be added to "
                "the stream. The neurons are its input, so use a pre-hook."
            )
        return "with std 0 every even neuron should be exactly the mean, and the odd ones as they were."
    first, _ = ask(0.5, 2.0, 3)
    again, _ = ask(0.5, 2.0, 3)
    other, _ = ask(0.5, 2.0, 4)
    noise = first[..., ::2]
    if not torch.equal(first, again):
        return "twice the same seed, two different results: your noise does not come from the generator. Pass generator=generator."
    if torch.equal(first, other):
        return "two seeds, one result: you made a generator of your own. Use the one that is passed in."
    if torch.equal(noise, noise[:1, :1].expand_as(noise)):
        return "every token got the same draw. Draw one number for each token and neuron."
    if abs(float(noise.mean()) - 0.5) > 0.5 or abs(float(noise.std()) - 2.0) > 0.5:
        return "mean and std of the noise are not those that were asked for: mean + std * torch.randn(...)."
    return None


# ---- 3.5 · challenge 3: turn the stream down


def make_scale_hook(factor, positions):
    return ...


def solution_3_5(factor, positions):
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


def _check_3_5(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(17)
    for factor, positions in ((0.1, [1, 2]), (3.0, slice(1, None))):
        clean = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
        weights = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        right = clean.clone()
        right[:, positions] *= factor
        for form in ("a plain tensor", "a tuple of one", "a tuple of two"):
            state = clean.clone()
            given: Any = {"a plain tensor": state, "a tuple of one": (state,), "a tuple of two": (state, weights)}[form]
            hook = answer(factor, positions)
            if not callable(hook):
                return f"make_scale_hook returned {type(hook).__name__}: return the inner function itself."
            try:
                got = hook(nn.Identity(), (), given)
            except Exception as error:
                said = str(error).split("\n")[0]
                ask = ". Ask isinstance(output, tuple) first" if isinstance(error, TypeError | AttributeError) else ""
                raise Almost(f"given {form}, your hook raised {type(error).__name__}: {said}{ask}.") from None
            if not torch.equal(state, clean):
                return f"given {form}, your hook wrote into the block's own output. Clone it and return a new one."
            if not isinstance(got, type(given)) or got == ():
                return f"given {form}, your hook returned {_named(got)}. Answer in the form that came."
            found = got if isinstance(got, Tensor) else got[0]
            if not isinstance(found, Tensor):
                return f"given {form}, your hook put {_named(found)} where the hidden state belongs."
            if found.ndim == 2:
                return (
                    f"given {form}, the batch axis is gone: [0] on a tensor is the first prompt, not the hidden state."
                )
            if found.shape != clean.shape:
                return "tokens are missing: return all of them, the chosen ones scaled and the others as they were."
            if not torch.equal(found, right):
                if torch.equal(found, clean * factor):
                    return "every token is scaled. Scale the chosen positions only: state[:, positions]."
                rows = clean.clone()
                rows[positions] *= factor
                if torch.equal(found, rows):
                    return "you indexed the batch axis: positions are the second axis, state[:, positions]."
                if torch.equal(found[0], right[0]):
                    return "only the first prompt of the batch is scaled. Keep the batch axis: state[:, positions]."
                return f"given {form}, the chosen positions are not {factor:g} times what they were, or others changed."
            if isinstance(got, tuple) and len(got) > len(given):
                return f"given {form}, your hook returned {_named(got)}. Hand on what came: (state, *output[1:])."
            if isinstance(got, tuple) and (
                len(got) < len(given) or any(a is not b for a, b in zip(got[1:], given[1:], strict=True))
            ):
                return "given a tuple of two, the second element is lost. Hand it on: (state, *output[1:])."
    return None


def _named(value: Any) -> str:
    """Say what a hook returned, so that the sentence can be read aloud."""
    if value is None:
        return "nothing (None)"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


# ---- 3.6 · challenge 4: turn it up and follow it


def spread_after(lm, ids, block, factor):
    return ...


def solution_3_6(lm, ids, block, factor):
    with edit(lm, scale_block(block, factor)):
        resid = trace(lm, ids).resid
    return resid.flatten(1).std(dim=1)


def _clean_spread(lm, ids, block, factor):
    return spread(trace(lm, ids).resid)


def _one_block_late(lm, ids, block, factor):
    with edit(lm, scale_block(block + 1, factor)):
        return spread(trace(lm, ids).resid)


def _from_hidden_states(lm, ids, block, factor):
    with torch.no_grad(), edit(lm, scale_block(block, factor)):
        states = lm.model(ids, output_hidden_states=True).hidden_states
    return torch.stack([state.std() for state in states])


def _recorded_before_the_edit(lm, ids, block, factor):
    clean = trace(lm, ids).resid
    with edit(lm, scale_block(block, factor)):
        resid = trace(lm, ids).resid
    resid[block + 1] = clean[block + 1]
    return spread(resid)


def _lengths_3_6(lm, ids, block, factor):
    with edit(lm, scale_block(block, factor)):
        return trace(lm, ids).resid.flatten(1).norm(dim=1)


def _token_by_token(lm, ids, block, factor):
    with edit(lm, scale_block(block, factor)):
        return trace(lm, ids).resid.std(dim=-1).mean(dim=(1, 2))


def _without_the_first(lm, ids, block, factor):
    with edit(lm, scale_block(block, factor)):
        return spread(trace(lm, ids).resid, include_first=False)


def _leaves_the_scale_on(lm, ids, block, factor):
    found = solution_3_6(lm, ids, block, factor)
    lm.blocks[block].register_forward_hook(lambda module, args, output: None)
    return found


_usual_3_6 = {
    _clean_spread: "these are the numbers of a clean run. Trace while the edit is on.",
    _one_block_late: "the jump sits one point too late: the output of `block` is point block + 1, and the edit belongs to `block`.",
    _from_hidden_states: "all but the last are right: output.hidden_states[-1] is read after the final norm. Take the stream before "
    "it, trace(...).resid.",
    _recorded_before_the_edit: "the scaled point itself looks clean: your recorder ran before your edit. Register the edit first, or "
    "read with trace.",
    _lengths_3_6: "this is the norm, which grows with the number of tokens. The question is the standard deviation.",
    _token_by_token: "you averaged one standard deviation per token. Take one over all tokens and coordinates of a point.",
    _without_the_first: "the first token is missing. Keep all tokens here.",
}


def _check_3_6(answer: Callable[..., Any]) -> str | None:
    for seed, block, factor in ((31, 1, 10.0), (32, 2, 0.25)):
        lm, ids = tiny_model(seed, n_blocks=5), torch.arange(16).reshape(2, 8)
        right = solution_3_6(lm, ids, block, factor)
        returned = answer(lm, ids, block, factor)
        try:
            got = torch.as_tensor(returned).double().flatten()
        except (TypeError, ValueError, RuntimeError):
            return "return one tensor of numbers, one for each point of the stream."
        if _left_by_the_learner(lm.model):
            return "your function left a hook on the model. Use `with edit(...)`, or remove the handle in a `finally`."
        if got.shape != right.shape:
            return f"{len(got)} numbers; a model of {lm.n_blocks} blocks has {len(right)} points, the embedding first."
        if torch.allclose(got, right):
            continue
        for wrong, sentence in _usual_3_6.items():
            if torch.allclose(got, wrong(lm, ids, block, factor)):
                return sentence
        if torch.allclose(got, right, rtol=2e-3):
            continue  # the other convention of the standard deviation, divided by n
        return "these are not the standard deviations of the stream at each point."
    return None


def _left_by_the_learner(model: nn.Module) -> int:
    """Count the hooks on a model, without those with which transformers 5 fills `hidden_states`."""
    found = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(not getattr(hook, "__module__", "").startswith("transformers") for hook in found)


# ---- 3.7 · design fair noise


def fair_noise(neurons, generator):
    return ...


def solution_3_7(neurons, generator):
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


def _check_3_7(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(41)
    n = 40
    centre = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    width = 0.2 + 4 * torch.rand(n, generator=generator, dtype=torch.float64)
    neurons = centre + width * torch.randn(30, 40, n, generator=generator, dtype=torch.float64)
    got = answer(neurons.clone(), torch.Generator().manual_seed(1))
    if not isinstance(got, Tensor) or got.shape != neurons.shape:
        return f"return a tensor of the shape that came in, {tuple(neurons.shape)}: batch, tokens, neurons."
    if not torch.equal(got, answer(neurons.clone(), torch.Generator().manual_seed(1))):
        return "twice the same seed, two different results: draw with generator=generator."
    if torch.equal(got, answer(neurons.clone(), torch.Generator().manual_seed(2))):
        return "two seeds, one result: nothing is drawn, or not from the generator that was passed in."
    mean, std = got.mean(dim=(0, 1)), got.std(dim=(0, 1))
    near = lambda a, b: bool((a - b).abs().max() < 0.6)  # noqa: E731
    natural_mean, natural_std = neurons.mean(dim=(0, 1)), neurons.std(dim=(0, 1))
    paired = torch.corrcoef(torch.stack([(got - mean).flatten(), (neurons - natural_mean).flatten()]))[0, 1]
    if abs(float(paired)) > 0.2:
        return "your result still carries the neurons' own values: noise on top, or the same values. Draw new ones."
    if near(mean, natural_mean) and near(std, natural_std):
        return None
    if near(mean, mean.mean().expand_as(mean)) and near(std, std.mean().expand_as(std)):
        return "every neuron got the same mean and width. Take the mean over batch and tokens, dim=(0, 1), and keep the neurons apart."
    if near(std, natural_std):
        return "each neuron's width is right, but its mean is not: add neurons.mean(dim=(0, 1))."
    if near(mean, natural_mean):
        return "each neuron's mean is right, but its width is not: multiply by neurons.std(dim=(0, 1))."
    return "mean and width of each neuron, over batch and tokens, should be those of the neuron that came in."


EXERCISES = (
    Exercise(
        "3.1", "A head without keys", 1, 2, guess, _check_3_1,
        "A score is a query times a key. What is softmax of a row of equal scores?",
        solution_3_1, (*_usual_3_1, "everybody"),
    ),
    Exercise(
        "3.2", "Where do its keys begin?", 1, 4, key_columns, _check_3_2,
        "Three matrices of d_model columns lie side by side: q, k, v. Skip one of them, then the heads that come before yours.",
        solution_3_2, tuple(_usual_3_2),
    ),
    Exercise(
        "3.3", "Challenge 1: silence the keys of one head", 2, 7, make_key_hook, _check_3_3,
        "output.split(d_model, dim=-1) gives q, k, v. Clone k, set its columns head * d_head to (head + 1) * d_head to zero with "
        "[..., a:b], and join the three with torch.cat along the last axis.",
        solution_3_3,
        (*(_zeroing(columns) for columns in _usual_3_3), _keys_in_place, _only_first_prompt, _only_k_comes_back, _keys_not_returned),
    ),
    Exercise(
        "3.4", "Challenge 2: noise into every second neuron", 2, 8, noisy_logits, _check_3_4,
        "A pre-hook gets (module, args) and returns the new arguments as a tuple: clone args[0], write into its [..., ::2], return "
        "(neurons,). torch.randn takes generator= and dtype=. Remove the handle in a `finally`.",
        solution_3_4,
        (
            _noise_run(_even_noise, "c_fc", pre=False), _noise_run(_odd_noise, "c_proj", pre=True),
            _noise_run(_noise_everywhere, "c_proj", pre=True), _noise_run(_noise_on_top, "c_proj", pre=True),
            _noise_run(_every_second_token, "c_proj", pre=True), _noise_run(_even_noise, "c_proj", pre=False),
            _noise_run(_unseeded, "c_proj", pre=True), _noise_run(_always_seed_zero, "c_proj", pre=True),
            _noise_run(_same_for_all_tokens, "c_proj", pre=True), _leaves_the_noise_on,
        ),
    ),
    Exercise(
        "3.5", "Challenge 3: turn the stream down", 2, 7, make_scale_hook, _check_3_5,
        "Find the hidden state first: output[0] if a tuple came, output itself otherwise. Its axes are batch, tokens, d_model. "
        "Hand the rest of a tuple on as it was.",
        solution_3_5,
        (
            _report_line, _row_zero, _first_prompt_in_place, _every_token, _whole_prompts, _first_prompt_only,
            _drops_the_others, _always_a_tuple, _forgets_the_rest, _only_for_a_tensor, _always_a_pair,
        ),
    ),
    Exercise(
        "3.6", "Challenge 4: turn it up and follow it", 2, 7, spread_after, _check_3_6,
        "trace(lm, ids).resid is (points, batch, tokens, d_model), before the final norm. Trace inside `with edit(lm, ...)` and take "
        "one standard deviation per point.",
        solution_3_6, (*_usual_3_6, _leaves_the_scale_on, lambda lm, ids, block, factor: [1.0, 2.0]),
    ),
    Exercise(
        "3.7", "Design fair noise", 3, 8, fair_noise, _check_3_7,
        "A neuron's own mean and width are taken over batch and tokens, dim=(0, 1), which leaves one number per neuron. Scale and "
        "shift standard normal noise with them.",
        solution_3_7, (_one_mean_for_all, _no_mean, _no_width, _added, _global_noise, _only_the_mean),
    ),
)  # fmt: skip
check_3_1, check_3_2, check_3_3, check_3_4, check_3_5, check_3_6, check_3_7 = (
    checker(exercise) for exercise in EXERCISES
)
