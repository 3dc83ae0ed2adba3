"""Values whose squares leave the range of a dtype: exact results, or an error."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.preprocessing import normalize

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore._neighbors._magnitude import unit_rows, with_safe_squares

METRICS = ["euclidean", "sqeuclidean", "cosine"]
# Powers of two, so that scaling loses no bits. Those of float32 cover its range, except
# for subnormal values.
FLOAT32_SCALES = [2.0**-110, 2.0**-75, 2.0**-66, 2.0**62, 2.0**64, 2.0**115]
FLOAT64_SCALES = [2.0**-420, 2.0**460]
SCALES = [
    *[(np.float32, scale) for scale in FLOAT32_SCALES],
    *[(np.float64, scale) for scale in FLOAT64_SCALES],
]


def rows(n, d=6, dtype=np.float64, seed=0):
    # Values of few bits, so that no scale loses any.
    X = np.random.default_rng(seed).integers(-64, 65, size=(n, d)) / 64
    return (X + (X == 0)).astype(dtype)


def scale_of_distances(metric, scale):
    return {"euclidean": scale, "sqeuclidean": scale**2, "cosine": 1}[metric]


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("method", ["greedy", "random"])
@pytest.mark.parametrize("d", [6, 200])
def test_a_scale_changes_no_pick(method, dtype, scale, d):
    X = rows(300, d, dtype)
    sampler = CoresetSampler(0.2, method=method, random_state=0)
    expected = sampler.fit(X.astype(np.float64))
    picks, radii = expected.sample_indices_, expected.radii_
    found = sampler.fit(dtype(scale) * X)
    assert_array_equal(found.sample_indices_, picks)
    assert_allclose(found.radii_ / scale, radii, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("algorithm", ["torch", "faiss"])
def test_a_scale_changes_no_score(algorithm, metric, n_neighbors, dtype, scale):
    if algorithm == "faiss":
        pytest.importorskip("faiss")
    X, new = rows(200, dtype=dtype), rows(20, dtype=dtype, seed=1)
    params = {"metric": metric, "n_neighbors": n_neighbors, "algorithm": algorithm}
    bank = PatchMemoryBank(CoresetSampler(40), random_state=0, **params)
    unscaled = bank.fit(X)
    factor = scale_of_distances(metric, scale)
    expected = unscaled.score_samples(new) * factor, unscaled.offset_ * factor
    scaled = bank.fit(dtype(scale) * X)
    assert_allclose(scaled.score_samples(dtype(scale) * new), expected[0], rtol=1e-6)
    assert scaled.offset_ == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("scale", [2.0**-75, 2.0**64])
def test_a_scale_changes_no_score_in_a_window(scale):
    X = rows(20 * 16, dtype=np.float32).reshape(20, 4, 4, 6)
    bank = PatchMemoryBank(position_window=3, random_state=0)
    expected = bank.fit(X).score_samples(X) * scale
    found = bank.fit(np.float32(scale) * X).score_samples(np.float32(scale) * X)
    assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "fate"), [(1e160, "overflow"), (1e300, "overflow"), (1e-160, "underflow")]
)
@pytest.mark.parametrize("estimator", [CoresetSampler(0.1), PatchMemoryBank()])
def test_squares_beyond_float64_are_refused(estimator, scale, fate):
    message = rf"would {fate}: .* is 1e[+-]\d+\. .* 1e-130 to 1e\+140, .* Scale the"
    with pytest.raises(ValueError, match=message):
        estimator.fit(rows(40) * scale)


@pytest.mark.parametrize("window", [None, 1])
def test_queries_whose_distances_overflow_are_refused(window):
    X = rows(40)[:, None]
    bank = PatchMemoryBank(position_window=window, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"overflow: .* of X is 1e\+200, .* Scale"):
        bank.score_samples(X * 1e200)


def test_queries_beyond_the_dtype_of_the_bank_are_refused():
    bank = PatchMemoryBank(random_state=0).fit(rows(40, dtype=np.float32))
    with pytest.raises(ValueError, match=r"X is 1e\+39, and the bank holds float32"):
        bank.score_samples(rows(3) * 1e39)


@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e30])
def test_queries_far_off_the_scale_of_the_bank_are_compared_exactly(scale):
    X, new = rows(700, dtype=np.float32), np.float32(scale) * rows(9, seed=1)
    bank = PatchMemoryBank(CoresetSampler(600), random_state=0).fit(X)
    differences = new[:, None].astype(float) - bank.bank_.astype(float)
    expected = np.linalg.norm(differences, axis=2).min(axis=1)
    assert_allclose(-bank.score_samples(new.astype(np.float32)), expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_have_no_scale_to_refuse(dtype):
    X = np.zeros((30, 4), dtype=dtype)
    assert CoresetSampler(0.2, random_state=0).fit(X).radii_[-1] == 0
    assert_array_equal(PatchMemoryBank(random_state=0).fit(X).score_samples(X), 0)


def test_usual_values_are_not_copied():
    X = rows(10, dtype=np.float32)
    assert with_safe_squares(X) is X


# Unit length ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_usual_rows_are_brought_to_unit_length_as_by_scikit_learn(dtype):
    X = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    assert_array_equal(unit_rows(X), normalize(X))
    assert unit_rows(X).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "smallest", "largest"),
    [(np.float32, 2.0**-140, 2.0**126), (np.float64, 2.0**-1060, 2.0**1020)],
)
def test_rows_of_any_scale_keep_their_direction(dtype, smallest, largest):
    X = rows(30, dtype=dtype)
    X[:10] *= dtype(smallest)
    X[10:20] *= dtype(largest)
    expected = normalize(rows(30))
    assert_allclose(unit_rows(X)[10:], expected[10:], rtol=1e-6)
    # Subnormal numbers have fewer digits.
    assert_allclose(unit_rows(X)[:10], expected[:10], atol=2e-2)


def test_zero_rows_stay_zero():
    X = np.zeros((3, 4), dtype=np.float32)
    X[1] = 1
    assert_array_equal(unit_rows(X), [[0] * 4, [0.5] * 4, [0] * 4])
