"""The contract of detectors of images.

Everything that takes "a detector" (displays, scorers, reports, files, the command,
detectors that wrap others) relies on `ImageDetector` and nothing else. `unwrap` is the
one function that looks inside pipelines, searches and frozen estimators.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors._inspection import Inspection
from skpatchcore._images import Images, check_stream, is_stream
from skpatchcore._utils import DecisionMixin, StrOptions, available_if, validate_params
from skpatchcore.datasets import check_new_images

_SIZES = StrOptions({"original", "resized", "grid"})

# One array for each image: stacked where their shapes agree, else a list.
Maps: TypeAlias = NDArray[Any] | list[NDArray[Any]]
# Closed by whoever stops before the end, so that reading ahead stops too.
Inspections: TypeAlias = Generator[Inspection, None, None]


class ImageDetector(DecisionMixin):
    """A detector that finds the score and the map of an image in one pass.

    A class defines `fit`, `offset_`, `map_threshold_`, and four methods:

    - ``_inspect(images)`` yields an `Inspection` of each image, not always in order;
    - ``_map(seen, size, border)`` returns the anomaly map of an inspection;
    - ``_references()`` returns the detectors whose training patches are compared with;
    - ``nearest_patches(X, n_neighbors)`` returns those patches.

    A detector that wraps another also defines ``_has_maps()``. If it is false, because
    the other one has no maps, the methods for maps do not exist. A detector with
    calibrated results defines ``_is_calibrated``, ``_p_value``, ``_anomaly_score`` and
    ``_normalize``. One that gives its parts a cache, or creates them in `fit`, defines
    ``_uncached_features``.
    """

    map_threshold_: float

    def _has_maps(self) -> bool:
        return True

    def _inspect(self, images: Images) -> Inspections:
        raise NotImplementedError

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        raise NotImplementedError

    def _references(self) -> list["Reference"]:
        """Return the detectors whose memory banks patches are compared with."""
        raise NotImplementedError

    @property
    def _is_frozen(self) -> bool:
        """Whether training images are numbered by the `X` of an earlier `fit`."""
        return False

    def _uncached_features(self) -> list[str] | None:
        """Return the parameters that could give a cache to features fitted in `fit`.

        None stands for those of the estimators among its parameters.
        """
        return None

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

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the negative anomaly score of images: higher is more normal.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`. Colours must be RGB: images from OpenCV, which are BGR, would
            be flagged.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            At most 0. In the unit of `metric`; an ensemble divides by the score of a
            typical normal image.
        """
        check_is_fitted(self)
        images = check_new_images(X)
        scores = np.empty(len(images))
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                scores[seen.index] = seen.score
        return scores

    @available_if(lambda self: self._has_maps())
    def inspect(self, X: Any) -> Inspections:
        """Iterate over everything about each image, from one pass through the network.

        Use it to process a stream of images in bounded memory, or to get scores, labels
        and maps without computing features several times.

        Parameters
        ----------
        X : iterable of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`. An iterator, such as a generator that reads a camera, is
            consumed as a stream, which may have no end: up to 32 images are processed
            together, as many as arrive within 50 ms; after a longer pause, each is
            processed at once, until 32 have arrived without a pause. They are copied,
            so the stream may use the same buffer for each image.

        Returns
        -------
        inspections : generator of Inspection
            ``index`` (position in `X`), ``score``, ``decision``, ``label``, ``map``,
            ``mask``, ``map_threshold`` and ``regions``, and of a calibrated detector
            ``p_value`` and ``anomaly_score``, which are None otherwise. For a list of
            them, use ``list(detector.inspect(X))``. Images of a stream come in order,
            as do images of one size. If sizes differ in a sequence, some come later;
            sort by ``index`` if the order matters.

        Raises
        ------
        OSError, ValueError
            When an image is reached that cannot be used.
            :func:`~skpatchcore.scoring.score_images` continues after such images.

        Examples
        --------
        >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
        >>> from skpatchcore.datasets import make_surface_defects
        >>> surfaces = make_surface_defects(16, 1, 1, image_size=64, random_state=0)
        >>> features = PatchFeatureTransformer("gabor", ("fine",), image_size=64)
        >>> detector = PatchCoreDetector(features, random_state=0)
        >>> detector = detector.fit(surfaces.data, surfaces.target)
        >>> surfaces.target[-2:]
        array([-1,  1])
        >>> for seen in detector.inspect(surfaces.data[-2:]):
        ...     print(seen.index, seen.label, seen.map.shape, len(seen.regions))
        0 -1 (64, 64) 1
        1 1 (64, 64) 0
        """
        check_is_fitted(self)
        if is_stream(X):
            return inspect_stream(self._inspect, X)
        return self._inspect(check_new_images(X))

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
        X: Any,
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
        images = check_new_images(X)
        with closing(self._iter_maps(images, size, border)) as maps:
            if normalized:
                maps = ((i, self._normalize(values)) for i, values in maps)
            return gather(maps, len(images))

    @available_if(lambda self: self._has_maps())
    @validate_params({"threshold": [Real, None], "size": [_SIZES]})
    def predict_masks(
        self, X: Any, *, threshold: float | None = None, size: str = "original"
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
        images = check_new_images(X)
        threshold = self.map_threshold_ if threshold is None else threshold
        with closing(self._iter_maps(images, size)) as maps:
            masks = ((i, values > threshold) for i, values in maps)
            return gather(masks, len(images))

    def _iter_maps(
        self, images: Images, size: str, border: str = "nearest"
    ) -> Generator[tuple[int, NDArray], None, None]:
        """Yield (index, map) of each image, not always in order."""
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                yield seen.index, self._map(seen, size, border)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


class Reference(NamedTuple):
    """A detector with a memory bank, and which images its `X` in `fit` consisted of.

    `rows` are their positions in the `X` that the outermost detector was fitted on.
    None means that no number changes: it was fitted on that `X` itself, or was frozen
    and keeps the numbers of its own.
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

    The result is filled as they come, so that no array is held twice.
    """
    stacked: NDArray | None = None
    separate: list[NDArray] = []
    filled: list[int] = []
    for i, values in arrays:
        if not filled:
            stacked = np.empty((n, *values.shape), values.dtype)
        if stacked is not None and values.shape != stacked.shape[1:]:
            separate = [np.empty(0)] * n
            for j in filled:
                separate[j] = stacked[j].copy()
            stacked = None
        if stacked is None:
            separate[i] = values
        else:
            stacked[i] = values
        filled.append(i)
    return separate if stacked is None else stacked


def inspect_stream(
    inspect: Callable[[Images], Inspections], stream: Iterator[Any]
) -> Inspections:
    """Yield what `inspect` finds in the images of a stream, in their order."""
    for first, images, _ in check_stream(stream):
        with closing(inspect(images)) as inspections:
            found = in_order(inspections)
        for seen in found:
            yield replace(seen, index=first + seen.index)


def in_order(inspections: Iterable[Inspection]) -> list[Inspection]:
    """Return all inspections in the order of their images."""
    return sorted(inspections, key=lambda seen: seen.index)


def windows(images: Sequence, size: int = 32) -> Iterator[NDArray[np.int64]]:
    """Yield runs of positions, for detectors that take turns on a few images each."""
    for start in range(0, len(images), size):
        yield np.arange(start, min(start + size, len(images)))
