"""Decode files and PIL images to arrays without losing bits, colours or alpha."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from skpatchcore._images._depth import (
    check_depth,
    decode_halves,
    is_deep_color,
    with_color_key,
)
from skpatchcore._images._files import identify, open_source
from skpatchcore._images._pages import EncodedSource, find_frames, pick_page
from skpatchcore._images._tiff import (
    TiffPlan,
    invert,
    is_tiff,
    open_pages,
    plan,
    read_with_tifffile,
    size_of,
)

# EXIF orientations 5 to 8 swap height and width (EXIF 2.32, section 4.6.4).
_TRANSPOSED = (5, 6, 7, 8)
# Tags of TIFF 6.0, and values of them.
_BITS, _PHOTOMETRIC, _DESCRIPTION, _EXTRA_SAMPLES = 258, 262, 270, 338
_SAMPLE_FORMAT, _DEPTH = 339, 32997
_WHITE_IS_ZERO, _UNSPECIFIED, _UNSIGNED = 0, 0, 1


def decode_file(source: EncodedSource) -> NDArray[Any]:
    """Decode a file, a page of it, or its bytes to an array (h, w) or (h, w, c).

    The array is uint8, uint16 or float, with 1 to 4 channels; with 2 or 4 of them, the
    last one is alpha.

    Raises
    ------
    OSError, ValueError
        If it cannot be decoded, or only with a loss.
    """
    with open_source(source) as file:
        if is_tiff(file):
            with open_pages(file) as pages:
                page = pages[pick_page(len(pages), source)]
                return _decode_tiff(file, page, plan(page))
        with identify(file) as image:
            frames = find_frames(image)
            frame = frames[pick_page(len(frames), source)]
            check_depth(image, file)
            if not is_deep_color(image):
                image.seek(frame)
                return pil_to_array(image)
            if frame > 0:
                raise ValueError(
                    "it is an animation of 16-bit colours; save each frame as a file"
                )
        return decode_halves(lambda: identify(file))


def decode_opened(image: Image.Image) -> NDArray[Any]:
    """Decode a PIL image, as `decode_file` does.

    Raises
    ------
    OSError, ValueError
        If it cannot be decoded, or only with a loss.
    """
    frames = find_frames(image)
    if len(frames) > 1 and image.tell() == 0:
        raise ValueError(
            f"it has {len(frames)} pages (or frames), of which only the first would be "
            "seen. Call image.seek(page) and pass image.copy()"
        )
    if is_deep_color(image) or _is_reduced_tiff(image):
        raise ValueError("Pillow keeps only a part of it; pass the path of the file")
    if getattr(image, "fp", None) is not None:
        check_depth(image, image.fp)  # type: ignore[attr-defined]
    return pil_to_array(image)


def _is_reduced_tiff(image: Image.Image) -> bool:
    """Return whether a PIL image holds only a part of the TIFF that it comes from."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if tags.get(_DEPTH, 1) > 1 or "\nimages=" in str(tags.get(_DESCRIPTION, "")):
        return True
    if image.mode == "F":
        return white_is_zero
    if image.mode.startswith("I"):
        return bits[0] != 16 or kinds[0] != _UNSIGNED or white_is_zero
    has_bands = _UNSPECIFIED in tags.get(_EXTRA_SAMPLES, ())
    return bits[0] > 8 or has_bands or image.mode == "LAB"


def image_size(source: EncodedSource | Image.Image) -> tuple[int, int]:
    """Return the height and width of an image after EXIF rotation."""
    if isinstance(source, Image.Image):
        return _upright_size(source)
    with open_source(source) as file:
        if is_tiff(file):
            with open_pages(file) as pages:
                return size_of(pages[pick_page(len(pages), source)])
        with identify(file) as image:
            return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if width == height:
        # Rotation does not matter, and some formats decode everything to read EXIF.
        return (height, width)
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
    return (width, height) if turned else (height, width)


def pil_to_array(image: Image.Image) -> NDArray[Any]:
    """Decode a PIL image whose mode keeps all of it."""
    image = ImageOps.exif_transpose(image)
    key = image.info.get("transparency")
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        return with_color_key(_as_16_bits(np.asarray(image)), key)
    if image.mode in ("LA", "RGBA", "L", "RGB") and key is None:
        return np.asarray(image)
    if key is not None or image.mode in ("PA", "La", "RGBa"):
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _as_16_bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Return 16-bit values, for which older versions of Pillow have 32-bit integers."""
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(
            f"it contains integers from {array.min()} to {array.max()}; expected 8 or "
            "16 bits per channel."
        )
    return array.astype(np.uint16)


def _decode_tiff(file: BinaryIO, page: Any, how: TiffPlan) -> NDArray[Any]:
    if how.decoder == "tifffile":
        array = read_with_tifffile(page)
    else:

        def reopen() -> Image.Image:
            image = identify(file)
            image.seek(page.index)
            return image

        if how.decoder == "halves":
            return decode_halves(reopen)
        array = pil_to_array(reopen())
    if how.full_scale is not None:
        array = array.astype(np.float32) / np.float32(how.full_scale)
    return invert(array) if how.invert else array
