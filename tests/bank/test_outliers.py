"""Test the outlier filter against scikit-learn and float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import LocalOutlierFactor

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._bank import _outliers as outliers
from skpatchcore._bank._outliers import (
    inlying_patches,
    patch_outlier_scores,
    sample_outlier_scores,
)
from skpatchcore.calibration import ConformalDetector
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

METHODS = ["lof", "nearest", "gaussian"]


def samples(n=14, p=6, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, p, d))


def scores_of(X, method, shapes=None):
    shapes = np.tile([1, X.shape[1]], (len(X), 1)) if shapes is None else shapes
    return patch_outlier_scores(X.reshape(-1, X.shape[-1]), shapes, method, "cpu")


def naive_scores(X, method):
    """Return scores (n,) of points (n, d), all at one position."""
    if method == "lof":
        k = min(6, len(X) - 1)
        return -LocalOutlierFactor(n_neighbors=k).fit(X).negative_outlier_factor_
    if method == "nearest":
        distances = cdist(X, X)
        np.fill_diagonal(distances, np.inf)
        return distances.min(axis=1)
    covariance = EmpiricalCovariance().fit(X).covariance_ * len(X) / (len(X) - 1)
    covariance += 0.01 * covariance.trace() / len(covariance) * np.eye(len(covariance))
    offsets = X - X.mean(axis=0)
    squared = np.einsum(
        "ij,jk,ik->i", offsets, np.linalg.inv(covariance), offsets, optimize=True
    )
    return np.sqrt(squared)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(14, 5), (9, 20), (3, 4)])
def test_scores_equal_their_definition_at_each_position(method, n, d, monkeypatch):
    X = samples(n=n, d=d)
    expected = np.stack([naive_scores(X[:, i], method) for i in range(6)], axis=1)
    assert_allclose(scores_of(X, method), expected.ravel(), rtol=1e-9)
    # The size of blocks does not matter.
    monkeypatch.setattr(outliers, "_BLOCK_ELEMENTS", 2 * n)
    assert_allclose(scores_of(X, method), expected.ravel(), rtol=1e-9)


def test_rows_of_a_matrix_are_all_at_one_position():
    X = samples(n=40, p=1)
    assert_allclose(scores_of(X, "lof"), naive_scores(X[:, 0], "lof"))


def test_duplicates_are_no_outliers_by_rounding():
    X = np.repeat(1e3 + samples(n=1), 12, axis=0).astype(np.float32)
    assert_array_equal(scores_of(X, "nearest"), 0)
    assert_array_equal(scores_of(X, "gaussian"), 0)
    assert_allclose(scores_of(X, "lof"), 1)


@pytest.mark.parametrize("method", ["sample", *METHODS])
def test_a_single_sample_has_no_outliers(method):
    kept = inlying_patches(samples(n=1)[0], np.array([[2, 3]]), method, 0.5, "cpu")
    assert_array_equal(kept, np.arange(6))


@pytest.mark.parametrize("n", [2, 3, 12])
def test_scores_of_samples_equal_their_definition(n, monkeypatch):
    """With few patches, all patches of other samples are compared."""
    sizes = np.random.default_rng(1).permutation(60)[:n] + 1
    parts = [samples(n=size, p=1, seed=size)[:, 0] for size in sizes]
    found = sample_scores(parts)
    expected = [naive_sample_score(i, parts) for i in range(n)]
    assert_allclose(found, expected, rtol=1e-7)
    monkeypatch.setattr(outliers, "_BLOCK_ELEMENTS", 1)
    assert_allclose(sample_scores(parts), expected, rtol=1e-7)


def sample_scores(parts):
    shapes = np.array([[1, len(part)] for part in parts])
    return sample_outlier_scores(np.concatenate(parts), shapes, "cpu")


def naive_sample_score(i, parts):
    others = [part for j, part in enumerate(parts) if j != i]
    nearest = np.stack([cdist(parts[i], part).min(axis=1) for part in others], axis=1)
    distances = np.sort(nearest, axis=1)[:, min(3, len(others)) - 1]
    n_top = max(1, int(0.04 * len(distances)))
    return np.sort(distances)[-n_top:].mean()


@pytest.mark.parametrize("method", METHODS)
def test_unequal_grids_are_compared_where_centres_lie(method):
    """Samples of a fine grid that repeats a coarse one get the same scores."""
    coarse = samples(n=8, p=4).reshape(8, 2, 2, 5)
    fine = coarse[:4].repeat(3, axis=1).repeat(2, axis=2)
    patches = np.concatenate([fine.reshape(-1, 5), coarse[4:].reshape(-1, 5)])
    shapes = np.array([[6, 4]] * 4 + [[2, 2]] * 4)
    expected = scores_of(coarse.reshape(8, 4, 5), method).reshape(8, 2, 2)
    expected = np.concatenate(
        [expected[:4].repeat(3, axis=1).repeat(2, axis=2).ravel(), expected[4:].ravel()]
    )
    found = patch_outlier_scores(patches, shapes, method, "cpu")
    assert_allclose(found, expected, rtol=1e-9)


# In the memory bank -----------------------------------------------------------------


def contaminated(n=20, n_bad=2, seed=0):
    """Return samples of 4 x 5 patches; in the last ones, two patches are far off."""
    X = np.random.default_rng(seed).normal(size=(n, 4, 5, 6)).astype(np.float32)
    X[n - n_bad :, 1, 2:4] += 20 * np.arange(1, n_bad + 1)[:, None, None]
    return X


def make_bank(**params):
    settings = {
        "sampler": CoresetSampler(0.3),
        "outlier_filter": "nearest",
        "outlier_fraction": 0.05,
        "random_state": 0,
    }
    return PatchMemoryBank(**settings | params)


@pytest.mark.parametrize("method", ["sample", *METHODS])
def test_outliers_stay_out_of_the_bank(method):
    # Two would mask each other in a covariance.
    X = contaminated(n_bad=1 if method == "gaussian" else 2)
    bank = make_bank(outlier_filter=method, outlier_fraction=0.15).fit(X)
    bad = (np.abs(X).max(axis=-1) > 10).ravel()
    assert set(np.flatnonzero(bad)) <= set(bank.outlier_indices_)
    assert not np.isin(bank.bank_indices_, bank.outlier_indices_).any()
    # A greedy coreset of all patches picks them first.
    assert np.isin(
        np.flatnonzero(bad), make_bank(outlier_filter=None).fit(X).bank_indices_
    ).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_bank_and_sampler_are_those_of_the_patches_kept(metric):
    X = contaminated()
    bank = make_bank(metric=metric).fit(X)
    kept = np.setdiff1d(np.arange(400), bank.outlier_indices_)
    assert len(kept) == 380
    plain = make_bank(metric=metric, outlier_filter=None).fit(X.reshape(-1, 6)[kept])
    assert_array_equal(bank.bank_, plain.bank_)
    assert_array_equal(bank.bank_indices_, kept[plain.bank_indices_])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_neighbors": 3},
        {"reduction": 0.2},
        {"reweight": 3},
        {"sampler": CoresetSampler(0.3, method="random")},
        {"position_window": 3},
    ],
)
def test_scores_are_those_of_whole_samples_and_find_the_bad_ones(params):
    X = contaminated()
    bank = make_bank(contamination=0.2, **params).fit(X)
    assert_allclose(bank.training_scores_, bank.score_samples(X), rtol=1e-12)
    if not params.keys() & {"reduction", "reweight"}:
        assert bank.offset_ == pytest.approx(-bank.patch_threshold_, rel=1e-12)
    assert_array_equal(bank.fit_predict(X)[-2:], -1)


def test_a_sample_all_of_whose_patches_go_sets_no_threshold():
    X = contaminated(n_bad=0)
    X[3] += 50
    bank = make_bank().fit(X)
    assert_array_equal(bank.outlier_indices_, np.arange(60, 80))
    plain = make_bank(outlier_filter=None).fit(np.delete(X, 3, axis=0))
    assert_array_equal(bank.bank_, plain.bank_)
    assert bank.offset_ == plain.offset_
    assert bank.training_scores_[3] < -50


def test_whole_samples_are_left_out_wherever_they_are_odd():
    """Two similar ones do not mask each other, and their position does not matter."""
    X = contaminated(n_bad=0)
    X[5, 0, 0] += 30
    X[11, 3, 4] += 30
    bank = make_bank(outlier_filter="sample", outlier_fraction=0.1).fit(X)
    expected = np.concatenate([np.arange(100, 120), np.arange(220, 240)])
    assert_array_equal(bank.outlier_indices_, expected)
    plain = make_bank(outlier_filter=None).fit(np.delete(X, [5, 11], axis=0))
    assert_array_equal(bank.bank_, plain.bank_)
    assert bank.offset_ == plain.offset_


def test_refitting_without_a_filter_forgets_what_was_left_out():
    bank = make_bank().fit(contaminated())
    bank.set_params(outlier_filter=None).fit(contaminated())
    assert not hasattr(bank, "outlier_indices_")


def test_labelled_anomalies_are_left_out_before_the_filter():
    X, y = contaminated(), np.repeat([1, -1], [18, 2])
    labelled, without = make_bank().fit(X, y), make_bank().fit(X[:18])
    assert_array_equal(labelled.bank_, without.bank_)
    assert_array_equal(labelled.outlier_indices_, without.outlier_indices_)


def images(n=10, n_bad=1, size=32, seed=0):
    X = np.random.default_rng(seed).integers(90, 110, (n, size, size, 3), np.uint8)
    X[n - n_bad :, 8:20, 8:20] = 255
    return X


def make_detector(**params):
    features = PatchFeatureTransformer(
        "resnet18", layers=("layer1",), weights="random", image_size=32
    )
    return PatchCoreDetector(
        features,
        CoresetSampler(0.2),
        outlier_filter="sample",
        outlier_fraction=0.1,
        random_state=0,
        **params,
    )


def test_a_detector_leaves_defective_images_out_and_finds_them():
    X = images()
    detector = make_detector(position_window=3).fit(X)
    assert detector.predict(X)[-1] == -1
    assert 9 not in detector.nearest_patches(X).image
    assert detector.offset_ == np.quantile(detector.training_scores_[:9], 0.01)
    plain = clone(detector).set_params(outlier_filter=None).fit(X)
    assert 9 in plain.nearest_patches(X).image


def test_unequal_images_go_through_filter_and_window():
    X = [*images(5, 0), *images(5, 1, size=40)]
    detector = make_detector(position_window=5)
    detector.set_params(features__image_size=None)
    assert detector.fit_predict(X)[-1] == -1
    assert 9 not in detector.nearest_patches(X[-1:]).image
    assert detector.memory_bank_.position_grid_ == (10, 10)


def test_filters_and_windows_are_searched_and_calibrated():
    X, y = contaminated(), np.repeat([1, -1], [18, 2])
    bank = make_bank(outlier_filter="sample", outlier_fraction=0.1)
    grid = {"outlier_filter": [None, "sample", "lof"], "position_window": [None, 3]}
    search = GridSearchCV(
        bank, grid, cv=OneClassKFold(2), scoring=image_auroc_scorer, error_score="raise"
    ).fit(X, y)
    assert_array_equal(search.cv_results_["mean_test_score"], 1)
    conformal = ConformalDetector(bank, alpha=0.2, random_state=0).fit(X[:18])
    assert_array_equal(conformal.predict(X[18:]), -1)


def test_a_cache_distinguishes_filters(tmp_path):
    X = contaminated()
    for params in ({}, {"outlier_fraction": 0.3}, {"outlier_filter": None}):
        plain = make_bank(**params).fit(X)
        cached = make_bank(memory=tmp_path, **params).fit(X)
        assert_array_equal(cached.bank_, plain.bank_)
        assert_array_equal(cached.score_samples(X), plain.score_samples(X))
        assert cached.offset_ == plain.offset_


@pytest.mark.parametrize("foreground", [[4], [4, 7]])
def test_a_foreground_of_outliers_alone_is_refused(foreground):
    """Transformed copies may have other patches, but they set no thresholds."""
    X = np.zeros((12, 1), dtype=np.float32)
    X[4] = 9
    bank = PatchMemoryBank(outlier_filter="nearest")
    with pytest.raises(ValueError, match="'nearest' removes every foreground patch"):
        bank._fit_patches(
            X, np.tile([1, 2], (6, 1)), foreground=np.array(foreground), n_given=3
        )
