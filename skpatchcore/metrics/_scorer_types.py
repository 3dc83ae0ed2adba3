"""Kinds of scorers: of the scores of images, of their maps, and of both."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import check_consistent_length
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils import ScikitLearnScorer, num_samples, warn_user
from skpatchcore.datasets import read_masks
from skpatchcore.metrics._ranking import UndefinedMetricError

# The detectors are imported where they are needed, because metrics do not need torch.


class Metrics:
    """One metric or several, NaN with a warning where they are not defined.

    That is the case in a fold without anomalies, where an error would end the whole
    cross-validation or hide behind its tracebacks.

    Parameters
    ----------
    compute : callable
        Returns a float, or a dict of floats.
    *names : str
        Name of the metric, or keys of the dict.
    """

    def __init__(self, compute: Callable[..., Any], *names: str) -> None:
        self._compute = compute
        self._names = names
        # Scikit-learn looks up here whether there is a sample_weight.
        self.__signature__ = inspect.signature(compute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the metrics of a detector."""
        try:
            return self._compute(*args, **kwargs)
        except UndefinedMetricError as error:
            warn_user(
                f"{', '.join(self._names)} not defined, set to NaN: {error}",
                UndefinedMetricWarning,
            )
        if len(self._names) == 1:
            return np.nan
        return dict.fromkeys(self._names, np.nan)


class ImageScorer(ScikitLearnScorer):
    """Apply an image-level metric to the decisions of an estimator.

    A scorer of scikit-learn, so that several of them share one call of
    ``decision_function``.

    Parameters
    ----------
    name : str
        Name of the metric, which `LearningCurveDisplay` shows.
    metric : Metrics
        ``compute(y_true, y_score, *, sample_weight=None)``, a single one.
    """

    def __init__(self, name: str, metric: Metrics) -> None:
        super().__init__(metric, 1, {}, "decision_function")
        self.__name__ = name

    def _score(
        self, caller: Callable, estimator: Any, X: Any, y_true: Any, **kwargs: Any
    ) -> float:
        from skpatchcore._detectors import check_signs

        check_consistent_length(X, y_true)
        check_signs(estimator, X)
        return super()._score(caller, estimator, X, y_true, **kwargs)

    def __repr__(self) -> str:
        return f"{self.__name__}_scorer"

    def __sklearn_clone__(self) -> ImageScorer:
        return copy.deepcopy(self)


class RoutedScorer:
    """A scorer that gets metadata by metadata routing.

    Parameters
    ----------
    name : str
        Name of the metric, which `LearningCurveDisplay` shows.
    """

    #: Metadata that can be requested, and the default requests.
    requests: ClassVar[dict[str, bool | None]] = {}

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self._requests: dict[str, bool | str | None] = dict(self.requests)

    def set_score_request(self, **requests: bool | str | None) -> RoutedScorer:
        """Change which metadata are requested, and under which names.

        Parameters
        ----------
        **requests : bool, str or None
            For each of ``masks`` and, if the scorer accepts it, ``sample_weight``: True
            requests it; a str requests metadata of that name. False ignores it if it is
            passed, None raises an error then.

        Returns
        -------
        RoutedScorer
            The scorer itself, which is modified. To keep the original, modify
            ``sklearn.clone(scorer)`` instead.

        Raises
        ------
        RuntimeError
            If metadata routing is not enabled.
        TypeError
            If the scorer does not accept such metadata.
        ValueError
            If a request has another type, or is not a valid name.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                f"{self!r}.set_score_request has no effect until metadata routing is "
                "enabled by sklearn.set_config(enable_metadata_routing=True)."
            )
        unknown = requests.keys() - self._requests.keys()
        if unknown:
            raise TypeError(
                f"{self!r} accepts {', '.join(self._requests)}; got {sorted(unknown)}."
            )
        changed = self._requests | requests
        self._as_request(changed)  # Raises an error for an invalid name.
        self._requests = changed
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata that the scorer requests.

        Returns
        -------
        MetadataRequest
            Its requests for the method ``score``.
        """
        return self._as_request(self._requests)

    def _as_request(self, requests: dict[str, bool | str | None]) -> MetadataRequest:
        request = MetadataRequest(owner=repr(self))
        for name, alias in requests.items():
            request.score.add_request(param=name, alias=alias)
        return request

    def _check_masks(self, masks: Any) -> None:
        if masks is None:
            raise ValueError(
                f"{self!r} needs the ground-truth masks of the images, got "
                "masks=None. In searches and cross-validation, call "
                "sklearn.set_config(enable_metadata_routing=True) and pass the masks "
                "to search.fit(X, y, masks=masks) or cross_validate(..., "
                'params={"masks": masks}). If you call the scorer yourself, pass '
                "masks=masks to it."
            )

    def __repr__(self) -> str:
        return f"{self.__name__}_scorer"

    def __sklearn_clone__(self) -> RoutedScorer:
        return copy.copy(self)


class PixelScorer(RoutedScorer):
    """Apply a pixel-level metric to the anomaly maps of an estimator.

    It requests ``masks``: if metadata routing is enabled, `GridSearchCV` and
    `cross_validate` pass it those of each fold.

    Parameters
    ----------
    name : str
        Name of the metric.
    metric : Metrics
        ``compute(masks, maps)``.
    """

    requests = {"masks": True}

    def __init__(self, name: str, metric: Metrics) -> None:
        super().__init__(name)
        self._metric = metric

    def __call__(
        self, estimator: Any, X: Sequence[Any], y: Any = None, *, masks: Any = None
    ) -> float | dict[str, float]:
        """Compare the anomaly maps of images with their masks.

        Parameters
        ----------
        estimator : estimator
            A fitted detector with ``predict_maps``, a `Pipeline` that ends with one, or
            a search over either.
        X : sequence of length n_images
            Images, in any form that `estimator` accepts.
        y : object, default=None
            Ignored, present for compatibility with scikit-learn.
        masks : sequence of length n_images
            For each image, the path of its mask, an array (h, w), or None for no
            defect.

        Returns
        -------
        float or dict of str to float
            The metric, or each metric by its name, in [0, 1]. Higher is better.

        Raises
        ------
        TypeError
            If `estimator` does not provide anomaly maps.
        ValueError
            If `masks` is missing or does not fit the maps.

        Warns
        -----
        UndefinedMetricWarning
            If no pixel is anomalous, or none is normal; the result is NaN.
        """
        self._check_masks(masks)
        maps = _predict_maps(estimator, X)
        # Masks are compared with the maps, which are always arrays; X may be anything.
        return self._metric(read_masks(masks, maps), maps)


class DetectionScorer(RoutedScorer):
    """Apply image-level and pixel-level metrics, with one pass over the images.

    It requests ``masks``. If ``sample_weight`` is requested, too, it counts for the
    image-level metrics only.

    Parameters
    ----------
    name : str
        Name of the scorer.
    image_metrics : Metrics
        ``compute(y_true, y_score, *, sample_weight=None)``.
    pixel_metrics : Metrics
        ``compute(masks, maps)``.
    """

    requests = {"masks": True, "sample_weight": None}

    def __init__(self, name: str, image_metrics: Metrics, pixel_metrics: Metrics):
        super().__init__(name)
        self._image_metrics = image_metrics
        self._pixel_metrics = pixel_metrics

    def __call__(
        self,
        estimator: Any,
        X: Sequence[Any],
        y: Any,
        *,
        masks: Any = None,
        sample_weight: Any = None,
    ) -> dict[str, float]:
        """Compare scores with labels, and anomaly maps with masks.

        Parameters
        ----------
        estimator : estimator
            As for the scorers of maps.
        X : sequence of length n_images
            Images, in any form that `estimator` accepts.
        y : array-like of shape (n_images,)
            +1 for normal and -1 for anomalous images.
        masks : sequence of length n_images
            For each image, the path of its mask, an array (h, w), or None for no
            defect.
        sample_weight : array-like of shape (n_images,) or None, default=None
            Weight of each image in the image-level metrics.

        Returns
        -------
        dict of str to float
            Each metric by its name, in [0, 1]. Higher is better.

        Raises
        ------
        TypeError
            If `estimator` does not provide anomaly maps.
        ValueError
            If `masks` is missing or does not fit the maps, or a label is neither +1 nor
            -1.

        Warns
        -----
        UndefinedMetricWarning
            If no image or pixel is anomalous, or none is normal; the metrics that need
            both are NaN.
        """
        self._check_masks(masks)
        check_consistent_length(X, y)
        scores, maps = _scores_and_maps(estimator, X)
        of_images = self._image_metrics(y, scores, sample_weight=sample_weight)
        return of_images | self._pixel_metrics(read_masks(masks, maps), maps)


def _predict_maps(estimator: Any, X: Any) -> Any:
    from skpatchcore._detectors import find_maps

    found = find_maps(estimator)
    check_is_fitted(found.detector)
    return found.detector.predict_maps(found.prepare(X))


def _scores_and_maps(estimator: Any, X: Any) -> tuple[NDArray, Any]:
    """Return decisions and maps of images, from one pass over them if possible."""
    from skpatchcore._detectors import check_signs, find_maps, gather

    found = find_maps(estimator)
    if not hasattr(found.detector, "inspect"):
        maps = _predict_maps(estimator, X)
        check_signs(estimator, X)
        return estimator.decision_function(X), maps
    scores = np.empty(num_samples(X))

    def inspect() -> Iterator[tuple[int, NDArray]]:
        with closing(found.inspect(X)) as inspections:
            for seen in inspections:
                scores[seen.index] = seen.decision
                yield seen.index, seen.map

    maps = gather(inspect(), len(scores))
    return scores, maps
