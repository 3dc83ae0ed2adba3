"""Outlier labels: +1 normal, -1 anomalous."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d


def check_outlier_labels(y: ArrayLike, name: str = "y") -> NDArray:
    """Return labels as a 1-D array in which every value is +1 or -1.

    Raises
    ------
    ValueError
        If a label is another number or a string. The message refers to `y` as `name`.
    """
    array: NDArray = column_or_1d(y)
    labels = set(array.tolist())
    if labels - {-1, 1}:
        shown = ", ".join(sorted(map(repr, labels))[:5])
        raise ValueError(
            f"{name} must contain the labels +1 (normal) and -1 (anomalous), got "
            f"{shown}{', ...' if len(labels) > 5 else ''}. {_remedy(labels, name)}"
        )
    return array


def _remedy(labels: set[Any], name: str) -> str:
    if any(isinstance(label, str) for label in labels):
        return (
            f"If normal samples are called 'good', pass np.where({name} == 'good', 1, "
            "-1)."
        )
    return (
        f"If 1 stands for anomalous in your labels, pass np.where({name} == 1, -1, 1)."
    )


def normal_rows(y: ArrayLike | None, n_samples: int) -> NDArray[np.intp]:
    """Return the rows to learn from: all except those labelled -1.

    Raises
    ------
    ValueError
        If `y` does not have the length of X, contains strings, or labels every row -1.
    """
    if y is None:
        return np.arange(n_samples)
    labels: NDArray = check_array(
        y, ensure_2d=False, dtype=None, input_name="y"
    ).ravel()
    if len(labels) != n_samples:
        raise ValueError(f"y has {len(labels)} labels, but X has {n_samples} samples.")
    if any(isinstance(label, str) for label in labels):
        # No string equals -1, so every anomaly would be learned as normal.
        raise ValueError(
            f"y contains strings such as {str(labels[0])!r}; expected +1 for normal "
            "and -1 for anomalous samples."
        )
    if set(np.unique(labels)) == {0, 1}:
        warnings.warn(
            "y contains the labels 0 and 1; outlier labels are +1 (normal) and -1 "
            "(anomalous). No sample was left out of the training set. If 1 stands for "
            "anomalous in your labels, pass np.where(y == 1, -1, 1).",
            UserWarning,
            stacklevel=4,
        )
    rows = np.flatnonzero(labels != -1)
    if len(rows) == 0:
        raise ValueError(
            f"All {n_samples} samples are labelled -1 (anomalous). Add normal samples, "
            "labelled +1: the detector learns only from these."
        )
    return rows


def learnable_rows(y: ArrayLike | None, n_samples: int) -> NDArray[np.intp]:
    """Return `normal_rows` if `y` contains outlier labels, else all rows.

    Use it in transformers, whose `y` may be the target of a later step.
    """
    labels: list[Any] = np.ravel([] if y is None else np.asarray(y)).tolist()
    if len(labels) != n_samples or set(labels) != {-1, 1}:
        return np.arange(n_samples)
    return normal_rows(y, n_samples)


def labels_from_decision(decision: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return +1 where `decision` is 0 or more, else -1."""
    return np.where(decision >= 0, 1, -1)
