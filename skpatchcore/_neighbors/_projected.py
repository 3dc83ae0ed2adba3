"""Exact nearest neighbours, found by lower bounds of distances in few dimensions."""

from functools import cached_property

import numpy as np
import torch

from skpatchcore._neighbors._distances import (
    paired_distances,
    rounding_error,
    rows_at_once,
    squared_distances,
)
from skpatchcore._utils import full_precision, map_threads

# Share of the bank's variance that the projection should keep, and the share below
# which there is no projection. A projection that keeps less leaves too many rows for
# direct comparison to be worth its cost.
_WANTED_VARIANCE, _LEAST_VARIANCE = 0.98, 0.9
# Use at least this many directions, even if fewer hold the wanted variance: what is
# left out must be small compared with distances between neighbours, and this many
# directions cost hardly anything.
_MIN_DIRECTIONS = 64
# Use at most half of all directions, and at most this many: finding more takes longer.
_MAX_DIRECTIONS = 256
# The basis need not be optimal, since every basis gives valid bounds. So it is computed
# from at most this many rows of the bank.
_MAX_SAMPLE = 2048
# Each iteration brings the directions closer to the best ones. More than two keep less
# than 0.0002 of the variance more.
_N_ITERATIONS = 2
# Project only banks with at least this many rows for each row that must be compared
# directly (k + 1 per query). In smaller banks a product with all rows in all dimensions
# costs less than the direct comparisons.
_FEWEST_ROWS = 256
# Rows per group. The smallest bound of each group is examined first, so that most
# groups are ruled out by one comparison.
_GROUP = 64
# Elements of a block of products: 8 MB in float32, to fit into a CPU's caches.
_BLOCK_ELEMENTS = {"cpu": 2**21}
_MANY_ELEMENTS = 2**25
# If more than this share of the bank is left for direct comparison with a query, a
# product in all dimensions is faster.
_CROWDED = 1 / 64


class ProjectedSearch:
    """Find the nearest rows of a bank to queries, by their exact distances.

    **Bound.** An orthogonal projection shortens distances. It leaves out a part of each
    row, and the lengths of two such parts differ by at most the distance between the
    parts. So with this length as one additional coordinate, squared distances in the
    projected space are lower bounds of the true ones. They are computed as a matrix
    product, and a bound of its rounding error is subtracted.

    **Search.** For each query, the k rows with the smallest bounds are compared
    directly, in float64. Then all other rows are compared whose bound is not larger
    than the largest of these k distances.

    **Invariant.** A row is ruled out only if k other rows are nearer. So the result is
    exact for every basis and every width of the bound: a wider bound only means that
    more rows are compared. `_Space` has the proof.

    Patch features of a network vary in few directions, so few rows remain. A query for
    which too many remain is answered by a product in all dimensions. So is a query for
    which fewer than k remain. The proof excludes this case, but an error in the proof,
    or in a library for matrices, must cost time and not a neighbour.

    Parameters
    ----------
    bank : Tensor of shape (m, d), floating point
    """

    def __init__(self, bank: torch.Tensor) -> None:
        self.bank = bank

    def query(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared distances (n, k), ascending, float64, and bank rows (n, k).

        Rows at equal distance are in ascending order.
        """
        n_elements = _BLOCK_ELEMENTS.get(self.bank.device.type, _MANY_ELEMENTS)
        parts = queries.split(max(1, n_elements // len(self.bank)))
        large = len(self.bank) >= _FEWEST_ROWS * (k + 1)
        space = (large and self._projected) or self._whole
        with full_precision():
            found = map_threads(
                lambda part: self._query_part(part, k, space), parts, queries.device
            )
            squared, rows = zip(*found, strict=True)
        return torch.cat(squared), torch.cat(rows)

    def _query_part(
        self, queries: torch.Tensor, k: int, space: "_Space"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer queries in `space`, and those with too many or few rows in all."""
        query, row = space.possible_pairs(queries, k, self.bank)
        n_rows = torch.bincount(query, minlength=len(queries))
        again = (n_rows > max(_CROWDED * len(self.bank), 4 * k)) | (n_rows < k)
        if not again.any():
            return self._compare(queries, query, row, k)
        squared = queries.new_empty((len(queries), k), dtype=torch.float64)
        rows = torch.empty_like(squared, dtype=torch.int64)
        alone = ~again[query]
        # Index of each query among those that are not searched again.
        place = torch.cumsum(~again, 0) - 1
        squared[~again], rows[~again] = self._compare(
            queries[~again], place[query[alone]], row[alone], k
        )
        squared[again], rows[again] = self._query_whole(queries[again], k)
        return squared, rows

    def _query_whole(
        self, queries: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer queries by products in all dimensions."""
        # Such queries are often copies of each other, as from an even background.
        queries, inverse = torch.unique(queries, dim=0, return_inverse=True)
        # There are at least k pairs for each query: the limit is not below the k
        # smallest products.
        pairs = self._whole.possible_pairs(queries, k, self.bank)
        squared, rows = self._compare(queries, *pairs, k)
        return squared[inverse], rows[inverse]

    def _compare(
        self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return exact squared distances and rows of each query's `k` nearest rows.

        Parameters
        ----------
        queries : Tensor of shape (n, d)
        query, row : Tensor of shape (n_pairs,), int64
            The pairs to compare: at least `k` for each query.
        k : int
        """
        squared = paired_distances(queries, query, self.bank, row)
        # Sort by query, then by distance, then by row.
        order = row.argsort(stable=True)
        order = order[squared[order].argsort(stable=True)]
        order = order[query[order].argsort(stable=True)]
        query = query[order]
        places = torch.arange(len(query), device=query.device)
        order = order[places - torch.searchsorted(query, query) < k]
        return squared[order].reshape(-1, k), row[order].reshape(-1, k)

    @cached_property
    def _projected(self) -> "_Space | None":
        basis = _principal_directions(self.bank)
        return None if basis is None else _Space(self.bank, basis)

    @cached_property
    def _whole(self) -> "_Space":
        return _Space(self.bank)


class _Space:
    """Bank rows relative to their mean, in all dimensions or in a projection.

    **Invariant.** A pair of a query and a row is ruled out only if k other rows are
    nearer to the query, by the distances that are compared in the end: differences in
    float64.

    **Without a basis**, a product gives the squared distance to within
    `rounding_error`. Let c be the k-th smallest product. Then k rows are truly within
    c + error, and a row that is nearer than one of them has a product of at most
    c + 2 error.

    **With a basis** Q, of shape d x r and spectral norm at most 1, a row x (minus the
    mean) has the coordinates Q'x and o(x) = sqrt(|x|^2 - |Q'x|^2). Since I - QQ' has no
    negative eigenvalue, o(x) is the length of a linear image of x. So
    |o(a) - o(b)| <= o(a - b), and

        |Q'a - Q'b|^2 + (o(a) - o(b))^2 <= |Q'(a - b)|^2 + o(a - b)^2 = |a - b|^2.

    This does not need orthonormal columns. It needs only the norm, which `_contraction`
    ensures.

    **Rounding of the coordinates.** They are computed in float64, with roundoff u, for
    rows of length L = |x|.

    - Each sum of d products in Q'x errs by (d + 1) u L; all r of them together err by
      sqrt(r) times that.
    - The square |x|^2 errs by (d + 2) u L^2. The square |Q'x|^2 errs by (r + 2) u L^2,
      and by 2 sqrt(r) (d + 1) u L^2 because of the error of Q'x. With r at most d,
      their difference errs by at most e = 4 sqrt(r) (d + 2) u L^2.
    - The root of a number that is off by e is off by at most sqrt(e), and by that much
      if o(x) is near 0. This cancellation is the dominant error: about 1e-7 of L and
      not 1e-16.
    - The error of Q'x and that of the distances compared in the end are small beside
      it: the first is less than e / L, the second is half of (d + 2) u L. Twice e under
      the root, that is 8 instead of 4, covers both.

    So the computed coordinates of a query a and a row b are at most

        |a - b| + delta,  delta = sqrt(8 sqrt(r) (d + 2) u) (|a| + |b|)

    apart. If k rows lie within a distance t of the query, only rows whose squared
    distance in the space is at most (t + delta)^2 may be nearer. Rounding to the dtype
    of the bank, and the product, add `rounding_error`. Since t is the distance of near
    rows, a wide delta matters little: it adds about 2 t delta.

    Parameters
    ----------
    bank : Tensor of shape (m, d)
    basis : Tensor of shape (d, r), float64, or None
        Of spectral norm at most 1. With orthonormal columns, the bounds are tightest.
        None keeps all dimensions.
    """

    def __init__(self, bank: torch.Tensor, basis: torch.Tensor | None = None) -> None:
        self.center, self.basis = bank.mean(dim=0), basis
        parts = bank.split(rows_at_once(bank))
        # The last group is filled up with rows at an infinite distance.
        n_points = -(-len(bank) // _GROUP) * _GROUP
        self.points = bank.new_zeros((n_points, self.embed(bank[:1]).shape[1]))
        self.norms = bank.new_full((n_points,), torch.inf)
        self.largest = bank.new_zeros((), dtype=torch.float64)
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            self.points[start:end] = points = self.embed(part)
            norms = points.double().square().sum(dim=1)
            self.norms[start:end] = norms
            self.largest = torch.maximum(self.largest, norms.max().sqrt())

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """Return coordinates of `rows`, which are no farther apart than the rows."""
        if self.basis is None:
            return rows - self.center
        offsets = rows.double() - self.center
        inside = offsets @ self.basis
        outside = offsets.square().sum(dim=1) - inside.square().sum(dim=1)
        outside = outside.clamp_(min=0).sqrt_()
        return torch.cat([inside, outside[:, None]], dim=1).to(rows.dtype)

    def slack(self, reach: torch.Tensor) -> torch.Tensor:
        """Return delta: how much farther apart than rows their coordinates may be."""
        assert self.basis is not None, "without a basis, coordinates are differences"
        d, r = self.basis.shape
        limits = torch.finfo(torch.float64)
        # A square below the smallest normal number errs by less than this number.
        squared = limits.eps / 2 * reach.square() + limits.tiny
        return (8 * r**0.5 * (d + 2) * squared).sqrt()

    def products(
        self, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the parts of the squared distances of `points` (n, r) to all rows.

        Returns
        -------
        products : Tensor of shape (n, n_groups, group_size)
            |b|^2 - 2 p.b for a point p and a row b.
        norms : Tensor of shape (n,), float64
            |p|^2.
        reach : Tensor of shape (n,), float64
            |p| plus the largest |b|.
        error : Tensor of shape (n,), float64
            Bound of the error of the sum of the first two, the squared distance in this
            space.
        """
        norms = points.double().square().sum(dim=1)
        products = torch.addmm(self.norms, points, self.points.T, alpha=-2)
        reach = norms.sqrt() + self.largest
        error = rounding_error(points.shape[1], points.dtype, reach)
        return products.unflatten(1, (-1, _GROUP)), norms, reach, error

    def possible_pairs(
        self, queries: torch.Tensor, k: int, bank: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and bank rows of all pairs that may be among the `k` nearest.

        Pairs are in ascending order of their queries.
        """
        bounds, norms, reach, error = self.products(self.embed(queries))
        least = bounds.amin(dim=2)
        values, rows = _least(bounds, least, k)
        if self.basis is None:
            # Both the k-th smallest product and that of a nearer row may be off by the
            # error, in opposite directions.
            cut = values.amax(dim=1).double() + 2 * error
        else:
            # t^2: the largest exact distance of the k rows with the smallest bounds.
            # Rows that only fill a group count as infinitely far.
            nearby = squared_distances(queries, bank[rows.clamp(max=len(bank) - 1)])
            nearby = nearby.masked_fill(rows >= len(bank), torch.inf).amax(dim=1)
            cut = (nearby.sqrt() + self.slack(reach)).square() - norms + error
        cut = cut.to(bounds.dtype)
        # Negated so that NaN (overflow) counts as a candidate.
        query, group = (~(least > cut[:, None])).nonzero(as_tuple=True)
        near = ~(bounds[query, group] > cut[query, None])
        i, j = near.nonzero(as_tuple=True)
        query, row = query[i], group[i] * _GROUP + j
        return query[row < len(bank)], row[row < len(bank)]


def _least(
    bounds: torch.Tensor, least: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` smallest of `bounds` (n, groups, rows), and their rows, (n, k).

    `least` (n, groups) is the smallest bound of each group.
    """
    # The k smallest bounds are in the k groups with the smallest `least`.
    groups = least.topk(min(k, least.shape[1]), dim=1, largest=False).indices
    inside = groups[:, :, None].expand(-1, -1, _GROUP)
    values, places = bounds.gather(1, inside).flatten(1).topk(k, dim=1, largest=False)
    return values, groups.gather(1, places // _GROUP) * _GROUP + places % _GROUP


def _principal_directions(bank: torch.Tensor) -> torch.Tensor | None:
    """Return a basis (d, r) that keeps most of a bank's variance, or None.

    None means that there is no such basis with r at most d / 2 and `_MAX_DIRECTIONS`,
    or that the bank has too few rows or no variance.
    """
    rows = bank[:: -(-len(bank) // _MAX_SAMPLE)].double()
    rows = rows - rows.mean(dim=0)
    largest = float(rows.abs().max())
    most = min(bank.shape[1] // 2, _MAX_DIRECTIONS)
    if most == 0 or len(rows) < 2 * most or not 0 < largest < np.inf:
        return None
    # float32 is twice as fast, and after the division it cannot overflow.
    sample = (rows / largest).float()
    variances, directions = _subspace(sample, most)
    kept = variances.cumsum(dim=0) / sample.double().square().sum()
    if not kept[-1] >= _LEAST_VARIANCE:
        return None
    wanted = int(torch.searchsorted(kept, _WANTED_VARIANCE)) + 1
    r = min(most, max(wanted, _MIN_DIRECTIONS))
    basis = torch.linalg.qr(directions[:, :r].double()).Q
    return _contraction(basis)


def _subspace(sample: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the variance of rows (n, d) along r directions, falling, and these (d, r).

    Subspace iteration from random directions (Halko, Martinsson and Tropp, "Finding
    structure with randomness", SIAM Review 2011, algorithm 4.4). It runs in torch: the
    threads of SciPy's factorisations and those of torch hold each other up.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(sample.shape[1], r, generator=generator).to(sample.device)
    for _ in range(_N_ITERATIONS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    inside = (sample @ directions).double()
    variances, rotation = torch.linalg.eigh(inside.T @ inside)
    return variances.flip(0), directions @ rotation.flip(1).float()


def _contraction(basis: torch.Tensor) -> torch.Tensor:
    """Divide a basis (d, r) by slightly more than its spectral norm.

    The square of the norm is the norm of Q'Q. This matrix is symmetric, so its norm is
    at most its largest row sum of absolute values. Each of the r entries in a row errs
    by at most d u for columns of length 1. Twice that, with a few u more, covers the
    error of the division as well.
    """
    d, r = basis.shape
    largest = (basis.T @ basis).abs().sum(dim=1).max()
    return basis / (largest + r * (d + 8) * torch.finfo(torch.float64).eps).sqrt()
