"""Detectors whose scores are higher for more anomalous samples, as those of pyod."""

from typing import Any

import numpy as np
from sklearn.base import OutlierMixin

from skpatchcore._detectors._find import unwrap
from skpatchcore._utils import DecisionMixin, num_samples, safe_indexing

# Among so many samples of any kind, not all are flagged.
_N_LABELS = 16


def check_signs(estimator: Any, X: Any, method: str | None = None) -> None:
    """Raise if a fitted detector scores anomalous samples higher than normal ones.

    The name ``score_samples`` is used by scikit-learn only, where higher is more normal
    (also by densities, whose ``predict`` returns numbers of components). But detectors
    with the opposite sign have a ``decision_function``, too.

    Parameters
    ----------
    estimator : estimator
        A fitted detector, or a pipeline, a search or a `FrozenEstimator` of one.
    X : array-like or sequence of images
        Samples that it accepts. A few of them are labelled.
    method : str or None
        The method that gives the scores. None: ``decision_function``, unless there is
        ``score_samples``.

    Raises
    ------
    TypeError
        If the detector has ``decision_scores_``, or labels normal samples 0.
    """
    if method is None:
        has_scores = hasattr(estimator, "score_samples")
        method = "score_samples" if has_scores else "decision_function"
    if method == "score_samples":
        return
    refuse_decision_scores(estimator)
    inner, _ = unwrap(estimator)
    if _has_signs_of_scikit_learn(inner) or not hasattr(estimator, "predict"):
        return
    few = safe_indexing(X, np.arange(min(num_samples(X), _N_LABELS)))
    labels = set(np.unique(estimator.predict(few)).tolist())
    if 0 in labels and labels <= {0, 1}:
        raise _opposite(inner, "its predict labels normal samples 0 instead of +1")


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
        "Expected a detector with the signs of scikit-learn: decision_function is "
        "higher for more normal samples, and predict returns +1 for normal and -1 for "
        "anomalous ones. Wrap it in an estimator whose score_samples(X) returns "
        f"-{name.lower()}.decision_function(X), and pass that."
    )
