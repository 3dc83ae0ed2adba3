"""Equal rows are found by their values, wherever they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from skpatchcore._coreset import _equal_rows
from skpatchcore._coreset._equal_rows import first_equal_rows


def first_of_each(X):
    return np.array([np.flatnonzero((row == X).all(axis=1))[0] for row in X])


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: arrays(dtype, (30, 3), elements=st.sampled_from([-1, -0.0, 0, 2]))
    )
)
def test_the_first_of_equal_rows_is_found(X):
    assert_array_equal(first_equal_rows(X), first_of_each(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 7, 200])
def test_rows_one_unit_in_the_last_place_apart_are_not_equal(d, dtype):
    X = np.random.default_rng(0).normal(size=(1, d)).astype(dtype).repeat(40, axis=0)
    X[20:, -1] = np.nextafter(X[20:, -1], dtype(9))
    assert_array_equal(first_equal_rows(X), np.repeat([0, 20], 20))


@pytest.mark.parametrize("d", [3, 200])
def test_the_answer_does_not_depend_on_blocks_or_strides(monkeypatch, d):
    X = np.random.default_rng(0).normal(size=(50, d))[np.arange(150) % 50]
    monkeypatch.setattr(_equal_rows, "_BLOCK_ELEMENTS", 7 * d)
    assert_array_equal(first_equal_rows(X[:, ::-1]), np.arange(150) % 50)


def test_different_rows_with_one_key_stay_apart(monkeypatch):
    X = np.arange(12.0).reshape(4, 3)
    monkeypatch.setattr(_equal_rows, "_keys", lambda X: np.zeros(len(X), np.uint64))
    assert_array_equal(first_equal_rows(X), np.arange(4))
