"""Numbers from tensors: pure functions that know no model.

Points of the residual stream come first: `resid` tensors are (n_points, batch, pos, d_model), as in `Trace.resid`.
Lengths are in the stream's own unit, logarithms natural (nats). What is stored in 16 bits is computed in 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor

from . import errors
from .checks import whole, whole_numbers, wide
from .models import LanguageModel


def _pair(clean: Tensor, edited: Tensor, include_first: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    a, b = _select(clean, include_first, mask), _select(edited, include_first, mask)
    if clean.shape != edited.shape:
        raise errors.BadValue(
            "the two runs differ in shape, {clean_shape} and {edited_shape}: trace the same prompt in both.",
            clean_shape=tuple(clean.shape),
            edited_shape=tuple(edited.shape),
        )
    return a, b


def check_mask(mask: Tensor, resid: Tensor) -> None:
    """Raises BadValue unless the mask is bool, with one place for each token of `resid`."""
    if mask.dtype != torch.bool or mask.shape != resid.shape[1:3]:
        raise errors.BadValue(
            "the mask must be bool of shape {right_shape}, but this is {shape} {dtype}: pass Trace.mask.",
            right_shape=tuple(resid.shape[1:3]),
            shape=tuple(mask.shape),
            dtype=mask.dtype,
        )


def _select(resid: Tensor, include_first: bool, mask: Tensor | None) -> Tensor:
    """(n_points, batch, pos, d_model) with padding set to 0, and without the first token if asked. Never of no token."""
    resid = wide(resid)
    if resid.ndim != 4:
        raise errors.BadValue(
            "expected (points, batch, pos, d_model), but this has shape {shape}: pass for example trace(...).resid.",
            shape=tuple(resid.shape),
        )
    if mask is not None:
        check_mask(mask, resid)
        resid = resid.masked_fill(~mask[None, :, :, None], 0)  # no product: padding may hold NaN
    if not include_first:
        if resid.shape[2] < 2:
            raise errors.BadValue(
                "the prompt has one token, so nothing is left without the first: give a longer prompt."
            )
        if mask is not None and not mask[:, 0].all():
            raise errors.BadValue("the first token is not in the first column: pad on the right to leave it out.")
        resid = resid[:, :, 1:]
    if 0 in resid.shape[1:] or not (mask is None or mask[:, -resid.shape[2] :].any()):
        raise errors.BadValue(
            "no token is left to measure: the states are empty, or the mask leaves padding only; pass Trace.mask of the "
            "same pass."
        )
    return resid


def delta_norm(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Δ: Frobenius norm of the difference at each point, over batch, tokens and dimensions. (n_points,), in the stream's unit.

    include_first: whether the first token counts; where it is an outlier it hides the others. mask: (batch, pos), False
    where padded, as in `Trace.mask`. Raises BadValue.
    """
    a, b = _pair(clean, edited, include_first, mask)
    return (a - b).flatten(1).norm(dim=1)


def relative_error(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Δ divided by the clean stream's own norm at the same point. (n_points,), no unit: 1 is an error as long as the stream.

    Options as in `delta_norm`. Raises BadValue, also where the clean stream is zero.
    """
    a, b = _pair(clean, edited, include_first, mask)
    length = a.flatten(1).norm(dim=1)
    if (length == 0).any():
        raise errors.BadValue(
            "the clean stream is zero at point {point}, so no error is relative to it: use delta_norm.",
            point=(length == 0).nonzero()[0].item(),
        )
    return (a - b).flatten(1).norm(dim=1) / length


def cosine_similarity(clean: Tensor, edited: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the cosine between the clean and the edited stream. (n_points,), −1 to 1: 1 is the same direction.

    A token whose stream is zero has no direction, and counts as 0. Options as in `delta_norm`. Raises BadValue.
    """
    a, b = _pair(clean, edited, include_first, mask)
    cosines = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    if mask is None:
        return cosines.flatten(1).mean(dim=1)
    weights = mask[:, -a.shape[2] :].to(cosines)
    return (cosines * weights).flatten(1).sum(dim=1) / weights.sum()


def survival(
    clean: Tensor, edited: Tensor, block: int, include_first: bool = True, mask: Tensor | None = None
) -> Tensor:
    """How much of the error that was injected at `block` is still in the stream at each point. (n_points,), no unit.

    With e_l = edited − clean at point l, as one long vector over batch, tokens and dimensions, and e right after the edited
    block, point block + 1: ⟨e_l, e⟩ / ⟨e, e⟩. It is 1 right after the edit and 0 before it; less than 1 where later blocks
    wrote against the error, more where they wrote along it, and what they added at right angles to it does not count.
    Options as in `delta_norm`. Raises BlockOutOfRange, and BadValue, also where the edit changed nothing.
    """
    a, b = _pair(clean, edited, include_first, mask)
    number = whole(block)
    if number is None or not 0 <= number < len(a) - 1:
        raise errors.BlockOutOfRange(
            "block {block!r} does not exist: these runs have blocks 0 to {last_block}.",
            block=block,
            last_block=len(a) - 2,
        )
    error = (b - a).flatten(1)
    injected = error[number + 1]
    if not injected.any():
        raise errors.BadValue(
            "nothing changed right after block {number}, so no error can survive: choose another edit, such "
            "as factor 0.5.",
            number=number,
        )
    return error @ injected / (injected @ injected)


def step_norm(resid: Tensor, include_first: bool = True, mask: Tensor | None = None) -> Tensor:
    """‖H_(l+1) − H_l‖_F for each block l. (n_points − 1,); in the stream's unit, exactly 0 at a skipped block.

    Options as in `delta_norm`. Raises BadValue.
    """
    kept = _select(resid, include_first, mask)
    return (kept[1:] - kept[:-1]).flatten(1).norm(dim=1)


def token_norms(resid: Tensor) -> Tensor:
    """Length of the stream of each token. (n_points, batch, pos), in the stream's unit."""
    return wide(resid).norm(dim=-1)


def _check_token(logits: Tensor, token: object) -> int:
    """Raises BadValue unless this is one of the vocabulary's ids."""
    found, size = whole(token), logits.shape[-1]
    if found is None or not 0 <= found < size:
        raise errors.BadValue(
            "token id {token!r} does not exist: these logits are of tokens 0 to {previous_size}; "
            "lm.token_id(' Germany') finds an id.",
            token=token,
            previous_size=size - 1,
        )
    return found


def log_prob(logits: Tensor, token: int | Iterable[int] | Tensor) -> Tensor:
    """Natural log-probability of a token id (or of one id per row, (…)), from logits (…, vocabulary) to (…), in nats.

    Raises BadValue.
    """
    logprobs = wide(logits).log_softmax(dim=-1)
    if whole(token) is None and isinstance(token, Iterable) and not isinstance(token, Tensor | str):
        token = torch.tensor(list(whole_numbers(token, errors.BadValue, "token")), device=logits.device)
    if not isinstance(token, Tensor) or token.ndim == 0:
        return logprobs[..., _check_token(logits, token)]
    if token.shape != logits.shape[:-1]:
        raise errors.BadValue(
            "one token id for each row is needed, shape {right_shape}, but this has shape {shape}.",
            right_shape=tuple(logits.shape[:-1]),
            shape=tuple(token.shape),
        )
    for one in token.flatten().tolist():
        _check_token(logits, one)
    return logprobs.gather(-1, token.long().unsqueeze(-1)).squeeze(-1)


def logit_difference(logits: Tensor, target: int, contrast: int) -> Tensor:
    """logit(target) − logit(contrast), in nats of log odds: 0 when both are equally probable. (…). Raises BadValue."""
    logits = wide(logits)
    return logits[..., _check_token(logits, target)] - logits[..., _check_token(logits, contrast)]


def kl(clean_logits: Tensor, edited_logits: Tensor) -> Tensor:
    """KL divergence of the edited prediction from the clean one, KL(clean ‖ edited), in nats, over the last axis. (…).

    A difference of two logarithms: in 32 bits exact to about 1e-7, so that less than 1e-6 says no more than "about the
    same". Raises BadValue.
    """
    clean, edited = wide(clean_logits).log_softmax(-1), wide(edited_logits).log_softmax(-1)
    if clean.shape != edited.shape:
        raise errors.BadValue(
            "the two predictions differ in shape, {clean_shape} and {edited_shape}: compare the same prompt.",
            clean_shape=tuple(clean.shape),
            edited_shape=tuple(edited.shape),
        )
    if not clean.shape[-1]:
        raise errors.BadValue("these predictions are of no token at all: pass logits over the vocabulary.")
    # What has no probability adds nothing, also where the difference of two infinities would be NaN.
    return (clean.exp() * (clean - edited).masked_fill(clean == -math.inf, 0)).sum(-1).clamp(min=0)


def top_k(lm: LanguageModel, logits: Tensor, k: int = 5) -> list[tuple[str, float]]:
    """The k most probable next tokens as (text, probability), from logits (vocabulary,) or (1, vocabulary).

    Raises BadValue.
    """
    logits, number = wide(logits), whole(k)
    if logits.numel() != logits.shape[-1]:
        raise errors.BadValue(
            "top_k needs the logits of one position, but this has shape {shape}: index one.", shape=tuple(logits.shape)
        )
    if number is None or not 1 <= number <= logits.shape[-1]:
        raise errors.BadValue(
            "k = {k!r} cannot be used: choose a whole number from 1 to {highest}.", k=k, highest=logits.shape[-1]
        )
    if lm.tokenizer is None:
        raise errors.BadValue(
            "this model was wrapped without a tokenizer, so its tokens have no text: wrap(model, tokenizer)."
        )
    probabilities, ids = logits.flatten().softmax(-1).topk(number)
    return [(lm.tokenizer.decode([i]), p) for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)]


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, level: float = 0.95, draws: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of (n,) values and its percentile bootstrap interval (Efron 1979), in the values' unit.

    Draws on the generator's device, in float64. Raises BadValue.
    """
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    if not values.isfinite().all():
        raise errors.BadValue("the values hold NaN or infinity: an interval needs finite numbers only.")
    if values.numel() < 2:
        raise errors.BadValue(
            "an interval needs two values or more, but there is {values}: measure more.", values=values.numel()
        )
    if not isinstance(level, Real) or not 0 < level < 1:
        raise errors.BadValue(
            "level {level!r} cannot be used: choose a number between 0 and 1, for example 0.95.", level=level
        )
    number = whole(draws)
    if number is None or number < 1:
        raise errors.BadValue(
            "draws = {draws!r} cannot be used: give a whole number, 1 or more, for example 2000.", draws=draws
        )
    if not isinstance(generator, torch.Generator):
        raise errors.BadValue(
            "generator must be a torch.Generator, for example torch.Generator().manual_seed(0), but this is "
            "{generator!r}.",
            generator=generator,
        )
    values = values.to(generator.device)
    picks = torch.randint(values.numel(), (number, values.numel()), generator=generator, device=generator.device)
    means = values[picks].mean(dim=1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64).to(means)).tolist()
    return values.mean().item(), low, high
