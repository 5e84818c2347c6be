"""Lesson 3's widget: one edit of one component, the spread of the stream along the model, and the next token.

components_panel(lm, prompt)     # the last line of a cell
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.course.panels import Models, Panel, block_slider, choice, factor_slider, index_slider, prompt_box, tick
from helpers.course.words import Words, next_words, words_table
from helpers.edits import Edit, noise_neurons, scale_block, zero_keys
from helpers.lesson3.plots import plot_spread, spread_finding
from helpers.models import LanguageModel
from helpers.plots.redrawn import panel_axes, settle
from helpers.readings import spread
from helpers.replay import Replay
from helpers.say import say, translatable
from helpers.tables import format_number

COMPONENTS = (translatable("K of a head"), translatable("MLP neurons"), translatable("hidden states"))
TOP = 5


@dataclass(frozen=True)
class Shift:
    """What one edit did to one prompt: spreads (n_blocks + 1,) and after the final norm, and next-token probabilities."""

    block: int
    mark: str
    clean: Tensor
    edited: Tensor
    clean_final: float
    edited_final: float
    tokens: dict[str, tuple[float, float]]  # the five most probable of both runs, joined: text -> (clean, edited)
    top: tuple[list[str], list[str]]  # the five most probable, clean and edited
    words: Words  # the same tokens, the clean run's first
    include_first: bool  # whether the spreads count the first token

    @property
    def series(self) -> dict[str, Tensor]:
        return {say("clean"): self.clean, say("edited"): self.edited}

    @property
    def final(self) -> dict[str, float]:
        return {say("clean"): self.clean_final, say("edited"): self.edited_final}


def component_edit(
    component: str, block: int, head: int = 2, factor: float = 0.1, mean: float = 10.0, before_activation: bool = False,
    activation: str = "GELU",
) -> tuple[Edit, str]:  # fmt: skip
    """Return the edit that the controls ask for and its label. component: one of COMPONENTS.

    activation: the name of the MLP's activation function, for the label.
    Noise goes into the even neurons, with standard deviation 1 and always the same seed, so that only what you change changes.
    """
    if component == "K of a head":
        return zero_keys(block, [head]), say("block {block}, K of head {head} → 0", block=block, head=head)
    if component == "MLP neurons":
        generator = torch.Generator().manual_seed(0)
        side = say("before") if before_activation else say("after")
        made = noise_neurons(block, slice(0, None, 2), mean, 1.0, generator, before_activation)
        return made, say(
            "block {block}, noise {mean} {side} {activation}",
            block=block,
            mean=format_number(mean),
            side=side,
            activation=activation,
        )
    return scale_block(block, factor), say("block {block} × {factor}", block=block, factor=format_number(factor))


def component_shift(
    model: LanguageModel | Replay, prompt: str, component: str = "hidden states", block: int = 9, head: int = 2, factor: float = 0.1,
    mean: float = 10.0, before_activation: bool = False, include_first: bool = False,
) -> Shift:  # fmt: skip
    """Make one edit and measure it. Raises BadPrompt, PromptTooLong, BlockOutOfRange, HeadOutOfRange, BadFactor, and
    BadValue for a prompt of one token without its first."""
    replay = model if isinstance(model, Replay) else Replay(model)
    lm = replay.lm
    made, mark = component_edit(component, block, head, factor, mean, before_activation, _activation(lm))
    if component == "K of a head" and lm.n_key_heads < lm.n_heads:  # grouped-query attention
        share = lm.n_heads // lm.n_key_heads
        served = [str(one) for one in range(head * share, (head + 1) * share)]
        mark += say(" (serves heads {heads} and {last_served})", heads=", ".join(served[:-1]), last_served=served[-1])
    clean, edited = replay(prompt, made)
    logits = clean.last_logits[0], edited.last_logits[0]
    words = next_words(lm, *logits, most=TOP)
    joined = sorted(zip(words.names, words.clean, words.edited, strict=True), key=lambda row: -max(row[1:]))
    tops = [[lm.tokenizer.decode([i]) for i in one.topk(min(TOP, len(one))).indices.tolist()] for one in logits]
    first = 0 if include_first else 1
    return Shift(
        block,
        mark,
        spread(clean.resid, include_first),
        spread(edited.resid, include_first),
        float(clean.final[:, first:].std()),
        float(edited.final[:, first:].std()),
        {text: (a, b) for text, a, b in joined},
        (tops[0], tops[1]),
        words,
        include_first,
    )


def _activation(lm: LanguageModel) -> str:
    config = lm.model.config
    name = str(
        getattr(config, "activation_function", None) or getattr(config, "hidden_act", None) or say("the activation")
    )
    return "GELU" if name.startswith("gelu") else {"silu": "SiLU", "relu": "ReLU"}.get(name, name)


def describe_shift(shift: Shift) -> str:
    """Return the line of numbers under the controls: first what the model says, then the stream."""
    before, after = (f"{tops[0]!r} {format_number(shift.tokens[tops[0]][i], 2)}" for i, tops in enumerate(shift.top))
    words = say("next word {before} → {after}", before=before, after=after)
    return f"{shift.mark}: {words}. {spread_finding(shift.series, shift.final, shift.include_first)}."


def components_panel(models: Models, prompt: str, component: str = "hidden states", block: int = 9) -> Panel:
    """Return the widget of lesson 3: component, block, head, factor, noise, first token and prompt.

    models: one, or several by name, to choose from (see `Panel`). With grouped-query attention heads are key heads.
    """
    return Panel(
        say("Edit one component"),
        models,
        {
            "component": choice(COMPONENTS, component, translatable("component")),
            "block": block_slider(block),
            "head": index_slider(2, say("head (for K)")),
            "factor": factor_slider(0.1, 0.0, 10.0, 0.1, say("factor (for hidden states)")),
            "mean": factor_slider(10.0, -10.0, 20.0, 1.0, say("mean of the noise (for neurons)")),
            "before_activation": tick(False, say("noise before the activation function")),
            "include_first": tick(False, say("include the first token in the standard deviation")),
            "prompt": prompt_box(prompt),
        },
        sizes=lambda lm: {"block": lm.n_blocks, "head": lm.n_key_heads},
        compute=component_shift,
        draw=lambda shift: settle(
            plot_spread(
                shift.series, shift.final, shift.block, shift.mark, panel_axes(), include_first=shift.include_first
            )
        ),
        summary=describe_shift,
        words=lambda shift: words_table(shift.words),
    )
