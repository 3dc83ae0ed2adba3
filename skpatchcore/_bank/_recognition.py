"""Recognise the samples that a bank was fitted on, to give them their training scores.

Compared with the whole bank, a training sample would be matched with itself. Scikit-
learn's convention is that ``fit_predict(X)`` equals ``fit(X).predict(X)``, so
`score_samples` recognises these samples.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._neighbors import as_tensor
from skpatchcore._utils import Samples, own_torch_state

# Independent sums of the features of a sample. A different sample would have to agree
# in all of them.
_N_SUMS = 4
# Relative differences that count as equal. Sums of the same numbers differ only by
# rounding.
SAME_NUMBERS = 1e-12
# A network rounds features differently in batches of another size, by about 1e-6. The
# smallest visible defect changes the sums by about 1e-2.
SAME_IMAGE = 1e-5
# Elements of a block of features, which is converted to float64.
_ELEMENTS = 2**20


def sketch(samples: Samples) -> NDArray[np.float64]:
    """Return a row of numbers for each sample, which identifies it.

    Returns
    -------
    sketches : ndarray of shape (n_samples, 7), float64
        The number of patches, a sum over the first patch alone, the root mean square of
        all features, and four sums over all patches. Sums have weights that are
        products of a random number for the patch and one for the feature. They are
        divided by the root of the number of features.
    """
    starts, sizes = samples.offsets[:-1], np.diff(samples.offsets)
    sums, squares = _sums(samples.patches)
    # Which patch of its sample each patch is.
    order = np.arange(len(sums)) - starts.repeat(sizes)
    root = np.sqrt(sizes * samples.patches.shape[1])
    weighted = sums * _weights(int(sizes.max()), seed=1)[order]
    return np.column_stack(
        [
            sizes,
            sums[starts, 0] / root,
            np.sqrt(np.add.reduceat(squares, starts)) / root,
            np.add.reduceat(weighted, starts) / root[:, None],
        ]
    )


def recognize(
    known: NDArray[np.float64], samples: Samples, tolerance: float
) -> NDArray[np.int64]:
    """Return for each sample the first of the `known` ones that it equals, or -1.

    `known` are sketches, and `tolerance` is relative to their root mean square. Few
    other samples have an equal first patch, so most are not summed.
    """
    starts, sizes = samples.offsets[:-1], np.diff(samples.offsets)
    found = np.full(len(sizes), -1)
    if len(known) == 0:
        return found
    order = known[:, 1].argsort(kind="stable")
    first = _sums(samples.patches[starts])[0][:, 0]
    first /= np.sqrt(sizes * samples.patches.shape[1])
    # Relative to the root of the number of all features, the sum over a single patch
    # differs by less than the sums over all patches.
    margin = tolerance * known[:, 2].max()
    low = np.searchsorted(known[order, 1], first - margin, "left")
    high = np.searchsorted(known[order, 1], first + margin, "right")
    candidates = np.flatnonzero(high > low)
    if len(candidates) == 0:
        return found
    patches = np.concatenate(
        [np.arange(*samples.offsets[i : i + 2]) for i in candidates]
    )
    for i, own in zip(candidates, sketch(samples.take(patches)), strict=True):
        rows = np.sort(order[low[i] : high[i]])
        close = np.abs(known[rows, 2:] - own[2:]) <= tolerance * known[rows, 2:3]
        equal = rows[(known[rows, 0] == own[0]) & close.all(axis=1)]
        found[i] = equal[0] if len(equal) else -1
    return found


@own_torch_state()
def _sums(patches: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return random sums (n, 4) and sums of squares (n,) of patches (n, d).

    Torch computes them: the threads of NumPy's products would go on waiting actively
    for more work, and hold up those of torch.
    """
    weights = torch.from_numpy(_weights(patches.shape[1], seed=0))
    parts = []
    for rows in as_tensor(patches).split(max(1, _ELEMENTS // patches.shape[1])):
        numbers = rows.double()
        parts.append((numbers @ weights, torch.linalg.vector_norm(numbers, dim=1)))
    sums, norms = map(torch.cat, zip(*parts, strict=True))
    return sums.numpy(), norms.square().numpy()


@lru_cache(maxsize=8)
def _weights(n: int, seed: int) -> NDArray[np.float64]:
    """Return random weights (n, 4), always the same ones."""
    return np.random.default_rng(seed).normal(size=(n, _N_SUMS))
