"""Many small operations at once: threads that leave each operation to one core."""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def map_threads(function: Callable, items: Iterable, device: torch.device) -> Iterator:
    """Yield ``function(item)`` for all items, in order.

    On a CPU, in as many threads as torch has here, and with one core for each. That
    suits operations too small to be shared out among cores, the more so where other
    processes want these, too: then cores would wait for each other at every operation.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        return map(function, items)
    return _pool(os.getpid(), n_threads).map(function, items)


def shares(items: Sequence, n: int) -> list[Sequence]:
    """Split `items` into at most `n` runs of about equal length, none of them empty."""
    step = -(-len(items) // n)
    return [items[start : start + step] for start in range(0, len(items), step)]


@functools.lru_cache(maxsize=4)
def _pool(pid: int, n_threads: int) -> ThreadPoolExecutor:
    """Return threads with one core each; those of another process would be dead."""
    started = threading.Barrier(n_threads + 1)

    def start():
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(n_threads, "skpatchcore", initializer=start)
    for _ in range(n_threads):
        pool.submit(int)
    started.wait()
    # Holds for this thread, and for those yet to come; the pool's keep their own.
    torch.set_num_threads(n_threads)
    return pool
