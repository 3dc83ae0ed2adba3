"""Exact search by lower bounds in a few dimensions, against a sort in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from helpers import DTYPES, assert_nearest, sample
from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore._neighbors import _projected
from skpatchcore._neighbors._projected import (
    ProjectedSearch,
    _contraction,
    _principal_directions,
    _Space,
)


def correlated(n, d, rank, noise, dtype=np.float32, seed=0):
    """Return rows that vary in `rank` directions, and a little in all others."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(7).normal(size=(rank, d))
    X = rng.normal(size=(n, rank)) @ directions + noise * rng.normal(size=(n, d))
    return (X + 5).astype(dtype)


@pytest.fixture
def small_banks(monkeypatch):
    """Project small banks in the same way as large ones."""
    monkeypatch.setattr(_projected, "_FEWEST_ROWS", 0)
    monkeypatch.setattr(_projected, "_MIN_DIRECTIONS", 1)


def query(bank, queries, k):
    search = ProjectedSearch(torch.from_numpy(bank))
    return search, search.query(torch.from_numpy(queries), k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("n", "d", "rank"), [(90, 24, 3), (1600, 48, 8), (999, 300, 20)]
)
def test_search_in_a_projection_is_exact(small_banks, n, d, rank, k, dtype):
    bank = correlated(n, d, rank, 0.1, dtype)
    queries = np.concatenate(
        [correlated(60, d, rank, 0.1, dtype, seed=1), sample(9, d, dtype), bank[:9]]
    )
    search, found = query(bank, queries, k)
    assert search._projected.points.shape[1] <= rank + 2
    assert_nearest(found, bank, queries, k)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(40, 400),
    d=st.integers(4, 40),
    noise=st.sampled_from([0, 1e-6, 1e-2, 0.1]),
    scale=st.sampled_from([1e-24, 1e-20, 1e-3, 1, 1e12, 1e18]),
    k=st.integers(1, 40),
)
def test_search_is_exact_for_any_spectrum_and_scale(seed, n, d, noise, scale, k):
    rank = 1 + seed % (d // 4 + 1)
    bank, queries = (
        np.float32(scale) * correlated(size, d, rank, noise, seed=seed + i)
        for i, size in enumerate((n, 20))
    )
    bank[n // 2 : n // 2 + 9] = bank[0]
    queries[:5] = bank[:5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_projected, "_FEWEST_ROWS", 0)
        patch.setattr(_projected, "_MIN_DIRECTIONS", seed % 5)
        assert_nearest(query(bank, queries, k)[1], bank, queries, k)


@pytest.mark.parametrize("seed", [2, 4, 5])
@pytest.mark.parametrize("k", [1, 3])
def test_no_neighbor_is_lost_to_cancellation(seed, k):
    """In two dimensions the bound equals the distance, so any error shows."""
    X = np.random.default_rng(seed).normal(size=(8000, 2)) * [1, 0.1]
    state = np.random.RandomState(0).randint(np.iinfo(np.int32).max)
    bank = CoresetSampler(random_state=int(state)).fit_resample(X)
    search, found = query(bank, X, k)
    assert search._projected.points.shape[1] == 2
    assert_nearest(found, bank, X, k)


def test_queries_on_a_grid_over_the_plane_are_scored_exactly():
    X = np.random.default_rng(2).normal(size=(8000, 2)) * [1, 0.1]
    bank = PatchMemoryBank(n_neighbors=3, random_state=0).fit(X)
    axes = np.linspace(-4, 4, 60), np.linspace(-0.4, 0.4, 60)
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    expected = np.sort(cdist(grid, bank.bank_), axis=1)[:, :3].mean(axis=1)
    assert_allclose(-bank.score_samples(grid), expected, rtol=1e-12)


@pytest.mark.parametrize("d", [2, 24, 300])
@pytest.mark.parametrize("noise", [0, 1e-9, 1e-8, 1e-7])
def test_computed_coordinates_are_no_farther_apart_than_proved(d, noise):
    """Cancellation is worst if the projection leaves almost nothing out."""
    bank = correlated(500, d, d // 2, noise, np.float64)
    queries = bank[:50] + 1e-9 * sample(50, d, np.float64)
    basis = np.linalg.svd(bank - bank.mean(axis=0), full_matrices=False)[2][: d // 2].T
    space = _Space(torch.from_numpy(bank), _contraction(torch.from_numpy(basis)))
    points = space.embed(torch.from_numpy(queries))
    _, _, reach, _ = space.products(points)
    apart = cdist(points.numpy(), space.points[:500].numpy())
    differences = queries[:, None].astype(np.longdouble) - bank.astype(np.longdouble)
    exact = np.sqrt(np.square(differences).sum(axis=-1)).astype(np.float64)
    assert np.all(apart - exact <= space.slack(reach).numpy()[:, None])
    # And the bound is tight enough for a projection to few dimensions to be useful.
    assert (space.slack(reach) <= 1e-5 * reach).all()


@pytest.mark.parametrize("d", [2, 40, 300])
@pytest.mark.parametrize("factor", [1, 3, 1e-5])
def test_a_basis_is_brought_to_a_norm_of_at_most_1(d, factor):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d // 2)))[0]
    norm = np.linalg.norm(_contraction(torch.from_numpy(factor * basis)), ord=2)
    assert 1 - 1e-3 < norm <= 1 or (factor < 1 and norm <= 1)


@pytest.mark.parametrize("n_lost", [1, 3])
def test_queries_left_without_candidates_are_compared_with_all_rows(
    small_banks, monkeypatch, n_lost
):
    bank, queries = correlated(900, 40, 5, 0.1), correlated(30, 40, 5, 0.1, seed=1)
    possible_pairs = _Space.possible_pairs

    def lose(self, queries, k, bank):
        query, row = possible_pairs(self, queries, k, bank)
        if self.basis is None:
            return query, row
        kept = query % 4 != 0
        # Some queries lose all rows, others keep a few.
        kept |= torch.arange(len(query)) - torch.searchsorted(query, query) < 3 - n_lost
        return query[kept], row[kept]

    monkeypatch.setattr(_Space, "possible_pairs", lose)
    assert_nearest(query(bank, queries, 3)[1], bank, queries, 3)


def test_a_bank_that_varies_in_many_directions_is_not_projected():
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(3000, 64)))
    assert _principal_directions(X) is None
    assert _principal_directions(torch.ones(3000, 64)) is None
    assert _principal_directions(X[:40]) is None
    assert _principal_directions(X[:, :1]) is None


@pytest.mark.parametrize(("least", "r"), [(1, 6), (9, 9), (64, 32)])
def test_a_basis_keeps_nearly_all_of_the_variance(monkeypatch, least, r):
    monkeypatch.setattr(_projected, "_MIN_DIRECTIONS", least)
    bank = torch.from_numpy(correlated(3000, 64, 6, 0.05, np.float64))
    basis = _principal_directions(bank)
    assert basis.shape == (64, r)
    centered = bank - bank.mean(dim=0)
    kept = (centered @ basis).square().sum() / centered.square().sum()
    assert kept >= _projected._WANTED_VARIANCE
    assert torch.allclose(basis.T @ basis, torch.eye(r, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 8, 384, 1536])
@pytest.mark.parametrize("n_outliers", [0, 1])
@pytest.mark.parametrize("projected", [False, True])
def test_products_err_by_no_more_than_their_bound(d, dtype, n_outliers, projected):
    bank, queries = sample(300, d, dtype) + dtype(5), sample(50, d, dtype, seed=1)
    bank[:n_outliers] *= 100
    queries[:n_outliers] *= 100
    basis = None
    if projected:
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d // 2)))[0]
        basis = torch.from_numpy(basis)
    space = _Space(torch.from_numpy(bank), basis)
    points = space.embed(torch.from_numpy(queries))
    products, norms, _, error = space.products(points)
    squared = (products.flatten(1)[:, :300].double() + norms[:, None]).numpy()
    # In extended precision, because products of float64 data are tested too.
    differences = queries[:, None].astype(np.longdouble) - bank.astype(np.longdouble)
    exact = np.square(differences).sum(axis=-1)
    excess = squared - exact if projected else np.abs(squared - exact)
    assert np.all(excess.max(axis=1).astype(np.float64) <= error.numpy())
    # And the bound is not so loose that it is useless.
    largest = np.linalg.norm(bank, axis=1).max() + np.linalg.norm(queries, axis=1)
    assert np.all(error.numpy() <= 1e-3 * largest**2)


@pytest.mark.parametrize("n_copies", [1, 40])
def test_queries_with_many_possible_neighbors_are_answered_exactly(
    small_banks, monkeypatch, n_copies
):
    bank = correlated(800, 64, 2, 0.2)
    copies = np.repeat(correlated(5, 64, 2, 0.2, seed=3), n_copies, axis=0)
    queries = np.concatenate([bank[:20], copies])
    crowded = 0
    answer = ProjectedSearch._query_whole

    def count(self, queries, k):
        nonlocal crowded
        crowded += len(queries)
        return answer(self, queries, k)

    monkeypatch.setattr(ProjectedSearch, "_query_whole", count)
    assert_nearest(query(bank, queries, 2)[1], bank, queries, 2)
    assert 0 < crowded < len(queries)


def test_few_rows_are_compared_directly(small_banks, monkeypatch):
    n_compared = 0
    paired = _projected.paired_distances

    def count(a, rows_a, b, rows_b):
        nonlocal n_compared
        n_compared += len(rows_a)
        return paired(a, rows_a, b, rows_b)

    monkeypatch.setattr(_projected, "paired_distances", count)
    bank, queries = correlated(4000, 64, 6, 0.02), correlated(200, 64, 6, 0.02, seed=1)
    query(bank, queries, 1)
    assert 200 <= n_compared < 0.01 * 200 * 4000


@pytest.mark.parametrize("n_threads", [1, 3])
def test_answers_do_not_depend_on_threads_and_blocks(
    small_banks, monkeypatch, n_threads
):
    bank, queries = correlated(900, 40, 5, 0.1), correlated(70, 40, 5, 0.1, seed=1)
    _, expected = query(bank, queries, 3)
    monkeypatch.setattr(_projected, "_BLOCK_ELEMENTS", {"cpu": 10_000})
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        _, found = query(bank, queries, 3)
    finally:
        torch.set_num_threads(before)
    assert_array_equal(found[0], expected[0])
    assert_array_equal(found[1], expected[1])
