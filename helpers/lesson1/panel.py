"""Lesson 1's widget: scale any block by any factor, watch the difference travel along the stream, and the next words."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from torch import Tensor

from helpers.course.panels import Models, Panel, block_slider, choice, factor_slider, prompt_box, tick
from helpers.course.words import Words, next_words, words_table
from helpers.edits import scale_block
from helpers.lesson1.plots import measure_finding, plot_measure
from helpers.lesson1.words import word_finding
from helpers.metrics import cosine_similarity, delta_norm, relative_error, survival
from helpers.models import LanguageModel
from helpers.plots.redrawn import panel_axes, settle
from helpers.replay import Replay
from helpers.say import say

METRICS = {"Δ": delta_norm, "relative error": relative_error, "cosine similarity": cosine_similarity}
SURVIVAL = "survival"  # the one measure that asks where the edit is
MEASURES = (*METRICS, SURVIVAL)


@dataclass(frozen=True)
class Curve:
    """One measure along the stream, (n_blocks + 1,), what was asked, and the next words."""

    values: Tensor
    block: int
    factor: float
    measure: str
    words: Words


def scaling_curve(
    model: LanguageModel | Replay,
    prompt: str,
    block: int,
    factor: float,
    include_first: bool = False,
    measure: str = "Δ",
) -> Curve:
    """Scale the output of `block` by `factor` and measure the distance from the clean run at every point.

    measure: one of MEASURES. Raises BadPrompt, PromptTooLong, BlockOutOfRange, BadFactor, and BadValue for a prompt of
    one token without its first, or for the survival of an error that is none (factor 1).
    """
    replay = model if isinstance(model, Replay) else Replay(model)
    clean, scaled = replay(prompt, scale_block(block, factor))
    if measure == SURVIVAL:
        values = survival(clean.resid, scaled.resid, block, include_first)
    else:
        values = METRICS[measure](clean.resid, scaled.resid, include_first=include_first)
    return Curve(values, block, factor, measure, next_words(replay.lm, clean.last_logits[0], scaled.last_logits[0]))


def draw_curve(curve: Curve, ax: Axes | None = None) -> Axes:
    """Draw a curve in the style of the course."""
    return plot_measure(curve.values, curve.block, curve.factor, curve.measure, ax)


def describe_curve(curve: Curve) -> str:
    """Return the line of numbers under the controls: what becomes of the next word, and what the measure does."""
    return f"{word_finding(curve.words)}. {measure_finding(curve.values, curve.block, curve.measure)}."


def scaling_panel(models: Models, prompt: str, block: int = 2, factor: float = 0.5) -> Panel:
    """Return the widget of lesson 1: block, factor, first token, measure and prompt.

    models: one, or several by name, to choose from (see `Panel`).
    """
    return Panel(
        say("Scale a block"),
        models,
        {
            "block": block_slider(block),
            "factor": factor_slider(factor),
            "include_first": tick(False, say("include the first token")),
            "measure": choice(MEASURES),
            "prompt": prompt_box(prompt),
        },
        sizes=lambda lm: {"block": lm.n_blocks},
        compute=scaling_curve,
        draw=lambda curve: settle(draw_curve(curve, panel_axes())),
        summary=describe_curve,
        words=lambda curve: words_table(curve.words),
    )
