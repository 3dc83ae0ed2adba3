"""The contract of detectors of images.

Everything that takes "a detector" (displays, scorers, reports, files, the command,
detectors that wrap others) relies on `ImageDetector` and nothing else. `unwrap` is the
one function that looks inside pipelines, searches and frozen estimators.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors._inspection import Inspection
from skpatchcore._images import Images, check_images
from skpatchcore._utils import DecisionMixin, StrOptions, available_if, validate_params

_SIZES = StrOptions({"original", "resized", "grid"})


Maps = NDArray | list[NDArray]


"""One array for each image: stacked where their shapes agree, else a list."""


class ImageDetector(DecisionMixin):
    """A detector that finds the score and the map of an image in one pass.

    A class defines `fit`, `offset_`, `map_threshold_`, and three methods:

    - ``_inspect(images)`` yields an `Inspection` of each image, not always in order;
    - ``_map(seen, size, border)`` returns the anomaly map of an inspection;
    - ``nearest_patches(X, n_neighbors)`` returns the training patches compared with.

    A detector that wraps another may turn out to wrap one without maps; it says so by
    ``_has_maps()``, and the methods for maps are then missing.
    """

    map_threshold_: float

    def _has_maps(self) -> bool:
        return True

    def _inspect(self, images: Images) -> Iterator[Inspection]:
        raise NotImplementedError

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        raise NotImplementedError

    def _references(self) -> list["Reference"]:
        """Return the detectors whose banks hold the normal patches to be shown."""
        raise NotImplementedError

    def _peak(self, seen: Inspection) -> float:
        """Return the largest value of an image's map."""
        # Enlarging or shrinking a map interpolates: it cannot exceed this.
        return self._map(seen, "resized").max()

    @property
    def _is_calibrated(self) -> bool:
        """Whether p-values and a common scale of scores and maps are defined."""
        return False

    def _p_value(self, score: float) -> float | None:
        return None

    def _anomaly_score(self, score: float) -> float | None:
        return None

    def _normalize(self, values: NDArray) -> NDArray:
        raise ValueError(
            "normalized=True needs held-out scores for its scale, but "
            f"{type(self).__name__} has none; wrap the detector in a "
            "skpatchcore.calibration.ConformalDetector."
        )

    def score_samples(self, X) -> NDArray[np.float64]:
        """Return the negative anomaly score of images: higher is more normal.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            At most 0. In the unit of `metric`; an ensemble divides by the score of a
            typical normal image.
        """
        check_is_fitted(self)
        images = check_images(X)
        scores = np.empty(len(images))
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                scores[seen.index] = seen.score
        return scores

    @available_if(lambda self: self._has_maps())
    def inspect(self, X) -> Iterator[Inspection]:
        """Yield everything about each image, from one pass through the network.

        Use it to process a stream of images in bounded memory, or to get scores, labels
        and maps without computing features several times.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Yields
        ------
        inspection : Inspection
            ``index`` (position in `X`), ``score``, ``decision``, ``label``, ``map`` and
            ``mask``, and of a calibrated detector ``p_value`` and ``anomaly_score``,
            which are None otherwise. Images of one size come in order; if sizes differ,
            some come later.
        """
        check_is_fitted(self)
        return self._inspect(check_images(X))

    @available_if(lambda self: self._has_maps())
    @validate_params(
        {
            "size": [_SIZES],
            "border": [StrOptions({"nearest", "nan"})],
            "normalized": ["boolean"],
        }
    )
    def predict_maps(
        self,
        X,
        *,
        size: str = "original",
        border: str = "nearest",
        normalized: bool = False,
    ) -> Maps:
        """Return anomaly maps (heat maps): higher is more anomalous.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        size : {"original", "resized", "grid"}, default="original"
            "original" maps have the pixels of the image as it was given; "resized"
            those of the network's input, after resizing and cropping; "grid" is one
            unsmoothed value per patch.

        border : {"nearest", "nan"}, default="nearest"
            What "original" maps hold where `crop_size` removed part of the image: the
            value of the nearest pixel that was used, or NaN.

        normalized : bool, default=False
            Map the values to [0, 1] on the scale of
            :meth:`ConformalDetector.predict_anomaly_score
            <skpatchcore.calibration.ConformalDetector.predict_anomaly_score>`: 1/8 is
            the typical maximum of a good image's map, 1/2 is ``map_threshold_``. Only
            for detectors that are calibrated on held-out images.

        Returns
        -------
        maps : ndarray of shape (n, height, width), float
            In the unit of scores unless normalized; a list of n arrays if their sizes
            differ.

        Raises
        ------
        ValueError
            If `normalized` is set and the detector is not calibrated.
        """
        check_is_fitted(self)
        images = check_images(X)
        with closing(self._iter_maps(images, size, border)) as maps:
            if normalized:
                maps = ((i, self._normalize(values)) for i, values in maps)
            return gather(maps, len(images))

    @available_if(lambda self: self._has_maps())
    @validate_params({"threshold": [Real, None], "size": [_SIZES]})
    def predict_masks(
        self, X, *, threshold: float | None = None, size: str = "original"
    ) -> Maps:
        """Return which pixels are anomalous (a segmentation of the defects).

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        threshold : float or None, default=None
            Pixels whose map is larger are anomalous; None is ``map_threshold_``.

        size : {"original", "resized", "grid"}, default="original"
            As for `predict_maps`.

        Returns
        -------
        masks : ndarray of shape (n, height, width), bool
            A list of n arrays if their sizes differ.
        """
        check_is_fitted(self)
        images = check_images(X)
        threshold = self.map_threshold_ if threshold is None else threshold
        with closing(self._iter_maps(images, size)) as maps:
            masks = ((i, values > threshold) for i, values in maps)
            return gather(masks, len(images))

    def _iter_maps(
        self, images: Images, size: str, border: str = "nearest"
    ) -> Iterator[tuple[int, NDArray]]:
        """Yield (index, map) of each image, not always in order."""
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                yield seen.index, self._map(seen, size, border)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


class Reference(NamedTuple):
    """A detector with a memory bank, inside another that was fitted on more images.

    `rows` are the positions of its training images in the `X` that the outermost
    detector was fitted on; None if it was fitted on that `X` itself.
    """

    detector: ImageDetector
    rows: NDArray | None = None

    def within(self, rows: NDArray | None) -> "Reference":
        """Return the same inside a detector that was fitted on `rows` of another X."""
        if rows is None:
            return self
        return Reference(self.detector, rows if self.rows is None else rows[self.rows])


def gather(arrays: Iterable[tuple[int, NDArray]], n: int) -> Maps:
    """Return n arrays, given with their indices, as one, or as a list if shapes differ.

    One array is filled as they come, so that outputs are not held twice.
    """
    stacked: NDArray | None = None
    separate: list[NDArray] | None = None
    filled: list[int] = []
    for i, values in arrays:
        if stacked is None and separate is None:
            stacked = np.empty((n, *values.shape), values.dtype)
        if stacked is not None and values.shape != stacked.shape[1:]:
            separate = [np.empty(0)] * n
            for j in filled:
                separate[j] = stacked[j].copy()
            stacked = None
        if separate is not None:
            separate[i] = values
        elif stacked is not None:
            stacked[i] = values
        filled.append(i)
    return stacked if separate is None else separate


def in_order(inspections: Iterator[Inspection]) -> list[Inspection]:
    """Return all inspections in the order of their images."""
    return sorted(inspections, key=lambda seen: seen.index)


def windows(images: Sequence, size: int = 32) -> Iterator[range]:
    """Yield runs of positions, for detectors that take turns with a few images each."""
    for start in range(0, len(images), size):
        yield range(start, min(start + size, len(images)))
