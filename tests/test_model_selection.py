"""Folds for one-class data."""

import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict, cross_validate
from sklearn.neighbors import LocalOutlierFactor

from skpatchcore import PatchMemoryBank
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

LABELS = np.array([1] * 6 + [-1] * 3)


def splits(cv, y, groups=None):
    return list(cv.split(np.zeros(len(y)), y, groups))


@st.composite
def labelled(draw, with_groups=False):
    y = np.array(draw(st.lists(st.sampled_from([1, -1]), min_size=12, max_size=60)))
    y[:4] = 1
    n_splits = draw(st.integers(2, 4))
    shuffle = draw(st.booleans())
    seed = draw(st.integers(0, 9)) if shuffle else None
    outliers = draw(st.sampled_from(["all", "split"]))
    if outliers == "split":
        y[4:8] = -1
    cv = OneClassKFold(n_splits, shuffle=shuffle, random_state=seed, outliers=outliers)
    if not with_groups:
        return cv, y, None
    groups = np.array(draw(st.lists(st.integers(0, 9), min_size=len(y), max_size=60)))
    groups = np.resize(groups, len(y))
    # Enough groups of normal samples, and of anomalies that stand alone.
    groups[:8] = np.arange(100, 108)
    return cv, y, groups


@given(labelled())
def test_trains_on_normal_rows_and_tests_each_once(case):
    cv, y, _ = case
    found = splits(cv, y)
    assert len(found) == cv.get_n_splits() == cv.n_splits
    for train, test in found:
        assert (y[train] == 1).all()
        assert not set(train) & set(test)
        assert_array_equal(
            np.union1d(train, test[y[test] == 1]), np.flatnonzero(y == 1)
        )
        assert (np.diff(test) > 0).all()
        assert train.dtype == test.dtype == np.int64
    tested = np.concatenate([test for _, test in found])
    times = np.bincount(tested, minlength=len(y))
    assert (times[y == 1] == 1).all()
    assert (times[y == -1] == (1 if cv.outliers == "split" else cv.n_splits)).all()


@given(labelled(with_groups=True))
def test_no_group_is_trained_on_and_tested(case):
    cv, y, groups = case
    for train, test in splits(cv, y, groups):
        assert (y[train] == 1).all()
        assert not set(groups[train]) & set(groups[test])
    tested = np.concatenate([test for _, test in splits(cv, y, groups)])
    assert set(tested) == set(range(len(y)))


def test_an_anomaly_is_tested_where_its_group_is_held_out():
    y = np.array([1, 1, 1, 1, -1, -1])
    groups = np.array(["a", "a", "b", "b", "b", "c"])
    found = {
        tuple(train): tuple(test) for train, test in splits(OneClassKFold(2), y, groups)
    }
    assert found == {(0, 1): (2, 3, 4, 5), (2, 3): (0, 1, 5)}


def test_shuffling_is_seeded():
    y = np.repeat([1, -1], [30, 6])
    cv = OneClassKFold(3, shuffle=True, random_state=0)
    first, second = splits(cv, y), splits(cv, y)
    plain = splits(OneClassKFold(3), y)
    for (a, _), (b, _), (c, _) in zip(first, second, plain, strict=True):
        assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_without_anomalies_the_held_out_normal_rows_are_tested():
    for _, test in splits(OneClassKFold(2), np.ones(4)):
        assert len(test) == 2


@pytest.mark.parametrize(
    ("params", "y", "message"),
    [
        ({}, None, "needs labels"),
        ({}, [0, 1, 1, 0, 1, 1], r"got 0, 1\. If 1 stands for anomalous"),
        ({}, ["good", "bad"] * 5, "got 'bad', 'good'"),
        ({}, [-1] * 9, "None of the 9 samples is normal"),
        ({"n_splits": 7}, LABELS, "at least as many samples with normal.*there are 6"),
        (
            {"n_splits": 4, "outliers": "split"},
            LABELS,
            "as many samples with anomalous samples, but there are 3",
        ),
    ],
)
def test_labels_that_cannot_be_split(params, y, message):
    X = np.zeros(len(LABELS) if y is None else len(y))
    with pytest.raises(ValueError, match=message):
        list(OneClassKFold(**params).split(X, y))


def test_too_few_groups():
    with pytest.raises(ValueError, match=r"as many groups with normal.*there are 1"):
        splits(OneClassKFold(2), np.ones(4), np.zeros(4))


def test_lengths_that_differ():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        list(OneClassKFold(2).split(np.zeros(3), LABELS))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_splits": 1}, "'n_splits' parameter"),
        ({"n_splits": 2.0}, "'n_splits' parameter"),
        ({"outliers": "none"}, "'outliers' parameter"),
        ({"random_state": 0}, "no effect without shuffle"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        OneClassKFold(**params)


def test_repr_and_clone():
    cv = OneClassKFold(3, outliers="split")
    assert repr(cv) == (
        "OneClassKFold(n_splits=3, outliers='split', random_state=None, shuffle=False)"
    )
    assert repr(clone(cv, safe=False)) == repr(cv)


def data(n_normal=30, n_anomalous=10):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_normal + n_anomalous, 4))
    X[n_normal:] += 6
    return X, np.repeat([1, -1], [n_normal, n_anomalous])


@pytest.mark.parametrize("routing", [False, True])
def test_groups_reach_it_in_cross_validate(routing):
    X, y = data()
    groups = np.arange(len(y)) // 5
    with sklearn.config_context(enable_metadata_routing=routing):
        passed = {"params": {"groups": groups}} if routing else {"groups": groups}
        found = cross_validate(
            PatchMemoryBank(random_state=0),
            X,
            y,
            cv=OneClassKFold(3),
            scoring=image_auroc_scorer,
            return_indices=True,
            error_score="raise",
            **passed,
        )
    for part in zip(*found["indices"].values(), strict=True):
        train, test = (groups[rows] for rows in part)
        assert not set(train) & set(test)
    assert (found["test_score"] > 0.9).all()


def test_each_sample_has_one_prediction():
    X, y = data()
    detector = LocalOutlierFactor(novelty=True)
    cv = OneClassKFold(5, outliers="split")
    assert f1_score(y, cross_val_predict(detector, X, y, cv=cv), pos_label=-1) > 0.9
