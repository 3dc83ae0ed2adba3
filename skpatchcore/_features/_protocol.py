"""The protocol of estimators that a detector accepts as `features`."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from skpatchcore._features._patch_grids import PatchGrids, collect_grids
from skpatchcore._images import Geometry


@runtime_checkable
class PatchFeatures(Protocol):
    """Estimators that turn images into grids of patch features.

    `PatchFeatureTransformer` and its subclasses implement it. Any other class must be a
    scikit-learn estimator with these methods. Images are arrays (h, w, 3) of float32 in
    [0, 1].
    """

    def _fit_extract(self, images: Sequence[NDArray]) -> PatchGrids:
        """Fit, and return the patch features of the same images."""

    def _iter_projected(
        self, images: Sequence[NDArray]
    ) -> Generator[tuple[list[int], NDArray, list[Geometry]], None, None]:
        """Yield (indices, features (b, h, w, d), geometries), batch by batch."""


class FrozenFeatures(FrozenEstimator):
    """Fitted features that a detector uses without fitting them again."""

    def _fit_extract(self, images: Sequence[NDArray]) -> PatchGrids:
        with closing(self._iter_projected(images)) as batches:
            return collect_grids(batches, len(images))


def thaw(features: Any) -> Any:
    """Return the features inside a `FrozenEstimator`, and all others unchanged."""
    while isinstance(features, FrozenEstimator):
        features = features.estimator
    return features


def check_features(features: Any) -> Any:
    """Return `features` if a detector can use it.

    Parameters
    ----------
    features : estimator
        An estimator that implements `PatchFeatures`, or a `FrozenEstimator` around such
        an estimator that is fitted.

    Returns
    -------
    features : estimator
        The same object, or a `FrozenFeatures` in place of a `FrozenEstimator`.

    Raises
    ------
    TypeError
        If `features` is anything else.
    NotFittedError
        If a frozen estimator is not fitted.
    """
    inner = thaw(features)
    if isinstance(inner, type) or not isinstance(inner, PatchFeatures):
        raise TypeError(
            f"features={features!r:.100} does not produce grids of patch features. "
            "Expected a PatchFeatureTransformer, a subclass, a FrozenEstimator around "
            "a fitted one, or None. Pass a transformer of patch features as the "
            "parameter projection of PatchFeatureTransformer. For features that you "
            "computed yourself, use PatchMemoryBank."
        )
    if inner is features:
        return features
    check_is_fitted(inner)
    return FrozenFeatures(inner)
