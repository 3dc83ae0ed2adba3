"""Pages of files that contain several images, such as a TIFF stack or a GIF."""

import io
import os
from dataclasses import dataclass
from typing import Any, TypeGuard

from PIL import Image

# Tag and value of DC-007 (CIPA), for files with several views of one scene.
_MPO_ENTRIES, _MPO_VIEW = 0xB002, "Multi-Frame Image"


@dataclass(frozen=True)
class ImagePage:
    """One page of a file that contains several images.

    A file of several pages is an error where one image is expected, because a defect on
    any page but the first would be missed. Pass a page wherever a path is accepted.

    Parameters
    ----------
    path : str or path-like
        The file: a TIFF with several pages, or an animated GIF, WebP, PNG or AVIF.
    page : int
        The number of the page, from 0. Smaller copies and transparency masks in a TIFF
        do not count.

    Examples
    --------
    >>> from skpatchcore.datasets import ImagePage
    >>> print(ImagePage("scans/stack.tif", 2))
    scans/stack.tif[2]
    """

    path: str
    page: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fsdecode(self.path))
        if not isinstance(self.page, int) or self.page < 0:
            raise ValueError(
                f"Got page={self.page!r} of {self.path}; expected an int from 0."
            )

    def __str__(self) -> str:
        return f"{self.path}[{self.page}]"


#: A file given as an image: its path, or one of its pages.
FileSource = str | os.PathLike | ImagePage
#: An encoded image: a file, or the bytes of one.
EncodedSource = FileSource | bytes


def is_file(source: Any) -> TypeGuard[FileSource]:
    """Return whether an image is given as a file, by its path or page."""
    return isinstance(source, (str, os.PathLike, ImagePage))


def as_encoded(source: Any) -> Any:
    """Return the bytes of an encoded image in memory; anything else as it is.

    All bytes of a `BytesIO` count, from its start, and it is not read or moved.
    """
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    return bytes(source) if isinstance(source, bytearray | memoryview) else source


def path_of(source: FileSource) -> str:
    """Return the path of a file or page."""
    return source.path if isinstance(source, ImagePage) else os.fsdecode(source)


def pick_page(n_pages: int, source: EncodedSource) -> int:
    """Return which of the pages of a file `source` means.

    Raises
    ------
    ValueError
        If `source` is a path or bytes and the file has several pages, or if the page
        does not exist.
    """
    if isinstance(source, ImagePage):
        if source.page < n_pages:
            return source.page
        raise ValueError(
            f"it has no page {source.page}: the number of pages is {n_pages}; "
            + ("pass its path" if n_pages == 1 else f"pages are 0 to {n_pages - 1}")
        )
    if n_pages == 1:
        return 0
    if isinstance(source, bytes):
        raise ValueError(
            f"it has {n_pages} pages (or frames), of which only the first would be "
            "seen. Open the bytes with PIL.Image.open, call image.seek(page), and pass "
            "image.copy()"
        )
    raise ValueError(
        f"it has {n_pages} pages (or frames), of which only the first would be seen. "
        "Pass skpatchcore.datasets.ImagePage(path, page) with a page from 0 to "
        f'{n_pages - 1}, or list all of them with pages="all" (loaders) or --pages '
        "all (command)"
    )


def find_frames(image: Image.Image) -> list[int]:
    """Return which frames of an opened file, not a TIFF, are images of their own."""
    n_icons = len(image.info.get("sizes", ())) if image.format == "ICO" else 1
    if n_icons > 1:
        raise ValueError(
            f"it has icons of {n_icons} sizes, of which only the largest would be "
            "seen; save one of them as PNG"
        )
    n_frames = getattr(image, "n_frames", 1)
    if image.format != "MPO":
        return list(range(n_frames))
    # Phones attach previews, depth and gain maps to the JPEG file of a photo.
    entries = getattr(image, "mpinfo")[_MPO_ENTRIES]  # noqa: B009
    is_view = any(_MPO_VIEW in entry["Attribute"]["MPType"] for entry in entries)
    return list(range(n_frames)) if is_view else [0]
