"""Compute results ahead of their use, in order, with a few threads."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from skpatchcore._utils._threads import compute_alone

T = TypeVar("T")
# How often waiting threads check whether their results are still needed.
_POLL_SECONDS = 1.0


def read_ahead(
    function: Callable[[int], T], n: int, n_threads: int, n_ahead: Callable[[], int]
) -> Generator[T, None, None]:
    """Yield ``function(0)``, ..., ``function(n - 1)``, computed ahead by threads.

    While one result is yielded, up to ``n_ahead()`` further ones are computed. The
    bound may change: it is evaluated for every result, and again right before its
    computation starts, by several threads. An error is raised in the place of its
    result.

    Close the iterator to stop early. It waits for running computations, drops the rest,
    and leaves no thread behind.
    """
    if n_threads < 1 or n <= 1:
        yield from map(function, range(n))
        return
    started: deque[Future[Any]] = deque()
    n_started = 0
    pool = ThreadPoolExecutor(
        min(n_threads, n), "skpatchcore-read-ahead", initializer=compute_alone
    )
    gate = _Gate(n_ahead, pool)
    try:
        for i in range(n):
            gate.advance(i)
            while n_started < min(n, i + 1 + n_ahead()):
                started.append(pool.submit(gate.pass_through, function, n_started))
                n_started += 1
            yield started.popleft().result()
    finally:
        try:
            gate.close()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Gate:
    """Delay work that was submitted before the bound became smaller."""

    def __init__(self, n_ahead: Callable[[], int], pool: ThreadPoolExecutor):
        self._n_ahead = n_ahead
        # An interrupt may prevent `close`. A gate whose pool is gone counts as closed.
        self._pool = weakref.ref(pool)
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def advance(self, i: int) -> None:
        """Set `i` as the next result to be yielded."""
        with self._changed:
            self._next = i
            self._changed.notify_all()

    def close(self) -> None:
        """Start no further work, and release the waiting threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pass_through(self, function: Callable[[int], T], i: int) -> T | None:
        """Wait until `i` is within the bound, then return ``function(i)``.

        Once the gate is closed, return None.
        """
        # The next result to be yielded never waits, which rules out a deadlock.
        with self._changed:
            while not self._is_closed() and i > self._next + self._n_ahead():
                self._changed.wait(_POLL_SECONDS)
        return None if self._is_closed() else function(i)

    def _is_closed(self) -> bool:
        return self._closed or self._pool() is None
