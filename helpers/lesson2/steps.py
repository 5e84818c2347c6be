"""What stands in for a block's step in this lesson: random steps, values set to zero, parts left out; and what is then read.

    after = random_steps(clean.resid[23], clean.resid[24], 20)      # 20 states, as far from the one before
    length, cost, first = part_costs(real, prompt, " Germany")      # one number for each part of each block

States are (batch, pos, d_model), as in `Trace.resid[l]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from helpers.correlations import (
    correlation,
    correlation_per_dimension,
    within_percentile,
)
from helpers.countries import capital_prompts
from helpers.edits import edit, patch_block
from helpers.lesson2.plots import filled_axis
from helpers.measures import Measure, Outcome, predictions
from helpers.models import LanguageModel
from helpers.readings import attention_patterns
from helpers.say import say, translatable
from helpers.sweeps import sweep_blocks, sweep_edits
from helpers.tracing import trace


def random_steps(before: Tensor, after: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, pos, d_model) states: `before` of one prompt plus a random step, for each token as long as `after` − `before`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, *before.shape[1:], generator=generator, dtype=torch.float64).to(before)
    return before + drawn * (after - before).norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)


def random_step(before: Tensor, after: Tensor) -> Tensor:
    """One of `random_steps`."""
    return random_steps(before, after, 1)


def zero_others(state: Tensor, keep: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, pos, d_model) states of one prompt: in each, as many values at zero as `keep` hides, drawn among the others."""
    generator = torch.Generator().manual_seed(seed)
    others, number = keep.flatten().nonzero().squeeze(-1), int((~keep).sum())
    draws = (others[torch.randperm(len(others), generator=generator)[:number]] for _ in range(count))
    return torch.cat([state.flatten().index_fill(0, chosen, 0).view_as(state) for chosen in draws])


def word_measure(lm: LanguageModel, word: str) -> Measure:
    """Of a sweep: the probability of `word` as the next token, and 1 where it comes first. Raises TargetIsNotOneToken."""
    token = lm.token_id(word)

    def compute(outcome: Outcome) -> Tensor:
        probabilities = outcome.edited.softmax(-1)
        return torch.stack([probabilities[:, token], (probabilities.argmax(-1) == token).to(probabilities)], dim=-1)

    return Measure(compute, ("probability", "comes first"))


def part_costs(lm: LanguageModel, prompt: str, word: str) -> tuple[Tensor, Tensor, Tensor]:
    """For attention and MLP of each block, (2, n_blocks): the length of what it adds, over all tokens; KL(clean ‖ without it) of
    the next word, in nats; and 1 where `word` still comes first without it. Raises BadPrompt, TargetIsNotOneToken.
    """
    run = trace(lm, prompt)
    length = torch.stack([run.attn, run.mlp]).flatten(2).norm(dim=-1)
    swept = torch.stack([sweep_blocks(lm, prompt, part=p, measure=predictions(lm, word)) for p in ("attention", "mlp")])
    columns = predictions(lm, word).columns
    return length, swept[..., columns.index("kl")], swept[..., columns.index("target is top-1")]


def four_correlations(before: Tensor, after: Tensor, keep: Tensor) -> list[float]:
    """r of two states (batch, pos, d_model) in four ways: over all values, without the first token, over the values that `keep`
    leaves, and for each coordinate alone (the median). Raises BadValue for fewer than three tokens.
    """
    pairs = ((before, after), (before[:, 1:], after[:, 1:]), (before[keep], after[keep]))
    return [*(correlation(*pair) for pair in pairs), float(correlation_per_dimension(before, after).median())]


def block_correlations(resid: Tensor) -> dict[str, Tensor]:
    """r between the input and the output of each block, (n_blocks,), counted in three ways: what `plot_likeness` draws.

    resid: as `Trace.resid`.
    """
    pairs = list(itertools.pairwise(resid))
    return {
        say("all values"): torch.tensor([correlation(a, b) for a, b in pairs]),
        say("a random step"): torch.tensor([correlation(a, random_step(a, b)) for a, b in pairs]),
        say("without the first token"): torch.tensor([correlation(a[:, 1:], b[:, 1:]) for a, b in pairs]),
    }


def words_from(lm: LanguageModel, prompt: str, block: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model says when it goes on from each of these states in the place of what `block` hands on: label -> logits of
    the next word, (vocabulary,). states: label -> (1, pos, d_model). Raises BadPrompt, BlockOutOfRange.
    """
    edits = [patch_block(block, state) for state in states.values()]
    logits = sweep_edits(lm, prompt, edits, measure=lambda one: one.edited)
    return dict(zip(states, logits, strict=True))


def chances_from(lm: LanguageModel, prompt: str, block: int, states: Tensor, word: str) -> Tensor:
    """(n, 2): the probability of `word` as the next one, and 1 where it comes first, when the model goes on from each of n
    states, (n, pos, d_model), in the place of what `block` hands on. Raises BadPrompt, BlockOutOfRange, TargetIsNotOneToken.
    """
    edits = [patch_block(block, state) for state in states.split(1)]
    return sweep_edits(lm, prompt, edits, measure=word_measure(lm, word))


def attention_from(lm: LanguageModel, prompt: str, block: int, states: Mapping[str, Tensor], reader: int) -> str:
    """How much of their attention the later tokens give to the first one in block `reader`, the mean over tokens and heads, when
    the model goes on from each of these states in the place of what `block` hands on: "clean run 0.89, MLP left out 0.12".
    Raises BadPrompt, BlockOutOfRange.
    """
    number, found = lm.check_block(reader), {}
    for name, state in states.items():
        with edit(lm, patch_block(block, state)):
            found[name] = float(attention_patterns(lm, prompt)[number, 0, :, 1:, 0].mean())
    return ", ".join(f"{name} {share:.2f}" for name, share in found.items())


MASK_FACTS = (
    translatable("masked"),
    translatable("of them at the first token"),
    translatable("largest value"),
    translatable("its coordinate"),
    translatable("% of the axis for the other 99 %"),
)


def mask_facts(before: Tensor, after: Tensor) -> list[str | int | float]:
    """What a mask of the largest 1 % hides of one prompt's two states, in the order of MASK_FACTS."""
    keep = within_percentile(before, after, 99)
    row, column = divmod(int(after[0].abs().argmax()), after.shape[-1])
    return [
        say("{n_masked} of {n_values}", n_masked=int((~keep).sum()), n_values=f"{keep.numel():,}"),
        int((~keep)[:, 0].sum()),
        f"{float(after[0, row, column]):,.0f}",
        column,
        100 * filled_axis(before, after, keep),
    ]


def zero_largest(before: Tensor, after: Tensor) -> Tensor:
    """`after` with the values at zero that a mask of the largest 1 % hides (`within_percentile`)."""
    return after * within_percentile(before, after, 99)


Put = Callable[[Tensor, Tensor], Tensor]


def on_facts(lm: LanguageModel, block: int, put: Put, count: int = 12) -> str:
    """On how many of the facts that the model knows is the answer still first, with `put(before, after)` in the place of what
    the block hands on? before, after: the states around it, (1, pos, d_model).

    The facts are `count` countries asked by their capitals, with an example, less those that the model gets wrong without an
    edit. Returns for example "7 of 9". Raises BlockOutOfRange.
    """
    known = kept = 0
    for one in capital_prompts(lm, count=count, examples=["France"]):
        run = trace(lm, one.prompt)
        if int(run.last_logits.argmax()) != lm.token_id(one.target):
            continue
        known += 1
        state = put(run.resid[block], run.resid[block + 1])
        kept += int(chances_from(lm, one.prompt, block, state, one.target)[0, 1])
    return say("{number} of {known}", number=kept, known=known)


STEP_FACTS = (
    translatable("smallest r"),
    translatable("own step"),
    translatable("no step"),
    translatable("random, median"),
    translatable("random, first"),
    translatable("other capitals"),
)


def step_facts(before: Tensor, random: Tensor, found: Tensor, others: str) -> list[str | float | Tensor]:
    """What random steps from the state `before`, (1, pos, d_model), do to the next word, in the order of STEP_FACTS.

    random: the states that they lead to, (n, pos, d_model). found: `chances_from` the block's own state, from `before`, and from
    each of `random`, (2 + n, 2). others: what `on_facts` says.
    """
    p, first = found.unbind(-1)
    r = min(correlation(before, state) for state in random.split(1))
    count = say("{number} of {known}", number=int(first[2:].sum()), known=len(random))
    return [f"{r:.5f}", p[0], p[1], p[2:].median(), count, others]
