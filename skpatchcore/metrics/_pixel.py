"""Metrics of scores and of anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.utils import Bunch, check_array, check_consistent_length

from skpatchcore.metrics._ranking import _as_floating, _rank, _Ranking

# The official evaluation of MVTec AD joins pixels that touch at a corner.
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


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
