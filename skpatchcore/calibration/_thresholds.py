"""The threshold with the best score of labels."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import get_scorer

# A function of X, true labels and predicted labels; higher is better.
LabelScore: TypeAlias = Callable[[Any, NDArray, NDArray], float]


class Decided(OutlierMixin, BaseEstimator):
    """A detector that has labelled the samples already, for scorers to ask."""

    def __init__(self, labels: NDArray):
        self.labels = labels

    def predict(self, X: Any) -> NDArray:
        """Return the labels. `X` is not used."""
        return self.labels


def label_score(scoring: Any) -> LabelScore:
    """Return what `scoring` stands for, as a function of labels.

    Parameters
    ----------
    scoring : str or callable
        As for `TunedThresholdDetector`.

    Returns
    -------
    score : callable
        ``score(X, y_true, y_pred) -> float``. It raises a ValueError if `scoring` needs
        more than labels.
    """
    if isinstance(scoring, str):
        scorer = get_scorer(scoring)
        # Names of scikit-learn refer to the class 1, which is the anomalous one here.
        return _asking_for_labels(
            lambda X, y_true, y_pred: scorer(Decided(-y_pred), X, -y_true), scoring
        )
    if _is_scorer(scoring):
        return _asking_for_labels(
            lambda X, y_true, y_pred: scoring(Decided(y_pred), X, y_true), scoring
        )
    return lambda X, y_true, y_pred: scoring(y_true, y_pred)


def _asking_for_labels(score: LabelScore, scoring: Any) -> LabelScore:
    """Return `score` with an error for scorers that ask for scores."""

    def checked(X: Any, y_true: NDArray, y_pred: NDArray) -> float:
        try:
            return score(X, y_true, y_pred)
        except AttributeError as error:
            raise ValueError(
                f"scoring={scoring!r} does not compare labels ({error}), so it cannot "
                "choose a threshold. Use a scorer that calls predict only, such as "
                "'f1', 'recall' or 'balanced_accuracy'."
            ) from error

    return checked


def _is_scorer(scoring: Callable) -> bool:
    """Return whether a callable takes an estimator, X and y, rather than labels."""
    if hasattr(scoring, "get_metadata_routing"):
        return True
    needed = [
        parameter
        for parameter in inspect.signature(scoring).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) > 2


def best_threshold(
    X: Any, y: NDArray, scores: NDArray, score: LabelScore
) -> tuple[float, float]:
    """Return the best threshold and the score of its labels.

    Samples whose score is below are labelled -1. All thresholds between two scores are
    tried; the first of equals is the lowest, which flags the fewest.

    Raises
    ------
    ValueError
        If `score` returns NaN.
    """
    distinct = np.unique(scores)
    middle = 0.5 * distinct[:-1] + 0.5 * distinct[1:]
    # Midway between neighbouring floats, rounding may give the lower one.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    thresholds = np.r_[distinct[0], middle, np.nextafter(distinct[-1], np.inf)]
    with warnings.catch_warnings():
        # The lowest threshold flags nothing: precision is 0 there.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        values = [score(X, y, np.where(scores < t, -1, 1)) for t in thresholds]
    if np.isnan(values).any():
        raise ValueError(
            f"scoring returned NaN for {np.isnan(values).sum()} of {len(values)} "
            "thresholds; it must return a number for any labels +1 and -1."
        )
    best = int(np.argmax(values))
    return float(thresholds[best]), float(values[best])
