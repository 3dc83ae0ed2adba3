"""Detectors of defective images.

The contract that they all fulfil, `PatchCoreDetector`, `PatchCoreEnsemble`, and what
these need: anomaly maps, foreground masks and cross-fitting.
"""

from skpatchcore._detectors._base import ImageDetectorMixin
from skpatchcore._detectors._cross_fit import (
    check_apart,
    features_once,
    fit_clone,
    held_out_splits,
    route_fit,
    split_samples,
)
from skpatchcore._detectors._detector import Inspection, PatchCoreDetector
from skpatchcore._detectors._ensemble import EnsembleInspection, PatchCoreEnsemble

__all__ = [
    "check_apart",
    "EnsembleInspection",
    "features_once",
    "fit_clone",
    "held_out_splits",
    "Inspection",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "ImageDetectorMixin",
    "route_fit",
    "split_samples",
]
