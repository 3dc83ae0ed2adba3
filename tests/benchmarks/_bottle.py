"""Real images and features to measure on: bottle of MVTec AD, and a ResNet-18.

Both lie in the folder that SKPATCHCORE_ASSETS names, weights of the first three layers
in ``weights/resnet18_tv_in1k_trunk.safetensors``, images in ``data/mvtec_ad/bottle``.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from skpatchcore import PatchFeatureTransformer
from skpatchcore.datasets import load_mvtec_ad

N_PATCHES = 28 * 28
_MAX_SHIFT = 4
_NOISE = 3.0


def assets() -> Path:
    folder = os.environ.get("SKPATCHCORE_ASSETS")
    if folder is None:
        raise SystemExit("SKPATCHCORE_ASSETS must name the folder of real weights.")
    return Path(folder)


def resnet18(**params) -> PatchFeatureTransformer:
    weights = assets() / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    return PatchFeatureTransformer(
        "resnet18", weights=weights, image_size=256, crop_size=224, **params
    )


def paths(subset: str) -> list[str]:
    return list(
        load_mvtec_ad(assets() / "data" / "mvtec_ad", "bottle", subset=subset).data
    )


def crops(subset: str, n_images: int | None = None) -> np.ndarray:
    """Return images cropped to 224 pixels, (n, 224, 224, 3) uint8."""
    images = []
    for path in paths(subset)[:n_images]:
        with Image.open(path) as image:
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            crop = image.convert("RGB").crop((left, top, left + 224, top + 224))
            images.append(np.asarray(crop))
    return np.stack(images)


def features(kept: Path | None = None) -> dict[str, np.ndarray]:
    """Return features of all training and test images, (n, 784, 384) float32.

    They are read from the file `kept`, or extracted, and left there.
    """
    if kept is not None and kept.exists():
        return dict(np.load(kept))
    transformer = resnet18(precision="float32")
    train, test = (paths(subset) for subset in ("train", "test"))
    found = {
        "train": transformer.fit_transform(train),
        "test": transformer.transform(test),
    }
    found = {
        name: maps.reshape(len(maps), N_PATCHES, -1) for name, maps in found.items()
    }
    if kept is not None:
        np.savez(kept, **found)
    return found


def to_dimensions(X: np.ndarray, d: int, random_state: int = 0) -> np.ndarray:
    """Return rows (..., d) in a Gaussian random projection, down or up.

    Distances stay what they are, but for a factor near 1: what is real about them stays
    real in dimensions that no network at hand has.
    """
    if d == X.shape[-1]:
        return X
    # scikit-learn's projection warns when it is to go up.
    rng = np.random.default_rng(random_state)
    matrix = rng.normal(scale=d**-0.5, size=(X.shape[-1], d))
    return X @ matrix.astype(np.float32)


def write_more(folder: Path, n_images: int) -> list[str]:
    """Return paths of training images, and of shifted, noisy copies beyond them."""
    known = paths("train")
    rng = np.random.default_rng(0)
    more = []
    for i in range(len(known), n_images):
        with Image.open(known[i % len(known)]) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        shift = rng.integers(-_MAX_SHIFT, _MAX_SHIFT + 1, size=2)
        pixels = np.roll(pixels, shift, axis=(0, 1)) + rng.normal(
            0, _NOISE, pixels.shape
        )
        more.append(str(folder / f"{i:04d}.png"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(more[-1])
    return (known + more)[:n_images]
