"""Time of the k-centre greedy against the same picks made one at a time, and anomalib.

Run as ``python tests/benchmarks/bench_coreset.py [--anomalib-env DIR]`` with real
weights and images in the folder that SKPATCHCORE_ASSETS names, or with ``--rows N``
on synthetic features. What would take longer than ``--limit`` seconds is timed on its
first picks and extrapolated: one pick at a time, each costs the same.

anomalib projects the features its own way, to 296 dimensions for bottle, and begins
with another row; the two others share the 128-d space and the first pick.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _bottle
import numpy as np
import torch
from _anomalib import Anomalib
from _timing import Pace, limit_threads, print_table, seconds, take_turns, with_ratios

from skpatchcore._coreset._greedy import k_center_greedy

OURS = "skpatchcore"
_BLOCK = 512


def one_at_a_time(X: torch.Tensor, n_selected: int, first: int = 0) -> list[int]:
    """Farthest-point sampling as usually written: a matrix-vector product a pick."""
    norms = X.square().sum(dim=1)
    squared = torch.full_like(norms, torch.inf)
    new = torch.empty_like(norms)
    picks = [first]
    while True:
        row = picks[-1]
        torch.addmv(norms, X, X[row], alpha=-2, out=new)
        torch.minimum(squared, new.add_(norms[row]), out=squared)
        # A copy of a pick is as far as rounding says; no row may be picked twice.
        squared[row] = -torch.inf
        if len(picks) == n_selected:
            return picks
        picks.append(int(squared.argmax()))


def bare_products(X: torch.Tensor, n_selected: int) -> None:
    """The matrix products of all rows with all picks, and nothing else."""
    out = torch.empty(_BLOCK, len(X))
    for block in X[:n_selected].split(_BLOCK):
        torch.mm(block, X.T, out=out[: len(block)])


def pace(run: Callable[[int], object], few: int, many: int) -> Pace:
    """Return the pace of `run`, a function of the number of picks."""
    run(2)
    return Pace.through(few, seconds(run, few), many, seconds(run, many))


def follow(X: torch.Tensor, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each pick falls short of the farthest row, and cover radii.

    In float64, one pick at a time. A pick's shortfall is relative to the distance of
    the farthest row: 0 if the pick is that row, or ties with it.

    >>> X = torch.tensor([[0.0], [1.0], [8.0], [10.0]])
    >>> follow(X, np.array([0, 2, 3]))
    (array([0. , 0.2, 0. ]), array([10.,  2.,  1.]))
    """
    X = X.double() - X.double().mean(dim=0)
    norms = X.square().sum(dim=1)
    squared = torch.full_like(norms, torch.inf)
    farthest, own = np.empty(len(picks)), np.empty(len(picks))
    for i, row in enumerate(picks.tolist()):
        farthest[i], own[i] = squared.max(), squared[row]
        new = torch.addmv(norms, X, X[row], alpha=-2).add_(norms[row])
        squared = torch.minimum(squared, new.clamp_(min=0))
    # Nothing is known before the first pick, which is given.
    farthest, own = np.sqrt(farthest[1:]), np.sqrt(own[1:])
    radii = np.append(farthest, float(squared.max()) ** 0.5)
    return np.insert(1 - own / farthest, 0, 0.0), radii


def synthetic(n_rows: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    # Features are far from white: their variance lies in few directions.
    return (rng.normal(size=(n_rows, d)) * np.logspace(0, -2, d)).astype(np.float32)


def compare(features: np.ndarray, X: torch.Tensor, n_selected: int, args) -> None:
    def plain() -> float:
        run = partial(one_at_a_time, X)
        # The first picks tell whether there is time for all.
        found = pace(run, 20, min(220, n_selected))
        total = found.total(n_selected)
        if total <= args.limit:
            return seconds(run, n_selected)
        extrapolated.add("one pick at a time")
        few = args.rival_picks // 10
        return pace(run, few, args.rival_picks).total(n_selected)

    def anomalib() -> float:
        few = args.rival_picks // 10
        taken = rival.run("coreset", picks=[few, args.rival_picks])["seconds"]
        found = Pace.through(few, taken[0], args.rival_picks, taken[1])
        print(
            f"anomalib: {found.fixed:.2f} s, {found.per_pick:.4f} s a pick", flush=True
        )
        return found.total(n_selected)

    extrapolated = {"anomalib"}
    rivals = {
        OURS: lambda: seconds(k_center_greedy, X, n_selected, 0),
        "matrix products alone": lambda: seconds(bare_products, X, n_selected),
        "one pick at a time": plain,
    }
    if args.anomalib_env is not None:
        rival = Anomalib(args.anomalib_env, args.threads)
        rival.put(features=features)
        rivals["anomalib"] = anomalib
    k_center_greedy(X, min(1000, n_selected), 0)
    medians = take_turns(rivals, args.repeats)
    part = f"from {args.rival_picks} picks"
    rows = [
        {"picks by": name, "s": s, "timed": part if name in extrapolated else "whole"}
        for name, s in medians.items()
    ]
    title = f"{len(X)} x {X.shape[1]}, {n_selected} picks, {args.threads} threads"
    print_table(f"{title}, median of {args.repeats}", with_ratios(rows, "s", OURS))


def check(X: torch.Tensor, n_picks: int) -> None:
    coreset = k_center_greedy(X, n_picks, 0)
    shortfalls, radii = follow(X, coreset.indices)
    print(
        f"\nOf the first {n_picks} picks, {np.count_nonzero(shortfalls > 0)} are not "
        f"the farthest row in float64, by at most {shortfalls.max():.1e} of its "
        f"distance; radii err by at most {np.abs(coreset.radii / radii - 1).max():.1e}."
    )


def grow(X: torch.Tensor, n_selected: int, n_repeats: int) -> None:
    """Time a quarter, half and all of the rows, at fixed picks and a fixed share."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    shares = {len(X) // part: n_selected // part for part in (4, 2, 1)}
    fixed = min(shares.values())
    runs = {
        (n_rows, n): partial(seconds, k_center_greedy, X[order[:n_rows]], n, 0)
        for n_rows, share in shares.items()
        for n in sorted({fixed, share})
    }
    medians = take_turns(runs, n_repeats)
    rows = []
    for n_rows, share in shares.items():
        taken = {"fixed": medians[n_rows, fixed], "share": medians[n_rows, share]}
        before = rows[-1] if rows else {"s, fixed": np.nan, "s, share": np.nan}
        rows.append(
            {
                "rows": n_rows,
                "s, fixed": taken["fixed"],
                "times half": taken["fixed"] / before["s, fixed"],
                "picks": share,
                "s, share": taken["share"],
                "times half again": taken["share"] / before["s, share"],
            }
        )
    print_table(f"Growth, at {fixed} picks and at a fixed share", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anomalib-env", type=Path, help="made there if absent")
    parser.add_argument("--features", type=Path, help="file to keep features in (.npz)")
    parser.add_argument("--images", type=int, help="take this many; default all")
    parser.add_argument("--rows", type=int, help="synthetic features instead")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rival-picks", type=int, default=500)
    parser.add_argument("--check-picks", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.threads = limit_threads(args.threads)
    if args.rows is not None:
        features = synthetic(args.rows, 384)
    else:
        features = _bottle.features(args.features)["train"][: args.images]
        features = features.reshape(-1, features.shape[-1])
    X = torch.from_numpy(_bottle.to_dimensions(features, args.dimensions))
    n_selected = int(args.fraction * len(X))
    compare(features, X, n_selected, args)
    if args.check_picks:
        check(X, min(args.check_picks, n_selected))
    grow(X, n_selected, args.repeats)


if __name__ == "__main__":
    main()
