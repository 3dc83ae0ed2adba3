"""Detectors whose scores are higher for more anomalous samples are refused."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import SGDOneClassSVM
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skpatchcore import PatchMemoryBank
from skpatchcore._detectors import check_signs
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.inspection import ScoreDistributionDisplay
from skpatchcore.metrics import (
    average_precision_scorer,
    f1_max_scorer,
    image_auroc_scorer,
)

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(40, 2)), RNG.normal(9, 1, (10, 2))])
y = np.repeat([1, -1], [40, 10])


class Knn(BaseEstimator):
    """A detector with the signs of pyod: labels 0 and 1, and higher for anomalous."""

    def fit(self, X, y=None):
        self.mean_ = np.mean(X, axis=0)
        self.threshold_ = np.quantile(self.decision_function(X), 0.9)
        return self

    def decision_function(self, X):
        return np.linalg.norm(X - self.mean_, axis=1)

    def predict(self, X):
        return (self.decision_function(X) > self.threshold_).astype(int)


class KnnWithScores(Knn):
    def score_samples(self, X):
        return self.decision_function(X)


class KnnWithSigns(KnnWithScores):
    """It labels as scikit-learn does, but scores with the opposite sign."""

    def decision_function(self, X):
        offset = getattr(self, "threshold_", 0)
        return np.linalg.norm(X - self.mean_, axis=1) - offset

    def predict(self, X):
        return np.where(self.decision_function(X) > 0, -1, 1)


class Pyod:
    """As those of pyod, it inherits nothing from scikit-learn; it labels nothing."""

    def get_params(self, deep=True):
        return {}

    def fit(self, X, y=None):
        self.mean_ = np.mean(X, axis=0)
        self.decision_scores_ = self.decision_function(X)
        return self

    def decision_function(self, X):
        return np.linalg.norm(X - self.mean_, axis=1)


class Wrapped(OutlierMixin, BaseEstimator):
    """The remedy that the message names."""

    def fit(self, X, y=None):
        self.knn_ = Pyod().fit(X)
        return self

    def score_samples(self, X):
        return -self.knn_.decision_function(X)

    decision_function = score_samples


def display(estimator):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    try:
        return ScoreDistributionDisplay.from_estimator(estimator.fit(X[:40]), X, y)
    finally:
        plt.close("all")


# What accepts any detector.
TAKERS = {
    **{
        method: lambda estimator, method=method: ConformalDetector(
            estimator, alpha=0.1, method=method
        ).fit(X[:40])
        for method in ("cross", "refit", "split", "jackknife+")
    },
    "tuned": lambda estimator: TunedThresholdDetector(estimator).fit(X, y),
    "frozen, calibrated": lambda estimator: ConformalDetector(
        FrozenEstimator(estimator.fit(X[:40])), alpha=0.1
    ).fit(X[:40]),
    "frozen, tuned": lambda estimator: TunedThresholdDetector(
        FrozenEstimator(estimator.fit(X[:40]))
    ).fit(X, y),
    "AUROC": lambda estimator: image_auroc_scorer(estimator.fit(X[:40]), X, y),
    "precision": lambda estimator: average_precision_scorer(
        estimator.fit(X[:40]), X, y
    ),
    "F1": lambda estimator: f1_max_scorer(estimator.fit(X[:40]), X, y),
    "display": display,
}
OPPOSITE = {
    "labels": (Knn(), "its predict labels normal samples 0 instead of"),
    "labels, scores": (KnnWithScores(), "its predict labels normal samples 0 instead"),
    "pyod": (Pyod(), "it has decision_scores_, as the detectors of pyod do"),
    "pipeline": (make_pipeline(StandardScaler(), Knn()), "Knn seems to score"),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", OPPOSITE)
def test_the_opposite_sign_is_refused(taker, name):
    estimator, reason = OPPOSITE[name]
    with pytest.raises(TypeError, match=rf"{reason}.*score_samples\(X\) returns -"):
        TAKERS[taker](estimator)


@pytest.mark.parametrize("taker", TAKERS)
def test_decisions_that_contradict_labels_are_refused(taker):
    with pytest.raises(TypeError, match=r"contradict|is lowest, and -1 where"):
        TAKERS[taker](KnnWithSigns())


class Given:
    """A detector that returns what it is given: pairs of a label and a decision."""

    def predict(self, X):
        return np.array([label for label, _ in X])

    def decision_function(self, X):
        return np.array([decision for _, decision in X])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(1, -2), (1, -0.5)], r"returns \+1 for each of 2 .* between -2 and -0\.5\."),
        ([(-1, 0), (-1, 3)], r"returns -1 for each of 2 .* between 0 and 3\."),
        ([(1, 2), (-1, 3)], r"returns \+1 where its decision_function is lowest"),
        ([("good", 1), ("bad", -1)], r"other labels than \+1 and -1: 'bad', 'good'\."),
        ([(2, 1), (3, 1)], r"other labels than \+1 and -1: 2, 3\."),
    ],
)
def test_labels_that_contradict_decisions_are_refused_with_a_remedy(samples, message):
    with pytest.raises(TypeError, match=rf"{message}.*Wrap it in an estimator whose"):
        check_signs(Given(), samples)


@pytest.mark.parametrize(
    "samples",
    [
        [(1, 2), (-1, -3)],
        [(1, -2), (-1, -3)],  # Another threshold.
        [(1, 0), (1, 0)],
        [(1, -1e-12), (-1, 1e-12)],
        [(1, -1e-12)],
        [(1, 2), (1, -1)],
        [(1.0, np.nan)],
    ],
)
def test_labels_that_do_not_contradict_decisions_are_accepted(samples):
    check_signs(Given(), samples)


@pytest.mark.parametrize("taker", TAKERS)
def test_the_remedy_is_accepted(taker):
    TAKERS[taker](Wrapped())


def test_the_remedy_finds_outliers():
    detector = ConformalDetector(Wrapped(), alpha=0.1, random_state=0).fit(X[:40])
    assert (detector.predict(X[40:]) == -1).all()
    assert image_auroc_scorer(Wrapped().fit(X[:40]), X, y) == 1


@pytest.mark.parametrize(
    "estimator",
    [
        IsolationForest(n_estimators=5, random_state=0),
        OneClassSVM(),
        EllipticEnvelope(random_state=0),
        LocalOutlierFactor(novelty=True),
        SGDOneClassSVM(random_state=0),
        PatchMemoryBank(),
        # Its labels are numbers of components, but higher is more normal.
        GaussianMixture(2, random_state=0),
        KernelDensity(),
        make_pipeline(StandardScaler(), OneClassSVM()),
        GridSearchCV(
            make_pipeline(StandardScaler(), IsolationForest(n_estimators=5)),
            {"isolationforest__random_state": [0]},
            scoring=lambda estimator, X, y=None: 0.0,
            cv=2,
        ),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_detectors_with_the_signs_of_scikit_learn_are_accepted(estimator):
    ConformalDetector(estimator, alpha=0.1, random_state=0).fit(X[:40])
    TunedThresholdDetector(estimator).fit(X, y)


def test_no_labels_are_asked_of_detectors_of_scikit_learn(monkeypatch):
    detector = OneClassSVM().fit(X)
    monkeypatch.setattr(OneClassSVM, "predict", None)
    check_signs(detector, X)
