"""Lesson 2's widget: one block's input against its output, and what every block adds.

hidden_states_panel(lm, prompt)     # the last line of a cell
"""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets as widgets
from torch import Tensor

from helpers.correlations import correlation, within_percentile
from helpers.course.panels import LABEL, WIDE, Models, Panel, block_slider, choice, prompt_box, tick
from helpers.lesson2.plots import filled_axis, plot_block_view
from helpers.lesson2.steps import random_step
from helpers.plots.style import WIDGET_DPI
from helpers.replay import Clean, Replay
from helpers.say import say, translatable
from helpers.tables import format_number
from helpers.tracing import Trace

PAIRS = (
    (translatable("state before → state after"), "output"),
    (translatable("state before → sum of the three parts"), "rebuilt"),
    (translatable("sum of the three parts → state after"), "match"),
)


@dataclass(frozen=True)
class BlockView:
    """What the picture shows: two states (1, pos, d_model) of one block, the values kept, r over them with the block's own step
    and with a random one, and norms over all blocks."""

    block: int
    before: Tensor
    after: Tensor
    names: tuple[str, str]
    keep: Tensor
    r: float
    by_chance: float
    by_token: bool
    norms: tuple[Tensor, Tensor, Tensor]  # stream, attention, MLP, each (n_blocks,)


def view_block(run: Trace | Clean, block: int, percentile: float, pair: str, by_token: bool) -> BlockView:
    """Choose from a clean pass what the widget shows. Without gradient, without a model: only numbers that are there."""
    rebuilt = run.resid[block] + run.attn[block] + run.mlp[block]
    states = {
        "output": (run.resid[block], run.resid[block + 1], (f"H_{block}", f"H_{block + 1}")),
        "rebuilt": (run.resid[block], rebuilt, (f"H_{block}", f"H_{block} + Δ + Δ")),
        "match": (rebuilt, run.resid[block + 1], (f"H_{block} + Δ + Δ", f"H_{block + 1}")),
    }
    before, after, names = states[pair]
    keep = within_percentile(before, after, percentile)
    r, by_chance = (correlation(before[keep], state[keep]) for state in (after, random_step(before, after)))
    sizes = [values.flatten(1).norm(dim=1) for values in (run.resid[:-1], run.attn, run.mlp)]
    return BlockView(block, before, after, names, keep, r, by_chance, by_token, (sizes[0], sizes[1], sizes[2]))


def describe_view(view: BlockView) -> str:
    """Return the line of numbers under the controls."""
    _, attention, mlp = (values[view.block] for values in view.norms)
    return say(
        "block {block}: r = {correlation} over {n_kept} of {n_values} values, and a random step as long "
        "gives {by_chance}. These values fill {filled_axis} % of the axis. The "
        "block's attention adds a length of {attention}, its MLP {mlp}.",
        block=view.block,
        correlation=f"{view.r:.4f}",
        n_kept=int(view.keep.sum()),
        n_values=view.keep.numel(),
        by_chance=f"{view.by_chance:.4f}",
        filled_axis=_n(100 * filled_axis(view.before, view.after, view.keep)),
        attention=_n(attention),
        mlp=_n(mlp),
    )


def hidden_states_panel(models: Models, prompt: str, block: int = 10) -> Panel:
    """Block, outlier mask, what is drawn against what, colour by position, prompt: scatter and norms are redrawn at once.

    models: one, or several by name, to choose from (see `Panel`).
    """
    percentile = widgets.FloatSlider(
        value=99,
        min=90,
        max=100,
        step=0.5,
        description=say("keep lowest %"),
        continuous_update=False,
        style=LABEL,
        layout=WIDE,
    )

    def compute(replay: Replay, block: int, percentile: float, pair: str, by_token: bool, prompt: str) -> BlockView:
        return view_block(replay.clean(prompt), block, percentile, pair, by_token)

    return Panel(
        say("A state before a block, after it, and what the block adds"),
        models,
        {
            "block": block_slider(block),
            "percentile": percentile,
            "pair": choice(PAIRS, "output", translatable("draw")),
            "by_token": tick(True, say("colour by token position")),
            "prompt": prompt_box(prompt),
        },
        sizes=lambda lm: {"block": lm.n_blocks},
        compute=compute,
        draw=lambda view: plot_block_view(
            view.before,
            view.after,
            view.names,
            view.keep,
            (view.r, view.by_chance),
            view.by_token,
            view.norms,
            view.block,
            WIDGET_DPI,
        ),
        summary=describe_view,
    )


def _n(value: float | Tensor) -> str:
    return format_number(float(value), 3)
