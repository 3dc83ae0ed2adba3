"""How near every row is to the picks of a coreset, kept up to date exactly."""

import numpy as np
import torch

from skpatchcore._coreset._clusters import Cells, near_pairs
from skpatchcore._neighbors import length_margin, paired_distances, rounding_error
from skpatchcore._utils import full_precision, map_threads, shares

# Rows are sorted into cells about the picks, first about this many, ...
_FEWEST_CELLS = 16
# ... again each time there are so many times as many picks, ...
_CELL_GROWTH = 3
# ... until cells have so few rows on average that finer ones cost more than they save.
_ROWS_PER_CELL = 512
# Parts that cells are divided into for threads to share: enough for all to be busy.
_SHARES = 8


class Cover:
    """Squared distance of each row to its nearest pick so far, and which pick it is.

    Distances are exact: differences, in float64. A pick is compared in that way only
    with rows that it may be nearer to than any earlier one. Which these are is told by
    a matrix product, with a bound of its rounding; and before that by the triangle
    inequality, as rows are sorted into cells about earlier picks: with r a row's
    distance to its cell's centre and s that to its nearest pick, a pick farther from
    the centre than r + s is farther from the row than s. Both r and the distance to the
    centre are computed, so the first is rounded up (`Cells.radii`) and the second down
    (`Cells.distances`).

    Parameters
    ----------
    X : Tensor of shape (n, d), floating point

    Attributes
    ----------
    picks : list of int
        Rows picked so far, in order.
    squared : Tensor of shape (n,), float64
        Infinite before the first pick; minus infinity for picks themselves.
    nearest : Tensor of shape (n,), int64
        Positions in `picks`.
    """

    def __init__(self, X: torch.Tensor):
        self.X = X
        self.squared = X.new_full((len(X),), torch.inf, dtype=torch.float64)
        self.nearest = torch.full((len(X),), -1, device=X.device)
        self.picks: list[int] = []
        self._cells = Cells.whole(X)

    def add(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Account for new picks; return rows whose nearest pick changed, for `restore`.

        A change is a row, its new nearest pick, and the squared distance to it.
        """
        before = self.nearest.clone()
        self._keep_nearer(*self._nearer_pairs(rows))
        self._pick(rows)
        changed = (self.nearest != before).nonzero()[:, 0]
        parts = (changed.int(), self.nearest[changed].int(), self.squared[changed])
        return tuple(part.cpu().numpy() for part in parts)

    def add_with_radii(self, rows: list[int]) -> np.ndarray:
        """Account for new picks; return squared cover radii after each of them."""
        values, radii = self.squared.clone(), self.squared.new_zeros(len(rows))
        row, position, squared = self._nearer_pairs(rows)
        self._keep_nearer(row, position, squared)
        # The n-th pick that comes near each row, for n = 1, 2, ...
        order = np.lexsort((position.cpu(), row.cpu()))
        row, position, squared = row[order], position[order], squared[order]
        starts = torch.searchsorted(row, row)
        rank = torch.arange(len(row), device=row.device) - starts
        for n in range(int(rank.max()) + 1 if len(rank) else 0):
            r, p, s = (part[rank == n] for part in (row, position, squared))
            # What a row had until now it had up to the pick before.
            held = values[r].masked_fill(p == 0, 0)
            radii.scatter_reduce_(0, (p - 1).clamp(min=0), held, "amax")
            values[r] = torch.minimum(values[r], s)
        radii[-1] = values.max().clamp(min=0)
        self._pick(rows)
        # A row that is so far after a pick was no nearer before it.
        return radii.flip(0).cummax(0).values.flip(0).cpu().numpy()

    def restore(self, picks: list[int], log: list[tuple]) -> None:
        """Bring the state of nothing picked to that after the changes in `log`."""
        if log:
            rows, nearest, squared = map(np.concatenate, zip(*log, strict=True))
            # Of several changes of a row the last one counts.
            last = np.full(len(self.X), -1)
            last[rows] = np.arange(len(rows))
            device = self.X.device
            self.nearest = torch.from_numpy(nearest[last]).long().to(device)
            self.squared = torch.from_numpy(squared[last]).to(device)
        self.picks = list(picks)

    def _nearer_pairs(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        """Return rows, positions in `rows`, and squared distances: all that are nearer.

        Nearer, that is, than the row's nearest pick so far.
        """
        self._sort_into_cells()
        picks = torch.tensor(rows, device=self.X.device)
        points = self.X[picks]
        near, limits = self._plan_search(points)

        def compare(parts):
            row, position = self._possible_pairs(points, near, limits, parts)
            squared = paired_distances(self.X, row, self.X, picks[position])
            nearer = squared < self.squared[row]
            return row[nearer], position[nearer], squared[nearer]

        parts = shares(self._cells.parts(len(rows)), _SHARES)
        with full_precision():
            found = list(map_threads(compare, parts, self.X.device))
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _plan_search(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of `points` may come nearer to which cells (b, c), and limits.

        To a row only those may whose partial product is less than the row's limit.
        """
        cells = self._cells
        squared = self.squared[cells.order]
        # What is at distance 0, or a pick, comes no nearer.
        closed = squared <= 0
        radii = cells.radii
        reach = radii + squared.clamp(min=0).sqrt().mul_(length_margin(self.X))
        reach = cells.largest(reach.masked_fill_(closed, -torch.inf))
        # Negated, here and below, so that NaN (overflow) counts as a candidate.
        near = ~(cells.distances(points) >= reach)
        reach = radii + reach[cells.member_of]
        error = rounding_error(points.shape[1], points.dtype, reach)
        limits = squared.sub_(cells.squared_norms).add_(error)
        # Infinity is not less than infinity, but nothing is ruled out by NaN.
        limits.masked_fill_(limits == torch.inf, torch.nan)
        return near, limits.masked_fill_(closed, -torch.inf).to(points.dtype)

    def _possible_pairs(self, points, near, limits, parts):
        """Return rows of `parts`, and positions, of what a product cannot rule out."""
        cells, first = self._cells, parts[0][0]
        cell, position = near[:, first : parts[-1][0] + 1].T.nonzero(as_tuple=True)
        offsets = points[position] - cells.centers[cell + first]
        norms = offsets.square().sum(dim=1)
        ends = [
            0,
            *cell.bincount(minlength=parts[-1][0] + 1 - first).cumsum(0).tolist(),
        ]
        rows, others = [position[:0]], [position[:0]]
        for number, members in parts:
            start, end = ends[number - first : number - first + 2]
            if start < end:
                i, j = near_pairs(
                    cells.offsets[members],
                    limits[members],
                    offsets[start:end],
                    norms[start:end],
                )
                rows.append(i + members.start)
                others.append(j + start)
        return cells.order[torch.cat(rows)], position[torch.cat(others)]

    def _sort_into_cells(self) -> None:
        """Make more and smaller cells where there are picks enough for it."""
        n_picks, n_cells = len(self.picks), len(self._cells.centers)
        largest = len(self.X) // _ROWS_PER_CELL
        if max(_FEWEST_CELLS, _CELL_GROWTH * n_cells) <= n_picks <= largest:
            self._cells = Cells.about(self.X, self.X[self.picks], self.nearest)

    def _keep_nearer(self, row, position, squared) -> None:
        best = self.squared.scatter_reduce(0, row, squared, "amin")
        first = squared == best[row]
        row, position = row[first], position[first] + len(self.picks)
        never = torch.iinfo(self.nearest.dtype).max
        # The earliest of picks at the same distance.
        nearest = torch.full_like(self.nearest, never)
        nearest.scatter_reduce_(0, row, position, "amin")
        self.nearest = torch.where(nearest < never, nearest, self.nearest)
        self.squared = best

    def _pick(self, rows: list[int]) -> None:
        # Never picked twice.
        self.squared[rows] = -torch.inf
        n_before = len(self.picks)
        self.picks += rows
        self.nearest[rows] = torch.arange(
            n_before, len(self.picks), device=self.X.device
        )

    def farthest(self, n_candidates: int) -> tuple[list[int], list[float]]:
        """Return the next greedy picks and the squared distance at which each is made.

        Of rows equally far the first is picked. The last ones may be picks already,
        once no other rows are left.
        """
        rows, lowest = self._candidates(n_candidates)
        near = at_most(self.X[rows], self.squared[rows]).cpu().numpy()
        points = self.X[rows].double().cpu().numpy()
        values, rows = self.squared[rows].cpu().numpy(), rows.tolist()
        picked, distances = [], []
        while len(picked) < len(rows):
            farthest = values.argmax()
            if values[farthest] < lowest:
                break
            picked.append(rows[farthest])
            distances.append(float(values[farthest]))
            # Those that are out already need not be right.
            others = np.flatnonzero(near[farthest] & (values >= lowest))
            difference = points[others] - points[farthest]
            squared = np.einsum("ij,ij->i", difference, difference)
            values[others] = np.minimum(values[others], squared)
            values[farthest] = -np.inf
        return picked, distances

    def _candidates(self, n_candidates: int) -> tuple[torch.Tensor, float]:
        """Return rows, ascending, and how far one must be to be picked before others.

        As many rows as asked for, or fewer where more are equally far.
        """
        n_top = min(n_candidates + 1, len(self.X))
        values, rows = self.squared.topk(n_top)
        if n_top == len(self.X):
            return rows.sort().values, -np.inf
        floor = values[-1]
        farther = rows[values > floor]
        if len(farther) == 0:
            # The first of all that are equally far go before the others.
            equal = (self.squared == floor).nonzero()[:n_candidates, 0]
            return equal, float(floor)
        return farther.sort().values, np.nextafter(float(floor), np.inf)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the squared distance of each row, and the position of its pick."""
        # Picks are at distance 0 of themselves.
        return self.squared.clamp(min=0).cpu().numpy(), self.nearest.cpu().numpy()


def at_most(points: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
    """Return whether j may be at `squared`_j or less from i, among n points, (n, n)."""
    centered = points - points.mean(dim=0)
    norms = centered.square().sum(dim=1)
    with full_precision():
        products = torch.addmm(norms, centered, centered.T, alpha=-2)
    reach = 2 * norms.max().sqrt()
    error = rounding_error(points.shape[1], points.dtype, reach)
    # Negated so that NaN (overflow) counts as near.
    return ~(products + norms[:, None] > squared + error)
