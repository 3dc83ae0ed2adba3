"""Image-level metrics: scores against labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_array, check_consistent_length, column_or_1d

from skpatchcore._utils import check_outlier_labels
from skpatchcore.metrics._ranking import _as_floating, _rank, _Ranking

# Image level ------------------------------------------------------------------------


def image_auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the receiver operating characteristic, one score an image.

    It is the probability that an anomalous image gets a lower score than a normal
    one, ties counting half. It needs no threshold and does not depend on how many
    anomalies there are, which makes it the usual figure for comparing detectors.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous; both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores of any unit, higher is more normal, as ``score_samples`` or
        ``decision_function`` gives them.

    Returns
    -------
    float
        AUROC in [0, 1]: 1 for a perfect ranking, 0.5 for guessing.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, or the lengths differ.

    See Also
    --------
    pixel_auroc : The same for the pixels of anomaly maps.

    Examples
    --------
    >>> from skpatchcore.metrics import image_auroc
    >>> image_auroc([1, 1, 1, -1], [0.9, 0.8, 0.3, 0.4])
    0.666...
    """
    return _rank_images(y_true, y_score).auroc()


def average_precision(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Average precision of the anomalous class, one score an image.

    It is the precision at the score of an anomalous image, averaged over them. Prefer
    it to `image_auroc` when anomalies are rare: a few false alarms, invisible in the
    false-positive rate of a thousand good parts, can outnumber the defects.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous; both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores of any unit, higher is more normal, as ``score_samples`` or
        ``decision_function`` gives them.

    Returns
    -------
    float
        Average precision in (0, 1]; guessing gives about the share of anomalies.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, or the lengths differ.

    See Also
    --------
    sklearn.metrics.average_precision_score : The definition, for the class with the
        larger label and the higher scores.

    Examples
    --------
    >>> from skpatchcore.metrics import average_precision
    >>> average_precision([1, 1, 1, -1], [0.9, 0.8, 0.3, 0.4])
    0.5
    """
    return _rank_images(y_true, y_score).average_precision()


def f1_max(y_true: ArrayLike, y_score: ArrayLike) -> Bunch:
    """Largest F1 of the anomalous class over all thresholds, and the threshold.

    The threshold is chosen on the very labels that rate it, so the figure is an upper
    bound for comparing detectors, as published benchmarks use it. For a threshold to
    work with, calibrate on normal images that are not in the test set.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous; both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores of any unit, higher is more normal, as ``score_samples`` or
        ``decision_function`` gives them.

    Returns
    -------
    Bunch
        With these fields, all float:

        f1
            The largest F1, in (0, 1]. Of equal ones, that with fewest false alarms.
        threshold
            An image is called anomalous if ``y_score < threshold``; that rule gives
            exactly the other three figures. In the unit of `y_score`, midway between
            the two neighbouring scores; inf if everything is called anomalous.
        precision
            Share of anomalous images among those called so, in (0, 1].
        recall
            Share of those called so among the anomalous images, in (0, 1].

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, or the lengths differ.

    See Also
    --------
    pixel_f1_max : The same for the pixels of anomaly maps.

    Examples
    --------
    >>> from skpatchcore.metrics import f1_max
    >>> best = f1_max([1, 1, 1, -1, -1], [8.0, 6.0, 1.0, 4.0, 0.0])
    >>> best.f1, best.threshold
    (0.8, 5.0)
    >>> best.recall
    1.0
    """
    best = _rank_images(y_true, y_score).best_f1()
    # A difference, since a plain minus would turn 0.0 into -0.0.
    best.threshold = 0.0 - best.threshold
    return best


def _rank_images(y_true: ArrayLike, y_score: ArrayLike) -> _Ranking:
    """Validate labels and scores, and rank the images by anomaly."""
    y_true = _check_labels(y_true)
    y_score = check_array(
        y_score, ensure_2d=False, ensure_all_finite=False, input_name="y_score"
    )
    y_score = _as_floating(column_or_1d(y_score))
    check_consistent_length(y_true, y_score)
    wrong = np.flatnonzero(~np.isfinite(y_score))
    if wrong.size:
        raise ValueError(
            f"y_score contains {'NaN' if np.isnan(y_score).any() else 'infinity'}: "
            f"{wrong.size} of {y_score.size} scores are not finite, the first of them "
            f"y_score[{wrong[0]}] = {y_score[wrong[0]]}. Correct that sample, or leave "
            "it out."
        )
    anomalous = -y_score[y_true == -1]
    return _rank(-y_score[y_true == 1], anomalous, np.ones(anomalous.size))


def _check_labels(y_true: ArrayLike) -> NDArray:
    """Labels as a 1-D array that holds both +1 and -1 and nothing else."""
    y_true = check_outlier_labels(y_true, "y_true")
    for label, name in ((1, "normal"), (-1, "anomalous")):
        if label not in y_true:
            raise ValueError(
                f"y_true holds no {name} image ({label:+d}) among its "
                f"{y_true.size}: the metric needs both classes."
            )
    return y_true
