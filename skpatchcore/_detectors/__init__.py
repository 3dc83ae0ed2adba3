"""Detectors of defective images.

The contract that they all fulfil, `PatchCoreDetector`, `PatchCoreEnsemble`, and what
these need: anomaly maps, foreground masks and cross-fitting.
"""

from skpatchcore._detectors._base import (
    ImageDetector,
    Inspections,
    Reference,
    gather,
    in_order,
    windows,
)
from skpatchcore._detectors._cross_fit import (
    check_apart,
    features_once,
    fit_clone,
    held_out_splits,
    route_fit,
    split_samples,
)
from skpatchcore._detectors._detector import PatchCoreDetector
from skpatchcore._detectors._ensemble import PatchCoreEnsemble
from skpatchcore._detectors._find import (
    advise_detector,
    check_refitted,
    find_detector,
    find_maps,
    has_maps,
    is_frozen,
    unwrap,
)
from skpatchcore._detectors._inspection import Inspection
from skpatchcore._detectors._matches import merge_matches, renumber_images
from skpatchcore._detectors._regions import Region
from skpatchcore._detectors._signs import check_signs

__all__ = [
    "ImageDetector",
    "Inspection",
    "Inspections",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "Reference",
    "Region",
    "advise_detector",
    "check_apart",
    "check_refitted",
    "check_signs",
    "features_once",
    "find_detector",
    "find_maps",
    "fit_clone",
    "gather",
    "has_maps",
    "held_out_splits",
    "in_order",
    "is_frozen",
    "merge_matches",
    "renumber_images",
    "route_fit",
    "split_samples",
    "unwrap",
    "windows",
]
