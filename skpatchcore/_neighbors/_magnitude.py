"""The range of numbers in which squared distances are right, and what leaves it."""

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import row_norms

# Largest absolute values, within which squared distances keep their digits. Products in
# float32 neither overflow, over any number of features in use, nor sink below the
# smallest normal number where distances are a millionth of the largest value.
_FLOAT32_RANGE = (1e-12, 1e15)
# Squares in float64 hold what differences to the last digit of the largest value give,
# and sums over 1e27 features.
_FLOAT64_RANGE = (1e-130, 1e140)
# Lengths of rows that float32 gives to its last digits.
_SAFE_LENGTHS = (1e-15, 1e15)


def check_squares(X: NDArray) -> bool:
    """Return whether squares of differences in `X` keep their digits in its dtype.

    Raises
    ------
    ValueError
        If they would not do so in float64 either.
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
    """Return `X`, in float64 where squares of differences need its range.

    Every float32 fits in: 1e-45 squared is 1e-90. So no distance changes by that, and
    only data in an unusual unit pay for it.

    Raises
    ------
    ValueError
        If not even float64 has the range.
    """
    return X if check_squares(X) else X.astype(np.float64)


def fits_float32(X: NDArray) -> bool:
    """Return whether products of rows of `X` are in the range of float32."""
    return _within(_largest(X), _FLOAT32_RANGE)


def check_finite(squared: NDArray, queries: NDArray) -> None:
    """Raise if squared distances of `queries` overflowed.

    Raises
    ------
    ValueError
        With the largest value of the queries.
    """
    if np.isfinite(squared).all():
        return
    raise ValueError(
        "Squared distances to the bank overflow: the largest absolute value of X is "
        f"{_largest(queries):.3g}, and values up to {_FLOAT64_RANGE[1]:.0e} are "
        "accepted. Scale the features as those of the training samples are scaled."
    )


def unit_rows(X: NDArray) -> NDArray:
    """Return the rows of `X` brought to unit length; zero rows stay as they are.

    Rows whose squares leave the range of the dtype are brought to a largest value of 1
    first, in float64, so that each has the direction it came with.
    """
    lengths = row_norms(X)
    plain = (lengths > _SAFE_LENGTHS[0]) & (lengths < _SAFE_LENGTHS[1])
    rows = X / np.where(plain, lengths, 1)[:, None]
    odd = np.flatnonzero(~plain)
    largest = np.abs(X[odd]).max(axis=1, initial=0)
    odd, largest = odd[largest > 0], largest[largest > 0, None].astype(np.float64)
    # Subnormal numbers have no reciprocal, but quotients.
    scaled = X[odd] / largest
    rows[odd] = scaled / row_norms(scaled)[:, None]
    return rows


def _largest(X: NDArray) -> float:
    return float(max(X.max(), -X.min()))


def _within(largest: float, limits: tuple[float, float]) -> bool:
    return largest == 0 or limits[0] <= largest <= limits[1]


def _fate(largest: float) -> str:
    return "overflow" if largest > 1 else "underflow"
