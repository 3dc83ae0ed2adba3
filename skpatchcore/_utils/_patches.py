"""The patches of samples, and the scores of samples from their patch scores."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skpatchcore._utils._fractions import floor_fraction


class Samples(NamedTuple):
    """The patches of all samples, concatenated.

    `patches` has shape (n_patches, d). Those of sample i are in rows ``offsets[i]`` to
    ``offsets[i + 1]``; `offsets` has shape (n_samples + 1,). `positions` (n_patches,)
    are their positions in the grid of the bank, or None if positions do not matter.
    """

    patches: NDArray
    offsets: NDArray
    positions: NDArray | None = None

    @classmethod
    def of_grids(
        cls, patches: NDArray, shapes: NDArray, positions: NDArray | None = None
    ) -> "Samples":
        """Return the patches of samples whose grids have `shapes` (n_samples, 2)."""
        return cls(patches, np.append(0, shapes.prod(axis=1).cumsum()), positions)

    def take(self, rows: NDArray) -> "Samples":
        """Return the patches at `rows` (ascending), without samples that have none."""
        if len(rows) == len(self.patches):
            return self
        counts = np.diff(np.searchsorted(rows, self.offsets))
        # A slice for consecutive rows: it is a view, while an index array would copy.
        start, stop = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        chosen = slice(start, stop) if stop - start == len(rows) else rows
        return Samples(
            self.patches[chosen],
            np.append(0, counts[counts > 0].cumsum()),
            None if self.positions is None else self.positions[chosen],
        )


def draw_evenly(sizes: NDArray, n_most: int) -> slice:
    """Return a slice that selects at most `n_most` patches of samples of `sizes`.

    Its step is coprime to the sizes. A common divisor would select the same columns of
    every grid, perhaps only the border.
    """
    step, grids = max(1, -(-sizes.sum() // n_most)), set(sizes.tolist()) - {0}
    while math.gcd(step, math.lcm(*grids)) > 1:
        step += 1
    return slice(None, None, int(step))


def reduce_patches(
    patch_scores: NDArray, offsets: NDArray, reduction: str | float
) -> NDArray:
    """Reduce patch scores (n_patches,) to one score for each sample.

    `reduction` is "max", or the fraction of largest scores to average.
    """
    if isinstance(reduction, str):
        return np.maximum.reduceat(patch_scores, offsets[:-1])
    return np.array(
        [
            np.sort(scores)[-max(1, floor_fraction(reduction, len(scores))) :].mean()
            for scores in np.split(patch_scores, offsets[1:-1])
        ]
    )


def argmax_patches(patch_scores: NDArray, offsets: NDArray) -> NDArray:
    """Return the row of the largest patch score of each sample."""
    parts = np.split(patch_scores, offsets[1:-1])
    return offsets[:-1] + np.array([part.argmax() for part in parts])
