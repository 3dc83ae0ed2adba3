"""Fit estimators without some rows, and score these rows, to calibrate with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeaveOneOut,
    ShuffleSplit,
)
from sklearn.utils import Bunch

from skpatchcore._detectors import (
    check_signs,
    features_once,
    find_detector,
    fit_clone,
    has_maps,
    held_out_splits,
    in_order,
)
from skpatchcore._utils import check_scores, normality, safe_indexing


def scoring_part(estimator: Any) -> Any:
    """Return the estimator that gives the scores, without tuned thresholds around it.

    It is frozen if any of the estimators around it is.
    """
    part, frozen = estimator, False
    while True:
        if isinstance(part, FrozenEstimator):
            part, frozen = part.estimator, True
        elif hasattr(part, "_scored_by"):
            part = part._scored_by(fitted=frozen)
        else:
            break
    if getattr(estimator, "estimator", None) is part and frozen:
        return estimator  # Not a copy: it is the very estimator that was given.
    return FrozenEstimator(part) if frozen else part


def split_rows(
    detector: Any,
    X: Any,
    rows: NDArray,
    *,
    y: Any,
    groups: NDArray | None,
    params: Mapping,
) -> list[tuple]:
    """Return pairs of positions in `rows`: to fit on, and to calibrate on.

    Parameters
    ----------
    detector : ConformalDetector
        Its parameters say what is held out.
    X : array-like or sequence of images
        All samples.
    rows : ndarray of shape (n_rows,), int64
        The normal rows of `X`.
    y : array-like of shape (n_samples,) or None
        Labels for a splitter.
    groups : ndarray of shape (n_samples,), int, or None
        No group is on both sides of a split.
    params : dict
        Further arguments of a splitter.
    """
    everything = np.arange(len(rows))
    if isinstance(scoring_part(detector.estimator), FrozenEstimator):
        return [(everything[:0], everything)]
    if groups is not None:
        params = {"groups": groups, **params}
    if detector.method == "split":
        kind = ShuffleSplit if groups is None else GroupShuffleSplit
        splitter = kind(
            1, test_size=detector.calibration_size, random_state=detector.random_state
        )
        groups = None if groups is None else groups[rows]
        return list(splitter.split(everything, groups=groups))
    cv = detector.cv
    if detector.method == "jackknife+":
        cv = LeaveOneOut() if groups is None else LeaveOneGroupOut()
    return held_out_splits(
        cv, X, rows, detector.random_state, y=y, groups=groups, params=params
    )


def cross_fit(
    estimator: Any,
    X: Any,
    rows: NDArray,
    splits: list[tuple],
    params: Mapping,
    *,
    refit: bool,
) -> Bunch:
    """Return fitted estimators, and what they give for the rows held out.

    With `refit`, those of the folds are replaced by one that is fitted on all rows.

    Returns
    -------
    fitted : Bunch
        ``estimators``, and the ``training_rows`` of each; of the rows held out, in the
        order of `splits`, ``scores``, ``peaks`` (of maps, empty without) and ``folds``,
        the position of the estimator that each score is compared with.
    """
    folds = np.repeat(np.arange(len(splits)), [len(test) for _, test in splits])
    training_rows = [rows[train] for train, _ in splits]
    with features_once(estimator, len(splits)) as (given, give_back):
        estimators, scores, peaks = _score_held_out(given, X, rows, splits, params)
        if refit and len(splits) > 1:
            estimators = [fit_clone(given, X, rows, params)]
            folds = np.zeros_like(folds)
            training_rows = [rows]
        give_back(estimators)
    return Bunch(
        estimators=estimators,
        scores=scores,
        peaks=peaks,
        folds=folds,
        training_rows=training_rows,
    )


def _score_held_out(
    estimator: Any, X: Any, rows: NDArray, splits: list[tuple], params: Mapping
) -> tuple[list[Any], NDArray, NDArray]:
    """Return an estimator for each split, and what they give for held-out rows."""
    estimators, scores, peaks = [], [], []
    for train, test in splits:
        fitted = fit_clone(estimator, X, rows[train], params)
        held_out = safe_indexing(X, rows[test])
        # Before the next fit, so that scores that are useless end the work early.
        score, peak = _score_images(fitted, held_out, rows[test])
        estimators.append(fitted)
        scores.append(score)
        peaks.append(peak)
    return estimators, np.concatenate(scores), np.concatenate(peaks)


def _score_images(estimator: Any, X: Any, rows: NDArray) -> tuple[NDArray, NDArray]:
    """Return finite scores, and the largest value in the map of each image, if any."""
    check_signs(estimator, X)
    if has_maps(estimator):
        found = in_order(find_detector(estimator).inspect(X))
        scores = np.array([seen.score for seen in found])
        peaks = np.array([seen.peak for seen in found])
    else:
        scores, peaks = normality(estimator, X, rows), np.empty(0)
    check_scores(~np.isfinite(scores), estimator, X, rows)
    return scores, peaks
