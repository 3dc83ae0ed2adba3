"""Relations between the results of a memory bank for related inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from skpatchcore import CoresetSampler, PatchMemoryBank

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**32 - 1)
METRICS = st.sampled_from(["euclidean", "sqeuclidean", "cosine"])


def draw(seed, n=30, n_new=12, d=5):
    """Return training samples and new ones, of four patches each."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4, d)), 1.5 * rng.normal(size=(n_new, 4, d))


def fit(X, fraction=0.2, method="greedy", **params):
    sampler = CoresetSampler(fraction, method=method)
    return PatchMemoryBank(sampler, random_state=0, **params).fit(X)


@few
@given(SEEDS, METRICS, st.sampled_from(["max", 0.5]))
def test_order_of_new_samples_orders_their_scores(seed, metric, reduction):
    X, new = draw(seed)
    bank = fit(X, metric=metric, reduction=reduction)
    order = np.random.default_rng(seed).permutation(len(new))
    scores = bank.score_samples(new)
    assert_allclose(bank.score_samples(new[order]), scores[order], rtol=1e-12)


@few
@given(SEEDS, METRICS)
def test_copies_of_a_new_sample_have_its_score(seed, metric):
    X, new = draw(seed)
    bank = fit(X, metric=metric)
    scores = bank.score_samples(np.concatenate([new, new]))
    assert_allclose(scores[: len(new)], scores[len(new) :], rtol=1e-12)


@few
@given(SEEDS, st.integers(-20, 20))
def test_scaling_everything_by_a_power_of_two_scales_scores_exactly(seed, power):
    X, new = draw(seed)
    scale = 2.0**power
    scores = fit(X).score_samples(new)
    assert_array_equal(fit(scale * X).score_samples(scale * new), scale * scores)


@few
@given(SEEDS)
def test_scaling_changes_no_cosine_distance(seed):
    X, new = draw(seed)
    bank, scaled = fit(X, metric="cosine"), fit(3 * X, metric="cosine")
    assert_array_equal(bank.bank_indices_, scaled.bank_indices_)
    assert_allclose(
        scaled.score_samples(5 * new), bank.score_samples(new), rtol=1e-9, atol=1e-15
    )


@few
@given(SEEDS, METRICS)
def test_squared_metric_squares_the_scores(seed, metric):
    X, new = draw(seed)
    scores = fit(X).score_samples(new)
    assert_allclose(
        fit(X, metric="sqeuclidean").score_samples(new), -(scores**2), rtol=1e-12
    )


@few
@given(SEEDS, METRICS)
def test_more_neighbors_bring_no_patch_nearer(seed, metric):
    X, new = draw(seed)
    distances = [
        fit(X, n_neighbors=k, metric=metric).score_patches(new) for k in (1, 2, 4)
    ]
    assert (distances[0] <= distances[1]).all()
    assert (distances[1] <= distances[2]).all()


@few
@given(SEEDS, st.sampled_from(["greedy", "random"]))
def test_larger_bank_extends_the_smaller_and_brings_patches_nearer(seed, method):
    X, new = draw(seed)
    small, large = fit(X, 0.1, method), fit(X, 0.4, method)
    n_small = len(small.bank_indices_)
    assert_array_equal(large.bank_indices_[:n_small], small.bank_indices_)
    assert (large.score_patches(new) <= small.score_patches(new)).all()


@few
@given(SEEDS, st.integers(1, 5))
def test_bank_of_all_patches_is_brute_force(seed, k):
    X, new = draw(seed)
    bank = fit(X, method="none", n_neighbors=k)
    nearest = np.sort(cdist(new.reshape(-1, 5), X.reshape(-1, 5)))[:, :k].mean(axis=1)
    assert_allclose(bank.score_patches(new).ravel(), nearest, rtol=1e-12)
    assert_allclose(
        bank.score_samples(new), -nearest.reshape(-1, 4).max(axis=1), rtol=1e-12
    )


@few
@given(SEEDS)
def test_order_of_training_samples_changes_no_score_with_all_patches(seed):
    X, new = draw(seed)
    order = np.random.default_rng(seed).permutation(len(X))
    bank, shuffled = fit(X, method="none"), fit(X[order], method="none")
    assert_allclose(shuffled.score_samples(new), bank.score_samples(new), rtol=1e-12)
    assert_allclose(shuffled.training_scores_, bank.training_scores_[order], rtol=1e-12)
    assert shuffled.offset_ == pytest.approx(bank.offset_, rel=1e-12)


@few
@given(SEEDS)
def test_copies_of_training_samples_change_no_score_with_all_patches(seed):
    X, new = draw(seed)
    bank, doubled = fit(X, method="none"), fit(np.concatenate([X, X]), method="none")
    assert_allclose(doubled.score_samples(new), bank.score_samples(new), rtol=1e-12)


@few
@given(SEEDS)
def test_score_of_a_training_sample_is_that_of_a_new_one_without_it(seed):
    X, _ = draw(seed, n=12)
    scores = fit(X, method="none").training_scores_
    for i in range(len(X)):
        without = fit(np.delete(X, i, axis=0), method="none")
        assert_allclose(scores[i], without.score_samples(X[i : i + 1])[0], rtol=1e-12)
