"""Patch features with their grids, and masks, of real classes, small enough for tables.

ResNet-18, layers 2 and 3, default recipe; 100 training images and all test images,
by a PCA of the training images' patches in 96 dimensions, which keep 93 to 98 % of
their variance. Weights and images lie in the folder that SKPATCHCORE_ASSETS names.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from skpatchcore import PatchFeatureTransformer
from skpatchcore._detectors._maps import resize_map
from skpatchcore.datasets import load_mvtec_ad
from skpatchcore.metrics import image_auroc, pixel_auroc

N_TRAIN = 100
N_DIMENSIONS = 96
# Resized to, and cropped to.
SIZES = {"mvtec_3d/tire": ((256, 256), None)}
# Pixels of maps and masks to a side of a patch, and the Gaussian that smooths maps: as
# 4 pixels of the network's input.
SCALE, SMOOTHING = 4, 2.0


class Grids(NamedTuple):
    """Features (n, h, w, d), masks (n, 4h, 4w) and labels of the test images."""

    train: np.ndarray
    test: np.ndarray
    masks: np.ndarray
    y: np.ndarray


def load(cache: Path, category: str) -> Grids:
    """Return a class, such as ``mvtec_ad/pill``, from `cache`; extract it if absent."""
    kept = dict(np.load(cache)) if cache.exists() else {}
    if f"{category}/train" not in kept:
        found = _extract(category)._asdict()
        kept |= {f"{category}/{name}": values for name, values in found.items()}
        np.savez(cache, **kept)
    return Grids(*(kept[f"{category}/{name}"] for name in Grids._fields))


def _extract(category: str) -> Grids:
    assets = Path(os.environ["SKPATCHCORE_ASSETS"])
    root = assets / "data" / category
    train, test = (
        load_mvtec_ad(root.parent, root.name, subset=subset)
        for subset in ("train", "test")
    )
    size, crop = SIZES.get(category, (256, 224))
    chosen = np.random.default_rng(0).permutation(len(train.data))[:N_TRAIN]
    features = PatchFeatureTransformer(
        "resnet18",
        weights=assets / "weights" / "resnet18_tv_in1k_trunk.safetensors",
        image_size=size,
        crop_size=crop,
        projection=PCA(N_DIMENSIONS, random_state=0),
    )
    X = features.fit_transform([train.data[i] for i in np.sort(chosen)])
    test_X = features.transform(test.data)
    masks = [_mask(mask, size, crop, test_X.shape[1:3]) for mask in test.masks]
    return Grids(X, test_X, np.stack(masks), test.target)


def _mask(mask, size, crop, grid) -> np.ndarray:
    """Return a mask as the network saw the image, at the resolution of maps."""
    shape = tuple(SCALE * n for n in grid)
    if mask is None:
        return np.zeros(shape, dtype=bool)
    if not isinstance(mask, np.ndarray):
        with Image.open(mask) as image:
            mask = np.asarray(image.convert("L"))
    image = Image.fromarray((mask > 0).astype(np.uint8) * 255)
    if crop is None:
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    else:
        factor = size / min(image.size)
        sides = [round(n * factor) for n in image.size]
        image = image.resize(sides, Image.Resampling.NEAREST)
        left, top = ((n - crop) // 2 for n in sides)
        image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.NEAREST)) > 0


def rate(patch_scores, masks, y) -> tuple[float, float]:
    """Return image and pixel AUROC of patch scores (n, h, w)."""
    maps = [
        gaussian_filter(resize_map(scores, mask.shape), SMOOTHING)
        for scores, mask in zip(patch_scores, masks, strict=True)
    ]
    scores = -patch_scores.max(axis=(1, 2))
    return image_auroc(y, scores), pixel_auroc(list(masks), maps)
