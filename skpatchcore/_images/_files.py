"""Open image files: only regular files, in formats that Pillow decodes by itself."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from skpatchcore._images._pages import (
    EncodedSource,
    ImagePage,
    find_frames,
    path_of,
    pick_page,
)
from skpatchcore._images._tiff import is_tiff, open_pages

# Formats that are recognised by their content. Pillow tries them in this order, so the
# most common ones come first.
_FORMATS = (
    *("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"),
    *("JPEG2000", "AVIF", "DIB"),
)
# Rare formats, and those without a long signature, so that Pillow has to guess. Only
# their suffix permits them, if the content is none of the above.
_FORMATS_BY_SUFFIX = ("TGA", "PCX", "SGI", "QOI", "ICO")
# Pillow reads more. But EPS is decoded by Ghostscript, which interprets a programming
# language; some formats are no plain images; and each decoder increases the attack
# surface. These are not even named as images: videos, and stubs without a decoder.
_NOT_IMAGES = ("MPEG", "HDF5", "GRIB", "BUFR", "IPTC")
_HEIF_SUFFIXES = (".heic", ".heif")
# Pillow's limit of 179 million pixels corresponds to 1.4 GB at 8 bytes per pixel.
# Without a limit, a file could fill the memory before it is checked.
_MAX_FILE_BYTES = 2 * 2**30
# What is known about files that Pillow does not identify: bytes, their offset, and why.
_UNSUPPORTED = [
    (b"ftyphei", 4, "it is a HEIC image; convert it to JPEG or PNG"),
    (b"ftypmif1", 4, "it is a HEIF image; convert it to JPEG or PNG"),
    (b"\xff\xd8\xff", 0, "it is a JPEG that is damaged or not of 8 bits per channel"),
    (b"\x89PNG", 0, "it is a PNG whose header is damaged"),
    (b"II", 0, "it is a TIFF that is damaged or of a kind that Pillow cannot decode"),
    (b"MM", 0, "it is a TIFF that is damaged or of a kind that Pillow cannot decode"),
]
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_image(source: EncodedSource) -> Iterator[Image.Image]:
    """Open an encoded image, or a page of a file. Pixels are decoded at first use.

    Raises
    ------
    OSError
        If the file does not exist, is not a regular file, is too large, or is not in an
        accepted format.
    ValueError
        If the file has several pages and `source` is a path.
    PIL.Image.DecompressionBombError
        If its header states more pixels than Pillow permits.
    """
    # Not from the path: Pillow may then map the file into memory, which garbles grey
    # TIFFs that EXIF rotates by 90 degrees (seen in Pillow 13.0).
    with open_source(source) as file:
        if is_tiff(file):
            with open_pages(file) as pages:
                frame = pages[pick_page(len(pages), source)].index
            with identify(file) as image:
                image.seek(frame)
                yield image
            return
        with identify(file) as image:
            frames = find_frames(image)
            image.seek(frames[pick_page(len(frames), source)])
            yield image


def split_pages(path: str | os.PathLike) -> list[str | ImagePage]:
    """Return the pages of a file, or the path itself if it has only one.

    The path of a file that cannot be read is returned as well: its error is raised when
    the image is decoded.
    """
    name = os.fsdecode(path)
    try:
        with open_regular(name) as file:
            n_pages = _count_pages(file)
    except Exception:
        return [name]
    return [name] if n_pages == 1 else [ImagePage(name, i) for i in range(n_pages)]


def _count_pages(file: BinaryIO) -> int:
    if is_tiff(file):
        with open_pages(file) as pages:
            return len(pages)
    with identify(file) as image:
        return len(find_frames(image))


def identify(file: BinaryIO) -> Image.Image:
    """Return the image in an opened file, without decoding it.

    Raises
    ------
    OSError
        If it is not in an accepted format.
    PIL.Image.DecompressionBombError
        If its header states more pixels than Pillow permits.
    """
    named = _formats_by_suffix().get(_suffix(file))
    try:
        file.seek(0)
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(file, formats=accepted_formats())
        file.seek(0)
        return Image.open(file, formats=(named,) if named else accepted_formats())
    except UnidentifiedImageError:
        file.seek(0)
        raise UnidentifiedImageError(_unidentified(file.read(16))) from None
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(too_many_pixels(str(error))) from None


def too_many_pixels(reason: str) -> str:
    """Return what to do about a file with more pixels than Pillow permits."""
    return (
        f"{reason.rstrip('.')}. The limit, twice PIL.Image.MAX_IMAGE_PIXELS, protects "
        "against files that would fill the memory. If you trust the file, for example "
        "one from a line-scan camera, raise PIL.Image.MAX_IMAGE_PIXELS, or cut the "
        "image into parts"
    )


def _unidentified(start: bytes) -> str:
    """Return why a file that starts with these bytes is not an accepted image."""
    if not start:
        return "the file is empty"
    for signature, offset, reason in _UNSUPPORTED:
        if start[offset:].startswith(signature):
            return reason
    return (
        "cannot identify it as an image; accepted formats are "
        f"{', '.join(accepted_formats())}, and with their own suffix "
        f"{', '.join(dict.fromkeys(_formats_by_suffix().values()))}"
    )


def _suffix(file: BinaryIO) -> str:
    return os.path.splitext(os.fsdecode(getattr(file, "name", "")))[1].lower()


def open_source(source: EncodedSource) -> BinaryIO:
    """Open an encoded image to read its bytes.

    Raises
    ------
    OSError
        If it is a file that `open_regular` rejects, or too large.
    """
    if not isinstance(source, bytes):
        return open_regular(path_of(source))
    _check_size(len(source))
    return io.BytesIO(source)


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
        _check_size(status.st_size)
        stack.pop_all()  # The file stays open.
    return file


def _check_size(n_bytes: int) -> None:
    if n_bytes > _MAX_FILE_BYTES:
        raise OSError(f"the file has {n_bytes} bytes; the limit is {_MAX_FILE_BYTES}")


def kind_of_file(status: os.stat_result) -> str:
    """Return what to call a file that is not a regular file in messages."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return the accepted formats that the installed Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def _formats_by_suffix() -> dict[str, str]:
    """Return those that are tried only for files with one of their suffixes."""
    Image.init()
    names = [name for name in _FORMATS_BY_SUFFIX if name in Image.OPEN]
    return {s: n for n in names for s, name in Image.EXTENSION.items() if name == n}


@cache
def accepted_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of all formats that are accepted."""
    accepted = accepted_formats()
    by_content = (s for s, name in Image.EXTENSION.items() if name in accepted)
    return frozenset([*by_content, *_formats_by_suffix()])


@cache
def refused_suffixes() -> frozenset[str]:
    """Return the suffixes of other formats of images."""
    known = {s for s, name in Image.EXTENSION.items() if name not in _NOT_IMAGES}
    return frozenset(known.union(_HEIF_SUFFIXES) - accepted_suffixes())
