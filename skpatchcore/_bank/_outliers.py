"""Outliers among training samples, whole ones or single patches."""

from collections.abc import Iterator

import numpy as np
import torch

from skpatchcore._neighbors import as_tensor, reference_cells, rounding_error
from skpatchcore._utils import (
    floor_fraction,
    full_precision,
    own_torch_state,
    resolve_device,
    upper_quantile,
)

# Neighbours that the local outlier factor looks at, as in SoftPatch's experiments.
_LOF_NEIGHBORS = 6
# Added to variances along all axes, in shares of their mean: so few samples have
# covariances that cannot be inverted.
_RIDGE = 0.01
# Keeps densities of duplicates finite, as scikit-learn's LocalOutlierFactor does.
_TINY_DISTANCE = 1e-10
# A sample is compared with so many patches of each other one, or more where there are
# few samples: rows in all.
_PATCHES_EACH, _FEWEST_REFERENCES = 8, 1000
# So many others must know a patch, for two samples of one defect not to vouch for each
# other; and a sample is as odd as this share of its patches, the oddest.
_WITNESSES, _TOP_SHARE = 3, 0.04
_GOLDEN = (5**0.5 - 1) / 2
# Elements of distances held at a time: 64 MB in float64.
_BLOCK_ELEMENTS = 2**23


def inlying_patches(
    patches: np.ndarray, shapes: np.ndarray, method: str, fraction: float, device
) -> np.ndarray:
    """Return the rows of patches that are no outliers, ascending.

    The score of those that are is above the quantile 1 - `fraction` of all.

    Parameters
    ----------
    patches, shapes, method, device
        As for `patch_outlier_scores`, or "sample" as method: then scores are those of
        `sample_outlier_scores`, and samples are left out as a whole.
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
    patches: np.ndarray, shapes: np.ndarray, device
) -> np.ndarray:
    """Return how far the oddest patches of each sample are from all other samples.

    A patch's distance is the third smallest of those to the other samples, wherever
    in the grid: to the nearest of a few patches of each, spread over their grids. That
    is PatchCore's own score with the sample left out, and with an even choice of
    patches, which does not prefer outliers as a greedy coreset does.

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
    n_each = max(_PATCHES_EACH, -(-_FEWEST_REFERENCES // n_samples))
    chosen = torch.from_numpy(starts[:, None] + _spread_out(sizes, n_each))
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


def _spread_out(sizes: np.ndarray, n_each: int) -> np.ndarray:
    """Return `n_each` evenly spaced patches of each sample, others in each: (n, m)."""
    shifts = np.arange(len(sizes)) * _GOLDEN % 1
    shares = (np.arange(n_each) + shifts[:, None]) / n_each
    return (shares * sizes[:, None]).astype(np.int64)


def _distance_to_others(patches, references, own: int, k: int) -> torch.Tensor:
    """Return distances (p,) to the `k`-th nearest sample but `own`.

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
