"""Validate and decode image inputs."""

import copy
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from skpatchcore._images._containers import EXPECTED, as_sources
from skpatchcore._images._decoding import decode_file, decode_opened
from skpatchcore._images._errors import UnreadableImageError, blaming, naming
from skpatchcore._images._files import kind_of_file, open_regular
from skpatchcore._images._pages import ImagePage, as_encoded, is_file, path_of
from skpatchcore._images._pixels import Notices, check_array, to_pixels
from skpatchcore._images._streams import iter_windows
from skpatchcore._utils import fork_safe_lock, missing_name

#: Images as users pass them: arrays, torch tensors, or sequences of paths, PIL images,
#: encoded images (bytes), arrays or tensors. `check_images` checks them in detail.
ImageInput = ArrayLike | Sequence[Any]

#: Part of the keys of cached features: raise it when an image is decoded differently.
DECODING_VERSION = 2

# A PIL image reads its file at first use, through a file object that may be shared.
_PIL_LOCK = fork_safe_lock()


class Images(Sequence[NDArray[np.float32]]):
    """Images decoded on access to float32 arrays (h, w, c) in [0, 1].

    They are RGB unless `with_channels` says otherwise.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        names: Sequence[str] | None = None,
        notices: Notices | None = None,
        n_channels: int | None = None,
    ):
        self._sources = sources
        self._n_channels = n_channels
        self.notices = notices or Notices()
        self._names = names or [_name(source, i) for i, source in enumerate(sources)]

    def __len__(self) -> int:
        return len(self._sources)

    # Slices are not supported: `take` keeps the names.
    def __getitem__(self, index: int) -> NDArray[np.float32]:  # type: ignore[override]
        source, name = self._sources[index], self._names[index]
        return load_image(source, name, self.notices, self._n_channels)

    @property
    def sources(self) -> Sequence[Any]:
        """The images before decoding: paths, PIL images, bytes or arrays."""
        return self._sources

    @property
    def names(self) -> Sequence[str]:
        """The names of the images in messages."""
        return self._names

    def take(self, indices: Iterable[int]) -> "Images":
        """Return the images at `indices`, with their original names."""
        rows = list(indices)
        sources, names = ([a[i] for i in rows] for a in (self._sources, self._names))
        return Images(sources, names, self.notices, self._n_channels)

    def with_channels(self, n: int) -> "Images":
        """Return the same images with `n` channels, as a network takes them."""
        made = copy.copy(self)
        made._n_channels = n
        return made


def check_images(
    X: ImageInput,
    failures: dict[int, Exception] | None = None,
    *,
    first: int = 0,
    notices: Notices | None = None,
) -> Images:
    """Return `X` as `Images` after all checks that do not require decoding.

    If `X` was already checked, it is returned unchanged, with its names. If `failures`
    is given, errors of single images are stored there by index instead of raised.
    `first` is the number of the first image in messages, for a part of a stream, and
    `notices` what was said about earlier parts.

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
    if isinstance(as_encoded(X), bytes | Image.Image) or is_file(X):
        shown = repr(X) if is_file(X) else "..."
        raise TypeError(
            f"Got a single {type(X).__name__} as X; wrap it in a list: [{shown}]. "
            "For a folder see skpatchcore.datasets.load_image_folder."
        )
    if isinstance(X, io.IOBase):
        raise TypeError(
            f"Got an open file, a {type(X).__name__}, as X; pass its contents in a "
            "list: [file.read()]."
        )
    if isinstance(X, (Mapping, Set)):
        raise TypeError(
            f"Got X of type {type(X).__name__}; for a data set pass `.data`. {EXPECTED}"
        )
    sources = as_sources(X)
    if len(sources) == 0:
        raise ValueError(f"Found 0 images in X. {EXPECTED}")
    names = [_name(source, first + i) for i, source in enumerate(sources)]
    for i, (source, name) in enumerate(zip(sources, names, strict=True)):
        try:
            _check_source(source, name)
        except (OSError, ValueError) as error:
            if failures is None:
                raise
            failures[i] = error
    return Images(sources, names, notices)


def check_stream(
    stream: Iterator[Any], *, keep_failures: bool = False
) -> Iterator[tuple[int, Images, dict[int, Exception]]]:
    """Yield the images of a stream in windows, as `check_images` does.

    With each window come the number of its first image and the errors of its single
    images, which are stored there if `keep_failures` is set, else raised.

    Raises
    ------
    ValueError
        If the stream has no images, perhaps because it was used before.
    """
    notices, first = Notices(), 0
    for window in iter_windows(stream):
        failures: dict[int, Exception] = {}
        collected = failures if keep_failures else None
        images = check_images(window, collected, first=first, notices=notices)
        yield first, images, failures
        first += len(images)
    if first == 0:
        check_images([])


def load_image(
    source: Any,
    name: str,
    notices: Notices | None = None,
    n_channels: int | None = None,
) -> NDArray[np.float32]:
    """Decode one image to float32 (h, w, c) in [0, 1], as `to_pixels` does."""
    with blaming(name):
        if not isinstance(source, np.ndarray):
            with naming(name):
                source = _decode(source)
        return to_pixels(source, name, notices, n_channels)


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
        if isinstance(source, Image.Image | ImagePage):
            # Other pages of the file do not matter.
            return _decode(source)
        if isinstance(source, bytes):
            return source
        with open_regular(source) as file:
            return file.read()


def take_images(images: Sequence[NDArray], indices: Iterable[int]) -> Sequence[NDArray]:
    """Return the images at `indices`, without decoding them if they are `Images`."""
    if isinstance(images, Images):
        return images.take(indices)
    return [images[i] for i in indices]


def _name(source: Any, i: int) -> str:
    if isinstance(source, ImagePage):
        return f"image {i} ({source})"
    if is_file(source):
        return f"image {i} ({path_of(source)})"
    return f"image {i}"


def _check_source(source: Any, name: str) -> None:
    if is_file(source):
        _check_path(path_of(source), name)
    elif isinstance(source, bytes):
        if os.path.exists(source):
            raise TypeError(
                f"{name} is a path of type bytes, but bytes must be the contents of an "
                "image file. For a path pass os.fsdecode(path)."
            )
    elif isinstance(source, np.ndarray):
        check_array(source, name)
    elif missing := missing_name(source):
        raise ValueError(
            f"{name} is missing: X has {missing} in its place. Leave this row out, or "
            "pass the path of its image."
        )
    elif not isinstance(source, Image.Image):
        raise TypeError(f"{name} is of type {type(source).__name__}. {EXPECTED}")


def _check_path(path: str, name: str) -> None:
    if not path.strip():
        raise FileNotFoundError(
            f"{name.removesuffix(f' ({path})')} is missing: its path is empty. Leave "
            "this row out, or pass the path of its image."
        )
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


def _decode(source: Any) -> NDArray:
    if isinstance(source, Image.Image):
        with _PIL_LOCK:
            return decode_opened(source)
    return decode_file(source)
