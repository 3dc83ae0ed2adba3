"""What is inside a pipeline, a search or a frozen estimator.

That is the detector of images, and the feature transformers that its `fit` will fit.
Nothing else in the package asks what kind of estimator it was given.
"""

from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors._base import (
    ImageDetector,
    Inspections,
    Reference,
    inspect_stream,
)
from skpatchcore._features import PatchFeatures, thaw
from skpatchcore._images import Images, check_images, is_stream
from skpatchcore._utils import BaseSearchCV


class FoundDetector(NamedTuple):
    """A detector of images, and the transformers of pipelines in front of it."""

    detector: ImageDetector
    steps: tuple[Any, ...] = ()

    def prepare(self, X: Any) -> Any:
        """Return what the detector is given if its pipeline is given `X`."""
        if not self.steps:
            return X
        prepared = _as_given(X) if isinstance(X, Images) else X
        for step in self.steps:
            prepared = step.transform(prepared)
        return _renumbered(prepared, X) if isinstance(X, Images) else prepared

    def inspect(self, X: Any) -> Inspections:
        """Yield what the detector finds in each image of a sequence or stream."""
        if self.steps and is_stream(X):
            return inspect_stream(self.inspect, X)
        return self.detector.inspect(self.prepare(X))

    def references(self) -> list[Reference]:
        """Return what `ImageDetector._references` does.

        Raises
        ------
        TypeError
            If there are transformers, which may move patches to other places.
        """
        if self.steps:
            raise TypeError(
                f"Patches cannot be located in images that {self.steps[0]!r:.80} "
                "transforms before the detector; transform the images yourself, and "
                "pass the detector at the end of the pipeline."
            )
        return self.detector._references()


def find_detector(estimator: Any) -> FoundDetector:
    """Return the detector in a pipeline, a search or a frozen estimator.

    Parameters
    ----------
    estimator : estimator
        An `ImageDetector`; a `Pipeline` that ends in one; a search over one, of which
        ``best_estimator_`` counts once it is fitted; a `FrozenEstimator`; or any of
        these inside another.

    Returns
    -------
    found : FoundDetector

    Raises
    ------
    TypeError
        If there is none, or one without maps.
    """
    found = find_maps(estimator)
    if not isinstance(found.detector, ImageDetector):
        raise TypeError(
            "Expected a PatchCoreDetector, PatchCoreEnsemble, ConformalDetector or "
            f"TunedThresholdDetector, or another ImageDetector; got {estimator!r:.80}."
        )
    return found


def find_maps(estimator: Any) -> FoundDetector:
    """Do as `find_detector`, but accept anything that has ``predict_maps``."""
    inner, steps = unwrap(estimator)
    if not hasattr(inner, "predict_maps"):
        where = "" if inner is estimator else f", which ends in {inner!r:.80}"
        raise TypeError(
            "Expected a detector with predict_maps: PatchCoreDetector, "
            "PatchCoreEnsemble, or ConformalDetector or TunedThresholdDetector around "
            "one; also a Pipeline, a search or a FrozenEstimator of one. Got "
            f"{estimator!r:.80}{where}.{advise_detector(estimator)}"
        )
    return FoundDetector(inner, tuple(steps))


def advise_detector(estimator: Any) -> str:
    """Return what to use instead of a pipeline of features and a memory bank.

    It is empty for anything that does not contain such a pipeline.
    """
    inner, steps = unwrap(estimator)
    if not isinstance(inner, PatchMemoryBank):
        wrapped = getattr(inner, "estimator", None)
        return "" if wrapped is None else advise_detector(wrapped)
    if not any(isinstance(thaw(step), PatchFeatures) for step in steps):
        return ""
    return (
        " A pipeline of PatchFeatureTransformer and PatchMemoryBank has only "
        "scores. Use PatchCoreDetector(features, sampler, ...) instead, which also has "
        "maps and model files: pass the transformer as features, and the sampler and "
        "other parameters of the bank."
    )


def has_maps(estimator: Any) -> bool:
    """Return whether `find_detector` finds a detector."""
    try:
        find_detector(estimator)
    except TypeError:
        return False
    return True


def unwrap(estimator: Any) -> tuple[Any, list[Any]]:
    """Return the last estimator in a pipeline, a search or a frozen estimator.

    It comes with the transformers of pipelines in front of it. Of a fitted search,
    ``best_estimator_`` counts.
    """
    steps: list[Any] = []
    while (wrapped := _open(estimator)) is not None:
        estimator, before = wrapped
        steps += before
    return estimator, steps


def check_refitted(estimator: Any) -> None:
    """Raise an error if a search has not fitted its best detector.

    The detector in it, which `unwrap` returns, is then not what the search has found.
    """
    while (wrapped := _open(estimator)) is not None:
        if isinstance(estimator, BaseSearchCV) and wrapped[0] is estimator.estimator:
            raise NotFittedError(
                f"This {type(estimator).__name__} has no best_estimator_. Fit it, with "
                "refit=True; or pass a detector that you fitted with its best_params_."
            )
        estimator, _ = wrapped


def is_frozen(estimator: Any) -> bool:
    """Return whether an estimator keeps what a detector learned before its own `fit`.

    That detector numbers training images by the `X` that it was fitted on.
    """
    while not isinstance(estimator, FrozenEstimator):
        wrapped = _open(estimator)
        if wrapped is None:
            return getattr(estimator, "_is_frozen", False)
        estimator, _ = wrapped
    return True


def uncached_features(estimator: Any) -> list[str]:
    """Return the parameters that could give a cache to an estimator's features.

    Parameters
    ----------
    estimator : estimator
        A feature transformer, a detector, or any estimator that has such parts in its
        parameters.

    Returns
    -------
    names : list of str
        Such as ``"detector__features__memory"``: one for each feature transformer that
        `fit` will fit and that has no cache. `set_params` accepts them.
    """
    if isinstance(estimator, FrozenEstimator):
        return []
    if isinstance(estimator, PatchFeatures):
        no_cache = getattr(estimator, "memory", "") is None
        return ["memory"] if no_cache else []
    own = getattr(estimator, "_uncached_features", lambda: None)()
    if own is not None:
        return own
    return [
        f"{name}__{parameter}"
        for name, part in _parts(estimator).items()
        for parameter in uncached_features(part)
    ]


def is_search(estimator: Any) -> bool:
    """Return whether `fit` fits copies of an estimator in it again and again."""
    parts = _parts(estimator).values()
    return isinstance(estimator, BaseSearchCV) or any(map(is_search, parts))


def _parts(estimator: Any) -> dict[str, Any]:
    """Return the estimators among the parameters of an estimator, by name."""
    if not hasattr(estimator, "get_params") or isinstance(estimator, type):
        return {}
    return {
        name: value
        for name, value in estimator.get_params().items()
        if "__" not in name and hasattr(value, "get_params")
    }


def _open(estimator: Any) -> tuple[Any, list[Any]] | None:
    """Return what is directly inside, and the transformers before it; None: nothing."""
    if isinstance(estimator, Pipeline):
        *before, (_, last) = estimator.steps
        return last, [s for _, s in before if s is not None and s != "passthrough"]
    if hasattr(estimator, "best_estimator_"):
        return estimator.best_estimator_, []
    if isinstance(estimator, BaseSearchCV | FrozenEstimator):
        return estimator.estimator, []
    return None


def _as_given(images: Images) -> Any:
    """Return images as a user passes them: transformers know no `Images`.

    Arrays of one shape and dtype are stacked, since a transformer may compute with `X`
    as a whole. Nothing is decoded or scaled.
    """
    sources = list(images.sources)
    kinds = {(getattr(s, "shape", None), getattr(s, "dtype", None)) for s in sources}
    is_array = all(isinstance(source, np.ndarray) for source in sources)
    return np.stack(sources) if is_array and len(kinds) == 1 else sources


def _renumbered(prepared: Any, images: Images) -> Images:
    """Return what transformers made of images, under the names of these."""
    made = check_images(prepared)
    if len(made) != len(images):
        raise ValueError(
            f"The transformers before the detector made {len(made)} images of "
            f"{len(images)}; they must return one image for each that they are given."
        )
    return Images(made.sources, images.names)
