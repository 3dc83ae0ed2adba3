"""Recognise images whose red and blue are swapped, as OpenCV returns them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skpatchcore._images._input import Images

# A swap shows only if the training images have a colour cast: red minus blue, averaged
# over an image, of at least 2.5 of 255, and at least four standard deviations from 0.
_SMALLEST_CAST, _DEVIATIONS = 0.01, 4
# How much better an image must fit with its channels swapped. In five of seven classes
# of real images there is a cast. Of batches of four swapped images, 99.5 % are found
# there. Of 327 images in the right order, one is mistaken, a bottle with coloured dirt.
_RATIO = 3


def learn_cast(casts: Sequence[float]) -> NDArray[np.float64]:
    """Return the mean and standard deviation of the casts of training images."""
    return np.array([np.mean(casts), np.std(casts)])


def warn_if_swapped(
    images: Images, casts: Sequence[float], learned: NDArray[np.float64]
) -> None:
    """Warn if half of the images or more fit better with red and blue swapped.

    Parameters
    ----------
    images : Images
        The images of a pass, which remember whether this was said.
    casts : sequence of float
        Red minus blue of each of them, averaged over its pixels.
    learned : ndarray of shape (2,)
        As `learn_cast` returns it.
    """
    swapped = _are_swapped(np.asarray(casts), *learned)
    if 2 * swapped.sum() < len(swapped) or not swapped.any():
        return
    # Without what was learned, so that the detectors of several folds say the same,
    # which Python shows once.
    images.notices.say(
        f"{swapped.sum()} of {len(swapped)} images fit the training images much better "
        f"with red and blue swapped: red minus blue is {np.mean(casts):+.3f} on "
        "average, and has the opposite sign in the training images. OpenCV returns "
        "BGR; convert such arrays with cv2.cvtColor(image, cv2.COLOR_BGR2RGB), or pass "
        "paths.",
        "swapped",
    )


def _are_swapped(
    casts: NDArray[np.float64], mean: float, deviation: float
) -> NDArray[np.bool_]:
    """Return which images look like training images with red and blue swapped."""
    if abs(mean) < max(_SMALLEST_CAST, _DEVIATIONS * deviation):
        return np.zeros(len(casts), dtype=bool)
    as_given, as_swapped = abs(casts - mean), abs(casts + mean)
    close = as_swapped <= max(_DEVIATIONS * deviation, _SMALLEST_CAST / 2)
    return close & (_RATIO * as_swapped < as_given)
