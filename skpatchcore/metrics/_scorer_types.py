"""Scorers of anomaly maps that get ground-truth masks by metadata routing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from sklearn import get_config
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_is_fitted

from skpatchcore.datasets import read_masks


class PixelScorer:
    """Apply a pixel-level metric to the anomaly maps of an estimator.

    It follows scikit-learn's scorer interface. It requests ``masks``: if metadata
    routing is enabled, `GridSearchCV` and `cross_validate` pass it those of each fold.

    Parameters
    ----------
    name : str
        Name of the scorer in its repr and in messages.
    metric : callable
        ``metric(masks, maps)``, which returns a float or a dict of floats.
    """

    def __init__(
        self, name: str, metric: Callable[[Any, Any], float | dict[str, float]]
    ) -> None:
        self._name = name
        self._metric = metric
        self._masks_request: bool | str | None = True

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
            The result of the metric, in [0, 1]. Higher is better.

        Raises
        ------
        TypeError
            If `estimator` does not provide anomaly maps.
        ValueError
            If `masks` is missing or does not fit the maps, or if the metric is not
            defined, for example because no pixel is anomalous.
        """
        if masks is None:
            raise ValueError(
                f"{self._name} needs the ground-truth masks of the images, got "
                "masks=None. In searches and cross-validation, call "
                "sklearn.set_config(enable_metadata_routing=True) and pass the masks "
                "to search.fit(X, y, masks=masks) or cross_validate(..., "
                'params={"masks": masks}). If you call the scorer yourself, pass '
                "masks=masks to it."
            )
        # Imported here, because the metrics themselves do not need torch.
        from skpatchcore._detectors import find_maps

        found = find_maps(estimator)
        check_is_fitted(found.detector)
        maps = found.detector.predict_maps(found.prepare(X))
        # Masks are compared with the maps, which are always arrays; X may be anything.
        return self._metric(read_masks(masks, maps), maps)

    def set_score_request(self, *, masks: bool | str | None) -> PixelScorer:
        """Change whether, or under which name, masks are requested.

        Parameters
        ----------
        masks : bool, str or None
            True requests ``masks``; a str requests metadata of that name. False ignores
            masks if they are passed, None raises an error then.

        Returns
        -------
        PixelScorer
            The scorer itself, which is modified. To keep the original, modify
            ``sklearn.clone(scorer)`` instead.

        Raises
        ------
        RuntimeError
            If metadata routing is not enabled.
        ValueError
            If `masks` has another type, or is not a valid name.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                f"{self._name}.set_score_request has no effect until metadata routing "
                "is enabled by sklearn.set_config(enable_metadata_routing=True)."
            )
        self._request(masks)  # Raises an error for an invalid name.
        self._masks_request = masks
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata that the scorer requests.

        Returns
        -------
        MetadataRequest
            The request of ``masks`` for the method ``score``.
        """
        return self._request(self._masks_request)

    def _request(self, masks: bool | str | None) -> MetadataRequest:
        request = MetadataRequest(owner=self._name)
        request.score.add_request(param="masks", alias=masks)
        return request

    def __repr__(self) -> str:
        return self._name

    def __sklearn_clone__(self) -> PixelScorer:
        return copy.copy(self)
