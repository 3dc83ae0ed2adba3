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

SETTINGS = [(32, 1), (32, 1), (1, 1), (7, 1), (64, 1), (32, 2), (7, 2)]


def run(data, assets: Path, batch_size: int, n_threads: int) -> dict[str, np.ndarray]:
    torch.set_num_threads(n_threads)
    features = PatchFeatureTransformer(
        "resnet18",
        weights=assets / "weights" / "resnet18_tv_in1k_trunk.safetensors",
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


def main(category: str = "mvtec_ad_reduced/hazelnut_reduced") -> None:
    assets = Path(os.environ["SKPATCHCORE_ASSETS"])
    folder = assets / "data" / category
    data = load_mvtec_ad(folder.parent, folder.name)
    reference = None
    for batch_size, n_threads in SETTINGS:
        found = run(data, assets, batch_size, n_threads)
        reference = reference or found
        same = np.mean(found["picks"] == reference["picks"])
        cells = [f"picks {same:.1%} the same"]
        for name in ("features", "scores", "maps"):
            scale = np.abs(reference[name]).max()
            difference = np.abs(found[name] - reference[name]).max() / scale
            cells.append(f"{name} {difference:.1e}")
        print(
            f"batch {batch_size:2d}, {n_threads} threads: {', '.join(cells)}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
