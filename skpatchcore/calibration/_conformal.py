"""Thresholds with a stated false-alarm rate, and p-values, from normal samples only."""

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import indexable
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import route_fit
from skpatchcore._utils import (
    Interval,
    RealNotInt,
    StrOptions,
    encode_groups,
    fit_context,
    normal_rows,
    normality,
    num_samples,
    unchanged_on_error,
)
from skpatchcore.calibration._fold_detector import FoldDetector
from skpatchcore.calibration._held_out import cross_fit, scoring_part, split_rows
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
)


class ConformalDetector(FoldDetector):
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
        it has none, higher for more normal samples. Detectors with the opposite sign,
        such as those of pyod, are refused. A fitted one in a
        :class:`~sklearn.frozen.FrozenEstimator` is not fitted again and is calibrated
        on all rows, for any `method`. For a `TunedThresholdDetector`, the detector in
        it is calibrated, since scores do not depend on the tuned threshold.

    alpha : float, default=0.01
        Share of new normal samples that may be flagged, in (0, 1). It needs at least
        ``1 / alpha - 1`` calibration samples, or groups of samples if `fit` gets
        ``groups``: 99 for 0.01, 19 for 0.05. Set after `fit`, it has no effect before
        the next `fit`; to flag samples at another level t, compare `predict_pvalue`
        with t.

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

    calibration_splits_ : ndarray of shape (n_calibration,), int64
        Number of the split of `cv` that held each calibration row out; 0 for all if
        there is one, as for "split" and a frozen estimator.

    calibration_groups_ : ndarray of shape (n_calibration,), int64
        Number of the group of each calibration row, in the order of ``np.unique``. Only
        if `fit` got ``groups``.

    alpha_ : float
        The `alpha` that `offset_` was set for.

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
        Number of features of the fitted estimator, if it has this attribute.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features of the fitted estimator, if it has this attribute.

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
    A threshold from training scores states no rate for new samples. Here it flags 9 %
    of them instead of 5 %; this one does not:

    >>> import numpy as np
    >>> from skpatchcore import CoresetSampler, PatchMemoryBank
    >>> from skpatchcore.calibration import ConformalDetector
    >>> rng = np.random.default_rng(0)
    >>> good, new = rng.normal(size=(100, 16, 4)), rng.normal(size=(2000, 16, 4))
    >>> sampler = CoresetSampler(0.3)
    >>> bank = PatchMemoryBank(sampler, contamination=0.05, random_state=0).fit(good)
    >>> float(np.mean(bank.predict(new) == -1).round(2))
    0.09
    >>> detector = ConformalDetector(bank, alpha=0.05, random_state=0).fit(good)
    >>> float(np.mean(detector.predict(new) == -1).round(2))
    0.05
    >>> odd = new[:1] + [[[3, 0, 0, 0]]]
    >>> detector.predict_pvalue(odd).round(3), detector.predict(odd)
    (array([0.01]), array([-1]))
    """

    # Why not nonconform (2.0), the package for conformal anomaly detection: it needs
    # Python 3.12 and pandas, and its detectors give p-values and selections from NumPy
    # matrices, while this one takes images and paths as they come, has offset_ and
    # predict as scikit-learn's outlier detectors do, and calibrates maps. What could be
    # shared is one searchsorted; tests hold it to the definition.

    _parameter_constraints = {
        **FoldDetector._parameter_constraints,
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "method": [StrOptions({"cross", "jackknife+", "split", "refit"})],
        "calibration_size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        alpha: float = 0.01,
        method: str = "cross",
        cv: Any = 5,
        calibration_size: float = 0.5,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
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
            +1 for normal and -1 for anomalous samples, which are left out, of fitting
            and of calibrating.

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

        TypeError
            If the estimator's scores are higher for more anomalous samples.

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
        if groups is not None:
            groups = encode_groups(groups, n_samples)
        splits = split_rows(
            self, X, rows, y=y, groups=groups, params=routed.splitter.split
        )
        held_out = np.concatenate([rows[test] for _, test in splits])
        if groups is not None:
            groups = np.unique(groups[held_out], return_inverse=True)[1]
        n_units = Calibration(held_out, held_out, groups).n_units
        # Before the first image is read.
        check_supported(self.alpha, n_units, grouped=groups is not None)
        if groups is None:
            warn_of_near_duplicates(inner, X, rows)
        fitted = cross_fit(
            inner,
            X,
            rows,
            splits,
            routed.estimator.fit,
            refit=self.method == "refit",
        )
        # A fit that fails, or is interrupted, leaves an earlier one as it was.
        with unchanged_on_error(self):
            for name in _MAY_BE_MISSING:
                self.__dict__.pop(name, None)
            self.estimators_ = fitted.estimators
            self.calibration_indices_ = held_out
            n_held_out = [len(test) for _, test in splits]
            self.calibration_splits_ = np.repeat(np.arange(len(splits)), n_held_out)
            self._training_rows = np.concatenate(fitted.training_rows)
            self._training_folds = np.repeat(
                np.arange(len(fitted.training_rows)),
                list(map(len, fitted.training_rows)),
            )
            self._set_calibration(fitted.scores, fitted.peaks, fitted.folds, groups)
            self._adopt_features(self.estimators_[0])
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

    def _set_calibration(
        self, scores: NDArray, peaks: NDArray, folds: NDArray, groups: NDArray | None
    ) -> None:
        self.calibration_scores_ = scores
        self.calibration_folds_ = folds
        if groups is not None:
            self.calibration_groups_ = groups
        self.alpha_ = self.alpha
        self.offset_ = self._calibration.offset(self.alpha_)
        self.min_alpha_ = 1 / (self._calibration.n_units + 1)
        if len(peaks):
            self._calibration_peaks = peaks
            self.map_threshold_ = -self._map_calibration.offset(self.alpha_)

    def _estimator_to_fit(self) -> Any:
        """Return the estimator whose clones are fitted."""
        return scoring_part(self.estimator)
