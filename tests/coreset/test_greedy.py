"""The k-centre greedy against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from helpers import blobs, cover_radii, greedy
from skpatchcore._coreset import _clusters, _cover, _greedy
from skpatchcore._coreset._clusters import Clusters
from skpatchcore._coreset._greedy import cover_of, farthest_from
from skpatchcore._neighbors import _distances

# (n, d): one block, several blocks, many parts; few and many dimensions.
SHAPES = [(2, 1), (17, 2), (40, 3), (300, 8), (700, 64), (900, 128), (2000, 16)]


# Data and definitions ---------------------------------------------------------------


def greedy_one_by_one(X, n_selected, first):
    """Return picks, radii, and the relative lead of each pick over the runner-up."""
    X = X.astype(np.float64)
    nearest, picks, radii, leads = np.full(len(X), np.inf), [first], [], []
    while True:
        nearest = np.minimum(nearest, np.linalg.norm(X - X[picks[-1]], axis=1))
        radii.append(nearest.max())
        if len(picks) == n_selected:
            return np.array(picks), np.array(radii), np.array(leads)
        second, last = np.sort(nearest)[-2:]
        leads.append(1 - second / last if last > 0 else 0.0)
        picks.append(int(nearest.argmax()))


def assert_farthest_first(X, picks, tolerance):
    """Assert that each pick is a farthest row, to within `tolerance` of the largest."""
    assert len(set(picks.tolist())) == len(picks)
    distances = cdist(X.astype(np.float64), X[picks].astype(np.float64))
    so_far = np.minimum.accumulate(distances, axis=1)
    at_pick = so_far[picks[1:], np.arange(len(picks) - 1)]
    farthest = so_far.max(axis=0)[:-1]
    assert np.all(at_pick >= farthest - tolerance * max(distances.max(), 1e-300))


# The kernel -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_picks_are_those_made_one_at_a_time(n, d, dtype):
    X = blobs(n, d, dtype)
    n_selected = max(2, n // 3)
    expected, radii, leads = greedy_one_by_one(X, n_selected, first=n // 2)
    coreset = greedy(X, n_selected, first=n // 2)
    # If two rows tie to within rounding, either is right, and later picks may differ.
    ties = np.flatnonzero(leads < (5e-6 if dtype == np.float32 else 1e-12))
    n_sure = ties[0] + 1 if len(ties) else n_selected
    assert n_sure >= min(n_selected, 30)
    assert_array_equal(coreset.indices[:n_sure], expected[:n_sure])
    assert_allclose(coreset.radii[: n_sure - 1], radii[: n_sure - 1], rtol=1e-5)
    assert_farthest_first(X, coreset.indices, tolerance=1e-6)
    assert_allclose(coreset.radii, cover_radii(X, coreset.indices), rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_picks_do_not_depend_on_the_block_size(monkeypatch, block):
    X = blobs(200, 12, np.float64)
    expected = greedy(X, 80)
    monkeypatch.setattr(_greedy, "_SMALLEST_BLOCK", block)
    monkeypatch.setattr(_greedy, "_LARGEST_BLOCK", block)
    monkeypatch.setattr(_clusters, "_BLOCK_ELEMENTS", 1000)
    coreset = greedy(X, 80)
    assert_array_equal(coreset.indices, expected.indices)
    assert_allclose(coreset.radii, expected.radii, rtol=1e-12)


@pytest.fixture
def small_clusters(monkeypatch):
    sort_into_small_clusters(monkeypatch)


def sort_into_small_clusters(patch):
    """Sort few rows into many clusters and parts, as usual with many rows."""
    patch.setattr(_cover, "_FEWEST_CLUSTERS", 2)
    patch.setattr(_cover, "_ROWS_PER_CLUSTER", 3)
    patch.setattr(_clusters, "_PART_ROWS", 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "scale", [1, 1e-3, 1e15, 1e18, 1e20, 1e30, 1e-15, 1e-22, 1e-35]
)
def test_picks_are_the_same_with_rows_sorted_into_clusters(
    small_clusters, dtype, scale
):
    X = (blobs(900, 6, dtype) * scale).astype(dtype)
    expected, radii, leads = greedy_one_by_one(X, 400, first=3)
    assert leads.min() > 1e-12
    coreset = greedy(X, 400, first=3)
    assert_array_equal(coreset.indices, expected)
    assert_allclose(coreset.radii, radii, rtol=1e-9)


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4])
def test_picks_are_the_same_among_near_duplicates(small_clusters, noise):
    rng = np.random.default_rng(0)
    X = np.repeat(blobs(60, 8), 20, axis=0)
    X += (noise * rng.normal(size=X.shape)).astype(np.float32)
    coreset = greedy(X, 300, first=5)
    expected, radii, leads = greedy_one_by_one(X, 300, first=5)
    # Exact copies tie, and the first is picked. Without noise, 60 rows are distinct.
    ties = np.flatnonzero((leads > 0) & (leads < 1e-12))
    n_sure = ties[0] + 1 if len(ties) else 300 if noise else 60
    assert n_sure >= 59
    assert_array_equal(coreset.indices[:n_sure], expected[:n_sure])
    assert_allclose(coreset.radii, radii, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    X=st.tuples(st.integers(1, 80), st.integers(1, 3)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.integers(-3, 3))
    ),
    data=st.data(),
)
def test_of_rows_equally_far_the_first_is_picked(X, data):
    n_selected = data.draw(st.integers(1, len(np.unique(X, axis=0))))
    first = data.draw(st.integers(0, len(X) - 1))
    expected, *_ = greedy_one_by_one(X, n_selected, first)
    with pytest.MonkeyPatch.context() as patch:
        sort_into_small_clusters(patch)
        assert_array_equal(greedy(X, n_selected, first).indices, expected)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_picks_do_not_depend_on_the_number_of_threads(small_clusters, n_threads):
    X = blobs(3000, 16)
    expected = greedy(X, 200)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        coreset = greedy(X, 200)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for found, wanted in zip(coreset, expected, strict=True):
        assert_array_equal(found, wanted)


def test_far_rows_are_not_compared(monkeypatch):
    """The triangle inequality rules out most of the products."""
    n_products = 0
    near_pairs = _cover.near_pairs

    def count(a, limits, b, norms):
        nonlocal n_products
        n_products += len(a) * len(b)
        return near_pairs(a, limits, b, norms)

    monkeypatch.setattr(_cover, "near_pairs", count)
    rng = np.random.default_rng(0)
    X = 100 * rng.normal(size=(20, 8))[rng.integers(20, size=20_000)]
    X = (X + rng.normal(size=X.shape)).astype(np.float32)
    greedy(X, 500)
    assert n_products < 0.3 * 20_000 * 500


def test_clusters_hold_every_row_once_as_its_offset_from_its_center():
    X = torch.from_numpy(blobs(300, 5))
    cluster = torch.from_numpy(np.random.default_rng(0).integers(4, size=300))
    centers = X[:6]
    clusters = Clusters.around(X, centers, cluster)
    assert_array_equal(clusters.order.sort().values, np.arange(300))
    assert_array_equal(clusters.member_of, cluster[clusters.order])
    offsets = X[clusters.order] - centers[clusters.member_of]
    assert_array_equal(clusters.offsets, offsets)
    assert_allclose(clusters.squared_norms, offsets.double().square().sum(dim=1))
    covered = np.concatenate(
        [np.arange(300)[part] for _, part in clusters.parts(10**5)]
    )
    assert_array_equal(covered, np.arange(300))
    points = 1e3 + X[:50]
    true = cdist(points.double(), centers.double())
    assert np.all(clusters.distances(points).numpy() <= true)
    assert_allclose(clusters.distances(points), true, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_radii_of_rows_are_not_less_than_their_distances(dtype):
    """A difference in float32 may round down; the row would seem out of reach."""
    X = torch.from_numpy(blobs(2000, 3, dtype))
    cluster = torch.arange(2000) % 7
    clusters = Clusters.around(X, 100 + X[:7], cluster)
    offsets = X[clusters.order].numpy().astype(np.longdouble) - (100 + X[:7])[
        clusters.member_of
    ].numpy().astype(np.longdouble)
    exact = np.sqrt(np.square(offsets).sum(axis=1))
    assert np.all(clusters.radii.numpy() >= exact)
    assert_allclose(clusters.radii, exact.astype(float), rtol=3e-7)


@settings(max_examples=40, deadline=None)
@given(
    X=st.tuples(st.integers(1, 60), st.integers(1, 3)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.integers(-2, 2))
    ),
    data=st.data(),
)
def test_on_grids_full_of_ties_every_pick_is_a_farthest_row(X, data):
    n_selected = data.draw(st.integers(1, len(X)))
    first = data.draw(st.integers(0, len(X) - 1))
    coreset = greedy(X, n_selected, first)
    assert coreset.indices[0] == first
    assert_farthest_first(X, coreset.indices, tolerance=1e-5)
    assert_allclose(coreset.radii, cover_radii(X, coreset.indices), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    X=arrays(np.float32, (50, 2), elements=st.integers(0, 3)),
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=2).map(sorted),
)
def test_a_run_is_a_prefix_of_every_longer_one_even_among_ties(X, sizes):
    few, many = (greedy(X, size).indices for size in sizes)
    assert_array_equal(few, many[: len(few)])


def test_a_large_common_offset_does_not_change_what_is_farthest():
    X = blobs(600, 32) + np.float32(1e4)
    expected, radii, leads = greedy_one_by_one(X, 120, first=3)
    assert leads.min() > 1e-6
    coreset = greedy(X, 120, first=3)
    assert_array_equal(coreset.indices, expected)
    assert_allclose(coreset.radii, radii, rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_collinear_rows_are_halved_again_and_again(offset):
    X = np.arange(65, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32) + offset
    coreset = greedy(X, 65, first=0)
    expected = np.sqrt(5) * np.repeat(
        [64, 32, 16, 8, 4, 2, 1, 0], [1, *2 ** np.arange(7)]
    )
    # After 0 and 64, each halving of all gaps takes as many picks as there are gaps.
    expected = np.concatenate([expected[:1], expected[1:]])
    assert_allclose(coreset.radii, expected[:65], rtol=1e-5, atol=1e-5)
    assert sorted(coreset.indices) == list(range(65))


def test_the_first_pick_has_the_largest_mean_distance_to_the_starts():
    X = blobs(200, 5)
    starts = np.array([3, 3, 77, 120])
    mean = cdist(X, X[starts]).mean(axis=1)
    assert farthest_from(torch.from_numpy(X), starts) == mean.argmax()


def test_the_first_pick_does_not_depend_on_the_chunk_size(monkeypatch):
    X, starts = torch.from_numpy(blobs(200, 5)), np.array([1, 50])
    expected = farthest_from(X, starts)
    monkeypatch.setattr(_distances, "_DIRECT_ELEMENTS", {"cpu": 64})
    assert farthest_from(X, starts) == expected


def test_coverage_of_given_picks_equals_brute_force():
    X = blobs(900, 6)
    picks = np.random.default_rng(1).permutation(900)[:600]
    coreset = cover_of(torch.from_numpy(X), picks)
    assert_array_equal(coreset.indices, picks)
    assert_allclose(coreset.radii, cover_radii(X, picks), rtol=1e-5)
