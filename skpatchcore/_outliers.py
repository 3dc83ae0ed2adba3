"""Outliers among training patches, each compared with its place in other samples."""

from collections.abc import Iterator

import numpy as np
import torch

from skpatchcore._backbone import resolve_device
from skpatchcore._distances import as_tensor, full_precision, rounding_error
from skpatchcore._position_search import reference_cells

# Neighbours that the local outlier factor looks at, as in SoftPatch's experiments.
_LOF_NEIGHBORS = 6
# Added to variances along all axes, in shares of their mean: so few samples have
# covariances that cannot be inverted.
_RIDGE = 0.01
# Keeps densities of duplicates finite, as scikit-learn's LocalOutlierFactor does.
_TINY_DISTANCE = 1e-10
# Elements of distances held at a time: 64 MB in float64.
_BLOCK_ELEMENTS = 2**23


def outlier_scores(
    patches: np.ndarray, shapes: np.ndarray, method: str, device
) -> np.ndarray:
    """Return how far each patch is out among those at its place in other samples.

    Jiang et al., "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS
    2022, section 3.3. Where samples have grids of different shapes, a patch is compared
    with the patches of the others that its centre lies in, in shares of their sides.

    Parameters
    ----------
    patches : ndarray of shape (n_patches, d)
        Sample by sample, row by row of its grid.
    shapes : ndarray of shape (n_samples, 2)
        Height and width of the grid of each sample.
    method : {"lof", "nearest", "gaussian"}
        Local outlier factor (Breunig et al., 2000) among 6 neighbours; distance to the
        nearest; Mahalanobis distance from the mean, with a hundredth of the mean
        variance added to that along all axes.
    device : str, torch.device or None

    Returns
    -------
    scores : ndarray of shape (n_patches,), float64
        Higher is farther out; all 0 if there is a single sample.
    """
    scores = np.zeros(len(patches))
    if len(shapes) == 1:
        return scores
    score = {"lof": _local_outlier_factors, "nearest": _nearest, "gaussian": _gaussian}
    tensor, starts = as_tensor(patches), shapes.prod(axis=1).cumsum()
    starts -= shapes.prod(axis=1)
    for shape in np.unique(shapes, axis=0):
        same = np.flatnonzero((shapes == shape).all(axis=1))
        places = np.stack(
            [
                start + reference_cells(shape[None], other)
                for start, other in zip(starts, shapes, strict=True)
            ],
            axis=1,
        )
        step = max(1, _BLOCK_ELEMENTS // (len(shapes) * patches.shape[1]))
        for part in np.split(places, range(step, len(places), step)):
            points = tensor[torch.from_numpy(part)].to(resolve_device(device)).double()
            points -= points.mean(dim=1, keepdim=True)
            scores[part[:, same]] = score[method](points)[:, same].cpu().numpy()
    return scores


def inlying_rows(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Return the rows whose score is at most the quantile 1 - `fraction` of all."""
    return np.flatnonzero(scores <= np.quantile(scores, 1 - fraction))


def _nearest(points: torch.Tensor) -> torch.Tensor:
    """Return distances (p, n) to the nearest other of points (p, n, d)."""
    return _neighbors(points, 1)[0][:, :, 0]


def _local_outlier_factors(points: torch.Tensor) -> torch.Tensor:
    """Return local outlier factors (p, n) of points (p, n, d)."""
    k = min(_LOF_NEIGHBORS, points.shape[1] - 1)
    distances, neighbors = _neighbors(points, k)

    def of_neighbors(values):
        return values.gather(1, neighbors.flatten(1)).view_as(distances)

    reach = torch.maximum(distances, of_neighbors(distances[:, :, -1]))
    density = 1 / (reach.mean(dim=2) + _TINY_DISTANCE)
    return of_neighbors(density).mean(dim=2) / density


def _gaussian(points: torch.Tensor) -> torch.Tensor:
    """Return Mahalanobis distances (p, n) of centred points (p, n, d) from 0."""
    n, d = points.shape[1:]
    variance = points.square().sum(dim=(1, 2)) / (n - 1)
    ridge = (_RIDGE * variance / d).clamp(min=torch.finfo(points.dtype).tiny)[:, None]
    with full_precision():
        if n <= d:
            # Points lie in the space that they span: the smaller eigenproblem does.
            squares, vectors = torch.linalg.eigh(points @ points.mT)
            squares.clamp_(min=0)
            coordinates = vectors.square() * squares[:, None]
            variances = squares / (n - 1)
        else:
            variances, vectors = torch.linalg.eigh(points.mT @ points / (n - 1))
            coordinates = (points @ vectors).square()
    return (coordinates / (variances.clamp(min=0) + ridge)[:, None]).sum(dim=2).sqrt()


def _neighbors(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances (p, n, k), ascending, and numbers of the nearest other points.

    Points (p, n, d) are centred, in float64.
    """
    found = [_neighbors_of(points, rows, k) for rows in _row_blocks(points)]
    distances, neighbors = zip(*found, strict=True)
    return torch.cat(distances, dim=1), torch.cat(neighbors, dim=1)


def _row_blocks(points: torch.Tensor) -> Iterator[torch.Tensor]:
    p, n, _ = points.shape
    yield from torch.arange(n).split(max(1, _BLOCK_ELEMENTS // (p * n)))


def _neighbors_of(points, rows, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    norms = points.square().sum(dim=2)
    with full_precision():
        squared = torch.baddbmm(norms[:, None], points[:, rows], points.mT, alpha=-2)
    squared += norms[:, rows, None]
    # Duplicates are at distance 0, not at one of rounding.
    reach = 2 * norms.amax(dim=1).sqrt()
    error = rounding_error(points.shape[2], points.dtype, reach)
    squared.masked_fill_(squared <= error[:, None, None], 0)
    squared[:, torch.arange(len(rows)), rows] = torch.inf
    found = squared.topk(k, dim=2, largest=False)
    return found.values.sqrt(), found.indices
