"""Rivals timed in one run: taking turns, medians, ratios, peak memory."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import threadpoolctl
import torch
from tabulate import tabulate


class Pace(NamedTuple):
    """Seconds that a run takes at once, and for every pick.

    >>> pace = Pace.through(few=100, seconds_few=3.0, many=500, seconds_many=11.0)
    >>> pace
    Pace(fixed=1.0, per_pick=0.02)
    >>> pace.total(10_000)
    201.0
    """

    fixed: float
    per_pick: float

    @classmethod
    def through(cls, few: int, seconds_few: float, many: int, seconds_many: float):
        """Return the line through two runs; the fixed part is at least 0."""
        per_pick = (seconds_many - seconds_few) / (many - few)
        return cls(max(0.0, seconds_few - few * per_pick), per_pick)

    def total(self, n_picks: int) -> float:
        return self.fixed + n_picks * self.per_pick


def seconds(function: Callable, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def take_turns(
    rivals: dict[str, Callable[[], float]], n_repeats: int
) -> dict[str, float]:
    """Return the median of what each rival says it took, in seconds.

    The rivals run one after the other in every repeat, so that what else the machine
    does hits all alike.

    >>> take_turns({"quick": lambda: 1.0, "slow": lambda: 3.0}, 3)
    {'quick': 1.0, 'slow': 3.0}
    """
    turns = [{name: run() for name, run in rivals.items()} for _ in range(n_repeats)]
    return {name: statistics.median(turn[name] for turn in turns) for name in rivals}


def with_ratios(rows: list[dict], column: str, ours: str) -> list[dict]:
    """Add to each row how many times as long as `ours` it took.

    >>> with_ratios([{"who": "us", "s": 2.0}, {"who": "them", "s": 5.0}], "s", "us")
    [{'who': 'us', 's': 2.0, 'ratio': 1.0}, {'who': 'them', 's': 5.0, 'ratio': 2.5}]
    """
    name = next(iter(rows[0]))
    own = next(row[column] for row in rows if row[name] == ours)
    return [{**row, "ratio": row[column] / own} for row in rows]


def print_table(title: str, rows: list[dict]) -> None:
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")
    print(f"\n{title}\n\n{table}", flush=True)


def limit_threads(n_threads: int | None) -> int:
    """Hold everything loaded, and processes started from now on, to `n_threads`."""
    n_threads = n_threads or torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    torch.set_num_threads(n_threads)
    threadpoolctl.threadpool_limits(n_threads)
    return n_threads


def in_fresh_process(function: Callable[..., dict], *args) -> dict:
    """Return what `function` gives in a new process, and the memory that it took.

    "peak_MB" is the largest resident memory of that process, "imports_MB" what it
    held before, with torch and all else imported.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_memory, function, args).result()


def _with_memory(function: Callable[..., dict], args) -> dict:
    limit_threads(int(os.environ.get("OMP_NUM_THREADS", 0)))
    imports = resident_megabytes("VmRSS")
    result = function(*args)
    return {**result, "imports_MB": imports, "peak_MB": resident_megabytes("VmHWM")}


def resident_megabytes(entry: str) -> float:
    """Return what Linux says of this process: "VmRSS" is now, "VmHWM" the peak."""
    # getrusage's ru_maxrss begins with the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(entry))
    return int(kilobytes) * 1024 / 1e6
