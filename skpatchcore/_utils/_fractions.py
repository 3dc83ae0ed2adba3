"""Counts and quantiles from fractions, read as the decimals that users write.

In binary, 0.29 * 100 is 28.999999999999996, and 0.07 * 100 is 7.000000000000001: cut
off or rounded up as they are, these would give 28 and 8. So a product that is a whole
number but for the rounding of its factors counts as that number.
"""

import math
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

# A literal is off by half a unit in the last place, a difference such as 1 - 0.9 by one
# or two, and their product by half a unit more.
_ROUNDING_UNITS = 4


def floor_fraction(fraction: Real, n: int) -> int:
    """Return `fraction` of `n`, rounded down.

    >>> floor_fraction(0.29, 100), floor_fraction(0.29, 99)
    (29, 28)
    """
    return math.floor(_product(fraction, n))


def ceil_fraction(fraction: Real, n: int) -> int:
    """Return `fraction` of `n`, rounded up.

    >>> ceil_fraction(0.07, 100), ceil_fraction(0.07, 101)
    (7, 8)
    """
    return math.ceil(_product(fraction, n))


def lower_quantile(values: ArrayLike, fraction: Real) -> float:
    """Return the quantile of `values` with `fraction` of them below it.

    As ``numpy.quantile`` (linear interpolation), but exactly one of the values where
    the fraction meets one: rounding must not move it past that value.

    >>> lower_quantile([3.0, 0.0, 2.0, 1.0], 1 / 3)
    1.0
    """
    values = np.asarray(values)
    position = _product(fraction, len(values) - 1)
    if position == int(position):
        return float(np.partition(values, int(position))[int(position)])
    return float(np.quantile(values, float(fraction)))


def upper_quantile(values: ArrayLike, fraction: Real) -> float:
    """Return the quantile of `values` with `fraction` of them above it.

    >>> upper_quantile([3.0, 0.0, 2.0, 1.0], 1 / 3)
    2.0
    """
    return -lower_quantile(-np.asarray(values), fraction)


def _product(fraction: Real, n: int) -> float:
    """Return `fraction` times `n`, as a whole number where only rounding hides it."""
    kind = type(fraction) if isinstance(fraction, np.floating) else float
    product = float(fraction) * n
    nearest = round(product)
    tolerance = _ROUNDING_UNITS * float(np.finfo(kind).eps) * product
    return float(nearest) if abs(product - nearest) <= tolerance else product
