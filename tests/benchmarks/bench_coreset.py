"""Time of the k-centre greedy against the same picks made one at a time, and anomalib.

Run as ``python tests/benchmarks/bench_coreset.py [--anomalib-env DIR]`` with real
weights and pictures in the folder that SKPATCHCORE_ASSETS names, or with ``--rows N``
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

from skpatchcore._coreset import k_center_greedy

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


def shortfall(X: torch.Tensor, picks: np.ndarray) -> np.ndarray:
    """Return for each pick how much nearer it is than the farthest row, relatively.

    In float64, one pick at a time: 0 where the pick is the farthest row, or as far.
    """
    X = X.double() - X.double().mean(dim=0)
    norms = X.square().sum(dim=1)
    squared = torch.full_like(norms, torch.inf)
    missing = np.zeros(len(picks))
    for i, row in enumerate(picks.tolist()):
        if i:
            missing[i] = 1 - float(squared[row] / squared.max()) ** 0.5
        new = torch.addmv(norms, X, X[row], alpha=-2).add_(norms[row])
        squared = torch.minimum(squared, new.clamp_(min=0))
    return missing


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
    rows = [
        {
            "picks by": name,
            "s": taken,
            "how": f"from {args.rival_picks} picks"
            if name in extrapolated
            else "whole",
        }
        for name, taken in medians.items()
    ]
    title = f"{len(X)} x {X.shape[1]}, {n_selected} picks, {args.threads} threads"
    print_table(f"{title}, median of {args.repeats}", with_ratios(rows, "s", OURS))


def check(X: torch.Tensor, n_picks: int) -> None:
    missing = shortfall(X, k_center_greedy(X, n_picks, 0).indices)
    print(
        f"\nOf the first {n_picks} picks, {np.mean(missing > 0):.2%} are not the "
        f"farthest row in float64, and nearer by at most {missing.max():.1e} of it."
    )


def grow(X: torch.Tensor, n_selected: int, n_repeats: int) -> None:
    """Time a quarter, half and all of the rows, at fixed picks and a fixed share."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    parts = [X[order[: len(X) // share]].contiguous() for share in (4, 2, 1)]
    runs = {
        f"{len(part)}/{n}": partial(seconds, k_center_greedy, part, n, 0)
        for i, part in enumerate(parts)
        for n in {n_selected // 4, n_selected // (4, 2, 1)[i]}
    }
    medians = take_turns(runs, n_repeats)
    rows = []
    for i, part in enumerate(parts):
        fixed, share = n_selected // 4, n_selected // (4, 2, 1)[i]
        row = {
            "rows": len(part),
            f"s, {fixed} picks": medians[f"{len(part)}/{fixed}"],
            "picks": share,
            "s, fixed share": medians[f"{len(part)}/{share}"],
        }
        before = rows[-1] if rows else row
        for column in (f"s, {fixed} picks", "s, fixed share"):
            row[f"x, {column[3:]}"] = row[column] / before[column]
        rows.append(row)
    print_table("Growth: seconds, and times those of half as many rows", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anomalib-env", type=Path, help="made there if absent")
    parser.add_argument("--features", type=Path, help="file to keep features in (.npz)")
    parser.add_argument("--pictures", type=int, help="take this many; default all")
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
        features = _bottle.features(args.features)["train"][: args.pictures]
        features = features.reshape(-1, features.shape[-1])
    X = torch.from_numpy(_bottle.to_dimensions(features, args.dimensions))
    n_selected = int(args.fraction * len(X))
    compare(features, X, n_selected, args)
    if args.check_picks:
        check(X, min(args.check_picks, n_selected))
    grow(X, n_selected, args.repeats)


if __name__ == "__main__":
    main()
