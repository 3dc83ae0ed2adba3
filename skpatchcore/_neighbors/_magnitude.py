"""Check that squared distances stay in the range of a dtype, and avoid overflow."""

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import row_norms

# Bounds of the largest absolute value between which squared distances keep their
# digits. In float32, products of any realistic number of features do not overflow, and
# squares of distances down to a millionth of the largest value stay normal numbers.
_FLOAT32_RANGE = (1e-12, 1e15)
# In float64, the same holds for sums over 1e27 features, and for differences down to
# the last digit of the largest value.
_FLOAT64_RANGE = (1e-130, 1e140)
# Lengths of rows that float32 represents to its last digits.
_SAFE_LENGTHS = (1e-15, 1e15)


def check_squares(X: NDArray) -> bool:
    """Return whether squares of differences in `X` keep their digits in its dtype.

    Raises
    ------
    ValueError
        If they would not keep them in float64 either.
    """
    largest = _largest(X)
    if X.dtype == np.float32:
        return _within(largest, _FLOAT32_RANGE)
    if _within(largest, _FLOAT64_RANGE):
        return True
    low, high = _FLOAT64_RANGE
    raise ValueError(
        f"Squared distances between the rows of X would {_fate(largest)}: its largest "
        f"absolute value is {largest:.3g}. Values in float64 are accepted if the "
        f"largest is from {low:.0e} to {high:.0e}, or if all are 0. Scale the features."
    )


def with_safe_squares(X: NDArray) -> NDArray:
    """Return `X`, converted to float64 if squares of differences need its range.

    Every float32 value fits: the smallest, 1e-45, has the square 1e-90. So no distance
    changes, and only data of an unusual scale take more time and memory.

    Raises
    ------
    ValueError
        If the range of float64 is not sufficient either.
    """
    return X if check_squares(X) else X.astype(np.float64)


def fits_float32(X: NDArray) -> bool:
    """Return whether products of rows of `X` stay in the range of float32."""
    return _within(_largest(X), _FLOAT32_RANGE)


def check_finite(squared: NDArray, queries: NDArray) -> None:
    """Check that the squared distances of `queries` did not overflow.

    Raises
    ------
    ValueError
        If they did. The message names the largest value of the queries.
    """
    if np.isfinite(squared).all():
        return
    raise ValueError(
        "Squared distances to the bank overflow: the largest absolute value of X is "
        f"{_largest(queries):.3g}, and values up to {_FLOAT64_RANGE[1]:.0e} are "
        "accepted. Scale the features in the same way as those of the training samples."
    )


def unit_rows(X: NDArray) -> NDArray:
    """Scale the rows of `X` to unit length; rows of zeros do not change.

    Rows whose squares leave the range of the dtype are first scaled to a largest value
    of 1, in float64, so that they keep their direction.
    """
    lengths = row_norms(X)
    plain = (lengths > _SAFE_LENGTHS[0]) & (lengths < _SAFE_LENGTHS[1])
    rows = X / np.where(plain, lengths, 1)[:, None]
    odd = np.flatnonzero(~plain)
    largest = np.abs(X[odd]).max(axis=1, initial=0)
    odd, largest = odd[largest > 0], largest[largest > 0, None].astype(np.float64)
    # Divide: the reciprocal of a subnormal number would overflow.
    scaled = X[odd] / largest
    rows[odd] = scaled / row_norms(scaled)[:, None]
    return rows


def _largest(X: NDArray) -> float:
    return float(max(X.max(), -X.min()))


def _within(largest: float, limits: tuple[float, float]) -> bool:
    return largest == 0 or limits[0] <= largest <= limits[1]


def _fate(largest: float) -> str:
    return "overflow" if largest > 1 else "underflow"
