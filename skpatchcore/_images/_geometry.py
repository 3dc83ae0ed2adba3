"""Resize and crop images for a network, and keep track of the geometry."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.nn import functional as F

from skpatchcore._images._errors import UnreadableImageError, blaming
from skpatchcore._utils import own_torch_state

# While an image is read, two copies with three float32 channels are in memory.
BYTES_PER_PIXEL = 2 * 3 * 4
# An enlarged image may be this many times as long as wide. Longer ones take minutes and
# gigabytes in a network. Results smaller than that many squares of 256 pixels do not.
_LARGEST_ASPECT, _HARMLESS_SIDE = 64, 256

#: Parameters `image_size` and `crop_size`: an int, (height, width), or None.
Size = int | tuple[int, int] | None


class Geometry(NamedTuple):
    """How an image was resized and cropped: sizes and offset (h, w) in pixels.

    `cast` is a property of the result: red minus blue, averaged over its pixels.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    cast: float = 0.0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The pairs (h, w) of numbers of pixels, without the cast."""
        return self.original, self.resized, self.offset, self.crop

    @property
    def aspect(self) -> float:
        """Height / width, in the image, of an area that is square in the input."""
        (height, width), (new_height, new_width) = self.original, self.resized
        return (height / new_height) / (width / new_width)


def resized_shape(shape: tuple[int, int], image_size: Size) -> tuple[int, int]:
    """Return the size (h, w) after resizing; an int is the length of the short side."""
    if image_size is None:
        return shape
    if isinstance(image_size, Iterable):
        return _pair(image_size)
    short, long = sorted(shape)
    scaled = (image_size, int(image_size * long / short))
    return scaled if shape[0] <= shape[1] else scaled[::-1]


def center_crop_offset(
    shape: tuple[int, int], crop_size: tuple[int, int], name: str
) -> tuple[int, int]:
    """Return the top and left of a central crop of `crop_size` (h, w)."""
    if crop_size[0] > shape[0] or crop_size[1] > shape[1]:
        raise ValueError(
            f"crop_size={crop_size} is larger than {name}, which is "
            f"{shape[0]} x {shape[1]} after resizing; lower crop_size or raise "
            "image_size."
        )
    top, left = (round((s - c) / 2) for s, c in zip(shape, crop_size, strict=True))
    return top, left


def plan_geometry(
    shape: tuple[int, int], image_size: Size, crop_size: Size, name: str = "an image"
) -> Geometry:
    """Return how an image of `shape` (h, w) is resized and cropped for the network.

    Raises
    ------
    UnreadableImageError
        If resizing would enlarge a thin image to more than 64 squares of its short side
        or of 256 pixels, or to more pixels than Pillow permits in a file.
    ValueError
        If `crop_size` is larger than the resized image.
    """
    resized = resized_shape(shape, image_size)
    with blaming(name):
        _check_resized(shape, resized, image_size, name)
    if crop_size is None:
        return Geometry(shape, resized, (0, 0), resized)
    crop = (
        _pair(crop_size) if isinstance(crop_size, Iterable) else (crop_size, crop_size)
    )
    with blaming(name):
        return Geometry(shape, resized, center_crop_offset(resized, crop, name), crop)


def _pair(size: Iterable[int]) -> tuple[int, int]:
    height, width = size
    return height, width


def _check_resized(
    shape: tuple[int, int], resized: tuple[int, int], image_size: Size, name: str
) -> None:
    """Reject an image that resizing would enlarge beyond what a network can take.

    If the short side of a very thin image is enlarged to `image_size`, the long one
    becomes enormous: 1 x 20000 pixels become 256 x 5120000.
    """
    n_pixels = resized[0] * resized[1]
    limit = _LARGEST_ASPECT * max(min(resized), _HARMLESS_SIDE) ** 2
    if Image.MAX_IMAGE_PIXELS is not None:
        limit = min(limit, Image.MAX_IMAGE_PIXELS)
    if n_pixels <= max(limit, shape[0] * shape[1]):
        return
    raise UnreadableImageError(
        f"{name} is {shape[0]} x {shape[1]}; image_size={image_size} would enlarge it "
        f"to {resized[0]} x {resized[1]}, which are {n_pixels} pixels "
        f"({n_pixels * BYTES_PER_PIXEL // 2 / 1e9:.1f} GB). Enlarged images "
        f"may have {limit} pixels. Lower image_size, pass it as (height, width), cut "
        "the image into parts, or leave it out."
    )


def resize_and_crop(
    image: torch.Tensor, geometry: Geometry, mode: str = "bilinear"
) -> torch.Tensor:
    """Resize an image (c, h, w) with antialiasing, and crop it."""
    if geometry.resized != geometry.original:
        # In floats. If the result were rounded to 8 bits, as Pillow does, a 16-bit
        # image and its 8-bit version would differ without need.
        image = F.interpolate(
            image[None], geometry.resized, mode=mode, antialias=mode == "bilinear"
        )[0]
    (top, left), (height, width) = geometry.offset, geometry.crop
    return image[:, top : top + height, left : left + width]


@own_torch_state()
def resize_masks(
    masks: Iterable[ArrayLike], image_size: Size = 256, crop_size: Size = None
) -> list[NDArray[np.bool_]]:
    """Resize and crop boolean masks (h, w) in the same way as their images.

    Parameters
    ----------
    masks : sequence of ndarray of shape (h, w)
        True (or non-zero) where defective, in the original size of the images.
    image_size, crop_size : int, tuple of int or None
        As in :class:`~skpatchcore.PatchFeatureTransformer`.

    Returns
    -------
    resized : list of ndarray of bool of shape (h, w)
    """
    resized = []
    for i, mask in enumerate(map(np.asarray, masks)):
        geometry = plan_geometry(_pair(mask.shape), image_size, crop_size, f"mask {i}")
        tensor = torch.from_numpy(mask != 0)[None].to(torch.float32)
        # Plain "nearest" selects the top left of the pixels that become one, which is
        # shifted by half a pixel relative to the resized image.
        kept = resize_and_crop(tensor, geometry, "nearest-exact")[0]
        resized.append(kept.numpy() > 0)
    return resized
