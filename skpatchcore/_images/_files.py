"""Open image files: regular files only, in formats that need no other program."""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# Pillow reads more. EPS, however, is decoded by Ghostscript, an interpreter of a whole
# programming language; TGA is a guess, since its files do not begin in a certain way;
# and formats that no camera writes only add decoders to attack.
# The most common ones first: they are tried in this order.
_FORMATS = (
    *("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"),
    *("JPEG2000", "AVIF", "DIB"),
)
# The limit of Pillow, 179 million pixels, takes 1.4 GB with 8 bytes a pixel. Without a
# bound, a file may fill the memory before anything in it is looked at.
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
    """Open the image in a file; its pixels are decoded at first use.

    Raises
    ------
    OSError
        If there is no regular file, it is too large, or in no accepted format.
    PIL.Image.DecompressionBombError
        If it claims to have more pixels than Pillow permits.
    """
    # From a path Pillow may map the file into memory, and then garbles grey TIFFs that
    # EXIF turns by 90 degrees (seen in Pillow 13.0).
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
    """Open a file to read bytes; refuse pipes and devices, which may never end."""
    # Opening a pipe would otherwise wait until somebody writes to it.
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
    """Return what to call what is not a regular file."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return the accepted formats that this installation of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
