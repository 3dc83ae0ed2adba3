"""Read ground-truth masks, and check that they fit their pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from skpatchcore._image_files import open_image
from skpatchcore.datasets._listing import list_pictures

# EXIF orientations 5 to 8 swap height and width (EXIF 2.32, section 4.6.4).
_TRANSPOSED = (5, 6, 7, 8)


def read_masks(masks: Sequence, data: Sequence) -> list[np.ndarray]:
    """Read the masks of pictures as boolean arrays.

    What the pixel-level metrics compare anomaly maps with. A picture without a mask
    counts as free of defects: leave out defective pictures that have none before you
    measure anything per pixel.

    Parameters
    ----------
    masks : sequence of length n_pictures
        For each picture the path of its mask, an array (h, w), or None for no defect.
        In a file or array every pixel above 0 is defective (in JPEG files, which do not
        keep zeros exactly, above 127); alpha channels are ignored. Of a folder the
        defects in all the masks inside are united.
    data : sequence of length n_pictures
        The pictures themselves, as paths, PIL images or arrays (h, w) or (h, w, c).
        Only their size is used, after the rotation that their EXIF data ask for.

    Returns
    -------
    list of ndarray of bool of shape (h, w)
        True where defective, each in the size of its picture, which may vary.

    Raises
    ------
    ValueError
        If the numbers of masks and of pictures differ, or a mask and its picture differ
        in size.

    See Also
    --------
    load_mvtec_ad : Load pictures and masks in the layout of MVTec AD.
    load_image_folder : Load pictures and masks from a folder of your own.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.datasets import read_masks
    >>> pictures = np.zeros((2, 32, 48, 3), dtype=np.uint8)
    >>> scratch = np.zeros((32, 48), dtype=np.uint8)
    >>> scratch[8, 10:20] = 255
    >>> masks = read_masks([None, scratch], pictures)
    >>> [int(mask.sum()) for mask in masks]
    [0, 10]
    """
    if len(masks) != len(data):
        raise ValueError(
            f"Got {len(masks)} masks for {len(data)} pictures; expected one entry a "
            "picture, None where there is no defect."
        )
    pairs = zip(masks, data, strict=True)
    return [_fitting_mask(mask, picture, i) for i, (mask, picture) in enumerate(pairs)]


def _fitting_mask(mask, picture, i: int) -> np.ndarray:
    """Return a mask in the size of its picture."""
    shape = _picture_shape(picture)
    if mask is None:
        return np.zeros(shape, dtype=bool)
    defective = _read_mask(Path(mask)) if _is_path(mask) else np.asarray(mask) > 0
    if defective.shape != shape:
        raise ValueError(
            f"Mask and picture differ in size: {_name(mask, 'mask', i)} has shape "
            f"{defective.shape} (h, w), {_name(picture, 'picture', i)} has {shape}."
        )
    return defective


def _read_mask(path: Path) -> np.ndarray:
    if not path.is_dir():
        return _read_mask_file(path)
    files = list_pictures(path)
    if not files:
        raise ValueError(f"Found no mask in the folder {path}.")
    return np.logical_or.reduce([_read_mask_file(file) for file in files])


def _read_mask_file(path: Path) -> np.ndarray:
    with open_image(path) as image:
        threshold = 127 if image.format == "JPEG" else 0
        # Indices into a palette say nothing about which entry is black.
        image = image.convert("RGB") if image.mode in ("P", "PA") else image
        values = np.asarray(image)
        if image.mode in ("LA", "RGBA"):
            values = values[:, :, :-1]
    defective = values > threshold
    return defective.any(axis=2) if defective.ndim == 3 else defective


def _picture_shape(picture) -> tuple[int, int]:
    """Return the size (h, w) of a picture as it is shown."""
    if _is_path(picture):
        with open_image(picture) as image:
            return _upright_shape(image)
    if isinstance(picture, Image.Image):
        return _upright_shape(picture)
    return np.shape(picture)[:2]


def _upright_shape(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if width == height:
        return (height, width)  # Some formats are decoded before they tell their EXIF.
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
    return (width, height) if turned else (height, width)


def _is_path(source) -> bool:
    return isinstance(source, (str, os.PathLike))


def _name(source, kind: str, i: int) -> str:
    return f"{kind} {i} ({os.fspath(source)})" if _is_path(source) else f"{kind} {i}"
