"""Files with more than 8 bits per channel, where Pillow decodes only 8.

Colours of 16 bits in PNG and TIFF files are decoded in full by telling Pillow's own
decoders how to read them. Other formats are refused, so that no bit is lost silently.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_SWAPPED = {"B": "L", "L": "B"}
_NATIVE = "L" if sys.byteorder == "little" else "B"
# The start of a JPEG 2000 codestream, and the box of an AVIF that holds its depth.
_CODESTREAM, _PIXEL_INFORMATION = b"\xff\x4f\xff\x51", b"pixi\0\0\0\0"
_HEADER_BYTES = 4096


def is_deep_color(image: Image.Image) -> bool:
    """Return whether Pillow would drop the low bytes of a file that is not decoded."""
    tiles = getattr(image, "tile", [])
    return image.mode in ("RGB", "RGBA") and any(
        re.search(r";16[BLN]$", _raw_mode(tile)) for tile in tiles
    )


def decode_halves(reopen: Callable[[], Image.Image]) -> NDArray[np.uint16]:
    """Decode 16-bit colours with a decoder that keeps only their high bytes.

    It returns the low bytes if it is told that the bytes are in the opposite order.
    """
    image: Any = reopen()
    if not is_deep_color(image):
        raise ValueError("Pillow cannot decode all bits of its colours")
    key = image.info.get("transparency")
    if _raw_mode(image.tile[0]) == "LA;16B":
        # Four bytes per pixel, which are the same in an RGBA image of 8 bits.
        _set_raw_mode(image, "RGBA")
        pixels = np.asarray(ImageOps.exif_transpose(image))
        return pixels.view(">u2").astype(np.uint16)
    raw_mode = _raw_mode(image.tile[0])
    order = raw_mode[-1].replace("N", _NATIVE)
    high = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    image = reopen()
    _set_raw_mode(image, raw_mode[:-1] + _SWAPPED[order])
    low = np.asarray(ImageOps.exif_transpose(image))
    return with_color_key(high << 8 | low, key)


def _raw_mode(tile: Any) -> str:
    """Return how the bytes of a tile are arranged, in Pillow's notation."""
    options = tile[3]
    first = options[0] if isinstance(options, tuple) and options else options
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: Any, raw_mode: str) -> None:
    image.tile = [_with_raw_mode(tile, raw_mode) for tile in image.tile]


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    options = tile[3]
    changed = raw_mode if isinstance(options, str) else (raw_mode, *options[1:])
    # A plain tuple before Pillow 11.
    make = getattr(type(tile), "_make", tuple)
    return make((*tile[:3], changed))


def with_color_key(array: NDArray[np.uint16], key: Any) -> NDArray[np.uint16]:
    """Append an alpha channel that hides one colour, as tRNS in a PNG does."""
    if key is None:
        return array
    channels = np.atleast_3d(array)
    visible = (channels != np.array(key)).any(axis=2, keepdims=True)
    return np.concatenate([channels, visible * np.uint16(65535)], axis=2)


def check_depth(image: Image.Image, file: BinaryIO) -> None:
    """Reject files with more bits than Pillow decodes.

    Raises
    ------
    ValueError
        If bits would be lost.
    """
    bits = _find_depth(image, file)
    if bits > 8 and image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        raise ValueError(
            f"it has {bits} bits per channel, of which Pillow decodes only 8 in the "
            f"format {image.format}; convert it to a 16-bit PNG or TIFF"
        )


def _find_depth(image: Any, file: BinaryIO) -> int:
    """Return the bits per channel of a format whose colours Pillow reduces to 8."""
    if image.format == "PPM":
        values = [v for tile in image.tile for v in tile[3] if isinstance(v, int)]
        return 16 if max(values, default=0) > 255 else 8
    if image.format not in ("JPEG2000", "AVIF", "SGI"):
        return 8
    position = file.tell()
    file.seek(0)
    header = file.read(_HEADER_BYTES)
    file.seek(position)
    if image.format == "SGI":
        return 8 * header[3]
    if image.format == "AVIF":
        _, found, boxes = header.partition(_PIXEL_INFORMATION)
        return max(boxes[1 : 1 + boxes[0]]) if found and boxes and boxes[0] else 8
    _, found, markers = header.partition(_CODESTREAM)
    # ISO 15444-1, A.5.1: the number of components, then three bytes for each. The first
    # is the depth less one; its highest bit is the sign.
    depths = markers[38::3][: int.from_bytes(markers[36:38], "big")]
    return max(((depth & 0x7F) + 1 for depth in depths), default=8)
