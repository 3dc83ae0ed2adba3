"""Threads that use one core each, for much work in small pieces."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController


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


def compute_alone() -> None:
    """Keep torch from starting further threads under the calling one."""
    # In every thread torch sets the number once, at first use; it must have done so
    # before. Not torch.set_num_threads(1): that is for all threads started later, too.
    torch.get_num_threads()
    _threadpools().limit(limits=1, user_api="openmp")


@functools.lru_cache(maxsize=4)
def _pool(pid: int, n_threads: int) -> ThreadPoolExecutor:
    """Return threads for this process: those of its parent do not live in it."""
    return ThreadPoolExecutor(n_threads, "skpatchcore", initializer=compute_alone)


@functools.cache
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()
