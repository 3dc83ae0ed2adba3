"""Work done by a few threads ahead of the one who needs its results, in order."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from skpatchcore._threads import compute_alone

T = TypeVar("T")


def read_ahead(
    function: Callable[[int], T], n: int, n_threads: int, n_ahead: Callable[[], int]
) -> Iterator[T]:
    """Yield ``function(0)``, ..., ``function(n - 1)``, computed ahead by threads.

    Up to ``n_ahead()`` further results are begun before the next one is handed out; the
    bound is asked for anew every time. An error comes where its result would have come.
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
    try:
        for i in range(n):
            while n_started < min(n, i + 1 + n_ahead()):
                started.append(pool.submit(function, n_started))
                n_started += 1
            yield started.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
