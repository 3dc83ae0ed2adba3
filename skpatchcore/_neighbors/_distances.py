"""Squared distances: directly, as differences, or by products with a proven bound."""

import numpy as np
import torch

# Elements compared directly at a time: on a CPU they should stay in its caches, which
# makes that some eight times as fast; a GPU wants much to do at once.
_DIRECT_ELEMENTS = {"cpu": 2**18}


_MANY_ELEMENTS = 2**23


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return `array` as a tensor, copied only where torch could not share it."""
    # torch warns of read-only memory, such as joblib's memory maps.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances (n, c) of rows a (n, d) to their b (n, c, d), in float64."""
    return (b.double() - a.double()[:, None]).square_().sum(dim=-1)


def paired_distances(a, rows_a, b, rows_b) -> torch.Tensor:
    """Squared distances (n,) of a[rows_a] to b[rows_b], in float64."""
    step = rows_at_once(a)
    parts = [
        squared_distances(a[i], b[j][:, None])[:, 0]
        for i, j in zip(rows_a.split(step), rows_b.split(step), strict=True)
    ]
    return torch.cat(parts)


def rows_at_once(bank: torch.Tensor, n_candidates: int = 1) -> int:
    """Return for how many rows to compare candidates directly at a time."""
    n_elements = _DIRECT_ELEMENTS.get(bank.device.type, _MANY_ELEMENTS)
    return max(1, n_elements // (n_candidates * bank.shape[1]))


def length_margin(points: torch.Tensor) -> float:
    """Return a factor between lengths of `points` (n, d) that are surely different.

    A squared length in float64 errs by at most (d + 1) eps / 2 of itself, and its root
    by half of that and eps / 2. Of two lengths, computed like this, one that is truly
    larger than the other times the factor comes out larger.
    """
    return 1 + (points.shape[1] + 4) * torch.finfo(torch.float64).eps


def rounding_error(n_features: int, dtype: torch.dtype, reach: torch.Tensor):
    """Bound the error of |a|^2 + |b|^2 - 2 a.b in `dtype`, where |a| + |b| <= `reach`.

    With unit roundoff u and vectors of length d, the dot product errs by at most
    d u |a||b| / (1 - d u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
    ed., eq. 3.5), and by one u more where a squared norm is summed with it; norms that
    were rounded, the sum, and a and b themselves being rounded differences to a common
    centre add a few u (|a| + |b|)^2. Twice the sum of all is 2 (d + 8) u (|a| + |b|)^2
    with room to spare; where numbers are too small for that, each operation errs by
    less than the smallest normal one. The distances that decide, differences in
    float64, err as well, and two of them are compared: each by (d + 2) u' |a - b|^2 at
    most, with the roundoff u' of float64. What may overflow has no bound: infinity.
    """
    limits = torch.finfo(dtype)
    roundoff = (limits.eps + torch.finfo(torch.float64).eps) / 2
    error = 2 * (n_features + 8) * (roundoff * reach**2 + limits.tiny)
    return error.masked_fill(~(4 * reach**2 < limits.max), torch.inf)
