"""Pixels in any accepted form as RGB, or as the channels of a network, in [0, 1]."""

import warnings

import numpy as np
from numpy.typing import NDArray

from skpatchcore._images._containers import may_be_channels

# Images that the user has resampled may exceed [0, 1] slightly, by rounding.
_RANGE_TOLERANCE = 1e-4
# Grey from RGB, as in ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Transparency:
    """Which images of a call have transparent pixels; said once for all of them."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._was_said = False

    def add(self, name: str) -> None:
        """Remember that an image has transparent pixels."""
        self._names.add(name)

    def warn(self) -> None:
        """Warn of what was remembered, unless that has already been done."""
        if not self._names or self._was_said:
            return
        self._was_said = True
        n = len(self._names)
        warnings.warn(
            f"{n} {'image has' if n == 1 else 'images have'} transparent pixels, for "
            f"example {min(self._names)}. They are shown on black, whatever colour is "
            "hidden there. For another background, flatten the images before you pass "
            "them.",
            stacklevel=3,
        )


def check_array(array: NDArray, name: str) -> None:
    """Raise if the shape or dtype of an array is not that of an image."""
    if array.ndim not in (2, 3) or (
        array.ndim == 3 and not may_be_channels(array.shape[2], *array.shape[:2])
    ):
        raise ValueError(
            f"{name} has shape {array.shape}; expected (h, w) or (h, w, c) with c = 1 "
            "(grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels, or more for a "
            "network that takes them; torch tensors have their channels first."
        )
    if array.size == 0:
        raise ValueError(f"{name} has no pixels: shape {array.shape}.")
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind != "f" and not (kind == "u" and size <= 2):
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected uint8, uint16 or float in "
            "[0, 1]."
        )


def to_pixels(
    array: NDArray,
    name: str,
    transparency: Transparency | None = None,
    n_channels: int | None = None,
) -> NDArray[np.float32]:
    """Return an image (h, w[, c]) as float32 (h, w, c) in [0, 1].

    Parameters
    ----------
    array : ndarray
    name : str
        For messages.
    transparency : Transparency or None
        Notes whether the image has transparent pixels, which are shown on black.
    n_channels : int or None
        Channels that a network takes. None returns RGB, or all channels of an image
        that has more than four.

    Raises
    ------
    ValueError
        If it is no image, or does not have the channels of the network.
    """
    check_array(array, name)
    image = array.astype(np.float32)
    if array.dtype.kind == "f":
        _check_range(array, name)
    else:
        image /= np.float32(np.iinfo(array.dtype).max)
    image = image[:, :, np.newaxis] if image.ndim == 2 else image
    n_given = image.shape[2]
    if n_given == n_channels or (n_channels is None and n_given > 4):
        return image
    if n_given > 4 or n_channels not in (None, 1, 3):
        raise ValueError(
            f"{name} has {n_given} channels, but the network takes {n_channels}. If "
            "that is not so, set the attribute in_chans of your network to the number "
            "of channels that it takes."
        )
    image = _without_alpha(image, name, transparency)
    if n_channels == 1:
        return image if image.shape[2] == 1 else image @ _LUMA[:, np.newaxis]
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _without_alpha(
    image: NDArray, name: str, transparency: Transparency | None
) -> NDArray:
    """Return grey or RGB (h, w, 1 or 3) of an image of up to four channels."""
    n_colors = 3 if image.shape[2] >= 3 else 1
    colors, alpha = image[:, :, :n_colors], image[:, :, n_colors:]
    if alpha.size and alpha.min() < 1:
        colors = colors * alpha
        if transparency is not None:
            transparency.add(name)
    return colors


def _check_range(array: NDArray, name: str) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} contains NaN or infinity.")
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ValueError(
            f"{name} contains floats from {low:.4g} to {high:.4g}; expected [0, 1]. "
            "Divide by the largest possible value, or convert to uint8 or uint16."
        )
