"""Lesson 1's widget: scale any block by any factor and watch the difference travel along the stream."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from torch import Tensor

from helpers.edits import edit, scale_block
from helpers.metrics import cosine_similarity, delta_norm, relative_error
from helpers.models import LanguageModel
from helpers.plots.streams import measure_finding, plot_measure
from helpers.plots.style import SIZE, WIDGET_DPI, new_figure
from helpers.tracing import trace
from helpers.widgets.base import Panel, block_slider, choice, factor_slider, prompt_box, tick

METRICS = {"Δ": delta_norm, "relative error": relative_error, "cosine similarity": cosine_similarity}


@dataclass(frozen=True)
class Curve:
    """One measure along the stream, (n_blocks + 1,), and what was asked."""

    values: Tensor
    block: int
    factor: float
    measure: str


def scaling_curve(
    lm: LanguageModel, prompt: str, block: int, factor: float, include_first: bool = False, measure: str = "Δ"
) -> Curve:
    """Scale the output of `block` by `factor` and measure the distance from the clean run at every point.

    measure: a key of METRICS. Raises BadPrompt, PromptTooLong, BlockOutOfRange, BadFactor, and BadValue for a prompt of
    one token without its first.
    """
    with edit(lm, scale_block(block, factor)):
        scaled = trace(lm, prompt)
    values = METRICS[measure](trace(lm, prompt).resid, scaled.resid, include_first=include_first)
    return Curve(values, block, factor, measure)


def draw_curve(curve: Curve, ax: Axes | None = None) -> Axes:
    """Draw a curve in the style of the course."""
    return plot_measure(curve.values, curve.block, curve.factor, curve.measure, ax)


def scaling_panel(lm: LanguageModel, prompt: str, block: int = 2, factor: float = 0.5) -> Panel:
    """Return the widget of lesson 1 on `lm`: block, factor, first token, measure and prompt."""
    return Panel(
        "Scale a block",
        {
            "block": block_slider(lm.n_blocks, block),
            "factor": factor_slider(factor),
            "include_first": tick(False, "include the first token"),
            "measure": choice(list(METRICS)),
            "prompt": prompt_box(prompt),
        },
        compute=lambda **asked: scaling_curve(lm, **asked),
        draw=lambda curve: draw_curve(
            curve, new_figure(SIZE, WIDGET_DPI, layout=None).add_axes((0.1, 0.13, 0.88, 0.7))
        ),
        summary=lambda curve: measure_finding(curve.values, curve.block, curve.measure) + ".",
    )
