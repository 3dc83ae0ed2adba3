"""The embedded backbone beside others: AUROC on real and procedural images, and time.

Run as ``python tests/benchmarks/bench_embedded.py``; see ``--help``. Real classes are
those below ``data`` of the assets (``SKPATCHCORE_ASSETS``), procedural ones the
textures of ``make_surface_defects``. Each line is a class: image AUROC / pixel AUROC,
means over seeds of the coreset.
"""

import time
from pathlib import Path

import click
import numpy as np
import torch
from _bottle import assets
from sklearn.utils import Bunch

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._benchmark._evaluate import (
    measure_images,
    measure_pixels,
    score_and_map,
)
from skpatchcore.datasets import load_mvtec_ad, make_surface_defects
from skpatchcore.datasets._textures import TEXTURES

SURFACES = dict(n_train=32, n_test_good=16, n_test_defective=32, image_size=128)


def transformer(model: str, weights: Path | None, **params) -> PatchFeatureTransformer:
    trunk = assets() / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    of_model = {
        "embedded": dict(backbone="embedded", weights=weights),
        "imagenet": dict(backbone="resnet18", weights=trunk),
        "random": dict(backbone="resnet18", weights="random", random_state=0),
        "gabor": dict(backbone="gabor", layers=("fine", "coarse"), layer_weights=None),
    }
    return PatchFeatureTransformer(**of_model[model], **params)


def real_classes() -> list[Path]:
    return sorted(path.parents[1] for path in assets().glob("data/*/*/train/good"))


def real(folder: Path) -> tuple[Bunch, Bunch, dict]:
    train, test = (
        load_mvtec_ad(folder.parent, folder.name, subset=subset)
        for subset in ("train", "test")
    )
    return train, test, {"image_size": 256, "crop_size": 224}


def procedural(texture: str) -> tuple[Bunch, Bunch, dict]:
    surfaces = make_surface_defects(texture=texture, **SURFACES, random_state=0)
    train, test = (
        Bunch(**{name: surfaces[name][rows] for name in ("data", "target", "masks")})
        for rows in surfaces.cv[0]
    )
    return train, test, {"image_size": SURFACES["image_size"]}


def measure(features, train, test, fraction: float, seeds: int) -> tuple[float, float]:
    found = []
    for seed in range(seeds):
        detector = PatchCoreDetector(
            features, CoresetSampler(fraction), random_state=seed
        ).fit(train.data)
        scores, maps = score_and_map(detector, test.data, size="resized")
        found.append(
            (
                measure_images(test.target, scores)["image_auroc"],
                measure_pixels(test, maps, detector.features_)["pixel_auroc"],
            )
        )
    return tuple(np.mean(found, axis=0))


def forward_time(features: PatchFeatureTransformer, n_repeats: int = 20) -> float:
    """Return the median time in seconds of an image of 224 pixels, in batches of 8."""
    network = features._load(0)
    batch, times = torch.rand(8, 3, 224, 224), []
    for _ in range(n_repeats):
        started = time.perf_counter()
        network(batch)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) / len(batch)


def _print_row(name: str, cells) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--models", default="embedded,imagenet,gabor,random")
@click.option("--classes", help="Names of classes or textures; by default all.")
@click.option("--fraction", default=0.1)
@click.option("--seeds", default=3)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Other weights for the embedded backbone than the package's.",
)
@click.option("--times/--no-times", default=True, help="Measure forward passes too.")
@click.option("--cache", type=click.Path(path_type=Path), help="Of layer maps.")
def main(models, classes, fraction, seeds, weights, times, cache) -> None:
    models = models.split(",")
    wanted = classes.split(",") if classes else None
    sets = {path.name: (real, path) for path in real_classes()}
    sets |= {name: (procedural, name) for name in TEXTURES}
    _print_row("class", models)
    table = {"real": [], "procedural": []}
    for name, (load, source) in sets.items():
        if wanted is None or name in wanted:
            train, test, sizes = load(source)
            row = [
                measure(
                    transformer(model, weights, memory=cache, **sizes),
                    train,
                    test,
                    fraction,
                    seeds,
                )
                for model in models
            ]
            table[load.__name__].append(row)
            _print_row(name, [f"{image:.3f} / {pixel:.3f}" for image, pixel in row])
    for kind, rows in table.items():
        if rows:
            means = np.mean(rows, axis=0)
            _print_row(f"mean, {kind}", [f"{i:.3f} / {p:.3f}" for i, p in means])
    if times:
        spent = [forward_time(transformer(model, weights)) for model in models]
        _print_row("ms an image", [f"{1000 * seconds:.1f}" for seconds in spent])


if __name__ == "__main__":
    main()
