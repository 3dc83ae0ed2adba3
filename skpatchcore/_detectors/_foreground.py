"""The object in an image, by the first principal component of its patches."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_dilation

from skpatchcore._utils import ceil_fraction, draw_evenly, warn_user

# The component and the threshold are learned from at most this many patches.
_MAX_PATCHES = 50_000
_N_BINS = 256
# Least share of the variance that must lie between the two sides of the threshold. A
# normal distribution has 0.64 and a uniform one 0.75, and neither has two sides.
_MIN_SEPARATION = 0.8
# Shares of patches that a foreground of the references may have.
_MIN_SHARE, _MAX_SHARE = 0.05, 0.95
# Width of an image's border, beyond the outermost patch, as a share of its side.
_BORDER = 0.1
_WINDOW = np.ones((3, 3), dtype=bool)


class Foreground(NamedTuple):
    """Patches are foreground where ``patches @ direction > threshold``."""

    direction: NDArray  # (d,), float32
    threshold: float

    def mask(self, grid: NDArray) -> NDArray:
        """Return which patches of a grid (h, w, d) are foreground: bool (h, w).

        The foreground is grown by a patch, so that it includes outlines, and small
        holes are filled. If no patch is foreground, all are.
        """
        inside = grid @ self.direction > self.threshold
        if not inside.any():
            return np.ones(inside.shape, dtype=bool)
        grown = binary_dilation(inside, _WINDOW)
        # Closing treats everything outside the grid as background, and erodes there.
        return binary_closing(grown, _WINDOW) | grown

    def select(self, patches: NDArray, shapes: NDArray) -> NDArray:
        """Return the rows of patches that are foreground; some of every image are."""
        parts = np.split(patches, shapes.prod(axis=1).cumsum()[:-1])
        masks = [
            self.mask(part.reshape(*shape, -1)).reshape(-1)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return np.flatnonzero(np.concatenate(masks))


def fit_foreground(patches: NDArray, shapes: NDArray) -> Foreground | None:
    """Learn what is foreground in reference images; None, with a warning, if unclear.

    Parameters
    ----------
    patches : ndarray of shape (n_patches, d)
        Features of all images, concatenated.
    shapes : ndarray of shape (n_images, 2), int64
        Their grids.
    """
    # Zero padding makes patches at the edge differ from all others, although they need
    # not show the object.
    inner = ~at_border(shapes, 0)
    inner = inner if inner.any() else np.ones(len(patches), dtype=bool)
    ends = shapes.prod(axis=1).cumsum()
    sizes = np.diff(inner.cumsum()[ends - 1], prepend=0)
    drawn = np.flatnonzero(inner)[draw_evenly(sizes, _MAX_PATCHES)]
    direction = first_component(patches[drawn])
    values = patches @ direction
    threshold, separation = otsu(values[drawn])
    above = values > threshold
    border = at_border(shapes, _BORDER) & inner
    # The border is background, so the side that is rarer there is the object.
    if border.any() and above[border].mean() > above[inner].mean():
        direction, threshold, above = -direction, -threshold, ~above
    share = above[inner].mean()
    if separation >= _MIN_SEPARATION and _MIN_SHARE <= share <= _MAX_SHARE:
        return Foreground(direction, float(threshold))
    warn_user(
        "The reference images have no foreground that stands out: the two sides of "
        f"the first principal component hold {share:.0%} and {1 - share:.0%} of the "
        f"patches and explain {separation:.0%} of its variance (at least "
        f"{_MIN_SEPARATION:.0%} are required). All patches are used; pass "
        "foreground=None to do so without this warning.",
    )
    return None


def first_component(patches: NDArray) -> NDArray:
    """Return the direction of largest variance, float32 of unit length.

    Its sign, which is arbitrary, makes the largest entry positive.
    """
    patches = patches.astype(np.float64)
    mean = patches.mean(axis=0)
    covariance = patches.T @ patches / len(patches) - np.outer(mean, mean)
    _, vectors = np.linalg.eigh(covariance)
    direction = vectors[:, -1]
    direction *= np.sign(direction[np.abs(direction).argmax()])
    return direction.astype(np.float32)


def otsu(values: NDArray) -> tuple[float, float]:
    """Return Otsu's threshold, and the share of the variance between its two sides.

    Otsu, N. "A threshold selection method from gray-level histograms", IEEE
    Transactions on Systems, Man, and Cybernetics 9(1), 1979.
    """
    counts, edges = np.histogram(values.astype(np.float64), bins=_N_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    weights = counts / counts.sum()
    below = weights.cumsum()[:-1]
    mean = weights @ centers
    variance = weights @ (centers - mean) ** 2
    moment = (weights * centers).cumsum()[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean * below - moment) ** 2 / (below * (1 - below))
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = between.argmax()
    share = between[best] / variance if variance > 0 else 0.0
    return float(edges[best + 1]), float(share)


def at_border(shapes: NDArray, share: float) -> NDArray:
    """Return which patches lie at the border of their grid: bool (n_patches,).

    The border is the outermost patch and a `share` of the side, rounded up.
    """
    masks = []
    for height, width in shapes:
        top, left = (1 + ceil_fraction(share, size) for size in (height, width))
        border = np.ones((height, width), dtype=bool)
        border[top : max(0, height - top), left : max(0, width - left)] = False
        masks.append(border.reshape(-1))
    return np.concatenate(masks)
