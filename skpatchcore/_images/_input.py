"""Validate and decode image inputs."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from skpatchcore._images._errors import UnreadableImageError, blaming, naming
from skpatchcore._images._files import kind_of_file, open_image, open_regular
from skpatchcore._utils import fork_safe_lock

#: Images as users pass them: arrays, torch tensors, or sequences of paths, PIL images,
#: arrays or tensors. `check_images` checks them in detail.
ImageInput = ArrayLike | Sequence[Any]

_EXPECTED = (
    "Expected a list or 1-D array of paths or PIL images, an array (n, h, w) or "
    "(n, h, w, c) of uint8, uint16 or float in [0, 1], a list of such arrays "
    "(h, w[, c]), or torch tensors (n[, c], h, w)."
)


# With two or four channels, the last one is alpha, which is dropped.
_CHANNELS = (1, 2, 3, 4)


# Images that the user has resampled may exceed [0, 1] slightly, by rounding.
_RANGE_TOLERANCE = 1e-4


# A PIL image reads its file at first use, through a file object that may be shared.
_PIL_LOCK = fork_safe_lock()


class Images(Sequence[NDArray[np.float32]]):
    """Images decoded on access to float32 arrays (h, w, 3) in [0, 1]."""

    def __init__(self, sources: Sequence[Any], names: Sequence[str] | None = None):
        self._sources = sources
        self._names = names or [_name(source, i) for i, source in enumerate(sources)]

    def __len__(self) -> int:
        return len(self._sources)

    # Slices are not supported: `take` keeps the names.
    def __getitem__(self, index: int) -> NDArray[np.float32]:  # type: ignore[override]
        return load_image(self._sources[index], self._names[index])

    @property
    def sources(self) -> Sequence[Any]:
        """The images before decoding: paths, PIL images or arrays."""
        return self._sources

    @property
    def names(self) -> Sequence[str]:
        """The names of the images in messages."""
        return self._names

    def take(self, indices: Iterable[int]) -> "Images":
        """Return the images at `indices`, with their original names."""
        rows = list(indices)
        return Images([self._sources[i] for i in rows], [self._names[i] for i in rows])


def check_images(X: ImageInput, failures: dict[int, Exception] | None = None) -> Images:
    """Return `X` as `Images` after all checks that do not require decoding.

    If `X` was already checked, it is returned unchanged, with its names. If `failures`
    is given, errors of single images are stored there by index instead of raised.

    Raises
    ------
    TypeError
        If `X` is not a container of images.
    ValueError
        If `X` is empty, or if its shape or dtype is not valid for images.
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
            f"Got X of type {type(X).__name__}; for a data set pass `.data`. "
            f"{_EXPECTED}"
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


def load_image(source: Any, name: str) -> NDArray[np.float32]:
    """Decode one image to float32 (h, w, 3) in [0, 1]."""
    with blaming(name):
        if not isinstance(source, np.ndarray):
            with naming(name):
                source = _decode(source)
        return _array_to_rgb(source, name)


def image_contents(images: Sequence[NDArray], i: int) -> NDArray | bytes:
    """Return the bytes or pixels that identify image `i`."""
    if hasattr(images, "contents"):
        # `Augmented` knows which of its images were given.
        return cast(NDArray | bytes, images.contents(i))
    if not isinstance(images, Images):
        return images[i]
    source, name = images.sources[i], images.names[i]
    if isinstance(source, np.ndarray):
        return source
    with blaming(name), naming(name):
        if isinstance(source, Image.Image):
            return _decode(source)
        with open_regular(source) as file:
            return file.read()


def take_images(images: Sequence[NDArray], indices: Iterable[int]) -> Sequence[NDArray]:
    """Return the images at `indices`, without decoding them if they are `Images`."""
    if isinstance(images, Images):
        return images.take(indices)
    return [images[i] for i in indices]


def _name(source: Any, i: int) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"image {i} ({os.fsdecode(source)})"
    return f"image {i}"


def _as_sources(X: Any) -> Sequence[Any]:
    """Return one entry for each image: a path, a PIL image or an array."""
    if isinstance(X, torch.Tensor):
        return _split_array(_tensor_to_numpy(X, "X", batched=True))
    if hasattr(X, "iloc"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUT":
        return _split_array(X)
    if isinstance(X, np.ndarray):
        # One column of paths, as a DataFrame or ColumnTransformer passes it.
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


def _split_array(X: NDArray) -> list[NDArray]:
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


def _tensor_to_numpy(tensor: torch.Tensor, name: str, *, batched: bool) -> NDArray:
    """Convert a tensor with channels first to an array with channels last."""
    if tensor.ndim == 3 + batched and tensor.shape[-3] not in _CHANNELS:
        raise ValueError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}, which means "
            f"{tensor.shape[-3]} channels. Tensors must have their channels first: "
            "permute the axes if the channels are last, or pass X.numpy()."
        )
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.moveaxis(array, -3, -1) if array.ndim == 3 + batched else array


def _check_source(source: Any, name: str) -> None:
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


def _check_path(path: str | os.PathLike, name: str) -> None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        reason = "is a broken link" if os.path.islink(path) else "does not exist"
        raise FileNotFoundError(f"{name} {reason}.") from None
    except (OSError, ValueError) as error:
        # Not permitted, circular links, too long, or with a null character.
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableImageError(f"Could not read {name}: {reason}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(f"{name} is a folder, not an image.")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(
            f"{name} is {kind_of_file(status)}, not a regular file; save the image to "
            "a file and pass its path."
        )


def _check_array(array: NDArray, name: str) -> None:
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


def _decode(source: Any) -> NDArray:
    if isinstance(source, Image.Image):
        with _PIL_LOCK:
            return _pil_to_array(source)
    with open_image(source) as image:
        return _pil_to_array(image)


def _pil_to_array(image: Image.Image) -> NDArray:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        # Pillow opens 16-bit files as "I;16" or "I" (32-bit integers).
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(
                f"it contains integers from {array.min()} to {array.max()}; expected 8 "
                "or 16 bits per channel."
            )
        return array.astype(np.uint16)
    if image.mode == "P":
        # Converted to RGB directly, a palette with alpha makes Pillow warn.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _array_to_rgb(array: NDArray, name: str) -> NDArray[np.float32]:
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


def _check_range(array: NDArray, name: str) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} contains NaN or infinity.")
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ValueError(
            f"{name} contains floats from {low:.4g} to {high:.4g}; expected [0, 1]. "
            "Divide by the largest possible value, or convert to uint8 or uint16."
        )
