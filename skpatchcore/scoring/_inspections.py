"""One pass over images for every kind of detector, thresholds on top or not."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.frozen import FrozenEstimator

from skpatchcore._detectors import EnsembleInspection, ImageDetectorMixin, Inspection
from skpatchcore._images import Images
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector

# The estimators of several folds take turns with so many images at a time.
_WINDOW = 32


class FoldInspections(NamedTuple):
    """What the estimators of a ConformalDetector see in an image."""

    index: int
    score: float
    folds: list

    @property
    def patch_scores(self) -> np.ndarray:
        return np.mean([seen.patch_scores for seen in self.folds], axis=0)


def inspects_images(detector) -> bool:
    """Return whether a detector is, or consists of, detectors on images."""
    if isinstance(detector, TunedThresholdDetector | FrozenEstimator):
        return inspects_images(_inner(detector))
    if isinstance(detector, ConformalDetector):
        return all(map(inspects_images, getattr(detector, "estimators_", [None])))
    return isinstance(detector, ImageDetectorMixin)


def inspect(
    detector, images: Images
) -> Iterator[Inspection | EnsembleInspection | FoldInspections]:
    """Yield the score, and what maps are made of, not always in order."""
    if isinstance(detector, ImageDetectorMixin):
        yield from detector._inspect(images)
    elif isinstance(detector, ConformalDetector):
        yield from _inspect_folds(detector, images)
    else:
        yield from inspect(_inner(detector), images)


def map_of(detector, seen, size: str) -> np.ndarray:
    """Return the anomaly map of an image that was inspected."""
    if isinstance(detector, ImageDetectorMixin):
        return detector._map(seen, size)
    if not isinstance(detector, ConformalDetector):
        return map_of(_inner(detector), seen, size)
    pairs = zip(detector.estimators_, seen.folds, strict=True)
    maps = [map_of(estimator, of_fold, size) for estimator, of_fold in pairs]
    if not hasattr(detector, "map_threshold_"):
        return maps[0]
    return detector._merge_maps(maps, normalized=False)


def map_threshold(detector) -> float:
    """Return where maps begin to be anomalous."""
    if hasattr(detector, "map_threshold_"):
        return detector.map_threshold_
    return map_threshold(_inner(detector))


def _inner(detector):
    if isinstance(detector, FrozenEstimator):
        return detector.estimator
    if isinstance(detector, ConformalDetector):
        return detector.estimators_[0]
    return detector.estimator_


def _inspect_folds(detector, images: Images) -> Iterator[FoldInspections]:
    for start in range(0, len(images), _WINDOW):
        window = range(start, min(start + _WINDOW, len(images)))
        part = images.take(window)
        folds = [
            sorted(inspect(estimator, part), key=lambda seen: seen.index)
            for estimator in detector.estimators_
        ]
        scores = [np.array([seen.score for seen in fold]) for fold in folds]
        pooled = detector._calibration.pool(scores)
        for i, score, *seen in zip(window, pooled, *folds, strict=True):
            yield FoldInspections(i, score, seen)
