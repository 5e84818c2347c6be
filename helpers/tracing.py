"""One forward pass, and everything the lessons look at.

    clean = trace(lm, "Berlin is the capital of")
    clean.resid[3]        # the residual stream that enters block 3, (batch, pos, d_model)

The recorders are hooks of our own, registered last and only for this pass, so they see every edit and every hook of the
learner's, whatever ran before; `output.hidden_states` is never read (helpers/hooks.py explains why).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import errors, hooks
from .models import LanguageModel, Tokens, check_model


@dataclass(frozen=True)
class Trace:
    """What one pass left behind. All tensors are copies without gradient, in the model's dtype.

    resid[l], (batch, pos, d_model), enters block l and resid[n_blocks] leaves the last block, before the final norm. In a
    pass without edits resid[l + 1] == resid[l] + attn[l] + mlp[l]. At a skipped block attn and mlp are what it computed
    in vain.
    """

    tokens: Tensor  # (batch, pos) ids
    mask: Tensor  # (batch, pos) False where padded
    resid: Tensor  # (n_blocks + 1, batch, pos, d_model)
    attn: Tensor  # (n_blocks, batch, pos, d_model): what attention adds to the stream
    mlp: Tensor  # (n_blocks, batch, pos, d_model): what the MLP adds
    heads: Tensor  # (n_blocks, batch, pos, n_heads, d_head): the input of the output projection
    final: Tensor | None  # (batch, pos, d_model) after the final norm; None if the pass stopped before
    logits: Tensor | None  # (batch, pos, vocabulary); None if the pass stopped before

    @property
    def last_logits(self) -> Tensor:
        """(batch, vocabulary) logits at each prompt's last real token. Raises BadValue if the pass stopped before."""
        if self.logits is None:
            raise errors.BadValue("this trace stopped at a block and has no logits: trace again without stop_after.")
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        return self.logits[rows, Tokens(self.tokens, self.mask).last]


class _Stop(Exception):
    """Raised by a recorder to leave the forward pass once all that was asked for is there."""


@torch.no_grad()
def trace(lm: LanguageModel, prompt: str | Sequence[str] | Tensor | Tokens, stop_after: int | None = None) -> Trace:
    """Run one pass and record the residual stream, both deltas and the heads of every block, the final state and logits.

    prompt: text, a list of texts (padded on the right), ids, or Tokens from `lm.encode`. stop_after: leave the pass after
    this block, without the work of the later ones; resid then ends with the output of that block, and final and logits
    are None. The model's mode and hooks stay as they are. Raises BadPrompt, PromptTooLong, BlockOutOfRange.
    """
    check_model(lm)
    tokens = lm.encode(prompt)
    n = lm.n_blocks if stop_after is None else lm.check_block(stop_after) + 1
    shape = tokens.ids.shape
    room = {"dtype": lm.dtype, "device": lm.device}
    resid = torch.empty(n + 1, *shape, lm.d_model, **room)  # type: ignore[call-overload]
    attn = torch.empty(n, *shape, lm.d_model, **room)  # type: ignore[call-overload]
    mlp = torch.empty(n, *shape, lm.d_model, **room)  # type: ignore[call-overload]
    heads = torch.empty(n, *shape, lm.n_heads, lm.d_head, **room)  # type: ignore[call-overload]
    final: list[Tensor] = []
    handles: list[RemovableHandle] = []

    def keep(into: Tensor):
        def see(value: Tensor, _: Tensor | None = None) -> None:
            into.copy_(value.reshape(into.shape))  # a copy: a hook that edits in place later must not reach it

        return see

    def stop(value: Tensor) -> None:
        resid[n].copy_(value)
        raise _Stop

    try:
        try:
            for block in range(n):
                handles.append(hooks.on_input(lm.blocks[block], keep(resid[block])))
                if lm.parts.functional_dropout and lm.model.training:
                    _differences(lm, block, resid[block], attn[block], mlp[block], handles)
                else:
                    handles += hooks.on_site(lm, "attention", block, keep(attn[block]))
                    handles += hooks.on_site(lm, "mlp", block, keep(mlp[block]))
                handles += hooks.on_site(lm, "heads", block, keep(heads[block]))
            if n < lm.n_blocks:
                handles.append(hooks.on_input(lm.blocks[n], stop))
            elif stop_after is not None:
                handles.append(hooks.on_input(lm.final_norm, stop))
            else:
                handles.append(hooks.on_input(lm.final_norm, keep(resid[n])))
                handles.append(hooks.on_output(lm.final_norm, lambda value, _: final.append(value.clone())))
            try:
                logits = lm.model(**lm.inputs(tokens)).logits
            except _Stop:
                return Trace(tokens.ids, tokens.mask, resid, attn, mlp, heads, None, None)
        finally:
            hooks.remove(handles)
    finally:
        hooks.remove(handles)  # once more: an interrupt may arrive during the first
    return Trace(tokens.ids, tokens.mask, resid, attn, mlp, heads, final[0], logits)


def _differences(
    lm: LanguageModel, block: int, resid: Tensor, attn: Tensor, mlp: Tensor, handles: list[RemovableHandle]
) -> None:
    """Where dropout is no module, what is added to the stream is only visible as a difference of the stream itself."""
    middle = torch.empty_like(resid)

    def before_mlp(value: Tensor) -> None:
        middle.copy_(value.reshape(middle.shape))
        attn.copy_(middle - resid)

    def after(value: Tensor, _: Tensor) -> None:
        mlp.copy_(value - middle)

    handles.append(hooks.on_input(lm.part(block, lm.parts.before_mlp), before_mlp))
    # Ahead of the edits: their change to the block's output is not the MLP's.
    handles.append(hooks.on_output(lm.blocks[block], after, prepend=True))
