"""The threshold that fits labelled defects best."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils import Bunch, indexable
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import (
    ImageDetector,
    Inspection,
    Inspections,
    Reference,
    check_apart,
    check_signs,
    features_once,
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
    StrOptions,
    available_if,
    check_outlier_labels,
    encode_groups,
    fit_context,
    normality,
    num_samples,
    safe_indexing,
    unchanged_on_error,
    warn_user,
)
from skpatchcore.calibration._calibrator import Calibrator
from skpatchcore.calibration._near_duplicates import warn_of_near_duplicates
from skpatchcore.calibration._thresholds import best_threshold, label_score


class TunedThresholdDetector(Calibrator):
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
        it has none, higher for more normal samples. Detectors with the opposite sign,
        such as those of pyod, are refused. Put a fitted one in a
        :class:`~sklearn.frozen.FrozenEstimator`: it is not fitted again, and all of `X`
        is for tuning.

    scoring : str or callable, default="f1"
        What the threshold maximises, on labels.

        - A name from :func:`sklearn.metrics.get_scorer_names`. Where such a metric has
          a positive class, it is -1 here: "f1", "precision" and "recall" are those of
          the anomalies. "balanced_accuracy", the mean of the two classes' recall, does
          not depend on how many anomalies there are.
        - A scorer of scikit-learn, or a function ``scorer(estimator, X, y)``, which may
          only call ``estimator.predict(X)``. In
          :func:`~sklearn.metrics.make_scorer`, pass ``pos_label=-1`` if the metric has
          a positive class.
        - A function of true and predicted labels, ``metric(y_true, y_pred)``.

    cv : int, splitter or None, default=None
        Folds are scored by estimators fitted on the normal rows of the others, and the
        final estimator is fitted on all normal rows. Its scores are not quite those of
        the folds' estimators, so prefer a frozen estimator if there are enough normal
        samples. An int is a :class:`~sklearn.model_selection.StratifiedKFold` without
        shuffling, or with ``groups`` a
        :class:`~sklearn.model_selection.StratifiedGroupKFold`; None is 5. Every row
        must be held out; one held out several times, as anomalies are by
        :class:`~skpatchcore.model_selection.OneClassKFold`, gets its mean score. Not
        used with a frozen estimator.

    Attributes
    ----------
    estimator_ : estimator
        The fitted estimator. It does not change with parameters set after `fit`.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``. Midway between
        two scores; of equally good ones, that with fewest samples flagged.

    best_score_ : float
        `scoring` at this threshold, on the samples that it was chosen on.

    tuning_scores_ : ndarray of shape (n_samples,), float64
        Scores of these samples: by the estimators of the folds, or by a frozen one.

    n_features_in_ : int
        Number of features of the fitted estimator, if it has this attribute.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features of the fitted estimator, if it has this attribute.

    See Also
    --------
    ConformalDetector : A threshold with a stated false-alarm rate, without defects.
    skpatchcore.metrics.f1_max : The best F1 that any threshold reaches.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.svm import OneClassSVM
    >>> from skpatchcore.calibration import TunedThresholdDetector
    >>> rng = np.random.default_rng(0)
    >>> detector = OneClassSVM().fit(rng.normal(size=(100, 2)))
    >>> X = np.concatenate([rng.normal(size=(50, 2)), rng.normal(4, 1, (10, 2))])
    >>> y = np.repeat([1, -1], [50, 10])
    >>> tuned = TunedThresholdDetector(FrozenEstimator(detector)).fit(X, y)
    >>> tuned.best_score_ > 0.9
    True
    >>> tuned.predict([[0, 0], [5, 5]])
    array([ 1, -1])
    """

    _parameter_constraints = {
        **Calibrator._parameter_constraints,
        "scoring": [StrOptions(set(get_scorer_names())), callable],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        scoring: str | Callable[..., float] = "f1",
        cv: Any = None,
    ) -> None:
        self.estimator = estimator
        self.scoring = scoring
        self.cv = cv

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, *, groups: Any = None, **params: Any) -> Self:
        """Find the threshold, and fit the estimator unless it is frozen.

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
            nothing is split because the estimator is frozen.

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
            never held out, or `cv` does not keep groups together; if a score is NaN; or
            if `scoring` needs more than labels.

        TypeError
            If the estimator's scores are higher for more anomalous samples.

        Warns
        -----
        UserWarning
            If `groups` is None, but most normal samples have near-duplicates, as
            several images of one part are.
        """
        (X,) = indexable(X)
        y = _check_labels(y, num_samples(X))
        score = label_score(self.scoring)
        # A scorer that needs more than labels fails before any work.
        score(X, y, y)
        routed = route_fit(self, self.estimator, groups, params)
        groups = None if groups is None else encode_groups(groups, len(y))
        if isinstance(self.estimator, FrozenEstimator):
            _tell_unused(groups)
            rows = None
            estimator = fit_clone(self.estimator, X, np.arange(len(y)))
            check_signs(estimator, X)
            scores = normality(estimator, X)
        else:
            rows = np.flatnonzero(y == 1)
            if groups is None:
                warn_of_near_duplicates(self.estimator, X, rows)
            estimator, scores = self._cross_fit(X, y, groups, routed)
        offset, best_score = best_threshold(X, y, scores, score)
        # A fit that fails, or is interrupted, leaves an earlier one as it was.
        with unchanged_on_error(self):
            self.estimator_ = estimator
            self._training_rows = rows
            self.offset_, self.best_score_ = offset, best_score
            self.tuning_scores_ = scores
            self._adopt_features(estimator)
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

    def _cross_fit(
        self, X: Any, y: NDArray, groups: NDArray | None, routed: Bunch
    ) -> tuple[Any, NDArray[np.float64]]:
        """Return the fitted estimator, and scores of rows by others not fitted on them.

        Each image passes a network once.
        """
        splits = self._split(y, groups, routed.splitter.split)
        n_times = np.bincount(
            np.concatenate([test for _, test in splits]), minlength=len(y)
        )
        if not n_times.all():
            raise ValueError(
                f"cv={self.cv} has row {int(np.argmin(n_times))} in no test fold; "
                "every row must be in at least one."
            )
        params = routed.estimator.fit
        totals = np.zeros(len(y))
        with features_once(self.estimator, len(splits) + 1) as (given, give_back):
            for train, test in splits:
                fold = fit_clone(given, X, train[y[train] == 1], params)
                held_out = safe_indexing(X, test)
                check_signs(fold, held_out)
                totals[test] += normality(fold, held_out, test)
            estimator = fit_clone(given, X, np.flatnonzero(y == 1), params)
            give_back([estimator])
        return estimator, totals / n_times

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


def _tell_unused(groups: NDArray | None) -> None:
    if groups is not None:
        warn_user(
            "groups was not used: the estimator is frozen, so nothing is held "
            "out. Groups of the samples that it was fitted on must be kept out of X.",
        )


def _check_labels(y: Any, n_samples: int) -> NDArray[np.int64]:
    if y is None:
        raise ValueError(
            "TunedThresholdDetector requires y to be passed, but the target y is None. "
            "Pass the labels +1 (normal) and -1 (anomalous), or use ConformalDetector, "
            "which needs no anomalies."
        )
    labels = check_outlier_labels(y, n_samples=n_samples)
    for label, name in ((1, "normal"), (-1, "anomalous")):
        if label not in labels:
            raise ValueError(
                f"y contains only 1 class among {n_samples} samples, none is {name} "
                f"({label:+d}). A threshold is tuned on labels of both classes; "
                "without anomalies, use ConformalDetector."
            )
    return labels
