"""The threshold that fits labelled defects best."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils import Bunch, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skpatchcore._detectors import (
    ImageDetector,
    Inspection,
    Inspections,
    Reference,
    check_apart,
    find_detector,
    fit_clone,
    has_maps,
    is_frozen,
    renumber_images,
    route_fit,
    split_samples,
)
from skpatchcore._images import Images
from skpatchcore._utils import (
    HasMethods,
    StrOptions,
    available_if,
    encode_groups,
    fit_context,
    normal_rows,
    normality,
    num_samples,
    safe_indexing,
    unchanged_on_error,
)
from skpatchcore.calibration._near_duplicates import warn_of_near_duplicates


class TunedThresholdDetector(MetaEstimatorMixin, ImageDetector, BaseEstimator):
    """Choose the threshold of an outlier detector that fits labelled defects best.

    As :class:`~sklearn.model_selection.TunedThresholdClassifierCV`, for outlier
    detectors, where the class to be found is -1. Use it if you have defects that look
    like those to come; without any, use :class:`ConformalDetector`.

    Never tune on the test set: a result measured there afterwards is the best that any
    threshold could reach, not what to expect of this one.

    Parameters
    ----------
    estimator : estimator
        Outlier detector with ``fit`` and ``score_samples``, or ``decision_function`` if
        it has none, higher for more normal samples.

    scoring : {"f1", "balanced_accuracy"} or callable, default="f1"
        What the threshold maximises: F1 of the class -1; the mean of the two classes'
        recall, which does not depend on how many defects are among the samples; or a
        function of true and predicted labels, ``scoring(y_true, y_pred) -> float``.

    cv : int, splitter, None or "prefit", default="prefit"
        "prefit": `estimator` is fitted, and all of `X` is for tuning; the same holds
        for a :class:`~sklearn.frozen.FrozenEstimator` and any `cv`. Otherwise the
        folds are scored by estimators fitted on the normal rows of the others, and the
        final one is fitted on all normal rows; its scores are not quite those of the
        folds' estimators, so prefer "prefit" if there are enough normal samples. An int
        is a :class:`~sklearn.model_selection.StratifiedKFold` without shuffling, or
        with ``groups`` a :class:`~sklearn.model_selection.StratifiedGroupKFold`; None
        is 5. Every row must be held out; one held out several times, as anomalies are
        by :class:`~skpatchcore.model_selection.OneClassKFold`, gets its mean score.

    Attributes
    ----------
    estimator_ : estimator
        The fitted estimator; for "prefit", `estimator` itself.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``. Midway between
        two scores; of equally good ones, that with fewest samples flagged.

    best_score_ : float
        `scoring` at this threshold, on the samples that it was chosen on.

    n_features_in_ : int
        As the fitted estimator has it, if it does.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        As the fitted estimator has it, if it does.

    See Also
    --------
    ConformalDetector : A threshold with a stated false-alarm rate, without defects.
    skpatchcore.metrics.f1_max : The best F1 that any threshold reaches.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.svm import OneClassSVM
    >>> from skpatchcore.calibration import TunedThresholdDetector
    >>> rng = np.random.default_rng(0)
    >>> detector = OneClassSVM().fit(rng.normal(size=(100, 2)))
    >>> X = np.concatenate([rng.normal(size=(50, 2)), rng.normal(4, 1, (10, 2))])
    >>> y = np.repeat([1, -1], [50, 10])
    >>> tuned = TunedThresholdDetector(detector).fit(X, y)
    >>> tuned.best_score_ > 0.9
    True
    >>> tuned.predict([[0, 0], [5, 5]])
    array([ 1, -1])
    """

    _parameter_constraints = {
        "estimator": [
            HasMethods(["fit", "score_samples"]),
            HasMethods(["fit", "decision_function"]),
        ],
        "scoring": [StrOptions({"f1", "balanced_accuracy"}), callable],
        "cv": ["cv_object", StrOptions({"prefit"})],
    }

    # As in ConformalDetector.
    __metadata_request__fit = {"groups": True}

    def __init__(self, estimator, *, scoring="f1", cv="prefit"):
        self.estimator = estimator
        self.scoring = scoring
        self.cv = cv

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, *, groups: Any = None, **params: Any) -> Self:
        """Find the threshold, and fit the estimator unless it is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it; not the test set.

        y : array-like of shape (n_samples,)
            +1 for normal and -1 for anomalous samples; both must occur.

        groups : array-like of shape (n_samples,) or None, default=None
            Which samples belong together, such as images of one part. No group is on
            both sides of a split, so that images of a part are not scored by an
            estimator that was fitted on others of it. Ignored, with a warning, if
            nothing is split because the estimator is fitted.

        **params : dict
            Passed on to ``estimator.fit`` or ``cv.split``, as they request. Only with
            metadata routing enabled.

        Returns
        -------
        self : TunedThresholdDetector
            Fitted detector.

        Raises
        ------
        ValueError
            If a label is neither +1 nor -1, or one of the two is missing; if a row is
            never held out, or `cv` does not keep groups together; or if a score is NaN.

        Warns
        -----
        UserWarning
            If `groups` is None, but most normal samples have near-duplicates, as
            several images of one part are.
        """
        (X,) = indexable(X)
        y = _check_labels(y, num_samples(X))
        routed = route_fit(self, self.estimator, groups, params)
        groups = None if groups is None else encode_groups(groups, len(y))
        if self.cv == "prefit" or isinstance(self.estimator, FrozenEstimator):
            _tell_unused(groups)
            check_is_fitted(self.estimator)
            estimator, scores = self.estimator, normality(self.estimator, X)
            rows = None
        else:
            rows = normal_rows(y, len(y))
            if groups is None:
                warn_of_near_duplicates(self.estimator, X, rows)
            scores = self._cross_scores(X, y, groups, routed)
            estimator = fit_clone(self.estimator, X, rows, routed.estimator.fit)
        offset, best_score = best_threshold(y, scores, self._metric())
        # A fit that fails, or is interrupted, leaves an earlier one as it was.
        with unchanged_on_error(self):
            self.estimator_ = estimator
            self._training_rows = rows
            self.offset_, self.best_score_ = offset, best_score
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(estimator, name):
                    setattr(self, name, getattr(estimator, name))
            return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the estimator's score of samples: higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In the estimator's unit.
        """
        check_is_fitted(self)
        return normality(self.estimator_, X)

    @property
    def map_threshold_(self) -> float:  # type: ignore[override]  # Others set it.
        """Threshold of `predict_masks`: that of the estimator."""
        if not self._has_maps():
            raise AttributeError(f"{self.estimator!r:.80} has no maps.")
        return self._inner.map_threshold_

    @available_if(lambda self: self._has_maps())
    def nearest_patches(self, X: Any, n_neighbors: int | None = None) -> Bunch:
        """Return the training patches that every patch of an image is nearest to.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As the estimator accepts them.

        n_neighbors : int or None, default=None
            As for `PatchCoreDetector.nearest_patches`.

        Returns
        -------
        matches : Bunch
            As the estimator returns it. ``image`` is the position in the `X` that this
            detector was fitted on; with an estimator that was fitted before, in the
            `X` of that fit.
        """
        check_is_fitted(self)
        found = find_detector(self.estimator_)
        matches = found.detector.nearest_patches(found.prepare(X), n_neighbors)
        return renumber_images(matches, self._learned_rows())

    def get_metadata_routing(self) -> MetadataRouter:
        """Return which metadata the detector, its estimator and its splitter take.

        Returns
        -------
        routing : MetadataRouter
            The detector itself asks for ``groups``.
        """
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(
            estimator=self.estimator,
            method_mapping=MethodMapping().add(caller="fit", callee="fit"),
        )
        if self.cv != "prefit":
            router.add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        return router

    @property
    def _inner(self) -> ImageDetector:
        return find_detector(self.estimator_).detector

    def _learned_rows(self) -> NDArray | None:
        """Return the rows of `X` in `fit` that were learned; None for another `X`."""
        return None if is_frozen(self.estimator_) else self._training_rows

    def _has_maps(self) -> bool:
        # What was fitted decides, also after `set_params`.
        return has_maps(getattr(self, "estimator_", self.estimator))

    @property
    def _is_frozen(self) -> bool:
        return self._learned_rows() is None

    def _inspect(self, images: Images) -> Inspections:
        """Yield what the estimator sees in each image."""
        with closing(find_detector(self.estimator_).inspect(images)) as inspections:
            for seen in inspections:
                yield replace(seen, detector=self, parts=(seen,))

    def _references(self) -> list[Reference]:
        inner = find_detector(self.estimator_).references()
        return [reference.within(self._learned_rows()) for reference in inner]

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        return seen.parts[0].make_map(size, border)

    def _peak(self, seen: Inspection) -> float:
        return seen.parts[0].peak

    @property
    def _is_calibrated(self) -> bool:
        return self._inner._is_calibrated

    def _p_value(self, score: float) -> float | None:
        return self._inner._p_value(score)

    def _anomaly_score(self, score: float) -> float | None:
        return self._inner._anomaly_score(score)

    def _normalize(self, values: NDArray) -> NDArray:
        return self._inner._normalize(values)

    def _scored_by(self, *, fitted: bool) -> Any:
        """Return the estimator that gives the scores, the fitted one on request."""
        return getattr(self, "estimator_", self.estimator) if fitted else self.estimator

    def _cross_scores(
        self, X: Any, y: NDArray, groups: NDArray | None, routed: Bunch
    ) -> NDArray[np.float64]:
        """Return the score of each row by estimators that were not fitted on it."""
        splits = self._split(y, groups, routed.splitter.split)
        totals, n_times = np.zeros((2, len(y)))
        for train, test in splits:
            normal = train[y[train] == 1]
            estimator = fit_clone(self.estimator, X, normal, routed.estimator.fit)
            totals[test] += normality(estimator, safe_indexing(X, test), test)
            n_times[test] += 1
        if not n_times.all():
            raise ValueError(
                f"cv={self.cv} has row {int(np.argmin(n_times))} in no test fold; "
                "every row must be in at least one."
            )
        return totals / n_times

    def _split(
        self, y: NDArray, groups: NDArray | None, params: Mapping
    ) -> list[tuple]:
        cv = check_cv(self.cv, y, classifier=True)
        if isinstance(cv, StratifiedKFold) and cv is not self.cv and groups is not None:
            cv = StratifiedGroupKFold(cv.n_splits)
        if groups is not None:
            params = {"groups": groups, **params}
        splits = split_samples(cv, np.zeros(len(y)), y, params)
        check_apart(self.cv, splits, np.arange(len(y)), groups)
        return splits

    def _metric(self) -> Callable[[NDArray, NDArray], float]:
        if self.scoring == "f1":
            return _f1_of_anomalies
        if self.scoring == "balanced_accuracy":
            return balanced_accuracy_score
        return self.scoring

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        tags.target_tags.required = True
        return tags


def _tell_unused(groups: NDArray | None) -> None:
    if groups is not None:
        warnings.warn(
            "groups was not used: the estimator is fitted already, so nothing is held "
            "out. Groups of the samples that it was fitted on must be kept out of X.",
            UserWarning,
            stacklevel=4,
        )


def best_threshold(
    y: NDArray, scores: NDArray, metric: Callable[[NDArray, NDArray], float]
) -> tuple[float, float]:
    """Return the best threshold and ``metric(y, labels)`` there.

    Samples whose score is below are labelled -1. All thresholds between two scores are
    tried; the first of equals is the lowest, which flags the fewest.
    """
    distinct = np.unique(scores)
    middle = 0.5 * distinct[:-1] + 0.5 * distinct[1:]
    # Midway between neighbouring floats, rounding may give the lower one.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    thresholds = np.r_[distinct[0], middle, np.nextafter(distinct[-1], np.inf)]
    values = [metric(y, np.where(scores < t, -1, 1)) for t in thresholds]
    best = int(np.argmax(values))
    return float(thresholds[best]), float(values[best])


def _f1_of_anomalies(y_true: NDArray, y_pred: NDArray) -> float:
    return f1_score(y_true, y_pred, pos_label=-1, zero_division=0)


def _check_labels(y: Any, n_samples: int) -> NDArray:
    y = column_or_1d(y)
    if len(y) != n_samples:
        raise ValueError(f"y has {len(y)} labels, but X has {n_samples} samples.")
    found = sorted(set(y.tolist()))
    if found != [-1, 1]:
        raise ValueError(
            "y must hold the labels +1 (normal) and -1 (anomalous), both; got "
            f"{found[:5]}."
        )
    return y
