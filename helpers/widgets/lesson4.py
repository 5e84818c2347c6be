"""Lesson 4's widget: switch off any head, see all heads on a map and what happens to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.countries import capital_prompts
from helpers.edits import Edit, edit, replace_heads
from helpers.errors import BadValue
from helpers.measures import predictions
from helpers.models import LanguageModel
from helpers.plots.heads import plot_head_panel
from helpers.plots.style import DPI, WIDGET_DPI
from helpers.replacements import from_the_end, mean_heads
from helpers.sweeps import sweep_edits
from helpers.tables import format_number
from helpers.tracing import trace
from helpers.widgets.base import Panel, block_slider, choice, index_slider, prompt_box

REPLACEMENTS = {  # and how a sentence begins
    "zero": "Without",
    "mean": "With the mean in place of",
    "resample": "With another prompt's output in place of",
}
REFERENCE = 24  # country prompts that the mean runs over, and that a resampled head comes from
TOP = 10


@dataclass(frozen=True)
class HeadMap:
    """All heads of one model on one prompt. Changes are in nats, (n_blocks, n_heads), with the replacement minus without."""

    prompt: str
    target: str
    contrast: str
    replacement: str
    on_target: Tensor  # change of log p(target)
    on_contrast: Tensor
    edits: tuple[Edit, ...]  # one for each head, block by block
    clean: Tensor  # (vocabulary,) logits


@dataclass(frozen=True)
class HeadView:
    """A map with one head chosen. tokens: the TOP most probable next tokens of the clean run, and target and contrast where
    they are not among them; clean, edited: their probabilities, (len(tokens),), with the head and without it.
    """

    map: HeadMap
    block: int
    head: int
    tokens: tuple[str, ...]
    clean: Tensor
    edited: Tensor
    same_top: bool  # the most probable of all tokens is the same in both runs


def head_map(lm: LanguageModel, prompt: str, target: str, contrast: str, replacement: str = "zero") -> HeadMap:
    """Ablate every head of every block, one at a time, in one sweep.

    replacement: "zero"; "mean", over 24 country prompts, one for each position; or "resample", the head's output on one
    of them. Positions are counted back from the last token. Raises TargetIsNotOneToken, BadPrompt, PromptTooLong, BadValue.
    """
    measure = predictions(lm, target, contrast)
    edits = _edits(lm, prompt, replacement)
    found = sweep_edits(lm, prompt, edits, measure=measure, progress=False).unflatten(0, (lm.n_blocks, lm.n_heads))
    on_target, on_contrast = (found[..., measure.columns.index(name)] for name in ("target", "contrast"))
    clean = trace(lm, prompt).last_logits[0].cpu()
    return HeadMap(prompt, target, contrast, replacement, on_target, on_contrast, edits, clean)


def _edits(lm: LanguageModel, prompt: str, replacement: str) -> tuple[Edit, ...]:
    """One edit for each head, block by block."""
    length = lm.encode(prompt).ids.shape[1]
    if replacement == "zero":
        values = torch.zeros(lm.n_blocks, 1, lm.n_heads, lm.d_head, dtype=lm.dtype, device=lm.device)
    elif replacement in ("mean", "resample"):
        others = [fact.prompt for fact in capital_prompts(lm) if fact.prompt != prompt][:REFERENCE]
        if replacement == "mean":
            values = from_the_end(mean_heads(lm, others), length)
        else:
            values = from_the_end(trace(lm, others[len(others) // 2]).heads[:, 0], length)
    else:
        raise BadValue(f"replacement {replacement!r} is unknown: choose {', '.join(REPLACEMENTS)}.")
    return tuple(
        replace_heads(block, head, values[block, :, head : head + 1])
        for block in range(lm.n_blocks)
        for head in range(lm.n_heads)
    )


def head_view(lm: LanguageModel, found: HeadMap, block: int, head: int) -> HeadView:
    """Choose one head of a map; costs one pass. Raises BlockOutOfRange, HeadOutOfRange."""
    block, (head,) = lm.check_block(block), lm.check_heads([head])
    with edit(lm, found.edits[block * lm.n_heads + head]):
        after = trace(lm, found.prompt).last_logits[0].cpu().softmax(-1)
    before = found.clean.softmax(-1)
    shown = before.topk(min(TOP, len(before))).indices.tolist()
    shown += [i for i in map(lm.token_id, (found.target, found.contrast)) if i not in shown]
    tokens = tuple(lm.tokenizer.decode([i]) for i in shown)
    same_top = bool(before.argmax() == after.argmax())
    return HeadView(found, block, head, tokens, before[shown], after[shown], same_top)


def draw_view(view: HeadView, dpi: int = DPI) -> Figure:
    """Draw the map with the chosen head in a frame, and the shift of the most probable next tokens."""
    name, place = f"log p({view.map.target!r})", (view.block, view.head)
    return plot_head_panel(
        view.map.on_target, place, view.tokens, view.clean, view.edited, name, view.map.replacement, dpi
    )


def summarize(view: HeadView) -> str:
    """Say in one line what the chosen head's replacement does to target and contrast."""
    target, contrast = (float(m[view.block, view.head]) for m in (view.map.on_target, view.map.on_contrast))
    first = "stays the top token" if view.same_top else "is no longer the top token"
    return (
        f"{REPLACEMENTS[view.map.replacement]} head {view.head} of block {view.block}: "
        f"log p({view.map.target!r}) changes by {_n(target)} nats, "
        f"log p({view.map.contrast!r}) by {_n(contrast)}, their difference by {_n(target - contrast)}; "
        f"{view.tokens[0]!r} {first}."
    )


def head_panel(
    lm: LanguageModel, prompt: str, target: str, contrast: str, block: int | None = None, head: int = 0
) -> Panel:
    """Return the widget of lesson 4 on `lm`: block, head, replacement, prompt, target and contrast.

    A map is computed once for each prompt, target, contrast and replacement, and kept in this panel.
    """
    maps: dict[tuple[str, str, str, str], HeadMap] = {}

    def compute(block: int, head: int, replacement: str, prompt: str, target: str, contrast: str) -> HeadView:
        asked = (prompt, target, contrast, replacement)
        if asked not in maps:
            maps[asked] = head_map(lm, *asked)
        return head_view(lm, maps[asked], block, head)

    return Panel(
        "Switch off a head",
        {
            "block": block_slider(lm.n_blocks, min(5, lm.n_blocks // 2) if block is None else block),
            "head": index_slider(lm.n_heads, head, "head"),
            "replacement": choice(list(REPLACEMENTS), label="replacement"),
            "prompt": prompt_box(prompt),
            "target": prompt_box(target, "target"),
            "contrast": prompt_box(contrast, "contrast"),
        },
        compute=compute,
        draw=lambda view: draw_view(view, WIDGET_DPI),
        summary=summarize,
    )


def _n(value: float) -> str:
    return format_number(value, 3)
