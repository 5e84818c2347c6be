"""Compute again only what an edit changes: an edited pass starts at the first edited block of a clean one.

    replay = Replay(lm)
    clean, edited = replay(prompt, scale_block(8, 0.5))    # a clean pass, then block 8 and those after it
    clean, edited = replay(prompt, scale_block(8, 0.7))    # those blocks alone: the clean pass of a prompt is kept

Blocks are called as the modules they are, with what the clean pass called them with, and never with a filled cache, which
would show attention the keys from before the edit. Logits are computed for the last token only.

A restart cannot see everything. In train mode, under a live `with edit`, or while hooks that are not ours, functions in the
place of a library's or modules of your own classes are in the model, both passes are whole ones, each time. A clean pass is made
anew when the model or a setting that it computes under is another one since; helpers/snapshot.py says what is compared, and what
is not seen. That comparison reads all weights, which takes about half of a short pass; a panel's slider, between whose moves no
code runs, tells it so (`since`).

A restart edits this thread's calls alone, as a sweep does; a whole pass is edited as under a `with edit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import hooks
from .applying import check_edits, edit_here
from .edits import Edit, edit
from .live import edited_as_a_whole
from .models import LanguageModel, Tokens, check_model
from .say import translatable
from .snapshot import snapshot
from .tracing import Trace, trace

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """An edited pass, without gradient: resid (n_blocks + 1, batch, pos, d_model) as in `Trace`, final (batch, pos,
    d_model) after the final norm, last_logits (batch, vocabulary) at each prompt's last token.
    """

    resid: Tensor
    final: Tensor
    last_logits: Tensor


@dataclass(frozen=True)
class Clean(Run):
    """A clean pass: what each block's attention and MLP add to the stream too, (n_blocks, batch, pos, d_model) as in `Trace`."""

    attn: Tensor
    mlp: Tensor


@dataclass(frozen=True)
class _Recorded:
    tokens: Tokens
    run: Clean
    calls: list[Call]  # what each block was called with besides the stream: masks, positions

    def copy(self) -> Clean:
        """The pass to hand out, which its receiver may write into."""
        return Clean(*(value.clone() for value in vars(self.run).values()))


def _clean(seen: Trace) -> Clean:
    """What a Replay keeps of a trace: logits of every position would be a third of its memory, and only the last are read."""
    assert seen.final is not None
    return Clean(seen.resid, seen.final, seen.last_logits, seen.attn, seen.mlp)


class Replay:
    """Clean and edited passes of one model. Keeps the clean pass of the last prompt.

    Attributes: `lm`; `version`, a number that grows at a pass when the model is no longer what it was at the pass before,
    or when that cannot be told: what was measured at another version may be out of date.
    """

    def __init__(self, lm: LanguageModel, since: Callable[[], object] | None = None) -> None:
        """since: gives an equal value twice only if no code has run in between that may have written into weights; they are
        read once for each value then. Without it they are read at each call.
        """
        check_model(lm)
        self.lm, self._since, self._moment = lm, since, object()
        self.version = 0
        self._state: list[Any] | None = None
        self._kept: _Recorded | None = None

    def clean(self, prompt: str | Tensor | Tokens) -> Clean:
        """The clean pass, the kept one if it is still true. Raises BadPrompt, PromptTooLong."""
        return self._record(self.lm.encode(prompt)).copy()

    def __call__(self, prompt: str | Tensor | Tokens, *edits: Edit) -> tuple[Clean, Run]:
        """The clean pass and the edited one. Raises BadPrompt, PromptTooLong, and what `edit` raises, before any pass; BadEdit
        if another thread's `with` began or ended meanwhile.
        """
        check_edits(self.lm, edits)
        tokens = self.lm.encode(prompt)
        with edited_as_a_whole(self.lm, translatable("this replay")):
            clean = self._record(tokens)
            if not edits:
                return clean.copy(), clean.copy()
            # Only in a whole pass does each padded prompt count its own tokens.
            if not clean.calls or not tokens.mask.all():
                with edit(self.lm, *edits):
                    whole = trace(self.lm, tokens)
                assert whole.final is not None
                return clean.copy(), Run(whole.resid, whole.final, whole.last_logits)
            with (applied := edit_here(self.lm, *edits)):
                run = _from_block(self.lm, clean, min(one.block for one in edits))
                applied.check_ran()
            return clean.copy(), run

    def _record(self, tokens: Tokens) -> _Recorded:
        """The kept pass, or a new one; without calls where a restart would not see all that a pass does."""
        moment = object() if self._since is None else self._since()
        lm, kept = self.lm, self._kept
        state = snapshot(lm, self._state if moment == self._moment else None)
        self._moment = moment
        if state is None:
            self.version += 1
            self._state, self._kept = None, None
            return _Recorded(tokens, _clean(trace(lm, tokens)), [])
        if state != self._state:
            self.version += 1
            self._state, self._kept = state, None
        elif kept is not None and _same(kept.tokens, tokens):
            return kept
        calls: list[Call] = []

        def keep(args: tuple, kwargs: dict[str, Any]) -> None:
            calls.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

        handles: list[RemovableHandle] = []
        try:
            try:
                for block in lm.blocks:  # kept one by one: an interrupt in between shall lose none
                    handles.append(hooks.on_call(block, keep))
                run = _clean(trace(lm, tokens))  # asks for no cache
            finally:
                hooks.remove(handles)
        finally:
            hooks.remove(handles)  # once more: an interrupt may arrive during the first
        own = Tokens(tokens.ids.clone(), tokens.mask.clone())  # a caller may write into a tensor of ids
        self._kept = _Recorded(own, run, calls)
        return self._kept


@torch.no_grad()
def _from_block(lm: LanguageModel, clean: _Recorded, first: int) -> Run:
    """The pass from block `first` on, under the edits that are live now."""
    resid = torch.empty_like(clean.run.resid)
    resid[: first + 1] = clean.run.resid[: first + 1]
    for block in range(first, lm.n_blocks):
        args, kwargs = clean.calls[block]
        resid[block + 1] = hooks.first(lm.blocks[block](resid[block].clone(), *args, **kwargs))
    last = clean.tokens.last
    rows = torch.arange(len(last), device=last.device)
    return Run(resid, lm.final_norm(resid[-1]), lm.read_out(resid[-1][rows, last]))


def _same(kept: Tokens, tokens: Tokens) -> bool:
    return torch.equal(kept.ids, tokens.ids) and torch.equal(kept.mask, tokens.mask)
