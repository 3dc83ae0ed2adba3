"""Share of new normal images that a threshold from training scores flags.

Run as ``python tests/benchmarks/bench_training_scores.py FEATURES.npz [CLASS ...]``.
Classes, features and FEATURES.npz are those of ``bench_false_alarms.py``.

Each split keeps four fifths of the normal images for fitting, and asks how many of the
others, and of the defects, are flagged. Three kinds of training scores are compared:
with the whole bank, where a sample is matched with itself; without all rows that the
sample gave to the bank; and those of `PatchMemoryBank`.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench_false_alarms import load

from skpatchcore import CoresetSampler, PatchMemoryBank

CATEGORIES = (
    "mvtec_ad/bottle",
    "mvtec_ad/pill",
    "mvtec_3d/tire",
    "mtd_reduced/magnetic_tile",
    "mvtec_ad_reduced/hazelnut_reduced",
    "mvtec_ad_reduced/transistor_reduced",
)
FRACTIONS = (0.01, 0.1)
SHARES = (0.01, 0.05)
N_SPLITS = 10


def whole_bank_scores(bank: PatchMemoryBank, X: np.ndarray) -> np.ndarray:
    return bank.score_patches(X).max(axis=1)


def without_own_rows(bank: PatchMemoryBank, X: np.ndarray) -> np.ndarray:
    """Return scores by the nearest of 64 rows that another sample gave to the bank."""
    k = min(64, len(bank.bank_))
    distances, rows = bank.kneighbors(X, k)
    own = bank.bank_indices_[rows] // X.shape[1] == np.arange(len(X))[:, None, None]
    return np.where(own, np.inf, distances).min(axis=2).max(axis=1)


def flagged(train, new, anomalous, fraction: float, seed: int) -> np.ndarray:
    """Return shares (3 kinds, new and anomalous, shares) of a split."""
    sampler = CoresetSampler(fraction, random_state=seed)
    bank = PatchMemoryBank(sampler, n_neighbors=1).fit(train)
    scores = [-bank.score_samples(part) for part in (new, anomalous)]
    kinds = (
        whole_bank_scores(bank, train),
        without_own_rows(bank, train),
        -bank.training_scores_,
    )
    return np.array(
        [
            [
                [np.mean(part > np.quantile(kind, 1 - c)) for c in SHARES]
                for part in scores
            ]
            for kind in kinds
        ]
    )


def run(cache: Path, category: str) -> None:
    X, y = load(cache, category)
    normal, anomalous = X[y == 1], X[y == -1]
    for fraction in FRACTIONS:
        start, found = time.perf_counter(), []
        for seed in range(N_SPLITS):
            order = np.random.default_rng(seed).permutation(len(normal))
            new, train = np.split(normal[order], [len(normal) // 5])
            found.append(flagged(train, new, anomalous, fraction, seed))
        means = 100 * np.mean(found, axis=0).reshape(3, -1)
        cells = " | ".join(" / ".join(f"{v:.1f}" for v in row) for row in means)
        seconds = time.perf_counter() - start
        print(f"| {category} | {fraction:.0%} | {cells} | {seconds:.0f} s", flush=True)


def main(cache: str, *categories: str) -> None:
    torch.set_num_threads(1)
    print("new normal images flagged at 1 % / 5 %, and defects flagged at 1 % / 5 %")
    print("| class | coreset | whole bank | without own rows | training scores |")
    for category in categories or CATEGORIES:
        run(Path(cache), category)


if __name__ == "__main__":
    main(*sys.argv[1:])
