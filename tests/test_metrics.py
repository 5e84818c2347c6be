"""Every metric against NumPy by hand."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tiny import tiny

from helpers import (
    correlation,
    correlation_per_dimension,
    errors,
    metrics,
    predictions,
    random_step_correlation,
    spread,
    sweep_blocks,
    text_damage,
    within_percentile,
)
from helpers.errors import BadValue, BlockOutOfRange
from helpers.measures import Outcome

SOME = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def streams(seed=0, shape=(4, 3, 5, 6)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


MASK = torch.tensor([[True] * 5, [True, True, False, False, False], [True] * 4 + [False]])


@SOME
@given(seed=st.integers(0, 10**6), first=st.booleans(), masked=st.booleans())
def test_distances_agree_with_numpy(seed, first, masked):
    clean, edited = streams(seed)
    mask = MASK if masked else None
    kept = MASK.numpy().copy() if masked else np.ones((3, 5), bool)
    kept[:, 0] &= first
    a, b = clean.numpy()[:, kept], edited.numpy()[:, kept]  # (points, kept tokens, d_model)
    norm = lambda x: np.sqrt((x**2).sum(axis=(1, 2)))  # noqa: E731
    arguments = {"include_first": first, "mask": mask}
    np.testing.assert_allclose(metrics.delta_norm(clean, edited, **arguments), norm(b - a), rtol=1e-12)
    np.testing.assert_allclose(metrics.relative_error(clean, edited, **arguments), norm(b - a) / norm(a), rtol=1e-12)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(metrics.cosine_similarity(clean, edited, **arguments), cosine.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(metrics.step_norm(clean, **arguments), norm(a[1:] - a[:-1]), rtol=1e-12)
    np.testing.assert_allclose(metrics.token_norms(clean), np.linalg.norm(clean.numpy(), axis=-1), rtol=1e-12)


def test_nothing_that_padding_holds_is_counted():
    clean, edited = streams()
    expected = [
        f(clean, edited, mask=MASK) for f in (metrics.delta_norm, metrics.relative_error, metrics.cosine_similarity)
    ]
    for junk in (float("nan"), 1e9):
        spoiled = edited.clone()
        spoiled[:, ~MASK] = junk
        found = [
            f(clean, spoiled, mask=MASK)
            for f in (metrics.delta_norm, metrics.relative_error, metrics.cosine_similarity)
        ]
        assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@SOME
@given(logits=st.lists(st.floats(-300, 300), min_size=2, max_size=9), data=st.data())
def test_predictions_agree_with_numpy(logits, data):
    other = data.draw(st.lists(st.floats(-300, 300), min_size=len(logits), max_size=len(logits)))
    token = data.draw(st.integers(0, len(logits) - 1))
    x, y = np.array(logits), np.array(other)
    lx, ly = (v - v.max() - np.log(np.exp(v - v.max()).sum()) for v in (x, y))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    np.testing.assert_allclose(metrics.log_prob(a, token), lx[token], atol=1e-10)
    np.testing.assert_allclose(metrics.logit_difference(a, token, 0), x[token] - x[0], atol=1e-12)
    np.testing.assert_allclose(metrics.kl(a, b), (np.exp(lx) * (lx - ly)).sum(), atol=1e-9)
    assert metrics.kl(a, b) >= 0 and metrics.kl(a, a) == 0


def test_one_token_for_each_row():
    logits = streams(shape=(3, 7))[0]
    found = metrics.log_prob(logits, torch.tensor([2, 0, 6]))
    assert found.equal(torch.stack([metrics.log_prob(logits[row], token) for row, token in enumerate((2, 0, 6))]))
    for listed in ([2, 0, 6], (2, 0, 6), np.array([2, 0, 6]), [torch.tensor(2), 0, np.int64(6)]):
        assert metrics.log_prob(logits, listed).equal(found)


def test_sixteen_bits_are_computed_in_thirty_two():
    clean, edited = streams()
    found = metrics.delta_norm(clean.bfloat16(), edited.bfloat16())
    assert found.dtype == torch.float32
    assert found.equal(metrics.delta_norm(clean.bfloat16().float(), edited.bfloat16().float()))
    assert metrics.log_prob(clean.half(), 1).dtype == torch.float32


def test_top_k_gives_texts_and_probabilities_in_order():
    lm = tiny("gpt2")
    lm.tokenizer = type("Digits", (), {"decode": staticmethod(lambda ids: f" {ids[0]}")})
    found = metrics.top_k(lm, torch.tensor([[0.0, 2.0, 1.0, -5.0]]), 3)
    probabilities = np.exp([2.0, 1.0, 0.0]) / np.exp([0.0, 2.0, 1.0, -5.0]).sum()
    assert [text for text, _ in found] == [" 1", " 2", " 0"]
    assert [p for _, p in found] == pytest.approx(list(probabilities), abs=1e-6)


def test_the_interval_is_the_percentiles_of_resampled_means():
    values = torch.tensor([0.5, -1.0, 3.0, 2.0, 0.0])
    mean, low, high = metrics.bootstrap_interval(values, torch.Generator().manual_seed(3), level=0.9, draws=500)
    picks = torch.randint(5, (500, 5), generator=torch.Generator().manual_seed(3)).numpy()
    means = values.numpy().astype(float)[picks].mean(axis=1)
    assert mean == pytest.approx(0.9) and (low, high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))


def test_the_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        values = torch.randn(40, generator=generator) + 1
        _, low, high = metrics.bootstrap_interval(values, generator, draws=300)
        hits += low <= 1 <= high
    assert 0.90 <= hits / 200 <= 0.98


def test_survival_is_the_component_along_the_injected_error():
    clean = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = torch.zeros_like(clean)
    injected = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    across = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    across -= injected * (across * injected).sum() / (injected * injected).sum()
    error[2], error[3] = injected, -0.25 * injected + 7 * across  # what is added at right angles does not count
    found = metrics.survival(clean, clean + error, block=1)
    assert torch.allclose(found, torch.tensor([0, 0, 1, -0.25], dtype=torch.float64), atol=1e-12)
    kept = metrics.survival(clean, clean + error, block=1, include_first=False)
    by_hand = (error[3, :, 1:] * injected[:, 1:]).sum() / (injected[:, 1:] ** 2).sum()
    assert float(kept[3]) == pytest.approx(float(by_hand))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    masked = metrics.survival(clean, clean + error, block=1, mask=mask)
    real = mask[:, :, None]
    assert float(masked[3]) == pytest.approx(float((error[3] * injected * real).sum() / (injected**2 * real).sum()))


def test_survival_of_nothing_is_told():
    clean = torch.ones(4, 1, 3, 5)
    with pytest.raises(BadValue, match="nothing changed right after block 1"):
        metrics.survival(clean, clean.clone(), 1)
    for block in (3, -1, 1.5):
        with pytest.raises(BlockOutOfRange, match="blocks 0 to 2"):
            metrics.survival(clean, clean + 1, block)


def test_what_is_impossible_gives_no_nan():
    """Logits of minus infinity, as masked vocabularies have them: the same numbers as without those tokens."""
    from tiny import tiny

    lm, g = tiny("gpt2"), torch.Generator().manual_seed(0)
    clean, edited = (torch.randn(n, 6, 97, dtype=torch.float64, generator=g) for n in (1, 3))
    clean = clean.expand(3, 6, 97)
    allowed = torch.arange(97) % 3 > 0
    masked = [logits.masked_fill(~allowed, -torch.inf) for logits in (clean, edited)]
    assert (
        torch.allclose(metrics.kl(masked[0], masked[1]), metrics.kl(clean[..., allowed], edited[..., allowed]))
        and metrics.kl(masked[0], masked[0]).eq(0).all()
    )
    assert metrics.kl(clean, masked[1]).eq(torch.inf).all()  # what was possible is impossible now

    ids = torch.tensor([1, 4, 7, 8, 10, 11])
    small = Outcome(edited[..., allowed], clean[0][..., allowed], allowed.cumsum(0)[ids] - 1, 0)
    assert torch.allclose(text_damage().compute(Outcome(masked[1], masked[0][0], ids, 0)), text_damage().compute(small))
    at = Outcome(masked[1][:, -1], masked[0][0, -1], ids, 0)
    found = predictions(lm, 4, 5).compute(at)
    reduced = predictions(lm, 2, 3).compute(Outcome(small.edited[:, -1], small.clean[-1], ids, 0))  # their places there
    assert torch.allclose(found, reduced)
    impossible = predictions(lm, 3, 6).compute(at)
    assert (impossible[:, [0, 4, 5]] == 0).all() and not impossible.isnan().any()


@pytest.mark.parametrize("target", [torch.tensor(5), np.int64(5), torch.tensor([5])])
def test_targets_are_numbers_of_any_library(target):
    from tiny import tiny

    lm, ids = tiny("gpt2"), torch.arange(2, 8)[None]
    assert sweep_blocks(lm, ids, target).equal(sweep_blocks(lm, ids, 5))


@pytest.mark.parametrize("target", [True, torch.tensor(5.0), 2.5, [True], torch.tensor(True)])
def test_what_is_no_token_is_no_target(target):
    from tiny import tiny

    with pytest.raises(errors.TargetIsNotOneToken, match=r"must be text.*or a token id"):
        sweep_blocks(tiny("gpt2"), torch.arange(2, 8)[None], target)


EMPTY = "no token is left to measure"


@pytest.mark.parametrize("measure", [metrics.delta_norm, metrics.relative_error, metrics.cosine_similarity])
def test_a_measure_of_nothing_is_no_number(measure):
    clean, edited = streams()
    masks = torch.zeros(clean.shape[1:3], dtype=torch.bool), torch.ones(clean.shape[1:3], dtype=torch.bool)
    masks[1][:, 1:] = False
    for call in (
        lambda: measure(clean, edited, mask=masks[0]),
        lambda: measure(clean, edited, include_first=False, mask=masks[1]),
        lambda: measure(clean[:, :0], edited[:, :0]),
        lambda: measure(clean[:, :, :0], edited[:, :, :0]),
    ):
        with pytest.raises(BadValue, match=EMPTY):
            call()
    with pytest.raises(BadValue, match=EMPTY):
        metrics.step_norm(clean, mask=masks[0])
    with pytest.raises(BadValue, match="of no token at all"):
        metrics.kl(clean[..., :0], clean[..., :0])


def test_nothing_is_relative_to_a_stream_of_zeros():
    clean, edited = streams()
    clean[2] = 0
    with pytest.raises(BadValue, match="zero at point 2"):
        metrics.relative_error(clean, edited)
    assert metrics.cosine_similarity(clean, edited)[2] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_stored_in_sixteen_bits_is_as_exact_as_thirty_two(dtype):
    """Against the same stored numbers in float64; in 16 bits the worst would be off by a hundredth."""
    draw = torch.Generator().manual_seed(0)
    clean = (3 * torch.randn(5, 2, 7, 64, generator=draw) + 20).to(dtype)
    edited = (clean.float() + torch.randn(5, 2, 7, 64, generator=draw)).to(dtype)
    wide = clean.double(), edited.double()
    pairs = [
        metrics.delta_norm,
        metrics.relative_error,
        metrics.cosine_similarity,
        lambda a, b: metrics.survival(a, b, 1),
    ]
    for measure in (
        *pairs,
        lambda a, b: spread(b),
        lambda a, b: metrics.step_norm(b),
        lambda a, b: metrics.token_norms(b),
        lambda a, b: metrics.log_prob(b, 5),
        lambda a, b: metrics.logit_difference(b, 5, 6),
        metrics.kl,
        lambda a, b: correlation_per_dimension(a[2], b[2]),
        lambda a, b: torch.tensor(correlation(a[2], b[2])),
        lambda a, b: torch.tensor(random_step_correlation(a[2], b[2])),
    ):
        found, expected = measure(clean, edited), measure(*wide)
        assert found.dtype != dtype
        torch.testing.assert_close(found.double(), expected.double(), rtol=3e-6, atol=3e-6)
    assert within_percentile(clean[2], edited[2], 90).equal(within_percentile(wide[0][2], wide[1][2], 90))
