"""Generate industrial surfaces without defects, each slightly different.

Surfaces are float64 arrays (h, w, 3) in [0, 1]. Lengths are relative to the shorter
side, so that more pixels show the same scene in more detail. Everything is computed in
float64 and rounded to 8 bits only at the end. So the bytes are the same on every
platform, even if the last digits of its sines and exponentials differ.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import fft, ndimage

Color = tuple[float, float, float]


def render_texture(texture: str, size: int, rng: RandomState) -> NDArray:
    """Return a surface (size, size, 3) without defects, a new one in each call."""
    return np.clip(TEXTURES[texture](rng, size), 0, 1)


def smooth_noise(
    rng: RandomState,
    shape: tuple[int, ...],
    along: float,
    across: float | None = None,
    angle: float = 0.0,
) -> NDArray:
    """Return Gaussian noise, mean 0, variance 1, blurred by two lengths at an angle."""
    across = along if across is None else across
    side = min(shape)
    f_v = fft.fftfreq(shape[0])[:, np.newaxis] * side
    f_u = fft.rfftfreq(shape[1])[np.newaxis] * side
    f_along = f_u * np.cos(angle) - f_v * np.sin(angle)
    f_across = f_u * np.sin(angle) + f_v * np.cos(angle)
    # The Fourier transform of a Gaussian with these standard deviations. Unlike for a
    # convolution, the cost does not grow with the lengths.
    blur = np.exp(-2 * np.pi**2 * ((f_along * along) ** 2 + (f_across * across) ** 2))
    noise = fft.irfft2(fft.rfft2(rng.standard_normal(shape)) * blur, shape)
    return (noise - noise.mean()) / noise.std()


def log_uniform(rng: RandomState, low: float, high: float) -> float:
    """Return a number from `low` to `high` whose logarithm is uniformly distributed."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def smoothstep(x: NDArray, low: float, high: float) -> NDArray:
    """Return 0 below `low`, 1 above `high`, and a smooth transition in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def shade_relief(height: NDArray, strength: float) -> NDArray:
    """Return the brightness of a relief lit from the upper left; 1 where it is flat."""
    slope_v, slope_u = np.gradient(height, 1 / min(height.shape))
    return 1 + strength * (slope_u + slope_v)


def _coordinates(
    rng: RandomState, size: int, max_angle: float
) -> tuple[NDArray, NDArray, float]:
    """Return u (right) and v (down), randomly shifted and rotated, all positive."""
    v, u = np.mgrid[:size, :size] / size
    angle = rng.uniform(-max_angle, max_angle)
    shift_u, shift_v = rng.uniform(1, 2, size=2)
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    return u + shift_u, v + shift_v, angle


def _gray(tone: NDArray, tint: Color = (1.0, 1.0, 1.0)) -> NDArray:
    return tone[..., np.newaxis] * np.array(tint)


def _mix(first: Color, second: Color, amount: NDArray) -> NDArray:
    """Blend two colours: `first` where `amount` is 0, `second` where it is 1."""
    return _gray(1 - amount, first) + _gray(amount, second)


def _brushed(rng: RandomState, size: int) -> NDArray:
    """Brushed steel: fine horizontal streaks and a broad reflection."""
    _, v, angle = _coordinates(rng, size, 0.03)
    streaks = smooth_noise(rng, (size, size), 0.3, 0.002, angle)
    lines = smooth_noise(rng, (size, size), 0.08, 0.004, angle)
    reflection = np.exp(-(((v - v.mean() - rng.uniform(-0.2, 0.2)) / 0.35) ** 2))
    tone = 0.52 + 0.045 * streaks + 0.025 * lines + 0.12 * reflection
    return _gray(tone, (0.97, 1.0, 1.04))


def _woven(rng: RandomState, size: int) -> NDArray:
    """Plain weave of a blue warp and a grey weft, with slightly uneven threads."""
    u, v, _ = _coordinates(rng, size, 0.04)
    sway_u = 0.06 * smooth_noise(rng, (size, size), 0.15)
    sway_v = 0.06 * smooth_noise(rng, (size, size), 0.15)
    warp, across_warp = np.divmod(u * 12 + sway_u, 1)
    weft, across_weft = np.divmod(v * 12 + sway_v, 1)
    round_warp, round_weft = np.sin(np.pi * across_warp), np.sin(np.pi * across_weft)
    is_warp = (warp + weft) % 2 == 0
    over_warp = round_warp * (0.7 + 0.3 * round_weft)
    over_weft = round_weft * (0.7 + 0.3 * round_warp)
    relief = 0.5 + 0.5 * np.where(is_warp, over_warp, over_weft)
    tones = rng.normal(1, 0.04, size=(2, 64))
    tone = np.where(is_warp, tones[0][warp.astype(int)], tones[1][weft.astype(int)])
    fibres = 1 + 0.05 * smooth_noise(rng, (size, size), 0.004)
    color = _mix((0.60, 0.62, 0.65), (0.33, 0.42, 0.58), is_warp.astype(float))
    return color * _gray(tone * fibres * relief)


def _wood(rng: RandomState, size: int) -> NDArray:
    """Planed softwood: dark bands of latewood, fibres and pores along the grain."""
    _, v, angle = _coordinates(rng, size, 0.05)
    bends = smooth_noise(rng, (size, size), 0.5, 0.12, angle)
    year, season = np.divmod(v * 9 + 0.5 * bends, 1)
    late_wood = season**3 * (1 - smoothstep(season, 0.93, 1.0))
    late_wood = late_wood * rng.uniform(0.5, 1, size=64)[year.astype(int) % 64]
    fibres = smooth_noise(rng, (size, size), 0.2, 0.003, angle)
    pores = smoothstep(smooth_noise(rng, (size, size), 0.03, 0.004, angle), 1.8, 2.6)
    color = _mix((0.80, 0.62, 0.42), (0.52, 0.33, 0.18), late_wood)
    return color * _gray(1 + 0.04 * fibres - 0.2 * pores)


def _brick(rng: RandomState, size: int) -> NDArray:
    """Clay bricks in running bond, each with its own tone, and grey joints."""
    u, v, _ = _coordinates(rng, size, 0.015)
    row, y = np.divmod(v * 6, 1)
    column, x = np.divmod(u * 3 + 0.5 * (row % 2), 1)
    to_joint = np.minimum(np.minimum(x, 1 - x) / 3, np.minimum(y, 1 - y) / 6)
    rough = smooth_noise(rng, (size, size), 0.012)
    fine = smooth_noise(rng, (size, size), 0.003)
    tones = rng.normal(1, 0.06, size=(32, 16))
    tone = tones[row.astype(int) % 32, column.astype(int) % 16]
    clay = _gray(tone + 0.05 * rough + 0.05 * fine, (0.60, 0.35, 0.28))
    joint = _gray(1 + 0.05 * fine, (0.62, 0.60, 0.57))
    is_clay = _gray(smoothstep(to_joint + 0.001 * rough, 0.006, 0.013))
    shading = shade_relief(smoothstep(to_joint, 0.004, 0.02), 0.002)
    return (joint + is_clay * (clay - joint)) * _gray(shading)


def _cast(rng: RandomState, size: int) -> NDArray:
    """Sand-cast iron: a rough dark skin, with bright and dark grains."""
    shape = (size, size)
    bumps = 0.6 * smooth_noise(rng, shape, 0.006) + smooth_noise(rng, shape, 0.02)
    grains = smooth_noise(rng, shape, 0.005)
    bright, dark = smoothstep(grains, 1.9, 2.6), smoothstep(-grains, 1.9, 2.6)
    clouds = 1 + 0.06 * smooth_noise(rng, shape, 0.1)
    tone = 0.4 * shade_relief(bumps, 0.0017) * clouds + 0.18 * bright - 0.15 * dark
    return _gray(tone, (1.02, 1.0, 0.97))


def _knurled(rng: RandomState, size: int) -> NDArray:
    """Knurled brass: rows of small pyramids, worn in some places."""
    u, v, _ = _coordinates(rng, size, 0.03)
    wear = 0.05 * smooth_noise(rng, (size, size), 0.15)
    flanks = np.abs(8 * np.stack([u + v, u - v]) % 1 - 0.5).min(axis=0)
    relief = ndimage.gaussian_filter(np.minimum(flanks, 0.4 + 0.2 * wear), 0.006 * size)
    fine = 1 + 0.05 * smooth_noise(rng, (size, size), 0.004)
    tone = 0.78 * shade_relief(relief, 0.028) * fine * (1 + wear)
    return _gray(tone, (0.80, 0.64, 0.36))


TEXTURES: dict[str, Callable[[RandomState, int], NDArray]] = {
    "brick": _brick,
    "brushed": _brushed,
    "cast": _cast,
    "knurled": _knurled,
    "wood": _wood,
    "woven": _woven,
}
