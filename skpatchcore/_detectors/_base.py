"""What detectors of images have in common: scores, decisions, maps and masks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from numbers import Real

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted

from skpatchcore._images import check_images
from skpatchcore._utils import labels_from_decision


class ImageDetectorMixin(OutlierMixin):
    """Methods of detectors that look at an image once for its score and its map.

    A class has ``_inspect(images)``, which yields, not always in order, what has an
    ``index`` and a ``score``; ``_map(seen, size, rim)`` for the map of that;
    ``training_scores_``, ``offset_`` and ``map_threshold_``.
    """

    def fit_predict(self, X, y=None):
        """Fit, and decide on the same images.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        y : array-like of shape (n,) or None, default=None
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 for normal and -1 for anomalous images.
        """
        self.fit(X, y)
        if y is None:
            # The scores are there; a second pass through networks is saved.
            return labels_from_decision(self.training_scores_ - self.offset_)
        return self.predict(X)

    def score_samples(self, X):
        """Return the negative anomaly score of images: higher is more normal.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            At most 0, in the unit of the `metric` of a detector, and of what a typical
            normal image gets from an ensemble.
        """
        check_is_fitted(self)
        images = self._validate_images(X, reset=False)
        scores = np.empty(len(images))
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                scores[seen.index] = seen.score
        return scores

    def decision_function(self, X):
        """Return ``score_samples(X) - offset_``: negative for anomalous images.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            Higher is more normal; 0 is still normal.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Decide whether images are normal.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 for normal and -1 for anomalous images.
        """
        return labels_from_decision(self.decision_function(X))

    @validate_params(
        {
            "size": [StrOptions({"original", "resized", "grid"})],
            "rim": [StrOptions({"nearest", "nan"})],
        },
        prefer_skip_nested_validation=True,
    )
    def predict_maps(self, X, *, size="original", rim="nearest"):
        """Return anomaly maps: higher is more anomalous.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        size : {"original", "resized", "grid"}, default="original"
            "original" maps have the pixels of the image as it was given; "resized"
            those of the network's input, after resizing and cropping; "grid" is one
            unsmoothed value per patch.

        rim : {"nearest", "nan"}, default="nearest"
            What "original" maps hold where `crop_size` removed the image: the value
            of the nearest pixel seen, or NaN, which marks the pixels nobody looked at.

        Returns
        -------
        maps : ndarray of shape (n, height, width), float32
            In the unit of scores; a list of n arrays if their sizes differ.
        """
        check_is_fitted(self)
        images = self._validate_images(X, reset=False)
        with closing(self._iter_maps(images, size, rim)) as maps:
            return _gather(maps, len(images))

    @validate_params(
        {
            "threshold": [Real, None],
            "size": [StrOptions({"original", "resized", "grid"})],
        },
        prefer_skip_nested_validation=True,
    )
    def predict_masks(self, X, *, threshold=None, size="original"):
        """Return where images are anomalous.

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
        images = self._validate_images(X, reset=False)
        threshold = self.map_threshold_ if threshold is None else threshold
        with closing(self._iter_maps(images, size)) as maps:
            masks = ((i, values > threshold) for i, values in maps)
            return _gather(masks, len(images))

    def _validate_images(self, X, *, reset: bool) -> Sequence[np.ndarray]:
        """Return the images as a sequence of arrays (h, w, c), decoded on access."""
        return check_images(X)

    def _iter_maps(self, images, size: str, rim: str = "nearest") -> Iterator[tuple]:
        """Yield (index, map) of each image, not always in their order."""
        with closing(self._inspect(images)) as inspections:
            for seen in inspections:
                yield seen.index, self._map(seen, size, rim)

    def _peak(self, seen) -> float:
        """Return the largest value of an image's map."""
        # Enlarging or shrinking a map interpolates: it cannot exceed this.
        return self._map(seen, "resized").max()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _gather(arrays: Iterable[tuple[int, np.ndarray]], n: int):
    """Return n arrays, given with their indices, as one, or as a list if shapes differ.

    One array is filled as they come: outputs are not held twice.
    """
    gathered, filled = None, []
    for i, values in arrays:
        if gathered is None:
            gathered = np.empty((n, *values.shape), values.dtype)
        if isinstance(gathered, np.ndarray) and values.shape != gathered.shape[1:]:
            earlier = {j: gathered[j].copy() for j in filled}
            gathered = [earlier.get(j) for j in range(n)]
        gathered[i] = values
        filled.append(i)
    return gathered
