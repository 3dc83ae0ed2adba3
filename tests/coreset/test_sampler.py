"""The sampler around the k-centre greedy."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.random_projection import GaussianRandomProjection

from helpers import blobs, cover_radii, greedy
from skpatchcore import CoresetSampler
from skpatchcore._coreset import _clusters, _greedy
from skpatchcore._coreset._greedy import farthest_from

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

METHODS = ["greedy", "random", "none"]


def assert_covers(X, sampler):
    """Assert that `min_distances_` and `nearest_picks_` fit the selected rows."""
    picks = X[sampler.sample_indices_].astype(np.float64)
    distances = cdist(X.astype(np.float64), picks)
    scale = distances.max() + 1e-300
    assert_allclose(
        sampler.min_distances_ / scale, distances.min(axis=1) / scale, atol=1e-6
    )
    recorded = distances[np.arange(len(X)), sampler.nearest_picks_]
    assert_allclose(sampler.min_distances_, recorded, rtol=1e-9, atol=1e-12 * scale)
    own = sampler.nearest_picks_[sampler.sample_indices_]
    assert_array_equal(own, np.arange(len(picks)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(1, 4), (30, 2), (500, 20)])
def test_distances_and_nearest_picks_are_true(method, n, d, dtype):
    X = blobs(n, d, dtype)
    assert_covers(X, CoresetSampler(0.2, method=method, random_state=0).fit(X))


@pytest.mark.parametrize("method", ["greedy", "random"])
def test_radii_are_those_of_brute_force(method):
    X = blobs(500, 20)
    sampler = CoresetSampler(0.3, method=method, random_state=0).fit(X)
    assert_allclose(sampler.radii_, cover_radii(X, sampler.sample_indices_), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_attributes_have_their_documented_shapes_and_types(method):
    X = blobs(50, 3)
    sampler = CoresetSampler(0.3, method=method, random_state=0).fit(X)
    n_selected = 50 if method == "none" else 15
    assert sampler.sample_indices_.shape == sampler.radii_.shape == (n_selected,)
    assert sampler.min_distances_.shape == sampler.nearest_picks_.shape == (50,)
    assert sampler.sample_indices_.dtype == sampler.nearest_picks_.dtype == np.int64
    assert sampler.radii_.dtype == sampler.min_distances_.dtype == np.float64


@pytest.mark.parametrize("method", ["greedy", "random"])
def test_a_small_fraction_is_a_prefix_of_a_larger_one(method):
    X = blobs(800, 160)
    few, many = (
        CoresetSampler(fraction, method=method, random_state=3).fit(X)
        for fraction in (0.1, 0.5)
    )
    assert_array_equal(few.sample_indices_, many.sample_indices_[:80])
    assert_allclose(few.radii_[:79], many.radii_[:79], rtol=1e-5)


def test_greedy_covers_better_than_random():
    X = blobs(800, 4)
    radius = {
        method: CoresetSampler(0.05, method=method, random_state=0).fit(X).radii_[-1]
        for method in ("greedy", "random")
    }
    assert radius["greedy"] < radius["random"]


def test_greedy_radii_never_grow():
    sampler = CoresetSampler(1.0, random_state=0).fit(blobs(500, 3))
    assert np.all(np.diff(sampler.radii_) <= 0)


def test_method_none_keeps_the_order_and_every_row():
    X = blobs(20, 3)
    sampler = CoresetSampler(0.1, method="none").fit(X)
    assert_array_equal(sampler.sample_indices_, np.arange(20))
    assert np.isnan(sampler.radii_[:-1]).all()
    assert sampler.radii_[-1] == 0
    assert_array_equal(sampler.fit_resample(X), X)


@pytest.mark.parametrize("method", ["greedy", "random"])
@pytest.mark.parametrize("n", [1, 2, 33, 300])
def test_all_rows_can_be_picked_each_once(method, n):
    X = blobs(n, 3)
    sampler = CoresetSampler(n, method=method, random_state=0).fit(X)
    assert_array_equal(np.sort(sampler.sample_indices_), np.arange(n))
    assert_array_equal(sampler.min_distances_, np.zeros(n))
    assert sampler.radii_[-1] == 0


@pytest.mark.parametrize("method", ["greedy", "random"])
@pytest.mark.parametrize("offset", [0, 0.1, 1e4])
def test_equal_rows_are_picked_each_once_at_radius_0(method, offset):
    X = np.full((70, 6), offset, dtype=np.float32)
    sampler = CoresetSampler(40, method=method, random_state=0).fit(X)
    assert len(set(sampler.sample_indices_)) == 40
    assert_array_equal(sampler.radii_[-1:], [0])
    assert_array_equal(sampler.min_distances_, np.zeros(70))


def test_duplicates_come_only_after_every_distinct_row():
    distinct = blobs(40, 5)
    X = np.random.default_rng(0).permutation(np.repeat(distinct, 6, axis=0))
    sampler = CoresetSampler(100, random_state=0).fit(X)
    picked = X[sampler.sample_indices_[:40]]
    assert len(np.unique(picked, axis=0)) == 40
    assert_array_equal(sampler.radii_[39:], np.zeros(61))
    assert len(set(sampler.sample_indices_)) == 100


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("projection_dim", [1, 7, 128])
@pytest.mark.parametrize("n_copies", [3, 7, 17])
def test_duplicates_stay_duplicates_in_a_projection(dtype, projection_dim, n_copies):
    """A product rounds the last rows of a block differently from the others."""
    X = blobs(3, 200, dtype)[np.arange(3 * n_copies) % 3]
    sampler = CoresetSampler(1.0, projection_dim=projection_dim, random_state=0).fit(X)
    assert set(sampler.sample_indices_[:3] % 3) == {0, 1, 2}
    assert_array_equal(sampler.radii_[2:], np.zeros(len(X) - 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_one_unit_in_the_last_place_apart_are_no_duplicates(dtype):
    X = blobs(1, 5, dtype).repeat(6, axis=0)
    X[3:, 0] = np.nextafter(X[3:, 0], dtype(99))
    sampler = CoresetSampler(6, random_state=0).fit(X)
    assert set(sampler.sample_indices_[:2] // 3) == {0, 1}
    assert sampler.radii_[0] == np.abs(X[3, 0] - X[0, 0])
    assert_array_equal(sampler.radii_[1:], np.zeros(5))


@pytest.mark.parametrize(
    ("fraction", "n_selected"),
    [(0.001, 1), (0.1, 4), (0.5, 20), (1.0, 40), (1, 1), (7, 7), (40, 40)],
)
@pytest.mark.parametrize("method", ["greedy", "random"])
def test_fraction_is_a_share_or_a_number_of_rows(method, fraction, n_selected):
    sampler = CoresetSampler(fraction, method=method, random_state=0).fit(blobs(40, 3))
    assert len(sampler.sample_indices_) == n_selected


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 1.5, "all"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="'fraction' parameter"):
        CoresetSampler(fraction).fit(blobs(10, 2))


def test_more_rows_than_given_are_refused():
    with pytest.raises(ValueError, match=r"fraction=11 .* n_samples = 10"):
        CoresetSampler(11).fit(blobs(10, 2))


@pytest.mark.parametrize("method", ["greedy", "random"])
@pytest.mark.parametrize("d", [6, 200])
def test_an_int_seed_gives_the_same_picks_and_another_seed_others(method, d):
    X = blobs(300, d)
    first, again, other = (
        CoresetSampler(0.2, method=method, random_state=seed).fit(X)
        for seed in (0, 0, 5)
    )
    assert_array_equal(first.sample_indices_, again.sample_indices_)
    assert_array_equal(first.radii_, again.radii_)
    assert not np.array_equal(first.sample_indices_, other.sample_indices_)


def test_a_random_state_instance_moves_on():
    X, random_state = blobs(300, 6), np.random.RandomState(0)
    sampler = CoresetSampler(0.2, method="random", random_state=random_state)
    first = sampler.fit(X).sample_indices_
    assert not np.array_equal(first, sampler.fit(X).sample_indices_)


def test_many_features_are_compared_after_a_random_projection():
    X = blobs(400, 200)
    sampler = CoresetSampler(60, projection_dim=32, random_state=4).fit(X)
    random_state = np.random.RandomState(4)
    projected = GaussianRandomProjection(32, random_state=random_state).fit_transform(X)
    first = farthest_from(
        torch.from_numpy(projected), random_state.randint(400, size=10)
    )
    expected = greedy(projected, 60, first)
    assert_array_equal(sampler.sample_indices_, expected.indices)
    assert_allclose(sampler.radii_, cover_radii(projected, expected.indices), rtol=1e-5)
    assert_array_equal(sampler.fit_resample(X), X[expected.indices])


@pytest.mark.parametrize("projection_dim", [None, 20, 128])
def test_few_features_are_compared_without_a_projection(projection_dim):
    X = blobs(200, 20)
    sampler = CoresetSampler(30, projection_dim=projection_dim, random_state=0).fit(X)
    assert_allclose(sampler.radii_, cover_radii(X, sampler.sample_indices_), rtol=1e-5)


def test_every_start_counts():
    X = blobs(300, 4)
    first = {
        CoresetSampler(1, n_starts=n, random_state=0).fit(X).sample_indices_[0]
        for n in range(1, 12)
    }
    assert len(first) > 1


@pytest.mark.parametrize("method", METHODS)
def test_read_only_rows_are_neither_copied_back_nor_warned_about(method):
    X = blobs(60, 4)
    X.flags.writeable = False
    before = X.copy()
    # torch warns of read-only memory only once a process unless told otherwise.
    torch.set_warn_always(True)
    try:
        CoresetSampler(0.5, method=method, random_state=0).fit(X)
    finally:
        torch.set_warn_always(False)
    assert_array_equal(X, before)


def test_fit_leaves_the_rows_unchanged():
    X = blobs(100, 5)
    before = X.copy()
    CoresetSampler(0.3, random_state=0).fit(X)
    assert_array_equal(X, before)


def test_resampling_a_data_frame_gives_its_rows():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(blobs(30, 3), columns=["a", "b", "c"])
    sampler = CoresetSampler(5, random_state=0)
    chosen = sampler.fit_resample(frame)
    pandas.testing.assert_frame_equal(chosen, frame.iloc[sampler.sample_indices_])
    assert list(sampler.feature_names_in_) == ["a", "b", "c"]


@pytest.mark.parametrize("method", ["greedy", "random"])
def test_verbose_shows_a_bar_over_all_picks(method, capsys):
    CoresetSampler(100, method=method, random_state=0, verbose=1).fit(blobs(700, 3))
    assert "100/100" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_silent_unless_asked(method, capsys):
    CoresetSampler(0.5, method=method, random_state=0).fit(blobs(70, 3))
    assert capsys.readouterr().err == ""


def test_temporary_matrices_stay_small(monkeypatch):
    """The size of a block does not depend on the number of rows."""
    largest = 0
    product = torch.addmm

    def measure(*args, **kwargs):
        nonlocal largest
        result = product(*args, **kwargs)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", measure)
    monkeypatch.setattr(_clusters, "_BLOCK_ELEMENTS", 5000)
    monkeypatch.setattr(_greedy, "_LARGEST_BLOCK", 64)
    CoresetSampler(300, random_state=0).fit(blobs(1500, 3))
    assert 0 < largest <= 5000


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_products_set_by_the_process_change_no_pick(precision):
    X = blobs(300, 64)
    expected = CoresetSampler(60, random_state=0).fit(X)
    before = torch.get_float32_matmul_precision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_float32_matmul_precision(precision)
        sampler = CoresetSampler(60, random_state=0).fit(X)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert_array_equal(sampler.sample_indices_, expected.sample_indices_)
    assert_array_equal(sampler.radii_, expected.radii_)


@needs_cuda
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["greedy", "random"])
def test_the_gpu_picks_what_the_cpu_picks(method, dtype):
    X = blobs(3000, 64, dtype)
    cpu, gpu = (
        CoresetSampler(0.1, method=method, device=device, random_state=0).fit(X)
        for device in ("cpu", "cuda")
    )
    assert_array_equal(gpu.sample_indices_, cpu.sample_indices_)
    assert_allclose(gpu.radii_, cpu.radii_, rtol=1e-5)
    assert_allclose(gpu.min_distances_, cpu.min_distances_, rtol=1e-5)
    assert_covers(X, gpu)
