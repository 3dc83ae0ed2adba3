"""Time of the k-centre greedy against the same picks made one at a time.

Run as ``python tests/benchmarks/bench_coreset.py [n_rows n_features n_selected]``.
"""

import statistics
import sys
import time

import torch

from skpatchcore._coreset import k_center_greedy


def one_at_a_time(X: torch.Tensor, n_selected: int, first: int) -> list[int]:
    """Farthest-point sampling as usually written: a matrix-vector product a pick."""
    norms = X.square().sum(dim=1)
    squared = torch.full((len(X),), torch.inf)
    picks = [first]
    while True:
        row = picks[-1]
        squared = torch.minimum(squared, norms - 2 * (X @ X[row]) + norms[row])
        squared[row] = -torch.inf
        if len(picks) == n_selected:
            return picks
        picks.append(int(squared.argmax()))


def seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def main(n_rows=20_000, n_features=128, n_selected=2_000, n_repeats=3) -> None:
    X = torch.randn(n_rows, n_features, generator=torch.Generator().manual_seed(0))
    # Features are far from white: their variance lies in few directions.
    X *= torch.logspace(0, -2, n_features)
    pairs = [
        (
            seconds(one_at_a_time, X, n_selected, 0),
            seconds(k_center_greedy, X, n_selected, 0),
        )
        for _ in range(n_repeats)
    ]
    plain, blocked = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{n_rows} x {n_features}, {n_selected} picks, median of {n_repeats}")
    print(
        f"one at a time {plain:.2f} s, blocked {blocked:.2f} s: {plain / blocked:.1f}x"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
