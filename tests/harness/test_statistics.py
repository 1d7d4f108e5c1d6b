"""Comparisons of few seeds against scipy and against going through every case."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hicl_d2.harness.statistics import bootstrap_interval, holm, sign_flip_p

SAMPLES = [
    [1.0],
    [0.5, -0.5],
    [2.3, 1.6, 1.7],
    [1.0, 1.0, 1.0, 1.0, 1.0],
    [0.3, -0.1, 0.8, 0.4, 0.2, 0.9],
    [0.1, 0.2, -0.3, 0.0, 0.4, 0.5, 0.6],
]


@pytest.mark.parametrize("values", SAMPLES)
def test_sign_flip_p_is_scipys_exact_one(values):
    if len(values) == 1:
        assert sign_flip_p(values) == 1.0
        return
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_the_smallest_p_is_two_in_two_to_the_n(n):
    assert sign_flip_p([1.0 + i for i in range(n)]) == 2 / 2**n


def test_sign_flip_p_of_many_pairs_is_drawn_and_close_to_the_t_test():
    values = list(np.random.default_rng(3).normal(0.4, 1.0, size=40))
    assert sign_flip_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip_p(values) == sign_flip_p(values)


@pytest.mark.parametrize("values", [v for v in SAMPLES if len(v) <= 6])
def test_the_interval_is_that_of_every_resample(values):
    means = [np.mean(choice) for choice in itertools.product(values, repeat=len(values))]
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert bootstrap_interval(values) == pytest.approx(tuple(expected))


def test_the_interval_of_many_values_is_near_scipys():
    values = np.random.default_rng(5).normal(2.0, 1.0, size=30)
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    expected = (found.confidence_interval.low, found.confidence_interval.high)
    assert bootstrap_interval(list(values)) == pytest.approx(expected, abs=0.03)


def test_holm_by_its_definition():
    p_values = [0.04, 0.01, 0.03, 0.2, 0.9]
    found = holm(p_values)
    m, ordered = len(p_values), sorted(p_values)
    for p, adjusted in zip(p_values, found, strict=True):
        rank = ordered.index(p)
        assert adjusted == max(min(1.0, (m - j) * ordered[j]) for j in range(rank + 1))
    assert holm([]) == []
    assert holm([0.5]) == [0.5]
