"""Image-level metrics: compare scores with labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_array, check_consistent_length, column_or_1d

from skpatchcore._utils import check_outlier_labels
from skpatchcore.metrics._ranking import (
    Ranking,
    UndefinedMetricError,
    as_floating,
    rank,
)


def image_auroc(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Area under the receiver operating characteristic (ROC) curve for images.

    This is the probability that an anomalous image gets a lower score than a normal
    one, where ties count half. It needs no threshold and does not depend on the share
    of anomalies. So it is the usual metric for comparing detectors.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous. Both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores on any scale, as from ``score_samples`` or ``decision_function``.
        Higher is more normal.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weight of each image, at least 0; 2 counts an image twice. None: 1.

    Returns
    -------
    float
        AUROC in [0, 1]: 1 for a perfect ranking, about 0.5 for random scores.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, a weight is negative or not finite, or the lengths differ.

    See Also
    --------
    pixel_auroc : The same metric for the pixels of anomaly maps.

    Examples
    --------
    >>> from skpatchcore.metrics import image_auroc
    >>> image_auroc([1, 1, 1, -1], [0.9, 0.8, 0.3, 0.4])
    0.666...
    """
    return _rank_images(y_true, y_score, sample_weight).auroc()


def average_precision(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Average precision of the anomalous class, for images.

    This is the precision at the score of each anomalous image, averaged over these
    images. Prefer it to `image_auroc` when anomalies are rare. Among a thousand good
    parts, a few false alarms hardly change the false-alarm rate, yet there can be more
    of them than defects.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous. Both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores on any scale, as from ``score_samples`` or ``decision_function``.
        Higher is more normal.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weight of each image, at least 0; 2 counts an image twice. None: 1.

    Returns
    -------
    float
        Average precision in (0, 1]. For random scores it is about the share of
        anomalies.

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, a weight is negative or not finite, or the lengths differ.

    See Also
    --------
    sklearn.metrics.average_precision_score : Definition, for the class with the larger
        label and the higher scores.

    Examples
    --------
    >>> from skpatchcore.metrics import average_precision
    >>> average_precision([1, 1, 1, -1], [0.9, 0.8, 0.3, 0.4])
    0.5
    """
    return _rank_images(y_true, y_score, sample_weight).average_precision()


def f1_max(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> Bunch:
    """Largest F1 of the anomalous class over all thresholds, and this threshold.

    The threshold is optimised on the labels it is measured with. So the F1 is an upper
    bound; use it to compare detectors, as published benchmarks do. To choose a
    threshold for production, calibrate on held-out normal images instead.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, +1 for normal and -1 for anomalous. Both must occur.
    y_score : array-like of shape (n_samples,)
        Finite scores on any scale, as from ``score_samples`` or ``decision_function``.
        Higher is more normal.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weight of each image, at least 0; 2 counts an image twice. None: 1.

    Returns
    -------
    Bunch
        With these fields, all float:

        f1
            The largest F1, in (0, 1]. If several thresholds reach it, the one with the
            fewest false alarms is returned.
        threshold
            An image is called anomalous if ``y_score < threshold``. This rule gives
            exactly the other three values. On the scale of `y_score`, midway between
            two adjacent scores; inf if every image is called anomalous.
        precision
            Share of anomalous images among those called anomalous, in (0, 1].
        recall
            Share of anomalous images that are called anomalous, in (0, 1].

    Raises
    ------
    ValueError
        If a label is neither +1 nor -1, one class is missing, a score is NaN or
        infinite, a weight is negative or not finite, or the lengths differ.

    See Also
    --------
    pixel_f1_max : The same metric for the pixels of anomaly maps.

    Examples
    --------
    >>> from skpatchcore.metrics import f1_max
    >>> best = f1_max([1, 1, 1, -1, -1], [8.0, 6.0, 1.0, 4.0, 0.0])
    >>> best.f1, best.threshold
    (0.8, 5.0)
    >>> best.recall
    1.0
    """
    best = _rank_images(y_true, y_score, sample_weight).best_f1()
    # A difference, because a plain minus would turn 0.0 into -0.0.
    best.threshold = 0.0 - best.threshold
    return best


def image_metrics(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> dict[str, float]:
    """Return all image-level metrics by name, from one ranking of the images."""
    ranking = _rank_images(y_true, y_score, sample_weight)
    return {
        "image_auroc": ranking.auroc(),
        "average_precision": ranking.average_precision(),
        "f1_max": ranking.best_f1().f1,
    }


def _rank_images(
    y_true: ArrayLike, y_score: ArrayLike, sample_weight: ArrayLike | None
) -> Ranking:
    """Validate labels and scores, and rank the images from anomalous to normal."""
    labels = check_outlier_labels(y_true, "y_true")
    scores = _check_scores(y_score)
    # Before the classes: scorers return NaN if one is missing.
    check_consistent_length(labels, scores, sample_weight)
    _check_both_classes(labels)
    _check_finite(scores)
    weights = None if sample_weight is None else _check_weights(sample_weight)
    if weights is not None:
        counted = weights > 0
        labels, scores, weights = labels[counted], scores[counted], weights[counted]
        _check_both_classes(labels)
    normal, anomalous = labels == 1, labels == -1
    return rank(
        -scores[normal],
        -scores[anomalous],
        np.ones(np.count_nonzero(anomalous)),
        weights=None if weights is None else (weights[normal], weights[anomalous]),
    )


def _check_weights(sample_weight: ArrayLike) -> NDArray:
    weights: NDArray = column_or_1d(sample_weight).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if wrong.size:
        raise ValueError(
            f"sample_weight has {wrong.size} values that are negative or not finite, "
            f"the first is sample_weight[{wrong[0]}] = {weights[wrong[0]]}. Weights "
            "must be at least 0."
        )
    return weights


def _check_scores(y_score: ArrayLike) -> NDArray:
    array: NDArray = check_array(
        y_score,
        ensure_2d=False,
        ensure_all_finite=False,
        ensure_min_samples=0,
        input_name="y_score",
    )
    return as_floating(column_or_1d(array))


def _check_finite(scores: NDArray) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise ValueError(
            f"y_score contains {'NaN' if np.isnan(scores).any() else 'infinity'}: "
            f"{wrong.size} of {scores.size} scores are not finite, the first one is "
            f"y_score[{wrong[0]}] = {scores[wrong[0]]}. Correct that sample, or leave "
            "it out."
        )


def _check_both_classes(labels: NDArray) -> None:
    for label, name in ((1, "normal"), (-1, "anomalous")):
        if label not in labels:
            raise UndefinedMetricError(
                f"y_true contains no {name} image ({label:+d}) among {labels.size} "
                "labels; the metric needs both classes. Add images of the missing "
                "class."
            )
