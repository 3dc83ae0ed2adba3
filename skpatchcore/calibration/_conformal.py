"""Thresholds with a stated false-alarm rate, and p-values, from normal samples only."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeaveOneOut,
    ShuffleSplit,
)
from sklearn.utils import Bunch, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import (
    ImageDetector,
    Inspection,
    Inspections,
    Reference,
    features_once,
    find_detector,
    fit_clone,
    has_maps,
    held_out_splits,
    in_order,
    is_frozen,
    merge_matches,
    renumber_images,
    route_fit,
    windows,
)
from skpatchcore._images import Images, check_images
from skpatchcore._utils import (
    HasMethods,
    Interval,
    RealNotInt,
    StrOptions,
    available_if,
    check_scores,
    encode_groups,
    fit_context,
    normal_rows,
    normality,
    num_samples,
    safe_indexing,
    unchanged_on_error,
)
from skpatchcore.calibration._near_duplicates import warn_of_near_duplicates
from skpatchcore.calibration._p_values import (
    Calibration,
    anomaly_score,
    check_supported,
)

# Attributes that depend on what the estimator has.
_MAY_BE_MISSING = (
    "map_threshold_",
    "_calibration_peaks",
    "calibration_groups_",
    "n_features_in_",
    "feature_names_in_",
)


class ConformalDetector(MetaEstimatorMixin, ImageDetector, BaseEstimator):
    """Give any outlier detector a threshold with a stated false-alarm rate.

    Normal samples that the detector was not fitted on show what normal samples score. A
    new sample is flagged if at most a share `alpha` of them is as anomalous. This needs
    no defects and assumes nothing about the distribution of scores, only that new
    normal samples come from the same process as those of `fit` (that they are
    exchangeable).

    Wrap it around a :class:`~skpatchcore.PatchCoreDetector`, a
    :class:`~skpatchcore.PatchMemoryBank`, any outlier detector of scikit-learn, or a
    pipeline that ends in one. Signs are as theirs: ``score_samples`` and
    ``decision_function`` are higher for more normal samples, ``predict_anomaly_score``
    and maps are higher for more anomalous ones.

    Parameters
    ----------
    estimator : estimator
        Outlier detector with ``fit`` and ``score_samples``, or ``decision_function`` if
        it has none, higher for more normal samples. A fitted one in a
        :class:`~sklearn.frozen.FrozenEstimator` is not fitted again and is calibrated
        on all rows, for any `method`. For a `TunedThresholdDetector`, the detector in
        it is calibrated, since scores do not depend on the tuned threshold.

    alpha : float, default=0.01
        Share of new normal samples that may be flagged, in (0, 1). It needs at least
        ``1 / alpha - 1`` calibration samples, or groups of samples if `fit` gets
        ``groups``: 99 for 0.01, 19 for 0.05.

    method : {"cross", "jackknife+", "split", "refit"}, default="cross"
        Which samples calibrate, and what scores new ones; see Notes for what each
        guarantees.

        - "cross": every row calibrates, scored by the one of K estimators that was
          fitted without its fold. New samples are scored by all K.
        - "jackknife+": as "cross", with a fold for each row, or group of rows; `cv`
          is ignored. For few rows.
        - "split": a share of the rows, `calibration_size`, calibrates one estimator
          fitted on the others.
        - "refit": as "cross", but new samples are scored by one estimator fitted on all
          rows: K times faster to predict.

    cv : int, splitter or None, default=5
        Folds of the normal rows for "cross" and "refit"; every row must be held out
        exactly once. An int K is a shuffled :class:`~sklearn.model_selection.KFold`,
        or :class:`~sklearn.model_selection.GroupKFold` with ``groups``; None is 5. A
        splitter gets the labels and groups of the normal rows.

    calibration_size : float or int, default=0.5
        Share, in (0, 1), or number of normal rows that calibrate for "split"; of groups
        if `fit` gets ``groups``.

    random_state : int, RandomState instance or None, default=None
        Shuffles the rows before they are split. `estimator` has its own.

    Attributes
    ----------
    estimators_ : list of estimators
        Fitted; K for "cross", one for each row, or group, for "jackknife+", else one.

    calibration_scores_ : ndarray of shape (n_calibration,), float64
        Scores of the calibration rows by an estimator that had not seen them.

    calibration_indices_ : ndarray of shape (n_calibration,), int64
        Those rows in the `X` of `fit`.

    calibration_folds_ : ndarray of shape (n_calibration,), int64
        Position in `estimators_` of the estimator that each score is compared with.

    calibration_groups_ : ndarray of shape (n_calibration,), int64
        Number of the group of each calibration row, in the order of ``np.unique``. Only
        if `fit` got ``groups``.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.

    min_alpha_ : float
        Smallest `alpha` that the calibration samples support: 1/(n_calibration + 1),
        or 1/(n_groups + 1) with groups.

    map_threshold_ : float
        Threshold of `predict_masks`, calibrated on the largest value in the map of each
        held-out normal image: a new normal image has a pixel above it at the rate
        that Notes state for `alpha`. Only if `estimator` is a `PatchCoreDetector` or
        `PatchCoreEnsemble`.

    n_features_in_ : int
        As the fitted estimator has it, if it does.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        As the fitted estimator has it, if it does.

    See Also
    --------
    TunedThresholdDetector : The threshold with the best F1, from labelled defects.

    Notes
    -----
    With n calibration scores s_i and K estimators, where k(i) had not seen sample i,
    the p-value of x is (1 + #{i : s_i <= s_k(i)(x)}) / (n + 1), and x is flagged where
    it is at most `alpha`. The probability that a new normal sample is flagged is

    - for "split", and for a frozen estimator that saw none of the rows: at most
      `alpha`, and above ``alpha - 1/(n + 1)`` if scores do not tie [1]_. This is the
      average over calibration sets; with a given one, the rate itself varies as a
      Beta(r, n + 1 - r), r = floor(alpha (n + 1)), with a standard deviation of about
      sqrt(alpha / n).
    - for "cross" and "jackknife+": at most about `alpha` in practice [2]_, [3]_, and
      well below where the K estimators disagree much about what is anomalous, as tiny
      banks do. What is proven is less: at most
      ``2 alpha + 2 (1 - alpha) (K - 1) / (n + K)`` for any K, and ``2 alpha``
      for leaving one out ([4]_, theorems 1 and 4). All rows calibrate,
      and most of them fit, so at small n it wastes less than "split". Calibration
      scores that tie across folds, as those of mutual nearest neighbours do, round
      p-values up.
    - for "refit": not bounded in general, as the final estimator's scores are not
      exchangeable with those of the folds' estimators. It is at most that of "cross"
      if more training data can only raise scores, as distances to a bank of every patch
      do (``CoresetSampler(1.0)``). For a coreset this is not proven: rates between 3 %
      and 5.5 % were measured for 5 %, the highest for a fixed number of picks, which
      has to cover more patches in the final fit than in the folds'.

    Too few samples for `alpha` raise an error rather than give a detector that never
    flags anything.

    All this is for samples that are exchangeable, one by one. Several images of one
    part are not: held out alone, an image is scored by an estimator that was fitted on
    its siblings, and looks far more normal than the images of a new part will. With
    ``groups``, whole groups are held out, and only groups need to be exchangeable. Each
    of the G calibration groups then has the same weight, which its n_g samples share
    [5]_, [6]_: the p-value is (1 + sum_g #{i in g : s_i <= s_k(g)(x)} / n_g) / (G + 1),
    and the bounds above hold with G in place of n, for a sample drawn at random from a
    new normal group. Only the bound of "split" from below is ``alpha - 2/(G + 1)``, and
    the Beta distribution is that of groups of one. In other words:

    - **per sample**: of the samples of a new group, a share of at most `alpha` is
      flagged on average, where a small group counts as much as a large one;
    - **per group**: at least one of the m samples of a new group is flagged at a rate
      of at most ``m * alpha``, and of about `alpha` if samples of a group score alike.
      For a rate of at most t per group, set ``alpha=t / m``.

    Groups of unequal sizes can round the p-values of "cross" and "jackknife+" up, by
    less than 1/(G + 1).

    In `fit` an image passes a network once: a `PatchCoreDetector` without `memory`
    gets a temporary folder for layer maps, of 0.6 MB an image for a ResNet-18 and 3 MB
    for a Wide ResNet-50. After it, with K estimators, it passes K times; with
    ``PatchCoreDetector(memory=...)`` once.

    References
    ----------
    .. [1] Bates, S., Candès, E., Lei, L., Romano, Y., Sesia, M. "Testing for outliers
       with conformal p-values", Annals of Statistics 51(1), 2023, arXiv:2104.08279.

    .. [2] Vovk, V. "Cross-conformal predictors", Annals of Mathematics and Artificial
       Intelligence 74, 2015.

    .. [3] Hennhöfer, O., Preisach, C. "Leave-one-out-, bootstrap- and cross-conformal
       anomaly detectors", 2024, arXiv:2402.16388.

    .. [4] Barber, R. F., Candès, E. J., Ramdas, A., Tibshirani, R. J. "Predictive
       inference with the jackknife+", Annals of Statistics 49(1), 2021,
       arXiv:1905.02928.

    .. [5] Lee, Y., Barber, R. F., Willett, R. "Distribution-free inference with
       hierarchical data", 2023, arXiv:2306.06342.

    .. [6] Dunn, R., Wasserman, L., Ramdas, A. "Distribution-free prediction sets for
       two-layer hierarchical models", Journal of the American Statistical Association
       118(544), 2023, arXiv:1809.07441.

    Examples
    --------
    The threshold of the training samples flags every second new one; this does not:

    >>> import numpy as np
    >>> from skpatchcore import PatchMemoryBank
    >>> from skpatchcore.calibration import ConformalDetector
    >>> rng = np.random.default_rng(0)
    >>> good, new = rng.normal(size=(100, 16, 4)), rng.normal(size=(2000, 16, 4))
    >>> bank = PatchMemoryBank(contamination=0.05, random_state=0).fit(good)
    >>> float(np.mean(bank.predict(new) == -1).round(2))
    0.51
    >>> detector = ConformalDetector(bank, alpha=0.05, random_state=0).fit(good)
    >>> float(np.mean(detector.predict(new) == -1).round(2))
    0.04
    >>> odd = new[:1] + [[[3, 0, 0, 0]]]
    >>> detector.predict_pvalue(odd).round(3), detector.predict(odd)
    (array([0.01]), array([-1]))
    """

    # Groups decide how rows are held out and weighed here, not only in the splitter: in
    # searches with metadata routing they come without a request of the user's.
    __metadata_request__fit = {"groups": True}

    # Why not nonconform (2.0), the package for conformal anomaly detection: it needs
    # Python 3.12 and pandas, and its detectors give p-values and selections from NumPy
    # matrices, while this one takes images and paths as they come, has offset_ and
    # predict as scikit-learn's outlier detectors do, and calibrates maps. What could be
    # shared is one searchsorted; tests hold it to the definition.

    _parameter_constraints = {
        "estimator": [
            HasMethods(["fit", "score_samples"]),
            HasMethods(["fit", "decision_function"]),
        ],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "method": [StrOptions({"cross", "jackknife+", "split", "refit"})],
        "cv": ["cv_object"],
        "calibration_size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator,
        *,
        alpha=0.01,
        method="cross",
        cv=5,
        calibration_size=0.5,
        random_state=None,
    ):
        self.estimator = estimator
        self.alpha = alpha
        self.method = method
        self.cv = cv
        self.calibration_size = calibration_size
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None, **params: Any) -> Self:
        """Fit the estimator and calibrate it, on normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it.

        y : array-like of shape (n_samples,) or None, default=None
            Samples labelled -1 (anomalous) are left out, of fitting and of calibrating.

        groups : array-like of shape (n_samples,) or None, default=None
            Which samples belong together, such as images of one part: numbers or
            strings. Groups are held out as a whole, and `alpha` is a rate over
            groups; see Notes. Passed on to `cv`, and to `estimator` if its ``fit``
            takes groups. None: each sample is independent of all others.

        **params : dict
            Passed on to ``estimator.fit`` or ``cv.split``, as they request. Only with
            metadata routing enabled.

        Returns
        -------
        self : ConformalDetector
            Fitted detector.

        Raises
        ------
        ValueError
            If fewer than ``1 / alpha - 1`` samples, or groups, are left to calibrate
            on, `cv` does not hold every row out exactly once or does not keep groups
            together, or a score is NaN or infinite.

        Warns
        -----
        UserWarning
            If `groups` is None, but most samples have near-duplicates, as several
            images of one part are.
        """
        (X,) = indexable(X)
        n_samples = num_samples(X)
        rows = normal_rows(y, n_samples)
        inner = scoring_part(self.estimator)
        routed = route_fit(self, inner, groups, params)
        if groups is None:
            warn_of_near_duplicates(inner, X, rows)
        else:
            groups = encode_groups(groups, n_samples)
        splits = self._split(X, y, rows, groups, routed.splitter.split)
        held_out = np.concatenate([rows[test] for _, test in splits])
        if groups is not None:
            groups = np.unique(groups[held_out], return_inverse=True)[1]
        check_supported(
            self.alpha, _n_units(held_out, groups), grouped=groups is not None
        )
        fitted = self._cross_fit(inner, X, rows, splits, routed.estimator.fit)
        # A fit that fails, or is interrupted, leaves an earlier one as it was.
        with unchanged_on_error(self):
            for name in _MAY_BE_MISSING:
                self.__dict__.pop(name, None)
            self.estimators_ = fitted.estimators
            self.calibration_indices_ = held_out
            self._training_rows = np.concatenate(fitted.training_rows)
            self._training_folds = np.repeat(
                np.arange(len(fitted.training_rows)),
                list(map(len, fitted.training_rows)),
            )
            self._set_calibration(fitted.scores, fitted.peaks, fitted.folds, groups)
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self.estimators_[0], name):
                    setattr(self, name, getattr(self.estimators_[0], name))
            return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the score of samples: higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            Those of the fitted estimator. With several ("cross"), their mean; if the
            estimators disagree so much that the mean would have another p-value, it is
            moved as little as needed to have the right one.
        """
        check_is_fitted(self)
        fold_scores = [normality(estimator, X) for estimator in self.estimators_]
        return self._calibration.pool(fold_scores)

    def predict_pvalue(self, X: Any) -> NDArray[np.float64]:
        """Return conformal p-values: small for anomalous samples.

        Among new normal samples, p-values of at most t occur at the rate that Notes
        state for ``alpha = t``, for every t at once. The smallest one, 1/(n + 1), means
        that no calibration sample was as anomalous; it does not say how much more
        anomalous this one is.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it.

        Returns
        -------
        p_values : ndarray of shape (n_samples,), float64
            In [1/(n + 1), 1], for n calibration scores, or n groups of them.
        """
        scores = self.score_samples(X)
        return self._calibration.p_values(scores)

    def predict_anomaly_score(self, X: Any) -> NDArray[np.float64]:
        """Return scores a person can read: 0 is normal, 1 extremely anomalous.

        A fixed, strictly monotonic function of ``score_samples``, which keeps scores
        apart even far beyond all calibration scores. It is not a probability.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As `estimator` accepts it.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In [0, 1]. 1/8 is a typical normal sample, 1/2 the threshold (`predict` is
            -1 exactly above it), and 3/4 is as far beyond it as a typical normal sample
            is below. Scores stay apart if their distances to the threshold do by 1e-9,
            relative to that distance plus the typical one, up to 1e150 typical ones.
        """
        scores = self.score_samples(X)
        return anomaly_score(
            -scores, -self.offset_, self._calibration.scale(self.offset_)
        )

    @available_if(lambda self: self._has_maps())
    def nearest_patches(self, X: Any, n_neighbors: int | None = None) -> Bunch:
        """Return the training patches that every patch of an image is nearest to.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As `PatchCoreDetector` accepts them.

        n_neighbors : int or None, default=None
            As for `PatchCoreDetector.nearest_patches`.

        Returns
        -------
        matches : Bunch
            As `PatchCoreDetector.nearest_patches` returns it. ``image`` is the position
            in the `X` that this detector was fitted on, or that a frozen estimator was
            fitted on. The estimators of several folds have different banks; their
            matches are merged, and the nearest of all are returned.
        """
        check_is_fitted(self)
        images = check_images(X)
        parts = map(find_detector, self.estimators_)
        found = [
            part.detector.nearest_patches(part.prepare(images), n_neighbors)
            for part in parts
        ]
        pairs = zip(found, self._fold_rows(), strict=True)
        return merge_matches([renumber_images(*pair) for pair in pairs])

    def get_metadata_routing(self) -> MetadataRouter:
        """Return which metadata the detector, its estimator and its splitter take.

        Returns
        -------
        routing : MetadataRouter
            The detector itself asks for ``groups``.
        """
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=scoring_part(self.estimator),
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
            .add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        )

    def _fold_rows(self) -> list[NDArray | None]:
        """Return the rows of `X` in `fit` that each estimator was fitted on.

        None stands for a frozen estimator, which was fitted on another `X`.
        """
        n_rows = np.bincount(self._training_folds, minlength=len(self.estimators_))
        rows = np.split(self._training_rows, np.cumsum(n_rows)[:-1])
        pairs = zip(self.estimators_, rows, strict=True)
        return [None if is_frozen(one) else learned for one, learned in pairs]

    def _has_maps(self) -> bool:
        # What was fitted decides, also after `set_params`.
        return has_maps(getattr(self, "estimators_", [self.estimator])[0])

    @property
    def _is_frozen(self) -> bool:
        return is_frozen(self.estimators_[0])

    def _inspect(self, images: Images) -> Inspections:
        """Yield what the estimators of all folds see in each image, in order."""
        for window in windows(images):
            part = images.take(window)
            folds = [in_order(find_detector(e).inspect(part)) for e in self.estimators_]
            scores = [np.array([seen.score for seen in fold]) for fold in folds]
            pooled = self._calibration.pool(scores)
            rows = zip(window.tolist(), pooled, *folds, strict=True)
            for i, score, *seen in rows:
                grid = np.mean([one.patch_scores for one in seen], axis=0)
                yield Inspection(
                    i, float(score), grid, seen[0].geometry, self, tuple(seen)
                )

    def _references(self) -> list[Reference]:
        pairs = zip(self.estimators_, self._fold_rows(), strict=True)
        return [
            reference.within(rows)
            for estimator, rows in pairs
            for reference in find_detector(estimator).references()
        ]

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        maps = [-part.make_map(size, border).astype(np.float64) for part in seen.parts]
        return -self._map_calibration.pool(maps)

    def _peak(self, seen: Inspection) -> float:
        if len(seen.parts) == 1:
            return seen.parts[0].peak
        # Members of an ensemble may agree on no other size.
        return float(self._map(seen, "original").max())

    @property
    def _is_calibrated(self) -> bool:
        return True

    def _p_value(self, score: float) -> float:
        return float(self._calibration.p_values(np.array(score)))

    def _anomaly_score(self, score: float) -> float:
        scale = self._calibration.scale(self.offset_)
        return float(anomaly_score(np.array(-score), -self.offset_, scale))

    def _normalize(self, values: NDArray) -> NDArray:
        scale = self._map_calibration.scale(-self.map_threshold_)
        return anomaly_score(values, self.map_threshold_, scale)

    def _split(
        self, X: Any, y: Any, rows: NDArray, groups: NDArray | None, params: Mapping
    ) -> list[tuple]:
        """Return pairs of positions in `rows`: to fit on, and to calibrate on."""
        everything = np.arange(len(rows))
        if isinstance(scoring_part(self.estimator), FrozenEstimator):
            return [(everything[:0], everything)]
        if groups is not None:
            params = {"groups": groups, **params}
        if self.method == "split":
            splitter = ShuffleSplit if groups is None else GroupShuffleSplit
            splitter = splitter(
                1, test_size=self.calibration_size, random_state=self.random_state
            )
            groups = None if groups is None else groups[rows]
            return list(splitter.split(everything, groups=groups))
        cv = self.cv
        if self.method == "jackknife+":
            cv = LeaveOneOut() if groups is None else LeaveOneGroupOut()
        return held_out_splits(
            cv, X, rows, self.random_state, y=y, groups=groups, params=params
        )

    def _cross_fit(
        self, estimator: Any, X: Any, rows: NDArray, splits: list, params: Mapping
    ) -> Bunch:
        """Return estimators fitted, and what they give for the rows held out."""
        folds = np.repeat(np.arange(len(splits)), [len(test) for _, test in splits])
        training_rows = [rows[train] for train, _ in splits]
        with features_once(estimator, len(splits)) as (estimator, give_back):
            estimators, scores, peaks = _score_held_out(
                estimator, X, rows, splits, params
            )
            if self.method == "refit" and len(splits) > 1:
                estimators = [fit_clone(estimator, X, rows, params)]
                folds = np.zeros_like(folds)
                training_rows = [rows]
            give_back(estimators)
        return Bunch(
            estimators=estimators,
            scores=scores,
            peaks=peaks,
            folds=folds,
            training_rows=training_rows,
        )

    def _set_calibration(
        self, scores: NDArray, peaks: NDArray, folds: NDArray, groups: NDArray | None
    ) -> None:
        self.calibration_scores_ = scores
        self.calibration_folds_ = folds
        if groups is not None:
            self.calibration_groups_ = groups
        self.offset_ = self._calibration.offset(self.alpha)
        self.min_alpha_ = 1 / (_n_units(scores, groups) + 1)
        if len(peaks):
            self._calibration_peaks = peaks
            self.map_threshold_ = -self._map_calibration.offset(self.alpha)

    @property
    def _calibration(self) -> Calibration:
        return self._calibrated_by(self.calibration_scores_)

    @property
    def _map_calibration(self) -> Calibration:
        return self._calibrated_by(-self._calibration_peaks)

    def _calibrated_by(self, scores: NDArray) -> Calibration:
        groups = getattr(self, "calibration_groups_", None)
        return Calibration(scores, self.calibration_folds_, groups)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def scoring_part(estimator: Any) -> Any:
    """Return the estimator that gives the scores, without tuned thresholds around it.

    It is frozen if any of the estimators around it is.
    """
    part, frozen = estimator, False
    while True:
        if isinstance(part, FrozenEstimator):
            part, frozen = part.estimator, True
        elif hasattr(part, "_scored_by"):
            part = part._scored_by(fitted=frozen)
        else:
            break
    if getattr(estimator, "estimator", None) is part and frozen:
        return estimator  # Not a copy: it is the very estimator that was given.
    return FrozenEstimator(part) if frozen else part


def _n_units(samples: NDArray, groups: NDArray | None) -> int:
    """Return how many exchangeable units there are: samples, or groups of them."""
    return len(samples) if groups is None else int(groups.max()) + 1


def _score_held_out(
    estimator: Any, X: Any, rows: NDArray, splits: list[tuple], params: Mapping
) -> tuple[list[Any], NDArray, NDArray]:
    """Return an estimator for each split, and what they give for held-out rows."""
    estimators = [fit_clone(estimator, X, rows[train], params) for train, _ in splits]
    scores, peaks = zip(
        *(
            _score_images(estimator, safe_indexing(X, rows[test]), rows[test])
            for estimator, (_, test) in zip(estimators, splits, strict=True)
        ),
        strict=True,
    )
    return estimators, np.concatenate(scores), np.concatenate(peaks)


def _score_images(estimator: Any, X: Any, rows: NDArray) -> tuple[NDArray, NDArray]:
    """Return finite scores, and the largest value in the map of each image, if any."""
    if has_maps(estimator):
        found = in_order(find_detector(estimator).inspect(X))
        scores = np.array([seen.score for seen in found])
        peaks = np.array([seen.peak for seen in found])
    else:
        scores, peaks = normality(estimator, X, rows), np.empty(0)
    check_scores(~np.isfinite(scores), estimator, X, rows)
    return scores, peaks
