"""AUROC of ensembles against their members, and of ways to bring members to one unit.

Run as ``python tests/benchmarks/bench_ensemble.py FOLDER [CLASS ...]``, where CLASS is
a folder below ``data`` of the assets (``SKPATCHCORE_ASSETS``), such as
``mvtec_ad/bottle``. Layer maps are kept in FOLDER, so that a second run is fast.

30 training images drawn at random, all normal test images and at most 40 defective
ones, coreset of 1 %; ResNet-18 and MobileNetV2 with a short side of 160, ViT-Tiny with
224 x 224. Image AUROC / pixel AUROC / AUPRO, means over seeds, which draw the images
and the coresets; the last column is the standard deviation between seeds, mean over
classes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from _bottle import assets
from bench_few_shots import split
from bench_networks import CLASSES, NETWORKS

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
)
from skpatchcore._detectors._maps import resize_map
from skpatchcore._images._geometry import resize_masks
from skpatchcore.metrics import image_auroc, pixel_metrics

N_TRAIN, N_SEEDS = 30, 3
# Maps of all members, and masks, are compared in this size.
SIZE = (160, 160)


def members() -> list[tuple[str, PatchCoreDetector]]:
    """Return a detector for each network, by name."""
    found = []
    for title, (name, layers, _, weights) in NETWORKS.items():
        features = PatchFeatureTransformer(
            name,
            layers,
            weights=assets() / "weights" / f"{name}_{weights}.safetensors",
            image_size=(224, 224) if name.startswith("vit") else 160,
        )
        found.append((title, PatchCoreDetector(features, CoresetSampler(0.01))))
    return found


def units(ensemble, scores, maps) -> dict[str, tuple]:
    """Return factors for scores and maps of members, by the way they were found."""
    return {
        "as they are": (np.ones(len(scores)), np.ones(len(scores))),
        "held-out spread": (ensemble.score_weights_, ensemble.map_weights_),
        "min-max of the test set": (
            1 / np.ptp(scores, axis=1),
            1 / (maps.max(axis=(1, 2, 3)) - maps.min(axis=(1, 2, 3))),
        ),
    }


def evaluate(y, masks, scores, maps) -> np.ndarray:
    found = pixel_metrics(masks, list(maps))
    return np.array([image_auroc(y, scores), found.auroc, found.aupro])


def measure(category: str, folder: str, seed: int) -> dict[str, np.ndarray]:
    """Return the three figures of each member, and of each ensemble in each unit."""
    train, test, y, masks = split(category)
    masks = resize_masks(masks, SIZE)
    train = np.random.default_rng(seed).permutation(train)[:N_TRAIN]
    ensemble = PatchCoreEnsemble(members(), memory=folder, random_state=seed)
    ensemble.fit(train)
    scores, maps = [], []
    for member in ensemble.estimators_:
        scores.append(member.score_samples(test))
        wholes = member.predict_maps(test)
        maps.append(np.stack([resize_map(whole, SIZE) for whole in wholes]))
    scores, maps = np.array(scores), np.array(maps)
    rows = {
        name: evaluate(y, masks, scores[i], maps[i])
        for i, name in enumerate(ensemble.named_estimators_)
    }
    for n in (2, 3):
        for unit, (of_scores, of_maps) in units(ensemble, scores, maps).items():
            merged = np.tensordot(of_maps[:n], maps[:n], axes=1)
            rows[f"first {n}, {unit}"] = evaluate(
                y, masks, of_scores[:n] @ scores[:n], merged
            )
    return rows


def main(folder: str, *categories: str) -> None:
    torch.set_num_threads(1)
    categories = categories or CLASSES
    names = [Path(category).name for category in categories]
    results = [
        [measure(category, folder, seed) for seed in range(N_SEEDS)]
        for category in categories
    ]
    print("| | " + " | ".join([*names, "mean", "spread"]) + " |")
    print("|---" * (len(names) + 3) + "|")
    for name in results[0][0]:
        figures = np.array([[one[name] for one in seeds] for seeds in results])
        means = figures.mean(axis=1)
        columns = [*means, means.mean(axis=0), figures.std(axis=1).mean(axis=0)]
        cells = [" / ".join(f"{value:.3f}" for value in values) for values in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
