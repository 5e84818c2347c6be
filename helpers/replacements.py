"""What an ablated head's output is replaced by: zero, a mean, its output on another prompt, or a tensor of yours.

mean_heads(lm, prompts)                  # (n_blocks, pos, n_heads, d_head): one mean for each position, from the end
mean_heads(lm, prompts, pooled=True)     # (n_blocks, n_heads, d_head): one mean over all tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import errors
from .models import LanguageModel, Tokens, check_model
from .tracing import trace

Prompts = str | Sequence[str] | Tensor | Tokens
Replacement = Literal["zero", "mean", "pooled mean", "resample"]
CHUNK = 768  # tokens in a block at once: enough to read weights rarely, few enough for what the MLP computes with


@torch.no_grad()
def mean_heads(lm: LanguageModel, prompts: Prompts, *, pooled: bool = False, chunk: int = CHUNK) -> Tensor:
    """(n_blocks, pos, n_heads, d_head): each head's output at each position, averaged over the prompts (Wang et al. 2022).

    Positions are counted back from the last token, so that prompts of one form but different lengths meet there: [:, -1]
    is the mean at the last token, and pos is the length of the longest prompt. Where a prompt is shorter, its first
    token's output stands in. pooled: instead one mean over all tokens of all prompts, (n_blocks, n_heads, d_head), which
    also removes what a head says at a position on every prompt. chunk: tokens at once. Raises what `lm.encode` raises.
    """
    check_model(lm)
    return _means(lm, prompt_rows(lm, prompts), pooled, chunk)


def _means(lm: LanguageModel, rows: list[Tensor], pooled: bool, chunk: int) -> Tensor:
    longest = max(len(row) for row in rows)
    shape = (lm.n_heads, lm.d_head) if pooled else (longest, lm.n_heads, lm.d_head)
    total = torch.zeros(lm.n_blocks, *shape, device=lm.device, dtype=torch.float64)
    at_once = max(1, chunk // longest)
    # A model with two sets of rotary positions gives a whole batch those of its longest prompt.
    limit = lm.longrope_limit or longest
    sets = [[row for row in rows if (len(row) > limit) == long] for long in (False, True)]
    for some in (part[k : k + at_once] for part in sets for k in range(0, len(part), at_once)):
        heads = trace(lm, padded(some), stop_after=lm.n_blocks - 1).heads
        for row, own in zip(some, heads.unbind(1), strict=True):
            own = own[:, : len(row)].double()  # (n_blocks, pos, n_heads, d_head)
            total += own.sum(1) if pooled else from_the_end(own, longest)
    return (total / (sum(len(row) for row in rows) if pooled else len(rows))).to(lm.dtype)


def from_the_end(values: Tensor, length: int) -> Tensor:
    """(n_blocks, length, ...) from (n_blocks, pos, ...): last positions meet, and the first stands in where there is none."""
    position = torch.arange(length, device=values.device) + values.shape[1] - length
    return values[:, position.clamp(min=0)]


def head_values(
    lm: LanguageModel,
    rows: list[Tensor],
    replacement: Replacement | Tensor,
    reference: list[Tensor] | None,
    generator: torch.Generator | None,
    chunk: int,
) -> Callable[[list[int]], Tensor]:
    """A function of the numbers of some prompts, all of one length: what their heads become.

    It gives (n_blocks, prompts or 1, pos or 1, n_heads, d_head). rows: (pos,) ids of each swept prompt; reference: those
    of the prompts that means and other prompts' outputs are taken from, None for the swept ones. Raises BadValue.
    """
    if isinstance(replacement, str) and replacement == "resample":
        return _resampled(lm, rows, reference, generator)
    if isinstance(replacement, str) and replacement == "mean" and reference is None and len(rows) < 2:
        raise errors.BadValue(
            "the mean per position over one prompt is that prompt's own output, and nothing would change: "
            "sweep two or more prompts, pass some as reference=, or use replacement='pooled mean'."
        )
    if isinstance(replacement, str) and replacement in ("mean", "pooled mean"):
        value = _means(lm, rows if reference is None else reference, replacement == "pooled mean", chunk)
    else:
        value = _heads_tensor(lm, replacement, max(len(row) for row in rows))
    if value.ndim == 3:
        return lambda chosen: value[:, None, None]
    return lambda chosen: from_the_end(value, len(rows[chosen[0]])).unsqueeze(1)


def prompt_rows(lm: LanguageModel, prompts: Prompts) -> list[Tensor]:
    """(pos,) ids of each prompt, without padding."""
    tokens = lm.encode(prompts)
    return [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def padded(rows: list[Tensor]) -> Tokens:
    """Rows of ids (pos,) side by side, padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return Tokens(ids, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])


def _heads_tensor(lm: LanguageModel, replacement: object, longest: int) -> Tensor:
    """(n_blocks, n_heads, d_head), or (n_blocks, pos, n_heads, d_head) with a position for each of the longest prompt's, or one."""
    shape: tuple[int, ...] = (lm.n_blocks, lm.n_heads, lm.d_head)
    if isinstance(replacement, str) and replacement == "zero":
        replacement = torch.zeros(())
    if not isinstance(replacement, Tensor):
        raise errors.BadValue(
            "replacement {replacement!r} is unknown: choose 'zero', 'mean', 'pooled mean', 'resample', or a tensor.",
            replacement=replacement,
        )
    if replacement.ndim == 4:
        if 1 < replacement.shape[1] < longest:
            raise errors.BadValue(
                "the replacement has {n_positions} positions, and the longest prompt has {longest}: give one for each, "
                "counted from the end, or one for all, of shape {right_shape}.",
                n_positions=replacement.shape[1],
                longest=longest,
                right_shape=shape,
            )
        shape = (lm.n_blocks, replacement.shape[1], lm.n_heads, lm.d_head)
    try:
        return replacement.to(device=lm.device, dtype=lm.dtype).broadcast_to(shape)
    except RuntimeError:
        raise errors.BadValue(
            "the replacement has shape {shape}, which does not broadcast to (n_blocks, n_heads, d_head) = "
            "{right_shape}, nor to (n_blocks, pos, n_heads, d_head): what differs between prompts is for "
            "sweep_edits(lm, prompts, [replace_heads(block, head, value), ...]).",
            shape=tuple(replacement.shape),
            right_shape=(lm.n_blocks, lm.n_heads, lm.d_head),
        ) from None


def _resampled(
    lm: LanguageModel, rows: list[Tensor], reference: list[Tensor] | None, generator: torch.Generator | None
) -> Callable[[list[int]], Tensor]:
    """Each prompt's partner is drawn now, once: never itself, if the partners are the swept prompts."""
    if not isinstance(generator, torch.Generator):
        raise errors.BadValue(
            "resample draws other prompts: pass generator=torch.Generator().manual_seed(0), so that it can be repeated."
        )
    same, pool = reference is None, rows if reference is None else reference
    if same and len(pool) < 2:
        raise errors.BadValue("resample needs other prompts: sweep two or more, or pass some as reference=.")
    drawn = torch.randint(int(same), len(pool), (len(rows),), generator=generator)
    partner = ((torch.arange(len(rows)) + drawn) % len(pool) if same else drawn).tolist()

    def values_of(chosen: list[int]) -> Tensor:
        found = []
        for i in chosen:
            heads = trace(lm, pool[partner[i]], stop_after=lm.n_blocks - 1).heads[:, 0]
            found.append(from_the_end(heads, len(rows[i])))
        return torch.stack(found, dim=1)

    return values_of
