"""AUROC with few training images: turned, mirrored, brighter ones; foreground masks.

Run as ``python tests/benchmarks/bench_few_shots.py FOLDER [SHOTS [CLASS ...]]``, where
SHOTS are numbers of images such as ``1,4,16``, and CLASS is a folder below ``data``
of the assets (``SKPATCHCORE_ASSETS``), such as ``mvtec_ad/bottle``. Layer maps are kept
in FOLDER, so that a second run is fast.

ResNet-18, short side 160, coreset of 5 %; training images are drawn at random, the
same ones for all options; image AUROC / pixel AUROC, mean over seeds and, for the
image AUROC, its standard deviation.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from _bottle import assets

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images._geometry import resize_masks
from skpatchcore.datasets import load_mvtec_ad, read_masks
from skpatchcore.metrics import image_auroc, pixel_auroc

CLASSES = ("mvtec_ad_reduced/hazelnut_reduced", "mvtec_ad/bottle", "mvtec_ad/pill")
SHOTS = "1,2,4,8,16"
N_SEEDS = 3
N_DEFECTIVE = 40
SIZE = 160
OPTIONS = {
    "none": {},
    "rotate": {"augmentation": "rotate"},
    "flip": {"augmentation": "flip"},
    "brightness": {"augmentation": "brightness"},
    "foreground": {"foreground": "auto"},
    "rotate, foreground": {"augmentation": "rotate", "foreground": "auto"},
}


def split(category: str):
    """Return training paths, and paths, labels and masks of test images."""
    data = load_mvtec_ad(assets() / "data" / Path(category).parent, Path(category).name)
    train, test = data.cv[0]
    normal = test[data.target[test] == 1]
    anomalous = test[data.target[test] == -1]
    anomalous = anomalous[:: max(1, len(anomalous) // N_DEFECTIVE)][:N_DEFECTIVE]
    test = np.concatenate([normal, anomalous])
    masks = read_masks([data.masks[i] for i in test], [data.data[i] for i in test])
    paths = np.asarray(data.data)
    return paths[train], paths[test], data.target[test], masks


def run(category: str, folder: str, shots: list[int]) -> None:
    train, test, y, masks = split(category)
    masks = resize_masks(masks, SIZE)
    weights = assets() / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    features = PatchFeatureTransformer(
        "resnet18", weights=weights, image_size=SIZE, precision="float32", memory=folder
    )
    print(f"| {category} | " + " | ".join(map(str, shots)) + " |")
    print("|---" * (1 + len(shots)) + "|")
    for name, params in OPTIONS.items():
        print(f"| {name} |", end="", flush=True)
        for n in shots:
            cell = measure(features, params, n, train, test, y, masks)
            print(f" {cell} |", end="", flush=True)
        print()
    print()


def measure(features, params, n, train, test, y, masks) -> str:
    image, pixel, masked = [], [], 0
    for seed in range(N_SEEDS):
        chosen = np.random.default_rng(seed).permutation(len(train))[:n]
        detector = PatchCoreDetector(
            features, CoresetSampler(0.05), random_state=seed, **params
        )
        detector.fit(train[chosen])
        masked += detector.foreground_ is not None
        image.append(image_auroc(y, detector.score_samples(test)))
        maps = detector.predict_maps(test, size="resized")
        pixel.append(pixel_auroc(masks, maps))
    cell = f"{np.mean(image):.3f} ± {np.std(image):.3f} / {np.mean(pixel):.3f}"
    if "foreground" in params and masked < N_SEEDS:
        cell += f" ({masked} of {N_SEEDS} masked)"
    return cell


def main(folder: str, shots: str = SHOTS, *categories: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    for category in categories or CLASSES:
        run(category, folder, [int(n) for n in shots.split(",")])


if __name__ == "__main__":
    main(*sys.argv[1:])
