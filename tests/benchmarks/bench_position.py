"""What a position window changes in image and pixel AUROC.

Run as ``python tests/benchmarks/bench_position.py FEATURES.npz [CLASS ...]``, where
CLASS is a folder below ``data`` of the assets (``SKPATCHCORE_ASSETS``); without any,
the four of the table. Features are extracted once and kept in FEATURES.npz.

"own" is the naive window for comparison: a bank row may be matched only about the place
where it was taken, not about those of all training patches that it stands for.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from _grids import load, rate
from sklearn.base import BaseEstimator

from skpatchcore import CoresetSampler, PatchMemoryBank

CATEGORIES = (
    "mvtec_ad/bottle",
    "mvtec_ad/pill",
    "mvtec_ad_reduced/transistor_reduced",
    "mvtec_3d/tire",
)
WINDOWS = (None, 5, 9)
N_SEEDS = 2
FRACTION = 0.01


class PicksOnly(BaseEstimator):
    """The same coreset, without telling which pick each patch is nearest to."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y=None):
        sampler = CoresetSampler(FRACTION, random_state=self.random_state).fit(X)
        self.sample_indices_ = sampler.sample_indices_
        return self


def run(cache: Path, category: str) -> None:
    grids = load(cache, category)
    samplers = {"covered": CoresetSampler(FRACTION), "own": PicksOnly()}
    for window in WINDOWS:
        for name, sampler in samplers.items():
            if window is None and name == "own":
                continue
            rates, start = [], time.process_time()
            for seed in range(N_SEEDS):
                bank = PatchMemoryBank(
                    sampler, position_window=window, random_state=seed
                ).fit(grids.train)
                rates.append(rate(bank.score_patches(grids.test), grids.masks, grids.y))
            seconds = time.process_time() - start
            cells = " | ".join(
                f"{value:.3f} ({width:.3f})"
                for value, width in zip(
                    np.mean(rates, axis=0), np.ptp(rates, axis=0), strict=True
                )
            )
            print(f"| {category} | {window} | {name} | {cells} | {seconds:.0f} s |")
            sys.stdout.flush()


def main(cache: str, *categories: str) -> None:
    torch.set_num_threads(1)
    print("| class | window | rows | image AUROC | pixel AUROC | CPU time |")
    for category in categories or CATEGORIES:
        run(Path(cache), category)


if __name__ == "__main__":
    main(*sys.argv[1:])
