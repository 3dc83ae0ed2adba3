"""How images are resized and cropped for a network."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from skpatchcore._images._errors import UnreadableImageError, blaming
from skpatchcore._utils import own_torch_state

# While it is read, an image is held twice in floats of three channels.
BYTES_PER_PIXEL = 2 * 3 * 4


class Geometry(NamedTuple):
    """How an image became the network's input; sizes and offsets in pixels."""

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]

    @property
    def aspect(self) -> float:
        """Height over width that a square of the input has in the image."""
        (height, width), (new_height, new_width) = self.original, self.resized
        return (height / new_height) / (width / new_width)


def resized_shape(shape: tuple[int, int], image_size) -> tuple[int, int]:
    """Return the size (h, w) after resizing; an int is the length of the short side."""
    if image_size is None:
        return shape
    if not np.isscalar(image_size):
        return tuple(image_size)
    short, long = sorted(shape)
    scaled = (image_size, int(image_size * long / short))
    return scaled if shape[0] <= shape[1] else scaled[::-1]


def center_crop_offset(shape, crop_size, name: str) -> tuple[int, int]:
    """Return the top and left of a central crop of `crop_size` (h, w)."""
    if crop_size[0] > shape[0] or crop_size[1] > shape[1]:
        raise ValueError(
            f"crop_size={crop_size} is larger than {name}, which is "
            f"{shape[0]} x {shape[1]} after resizing; lower crop_size or raise "
            "image_size."
        )
    return tuple(round((s - c) / 2) for s, c in zip(shape, crop_size, strict=True))


def plan_geometry(shape, image_size, crop_size, name: str = "an image") -> Geometry:
    """Return where an image of `shape` (h, w) ends up in the network's input.

    Raises
    ------
    UnreadableImageError
        If resizing would make more pixels than Pillow permits in a file.
    ValueError
        If `crop_size` is larger than the resized image.
    """
    resized = resized_shape(shape, image_size)
    with blaming(name):
        _check_resized(shape, resized, image_size, name)
    if crop_size is None:
        return Geometry(shape, resized, (0, 0), resized)
    crop = (crop_size, crop_size) if np.isscalar(crop_size) else tuple(crop_size)
    with blaming(name):
        return Geometry(shape, resized, center_crop_offset(resized, crop, name), crop)


def _check_resized(shape, resized, image_size, name: str) -> None:
    """Refuse to make an image so large that it would be refused as a file.

    The short side of a very thin image, at `image_size`, makes the long one enormous:
    of 1 x 20000 pixels, 256 x 5120000.
    """
    limit = Image.MAX_IMAGE_PIXELS
    n_pixels = resized[0] * resized[1]
    if limit is None or n_pixels <= max(limit, shape[0] * shape[1]):
        return
    raise UnreadableImageError(
        f"{name} is {shape[0]} x {shape[1]}; image_size={image_size} would resize it "
        f"to {resized[0]} x {resized[1]}, which are {n_pixels} pixels "
        f"({n_pixels * BYTES_PER_PIXEL // 2 / 1e9:.1f} GB). The limit is {limit} "
        "pixels, PIL.Image.MAX_IMAGE_PIXELS. Lower image_size, give it as (height, "
        "width), cut the image into parts, or leave it out."
    )


def resize_and_crop(
    image: torch.Tensor, geometry: Geometry, mode: str = "bilinear"
) -> torch.Tensor:
    """Resize, with antialiasing, and crop an image (c, h, w)."""
    if geometry.resized != geometry.original:
        # Floats throughout: rounding to 8 bits after resizing, as Pillow does, would
        # make a 16-bit image and its 8-bit twin differ for no reason.
        image = F.interpolate(
            image[None], geometry.resized, mode=mode, antialias=mode == "bilinear"
        )[0]
    (top, left), (height, width) = geometry.offset, geometry.crop
    return image[:, top : top + height, left : left + width]


@own_torch_state()
def resize_masks(masks, image_size=256, crop_size=None) -> list[np.ndarray]:
    """Return boolean masks (h, w) resized and cropped as their images are.

    Parameters
    ----------
    masks : sequence of ndarray of shape (h, w)
        True (or non-zero) where defective, in the images' own size.
    image_size, crop_size : int, tuple of int or None
        As in :class:`~skpatchcore.PatchFeatureTransformer`.

    Returns
    -------
    resized : list of ndarray of bool of shape (h, w)
    """
    resized = []
    for i, mask in enumerate(map(np.asarray, masks)):
        geometry = plan_geometry(mask.shape, image_size, crop_size, f"mask {i}")
        tensor = torch.from_numpy(mask != 0)[None].to(torch.float32)
        # Plain "nearest" takes the top left pixel of those that become one, half a
        # pixel off from where the images' are.
        kept = resize_and_crop(tensor, geometry, "nearest-exact")[0]
        resized.append(kept.numpy() > 0)
    return resized
