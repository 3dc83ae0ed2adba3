"""The detector of images in a pipeline, a search or a frozen estimator."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skpatchcore._detectors._base import ImageDetector, Reference
from skpatchcore._detectors._inspection import Inspection
from skpatchcore._utils import BaseSearchCV


class FoundDetector(NamedTuple):
    """A detector of images, and the transformers of pipelines in front of it."""

    detector: ImageDetector
    steps: tuple[Any, ...] = ()

    def prepare(self, X):
        """Return what the detector is given if its pipeline is given `X`."""
        for step in self.steps:
            X = step.transform(X)
        return X

    def inspect(self, X) -> Iterator[Inspection]:
        """Yield what the detector finds in each image."""
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


def find_detector(estimator) -> FoundDetector:
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


def find_maps(estimator) -> FoundDetector:
    """Do as `find_detector`, but accept anything that has ``predict_maps``."""
    inner, steps = unwrap(estimator)
    if not hasattr(inner, "predict_maps"):
        where = "" if inner is estimator else f", which ends in {inner!r:.80}"
        raise TypeError(
            "Expected a detector with predict_maps: PatchCoreDetector, "
            "PatchCoreEnsemble, or ConformalDetector or TunedThresholdDetector around "
            "one; also a Pipeline, a search or a FrozenEstimator of one. Got "
            f"{estimator!r:.80}{where}."
        )
    return FoundDetector(inner, tuple(steps))


def unwrap(estimator) -> tuple[Any, list]:
    """Return what decides in a pipeline, a search or a frozen estimator.

    Also the transformers of pipelines in front of it. Of a fitted search,
    ``best_estimator_`` counts.
    """
    steps: list[Any] = []
    while True:
        if isinstance(estimator, Pipeline):
            *before, (_, last) = estimator.steps
            steps += [step for _, step in before if step not in (None, "passthrough")]
            estimator = last
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, BaseSearchCV | FrozenEstimator):
            estimator = estimator.estimator
        else:
            return estimator, steps


def has_maps(estimator) -> bool:
    """Return whether `find_detector` finds a detector."""
    try:
        find_detector(estimator)
    except TypeError:
        return False
    return True
