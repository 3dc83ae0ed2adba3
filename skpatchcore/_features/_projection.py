"""Projections of patch features to fewer dimensions."""

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.random_projection import GaussianRandomProjection

from skpatchcore._utils import seed_unset

# A projection is fitted on no more patches than this, drawn evenly: 600 MB at 1536-d.
MAX_PROJECTION_PATCHES = 100_000
# Patches are projected in parts of this size, as transformers make copies of their own.
_PROJECTION_BYTES = 32 * 2**20


def fit_projection(
    projection: Any, patches: np.ndarray, random_state: np.random.RandomState
) -> Any:
    """Return a transformer fitted on patches (n, d), or None where there is none.

    Its seeds that are not set are drawn from `random_state`.
    """
    if projection is None:
        return None
    if isinstance(projection, Integral):
        projection = GaussianRandomProjection(projection, random_state=random_state)
        return projection.fit(patches[:1])
    projection = seed_unset(clone(projection), random_state)
    return projection.fit(patches)


def project_all(projection: Any, patches: np.ndarray, *, in_place: bool) -> np.ndarray:
    """Project part by part; with `in_place` into the memory of `patches` if it fits."""
    if projection is None:
        return patches
    n, d = patches.shape
    width = project(projection, patches[:1]).shape[1]
    if in_place and width <= d:
        # Rows get narrower: they are written before the place of those yet to be read.
        projected = patches.reshape(-1)[: n * width].reshape(n, width)
    else:
        projected = np.empty((n, width), dtype=np.float32)
    step = max(1, _PROJECTION_BYTES // (d * patches.itemsize))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        projected[rows] = project(projection, patches[rows])
    return projected


def project(projection: Any, patches: np.ndarray) -> np.ndarray:
    """Return the projection of patches (n, d) as contiguous float32."""
    if projection is None:
        return patches
    return np.ascontiguousarray(projection.transform(patches), dtype=np.float32)
