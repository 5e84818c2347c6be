"""Lesson 4's widget: switch off any head, see all heads on a map and what happens to the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.countries import capital_prompts
from helpers.course.panels import Models, Panel, block_slider, choice, index_slider, prompt_box
from helpers.course.words import Words, these_words, words_table
from helpers.edits import Edit, replace_heads
from helpers.errors import BadValue
from helpers.lesson4.plots import attention_finding, plot_head_and_attention
from helpers.models import LanguageModel
from helpers.readings import attention_patterns
from helpers.replacements import from_the_end, mean_heads
from helpers.replay import Replay
from helpers.say import say, translatable
from helpers.sweeps import Progress, sweep_edits
from helpers.tables import format_number
from helpers.tracing import trace

REPLACEMENTS = {  # and how a sentence begins
    translatable("zero"): translatable("Without"),
    translatable("mean"): translatable("With the mean in place of"),
    translatable("resample"): translatable("With another prompt's output in place of"),
}
REFERENCE = 24  # country prompts that the mean runs over, and that a resampled head comes from
TOP = 10
SMALL = 50_000_000  # parameters: below this all heads are mapped in a moment, without being asked

Question = tuple[str, str, str]  # prompt, target, replacement


def head_map(
    lm: LanguageModel, prompt: str, target: str, replacement: str = "zero", progress: Progress = False
) -> Tensor:
    """(n_blocks, n_heads): change of log p(target) with each head ablated, one at a time, in nats; one sweep.

    replacement: "zero"; "mean", over 24 country prompts, one for each position; or "resample", the head's output on one
    of them. Positions are counted back from the last token. Raises TargetIsNotOneToken, BadPrompt, PromptTooLong, BadValue.
    """
    found = sweep_edits(lm, prompt, _edits(lm, prompt, replacement), target, progress=progress)
    return found.unflatten(0, (lm.n_blocks, lm.n_heads))


def _edits(lm: LanguageModel, prompt: str, replacement: str) -> tuple[Edit, ...]:
    """One edit for each head, block by block."""
    values = _values(lm, prompt, replacement)
    return tuple(_edit(values, block, head) for block in range(lm.n_blocks) for head in range(lm.n_heads))


def _edit(values: Tensor, block: int, head: int) -> Edit:
    return replace_heads(block, head, values[block, :, head : head + 1])


def _values(lm: LanguageModel, prompt: str, replacement: str) -> Tensor:
    """(n_blocks, pos or 1, n_heads, d_head): what each head's output becomes."""
    length = lm.encode(prompt).ids.shape[1]
    if replacement == "zero":
        return torch.zeros(lm.n_blocks, 1, lm.n_heads, lm.d_head, dtype=lm.dtype, device=lm.device)
    if replacement not in REPLACEMENTS:
        raise BadValue(
            "replacement {replacement!r} is unknown: choose {replacements}.",
            replacement=replacement,
            replacements=", ".join(REPLACEMENTS),
        )
    others = _others(lm, prompt)
    if replacement == "mean":
        return from_the_end(mean_heads(lm, others), length)
    return from_the_end(trace(lm, others[len(others) // 2]).heads[:, 0], length)


def _others(lm: LanguageModel, prompt: str) -> list[str]:
    """Other country prompts in the prompt's own form: with the same words in front, and if there are enough, of its length."""
    facts = capital_prompts(lm)
    front = next((prompt.removesuffix(fact.prompt) for fact in facts if prompt.endswith(fact.prompt)), "")
    texts = [front + fact.prompt for fact in facts if not prompt.endswith(fact.prompt)]
    length = len(lm.token_ids(prompt))
    same = [text for text in texts if len(lm.token_ids(text)) == length]
    return (same if len(same) >= REFERENCE else texts)[:REFERENCE]


@dataclass(frozen=True)
class HeadEffect:
    """One ablated head: what the widget shows. Changes are in nats, with the replacement minus without."""

    block: int
    head: int
    replacement: str
    target: str
    contrast: str
    on_target: float  # change of log p(target)
    on_contrast: float
    words: Words  # the TOP most probable tokens of the clean run, target and contrast
    same_top: bool  # the most probable of all tokens is the same in both runs
    tokens: list[str]  # of the prompt
    pattern: Tensor | None  # (pos, pos) the head's attention; None where the model does not tell it
    shape: tuple[int, int]  # (n_blocks, n_heads)
    map: Tensor | None  # (n_blocks, n_heads) change of log p(target) of every head, if it has been computed


def summarize(effect: HeadEffect) -> str:
    """Say in one line what the chosen head's replacement does to target and contrast, and whom the head looks at."""
    first = say("stays the top token") if effect.same_top else say("is no longer the top token")
    looks = (
        ""
        if effect.pattern is None
        else say(
            " In this head {attention_finding}.", attention_finding=attention_finding(effect.pattern, effect.tokens)
        )
    )
    return say(
        "{replacement} head {head} of block {block}: log p({target!r}) changes by {on_target} nats, log "
        "p({contrast!r}) by {on_contrast}, their difference by {on_difference}; {first_name!r} "
        "{first}.{looks}",
        replacement=say(REPLACEMENTS[effect.replacement]),
        head=effect.head,
        block=effect.block,
        target=effect.target,
        on_target=_n(effect.on_target),
        contrast=effect.contrast,
        on_contrast=_n(effect.on_contrast),
        on_difference=_n(effect.on_target - effect.on_contrast),
        first_name=effect.words.names[0],
        first=first,
        looks=looks,
    )


class HeadLab:
    """One model's maps, replacements and attention patterns, each computed when it is first asked for, and again when the
    model has changed."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.progress: Progress = False  # told while a map is computed
        self._version = -1
        self.maps: dict[Question, Tensor] = {}
        self._values: dict[tuple[str, str], Tensor] = {}
        self._patterns: dict[str, Tensor | None] = {}

    def effect(
        self, block: int, head: int, replacement: str, prompt: str, target: str, contrast: str, mapped: bool = False
    ) -> HeadEffect:
        """Ablate one head: costs the blocks from `block` on; with `mapped` the map too, unless it is there.

        Raises TargetIsNotOneToken, BadPrompt, PromptTooLong, BadValue.
        """
        lm = self.replay.lm
        wanted, other = lm.token_id(target), lm.token_id(contrast)
        self._refresh(prompt)
        question = (prompt, target, replacement)
        if mapped and question not in self.maps:
            self.maps[question] = head_map(lm, *question, progress=self.progress)
        values = self._latest(self._values, (prompt, replacement), lambda: _values(lm, prompt, replacement))
        clean, edited = self.replay(prompt, _edit(values, block, head))
        before, after = clean.last_logits[0], edited.last_logits[0]
        change = after.log_softmax(-1) - before.log_softmax(-1)
        patterns = self._latest(self._patterns, prompt, lambda: _patterns(lm, prompt))
        return HeadEffect(
            block, head, replacement, target, contrast, float(change[wanted]), float(change[other]),
            these_words(lm, before, after, [*before.topk(min(TOP, len(before))).indices.tolist(), wanted, other]),
            bool(before.argmax() == after.argmax()),
            lm.token_strings(prompt),
            None if patterns is None else patterns[block, 0, head],
            (lm.n_blocks, lm.n_heads),
            self.maps.get(question),
        )  # fmt: skip

    def _refresh(self, prompt: str) -> None:
        self.replay.clean(prompt)  # tells whether the model is still what it was
        if self._version != self.replay.version:
            self._version = self.replay.version
            for kept in (self.maps, self._values, self._patterns):
                kept.clear()

    @staticmethod
    def _latest(kept: dict, key: Any, make: Callable[[], Any]) -> Any:
        """What belongs to `key`, made if need be; what belonged to other prompts goes."""
        if key not in kept:
            made = make()
            kept.clear()
            kept[key] = made
        return kept[key]


def _patterns(lm: LanguageModel, prompt: str) -> Tensor | None:
    try:
        return attention_patterns(lm, prompt)
    except BadValue:  # attention by a fused kernel
        return None


def head_panel(models: Models, prompt: str, target: str, contrast: str, block: int = 5, head: int = 0) -> Panel:
    """Return the widget of lesson 4: block, head, replacement, prompt, target and contrast.

    models: one, or several by name, to choose from (see `Panel`). One head's effect is there at once. The map of all
    heads is computed once for each question and kept in this panel: by itself for a small model, for others, which take
    seconds, when the button is pressed.
    """
    labs: dict[int, HeadLab] = {}
    button = widgets.Button(description=say("map all heads"), layout=widgets.Layout(width="160px"))

    asked_for = False  # the button was pressed

    def compute(replay: Replay, **asked: Any) -> HeadEffect:
        lab = labs.setdefault(id(replay), HeadLab(replay))  # a panel keeps its replays, so an id stays one's own
        small = replay.lm.model.num_parameters() < SMALL
        lab.progress = False if small else tell
        effect = lab.effect(**asked, mapped=small or asked_for)
        button.disabled = effect.map is not None
        return effect

    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        if told != (now := 10 * (10 * done // total)):
            told = now
            lm = panel.replay.lm
            panel.say(
                say(
                    "Mapping {n_blocks} × {n_heads} heads: {now} % …", n_blocks=lm.n_blocks, n_heads=lm.n_heads, now=now
                )
            )

    def press(_: Any) -> None:
        nonlocal asked_for
        asked_for = True
        try:
            panel.update()
        finally:
            asked_for = False

    panel = Panel(
        say("Switch off a head"),
        models,
        {
            "block": block_slider(block),
            "head": index_slider(head, say("head")),
            "replacement": choice(list(REPLACEMENTS), label=say("replacement")),
            "prompt": prompt_box(prompt),
            "target": prompt_box(target, say("target")),
            "contrast": prompt_box(contrast, say("contrast")),
        },
        sizes=lambda lm: {"block": lm.n_blocks, "head": lm.n_heads},
        compute=compute,
        draw=draw_effect,
        summary=summarize,
        words=lambda effect: words_table(effect.words, change=True),
        below=[button],
    )
    button.on_click(press)
    return panel


def draw_effect(effect: HeadEffect) -> Figure:
    """Draw the map with the chosen head in a frame, and whom that head looks at."""
    return plot_head_and_attention(
        effect.map,
        effect.shape,
        (effect.block, effect.head),
        effect.pattern,
        effect.tokens,
        say("log p({target!r})", target=effect.target),
    )


def _n(value: float) -> str:
    return format_number(value, 3)
