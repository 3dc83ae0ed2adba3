"""Metrics of scores and of anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.metrics import auc, make_scorer
from sklearn.utils import Bunch, check_array, check_consistent_length, column_or_1d

from skpatchcore._utils import check_outlier_labels
from skpatchcore.metrics._scorers import PixelScorer

# The official evaluation of MVTec AD joins pixels that touch at a corner.
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class _Ranking:
    """Normal and anomalous items, ranked by a score that is higher for anomalous.

    Hits and overlap grow only at the score of an anomalous item, so the counts at
    those scores say everything: normal items are sorted but never ranked one by one.
    """

    normal: NDArray  # (n_normal,), ascending
    scores: NDArray  # (m,), distinct scores of anomalous items, descending
    hits: NDArray  # (m,), anomalous items at or above each score
    overlap: NDArray  # (m,), mean share of a region at or above each score
    false_alarms: NDArray  # (m,), normal items at or above each score
    false_alarms_above: NDArray  # (m,), normal items strictly above each score

    def auroc(self) -> float:
        """Probability that an anomalous item outranks a normal one, ties half."""
        n_normal, n_anomalous = self.normal.size, int(self.hits[-1])
        twice_outranked = 2 * n_normal - self.false_alarms - self.false_alarms_above
        twice_wins = int(np.diff(self.hits, prepend=0) @ twice_outranked)
        return twice_wins / (2 * n_normal * n_anomalous)

    def average_precision(self) -> float:
        """Mean precision at the score of each anomalous item."""
        precision = self.hits / (self.hits + self.false_alarms)
        return float(np.diff(self.hits, prepend=0) @ precision / self.hits[-1])

    def best_f1(self) -> Bunch:
        """Largest F1; the first of equals has the fewest false alarms."""
        f1 = 2 * self.hits / (self.hits[-1] + self.hits + self.false_alarms)
        best = int(np.argmax(f1))
        hits, false_alarms = int(self.hits[best]), int(self.false_alarms[best])
        # The next score below the best is a normal item's: one that brings hits alone
        # would have raised F1.
        return Bunch(
            f1=float(f1[best]),
            threshold=self.threshold_below(best),
            precision=hits / (hits + false_alarms),
            recall=hits / int(self.hits[-1]),
        )

    def threshold_below(self, index: int) -> float:
        """Midway from ``scores[index]`` to the next normal score below, or -inf."""
        normal_below = self.normal[: self.normal.size - self.false_alarms[index]]
        if normal_below.size == 0:
            return -np.inf
        lower, upper = normal_below[-1], self.scores[index]
        # In the dtype of the scores, or comparing a float32 map would round it again;
        # NumPy 1 would make float32 * 0.5 a float64.
        half = self.scores.dtype.type(0.5)
        middle = half * lower + half * upper
        return float(middle if lower <= middle < upper else lower)

    def aupro(self, max_fpr: float) -> float:
        """Normalised area under overlap against false positives, up to `max_fpr`."""
        # Two corners for each score, just above and at it: the curve is flat up to the
        # first, and slopes between them where the score ties with normal items.
        false_positives = np.stack([self.false_alarms_above, self.false_alarms], axis=1)
        overlap = np.stack([np.r_[0, self.overlap[:-1]], self.overlap], axis=1)
        x = np.r_[0, false_positives.ravel(), self.normal.size]
        y = np.r_[0, overlap.ravel(), 1]
        limit = max_fpr * self.normal.size
        inside = x <= limit
        at_limit = np.interp(limit, x, y)
        return float(auc(np.r_[x[inside], limit], np.r_[y[inside], at_limit]) / limit)


def _rank(normal: NDArray, anomalous: NDArray, region_sizes: NDArray) -> _Ranking:
    """Rank items; ``region_sizes[i]`` counts the items in the region of anomaly i."""
    normal = np.sort(normal)
    order = np.argsort(anomalous)[::-1]
    ranked = anomalous[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    scores = ranked[last_of_tie]
    overlap = np.cumsum(1 / region_sizes[order])[last_of_tie]
    return _Ranking(
        normal=normal,
        scores=scores,
        hits=last_of_tie + 1,
        # The last sum is the number of regions, but for rounding.
        overlap=overlap / overlap[-1],
        false_alarms=normal.size - np.searchsorted(normal, scores, side="left"),
        false_alarms_above=normal.size - np.searchsorted(normal, scores, side="right"),
    )


def _as_floating(values: NDArray) -> NDArray:
    """Keep a floating dtype as it is, turn any other one into float64."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)


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


# Pixel level ------------------------------------------------------------------------

_Images = ArrayLike | Sequence[ArrayLike | None]


def pixel_metrics(masks: _Images, maps: _Images, *, max_fpr: float = 0.3) -> Bunch:
    """All pixel-level metrics at once, from one ranking of the pixels.

    Use it for a report: sorting the pixels is nearly all the work, and here it is done
    once.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, boolean or numbers: pixels other than 0 are anomalous. In a list,
        images may differ in size, and None stands for an image without defect.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps of the same shapes, of any unit, **higher is more anomalous**. A
        floating dtype is kept, others become float64. Pixels that are NaN, such as the
        rim outside a crop, are left out of every count.
    max_fpr : float, default=0.3
        The false-positive rate up to which `aupro` integrates, in (0, 1].

    Returns
    -------
    Bunch
        With these fields, all float:

        auroc
            As from `pixel_auroc`, in [0, 1].
        average_precision
            As from `pixel_average_precision`, in (0, 1].
        aupro
            As from `aupro`, in [0, 1].
        f1, threshold, precision, recall
            As from `pixel_f1_max`; the threshold is in the unit of `maps`.

    Raises
    ------
    ValueError
        If a mask and its map differ in shape or are not 2-D, a mask holds NaN, a map
        holds an infinity, no visible pixel is anomalous or none is normal, the numbers
        of masks and maps differ, or `max_fpr` is not in (0, 1].

    Notes
    -----
    Pixels of equal score enter together. Time is mostly that of sorting the scores, and
    memory some three times that of the maps plus 120 bytes an anomalous pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.metrics import pixel_metrics
    >>> mask = np.zeros((4, 4), dtype=bool)
    >>> mask[0, :2] = True
    >>> anomaly_map = np.arange(16.0, 0.0, -1.0).reshape(4, 4)
    >>> report = pixel_metrics([mask, None], [anomaly_map, np.zeros((2, 3))])
    >>> report.auroc, report.aupro, report.threshold
    (1.0, 1.0, 14.5)
    """
    _check_max_fpr(max_fpr)
    ranking = _rank_pixels(masks, maps)
    return Bunch(
        auroc=ranking.auroc(),
        average_precision=ranking.average_precision(),
        aupro=ranking.aupro(max_fpr),
        **ranking.best_f1(),
    )


def pixel_auroc(masks: _Images, maps: _Images) -> float:
    """Area under the receiver operating characteristic over all pixels.

    It is the probability that an anomalous pixel gets a higher score than a normal one,
    of any image, ties counting half. A large defect weighs as much as many small
    ones, and as most pixels are normal and easy, good detectors differ little: look at
    `aupro` too.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`.

    Returns
    -------
    float
        AUROC in [0, 1]: 1 for a perfect ranking, 0.5 for guessing.

    Raises
    ------
    ValueError
        For inputs that `pixel_metrics` refuses.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_auroc
    >>> pixel_auroc([[[0, 0], [0, 1]]], [[[0.1, 0.2], [0.9, 0.8]]])
    0.666...
    """
    return _rank_pixels(masks, maps).auroc()


def pixel_average_precision(masks: _Images, maps: _Images) -> float:
    """Average precision of the anomalous pixels.

    Unlike `pixel_auroc` it is not flattered by the many normal pixels: a falsely marked
    area the size of the defects shows.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`.

    Returns
    -------
    float
        Average precision in (0, 1]; guessing gives about the share of anomalous pixels.

    Raises
    ------
    ValueError
        For inputs that `pixel_metrics` refuses.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_average_precision
    >>> pixel_average_precision([[[0, 0], [0, 1]]], [[[0.1, 0.2], [0.9, 0.8]]])
    0.5
    """
    return _rank_pixels(masks, maps).average_precision()


def pixel_f1_max(masks: _Images, maps: _Images) -> Bunch:
    """Largest F1 of the anomalous pixels over all thresholds, and the threshold.

    As `f1_max`, it is an upper bound chosen with the ground truth at hand. The
    threshold turns maps into masks that fit the ground truth best.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`.

    Returns
    -------
    Bunch
        With these fields, all float:

        f1
            The largest F1, in (0, 1]. Of equal ones, that with fewest false alarms.
        threshold
            A pixel is called anomalous if ``map > threshold``; that rule gives exactly
            the other three figures. In the unit of `maps`, midway between the two
            neighbouring scores; -inf if everything is called anomalous.
        precision
            Share of anomalous pixels among those called so, in (0, 1].
        recall
            Share of those called so among the anomalous pixels, in (0, 1].

    Raises
    ------
    ValueError
        For inputs that `pixel_metrics` refuses.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_f1_max
    >>> best = pixel_f1_max([[[0, 0], [0, 1]]], [[[1.0, 2.0], [9.0, 8.0]]])
    >>> best.threshold, best.precision, best.recall
    (5.0, 0.5, 1.0)
    """
    return _rank_pixels(masks, maps).best_f1()


def aupro(masks: _Images, maps: _Images, *, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate.

    At each threshold, the share of every defect region that is found is averaged over
    the regions of all images, so that a scratch of ten pixels counts as much as a
    stain of ten thousand; it is drawn against the share of normal pixels falsely marked
    and integrated up to `max_fpr`.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`. Each 8-connected
        component is one region.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`. Of a region, only
        pixels that are not NaN count; a region without any is left out.
    max_fpr : float, default=0.3
        The false-positive rate up to which the curve is integrated, in (0, 1].

    Returns
    -------
    float
        The area divided by `max_fpr`, in [0, 1]. Guessing gives about ``max_fpr / 2``.

    Raises
    ------
    ValueError
        If `max_fpr` is not in (0, 1], or for inputs that `pixel_metrics` refuses.

    Notes
    -----
    The curve has a point for every distinct score of the maps and straight lines
    between them, also at `max_fpr`; no thresholds are sampled.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec
       Anomaly Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised
       Anomaly Detection", International Journal of Computer Vision 129, 2021,
       doi:10.1007/s11263-020-01400-4, sections on evaluation metrics.

    Examples
    --------
    One region of three pixels is found first, one of a single pixel last.

    >>> from skpatchcore.metrics import aupro
    >>> mask = [[1, 1, 1, 0, 0, 1]]
    >>> aupro([mask], [[[6.0, 6.0, 5.0, 4.0, 3.0, 2.0]]])
    0.5
    """
    _check_max_fpr(max_fpr)
    return _rank_pixels(masks, maps).aupro(max_fpr)


def _check_max_fpr(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr!r}.")


def _rank_pixels(masks: _Images, maps: _Images) -> _Ranking:
    """Validate masks and maps, and rank their visible pixels by anomaly."""
    check_consistent_length(masks, maps)
    if len(maps) == 0:
        raise ValueError("masks and maps are empty, expected at least one image.")
    images = [
        _split_pixels(*_check_image(mask, anomaly_map, index))
        for index, (mask, anomaly_map) in enumerate(zip(masks, maps, strict=True))
    ]
    normal, anomalous, region_sizes = map(np.concatenate, zip(*images, strict=True))
    for scores, name in (
        (normal, "normal (zero)"),
        (anomalous, "anomalous (non-zero)"),
    ):
        if scores.size == 0:
            raise ValueError(
                f"None of the pixels with a score is {name} in the masks of "
                f"{len(maps)} image(s): the metric needs both kinds."
            )
    return _rank(normal, anomalous, region_sizes)


def _check_image(
    mask: ArrayLike | None, anomaly_map: ArrayLike, index: int
) -> tuple[NDArray[np.bool_], NDArray]:
    """Mask and map of one image as 2-D arrays of one shape, boolean and floating."""
    if np.ndim(anomaly_map) != 2:
        raise ValueError(
            f"maps[{index}] must be one 2-D map (h, w), got the shape "
            f"{np.shape(anomaly_map)}."
        )
    if mask is not None and np.shape(mask) != np.shape(anomaly_map):
        raise ValueError(
            f"masks[{index}] has the shape {np.shape(mask)}, but maps[{index}] has "
            f"{np.shape(anomaly_map)}: a mask must be as large as its map."
        )
    scores = check_array(
        anomaly_map, ensure_all_finite="allow-nan", input_name=f"maps[{index}]"
    )
    if mask is None:
        return np.zeros(scores.shape, dtype=bool), _as_floating(scores)
    return check_array(mask, input_name=f"masks[{index}]") != 0, _as_floating(scores)


def _split_pixels(
    mask: NDArray[np.bool_], scores: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Split into normal scores, anomalous scores, and the region size of the latter."""
    visible = ~np.isnan(scores)
    anomalous = mask & visible
    regions, _ = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    region = regions[anomalous]
    return scores[visible & ~mask], scores[anomalous], np.bincount(region)[region]


# Scorers ----------------------------------------------------------------------------


def _f1_max_value(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Give `f1_max` without its threshold: a scorer returns one number."""
    return f1_max(y_true, y_score).f1


def _pixel_f1_max_value(masks: _Images, maps: _Images) -> float:
    return pixel_f1_max(masks, maps).f1


def _pixel_metrics_values(masks: _Images, maps: _Images) -> dict[str, float]:
    """Give the single metrics by their names, for multi-metric scoring."""
    report = pixel_metrics(masks, maps)
    return {
        "pixel_auroc": report.auroc,
        "pixel_average_precision": report.average_precision,
        "pixel_f1_max": report.f1,
        "aupro": report.aupro,
    }


image_auroc_scorer = make_scorer(image_auroc, response_method="decision_function")
average_precision_scorer = make_scorer(
    average_precision, response_method="decision_function"
)
f1_max_scorer = make_scorer(_f1_max_value, response_method="decision_function")

pixel_auroc_scorer = PixelScorer("pixel_auroc_scorer", pixel_auroc)
pixel_average_precision_scorer = PixelScorer(
    "pixel_average_precision_scorer", pixel_average_precision
)
pixel_f1_max_scorer = PixelScorer("pixel_f1_max_scorer", _pixel_f1_max_value)
aupro_scorer = PixelScorer("aupro_scorer", aupro)
pixel_metrics_scorer = PixelScorer("pixel_metrics_scorer", _pixel_metrics_values)
