"""Rows of a matrix that are equal to earlier ones."""

import numpy as np
from numpy.typing import NDArray

# Elements looked at at a time: few enough for caches.
_BLOCK_ELEMENTS = 2**17


def first_equal_rows(X: NDArray) -> NDArray[np.int64]:
    """Return for each row of `X` the first row with the same values: itself, mostly.

    Rows are compared only with the first row of the same 64-bit key. Different rows
    share a key once in some 1e19 pairs; they are told apart, but a copy of the later
    one may then go unnoticed.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
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
    """Return a number for each row that depends on the values in it alone."""
    # Two float32 at a time where they come in pairs.
    word = np.dtype(np.uint64 if X.shape[1] * X.itemsize % 8 == 0 else np.uint32)
    n_words = X.shape[1] * X.itemsize // word.itemsize
    weights = np.random.default_rng(0).integers(2**64, size=n_words, dtype=np.uint64)
    keys = np.empty(len(X), dtype=np.uint64)
    step = max(1, _BLOCK_ELEMENTS // X.shape[1])
    for start in range(0, len(X), step):
        # -0.0 equals 0.0, and has other bits until 0 is added.
        words = (np.ascontiguousarray(X[start : start + step]) + 0).view(word)
        # Two sign bits alone would cancel: 2^63 times any two odd numbers is 2^64.
        mixed = words ^ (words >> word.type(4 * word.itemsize))
        keys[start : start + step] = mixed.astype(np.uint64, copy=False) @ weights
    return keys
