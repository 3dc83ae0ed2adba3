"""From a grid of patch scores to an anomaly map of the image's size."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from skpatchcore._images import Geometry
from skpatchcore._utils import own_torch_state


def anomaly_map(
    grid: np.ndarray,
    geometry: Geometry,
    *,
    size: str = "original",
    smoothing: float = 4.0,
    border: str = "nearest",
) -> np.ndarray:
    """Return the anomaly map of one image.

    Parameters
    ----------
    grid : ndarray of shape (h, w)
        Patch scores.
    geometry : Geometry
        How the image became the network's input.
    size : {"original", "resized", "grid"}
        The size of the image, that of the network's input, or that of `grid`.
    smoothing : float
        Standard deviation of the Gaussian in pixels of the network's input.
    border : {"nearest", "nan"}
        For ``size="original"``, the value where a crop removed part of the image: that
        of the nearest pixel that was used, or NaN.

    Returns
    -------
    map : ndarray of float32
    """
    if size == "grid":
        return grid.astype(np.float32)
    seen = resize_map(grid, geometry.crop)
    if smoothing > 0:
        seen = gaussian_filter(seen, smoothing)
    if size == "resized":
        return seen
    whole = resize_map(_paste(seen, geometry), geometry.original)
    if border == "nan" and geometry.crop != geometry.resized:
        whole[~seen_pixels(geometry)] = np.nan
    return whole


def seen_pixels(geometry: Geometry) -> np.ndarray:
    """Return which pixels of the image the network saw, by their centres: bool."""
    axes = []
    for original, resized, offset, kept in zip(*geometry.sizes, strict=True):
        center = (np.arange(original) + 0.5) * resized / original
        axes.append((offset <= center) & (center < offset + kept))
    return np.logical_and.outer(*axes)


@own_torch_state()
def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map bilinearly to `size`, in float32."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.shape == tuple(size):
        return values
    tensor = torch.from_numpy(values)[None, None]
    resized = F.interpolate(tensor, size, mode="bilinear", align_corners=False)
    return resized[0, 0].numpy()


def _paste(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Put a crop back into the resized image, its edge repeated all around."""
    margins = [
        (offset, total - offset - kept)
        for offset, total, kept in zip(
            geometry.offset, geometry.resized, geometry.crop, strict=True
        )
    ]
    return np.pad(values, margins, mode="edge")
