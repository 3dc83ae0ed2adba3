"""Estimators fitted without some samples, to see what they give for these."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold, check_cv
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer


def fit_clone(estimator, X, rows: np.ndarray):
    """Return a clone of `estimator`, fitted on some rows of `X`."""
    # A frozen estimator is its own clone, and has nothing to fit.
    estimator = clone(estimator)
    if isinstance(estimator, FrozenEstimator):
        check_is_fitted(estimator)
        return estimator
    return estimator.fit(_safe_indexing(X, rows))


def held_out_splits(cv, X, rows: np.ndarray, random_state) -> list[tuple]:
    """Return pairs of positions in `rows`: to fit on, and held out, each once."""
    given, cv = cv, check_cv(cv)
    if isinstance(cv, KFold) and cv is not given:
        cv = KFold(cv.n_splits, shuffle=True, random_state=random_state)
    splits = list(cv.split(_safe_indexing(X, rows)))
    n_times = Counter(chain.from_iterable(test for _, test in splits))
    once = Counter(range(len(rows)))
    wrong = [i for i in once | n_times if n_times[i] != once[i]]
    if wrong:
        place = wrong[0]
        row = rows[place] if place in once else place
        raise ValueError(
            f"cv={given} must hold each of {len(rows)} normal rows out exactly once, "
            f"but holds row {row} out {n_times[place]} times."
        )
    return splits


@contextmanager
def features_once(estimator, n_fits: int) -> Iterator[tuple[object, Callable]]:
    """Yield an estimator whose clones pass a picture through the network only once.

    It comes with a function that makes fitted clones forget the folder that layer maps
    were kept in for the time being.
    """
    if n_fits == 1 or not any(map(_extracts_again, _detectors(estimator))):
        yield estimator, lambda fitted: None
        return

    def give_back(fitted):
        for one in fitted:
            _give_back(one, estimator)

    with TemporaryDirectory(prefix="skpatchcore-") as folder:
        remembering = clone(estimator)
        for detector in filter(_extracts_again, _detectors(remembering)):
            detector.set_params(features__memory=folder)
        yield remembering, give_back


def _detectors(estimator) -> Iterator[PatchCoreDetector]:
    """Yield the detectors that an unfitted estimator, or ensemble, will fit."""
    if isinstance(estimator, PatchCoreDetector):
        yield estimator
    elif hasattr(estimator, "_members") and estimator.memory is None:
        for _, member in estimator._members():
            yield from _detectors(member)


def _extracts_again(detector: PatchCoreDetector) -> bool:
    if detector.memory is not None:
        return False
    features = detector.features
    if features is None:
        return True
    return isinstance(features, PatchFeatureTransformer) and features.memory is None


def _give_back(fitted, given) -> None:
    """Give a fitted estimator the parameters of the one that was given."""
    if hasattr(given, "_members"):
        pairs = zip(fitted.estimators_, given._members(), strict=True)
        for part, (_, member) in pairs:
            _give_back(part, member)
        fitted.estimators = clone(given).estimators
    elif _extracts_again(given):
        fitted.features = None if given.features is None else clone(given.features)
        fitted.features_.memory = None
