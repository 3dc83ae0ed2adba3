"""Thresholds that fit labelled defects."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    fbeta_score,
    make_scorer,
    matthews_corrcoef,
    precision_score,
    recall_score,
    zero_one_loss,
)
from sklearn.model_selection import (
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_score,
)

from skpatchcore.calibration import TunedThresholdDetector
from skpatchcore.calibration._thresholds import best_threshold, label_score
from skpatchcore.metrics import f1_max, image_auroc_scorer, pixel_auroc_scorer
from tests.helpers import DistanceToMean, NotANumber


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def labelled(rng):
    X = np.concatenate([rng.normal(size=(60, 2)), rng.normal(2.5, 1, (20, 2))])
    return X, np.repeat([1, -1], [60, 20])


@pytest.fixture
def frozen(rng):
    return FrozenEstimator(DistanceToMean().fit(rng.normal(size=(100, 2))))


# What is fitted ---------------------------------------------------------------------


def test_a_frozen_estimator_is_tuned_on_all_rows(labelled, frozen):
    X, y = labelled
    detector = TunedThresholdDetector(frozen).fit(X, y)
    best = f1_max(y, frozen.score_samples(X))
    assert detector.best_score_ == pytest.approx(best.f1)
    assert detector.offset_ == pytest.approx(best.threshold)
    assert f1_score(y, detector.predict(X), pos_label=-1) == pytest.approx(best.f1)
    assert detector.estimator_.estimator is frozen.estimator
    by_folds = TunedThresholdDetector(frozen, cv=5).fit(X, y)
    assert by_folds.offset_ == detector.offset_


def test_five_folds_are_the_default(labelled):
    X, y = labelled
    default = TunedThresholdDetector(DistanceToMean())
    assert default.cv is None
    folds = TunedThresholdDetector(DistanceToMean(), cv=StratifiedKFold(5))
    assert default.fit(X, y).offset_ == folds.fit(X, y).offset_


def test_the_default_survives_clone_and_cross_validation(labelled):
    X, y = labelled
    fitted = TunedThresholdDetector(DistanceToMean()).fit(X, y)
    again = clone(fitted).fit(X, y)
    assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    assert again.offset_ == fitted.offset_
    scores = cross_val_score(
        TunedThresholdDetector(DistanceToMean()),
        X,
        y,
        scoring=image_auroc_scorer,
        cv=StratifiedKFold(2),
        error_score="raise",
    )
    assert (scores > 0.8).all()


def test_the_final_estimator_is_fitted_on_all_normal_rows(labelled):
    X, y = labelled
    detector = TunedThresholdDetector(DistanceToMean(), cv=4).fit(X, y)
    assert_allclose(detector.estimator_.mean_, X[y == 1].mean(axis=0))
    assert detector.best_score_ > 0.7
    scores = np.empty(len(y))
    for train, test in StratifiedKFold(4).split(X, y):
        fold = DistanceToMean().fit(X[train[y[train] == 1]])
        scores[test] = fold.score_samples(X[test])
    assert detector.offset_ == pytest.approx(f1_max(y, scores).threshold)
    assert_array_equal(detector.fit_predict(X, y), detector.predict(X))


def test_a_frozen_estimator_must_be_fitted(labelled):
    with pytest.raises(NotFittedError):
        TunedThresholdDetector(FrozenEstimator(DistanceToMean())).fit(*labelled)


# What the threshold maximises -------------------------------------------------------


def test_balanced_accuracy_flags_more_than_f1(labelled, frozen):
    X, y = labelled
    balanced = TunedThresholdDetector(frozen, scoring="balanced_accuracy").fit(X, y)
    f1 = TunedThresholdDetector(frozen).fit(X, y)
    # Defects count as much as good samples.
    assert np.sum(balanced.predict(X) == -1) >= np.sum(f1.predict(X) == -1)


def test_a_function_of_labels_is_maximised(labelled, frozen):
    X, y = labelled
    nothing = TunedThresholdDetector(
        frozen, scoring=lambda y_true, y_pred: -np.sum(y_pred == -1)
    ).fit(X, y)
    assert_array_equal(nothing.predict(X), 1)
    everything = TunedThresholdDetector(
        frozen, scoring=lambda y_true, y_pred: np.sum(y_pred == -1)
    ).fit(X, y)
    assert_array_equal(everything.predict(X), -1)


# Names and scorers of scikit-learn, and the same as functions of labels.
SCORINGS = {
    "f1": ("f1", lambda y, p: f1_score(y, p, pos_label=-1)),
    "recall": ("recall", lambda y, p: recall_score(y, p, pos_label=-1)),
    "precision": (
        "precision",
        lambda y, p: precision_score(y, p, pos_label=-1, zero_division=0),
    ),
    "accuracy": ("accuracy", accuracy_score),
    "correlation": ("matthews_corrcoef", matthews_corrcoef),
    "F2": (
        make_scorer(fbeta_score, beta=2, pos_label=-1),
        lambda y, p: fbeta_score(y, p, beta=2, pos_label=-1),
    ),
    "F1 of normal samples": (make_scorer(f1_score), f1_score),
    "loss": (
        make_scorer(zero_one_loss, greater_is_better=False),
        lambda y, p: -zero_one_loss(y, p),
    ),
    "function": (
        lambda estimator, X, y: accuracy_score(y, estimator.predict(X)),
        accuracy_score,
    ),
}


@pytest.mark.parametrize("name", SCORINGS)
def test_scoring_takes_names_and_scorers_of_scikit_learn(labelled, frozen, name):
    X, y = labelled
    scoring, metric = SCORINGS[name]
    detector = TunedThresholdDetector(frozen, scoring=scoring).fit(X, y)
    scores = frozen.score_samples(X)
    best = max(
        metric(y, np.where(scores < threshold, -1, 1))
        for threshold in [*scores, np.inf]
    )
    assert detector.best_score_ == pytest.approx(best)
    assert metric(y, detector.predict(X)) == pytest.approx(best)


class Unfitted(DistanceToMean):
    def fit(self, X, y=None):
        raise AssertionError("fitted in vain")


@pytest.mark.parametrize(
    "scoring", ["roc_auc", "average_precision", "neg_log_loss", image_auroc_scorer]
)
def test_a_scorer_that_needs_more_than_labels_is_refused_first(labelled, scoring):
    with pytest.raises(ValueError, match=r"does not compare labels .* such as 'f1'"):
        TunedThresholdDetector(Unfitted(), scoring=scoring).fit(*labelled)


def test_a_row_that_is_never_held_out_is_found_first(labelled):
    with pytest.raises(ValueError, match="has row 0 in no test fold"):
        TunedThresholdDetector(Unfitted(), cv=TimeSeriesSplit(3)).fit(*labelled)


def test_a_scorer_of_maps_is_refused(labelled):
    with pytest.raises(ValueError, match="pixel_auroc_scorer needs the ground-truth"):
        TunedThresholdDetector(DistanceToMean(), scoring=pixel_auroc_scorer).fit(
            *labelled
        )


def test_a_name_that_is_no_scorer_is_refused(labelled):
    with pytest.raises(ValueError, match="'scoring' parameter"):
        TunedThresholdDetector(DistanceToMean(), scoring="F1").fit(*labelled)


def test_a_score_that_is_nan_is_refused(labelled):
    with pytest.raises(ValueError, match="scoring returned NaN for 81 of 81"):
        TunedThresholdDetector(
            DistanceToMean(), scoring=lambda y_true, y_pred: np.nan
        ).fit(*labelled)


def test_of_equally_good_thresholds_the_lowest_is_chosen():
    y = np.array([-1, 1, 1])
    offset, score = best_threshold(
        None, y, np.array([0.0, 2.0, 4.0]), label_score("recall")
    )
    assert (offset, score) == (1.0, 1.0)


# Labels and scores ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "y", "message"),
    [
        ({}, None, "requires y to be passed, but the target y is None"),
        ({}, np.ones(80), r"only 1 class among 80 samples, none is anomalous \(-1\)"),
        ({}, -np.ones(80), r"only 1 class among 80 samples, none is normal \(\+1\)"),
        ({}, np.repeat([0, 1], 40), r"got 0, 1\. If 1 stands"),
        ({}, np.ones(3), "3 labels, but X has 80"),
        ({"cv": "prefit"}, np.tile([1, -1], 40), "'cv' parameter"),
    ],
)
def test_tuned_threshold_refuses(labelled, params, y, message):
    X, _ = labelled
    with pytest.raises(ValueError, match=message):
        TunedThresholdDetector(DistanceToMean(), **params).fit(X, y)


@pytest.mark.parametrize("frozen", [True, False])
def test_tuned_threshold_names_the_row_of_a_nan_score(rng, frozen):
    X = rng.normal(size=(40, 2))
    X[7, 0] = 99
    y = np.tile([1, 1, 1, -1], 10)
    estimator = NotANumber()
    if frozen:
        estimator = FrozenEstimator(estimator.fit(X[:5]))
    with pytest.raises(ValueError, match="the first is row 7 of X"):
        TunedThresholdDetector(estimator, cv=3).fit(X, y)
