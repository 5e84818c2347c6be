"""What lesson 5 runs and shows: next words with and without a part, the three hooks, the work of a pass.

show_words(lm, prompt, {"clean": [], "without block 11": [skip_block(11)]})
show_hooks(lm, prompt, block=5)
with own_forward(lm, [4, 5]): operations(lm, prompt)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers.edits import Edit, edit, skip_block
from helpers.hooks import with_first
from helpers.lesson5.claims import try_hooks
from helpers.measurements import Measured
from helpers.measures import text_damage
from helpers.metrics import top_k
from helpers.models import LanguageModel
from helpers.say import say
from helpers.sweeps import sweep_edits, windows
from helpers.tables import format_number, show_table
from helpers.texts import held_out_passages
from helpers.tracing import Trace


def held_out(lm: LanguageModel, passages: int, length: int) -> Tensor:
    """(passages, length) token ids: the first tokens of each of the first held-out passages."""
    return torch.cat([windows(lm, passage, length, most=1) for passage in held_out_passages()[:passages]])


def show_words(lm: LanguageModel, prompt: str, runs: Mapping[str, Sequence[Edit]], most: int = 3) -> None:
    """Show the most probable next words of some runs, one row a run. runs: name -> its edits, an empty list for none."""
    rows = {}
    for name, edits in runs.items():
        with edit(lm, *edits):
            found = top_k(lm, lm.logits(prompt)[:, -1], most)
        rows[name] = [f"{word!r} {format_number(float(chance), 2)}" for word, chance in found]
    places = [say("1st"), say("2nd"), say("3rd"), *(say("{place}th", place=place) for place in range(4, most + 1))][
        :most
    ]
    show_table(rows, say("Next words after “{prompt}”", prompt=prompt), columns=places, corner=say("run"))


def show_again(lm: LanguageModel, found: Measured, blocks: Sequence[int], passages: int) -> None:
    """Measure a few of the stored numbers again, beside what is stored. found: a stored part "blocks" of the same model."""
    text = held_out(lm, passages, len(found.about["prompts"][0]))
    now = sweep_edits(lm, text, [skip_block(block) for block in blocks], measure=text_damage(), progress=False)
    then = found.at("damage", part="block", measure="loss", block=list(blocks))[:passages]
    rows = {
        say("stored"): [f"{value:.2f}" for value in then.mean(0).tolist()],
        say("now"): [f"{value:.2f}" for value in now[..., 0].mean(0).tolist()],
    }
    columns = [say("block {block}", block=block) for block in blocks]
    show_table(
        rows, say("Rise of the loss on the first {passages} passages, nats a token", passages=passages), columns=columns
    )


def show_hooks(lm: LanguageModel, prompt: str, block: int) -> None:
    """Hang three hooks on the plain block: the report's, its nearest repair, and the right one. Is the block skipped, and which
    step of it does `output.hidden_states` show?"""
    raw = try_hooks(lm, lm.encode(prompt), block)
    with edit(lm, skip_block(block)):
        skipped = lm.logits(prompt)

    def same(hook: Callable[..., Any], **options: bool) -> bool | None:
        handle = lm.blocks[block].register_forward_hook(hook, **options)
        try:
            return torch.equal(lm.logits(prompt), skipped)
        except (TypeError, AttributeError, ValueError, IndexError, RuntimeError):
            return None  # the next block cannot use what the hook returned
        finally:
            handle.remove()

    def right(module: Any, args: Any, output: Any) -> Any:
        return with_first(output, args[0])

    rows = {
        say("`return input`, for transformers 4"): (raw.error or raw.line, same(lambda module, args, output: args)),
        "`return input[0]`": (raw.repair, same(lambda module, args, output: args[0])),
        say("right for both, with `prepend=True`"): (raw.mended, same(right, prepend=True)),
    }
    caption = say(
        "Block {block} skipped by hand, transformers {version}",
        block=block,
        version=transformers.__version__.split(".")[0],
    )
    columns = [say("step in hidden_states"), say("logits of a skipped run")]
    show_table({name: list(row) for name, row in rows.items()}, caption, columns=columns, corner=say("hook"), digits=3)


def show_first_token(runs: Mapping[str, Trace], point: int, coordinate: int) -> None:
    """Show how long the first token's vector is at one point of the stream, in one coordinate, and beside the others'.

    runs: name -> a trace of one prompt. point: 12 is what block 12 reads.
    """
    rows = {}
    for name, run in runs.items():
        first, others = run.resid[point, 0, 0], run.resid[point, 0, 1:].norm(dim=-1)
        numbers = (first.norm(), first[coordinate].abs(), others.quantile(0.5), first.norm() / others.quantile(0.5))
        rows[name] = [f"{float(number):,.0f}" if number >= 100 else f"{float(number):.2f}" for number in numbers]
    columns = [
        say("first token's length"),
        say("coordinate {coordinate}", coordinate=coordinate),
        say("others' length (median)"),
        say("ratio"),
    ]
    show_table(rows, say("Before block {point}", point=point), columns=columns, corner=say("run"))


@contextmanager
def own_forward(lm: LanguageModel, blocks: Sequence[int]) -> Iterator[None]:
    """Give each of these blocks a `forward` of its own that hands on the stream, until the `with` ends: nothing is computed.

    Calling a module runs `module.forward(...)`; an attribute of that name on the instance hides the method of its class.
    """
    tuples = transformers.__version__.startswith("4.") and lm.family == "gpt2"  # there a block returns a tuple

    def hand_on(stream: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (stream,) if tuples else stream

    try:
        for block in blocks:
            lm.blocks[block].forward = hand_on
        yield
    finally:
        for block in blocks:
            vars(lm.blocks[block]).pop("forward", None)  # the method of the class is back


@torch.no_grad()
def operations(lm: LanguageModel, prompt: str) -> int:
    """Floating-point operations of the matrix products in one pass over `prompt`, edits and all."""
    inputs = lm.inputs(lm.encode(prompt))
    with FlopCounterMode(display=False) as counter:
        lm.model(**inputs)
    return int(counter.get_total_flops())
