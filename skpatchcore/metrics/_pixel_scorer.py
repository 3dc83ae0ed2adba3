"""Scorers of anomaly maps, which get the ground-truth masks by metadata routing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from sklearn import get_config
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import check_is_fitted

from skpatchcore.datasets import read_masks


class PixelScorer:
    """Call a pixel-level metric on the anomaly maps of an estimator.

    A scorer as scikit-learn means it: it asks for ``masks``, which `GridSearchCV` and
    `cross_validate` hand over, cut to each fold, if metadata routing is enabled.

    Parameters
    ----------
    name : str
        What the scorer is called in its repr and in messages.
    metric : callable
        ``metric(masks, maps)``, giving a float or a dict of them.
    """

    def __init__(self, name: str, metric: Callable) -> None:
        self._name = name
        self._metric = metric
        self._masks_request: bool | str | None = True

    def __call__(
        self, estimator: Any, X: Sequence, y: Any = None, *, masks: Any = None
    ) -> float | dict[str, float]:
        """Compare the maps of images with their masks.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``predict_maps``; or a `Pipeline` whose last step is such a
            one, or a search over any of these.
        X : sequence of length n_images
            Images, as `estimator` takes them.
        y : object, default=None
            Ignored, present for scikit-learn's interface.
        masks : sequence of length n_images
            For each image the path of its mask, an array (h, w), or None for no
            defect.

        Returns
        -------
        float or dict of str to float
            What the metric gives, in [0, 1], higher is better.

        Raises
        ------
        TypeError
            If there are no maps to be had from `estimator`.
        ValueError
            If `masks` is missing or does not fit the maps, or the metric is not
            defined, as when no pixel is anomalous.
        """
        if masks is None:
            raise ValueError(
                f"{self._name} needs the ground-truth masks of the images, got "
                "masks=None. In searches and cross-validation, call "
                "sklearn.set_config(enable_metadata_routing=True) and pass them to "
                'search.fit(X, y, masks=masks) or cross_validate(..., params={"masks": '
                "masks}); elsewhere, pass masks= to the scorer."
            )
        # Imported late: metrics on their own need no torch.
        from skpatchcore._detectors import find_maps

        found = find_maps(estimator)
        check_is_fitted(found.detector)
        maps = found.detector.predict_maps(found.prepare(X))
        # A mask is as large as its map, whatever form its image has in X.
        return self._metric(read_masks(masks, maps), maps)

    def set_score_request(self, *, masks: bool | str | None) -> PixelScorer:
        """Change under which name, or whether, masks are asked for.

        Parameters
        ----------
        masks : bool, str or None
            True asks for ``masks``, a str for metadata of that name. False ignores
            masks that are given, None refuses them.

        Returns
        -------
        PixelScorer
            The scorer itself, which is changed; ``sklearn.clone(scorer)`` leaves it as
            it is.

        Raises
        ------
        RuntimeError
            If metadata routing is not enabled.
        ValueError
            If `masks` is none of these.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                f"{self._name}.set_score_request has no effect until metadata routing "
                "is enabled by sklearn.set_config(enable_metadata_routing=True)."
            )
        self._request(masks)  # Raises for a name that could not be passed.
        self._masks_request = masks
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return which metadata the scorer asks for.

        Returns
        -------
        MetadataRequest
            That of ``masks``, for the method ``score``.
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
