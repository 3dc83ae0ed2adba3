"""Pixel-level metrics: compare anomaly maps with segmentation masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.utils import Bunch, check_array, check_consistent_length

from skpatchcore.metrics._ranking import (
    Ranking,
    UndefinedMetricError,
    as_floating,
    rank,
)

# The official evaluation of MVTec AD joins pixels that touch at a corner.
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)

#: Masks or maps: one array (n, h, w), or a list of arrays (h, w) or None.
PixelInput = ArrayLike | Sequence[ArrayLike | None]


def pixel_metrics(
    masks: PixelInput, maps: PixelInput, *, max_fpr: float = 0.3
) -> Bunch:
    """Compute all pixel-level metrics from one ranking of the pixels.

    Use it if you need several metrics. Sorting the pixels takes nearly all the time,
    and this function does it only once.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, boolean or numbers: pixels other than 0 are anomalous. In a list,
        images may differ in size, and None means an image without defects.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps of the same shapes, on any scale; **higher is more anomalous**. A
        floating dtype is kept; others become float64. Pixels that are NaN, such as the
        border outside a crop, are not counted.
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
            As from `pixel_f1_max`. The threshold is on the scale of `maps`.

    Raises
    ------
    ValueError
        If a mask and its map differ in shape or are not 2-D, a mask contains NaN, a map
        contains infinity, no counted pixel is anomalous or none is normal, the numbers
        of masks and maps differ, or `max_fpr` is not in (0, 1].

    Notes
    -----
    Pixels with equal scores are counted together. Most of the time is spent sorting the
    scores. The memory needed is about three times that of the maps, plus 120 bytes per
    anomalous pixel.

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


def pixel_auroc(masks: PixelInput, maps: PixelInput) -> float:
    """Area under the receiver operating characteristic (ROC) curve for pixels.

    This is the probability that an anomalous pixel of any image gets a higher score
    than a normal one of any image, where ties count half. A large defect weighs as much
    as many small ones. Most pixels are normal and easy, so good detectors differ
    little; look at `aupro` as well.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`.

    Returns
    -------
    float
        AUROC in [0, 1]: 1 for a perfect ranking, about 0.5 for random scores.

    Raises
    ------
    ValueError
        If the input is invalid; see `pixel_metrics`.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_auroc
    >>> pixel_auroc([[[0, 0], [0, 1]]], [[[0.1, 0.2], [0.9, 0.8]]])
    0.666...
    """
    return _rank_pixels(masks, maps).auroc()


def pixel_average_precision(masks: PixelInput, maps: PixelInput) -> float:
    """Average precision of the anomalous pixels.

    Unlike `pixel_auroc`, this metric does not profit from the many normal pixels. It
    shows clearly if an area as large as the defects is marked by mistake.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`.

    Returns
    -------
    float
        Average precision in (0, 1]. For random scores it is about the share of
        anomalous pixels.

    Raises
    ------
    ValueError
        If the input is invalid; see `pixel_metrics`.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_average_precision
    >>> pixel_average_precision([[[0, 0], [0, 1]]], [[[0.1, 0.2], [0.9, 0.8]]])
    0.5
    """
    return _rank_pixels(masks, maps).average_precision()


def pixel_f1_max(masks: PixelInput, maps: PixelInput) -> Bunch:
    """Largest F1 of the anomalous pixels over all thresholds, and this threshold.

    As for `f1_max`, the threshold is optimised on the ground truth, so the F1 is an
    upper bound. Maps cut at this threshold give the masks that fit the ground truth
    best.

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
            The largest F1, in (0, 1]. If several thresholds reach it, the one with the
            fewest false alarms is returned.
        threshold
            A pixel is called anomalous if ``map > threshold``. This rule gives exactly
            the other three values. On the scale of `maps`, midway between two adjacent
            scores; -inf if every pixel is called anomalous.
        precision
            Share of anomalous pixels among those called anomalous, in (0, 1].
        recall
            Share of anomalous pixels that are called anomalous, in (0, 1].

    Raises
    ------
    ValueError
        If the input is invalid; see `pixel_metrics`.

    Examples
    --------
    >>> from skpatchcore.metrics import pixel_f1_max
    >>> best = pixel_f1_max([[[0, 0], [0, 1]]], [[[1.0, 2.0], [9.0, 8.0]]])
    >>> best.threshold, best.precision, best.recall
    (5.0, 0.5, 1.0)
    """
    return _rank_pixels(masks, maps).best_f1()


def aupro(masks: PixelInput, maps: PixelInput, *, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap (PRO) curve up to a false-positive rate.

    At each threshold, the overlap is the share of a defect region that is found,
    averaged over the regions of all images. So a scratch of ten pixels counts as much
    as a stain of ten thousand. The curve shows the overlap against the share of normal
    pixels that are marked by mistake; it is integrated up to `max_fpr`.

    Parameters
    ----------
    masks : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Ground truth, non-zero for anomalous; see `pixel_metrics`. Each 8-connected
        component is one region.
    maps : array-like of shape (n, h, w), or list of n array-like of shape (h, w)
        Anomaly maps, higher is more anomalous; see `pixel_metrics`. Pixels of a region
        that are NaN are not counted. A region that has only such pixels is ignored.
    max_fpr : float, default=0.3
        The false-positive rate up to which the curve is integrated, in (0, 1].

    Returns
    -------
    float
        The area divided by `max_fpr`, in [0, 1]. For random scores it is about
        ``max_fpr / 2``.

    Raises
    ------
    ValueError
        If `max_fpr` is not in (0, 1], or if the input is invalid; see `pixel_metrics`.

    Notes
    -----
    The curve is exact: it has a point for every distinct score of the maps, not for a
    sample of thresholds. Between the points it is linear, and it is interpolated at
    `max_fpr`.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec
       Anomaly Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised
       Anomaly Detection", International Journal of Computer Vision 129, 2021,
       doi:10.1007/s11263-020-01400-4, sections on evaluation metrics.

    Examples
    --------
    A region of three pixels is found first, and one of a single pixel last:

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


def _rank_pixels(masks: PixelInput, maps: PixelInput) -> Ranking:
    """Validate masks and maps, and rank all pixels that are not NaN."""
    check_consistent_length(masks, maps)
    # Checked just now: both have a length.
    mask_list, map_list = cast(Sequence[Any], masks), cast(Sequence[Any], maps)
    if len(map_list) == 0:
        raise ValueError("masks and maps are empty; expected at least one image.")
    images = [
        _split_pixels(*_check_image(mask, anomaly_map, index))
        for index, (mask, anomaly_map) in enumerate(
            zip(mask_list, map_list, strict=True)
        )
    ]
    normal, anomalous, region_sizes = map(np.concatenate, zip(*images, strict=True))
    for scores, name in (
        (normal, "normal (zero)"),
        (anomalous, "anomalous (non-zero)"),
    ):
        if scores.size == 0:
            raise UndefinedMetricError(
                f"None of the pixels with a score is {name} in the masks of "
                f"{len(map_list)} image(s); the metric needs both kinds. Check the "
                "masks, or add images."
            )
    return rank(normal, anomalous, region_sizes)


def _check_image(
    mask: ArrayLike | None, anomaly_map: ArrayLike, index: int
) -> tuple[NDArray[np.bool_], NDArray]:
    """Return the mask (bool) and the map (float) of one image, both (h, w)."""
    if np.ndim(anomaly_map) != 2:
        raise ValueError(
            f"maps[{index}] must be one 2-D map (h, w), got the shape "
            f"{np.shape(anomaly_map)}."
        )
    if mask is not None and np.shape(mask) != np.shape(anomaly_map):
        raise ValueError(
            f"masks[{index}] has the shape {np.shape(mask)}, but maps[{index}] has "
            f"{np.shape(anomaly_map)}; a mask must have the size of its map."
        )
    scores: NDArray = check_array(
        anomaly_map, ensure_all_finite="allow-nan", input_name=f"maps[{index}]"
    )
    if mask is None:
        return np.zeros(scores.shape, dtype=bool), as_floating(scores)
    return check_array(mask, input_name=f"masks[{index}]") != 0, as_floating(scores)


def _split_pixels(
    mask: NDArray[np.bool_], scores: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Return normal scores, anomalous scores, and the region size of each of these."""
    counted = ~np.isnan(scores)
    anomalous = mask & counted
    regions, _ = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    region = regions[anomalous]
    return scores[counted & ~mask], scores[anomalous], np.bincount(region)[region]
