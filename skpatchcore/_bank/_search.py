"""Distances of patches to a bank, in the unit of a metric, and scores from them."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from skpatchcore._neighbors import (
    NeighborIndex,
    PositionSearch,
    as_tensor,
    paired_distances,
    query_once,
    rows_at_once,
    squared_distances,
    squared_to_metric,
    unit_rows,
    with_safe_squares,
)
from skpatchcore._utils import (
    Samples,
    argmax_patches,
    check_cache,
    own_torch_state,
    reduce_patches,
)

# Bank rows looked at for a bound beside as many as neighbours are asked for.
_SPARE_ROWS = 3


class BankSearch:
    """Search a bank for the neighbours of patches.

    Parameters
    ----------
    index : NeighborIndex
        Of the bank.
    metric : {"euclidean", "sqeuclidean", "cosine"}
    positions : PositionSearch or None
        Searches for patches that have cells.
    memory : str, path-like, joblib.Memory or None
        For neighbours in the whole bank, by an exact index.
    """

    def __init__(
        self,
        index: NeighborIndex,
        metric: str,
        *,
        positions: PositionSearch | None = None,
        memory=None,
    ):
        self.index, self.metric = index, metric
        self._positions, self._memory = positions, memory

    @property
    def bank(self) -> NDArray:
        """The patches that are searched, (n_bank, d)."""
        return self.index.bank

    def query(self, patches: NDArray, cells, k: int) -> tuple[NDArray, NDArray]:
        """Return distances and bank rows, (n, k) each.

        Raises
        ------
        ValueError
            If the bank has fewer rows than `k`.
        """
        self._check_k("n_neighbors", k)
        patches = self._prepare(patches)
        if cells is None:
            squared, rows = self.index.query(patches, k)
        else:
            squared, rows = self._positions.query(patches, cells, k)
        return squared_to_metric(squared, self.metric), rows

    def query_once(self, samples: Samples, k: int) -> tuple[NDArray, NDArray]:
        """Query patches, those of a sample from the cache where they are there."""
        cache = check_cache(self._memory)
        if cache is None or not self.index.exact or samples.cells is not None:
            return self.query(samples.patches, samples.cells, k)
        self._check_k("n_neighbors", k)
        parts = np.split(samples.patches, samples.offsets[1:-1])
        prepared = list(map(self._prepare, parts))
        squared, rows = query_once(cache, self.index, prepared, k)
        return squared_to_metric(squared, self.metric), rows

    def score(self, samples: Samples, n_neighbors: int, reduction, reweight):
        """Return score_samples (n,), patch distances and bank rows (n_patches, k)."""
        distances, rows = self.query_once(samples, n_neighbors)
        patch_scores = distances.mean(axis=1)
        if reweight is None:
            scores = reduce_patches(patch_scores, samples.offsets, reduction)
        else:
            farthest = argmax_patches(patch_scores, samples.offsets)
            patches, largest = samples.patches[farthest], patch_scores[farthest]
            scores = largest * self.reweighting(
                patches, largest, rows[farthest, 0], reweight
            )
        return -scores, patch_scores, rows

    @own_torch_state()
    def reweighting(self, patches, distances, rows, b: int) -> NDArray:
        """Return the factor of eq. 7 for patches (n, d) matched with bank rows (n,)."""
        self._check_k("reweight", b)
        _, neighborhood = self.index.query(self.bank[rows], b)
        squared = squared_distances(
            as_tensor(self._prepare(patches)), as_tensor(self.bank[neighborhood])
        )
        others = squared_to_metric(squared.numpy(), self.metric)
        # exp(distance) overflows float32 at 88.7, and float64 at 709.
        return 1 - np.exp(distances - logsumexp(others, axis=1))

    @own_torch_state()
    def bound_scores(self, patches, nearest, n_neighbors: int) -> NDArray:
        """Return upper bounds of patch scores, from a bank row near each patch.

        Any k bank rows give one; the nearest of those around that row give a good one.
        """
        bank = as_tensor(with_safe_squares(self.bank))
        patches = as_tensor(self._prepare(patches)).to(bank.dtype)
        nearest = torch.from_numpy(nearest)
        if n_neighbors == 1:
            everyone = torch.arange(len(patches))
            squared = paired_distances(patches, everyone, bank, nearest)
            return squared_to_metric(squared.numpy(), self.metric)
        n_around = min(n_neighbors + _SPARE_ROWS, len(bank))
        whole = Samples(self.bank, np.array([0, len(bank)]))
        around = torch.from_numpy(self.query_once(whole, n_around)[1])
        step = rows_at_once(bank, n_around)
        bounds = []
        for part, rows in zip(patches.split(step), nearest.split(step), strict=True):
            squared = (bank[around[rows]] - part[:, None]).square_().sum(dim=2)
            closest = squared.topk(n_neighbors, largest=False, sorted=False)
            upper = _rounded_up(closest.values.double().numpy(), bank)
            bounds.append(squared_to_metric(upper, self.metric).mean(axis=1))
        return np.concatenate(bounds)

    def _check_k(self, name: str, k: int) -> None:
        if k > len(self.bank):
            raise ValueError(
                f"{name}={k} is more than the bank has rows, {len(self.bank)}."
            )

    def _prepare(self, patches: NDArray) -> NDArray:
        patches = _cast(patches, self.bank.dtype)
        return unit_rows(patches) if self.metric == "cosine" else patches


def _cast(patches: NDArray, dtype) -> NDArray:
    """Return `patches` in the dtype of a bank.

    Raises
    ------
    ValueError
        If their largest value is not finite in that dtype.
    """
    with np.errstate(over="ignore"):
        cast = patches.astype(dtype, copy=False)
    if cast is patches or np.isfinite(cast).all():
        return cast
    raise ValueError(
        f"The largest absolute value of X is {np.abs(patches).max():.3g}, and the bank "
        f"holds {dtype}, of values up to {np.finfo(dtype).max:.3g}. Scale the features "
        "as those of the training samples are scaled, or fit on float64."
    )


def _rounded_up(squared: NDArray, bank: torch.Tensor) -> NDArray:
    """Return upper bounds of squared distances that were computed in a bank's dtype.

    With roundoff u = eps / 2, differences err by u, squares by 3 u, and a sum of d of
    them by (d + 3) u; eps instead of u covers higher powers. What sinks below the
    smallest normal number is less than it, in each square.
    """
    limits, d = torch.finfo(bank.dtype), bank.shape[1]
    return squared * (1 + (d + 4) * limits.eps) + d * limits.tiny
