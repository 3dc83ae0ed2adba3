"""The demonstration: the whole method in a minute, offline and on generated images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from skpatchcore._benchmark import (
    IMAGE_COLUMNS,
    PIXEL_COLUMNS,
    measure_images,
    measure_pixels,
    score_and_map,
)
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detectors import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._utils import atomic_write
from skpatchcore.datasets import make_surface_defects

IMAGE_SIZE = 256
# This network is part of the package and was not trained on any of these textures.
FEATURES: dict[str, Any] = {"backbone": "embedded", "image_size": IMAGE_SIZE}
# The demonstration takes half a minute on two slow processor cores.
SURFACES: dict[str, Any] = dict(
    n_train=40,
    n_test_good=8,
    n_test_defective=16,
    texture="knurled",
    image_size=IMAGE_SIZE,
)
# These last training images are held out from the fit and set the threshold.
N_HELD_OUT = 8
CORESET_FRACTION = 0.02
COLUMNS = (*IMAGE_COLUMNS, *PIXEL_COLUMNS)
N_SHOWN = 6


class Demo(NamedTuple):
    """Results of the demonstration on its test images.

    `threshold` is the largest value in any map of the held-out good images. An image
    counts as anomalous if one of its pixels exceeds it.
    """

    test: Bunch
    maps: list[np.ndarray]
    threshold: float
    metrics: dict[str, float | None]


def run_demo(random_state: int = 0, *, verbose: int = 0) -> Demo:
    """Fit on generated good images, and measure on images with known defects."""
    surfaces = make_surface_defects(**SURFACES, random_state=random_state)
    train, test = (_subset(surfaces, split) for split in ("train", "test"))
    detector = PatchCoreDetector(
        PatchFeatureTransformer(**FEATURES),
        CoresetSampler(CORESET_FRACTION),
        random_state=random_state,
        verbose=verbose,
    )
    detector.fit(train.data[:-N_HELD_OUT])
    # Training images lie near the memory bank; new good images lie farther away.
    held_out = detector.predict_maps(train.data[-N_HELD_OUT:])
    threshold = max(float(values.max()) for values in held_out)
    scores, maps = score_and_map(detector, test.data, size="resized")
    metrics = {
        **measure_images(test.target, scores),
        **measure_pixels(test, maps, detector.features_),
    }
    return Demo(test, maps, threshold, metrics)


def draw_sheet(demo: Demo, path: Path) -> None:
    """Draw a good image, and one image for each of a few kinds of defects."""
    from skpatchcore.inspection import AnomalyMapDisplay, check_matplotlib

    check_matplotlib()
    from matplotlib.figure import Figure

    shown = choose_images(demo.test.defect_types, N_SHOWN)
    # Not pyplot, which may need a window system.
    figure = Figure(figsize=(10.5, 1.95 * len(shown) + 0.6), layout="compressed")
    AnomalyMapDisplay.from_predictions(
        demo.test.data[shown],
        [demo.maps[i] for i in shown],
        masks=demo.test.masks[shown],
        threshold=demo.threshold,
        titles=[_title(demo, i) for i in shown],
        ax=figure.subplots(len(shown), 4),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")


def choose_images(defect_types: np.ndarray, n: int) -> list[int]:
    """Return the index of the first image of each of `n` kinds, good images first."""
    kinds, firsts = np.unique(defect_types.astype(str), return_index=True)
    order = np.argsort(kinds != "good", kind="stable")
    return firsts[order][:n].tolist()


def _title(demo: Demo, i: int) -> str:
    found = "anomalous" if demo.maps[i].max() > demo.threshold else "normal"
    return f"{demo.test.defect_types[i]}\n(found {found})"


def _subset(surfaces: Bunch, split: str) -> Bunch:
    rows = surfaces.split == split
    names = ("data", "target", "masks", "defect_types")
    return Bunch(**{name: surfaces[name][rows] for name in names})
