"""Procedural patterns: what the embedded backbone learns from, half of it textures.

A pattern is a function of a random state and a size; it returns a tone (size, size) in
[0, 1], float32, another one at each call. None of them is a surface of
:func:`~skpatchcore.datasets.make_surface_defects`: those are for testing.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import RandomState
from scipy import fft, ndimage

from skpatchcore.datasets._textures import log_uniform, smooth_noise, smoothstep

Grid = tuple[np.ndarray, np.ndarray]


def draw_pattern(rng: RandomState, size: int) -> np.ndarray:
    """Return a tone (size, size) in [0, 1], float32, of a pattern chosen at random."""
    pattern = PATTERNS[rng.randint(len(PATTERNS))]
    return stretch(pattern(rng, size))


def coordinates(size: int) -> Grid:
    """Return u (to the right) and v (down) in [-1, 1], float32."""
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    return np.broadcast_arrays(steps[np.newaxis], steps[:, np.newaxis])


def random_frame(rng: RandomState, size: int, warp: float = 0.0) -> Grid:
    """Return coordinates turned by any angle, and bent by up to about `warp`."""
    u, v = coordinates(size)
    angle = rng.uniform(0, np.pi)
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    if warp:
        length = rng.uniform(0.1, 0.4)
        u, v = (x + warp * smooth_noise(rng, x.shape, length) for x in (u, v))
    return u.astype(np.float32), v.astype(np.float32)


def stretch(tone: np.ndarray) -> np.ndarray:
    """Map the middle 98 % of `tone` to [0, 1] and clip the rest."""
    low, high = np.quantile(tone[::3, ::3], [0.01, 0.99])
    scaled = (tone - low) / max(high - low, 1e-6)
    return np.clip(scaled, 0, 1).astype(np.float32)


def _warp(rng: RandomState, most: float = 0.08) -> float:
    """Half of the patterns are regular, the others bent."""
    return rng.uniform(0, most) if rng.rand() < 0.5 else 0.0


def _band_noise(rng: RandomState, size: int) -> np.ndarray:
    """Noise of one octave or a few, alike in all directions or slightly stretched."""
    f_v, f_u = fft.fftfreq(size)[:, np.newaxis], fft.rfftfreq(size)[np.newaxis]
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(1, 2.5)
    along = f_u * np.cos(angle) + f_v * np.sin(angle)
    across = f_v * np.cos(angle) - f_u * np.sin(angle)
    octaves = np.log2(np.hypot(along, across * squeeze) + 1e-6)
    center, width = rng.uniform(-6, -1.5), rng.uniform(0.2, 1.2)
    band = np.exp(-0.5 * ((octaves - center) / width) ** 2)
    spectrum = fft.rfft2(rng.standard_normal((size, size)))
    return fft.irfft2(spectrum * band, (size, size))


def _cloud_noise(rng: RandomState, size: int) -> np.ndarray:
    """Noise of all octaves, sometimes folded into ridges."""
    f_v, f_u = fft.fftfreq(size)[:, np.newaxis], fft.rfftfreq(size)[np.newaxis]
    decay = (np.hypot(f_u, f_v) + 1 / size) ** -rng.uniform(0.6, 2.2)
    spectrum = fft.rfft2(rng.standard_normal((size, size)))
    noise = fft.irfft2(spectrum * decay, (size, size))
    return np.abs(noise) if rng.rand() < 0.4 else noise


def _labyrinth(rng: RandomState, size: int) -> np.ndarray:
    """Islands or stripes: band-passed noise, cut at a level."""
    noise = stretch(_band_noise(rng, size))
    level, softness = rng.uniform(0.3, 0.7), log_uniform(rng, 0.02, 0.2)
    return smoothstep(noise, level - softness, level + softness)


def _waveform(rng: RandomState, phase: np.ndarray) -> np.ndarray:
    """Return a wave of period 1: sine, saw, triangle, or bars."""
    kind, cycle = rng.randint(4), phase % 1
    if kind == 0:
        return 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    if kind == 1:
        return cycle
    triangle = 2 * np.abs(cycle - 0.5)
    if kind == 2:
        return triangle
    duty = rng.uniform(0.2, 0.8)
    return smoothstep(triangle, duty - 0.1, duty + 0.1)


def _grating(rng: RandomState, size: int) -> np.ndarray:
    """One to three waves in different directions, added or multiplied."""
    tone, adds = 0.0, rng.rand() < 0.5
    for i in range(rng.randint(1, 4)):
        u, _ = random_frame(rng, size, _warp(rng))
        wave = _waveform(rng, u * log_uniform(rng, 1.5, 20) + rng.rand())
        tone = wave if i == 0 else (tone + wave if adds else tone * wave)
    return tone


def _rings(rng: RandomState, size: int) -> np.ndarray:
    """Waves round a centre, spokes, or spirals."""
    u, v = random_frame(rng, size, _warp(rng))
    u, v = u - rng.uniform(-1, 1), v - rng.uniform(-1, 1)
    radius, angle = np.hypot(u, v), np.arctan2(v, u) / (2 * np.pi)
    n_waves, n_spokes = log_uniform(rng, 1.5, 12), rng.randint(0, 24)
    return _waveform(rng, radius * n_waves + angle * n_spokes)


def _lattice(rng: RandomState, size: int):
    """Return positions (2, h, w) within the cells of a lattice, and cell numbers."""
    u, v = random_frame(rng, size, _warp(rng))
    n_cells, aspect = log_uniform(rng, 2, 14), rng.uniform(0.6, 1)
    x, y = u * n_cells + 40, v * n_cells * aspect + 40
    y_cell, y = np.divmod(y, 1)
    # Rows that are shifted by half a cell are a hexagonal lattice.
    x_cell, x = np.divmod(x + 0.5 * (y_cell % 2) * (rng.rand() < 0.5), 1)
    return np.stack([x, y]) - 0.5, (x_cell.astype(int), y_cell.astype(int))


def _dots(rng: RandomState, size: int) -> np.ndarray:
    """Spots on a lattice: round, square or annular, of equal or different tones."""
    (x, y), (column, row) = _lattice(rng, size)
    jitter = rng.uniform(0, 0.2) * rng.uniform(-1, 1, (2, 128, 128))
    x, y = x - jitter[0][row, column], y - jitter[1][row, column]
    exponent = rng.choice([1, 2, 4])
    distance = (np.abs(x) ** exponent + np.abs(y) ** exponent) ** (1 / exponent)
    if rng.rand() < 0.25:
        distance = np.abs(distance - 0.2) + 0.1
    radius, softness = rng.uniform(0.15, 0.4), log_uniform(rng, 0.02, 0.2)
    radii = radius * (1 - rng.uniform(0, 0.5) * rng.rand(128, 128))[row, column]
    tones = 1 - rng.uniform(0, 0.7) * rng.rand(128, 128)
    return tones[row, column] * (
        1 - smoothstep(distance, radii - softness, radii + softness)
    )


def _cells(rng: RandomState, size: int) -> np.ndarray:
    """Voronoi cells of jittered points: their tones, domes or borders."""
    (x, y), (column, row) = _lattice(rng, size)
    jitter = rng.uniform(0.2, 0.5) * rng.uniform(-1, 1, (2, 128, 128))
    distances, tones = [], rng.rand(128, 128)
    for i, j in np.ndindex(3, 3):
        at = row + i - 1, column + j - 1
        away = np.hypot(x - j + 1 - jitter[0][at], y - i + 1 - jitter[1][at])
        distances.append(away)
    nearest = np.argmin(distances, axis=0)
    first, second = np.partition(distances, 1, axis=0)[:2]
    kind = rng.randint(3)
    if kind == 0:
        return tones[row + nearest // 3 - 1, column + nearest % 3 - 1]
    return first if kind == 1 else smoothstep(second - first, 0.02, 0.25)


def _pattern_net(rng: RandomState, size: int) -> np.ndarray:
    """Compositional pattern net: a random network from coordinates to a tone."""
    u, v = random_frame(rng, size)
    scale = log_uniform(rng, 1, 6)
    inputs = [u * scale, v * scale, np.hypot(u, v) * scale, np.sin(3 * scale * u)]
    hidden = np.stack(inputs).reshape(4, -1)
    for _ in range(rng.randint(2, 4)):
        weights = rng.normal(0, 1.2 / np.sqrt(len(hidden)), (10, len(hidden)))
        hidden = weights.astype(np.float32) @ hidden + rng.normal(
            0, 0.5, (10, 1)
        ).astype(np.float32)
        hidden[:5], hidden[5:] = np.tanh(2 * hidden[:5]), np.sin(3 * hidden[5:])
    return (rng.normal(0, 1, 10) @ hidden).reshape(size, size)


def _leaves(rng: RandomState, size: int) -> np.ndarray:
    """Dead leaves: discs, squares and bars that cover each other."""
    tone = np.full((size, size), rng.rand(), dtype=np.float32)
    largest = log_uniform(rng, 0.04, 0.25) * size
    n_leaves = int(np.clip(1.2 * (size / largest) ** 2, 40, 400))
    squareness, slenderness = rng.rand(), rng.uniform(1, 4)
    for _ in range(n_leaves):
        radius = largest * rng.uniform(0.3, 1) + 1
        center, angle, shade = (
            rng.uniform(0, size, 2),
            rng.uniform(0, np.pi),
            rng.rand(),
        )
        corner = np.maximum((center - radius).astype(int), 0)
        window = tone[corner[0] :, corner[1] :][: int(2 * radius), : int(2 * radius)]
        y = np.arange(window.shape[0])[:, np.newaxis] + corner[0] - center[0]
        x = np.arange(window.shape[1])[np.newaxis] + corner[1] - center[1]
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        across = np.abs(y * np.cos(angle) - x * np.sin(angle)) * slenderness
        if rng.rand() < squareness:
            window[np.maximum(along, across) < 0.7 * radius] = shade
        else:
            window[along**2 + across**2 < radius**2] = shade
    return tone


def _fractal(rng: RandomState, size: int) -> np.ndarray:
    """Attractor of an iterated function system of affine maps."""
    n_maps, n_points = rng.randint(2, 5), 1500
    maps = rng.uniform(-1, 1, (n_maps, 2, 2))
    norms = np.linalg.norm(maps, ord=2, axis=(1, 2), keepdims=True)
    # Maps have to contract, but not by too much, or the attractor is a few points.
    maps *= rng.uniform(0.5, 0.85, (n_maps, 1, 1)) / norms
    shifts = rng.uniform(-1, 1, (n_maps, 2))
    points, visited = rng.uniform(-1, 1, (n_points, 2)), []
    for step in range(30):
        chosen = rng.randint(n_maps, size=n_points)
        points = np.einsum("nij,nj->ni", maps[chosen], points) + shifts[chosen]
        if step >= 10:
            visited.append(points)
    places = np.concatenate(visited)
    low, high = np.quantile(places, [0.02, 0.98], axis=0)
    bounds = list(zip(low, np.maximum(high, low + 1e-3), strict=True))
    counts, *_ = np.histogram2d(*places.T, bins=size, range=bounds)
    density = ndimage.gaussian_filter(np.log1p(counts), log_uniform(rng, 0.5, 2))
    return np.tile(density[::2, ::2], (2, 2)) if rng.rand() < 0.3 else density


def _wallpaper(rng: RandomState, size: int) -> np.ndarray:
    """Small piece of another pattern, repeated or mirrored."""
    side = rng.randint(size // 10, size // 2)
    motif = _SIMPLE[rng.randint(len(_SIMPLE))](rng, size)[:side, :side]
    if rng.rand() < 0.6:
        motif = np.concatenate([motif, motif[:, ::-1]], axis=1)
        motif = np.concatenate([motif, motif[::-1]], axis=0)
    repeats = [-(-size // n) for n in motif.shape]
    return np.tile(motif, repeats)[:size, :size]


def _fibres(rng: RandomState, size: int) -> np.ndarray:
    """Many thin straight segments, in all directions or around one."""
    tone, main, spread = np.zeros((size, size)), rng.uniform(0, np.pi), rng.rand()
    n_fibres, length = rng.randint(30, 200), log_uniform(rng, 0.08, 0.8) * size
    angles = main + spread * rng.uniform(-np.pi / 2, np.pi / 2, n_fibres)
    steps = np.linspace(-0.5, 0.5, int(2 * length)) * length
    starts = rng.uniform(0, size, (2, n_fibres, 1))
    rows = (starts[0] + np.sin(angles)[:, np.newaxis] * steps).astype(int)
    columns = (starts[1] + np.cos(angles)[:, np.newaxis] * steps).astype(int)
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    shades = np.broadcast_to(rng.uniform(-1, 1, (n_fibres, 1)), rows.shape)
    tone[rows[inside], columns[inside]] = shades[inside]
    return ndimage.gaussian_filter(tone, log_uniform(rng, 0.5, 1.5))


_SIMPLE = (_band_noise, _labyrinth, _dots, _cells, _pattern_net, _leaves, _fibres)
PATTERNS: tuple[Callable[[RandomState, int], np.ndarray], ...] = (
    _band_noise,
    _cloud_noise,
    _labyrinth,
    _grating,
    _rings,
    _dots,
    _cells,
    _pattern_net,
    _leaves,
    _fractal,
    _wallpaper,
    _fibres,
)
