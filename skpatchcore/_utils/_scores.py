"""Compute and check the scores of any outlier detector."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def normality(
    estimator: Any, X: Any, rows: NDArray | None = None
) -> NDArray[np.float64]:
    """Return scores (n,), float64: ``score_samples``, else ``decision_function``.

    If `X` is a part of the samples, pass their row numbers for error messages as
    `rows`.

    Raises
    ------
    ValueError
        If a score is NaN.
    """
    method = getattr(estimator, "score_samples", None)
    method = estimator.decision_function if method is None else method
    scores = np.asarray(method(X), dtype=np.float64).ravel()
    check_scores(np.isnan(scores), estimator, X, rows)
    return scores


def check_scores(
    bad: NDArray[np.bool_], estimator: Any, X: Any, rows: NDArray | None = None
) -> None:
    """Raise an error that names the first sample whose score is not a number."""
    wrong = np.flatnonzero(bad)
    if wrong.size == 0:
        return
    first = int(wrong[0])
    row = first if rows is None else int(rows[first])
    raise ValueError(
        f"{type(estimator).__name__} gave NaN or infinity as the score of {wrong.size} "
        f"of {len(bad)} samples; the first is row {row} of X{_name(X, first)}. A score "
        "must be a finite number: look for NaN or infinity in that sample and correct "
        "it or leave it out. If the sample is fine, look for them in the samples that "
        "the estimator was fitted on."
    )


def _name(X: Any, i: int) -> str:
    """Return the path of a sample in parentheses, or "" if it has none."""
    rows = getattr(X, "iloc", X)
    sample = rows[i] if hasattr(rows, "__getitem__") else None
    return f" ({os.fspath(sample)})" if isinstance(sample, str | os.PathLike) else ""
