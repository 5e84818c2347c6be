"""Lesson 3's widget: one edit of one component, the spread of the stream along the model, and the next token.

components_panel(lm, prompt)     # the last line of a cell
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.edits import Edit, edit, noise_neurons, scale_block, zero_keys
from helpers.models import LanguageModel
from helpers.plots.components import plot_shift, spread_finding
from helpers.plots.style import DPI, WIDGET_DPI
from helpers.readings import spread
from helpers.tables import format_number
from helpers.tracing import trace
from helpers.widgets.base import Panel, block_slider, choice, factor_slider, index_slider, prompt_box, tick

COMPONENTS = ("K of a head", "MLP neurons", "hidden states")
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

    @property
    def series(self) -> dict[str, Tensor]:
        return {"clean": self.clean, "edited": self.edited}

    @property
    def final(self) -> dict[str, float]:
        return {"clean": self.clean_final, "edited": self.edited_final}


def component_edit(
    component: str, block: int, head: int = 2, factor: float = 0.1, mean: float = 10.0, before_activation: bool = False
) -> tuple[Edit, str]:
    """Return the edit that the controls ask for and its label. component: one of COMPONENTS.

    Noise goes into the even neurons, with standard deviation 1 and always the same seed, so that only what you change changes.
    """
    if component == "K of a head":
        return zero_keys(block, [head]), f"block {block}, K of head {head} → 0"
    if component == "MLP neurons":
        generator = torch.Generator().manual_seed(0)
        side = "before" if before_activation else "after"
        made = noise_neurons(block, slice(0, None, 2), mean, 1.0, generator, before_activation)
        return made, f"block {block}, noise {format_number(mean)} {side} GELU"
    return scale_block(block, factor), f"block {block} × {format_number(factor)}"


def component_shift(
    lm: LanguageModel, prompt: str, component: str = "hidden states", block: int = 9, head: int = 2, factor: float = 0.1,
    mean: float = 10.0, before_activation: bool = False, include_first: bool = True,
) -> Shift:  # fmt: skip
    """Make one edit and measure it. Raises BadPrompt, PromptTooLong, BlockOutOfRange, HeadOutOfRange, BadFactor, and
    BadValue for a prompt of one token without its first."""
    made, mark = component_edit(component, block, head, factor, mean, before_activation)
    clean = trace(lm, prompt)
    with edit(lm, made):
        edited = trace(lm, prompt)
    a, b = (run.last_logits[0].softmax(-1) for run in (clean, edited))
    tops = [p.topk(TOP).indices.tolist() for p in (a, b)]
    joined = sorted({*tops[0], *tops[1]}, key=lambda i: -max(float(a[i]), float(b[i])))
    name = [lm.tokenizer.decode([i]) for i in joined]
    first = 0 if include_first else 1
    assert clean.final is not None and edited.final is not None
    return Shift(
        block,
        mark,
        spread(clean.resid, include_first),
        spread(edited.resid, include_first),
        float(clean.final[:, first:].std()),
        float(edited.final[:, first:].std()),
        {text: (float(a[i]), float(b[i])) for text, i in zip(name, joined, strict=True)},
        ([lm.tokenizer.decode([i]) for i in tops[0]], [lm.tokenizer.decode([i]) for i in tops[1]]),
    )


def draw_shift(shift: Shift, dpi: int = DPI) -> Figure:
    """Draw a shift in the style of the course."""
    return plot_shift(shift.series, shift.final, shift.tokens, shift.block, shift.mark, dpi)


def describe_shift(shift: Shift) -> str:
    """Return the line of numbers under the controls."""
    before, after = (", ".join(f"{t!r} {format_number(shift.tokens[t][i], 2)}" for t in shift.top[i]) for i in (0, 1))
    return f"{shift.mark}: {spread_finding(shift.series, shift.final, shift.block)}. Next token, clean: {before}; edited: {after}."


def components_panel(lm: LanguageModel, prompt: str, component: str = "hidden states", block: int = 9) -> Panel:
    """Return the widget of lesson 3 on `lm`: component, block, head, factor, noise, first token and prompt."""
    return Panel(
        "Edit one component",
        {
            "component": choice(COMPONENTS, component, "component"),
            "block": block_slider(lm.n_blocks, min(block, lm.n_blocks - 1)),
            "head": index_slider(lm.n_key_heads, min(2, lm.n_key_heads - 1), "head (for K)"),
            "factor": factor_slider(0.1, 0.0, 10.0, 0.1, "factor (for hidden states)"),
            "mean": factor_slider(10.0, -10.0, 20.0, 1.0, "mean of the noise (for neurons)"),
            "before_activation": tick(False, "noise before the activation function"),
            "include_first": tick(True, "include the first token in the standard deviation"),
            "prompt": prompt_box(prompt),
        },
        compute=lambda **asked: component_shift(lm, **asked),
        draw=lambda shift: draw_shift(shift, WIDGET_DPI),
        summary=describe_shift,
    )
