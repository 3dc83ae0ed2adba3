"""Batches of network inputs, read ahead by threads."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._images._augmentation import Augmented
from skpatchcore._images._geometry import (
    BYTES_PER_PIXEL,
    Geometry,
    Size,
    plan_geometry,
    resize_and_crop,
)
from skpatchcore._images._input import Images
from skpatchcore._utils import own_torch_state, read_ahead

# Memory for images that are read ahead of the network: enough for 27 images of 900 x
# 900 pixels, or one of 4000 x 3000. If resizing enlarges an image, the resized one
# counts.
_AHEAD_BYTES = 512 * 2**20

_Entry = tuple[int, torch.Tensor, Geometry]
_Batch = tuple[list[int], torch.Tensor, list[Geometry]]
_BatchSize = Callable[[tuple[int, int]], int]


def iter_batches(
    images: Sequence[NDArray],
    image_size: Size,
    crop_size: Size,
    batch_size: int | _BatchSize,
    *,
    pinned: bool = False,
) -> Generator[_Batch, None, None]:
    """Yield (indices, batch (b, c, h, w), geometries), at most `batch_size` at a time.

    A batch contains images of the same input size. If the sizes vary so much that no
    batch fills up, the fullest one is yielded early, so that only few images are in
    memory. `batch_size` may be a function of the input size (h, w); it is called again
    for each image. Close the iterator to stop the threads that read ahead.
    """
    limit = batch_size if callable(batch_size) else lambda size: batch_size
    pending: dict[tuple[int, int], list[_Entry]] = {}
    with closing(_iter_inputs(images, image_size, crop_size, limit)) as inputs:
        for i, (tensor, geometry) in enumerate(inputs):
            pending.setdefault(geometry.crop, []).append((i, tensor, geometry))
            n_pending = sum(map(len, pending.values()))
            fill = {size: len(pending[size]) / limit(size) for size in pending}
            fullest = max(fill, key=fill.__getitem__)
            if fill[fullest] >= 1 or n_pending >= 4 * min(map(limit, pending)):
                yield from _split(pending.pop(fullest), limit(fullest), pinned)
    for size, entries in pending.items():
        yield from _split(entries, limit(size), pinned)
    if isinstance(images, Images | Augmented):
        images.notices.warn_of_transparent()


def _iter_inputs(
    images: Sequence[NDArray], image_size: Size, crop_size: Size, batch_size: _BatchSize
) -> Generator[tuple[torch.Tensor, Geometry], None, None]:
    """Yield each image as an input of the network (3, h, w), read ahead by threads.

    While the network processes a batch, the threads read the next one.
    """
    # torch's number of threads is lower than the number of cores if the user has
    # reduced it, or if other processes share the cores.
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
        # As early as possible: resizing is about to allocate memory.
        sizes = (geometry.original, geometry.resized)
        with lock:
            largest = max(largest, *(height * width for height, width in sizes))
        tensor = _to_input(image, geometry)
        return tensor, geometry._replace(cast=_find_cast(tensor))

    with closing(read_ahead(load_input, len(images), n_threads, n_ahead)) as inputs:
        for tensor, geometry in inputs:
            wanted = max(n_threads, batch_size(geometry.crop))
            yield tensor, geometry


@own_torch_state()
def _to_input(image: NDArray, geometry: Geometry) -> torch.Tensor:
    # Channels stay last in memory until the image is small. Read-only arrays are
    # copied, because torch warns about them.
    image = image if image.flags.writeable else image.copy()
    resized = resize_and_crop(torch.from_numpy(image).permute(2, 0, 1), geometry)
    return resized.contiguous()


def _find_cast(tensor: torch.Tensor) -> float:
    """Return red minus blue of an input (c, h, w), averaged over its pixels.

    It is 0 for images that do not have three channels.
    """
    if len(tensor) != 3:
        return 0.0
    # By NumPy, whose result does not depend on the number of threads.
    red, _, blue = tensor.numpy()
    return float(red.mean(dtype=np.float64) - blue.mean(dtype=np.float64))


def _split(entries: list[_Entry], n: int, pinned: bool) -> Iterator[_Batch]:
    for start in range(0, len(entries), n):
        yield _collate(entries[start : start + n], pinned)


@own_torch_state()
def _collate(entries: list[_Entry], pinned: bool) -> _Batch:
    indices, tensors, geometries = zip(*entries, strict=True)
    shape = (len(tensors), *tensors[0].shape)
    # A GPU can copy from pinned memory while the CPU continues.
    batch = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=pinned)
    return list(indices), torch.stack(tensors, out=batch), list(geometries)


def _name_of(images: Sequence[NDArray], i: int) -> str:
    return images.names[i] if isinstance(images, Images) else f"image {i}"
