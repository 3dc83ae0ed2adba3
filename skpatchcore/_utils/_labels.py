"""Outlier labels: +1 normal, -1 anomalous."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d


def check_outlier_labels(y: ArrayLike, name: str = "y") -> NDArray:
    """Return labels as a 1-D array that holds nothing but +1 and -1.

    Raises
    ------
    ValueError
        If a label is another number or a string; the message calls `y` by `name`.
    """
    y = column_or_1d(y)
    labels = set(y.tolist())
    if labels - {-1, 1}:
        shown = ", ".join(sorted(map(repr, labels))[:5])
        raise ValueError(
            f"{name} must hold the labels +1 (normal) and -1 (anomalous), got "
            f"{shown}{', ...' if len(labels) > 5 else ''}. {_remedy(labels, name)}"
        )
    return y


def _remedy(labels: set, name: str) -> str:
    if any(isinstance(label, str) for label in labels):
        return (
            f"If normal samples are called 'good', pass np.where({name} == 'good', 1, "
            "-1)."
        )
    return (
        f"If 1 stands for anomalous in your labels, pass np.where({name} == 1, -1, 1)."
    )


def normal_rows(y, n_samples: int) -> np.ndarray:
    """Return the rows to learn from: all but those labelled -1.

    Raises
    ------
    ValueError
        If `y` has another length than X, holds strings, or leaves nothing to learn
        from.
    """
    if y is None:
        return np.arange(n_samples)
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y").ravel()
    if len(y) != n_samples:
        raise ValueError(f"y has {len(y)} labels, but X has {n_samples} samples.")
    if any(isinstance(label, str) for label in y):
        # No string equals -1: every anomaly would be learned as normal.
        raise ValueError(
            f"y holds strings such as {str(y[0])!r}; expected +1 for normal and -1 for "
            "anomalous samples."
        )
    if set(np.unique(y)) == {0, 1}:
        warnings.warn(
            "y holds the labels 0 and 1; outlier labels are +1 (normal) and -1 "
            "(anomalous). Nothing was left out of the training set.",
            UserWarning,
            stacklevel=4,
        )
    rows = np.flatnonzero(y != -1)
    if len(rows) == 0:
        raise ValueError(
            f"All {n_samples} samples are labelled -1 (anomalous); normal ones, "
            "labelled +1, are needed to learn from."
        )
    return rows


def learnable_rows(y, n_samples: int) -> np.ndarray:
    """Return `normal_rows` where `y` holds outlier labels, else all rows.

    For a transformer, whose `y` may be anything that a later step learns to predict.
    """
    labels = np.ravel([] if y is None else np.asarray(y)).tolist()
    if len(labels) != n_samples or set(labels) != {-1, 1}:
        return np.arange(n_samples)
    return normal_rows(y, n_samples)


def labels_from_decision(decision: np.ndarray) -> np.ndarray:
    """Return +1 where `decision` is 0 or more, else -1."""
    return np.where(decision >= 0, 1, -1)
