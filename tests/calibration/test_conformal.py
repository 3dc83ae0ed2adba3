"""Conformal thresholds and p-values, tuned thresholds, readable scores."""

import pickle

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    LeaveOneOut,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._backbones._backbone import Backbone
from skpatchcore._detectors._cross_fit import features_once
from skpatchcore._detectors._find import uncached_features
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.calibration._p_values import Calibration, anomaly_score, n_supported
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.persistence import load, save
from skpatchcore.scoring import score_images
from tests.helpers import DistanceToMean, NotANumber

METHODS = ["split", "cross", "refit"]


class OnlyDecisionFunction(DistanceToMean):
    def decision_function(self, X):
        return super().score_samples(X) + 1

    score_samples = property()


DETECTORS = {
    "distance": DistanceToMean(),
    "bank": PatchMemoryBank(random_state=0),
    "forest": IsolationForest(n_estimators=10, random_state=0),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def conformal(estimator=None, **params):
    estimator = DistanceToMean() if estimator is None else estimator
    return ConformalDetector(estimator, **{"alpha": 0.1, "random_state": 0} | params)


def p_values_by_definition(detector, X):
    """Count in loops what the class documents."""
    n = len(detector.calibration_scores_)
    scores = [estimator.score_samples(X) for estimator in detector.estimators_]
    counts = [
        sum(
            score <= scores[fold][row]
            for score, fold in zip(
                detector.calibration_scores_, detector.calibration_folds_, strict=True
            )
        )
        for row in range(len(X))
    ]
    return (1 + np.array(counts)) / (n + 1)


# Counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DETECTORS)
def test_p_values_are_the_counts_of_the_definition(rng, name, method):
    X, new = rng.normal(size=(40, 3)), 2 * rng.normal(size=(60, 3))
    detector = conformal(DETECTORS[name], method=method).fit(X)
    p_values = detector.predict_pvalue(new)
    expected = p_values_by_definition(detector, new)
    if len(np.unique(detector.calibration_scores_)) == 40 or method != "cross":
        assert_array_equal(p_values, expected)
    # Nearest neighbours of each other have equal scores, by different estimators.
    assert np.all((p_values >= expected) & (p_values <= expected + 1 / 41))
    assert_array_equal(detector.predict(new) == -1, p_values <= detector.alpha)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_scores_are_of_samples_not_fitted_on(rng, method):
    X = rng.normal(size=(30, 2))
    detector = conformal(method=method, cv=3).fit(X)
    rows = detector.calibration_indices_
    assert len(set(rows)) == len(rows)
    if method == "split":
        assert len(rows) == 15
        fold_means = {0: np.delete(X, rows, axis=0).mean(axis=0)}
        folds = np.zeros(15, int)
    else:
        folds = np.repeat(np.arange(3), 10)
        fold_means = {
            k: np.delete(X, rows[folds == k], axis=0).mean(axis=0) for k in range(3)
        }
    expected = [
        -np.linalg.norm(X[i] - fold_means[k]) for i, k in zip(rows, folds, strict=True)
    ]
    assert_allclose(detector.calibration_scores_, expected)
    assert detector.min_alpha_ == 1 / (len(rows) + 1)


def test_refit_scores_with_one_estimator_fitted_on_everything(rng):
    X = rng.normal(size=(30, 2))
    detector = conformal(method="refit").fit(X)
    assert len(detector.estimators_) == 1
    assert_allclose(detector.estimators_[0].mean_, X.mean(axis=0))
    assert len(detector.calibration_scores_) == 30


def test_refit_is_no_less_cautious_than_cross_where_more_data_raise_scores(rng):
    X, new = rng.normal(size=(40, 5, 3)), rng.normal(size=(200, 5, 3))
    bank = PatchMemoryBank(CoresetSampler(1.0))
    cross = conformal(bank).fit(X).predict_pvalue(new)
    refit = conformal(bank, method="refit").fit(X).predict_pvalue(new)
    assert np.all(refit >= cross)


@given(
    st.lists(st.integers(-3, 3), min_size=9, max_size=40),
    st.lists(st.integers(-4, 4), min_size=1, max_size=10),
    st.integers(1, 4),
    st.floats(0.1, 0.9),
)
def test_ties_keep_decision_and_p_value_together(calibration, new, n_folds, alpha):
    scores = np.array(calibration, float)
    held = Calibration(scores, np.arange(len(scores)) % n_folds)
    fold_scores = [np.array(new, float) + fold for fold in range(n_folds)]
    pooled = held.pool(fold_scores)
    p_values = held.p_values(pooled)
    assert_array_equal(pooled < held.offset(alpha), p_values <= alpha)
    by_definition = [
        (1 + sum(s <= fold_scores[f][i] for s, f in zip(held.scores, held.folds)))  # noqa: B905
        / (len(scores) + 1)
        for i in range(len(new))
    ]
    if n_folds == 1:
        assert_array_equal(p_values, by_definition)
    assert np.all(p_values >= by_definition)


@given(st.integers(1, 300), st.integers(1, 300))
def test_levels_are_not_lost_to_rounding(numerator, n):
    """For example 0.29 of 99 samples: 0.29 * 100 < 29 in floating point."""
    assume(numerator <= n)
    assert n_supported(numerator / (n + 1), n) == numerator


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_tie_are_normal(rng, method):
    X = rng.normal(size=(60, 2))
    detector = conformal(DistanceToMean(step=0.5), method=method).fit(X)
    p_values = detector.predict_pvalue(2 * X)
    assert_array_equal(detector.predict(2 * X) == -1, p_values <= 0.1)
    scores = detector.score_samples(2 * X)
    assert np.all(detector.predict(2 * X)[scores == detector.offset_] == 1)


def test_one_constant_score_flags_nothing():
    detector = conformal(DistanceToMean(step=1e9)).fit(np.arange(20.0).reshape(10, 2))
    X = np.array([[0.0, 0.0], [99.0, 99.0]])
    assert_array_equal(detector.predict_pvalue(X), [1, 1])
    assert_array_equal(detector.predict(X), [1, 1])
    assert_array_equal(detector.predict_anomaly_score(X), [0.5, 0.5])


# Rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["split", "cross"])
@pytest.mark.parametrize("name", DETECTORS)
def test_false_alarm_rate_of_new_samples_is_at_most_alpha(name, method):
    """Mean over independent data sets, within two of its standard errors."""
    flagged = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X, new = rng.normal(size=(110, 3)), rng.normal(size=(200, 3))
        params = {"cv": 3, "calibration_size": 99}
        detector = conformal(DETECTORS[name], method=method, **params).fit(X)
        p_values = detector.predict_pvalue(new)
        flagged.append([np.mean(p_values <= alpha) for alpha in (0.05, 0.01)])
    error = np.std(flagged, axis=0, ddof=1) / np.sqrt(len(flagged))
    assert np.all(np.mean(flagged, axis=0) <= [0.05, 0.01] + 2 * error)
    if method == "split":
        assert np.all(np.mean(flagged, axis=0) >= [0.05, 0.01] - 3 * error)


def test_in_sample_threshold_flags_more_than_it_says(rng):
    """What calibrating is for."""
    X, new = rng.normal(size=(100, 16, 4)), rng.normal(size=(2000, 16, 4))
    bank = PatchMemoryBank(CoresetSampler(0.3), contamination=0.05, random_state=0)
    assert np.mean(bank.fit(X).predict(new) == -1) > 0.075
    assert np.mean(conformal(bank, alpha=0.05).fit(X).predict(new) == -1) < 0.06


# Behaviour --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "estimator",
    [
        OneClassSVM(),
        LocalOutlierFactor(novelty=True),
        make_pipeline(StandardScaler(), OneClassSVM()),
        OnlyDecisionFunction(),
    ],
    ids=["svm", "lof", "pipeline", "decision_function"],
)
def test_any_outlier_detector(rng, estimator, method):
    X = rng.normal(size=(40, 3))
    detector = conformal(estimator, method=method).fit(X)
    new = np.concatenate([X[:5], X[:5] + 20])
    assert_array_equal(detector.predict(new)[5:], -1)
    assert_allclose(
        detector.decision_function(new),
        detector.score_samples(new) - detector.offset_,
    )
    again = pickle.loads(pickle.dumps(detector))
    assert_array_equal(again.predict_pvalue(new), detector.predict_pvalue(new))


@pytest.mark.parametrize("method", METHODS)
def test_anomalies_are_left_out(rng, method):
    X = rng.normal(size=(40, 2))
    mixed = np.concatenate([X[:10], X[:5] + 50, X[10:]])
    y = np.repeat([1, -1, 1], [10, 5, 30])
    clean = conformal(method=method).fit(X)
    labelled = conformal(method=method).fit(mixed, y)
    assert labelled.offset_ == clean.offset_
    assert set(labelled.calibration_indices_).isdisjoint(range(10, 15))
    assert_array_equal(clone(clean).fit_predict(mixed, y)[10:15], -1)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_estimator_is_left_alone_and_calibrated_on_all_rows(rng, method):
    X, good = rng.normal(size=(2, 40, 2))
    fitted = DistanceToMean().fit(X)
    detector = conformal(FrozenEstimator(fitted), method=method).fit(good)
    assert_array_equal(detector.calibration_scores_, fitted.score_samples(good))
    assert_array_equal(detector.score_samples(X), fitted.score_samples(X))
    assert clone(detector).estimator.estimator is fitted
    with pytest.raises(NotFittedError):
        conformal(FrozenEstimator(DistanceToMean())).fit(good)


@pytest.mark.parametrize("method", METHODS)
def test_a_score_does_not_depend_on_the_batch(rng, method):
    X = rng.normal(size=(40, 3))
    detector = conformal(method=method, cv=10).fit(X)
    alone = [detector.score_samples(row[np.newaxis])[0] for row in X]
    assert_array_equal(alone, detector.score_samples(X))


def test_jackknife_plus_is_leaving_one_out(rng):
    X = rng.normal(size=(20, 2))
    detector = conformal(cv=LeaveOneOut()).fit(X)
    assert len(detector.estimators_) == 20
    assert_array_equal(
        detector.predict_pvalue(2 * X), p_values_by_definition(detector, 2 * X)
    )


def test_search_over_inner_and_outer_parameters(rng):
    X = np.concatenate([rng.normal(size=(60, 4, 3)), rng.normal(3, 1, (10, 4, 3))])
    y = np.repeat([1, -1], [60, 10])
    grid = {"estimator__sampler__fraction": [0.1, 0.5], "alpha": [0.05, 0.1]}
    bank = PatchMemoryBank(CoresetSampler(random_state=0))
    search = GridSearchCV(
        conformal(bank),
        grid,
        scoring=image_auroc_scorer,
        cv=StratifiedKFold(2),
        error_score="raise",
    ).fit(X, y)
    assert search.best_score_ > 0.9
    best = search.best_estimator_
    assert len(best.calibration_scores_) == 60
    assert_array_equal(search.predict(X[-10:]), -1)


def test_too_few_samples_say_what_they_support(rng):
    X = rng.normal(size=(18, 2))
    with pytest.raises(ValueError, match=r"at least 19 .* got 18.* 1/19 = 0.05264"):
        conformal(alpha=0.05).fit(X)
    conformal(alpha=0.05264).fit(X)
    detector = conformal(alpha=0.05).fit(rng.normal(size=(19, 2)))
    assert_array_equal(detector.predict([[9.0, 9.0], [0.0, 0.0]]), [-1, 1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1}, "alpha"),
        ({"method": "jackknife"}, "method"),
        ({"estimator": LocalOutlierFactor()}, "estimator"),
        ({"cv": TimeSeriesSplit(3)}, "has row 0 in 0 test folds"),
        ({"cv": ShuffleSplit(3)}, "must be in exactly one"),
        ({"cv": 99}, "n_splits=99"),
        ({"method": "split", "calibration_size": 99}, "99"),
    ],
)
def test_wrong_parameters(rng, params, message):
    with pytest.raises(ValueError, match=message):
        conformal(**params).fit(rng.normal(size=(40, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [*METHODS, "jackknife+"])
def test_calibration_scores_that_are_no_numbers_name_the_row(rng, method, bad):
    X = rng.normal(size=(40, 2))
    order = np.random.RandomState(0).permutation(40)
    X[order[:20], 0] = 99  # "split" calibrates on half of the rows, any of these.
    with pytest.raises(ValueError, match=r"NotANumber gave NaN .* row (\d+) of X") as e:
        conformal(NotANumber(bad), method=method).fit(X)
    assert X[int(str(e.value).split("row ")[1].split()[0]), 0] == 99


def test_row_of_a_bad_score_is_counted_in_the_x_of_fit(rng):
    X = rng.normal(size=(40, 2))
    X[7, 0] = 99
    y = np.where(np.arange(40) < 5, -1, 1)
    with pytest.raises(ValueError, match="score of 1 of 7 samples; the first is row 7"):
        conformal(NotANumber()).fit(X, y)


def test_new_samples_with_nan_scores_are_not_called_normal(rng):
    X = rng.normal(size=(40, 2))
    detector = conformal(NotANumber()).fit(X)
    X[3, 0] = 99
    for method in ("predict", "predict_pvalue", "predict_anomaly_score"):
        with pytest.raises(ValueError, match="the first is row 3 of X"):
            getattr(detector, method)(X)


def test_bad_scores_of_files_name_the_file(tmp_path):
    paths = np.array([tmp_path / f"{i}.png" for i in range(20)])

    class Broken(OutlierMixin, BaseEstimator):
        def fit(self, X, y=None):
            return self

        def score_samples(self, X):
            return [np.nan if path == paths[7] else 0 for path in X]

    with pytest.raises(ValueError, match=r"row 7 of X \(.*7\.png\)"):
        conformal(Broken()).fit(paths)


# Readable scores --------------------------------------------------------------------

FINITE = st.floats(-1e150, 1e150)


@settings(max_examples=500)
@given(FINITE, FINITE, st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@example(0.0, 1e-9 * 1.0001, 0.0, 1.0)
@example(1e150, 1e150 * (1 - 2e-9), 0.0, 1.0)
@example(-1e150, -1e150 * (1 - 2e-9), 0.0, 1.0)
def test_anomaly_scores_that_differ_stay_apart(first, second, threshold, scale):
    low, high = sorted([first, second])
    x_low, x_high = (low - threshold) / scale, (high - threshold) / scale
    assume(max(abs(x_low), abs(x_high)) <= 1e150)
    assume(x_high - x_low > 1e-9 * (1 + max(abs(x_low), abs(x_high))))
    below, above = anomaly_score(np.array([low, high]), threshold, scale)
    assert 0 <= below < above <= 1


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(-1e6, 1e6))
def test_anomaly_scores_never_change_the_order(first, second, threshold):
    low, high = sorted([first, second])
    below, above = anomaly_score(np.array([low, high]), threshold, 0.1)
    assert below <= above


def test_anomaly_scores_have_stated_places(rng):
    X = rng.normal(size=(99, 2))
    detector = conformal(alpha=0.05).fit(X)
    scale = np.median(detector.calibration_scores_) - detector.offset_
    assert_allclose(
        anomaly_score(np.array([-1, 0, 1, np.nan]), 0, 1), [1 / 8, 1 / 2, 3 / 4, np.nan]
    )
    new = 3 * X
    scores, expected = detector.predict_anomaly_score(new), detector.score_samples(new)
    assert_array_equal(np.argsort(scores), np.argsort(-expected))
    assert_array_equal(scores > 0.5, detector.predict(new) == -1)
    assert_allclose(
        scores, anomaly_score(-expected, -detector.offset_, scale), rtol=1e-12
    )


def test_just_above_the_threshold_is_above_one_half():
    threshold = 0.1
    value = np.nextafter(threshold, 1)
    assert anomaly_score(np.array([value]), threshold, 1e6) > 0.5


# Maps -------------------------------------------------------------------------------


def make_images(rng, n):
    """Noise of 24 x 32 pixels in grey."""
    return rng.integers(100, 140, (n, 24, 32, 1), np.uint8)


def image_detector(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=24)
    return PatchCoreDetector(features, random_state=0, **params)


@pytest.fixture(scope="module")
def with_maps():
    """A detector for each method, new good images, and one with a bright spot."""
    rng = np.random.default_rng(0)
    good = make_images(rng, 24)
    detectors = {
        method: conformal(image_detector(), method=method, cv=3).fit(good)
        for method in METHODS
    }
    defect = make_images(rng, 1)
    defect[0, 8:14, 10:16] = 255
    return detectors, make_images(rng, 10), defect


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_calibrated_on_the_largest_value_of_held_out_maps(with_maps, method):
    detectors, new, defect = with_maps
    detector = detectors[method]
    n = len(detector.calibration_scores_)
    peaks = np.sort(-detector._map_calibration.scores)
    assert detector.map_threshold_ == peaks[n - n_supported(0.1, n)]
    maps = detector.predict_maps(new)
    assert maps.shape == (10, 24, 32)
    assert_array_equal(detector.predict_masks(new), maps > detector.map_threshold_)
    assert detector.predict_masks(defect)[0, 8:14, 10:16].any()
    assert detector.predict_masks(defect, threshold=np.inf).sum() == 0


def test_peaks_are_those_of_public_maps(rng):
    good, held_out = make_images(rng, 12), make_images(rng, 12)
    fitted = image_detector().fit(good)
    detector = conformal(FrozenEstimator(fitted)).fit(held_out)
    peaks = fitted.predict_maps(held_out, size="resized").max(axis=(1, 2))
    assert_allclose(-detector._map_calibration.scores, peaks, rtol=1e-6)
    assert_allclose(
        detector.calibration_scores_, fitted.score_samples(held_out), rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_normalized_maps_are_in_order_and_dark_for_good_images(with_maps, method):
    detectors, new, defect = with_maps
    detector = detectors[method]
    maps = detector.predict_maps(new, normalized=True)
    plain = detector.predict_maps(new)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert_array_equal(maps > 0.5, detector.predict_masks(new))
    assert_array_equal(np.argsort(maps, axis=None), np.argsort(plain, axis=None))
    assert np.median(maps) < 0.2
    assert detector.predict_maps(defect, normalized=True).max() > 0.5


def test_maps_of_unequal_sizes_are_a_list(with_maps):
    detectors, new, _ = with_maps
    images = [new[0], new[1][:, :28]]
    for detector in detectors.values():
        maps = detector.predict_maps(images, normalized=True)
        assert [m.shape for m in maps] == [(24, 32), (24, 28)]
        assert [m.dtype for m in detector.predict_masks(images)] == [bool, bool]


def test_jackknife_plus_by_name_is_leaving_one_out(rng):
    X = rng.normal(size=(20, 2))
    named = conformal(method="jackknife+", cv=3).fit(X)
    left = conformal(cv=LeaveOneOut()).fit(X)
    assert_array_equal(named.predict_pvalue(2 * X), left.predict_pvalue(2 * X))
    assert_array_equal(named.calibration_indices_, np.arange(20))


@pytest.fixture
def passes(monkeypatch):
    """Count the images that pass a network."""
    seen = []
    call = Backbone.__call__

    def count(network, batch):
        seen.append(len(batch))
        return call(network, batch)

    monkeypatch.setattr(Backbone, "__call__", count)
    return seen


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", ["cross", "refit", "jackknife+"])
def test_each_image_passes_the_network_once_in_fit(rng, method, given, passes):
    good, new = make_images(rng, 12), make_images(rng, 3)
    estimator = image_detector()
    if not given:
        estimator = PatchCoreDetector(random_state=0).set_params(
            features__backbone="gabor",
            features__layers=("fine",),
            features__image_size=24,
        )
    detector = conformal(estimator, method=method, cv=3).fit(good)
    assert sum(passes) == len(good)
    cached = [vars(part)["memory"] for part in parts_of(detector)]
    assert set(cached) == {None}
    assert detector.score_samples(new).shape == (3,)
    plain = [clone(estimator).fit(good[rows]) for rows in training_rows(detector, 12)]
    for one, other in zip(detector.estimators_, plain, strict=True):
        assert repr(one) == repr(other)
        assert_array_equal(one.memory_bank_.bank_, other.memory_bank_.bank_)


def typical_score(estimator, X, y=None):
    return np.mean(estimator.score_samples(X))


def search_for_smoothing(detector):
    return GridSearchCV(
        detector, {"smoothing": [0.0, 4.0]}, cv=2, scoring=typical_score
    )


# Estimators that pass images through a network, in each of the ways they may be nested.
NESTED = {
    "pipeline": lambda: make_pipeline(image_detector()),
    "pipeline of features": lambda: make_pipeline(
        image_detector().features, PatchMemoryBank(random_state=0)
    ),
    "pipeline in a pipeline": lambda: make_pipeline(
        "passthrough", make_pipeline(image_detector())
    ),
    "ensemble": lambda: ensemble(),
    "search": lambda: search_for_smoothing(image_detector()),
    "search in a pipeline": lambda: make_pipeline(
        search_for_smoothing(image_detector())
    ),
    "search over a pipeline": lambda: GridSearchCV(
        Pipeline([("detector", image_detector())]),
        {"detector__smoothing": [0.0, 4.0]},
        cv=2,
        scoring=typical_score,
    ),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("method", ["cross", "refit", "split"])
def test_each_image_passes_the_network_once_in_nested_estimators(
    rng, name, method, passes
):
    good = make_images(rng, 12)
    detector = conformal(NESTED[name](), method=method, cv=3, alpha=0.2).fit(good)
    assert sum(passes) == len(good)
    # The temporary cache is forgotten.
    assert b"skpatchcore-" not in pickle.dumps(detector)
    assert detector.predict_pvalue(make_images(rng, 2)).shape == (2,)


@pytest.mark.parametrize("name", ["detector", *NESTED])
def test_each_image_passes_the_network_once_in_tuning(rng, name, passes):
    X = make_images(rng, 12)
    X[8:, 8:14, 10:16] = 255
    estimator = (NESTED | {"detector": image_detector})[name]()
    detector = TunedThresholdDetector(estimator, cv=2)
    detector.fit(X, np.repeat([1, -1], [8, 4]))
    assert sum(passes) == len(X)
    assert b"skpatchcore-" not in pickle.dumps(detector)


def test_a_cache_of_the_user_is_kept(rng, tmp_path, passes):
    good = make_images(rng, 12)
    detector = conformal(make_pipeline(image_detector(memory=tmp_path)), cv=3)
    detector.fit(good)
    assert sum(passes) == len(good)
    assert {one[0].memory for one in detector.estimators_} == {tmp_path}


def test_default_features_stay_default(rng):
    detector = PatchCoreDetector(random_state=0)
    assert uncached_features(detector) == ["features__memory"]
    assert uncached_features(make_pipeline(detector)) == [
        "patchcoredetector__features__memory"
    ]
    with features_once(make_pipeline(detector), 2) as (given, give_back):
        assert given[0].features.memory is not None
        give_back([given])
    assert given[0].features is None
    assert detector.features is None


def parts_of(detector):
    for one in detector.estimators_:
        bank = one.memory_bank_
        yield from (one, one.features, one.features_, bank, bank.sampler_)


def training_rows(detector, n):
    if detector.method == "refit":
        return [np.arange(n)]
    rows, folds = detector.calibration_indices_, detector.calibration_folds_
    return [np.setdiff1d(np.arange(n), rows[folds == k]) for k in np.unique(folds)]


def test_matches_name_images_of_the_outer_fit(rng):
    good = make_images(rng, 24)
    y = np.repeat([-1, 1], [4, 20])
    for method in ("split", "refit"):
        detector = conformal(image_detector(), method=method, cv=2)
        detector.fit(good, y)
        used = np.setdiff1d(np.arange(4, 24), detector.calibration_indices_)
        used = used if method == "split" else np.arange(4, 24)
        # An image that was fitted on has most of its patches' neighbours in itself
        # or in others that were.
        assert np.isin(detector.nearest_patches(good[:2]).image, used).all()


def test_methods_for_maps_are_there_only_where_the_estimator_has_them(with_maps):
    detectors, new, _ = with_maps
    names = ("predict_maps", "predict_masks", "nearest_patches")
    assert [hasattr(conformal(), name) for name in names] == [False] * 3
    assert [hasattr(detectors["refit"], name) for name in names] == [True] * 3
    assert [hasattr(detectors["cross"], name) for name in names] == [True] * 3
    frozen = conformal(FrozenEstimator(image_detector().fit(new)))
    assert hasattr(frozen, "nearest_patches")
    assert not hasattr(
        conformal().fit(np.arange(40.0).reshape(20, 2)), "map_threshold_"
    )


def test_rim_that_nobody_looked_at_is_nan(rng):
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=24, crop_size=(24, 24)
    )
    good = make_images(rng, 20)
    detector = conformal(PatchCoreDetector(features, random_state=0), cv=2).fit(good)
    maps = detector.predict_maps(good[:1], border="nan", normalized=True)[0]
    assert np.isnan(maps[:, [0, 31]]).all()
    assert np.isfinite(maps[:, 4:28]).all()


# Detectors in detectors -------------------------------------------------------------


def ensemble():
    return PatchCoreEnsemble([("one", image_detector())], cv=2, random_state=0)


def inner_detectors(good, defects):
    """Return detectors with maps that a ConformalDetector may be put round, by name."""
    X = np.concatenate([good, defects])
    y = np.repeat([1, -1], [len(good), len(defects)])
    tuned = TunedThresholdDetector(FrozenEstimator(image_detector().fit(good)))
    tuned.fit(X, y)
    cross = TunedThresholdDetector(image_detector(), cv=2).fit(X, y)
    return {
        "detector": image_detector(),
        "ensemble": ensemble(),
        "tuned": TunedThresholdDetector(image_detector()),
        "tuned fitted": tuned,
        "tuned ensemble": TunedThresholdDetector(ensemble(), cv=2),
        "tuned frozen": TunedThresholdDetector(FrozenEstimator(tuned.estimator_)),
        "frozen": FrozenEstimator(tuned.estimator_),
        "frozen ensemble": FrozenEstimator(ensemble().fit(good)),
        "frozen tuned": FrozenEstimator(tuned),
        "frozen cross-tuned": FrozenEstimator(cross),
    }


INNER = [
    *("detector", "ensemble", "tuned", "tuned fitted", "tuned ensemble"),
    *("tuned frozen", "frozen", "frozen ensemble", "frozen tuned"),
    "frozen cross-tuned",
]


@pytest.fixture(scope="module")
def inner():
    rng = np.random.default_rng(0)
    good, defects = make_images(rng, 12), make_images(rng, 3)
    defects[:, 8:14, 10:16] = 255
    return inner_detectors(good, defects), good, defects


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("method", ["cross", "refit", "split"])
def test_every_method_of_every_combination(inner, name, method):
    detectors, good, defects = inner
    detector = conformal(detectors[name], method=method, cv=2, alpha=0.2).fit(good)
    assert_array_equal(detector.predict(defects), -1)
    assert detector.predict_maps(defects).shape == (3, 24, 32)
    assert detector.predict_masks(defects)[:, 8:14, 10:16].any(axis=(1, 2)).all()
    results = score_images(detector, defects)
    assert_array_equal(results.score, detector.score_samples(defects))
    matches = detector.nearest_patches(good[:2])
    matches = matches.one if "ensemble" in name else matches
    assert matches.image.shape[0] == 2


def test_matches_of_members_name_images_of_the_outer_fit(rng):
    good = make_images(rng, 16)
    y = np.repeat([-1, 1], [4, 12])
    for method in ("split", "refit"):
        detector = conformal(ensemble(), method=method, cv=2, alpha=0.2)
        found = detector.fit(good, y).nearest_patches(good[:2]).one.image
        used = np.setdiff1d(np.arange(4, 16), detector.calibration_indices_)
        assert np.isin(found, used if method == "split" else np.arange(4, 16)).all()


def test_a_tuned_threshold_inside_plays_no_part(rng):
    X = rng.normal(size=(40, 2))
    tuned = conformal(TunedThresholdDetector(DistanceToMean())).fit(X)
    plain = conformal().fit(X)
    assert_array_equal(tuned.calibration_scores_, plain.calibration_scores_)
    assert type(tuned.estimators_[0]) is DistanceToMean


@pytest.mark.parametrize("name", ["tuned fitted", "frozen tuned", "ensemble"])
def test_combinations_survive_a_model_file(inner, name, tmp_path):
    detectors, good, defects = inner
    detector = conformal(detectors[name], method="refit", cv=2, alpha=0.2)
    detector.fit(good, groups=np.arange(12) // 2)
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    assert_array_equal(loaded.predict_pvalue(defects), detector.predict_pvalue(defects))
    assert_array_equal(loaded.predict_masks(defects), detector.predict_masks(defects))
    assert_array_equal(loaded.calibration_groups_, detector.calibration_groups_)


def test_tuned_threshold_has_the_maps_of_its_detector(inner):
    detectors, _, defects = inner
    tuned = detectors["tuned fitted"]
    assert_array_equal(
        tuned.predict_maps(defects, size="grid"),
        tuned.estimator_.predict_maps(defects, size="grid"),
    )
    assert tuned.predict_masks(defects).dtype == bool
    assert tuned.nearest_patches(defects).image.shape[0] == 3
    assert not hasattr(TunedThresholdDetector(DistanceToMean()), "predict_maps")


def test_folds_may_be_a_splitter(rng):
    X = rng.normal(size=(40, 2))
    given_folds = conformal(cv=KFold(4)).fit(X)
    assert_array_equal(given_folds.calibration_indices_, np.arange(40))


# Parameters set after fit -----------------------------------------------------------

AFTER_FIT = {
    "alpha": 0.5,
    "method": "split",
    "cv": 2,
    "calibration_size": 0.9,
    "random_state": 7,
    "estimator": IsolationForest(),
    "estimator__step": 3.0,
}


def answers_of(detector, X):
    names = ["score_samples", "decision_function", "predict"]
    names += ["predict_pvalue", "predict_anomaly_score"]
    found = [getattr(detector, name)(X) for name in names if hasattr(detector, name)]
    return np.concatenate([*found, [detector.offset_]])


@pytest.mark.parametrize("name", AFTER_FIT)
@pytest.mark.parametrize("method", METHODS)
def test_parameters_set_after_fit_change_no_answer(rng, name, method):
    X, new = rng.normal(size=(2, 40, 2))
    detector = conformal(method=method).fit(X)
    expected = answers_of(detector, 2 * new)
    detector.set_params(**{name: AFTER_FIT[name]})
    assert_array_equal(answers_of(detector, 2 * new), expected)
    assert detector.alpha_ == 0.1


@pytest.mark.parametrize(
    "params",
    [
        {"scoring": "recall"},
        {"cv": 2},
        {"estimator": IsolationForest()},
        {"estimator__step": 3.0},
    ],
    ids=lambda params: next(iter(params)),
)
def test_parameters_set_after_tuning_change_no_answer(rng, params):
    X = rng.normal(size=(40, 2))
    detector = TunedThresholdDetector(DistanceToMean(), cv=4)
    detector.fit(X, np.repeat([1, -1], [30, 10]))
    expected = answers_of(detector, 2 * X)
    detector.set_params(**params)
    assert_array_equal(answers_of(detector, 2 * X), expected)


@pytest.mark.parametrize("kind", ["calibrated", "tuned"])
@pytest.mark.parametrize("again", ["fitted", "pickled"])
def test_another_estimator_in_the_frozen_one_changes_no_answer(rng, kind, again):
    X = rng.normal(size=(40, 2))
    frozen = FrozenEstimator(DistanceToMean().fit(X))
    detector = {
        "calibrated": conformal(frozen).fit(X),
        "tuned": TunedThresholdDetector(frozen).fit(X, np.repeat([1, -1], 20)),
    }[kind]
    expected = answers_of(detector, X)
    if again == "pickled":
        detector = pickle.loads(pickle.dumps(detector))
    detector.set_params(estimator__estimator=DistanceToMean().fit(X + 9))
    assert_array_equal(answers_of(detector, X), expected)


def test_a_loaded_detector_keeps_its_frozen_estimator(rng, tmp_path):
    good = make_images(rng, 12)
    frozen = FrozenEstimator(image_detector().fit(good[:6]))
    save(conformal(frozen, alpha=0.2).fit(good[6:]), tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    expected = loaded.score_samples(good)
    loaded.set_params(estimator__estimator=image_detector().fit(good[3:]))
    assert_array_equal(loaded.score_samples(good), expected)


def test_a_file_keeps_the_level_that_the_threshold_was_set_for(rng, tmp_path):
    good = make_images(rng, 12)
    detector = conformal(image_detector(), alpha=0.2, cv=2).fit(good)
    detector.set_params(alpha=0.5)
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    assert (loaded.alpha, loaded.alpha_) == (0.5, 0.2)
    assert loaded.offset_ == detector.offset_


def test_scores_do_not_depend_on_alpha_and_p_values_serve_every_level(rng):
    X, new = rng.normal(size=(2, 60, 2))
    strict, lax = (conformal(alpha=alpha).fit(X) for alpha in (0.05, 0.3))
    assert_array_equal(strict.score_samples(new), lax.score_samples(new))
    assert_array_equal(strict.predict_pvalue(new) <= 0.3, lax.predict(new) == -1)


def test_copies_are_named_as_such(rng):
    X = np.repeat(rng.normal(size=(20, 3)), 2, axis=0)
    with pytest.warns(UserWarning, match="other sample is typically an exact copy. If"):
        conformal().fit(X)
