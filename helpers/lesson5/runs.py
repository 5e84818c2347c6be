"""What lesson 5 runs and shows: next words with and without a part, the three hooks, the work of a pass.

show_words(lm, prompt, {"clean": [], "without block 11": [skip_block(11)]})
show_hooks(lm, prompt, block=5)
with own_forward(lm, [4, 5]): operations(lm, prompt)
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers.course.ledger import STORED
from helpers.edits import Edit, edit, patch_block, skip_block
from helpers.hooks import with_first
from helpers.lesson5.claims import try_hooks
from helpers.lesson5.plots import added_up, price_rows
from helpers.measurements import Measured
from helpers.measures import Measure, text_damage
from helpers.metrics import top_k
from helpers.models import LanguageModel
from helpers.say import say
from helpers.sweeps import sweep_edits, windows
from helpers.tables import format_number, show_table
from helpers.texts import held_out_passages
from helpers.tracing import Trace, trace


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


def differ(tokens: Sequence[str], others: Sequence[str]) -> list[int]:
    """The places at which two rows of tokens differ; all of them where one row is longer."""
    if len(tokens) != len(others):
        return list(range(max(len(tokens), len(others))))
    return [place for place, pair in enumerate(zip(tokens, others, strict=True)) if pair[0] != pair[1]]


def show_other_capitals(lm: LanguageModel, prompt: str, capital: str, found: Measured, blocks: Sequence[int]) -> None:
    """Print on how many other prompts their country comes first, when `prompt` is patched with their stream after a block, at
    its capital and at its last token.

    found: a stored part "heads"; of its prompts those that are answered rightly and differ from `prompt` in this one token.
    """
    tokens = lm.token_strings(prompt)
    here = tokens.index(capital)
    places = {repr(capital): here, say("the last token"): -1}
    facts = [fact for fact, ok in zip(found.about["prompts"], found["right"].tolist(), strict=True) if ok]
    facts = [fact for fact in facts if differ(lm.token_strings(fact["prompt"]), tokens) == [here]]
    others = trace(lm, [fact["prompt"] for fact in facts])
    wanted = torch.tensor([lm.token_id(fact["target"]) for fact in facts])
    first = Measure(lambda outcome: outcome.edited.argmax(-1))
    for name, place in places.items():
        for block in blocks:
            streams = others.resid[block + 1][:, [place]].split(1)  # (1, 1, d_model) each
            patches = [patch_block(block, stream, positions=place) for stream in streams]
            hits = int((sweep_edits(lm, prompt, patches, measure=first, progress=False) == wanted).sum())
            print(
                say(
                    "Patched at {place} after block {block}: the other country comes first on {hits} of {all}.",
                    place=name,
                    block=block,
                    hits=hits,
                    all=len(facts),
                )
            )


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


def show_removal(name: str, pairs: Measured, blocks: Measured) -> None:
    """Show what the most removed blocks cost, added up and together, for both ways to choose: on the texts that chose them, on
    the others, and on all; then "together" minus "added up" with its 95 % interval over texts.

    pairs, blocks: the stored parts of the model `name`.
    """
    few, texts = len(pairs.about["prompts"]), len(pairs.labels["window"])
    ways = {
        say("cheapest"): ("cheapest singles", "lowest sum", "cheapest together", "cheapest on all text"),
        say("greedy"): ("greedy order", "greedy sum", "greedy", "greedy on all text"),
    }
    sets = {say("the {others} others", others=texts - few): few, say("all {texts}", texts=texts): 0}
    rows = {
        say("the {few} texts that chose them", few=few): [pairs[key][-1] for way in ways.values() for key in way[1:3]]
    }
    more: dict[str, list[str]] = {}
    for label, start in sets.items():
        for way, (order, *_, on_all) in ways.items():
            summed = added_up(pairs, blocks, order)[start:, -1]
            together = pairs.at(on_all, measure="loss")[start:, -1]
            rows.setdefault(label, []).extend([summed.mean(), together.mean()])
            apart = together - summed
            error = 1.96 * float(apart.std()) / len(apart) ** 0.5
            more.setdefault(label, []).append(f"{way} {float(apart.mean()):+.2f} ± {error:.2f}")
    columns = [say("{way}: {what}", way=way, what=what) for way in ways for what in (say("added up"), say("together"))]
    count = pairs.labels["removed"][-1]
    caption = say("{count} blocks of {name} removed, rise of the loss in nats a token", count=count, name=name)
    show_table({row: [f"{float(v):.2f}" for v in values] for row, values in rows.items()}, caption, columns=columns)
    for label, said in more.items():
        print(say("Together minus added up, {texts}: {apart} (95 %)", texts=label, apart=", ".join(said)))


def show_prices(found: Mapping[str, Measured]) -> None:
    """Show what a million parameters cost in a block and in a head, and ways to compare them; the last is claim 5.4's.

    found: name of a model -> its stored part "prices".
    """
    with STORED.open(encoding="utf-8", newline="") as file:
        said = {row["model"]: row for row in csv.DictReader(file) if row["claim"] == "5.4"}
    here = {name: said[one.model] for name, one in found.items()}
    ledger = {n: re.findall(r"per parameter removed (\d+\.\d+)", row["measured"])[0] for n, row in here.items()}
    (texts,) = {row["of prompts"] for row in here.values()}
    caption = say("KL for each million parameters taken out, nats; ÷ is a ratio")
    show_table(price_rows(found, ledger, texts), caption, columns=list(found))


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
