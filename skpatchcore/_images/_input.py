"""Whatever a user calls images, as validated float arrays and batches."""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from skpatchcore._images._files import kind_of_file, open_image, open_regular
from skpatchcore._utils import fork_safe_lock, own_torch_state, read_ahead

_EXPECTED = (
    "Expected a list or 1-D array of paths or PIL images, an array (n, h, w) or "
    "(n, h, w, c) of uint8, uint16 or float in [0, 1], a list of such arrays "
    "(h, w[, c]), or torch tensors (n[, c], h, w)."
)
# The two-channel and four-channel forms carry an alpha channel, which is dropped.
_CHANNELS = (1, 2, 3, 4)
# Resampling by the user may overshoot [0, 1] by rounding alone.
_RANGE_TOLERANCE = 1e-4
# What images read ahead of the network may take: 27 of 900 x 900 pixels, one of 4000
# x 3000. While it is read, an image is held twice in floats of three channels; where
# resizing enlarges it, what comes of it counts.
_AHEAD_BYTES = 512 * 2**20
_BYTES_PER_PIXEL = 2 * 3 * 4
# A PIL image reads its file at first use, by a file object that others may share.
_PIL_LOCK = fork_safe_lock()


class UnreadableImageError(OSError, ValueError):
    """An image that cannot be decoded: truncated, or no image at all."""


class Geometry(NamedTuple):
    """How an image became the network's input; sizes and offsets in pixels."""

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]

    @property
    def aspect(self) -> float:
        """Height over width that a square of the input has in the image."""
        (height, width), (new_height, new_width) = self.original, self.resized
        return (height / new_height) / (width / new_width)


class Images(Sequence):
    """Images decoded on access to float32 arrays (h, w, 3) in [0, 1]."""

    def __init__(self, sources: Sequence, names: Sequence[str] | None = None):
        self._sources = sources
        self._names = names or [_name(source, i) for i, source in enumerate(sources)]

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> np.ndarray:
        return load_image(self._sources[index], self._names[index])

    @property
    def names(self) -> Sequence[str]:
        """What messages call the images."""
        return self._names

    def take(self, indices: np.ndarray) -> "Images":
        """Return the images at `indices`, still under their first names."""
        return Images(
            [self._sources[i] for i in indices], [self._names[i] for i in indices]
        )


def check_images(X, failures: dict[int, Exception] | None = None) -> Images:
    """Return `X` as `Images` after every check that needs no decoding.

    With `failures`, what is wrong with single images is put there by their number.
    What was checked before is returned as it is, with the names that it has.

    Raises
    ------
    TypeError
        If `X` is no container of images.
    ValueError
        If `X` is empty, or of a shape or dtype no image has.
    FileNotFoundError
        If a path does not exist.
    """
    if isinstance(X, Images):
        return X
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)):
        raise TypeError(
            f"Got a single {type(X).__name__} as X; wrap it in a list: [{X!r}]. "
            "For a folder see skpatchcore.datasets.load_image_folder."
        )
    if isinstance(X, (Mapping, Set)):
        raise TypeError(
            f"Got X of type {type(X).__name__}; of a data set pass `.data`. {_EXPECTED}"
        )
    sources = _as_sources(X)
    if len(sources) == 0:
        raise ValueError(f"Found 0 images in X. {_EXPECTED}")
    for i, source in enumerate(sources):
        try:
            _check_source(source, _name(source, i))
        except (OSError, ValueError) as error:
            if failures is None:
                raise
            failures[i] = error
    return Images(sources)


def load_image(source, name: str) -> np.ndarray:
    """Decode one image to float32 (h, w, 3) in [0, 1]."""
    with blaming(name):
        if not isinstance(source, np.ndarray):
            with _naming(name):
                source = _decode(source)
        return _array_to_rgb(source, name)


def image_contents(images: Sequence[np.ndarray], i: int) -> np.ndarray | bytes:
    """Return what tells image `i` from others: the bytes of its file, or pixels."""
    if hasattr(images, "contents"):
        return images.contents(i)
    if not isinstance(images, Images):
        return images[i]
    source, name = images._sources[i], images._names[i]
    if isinstance(source, np.ndarray):
        return source
    with blaming(name), _naming(name):
        if isinstance(source, Image.Image):
            return _decode(source)
        with open_regular(source) as file:
            return file.read()


def resized_shape(shape: tuple[int, int], image_size) -> tuple[int, int]:
    """Return the size (h, w) after resizing; an int is the length of the short side."""
    if image_size is None:
        return shape
    if not np.isscalar(image_size):
        return tuple(image_size)
    short, long = sorted(shape)
    scaled = (image_size, int(image_size * long / short))
    return scaled if shape[0] <= shape[1] else scaled[::-1]


def center_crop_offset(shape, crop_size, name: str) -> tuple[int, int]:
    """Return the top and left of a central crop of `crop_size` (h, w)."""
    if crop_size[0] > shape[0] or crop_size[1] > shape[1]:
        raise ValueError(
            f"crop_size={crop_size} is larger than {name}, which is "
            f"{shape[0]} x {shape[1]} after resizing; lower crop_size or raise "
            "image_size."
        )
    return tuple(round((s - c) / 2) for s, c in zip(shape, crop_size, strict=True))


def plan_geometry(shape, image_size, crop_size, name: str = "an image") -> Geometry:
    """Return where an image of `shape` (h, w) ends up in the network's input.

    Raises
    ------
    UnreadableImageError
        If resizing would make more pixels than Pillow permits in a file.
    ValueError
        If `crop_size` is larger than the resized image.
    """
    resized = resized_shape(shape, image_size)
    with blaming(name):
        _check_resized(shape, resized, image_size, name)
    if crop_size is None:
        return Geometry(shape, resized, (0, 0), resized)
    crop = (crop_size, crop_size) if np.isscalar(crop_size) else tuple(crop_size)
    with blaming(name):
        return Geometry(shape, resized, center_crop_offset(resized, crop, name), crop)


def _check_resized(shape, resized, image_size, name: str) -> None:
    """Refuse to make an image so large that it would be refused as a file.

    The short side of a very thin image, at `image_size`, makes the long one enormous:
    of 1 x 20000 pixels, 256 x 5120000.
    """
    limit = Image.MAX_IMAGE_PIXELS
    n_pixels = resized[0] * resized[1]
    if limit is None or n_pixels <= max(limit, shape[0] * shape[1]):
        return
    raise UnreadableImageError(
        f"{name} is {shape[0]} x {shape[1]}; image_size={image_size} would resize it "
        f"to {resized[0]} x {resized[1]}, which are {n_pixels} pixels "
        f"({n_pixels * _BYTES_PER_PIXEL // 2 / 1e9:.1f} GB). The limit is {limit} "
        "pixels, PIL.Image.MAX_IMAGE_PIXELS. Lower image_size, give it as (height, "
        "width), cut the image into parts, or leave it out."
    )


def resize_and_crop(
    image: torch.Tensor, geometry: Geometry, mode: str = "bilinear"
) -> torch.Tensor:
    """Resize, with antialiasing, and crop an image (c, h, w)."""
    if geometry.resized != geometry.original:
        # Floats throughout: rounding to 8 bits after resizing, as Pillow does, would
        # make a 16-bit image and its 8-bit twin differ for no reason.
        image = F.interpolate(
            image[None], geometry.resized, mode=mode, antialias=mode == "bilinear"
        )[0]
    (top, left), (height, width) = geometry.offset, geometry.crop
    return image[:, top : top + height, left : left + width]


@own_torch_state()
def resize_masks(masks, image_size=256, crop_size=None) -> list[np.ndarray]:
    """Return boolean masks (h, w) resized and cropped as their images are.

    Parameters
    ----------
    masks : sequence of ndarray of shape (h, w)
        True (or non-zero) where defective, in the images' own size.
    image_size, crop_size : int, tuple of int or None
        As in :class:`~skpatchcore.PatchFeatureTransformer`.

    Returns
    -------
    resized : list of ndarray of bool of shape (h, w)
    """
    resized = []
    for i, mask in enumerate(map(np.asarray, masks)):
        geometry = plan_geometry(mask.shape, image_size, crop_size, f"mask {i}")
        tensor = torch.from_numpy(mask != 0)[None].to(torch.float32)
        # Plain "nearest" takes the top left pixel of those that become one, half a
        # pixel off from where the images' are.
        kept = resize_and_crop(tensor, geometry, "nearest-exact")[0]
        resized.append(kept.numpy() > 0)
    return resized


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
        fitting = _AHEAD_BYTES // (_BYTES_PER_PIXEL * largest) if largest else 1
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


def take_images(images: Sequence[np.ndarray], indices) -> Sequence[np.ndarray]:
    """Return the images at `indices`, undecoded where they were."""
    if isinstance(images, Images):
        return images.take(indices)
    return [images[i] for i in indices]


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


def _name(source, i: int) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"image {i} ({os.fsdecode(source)})"
    return f"image {i}"


def _name_of(images, i: int) -> str:
    return images._names[i] if isinstance(images, Images) else f"image {i}"


def _as_sources(X) -> Sequence:
    """Return one entry an image: a path, a PIL image or an array."""
    if isinstance(X, torch.Tensor):
        return _split_array(_tensor_to_numpy(X, "X", batched=True))
    if hasattr(X, "iloc"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUT":
        return _split_array(X)
    if isinstance(X, np.ndarray):
        # One column of paths, as a DataFrame or ColumnTransformer hands it over.
        X = X.ravel() if X.ndim == 2 and X.shape[1] == 1 else X
        if X.ndim != 1:
            raise ValueError(
                f"Got an array of {X.dtype} objects of shape {X.shape}. {_EXPECTED}"
            )
        X = X.tolist()
    try:
        items = list(X)
    except TypeError:
        raise TypeError(f"Got X of type {type(X).__name__}. {_EXPECTED}") from None
    for i, item in enumerate(items):
        if isinstance(item, torch.Tensor):
            items[i] = _tensor_to_numpy(item, f"image {i}", batched=False)
    return items


def _split_array(X: np.ndarray) -> list[np.ndarray]:
    if X.ndim == 3 and X.shape[-1] in (3, 4):
        raise ValueError(
            f"Got an array of shape {X.shape}, which looks like a single image; pass "
            "X[np.newaxis] or [X]."
        )
    if X.ndim not in (3, 4):
        raise ValueError(
            f"Got an array of shape {X.shape} and dtype {X.dtype}. {_EXPECTED} "
            "Reshape your data if it holds flattened images; patch vectors belong in "
            "PatchMemoryBank."
        )
    return list(X)


def _tensor_to_numpy(tensor: torch.Tensor, name: str, *, batched: bool) -> np.ndarray:
    """Convert once, from torch's channels first to channels last."""
    if tensor.ndim == 3 + batched and tensor.shape[-3] not in _CHANNELS:
        raise ValueError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}, that is of "
            f"{tensor.shape[-3]} channels. Tensors have their channels first: permute "
            "the axes if they stand last, or pass X.numpy()."
        )
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.moveaxis(array, -3, -1) if array.ndim == 3 + batched else array


def _check_source(source, name: str) -> None:
    if isinstance(source, (str, os.PathLike)):
        _check_path(source, name)
    elif isinstance(source, bytes):
        raise TypeError(
            f"{name} is of type bytes. For a path pass os.fsdecode(path); for an "
            "encoded image pass PIL.Image.open(io.BytesIO(data))."
        )
    elif isinstance(source, np.ndarray):
        _check_array(source, name)
    elif not isinstance(source, Image.Image):
        raise TypeError(f"{name} is of type {type(source).__name__}. {_EXPECTED}")


def _check_path(path, name: str) -> None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        reason = "is a broken link" if os.path.islink(path) else "does not exist"
        raise FileNotFoundError(f"{name} {reason}.") from None
    except (OSError, ValueError) as error:
        # Not permitted, a circle of links, too long, or with a null character.
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"Could not read {name}: {reason}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(f"{name} is a folder, not an image.")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(
            f"{name} is {kind_of_file(status)}, not a regular file; save the image in "
            "a file and pass that."
        )


def _check_array(array: np.ndarray, name: str) -> None:
    if array.ndim not in (2, 3) or (
        array.ndim == 3 and array.shape[2] not in _CHANNELS
    ):
        raise ValueError(
            f"{name} has shape {array.shape}; expected (h, w) or (h, w, c) with c = 1 "
            "(grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels; torch tensors have "
            "their channels first."
        )
    if array.size == 0:
        raise ValueError(f"{name} has no pixels: shape {array.shape}.")
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind != "f" and not (kind == "u" and size <= 2):
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected uint8, uint16 or float in "
            "[0, 1]."
        )


def _decode(source) -> np.ndarray:
    if isinstance(source, Image.Image):
        with _PIL_LOCK:
            return _pil_to_array(source)
    with open_image(source) as image:
        return _pil_to_array(image)


@contextmanager
def blaming(name: str):
    """Note on an error whose fault it is, for those who can do without the image."""
    try:
        yield
    except (OSError, ValueError) as error:
        error.image = name
        raise


@contextmanager
def _naming(name: str):
    """Turn what goes wrong while an image is read into an error that names it."""
    try:
        yield
    except Exception as error:
        # What Pillow raises for a broken file depends on where it is broken: OSError,
        # SyntaxError, ValueError, DecompressionBombError, ...
        raise UnreadableImageError(f"Could not read {name}: {error}") from error


def _pil_to_array(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        # Pillow opens 16-bit files as "I;16" or "I" (32-bit integers).
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(
                f"it holds integers from {array.min()} to {array.max()}; expected 8 or "
                "16 bits a channel."
            )
        return array.astype(np.uint16)
    if image.mode == "P":
        # Pillow warns where it drops the alpha of a palette on the way to RGB.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _array_to_rgb(array: np.ndarray, name: str) -> np.ndarray:
    _check_array(array, name)
    if array.dtype.kind == "f":
        _check_range(array, name)
        image = array.astype(np.float32)
    else:
        image = array.astype(np.float32)
        image /= np.float32(np.iinfo(array.dtype).max)
    image = image[:, :, np.newaxis] if image.ndim == 2 else image
    n_colors = 3 if image.shape[2] >= 3 else 1
    return np.broadcast_to(image[:, :, :n_colors], (*image.shape[:2], 3))


def _check_range(array: np.ndarray, name: str) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} contains NaN or infinity.")
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ValueError(
            f"{name} holds floats from {low:.4g} to {high:.4g}; expected [0, 1]. "
            "Divide by the largest possible value, or convert to uint8 or uint16."
        )
