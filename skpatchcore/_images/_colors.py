"""Recognise images whose red and blue are swapped, as OpenCV returns them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skpatchcore._images._input import Images

_REMEDY = (
    "OpenCV returns BGR; convert such arrays with cv2.cvtColor(image, "
    "cv2.COLOR_BGR2RGB), or pass paths."
)
# In fewer training images in either order, casts may be alike by chance.
_FEWEST_SWAPPED, _FEWEST_OTHERS = 2, 5


class Limits(NamedTuple):
    """What is required to call an image swapped.

    Parameters
    ----------
    smallest : float
        The training images must have a mean cast of this size.
    deviations : float
        Their mean cast must be this many standard deviations from 0. The cast of a
        swapped image must be as close to the mean with the opposite sign.
    ratio : float
        How much better an image must fit with its channels swapped.
    """

    smallest: float
    deviations: float
    ratio: float


# Measured by tests/benchmarks/bench_swapped_colors.py. In five of seven classes of real
# images there is a cast of at least 2.5 of 255. Of batches of four swapped images,
# 99.5 % are found there. Of 327 images in the right order, one is mistaken, a bottle
# with coloured dirt.
LIMITS = Limits(smallest=0.01, deviations=4, ratio=3)


def learn_cast(casts: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """Return the mean and standard deviation of the casts of training images."""
    return np.array([np.mean(casts), np.std(casts)])


def warn_if_swapped(
    images: Images, casts: Sequence[float] | NDArray, learned: NDArray[np.float64]
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
    swapped = are_swapped(np.asarray(casts), *learned)
    if 2 * swapped.sum() < len(swapped) or not swapped.any():
        return
    # Without what was learned, so that the detectors of several folds say the same,
    # which Python shows once.
    images.notices.say(
        f"{swapped.sum()} of {len(swapped)} images fit the training images much better "
        f"with red and blue swapped: red minus blue is {np.mean(casts):+.3f} on "
        f"average, and has the opposite sign in the training images. {_REMEDY}",
        "swapped",
    )


def warn_if_mixed(images: Images, casts: Sequence[float] | NDArray) -> None:
    """Warn if a part of the training images looks like the rest with channels swapped.

    The images fall into two groups by the sign of their cast. Half of the smaller one
    or more must look swapped to the larger one.

    Parameters
    ----------
    images : Images
        The training images, which remember whether this was said.
    casts : sequence of float
        As for `warn_if_swapped`.
    """
    positive = np.asarray(casts) > 0
    groups = [np.asarray(casts)[sign] for sign in (positive, ~positive)]
    fewer, more = sorted(groups, key=len)
    if len(more) < _FEWEST_OTHERS:
        return
    swapped = are_swapped(fewer, *learn_cast(more))
    if swapped.sum() < max(_FEWEST_SWAPPED, len(swapped) / 2):
        return
    images.notices.say(
        f"{swapped.sum()} of {len(positive)} training images look like the others with "
        "red and blue swapped: red minus blue has the opposite sign, and about the "
        f"same size. {_REMEDY} If the parts have two colours, fit a detector for each.",
        "mixed",
    )


def are_swapped(
    casts: NDArray[np.float64], mean: float, deviation: float, limits: Limits = LIMITS
) -> NDArray[np.bool_]:
    """Return which images look like training images with red and blue swapped."""
    smallest, deviations, ratio = limits
    if abs(mean) < max(smallest, deviations * deviation):
        return np.zeros(len(casts), dtype=bool)
    as_given, as_swapped = abs(casts - mean), abs(casts + mean)
    close = as_swapped <= max(deviations * deviation, smallest / 2)
    return close & (ratio * as_swapped < as_given)
