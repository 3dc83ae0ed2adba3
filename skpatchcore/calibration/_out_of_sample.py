"""How often a threshold flags images that its detector was not fitted on."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

from skpatchcore._detectors import fit_clone, held_out_splits, is_frozen
from skpatchcore._utils import encode_groups, normal_rows, num_samples, safe_indexing
from skpatchcore.calibration._conformal import ConformalDetector
from skpatchcore.calibration._p_values import Calibration, n_supported
from skpatchcore.calibration._tuned_threshold import TunedThresholdDetector

_CONFIDENCE = 0.95


class FlaggedShare(NamedTuple):
    """How many of `n` samples are flagged.

    `independent` is False for samples in groups: those of one group mostly agree, so
    there is less to learn from `n` of them.
    """

    n_flagged: int
    n: int
    independent: bool = True

    @property
    def interval(self) -> tuple[float, float] | None:
        """The exact (Clopper-Pearson) 95 % confidence interval of the rate.

        None if samples are not independent, which it requires.
        """
        if not self.independent:
            return None
        ends = binomtest(self.n_flagged, self.n).proportion_ci(_CONFIDENCE)
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        rate = f"{percent(self.n_flagged / self.n)} %"
        if self.interval is None:
            return rate
        low, high = map(percent, self.interval)
        return f"{rate}, 95 % confidence interval {low} to {high} %"


def percent(share: float) -> str:
    """Return a share in per cent, in two digits; 0 and 100 are exact."""
    text = f"{100 * share:.2g}"
    # Rounding must not turn "almost all" into "all", nor write 1e+02 for 100.
    return f"{100 * share:.4g}" if "e+" in text else text


def held_out_share(detector: ConformalDetector) -> FlaggedShare | None:
    """Return how many calibration samples the others would flag.

    Each calibration sample was scored by an estimator that was not fitted on it. Its
    p-value here comes from the samples of the other folds only, so neither the score
    nor the threshold has seen it. The rate at the threshold itself would say nothing:
    it follows from `alpha` and n.

    Parameters
    ----------
    detector : ConformalDetector
        Fitted detector.

    Returns
    -------
    share : FlaggedShare or None
        None if nothing was held out in turn ("split", or a frozen estimator), or if the
        samples of the other folds are too few for `alpha`.
    """
    scores, folds = detector.calibration_scores_, detector.calibration_splits_
    groups = getattr(detector, "calibration_groups_", None)
    if len(np.unique(folds)) < 2:
        return None
    n_flagged = 0
    for fold in np.unique(folds):
        others = folds != fold
        calibration = Calibration(
            scores[others],
            np.zeros(np.sum(others), dtype=int),
            None if groups is None else groups[others],
        )
        if n_supported(detector.alpha_, calibration.n_units) == 0:
            return None
        p_values = calibration.p_values(scores[~others])
        n_flagged += int(np.sum(p_values <= detector.alpha_))
    return FlaggedShare(n_flagged, len(scores), groups is None)


def rate_range(detector: ConformalDetector) -> tuple[float, float] | None:
    """Return between which rates 95 % of all calibration sets of this size fall.

    The rate of one set follows a beta distribution, if the estimator was fitted without
    the calibration samples and these are independent.

    Returns
    -------
    low, high : float or None
        None for samples in groups, and where samples were held out in turn.
    """
    is_apart = detector.method == "split" or is_frozen(detector.estimators_[0])
    if not is_apart or hasattr(detector, "calibration_groups_"):
        return None
    n = len(detector.calibration_scores_)
    rank = n_supported(detector.alpha_, n)
    tail = (1 - _CONFIDENCE) / 2
    low, high = beta.ppf([tail, 1 - tail], rank, n + 1 - rank)
    return float(low), float(high)


def tuned_shares(
    detector: TunedThresholdDetector, y: NDArray, *, grouped: bool = False
) -> tuple[FlaggedShare, FlaggedShare]:
    """Return how many normal, and how many anomalous samples of `fit` are flagged.

    Their scores are those that the threshold was chosen on: by estimators that were not
    fitted on them, unless a frozen one was. `grouped` says that they are in groups.
    """
    flagged = detector.tuning_scores_ < detector.offset_
    normal, anomalous = (
        FlaggedShare(
            int(np.sum(flagged[y == label])), int(np.sum(y == label)), not grouped
        )
        for label in (1, -1)
    )
    return normal, anomalous


def share_of_other_half(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    groups: Any = None,
    random_state: int | None = None,
) -> FlaggedShare:
    """Return how many samples of one half are flagged by an estimator of the other.

    That estimator has the threshold that it sets itself. It is fitted on half of the
    samples only, so it rather flags more than one that is fitted on all. This takes
    about half as long as a fit on all of them.

    Parameters
    ----------
    estimator : estimator
        Outlier detector with ``predict``. It is cloned.
    X : array-like or sequence of images
        Samples.
    y : array-like of shape (n_samples,) or None
        Labels; samples labelled -1 are left out.
    groups : array-like of shape (n_samples,) or None
        No group is in both halves.
    random_state : int or None
        Shuffles the samples before they are divided.

    Raises
    ------
    ValueError
        If there are fewer than 2 samples, or groups, or `estimator` cannot be fitted on
        half of them.
    """
    rows = normal_rows(y, num_samples(X))
    groups = None if groups is None else encode_groups(groups, num_samples(X))
    (train, test), _ = held_out_splits(2, X, rows, random_state, groups=groups)
    fitted = fit_clone(estimator, X, rows[train])
    labels = fitted.predict(safe_indexing(X, rows[test]))
    return FlaggedShare(int(np.sum(labels == -1)), len(test), groups is None)
