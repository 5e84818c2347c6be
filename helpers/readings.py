"""What the inside of a block holds in one pass, and how widely the stream spreads.

    attention_patterns(lm, prompt)[5, 0, 2]      # whom head 2 of block 5 looks at, (pos, pos)
    read_site(lm, prompt, "neurons", 5)          # the MLP's neurons after the activation function
    spread(trace(lm, prompt).resid)              # standard deviation of the stream at each point

All of them see live edits and a learner's own hooks, since they read last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import causes, errors, passes
from .checks import wide
from .hooks import on_site, only_here, remove
from .metrics import check_mask
from .models import LanguageModel, Tokens
from .say import say
from .sites import check_site

Prompt = str | Sequence[str] | Tensor | Tokens


@torch.no_grad()
def attention_patterns(lm: LanguageModel, prompt: Prompt) -> Tensor:
    """(n_blocks, batch, n_heads, pos, pos): each row sums to 1 over the tokens that the row's token may see, up to the dtype.

    To less than 1 where a head may look at nothing (GPT-OSS's sinks): what is missing went to the sink. Rows of padding mean
    nothing.

    Only eager attention computes these weights as numbers; the fused kernels (sdpa, flash) never write them down, and
    transformers then returns an empty tuple without a word. Raises BadValue in that case, DidNotRun if blocks are left out.
    """
    causes.refuse_compiled(lm.model)
    tokens = lm.encode(prompt)
    inputs = lm.inputs(tokens, right_padding=True) | {"output_attentions": True}
    attentions = passes.run(lm, inputs, mask=tokens.mask).attentions
    if not attentions or any(weights is None for weights in attentions):
        raise errors.BadValue(
            "this model's attention does not write its patterns down: load it with "
            "attn_implementation='eager', as load_model does."
        )
    if len(attentions) != lm.n_blocks:
        what = say(
            "this pass wrote {n_patterns} patterns for {n_blocks} blocks",
            n_patterns=len(attentions),
            n_blocks=lm.n_blocks,
        )
        times = 2 if len(attentions) > lm.n_blocks else 0
        raise causes.did_not_run(lm, what, "block", min(len(attentions), lm.n_blocks - 1), times)
    return torch.stack(list(attentions))


@torch.no_grad()
def read_site(lm: LanguageModel, prompt: Prompt, site: str, block: int) -> Tensor:
    """The value at one place of the model, a copy, as the rest of the pass sees it. Sites and shapes as in `helpers.change`.

    Raises BlockOutOfRange, BadEdit (no such site), BadPrompt; DidNotRun if a pass does not come by there just once.
    """
    lm.check_block(block)
    check_site(site)
    causes.refuse_compiled(lm.model)
    tokens = lm.encode(prompt)
    found: list[Tensor] = []
    handles = on_site(lm, site, block, only_here(lambda value, _: found.append(value.clone())))
    try:
        passes.run(lm, lm.inputs(tokens, right_padding=True), mask=tokens.mask)
    finally:
        remove(handles)
    if len(found) != 1:
        what = say("{site!r} of block {block} could not be read", site=site, block=block)
        raise causes.did_not_run(lm, what, site, block, len(found))
    return found[0]


def spread(resid: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Standard deviation of all coordinates of all tokens at each point of the stream. (n_points,), in the stream's unit.

    resid: (n_points, batch, pos, d_model), as in `Trace.resid`. include_first: whether the first token counts; where it
    carries a massive activation (Sun et al. 2024) it alone decides the result. mask: (batch, pos), False where padded, as in
    `Trace.mask`. What is stored in 16 bits is computed in 32. Raises BadValue.
    """
    resid = wide(resid)
    if resid.ndim != 4:
        raise errors.BadValue(
            "expected (points, batch, pos, d_model), but this has shape {shape}.", shape=tuple(resid.shape)
        )
    tokens = torch.ones(resid.shape[1:3], dtype=torch.bool, device=resid.device) if mask is None else mask
    check_mask(tokens, resid)
    if not include_first:
        tokens = tokens & (tokens.cumsum(1) > 1)
    values = resid[:, tokens].flatten(1)
    if values.shape[1] < 2:
        raise errors.BadValue(
            "fewer than two numbers are left to measure: the prompt has one token, and that is left out as the first, or the "
            "mask leaves padding only."
        )
    return values.std(dim=1)
