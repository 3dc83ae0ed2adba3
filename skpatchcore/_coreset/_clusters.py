"""Rows of a matrix, sorted into clusters, and the pairs of points that may be close."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

from skpatchcore._neighbors import length_margin, rounding_error, rows_at_once
from skpatchcore._utils import full_precision

# Elements of a temporary block of products: 32 MB in float32.
_BLOCK_ELEMENTS = 2**23
# Rows that a thread processes at a time: enough to outweigh the cost of the call.
_PART_ROWS = 4096


@dataclass(frozen=True)
class Clusters:
    """Rows of a matrix, sorted by cluster and stored as offsets from its centre.

    A point need not be compared with the members of a cluster that is far enough away
    (triangle inequality). Offsets from a nearby centre are short, so products of them
    have small rounding errors.

    Attributes
    ----------
    order : Tensor of shape (n,), int64
        Rows of the matrix, cluster by cluster.
    ends : tuple of int
        End of each of the c clusters in `order`.
    centers : Tensor of shape (c, d)
    offsets : Tensor of shape (n, d)
        Rows minus the centre of their cluster, in the order of `order`.
    squared_norms : Tensor of shape (n,), float64
        Squared lengths of `offsets`.
    """

    order: torch.Tensor
    ends: tuple[int, ...]
    centers: torch.Tensor
    offsets: torch.Tensor
    squared_norms: torch.Tensor

    @classmethod
    def around(
        cls, X: torch.Tensor, centers: torch.Tensor, cluster: torch.Tensor
    ) -> Self:
        """Sort the rows of `X` (n, d) by `cluster` (n,), the index of their centre."""
        order = cluster.argsort(stable=True)
        ends = torch.bincount(cluster, minlength=len(centers)).cumsum(0)
        offsets = X[order]
        squared_norms = X.new_empty(len(X), dtype=torch.float64)
        step = rows_at_once(X)
        for start in range(0, len(X), step):
            part = offsets[start : start + step]
            part -= centers[cluster[order[start : start + step]]]
            squared_norms[start : start + step] = part.double().square().sum(dim=1)
        return cls(order, tuple(ends.tolist()), centers, offsets, squared_norms)

    @classmethod
    def whole(cls, X: torch.Tensor) -> Self:
        """Put all rows of `X` into one cluster around their mean."""
        everyone = torch.zeros(len(X), dtype=torch.int64, device=X.device)
        return cls.around(X, X.mean(dim=0, keepdim=True), everyone)

    def parts(self, n_others: int) -> list[tuple[int, slice]]:
        """Divide `order` into pieces of one cluster each, as (cluster, slice) pairs.

        The pieces are small enough for a product with `n_others` other points, and for
        several threads to share them.
        """
        step = max(1, _BLOCK_ELEMENTS // n_others)
        if self.order.device.type == "cpu":
            step = min(step, _PART_ROWS)
        spans = enumerate(zip((0, *self.ends[:-1]), self.ends, strict=True))
        return [
            (cluster, slice(position, min(position + step, end)))
            for cluster, (start, end) in spans
            for position in range(start, end, step)
        ]

    @cached_property
    def member_of(self) -> torch.Tensor:
        """The cluster of each entry of `order`."""
        sizes = np.diff(self.ends, prepend=0)
        clusters = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
        return clusters.to(self.order.device)

    @cached_property
    def radii(self) -> torch.Tensor:
        """Upper bounds (n,) of the distances from the rows to their centres.

        Each element of an offset is a difference, rounded by at most eps / 2 of its
        value in the dtype of the offsets. So the computed length is within eps / 2 of
        the true one. The factor covers twice this error, and the error of the root.
        `length_margin` covers the error of the sum of squares in float64.
        """
        eps = torch.finfo(self.offsets.dtype).eps
        return self.squared_norms.sqrt() * (length_margin(self.offsets) + eps)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return each cluster's largest of `values` (n,), in the order of `order`.

        A cluster without members gets minus infinity.
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


def near_pairs(
    a: torch.Tensor, limits: torch.Tensor, b: torch.Tensor, norms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all (i, j) whose computed value of |b_j|^2 - 2 a_i.b_j is below limits_i.

    Parameters
    ----------
    a, b : Tensor of shape (n, d) and (m, d)
    limits : Tensor of shape (n,)
    norms : Tensor of shape (m,)
        The squares |b_j|^2.

    Returns
    -------
    i, j : Tensor of shape (n_pairs,), int64
    """
    block = torch.addmm(norms, a, b.T, alpha=-2)
    # Negated so that NaN (overflow) counts as a candidate.
    i, j = (block >= limits[:, None]).logical_not_().nonzero(as_tuple=True)
    return i, j
