"""Test every search backend, and its proof, against distances in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from helpers import DTYPES, assert_nearest, nearest, sample
from skpatchcore._neighbors import _index, _projected
from skpatchcore._neighbors._index import (
    CandidateIndex,
    TorchIndex,
    build_index,
    squared_to_metric,
)
from skpatchcore._utils._precision import full_precision

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

EXACT = ["torch", "faiss"]
# Numba compiles PyNNDescent anew in every process.
BACKENDS = [*EXACT, pytest.param("pynndescent", marks=pytest.mark.slow)]


# Data and definitions ---------------------------------------------------------------


def make_index(bank, algorithm, **params):
    if algorithm in ("faiss", "pynndescent"):
        pytest.importorskip(algorithm)
    return build_index(bank, algorithm=algorithm, **params)


class FirstRows(CandidateIndex):
    """A backend that returns wrong candidates, and the trivial bound 0 for others."""

    def _candidates(self, queries, n_candidates):
        rows = torch.arange(n_candidates).expand(len(queries), -1)
        return rows, torch.zeros(len(queries), dtype=torch.float64)


# Every backend ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", BACKENDS)
def test_distances_are_exact_for_the_rows_found(algorithm, dtype):
    bank, queries = sample(700, 24, dtype), sample(80, 24, dtype, seed=1)
    squared, rows = make_index(bank, algorithm).query(queries, 5)
    assert squared.shape == rows.shape == (80, 5)
    assert squared.dtype == np.float64
    assert rows.dtype == np.int64
    pairs = cdist(queries.astype(np.float64), bank.astype(np.float64), "sqeuclidean")
    assert_allclose(squared, np.take_along_axis(pairs, rows, axis=1), rtol=1e-12)
    assert np.all(np.diff(squared, axis=1) >= 0)


@pytest.mark.parametrize("algorithm", BACKENDS)
def test_nearly_all_true_neighbors_are_found(algorithm):
    bank, queries = sample(1500, 16), sample(200, 16, seed=1)
    _, rows = make_index(bank, algorithm).query(queries, 5)
    _, expected = nearest(bank, queries, 5)
    recall = np.mean(
        [len(set(a) & set(b)) / 5 for a, b in zip(rows, expected, strict=True)]
    )
    assert recall >= (1 if algorithm in EXACT else 0.95)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 2), (9, 9), (30, 30), (150, 150)])
@pytest.mark.parametrize("algorithm", BACKENDS)
def test_as_many_neighbors_as_rows(algorithm, m, k):
    bank, queries = sample(m, 6), sample(20, 6, seed=1)
    assert_nearest(make_index(bank, algorithm).query(queries, k), bank, queries, k)


# pynndescent 0.5.13 sets the diagonal of a sparse matrix.
@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
@pytest.mark.parametrize("m", [5, 40, 400])
@pytest.mark.parametrize("algorithm", BACKENDS)
def test_a_bank_of_equal_rows_gives_one_distance(algorithm, m):
    bank, queries = np.repeat(sample(1, 12), m, axis=0), sample(9, 12, seed=1)
    squared, rows = make_index(bank, algorithm).query(queries, 3)
    assert_allclose(squared, nearest(bank, queries, 3)[0], rtol=1e-12)
    assert all(len(set(row)) == 3 for row in rows)


@pytest.mark.parametrize("algorithm", BACKENDS)
def test_copies_of_rows_are_at_distance_0(algorithm):
    bank = sample(300, 40)
    squared, rows = make_index(bank, algorithm).query(bank[::3].copy(), 1)
    assert_array_equal(squared, np.zeros((100, 1)))
    assert_array_equal(rows[:, 0], np.arange(0, 300, 3))


@pytest.mark.parametrize("algorithm", BACKENDS)
def test_read_only_and_strided_arrays_are_taken_without_a_warning(algorithm):
    bank, queries = sample(200, 8)[:, ::-1], sample(40, 8, seed=1)[::2]
    bank.flags.writeable = queries.flags.writeable = False
    # torch warns of read-only memory only once a process unless told otherwise.
    torch.set_warn_always(True)
    try:
        squared, _ = make_index(bank, algorithm).query(queries, 2)
    finally:
        torch.set_warn_always(False)
    assert squared.shape == (20, 2)


@pytest.mark.parametrize("algorithm", BACKENDS)
def test_the_seed_fixes_the_answer(algorithm):
    bank, queries = sample(500, 8), sample(60, 8, seed=1)
    first, again = (
        make_index(bank, algorithm, random_state=3).query(queries, 4) for _ in range(2)
    )
    assert_array_equal(first[0], again[0])
    assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("module", ["faiss", "pynndescent"])
def test_a_missing_package_is_named_with_the_command_to_install_it(monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'skpatchcore\[{module}\]'"):
        build_index(sample(100, 3), algorithm=module)


def test_auto_is_exact_search_in_torch():
    assert type(build_index(sample(10, 3))) is TorchIndex


# Exact backends ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 384, 1536])
@pytest.mark.parametrize("algorithm", EXACT)
def test_search_is_exact_in_any_dimension(algorithm, d, dtype):
    bank, queries = sample(400, d, dtype), sample(50, d, dtype, seed=1)
    index = make_index(bank, algorithm)
    for k in (1, 9):
        assert_nearest(index.query(queries, k), bank, queries, k)


@pytest.mark.parametrize("offset", [1e3, 1e5])
@pytest.mark.parametrize("algorithm", EXACT)
def test_a_large_common_offset_costs_no_digits(algorithm, offset):
    bank = sample(500, 64) + np.float32(offset)
    queries = np.concatenate([sample(40, 64, seed=1) + np.float32(offset), bank[:10]])
    found = make_index(bank, algorithm).query(queries, 3)
    assert_nearest(found, bank, queries, 3)
    # The fast product in float32 is far off here, so this test can fail.
    fast = (
        np.square(bank).sum(1)
        - 2 * queries @ bank.T
        + np.square(queries).sum(1)[:, None]
    )
    assert np.abs(fast.min(axis=1) - found[0][:, 0]).max() > 0.1


@pytest.mark.parametrize("algorithm", EXACT)
def test_a_cluster_tighter_than_rounding_is_searched_exactly(algorithm):
    """More rows than candidates are closer together than the product can resolve."""
    rng = np.random.default_rng(0)
    cluster = 10 + 1e-4 * rng.normal(size=(300, 32))
    bank = np.concatenate([sample(200, 32, np.float64), cluster]).astype(np.float32)
    queries = (10 + 1e-4 * rng.normal(size=(50, 32))).astype(np.float32)
    assert_nearest(make_index(bank, algorithm).query(queries, 2), bank, queries, 2)


@pytest.mark.parametrize("k", [1, 4, 40])
@pytest.mark.parametrize("algorithm", EXACT)
def test_ties_come_in_the_order_of_rows(algorithm, k):
    bank = np.random.default_rng(0).permutation(np.repeat(sample(6, 20), 50, axis=0))
    queries = np.concatenate([bank[:30], sample(30, 20, seed=1)])
    assert_nearest(make_index(bank, algorithm).query(queries, k), bank, queries, k)


@pytest.mark.parametrize("algorithm", EXACT)
def test_rows_of_an_equal_bank_come_in_order(algorithm):
    bank = np.full((200, 5), 0.1, dtype=np.float32)
    _, rows = make_index(bank, algorithm).query(sample(7, 5), 3)
    assert_array_equal(rows, np.tile([0, 1, 2], (7, 1)))


@settings(max_examples=60, deadline=None)
@given(
    bank=st.tuples(st.integers(1, 60), st.integers(1, 3)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.integers(-2, 2))
    ),
    data=st.data(),
)
@pytest.mark.parametrize("algorithm", EXACT)
def test_on_grids_full_of_ties_search_equals_a_stable_sort(algorithm, bank, data):
    d = bank.shape[1]
    queries = data.draw(arrays(np.float32, (5, d), elements=st.integers(-3, 3)))
    k = data.draw(st.integers(1, len(bank)))
    assert_nearest(make_index(bank, algorithm).query(queries, k), bank, queries, k)


@pytest.mark.parametrize("scale", [1e-18, 1e15, 1e19])
@pytest.mark.parametrize("algorithm", EXACT)
def test_squares_beyond_the_range_of_float32_are_searched_exactly(algorithm, scale):
    bank, queries = (np.float32(scale) * sample(n, 8, seed=n) for n in (60, 9))
    assert_nearest(make_index(bank, algorithm).query(queries, 2), bank, queries, 2)


@pytest.mark.parametrize("d", [3, 384, 1536])
@pytest.mark.parametrize("algorithm", EXACT)
def test_an_answer_does_not_depend_on_the_batch_around_it(algorithm, d):
    bank = sample(300, d)
    bank[100:140] = bank[100]
    queries = np.concatenate([sample(40, d, seed=1), bank[90:114]])
    index = make_index(bank, algorithm)
    squared, rows = index.query(queries, 3)
    shuffled = np.random.default_rng(0).permutation(64)
    for order, size in [(np.arange(64), 1), (np.arange(64), 7), (shuffled, 64)]:
        for start in range(0, 64, size):
            part = order[start : start + size]
            found = index.query(queries[part], 3)
            assert_array_equal(found[0], squared[part])
            assert_array_equal(found[1], rows[part])


@pytest.mark.parametrize("n_elements", [1, 100, 5000])
@pytest.mark.parametrize("algorithm", EXACT)
def test_an_answer_does_not_depend_on_the_chunk_size(
    monkeypatch, algorithm, n_elements
):
    bank, queries = sample(300, 20), sample(50, 20, seed=1)
    bank[50:90] = queries[0]
    expected = make_index(bank, algorithm).query(queries, 3)
    monkeypatch.setattr(_index, "_CHUNK_ELEMENTS", n_elements)
    monkeypatch.setattr(_projected, "_BLOCK_ELEMENTS", {"cpu": n_elements})
    squared, rows = make_index(bank, algorithm).query(queries, 3)
    assert_array_equal(squared, expected[0])
    assert_array_equal(rows, expected[1])


# Proof of exactness -----------------------------------------------------------------


def test_the_candidates_of_faiss_are_proven_for_ordinary_data(monkeypatch):
    bank, queries = sample(600, 384), sample(100, 384, seed=1)
    index = make_index(bank, "faiss")
    monkeypatch.setattr(index, "_search", None)
    assert_nearest(index.query(queries, 3), bank, queries, 3)


@pytest.mark.parametrize("k", [1, 5])
def test_without_a_proof_all_rows_are_searched(k):
    bank, queries = sample(400, 16), sample(60, 16, seed=1)
    bank[200:230] = queries[:30]
    queries = np.concatenate([queries, queries[:10], queries[:10]])
    assert_nearest(FirstRows(bank).query(queries, k), bank, queries, k)


# Settings of the process ------------------------------------------------------------


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_is_kept_and_changes_nothing(precision):
    bank, queries = sample(300, 384), sample(40, 384, seed=1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        found = TorchIndex(bank).query(queries, 3)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert_nearest(found, bank, queries, 3)


@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_a_precision_set_for_one_backend_is_kept_too(backend):
    """After that, torch refuses to read the setting for all backends."""
    matmul = getattr(getattr(torch.backends, backend), "matmul", None)
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_precision():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        TorchIndex(sample(50, 4)).query(sample(5, 4, seed=1), 1)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_the_precision_comes_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(KeyError), full_precision():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# Metrics ----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_squared_distances_turn_into_those_of_a_metric(metric):
    a, b = sample(6, 5, np.float64), sample(7, 5, np.float64, seed=1)
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    squared = cdist(a, b, "sqeuclidean")
    assert_allclose(squared_to_metric(squared, metric), cdist(a, b, metric), atol=1e-14)


# GPU --------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", EXACT)
def test_the_gpu_finds_what_the_cpu_finds(algorithm, dtype):
    bank, queries = sample(2000, 384, dtype), sample(300, 384, dtype, seed=1)
    bank[100:150] = bank[100]
    queries[:20] = bank[90:110]
    found = make_index(bank, algorithm, device="cuda").query(queries, 5)
    assert_nearest(found, bank, queries, 5)


@needs_cuda
def test_tf32_on_the_gpu_changes_nothing():
    bank, queries = sample(2000, 384), sample(300, 384, seed=1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = TorchIndex(bank, device="cuda").query(queries, 5)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_nearest(found, bank, queries, 5)
