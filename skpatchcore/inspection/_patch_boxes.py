"""Locate patches in their images, and find the normal patches that they match."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import (
    Reference,
    find_detector,
    merge_matches,
    renumber_images,
)
from skpatchcore._images import (
    Geometry,
    Images,
    UnreadableImageError,
    check_images,
    plan_geometry,
)
from skpatchcore._utils import fitted_params

# Number of training images to keep decoded. They are large, and few of them match.
_N_DECODED = 16


class Matches(NamedTuple):
    """The nearest normal patches of every patch of one image."""

    image: np.ndarray  # (h, w, k), index of the image in the X of fit
    row: np.ndarray  # (h, w, k)
    column: np.ndarray  # (h, w, k)
    distance: np.ndarray  # (h, w, k)
    scores: np.ndarray  # (h, w), patch scores of the detector

    @property
    def most_anomalous(self) -> tuple[int, int]:
        """Row and column of the patch with the highest score."""
        row, column = np.unravel_index(self.scores.argmax(), self.scores.shape)
        return int(row), int(column)


def patch_box(
    geometry: Geometry, grid: tuple[int, ...], place: tuple[int, int], extent: float
) -> np.ndarray:
    """Return top, left, bottom and right of a patch, in pixels of its image.

    `extent` is the side length of a patch in steps of the grid.
    """
    starts, ends = [], []
    for *sizes, n, i in zip(*geometry.sizes, grid, place, strict=True):
        original, resized, offset, kept = sizes
        center = offset + (i + 0.5) * kept / n
        half = extent * kept / n / 2
        starts.append((center - half) * original / resized)
        ends.append((center + half) * original / resized)
    return np.array([*starts, *ends])


class PatchPlaces:
    """Locates patches of test images, and the normal patches that they match.

    Parameters
    ----------
    estimator : estimator
        A fitted detector with maps. For an ensemble, the first member is shown.
    training_images : sequence of images, or ndarray
        The `X` that `estimator` was fitted on, in the same order.
    """

    def __init__(self, estimator: Any, training_images: Any):
        check_is_fitted(estimator)
        self._references = find_detector(estimator).references()
        # A missing image matters only if one of its patches matches.
        self._failures: dict[int, Exception] = {}
        self.training = check_images(training_images, self._failures)
        n_needed = 1 + max(int(_learned_from(r).max()) for r in self._references)
        if len(self.training) < n_needed:
            raise ValueError(
                f"training_images has {len(self.training)} images, but the estimator "
                f"was fitted on image {n_needed - 1}. Pass the same X as to fit, in "
                "the same order: matches refer to images by their position in it."
            )
        self.training_image = lru_cache(_N_DECODED)(self._load)

    def matches(self, image: Images, n_neighbors: int) -> Matches:
        """Return the nearest normal patches of every patch of a single image."""
        own = self._references[0].detector._frozen.n_neighbors
        found = merge_matches(
            [
                renumber_images(
                    reference.detector.nearest_patches(image, max(n_neighbors, own)),
                    reference.rows,
                )
                for reference in self._references
            ]
        )
        names = ("image", "row", "column", "distance")
        index, row, column, distance = (found[name][0] for name in names)
        return Matches(
            image=index[..., :n_neighbors],
            row=row[..., :n_neighbors],
            column=column[..., :n_neighbors],
            distance=distance[..., :n_neighbors],
            scores=distance[..., :own].mean(axis=-1),
        )

    def box(
        self, shape: tuple[int, ...], grid: tuple[int, ...], place: tuple[int, int]
    ) -> np.ndarray:
        """Return the box of a patch in an image of this shape and grid of patches."""
        params = fitted_params(self._references[0].detector.features_)
        height, width = shape
        geometry = plan_geometry(
            (height, width), params["image_size"], params["crop_size"]
        )
        extent = params["patch_size"] / params["patch_stride"]
        return patch_box(geometry, grid, place, extent)

    def training_box(self, image: int, row: int, column: int) -> np.ndarray:
        """Return the box of a normal patch in its training image."""
        shape = self.training_image(image).shape[:2]
        return self.box(shape, self._training_grid(image), (row, column))

    def _training_grid(self, image: int) -> tuple[int, ...]:
        """Return height and width of a training image's grid of patches."""
        for reference in self._references:
            position = np.flatnonzero(_learned_from(reference) == image)
            if len(position):
                return tuple(reference.detector._training_shapes[position[0]])
        raise ValueError(f"Training image {image} was not learned from.")

    def _load(self, i: int) -> np.ndarray:
        try:
            if i in self._failures:
                raise self._failures[i]
            return self.training[i]
        except (FileNotFoundError, UnreadableImageError) as error:
            raise FileNotFoundError(
                f"Could not show a matching patch: training image {i} is missing or "
                f"unreadable ({error}). A detector stores only the positions of its "
                "patches. Pass the training_images of fit, in the same order."
            ) from error


def _learned_from(reference: Reference) -> np.ndarray:
    """Return the positions of training images in the outermost `X`."""
    indices = reference.detector.training_indices_
    return indices if reference.rows is None else reference.rows[indices]


def find_matches(
    estimator: Any,
    X: Any,
    training_images: Any,
    patches: Sequence[tuple[int, int]] | None,
    n_neighbors: int,
) -> Bunch:
    """Return the boxes of one patch of each image and of its nearest normal patches.

    `patches` has (row, column) for each image; None is the most anomalous patch.
    """
    places = PatchPlaces(estimator, training_images)
    images = check_images(X)
    boxes, match_images, match_boxes, distances = [], [], [], []
    for i in range(len(images)):
        matches = places.matches(images.take(np.array([i])), n_neighbors)
        grid = matches.scores.shape
        place = matches.most_anomalous
        if patches is not None:
            place = _check_place(tuple(patches[i]), grid, i)
        found = [part[place] for part in matches[:4]]
        boxes.append(places.box(images[i].shape[:2], grid, place))
        match_images.append(found[0])
        of_patch = zip(*found[:3], strict=True)
        match_boxes.append([places.training_box(*one) for one in of_patch])
        distances.append(found[3])
    return Bunch(
        boxes=np.array(boxes),
        match_images=np.array(match_images),
        match_boxes=np.array(match_boxes),
        distances=np.array(distances),
    )


def _check_place(
    place: tuple[int, ...], grid: tuple[int, ...], i: int
) -> tuple[int, int]:
    if len(place) != 2 or not all(0 <= p < n for p, n in zip(place, grid, strict=True)):
        raise ValueError(
            f"patches[{i}] is {place}; expected (row, column) in the grid of "
            f"{grid[0]} x {grid[1]} patches."
        )
    row, column = place
    return row, column
