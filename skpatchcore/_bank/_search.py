"""Compute distances of patches to a bank, in any metric, and scores from them."""

import os
from collections.abc import Callable

import numpy as np
import torch
from joblib import Memory
from numpy.typing import DTypeLike, NDArray
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

# Bank rows examined for a bound, in addition to the number of neighbours. More rows
# give a tighter bound.
_SPARE_ROWS = 3


class BankSearch:
    """Search a bank for the neighbours of patches.

    Parameters
    ----------
    index : NeighborIndex
        Index of the bank.
    metric : {"euclidean", "sqeuclidean", "cosine"}
    position_search : PositionSearch or None
        Searches for patches with grid positions.
    memory : str, path-like, joblib.Memory or None
        Cache for neighbours in the whole bank, if the index is exact.
    """

    def __init__(
        self,
        index: NeighborIndex,
        metric: str,
        *,
        position_search: PositionSearch | None = None,
        memory: str | os.PathLike | Memory | None = None,
    ) -> None:
        self.index, self.metric = index, metric
        self._position_search, self._memory = position_search, memory

    @property
    def bank(self) -> NDArray:
        """The patches of the bank, (n_bank, d)."""
        return self.index.bank

    def query(
        self, patches: NDArray, positions: NDArray | None, k: int
    ) -> tuple[NDArray, NDArray]:
        """Return distances and bank rows, (n, k) each.

        With grid `positions` (n,), only rows allowed there are searched.

        Raises
        ------
        ValueError
            If the bank has fewer rows than `k`.
        """
        self._check_k("n_neighbors", k)
        patches = self._prepare(patches)
        if positions is None:
            squared, rows = self.index.query(patches, k)
        else:
            assert self._position_search is not None, "positions without a window"
            squared, rows = self._position_search.query(patches, positions, k)
        return squared_to_metric(squared, self.metric), rows

    def query_once(self, samples: Samples, k: int) -> tuple[NDArray, NDArray]:
        """Return the result of `query`; use the cache for samples that it holds."""
        cache = check_cache(self._memory)
        if cache is None or not self.index.exact or samples.positions is not None:
            return self.query(samples.patches, samples.positions, k)
        self._check_k("n_neighbors", k)
        parts = np.split(samples.patches, samples.offsets[1:-1])
        prepared = list(map(self._prepare, parts))
        squared, rows = query_once(cache, self.index, prepared, k)
        return squared_to_metric(squared, self.metric), rows

    def score(
        self,
        samples: Samples,
        n_neighbors: int,
        reduction: str | float,
        reweight: int | None,
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Return score_samples (n,), patch distances and bank rows (n_patches, k)."""
        distances, rows = self.query_once(samples, n_neighbors)
        patch_scores = distances.mean(axis=1)
        if reweight is None:
            scores = reduce_patches(patch_scores, samples.offsets, reduction)
        else:
            farthest = argmax_patches(patch_scores, samples.offsets)
            patches, largest = samples.patches[farthest], patch_scores[farthest]
            near = self.neighbors_of_rows(rows[farthest, 0], reweight)
            scores = largest * self.reweighting(patches, largest, near)
        return -scores, patch_scores, rows

    def neighbors_of_rows(self, rows: NDArray, b: int) -> NDArray[np.int64]:
        """Return the `b` bank rows nearest to each of `rows` (n,), (n, b)."""
        self._check_k("reweight", b)
        return self.index.query(self.bank[rows], b)[1]

    def n_allowed(self, positions: NDArray) -> NDArray[np.int64]:
        """Return how many bank rows the window at each of `positions` (n,) allows."""
        assert self._position_search is not None, "positions without a window"
        return self._position_search.n_allowed(positions)

    @own_torch_state()
    def reweighting(
        self,
        patches: NDArray,
        distances: NDArray,
        neighborhood: NDArray,
        counting: NDArray | None = None,
    ) -> NDArray:
        """Return the factor of eq. 7 for patches (n, d) at `distances` (n,).

        `neighborhood` (n, b) are the bank rows around those that the patches are
        matched with. Only the `counting` ones (n, b) are used; None means all.
        """
        squared = squared_distances(
            as_tensor(self._prepare(patches)), as_tensor(self.bank[neighborhood])
        )
        others = squared_to_metric(squared.numpy(), self.metric)
        if counting is not None:
            others = np.where(counting, others, -np.inf)
        # exp(distance) overflows float32 at 88.7, and float64 at 709.
        return 1 - np.exp(distances - logsumexp(others, axis=1))

    @own_torch_state()
    def bound_scores(
        self,
        patches: NDArray,
        numbers: NDArray,
        near_rows: NDArray,
        n_neighbors: int,
        counts_in_full: Callable[[NDArray, NDArray], NDArray],
    ) -> NDArray:
        """Return upper bounds of the scores of ``patches[numbers]``.

        They come from a bank row near each of these patches, ``near_rows`` (n,). The
        mean distance to any k bank rows is an upper bound of the mean distance to the k
        nearest. The bank rows around the given one make it a tight bound. Only rows (n,
        n_around) for which ``counts_in_full(rows, numbers of patches)`` is true are
        used; the given rows must be among these.
        """
        bank = as_tensor(with_safe_squares(self.bank))
        points = as_tensor(self._prepare(patches)).to(bank.dtype)
        chosen, near = torch.from_numpy(numbers), torch.from_numpy(near_rows)
        if n_neighbors == 1 or len(numbers) == 0:
            squared = paired_distances(points, chosen, bank, near)
            return squared_to_metric(squared.numpy(), self.metric)
        n_around = min(n_neighbors + _SPARE_ROWS, len(bank))
        whole = Samples(self.bank, np.array([0, len(bank)]))
        around = self.query_once(whole, n_around)[1]
        step = rows_at_once(bank, n_around)
        bounds = []
        for start in range(0, len(numbers), step):
            part = slice(start, start + step)
            rows = around[near_rows[part]]
            squared = bank[torch.from_numpy(rows)]
            squared = squared.sub_(points[chosen[part], None]).square_().sum(dim=2)
            left_out = ~counts_in_full(rows, numbers[part])
            squared.masked_fill_(torch.from_numpy(left_out), torch.inf)
            closest = squared.topk(n_neighbors, largest=False, sorted=False)
            upper = _rounded_up(closest.values.double().numpy(), bank)
            bounds.append(squared_to_metric(upper, self.metric).mean(axis=1))
        return np.concatenate(bounds)

    def _check_k(self, name: str, k: int) -> None:
        if k > len(self.bank):
            raise ValueError(
                f"{name}={k} is more than the bank has rows, {len(self.bank)}. Lower "
                f"{name}, or fit with a larger fraction."
            )

    def _prepare(self, patches: NDArray) -> NDArray:
        """Return patches in the dtype of the bank, scaled as the metric requires."""
        patches = _cast(patches, self.bank.dtype)
        return unit_rows(patches) if self.metric == "cosine" else patches


def _cast(patches: NDArray, dtype: DTypeLike) -> NDArray:
    """Return `patches` in the dtype of a bank.

    Raises
    ------
    ValueError
        If a value is not finite in that dtype.
    """
    with np.errstate(over="ignore"):
        cast = patches.astype(dtype, copy=False)
    if cast is patches or np.isfinite(cast).all():
        return cast
    raise ValueError(
        f"The largest absolute value of X is {np.abs(patches).max():.3g}, and the bank "
        f"holds {dtype}, with values up to {np.finfo(dtype).max:.3g}. Scale the "
        "features in the same way as those of the training samples, or fit on float64."
    )


def _rounded_up(squared: NDArray, bank: torch.Tensor) -> NDArray:
    """Return upper bounds of squared distances that were computed in a bank's dtype.

    Let u = eps / 2 be the roundoff. Differences err by u, squares by 3 u, and a sum of
    d squares by (d + 3) u. Using eps instead of u covers higher powers. A square below
    the smallest normal number errs by less than that number.
    """
    limits, d = torch.finfo(bank.dtype), bank.shape[1]
    return squared * (1 + (d + 4) * limits.eps) + d * limits.tiny
