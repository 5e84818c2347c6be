import math

import pytest
import torch

from helpers import correlation, correlation_per_dimension, random_step_correlation, within_percentile
from helpers.errors import BadValue


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_r_of_a_line_is_one_and_of_its_mirror_minus_one():
    a = noise(1, 5, 8)
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert abs(correlation(noise(1, 50, 80), noise(1, 50, 80, seed=1))) < 0.05


def test_r_per_dimension_sees_through_what_all_tokens_share():
    offset = 10 * noise(1, 1, 40, seed=2)
    a, b = noise(1, 30, 40) + offset, noise(1, 30, 40, seed=1) + offset
    assert correlation(a, b) > 0.95
    assert abs(correlation_per_dimension(a, b).mean()) < 0.1
    expected = [correlation(a[0, :, d], b[0, :, d]) for d in range(40)]
    assert correlation_per_dimension(a, b).tolist() == pytest.approx(expected)


def test_the_mask_is_one_for_both_and_counts_sizes():
    a, b = noise(1, 10, 10), noise(1, 10, 10, seed=1)
    a[0, 0, 0], b[0, 3, 3], b[0, 4, 4] = -50, 40, 30
    keep = within_percentile(a, b, 97)
    assert (~keep).nonzero().tolist() == [[0, 0, 0], [0, 3, 3], [0, 4, 4]]
    assert within_percentile(a, b, 100).all()


def test_a_random_step_gives_the_expected_r():
    a = 3 * noise(1, 100, 200)
    b = a + 1.5 * noise(1, 100, 200, seed=1)
    assert random_step_correlation(a, b) == pytest.approx(correlation(a, b), abs=0.01)
    assert random_step_correlation(a, a) == 1


@pytest.mark.parametrize("step", [0.5, "all the same"])
def test_a_random_step_is_as_long_as_the_own_one_for_each_token(step):
    """Against the mean over drawn steps. A step that shifts every value alike has a length too, though no spread."""
    a = noise(1, 30, 50) * torch.linspace(0.2, 3, 30).double().view(1, 30, 1)
    b = a + (torch.full_like(a, 1.5) if step == "all the same" else step * a.abs() * noise(1, 30, 50, seed=1))
    drawn = [noise(1, 30, 50, seed=seed) for seed in range(2, 42)]
    steps = [one / one.norm(dim=-1, keepdim=True) * (b - a).norm(dim=-1, keepdim=True) for one in drawn]
    mean = sum(correlation(a, a + one) for one in steps) / len(steps)
    assert random_step_correlation(a, b) == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: correlation(noise(1, 2, 3), noise(1, 3, 2)), "differ in shape"),
        (lambda: correlation_per_dimension(noise(1, 2, 3), noise(1, 2, 3)), "three tokens or more"),
        (lambda: correlation(noise(1, 1, 1), noise(1, 1, 1)), "two values or more"),
        (lambda: random_step_correlation(noise(0), noise(0)), "two values or more"),
        (lambda: within_percentile(noise(0), noise(0), 99), "two values or more"),
        (lambda: correlation([1.0, 2.0], [1.0, 2.0]), "expected a tensor"),
        (lambda: within_percentile(noise(3), noise(3), 0), "percentile 0 "),
        (lambda: within_percentile(noise(3), noise(3), 101), "percentile 101 "),
    ],
)
def test_mistakes_are_told(call, said):
    with pytest.raises(BadValue, match=said):
        call()


def test_a_constant_has_no_correlation_whatever_rounding_makes_of_its_mean():
    a, constant, other = noise(1, 7, 5).float(), torch.full((1, 7, 5), 0.1), torch.full((1, 7, 5), 0.3)
    for pair in ((a, constant), (constant, a), (constant, other)):
        assert math.isnan(correlation(*pair)) and correlation_per_dimension(*pair).isnan().all()
    assert math.isnan(random_step_correlation(constant, a))
    mixed = torch.cat([a[..., :4], constant[..., :1]], -1)
    assert correlation_per_dimension(mixed, a).isnan().tolist() == [False] * 4 + [True]
