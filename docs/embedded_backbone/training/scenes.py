"""Procedural images of things that have parts: the other half of the training data.

A scene is a background and a product on it: a few parts inside, beside or in rows of
each other, each of a shape, a material and an edge of its own.
"""

import numpy as np
from numpy.random import RandomState
from scipy import ndimage

from skpatchcore.datasets._textures import log_uniform, smooth_noise, smoothstep
from training.patterns import coordinates, draw_pattern


def draw_texture(rng: RandomState, size: int) -> np.ndarray:
    """Return a texture (size, size, 3) in [0, 1] that fills the image."""
    tone = draw_pattern(rng, size)
    if rng.rand() < 0.35:
        # Two patterns, one on top of the other or each in its own regions.
        other, amount = draw_pattern(rng, size), rng.uniform(0.2, 0.8)
        if rng.rand() < 0.3:
            amount = smoothstep(draw_pattern(rng, size), 0.45, 0.55)
        tone = tone + amount * (other - tone)
    image = colorize(rng, tone, rng.uniform(0.25, 1))
    if rng.rand() < 0.4:
        image = image * _relief(tone, rng)[..., np.newaxis]
    return _finish(rng, image)


def draw_scene(rng: RandomState, size: int) -> np.ndarray:
    """Return a scene (size, size, 3) in [0, 1]."""
    canvas = _material(rng, size, textured=0.3)
    center, extent = rng.uniform(-0.25, 0.25, 2), log_uniform(rng, 0.6, 1.7)
    angle = rng.choice([0, np.pi / 4, np.pi / 2]) + rng.normal(0, 0.1)
    u, v = coordinates(size)
    x, y = u - center[0], v - center[1]
    x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    x, y = x / extent, y / extent
    if rng.rand() < 0.35:
        # A product that is its own mirror image.
        x = np.abs(x)
    for i in range(rng.randint(2, 8)):
        canvas = _add_part(rng, canvas, x, y, is_body=i == 0)
    return _finish(rng, canvas)


def colorize(rng: RandomState, tone: np.ndarray, contrast: float) -> np.ndarray:
    """Lay a tone through two to four colours around a common one."""
    n_colors = rng.randint(2, 5)
    base, spread = rng.rand(3), rng.choice([0.1, 0.5])
    grays = rng.permutation(np.linspace(0, 1, n_colors))[:, np.newaxis]
    colors = (
        base
        + contrast * (grays - 0.5)
        + spread * contrast * rng.normal(0, 0.5, (n_colors, 3))
    )
    stops = np.linspace(0, 1, n_colors)
    channels = [np.interp(tone, stops, np.clip(c, 0, 1)) for c in colors.T]
    return np.stack(channels, axis=-1).astype(np.float32)


def _relief(tone: np.ndarray, rng: RandomState) -> np.ndarray:
    """Return the brightness of `tone` as a relief, lit from anywhere."""
    smooth = ndimage.gaussian_filter(tone, log_uniform(rng, 0.7, 3))
    slope_v, slope_u = np.gradient(smooth)
    angle = rng.uniform(0, 2 * np.pi)
    slope = slope_u * np.cos(angle) + slope_v * np.sin(angle)
    return 1 + rng.uniform(0.1, 0.5) * slope / (np.abs(slope).max() + 1e-6)


def _material(rng: RandomState, size: int, textured: float) -> np.ndarray:
    """Return a plain, shaded or textured fill (size, size, 3)."""
    if rng.rand() < textured:
        return colorize(rng, draw_pattern(rng, size), log_uniform(rng, 0.08, 0.8))
    u, v = coordinates(size)
    light = 1 + rng.uniform(-0.3, 0.3) * u + rng.uniform(-0.3, 0.3) * v
    return (light[..., np.newaxis] * rng.rand(3)).astype(np.float32)


def _add_part(rng: RandomState, canvas, x, y, *, is_body: bool) -> np.ndarray:
    """Paint one part, or a row, a ring or a block of equal ones."""
    x, y, radius = _place_part(rng, x, y, is_body)
    distance = _signed_distance(rng, x / radius, y / radius) * radius
    softness = 2 / len(canvas) * log_uniform(rng, 0.7, 3)
    cover = 1 - smoothstep(distance, -softness, softness)
    if rng.rand() < 0.4:
        # A shadow round the part.
        reach = rng.uniform(0.02, 0.15)
        shade = rng.uniform(0.2, 0.7) * (1 - smoothstep(distance, 0, reach))
        canvas = canvas * (1 - shade)[..., np.newaxis]
    fill = _fill_part(rng, distance, radius, softness)
    opacity = 1.0 if rng.rand() < 0.8 else rng.uniform(0.3, 0.9)
    return canvas + (opacity * cover)[..., np.newaxis] * (fill - canvas)


def _place_part(rng: RandomState, x, y, is_body: bool):
    """Return coordinates round the centre of a part or of each copy, and a radius."""
    if is_body:
        return x, y, rng.uniform(0.5, 0.9)
    radius = log_uniform(rng, 0.06, 0.5)
    if rng.rand() >= 0.75:
        return x, y, radius
    place = rng.uniform(-0.7, 0.7, 2)
    if radius < 0.25 and rng.rand() < 0.5:
        return *_repeat(rng, x, y, radius), radius
    return x - place[0], y - place[1], radius


def _fill_part(rng: RandomState, distance, radius: float, softness: float):
    """Return what a part is made of, with rounded edges or a rim."""
    fill = _material(rng, len(distance), textured=0.45)
    if rng.rand() < 0.5:
        fill = fill * _bevel(rng, distance, radius)[..., np.newaxis]
    if rng.rand() < 0.25:
        # A rim of another colour.
        width = log_uniform(rng, 2 / len(distance), 0.08)
        rim = smoothstep(distance, -width - softness, -width)[..., np.newaxis]
        fill = fill + rim * (rng.rand(3) - fill)
    return fill


def _repeat(rng: RandomState, x, y, radius: float):
    """Fold coordinates so that a part appears again and again."""
    pitch = radius * rng.uniform(2.1, 3.5)
    if rng.rand() < 0.35:
        n_copies, ring = rng.randint(3, 12), rng.uniform(0.3, 0.75)
        sector = 2 * np.pi / n_copies
        angle = (np.arctan2(y, x) + np.pi) % sector - sector / 2
        distance = np.hypot(x, y)
        return distance * np.cos(angle) - ring, distance * np.sin(angle)
    reach_x, reach_y = rng.uniform(0.2, 1, 2) * (rng.permutation([1, rng.rand() < 0.4]))
    return tuple(
        axis - pitch * np.clip(np.round(axis / pitch), -n, n)
        for axis, n in ((x, round(reach_x / pitch)), (y, round(reach_y / pitch)))
    )


def _signed_distance(rng: RandomState, x, y) -> np.ndarray:
    """Return the distance to a shape of about unit size, negative inside."""
    kind, aspect = rng.randint(6), log_uniform(rng, 0.25, 1)
    if rng.rand() < 0.5:
        x, y = y, x
    if kind == 0:
        distance = np.hypot(x, y) - 1
    elif kind == 1:
        distance = (np.hypot(x, y / aspect) - 1) * aspect
    elif kind in (2, 3):
        corner = rng.uniform(0, 0.5) * aspect
        out_x, out_y = np.abs(x) - 1 + corner, np.abs(y) - aspect + corner
        outside = np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0))
        distance = outside + np.minimum(np.maximum(out_x, out_y), 0) - corner
    elif kind == 4:
        n_corners = rng.randint(3, 9)
        sector = 2 * np.pi / n_corners
        angle = (np.arctan2(y, x) + np.pi) % sector - sector / 2
        distance = np.hypot(x, y) * np.cos(angle) - np.cos(sector / 2)
    else:
        angle, waves = np.arctan2(y, x), rng.randint(2, 7, size=2)
        phases, swings = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0, 0.15, 2)
        bumps = sum(
            s * np.sin(w * angle + p)
            for s, w, p in zip(swings, waves, phases, strict=True)
        )
        distance = np.hypot(x, y) - 0.8 - bumps
    if rng.rand() < 0.2:
        # Only the outline, as of a ring or a frame.
        distance = np.abs(distance + 0.15) - rng.uniform(0.04, 0.15)
    return distance


def _bevel(rng: RandomState, distance: np.ndarray, radius: float) -> np.ndarray:
    """Return the brightness of a part with rounded edges, lit from one side."""
    depth = np.clip(-distance / (radius * rng.uniform(0.1, 1)), 0, 1)
    slope_v, slope_u = np.gradient(np.sqrt(depth * (2 - depth)))
    angle = rng.uniform(0, 2 * np.pi)
    slope = (slope_u * np.cos(angle) + slope_v * np.sin(angle)) * len(distance) * radius
    light = 1 + rng.uniform(0.05, 0.4) * np.tanh(slope)
    if rng.rand() < 0.3:
        light = light + rng.uniform(0.1, 0.6) * depth ** rng.randint(2, 12)
    return light


def _finish(rng: RandomState, image: np.ndarray) -> np.ndarray:
    """Add what a camera adds: uneven light, blur and noise."""
    u, v = coordinates(len(image))
    light = 1 + rng.uniform(-0.15, 0.15) * u + rng.uniform(-0.15, 0.15) * v
    if rng.rand() < 0.15:
        light = light + 0.1 * smooth_noise(rng, u.shape, 0.3)
    image = image * light[..., np.newaxis]
    if rng.rand() < 0.5:
        blur = rng.uniform(0.3, 1.2)
        image = ndimage.gaussian_filter(image, (blur, blur, 0))
    noise = log_uniform(rng, 0.002, 0.03)
    return np.clip(image + noise * rng.standard_normal(image.shape), 0, 1)
