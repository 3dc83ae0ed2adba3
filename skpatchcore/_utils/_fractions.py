"""Counts and quantiles from fractions, interpreted as decimal numbers.

In binary, 0.29 * 100 is 28.999999999999996 and 0.07 * 100 is 7.000000000000001. Rounded
down or up, these would give 28 and 8 instead of 29 and 7. So a product that differs
from a whole number only by rounding counts as that number.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

# In units of the last place, the error of a literal is 0.5, that of a difference such
# as 1 - 0.9 is 1 or 2, and the product adds another 0.5.
_ROUNDING_UNITS = 4


def floor_fraction(fraction: float, n: int) -> int:
    """Return `fraction` of `n`, rounded down.

    >>> floor_fraction(0.29, 100), floor_fraction(0.29, 99)
    (29, 28)
    """
    return math.floor(_product(fraction, n))


def ceil_fraction(fraction: float, n: int) -> int:
    """Return `fraction` of `n`, rounded up.

    >>> ceil_fraction(0.07, 100), ceil_fraction(0.07, 101)
    (7, 8)
    """
    return math.ceil(_product(fraction, n))


def lower_quantile(values: ArrayLike, fraction: float) -> float:
    """Return the quantile of `values` with `fraction` of them below it.

    It interpolates linearly, as ``numpy.quantile`` does. If the fraction falls on one
    of the values, it returns exactly that value: rounding must not move the quantile
    past it.

    >>> lower_quantile([3.0, 0.0, 2.0, 1.0], 1 / 3)
    1.0
    """
    array = np.asarray(values)
    position = _product(fraction, len(array) - 1)
    if position == int(position):
        return float(np.partition(array, int(position))[int(position)])
    return float(np.quantile(array, float(fraction)))


def upper_quantile(values: ArrayLike, fraction: float) -> float:
    """Return the quantile of `values` with `fraction` of them above it.

    >>> upper_quantile([3.0, 0.0, 2.0, 1.0], 1 / 3)
    2.0
    """
    return -lower_quantile(-np.asarray(values), fraction)


def _product(fraction: float, n: int) -> float:
    """Return `fraction` times `n`, corrected to a whole number within rounding."""
    kind = type(fraction) if isinstance(fraction, np.floating) else float
    product = float(fraction) * n
    nearest = round(product)
    tolerance = _ROUNDING_UNITS * float(np.finfo(kind).eps) * product
    return float(nearest) if abs(product - nearest) <= tolerance else product
