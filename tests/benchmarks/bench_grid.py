"""Time of a grid search with a cache, against one fit and against none.

Run as ``python tests/benchmarks/bench_grid.py [--plain]`` with real weights and
images in the folder that SKPATCHCORE_ASSETS names. ``--plain`` times the search
without a cache too, from one of its three folds and the refit: the whole of it takes
the better part of an hour on two cores.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from sklearn.model_selection import GridSearchCV, cross_validate

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import load_mvtec_ad
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

GRID = {"sampler__fraction": [0.01, 0.025, 0.05, 0.1], "n_neighbors": [1, 3, 5]}
DEAREST = {"sampler__fraction": 0.1, "n_neighbors": 5}


def make_detector(assets: Path, memory) -> PatchCoreDetector:
    features = PatchFeatureTransformer(
        "resnet18",
        weights=assets / "weights" / "resnet18_tv_in1k_trunk.safetensors",
        image_size=256,
        crop_size=224,
    )
    return PatchCoreDetector(features, memory=memory, random_state=0)


def seconds(function, *args, **params) -> float:
    start = time.perf_counter()
    function(*args, **params)
    return time.perf_counter() - start


def main(plain: bool) -> None:
    assets = Path(os.environ["SKPATCHCORE_ASSETS"])
    bottle = load_mvtec_ad(assets / "data" / "mvtec_ad", "bottle")
    params = {
        "cv": OneClassKFold(3, shuffle=True, random_state=0),
        "scoring": image_auroc_scorer,
        "error_score": "raise",
    }

    def search(memory, **changes):
        GridSearchCV(make_detector(assets, memory), GRID, **{**params, **changes}).fit(
            bottle.data, bottle.target
        )

    # Imports and the network's first pass belong to nobody.
    make_detector(assets, None).fit(bottle.data[:2])
    with TemporaryDirectory() as memory:
        dearest = make_detector(assets, memory).set_params(**DEAREST)
        one = seconds(cross_validate, dearest, bottle.data, bottle.target, **params)
    print(
        f"cross_validate of the dearest candidate, cold cache: {one:.0f} s", flush=True
    )
    with TemporaryDirectory() as memory:
        grid = seconds(search, memory)
        again = seconds(search, memory)
    print(f"grid of 12, 3 folds and the refit, cold cache: {grid:.0f} s", flush=True)
    print(
        f"the same grid again: {again:.0f} s; grid / one: {grid / one:.2f}", flush=True
    )
    if plain:
        folds = list(params["cv"].split(bottle.data, bottle.target))
        fold = seconds(search, None, cv=folds[:1], refit=False)
        refit = make_detector(assets, None)
        refit = seconds(refit.fit, bottle.data, bottle.target)
        without = len(folds) * fold + refit
        print(f"without a cache, 3 times {fold:.0f} s and {refit:.0f} s for the refit:")
        print(f"{without:.0f} s, {without / grid:.1f} times the grid")


if __name__ == "__main__":
    main("--plain" in sys.argv)
