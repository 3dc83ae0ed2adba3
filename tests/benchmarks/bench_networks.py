"""AUROC of classes x networks x distances, and what options of the bank change.

Run as ``python tests/benchmarks/bench_networks.py FOLDER TABLE [CLASS ...]``, where
TABLE is "metrics", "weights" or "options", and CLASS is a folder below ``data`` of the
assets (``SKPATCHCORE_ASSETS``), such as ``mvtec_ad/bottle``. Features are extracted
once and kept in FOLDER; so is every cell, so that an interrupted run goes on.

256 pixels cropped to 224, coreset of 1 %, all test images. Each seed draws 80 % of
the training images, and a coreset of them; the spread is the standard deviation over
seeds, mean over classes. Image AUROC / pixel AUROC / AUPRO (to a false-positive rate
of 0.3).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from _bottle import assets
from _layer_rules import RULES
from scipy.ndimage import gaussian_filter

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._detectors._maps import resize_map
from skpatchcore._images._geometry import resize_masks
from skpatchcore.datasets import load_mvtec_ad, read_masks
from skpatchcore.metrics import image_auroc, pixel_metrics

CLASSES = (
    "mvtec_ad/bottle",
    "mvtec_ad/pill",
    "mvtec_3d/tire",
    "mvtec_ad_reduced/hazelnut_reduced",
    "mvtec_ad_reduced/transistor_reduced",
)
# Architecture, layers, their channels, weights.
NETWORKS = {
    "ResNet-18": ("resnet18", ("layer2", "layer3"), (128, 256), "tv_in1k_trunk"),
    "MobileNetV2": (
        "mobilenetv2_100",
        ("blocks.2", "blocks.4"),
        (32, 96),
        "tv_in1k",
    ),
    "ViT-Tiny": (
        "vit_tiny_patch16_224",
        ("blocks.6", "blocks.9"),
        (192, 192),
        "augreg_in21k_ft_in1k",
    ),
}
SIZE, CROP, SMOOTHING = 256, 224, 4.0
N_SEEDS, TRAINING_SHARE = 3, 0.8
METRICS = {"euclidean": {}, "cosine": {"metric": "cosine"}}
OPTIONS = {
    "as it is": {},
    "n_neighbors=3": {"n_neighbors": 3},
    "reduction=0.01": {"reduction": 0.01},
    "reweight=9": {"reweight": 9},
    "cosine": {"metric": "cosine"},
    "cosine, reduction=0.01": {"metric": "cosine", "reduction": 0.01},
    "position_window=5": {"position_window": 5},
    'outlier_filter="lof"': {"outlier_filter": "lof"},
    'outlier_filter="sample"': {"outlier_filter": "sample"},
}


def load(folder: Path, category: str, network: str):
    """Return features of training and test images (n, h, w, d), labels and masks."""
    root = assets() / "data" / category
    test = load_mvtec_ad(root.parent, root.name, subset="test")
    masks = resize_masks(read_masks(test.masks, test.data), SIZE, CROP)
    kept = folder / f"{root.name}-{network}.npz"
    if not kept.exists():
        name, layers, _, weights = NETWORKS[network]
        features = PatchFeatureTransformer(
            name,
            layers,
            weights=assets() / "weights" / f"{name}_{weights}.safetensors",
            image_size=SIZE,
            crop_size=CROP,
            layer_weights=None,
            precision="float32",
        )
        train = load_mvtec_ad(root.parent, root.name, subset="train")
        X = features.fit_transform(train.data)
        np.savez(kept, X=X, test_X=features.transform(test.data))
    with np.load(kept) as arrays:
        return arrays["X"], arrays["test_X"], test.target, masks


def rate(bank, X, y, masks) -> tuple[float, float, float]:
    """Return image AUROC, pixel AUROC and AUPRO of a fitted bank."""
    patch_scores = bank.score_patches(X)
    if bank.reduction == "max" and bank.reweight is None:
        scores = -patch_scores.max(axis=(1, 2))
    else:
        scores = bank.score_samples(X)
    maps = [
        gaussian_filter(resize_map(one, mask.shape), SMOOTHING)
        for one, mask in zip(patch_scores, masks, strict=True)
    ]
    found = pixel_metrics(masks, maps)
    return image_auroc(y, scores), found.auroc, found.aupro


def cells(folder: Path, category: str, network: str, rows: dict) -> dict:
    """Return an array (n_seeds, 3) for each of `rows`: name -> (rule, options)."""
    found, data = {}, None
    name = Path(category).name
    for row, (rule, options) in rows.items():
        key = json.dumps([name, network, rule, options], sort_keys=True)
        log = folder / "cells.json"
        kept = json.loads(log.read_text()) if log.exists() else {}
        if key not in kept:
            data = load(folder, category, network) if data is None else data
            kept[key] = _measure(data, NETWORKS[network][2], rule, options)
            log.write_text(json.dumps(kept, indent=1))
        found[row] = np.array(kept[key])
    return found


def _measure(data, n_channels, rule: str, options: dict) -> list:
    X, test_X, y, masks = data
    found = []
    for seed in range(N_SEEDS):
        order = np.random.default_rng(seed).permutation(len(X))
        drawn = X[np.sort(order[: int(TRAINING_SHARE * len(X))])]
        weights = np.repeat(RULES[rule](drawn, n_channels), n_channels)
        weights = weights.astype(np.float32)
        bank = PatchMemoryBank(CoresetSampler(0.01), random_state=seed, **options)
        bank.fit(drawn * weights)
        found.append(rate(bank, test_X * weights, y, masks))
    return found


def table(folder: Path, categories, rows: dict) -> None:
    """Print one row a network and option, one column a class, and their mean."""
    names = [Path(category).name for category in categories]
    print("| | " + " | ".join([*names, "mean", "spread"]) + " |")
    print("|---" * (len(names) + 3) + "|")
    for network in NETWORKS:
        found = [cells(folder, category, network, rows) for category in categories]
        for row in rows:
            values = np.array([one[row] for one in found])
            means = [*values.mean(axis=1), values.mean(axis=(0, 1))]
            means.append(values.std(axis=1).mean(axis=0))
            text = [" / ".join(f"{v:.3f}" for v in three) for three in means]
            print(f"| {network}, {row} | " + " | ".join(text) + " |", flush=True)


def main(folder: str, which: str, *categories: str) -> None:
    torch.set_num_threads(1)
    tables = {
        "metrics": {name: ("auto", options) for name, options in METRICS.items()},
        "weights": {rule: (rule, {}) for rule in RULES},
        "options": {name: ("auto", options) for name, options in OPTIONS.items()},
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    table(Path(folder), categories or CLASSES, tables[which])


if __name__ == "__main__":
    main(*sys.argv[1:])
