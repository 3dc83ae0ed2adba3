"""Test neighbours of random banks and queries against extended precision.

Set ``SKPATCHCORE_NEIGHBOR_CASES`` to draw more cases than by default. ``pytest -s``
prints the largest errors. Results of long runs are in docs/benchmarks.md.
"""

import os
from typing import NamedTuple

import numpy as np
import pytest

from skpatchcore._neighbors._index import build_index

N_CASES = int(os.environ.get("SKPATCHCORE_NEIGHBOR_CASES", "60"))
N_GROUPS = 12

SIZES = [300, 600, 1200, 3000, 8000, 20_000]
DIMENSIONS = [1, 2, 3, 160, 2048]
# Size of a bank in most cases, and in the few larger ones.
MOST_ELEMENTS, MORE_ELEMENTS = 700_000, 7_000_000


class Case(NamedTuple):
    """A bank, queries, a number of neighbours, and how they were drawn."""

    bank: np.ndarray
    queries: np.ndarray
    k: int
    name: str


# Banks ------------------------------------------------------------------------------


def normal(rng, n, d):
    return rng.normal(size=(n, d))


def flat(rng, n, d):
    """Rows of which a projection keeps most and loses some."""
    return rng.normal(size=(n, d)) * np.where(np.arange(d) < (d + 1) // 2, 1, 0.1)


def nearly_low_rank(rng, n, d):
    """Rows of which a projection loses almost nothing, where cancellation is worst."""
    rank = max(1, min(d // 4, 80))
    noise = rng.choice([0, 1e-9, 1e-7, 1e-4])
    exact = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    return exact + noise * rng.normal(size=(n, d))


def clusters(rng, n, d):
    centers = rng.normal(size=(20, d))
    width = rng.choice([1e-12, 1e-8, 1e-5, 1e-2])
    return centers[rng.integers(20, size=n)] + width * rng.normal(size=(n, d))


def lattice(rng, n, d):
    return rng.integers(-3, 4, size=(n, d)).astype(float)


def copies(rng, n, d):
    return rng.normal(size=(n // 3 + 1, d))[rng.integers(n // 3 + 1, size=n)]


BANKS = [normal, flat, flat, nearly_low_rank, clusters, lattice, copies]


def draw_case(seed):
    rng = np.random.default_rng(seed)
    d, make = int(rng.choice(DIMENSIONS)), BANKS[rng.integers(len(BANKS))]
    most = MORE_ELEMENTS if seed % 50 == 49 else MOST_ELEMENTS
    n = int(rng.choice([n for n in SIZES if n * d <= most]))
    dtype = [np.float32, np.float64, np.float64][rng.integers(3)]
    k = [1, 3, n - 1][rng.choice(3, p=[0.45, 0.45, 0.1])]
    n_queries = 3 if k == n - 1 else min(400, 300_000 // n) if d <= 3 else 24
    if d == 2 and make is flat and n_queries > 3:
        # The bound equals the distance, and one query in 10 000 shows its rounding.
        n, n_queries = min(n, 1200), 4000
    X = make(rng, n + n_queries, d)
    bank, queries = X[:n], X[n:]
    # First rows of the bank, then rows close to these, then others.
    part = n_queries // 6 or 1
    queries[: 2 * part] = bank[rng.integers(n, size=2 * part)]
    nudge = rng.choice([1e-12, 1e-9, 1e-7, 1e-5])
    queries[part : 2 * part] += nudge * rng.normal(size=(part, d))
    offset = rng.choice([0, 0, 1e3, 1e6])
    scale = rng.choice([1, 1, 1, 1e-25, 1e20, 1e-100, 1e100])
    if dtype == np.float32 and abs(np.log10(scale)) > 30:
        scale = 1e-40
    bank, queries = (
        ((part + offset) * scale).astype(dtype) for part in (bank, queries)
    )
    name = f"seed {seed}: {make.__name__}, {n} x {d}, {dtype.__name__}, k={k}"
    return Case(bank, queries, int(k), f"{name}, nudge={nudge}, {offset=}, {scale=}")


# Reference --------------------------------------------------------------------------


def true_squares(bank, query):
    """Squared distances in extended precision."""
    differences = bank.astype(np.longdouble) - query.astype(np.longdouble)
    return np.square(differences).sum(axis=1)


def excess(case, squared, rows):
    """Return the largest relative error of a distance, and of the choice of rows.

    The second is how much farther than the true j-th neighbour the j-th found truly is.
    """
    errors, choices, bank = [0.0], [0.0], case.bank.astype(float)
    for query, distances, found in zip(case.queries, squared, rows, strict=True):
        assert len(set(found.tolist())) == case.k, case.name
        rough = np.square(bank - query).sum(axis=1)
        # float64 is exact to 1e-12 here, so no nearer row is missed.
        least = np.partition(rough, case.k - 1)[case.k - 1]
        nearby = np.flatnonzero(rough <= least * (1 + 1e-10))
        nearest = np.sort(true_squares(case.bank[nearby], query))[: case.k]
        own = true_squares(case.bank[found], query)
        errors.append(relative(np.abs(distances - own), own))
        choices.append(relative(own - nearest, nearest))
    return max(errors), max(choices)


def relative(difference, whole):
    """Return the largest quotient; 0 / 0 is 0."""
    difference, whole = difference[difference != 0], whole[difference != 0]
    assert np.all(whole > 0)
    return float((difference / whole).max(initial=0))


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_drawn_neighbors_are_the_nearest_in_extended_precision(group):
    worst = np.zeros(2)
    for seed in range(group, N_CASES, N_GROUPS):
        case = draw_case(seed)
        found = build_index(case.bank).query(case.queries, case.k)
        errors = np.array(excess(case, *found))
        # The rounding error of differences, squares, and their sum in float64. Rows
        # whose computed distances nearly tie may swap places.
        bound = (case.bank.shape[1] + 2) * np.finfo(np.float64).eps
        assert np.all(errors <= bound), (case.name, errors)
        worst = np.maximum(worst, errors)
    print(
        f"\ngroup {group}: distances err by {worst[0]:.1e}, choices by {worst[1]:.1e}"
    )
