"""Generate defects on generated surfaces and on images of real ones.

A defect consists of a shape, given as an opacity (h, w) in [0, 1], and a paint
(h, w, 3) that is blended over the surface with that opacity. Both are random: some
defects are large and clear, others small and faint.
"""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from skpatchcore.datasets._textures import (
    log_uniform,
    shade_relief,
    smooth_noise,
    smoothstep,
)

# A smaller opacity is hardly visible. It is set to 0, so that the mask has exactly the
# changed pixels.
_MIN_OPACITY = 0.1


def paint_defect(
    surface: NDArray, defect: str, rng: RandomState
) -> tuple[NDArray, NDArray]:
    """Put a defect on a surface.

    Parameters
    ----------
    surface : ndarray of shape (h, w, 3)
        Float colours in [0, 1].
    defect : str
        A key of `DEFECTS`.
    rng : RandomState
        Determines position, size, shape and strength.

    Returns
    -------
    painted : ndarray of shape (h, w, 3)
        The surface with the defect, unchanged where the mask is False.
    mask : ndarray of bool of shape (h, w)
        True where the defect is. At least one pixel is True.
    """
    opacity, paint = DEFECTS[defect](rng, surface)
    mask = opacity >= _MIN_OPACITY
    amount = np.where(mask, opacity, 0)[..., np.newaxis]
    return np.clip(surface + amount * (paint - surface), 0, 1), mask


def _grid(shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Return u (right) and v (down) of each pixel. The shorter side has length 1."""
    v, u = np.mgrid[: shape[0], : shape[1]] / min(shape)
    return u, v


def _place(rng: RandomState, shape: tuple[int, ...]) -> NDArray:
    """Return a random point (u, v), not too close to the border."""
    height, width = shape
    return rng.uniform(0.15, 0.85, size=2) * (width, height) / min(shape)


def _turned_grid(rng: RandomState, shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Return coordinates with a random origin and a random direction."""
    (center_u, center_v), turn = _place(rng, shape), rng.uniform(0, 2 * np.pi)
    u, v = _grid(shape)
    u, v = u - center_u, v - center_v
    return u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)


def _blob(
    rng: RandomState, shape: tuple[int, ...], radius: float, softness: float
) -> NDArray:
    """Return an irregular oval that fades out over `softness` radii."""
    radius = max(radius, 1.5 / min(shape))
    along, across = _turned_grid(rng, shape)
    stretch = np.sqrt(rng.uniform(1, 1.8))
    distance = np.hypot(along / stretch, across * stretch) / radius
    outline = np.clip(1 + 0.2 * smooth_noise(rng, shape, 0.6 * radius), 0.6, 1.4)
    return 1 - smoothstep(distance / outline, 1 - softness, 1)


def _walk(
    rng: RandomState, start: NDArray, length: float, bend: float, jitter: float
) -> NDArray:
    """Return points (n, 2) of a path. `bend` and `jitter` (zigzag) are in radians."""
    n_steps = 10
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.normal(0, bend), n_steps)
    angles = angles + rng.normal(0, jitter, size=n_steps)
    steps = np.column_stack([np.cos(angles), np.sin(angles)]) * length / n_steps
    return np.vstack([start, start + np.cumsum(steps, axis=0)])


def _stroke(points: NDArray, shape: tuple[int, ...], width: float) -> NDArray:
    """Return a line through points (n, 2) of (u, v), thinner towards both ends."""
    u, v = _grid(shape)
    depth = np.full(shape, -np.inf)
    n_segments = len(points) - 1
    for i, (start, end) in enumerate(itertools.pairwise(points)):
        du, dv = end - start
        t = ((u - start[0]) * du + (v - start[1]) * dv) / (du**2 + dv**2)
        t = np.clip(t, 0, 1)
        distance = np.hypot(u - start[0] - t * du, v - start[1] - t * dv)
        thickness = width * np.sqrt(1 - (2 * (i + t) / n_segments - 1) ** 2)
        depth = np.maximum(depth, thickness / 2 - distance)
    return _antialias(depth)


def _antialias(depth: NDArray) -> NDArray:
    """Return the share of each pixel inside the shape, given its depth inside it."""
    return np.clip(depth * min(depth.shape) + 0.5, 0, 1)


def _crack(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Crack: dark and jagged, half of them with a branch."""
    shape = surface.shape[:2]
    length, width = log_uniform(rng, 0.2, 0.6), log_uniform(rng, 0.01, 0.02)
    trunk = _walk(rng, _place(rng, shape), length, bend=0.6, jitter=0.45)
    opening = _stroke(trunk, shape, width)
    if rng.uniform() < 0.5:
        fork = trunk[rng.randint(3, 8)]
        branch = _walk(rng, fork, 0.4 * length, bend=0.6, jitter=0.45)
        opening = np.maximum(opening, _stroke(branch, shape, 0.8 * width))
    return opening, surface * rng.uniform(0.2, 0.7)


def _dent(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Dent: one side is lit, the other is in shadow."""
    along, across = _turned_grid(rng, surface.shape[:2])
    radius = log_uniform(rng, 0.06, 0.18)
    inside = np.clip(1 - np.hypot(along, 1.3 * across) / radius, 0, 1)
    hollow = -radius * smoothstep(inside, 0, 1)
    shading = shade_relief(hollow, log_uniform(rng, 0.1, 0.4))
    return smoothstep(inside, 0, 0.2), surface * shading[..., np.newaxis]


def _discoloration(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Discoloration: a different hue at similar brightness, as from heat."""
    area = _blob(rng, surface.shape[:2], log_uniform(rng, 0.08, 0.2), softness=0.6)
    warmth = rng.choice([-1, 1]) * log_uniform(rng, 0.1, 0.3)
    return area, surface * (1 + warmth * np.array([1.0, 0.0, -1.0]))


def _foreign(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Foreign body: a piece of foil or tape with straight edges."""
    along, across = _turned_grid(rng, surface.shape[:2])
    length, width = log_uniform(rng, 0.04, 0.12), log_uniform(rng, 0.015, 0.05)
    depth = np.minimum(length - np.abs(along), width - np.abs(across))
    color = rng.uniform(0.3, 0.8) + rng.uniform(-0.2, 0.2, size=3)
    sheen = 1 + 0.04 * smooth_noise(rng, depth.shape, 0.03)
    return _antialias(depth), color * sheen[..., np.newaxis]


def _scratch(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Scratch: long, thin, nearly straight, lighter or darker than the surface."""
    shape = surface.shape[:2]
    length, width = log_uniform(rng, 0.15, 0.7), log_uniform(rng, 0.01, 0.02)
    points = _walk(rng, _place(rng, shape), length, bend=0.3, jitter=0.03)
    ground = 1.0 if surface.mean() < 0.55 else 0.0
    paint = surface + log_uniform(rng, 0.2, 0.7) * (ground - surface)
    return _stroke(points, shape, width), paint


def _spot(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Contamination: up to three small grains of soot, rust or lime."""
    shape = surface.shape[:2]
    colors = np.array([(0.10, 0.09, 0.08), (0.42, 0.20, 0.08), (0.90, 0.90, 0.86)])
    color = colors[rng.randint(len(colors))]
    radii = [log_uniform(rng, 0.015, 0.05) for _ in range(rng.randint(1, 4))]
    grains = [_blob(rng, shape, radius, softness=0.4) for radius in radii]
    paint = surface + log_uniform(rng, 0.4, 0.95) * (color - surface)
    return np.max(grains, axis=0), paint


def _stain(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Stain of a dried liquid: translucent and dark, darkest at its border."""
    puddle = _blob(rng, surface.shape[:2], log_uniform(rng, 0.06, 0.2), softness=0.35)
    border = 4 * puddle * (1 - puddle)
    tint = 1 - log_uniform(rng, 0.15, 0.4) * np.array([0.8, 1.0, 1.2])
    return puddle, surface * tint * (1 - 0.15 * border)[..., np.newaxis]


def _wear(rng: RandomState, surface: NDArray) -> tuple[NDArray, NDArray]:
    """Wear: the texture is smoothed away, and its mean colour remains."""
    area = _blob(rng, surface.shape[:2], log_uniform(rng, 0.08, 0.2), softness=0.3)
    sigma = 0.06 * min(area.shape)
    smooth = ndimage.gaussian_filter(surface, (sigma, sigma, 0), truncate=2)
    return area, surface + rng.uniform(0.5, 1) * (smooth - surface)


DEFECTS: dict[str, Callable[[RandomState, NDArray], tuple]] = {
    "crack": _crack,
    "dent": _dent,
    "discoloration": _discoloration,
    "foreign": _foreign,
    "scratch": _scratch,
    "spot": _spot,
    "stain": _stain,
    "wear": _wear,
}
