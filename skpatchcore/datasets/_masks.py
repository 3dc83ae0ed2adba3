"""Read ground-truth masks, and check that they fit their images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpatchcore._images import (
    EncodedSource,
    ImagePage,
    as_encoded,
    image_size,
    is_file,
    open_image,
)
from skpatchcore._utils import missing_name
from skpatchcore.datasets._image_search import image_files


def read_masks(
    masks: Sequence[Any] | NDArray, data: Sequence[Any] | NDArray
) -> list[NDArray[np.bool_]]:
    """Read the segmentation masks of images as boolean arrays.

    Use it to get the ground truth for pixel-level metrics. An image without a mask
    counts as free of defects. Before you measure anything per pixel, leave out
    defective images that have no mask.

    Parameters
    ----------
    masks : sequence of length n_images
        For each image, the path of its mask, an encoded mask (bytes or BytesIO with the
        contents of a file), an array (h, w), or None for no defect. An empty string,
        NaN, NaT, ``pandas.NA`` and PyArrow's null, which tables have instead, count as
        None.
        Every pixel above 0 is defective. JPEG files do not preserve zeros exactly, so
        for them the limit is 127. Alpha channels are ignored. If a path is a folder,
        the defects of all masks in it are combined.
    data : sequence of length n_images
        The images, as paths, encoded images, PIL images or arrays (h, w) or (h, w, c).
        Only their size is used, after the rotation given in their EXIF data.

    Returns
    -------
    list of ndarray of bool of shape (h, w)
        True where the image is defective. Each mask has the size of its image; sizes
        may differ.

    Raises
    ------
    ValueError
        If the numbers of masks and images differ, if a mask does not have the size of
        its image, or if its path is the current folder.

    See Also
    --------
    load_mvtec_ad : Load images and masks in the layout of MVTec AD.
    load_image_folder : Load images and masks from your own folder.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.datasets import read_masks
    >>> images = np.zeros((2, 32, 48, 3), dtype=np.uint8)
    >>> scratch = np.zeros((32, 48), dtype=np.uint8)
    >>> scratch[8, 10:20] = 255
    >>> masks = read_masks([None, scratch], images)
    >>> [int(mask.sum()) for mask in masks]
    [0, 10]
    """
    if len(masks) != len(data):
        raise ValueError(
            f"Got {len(masks)} masks for {len(data)} images; expected one entry per "
            "image, None where there is no defect."
        )
    pairs = zip(masks, data, strict=True)
    return [_fitting_mask(mask, image, i) for i, (mask, image) in enumerate(pairs)]


def _fitting_mask(mask: Any, image: Any, i: int) -> NDArray[np.bool_]:
    """Return a mask after checking that it has the size of its image."""
    mask, image = as_encoded(mask), as_encoded(image)
    shape = _image_shape(image)
    if _is_missing(mask):
        return np.zeros(shape, dtype=bool)
    if is_file(mask) and os.path.normpath(str(mask)) == os.curdir:
        raise ValueError(
            f"Mask {i} is the current folder, which is also what Path('') means. Pass "
            "None for an image without defects."
        )
    is_encoded = is_file(mask) or isinstance(mask, bytes)
    defective = _read_mask(mask) if is_encoded else np.asarray(mask) > 0
    if defective.shape != shape:
        raise ValueError(
            f"Mask and image differ in size: {_name(mask, 'mask', i)} has shape "
            f"{defective.shape} (h, w), {_name(image, 'image', i)} has {shape}."
        )
    return defective


def _is_missing(mask: Any) -> bool:
    """Return whether there is no mask: None, empty text, or a table's missing value."""
    is_empty_text = isinstance(mask, str) and not mask.strip()
    return is_empty_text or missing_name(mask) is not None


def _read_mask(source: EncodedSource) -> NDArray[np.bool_]:
    if isinstance(source, ImagePage | bytes) or not os.path.isdir(source):
        return _read_mask_file(source)
    files = image_files(Path(source))
    if not files:
        raise ValueError(
            f"Found no mask in the folder {source}; expected at least one image file. "
            "Pass None for an image without defects."
        )
    return np.logical_or.reduce([_read_mask_file(file) for file in files])


def _read_mask_file(source: EncodedSource) -> NDArray[np.bool_]:
    with open_image(source) as image:
        threshold = 127 if image.format == "JPEG" else 0
        # A palette index does not show whether its colour is black.
        is_palette = image.mode in ("P", "PA")
        values: NDArray = np.asarray(image.convert("RGB") if is_palette else image)
        if image.mode in ("LA", "RGBA"):
            values = values[:, :, :-1]
    defective: NDArray[np.bool_] = values > threshold
    if defective.ndim == 3:
        return np.logical_or.reduce(defective, axis=2)
    return defective


def _image_shape(source: Any) -> tuple[int, int]:
    """Return the size (h, w) of an image after EXIF rotation."""
    if is_file(source) or isinstance(source, bytes | Image.Image):
        return image_size(source)
    height, width, *_ = np.shape(source)
    return height, width


def _name(source: Any, kind: str, i: int) -> str:
    return f"{kind} {i} ({source})" if is_file(source) else f"{kind} {i}"
