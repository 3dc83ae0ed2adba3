"""What users of other outlier detectors expect, for a bank of many or few rows.

Written anew after the behaviour that these tests check:

- scikit-learn 1.9, ``sklearn/neighbors/tests/test_lof.py`` (LocalOutlierFactor) and
  ``sklearn/ensemble/tests/test_iforest.py`` (IsolationForest), BSD-3-Clause;
- pyod 2.0, ``pyod/test/test_knn.py`` (KNN), BSD-2-Clause.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid, train_test_split
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from skpatchcore import CoresetSampler, PatchMemoryBank

FRACTIONS = (1.0, 0.5, 0.1)
each_fraction = pytest.mark.parametrize("fraction", FRACTIONS)


def bank(fraction, **params):
    return PatchMemoryBank(CoresetSampler(fraction), random_state=0, **params)


def normal_and_outliers(n_normal, n_outliers, seed=0):
    """Two clusters, and outliers spread evenly, as in the tests of IsolationForest."""
    rng = np.random.default_rng(seed)
    clusters = 0.3 * rng.normal(size=(n_normal // 2, 2))
    X = np.r_[clusters + 2, clusters - 2, rng.uniform(-6, 6, (n_outliers, 2))]
    return X, np.repeat([1, -1], [len(X) - n_outliers, n_outliers])


# LocalOutlierFactor and IsolationForest -----------------------------------------------


def test_the_outliers_of_a_toy_sample_have_the_lowest_scores():
    """test_lof, test_iforest_works: two of eight points are far from the others."""
    X = [[-2, -1], [-1, -1], [-1, -2], [1, 1], [1, 2], [2, 1], [5, 3], [-4, 2]]
    fitted = bank(1.0, contamination=0.25).fit(X)
    scores = fitted.training_scores_
    assert scores[-2:].max() < scores[:-2].min()
    assert_array_equal(fitted.fit_predict(X), [1] * 6 + [-1] * 2)


@each_fraction
def test_new_outliers_are_told_from_new_inliers(fraction):
    """test_lof_performance, test_iforest_performance: AUROC on new samples."""
    train, _ = normal_and_outliers(120, 0)
    new, y = normal_and_outliers(40, 40, seed=1)
    scores = bank(fraction).fit(train).score_samples(new)
    assert roc_auc_score(y, scores) > 0.97


@each_fraction
def test_outliers_among_the_training_samples_are_told(fraction):
    X, y = normal_and_outliers(180, 20)
    fitted = bank(fraction, contamination=0.1).fit(X)
    ours = roc_auc_score(y, fitted.training_scores_)
    forest = IsolationForest(random_state=0).fit(X).score_samples(X)
    lof = LocalOutlierFactor().fit(X).negative_outlier_factor_
    assert ours > min(roc_auc_score(y, forest), roc_auc_score(y, lof)) - 0.04
    assert np.mean(fitted.fit_predict(X)[y == -1] == -1) >= 0.8


@each_fraction
@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.25, 0.5])
def test_the_contamination_is_the_share_flagged(fraction, contamination):
    """test_contamination, test_lof_values: to within one sample."""
    X, _ = load_iris(return_X_y=True)
    X = X + 1e-3 * np.random.default_rng(0).normal(size=X.shape)
    labels = bank(fraction, contamination=contamination).fit_predict(X)
    assert abs(np.sum(labels == -1) - contamination * len(X)) <= 1


@each_fraction
def test_fit_predict_is_fit_then_predict_and_decides_at_0(fraction):
    """test_predicted_outlier_number, test_score_samples, test_iforest_with_..."""
    X, _ = normal_and_outliers(180, 20)
    detector = bank(fraction, contamination=0.1)
    labels = detector.fit_predict(X)
    decision = detector.decision_function(X)
    assert_array_equal(labels, detector.predict(X))
    assert_array_equal(labels, np.where(decision >= 0, 1, -1))
    assert_allclose(decision, detector.score_samples(X) - detector.offset_)


@each_fraction
def test_the_contamination_moves_the_offset_and_not_the_scores(fraction):
    """test_score_samples: scores do not depend on the contamination."""
    train, new = normal_and_outliers(120, 0)[0], normal_and_outliers(20, 9, seed=1)[0]
    one, other = (bank(fraction, contamination=c).fit(train) for c in ("auto", 0.1))
    assert_array_equal(one.score_samples(new), other.score_samples(new))
    assert one.offset_ < other.offset_


@each_fraction
def test_equal_training_samples_are_all_inliers(fraction):
    """test_iforest_with_uniform_data: nothing is unusual in constant data."""
    X = np.ones((100, 10))
    fitted = bank(fraction).fit(X)
    assert np.all(fitted.predict(X) == 1)
    assert np.all(fitted.predict(np.random.default_rng(0).normal(size=(100, 10))) == -1)
    assert np.all(fitted.predict(X + 1) == -1)


@each_fraction
def test_duplicates_do_not_hide_an_outlier(fraction):
    """test_lof_duplicate_samples: many equal values, and one far away."""
    rng = np.random.default_rng(0)
    X = rng.permutation(np.r_[[[0.1]] * 1000, [[0.2]] * 1000, [[0.3]] * 1000, [[10.0]]])
    fitted = bank(fraction, contamination=0.001).fit(X)
    assert fitted.training_scores_.argmin() == np.argmax(X)
    assert fitted.predict([[10.0]]) == -1


@each_fraction
def test_parameters_of_a_grid_fit_and_score(fraction):
    """test_iforest: all combinations of parameters on real data."""
    X_train, X_test = train_test_split(load_diabetes().data[:80], random_state=0)
    for params in ParameterGrid(
        {
            "n_neighbors": [1, 3],
            "metric": ["euclidean", "sqeuclidean", "cosine"],
            "contamination": ["auto", 0.3],
        }
    ):
        fitted = bank(fraction, **params).fit(X_train)
        assert set(fitted.predict(X_test)) <= {-1, 1}
        assert np.isfinite(fitted.score_samples(X_test)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_fraction
def test_both_precisions_give_the_same_labels(fraction, dtype):
    """test_lof_dtype_equivalence, test_iforest_preserve_feature_names."""
    X, _ = normal_and_outliers(180, 20)
    single = X.astype(np.float32)
    expected = bank(fraction, contamination=0.1).fit_predict(single)
    found = bank(fraction, contamination=0.1).fit_predict(single.astype(dtype))
    assert_array_equal(found, expected)


# KNN of pyod --------------------------------------------------------------------------


def pyod_data(seed=0):
    """A Gaussian cluster away from 0, and a tenth spread evenly around 0."""
    rng = np.random.default_rng(seed)
    X = np.r_[rng.normal(4, 1, (180, 2)), rng.uniform(-10, 10, (20, 2))]
    return X, np.repeat([1, -1], [180, 20])


@each_fraction
def test_training_and_new_scores_rank_the_outliers(fraction):
    """test_prediction_scores, test_fit_predict: AUROC of at least 0.8."""
    (X, y), (new, y_new) = pyod_data(), pyod_data(1)
    fitted = bank(fraction, contamination=0.1).fit(X)
    assert roc_auc_score(y, fitted.training_scores_) > 0.9
    inliers = bank(fraction).fit(X, y)
    assert roc_auc_score(y_new, inliers.score_samples(new)) > 0.8
    assert fitted.training_scores_.shape == (200,)


@each_fraction
def test_a_sample_that_is_not_in_the_data_has_the_score_of_its_rank(fraction):
    """test_predict_rank: a farther sample never scores as more normal."""
    X, y = pyod_data()
    fitted = bank(fraction).fit(X, y)
    line = np.c_[np.linspace(8, 40, 60), np.full(60, 4.0)]
    assert np.all(np.diff(fitted.score_samples(line)) < 0)


@each_fraction
def test_a_clone_fits_the_same(fraction):
    """test_model_clone."""
    X, _ = pyod_data()
    fitted = bank(fraction).fit(X)
    assert_array_equal(clone(fitted).fit(X).training_scores_, fitted.training_scores_)


# NearestNeighbors ---------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_with_all_rows_scores_are_those_of_nearest_neighbors(k, metric):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(80, 5)), rng.normal(size=(30, 5))
    fitted = bank(1.0, n_neighbors=k, metric=metric).fit(X)
    nn = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(X)
    expected = nn.kneighbors(new)[0].mean(axis=1)
    assert_allclose(fitted.score_samples(new), -expected, atol=1e-12)
    # Without an argument, each row is left out of its own neighbours.
    expected = nn.kneighbors()[0].mean(axis=1)
    assert_allclose(fitted.training_scores_, -expected, atol=1e-12)


@pytest.mark.parametrize("fraction", FRACTIONS[1:])
def test_with_fewer_rows_new_scores_are_those_of_these_rows(fraction):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(80, 5)), rng.normal(size=(30, 5))
    fitted = bank(fraction, n_neighbors=3).fit(X)
    nn = NearestNeighbors(n_neighbors=3).fit(X[fitted.bank_indices_])
    expected = nn.kneighbors(new)[0].mean(axis=1)
    assert_allclose(fitted.score_samples(new), -expected)
