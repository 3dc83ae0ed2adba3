"""Rates of samples that neither detector nor threshold has seen."""

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from helpers import DistanceToMean
from skpatchcore.calibration import (
    ConformalDetector,
    FlaggedShare,
    TunedThresholdDetector,
    _conformal,
    held_out_share,
    rate_range,
    share_of_other_half,
    tuned_shares,
)
from skpatchcore.model_selection import OneClassKFold


class Memory(DistanceToMean):
    """Flags every sample that it was not fitted on."""

    def fit(self, X, y=None):
        self.known_ = {tuple(x) for x in X}
        return super().fit(X, y)

    def predict(self, X):
        return np.array([1 if tuple(x) in self.known_ else -1 for x in X])


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(120, 3))


def test_a_share_comes_with_its_exact_interval():
    share = FlaggedShare(0, 59)
    assert share.interval == pytest.approx((0, 1 - 0.025 ** (1 / 59)))
    assert str(share) == "0 %, 95 % confidence interval 0 to 6.1 %"


def test_all_of_a_sample_are_100_percent():
    share = FlaggedShare(20, 20)
    assert str(share) == "100 %, 95 % confidence interval 83 to 100 %"
    assert str(FlaggedShare(399, 400, independent=False)) == "99.75 %"


def test_samples_in_groups_have_no_interval(X):
    # It would be too narrow: each sample is here three times.
    triples, groups = np.repeat(X, 3, axis=0), np.arange(360) // 3
    detector = ConformalDetector(DistanceToMean(), alpha=0.1)
    share = held_out_share(detector.fit(triples, groups=groups))
    half = share_of_other_half(Memory(), triples, groups=groups, random_state=0)
    for one in (share, half):
        assert one.interval is None
        assert "interval" not in str(one)


@pytest.mark.parametrize("method", ["refit", "cross"])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_fold_is_judged_by_the_others(X, method, grouped):
    groups = np.arange(len(X)) // 3 if grouped else None
    detector = ConformalDetector(
        DistanceToMean(), alpha=0.1, method=method, cv=4, random_state=0
    ).fit(X, groups=groups)
    scores, n_flagged = detector.calibration_scores_, 0
    rows, folds = detector.calibration_indices_, np.repeat(np.arange(4), 30)
    for fold in range(4):
        others = np.flatnonzero(folds != fold)
        for one in np.flatnonzero(folds == fold):
            if grouped:
                units = groups[rows[others]]
                at_most = [
                    np.mean(scores[others[units == unit]] <= scores[one])
                    for unit in np.unique(units)
                ]
            else:
                at_most = scores[others] <= scores[one]
            n_flagged += (1 + np.sum(at_most)) / (len(at_most) + 1) <= 0.1
    assert n_flagged > 0
    assert held_out_share(detector) == (n_flagged, len(X), not grouped)


def test_a_shifted_fold_is_seen(X):
    # All samples of one day differ. The share at the threshold itself would be 4 %.
    shifted = np.r_[X[:90], X[90:] + 5]
    days = [
        (np.setdiff1d(np.arange(120), day), day) for day in np.split(np.arange(120), 4)
    ]
    detector = ConformalDetector(DistanceToMean(), alpha=0.05, cv=days).fit(shifted)
    assert held_out_share(detector).n_flagged >= 30


def test_nothing_is_claimed_of_too_few_samples(X):
    detector = ConformalDetector(DistanceToMean(), alpha=0.05).fit(X[:20])
    assert held_out_share(detector) is None
    assert rate_range(detector) is None


def test_the_range_of_rates_is_that_of_calibration_sets():
    alpha, n = 0.1, 49
    rng = np.random.default_rng(0)
    detector = FrozenEstimator(DistanceToMean().fit(np.zeros((1, 1))))
    new, rates = rng.normal(size=(4000, 1)), []
    for _ in range(400):
        calibrated = ConformalDetector(detector, alpha=alpha)
        calibrated.fit(rng.normal(size=(n, 1)), groups=None)
        rates.append(np.mean(calibrated.predict(new) == -1))
    rates = np.array(rates)
    low, high = rate_range(calibrated)
    assert held_out_share(calibrated) is None
    assert np.mean((rates > low) & (rates < high)) == pytest.approx(0.95, abs=0.03)


def test_split_has_a_range_too_but_not_with_groups(X):
    detector = ConformalDetector(DistanceToMean(), alpha=0.1, method="split")
    assert rate_range(detector.fit(X)) is not None
    assert held_out_share(detector) is None
    assert rate_range(detector.fit(X, groups=np.arange(120) // 2)) is None


def test_a_tuned_threshold_counts_what_it_flags(X):
    y = np.repeat([1, -1], [100, 20])
    shifted = np.r_[X[:100], X[100:] + 2]
    detector = TunedThresholdDetector(DistanceToMean(), cv=OneClassKFold(5))
    normal, anomalous = tuned_shares(detector.fit(shifted, y), y)
    assert (normal.n, anomalous.n) == (100, 20)
    wrong = normal.n_flagged + (20 - anomalous.n_flagged)
    f1 = 2 * anomalous.n_flagged / (2 * anomalous.n_flagged + wrong)
    assert f1 == pytest.approx(detector.best_score_)


def test_one_half_rates_the_other(X):
    assert share_of_other_half(Memory(), X, random_state=0) == (60, 60, True)
    y = np.repeat([1, -1], [80, 40])
    assert share_of_other_half(Memory(), X, y, random_state=0) == (40, 40, True)


def test_halves_keep_groups_together(X):
    twins = np.repeat(X[:30], 4, axis=0)
    groups = np.repeat(np.arange(30), 4)

    share = share_of_other_half(Memory(), twins, groups=groups, random_state=0)
    assert share.n_flagged == share.n == 60


def test_a_rate_that_is_not_supported_is_refused_before_samples_are_compared(
    X, monkeypatch
):
    def fail(*args):
        raise AssertionError("too late")

    monkeypatch.setattr(_conformal, "warn_of_near_duplicates", fail)
    with pytest.raises(ValueError, match="needs at least 199 normal samples"):
        ConformalDetector(DistanceToMean(), alpha=0.005).fit(X)
