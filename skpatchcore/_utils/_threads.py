"""Threads that use one core each, for many small pieces of work."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

S = TypeVar("S")
T = TypeVar("T")


def map_threads(
    function: Callable[[S], T], items: Iterable[S], device: torch.device
) -> Iterator[T]:
    """Yield ``function(item)`` for all items, in order.

    On a CPU, use as many threads as torch does in the calling thread, with one core
    each. This is faster for operations that are too small to be split across cores. If
    other processes use the same cores, the threads of a split operation would also have
    to wait for each other every time.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        return map(function, items)
    return _pool(os.getpid(), n_threads).map(function, items)


def shares(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """Split `items` into at most `n` consecutive parts of similar size, none empty."""
    step = -(-len(items) // n)
    return [items[start : start + step] for start in range(0, len(items), step)]


def compute_alone() -> None:
    """Prevent torch from starting further threads in the calling thread."""
    # torch sets the number at its first use in each thread, so it must do that now.
    # torch.set_num_threads(1) is not an option: it also affects threads started later.
    torch.get_num_threads()
    _threadpools().limit(limits=1, user_api="openmp")


@functools.lru_cache(maxsize=4)
def _pool(pid: int, n_threads: int) -> ThreadPoolExecutor:
    """Return the thread pool of a process: a fork does not copy threads."""
    return ThreadPoolExecutor(n_threads, "skpatchcore", initializer=compute_alone)


@functools.cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()
