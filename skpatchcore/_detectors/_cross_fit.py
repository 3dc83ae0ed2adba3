"""Fit estimators without some samples, to score these as new ones."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from itertools import chain
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
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

from skpatchcore._detectors._find import is_search, uncached_features
from skpatchcore._detectors._signs import refuse_decision_scores
from skpatchcore._utils import check_method_params, safe_indexing


def route_fit(
    detector: Any, inner: Any, groups: NDArray | None, params: Mapping[str, Any]
) -> Bunch:
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


def fit_clone(
    estimator: Any, X: Any, rows: np.ndarray, params: Mapping | None = None
) -> Any:
    """Return a clone of `estimator`, fitted on some rows of `X` and of `params`."""
    if isinstance(estimator, FrozenEstimator):
        # Detectors of pyod cannot be asked whether they are fitted.
        refuse_decision_scores(estimator)
        check_is_fitted(estimator)
        # A copy: the parameter of the frozen estimator may be set after the fit.
        return copy(estimator)
    estimator = clone(estimator)
    params = check_method_params(X, params or {}, rows)
    return estimator.fit(safe_indexing(X, rows), **params)


def held_out_splits(
    cv: Any,
    X: Any,
    rows: NDArray[np.int64],
    random_state: int | np.random.RandomState | None,
    *,
    y: Any = None,
    groups: NDArray | None = None,
    params: Mapping[str, Any] | None = None,
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


def split_samples(cv: Any, X: Any, y: Any, params: Mapping[str, Any]) -> list[tuple]:
    """Return the splits of a splitter, which may or may not take groups."""
    with warnings.catch_warnings():
        # Splitters without groups say so; `check_apart` decides whether it matters.
        warnings.filterwarnings("ignore", "The groups parameter is ignored")
        return list(cv.split(X, y, **params))


def check_apart(
    cv: Any, splits: list[tuple], rows: NDArray[np.int64], groups: NDArray | None
) -> None:
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
def features_once(estimator: Any, n_fits: int) -> Iterator[tuple[Any, Callable]]:
    """Yield an estimator whose clones pass an image through the network only once.

    Layer maps are kept in a temporary folder. The function that comes with the
    estimator removes that folder from a list of fitted clones.
    """
    names = uncached_features(estimator)
    if not names or (n_fits == 1 and not is_search(estimator)):
        yield estimator, lambda fitted: None
        return
    with TemporaryDirectory(prefix="skpatchcore-") as folder:
        remembering = clone(estimator).set_params(**dict.fromkeys(names, folder))
        # To give the transformers a cache, detectors without any got the default one.
        given = estimator.get_params()
        holders = {name.removesuffix("__memory") for name in names}
        defaults = {name: None for name in holders if given.get(name, "") is None}

        def give_back(fitted: list) -> None:
            _forget_folder(fitted, folder)
            for one in fitted:
                one.set_params(**defaults)

        yield remembering, give_back


def _forget_folder(part: Any, folder: str, seen: set[int] | None = None) -> None:
    """Unset `memory` where it is `folder`, in a fitted estimator and all its parts."""
    # Parts may refer to each other in a circle.
    seen = set() if seen is None else seen
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, dict):
        inner = list(part.values())
    elif isinstance(part, list | tuple):
        inner = list(part)
    elif hasattr(part, "get_params") and not isinstance(part, type):
        if getattr(part, "memory", None) == folder:
            part.memory = None
        inner = list(vars(part).values())
    else:
        return
    for one in inner:
        _forget_folder(one, folder, seen)
