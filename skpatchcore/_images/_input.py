"""Whatever a user calls images, as validated float arrays and batches."""

import os
import stat
from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch
from PIL import Image, ImageOps

from skpatchcore._images._errors import UnreadableImageError, _naming, blaming
from skpatchcore._images._files import kind_of_file, open_image, open_regular
from skpatchcore._utils import fork_safe_lock

_EXPECTED = (
    "Expected a list or 1-D array of paths or PIL images, an array (n, h, w) or "
    "(n, h, w, c) of uint8, uint16 or float in [0, 1], a list of such arrays "
    "(h, w[, c]), or torch tensors (n[, c], h, w)."
)


# The two-channel and four-channel forms carry an alpha channel, which is dropped.
_CHANNELS = (1, 2, 3, 4)


# Resampling by the user may overshoot [0, 1] by rounding alone.
_RANGE_TOLERANCE = 1e-4


# A PIL image reads its file at first use, by a file object that others may share.
_PIL_LOCK = fork_safe_lock()


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

    @property
    def sources(self) -> Sequence:
        """The images as they were given: paths, PIL images or arrays."""
        return self._sources

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


def take_images(images: Sequence[np.ndarray], indices) -> Sequence[np.ndarray]:
    """Return the images at `indices`, undecoded where they were."""
    if isinstance(images, Images):
        return images.take(indices)
    return [images[i] for i in indices]


def _name(source, i: int) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"image {i} ({os.fsdecode(source)})"
    return f"image {i}"


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
