"""Outlier labels: +1 normal, -1 anomalous."""

import warnings

import numpy as np
from sklearn.utils import check_array, check_consistent_length


def normal_rows(y, n_samples: int) -> np.ndarray:
    """Return the rows to learn from: all but those labelled -1.

    Raises
    ------
    ValueError
        If `y` has another length than X, or leaves nothing to learn from.
    """
    if y is None:
        return np.arange(n_samples)
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y").ravel()
    check_consistent_length(np.arange(n_samples), y)
    if set(np.unique(y)) == {0, 1}:
        warnings.warn(
            "y holds the labels 0 and 1; outlier labels are +1 (normal) and -1 "
            "(anomalous). Nothing was left out of the training set.",
            UserWarning,
            stacklevel=3,
        )
    rows = np.flatnonzero(y != -1)
    if len(rows) == 0:
        raise ValueError(
            f"All {n_samples} samples are labelled -1 (anomalous); normal ones, "
            "labelled +1, are needed to learn from."
        )
    return rows
