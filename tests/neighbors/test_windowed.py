"""Test neighbours in a window of grid positions against float64 over all rows."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore._neighbors import _windowed
from skpatchcore._neighbors._index import build_index
from skpatchcore._neighbors._windowed import (
    PositionSearch,
    covered_positions,
    reference_positions,
)


def naive_query(bank, allowed, queries, k):
    """Return squared distances and rows of the pairs that `allowed` (n, m) permits."""
    found = []
    for query, seen in zip(queries.astype(np.float64), allowed, strict=True):
        squared = np.square(bank.astype(np.float64) - query).sum(axis=1)
        if seen.sum() >= k:
            squared[~seen] = np.inf
        rows = squared.argsort(kind="stable")[:k]
        found.append((squared[rows], rows))
    squared, rows = zip(*found, strict=True)
    return np.array(squared), np.array(rows)


def naive_allowed(pairs, n_bank, positions, grid, window):
    allowed = np.zeros((len(positions), n_bank), dtype=bool)
    for row, place in pairs:
        (a, b), (r, c) = divmod(place, grid[1]), np.divmod(positions, grid[1])
        near = (abs(a - r) <= window[0] // 2) & (abs(b - c) <= window[1] // 2)
        allowed[near, row] = True
    return allowed


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(*[st.sampled_from([1, 3, 5, 99])] * 2),
    n_bank=st.integers(1, 30),
    k=st.integers(1, 4),
    coarse=st.booleans(),
    seed=st.integers(0, 10),
)
def test_neighbours_equal_those_of_all_allowed_rows(
    grid, window, n_bank, k, coarse, seed
):
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(2, 40, 3)).astype(np.float32)
    if coarse:
        # Rounding makes many distances equal.
        bank, queries = np.round(bank), np.round(queries)
    bank, k = bank[:n_bank], min(k, n_bank)
    n_positions = grid[0] * grid[1]
    pairs = covered_positions(
        rng.integers(n_positions, size=50), rng.integers(n_bank, size=50)
    )
    positions = rng.integers(n_positions, size=len(queries))
    search = PositionSearch(build_index(bank, device="cpu"), pairs, grid, window)
    found = search.query(queries, positions, k)
    allowed = naive_allowed(pairs, n_bank, positions, grid, window)
    squared, rows = naive_query(bank, allowed, queries, k)
    assert_array_equal(found[1], rows)
    assert_allclose(found[0], squared, rtol=1e-12, atol=1e-12)


def test_positions_in_another_grid_are_those_of_the_patch_centres():
    assert_array_equal(reference_positions(np.array([[2, 3]]), (2, 3)), np.arange(6))
    assert_array_equal(reference_positions(np.array([[1, 2]]), (3, 4)), [5, 7])
    assert_array_equal(reference_positions(np.array([[1, 4]]), (1, 2)), [0, 0, 1, 1])


# In the memory bank -----------------------------------------------------------------


def patches(n, h=6, w=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, h, w, 4)).astype(np.float32)


def make_bank(window=3, **params):
    params = {"sampler": CoresetSampler(0.2), "random_state": 0} | params
    return PatchMemoryBank(position_window=window, **params)


class FirstRows(BaseEstimator):
    """A sampler that has only `sample_indices_`."""

    def fit(self, X, y=None):
        self.sample_indices_ = np.arange(40)
        return self


def allowed_at(bank, X, training, window):
    """Return which bank rows each patch may be compared with, by definition."""
    height, width = training.shape[1:3]
    nearest = getattr(bank.sampler_, "nearest_picks_", None)
    covered = (
        bank.bank_indices_ if nearest is None else np.arange(training[..., 0].size)
    )
    nearest = np.arange(len(bank.bank_)) if nearest is None else nearest
    pairs = np.stack([nearest, covered % (height * width)], axis=1)
    positions = np.tile(np.arange(height * width), len(X))
    return naive_allowed(
        pairs, len(bank.bank_), positions, (height, width), (window, window)
    )


@pytest.mark.parametrize("sampler", [CoresetSampler(0.2), FirstRows()])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("window", [1, 3])
def test_patches_match_rows_that_represent_near_positions(
    window, n_neighbors, metric, sampler
):
    training, X = patches(8), patches(3, seed=1)
    bank = make_bank(window, sampler=sampler, n_neighbors=n_neighbors, metric=metric)
    distances, rows = bank.fit(training).kneighbors(X)
    allowed = allowed_at(bank, X, training, window)
    expected = naive_query(bank.bank_, allowed, X.reshape(-1, 4), n_neighbors)
    squared = expected[0] if metric == "sqeuclidean" else np.sqrt(expected[0])
    assert_array_equal(rows.reshape(-1, n_neighbors), expected[1])
    assert_allclose(distances.reshape(-1, n_neighbors), squared, rtol=1e-12)
    assert_allclose(bank.training_scores_, bank.score_samples(training), rtol=1e-12)


def test_a_window_as_large_as_the_grid_restricts_nothing():
    training, X = patches(8), patches(3, seed=1)
    wide, plain = make_bank((11, 9)).fit(training), make_bank(None).fit(training)
    for found, expected in zip(wide.kneighbors(X), plain.kneighbors(X), strict=True):
        assert_array_equal(found, expected)
    assert wide.offset_ == plain.offset_


def test_a_normal_patch_in_a_wrong_place_is_an_anomaly():
    X = 0.01 * patches(10)
    X[:, :3] += 10
    swapped = X[:1, ::-1]
    assert make_bank(None, contamination=0.1).fit(X).score_samples(swapped) > -0.1
    assert make_bank(1).fit(X).score_samples(swapped) < -10


def test_every_training_position_has_a_row_to_match():
    """Even with few rows: each represents all patches that it is nearest to."""
    X = patches(8)
    bank = make_bank(1, sampler=CoresetSampler(3)).fit(X)
    _, rows = bank.kneighbors(X)
    matched = np.unique(rows.reshape(8, -1), axis=None)
    assert set(matched) <= {0, 1, 2}
    assert set(bank._bank_positions[:, 1]) == set(range(30))


def test_scores_do_not_depend_on_the_batch(monkeypatch):
    bank, X = make_bank().fit(patches(8)), patches(6, seed=1)
    together = bank.score_patches(X)
    alone = np.concatenate([bank.score_patches(X[i : i + 1]) for i in range(6)])
    assert_array_equal(together, alone)
    monkeypatch.setattr(_windowed, "_BLOCK_ELEMENTS", 1)
    assert_array_equal(bank.score_patches(X), alone)


def test_grids_of_other_shapes_are_scaled():
    """In images of twice the size, the relative position of a patch counts."""
    X, new = patches(8), patches(2, seed=1)
    bank = make_bank().fit(X)
    larger = new.repeat(2, axis=1).repeat(2, axis=2)
    expected = bank.score_patches(new).repeat(2, axis=1).repeat(2, axis=2)
    assert_array_equal(bank.score_patches(larger), expected)


def test_copies_search_the_same_window():
    bank = make_bank((3, 1)).fit(patches(8))
    bank.score_samples(patches(2))
    copied = pickle.loads(pickle.dumps(bank))
    assert not hasattr(copied, "_position_search")
    X = patches(3, seed=1)
    assert_array_equal(copied.score_samples(X), bank.score_samples(X))


@pytest.mark.parametrize("window", [None, 3])
def test_another_window_counts_from_the_next_fit_on(window):
    X, training = patches(3, seed=1), patches(8)
    bank = make_bank(window).fit(training)
    before = bank.score_samples(X)
    bank.set_params(position_window=5)
    assert_array_equal(bank.score_samples(X), before)
    expected = make_bank(5).fit(training).score_samples(X)
    assert_array_equal(bank.fit(training).score_samples(X), expected)


def test_a_cache_changes_nothing_in_windows(tmp_path):
    training, X = patches(8), patches(3, seed=1)
    for window in (None, 1, 3, None):
        plain = make_bank(window).fit(training)
        cached = make_bank(window, memory=tmp_path).fit(training)
        assert_array_equal(cached.score_samples(X), plain.score_samples(X))
        assert cached.offset_ == plain.offset_


@pytest.mark.parametrize("window", [2, (3, 2), (3,), (1, 3, 5), (3, "wide"), (3, -1)])
def test_windows_are_odd_numbers_of_positions(window):
    with pytest.raises(ValueError, match="position_window="):
        make_bank(window).fit(patches(3))


def test_a_window_needs_a_grid():
    with pytest.raises(ValueError, match="needs samples with a grid"):
        make_bank().fit(patches(3).reshape(-1, 4))
    bank = make_bank().fit(patches(3))
    with pytest.raises(ValueError, match="needs samples with a grid"):
        bank.score_samples(patches(3)[None])
    bank.fit(patches(3).reshape(3, 30, 4))
    assert bank.position_grid_ == (1, 30)
