"""Numbers from tensors: pure functions that know no model.

Points of the residual stream come first: `resid` tensors are (n_points, batch, pos, d_model), as in `Trace.resid`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import errors
from .models import LanguageModel


def _pair(clean: Tensor, edited: Tensor, include_first: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if clean.shape != edited.shape:
        raise errors.BadValue(
            f"the two runs differ in shape, {tuple(clean.shape)} and {tuple(edited.shape)}: trace the same prompt in both."
        )
    return _select(clean, include_first, mask), _select(edited, include_first, mask)


def _select(resid: Tensor, include_first: bool, mask: Tensor | None) -> Tensor:
    """(n_points, batch, pos, d_model) with the first token and padding left out if asked."""
    if resid.ndim != 4:
        raise errors.BadValue(f"expected (points, batch, pos, d_model), but this has shape {tuple(resid.shape)}.")
    if mask is not None:
        resid = resid * mask[None, :, :, None].to(resid)
    if not include_first:
        if resid.shape[2] < 2:
            raise errors.BadValue("the prompt has one token: nothing is left without the first.")
        if mask is not None and not mask[:, 0].all():
            raise errors.BadValue("the first token is not in the first column: pad on the right to leave it out.")
        resid = resid[:, :, 1:]
    return resid


def delta_norm(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Δ: Frobenius norm of the difference at each point, over batch, tokens and dimensions. (n_points,), in the stream's unit.

    mask: (batch, pos), False where padded, as in `Trace.mask`.
    """
    a, b = _pair(clean, edited, include_first, mask)
    return (a - b).flatten(1).norm(dim=1)


def relative_error(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Δ divided by the clean stream's own norm at the same point. (n_points,), no unit: 1 is an error as long as the stream."""
    a, b = _pair(clean, edited, include_first, mask)
    return (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)


def cosine_similarity(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the cosine between the clean and the edited stream. (n_points,), −1 to 1: 1 is the same direction."""
    a, b = _pair(clean, edited, include_first, None)
    cosines = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    if mask is None:
        return cosines.flatten(1).mean(dim=1)
    weights = mask[:, -a.shape[2] :].to(cosines)
    return (cosines * weights).flatten(1).sum(dim=1) / weights.sum()


def step_norm(resid: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """‖H_(l+1) − H_l‖_F for each block l. (n_points − 1,); exactly 0 at a skipped block."""
    kept = _select(resid, include_first, mask)
    return (kept[1:] - kept[:-1]).flatten(1).norm(dim=1)


def token_norms(resid: Tensor) -> Tensor:
    """Length of the stream of each token. (n_points, batch, pos)."""
    return resid.norm(dim=-1)


def log_prob(logits: Tensor, token: int | Tensor) -> Tensor:
    """Natural log-probability of a token id (or of one id per row), from logits (…, vocabulary) to (…)."""
    logprobs = logits.log_softmax(dim=-1)
    if isinstance(token, int):
        return logprobs[..., token]
    return logprobs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def logit_difference(logits: Tensor, target: int, contrast: int) -> Tensor:
    """logit(target) − logit(contrast), in nats of log odds: 0 when both are equally probable. (…)."""
    return logits[..., target] - logits[..., contrast]


def kl(clean_logits: Tensor, edited_logits: Tensor) -> Tensor:
    """KL divergence of the edited prediction from the clean one, KL(clean ‖ edited), in nats, over the last axis. (…)."""
    clean, edited = clean_logits.log_softmax(-1), edited_logits.log_softmax(-1)
    return (clean.exp() * (clean - edited)).sum(-1).clamp(min=0)


def top_k(lm: LanguageModel, logits: Tensor, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable next tokens as (text, probability), from logits (vocabulary,) or (1, vocabulary)."""
    if logits.numel() != logits.shape[-1]:
        raise errors.BadValue(f"top_k needs the logits of one position, but this has shape {tuple(logits.shape)}.")
    if not 1 <= k <= logits.shape[-1]:
        raise errors.BadValue(f"k = {k} cannot be used: choose from 1 to {logits.shape[-1]}.")
    probabilities, ids = logits.flatten().softmax(-1).topk(k)
    return [(lm.tokenizer.decode([i]), p) for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)]


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of (n,) values and its percentile bootstrap interval (Efron 1979)."""
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    if values.numel() < 2:
        raise errors.BadValue(f"an interval needs two values or more, but there is {values.numel()}.")
    if not 0 < level < 1:
        raise errors.BadValue(f"level {level} cannot be used: choose a number between 0 and 1, for example 0.95.")
    picks = torch.randint(values.numel(), (draws, values.numel()), generator=generator)
    means = values[picks].mean(dim=1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return values.mean().item(), low, high
