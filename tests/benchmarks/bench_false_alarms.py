"""Share of new normal images, and of defects, that thresholds flag.

Run as ``python tests/benchmarks/bench_false_alarms.py FEATURES.npz [CLASS ...]``, where
CLASS is a folder below ``data`` of the assets (``SKPATCHCORE_ASSETS``, or
``../shared/assets`` beside the checkout), such as ``mvtec_ad/bottle``, or
``surfaces`` (procedural images) or ``numbers`` (fresh numbers for each split);
without any, all of these. Features are extracted once and kept in FEATURES.npz.

Each split shuffles the normal images of a class, keeps most for fitting and
calibrating, and asks how many of the others, and of the defects, are flagged. The
thresholds are those of ConformalDetector, of training samples that are compared with
the whole bank, and anomalib's default: that of the best F1 on the test set
(``F1AdaptiveThreshold`` with ``val_split_mode="same_as_test"``), which has no rate to
hold, and sees the very images it is rated on.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore.calibration import ConformalDetector
from skpatchcore.calibration._p_values import Calibration
from skpatchcore.datasets import load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import f1_max

ALPHAS = (0.05, 0.01)
N_SPLITS = 200
N_PICKS = 200
N_PATCHES = 49
N_DIMENSIONS = 64
# Sets of procedural images to fit and calibrate on, and those to ask about.
N_TRAIN, N_NEW = (30, 100, 300), 100
CATEGORIES = (
    "mvtec_ad_reduced/hazelnut_reduced",
    "mvtec_ad_reduced/transistor_reduced",
    "mvtec_ad/bottle",
    "mvtec_ad/pill",
    "mvtec_3d/tire",
    "surfaces",
    "numbers",
)


def assets() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "assets"
    return Path(os.environ.get("SKPATCHCORE_ASSETS", beside))


def images(category: str):
    """Return images, and what reads them."""
    if category == "surfaces":
        data = make_surface_defects(1200, 0, 100, texture="wood", random_state=0)
        return data, PatchFeatureTransformer(
            "gabor", ("fine", "coarse"), image_size=128
        )
    data = load_mvtec_ad(assets() / "data" / Path(category).parent, Path(category).name)
    weights = assets() / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    return data, PatchFeatureTransformer(
        "resnet18", weights=weights, image_size=(224, 224)
    )


def extract(category: str) -> dict[str, np.ndarray]:
    """Return features (n, patches, d) of a class, small enough to fit 1000 times.

    Every fourth row and column of the grid, in a random projection.
    """
    data, features = images(category)
    grids = features.fit(data.data, data.target).transform(data.data)[:, ::4, ::4]
    n, _, _, d = grids.shape
    projection = np.random.default_rng(0).normal(size=(d, N_DIMENSIONS))
    X = grids.reshape(n, -1, d) @ projection.astype(np.float32)
    return {"X": X, "y": data.target}


def load(cache: Path, category: str) -> tuple[np.ndarray, np.ndarray]:
    kept = dict(np.load(cache)) if cache.exists() else {}
    if f"{category}/X" not in kept:
        found = extract(category)
        kept |= {f"{category}/{name}": values for name, values in found.items()}
        np.savez(cache, **kept)
    return kept[f"{category}/X"], kept[f"{category}/y"]


def bank(**params) -> PatchMemoryBank:
    return PatchMemoryBank(CoresetSampler(N_PICKS, random_state=0), **params)


def shares(detector, p_values: list[np.ndarray]) -> list[float]:
    return [
        np.mean(p <= alpha) if alpha >= detector.min_alpha_ else np.nan
        for p in p_values
        for alpha in ALPHAS
    ]


def rates_of_split(train, new, anomalous, seed: int) -> dict[str, list[float]]:
    """Return the shares of `new` flagged at each alpha, and of `anomalous`, by rule."""
    rates = {}
    for method in ("split", "cross"):
        detector = ConformalDetector(
            bank(), alpha=0.5, method=method, random_state=seed
        ).fit(train)
        p_values = [detector.predict_pvalue(X) for X in (new, anomalous)]
        rates[method] = shares(detector, p_values)
    fitted = bank().fit(train)
    scores = [fitted.score_samples(X) for X in (new, anomalous)]
    # method="refit" would fit the same estimators once more.
    held_out = detector.calibration_scores_
    calibration = Calibration(held_out, np.zeros(len(held_out), int))
    rates["refit"] = shares(detector, [calibration.p_values(part) for part in scores])
    # Training scores leave out a sample's own patches; here they count.
    own = -fitted.score_patches(train).reshape(len(train), -1).max(axis=1)
    in_sample = np.quantile(own, ALPHAS)
    rates["in-sample"] = [np.mean(part < t) for part in scores for t in in_sample]
    y = np.repeat([1, -1], [len(new), len(anomalous)])
    best = f1_max(y, np.concatenate(scores)).threshold
    rates["best F1 on test"] = [np.mean(part < best) for part in scores for _ in ALPHAS]
    return rates


def report(title: str, splits: list[dict[str, list[float]]], seconds: float) -> None:
    print(f"{title}; {len(splits)} splits, {seconds:.0f} s")
    for rule in splits[0]:
        rates = np.array([split[rule] for split in splits])
        errors = rates.std(axis=0, ddof=1) / np.sqrt(len(rates))
        cells = [
            "too few" if np.isnan(m) else f"{m:.2%} ± {e:.2%}"
            for m, e in zip(rates.mean(axis=0), errors, strict=True)
        ]
        print(f"  {rule:16s}" + "".join(f"{cell:>18s}" for cell in cells), flush=True)


def run_class(cache: Path, category: str, n_train: int, n_new: int) -> None:
    """Split the normal images of a class again and again."""
    X, y = load(cache, category)
    normal, anomalous = X[y == 1], X[y == -1]
    start, splits = time.perf_counter(), []
    for seed in range(N_SPLITS):
        order = np.random.default_rng(seed).permutation(len(normal))
        new, train = np.split(normal[order[: n_new + n_train]], [n_new])
        splits.append(rates_of_split(train, new, anomalous, seed))
    title = f"{category}: {n_train} to fit and calibrate, {n_new} new"
    report(title, splits, time.perf_counter() - start)


def run_numbers(n: int) -> None:
    """Fresh data for every split: patches that share a factor; defects of one patch."""
    start, splits = time.perf_counter(), []
    for seed in range(N_SPLITS):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n + N_NEW, N_PATCHES, 8))
        shared = rng.normal(size=(n + N_NEW, 1, 8))
        X += shared * rng.gamma(2, 0.3, (n + N_NEW, 1, 1))
        anomalous = X[n:].copy()
        anomalous[:, 0, 0] += 5
        splits.append(rates_of_split(X[:n], X[n:], anomalous, seed))
    title = f"numbers: {n} to fit and calibrate, {N_NEW} new"
    report(title, splits, time.perf_counter() - start)


def run(cache: Path, category: str) -> None:
    if category == "numbers":
        for n in N_TRAIN:
            run_numbers(n)
    elif category == "surfaces":
        for n in N_TRAIN:
            run_class(cache, category, n, N_NEW)
    else:
        n = np.count_nonzero(load(cache, category)[1] == 1)
        n_new = max(5, n // 5)
        run_class(cache, category, n - n_new, n_new)


def main(cache: str, *categories: str) -> None:
    torch.set_num_threads(1)
    heads = [f"{kind}, {a}" for kind in ("normal", "defect") for a in ALPHAS]
    print(f"{'flagged, alpha':18s}" + "".join(f"{head:>18s}" for head in heads))
    for category in categories or CATEGORIES:
        run(Path(cache), category)


if __name__ == "__main__":
    main(*sys.argv[1:])
