"""Patch features of several images in one matrix."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._images import Geometry
from skpatchcore._utils import draw_evenly


class PatchGrids(NamedTuple):
    """Patch features of n images in one matrix, and their origin.

    `patches` (n_patches, d) is float32 and ordered by image. `shapes` (n, 2) holds the
    grid of each image, and `geometries` how each image was resized and cropped.
    """

    patches: np.ndarray
    shapes: np.ndarray
    geometries: list[Geometry]

    @property
    def offsets(self) -> np.ndarray:
        """First row of each image's patches, and the number of rows: (n + 1,)."""
        return np.concatenate([[0], self.shapes.prod(axis=1).cumsum()])

    def sample(self, rows: np.ndarray | None, n_most: int) -> np.ndarray:
        """Return at most `n_most` patches of the images `rows`, drawn evenly.

        None stands for all images.
        """
        sizes = self.shapes.prod(axis=1)
        if rows is None or len(rows) == len(self.shapes):
            return self.patches[draw_evenly(sizes, n_most)]
        # Indices are selected first, so that features are copied only once.
        ends = self.offsets
        kept = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in rows])
        return self.patches[kept[draw_evenly(sizes[rows], n_most)]]


def collect_grids(batches: Iterable[tuple], n_images: int) -> PatchGrids:
    """Gather batches of patch features (b, h, w, d) into one matrix, in image order.

    If all grids have the same shape, which is usual, features are written only once.
    """
    block: NDArray | None = None
    strays: dict[int, NDArray] = {}
    shapes = np.zeros((n_images, 2), dtype=np.int64)
    geometries: dict[int, Geometry] = {}
    for indices, features, batch_geometries in batches:
        features = np.asarray(features.cpu() if torch.is_tensor(features) else features)
        if block is None:
            block = np.empty((n_images, *features.shape[1:]), dtype=np.float32)
        shapes[indices] = features.shape[1:3]
        geometries.update(zip(indices, batch_geometries, strict=True))
        if features.shape[1:] == block.shape[1:]:
            block[indices] = features
        else:
            strays.update(zip(indices, features, strict=True))
    assert block is not None, "no images"
    d = block.shape[-1]
    ordered = [geometries[i] for i in range(n_images)]
    if not strays:
        return PatchGrids(block.reshape(-1, d), shapes, ordered)
    grids = PatchGrids(np.empty((shapes.prod(axis=1).sum(), d), np.float32), shapes, [])
    for i, (start, end) in enumerate(itertools.pairwise(grids.offsets)):
        # The memory of each is released as soon as it is copied.
        grids.patches[start:end] = strays.pop(i, block[i]).reshape(-1, d)
    return grids._replace(geometries=ordered)
