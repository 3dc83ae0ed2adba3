"""Exact nearest neighbours by lower bounds of distances in a few dimensions."""

from functools import cached_property

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from skpatchcore._neighbors._distances import (
    paired_distances,
    rounding_error,
    rows_at_once,
    squared_distances,
)
from skpatchcore._utils import full_precision, map_threads

# A projection keeps the one share of a bank's variance if that takes few dimensions,
# but not less than the other, or there is none.
_WANTED_VARIANCE, _LEAST_VARIANCE = 0.98, 0.9
# Where few hold that much: these, since what is left out must be small beside distances
# of neighbours, and so few cost hardly anything.
_MIN_DIRECTIONS = 64
# At most half of all, and no more than this; more take longer to find.
_MAX_DIRECTIONS = 256
# The basis need not be the best, so it comes from a sample of rows.
_MAX_SAMPLE = 2048
# With fewer rows than this for each row compared, a product costs less than comparing.
_FEWEST_ROWS = 256
# Rows of which the least bound is looked at first.
_GROUP = 64
# Elements of a block of products: 8 MB in float32, for caches to hold.
_BLOCK_ELEMENTS = {"cpu": 2**21}
_MANY_ELEMENTS = 2**25
# Where more than this share of a bank is left for direct comparison, a product in all
# dimensions is the faster.
_CROWDED = 1 / 64


class ProjectedSearch:
    """Find the nearest rows of a bank to queries, by their exact distances.

    An orthogonal projection shortens distances, and the length of what it leaves out
    changes by no more than the distance: so with that length as one more coordinate,
    squared distances in the space of the projection are lower bounds of the true ones.
    They come from a product of matrices, less a bound of its rounding. The k rows with
    the least bounds are compared directly, in float64; then all others whose bounds are
    no larger than what that gave. However wide the bound is, nothing is missed: the
    wider, the more rows are compared. `_Space` has the proof.

    Features of a network vary in few directions, so few rows are left. Queries for
    which too many are left, are compared by a product in all dimensions. So are those
    for which fewer than k are left: the proof excludes that, but a fault in it, or in a
    library for matrices, must cost time and not an answer.

    Parameters
    ----------
    bank : Tensor of shape (m, d), floating point
    """

    def __init__(self, bank: torch.Tensor):
        self.bank = bank

    def query(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared distances (n, k), ascending, float64, and bank rows (n, k).

        Equal distances come in the order of their rows.
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

    def _query_part(self, queries, k: int, space: "_Space"):
        query, row = space.possible_pairs(queries, k, self.bank)
        n_rows = torch.bincount(query, minlength=len(queries))
        again = (n_rows > max(_CROWDED * len(self.bank), 4 * k)) | (n_rows < k)
        if not again.any():
            return self._compare(queries, query, row, k)
        squared = queries.new_empty((len(queries), k), dtype=torch.float64)
        rows = torch.empty_like(squared, dtype=torch.int64)
        alone = ~again[query]
        place = torch.cumsum(~again, 0) - 1
        squared[~again], rows[~again] = self._compare(
            queries[~again], place[query[alone]], row[alone], k
        )
        squared[again], rows[again] = self._query_whole(queries[again], k)
        return squared, rows

    def _query_whole(self, queries, k: int):
        # Often copies of each other, such as those of an even background.
        queries, inverse = torch.unique(queries, dim=0, return_inverse=True)
        # At least k pairs for each: the k least products are not above the largest.
        pairs = self._whole.possible_pairs(queries, k, self.bank)
        squared, rows = self._compare(queries, *pairs, k)
        return squared[inverse], rows[inverse]

    def _compare(self, queries, query, row, k: int):
        """Return exact squared distances and rows of the `k` nearest of pairs."""
        squared = paired_distances(queries, query, self.bank, row)
        # By query, then distance, then row.
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
    """Bank rows about their mean, as they are or in a projection.

    The invariant is that a pair of a query and a row is ruled out only if k other rows
    are nearer, by the distances that are compared in the end: differences in float64.

    Without a basis, a product gives the squared distance to within `rounding_error`. If
    c is the k-th least product, k rows are truly within c + error, and a row that is
    nearer than one of them has a product of at most c + 2 error.

    With a basis Q, of d x r and spectral norm at most 1, a row x (less the mean) has
    the coordinates Q'x and o(x) = sqrt(|x|^2 - |Q'x|^2). As I - QQ' has no negative
    eigenvalue, o is the length of some linear image of x, so |o(a) - o(b)| <= o(a - b),
    and

        |Q'a - Q'b|^2 + (o(a) - o(b))^2 <= |Q'(a - b)|^2 + o(a - b)^2 = |a - b|^2.

    That needs no orthonormal columns, only the norm, which `_contraction` provides.

    Coordinates are computed in float64, with roundoff u, for rows of length L = |x|.
    The sums of d products in Q'x err by (d + 1) u L each, sqrt(r) times that together.
    The squares |x|^2 and |Q'x|^2, and their difference, err by (d + 2) u L^2, by
    (r + 2) u L^2, and through the error of Q'x by 2 sqrt(r) (d + 1) u L^2: with r at
    most d, by e = 4 sqrt(r) (d + 2) u L^2 in all. The root of a number that is off by e
    is off by sqrt(e) at most, and by that much where o(x) is near 0: it is the
    cancellation, some 1e-7 of L and not 1e-16, that must not be left out. Small beside
    it are the error of Q'x, and that of the distances that are compared in the end: the
    first is less than e / L, the second half of (d + 2) u L. Twice e under the root,
    for 8 instead of 4, covers them. So computed coordinates of a query a and a row b
    are at most

        |a - b| + delta,  delta = sqrt(8 sqrt(r) (d + 2) u) (|a| + |b|)

    apart. With k rows within a distance t of the query, only those rows may be nearer
    whose squared distance in the space is at most (t + delta)^2; rounding to the dtype
    of the bank, and the product, add `rounding_error`. Since t is that of near rows, a
    wide delta matters little: about 2 t delta.

    Parameters
    ----------
    bank : Tensor of shape (m, d)
    basis : Tensor of shape (d, r), float64, or None
        Of spectral norm at most 1. Orthonormal columns keep most of the distances.
    """

    def __init__(self, bank: torch.Tensor, basis: torch.Tensor | None = None):
        self.center, self.basis = bank.mean(dim=0), basis
        parts = bank.split(rows_at_once(bank))
        # Rows that fill the last group are farther than any other.
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
        """Return coordinates of `rows`: no farther apart than they are themselves."""
        if self.basis is None:
            return rows - self.center
        offsets = rows.double() - self.center
        inside = offsets @ self.basis
        outside = offsets.square().sum(dim=1) - inside.square().sum(dim=1)
        outside = outside.clamp_(min=0).sqrt_()
        return torch.cat([inside, outside[:, None]], dim=1).to(rows.dtype)

    def slack(self, reach: torch.Tensor) -> torch.Tensor:
        """Return how much farther apart computed coordinates may be than the rows."""
        d, r = self.basis.shape
        limits = torch.finfo(torch.float64)
        # The smallest normal number is what a square loses that sinks below it.
        squared = limits.eps / 2 * reach.square() + limits.tiny
        return (8 * r**0.5 * (d + 2) * squared).sqrt()

    def products(self, points: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return |b|^2 - 2 p.b (n, groups, rows), |p|^2, reach and error (n,).

        The error bounds not that of each of the first two, but that of their sum: the
        squared distance of a point p to a row b in this space. The reach is |p| and the
        largest |b| together.
        """
        norms = points.double().square().sum(dim=1)
        products = torch.addmm(self.norms, points, self.points.T, alpha=-2)
        reach = norms.sqrt() + self.largest
        error = rounding_error(points.shape[1], points.dtype, reach)
        return products.unflatten(1, (-1, _GROUP)), norms, reach, error

    def possible_pairs(
        self, queries, k: int, bank
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and bank rows of all pairs that may be among the `k` nearest.

        Queries come in their order.
        """
        bounds, norms, reach, error = self.products(self.embed(queries))
        least = bounds.amin(dim=2)
        values, rows = _least(bounds, least, k)
        if self.basis is None:
            # The true k-th is at most the error from the k-th computed, and so are all
            # that are no farther.
            cut = values.amax(dim=1).double() + 2 * error
        else:
            nearby = squared_distances(queries, bank[rows.clamp(max=len(bank) - 1)])
            nearby = nearby.masked_fill(rows >= len(bank), torch.inf).amax(dim=1)
            cut = (nearby.sqrt() + self.slack(reach)).square() - norms + error
        cut = cut.to(bounds.dtype)
        # Not what is surely too far: an overflow must not hide anything.
        query, group = (~(least > cut[:, None])).nonzero(as_tuple=True)
        near = ~(bounds[query, group] > cut[query, None])
        i, j = near.nonzero(as_tuple=True)
        query, row = query[i], group[i] * _GROUP + j
        return query[row < len(bank)], row[row < len(bank)]


def _least(bounds, least, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` least of `bounds` (n, groups, rows), and their rows, (n, k)."""
    # They are in the k groups whose `least` (n, groups) are the least.
    groups = least.topk(min(k, least.shape[1]), dim=1, largest=False).indices
    inside = groups[:, :, None].expand(-1, -1, _GROUP)
    values, places = bounds.gather(1, inside).flatten(1).topk(k, dim=1, largest=False)
    return values, groups.gather(1, places // _GROUP) * _GROUP + places % _GROUP


def _principal_directions(bank: torch.Tensor) -> torch.Tensor | None:
    """Return a basis (d, r) that keeps most of a bank's variance, if r is small."""
    sample = bank[:: -(-len(bank) // _MAX_SAMPLE)].double()
    sample = sample - sample.mean(dim=0)
    largest = float(sample.abs().max())
    most = min(bank.shape[1] // 2, _MAX_DIRECTIONS)
    if most == 0 or len(sample) < 2 * most or not 0 < largest < np.inf:
        return None
    # In float32 that is twice as fast; now it cannot overflow.
    sample = (sample / largest).cpu().numpy().astype(np.float32)
    variance = np.square(sample, dtype=np.float64).sum()
    _, lengths, basis = randomized_svd(sample, most, n_iter=2, random_state=0)
    kept = np.cumsum(np.square(lengths, dtype=np.float64)) / variance
    if not kept[-1] >= _LEAST_VARIANCE:
        return None
    wanted = int(np.searchsorted(kept, _WANTED_VARIANCE)) + 1
    r = min(most, max(wanted, _MIN_DIRECTIONS))
    basis, _ = np.linalg.qr(basis[:r].T.astype(np.float64))
    return torch.from_numpy(_contraction(basis)).to(bank.device)


def _contraction(basis: np.ndarray) -> np.ndarray:
    """Return a basis (d, r) divided by a little more than its spectral norm.

    The square of the norm is that of Q'Q, a symmetric matrix, so at most its largest
    row sum of absolute values. Of r entries in a row, each errs by at most d u for
    columns of length 1; twice as much, and a bit, covers the division as well.
    """
    d, r = basis.shape
    largest = np.abs(basis.T @ basis).sum(axis=1).max()
    return basis / np.sqrt(largest + r * (d + 8) * np.finfo(np.float64).eps)
