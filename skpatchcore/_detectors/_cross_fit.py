"""Fit estimators without some samples, to score these as new ones."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from tempfile import TemporaryDirectory

import numpy as np
from sklearn import get_config
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils import Bunch, column_or_1d
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.validation import (
    check_is_fitted,
    has_fit_parameter,
)

from skpatchcore._detectors._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._utils import check_method_params, safe_indexing


def route_fit(detector, inner, groups, params: Mapping) -> Bunch:
    """Return what `detector.fit` passes on: ``estimator.fit`` and ``splitter.split``.

    Without metadata routing `groups` goes to the splitter, and to `inner`, the
    estimator to fit, if its ``fit`` takes groups; other `params` are an error.
    """
    if get_config()["enable_metadata_routing"]:
        given = params if groups is None else {**params, "groups": groups}
        return process_routing(detector, "fit", **given)
    if params:
        raise TypeError(
            f"{type(detector).__name__}.fit got unexpected arguments {sorted(params)}. "
            "To pass them on to the estimator, call "
            "sklearn.set_config(enable_metadata_routing=True) and request them with "
            "estimator.set_fit_request(...)."
        )
    given = {} if groups is None else {"groups": groups}
    takes_groups = has_fit_parameter(inner, "groups")
    return Bunch(
        estimator=Bunch(fit=given if takes_groups else {}), splitter=Bunch(split=given)
    )


def fit_clone(estimator, X, rows: np.ndarray, params: Mapping | None = None):
    """Return a clone of `estimator`, fitted on some rows of `X` and of `params`."""
    # A frozen estimator is its own clone, and has nothing to fit.
    estimator = clone(estimator)
    if isinstance(estimator, FrozenEstimator):
        check_is_fitted(estimator)
        return estimator
    params = check_method_params(X, params or {}, rows)
    return estimator.fit(safe_indexing(X, rows), **params)


def held_out_splits(
    cv, X, rows: np.ndarray, random_state, *, y=None, groups=None, params=None
) -> list[tuple]:
    """Return pairs of positions in `rows`: to fit on, and held out, each once.

    Parameters
    ----------
    cv : int, splitter, iterable or None
        An int, or None for 5, is a shuffled `KFold`, or `GroupKFold` if there are
        `groups`.
    X : array-like or sequence of images
        All samples.
    rows : ndarray of shape (n_rows,), int64
        Rows to divide.
    random_state : int, RandomState instance or None
        Shuffles them.
    y : array-like of shape (n_samples,) or None
        Labels for the splitter; +1 for all rows if None.
    groups : ndarray of shape (n_samples,), int, or None
        No group may be on both sides of a split.
    params : dict or None
        Further arguments of a splitter that was passed as `cv`.
    """
    given, cv, params = cv, check_cv(cv), params or {}
    if isinstance(cv, KFold) and cv is not given:
        folds = KFold if groups is None else GroupKFold
        cv = folds(cv.n_splits, shuffle=True, random_state=random_state)
        params = {} if groups is None else {"groups": groups}
    labels = np.ones(len(rows), int) if y is None else column_or_1d(y)[rows]
    params = check_method_params(X, params, rows)
    splits = split_samples(cv, safe_indexing(X, rows), labels, params)
    n_times = Counter(chain.from_iterable(test for _, test in splits))
    once = Counter(range(len(rows)))
    wrong = [i for i in once | n_times if n_times[i] != once[i]]
    if wrong:
        place = wrong[0]
        row = rows[place] if place in once else place
        raise ValueError(
            f"cv={given} has row {row} in {n_times[place]} test folds; each of the "
            f"{len(rows)} normal rows must be in exactly one."
        )
    check_apart(given, splits, rows, groups)
    return splits


def split_samples(cv, X, y, params: Mapping) -> list[tuple]:
    """Return the splits of a splitter, which may or may not take groups."""
    with warnings.catch_warnings():
        # Splitters without groups say so; `check_apart` decides whether it matters.
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        return list(cv.split(X, y, **params))


def check_apart(cv, splits: list[tuple], rows: np.ndarray, groups) -> None:
    """Raise if a row, or a group, is on both sides of a split of `rows`."""
    units = rows if groups is None else groups[rows]
    for fold, (train, test) in enumerate(splits):
        both = np.isin(units[test], units[train])
        if not both.any():
            continue
        row = rows[test[np.argmax(both)]]
        if groups is None:
            raise ValueError(
                f"cv={cv} has row {row} on both sides of split {fold}; a row must not "
                "be scored by an estimator that was fitted on it."
            )
        raise ValueError(
            f"cv={cv} has the group of row {row} on both sides of split {fold}: some "
            "of its samples are fitted on, others held out. Use a splitter that keeps "
            "groups together, such as GroupKFold, LeaveOneGroupOut or OneClassKFold, "
            "or an int."
        )


@contextmanager
def features_once(estimator, n_fits: int) -> Iterator[tuple[object, Callable]]:
    """Yield an estimator whose clones pass an image through the network only once.

    Layer maps are kept in a temporary folder. The function that comes with the
    estimator removes that folder from the parameters of fitted clones.
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
