"""Time and errors of exact nearest neighbours, ours and those of others.

Run as ``python tests/benchmarks/bench_neighbors.py``, with real images and weights in
the folder that SKPATCHCORE_ASSETS names, or with ``--data synthetic``. From bottle, the
bank is the coreset of the training images, the queries are the patches of test
images, and both are taken to the asked dimensions by a random projection. Several
sizes (``--rows 1600 16000 64000 --dimensions 128 384 1536``) show where one overtakes
another.

All distances are held against float64: "rows" is the share of neighbours that are those
of the reference or, to 1e-6, as near; "error" the largest relative one of a distance.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import _bottle
import faiss
import numpy as np
import pynndescent
import torch
from _timing import limit_threads, print_table, seconds, take_turns, with_ratios
from sklearn.neighbors import NearestNeighbors

from skpatchcore import CoresetSampler
from skpatchcore._neighbors._index import build_index

OURS = "skpatchcore"
_TIE = 1e-6
_SPARE = 32
_WARM_UP = 500

# What builds an index gives a function of queries and k, which gives distances
# (Euclidean, not squared) and rows.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def ours(bank: np.ndarray) -> Search:
    index = build_index(bank, algorithm="auto")

    def search(queries, k):
        squared, rows = index.query(queries, k)
        return np.sqrt(squared), rows

    # What is found out about a bank at the first search belongs to building.
    search(bank[:1], 1)
    return search


def flat(bank: np.ndarray) -> Search:
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)

    def search(queries, k):
        squared, rows = index.search(queries, k)
        return np.sqrt(squared), rows

    return search


def brute(bank: np.ndarray) -> Search:
    return NearestNeighbors(algorithm="brute").fit(bank).kneighbors


def cdist(bank: np.ndarray) -> Search:
    bank = torch.from_numpy(bank)

    def search(queries, k):
        distances = torch.cdist(torch.from_numpy(queries), bank)
        found = distances.topk(k, largest=False)
        return found.values.numpy(), found.indices.numpy()

    return search


def graph(bank: np.ndarray) -> Search:
    # It sets numba's threads itself, which nothing else holds to a number.
    n_jobs = torch.get_num_threads()
    index = pynndescent.NNDescent(bank, n_neighbors=30, random_state=0, n_jobs=n_jobs)
    index.prepare()

    def search(queries, k):
        rows, distances = index.query(queries, k)
        return distances, rows

    return search


BUILDERS = {
    OURS: ours,
    "faiss IndexFlatL2": flat,
    "sklearn brute": brute,
    "torch.cdist + topk": cdist,
    "pynndescent": graph,
}


def reference(queries: np.ndarray, bank: np.ndarray, k: int):
    """Return distances and rows of the `k` nearest in float64, by differences."""
    center = bank.mean(axis=0, dtype=np.float64)
    centered = bank - center
    partial_squared = centered @ (queries - center).T * -2
    partial_squared += np.square(centered).sum(axis=1)[:, None]
    # In float64 the product errs in the 12th digit: a few spare candidates will do.
    n_candidates = min(len(bank), k + _SPARE)
    candidates = np.argpartition(partial_squared.T, n_candidates - 1)[:, :n_candidates]
    distances = distances_to(queries, bank, candidates)
    order = np.argsort(distances, axis=1)[:, :k]
    rows = np.take_along_axis(candidates, order, axis=1)
    return np.take_along_axis(distances, order, axis=1), rows


def distances_to(queries: np.ndarray, bank: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return distances (n, k) in float64 from queries (n, d) to `rows` (n, k)."""
    return np.stack(
        [
            np.sqrt(np.square(bank[r].astype(np.float64) - q).sum(axis=1))
            for q, r in zip(queries, rows, strict=True)
        ]
    )


def verdict(found, expected, queries, bank) -> dict:
    """Return the share of rows that are right, and the largest error of a distance."""
    (distances, rows), (true_distances, true_rows) = found, expected
    as_near = distances_to(queries, bank, rows) <= true_distances * (1 + _TIE)
    error = np.abs(distances / true_distances - 1)
    return {"rows": np.mean((rows == true_rows) | as_near), "error": error.max()}


def synthetic(n_rows: int, n_queries: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a bank and queries in clusters, with spectra that fall as features' do."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -0.7
    centers = rng.normal(size=(200, d)) * spectrum + 1.0
    X = centers[rng.integers(200, size=n_rows + n_queries)]
    X += 0.5 * rng.normal(size=X.shape) * spectrum
    return np.split(X.astype(np.float32), [n_rows])


def bottle(kept: Path | None, sizes: list[int], n_queries: int):
    """Return a bank of the largest size, in the order of picking, and queries."""
    found = _bottle.features(kept)
    patches = found["train"].reshape(-1, found["train"].shape[-1])
    bank = CoresetSampler(max(sizes), random_state=0).fit_resample(patches)
    return bank, found["test"][::-1].reshape(-1, bank.shape[1])[:n_queries]


def compare(bank, queries, k: int, names: list[str], n_repeats: int) -> None:
    searches, builds = {}, {}

    def build(name, rows):
        searches[name] = BUILDERS[name](rows)

    for name in names:
        # What is compiled, or imported, at first use belongs to nobody.
        build(name, bank[:_WARM_UP])
        searches[name](queries[:_WARM_UP], k)
        builds[name] = seconds(build, name, bank)
    expected = reference(queries, bank, k)
    # This is their first call, too.
    verdicts = {
        name: verdict(search(queries, k), expected, queries, bank)
        for name, search in searches.items()
    }
    runs = {name: partial(seconds, s, queries, k) for name, s in searches.items()}
    medians = take_turns(runs, n_repeats)
    rows = [
        {
            "search by": name,
            "build s": builds[name],
            "ms": 1e3 * taken,
            **verdicts[name],
        }
        for name, taken in medians.items()
    ]
    title = f"{len(queries)} queries x {len(bank)} rows x {bank.shape[1]}, k = {k}"
    print_table(f"{title}, median of {n_repeats}", with_ratios(rows, "ms", OURS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("bottle", "synthetic"), default="bottle")
    parser.add_argument("--features", type=Path, help="file to keep features in (.npz)")
    parser.add_argument("--rows", type=int, nargs="+", default=[16_000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1536])
    parser.add_argument("--neighbors", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--queries", type=int, default=784)
    parser.add_argument("--only", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    names = [name for name in BUILDERS if name == OURS or name in args.only]
    print(f"{args.data}, {limit_threads(args.threads)} threads")
    if args.data == "bottle":
        real = bottle(args.features, args.rows, args.queries)
    for d, n_rows in product(args.dimensions, args.rows):
        if args.data == "bottle":
            bank, queries = (_bottle.to_dimensions(X, d) for X in real)
        else:
            bank, queries = synthetic(n_rows, args.queries, d)
        for k in args.neighbors:
            compare(bank[:n_rows], queries, k, names, args.repeats)


if __name__ == "__main__":
    main()
