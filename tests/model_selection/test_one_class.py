"""One-class folds: their guarantees, and their use in scikit-learn's searches."""

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_validate,
)
from sklearn.neighbors import LocalOutlierFactor

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

Y = np.array([1, 1, -1, 1, 1, -1, 1, -1, 1])
SEARCHES = {
    "grid": GridSearchCV,
    "random": lambda *args, **kwargs: RandomizedSearchCV(*args, n_iter=2, **kwargs),
    "halving": lambda *args, **kwargs: HalvingGridSearchCV(
        *args, min_resources=40, return_train_score=False, **kwargs
    ),
}


def split(y, groups=None, X=None, **params):
    X = np.zeros((len(y), 1)) if X is None else X
    return list(OneClassKFold(**params).split(X, y, groups))


def times_tested(splits, rows):
    """Count how often each of `rows` is in a test fold."""
    return [sum(row in test for _, test in splits) for row in rows]


class PathDetector(OutlierMixin, BaseEstimator):
    """Call a path anomalous if it shares no letter with the training paths."""

    def __init__(self, power=1):
        self.power = power

    def fit(self, X, y=None):
        self.letters_ = set("".join(X))
        return self

    def decision_function(self, X):
        return np.array([len(self.letters_ & set(path)) for path in X]) ** self.power


# Guarantees -------------------------------------------------------------------------


@st.composite
def one_class_problems(draw, grouped=False):
    n_splits = draw(st.integers(2, 4))
    n_normal = draw(st.integers(n_splits, 15))
    n_anomalous = draw(st.integers(0, 10).filter(lambda n: n == 0 or n >= n_splits))
    y = np.array([1] * n_normal + [-1] * n_anomalous)
    y = y[draw(st.permutations(range(len(y))))]
    params = {"n_splits": n_splits, "shuffle": draw(st.booleans())}
    params["outliers"] = draw(st.sampled_from(["all", "split"]))
    if params["shuffle"]:
        params["random_state"] = draw(st.integers(0, 100))
    if not grouped:
        return y, None, params
    groups = np.array(
        draw(st.lists(st.integers(0, 12), min_size=len(y), max_size=len(y)))
    )
    # The minimum number of groups of only normal samples, and of only anomalies.
    for label, offset in ((1, 100), (-1, 200)):
        rows = np.flatnonzero(y == label)[:n_splits]
        groups[rows] = offset + np.arange(len(rows))
    return y, groups, params


@given(st.one_of(one_class_problems(), one_class_problems(grouped=True)))
@settings(deadline=None, max_examples=100)
def test_every_normal_is_tested_once_and_no_anomaly_is_trained_on(problem):
    y, groups, params = problem
    splits = split(y, groups, **params)
    assert len(splits) == params["n_splits"]
    for train, test in splits:
        assert train.dtype == test.dtype == np.int64
        assert np.all(np.diff(train) > 0)
        assert np.all(np.diff(test) > 0)
        assert np.all(y[train] == 1)
        assert not set(train) & set(test)
        # Every normal sample is on one side, and both sides have some.
        assert (y[test] == 1).sum() + len(train) == (y == 1).sum()
        assert len(train)
        assert (y[test] == 1).any()
    assert set(times_tested(splits, np.flatnonzero(y == 1))) == {1}


@given(st.one_of(one_class_problems(), one_class_problems(grouped=True)))
@settings(deadline=None, max_examples=100)
def test_anomalies_are_in_every_fold_or_in_one(problem):
    y, groups, params = problem
    splits = split(y, groups, **params)
    anomalies = np.flatnonzero(y == -1)
    groups = np.arange(len(y)) if groups is None else groups
    beside_normal = np.isin(groups[anomalies], groups[y == 1])
    times = params["n_splits"] if params["outliers"] == "all" else 1
    assert_array_equal(
        times_tested(splits, anomalies), np.where(beside_normal, 1, times)
    )
    if anomalies.size and params["outliers"] == "split":
        assert all(np.any(y[test] == -1) for _, test in splits)


@given(one_class_problems(grouped=True))
@settings(deadline=None, max_examples=100)
def test_no_group_is_on_both_sides(problem):
    y, groups, params = problem
    splits = split(y, groups, **params)
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test])
    if params["outliers"] == "split":
        folds = {row: fold for fold, (_, test) in enumerate(splits) for row in test}
        for group in set(groups):
            assert len({folds[row] for row in np.flatnonzero(groups == group)}) == 1


@given(st.one_of(one_class_problems(), one_class_problems(grouped=True)))
@settings(deadline=None, max_examples=30)
def test_folds_repeat_with_their_seed(problem):
    y, groups, params = problem
    for first, second in zip(
        split(y, groups, **params), split(y, groups, **params), strict=True
    ):
        assert_array_equal(first[0], second[0])
        assert_array_equal(first[1], second[1])


def test_another_seed_gives_other_folds():
    y = np.repeat([1, -1], [30, 12])
    first, second = (
        np.concatenate([test for _, test in split(y, shuffle=True, **params)])
        for params in (
            {"random_state": 0, "outliers": "split"},
            {"random_state": 1, "outliers": "split"},
        )
    )
    assert not np.array_equal(first[first < 30], second[second < 30])
    assert not np.array_equal(first[first >= 30], second[second >= 30])


@pytest.mark.parametrize("params", [{}, {"shuffle": True, "random_state": 3}])
@pytest.mark.parametrize("groups", [None, np.arange(20) // 3])
def test_without_anomalies_it_equals_the_splitters_of_sklearn(params, groups):
    y = np.ones(20)
    reference = KFold(4, **params) if groups is None else GroupKFold(4, **params)
    expected = reference.split(y, groups=groups)
    for ours, theirs in zip(split(y, groups, n_splits=4, **params), expected):  # noqa: B905
        assert_array_equal(ours[0], theirs[0])
        assert_array_equal(ours[1], theirs[1])


def test_anomalies_of_one_kind_are_distributed_over_the_folds():
    y = np.repeat([1, -1], [6, 8])
    kinds = np.repeat(["good", "crack", "stain"], [6, 4, 4])
    for _, test in split(y, n_splits=4, outliers="split"):
        assert set(kinds[test]) == {"good", "crack", "stain"}


def test_an_anomaly_is_tested_where_its_group_is_held_out():
    y = np.array([1, 1, 1, 1, -1, -1])
    groups = ["a", "a", "b", "b", "a", "c"]
    for _, test in split(y, groups, n_splits=2):
        assert (4 in test) == (0 in test)
        assert 5 in test


def test_free_anomalies_balance_those_with_a_fixed_fold():
    y = np.array([1, 1, -1, -1, -1, -1])
    splits = split(y, [0, 1, 0, 0, 2, 3], n_splits=2, outliers="split")
    assert [np.sum(y[test] == -1) for _, test in splits] == [2, 2]


@pytest.mark.parametrize(
    "groups",
    [list("aabbccddd"), pd.Series(list("aabbccddd")), np.array(list("aabbccddd"))],
    ids=["list", "Series", "array"],
)
def test_labels_and_groups_come_in_any_container(groups):
    expected = split(Y, [0, 0, 1, 1, 2, 2, 3, 3, 3], n_splits=2)
    for y in (Y.tolist(), pd.Series(Y), Y.astype(float)):
        for ours, theirs in zip(split(y, groups, n_splits=2), expected, strict=True):
            assert_array_equal(ours[1], theirs[1])


def test_it_is_a_splitter_of_sklearn():
    cv = OneClassKFold(3, shuffle=True, random_state=0, outliers="split")
    assert cv.get_n_splits() == cv.get_n_splits([1], [1], [1]) == 3
    assert repr(cv) == (
        "OneClassKFold(n_splits=3, outliers='split', random_state=0, shuffle=True)"
    )
    again = pickle.loads(pickle.dumps(cv))
    for ours, theirs in zip(again.split(Y, Y), cv.split(Y, Y), strict=True):
        assert_array_equal(ours[1], theirs[1])


# Errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "params", "message"),
    [
        (None, {}, r"needs y, the labels \+1 \(normal\) and -1 .*got y=None"),
        (
            [0, 0, 1],
            {},
            r"y must contain .*got 0, 1\. If 1 .*np\.where\(y == 1, -1, 1\)",
        ),
        (["good", "bad", "good"], {}, r"got 'bad', 'good'.*np\.where\(y == 'good'"),
        ([1.0, np.nan, -1.0], {}, "got -1.0, 1.0, nan"),
        ([-1, -1], {}, r"None of the 2 samples is labelled \+1"),
        ([], {}, r"None of the 0 samples is labelled \+1"),
        ([1, 1, -1], {}, r"n_splits=5, but .* only 2 normal sample\(s\) among 3"),
        (
            [1, 1, 1, -1],
            {"n_splits": 3, "outliers": "split"},
            r'outliers="split" leaves 2 of n_splits=3 folds without any of the 1',
        ),
    ],
)
def test_invalid_labels_are_refused(y, params, message):
    X = np.zeros((3 if y is None else len(y), 1))
    with pytest.raises(ValueError, match=message):
        next(OneClassKFold(**params).split(X, y))


@pytest.mark.parametrize(
    ("y", "groups", "outliers", "message"),
    [
        (
            [1, 1, -1],
            [0, 0, 1],
            "all",
            r"only 1 group\(s\) with normal samples among 3",
        ),
        ([1, 1, -1, -1], [0, 1, 2, 2], "split", "leaves 1 of n_splits=2 folds"),
        ([1, 1, -1, -1], [0, 1, 0, 0], "split", "leaves 1 of n_splits=2 folds"),
        ([1, 1, -1], [0, 1], "all", "groups has 2 values, but X has 3 samples"),
        ([1, 1, -1], [0, 1, np.nan], "all", "groups has 1 missing values"),
    ],
)
def test_invalid_groups_are_refused(y, groups, outliers, message):
    with pytest.raises(ValueError, match=message):
        split(y, groups, n_splits=2, outliers=outliers)


def test_the_numbers_of_labels_and_samples_must_agree():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 4\]"):
        split([1, 1, 1, -1], X=["a", "b", "c"], n_splits=2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_splits": 1}, "n_splits=1"),
        ({"n_splits": 2.0}, "must be of Integral type"),
        ({"random_state": 0}, "random_state has no effect"),
        ({"outliers": "none"}, 'outliers must be "all" or "split", got \'none\''),
        ({"outliers": None}, 'outliers must be "all" or "split", got None'),
    ],
)
def test_wrong_parameters_are_refused_on_creation(params, message):
    with pytest.raises(ValueError, match=message):
        OneClassKFold(**params)


# In searches ------------------------------------------------------------------------


@pytest.fixture
def samples():
    """Return normal samples followed by anomalies, as loaders list folders."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(90, 2)), rng.normal(4, 1, size=(30, 2))])
    return X, np.repeat([1, -1], [90, 30])


def test_it_gives_finite_scores_where_sklearns_splitters_do_not(samples):
    X, y = samples
    detector = LocalOutlierFactor(novelty=True)
    scoring = {"scoring": "roc_auc", "return_indices": True}
    with pytest.warns(match="Only one class"):
        plain = cross_validate(detector, X, y, cv=KFold(5), **scoring)
    assert np.isnan(plain["test_score"]).any()
    stratified = cross_validate(detector, X, y, cv=StratifiedKFold(5), **scoring)
    assert all(np.any(y[train] == -1) for train in stratified["indices"]["train"])

    ours = cross_validate(detector, X, y, cv=OneClassKFold(5), **scoring)
    assert np.all(ours["test_score"] > 0.95)


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_refit_on_it(samples, search, routing):
    X, y = samples
    with config_context(enable_metadata_routing=routing):
        search = SEARCHES[search](
            PatchMemoryBank(CoresetSampler(0.5), random_state=0),
            {"n_neighbors": [1, 3]},
            scoring=image_auroc_scorer,
            cv=OneClassKFold(3, shuffle=True, random_state=0),
            error_score="raise",
        ).fit(X, y)
    assert search.best_score_ > 0.95
    assert search.best_estimator_.predict(X).shape == y.shape
    assert clone(search).cv.shuffle


@pytest.mark.parametrize("routing", [False, True])
def test_it_gets_groups_with_and_without_routing(samples, routing):
    X, y = samples
    groups = np.arange(len(y)) // 6
    cv = OneClassKFold(3)
    given = {"params": {"groups": groups}} if routing else {"groups": groups}
    detector = LocalOutlierFactor(novelty=True)
    with config_context(enable_metadata_routing=routing):
        result = cross_validate(
            detector,
            X,
            y,
            cv=cv,
            scoring=image_auroc_scorer,
            return_indices=True,
            **given,
        )
        search = GridSearchCV(
            detector, {"n_neighbors": [5, 9]}, cv=cv, scoring=image_auroc_scorer
        ).fit(X, y, groups=groups)
    seen = result["indices"]
    for train, test in zip(seen["train"], seen["test"], strict=True):
        assert not set(groups[train]) & set(groups[test])
    expected = split(y, groups, n_splits=3)
    for ours, theirs in zip(seen["test"], expected, strict=True):
        assert_array_equal(ours, theirs[1])
    assert search.n_splits_ == 3


def test_a_request_for_groups_can_be_renamed(samples):
    X, y = samples
    with config_context(enable_metadata_routing=True):
        cv = OneClassKFold(3).set_split_request(groups="parts")
        result = cross_validate(
            LocalOutlierFactor(novelty=True),
            X,
            y,
            cv=cv,
            scoring=image_auroc_scorer,
            params={"parts": np.arange(len(y)) // 30},
            return_indices=True,
        )
    assert_array_equal(result["indices"]["test"][1] // 30, np.repeat([1, 3], 30))


def test_samples_may_be_paths():
    X = ["ab", "ba", "bb", "aa", "xy", "yx"]
    y = [1, 1, 1, 1, -1, -1]
    search = GridSearchCV(
        PathDetector(),
        {"power": [1, 2]},
        scoring=image_auroc_scorer,
        cv=OneClassKFold(2),
        error_score="raise",
    ).fit(X, y)
    assert search.best_score_ == 1.0


def test_split_anomalies_let_every_sample_be_predicted_once(samples):
    X, y = samples
    predicted = cross_val_predict(
        PatchMemoryBank(random_state=0), X, y, cv=OneClassKFold(3, outliers="split")
    )
    assert np.mean(predicted == y) > 0.9
