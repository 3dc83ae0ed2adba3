"""What defective images in the training set cost, with and without filters.

Run as ``python tests/benchmarks/bench_contamination.py FEATURES.npz [CLASS ...]``,
where CLASS is a folder below ``data`` of the assets (``SKPATCHCORE_ASSETS``); without
any, bottle and pill. Features are extracted once and kept in FEATURES.npz; every second
row and column of their grids is used.

To 60 normal training images so many defective ones are added that they are a given
share of all. They come from 15 that are set aside; the detector is rated on the normal
test images and 40 other defective ones ("others"), the same for all shares, and on
these and the 15 together ("with those learned"), as where what is to be found is in the
training set. Median over seeds, which draw the images and the coreset (5 %).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from _grids import SCALE, load, rate

from skpatchcore import CoresetSampler, PatchMemoryBank

CATEGORIES = ("mvtec_ad/bottle", "mvtec_ad/pill")
SHARES = (0.0, 0.05, 0.1, 0.2)
FILTERS = (None, "sample", "lof", "nearest", "gaussian")
N_NORMAL, N_ASIDE, N_OTHERS = 60, 15, 40
N_SEEDS = 3
STRIDE = 2


def rate_filters(grids, share: float, seed: int) -> np.ndarray:
    """Return image and pixel AUROC on others, and with those learned: (n, 4)."""
    bad = np.random.default_rng(seed).permutation(np.flatnonzero(grids.y == -1))
    aside, others = np.split(bad[: N_ASIDE + N_OTHERS], [N_ASIDE])
    n_bad = round(N_NORMAL * share / (1 - share))
    X = np.concatenate([grids.train[:N_NORMAL], grids.test[aside[:n_bad]]])
    others = np.concatenate([np.flatnonzero(grids.y == 1), others])
    seen = np.concatenate([others, aside])
    masks, y = grids.masks[seen], grids.y[seen]
    rates = []
    for name in FILTERS:
        bank = PatchMemoryBank(
            CoresetSampler(0.05), outlier_filter=name, random_state=seed
        ).fit(X)
        patch_scores = bank.score_patches(grids.test[seen])
        rates.append(
            [
                value
                for n in (len(others), len(seen))
                for value in rate(patch_scores[:n], masks[:n], y[:n])
            ]
        )
    return np.array(rates)


def thin_out(grids):
    """Take every second patch; masks keep their pixels, at half the scale a patch."""
    step = slice(None, None, STRIDE)
    masks = grids.masks[:, ::STRIDE, ::STRIDE]
    return grids._replace(
        train=np.ascontiguousarray(grids.train[:, step, step]),
        test=np.ascontiguousarray(grids.test[:, step, step]),
        masks=masks,
    )


def run(cache: Path, category: str) -> None:
    grids = thin_out(load(cache, category))
    assert grids.masks.shape[1] == SCALE * grids.test.shape[1]
    rates = []
    for share in SHARES:
        rates.append([rate_filters(grids, share, seed) for seed in range(N_SEEDS)])
        median, spread = np.median(rates[-1], axis=0), np.ptp(rates[-1], axis=0)
        for name, values, width in zip(FILTERS, median, spread, strict=True):
            cells = " | ".join(
                f"{value:.3f} ({w:.3f})" for value, w in zip(values, width, strict=True)
            )
            print(f"| {category} | {share:.0%} | {name} | {cells} |", flush=True)
    _report_losses(category, np.array(rates))


def _report_losses(category: str, rates: np.ndarray) -> None:
    """Print the loss against no contamination and no filter, mean over seeds."""
    losses = (rates[0, :, :1] - rates[1:]).mean(axis=1)
    for share, by_filter in zip(SHARES[1:], losses, strict=True):
        for name, values in zip(FILTERS, by_filter, strict=True):
            cells = " | ".join(f"{value:+.3f}" for value in values)
            print(f"| {category} | {share:.0%} | {name} | loss | {cells} |", flush=True)


def main(cache: str, *categories: str) -> None:
    torch.set_num_threads(1)
    print("| class | share | filter | others: image | pixel | all: image | pixel |")
    for category in categories or CATEGORIES:
        run(Path(cache), category)


if __name__ == "__main__":
    main(*sys.argv[1:])
