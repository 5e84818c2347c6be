"""Lesson 5's widget: skip any set of blocks, or only their attention or MLP, and see the steps and the prediction."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import traitlets
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from helpers.edits import edit, skip_attention, skip_block, skip_mlp
from helpers.metrics import kl, step_norm
from helpers.models import LanguageModel
from helpers.plots.skipping import name_blocks, next_token_finding, plot_next_tokens, plot_steps
from helpers.plots.style import WIDGET_DPI, describe, description, mark_edit, new_axes, new_figure
from helpers.tables import format_number
from helpers.tracing import trace
from helpers.widgets.base import Panel, choice, prompt_box

PARTS = {"whole block": skip_block, "attention": skip_attention, "MLP": skip_mlp}


@dataclass(frozen=True)
class Skipped:
    """A clean run and one without some blocks: step norms (n_blocks,), and the most probable next tokens of both."""

    blocks: tuple[int, ...]
    part: str
    clean_steps: Tensor
    steps: Tensor
    names: list[str]  # the next tokens that either run ranks highest
    before: list[float]  # their probabilities in the clean run ...
    after: list[float]  # ... and without the blocks
    divergence: float  # KL(clean ‖ edited) of the next token, in nats


def skip_effect(
    lm: LanguageModel, prompt: str, blocks: Sequence[int], part: str = "whole block", most: int = 5
) -> Skipped:
    """Skip `part` (a key of PARTS) of all `blocks` at once. Raises BadPrompt, PromptTooLong, BlockOutOfRange."""
    clean = trace(lm, prompt)
    with edit(lm, *(PARTS[part](block) for block in blocks)):
        skipped = trace(lm, prompt)
    names, before, after = shared_top(lm, clean.last_logits[0], skipped.last_logits[0], most)
    return Skipped(
        tuple(blocks), part, step_norm(clean.resid), step_norm(skipped.resid), names, before, after,
        float(kl(clean.last_logits[0], skipped.last_logits[0])),
    )  # fmt: skip


def shared_top(
    lm: LanguageModel, clean: Tensor, edited: Tensor, most: int
) -> tuple[list[str], list[float], list[float]]:
    """The `most` likeliest tokens of both runs together, the clean run's first: their text and both probabilities.

    clean, edited: logits (vocabulary,). So there are `most` to 2 · `most` tokens.
    """
    old, new = clean.softmax(-1), edited.softmax(-1)
    ids = list(dict.fromkeys([*old.topk(most).indices.tolist(), *new.topk(most).indices.tolist()]))
    return [lm.tokenizer.decode([i]) for i in ids], old[ids].tolist(), new[ids].tolist()


def draw_skipped(result: Skipped, dpi: int = 100) -> Figure:
    """Draw the steps of both runs on the left, their most probable next tokens on the right."""
    figure = new_figure((9.5, 4.0), dpi, layout=None)
    figure.subplots_adjust(left=0.07, right=0.975, bottom=0.13, top=0.82, wspace=0.26)
    left, right = (new_axes(ax) for ax in figure.subplots(1, 2, width_ratios=(5, 4)))
    whole = result.part == "whole block"
    runs = {"clean": result.clean_steps}
    if result.blocks:
        runs["skipped" if whole else f"without {result.part}"] = result.steps
    plot_steps(runs, result.blocks if whole else (), left)
    if not whole:  # the mark alone: the step need not be 0 there, so no title about that
        for block in result.blocks:
            mark_edit(left, block, f"{result.part} skipped" if len(result.blocks) == 1 else "")
    left.yaxis.set_major_locator(MaxNLocator(5))
    words = description(figure)
    plot_next_tokens(result.names, result.before, result.after, right)
    for ax in (left, right):  # half as wide as a figure of its own: shorter lines
        title = textwrap.wrap(ax.get_title(loc="left").replace("\n", " "), 48)
        ax.set_title("\n".join(title), loc="left", fontsize=10, pad=18)  # over the mark of an edit
    describe(figure, f"{summarize(result)} {words} {description(figure)}")
    return figure


def summarize(result: Skipped) -> str:
    """One line: what was skipped, whether the first choice stays, and how far the prediction moves."""
    if not result.blocks:
        return f"Nothing is skipped. The next token is most probably {result.names[0]!r}."
    finding = next_token_finding(result.names, result.before, result.after)
    steps = ", ".join(format_number(float(result.steps[block]), 3) for block in result.blocks)
    what = (
        name_blocks(result.blocks)
        if result.part == "whole block"
        else f"the {result.part} of {name_blocks(result.blocks)}"
    )
    return f"Without {what}: {finding}; KL {format_number(result.divergence, 3)} nats; step there: {steps}."


class BlockPicker(widgets.HBox, widgets.ValueWidget):
    """One box to tick for each block; `value` is the tuple of those ticked, in order. Setting it ticks the boxes."""

    value = traitlets.Tuple()

    def __init__(self, n_blocks: int, value: Sequence[int] = (), label: str = "skip") -> None:
        self.boxes = [
            widgets.Checkbox(description=f"block {block}", indent=False, layout=widgets.Layout(width="84px"))
            for block in range(n_blocks)
        ]
        super().__init__(
            [widgets.HTML(label, layout=widgets.Layout(width="95%")), *self.boxes],  # a line of its own: boxes align
            layout=widgets.Layout(width="560px", max_width="100%", flex_flow="row wrap"),
        )
        self._filling = False
        for box in self.boxes:
            box.observe(self._read_boxes, names="value")
        self.observe(self._fill_boxes, names="value")
        self.value = tuple(value)

    def _read_boxes(self, change: Any) -> None:
        if not self._filling:
            self.value = tuple(block for block, box in enumerate(self.boxes) if box.value)

    def _fill_boxes(self, change: Any) -> None:
        self._filling = True  # one new value, one redraw, however many boxes it ticks
        try:
            for block, box in enumerate(self.boxes):
                box.value = block in self.value
        finally:
            self._filling = False


def skipping_panel(lm: LanguageModel, prompt: str, blocks: Sequence[int] = (5,)) -> Panel:
    """Return the widget of lesson 5 on `lm`: blocks, part and prompt."""
    return Panel(
        "Skip blocks",
        {
            "blocks": BlockPicker(lm.n_blocks, blocks),
            "part": choice(list(PARTS), label="skip the"),
            "prompt": prompt_box(prompt),
        },
        compute=lambda **asked: skip_effect(lm, **asked),
        draw=lambda result: draw_skipped(result, WIDGET_DPI),
        summary=summarize,
    )
