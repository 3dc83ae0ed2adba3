"""Points in cells about centres, and pairs of points that may be near each other."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from skpatchcore._neighbors import length_margin, rounding_error, rows_at_once
from skpatchcore._utils import full_precision

# Elements of a temporary block of products: 32 MB in float32.
_BLOCK_ELEMENTS = 2**23
# Rows that a thread takes at a time: enough to be worth the while.
_PART_ROWS = 4096


@dataclass(frozen=True)
class Cells:
    """Rows of a matrix sorted into cells, as differences to the centres of their cells.

    What is farther from a centre than a cell's members reach need not be compared with
    them (triangle inequality); and near a centre, products round to less.

    Attributes
    ----------
    order : Tensor of shape (n,), int64
        Rows of the matrix, cell by cell.
    ends : tuple of int
        Where in `order` each of c cells ends.
    centers : Tensor of shape (c, d)
    offsets : Tensor of shape (n, d)
        Rows less their centres, in the order of `order`.
    squared_norms : Tensor of shape (n,), float64
        Of `offsets`.
    """

    order: torch.Tensor
    ends: tuple[int, ...]
    centers: torch.Tensor
    offsets: torch.Tensor
    squared_norms: torch.Tensor

    @classmethod
    def about(cls, X: torch.Tensor, centers: torch.Tensor, cell: torch.Tensor):
        """Sort the rows of `X` (n, d) by `cell` (n,), the numbers of their centres."""
        order = cell.argsort(stable=True)
        ends = torch.bincount(cell, minlength=len(centers)).cumsum(0)
        offsets = X[order]
        squared_norms = X.new_empty(len(X), dtype=torch.float64)
        step = rows_at_once(X)
        for start in range(0, len(X), step):
            part = offsets[start : start + step]
            part -= centers[cell[order[start : start + step]]]
            squared_norms[start : start + step] = part.double().square().sum(dim=1)
        return cls(order, tuple(ends.tolist()), centers, offsets, squared_norms)

    @classmethod
    def whole(cls, X: torch.Tensor):
        """Put all rows of `X` into one cell about their mean."""
        everyone = torch.zeros(len(X), dtype=torch.int64, device=X.device)
        return cls.about(X, X.mean(dim=0, keepdim=True), everyone)

    def parts(self, n_others: int) -> list[tuple[int, slice]]:
        """Return cells and places in `order`, such that all members have their part.

        Parts are small enough for products with so many other points, and to share them
        out among threads.
        """
        step = max(1, _BLOCK_ELEMENTS // n_others)
        if self.order.device.type == "cpu":
            step = min(step, _PART_ROWS)
        spans = enumerate(zip((0, *self.ends[:-1]), self.ends, strict=True))
        return [
            (cell, slice(place, min(place + step, end)))
            for cell, (start, end) in spans
            for place in range(start, end, step)
        ]

    @cached_property
    def member_of(self) -> torch.Tensor:
        """The cell of each entry of `order`."""
        sizes = np.diff(self.ends, prepend=0)
        cells = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
        return cells.to(self.order.device)

    @cached_property
    def radii(self) -> torch.Tensor:
        """Upper bounds (n,) of the distances from the rows to their centres.

        Each element of an offset is a difference rounded by at most eps / 2 of it, in
        the dtype of the offsets, so a length is within eps / 2 of the true one. The
        factor covers that twice, and the root besides; what the sum of squares loses in
        float64 is covered by `length_margin`.
        """
        eps = torch.finfo(self.offsets.dtype).eps
        return self.squared_norms.sqrt() * (length_margin(self.offsets) + eps)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return each cell's largest of `values` (n,), given in the order of `order`.

        A cell without members has minus infinity.
        """
        lowest = values.new_full((len(self.centers),), -torch.inf)
        return lowest.scatter_reduce(0, self.member_of, values, "amax")

    def distances(self, points: torch.Tensor) -> torch.Tensor:
        """Return lower bounds (n, c) of the distances from `points` to the centres."""
        middle = self.centers.double().mean(dim=0)
        points, centers = points.double() - middle, self.centers.double() - middle
        norms, center_norms = points.square().sum(dim=1), centers.square().sum(dim=1)
        with full_precision():
            squared = torch.addmm(center_norms, points, centers.T, alpha=-2)
        squared += norms[:, None]
        reach = norms.max().sqrt() + center_norms.max().sqrt()
        squared -= rounding_error(points.shape[1], torch.float64, reach)
        return squared.clamp_(min=0).sqrt_()


def near_pairs(a, limits, b, norms) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all (i, j) with |b_j|^2 - 2 a_i.b_j, as computed, less than limits_i.

    Parameters
    ----------
    a, b : Tensor of shape (n, d) and (m, d)
    limits : Tensor of shape (n,)
    norms : Tensor of shape (m,)
        The squares |b_j|^2.
    """
    block = torch.addmm(norms, a, b.T, alpha=-2)
    # Not what is surely too far: an overflow must not hide anything.
    return (block >= limits[:, None]).logical_not_().nonzero(as_tuple=True)
