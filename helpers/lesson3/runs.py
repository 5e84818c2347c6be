"""What the cells of lesson 3 run and show: prompts, edits that are several at once, and next words side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from helpers.course.ledger import DIVERGENCE, several
from helpers.course.words import words_side_by_side
from helpers.edits import Edit, change, edit, noise_neurons, scale_attention, scale_mlp
from helpers.hooks import on_call, remove
from helpers.lesson3.plots import plot_spread
from helpers.metrics import kl, token_norms, top_k
from helpers.models import LanguageModel
from helpers.readings import read_site, spread
from helpers.say import say, translatable
from helpers.tracing import Prompt, Trace, trace

WATER = "There is a lot of liquid water on planet Earth"
FACT = "Berlin is the capital of"
EXAMPLE = "Paris is the capital of France. "  # goes before it for the real model, which needs to see the pattern
TARGET = " Germany"

Hook = Callable[[Any, tuple, Any], Any]

next_word_kl = DIVERGENCE  # a measure for sweep_edits: KL(clean ‖ edited) of the next word, in nats


def some_prompts(lm: LanguageModel, count: int) -> list[str]:
    """The water prompt and the first sentences of held-out passages, `count` in all, at most 25."""
    return [str(prompt) for prompt in several(lm, WATER)[:count]]


def later_blocks(lm: LanguageModel, block: int, factor: float) -> list[Edit]:
    """Scale what attention and MLP write in every block after `block`."""
    later = range(block + 1, lm.n_blocks)
    return [scale(one, factor) for one in later for scale in (scale_attention, scale_mlp)]


def natural_noise(block: int, seed: int = 0) -> Edit:
    """Gaussian noise in the even neurons, each with its own mean and standard deviation over batch and tokens."""
    return change("neurons", block, lambda neurons: _even(neurons, _gaussian_like(neurons, seed)))


def other_token(block: int) -> Edit:
    """The even neurons hold what they hold at another token of the prompt, half of the prompt away."""
    return change("neurons", block, lambda neurons: _even(neurons, neurons.roll(neurons.shape[1] // 2, dims=1)))


def what_heads_write(
    lm: LanguageModel, prompt: str, block: int, heads: Sequence[int], runs: Mapping[str, Edit | None]
) -> dict[str, list[float]]:
    """For each run the length of what these heads write, over all tokens but the first, and KL of the next word in nats."""
    clean = trace(lm, prompt)
    rows = {}
    for label, one in runs.items():
        with edit(lm, *([] if one is None else [one])):
            run = trace(lm, prompt)
        rows[label] = [
            float(run.heads[block][:, 1:, list(heads)].norm()),
            float(kl(clean.last_logits, run.last_logits)),
        ]
    return rows


@torch.no_grad()
def model_cache(lm: LanguageModel, prompt: Prompt) -> Any:
    """The keys and values that the model keeps of a prompt, found by what they can do: transformers 5.24 renames them."""
    output = lm.model(**(lm.inputs(lm.encode(prompt)) | {"use_cache": True}))
    return next(value for value in output.values() if hasattr(value, "get_seq_length"))


def value_lengths(lm: LanguageModel, prompt: Prompt, block: int, key_head: int) -> Tensor:
    """The length of each token's value in one key head, (pos,), from the model's own cache."""
    return model_cache(lm, prompt).layers[block].values[0, key_head].norm(dim=-1)


def logits_with(lm: LanguageModel, prompt: Prompt, *edits: Edit) -> Tensor:
    """The logits of the next word while these edits are on, (batch, vocabulary)."""
    with edit(lm, *edits):
        return lm.logits(prompt)[:, -1]


def top_word(lm: LanguageModel, prompt: str, *edits: Edit) -> str:
    """The most probable next word while these edits are on."""
    with edit(lm, *edits):
        return top_k(lm, lm.logits(prompt)[0, -1], 1)[0][0]


def noise_facts(lm: LanguageModel, prompt: str, block: int, mean: float = 10.0) -> str:
    """In one sentence how natural the noise is, and how much of what it does is the same at every token."""
    natural = read_site(lm, prompt, "neurons", block)
    with edit(lm, noise_neurons(block, slice(0, None, 2), mean, 1.0, torch.Generator().manual_seed(0))):
        noisy = trace(lm, prompt, stop_after=block).resid[block + 1]
    change_made = noisy - trace(lm, prompt, stop_after=block).resid[block + 1]
    below = 100 * float((natural <= 0).double().mean())
    far = float((mean - natural.mean()) / natural.std())
    return say(
        "{below} % of the natural values are 0 or below; {mean} is {far} standard deviations away;\n"
        "{share} % of the change is one vector, the same at every token",
        below=f"{below:.0f}",
        mean=f"{mean:g}",
        far=f"{far:.0f}",
        share=f"{100 * same_at_each_token(change_made):.0f}",
    )


def replacements(lm: LanguageModel, prompt: str, block: int) -> dict[str, float]:
    """What five ways to replace the even neurons cost: KL to the clean prediction in nats, the mean over the tokens."""
    even = slice(0, None, 2)
    noise = lambda mean, std: noise_neurons(block, even, mean, std, torch.Generator().manual_seed(0))  # noqa: E731
    kinds = {
        say("noise of mean 10"): noise(10, 1),
        say("10 exactly"): noise(10, 0),
        say("noise of mean 0"): noise(0, 1),
        say("own value at another token"): other_token(block),
        say("noise like the neurons' own"): natural_noise(block),
    }
    clean = lm.logits(prompt)
    costs = {}
    for name, one in kinds.items():
        with edit(lm, one):
            costs[name] = float(kl(clean, lm.logits(prompt)).mean())
    return costs


def _even(neurons: Tensor, values: Tensor) -> Tensor:
    neurons[..., ::2] = values[..., ::2]
    return neurons


def _gaussian_like(neurons: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(neurons.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return neurons.mean(dim=(0, 1)) + neurons.std(dim=(0, 1)) * drawn.to(neurons)


def same_at_each_token(change_made: Tensor) -> float:
    """The share of a change of the stream, (batch, pos, d_model), that is one vector, the same at every token."""
    batch, pos, _ = change_made.shape
    return float(change_made.mean(dim=(0, 1)).pow(2).sum() * batch * pos / change_made.pow(2).sum())


def show_words(lm: LanguageModel, runs: Mapping[str, Tensor], caption: str, most: int = 3) -> None:
    """Display the likeliest next words of each run beside one another. runs: label -> logits (1, vocabulary)."""
    from IPython.display import display

    display(words_side_by_side(lm, {label: logits[0] for label, logits in runs.items()}, caption, most, digits=3))


def with_lengths_of(stream: Tensor, other: Tensor) -> Tensor:
    """`stream`, (batch, pos, d_model), with the direction that each token has and the length that it has in `other`."""
    return stream / stream.norm(dim=-1, keepdim=True) * other.norm(dim=-1, keepdim=True)


def plot_runs(lm: LanguageModel, runs: Mapping[str, Trace], block: int) -> Axes:
    """Draw the spread of the stream in several runs, clean first, edited after `block`, with the next word of each. The first
    token is left out: its size would drown all others."""
    final = {label: float(run.final[:, 1:].std()) for label, run in runs.items() if run.final is not None}
    says = {label: top_k(lm, run.last_logits[0], 1)[0][0] for label, run in runs.items()}
    spreads = {label: spread(run.resid, include_first=False) for label, run in runs.items()}
    mark = say("block {block} scaled", block=block)
    return plot_spread(spreads, final, block, mark, says=says, include_first=False)


END_FACTS = (
    translatable("spread after the last block"),
    translatable("without first token"),
    translatable("before the last block, without"),
    translatable("median length of a token"),
    translatable("longest after block 11"),
)


def end_facts(lm: LanguageModel, prompt: str, run: Trace) -> list[float | str]:
    """How large the stream of one prompt is at its end, by three spreads and by the length of its tokens, and which token is the
    longest after block 11, in the order of END_FACTS."""
    lengths, without = token_norms(run.resid)[:, 0], spread(run.resid, include_first=False)
    longest = int(lengths[12].argmax())
    named = f"{lm.token_strings(prompt)[longest]!r} {float(lengths[12, longest]):,.0f}"
    middle = float(lengths[-1].quantile(0.5))
    return [float(spread(run.resid)[-1]), float(without[-1]), float(without[-2]), f"{middle:,.0f}", named]


def block_form(lm: LanguageModel) -> str:
    """What a hook on a block is given on this version of transformers: "a tensor" or "a tuple of 1"."""
    calls: list[tuple[tuple, dict[str, Any]]] = []
    handle = on_call(lm.blocks[0], lambda args, kwargs: calls.append((args, kwargs)))
    try:
        lm.logits(WATER)
    finally:
        remove([handle])
    args, kwargs = calls[0]
    with torch.no_grad():
        return form_of(lm.blocks[0](*args, **kwargs))


def on_each_form(hook: Hook, factor: float) -> list[str]:
    """What becomes of the states of three prompts when `hook`, which shall scale by `factor`, is given a tuple and a tensor."""
    return [_tried(hook, factor, as_tuple) for as_tuple in (True, False)]


def form_of(output: object) -> str:
    return say("a tuple of {count}", count=len(output)) if isinstance(output, tuple) else say("a tensor")


def _tried(hook: Hook, factor: float, as_tuple: bool) -> str:
    clean = torch.ones(3, 5, 4)
    given: Any = (clean.clone(),) if as_tuple else clean.clone()
    try:
        returned = hook(None, (), given)
    except Exception as error:
        return type(error).__name__
    got = given if returned is None else returned
    if isinstance(got, tuple) != as_tuple:
        return say("{form_of} goes out", form_of=form_of(got))
    state = got[0] if as_tuple else got
    if state.shape != clean.shape:
        return say("shape {shape} goes out", shape=tuple(state.shape))
    scaled = int((state == factor).all(dim=(1, 2)).sum())
    return (
        "right" if scaled == len(clean) else say("scales {scaled} of {tried} prompts", scaled=scaled, tried=len(clean))
    )
