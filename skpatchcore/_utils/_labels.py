"""Outlier labels: +1 normal, -1 anomalous.

One rule for every `y`: the labels are +1 and -1, or all samples have the same label and
are normal. Everything else is an error that shows how to convert the labels. A `y` that
is misunderstood would let a detector learn its defects. Only `PatchMemoryBank` warns
instead if all labels are numbers and none is negative, because scikit-learn's checks
pass such labels of classes to outlier detectors.
"""

import os
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d

from skpatchcore._utils._warnings import warn_user

# Texts of the missing values of NumPy, pandas, polars and PyArrow. Comparing the values
# is unsafe: NaN differs from itself, and pandas.NA has no truth value.
_MISSING = {"None": "None", "nan": "NaN", "<NA>": "<NA>", "NaT": "NaT"}
# Labels that probably stand for normal, the likeliest first.
_NORMAL_NAMES = ("good", "normal", "ok", "OK", "1")


def check_outlier_labels(
    y: ArrayLike, name: str = "y", n_samples: int | None = None
) -> NDArray[np.int64]:
    """Return labels as a 1-D array in which every value is +1 or -1.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        +1 for normal and -1 for anomalous samples. If all samples have the same label
        and it is not -1, they are all normal.
    name : str
        How messages refer to `y`.
    n_samples : int or None
        Number of samples in X, if known.

    Returns
    -------
    labels : ndarray of shape (n_samples,), int64

    Raises
    ------
    ValueError
        If `y` has another length than X, a label is missing, or the labels are others
        than +1 and -1. The message shows a conversion.
    """
    array: NDArray = column_or_1d(y)
    if n_samples is not None and len(array) != n_samples:
        raise ValueError(
            f"{name} has {len(array)} labels, but X has {n_samples} samples."
        )
    values: list[Any] = array.tolist()
    _check_not_missing(values, name)
    labels = set(values)
    if len(labels) == 1 and labels != {-1}:
        return np.ones(len(values), dtype=np.int64)
    if labels - {-1, 1}:
        raise OtherLabels(
            f"{name} must contain the labels +1 (normal) and -1 (anomalous), got "
            f"{_shown(labels)}. {_remedy(labels, name)}"
        )
    return np.array(values, dtype=np.int64)


class OtherLabels(ValueError):
    """Labels that are complete, but not +1 and -1."""


def _check_not_missing(values: list[Any], name: str) -> None:
    missing = [i for i, value in enumerate(values) if missing_name(value)]
    if missing:
        raise ValueError(
            f"{name} contains {missing_name(values[missing[0]])}: {len(missing)} of "
            f"{len(values)} samples have no label, the first is sample {missing[0]} "
            f"(got {_shown(set(values))}). Label each sample +1 (normal) or -1 "
            "(anomalous), or leave it out."
        )


def missing_name(value: Any) -> str | None:
    """Return the name of a table's missing value, such as NaN; None for all others."""
    if hasattr(value, "as_py"):  # A scalar of PyArrow.
        value = value.as_py()
    if hasattr(value, "__len__") or isinstance(value, os.PathLike):
        return None  # A text, a path or an array may have the same text.
    return _MISSING.get(str(value))


def _shown(labels: set[Any]) -> str:
    shown = sorted(set(map(repr, labels)))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _remedy(labels: set[Any], name: str) -> str:
    """Return how to convert `labels`, with a guess which of them is normal."""
    if labels == {0, 1}:
        return (
            f"If 1 stands for anomalous in your labels, pass np.where({name} == 1, -1, "
            f"1); if it stands for normal, pass np.where({name} == 1, 1, -1)."
        )
    names = [label for label in _NORMAL_NAMES if label in labels]
    if names:
        normal: Any = names[0]
    elif -1 in labels and 1 in labels:
        normal = 1
    else:
        normal = min(labels, key=lambda label: (isinstance(label, str), label))
    return (
        f"If {normal!r} stands for normal in your labels, pass np.where({name} == "
        f"{normal!r}, 1, -1)."
    )


def normal_rows(
    y: ArrayLike | None, n_samples: int, *, ignore_others: bool = False
) -> NDArray[np.intp]:
    """Return the rows to learn from: all except those labelled -1.

    With `ignore_others`, numbers of classes (0 and more) are ignored with a warning.
    scikit-learn's checks require that of an outlier detector on plain matrices: they
    pass such labels to it.

    Raises
    ------
    ValueError
        If `y` is not as for `check_outlier_labels`, or labels every row -1.
    """
    if y is None:
        return np.arange(n_samples)
    try:
        labels = check_outlier_labels(y, n_samples=n_samples)
    except OtherLabels as error:
        if not (ignore_others and _are_classes(y)):
            raise
        warn_user(
            f"y was ignored, and all {n_samples} samples are learned from: {error}",
        )
        return np.arange(n_samples)
    rows = np.flatnonzero(labels == 1)
    if len(rows) == 0 and n_samples > 0:
        raise ValueError(
            f"All {n_samples} samples are labelled -1 (anomalous). Add normal samples, "
            "labelled +1: only these are learned from."
        )
    return rows


def _are_classes(y: ArrayLike) -> bool:
    """Return whether all labels are numbers (bool is not one) and none is negative."""
    return all(
        isinstance(label, Real) and not isinstance(label, bool) and float(label) >= 0
        for label in column_or_1d(y).tolist()
    )


def labels_from_decision(decision: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return +1 where `decision` is 0 or more, else -1."""
    return np.where(decision >= 0, 1, -1)
