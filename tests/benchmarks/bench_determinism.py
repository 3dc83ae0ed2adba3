"""How far features, banks, scores and maps move with batch size and threads.

Run as ``python tests/benchmarks/bench_determinism.py [CLASS]``, where CLASS is a folder
below ``data`` of the assets (``SKPATCHCORE_ASSETS``), the small hazelnut class
if none is given. Prints the largest differences to batches of 32 on one thread,
relative to the largest value.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import load_mvtec_ad

NETWORKS = {
    "resnet18": (("layer2", "layer3"), "resnet18_tv_in1k_trunk"),
    "mobilenetv2_100": (("blocks.2", "blocks.4"), "mobilenetv2_100_tv_in1k"),
}
SETTINGS = [(32, 1), (32, 1), (1, 1), (7, 1), (64, 1), (32, 2), (7, 2)]


def run(data, assets: Path, backbone: str, batch_size: int) -> dict[str, np.ndarray]:
    layers, weights = NETWORKS[backbone]
    features = PatchFeatureTransformer(
        backbone,
        layers,
        weights=assets / "weights" / f"{weights}.safetensors",
        image_size=224,
        batch_size=batch_size,
    )
    detector = PatchCoreDetector(features, CoresetSampler(0.01), random_state=0)
    new = data.data[-10:]
    detector.fit(data.data, data.target)
    return {
        "features": detector.features_.transform(new),
        "picks": detector.memory_bank_.bank_indices_,
        "scores": detector.score_samples(new),
        "maps": detector.predict_maps(new, size="resized"),
    }


def compare(data, assets: Path, backbone: str) -> None:
    reference = None
    for batch_size, n_threads in SETTINGS:
        torch.set_num_threads(n_threads)
        found = run(data, assets, backbone, batch_size)
        reference = reference or found
        same = np.mean(found["picks"] == reference["picks"])
        cells = [f"picks {same:.1%} the same"]
        for name in ("features", "scores", "maps"):
            scale = np.abs(reference[name]).max()
            difference = np.abs(found[name] - reference[name]).max() / scale
            cells.append(f"{name} {difference:.1e}")
        setting = f"{backbone}, batch {batch_size:2d}, {n_threads} threads"
        print(f"{setting}: {', '.join(cells)}", flush=True)


def main(category: str = "mvtec_ad_reduced/hazelnut_reduced") -> None:
    assets = Path(os.environ["SKPATCHCORE_ASSETS"])
    folder = assets / "data" / category
    data = load_mvtec_ad(folder.parent, folder.name)
    for backbone in NETWORKS:
        compare(data, assets, backbone)


if __name__ == "__main__":
    main(*sys.argv[1:])
