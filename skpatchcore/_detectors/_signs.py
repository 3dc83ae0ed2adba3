"""Detectors whose scores are higher for more anomalous samples, as those of pyod."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import OutlierMixin

from skpatchcore._detectors._find import unwrap
from skpatchcore._utils import DecisionMixin, num_samples, safe_indexing

# Among so many samples of any kind, not all are flagged.
_N_LABELS = 16
# Decisions so close to 0 may have either label.
_ROUNDING = 1e-8
_EXPECTED = (
    "Expected a detector with the signs of scikit-learn: decision_function is higher "
    "for more normal samples and negative for anomalous ones, and predict returns +1 "
    "for normal and -1 for anomalous ones."
)


def check_signs(estimator: Any, X: Any) -> None:
    """Raise if a fitted detector does not have the signs of scikit-learn.

    Detectors without ``decision_function`` are not checked: the name ``score_samples``
    is used by scikit-learn only, where higher is more normal (also by densities, whose
    ``predict`` returns numbers of components).

    Parameters
    ----------
    estimator : estimator
        A fitted detector, or a pipeline, a search or a `FrozenEstimator` of one.
    X : array-like or sequence of images
        Samples that it accepts. A few of them are labelled and scored.

    Raises
    ------
    TypeError
        If the detector has ``decision_scores_``, labels normal samples 0 or has other
        labels than +1 and -1, or if its labels contradict its ``decision_function``.
    """
    if not hasattr(estimator, "decision_function"):
        return
    refuse_decision_scores(estimator)
    inner, _ = unwrap(estimator)
    if _has_signs_of_scikit_learn(inner) or not hasattr(estimator, "predict"):
        return
    few = safe_indexing(X, np.arange(min(num_samples(X), _N_LABELS)))
    labels = np.ravel(np.asarray(estimator.predict(few)))
    _check_labels(inner, set(labels.tolist()))
    decision = np.ravel(np.asarray(estimator.decision_function(few)))
    if len(decision) == len(labels):
        _check_contradiction(inner, labels, decision)


def _check_labels(estimator: Any, labels: set[Any]) -> None:
    if 0 in labels and labels <= {0, 1}:
        raise _opposite(estimator, "its predict labels normal samples 0 instead of +1")
    if labels - {-1, 1}:
        name = type(estimator).__name__
        shown = ", ".join(sorted(set(map(repr, labels)))[:5])
        raise TypeError(
            f"{name}.predict returns other labels than +1 and -1: {shown}. {_EXPECTED} "
            f"Wrap it in an estimator whose score_samples(X) returns "
            f"{name.lower()}.decision_function(X), or its negative if that is higher "
            "for more anomalous samples, and pass that."
        )


def _check_contradiction(estimator: Any, labels: NDArray, decision: NDArray) -> None:
    """Raise if labels are opposite to decisions: in order if both occur, else in sign.

    Only the order counts if both occur. So decisions may have any threshold.
    """
    normal, anomalous = decision[labels == 1], decision[labels == -1]
    if len(normal) and len(anomalous):
        if anomalous.min() - normal.max() > _ROUNDING:
            raise _opposite(
                estimator,
                "its predict returns +1 where its decision_function is lowest, and -1 "
                "where it is highest",
            )
        return
    signed = labels * decision
    if (signed <= 0).all() and (signed < -_ROUNDING).any():
        name = type(estimator).__name__
        raise TypeError(
            f"predict and decision_function of {name} contradict each other: predict "
            f"returns {int(labels[0]):+d} for each of {len(labels)} samples, but "
            f"decision_function is between {decision.min():.3g} and "
            f"{decision.max():.3g}. {_EXPECTED} Wrap it in an estimator whose "
            f"score_samples(X) returns -{name.lower()}.decision_function(X) if that is "
            "higher for more anomalous samples, or without the minus if only its "
            "threshold is not 0, and pass that."
        )


def refuse_decision_scores(estimator: Any) -> None:
    """Raise if a detector has what those of pyod have once they are fitted."""
    inner, _ = unwrap(estimator)
    if hasattr(inner, "decision_scores_"):
        raise _opposite(inner, "it has decision_scores_, as the detectors of pyod do")


def _has_signs_of_scikit_learn(estimator: Any) -> bool:
    """Return whether asking for labels, which may take long, can be avoided."""
    of_scikit_learn = type(estimator).__module__.startswith("sklearn.")
    return isinstance(estimator, DecisionMixin) or (
        of_scikit_learn and isinstance(estimator, OutlierMixin)
    )


def _opposite(estimator: Any, reason: str) -> TypeError:
    name = type(estimator).__name__
    return TypeError(
        f"{name} seems to score anomalous samples higher than normal ones: {reason}. "
        f"{_EXPECTED} Wrap it in an estimator whose score_samples(X) returns "
        f"-{name.lower()}.decision_function(X), and pass that."
    )
