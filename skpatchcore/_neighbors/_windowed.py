"""Exact nearest neighbours among the bank rows allowed at a grid position."""

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._neighbors._distances import (
    as_tensor,
    paired_distances,
    rounding_error,
)
from skpatchcore._neighbors._index import NeighborIndex
from skpatchcore._neighbors._magnitude import check_finite, with_safe_squares
from skpatchcore._utils import full_precision, own_torch_state

# One product is computed for a tile of grid positions. Tiles have at least the first
# number of positions per side: smaller tiles compare fewer rows in vain, but the
# overhead of each call outweighs this. They have at most the second number: the table
# of rows allowed at each position would become large.
_SMALLEST_TILE, _LARGEST_TILE = 4, 32
# Elements of a block of products: 32 MB in float32.
_BLOCK_ELEMENTS = 2**23


def check_window(window: int | Sequence[int]) -> tuple[int, int]:
    """Return a position window as (height, width), both odd.

    Raises
    ------
    ValueError
        If `window` is neither an odd number of grid positions nor a pair of them.
    """
    sides: Any = window
    pair = (sides, sides) if isinstance(sides, Integral) else tuple(sides)
    odd = [isinstance(n, Integral) and int(n) > 0 and int(n) % 2 == 1 for n in pair]
    if len(pair) != 2 or not all(odd):
        raise ValueError(
            f"position_window={window!r}; expected an odd number of grid positions, or "
            "a pair of them (height, width)."
        )
    return int(pair[0]), int(pair[1])


def reference_positions(
    shapes: NDArray[np.int64], grid: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the position in `grid` that contains the centre of each patch.

    Parameters
    ----------
    shapes : ndarray of shape (n_samples, 2), int64
        Height and width of the grid of each sample.
    grid : (int, int)
        Height and width of the reference grid.

    Returns
    -------
    positions : ndarray of shape (n_patches,), int64
        From 0 to height * width - 1, row by row.
    """
    positions = []
    for height, width in shapes:
        # A centre is half a patch from its edge. Doubling keeps all numbers whole.
        rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)
        columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
        positions.append((rows[:, None] * grid[1] + columns).ravel())
    return np.concatenate(positions)


def covered_positions(
    positions: NDArray[np.int64], nearest: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return all pairs of a bank row and a grid position that it represents.

    A bank row represents the positions of the patches to which it is nearest.

    Parameters
    ----------
    positions : ndarray of shape (n_patches,), int64
        Grid position of each patch.
    nearest : ndarray of shape (n_patches,), int64
        Bank row nearest to each patch.

    Returns
    -------
    pairs : ndarray of shape (n_pairs, 2), int32
        Distinct pairs (bank row, position), in ascending order.
    """
    return np.unique(np.stack([nearest, positions], axis=1).astype(np.int32), axis=0)


class PositionSearch:
    """Find the nearest bank rows to a patch among those allowed at its position.

    Each bank row represents training patches at certain positions of a grid. A patch
    may be compared with a row if one of these positions lies within the window around
    its own. If fewer rows than requested are allowed, the patch is compared with the
    whole bank.

    The grid is searched tile by tile. All rows that are allowed anywhere in a tile are
    multiplied with all patches of the tile. The product, minus a bound of its rounding
    error, rules out most pairs; the others are compared directly, in float64.

    Parameters
    ----------
    index : NeighborIndex
        Index of the whole bank.
    pairs : ndarray of shape (n_pairs, 2), int32
        Bank rows and grid positions, as returned by `covered_positions`.
    grid, window : (int, int)
        Height and width; those of the window are odd.
    """

    @own_torch_state()
    def __init__(
        self,
        index: NeighborIndex,
        pairs: NDArray[np.int32],
        grid: tuple[int, int],
        window: tuple[int, int],
    ) -> None:
        self.index = index
        self.grid, self.window = grid, window
        self._bank = as_tensor(with_safe_squares(index.bank)).to(index.device)
        self._center = self._bank.mean(dim=0)
        centered = self._bank - self._center
        self._norms = centered.double().square().sum(dim=1)
        self._rows = pairs[:, 0].astype(np.int64)
        self._places = np.stack(np.divmod(pairs[:, 1].astype(np.int64), grid[1]))
        self._tiles = np.minimum(np.clip(window, _SMALLEST_TILE, _LARGEST_TILE), grid)
        self._allowed: dict[int, tuple[NDArray, NDArray]] = {}

    @own_torch_state()
    def query(
        self, queries: NDArray, positions: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return squared distances (n, k), ascending, and bank rows (n, k).

        Rows at equal distance are in ascending order.

        Parameters
        ----------
        queries : ndarray of shape (n, d)
        positions : ndarray of shape (n,), int64
            Grid position of each query.
        k : int
        """
        squared = np.empty((len(queries), k))
        rows = np.empty((len(queries), k), dtype=np.int64)
        unrestricted = np.zeros(len(queries), dtype=bool)
        for members, within, candidates, allowed in self._by_tile(positions):
            enough = (allowed.sum(axis=1) >= k)[within]
            unrestricted[members[~enough]] = True
            members, within = members[enough], within[enough]
            step = max(1, _BLOCK_ELEMENTS // max(1, len(candidates)))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                seen = allowed[within[start : start + step]]
                found = self._nearest(queries[part], candidates, seen, k)
                squared[part], rows[part] = found
        if unrestricted.any():
            found = self.index.query(queries[unrestricted], k)
            squared[unrestricted], rows[unrestricted] = found
        check_finite(squared, queries)
        return squared, rows

    def n_allowed(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many bank rows are allowed at each of `positions` (n,)."""
        counts = np.empty(len(positions), dtype=np.int64)
        for members, within, _, allowed in self._by_tile(positions):
            counts[members] = allowed.sum(axis=1)[within]
        return counts

    def _by_tile(
        self, positions: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray, NDArray, NDArray, NDArray]]:
        """Yield the queries of each tile, their positions in it, and `_allow` of it."""
        row, column = np.divmod(positions, self.grid[1])
        n_across = -(-self.grid[1] // self._tiles[1])
        tile = row // self._tiles[0] * n_across + column // self._tiles[1]
        order = tile.argsort(kind="stable")
        numbers, starts = np.unique(tile[order], return_index=True)
        for number, members in zip(
            numbers.tolist(), np.split(order, starts[1:]), strict=True
        ):
            top, left = np.multiply(divmod(number, n_across), self._tiles)
            if number not in self._allowed:
                self._allowed[number] = self._allow(top, left)
            within = (row[members] - top) * self._tiles[1] + column[members] - left
            yield members, within, *self._allowed[number]

    def _allow(self, top: int, left: int) -> tuple[NDArray, NDArray]:
        """Return the rows (c,) allowed in a tile, and at which positions in it (t, c).

        A tile has t positions; `top` and `left` are those of its first one.
        """
        corner = np.array([[top], [left]])
        reach = np.array(self.window)[:, None] // 2
        sizes = np.array(self._tiles)[:, None]
        near = (self._places >= corner - reach) & (
            self._places < corner + sizes + reach
        )
        near = np.flatnonzero(near.all(axis=0))
        candidates, candidate = np.unique(self._rows[near], return_inverse=True)
        offsets = self._places[:, near] - corner
        # Whether each position of the tile is within the window, by height and width.
        close = [
            np.abs(offset - np.arange(size)[:, None]) <= far
            for offset, size, far in zip(offsets, self._tiles, reach[:, 0], strict=True)
        ]
        pairs = close[0][:, None] & close[1]
        # The shape is explicit, because -1 is ambiguous if no row is near.
        n_positions = math.prod(self._tiles)
        position, pair = pairs.reshape(n_positions, len(near)).nonzero()
        allowed = np.zeros((n_positions, len(candidates)), dtype=bool)
        allowed[position, candidate[pair]] = True
        return candidates, allowed

    def _nearest(
        self, queries: NDArray, candidates: NDArray, allowed: NDArray, k: int
    ) -> tuple[NDArray, NDArray]:
        """Return exact squared distances and rows of the `k` nearest allowed rows."""
        points = as_tensor(queries).to(self._bank)
        rows = torch.from_numpy(candidates).to(points.device)
        mask = torch.from_numpy(allowed).to(points.device)
        query, place = self._possible_pairs(points, rows, mask, k)
        row = rows[place]
        squared = paired_distances(points, query, self._bank, row)
        # Sort by query, then by distance. Rows are in ascending order already.
        order = squared.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]
        query = query[order]
        places = torch.arange(len(query), device=query.device)
        order = order[places - torch.searchsorted(query, query) < k]
        return (
            squared[order].reshape(-1, k).cpu().numpy(),
            row[order].reshape(-1, k).cpu().numpy(),
        )

    def _possible_pairs(
        self,
        queries: torch.Tensor,
        candidates: torch.Tensor,
        allowed: torch.Tensor,
        k: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all pairs that may be among the `k` nearest allowed rows of a query.

        A pair is an index in `queries` and one in `candidates`.
        """
        bank, norms = self._bank[candidates] - self._center, self._norms[candidates]
        centered = queries - self._center
        with full_precision():
            products = torch.addmm(norms.to(bank.dtype), centered, bank.T, alpha=-2)
        products.masked_fill_(~allowed, torch.inf)
        reach = centered.double().square().sum(dim=1).sqrt() + norms.max().sqrt()
        error = rounding_error(bank.shape[1], bank.dtype, reach)
        # Both the k-th smallest product and that of a nearer row may be off by the
        # error, in opposite directions.
        kth = products.kthvalue(k, dim=1).values.double() + 2 * error
        # Negated so that NaN (overflow) counts as a candidate.
        possible = ~(products > kth.to(products.dtype)[:, None]) & allowed
        query, candidate = possible.nonzero(as_tuple=True)
        return query, candidate
