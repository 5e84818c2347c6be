"""Lesson 5's widget: skip any set of blocks, or only their attention or MLP, and see the steps and the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import traitlets
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from helpers.course.panels import Models, Panel, choice, prompt_box
from helpers.course.words import Words, next_words, words_table
from helpers.edits import skip_attention, skip_block, skip_mlp
from helpers.lesson5.plots import name_blocks, next_token_finding, plot_steps
from helpers.metrics import kl, step_norm
from helpers.models import LanguageModel
from helpers.plots.redrawn import panel_axes, settle
from helpers.plots.style import mark_edit
from helpers.replay import Replay
from helpers.say import say, translatable
from helpers.tables import format_number

PARTS = {
    translatable("whole block"): skip_block,
    translatable("attention"): skip_attention,
    translatable("MLP"): skip_mlp,
}

WIDE = 30  # times the median: from here on steps need a logarithmic axis


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
    model: LanguageModel | Replay, prompt: str, blocks: Sequence[int], part: str = "whole block", most: int = 5
) -> Skipped:
    """Skip `part` (a key of PARTS) of all `blocks` at once. Raises BadPrompt, PromptTooLong, BlockOutOfRange."""
    replay = model if isinstance(model, Replay) else Replay(model)
    clean, skipped = replay(prompt, *(PARTS[part](block) for block in blocks))
    logits = clean.last_logits[0], skipped.last_logits[0]
    words = next_words(replay.lm, *logits, most=most)
    return Skipped(
        tuple(blocks), part, step_norm(clean.resid), step_norm(skipped.resid), words.names, words.clean, words.edited,
        float(kl(*logits)),
    )  # fmt: skip


def draw_steps(result: Skipped, ax: Axes) -> Axes:
    """Draw the steps of both runs."""
    whole = result.part == "whole block"
    runs = {say("clean"): result.clean_steps}
    if result.blocks:
        runs[say("skipped") if whole else say("without {part}", part=say(result.part))] = result.steps
    plot_steps(runs, result.blocks if whole else (), ax)
    if not whole:  # the mark alone: the step need not be 0 there, so no title about that
        for block in result.blocks:
            mark_edit(ax, block, say("{part} skipped", part=say(result.part)) if len(result.blocks) == 1 else "")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    top = float(result.clean_steps.max())
    if top > WIDE * float(result.clean_steps.median()):  # one massive step would press the others flat
        ax.set_yscale("log", nonpositive="clip")  # a step of 0 falls through the floor
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: format_number(float(value)))
        ax.set_ylim(0.5 * min(float(steps[steps > 0].min()) for steps in runs.values() if steps.any()), 2 * top)
        ax.set_ylabel(say("step ‖H after − H before‖ (logarithmic)"))
    return ax


def summarize(result: Skipped) -> str:
    """One line: what was skipped, whether the first choice stays, and how far the prediction moves."""
    if not result.blocks:
        return say("Nothing is skipped. The next token is most probably {first_name!r}.", first_name=result.names[0])
    finding = next_token_finding(result.names, result.before, result.after)
    steps = ", ".join(format_number(float(result.steps[block]), 3) for block in result.blocks)
    what = (
        name_blocks(result.blocks)
        if result.part == "whole block"
        else say("the {part} of {name_blocks}", part=say(result.part), name_blocks=name_blocks(result.blocks))
    )
    return say(
        "Without {what}: {finding}; KL {divergence} nats; step there: {steps}.",
        what=what,
        finding=finding,
        divergence=format_number(result.divergence, 3),
        steps=steps,
    )


class BlockPicker(widgets.HBox, widgets.ValueWidget):
    """One box to tick for each block; `value` is the tuple of those ticked, in order. Setting it ticks the boxes."""

    value = traitlets.Tuple()

    def __init__(self, value: Sequence[int] = (), label: str = translatable("skip")) -> None:
        self.boxes: list[widgets.Checkbox] = []
        self._filling = False
        self._label = widgets.HTML(say(label), layout=widgets.Layout(width="95%"))  # a line of its own: boxes align
        super().__init__(
            [self._label], layout=widgets.Layout(width="100%", max_width="860px", flex_flow="row wrap"),
        )  # fmt: skip
        self.observe(self._fill_boxes, names="value")
        self.value = tuple(sorted(value))

    def set_size(self, count: int) -> None:
        """Show `count` boxes; blocks beyond them are no longer chosen."""
        for block in range(len(self.boxes), count):
            box = widgets.Checkbox(
                description=say("block {block}", block=block), indent=False, layout=widgets.Layout(width="84px")
            )
            box.observe(self._read_boxes, names="value")
            self.boxes.append(box)
        del self.boxes[count:]
        self.children = [self._label, *self.boxes]
        self.value = tuple(block for block in self.value if block < count)
        self._fill_boxes(None)

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


def skipping_panel(models: Models, prompt: str, blocks: Sequence[int] = (5,)) -> Panel:
    """Return the widget of lesson 5: blocks, part and prompt. models: one, or several by name (see `Panel`)."""
    return Panel(
        say("Skip blocks"),
        models,
        {
            "blocks": BlockPicker(blocks),
            "part": choice(list(PARTS), label=say("skip the")),
            "prompt": prompt_box(prompt),
        },
        sizes=lambda lm: {"blocks": lm.n_blocks},
        compute=skip_effect,
        draw=lambda result: settle(draw_steps(result, panel_axes())),
        summary=summarize,
        words=lambda result: words_table(Words(result.names, result.before, result.after)),
    )
