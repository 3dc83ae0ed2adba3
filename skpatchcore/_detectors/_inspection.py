"""What a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skpatchcore._detectors._regions import Region, find_regions
from skpatchcore._images import Geometry


class Inspector(Protocol):
    """What an inspection asks of the detector that made it; see `ImageDetector`."""

    offset_: float

    @property
    def map_threshold_(self) -> float:
        """Threshold of masks."""

    def _map(self, seen: Inspection, size: str, border: str) -> NDArray: ...

    def _peak(self, seen: Inspection) -> float: ...

    def _p_value(self, score: float) -> float | None: ...

    def _anomaly_score(self, score: float) -> float | None: ...

    @property
    def _is_calibrated(self) -> bool: ...

    def _normalize(self, values: NDArray) -> NDArray: ...


@dataclass(frozen=True)
class Inspection:
    """What one pass over one image gives.

    Maps, masks and regions are computed at their first use; everything else is there
    already.

    Parameters
    ----------
    index : int
        Position of the image in the `X` that was inspected.
    score : float
        As ``score_samples`` returns it: higher is more normal.
    patch_scores : ndarray of shape (h, w), float64
        The grid that the map is made of: higher is more anomalous. For a detector that
        consists of several, their combination on the grid of the first.
    geometry : Geometry
        How the image became the network's input; for a detector that consists of
        several, that of the first.
    detector : ImageDetector
        The detector that inspected the image.
    parts : tuple of Inspection
        What the detectors that `detector` consists of found: members of an ensemble,
        or estimators of folds.
    """

    index: int
    score: float
    patch_scores: NDArray[np.float64]
    geometry: Geometry
    detector: Inspector = field(repr=False)
    parts: tuple[Inspection, ...] = field(default=(), repr=False)

    @property
    def decision(self) -> float:
        """``score - detector.offset_``: negative for anomalous images."""
        return self.score - self.detector.offset_

    @property
    def label(self) -> int:
        """+1 for a normal and -1 for an anomalous image."""
        return 1 if self.decision >= 0 else -1

    @property
    def p_value(self) -> float | None:
        """The conformal p-value; None if the detector is not calibrated."""
        return self.detector._p_value(self.score)

    @property
    def anomaly_score(self) -> float | None:
        """The score on a scale from 0 to 1; None if the detector is not calibrated."""
        return self.detector._anomaly_score(self.score)

    @cached_property
    def map(self) -> NDArray:
        """The anomaly map in the image's own size: higher is more anomalous."""
        return self.make_map()

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels whose map is above the detector's ``map_threshold_``."""
        return self.map > self.map_threshold

    @property
    def map_threshold(self) -> float:
        """The threshold of ``mask``, in the unit of ``map``."""
        return self.detector.map_threshold_

    @cached_property
    def regions(self) -> list[Region]:
        """The defect regions: the connected parts of ``mask``, highest peak first."""
        return self.find_regions()

    def find_regions(self, min_area: int = 1) -> list[Region]:
        """Return the defect regions that have at least some size.

        Parameters
        ----------
        min_area : int, default=1
            Regions of fewer pixels of the original image are left out.

        Returns
        -------
        regions : list of Region
            Box, outline, area, and peak and mean of the map of each connected part of
            ``mask``, highest peak first. An image with a normal label may have regions,
            and an anomalous one may have none: the label depends on ``offset_``, the
            mask on ``map_threshold_``.

        Raises
        ------
        ValueError
            If `min_area` is not an integer of at least 1.
        """
        return find_regions(self.map, self.map_threshold, min_area)

    @property
    def peak(self) -> float:
        """The largest value of the map."""
        return float(self.detector._peak(self))

    def make_map(self, size: str = "original", border: str = "nearest") -> NDArray:
        """Return the anomaly map in another size.

        Parameters
        ----------
        size : {"original", "resized", "grid"}, default="original"
            As for `PatchCoreDetector.predict_maps`.
        border : {"nearest", "nan"}, default="nearest"
            As for `PatchCoreDetector.predict_maps`.

        Returns
        -------
        map : ndarray of shape (height, width)
            Higher is more anomalous.
        """
        return self.detector._map(self, size, border)
