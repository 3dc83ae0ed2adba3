"""Find outliers among training samples: whole samples or single patches."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._neighbors import as_tensor, reference_positions, rounding_error
from skpatchcore._utils import (
    floor_fraction,
    full_precision,
    own_torch_state,
    resolve_device,
    upper_quantile,
)

# Neighbours for the local outlier factor, as in the experiments of SoftPatch.
_LOF_NEIGHBORS = 6
# Added to the variance in every direction, as a share of the mean variance. Without it,
# the covariance of few samples could not be inverted.
_RIDGE = 0.01
# Keeps densities of duplicates finite, as in scikit-learn's LocalOutlierFactor.
_TINY_DISTANCE = 1e-10
# A sample is compared with this many patches of each other sample, or with more if
# there are few samples, so that the total reaches the second number.
_PATCHES_EACH, _FEWEST_REFERENCES = 8, 1000
# A patch counts as normal if it is similar to patches of this many other samples, so
# that two images with the same defect do not mask each other. The score of a sample is
# the mean over this share of its patches, those with the largest distances.
_WITNESSES, _TOP_SHARE = 3, 0.04
# Multiples of the golden ratio, modulo 1, are spread evenly for any number of samples.
_GOLDEN = (5**0.5 - 1) / 2
# Elements of distances held at a time: 64 MB in float64.
_BLOCK_ELEMENTS = 2**23

Device: TypeAlias = str | torch.device | None


def inlying_rows(
    patches: NDArray,
    shapes: NDArray[np.int64],
    n_given: int,
    method: str,
    fraction: float,
    device: Device,
) -> NDArray[np.int64]:
    """Return the rows of patches that are not outliers, ascending.

    The samples are `n_given` samples, followed by transformed copies of all of them,
    possibly several times. Each such group is filtered on its own: in a common one, the
    copies of an outlier would make it look normal.

    Parameters
    ----------
    patches, shapes, method, fraction, device
        As in `inlying_patches`.
    n_given : int
    """
    groups = np.split(shapes, range(n_given, len(shapes), n_given))
    ends = np.cumsum([group.prod(axis=1).sum() for group in groups])
    return np.concatenate(
        [
            start + inlying_patches(part, group, method, fraction, device)
            for start, part, group in zip(
                [0, *ends[:-1]], np.split(patches, ends[:-1]), groups, strict=True
            )
        ]
    )


def inlying_patches(
    patches: NDArray,
    shapes: NDArray[np.int64],
    method: str,
    fraction: float,
    device: Device,
) -> NDArray[np.int64]:
    """Return the rows of patches that are not outliers, ascending.

    Outliers are patches with scores above the quantile 1 - `fraction` of all scores.

    Parameters
    ----------
    patches, shapes, method, device
        As in `patch_outlier_scores`. With the method "sample", the scores are those of
        `sample_outlier_scores`, and whole samples are removed.
    fraction : float
        In (0, 1).
    """
    if method == "sample":
        scores = sample_outlier_scores(patches, shapes, device)
        inlying = scores <= upper_quantile(scores, fraction)
        return np.flatnonzero(np.repeat(inlying, shapes.prod(axis=1)))
    scores = patch_outlier_scores(patches, shapes, method, device)
    return np.flatnonzero(scores <= upper_quantile(scores, fraction))


@own_torch_state()
def sample_outlier_scores(
    patches: NDArray, shapes: NDArray[np.int64], device: Device
) -> NDArray[np.float64]:
    """Return how far the most unusual patches of each sample are from other samples.

    The distance of a patch is the third smallest of its distances to the other samples,
    at any grid position. The distance to a sample is that to the nearest of a few
    patches, evenly spaced over its grid. This is the score of PatchCore with the sample
    left out, and with evenly spaced patches, which do not prefer outliers as a greedy
    coreset does.

    Parameters
    ----------
    patches : ndarray of shape (n_patches, d)
    shapes : ndarray of shape (n_samples, 2)
    device : str, torch.device or None

    Returns
    -------
    scores : ndarray of shape (n_samples,), float64
        Mean of the largest 4 % of a sample's distances; 0 if there is a single sample.
    """
    sizes = shapes.prod(axis=1)
    n_samples, k = len(sizes), min(_WITNESSES, len(sizes) - 1)
    scores = np.zeros(n_samples)
    if k == 0:
        return scores
    tensor, starts = as_tensor(patches), sizes.cumsum() - sizes
    # Rounded up, so that there are at least _FEWEST_REFERENCES in all.
    n_each = max(_PATCHES_EACH, -(-_FEWEST_REFERENCES // n_samples))
    chosen = torch.from_numpy(starts[:, None] + _evenly_spaced(sizes, n_each))
    references = tensor[chosen].to(resolve_device(device)).double()
    center = references.mean(dim=(0, 1))
    references -= center
    step = max(1, _BLOCK_ELEMENTS // (n_samples * n_each))
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        parts = tensor[start : start + size].to(center.device).double() - center
        distances = torch.cat(
            [_distance_to_others(part, references, i, k) for part in parts.split(step)]
        )
        n_top = max(1, floor_fraction(_TOP_SHARE, size))
        scores[i] = distances.topk(n_top).values.mean()
    return scores


def _evenly_spaced(sizes: NDArray[np.int64], n_each: int) -> NDArray[np.int64]:
    """Return `n_each` evenly spaced patches of each of n samples, (n, n_each).

    Samples have different shifts, so that they contribute different positions.
    """
    shifts = np.arange(len(sizes)) * _GOLDEN % 1
    shares = (np.arange(n_each) + shifts[:, None]) / n_each
    return (shares * sizes[:, None]).astype(np.int64)


def _distance_to_others(
    patches: torch.Tensor, references: torch.Tensor, own: int, k: int
) -> torch.Tensor:
    """Return distances (p,) to the `k`-th nearest sample other than `own`.

    Parameters
    ----------
    patches : Tensor of shape (p, d)
    references : Tensor of shape (n_samples, m, d)
    """
    flat = references.flatten(0, 1)
    with full_precision():
        squared = torch.addmm(flat.square().sum(dim=1), patches, flat.T, alpha=-2)
    squared += patches.square().sum(dim=1)[:, None]
    nearest = squared.unflatten(1, references.shape[:2]).amin(dim=2)
    nearest[:, own] = torch.inf
    return nearest.kthvalue(k, dim=1).values.clamp(min=0).sqrt()


@own_torch_state()
def patch_outlier_scores(
    patches: NDArray, shapes: NDArray[np.int64], method: str, device: Device
) -> NDArray[np.float64]:
    """Return how unusual each patch is among those at its position in other samples.

    Jiang et al., "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS
    2022, section 3.3. If samples have grids of different shapes, the grids are scaled
    to each other, and a patch is compared with the patch of each other sample that
    contains its centre.

    Parameters
    ----------
    patches : ndarray of shape (n_patches, d)
        Sample by sample, row by row of its grid.
    shapes : ndarray of shape (n_samples, 2)
        Height and width of the grid of each sample.
    method : {"lof", "nearest", "gaussian"}
        Local outlier factor (Breunig et al., 2000) with 6 neighbours; distance to the
        nearest patch; Mahalanobis distance from the mean, where a hundredth of the mean
        variance is added to the variance in every direction.
    device : str, torch.device or None

    Returns
    -------
    scores : ndarray of shape (n_patches,), float64
        Higher is more unusual; all 0 if there is a single sample.
    """
    scores = np.zeros(len(patches))
    if len(shapes) == 1:
        return scores
    score = {"lof": _local_outlier_factors, "nearest": _nearest, "gaussian": _gaussian}
    tensor, starts = as_tensor(patches), shapes.prod(axis=1).cumsum()
    starts -= shapes.prod(axis=1)
    for shape in np.unique(shapes, axis=0):
        same = np.flatnonzero((shapes == shape).all(axis=1))
        # Row i: the patch of each sample at grid position i of this shape.
        rows = np.stack(
            [
                start + reference_positions(shape[None], other)
                for start, other in zip(starts, shapes, strict=True)
            ],
            axis=1,
        )
        step = max(1, _BLOCK_ELEMENTS // (len(shapes) * patches.shape[1]))
        for part in np.split(rows, range(step, len(rows), step)):
            points = tensor[torch.from_numpy(part)].to(resolve_device(device)).double()
            points -= points.mean(dim=1, keepdim=True)
            scores[part[:, same]] = score[method](points)[:, same].cpu().numpy()
    return scores


def _nearest(points: torch.Tensor) -> torch.Tensor:
    """Return distances (p, n) from points (p, n, d) to the nearest other point."""
    return _neighbors(points, 1)[0][:, :, 0]


def _local_outlier_factors(points: torch.Tensor) -> torch.Tensor:
    """Return local outlier factors (p, n) of points (p, n, d)."""
    k = min(_LOF_NEIGHBORS, points.shape[1] - 1)
    distances, neighbors = _neighbors(points, k)

    def of_neighbors(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, neighbors.flatten(1)).view_as(distances)

    reach = torch.maximum(distances, of_neighbors(distances[:, :, -1]))
    density = 1 / (reach.mean(dim=2) + _TINY_DISTANCE)
    return of_neighbors(density).mean(dim=2) / density


def _gaussian(points: torch.Tensor) -> torch.Tensor:
    """Return Mahalanobis distances (p, n) from centred points (p, n, d) to 0."""
    n, d = points.shape[1:]
    variance = points.square().sum(dim=(1, 2)) / (n - 1)
    ridge = (_RIDGE * variance / d).clamp(min=torch.finfo(points.dtype).tiny)[:, None]
    with full_precision():
        if n <= d:
            # The points span at most n dimensions, so the eigenproblem of their inner
            # products, n x n, gives the same result.
            squares, vectors = torch.linalg.eigh(points @ points.mT)
            squares.clamp_(min=0)
            coordinates = vectors.square() * squares[:, None]
            variances = squares / (n - 1)
        else:
            variances, vectors = torch.linalg.eigh(points.mT @ points / (n - 1))
            coordinates = (points @ vectors).square()
    return (coordinates / (variances.clamp(min=0) + ridge)[:, None]).sum(dim=2).sqrt()


def _neighbors(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances (p, n, k), ascending, and indices of the nearest other points.

    The points (p, n, d) are centred, in float64.
    """
    found = [_neighbors_of(points, rows, k) for rows in _row_blocks(points)]
    distances, neighbors = zip(*found, strict=True)
    return torch.cat(distances, dim=1), torch.cat(neighbors, dim=1)


def _row_blocks(points: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield blocks of the n points, small enough for their distances to all others."""
    p, n, _ = points.shape
    yield from torch.arange(n).split(max(1, _BLOCK_ELEMENTS // (p * n)))


def _neighbors_of(
    points: torch.Tensor, rows: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of `_neighbors` for the points `rows`."""
    norms = points.square().sum(dim=2)
    with full_precision():
        squared = torch.baddbmm(norms[:, None], points[:, rows], points.mT, alpha=-2)
    squared += norms[:, rows, None]
    # A squared distance within its rounding error is 0, so that duplicates are at 0.
    reach = 2 * norms.amax(dim=1).sqrt()
    error = rounding_error(points.shape[2], points.dtype, reach)
    squared.masked_fill_(squared <= error[:, None, None], 0)
    squared[:, torch.arange(len(rows)), rows] = torch.inf
    found = squared.topk(k, dim=2, largest=False)
    return found.values.sqrt(), found.indices
