"""Where patches lie in their pictures, and which normal ones they match."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch

from skpatchcore._detector import PatchCoreDetector
from skpatchcore._images import (
    Geometry,
    Images,
    UnreadableImageError,
    check_images,
    plan_geometry,
)
from skpatchcore.calibration import ConformalDetector

# Training pictures are large and few of them match: so many are kept decoded.
_N_DECODED = 16


class Matches(NamedTuple):
    """The nearest normal patches of every patch of one picture."""

    picture: np.ndarray  # (h, w, k), position in the X of fit
    row: np.ndarray  # (h, w, k)
    column: np.ndarray  # (h, w, k)
    distance: np.ndarray  # (h, w, k)
    scores: np.ndarray  # (h, w), what the detector makes of each patch

    @property
    def most_anomalous(self) -> tuple[int, int]:
        """Row and column of the patch with the highest score."""
        row, column = np.unravel_index(self.scores.argmax(), self.scores.shape)
        return int(row), int(column)


def patch_box(
    geometry: Geometry, grid: tuple[int, int], place: tuple[int, int], extent: float
) -> np.ndarray:
    """Return top, left, bottom and right of a patch in pixels of its picture.

    `extent` is the side of a patch in steps of the grid.
    """
    starts, ends = [], []
    for *sizes, n, i in zip(*geometry, grid, place, strict=True):
        original, resized, offset, kept = sizes
        center = offset + (i + 0.5) * kept / n
        half = extent * kept / n / 2
        starts.append((center - half) * original / resized)
        ends.append((center + half) * original / resized)
    return np.array([*starts, *ends])


class PatchPlaces:
    """Where the patches of a detector's pictures are: those it is given, and its own.

    Parameters
    ----------
    estimator : PatchCoreDetector or ConformalDetector
    training_images : pictures, or paths, as `estimator` was fitted on
    """

    def __init__(self, estimator, training_images):
        self._detector, self._rows = _unwrap(estimator)
        # A picture that is gone matters only if one of its patches matches.
        self._failures = {}
        self.training = check_images(training_images, self._failures)
        n_needed = 1 + int(self._outer(self._detector.training_indices_).max())
        if len(self.training) < n_needed:
            raise ValueError(
                f"training_images holds {len(self.training)} pictures, but picture "
                f"{n_needed - 1} was learned from; pass the X that fit was given: "
                "patches are found in it by position."
            )
        self.training_picture = lru_cache(_N_DECODED)(self._load)

    def matches(self, image: Images, n_neighbors: int) -> Matches:
        """Return what every patch of a single picture matches."""
        own = self._detector.n_neighbors
        found = self._detector.nearest_patches(image, max(n_neighbors, own))
        places = [found[name][0] for name in ("picture", "row", "column", "distance")]
        scores = places[-1][..., :own].mean(axis=-1)
        places = [part[..., :n_neighbors] for part in places]
        return Matches(self._outer(places[0]), *places[1:], scores)

    def box(self, shape: tuple[int, int], grid, place) -> np.ndarray:
        """Return the box of a patch in a picture (h, w) with this grid of patches."""
        features = self._detector.features_
        geometry = plan_geometry(shape, features.image_size, features.crop_size)
        extent = features.patch_size / features.patch_stride
        return patch_box(geometry, grid, place, extent)

    def training_box(self, picture: int, row: int, column: int) -> np.ndarray:
        """Return the box of a normal patch in its training picture."""
        shape = self.training_picture(picture).shape[:2]
        learned_from = self._outer(self._detector.training_indices_)
        position = int(np.flatnonzero(learned_from == picture)[0])
        grid = self._detector._training_shapes[position]
        return self.box(shape, tuple(grid), (row, column))

    def _load(self, i: int) -> np.ndarray:
        try:
            if i in self._failures:
                raise self._failures[i]
            return self.training[i]
        except (FileNotFoundError, UnreadableImageError) as error:
            raise FileNotFoundError(
                f"A patch of training picture {i} matches, but the picture is gone or "
                f"unreadable ({error}). A detector keeps only where its patches were; "
                "pass training_images as they were in fit, in the same order."
            ) from error

    def _outer(self, pictures: np.ndarray) -> np.ndarray:
        return pictures if self._rows is None else self._rows[pictures]


def _unwrap(estimator) -> tuple[PatchCoreDetector, np.ndarray | None]:
    """Return the detector, and which rows of the X given to fit were its X."""
    if isinstance(estimator, FrozenEstimator):
        return _unwrap(estimator.estimator)
    if isinstance(estimator, ConformalDetector) and hasattr(estimator, "estimators_"):
        if not hasattr(estimator, "nearest_patches"):
            raise TypeError(
                f"Each of the {len(estimator.estimators_)} detectors of method="
                f"{estimator.method!r} has a bank, and matches, of its own; pass one "
                "of estimators_, or use method='refit'."
            )
        detector, rows = _unwrap(estimator.estimators_[0])
        frozen = isinstance(estimator.estimator, FrozenEstimator)
        return detector, rows if frozen else estimator._training_rows
    if isinstance(estimator, PatchCoreDetector) and hasattr(estimator, "memory_bank_"):
        return estimator, None
    raise TypeError(
        f"Expected a fitted PatchCoreDetector, or a ConformalDetector round one, got "
        f"{estimator!r:.80}; of a search pass best_estimator_, of a pipeline its last "
        "step, of a TunedThresholdDetector its estimator_."
    )


def find_matches(estimator, X, training_images, patches, n_neighbors: int) -> Bunch:
    """Return one patch of each picture, and its nearest normal ones, with their boxes.

    `patches` is (row, column) for each picture; None is the most anomalous patch.
    """
    places = PatchPlaces(estimator, training_images)
    images = check_images(X)
    boxes, pictures, match_boxes, distances = [], [], [], []
    for i in range(len(images)):
        matches = places.matches(images.take([i]), n_neighbors)
        grid = matches.scores.shape
        place = matches.most_anomalous if patches is None else tuple(patches[i])
        _check_place(place, grid, i)
        found = [part[place] for part in matches[:4]]
        boxes.append(places.box(images[i].shape[:2], grid, place))
        pictures.append(found[0])
        of_patch = zip(*found[:3], strict=True)
        match_boxes.append([places.training_box(*one) for one in of_patch])
        distances.append(found[3])
    return Bunch(
        boxes=np.array(boxes),
        match_pictures=np.array(pictures),
        match_boxes=np.array(match_boxes),
        distances=np.array(distances),
    )


def _check_place(place, grid, i: int) -> None:
    if len(place) != 2 or not all(0 <= p < n for p, n in zip(place, grid, strict=True)):
        raise ValueError(
            f"patches[{i}] is {place}; expected a row and a column in the grid of "
            f"{grid[0]} x {grid[1]} patches."
        )
