"""Six ways to run a model, and what a hook records in each.

modes_table(lm, prompt)     # the last line of a cell
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from helpers.hooks import on_output, on_site, remove
from helpers.models import LanguageModel, Tokens
from helpers.say import say, translatable
from helpers.tables import Table, make_table

WAYS: dict[str, tuple[bool, Callable[[], AbstractContextManager[object]], bool]] = {
    # train mode?, context, do the parameters require grad?
    "train()": (True, nullcontext, True),
    "eval()": (False, nullcontext, True),
    translatable("train() and no_grad()"): (True, torch.no_grad, True),
    translatable("eval() and no_grad()"): (False, torch.no_grad, True),
    translatable("eval() and inference_mode()"): (False, torch.inference_mode, True),
    translatable("eval() and requires_grad_(False)"): (False, nullcontext, False),
}
COLUMNS = (
    translatable("two passes differ by"),
    translatable("a hook on c_proj misses"),
    translatable("record requires grad"),
    translatable("graph nodes it keeps"),
    translatable("may be used with gradients later"),
)


def modes_table(lm: LanguageModel, prompt: str, block: int = 10, p: float = 0.1) -> Table:
    """What a hook on the MLP of one block keeps, without detaching, in six ways to run a copy of a GPT-2 with dropout of `p`.

    The first two columns are shares of what that MLP adds to the stream. Raises BlockOutOfRange, BadPrompt, PromptTooLong.
    """
    number, tokens = lm.check_block(block), lm.encode(prompt)
    other = copy.deepcopy(lm)
    for module in other.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(0)
        rows = {say(name): row(other, tokens, number, *way) for name, way in WAYS.items()}
    caption = say(
        "What a hook on the MLP of block {number} of the model records, with dropout of {p}", number=number, p=f"{p:g}"
    )
    return make_table(rows, caption, [say(column) for column in COLUMNS], corner=say("how it is run"))


def row(
    lm: LanguageModel, tokens: Tokens, block: int, train: bool, context: Callable[[], AbstractContextManager[object]], learning: bool,
) -> list[str | bool | int]:  # fmt: skip
    """One row of the table. Changes the model's mode and its parameters' requires_grad."""
    lm.model.train(train).requires_grad_(learning)
    with context():
        (one, at_c_proj), (other, _) = (recorded(lm, tokens, block) for _ in range(2))
    shares = [
        f"{100 * float((x - one.detach()).norm() / one.detach().norm()):.0f} %"
        for x in (other.detach(), at_c_proj.detach())
    ]
    return [*shares, one.requires_grad, graph_nodes(one), usable_later(one)]


def recorded(lm: LanguageModel, tokens: Tokens, block: int) -> tuple[Tensor, Tensor]:
    """What the MLP of this block adds, and what its c_proj puts out before the dropout, of one pass, not detached."""
    kept: dict[str, Tensor] = {}
    handles = on_site(lm, "mlp", block, lambda value, _: kept.update(added=value))
    handles.append(on_output(lm.part(block, "mlp.c_proj"), lambda value, _: kept.update(c_proj=value)))
    try:
        lm.model(**lm.inputs(tokens))
    finally:
        remove(handles)
    return kept["added"], kept["c_proj"]


def graph_nodes(tensor: Tensor) -> int:
    """How many steps of a computation stay in memory for as long as this tensor does."""
    seen: set[object] = set()
    todo = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


def usable_later(tensor: Tensor) -> bool:
    """Whether the tensor may enter a new computation that is differentiated."""
    try:
        tensor * torch.ones((), dtype=tensor.dtype, requires_grad=True)
    except RuntimeError:
        return False
    return True
