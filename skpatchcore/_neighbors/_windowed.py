"""Exact nearest neighbours among the bank rows that are allowed at a grid position."""

import math
from collections.abc import Iterator
from numbers import Integral

import numpy as np
import torch

from skpatchcore._neighbors._distances import (
    as_tensor,
    paired_distances,
    rounding_error,
)
from skpatchcore._neighbors._index import NeighborIndex
from skpatchcore._neighbors._magnitude import check_finite, with_safe_squares
from skpatchcore._utils import full_precision, own_torch_state

# A product is made for a tile of cells at once, of at least so many a side: smaller
# ones compare fewer rows in vain, but too few to be worth a call. Larger ones than the
# other need much memory for what is allowed where.
_SMALLEST_TILE, _LARGEST_TILE = 4, 32
# Elements of a block of products: 32 MB in float32.
_BLOCK_ELEMENTS = 2**23


def check_window(window) -> tuple[int, int]:
    """Return a position window as heights and widths, both odd.

    Raises
    ------
    ValueError
        If `window` is not an odd number of cells, or a pair of them.
    """
    pair = (window, window) if isinstance(window, Integral) else tuple(window)
    odd = [isinstance(n, Integral) and n > 0 and n % 2 == 1 for n in pair]
    if len(pair) != 2 or not all(odd):
        raise ValueError(
            f"position_window={window!r}; expected an odd number of grid positions, or "
            "a pair of them (height, width)."
        )
    return int(pair[0]), int(pair[1])


def reference_cells(shapes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the cell of `grid` that each patch's centre lies in.

    Parameters
    ----------
    shapes : ndarray of shape (n_samples, 2), int64
        Height and width of the grid of each sample.
    grid : (int, int)

    Returns
    -------
    cells : ndarray of shape (n_patches,), int64
        Row by row: 0 to height * width - 1.
    """
    cells = []
    for height, width in shapes:
        # Centres lie halfway; doubled, all numbers are whole.
        rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)
        columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
        cells.append((rows[:, None] * grid[1] + columns).ravel())
    return np.concatenate(cells)


def covered_cells(cells: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return the pairs (bank row, cell) of patches and the bank rows nearest to them.

    Parameters
    ----------
    cells : ndarray of shape (n_patches,), int64
    nearest : ndarray of shape (n_patches,), int64

    Returns
    -------
    pairs : ndarray of shape (n_pairs, 2), int32
        Each once, in ascending order.
    """
    return np.unique(np.stack([nearest, cells], axis=1).astype(np.int32), axis=0)


class PositionSearch:
    """Nearest bank rows to a patch, of those allowed where the patch is.

    A bank row stands for training patches in certain cells of a grid; a patch may be
    compared with it if one of these lies within the window about its own cell. Where
    fewer rows than asked for are allowed, a patch is compared with the whole bank.

    Cells are searched by tiles: rows that are allowed anywhere in a tile are multiplied
    with all its patches, and what the product, less a bound of its rounding, does not
    rule out, is compared directly in float64.

    Parameters
    ----------
    index : NeighborIndex
        Of the whole bank.
    pairs : ndarray of shape (n_pairs, 2), int32
        Bank rows and cells, as `covered_cells` gives them.
    grid, window : (int, int)
        Height and width; those of the window are odd.
    """

    @own_torch_state()
    def __init__(self, index: NeighborIndex, pairs: np.ndarray, grid, window):
        self.index = index
        self.grid, self.window = grid, window
        self._bank = as_tensor(with_safe_squares(index.bank)).to(index.device)
        self._center = self._bank.mean(dim=0)
        centered = self._bank - self._center
        self._norms = centered.double().square().sum(dim=1)
        self._rows = pairs[:, 0].astype(np.int64)
        self._places = np.stack(np.divmod(pairs[:, 1].astype(np.int64), grid[1]))
        self._tiles = np.minimum(np.clip(window, _SMALLEST_TILE, _LARGEST_TILE), grid)
        self._allowed: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @own_torch_state()
    def query(
        self, queries: np.ndarray, cells: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances (n, k), ascending, and bank rows (n, k).

        Equal distances come in the order of their rows.

        Parameters
        ----------
        queries : ndarray of shape (n, d)
        cells : ndarray of shape (n,), int64
        k : int
        """
        squared = np.empty((len(queries), k))
        rows = np.empty((len(queries), k), dtype=np.int64)
        alone = np.zeros(len(queries), dtype=bool)
        for members, within, candidates, allowed in self._by_tile(cells):
            enough = (allowed.sum(axis=1) >= k)[within]
            alone[members[~enough]] = True
            members, within = members[enough], within[enough]
            step = max(1, _BLOCK_ELEMENTS // max(1, len(candidates)))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                seen = allowed[within[start : start + step]]
                found = self._nearest(queries[part], candidates, seen, k)
                squared[part], rows[part] = found
        if alone.any():
            squared[alone], rows[alone] = self.index.query(queries[alone], k)
        check_finite(squared, queries)
        return squared, rows

    def _by_tile(self, cells) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield queries (n,) of a tile, their cells in it, and what `_allow` gives."""
        row, column = np.divmod(cells, self.grid[1])
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

    def _allow(self, top, left) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (c,) allowed in a tile, and in which of its cells (t, c)."""
        corner = np.array([[top], [left]])
        reach = np.array(self.window)[:, None] // 2
        sizes = np.array(self._tiles)[:, None]
        near = (self._places >= corner - reach) & (
            self._places < corner + sizes + reach
        )
        near = np.flatnonzero(near.all(axis=0))
        candidates, position = np.unique(self._rows[near], return_inverse=True)
        offsets = self._places[:, near] - corner
        # Of a tile's cells: whether they are as near in height, and in width.
        close = [
            np.abs(offset - np.arange(size)[:, None]) <= far
            for offset, size, far in zip(offsets, self._tiles, reach[:, 0], strict=True)
        ]
        pairs = close[0][:, None] & close[1]
        # Not -1: no row may be near.
        cell, pair = pairs.reshape(math.prod(self._tiles), len(near)).nonzero()
        allowed = np.zeros((math.prod(self._tiles), len(candidates)), dtype=bool)
        allowed[cell, position[pair]] = True
        return candidates, allowed

    def _nearest(self, queries, candidates, allowed, k: int):
        """Return exact squared distances and rows of the `k` nearest allowed rows."""
        queries = as_tensor(queries).to(self._bank)
        candidates = torch.from_numpy(candidates).to(queries.device)
        allowed = torch.from_numpy(allowed).to(queries.device)
        query, place = self._possible_pairs(queries, candidates, allowed, k)
        row = candidates[place]
        squared = paired_distances(queries, query, self._bank, row)
        # By query, then distance; rows ascend already.
        order = squared.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]
        query = query[order]
        places = torch.arange(len(query), device=query.device)
        order = order[places - torch.searchsorted(query, query) < k]
        return (
            squared[order].reshape(-1, k).cpu().numpy(),
            row[order].reshape(-1, k).cpu().numpy(),
        )

    def _possible_pairs(self, queries, candidates, allowed, k: int):
        """Return queries, and places in `candidates`, of possible neighbours."""
        bank, norms = self._bank[candidates] - self._center, self._norms[candidates]
        centered = queries - self._center
        with full_precision():
            products = torch.addmm(norms.to(bank.dtype), centered, bank.T, alpha=-2)
        products.masked_fill_(~allowed, torch.inf)
        reach = centered.double().square().sum(dim=1).sqrt() + norms.max().sqrt()
        error = rounding_error(bank.shape[1], bank.dtype, reach)
        kth = products.kthvalue(k, dim=1).values.double() + 2 * error
        # Not what is surely too far: an overflow must not hide anything.
        possible = ~(products > kth.to(products.dtype)[:, None]) & allowed
        return possible.nonzero(as_tuple=True)
