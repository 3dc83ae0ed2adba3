"""Choose batch sizes from the memory that one image needs in the network."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

# On a CPU, activations that do not fit into its caches are slow: with two cores and 32
# MB of cache, an image of 224 pixels takes 20, 22 and 26 ms through ResNet-18 in
# batches of 8, 16 and 32. But if other processes use the cores too, small batches wait
# for a thread more often. This is enough for 19 images in ResNet-18, and 12 in Wide
# ResNet-50.
_CPU_BYTES = 128 * 2**20
# On a GPU, free memory is shared with the memory bank and with other processes.
_GPU_BYTES = 4 * 2**30
_GPU_SHARE = 1 / 4
# Pixels of the first batch, which is measured: four images of 256 x 256 pixels.
_FIRST_PIXELS = 4 * 256**2
# Images this many times larger are measured again, because the memory of attention
# grows faster than the number of pixels.
_LARGER = 4
_STAGES = ("network", "descriptor")
# Other subclasses of tensors, such as those of torch's compiler, may have no memory.
_IN_MEMORY = (torch.Tensor, torch.nn.Parameter)


class BatchLimit:
    """The number of images of a size to pass through a network at once.

    Parameters
    ----------
    batch_size : int
        Most images in a batch.
    device : torch.device
        Where the network runs.
    n_images : int or None
        Number of images. If one batch takes them all, nothing is measured.

    Notes
    -----
    The first images form a small batch, and the memory that it needs is measured. The
    measurement belongs to this object, which lives as long as one pass over a set of
    images. So the same images always form the same batches, and results are bit-equal.
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
            per_image = max(self._bytes_per_pixel.values()) * pixels
            fitting = int(self._budget // per_image)
        return max(1, min(self.batch_size, fitting))

    def measures(self, stage: str, size: tuple[int, int], n: int) -> bool:
        """Return whether `measure` would measure a block."""
        return n != self._n_images and self._is_new(stage, size[0] * size[1])

    @contextlib.contextmanager
    def measure(self, stage: str, size: tuple[int, int], n: int) -> Iterator[None]:
        """Measure the memory of the block, which processes `n` images, unless known.

        `stage` is "network" or "descriptor". A size is known after both.
        """
        if not self.measures(stage, size, n):
            yield
            return
        pixels = size[0] * size[1]
        with PeakMemory() as memory:
            yield
        per_pixel = max(1, memory.peak) / (n * pixels)
        self._bytes_per_pixel[stage] = max(self._bytes_per_pixel[stage], per_pixel)
        self._measured[stage] = pixels

    def _is_new(self, stage: str, pixels: int) -> bool:
        return pixels > _LARGER * self._measured[stage]


class PeakMemory(TorchFunctionMode):
    """Count the bytes of tensors that are created in the block and alive together.

    It sees the tensors that functions of torch return to Python in the calling thread.
    It does not see the temporary memory of a function, or what scripted modules do.

    Attributes
    ----------
    peak : int
        Most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        # By address, which is not used again until the storage is freed.
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch and account for what it returns."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        new = {storage.data_ptr(): storage for storage in _storages(result)}
        # Views and results of in-place operations need no additional memory.
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for address in new.keys() - given - self._alive.keys():
            self._add(address, new[address])
        return result

    def _add(self, address: int, storage: torch.UntypedStorage) -> None:
        n_bytes = storage.nbytes()

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._alive[address]
            self._now -= n_bytes

        self._alive[address] = weakref.ref(storage, forget)
        self._now += n_bytes
        self.peak = max(self.peak, self._now)


def _storages(value: object) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of tensors in arguments or results, however nested."""
    if type(value) in _IN_MEMORY:
        tensor = cast(torch.Tensor, value)
        if tensor.layout == torch.strided:
            yield tensor.untyped_storage()
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _storages(part)


def _memory_budget(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(_GPU_BYTES, int(_GPU_SHARE * free))
