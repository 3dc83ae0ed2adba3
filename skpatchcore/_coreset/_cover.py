"""Keep the exact distance of every row to its nearest pick of a coreset."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._coreset._clusters import Clusters, near_pairs
from skpatchcore._neighbors import length_margin, paired_distances, rounding_error
from skpatchcore._utils import full_precision, map_threads, shares

# Clusters are centred on the picks. With fewer picks than this, the clusters are so
# wide that the triangle inequality rules out little.
_FEWEST_CLUSTERS = 16
# Clusters are made anew each time the number of picks has grown by this factor. Sorting
# reads all rows, so it must be rare: growth by a factor makes the number of times
# logarithmic in the number of picks.
_CLUSTER_GROWTH = 3
# Clusters are not made smaller than this on average: with fewer rows in each product,
# the overhead of a call costs more than the saved comparisons.
_ROWS_PER_CLUSTER = 512
# Number of tasks for the threads. More than there usually are threads, because tasks
# differ in length and all threads should stay busy.
_SHARES = 8

# Rows, their new nearest picks, and the squared distances to these.
Changes: TypeAlias = tuple[NDArray, NDArray, NDArray]


class Cover:
    """Squared distance from each row to its nearest pick, and which pick that is.

    **Invariant.** After every update, `squared` holds, for each row that is not a pick,
    the smallest squared distance to a pick, computed as differences in float64.
    `nearest` is the earliest pick at that distance. Matrix products never contribute a
    distance. They only rule out pairs of a row and a pick, so the result equals that of
    comparing all pairs.

    **Bound.** Comparing every row with every pick directly would be slow. Two bounds
    rule out nearly all pairs, with s the distance from a row to its nearest pick so
    far:

    1. *Triangle inequality.* Rows are sorted into clusters around earlier picks. Let r
       be the distance from a row to the centre of its cluster. A pick at distance
       r + s or more from the centre is at least s away from the row, so it is not
       nearer. r is rounded up (`Clusters.radii`), and the distance from pick to centre
       is rounded down (`Clusters.distances`), so rounding never rules out a pair
       wrongly.
    2. *Product.* For the remaining pairs, let o and q be the offsets of the row and the
       pick from the centre. The pick is nearer only if |q|^2 - 2 o.q < s^2 - |o|^2. The
       left side is a matrix product, and `rounding_error` bounds its error.

    Pairs that neither bound rules out are compared directly.

    Parameters
    ----------
    X : Tensor of shape (n, d), floating point

    Attributes
    ----------
    picks : list of int
        Rows picked so far, in order.
    squared : Tensor of shape (n,), float64
        Infinity before the first pick, minus infinity for the picks themselves.
    nearest : Tensor of shape (n,), int64
        Positions in `picks`.
    """

    def __init__(self, X: torch.Tensor):
        self.X = X
        self.squared = X.new_full((len(X),), torch.inf, dtype=torch.float64)
        self.nearest = torch.full((len(X),), -1, device=X.device)
        self.picks: list[int] = []
        self._clusters = Clusters.whole(X)

    def add(self, rows: list[int]) -> Changes:
        """Add picks, and return the changes that `restore` needs to repeat this.

        Returns
        -------
        changed : ndarray of shape (n_changed,), int32
            Rows whose nearest pick changed.
        nearest : ndarray of shape (n_changed,), int32
            Their new nearest picks, as positions in `picks`.
        squared : ndarray of shape (n_changed,), float64
            Squared distances to these.
        """
        before = self.nearest.clone()
        self._keep_nearer(*self._nearer_pairs(rows))
        self._pick(rows)
        changed = (self.nearest != before).nonzero()[:, 0]
        return (
            changed.int().cpu().numpy(),
            self.nearest[changed].int().cpu().numpy(),
            self.squared[changed].cpu().numpy(),
        )

    def add_with_radii(self, rows: list[int]) -> NDArray[np.float64]:
        """Add picks, and return the squared cover radius after each of them.

        The radius after a pick is the largest distance that any row has at that time.
        Within the block, the distance of a row is a falling step function. It is enough
        to record each step at the last pick before it ends: a row with distance v after
        one pick had at least the distance v after all earlier ones. So a running
        maximum from the end fills in the rest.
        """
        values, radii = self.squared.clone(), self.squared.new_zeros(len(rows))
        row, position, squared = self._nearer_pairs(rows)
        self._keep_nearer(row, position, squared)
        # Sorted by row, then by pick. `rank` counts the picks that come near one row.
        order = np.lexsort((position.cpu(), row.cpu()))
        row, position, squared = row[order], position[order], squared[order]
        starts = torch.searchsorted(row, row)
        rank = torch.arange(len(row), device=row.device) - starts
        for n in range(int(rank.max()) + 1 if len(rank) else 0):
            r, p, s = (part[rank == n] for part in (row, position, squared))
            # The row keeps its value up to the pick before. Values that end with the
            # first pick belong to no radius of this block.
            held = values[r].masked_fill(p == 0, 0)
            radii.scatter_reduce_(0, (p - 1).clamp(min=0), held, "amax")
            values[r] = torch.minimum(values[r], s)
        radii[-1] = values.max().clamp(min=0)
        self._pick(rows)
        # The running maximum from the end.
        return radii.flip(0).cummax(0).values.flip(0).cpu().numpy()

    def restore(self, picks: list[int], log: Sequence[Changes]) -> None:
        """Bring a new cover to the state after the changes in `log`."""
        if log:
            rows, nearest, squared = map(np.concatenate, zip(*log, strict=True))
            # If a row changed several times, the last change counts.
            last = np.full(len(self.X), -1)
            last[rows] = np.arange(len(rows))
            device = self.X.device
            self.nearest = torch.from_numpy(nearest[last]).long().to(device)
            self.squared = torch.from_numpy(squared[last]).to(device)
        self.picks = list(picks)

    def _nearer_pairs(
        self, rows: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find all pairs of a row and a new pick that is nearer than all earlier picks.

        Returns
        -------
        row : Tensor of shape (n_pairs,), int64
        position : Tensor of shape (n_pairs,), int64
            Positions of the picks in `rows`.
        squared : Tensor of shape (n_pairs,), float64
        """
        self._refine_clusters()
        picks = torch.tensor(rows, device=self.X.device)
        points = self.X[picks]
        near, limits = self._plan_search(points)

        def compare(
            parts: Sequence[tuple[int, slice]],
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            row, position = self._possible_pairs(points, near, limits, parts)
            squared = paired_distances(self.X, row, self.X, picks[position])
            nearer = squared < self.squared[row]
            return row[nearer], position[nearer], squared[nearer]

        parts = shares(self._clusters.parts(len(rows)), _SHARES)
        with full_precision():
            found = list(map_threads(compare, parts, self.X.device))
        row, position, squared = map(torch.cat, zip(*found, strict=True))
        return row, position, squared

    def _plan_search(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which clusters each new pick may affect, and a limit for each row.

        Both bounds in the docstring of the class are prepared here.

        Parameters
        ----------
        points : Tensor of shape (b, d)
            The new picks.

        Returns
        -------
        near : Tensor of shape (b, c), bool
            False if the triangle inequality rules out every row of the cluster.
        limits : Tensor of shape (n,), dtype of `points`
            A pick is not nearer to a row unless its product |q|^2 - 2 o.q is below the
            row's limit. In the order of the clusters.
        """
        clusters = self._clusters
        squared = self.squared[clusters.order]
        # A pick, or a row at distance 0 from one, cannot get any nearer.
        closed = squared <= 0
        radii = clusters.radii
        # r + s. The margin makes s an upper bound: a pick that is truly farther than
        # this also has the larger computed distance in the direct comparison.
        reach = radii + squared.clamp(min=0).sqrt().mul_(length_margin(self.X))
        # A cluster is affected if any of its rows is, so its largest r + s decides.
        reach = clusters.largest(reach.masked_fill_(closed, -torch.inf))
        # Negated, here and below, so that NaN (overflow) counts as a candidate.
        near = ~(clusters.distances(points) >= reach)
        # Lengths in the product: |o| is at most r, and |q| is below the cluster's
        # largest r + s, since other picks have just been ruled out.
        reach = radii + reach[clusters.member_of]
        error = rounding_error(points.shape[1], points.dtype, reach)
        limits = squared.sub_(clusters.squared_norms).add_(error)
        # Infinity is not less than infinity, but NaN rules out nothing.
        limits.masked_fill_(limits == torch.inf, torch.nan)
        return near, limits.masked_fill_(closed, -torch.inf).to(points.dtype)

    def _possible_pairs(
        self,
        points: torch.Tensor,
        near: torch.Tensor,
        limits: torch.Tensor,
        parts: Sequence[tuple[int, slice]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs in `parts` that the products cannot rule out.

        Parameters
        ----------
        points, near, limits
            As in `_plan_search`.
        parts : sequence of (int, slice)
            Consecutive items of `Clusters.parts`.

        Returns
        -------
        row : Tensor of shape (n_pairs,), int64
            Rows of `X`.
        position : Tensor of shape (n_pairs,), int64
            Rows of `points`.
        """
        clusters, first = self._clusters, parts[0][0]
        n_clusters = parts[-1][0] + 1 - first
        # One offset for each pair of a cluster and a pick near it, cluster by cluster.
        cluster, position = near[:, first : first + n_clusters].T.nonzero(as_tuple=True)
        offsets = points[position] - clusters.centers[cluster + first]
        norms = offsets.square().sum(dim=1)
        ends = [0, *cluster.bincount(minlength=n_clusters).cumsum(0).tolist()]
        rows, others = [position[:0]], [position[:0]]
        for number, members in parts:
            start, end = ends[number - first : number - first + 2]
            if start < end:
                i, j = near_pairs(
                    clusters.offsets[members],
                    limits[members],
                    offsets[start:end],
                    norms[start:end],
                )
                rows.append(i + members.start)
                others.append(j + start)
        return clusters.order[torch.cat(rows)], position[torch.cat(others)]

    def _refine_clusters(self) -> None:
        """Make more and smaller clusters once there are enough picks for it."""
        n_picks, n_clusters = len(self.picks), len(self._clusters.centers)
        most = len(self.X) // _ROWS_PER_CLUSTER
        if max(_FEWEST_CLUSTERS, _CLUSTER_GROWTH * n_clusters) <= n_picks <= most:
            self._clusters = Clusters.around(self.X, self.X[self.picks], self.nearest)

    def _keep_nearer(
        self, row: torch.Tensor, position: torch.Tensor, squared: torch.Tensor
    ) -> None:
        """Update distances and nearest picks with what `_nearer_pairs` found."""
        best = self.squared.scatter_reduce(0, row, squared, "amin")
        first = squared == best[row]
        row, position = row[first], position[first] + len(self.picks)
        never = torch.iinfo(self.nearest.dtype).max
        # Of picks at the same distance, the earliest counts.
        nearest = torch.full_like(self.nearest, never)
        nearest.scatter_reduce_(0, row, position, "amin")
        self.nearest = torch.where(nearest < never, nearest, self.nearest)
        self.squared = best

    def _pick(self, rows: list[int]) -> None:
        # Minus infinity, so that no row is picked twice.
        self.squared[rows] = -torch.inf
        n_before = len(self.picks)
        self.picks += rows
        self.nearest[rows] = torch.arange(
            n_before, len(self.picks), device=self.X.device
        )

    def farthest(self, n_candidates: int) -> tuple[list[int], list[float]]:
        """Return the next greedy picks and the squared distance at which each is made.

        The candidates are the rows that are now farthest from all picks. No other row
        comes before a candidate at the distance `lowest` or more, and distances only
        shrink. So the farthest candidate is the next greedy pick, as long as its
        distance, updated with the picks of this block, is at least `lowest`.

        Of rows at equal distance, the first is picked. If no other rows are left, the
        last ones returned may be picks already.
        """
        candidates, lowest = self._candidates(n_candidates)
        near = at_most(self.X[candidates], self.squared[candidates]).cpu().numpy()
        points = self.X[candidates].double().cpu().numpy()
        values, rows = self.squared[candidates].cpu().numpy(), candidates.tolist()
        picked: list[int] = []
        distances: list[float] = []
        while len(picked) < len(rows):
            farthest = values.argmax()
            if values[farthest] < lowest:
                break
            picked.append(rows[farthest])
            distances.append(float(values[farthest]))
            # Candidates below `lowest` cannot be picked, so they need no update.
            others = np.flatnonzero(near[farthest] & (values >= lowest))
            difference = points[others] - points[farthest]
            squared = np.einsum("ij,ij->i", difference, difference)
            values[others] = np.minimum(values[others], squared)
            values[farthest] = -np.inf
        return picked, distances

    def _candidates(self, n_candidates: int) -> tuple[torch.Tensor, float]:
        """Return the farthest rows, ascending, and the smallest distance to pick at.

        These are `n_candidates` rows, or fewer if more rows tie for the last place.
        """
        n_top = min(n_candidates + 1, len(self.X))
        values, rows = self.squared.topk(n_top)
        if n_top == len(self.X):
            # There are no other rows that could be farther.
            return rows.sort().values, -np.inf
        floor = values[-1]
        farther = rows[values > floor]
        if len(farther) == 0:
            # All are equally far: the first of them are picked before the others.
            equal = (self.squared == floor).nonzero()[:n_candidates, 0]
            return equal, float(floor)
        # A candidate must stay farther than `floor`: at the same distance, a row that
        # is not a candidate could come first.
        return farther.sort().values, float(np.nextafter(float(floor), np.inf))

    def finish(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return each row's squared distance, and the position of its nearest pick."""
        # The distance of a pick to itself is 0.
        return self.squared.clamp(min=0).cpu().numpy(), self.nearest.cpu().numpy()


def at_most(points: torch.Tensor, squared: torch.Tensor) -> torch.Tensor:
    """Return, for all pairs of n points, whether j may be within `squared`_j of i.

    The result (n, n) is false only if the squared distance surely exceeds `squared`_j.
    """
    centered = points - points.mean(dim=0)
    norms = centered.square().sum(dim=1)
    with full_precision():
        products = torch.addmm(norms, centered, centered.T, alpha=-2)
    reach = 2 * norms.max().sqrt()
    error = rounding_error(points.shape[1], points.dtype, reach)
    # Negated so that NaN (overflow) counts as near.
    return ~(products + norms[:, None] > squared + error)
