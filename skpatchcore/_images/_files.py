"""Open image files: only regular files, in formats that Pillow decodes by itself."""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# Pillow reads more formats. But EPS is decoded by Ghostscript, which interprets a
# programming language; TGA files have no signature, so Pillow has to guess; and formats
# that no camera writes only increase the attack surface. Pillow tries them in this
# order, so the most common ones come first.
_FORMATS = (
    *("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"),
    *("JPEG2000", "AVIF", "DIB"),
)
# Pillow's limit of 179 million pixels corresponds to 1.4 GB at 8 bytes per pixel.
# Without a limit, a file could fill the memory before it is checked.
_MAX_FILE_BYTES = 2 * 2**30
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open the image in a file. Its pixels are decoded at first use.

    Raises
    ------
    OSError
        If the file does not exist, is not a regular file, is too large, or is not in an
        accepted format.
    PIL.Image.DecompressionBombError
        If its header states more pixels than Pillow permits.
    """
    # Not from the path: Pillow may then map the file into memory, which garbles grey
    # TIFFs that EXIF rotates by 90 degrees (seen in Pillow 13.0).
    with open_regular(path) as file:
        try:
            image = Image.open(file, formats=accepted_formats())
        except UnidentifiedImageError:
            listed = ", ".join(accepted_formats())
            raise UnidentifiedImageError(
                f"cannot identify it as an image; accepted formats are {listed}"
            ) from None
        with image:
            yield image


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read bytes; reject pipes and devices, which may never end."""
    # Without this flag, opening a pipe waits until another process writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(
            open(path, "rb", opener=lambda name, given: os.open(name, given | flags))
        )
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"it is {kind_of_file(status)}, not a regular file")
        if status.st_size > _MAX_FILE_BYTES:
            raise OSError(
                f"the file has {status.st_size} bytes; the limit is {_MAX_FILE_BYTES}"
            )
        stack.pop_all()  # The file stays open.
    return file


def kind_of_file(status: os.stat_result) -> str:
    """Return what to call a file that is not a regular file in messages."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return the accepted formats that the installed Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
