"""Whether most samples have near-duplicates, as several images of one part are."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._detectors import has_maps
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._images import check_images
from skpatchcore._utils import warn_user

# Images are compared as thumbnails of so many pixels a side, in grey.
_THUMBNAIL = 32
# No more columns of a numeric sample are compared, and no more samples.
_MOST_COLUMNS = 4096
_MOST_SAMPLES = 1000
# Longer than any plausible number of images of one part.
_RUN = 50
_FEWEST_SAMPLES = 16
# The neighbour taken as "another part": beyond 10 images of the same one.
_FAR_NEIGHBOR = 16
# See `duplication`: samples without duplicates stay below 3.
_LIMIT = 3.0


def warn_of_near_duplicates(estimator: Any, X: Any, rows: NDArray) -> None:
    """Warn if most of the samples that are held out have near-duplicates.

    Parameters
    ----------
    estimator : estimator
        Says whether `X` holds images.
    X : array-like or sequence of images
        As `fit` takes it.
    rows : ndarray of shape (n,), int64
        Normal samples.
    """
    if len(rows) < _FEWEST_SAMPLES:
        return
    vectors = _as_vectors(estimator, X, _consecutive(rows))
    if vectors is None:
        return
    ratio, excess = duplication(vectors)
    if not excess > _LIMIT:
        return
    how_close = (
        f"{1 / ratio:.1f} times as close as the {_FAR_NEIGHBOR}th nearest"
        if ratio
        else "an exact copy"
    )
    warn_user(
        f"Most samples have a near-duplicate: the nearest other sample is typically "
        f"{how_close}. If they are several images of one part, folds are "
        "tested on parts that they were fitted on, and far more new parts are flagged "
        "than the threshold promises. Pass groups=, one value per sample that names "
        "its part, to fit, or --group-pattern to the command; see "
        '"Several images of one part" in the user guide. If all samples are '
        "independent, groups=range(len(X)) says so.",
    )


def duplication(vectors: NDArray) -> tuple[float, float]:
    """Return how near neighbours are, and how much nearer than distances explain.

    Distances to the k-th neighbour grow about as k**(1/D) for samples of D intrinsic
    dimensions, for any D. From the 1st to the 16th neighbour the logarithm of the
    distance then grows 2.4 times as much as from the 16th to the 64th, less in small
    or high-dimensional sets, whose distances concentrate. Samples with near-duplicates
    have a gap between these and all others, so most of the growth is in the first step.
    The largest ratios over 200 draws of normal numbers in 1 to 50 dimensions, and on
    images of MVTec AD, are 2.8 and 2.0; with duplicates they are 3 to 20.

    Parameters
    ----------
    vectors : ndarray of shape (n, d)
        Samples, n of at least 16.

    Returns
    -------
    ratio : float
        Median of the distance to the nearest neighbour, over that to the 16th (the
        n/4-th, if that is less).
    duplication : float
        The ratio of the two logarithms, medians over samples.
    """
    n = len(vectors)
    distances = np.sort(_distances(vectors), axis=1)
    far = min(_FAR_NEIGHBOR, n // 4)
    near, middle, end = distances[:, [1, far, min(4 * far, n - 1)]].T
    steps = np.median(_log_ratio(middle, near)), np.median(_log_ratio(end, middle))
    if not steps[0] > 0 or not np.isfinite(steps[1]):
        return 1.0, 0.0
    with np.errstate(divide="ignore"):
        return float(np.exp(-steps[0])), float(np.divide(*steps))


def _log_ratio(larger: NDArray, smaller: NDArray) -> NDArray:
    """Return log(larger / smaller), 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.log(larger / smaller), nan=0.0, posinf=np.inf)


def _distances(vectors: NDArray) -> NDArray:
    # Overflow gives NaN, which is not larger than any limit.
    with np.errstate(over="ignore", invalid="ignore"):
        centred = vectors - vectors.mean(axis=0)
        squares = np.einsum("ij,ij->i", centred, centred)
        squared = squares[:, None] + squares - 2 * centred @ centred.T
    # Products round: what is 0 but for that is a duplicate.
    squared[squared < 1e-12 * squares.max()] = 0
    return np.sqrt(squared)


def _consecutive(rows: NDArray) -> NDArray:
    """Return at most `_MOST_SAMPLES` rows, in runs: images of a part are neighbours."""
    if len(rows) <= _MOST_SAMPLES:
        return rows
    runs = np.array_split(rows, _MOST_SAMPLES // _RUN)
    return np.concatenate([run[:_RUN] for run in runs])


def _as_vectors(estimator: Any, X: Any, rows: NDArray) -> NDArray | None:
    """Return samples as rows of numbers, or None if they are of no known kind."""
    X = X.to_numpy() if hasattr(X, "to_numpy") else X
    numeric = isinstance(X, np.ndarray) and X.dtype.kind in "biuf"
    if numeric and (X.ndim == 2 or not _takes_images(estimator)):
        flat = X.reshape(len(X), -1)
        n_columns = min(flat.shape[1], _MOST_COLUMNS)
        columns = np.linspace(0, flat.shape[1] - 1, n_columns).astype(int)
        vectors = flat[np.ix_(rows, columns)].astype(np.float64)
        return vectors if np.isfinite(vectors).all() else None
    if not _takes_images(estimator):
        return None
    try:
        images = check_images(X)
        return np.array([_thumbnail(images[i]) for i in rows])
    except (OSError, TypeError, ValueError):
        return None  # The estimator raises the better error.


def _thumbnail(image: NDArray) -> NDArray:
    grey = torch.from_numpy(image.mean(axis=2, dtype=np.float32))
    pooled = torch.nn.functional.adaptive_avg_pool2d(grey[None], _THUMBNAIL)
    return pooled.numpy().ravel().astype(np.float64)


def _takes_images(estimator: Any) -> bool:
    """Return whether an estimator, or what it passes X on to first, takes images."""
    if isinstance(estimator, PatchFeatureTransformer) or has_maps(estimator):
        return True
    steps = getattr(estimator, "steps", None)
    inner = steps[0][1] if steps else getattr(estimator, "estimator", None)
    return inner is not None and _takes_images(inner)
