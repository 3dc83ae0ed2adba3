"""Detectors whose scores are higher for more anomalous samples are refused."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
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
        PatchMemoryBank(),
        # Its labels are numbers of components, but higher is more normal.
        GaussianMixture(2, random_state=0),
        make_pipeline(StandardScaler(), OneClassSVM()),
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
