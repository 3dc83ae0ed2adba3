"""Test training scores against their definition, by brute force in float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore._bank._search import BankSearch
from skpatchcore._bank._support import Support

ALL = (CoresetSampler(1.0), CoresetSampler(method="none"))


def patches(*shape, d=4, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, d)).astype(dtype)


def with_outliers():
    rng = np.random.default_rng(0)
    return np.r_[rng.normal(size=(190, 4)), rng.normal(6, 1, (10, 4))]


def naive_patch_scores(bank, X):
    """Return scores (n, p): the distance within which enough rows count."""
    n, p, d = X.reshape(len(X), -1, X.shape[-1]).shape
    flat, sample = X.reshape(n * p, d), np.arange(n * p) // p
    kept = np.setdiff1d(np.arange(n * p), getattr(bank, "outlier_indices_", []))
    nearest = bank.sampler_.nearest_picks_
    m, n_kept = len(bank.bank_), len(set(sample[kept]))
    represented = [set(sample[kept[nearest == row]]) for row in range(m)]
    scores = []
    for i, patch in enumerate(flat):
        others = [len(of_row - {sample[i]}) for of_row in represented]
        weights = np.minimum(1, np.array(others) * m / n_kept)
        distances = cdist(patch[None], bank.bank_.astype(float), bank.metric)[0]
        order = distances.argsort(kind="stable")
        reached = weights[order].cumsum()
        wanted = np.minimum(np.arange(1, bank.n_neighbors + 1), reached[-1])
        places = (reached[:, None] < wanted - 1e-9).sum(axis=0)
        scores.append(distances[order][places].mean())
    return np.reshape(scores, (n, p))


@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("shape", [(40,), (14, 3), (8, 3, 4)])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"metric": "sqeuclidean"},
        {"reduction": 0.4},
        {"outlier_filter": "sample"},
        {"outlier_filter": "lof"},
        {"algorithm": "faiss"},
    ],
    ids=str,
)
def test_training_scores_equal_their_definition(params, fraction, shape, n_neighbors):
    X = patches(*shape)
    bank = PatchMemoryBank(
        CoresetSampler(fraction), n_neighbors=n_neighbors, random_state=0, **params
    ).fit(X)
    expected = naive_patch_scores(bank, X)
    if "reduction" in params:
        n_top = max(1, int(0.4 * expected.shape[1]))
        expected = np.sort(expected, axis=1)[:, -n_top:].mean(axis=1)
    else:
        expected = expected.max(axis=1)
    assert_allclose(bank.training_scores_, -expected, rtol=1e-12)


def test_training_scores_equal_their_definition_among_ties():
    for seed in range(10):
        X = np.random.default_rng(seed).integers(1, 4, (8, 12, 2)).astype(float)
        bank = PatchMemoryBank(CoresetSampler(0.3), random_state=0).fit(X)
        expected = naive_patch_scores(bank, X).max(axis=1)
        assert_allclose(bank.training_scores_, -expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("sampler", ALL)
def test_with_all_rows_they_are_leave_one_out_distances(sampler, n_neighbors, metric):
    X = patches(60)
    bank = PatchMemoryBank(sampler, n_neighbors=n_neighbors, metric=metric).fit(X)
    # Without an argument, scikit-learn leaves each row out of its own neighbours.
    nn = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(X)
    expected = nn.kneighbors()[0].mean(axis=1)
    assert_allclose(bank.training_scores_, -expected, atol=1e-12)
    assert bank.offset_ < 0


def test_with_all_patches_a_sample_is_compared_with_all_others():
    X = patches(10, 6)
    bank = PatchMemoryBank(CoresetSampler(1.0)).fit(X)
    for i, sample in enumerate(X):
        others = np.delete(X, i, axis=0).reshape(-1, 4)
        expected = cdist(sample, others).min(axis=1).max()
        assert bank.training_scores_[i] == pytest.approx(-expected)


@pytest.mark.parametrize("sampler", [*ALL, None], ids=str)
def test_copies_in_other_samples_stay_matched(sampler):
    X = np.concatenate([patches(30), patches(30)])
    bank = PatchMemoryBank(sampler, random_state=0).fit(X)
    if sampler is None:
        assert np.all(bank.training_scores_[:30] == bank.training_scores_[30:])
    else:
        assert_array_equal(bank.training_scores_, np.zeros(60))


def test_a_background_that_images_share_makes_none_of_them_unusual():
    X = patches(20, 10)
    X[:, 3:] = patches(1, 7, seed=1)
    bank = PatchMemoryBank(CoresetSampler(67), random_state=0).fit(X)
    expected = naive_patch_scores(bank, X)
    assert_array_equal(expected[:, 3:], np.zeros((20, 7)))
    assert_allclose(bank.training_scores_, -expected.max(axis=1))


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_transformed_copies_belong_to_their_sample(fraction):
    """Copies are given after all samples, as the detector of images does it."""
    X = patches(8, 5)
    both = np.concatenate([X, X + 1e-6]).reshape(-1, 4)
    bank = PatchMemoryBank(CoresetSampler(fraction), random_state=0)
    bank._fit_patches(both, np.tile([1, 5], (16, 1)), n_given=8)
    assert len(bank.training_scores_) == 8
    # Matched with its own copy, a sample would score -2e-6.
    assert bank.training_scores_.max() < -0.1


@pytest.mark.parametrize("b", [2, 5])
def test_eq_7_uses_the_rows_that_count(b):
    X = patches(12, 5)
    bank = PatchMemoryBank(CoresetSampler(1.0), reweight=b).fit(X)
    for i, sample in enumerate(X):
        others = np.delete(X, i, axis=0).reshape(-1, 4)
        distances = cdist(sample, others)
        patch = distances.min(axis=1).argmax()
        match, largest = distances[patch].argmin(), distances[patch].min()
        near = cdist(others[match][None], others)[0].argsort(kind="stable")[:b]
        factor = 1 - np.exp(largest) / np.exp(distances[patch, near]).sum()
        assert bank.training_scores_[i] == pytest.approx(-factor * largest)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("n_neighbors", [1, 2])
def test_in_a_window_rows_that_do_not_count_are_left_out(window, n_neighbors):
    X = patches(9, 4, 5)
    bank = PatchMemoryBank(
        CoresetSampler(1.0), position_window=window, n_neighbors=n_neighbors
    ).fit(X)
    place = np.stack(np.divmod(np.arange(20), 5), axis=1)
    near = (abs(place[:, None] - place) <= window // 2).all(axis=2)
    for i, sample in enumerate(X.reshape(9, 20, 4)):
        others = np.delete(X, i, axis=0).reshape(8, 20, 4)
        distances = np.linalg.norm(sample[:, None, None] - others, axis=3)
        distances = np.where(near[:, None], distances, np.inf).reshape(20, -1)
        scores = np.sort(distances, axis=1)[:, :n_neighbors].mean(axis=1)
        assert bank.training_scores_[i] == pytest.approx(-scores.max())


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_in_a_window_without_enough_rows_the_whole_bank_is_searched(fraction):
    X = patches(9, 4, 5)
    windowed = PatchMemoryBank(
        CoresetSampler(fraction), position_window=1, random_state=0
    ).fit(X)
    whole = PatchMemoryBank(CoresetSampler(fraction), random_state=0).fit(X)
    assert np.isfinite(windowed.training_scores_).all()
    assert np.all(windowed.training_scores_ <= whole.training_scores_)


@pytest.mark.slow
def test_approximate_search_finds_nearly_the_same_scores():
    pytest.importorskip("pynndescent")
    X = patches(30, 20, dtype=np.float32)
    exact, approximate = (
        PatchMemoryBank(CoresetSampler(0.5), algorithm=a, random_state=0).fit(X)
        for a in ("auto", "pynndescent")
    )
    assert_allclose(approximate.training_scores_, exact.training_scores_, rtol=0.05)


@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("reduction", ["max", 0.3])
def test_a_cache_changes_no_training_score(reduction, n_neighbors, tmp_path):
    X = patches(20, 3)
    params = {"reduction": reduction, "n_neighbors": n_neighbors, "random_state": 0}
    plain = PatchMemoryBank(**params).fit(X)
    for _ in range(2):
        cached = PatchMemoryBank(memory=tmp_path, **params).fit(X)
        assert_array_equal(cached.training_scores_, plain.training_scores_)


def test_few_patches_are_searched(monkeypatch):
    searched = []
    query = BankSearch.query

    def count(self, patches, positions, k):
        searched.append(len(patches))
        return query(self, patches, positions, k)

    monkeypatch.setattr(BankSearch, "query", count)
    X = patches(20, 500, d=20, dtype=np.float32)
    PatchMemoryBank(random_state=0).fit(X)
    assert sum(searched) < 0.2 * 20 * 500


@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("outlier_filter", ["lof", "sample"])
def test_thresholds_are_those_of_kept_patches(outlier_filter, n_neighbors):
    X = patches(15, 3, 4)
    bank = PatchMemoryBank(
        CoresetSampler(0.3),
        n_neighbors=n_neighbors,
        outlier_filter=outlier_filter,
        random_state=0,
    ).fit(X)
    scores = naive_patch_scores(bank, X)
    scores.ravel()[bank.outlier_indices_] = -np.inf
    largest = scores.max(axis=1)
    largest = largest[np.isfinite(largest)]
    assert bank.patch_threshold_ == pytest.approx(np.quantile(largest, 0.99))
    assert bank.offset_ == pytest.approx(-bank.patch_threshold_)


@pytest.mark.parametrize("outlier_filter", ["sample", "lof", "nearest", "gaussian"])
def test_a_number_as_contamination_counts_the_samples_that_were_removed(outlier_filter):
    bank = PatchMemoryBank(
        contamination=0.2, outlier_filter=outlier_filter, random_state=0
    )
    assert np.sum(bank.fit_predict(patches(50, 3, 4)) == -1) == 10
    assert bank.offset_ == pytest.approx(np.quantile(bank.training_scores_, 0.2))


# Outliers among the training samples ------------------------------------------------


def test_outliers_among_the_training_samples_are_flagged():
    X, y = with_outliers(), np.repeat([1, -1], [190, 10])
    bank = PatchMemoryBank(contamination=0.05, random_state=0)
    assert_array_equal(bank.fit_predict(X), y)
    assert roc_auc_score(y, bank.training_scores_) == 1
    assert_array_equal(bank.predict(X), y)


@pytest.mark.parametrize("sampler", ALL)
def test_outliers_are_ranked_first_with_all_rows(sampler):
    X, y = with_outliers(), np.repeat([1, -1], [190, 10])
    bank = PatchMemoryBank(sampler, n_neighbors=10, contamination=0.05).fit(X)
    assert roc_auc_score(y, bank.training_scores_) == 1
    assert_array_equal(bank.fit_predict(X), y)


@pytest.mark.parametrize("y", [None, [1] * 190 + [-1] * 10])
@pytest.mark.parametrize("outlier_filter", [None, "sample", "lof"])
def test_predict_agrees_with_fit_predict(outlier_filter, y):
    X = with_outliers()
    bank = PatchMemoryBank(
        contamination=0.1, outlier_filter=outlier_filter, random_state=0
    )
    labels = bank.fit_predict(X, y)
    assert_array_equal(bank.predict(X), labels)
    assert np.mean(labels[190:] == -1) == 1


def test_samples_left_out_by_their_labels_score_as_new_ones():
    X = with_outliers()
    bank = PatchMemoryBank(random_state=0).fit(X, np.repeat([1, -1], [190, 10]))
    expected = cdist(X[190:], bank.bank_).min(axis=1)
    assert_allclose(bank.score_samples(X[190:]), -expected)


# Training samples among those to score ----------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(50,), (20, 7), (9, 3, 4)])
def test_training_samples_have_their_training_scores_in_any_company(shape, dtype):
    X, new = patches(*shape, dtype=dtype), patches(*shape, dtype=dtype, seed=1)
    bank = PatchMemoryBank(CoresetSampler(0.4), random_state=0).fit(X)
    order = np.random.default_rng(2).permutation(2 * len(X))
    mixed = bank.score_samples(np.concatenate([X, new])[order])
    expected = np.concatenate([bank.training_scores_, bank.score_samples(new)])
    assert_array_equal(mixed, expected[order])
    assert bank.score_samples(X[3:4]) == bank.training_scores_[3]


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("d", [1, 4])
def test_samples_close_to_training_samples_are_new(d, offset):
    X = np.round(patches(200, d=d), 3) + offset
    bank = PatchMemoryBank(CoresetSampler(1.0)).fit(X)
    near = X + 1e-5
    expected = cdist(near, bank.bank_).min(axis=1)
    assert_allclose(bank.score_samples(near), -expected)


def test_one_changed_patch_makes_a_sample_new():
    X = patches(10, 100)
    bank = PatchMemoryBank(CoresetSampler(1.0)).fit(X)
    changed = X[:1].copy()
    changed[0, 7] += 5
    expected = cdist(changed[0], bank.bank_).min(axis=1).max()
    assert_allclose(bank.score_samples(changed), -expected)


# Support ------------------------------------------------------------------------------


def test_a_row_that_represents_only_the_sample_does_not_count():
    support = Support(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1]), 3, 2)
    rows = np.arange(3)
    assert_array_equal(support.weights(rows, np.zeros(3, int)) > 0, [True, False, True])
    assert_array_equal(support.weights(rows, np.ones(3, int)) > 0, [True, True, False])


def test_rows_of_a_small_bank_count_by_the_samples_they_represent():
    nearest = np.array([0] * 8 + [1] * 2)
    support = Support(nearest, np.arange(10), 2, 10)
    assert support.n_samples == 10
    assert_array_equal(support.weights(np.array([0, 1]), np.array([0, 0])), [10, 4])
    assert_array_equal(support.weights(np.array([0, 1]), np.array([9, 9])), [10, 2])
    assert_array_equal(support.totals[[0, 9]], [14, 12])


def test_a_sample_alone_counts_itself():
    support = Support(np.array([0, 1]), np.array([0, 0]), 2, 1)
    assert support.alone.all()
    assert np.all(support.weights(np.array([0, 1]), np.array([0, 0])) > 0)
