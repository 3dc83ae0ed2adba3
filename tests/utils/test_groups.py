"""Groups of samples: calibration by parts, patterns, lists, and near-duplicates."""

import re
import warnings

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    StratifiedGroupKFold,
)

from skpatchcore import CoresetSampler, PatchCoreEnsemble, PatchMemoryBank
from skpatchcore._utils._groups import (
    encode_groups,
    groups_by_pattern,
    groups_from_list,
)
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.calibration._near_duplicates import duplication
from skpatchcore.calibration._p_values import Calibration
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.persistence._validation import check_detector

METHODS = ["cross", "refit", "split", "jackknife+"]
FRAMES = 5


class NearestDistance(OutlierMixin, BaseEstimator):
    """Score samples by the distance to the nearest training sample."""

    def fit(self, X, y=None):
        self.X_ = np.asarray(X)
        return self

    def score_samples(self, X):
        return -np.linalg.norm(np.asarray(X)[:, None] - self.X_, axis=2).min(axis=1)


class DistanceToMean(NearestDistance):
    """Score samples without ties, unlike those of mutual nearest neighbours."""

    def score_samples(self, X):
        return -np.linalg.norm(X - self.X_.mean(axis=0), axis=1)


class TakesGroups(NearestDistance):
    def fit(self, X, y=None, groups=None):
        self.groups_ = groups
        return super().fit(X)


class TakesWeights(NearestDistance):
    def fit(self, X, y=None, sample_weight=None):
        self.sample_weight_ = sample_weight
        return super().fit(X)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_parts(rng, n_parts, frames=FRAMES, d=8):
    """Return rows that represent images of parts, and the part of each row."""
    parts = np.repeat(np.arange(n_parts), frames)
    X = rng.normal(size=(n_parts, d))[parts]
    return X + 0.2 * rng.normal(size=X.shape), parts


def conformal(estimator=None, **params):
    estimator = NearestDistance() if estimator is None else estimator
    return ConformalDetector(estimator, **{"alpha": 0.1, "random_state": 0} | params)


def p_values_by_definition(detector, X):
    """Compute the documented sums in loops, one row at a time."""
    groups = detector.calibration_groups_
    fold_scores = [estimator.score_samples(X) for estimator in detector.estimators_]
    p_values = []
    for row in range(len(X)):
        lower = np.array(
            [
                score <= fold_scores[fold][row]
                for score, fold in zip(
                    detector.calibration_scores_,
                    detector.calibration_folds_,
                    strict=True,
                )
            ]
        )
        shares = [lower[groups == g].mean() for g in np.unique(groups)]
        p_values.append((1 + sum(shares)) / (len(shares) + 1))
    return np.array(p_values)


# Folds ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_no_estimator_saw_the_group_of_a_row_that_it_calibrates(rng, method):
    X, parts = make_parts(rng, 24)
    order = rng.permutation(len(X))
    X, parts = X[order], parts[order]
    detector = conformal(method=method).fit(X, groups=parts)
    held_out = detector.calibration_indices_
    fitted = {"jackknife+": 24, "cross": 5}.get(method, 1)
    assert len(detector.estimators_) == fitted
    if method == "refit":
        return
    for k, estimator in enumerate(detector.estimators_):
        rows = held_out[detector.calibration_folds_ == k]
        distances = np.linalg.norm(X[:, None] - estimator.X_, axis=2).min(axis=1)
        seen = parts[distances == 0]
        assert set(seen).isdisjoint(parts[rows])


@pytest.mark.parametrize(
    "cv", [4, None, GroupKFold(4), LeaveOneGroupOut(), OneClassKFold(4)]
)
def test_splitters_that_accept_groups(rng, cv):
    X, parts = make_parts(rng, 12)
    detector = conformal(cv=cv).fit(X, np.ones(len(X)), groups=parts)
    assert_array_equal(np.sort(detector.calibration_indices_), np.arange(60))
    assert detector.min_alpha_ == 1 / 13


def test_splitters_get_labels_and_groups_of_normal_rows_only(rng):
    X, parts = make_parts(rng, 14)
    y = np.where(parts < 2, -1, 1)
    seen = {}

    class Recorder(GroupKFold):
        def split(self, X, y=None, groups=None):
            seen.update(X=len(X), y=y, groups=groups)
            return super().split(X, y, groups)

    detector = conformal(cv=Recorder(3)).fit(X, y, groups=parts)
    assert seen["X"] == 60
    assert_array_equal(seen["y"], np.ones(60))
    assert len(np.unique(seen["groups"])) == detector.calibration_groups_.max() + 1


def test_blocks_that_keep_groups_together_are_accepted(rng):
    X, parts = make_parts(rng, 10)
    detector = conformal(cv=KFold(5)).fit(X, groups=parts)
    assert_array_equal(detector.calibration_groups_, parts)


def test_a_splitter_that_splits_a_group_is_refused(rng):
    X, parts = make_parts(rng, 20)
    with pytest.raises(ValueError, match=r"both sides of split 0.*GroupKFold"):
        conformal(cv=KFold(5, shuffle=True, random_state=0)).fit(X, groups=parts)


def test_row_on_both_sides_of_a_split_is_refused(rng):
    X = rng.normal(size=(20, 2))
    everything = np.arange(20)
    cv = [(everything, everything[:10]), (everything[:10], everything[10:])]
    with pytest.raises(ValueError, match="row 0 on both sides of split 0"):
        conformal(cv=cv).fit(X)


def test_too_few_groups_are_an_error_even_with_many_images(rng):
    X, parts = make_parts(rng, 18, frames=20)
    with pytest.raises(ValueError, match=r"19 groups of normal samples .* got 18"):
        conformal(alpha=0.05).fit(X, groups=parts)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(3), "groups has 3 values, but X has 40 samples"),
        ([None] + 39 * ["a"], "groups has 1 missing values, the first at 0"),
        (np.r_[np.nan, np.ones(39)], "the first at 0"),
        (np.zeros((40, 2)), "1d array"),
    ],
)
def test_wrong_groups(rng, groups, message):
    with pytest.raises(ValueError, match=message):
        conformal().fit(rng.normal(size=(40, 2)), groups=groups)


def test_names_are_groups_too(rng):
    X, parts = make_parts(rng, 12)
    names = np.array([f"part {i:02}" for i in parts], dtype=object)
    by_name = conformal().fit(X, groups=names)
    assert by_name.offset_ == conformal().fit(X, groups=parts).offset_
    assert encode_groups(["b", "a", "b"], 3).tolist() == [1, 0, 1]


def test_an_ensemble_holds_groups_out_too(rng):
    images = rng.integers(0, 255, (12, 24, 24), np.uint8)
    members = [("one", _gabor_detector())]
    torn = PatchCoreEnsemble(members, cv=KFold(3, shuffle=True, random_state=0))
    with pytest.raises(ValueError, match="both sides of split"):
        torn.fit(images, groups=np.arange(12) // 2)
    with pytest.raises(ValueError, match="needs at least 2; got n_samples = 1"):
        PatchCoreEnsemble(members).fit(images, groups=np.zeros(12))


# P-values ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_p_values_weight_groups_of_equal_size_as_documented(rng, method):
    X, parts = make_parts(rng, 20, frames=3)
    detector = conformal(DistanceToMean(), method=method).fit(X, groups=parts)
    new = 1.5 * make_parts(rng, 10)[0]
    expected = p_values_by_definition(detector, new)
    assert_allclose(detector.predict_pvalue(new), expected, rtol=1e-12)
    assert_array_equal(detector.predict(new) == -1, detector.predict_pvalue(new) <= 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_p_values_of_unequal_groups_are_never_too_small(rng, method):
    X, parts = make_parts(rng, 20, frames=rng.integers(1, 9, 20))
    detector = conformal(method=method).fit(X, groups=parts)
    new = 1.5 * make_parts(rng, 10)[0]
    p_values, expected = (
        detector.predict_pvalue(new),
        p_values_by_definition(detector, new),
    )
    n_groups = detector.calibration_groups_.max() + 1
    rounded = 1 / (n_groups + 1) if len(detector.estimators_) > 1 else 1e-12
    assert np.all(p_values >= expected - 1e-12)
    assert np.all(p_values <= expected + rounded)
    assert_array_equal(detector.predict(new) == -1, p_values <= 0.1)


def test_groups_of_one_sample_change_nothing(rng):
    X = rng.normal(size=(40, 3))
    with_groups = conformal(method="split").fit(X, groups=np.arange(40))
    scores, folds = with_groups.calibration_scores_, with_groups.calibration_folds_
    plain = Calibration(scores, folds)
    new = 2 * rng.normal(size=(50, 3))
    assert_array_equal(
        with_groups.predict_pvalue(new), plain.p_values(with_groups.score_samples(new))
    )
    assert with_groups.offset_ == plain.offset(0.1)


def test_a_group_with_many_images_has_the_weight_of_one_group():
    """Otherwise ten images of one bad part would determine the threshold."""
    scores = np.r_[np.full(10, -9.0), np.arange(-8.0, 1.0)]
    groups = np.r_[np.zeros(10, int), np.arange(1, 10)]
    calibration = Calibration(scores, np.zeros(19, int), groups)
    assert_array_equal(calibration.p_values(np.array([-10.0, -9.0])), [1 / 11, 2 / 11])
    assert calibration.offset(0.1) == -9
    assert calibration.offset(2 / 11) == -8


def test_sizes_without_a_small_common_multiple_round_up():
    sizes = [p for p in range(2, 80) if all(p % q for q in range(2, p))]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.arange(len(groups), dtype=float)
    calibration = Calibration(scores, np.zeros(len(groups), int), groups)
    found = calibration.p_values(scores)
    shares = np.cumsum(1 / np.array(sizes)[groups])
    expected = (1 + shares) / (len(sizes) + 1)
    assert np.all(found >= expected * (1 - 1e-12))
    assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("wrong", [[-1, 0], [0, 2], [0, 2**62], [1, 1]])
def test_groups_of_a_model_file_must_be_numbers_without_gaps(rng, wrong):
    X, parts = make_parts(rng, 12, d=2)
    bank = PatchMemoryBank(CoresetSampler(0.5), random_state=0)
    detector = conformal(bank, method="split", alpha=0.3).fit(X, groups=parts)
    check_detector(detector)
    n = len(detector.calibration_groups_)
    detector.calibration_groups_ = np.resize(wrong, n)
    with pytest.raises(ValueError, match="calibration_groups_"):
        check_detector(detector)


# Rates ------------------------------------------------------------------------------


def false_alarms(method, groups_of, frames):
    """Return the mean share of flagged images of new parts, and its standard error."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X, parts = make_parts(rng, 40, frames)
        new, new_parts = make_parts(rng, 40, frames)
        detector = conformal(method=method, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Most samples have a near-duplicate")
            detector.fit(X, groups=groups_of(parts))
        flagged = detector.predict(new) == -1
        shares.append(np.mean(np.bincount(new_parts, flagged) / np.bincount(new_parts)))
    return np.mean(shares), np.std(shares, ddof=1) / np.sqrt(len(shares))


@pytest.mark.parametrize("method", ["cross", "refit", "split"])
@pytest.mark.parametrize("frames", [5, np.resize([1, 10], 40)], ids=["equal", "mixed"])
def test_false_alarm_rate_by_groups_is_at_most_alpha(method, frames):
    rate, error = false_alarms(method, lambda parts: parts, frames)
    assert rate <= 0.1 + 2 * error
    assert rate > 0.03


def test_without_groups_most_new_parts_are_flagged():
    """This is the reason to pass groups."""
    assert false_alarms("cross", lambda parts: None, 5)[0] > 0.8


# Warnings ---------------------------------------------------------------------------

NEAR_DUPLICATE = r"near-duplicate.*groups=.*--group-pattern"


@pytest.mark.parametrize("frames", [5, 10])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("method", ["cross", "split"])
def test_frames_of_parts_give_a_warning(rng, method, frames, shuffled):
    X, _ = make_parts(rng, 20, frames)
    X = rng.permutation(X) if shuffled else X
    with pytest.warns(UserWarning, match=NEAR_DUPLICATE):
        conformal(method=method).fit(X)


def test_images_of_parts_give_a_warning(rng):
    surfaces = make_surface_defects(6, 0, 0, image_size=32, random_state=0).data
    noise = rng.normal(0, 3, (6, 5, *np.shape(surfaces[0])))
    images = np.clip(np.asarray(surfaces)[:, None] + noise, 0, 255).astype(np.uint8)
    images = images.reshape(30, *images.shape[2:])
    with pytest.warns(UserWarning, match=NEAR_DUPLICATE):
        conformal(_gabor_detector(), cv=2).fit(list(images))


def _gabor_detector():
    from skpatchcore import PatchCoreDetector, PatchFeatureTransformer

    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    return PatchCoreDetector(features, CoresetSampler(0.05), random_state=0)


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("d", [1, 2, 5, 50])
def test_independent_samples_give_no_warning(rng, n, d):
    conformal().fit(rng.normal(size=(n, d)))


def test_generated_surfaces_are_not_duplicates():
    surfaces = make_surface_defects(40, 0, 0, image_size=64, random_state=0).data
    assert duplication(np.reshape(surfaces, (40, -1)).astype(float))[1] < 2


def test_equal_samples_have_no_neighbours_that_are_nearer_than_others():
    assert duplication(np.zeros((30, 2))) == (1, 0)


def test_numbers_that_overflow_are_left_to_the_estimator(rng):
    assert duplication(1e200 * rng.normal(size=(30, 2)))[1] == 0


def test_declaring_samples_independent_silences_the_warning(rng):
    X, _ = make_parts(rng, 20)
    conformal().fit(X, groups=range(len(X)))


def test_tuned_threshold_warns_too(rng):
    X, parts = make_parts(rng, 20)
    y = np.where(parts < 4, -1, 1)
    with pytest.warns(UserWarning, match=NEAR_DUPLICATE):
        TunedThresholdDetector(NearestDistance(), cv=4).fit(X, y)


# Routing ----------------------------------------------------------------------------


def test_an_estimator_that_accepts_groups_gets_those_of_its_rows(rng):
    X, parts = make_parts(rng, 12)
    detector = conformal(TakesGroups(), cv=3).fit(X, groups=parts)
    for k, estimator in enumerate(detector.estimators_):
        kept = np.setdiff1d(
            np.arange(60),
            detector.calibration_indices_[detector.calibration_folds_ == k],
        )
        assert_array_equal(estimator.groups_, parts[kept])


def test_other_arguments_need_metadata_routing(rng):
    with pytest.raises(TypeError, match="enable_metadata_routing=True"):
        conformal().fit(rng.normal(size=(20, 2)), sample_weight=np.ones(20))


def test_metadata_are_routed_to_the_estimator(rng):
    X, parts = make_parts(rng, 12)
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = TakesWeights().set_fit_request(sample_weight=True)
        detector = conformal(estimator, cv=GroupKFold(3)).fit(
            X, groups=parts, sample_weight=np.arange(60.0)
        )
    assert [len(e.sample_weight_) for e in detector.estimators_] == [40, 40, 40]


@pytest.mark.parametrize("cv", [3, GroupKFold(3), KFold(3)])
def test_groups_with_metadata_routing_enabled(rng, cv):
    X, parts = make_parts(rng, 12)
    plain = conformal(cv=cv).fit(X, groups=parts)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = conformal(cv=cv).fit(X, groups=parts)
    assert_array_equal(routed.calibration_scores_, plain.calibration_scores_)


def test_a_search_passes_groups_to_its_folds_and_to_the_calibration(rng):
    X, parts = make_parts(rng, 40)
    X[150:] += 9
    y = np.where(np.arange(200) < 150, 1, -1)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            conformal(),
            {"alpha": [0.1, 0.2]},
            scoring=image_auroc_scorer,
            cv=OneClassKFold(2),
            error_score="raise",
        ).fit(X, y, groups=parts)
    assert search.best_estimator_.min_alpha_ == 1 / 31
    assert len(search.best_estimator_.calibration_groups_) == 150


# Tuned thresholds -------------------------------------------------------------------


@pytest.fixture
def labelled(rng):
    X, parts = make_parts(rng, 24)
    y = np.where(parts % 4 == 0, -1, 1)
    X[y == -1] += 1.5
    return X, y, parts


@pytest.mark.parametrize(
    "cv", [4, None, GroupKFold(4), StratifiedGroupKFold(4), OneClassKFold(4)]
)
def test_tuned_threshold_holds_groups_out(labelled, cv):
    X, y, parts = labelled
    detector = TunedThresholdDetector(NearestDistance(), cv=cv)
    detector.fit(X, y, groups=parts)
    # Scores of held-out parts: the nearest sample shows another part.
    assert detector.offset_ < NearestDistance().fit(X[1:]).score_samples(X[:1])[0]


def test_tuned_threshold_refuses_a_splitter_that_splits_groups(labelled):
    X, y, parts = labelled
    with pytest.raises(ValueError, match="both sides of split 0"):
        TunedThresholdDetector(
            NearestDistance(), cv=KFold(3, shuffle=True, random_state=0)
        ).fit(X, y, groups=parts)


def test_tuned_threshold_warns_of_unused_groups_with_a_frozen_estimator(labelled):
    X, y, parts = labelled
    with pytest.warns(UserWarning, match="groups was not used"):
        TunedThresholdDetector(FrozenEstimator(NearestDistance().fit(X))).fit(
            X, y, groups=parts
        )


def test_rows_held_out_more_than_once_get_their_mean_score(rng):
    X = rng.normal(size=(40, 2))
    y = np.repeat([1, -1], [30, 10])
    cv = OneClassKFold(3)
    detector = TunedThresholdDetector(NearestDistance(), cv=cv).fit(X, y)
    scores = np.zeros((3, 40))
    for k, (train, test) in enumerate(cv.split(X, y)):
        scores[k, test] = NearestDistance().fit(X[train]).score_samples(X[test])
    scores[0] = np.where(y == -1, scores.mean(axis=0), scores.sum(axis=0))
    frozen = TunedThresholdDetector(FrozenEstimator(_Given(scores[0]).fit(X)))
    assert detector.offset_ == pytest.approx(frozen.fit(X, y).offset_)


class _Given(NearestDistance):
    def __init__(self, scores):
        self.scores = scores

    def score_samples(self, X):
        return self.scores


# Paths ------------------------------------------------------------------------------

PATHS = ["shift_a/part_007/img_1.png", "shift_b/part_012/img_2.png"]


def test_pattern_names_a_group_by_its_parentheses():
    assert groups_by_pattern(PATHS, r"part_(\d+)").tolist() == ["007", "012"]


def test_pattern_without_parentheses_uses_the_whole_match():
    assert groups_by_pattern(PATHS, r"shift_.").tolist() == ["shift_a", "shift_b"]


def test_pattern_that_finds_nothing_names_the_path():
    with pytest.raises(ValueError, match=f"finds no group in {re.escape(PATHS[1])}"):
        groups_by_pattern(PATHS, r"shift_(a)")


def test_list_names_groups_by_relative_and_absolute_paths(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "sub" / "b.png"]
    (tmp_path / "list.csv").write_text(f"part,path\n7,a.png\n8,{paths[1]}\n9,c.png\n")
    groups = groups_from_list(paths, tmp_path / "list.csv", "part")
    assert groups.tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,part\na.png,7\n", "has no column 'group'"),
        ("file,group\na.png,7\n", "has no column 'path'"),
        ("path,group\nb.png,7\n", "gives no group for"),
        ("path,group\na.png,\n", "gives no group for"),
        ("path,group\na.png,7\na.png,8\n", "line 3: a.png has the groups '7' and '8'"),
        ("", "has no column 'group' or 'path'"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        groups_from_list([tmp_path / "a.png"], tmp_path / "list.csv")


def test_detectors_without_neighbours_accept_groups(rng):
    X, parts = make_parts(rng, 12)
    forest = IsolationForest(n_estimators=5, random_state=0)
    assert conformal(forest).fit(X, groups=parts).predict(X[:1] + 50) == -1
    bank = PatchMemoryBank(CoresetSampler(1.0), random_state=0)
    assert conformal(bank).fit(X[:, None], groups=parts).predict(X[:1, None] + 50) == -1
