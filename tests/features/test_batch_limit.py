"""Batch sizes, chosen from the memory that the first images need."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skpatchcore import PatchFeatureTransformer
from skpatchcore._features._batch_limit import BatchLimit, PeakMemory

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Wide(nn.Module):
    """64 channels at full resolution, which take 256 bytes per pixel."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.wide = nn.Conv2d(3, 64, 1)
            self.narrow = nn.Conv2d(64, 4, 8, stride=8)

    def forward(self, x):
        return self.narrow(self.wide(x))


def images(n, size=64):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), np.uint8)


def make_features(**params):
    params = {"image_size": None, "layer_weights": None, "random_state": 0} | params
    return PatchFeatureTransformer(Wide(), ("narrow",), device="cpu", **params)


@pytest.fixture
def budget(monkeypatch):
    """A little more than the memory of four images of 64 x 64 pixels."""
    monkeypatch.setattr(
        "skpatchcore._features._batch_limit._CPU_BYTES", int(4.5 * 64**2 * 256)
    )
    monkeypatch.setattr("skpatchcore._features._batch_limit._FIRST_PIXELS", 2 * 64**2)


# Measurement


def test_the_peak_counts_tensors_that_are_alive_together():
    kilobyte = torch.zeros(256)
    with PeakMemory() as memory:
        first = kilobyte + 1
        second = first + 1
        del first
        third = second + 1
        del second
        fourth = torch.cat([third, third])
        del third
        fourth.mul_(2)
        fourth[:7].reshape(7, 1).t()
        kilobyte.view(16, 16).add_(1)
    assert memory.peak == 3 * 1024
    assert fourth.sum() == 512 * 6


def test_memory_grows_with_the_batch_and_excludes_weights():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    peaks = []
    for n in (1, 3):
        with torch.inference_mode(), PeakMemory() as memory:
            network(torch.ones(n, 3, 16, 16))
        peaks.append(memory.peak)
    # The input was created in the block, and the ReLU keeps its input alive.
    assert peaks == [n * 16 * 16 * (3 + 8 + 8) * 4 for n in (1, 3)]


def test_tensors_without_a_storage_of_their_own_do_not_count():
    with PeakMemory() as memory:
        torch.eye(64).to_sparse()
    # The dense tensor, and the rows and columns of its nonzero elements.
    assert memory.peak <= 4 * 64**2 + 3 * 8 * 64


# Batch sizes


def measured(limit, size, n_bytes):
    for stage in ("network", "descriptor"):
        with limit.measure(stage, size, 1):
            kept = torch.empty(n_bytes, dtype=torch.uint8)
    return len(kept)


@given(
    batch_size=st.integers(1, 64),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_the_first_batch_is_small(batch_size, size):
    n = BatchLimit(batch_size, CPU)(size)
    assert 1 <= n <= batch_size
    assert n == 1 or n * size[0] * size[1] <= 4 * 256**2


@pytest.mark.parametrize(("n_images", "n"), [(1, 4), (7, 1)])
def test_nothing_is_measured_if_one_batch_is_enough(n_images, n):
    limit = BatchLimit(32, CPU, n_images)
    # One image would need four times the budget.
    for stage in ("network", "descriptor"):
        with limit.measure(stage, (256, 256), 1):
            torch.empty(2**29, dtype=torch.uint8)
    assert limit((256, 256)) == n


@given(
    batch_size=st.integers(1, 64),
    n_bytes=st.integers(1, 2**24),
    height=st.integers(32, 128),
)
def test_a_batch_keeps_within_the_budget(batch_size, n_bytes, height):
    limit = BatchLimit(batch_size, CPU)
    measured(limit, (64, 64), n_bytes)
    n = limit((height, 64))
    each = n_bytes * height / 64
    assert 1 <= n <= batch_size
    assert n == 1 or n * each <= 128 * 2**20 * (1 + 1e-9)
    assert n == batch_size or (n + 1) * each > 128 * 2**20 * (1 - 1e-9)


def test_much_larger_images_are_measured_again():
    limit = BatchLimit(32, CPU)
    measured(limit, (64, 64), 2**20)
    assert limit((64, 64)) == 32
    assert limit((3000, 4000)) == 1
    measured(limit, (3000, 4000), 2**27)
    assert limit((3000, 4000)) == 1
    # The large image needs less memory per pixel. The largest measurement counts.
    assert limit((64, 64)) == 32


# Through the estimator


def test_batches_are_cut_to_the_budget(budget, batch_sizes):
    make_features().fit(images(1)).transform(images(13))
    assert batch_sizes == [1, 2, 4, 4, 3]


def test_batches_are_not_larger_than_batch_size(budget, batch_sizes):
    make_features(batch_size=3).fit(images(1)).transform(images(8))
    assert batch_sizes == [1, 2, 3, 3]
    batch_sizes.clear()
    make_features(batch_size=1).fit(images(1)).transform(images(3))
    assert batch_sizes == [1, 1, 1, 1]


def test_large_images_pass_one_at_a_time(budget, batch_sizes):
    X = [*images(5), *images(3, size=200)]
    make_features(output="mean").fit(X[:1]).transform(X)
    assert batch_sizes == [1, 2, 1, 1, 1, 3]


def test_the_same_images_always_form_the_same_batches(budget, batch_sizes):
    X = images(13)
    features = make_features()
    first = features.fit_transform(X)
    batches = batch_sizes.copy()
    batch_sizes.clear()
    assert_array_equal(features.transform(X), first)
    assert batch_sizes == batches


def test_batches_with_a_cache_also_keep_within_the_budget(
    budget, tmp_path, batch_sizes
):
    X = images(13)
    features = make_features(memory=tmp_path).fit(X[:1])
    found = features.transform(X)
    assert max(batch_sizes) <= 4
    # The first image, in the cache since the fit, passes again to check the cache.
    assert sum(batch_sizes) == 13 + 1
    assert_array_equal(features.transform(X), found)
    assert sum(batch_sizes) == 13 + 1
    assert_allclose(found, make_features().fit(X[:1]).transform(X), rtol=1e-5)


@needs_cuda
def test_a_share_of_the_free_memory_of_a_gpu_is_used():
    limit = BatchLimit(10**6, torch.device("cuda"))
    measured(limit, (64, 64), 2**20)
    free, _ = torch.cuda.mem_get_info()
    assert 1 <= limit((64, 64)) <= free // 2**20
