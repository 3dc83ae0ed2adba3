"""Colour anomaly maps and overlay them on images, without matplotlib."""

from collections.abc import Sequence

import numpy as np

from skpatchcore._detectors import Inspection

# Opacity of an overlay where the map is highest.
ALPHA = 0.7
# On the scale of `ConformalDetector.predict_maps(normalized=True)`, 1/2 is the
# threshold and 1/8 the typical maximum of a normal image's map. 7/8 puts 1/2 in the
# middle.
CALIBRATED_LIMITS, CALIBRATED_THRESHOLD = (1 / 8, 7 / 8), 1 / 2
# The width of the scale of a threshold of 0: everything above it has the last colour.
_NARROW = 1e-12
# matplotlib's colour map "inferno" (CC0) at 0, 1/8, ..., 1.
_HEAT = np.array(
    [
        [0.001, 0.000, 0.014],
        [0.129, 0.047, 0.291],
        [0.342, 0.062, 0.429],
        [0.541, 0.135, 0.415],
        [0.736, 0.216, 0.330],
        [0.894, 0.353, 0.194],
        [0.978, 0.558, 0.035],
        [0.975, 0.798, 0.206],
        [0.988, 0.998, 0.645],
    ]
)


def color_limits(
    threshold: float | None, maps: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Return the values at which the common colour scale of maps starts and ends."""
    if threshold is not None and threshold > 0:
        return threshold_limits(threshold)
    low, high = value_range(maps)
    return (low, high) if low < high else (low, low + 1)


def threshold_limits(threshold: float) -> tuple[float, float]:
    """Return the ends of the colour scale that belongs to a detector's threshold.

    They depend on nothing else, so that overlays of all runs have the same colours.
    """
    if threshold > 0:
        return 0.5 * float(threshold), 1.5 * float(threshold)
    return float(threshold), float(threshold) + _NARROW


def draw_overlay(image: np.ndarray, seen: Inspection) -> np.ndarray:
    """Overlay an image with its anomaly map, on the colour scale of the detector.

    The scale is that of `AnomalyMapDisplay`.

    Parameters
    ----------
    image : ndarray of shape (h, w, 3), float in [0, 1]
    seen : Inspection
        What a detector found in this image.

    Returns
    -------
    overlay : ndarray of shape (h, w, 3), uint8
    """
    if seen.detector._is_calibrated:
        values = seen.detector._normalize(seen.map)
        return blend_overlay(image, values, CALIBRATED_LIMITS)
    return blend_overlay(image, seen.map, threshold_limits(seen.map_threshold))


def value_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the smallest and largest finite value of maps; (0, 0) if there is none."""
    seen = [values[np.isfinite(values)] for values in maps]
    ends = [(values.min(), values.max()) for values in seen if values.size]
    lows, highs = zip(*ends, strict=True) if ends else ((0,), (0,))
    return float(min(lows)), float(max(highs))


def blend_overlay(
    image: np.ndarray, anomaly_map: np.ndarray, limits: tuple[float, float]
) -> np.ndarray:
    """Overlay a map (h, w) on an image (h, w, 3), floats in [0, 1]. Return uint8."""
    strength = strength_of(anomaly_map, *limits)
    blended = blend(image, strength, _heat_colors(strength), ALPHA)
    return np.rint(255 * blended).astype(np.uint8)


def strength_of(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return map values as positions on the colour scale, in [0, 1]; 0 for NaN."""
    strength = (anomaly_map - low) / (high - low)
    return np.clip(np.nan_to_num(strength, nan=0.0), 0, 1)


def blend(
    image: np.ndarray, strength: np.ndarray, colors: np.ndarray, alpha: float
) -> np.ndarray:
    """Overlay colours on an image, with an opacity in proportion to `strength`."""
    opacity = alpha * strength[..., np.newaxis]
    return (1 - opacity) * image + opacity * colors


def _heat_colors(strength: np.ndarray) -> np.ndarray:
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(strength, stops, values) for values in _HEAT.T]
    return np.stack(channels, axis=-1)
