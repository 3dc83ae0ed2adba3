"""Batches of network inputs, read ahead by threads."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from skpatchcore._images._geometry import (
    BYTES_PER_PIXEL,
    Geometry,
    plan_geometry,
    resize_and_crop,
)
from skpatchcore._images._input import Images
from skpatchcore._utils import own_torch_state, read_ahead

# What images read ahead of the network may take: 27 of 900 x 900 pixels, one of 4000
# x 3000. While it is read, an image is held twice in floats of three channels; where
# resizing enlarges it, what comes of it counts.
_AHEAD_BYTES = 512 * 2**20


def iter_batches(
    images: Sequence[np.ndarray],
    image_size,
    crop_size,
    batch_size: int | Callable[[tuple[int, int]], int],
    *,
    pinned: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor, list[Geometry]]]:
    """Yield (indices, batch (b, c, h, w), geometries), at most `batch_size` at a time.

    Images are batched with others of their input size. Few are held at once: when
    sizes vary so much that none fills a batch, the fullest is handed out early.
    `batch_size` may be a function of the input size (h, w), asked anew for each
    image. Close the iterator to stop the threads that read ahead.
    """
    most = batch_size if callable(batch_size) else lambda size: batch_size
    pending: dict[tuple, list] = {}
    with closing(_iter_inputs(images, image_size, crop_size, most)) as inputs:
        for i, (tensor, geometry) in enumerate(inputs):
            pending.setdefault(geometry.crop, []).append((i, tensor, geometry))
            n_pending = sum(map(len, pending.values()))
            fill = {size: len(pending[size]) / most(size) for size in pending}
            fullest = max(fill, key=fill.get)
            if fill[fullest] >= 1 or n_pending >= 4 * min(map(most, pending)):
                yield from _split(pending.pop(fullest), most(fullest), pinned)
    for size, entries in pending.items():
        yield from _split(entries, most(size), pinned)


def _iter_inputs(
    images, image_size, crop_size, batch_size
) -> Iterator[tuple[torch.Tensor, Geometry]]:
    """Yield each image as the network's input (3, h, w), read ahead by threads.

    While the network is at work on a batch, the next one is read.
    """
    # As many threads as torch has: less than all cores where the user said so, or where
    # other processes share them.
    n_threads = torch.get_num_threads()
    largest, wanted, lock = 0, 1, threading.Lock()

    def n_ahead() -> int:
        fitting = _AHEAD_BYTES // (BYTES_PER_PIXEL * largest) if largest else 1
        return max(1, min(wanted, fitting))

    def load_input(i: int) -> tuple[torch.Tensor, Geometry]:
        nonlocal largest
        image = images[i]
        geometry = plan_geometry(
            image.shape[:2], image_size, crop_size, _name_of(images, i)
        )
        # As soon as it is known, and before resizing takes memory.
        sizes = (geometry.original, geometry.resized)
        with lock:
            largest = max(largest, *(height * width for height, width in sizes))
        return _to_input(image, geometry), geometry

    with closing(read_ahead(load_input, len(images), n_threads, n_ahead)) as inputs:
        for tensor, geometry in inputs:
            wanted = max(n_threads, batch_size(geometry.crop))
            yield tensor, geometry


@own_torch_state()
def _to_input(image: np.ndarray, geometry: Geometry) -> torch.Tensor:
    # Channels stay last in memory until the image is small. Torch warns of arrays
    # that are read-only.
    image = image if image.flags.writeable else image.copy()
    resized = resize_and_crop(torch.from_numpy(image).permute(2, 0, 1), geometry)
    return resized.contiguous()


def _split(entries: list, n: int, pinned: bool) -> Iterator[tuple]:
    for start in range(0, len(entries), n):
        yield _collate(entries[start : start + n], pinned)


@own_torch_state()
def _collate(
    entries: list, pinned: bool
) -> tuple[list[int], torch.Tensor, list[Geometry]]:
    indices, tensors, geometries = zip(*entries, strict=True)
    shape = (len(tensors), *tensors[0].shape)
    # From pinned memory a GPU copies while the processor goes on.
    batch = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=pinned)
    return list(indices), torch.stack(tensors, out=batch), list(geometries)


def _name_of(images, i: int) -> str:
    return images._names[i] if isinstance(images, Images) else f"image {i}"
