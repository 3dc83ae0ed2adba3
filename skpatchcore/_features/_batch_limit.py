"""How many images pass a network at once, from what one of them takes."""

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# On a CPU, activations that leave its caches are slow: two cores with 32 MB take 20, 22
# and 26 ms for an image of 224 pixels through ResNet-18 at 8, 16 and 32 a pass. But
# where other processes want the cores too, small passes wait more often for a thread.
# This is 19 images of ResNet-18, and 12 of Wide ResNet-50.
_CPU_BYTES = 128 * 2**20
# On a GPU, what is free is shared with the memory bank and with other processes.
_GPU_BYTES = 4 * 2**30
_GPU_SHARE = 1 / 4
# Before anything is measured: four images of 256 x 256 pixels.
_FIRST_PIXELS = 4 * 256**2
# Measured anew for images this many times larger, since attention grows faster.
_LARGER = 4
_STAGES = ("network", "descriptor")


class BatchLimit:
    """How many images of a size to pass through a network at once.

    Parameters
    ----------
    batch_size : int
        Never more than this.
    device : torch.device
        Where the network runs.
    n_images : int or None
        How many there are: where one batch takes them all, nothing is measured.

    Notes
    -----
    The first images make a small batch and are measured. What is measured belongs to
    this object alone, and it lives as long as one pass over a set of images: the same
    images come in the same batches every time, so that results are bit-equal.
    """

    def __init__(
        self, batch_size: int, device: torch.device, n_images: int | None = None
    ):
        self.batch_size = batch_size
        self._n_images = n_images
        self._budget = _memory_budget(device)
        self._bytes_per_pixel = dict.fromkeys(_STAGES, 0.0)
        self._measured = dict.fromkeys(_STAGES, 0)

    def __call__(self, size: tuple[int, int]) -> int:
        """Return how many images of `size` (h, w) to take, from 1 to `batch_size`."""
        pixels = size[0] * size[1]
        if any(self._is_new(stage, pixels) for stage in _STAGES):
            fitting = _FIRST_PIXELS // pixels
        else:
            fitting = self._budget // (max(self._bytes_per_pixel.values()) * pixels)
        return max(1, min(self.batch_size, int(fitting)))

    @contextlib.contextmanager
    def measure(self, stage: str, size: tuple[int, int], n: int) -> Iterator[None]:
        """Learn what the block takes, run for `n` images, unless that is known.

        `stage` is "network" or "descriptor"; only after both is a size known.
        """
        pixels = size[0] * size[1]
        if n == self._n_images or not self._is_new(stage, pixels):
            yield
            return
        with PeakMemory() as memory:
            yield
        per_pixel = max(1, memory.peak) / (n * pixels)
        self._bytes_per_pixel[stage] = max(self._bytes_per_pixel[stage], per_pixel)
        self._measured[stage] = pixels

    def _is_new(self, stage: str, pixels: int) -> bool:
        return pixels > _LARGER * self._measured[stage]


class PeakMemory(TorchDispatchMode):
    """Count the bytes of tensors made within the block and alive at the same time.

    What a kernel needs for itself while it runs is not seen.

    Attributes
    ----------
    peak : int
        Most bytes so far.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operation of torch and account for what it returns."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            # Views and what works in place take nothing.
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()

        def forget(_):
            del self._alive[key]
            self._now -= n_bytes

        self._alive[key] = weakref.ref(storage, forget)
        self._now += n_bytes
        self.peak = max(self.peak, self._now)


def _storages(tree) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors]


def _memory_budget(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(_GPU_BYTES, int(_GPU_SHARE * free))
