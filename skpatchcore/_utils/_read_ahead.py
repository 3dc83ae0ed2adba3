"""Work done by a few threads ahead of the one who needs its results, in order."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from skpatchcore._utils._threads import compute_alone

T = TypeVar("T")
# How often threads that are held back look whether anybody still waits for them.
_POLL_SECONDS = 1.0


def read_ahead(
    function: Callable[[int], T], n: int, n_threads: int, n_ahead: Callable[[], int]
) -> Iterator[T]:
    """Yield ``function(0)``, ..., ``function(n - 1)``, computed ahead by threads.

    Up to ``n_ahead()`` further results are begun before the next one is handed out; the
    bound is asked for anew every time, and again right before a result is begun: so it
    may fall with what the function has found out meanwhile. It is asked for by several
    threads. An error comes where its result would have come.
    Close the iterator to stop early: what has begun is waited for, the rest is dropped,
    and no thread is left.
    """
    if n_threads < 1 or n <= 1:
        yield from map(function, range(n))
        return
    started: deque = deque()
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
    """Hold back work that was submitted before the bound fell."""

    def __init__(self, n_ahead: Callable[[], int], pool: ThreadPoolExecutor):
        self._n_ahead = n_ahead
        # An interrupt may keep the gate from being closed; without its pool, it is.
        self._pool = weakref.ref(pool)
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def advance(self, i: int) -> None:
        """Note that result `i` is the one to be handed out next."""
        with self._changed:
            self._next = i
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing else begin, and nobody wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pass_through(self, function: Callable[[int], T], i: int) -> T | None:
        """Return ``function(i)`` as soon as it may begin; None once closed."""
        # What is to be handed out next never waits, so that nobody waits for ever.
        with self._changed:
            while not self._is_closed() and i > self._next + self._n_ahead():
                self._changed.wait(_POLL_SECONDS)
        return None if self._is_closed() else function(i)

    def _is_closed(self) -> bool:
        return self._closed or self._pool() is None
