"""What a TIFF file contains, and which decoder keeps all of it.

Pillow decodes every compression, but loses the low bits of 16-bit colour, does not know
most kinds of floats, and inverts only some of the images whose white is zero. tifffile
knows all kinds of numbers, but few compressions. So each file goes to the one that
decodes it in full, and a file that neither does is an error.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# tifffile logs every small flaw of a file. Without a handler of the user's, that would
# be printed for each image.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Values of tags, TIFF 6.0: PhotometricInterpretation, SampleFormat, PlanarConfiguration
# and ExtraSamples.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# Colour models that are decoded in full, at any number of bits or only at up to 8.
_ANY_DEPTH = {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB}
_EIGHT_BITS = {_PALETTE, _CMYK, _YCBCR}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_KINDS = {_UNSIGNED: "unsigned integers", _SIGNED: "signed integers", _FLOAT: "floats"}
_WIDTHS = {_UNSIGNED: (1, 2, 4, 8, 12, 16), _FLOAT: (16, 32, 64)}
_SEPARATE_PLANES = 2
_UNSPECIFIED, _ASSOCIATED_ALPHA = 0, 1
_ORIENTATION = 274


class TiffPlan(NamedTuple):
    """How to decode one page of a TIFF file.

    Parameters
    ----------
    decoder : {"pillow", "halves", "tifffile"}
        "halves" is Pillow, once for the high and once for the low bytes.
    invert : bool
        Whether to invert what the decoder returns, because 0 means white.
    full_scale : int or None
        The value of white, where it is not the largest of the data type.
    """

    decoder: str
    invert: bool = False
    full_scale: int | None = None


def is_tiff(file: BinaryIO) -> bool:
    """Return whether a file starts like a TIFF or BigTIFF, and go back to its start."""
    file.seek(0)
    signature = file.read(4)
    file.seek(0)
    return signature in _SIGNATURES


@contextmanager
def open_pages(file: BinaryIO) -> Iterator[list[Any]]:
    """Open the pages of a TIFF file, without smaller copies and transparency masks."""
    from tifffile import TiffFile

    file.seek(0)
    with TiffFile(file) as tiff:
        found: list[Any] = [tiff.pages[i] for i in range(len(tiff.pages))]
        if not found:
            raise ValueError("it is a TIFF without images, or damaged")
        described = (tiff.imagej_metadata or {}).get("images", 1)
        if len(found) == 1 and described > 1:
            raise ValueError(
                f"it is a stack of {described} images that ImageJ wrote as one page; "
                "save it with one page for each image"
            )
        yield [page for page in found if not (page.is_reduced or page.is_mask)] or found


def size_of(page: Any) -> tuple[int, int]:
    """Return the height and width of a page after rotation."""
    shape = (int(page.imagelength), int(page.imagewidth))
    return shape[::-1] if _orientation(page) in (5, 6, 7, 8) else shape


def plan(page: Any) -> TiffPlan:
    """Return how to decode a page in full.

    Raises
    ------
    ValueError
        If part of it would be lost.
    """
    kinds = _as_tuple(page.sampleformat)
    widths = _as_tuple(page.bitspersample)
    _check_kind(page, kinds, widths)
    _check_channels(page)
    kind, bits, n_samples = kinds[0], widths[0], page.samplesperpixel
    white_is_zero = page.photometric == _WHITE_IS_ZERO
    if kind == _FLOAT:
        known = bits == 32 and n_samples == 1
        return TiffPlan("pillow" if known else "tifffile", white_is_zero)
    if bits < 16:
        return TiffPlan("pillow", full_scale=4095 if bits == 12 else None)
    if n_samples == 1:
        # In big-endian files, Pillow does not know that white may be zero.
        unknown = white_is_zero and page.parent.byteorder == ">"
        return TiffPlan("tifffile" if unknown else "pillow", white_is_zero)
    is_plain = page.photometric == _RGB and page.planarconfig != _SEPARATE_PLANES
    return TiffPlan("halves" if is_plain else "tifffile", white_is_zero)


def _check_kind(page: Any, kinds: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Reject numbers without a known range, and those that no decoder keeps."""
    if len({*kinds}) > 1 or len({*widths}) > 1:
        raise ValueError("its channels differ in their number of bits")
    kind, bits = kinds[0], widths[0]
    if bits in _WIDTHS.get(kind, ()):
        return
    name = _KINDS.get(kind, "complex or undefined values")
    raise ValueError(
        f"it is a TIFF of {bits}-bit {name}; expected unsigned integers of up to 16 "
        "bits, or floats in [0, 1]. Scale and convert it"
    )


def _check_channels(page: Any) -> None:
    """Reject colour models and extra channels that would be lost."""
    if page.imagedepth > 1:
        raise ValueError(
            f"it is a volume of {page.imagedepth} slices; save each slice as a page"
        )
    bits = _as_tuple(page.bitspersample)[0]
    if page.photometric not in (_ANY_DEPTH if bits > 8 else _ANY_DEPTH | _EIGHT_BITS):
        name = getattr(page.photometric, "name", page.photometric)
        raise ValueError(
            f"it is a TIFF of {bits}-bit {name} values, which cannot be decoded in "
            "full; convert it to RGB"
        )
    extra = [int(value) for value in _as_tuple(page.extrasamples)]
    if len(extra) > 1 or _UNSPECIFIED in extra:
        raise ValueError(
            f"it has {page.samplesperpixel} channels, and not all of them are colours "
            "or marked as alpha; expected grey or RGB, with or without alpha. Choose "
            "the bands, and save them as RGB"
        )
    if _ASSOCIATED_ALPHA in extra and bits > 8:
        raise ValueError(
            f"it has {bits}-bit colours that are multiplied by alpha; save it with "
            "unassociated alpha, or without"
        )


def read_with_tifffile(page: Any) -> NDArray[Any]:
    """Decode a page, and apply its orientation."""
    size = page.imagelength * page.imagewidth
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size > 2 * limit:
        # As Pillow does, which has not identified every file that comes here.
        raise Image.DecompressionBombError(f"Image size ({size} pixels) exceeds limit")
    try:
        array = page.asarray(maxworkers=1)
    except (KeyError, ValueError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(
            f"{error}. Install it (pip install imagecodecs), or save the file without "
            "compression"
        ) from error
    if page.planarconfig == _SEPARATE_PLANES and page.samplesperpixel > 1:
        array = np.moveaxis(array, 0, -1)
    return _upright(array.astype(array.dtype.newbyteorder("=")), _orientation(page))


def invert(array: NDArray[Any]) -> NDArray[Any]:
    """Return an image whose zero means white with its zero as black."""
    white = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    return np.subtract(white, array, dtype=array.dtype)


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo what was done to an image before it was stored (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
