"""Counts and quantiles from fractions."""

from fractions import Fraction

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore._bank._outliers import inlying_patches
from skpatchcore._utils._fractions import (
    ceil_fraction,
    floor_fraction,
    lower_quantile,
    upper_quantile,
)
from skpatchcore._utils._patches import reduce_patches
from skpatchcore.calibration._p_values import check_supported, n_supported

HUNDREDTHS = range(1, 101)


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_hundredths_of_any_count_are_exact(kind):
    for percent in HUNDREDTHS:
        for n in range(1, 400):
            exact, fraction = Fraction(percent, 100) * n, kind(percent / 100)
            assert floor_fraction(fraction, n) == exact // 1
            assert ceil_fraction(fraction, n) == -(-exact // 1)


def test_quotients_of_whole_numbers_are_exact():
    for n in range(1, 200):
        for k in range(n + 1):
            assert floor_fraction(k / n, n) == ceil_fraction(k / n, n) == k


@pytest.mark.parametrize(
    ("fraction", "n", "count"), [(1 - 0.9, 100, 10), (0.7 + 0.1, 100, 80)]
)
def test_computed_fractions_are_interpreted_as_decimals(fraction, n, count):
    assert floor_fraction(fraction, n) == ceil_fraction(fraction, n) == count


def test_quantiles_leave_their_fraction_out():
    for percent in HUNDREDTHS:
        for n in (2, 51, 76, 101, 126, 171, 201):
            scores = np.random.default_rng(n).normal(size=n)
            count = ceil_fraction(percent / 100, n - 1)
            assert np.sum(scores < lower_quantile(scores, percent / 100)) == count
            assert np.sum(scores > upper_quantile(scores, percent / 100)) == count


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.333, 0.5, 1.0])
def test_quantiles_between_values_equal_those_of_numpy(fraction):
    scores = np.random.default_rng(0).normal(size=58)
    expected = np.quantile(scores, [fraction, 1 - fraction])
    found = lower_quantile(scores, fraction), upper_quantile(scores, fraction)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Users of fractions -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["greedy", "random"])
@pytest.mark.parametrize(
    ("fraction", "n", "n_selected"), [(0.29, 100, 29), (0.57, 200, 114), (0.35, 9, 3)]
)
def test_a_sampler_selects_the_decimal_fraction(method, fraction, n, n_selected):
    X = np.random.default_rng(0).normal(size=(n, 3))
    sampler = CoresetSampler(fraction, method=method, random_state=0).fit(X)
    assert len(sampler.sample_indices_) == n_selected


def test_max_fraction_selects_the_decimal_fraction(tmp_path):
    X = np.random.default_rng(0).normal(size=(100, 3))
    sampler = CoresetSampler(29, max_fraction=0.29, memory=tmp_path, random_state=0)
    assert len(sampler.fit(X).sample_indices_) == 29


def test_a_reduction_averages_the_decimal_fraction():
    distances = np.arange(100.0)
    assert (
        reduce_patches(distances, np.array([0, 100]), 0.29) == np.arange(71, 100).mean()
    )


@pytest.mark.parametrize("contamination", [0.14, 0.28])
def test_contamination_flags_the_decimal_fraction(contamination):
    X = np.random.default_rng(0).normal(size=(101, 3))
    bank = PatchMemoryBank(
        CoresetSampler(0.1), contamination=contamination, random_state=0
    )
    labels = bank.fit_predict(X)
    assert np.sum(labels == -1) == round(100 * contamination)


def test_an_outlier_filter_removes_the_decimal_fraction():
    rng = np.random.default_rng(0)
    patches, shapes = rng.normal(size=(76, 3)), np.ones((76, 2), dtype=np.int64)
    kept = inlying_patches(patches, shapes, "nearest", 0.32, "cpu")
    assert_array_equal(len(kept), 76 - 24)


@pytest.mark.parametrize("n", [48, 97, 102])
def test_the_number_of_samples_for_a_small_alpha_is_sufficient(n):
    assert n_supported(1 / (n + 1), n) == 1
    with pytest.raises(ValueError, match=f"needs at least {n} normal samples"):
        check_supported(1 / (n + 1), n - 1)
