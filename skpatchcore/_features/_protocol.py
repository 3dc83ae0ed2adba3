"""What a detector relies on in the estimator that it is given as `features`."""

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

    `PatchFeatureTransformer` and its subclasses are such estimators. Any other must be
    an estimator of scikit-learn with these methods; images are arrays (h, w, 3) of
    float32 in [0, 1].
    """

    def _fit_extract(self, images: Sequence[NDArray]) -> PatchGrids:
        """Fit, and return the patch features of the same images."""

    def _iter_projected(
        self, images: Sequence[NDArray]
    ) -> Generator[tuple[list[int], NDArray, list[Geometry]], None, None]:
        """Yield (indices, features (b, h, w, d), geometries) of a few images each."""


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
        One that keeps to the protocol `PatchFeatures`, or a `FrozenEstimator` around
        one that is fitted.

    Returns
    -------
    features : estimator
        The same. A `FrozenEstimator` becomes a `FrozenFeatures`.

    Raises
    ------
    TypeError
        If it is anything else.
    NotFittedError
        If a frozen estimator is not fitted.
    """
    inner = thaw(features)
    if isinstance(inner, type) or not isinstance(inner, PatchFeatures):
        raise TypeError(
            f"features={features!r:.100} gives no grids of patch features. Expected a "
            "PatchFeatureTransformer, a subclass, a FrozenEstimator around a fitted "
            "one, or None. A transformer of patch features goes into its parameter "
            "projection; for features computed elsewhere use PatchMemoryBank."
        )
    if inner is features:
        return features
    check_is_fitted(inner)
    return FrozenFeatures(inner)
