"""Pixels in any accepted form as RGB, or as the channels of a network, in [0, 1]."""

import numpy as np
from numpy.typing import NDArray

from skpatchcore._images._containers import may_be_channels
from skpatchcore._utils import warn_user

# Images that the user has resampled may exceed [0, 1] slightly, by rounding.
_RANGE_TOLERANCE = 1e-4
# Grey from RGB, as in ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Notices:
    """What is said at most once about the images of a call."""

    def __init__(self) -> None:
        self._transparent: set[str] = set()
        self._said: set[str] = set()

    def add_transparent(self, name: str) -> None:
        """Remember that an image has transparent pixels."""
        # A stream may have no end, so nothing is remembered that will not be said.
        if "transparent" not in self._said:
            self._transparent.add(name)

    def warn_of_transparent(self) -> None:
        """Warn of the images that were remembered."""
        n = len(self._transparent)
        if n:
            self.say(
                f"{n} {'image has' if n == 1 else 'images have'} transparent pixels, "
                f"for example {min(self._transparent)}. They are shown on black, and "
                "the colours hidden there are not used. For another background, "
                "flatten the images before you pass them.",
                "transparent",
            )

    def say(self, message: str, kind: str) -> None:
        """Warn, unless a message of this kind was given before."""
        if kind not in self._said:
            self._said.add(kind)
            warn_user(message)


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
    notices: Notices | None = None,
    n_channels: int | None = None,
) -> NDArray[np.float32]:
    """Return an image (h, w[, c]) as float32 (h, w, c) in [0, 1].

    Parameters
    ----------
    array : ndarray
    name : str
        For messages.
    notices : Notices or None
        Notes whether the image has transparent pixels, which are shown on black.
    n_channels : int or None
        Channels that a network takes. None returns RGB, or all channels of an image
        that has more than four.

    Raises
    ------
    ValueError
        If it is not an image, or does not have the channels of the network.
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
    image = _without_alpha(image, name, notices)
    if n_channels == 1:
        return image if image.shape[2] == 1 else image @ _LUMA[:, np.newaxis]
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _without_alpha(image: NDArray, name: str, notices: Notices | None) -> NDArray:
    """Return grey or RGB (h, w, 1 or 3) of an image of up to four channels."""
    n_colors = 3 if image.shape[2] >= 3 else 1
    colors, alpha = image[:, :, :n_colors], image[:, :, n_colors:]
    if alpha.size and alpha.min() < 1:
        colors = colors * alpha
        if notices is not None:
            notices.add_transparent(name)
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
