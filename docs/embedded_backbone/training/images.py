"""The images that the embedded backbone is trained with, by number."""

from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.random import MT19937, RandomState, SeedSequence
from tqdm import tqdm

from skpatchcore._utils._atomic import atomic_write
from training.scenes import draw_scene, draw_texture

SHARD_LENGTH = 1024


def draw_image(seed: int, number: int, size: int) -> np.ndarray:
    """Return image `number` (size, size, 3), uint8: textures are even, scenes odd."""
    rng = RandomState(MT19937(SeedSequence([seed, number])))
    image = (draw_scene if is_scene(number) else draw_texture)(rng, size)
    if rng.rand() < 0.7:
        # Products are seldom gaudy, and many cameras see no colours at all.
        gray = image.mean(axis=2, keepdims=True)
        image = gray + rng.choice([0, rng.rand()], p=[0.25, 0.75]) * (image - gray)
    image = np.rint(255 * image).astype(np.uint8)
    if rng.rand() < 0.5:
        image = 255 - image
    image = np.rot90(image, rng.randint(4))[:, :: rng.choice([-1, 1])]
    return np.ascontiguousarray(image[..., rng.permutation(3)])


def is_scene(number):
    """Tell whether this image, or which of these, shows a thing with parts."""
    return number % 2 == 1


class ImageStore:
    """The first images of a seed, drawn once, in files that are mapped.

    An image depends on seed, number and size alone: neither on how many there are nor
    on the number of processes that draw. What an interrupted run has drawn is not drawn
    again.

    Parameters
    ----------
    folder : Path
        Where the files are, or will be put: each of up to 1024 images.
    n_images : int
    seed : int
    size : int
        Height and width in pixels.
    n_jobs : int, default=1
        Number of processes to draw with.
    """

    def __init__(self, folder: Path, n_images: int, *, seed, size, n_jobs=1):
        self._n_images = n_images
        starts = range(0, n_images, SHARD_LENGTH)
        shards = [range(i, min(i + SHARD_LENGTH, n_images)) for i in starts]
        paths = [
            folder / f"images-{seed}-{size}-{shard.start:07d}-{len(shard)}.npy"
            for shard in shards
        ]
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [
            delayed(_draw_shard)(path, shard, seed, size)
            for path, shard in zip(paths, shards, strict=True)
            if not path.exists()
        ]
        drawn = Parallel(n_jobs, return_as="generator")(tasks)
        for _ in tqdm(drawn, "drawing images", len(tasks), disable=not tasks):
            pass
        self._shards = [np.load(path, mmap_mode="r") for path in paths]

    def __len__(self) -> int:
        return self._n_images

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the images of these numbers (n, size, size, 3), uint8."""
        return np.stack(
            [self._shards[i // SHARD_LENGTH][i % SHARD_LENGTH] for i in numbers]
        )


def _draw_shard(path: Path, numbers: range, seed: int, size: int) -> None:
    images = np.stack([draw_image(seed, number, size) for number in numbers])
    # Whoever sees the name sees a whole file.
    with atomic_write(path) as file:
        np.save(file, images)
