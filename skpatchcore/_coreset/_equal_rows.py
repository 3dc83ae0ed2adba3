"""Find rows of a matrix that are equal to earlier rows."""

import numpy as np
from numpy.typing import NDArray

# Elements processed at a time: few enough to stay in the CPU's caches.
_BLOCK_ELEMENTS = 2**17


def first_equal_rows(X: NDArray) -> NDArray[np.int64]:
    """Return for each row of `X` the first row with the same values.

    For a row without an earlier copy, that is the row itself. Rows are compared only
    with the first row that has the same 64-bit key. Two different rows share a key in
    about one of 1e19 pairs. They are still recognised as different, but a copy of the
    later one may then be missed.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64

    Returns
    -------
    first : ndarray of shape (n,), int64
    """
    _, first, inverse = np.unique(_keys(X), return_index=True, return_inverse=True)
    first = first[inverse]
    later = np.flatnonzero(first != np.arange(len(X)))
    step = max(1, _BLOCK_ELEMENTS // X.shape[1])
    for part in np.split(later, range(step, len(later), step)):
        different = part[(X[part] != X[first[part]]).any(axis=1)]
        first[different] = different
    return first


def _keys(X: NDArray) -> NDArray[np.uint64]:
    """Return a key (n,) for each row, which depends only on the values in the row."""
    # Read two float32 values as one word if the row length allows it.
    word = np.dtype(np.uint64 if X.shape[1] * X.itemsize % 8 == 0 else np.uint32)
    n_words = X.shape[1] * X.itemsize // word.itemsize
    weights = np.random.default_rng(0).integers(2**64, size=n_words, dtype=np.uint64)
    keys = np.empty(len(X), dtype=np.uint64)
    step = max(1, _BLOCK_ELEMENTS // X.shape[1])
    for start in range(0, len(X), step):
        # -0.0 equals 0.0 but has different bits; adding 0 turns it into 0.0.
        words = (np.ascontiguousarray(X[start : start + step]) + 0).view(word)
        # The sign bit is 2^63. Without mixing, two changed signs would cancel, because
        # 2^63 times the sum of two odd weights is a multiple of 2^64.
        mixed = words ^ (words >> word.type(4 * word.itemsize))
        keys[start : start + step] = mixed.astype(np.uint64, copy=False) @ weights
    return keys
