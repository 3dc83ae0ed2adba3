"""Recognise the samples that a bank was fitted on, to give them their training scores.

Compared with the whole bank, a training sample would be matched with itself. Scikit-
learn's convention is that ``fit_predict(X)`` equals ``fit(X).predict(X)``, so
`score_samples` recognises these samples.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from skpatchcore._utils import Samples

# Independent sums of the features of a sample. A different sample would have to agree
# in all of them.
_N_SUMS = 4
# Relative differences that count as equal. Sums of the same numbers differ only by
# rounding.
SAME_NUMBERS = 1e-12
# A network rounds features differently in batches of another size, by about 1e-6. The
# smallest visible defect changes the sums by about 1e-2.
SAME_IMAGE = 1e-5


def sketch(samples: Samples) -> NDArray[np.float64]:
    """Return a row of numbers for each sample, which identifies it.

    Returns
    -------
    sketches : ndarray of shape (n_samples, 6), float64
        The number of patches, the root mean square of all features, and sums of the
        features with random weights, divided by the root of their number.
    """
    ends = samples.offsets
    sizes = np.diff(ends)
    sketches = np.empty((len(sizes), 2 + _N_SUMS))
    if (sizes == 1).all():
        # A matrix: one product for all its rows.
        sketches[:, 2:], sketches[:, 1] = _sums(samples.patches)
    else:
        for i, (start, stop) in enumerate(pairwise(ends.tolist())):
            sums, squares = _sums(samples.patches[start:stop].reshape(1, -1))
            sketches[i, 2:], sketches[i, 1] = sums[0], squares[0]
    sketches[:, 0] = sizes
    return sketches


def recognize(
    known: NDArray[np.float64], sketches: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """Return for each sketch the first of the `known` ones that equals it, or -1.

    `tolerance` is relative to the root mean square of the features.
    """
    found = np.full(len(sketches), -1)
    if len(known) == 0:
        return found
    order = known[:, 2].argsort(kind="stable")
    margins = tolerance * sketches[:, 1]
    first = np.searchsorted(known[order, 2], sketches[:, 2] - margins, "left")
    last = np.searchsorted(known[order, 2], sketches[:, 2] + margins, "right")
    for i in np.flatnonzero(last > first):
        rows = np.sort(order[first[i] : last[i]])
        same_size = known[rows, 0] == sketches[i, 0]
        close = np.abs(known[rows, 1:] - sketches[i, 1:]) <= margins[i]
        equal = rows[same_size & close.all(axis=1)]
        found[i] = equal[0] if len(equal) else -1
    return found


def _sums(rows: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return random sums (n, 4) and root mean squares (n,) of rows (n, d)."""
    numbers = rows.astype(np.float64)
    # Squares and sums must not overflow.
    largest = np.abs(numbers).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    numbers /= scale
    root = np.sqrt(numbers.shape[1])
    squares = np.sqrt(np.einsum("ij,ij->i", numbers, numbers)) / root
    sums = numbers @ _weights(numbers.shape[1]) / root
    return sums * scale, squares * scale[:, 0]


@lru_cache(maxsize=4)
def _weights(n_features: int) -> NDArray[np.float64]:
    """Return random weights (n_features, 4), always the same ones."""
    return np.random.default_rng(0).normal(size=(n_features, _N_SUMS))
