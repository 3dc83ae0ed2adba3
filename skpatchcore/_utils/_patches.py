"""Patches of samples as a bank looks at them, and scores of samples from theirs."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skpatchcore._utils._fractions import floor_fraction


class Samples(NamedTuple):
    """Patches of samples, one sample's after the other's.

    `patches` is (n_patches, d); `offsets` (n_samples + 1,) says where each sample's
    begin, and the last's end; `positions` (n_patches,) are their grid positions, or
    None where these do not matter.
    """

    patches: NDArray
    offsets: NDArray
    positions: NDArray | None = None

    @classmethod
    def of_grids(cls, patches: NDArray, shapes: NDArray, positions=None) -> "Samples":
        """Return all patches of samples with grids of `shapes` (n_samples, 2)."""
        return cls(patches, np.append(0, shapes.prod(axis=1).cumsum()), positions)

    def take(self, rows: NDArray) -> "Samples":
        """Return the patches at `rows`, ascending; samples left with none are gone."""
        if len(rows) == len(self.patches):
            return self
        counts = np.diff(np.searchsorted(rows, self.offsets))
        # Rows in one piece are a view: indexed, features would be there twice.
        start, stop = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        chosen = slice(start, stop) if stop - start == len(rows) else rows
        return Samples(
            self.patches[chosen],
            np.append(0, counts[counts > 0].cumsum()),
            None if self.positions is None else self.positions[chosen],
        )


def draw_evenly(sizes: NDArray, n_most: int) -> slice:
    """Return which patches of samples of `sizes` to draw, `n_most` at most.

    The step has no divisor in common with the sizes: it would meet the same columns of
    every grid, and perhaps only the rim.
    """
    step, grids = max(1, -(-sizes.sum() // n_most)), set(sizes.tolist()) - {0}
    while math.gcd(step, math.lcm(*grids)) > 1:
        step += 1
    return slice(None, None, int(step))


def reduce_patches(patch_scores, offsets, reduction) -> np.ndarray:
    """Reduce patch scores (n_patches,) to one score a sample."""
    if reduction == "max":
        return np.maximum.reduceat(patch_scores, offsets[:-1])
    return np.array(
        [
            np.sort(scores)[-max(1, floor_fraction(reduction, len(scores))) :].mean()
            for scores in np.split(patch_scores, offsets[1:-1])
        ]
    )


def argmax_patches(patch_scores, offsets) -> np.ndarray:
    """Return the row of each sample's largest patch score."""
    parts = np.split(patch_scores, offsets[1:-1])
    return offsets[:-1] + np.array([part.argmax() for part in parts])
