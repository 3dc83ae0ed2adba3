"""Reading ahead with threads: order, bounds, errors and cleanup."""

import contextlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore._utils._read_ahead import _Gate, read_ahead


def n_threads_left():
    return sum(
        thread.name.startswith("skpatchcore-read-ahead")
        for thread in threading.enumerate()
    )


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(0, 20),
    n_threads=st.integers(0, 4),
    n_ahead=st.integers(0, 10),
)
def test_results_come_in_order_regardless_of_duration(n, n_threads, n_ahead):
    def function(i):
        time.sleep(0.001 * (i % 3))
        return i * i

    found = list(read_ahead(function, n, n_threads, lambda: n_ahead))
    assert found == [i * i for i in range(n)]
    assert n_threads_left() == 0


@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_more_is_started_than_the_bound_permits(n_threads):
    begun, bound, most = [], 0, 0
    with contextlib.closing(
        read_ahead(begun.append, 30, n_threads, lambda: bound)
    ) as results:
        for i in range(30):
            most = max(most, i + 1 + bound)
            next(results)
            time.sleep(0.002)
            assert len(begun) <= most
            bound = (7 * i) % 5


def test_work_is_done_at_the_same_time():
    together = threading.Barrier(3, timeout=20)
    found = read_ahead(lambda _: together.wait() >= 0, 3, 3, lambda: 3)
    assert list(found) == [True] * 3


def test_work_continues_while_a_result_is_used():
    later = threading.Event()
    results = read_ahead(lambda i: i < 1 or later.set(), 3, 1, lambda: 2)
    with contextlib.closing(results):
        next(results)
        assert later.wait(20)


def test_the_first_error_is_raised_in_the_place_of_its_result():
    def function(i):
        if i == 3:
            time.sleep(0.05)
        if i >= 3:
            raise ValueError(f"item {i}")
        return i

    found = []
    with pytest.raises(ValueError, match="item 3"):
        found.extend(read_ahead(lambda i: function(i), 10, 4, lambda: 10))
    results = read_ahead(function, 10, 4, lambda: 10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)
    assert n_threads_left() == 0


def test_closing_early_leaves_no_thread_and_starts_no_further_work():
    begun = []

    def function(i):
        begun.append(i)
        time.sleep(0.01)

    results = read_ahead(function, 1000, 2, lambda: 500)
    next(results)
    results.close()
    assert n_threads_left() == 0
    n_begun = len(begun)
    assert n_begun < 100
    time.sleep(0.05)
    assert len(begun) == n_begun


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupt_stops_everything():
    def function(i):
        if i == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        list(read_ahead(function, 1000, 2, lambda: 1000))
    # All of the work would take ten seconds.
    assert time.perf_counter() - started < 5
    assert n_threads_left() == 0


def test_torch_starts_no_further_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        inside = read_ahead(lambda _: torch.get_num_threads(), 4, 2, lambda: 4)
        assert list(inside) == [1] * 4
        assert torch.get_num_threads() == 3
        with contextlib.closing(read_ahead(id, 2, 0, lambda: 1)) as results:
            next(results)
        fresh = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [3]
    finally:
        torch.set_num_threads(before)


def test_a_smaller_bound_delays_submitted_work():
    """Once an item turns out to be large, at most one is started ahead."""
    begun, bound = [], 1

    def function(i):
        nonlocal bound
        begun.append(i)
        if i == 4:
            bound = 0
        time.sleep(0.002)
        return i

    with contextlib.closing(read_ahead(function, 40, 1, lambda: bound)) as results:
        assert next(results) == 0
        bound = 30  # Asked for next, when all of these are submitted.
        for i in range(1, 40):
            assert next(results) == i
            time.sleep(0.004)
            if i >= 4:
                assert len(begun) <= i + 1
    assert begun == list(range(40))


@pytest.mark.parametrize("n_threads", [1, 4])
def test_closing_wakes_waiting_threads(n_threads):
    begun, bound = [], 10
    results = read_ahead(begun.append, 20, n_threads, lambda: bound)
    next(results)
    bound = 0
    time.sleep(0.02)
    results.close()
    assert n_threads_left() == 0


def test_waiting_threads_end_with_a_pool_that_was_not_closed():
    pool = ThreadPoolExecutor(1, "skpatchcore-read-ahead")
    gate = _Gate(lambda: 0, pool)
    later = pool.submit(gate.pass_through, lambda i: "begun", 5)
    time.sleep(0.01)
    assert not later.done()
    del pool
    assert later.result(timeout=20) is None
