"""Squared distances from differences, and bounds of the errors of products."""

import numpy as np
import torch
from numpy.typing import NDArray

# Elements compared directly at a time. On a CPU they should stay in its caches, which
# makes the comparison about eight times as fast. A GPU needs large blocks.
_DIRECT_ELEMENTS = {"cpu": 2**18}
_MANY_ELEMENTS = 2**23


def as_tensor(array: NDArray) -> torch.Tensor:
    """Return `array` as a tensor; copy it only if torch cannot share its memory."""
    # torch warns about read-only memory, such as joblib's memory maps.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return squared distances (n, c) from a (n, d) to b (n, c, d), in float64."""
    return (b.double() - a.double()[:, None]).square_().sum(dim=-1)


def paired_distances(
    a: torch.Tensor, rows_a: torch.Tensor, b: torch.Tensor, rows_b: torch.Tensor
) -> torch.Tensor:
    """Return squared distances (n,) from a[rows_a] to b[rows_b], in float64."""
    step = rows_at_once(a)
    parts = [
        squared_distances(a[i], b[j][:, None])[:, 0]
        for i, j in zip(rows_a.split(step), rows_b.split(step), strict=True)
    ]
    return torch.cat(parts)


def rows_at_once(bank: torch.Tensor, n_candidates: int = 1) -> int:
    """Return how many rows to compare with `n_candidates` each at a time."""
    n_elements = _DIRECT_ELEMENTS.get(bank.device.type, _MANY_ELEMENTS)
    return max(1, n_elements // (n_candidates * bank.shape[1]))


def length_margin(points: torch.Tensor) -> float:
    """Return a factor that covers the rounding of computed lengths of `points` (n, d).

    A squared length in float64 errs by at most (d + 1) eps / 2 of its value, and its
    root by half of that plus eps / 2. If a length is truly larger than this factor
    times another one, then it also comes out larger when both are computed.
    """
    return 1 + (points.shape[1] + 4) * torch.finfo(torch.float64).eps


def rounding_error(
    n_features: int, dtype: torch.dtype, reach: torch.Tensor
) -> torch.Tensor:
    """Bound the error of |a|^2 + |b|^2 - 2 a.b in `dtype`, where |a| + |b| <= `reach`.

    Let u be the unit roundoff and d the number of features.

    - The dot product errs by at most d u |a||b| / (1 - d u) (Higham, Accuracy and
      Stability of Numerical Algorithms, 2nd ed., eq. 3.5), and by one u more if a
      squared norm is summed with it.
    - Three further errors add a few u (|a| + |b|)^2: the norms are rounded; the sum is
      rounded; and a and b are themselves rounded differences to a common centre.
    - Twice the sum of all these is at most 2 (d + 8) u (|a| + |b|)^2, with room to
      spare.
    - For numbers that are too small for relative errors, each operation errs by less
      than the smallest normal number.
    - The distances that decide in the end, differences in float64, err as well. Two of
      them are compared, and each errs by at most (d + 2) u' |a - b|^2, where u' is the
      roundoff of float64. This is why u' is added to u.

    If the product may overflow, there is no bound, and the result is infinity.
    """
    limits = torch.finfo(dtype)
    roundoff = (limits.eps + torch.finfo(torch.float64).eps) / 2
    error = 2 * (n_features + 8) * (roundoff * reach**2 + limits.tiny)
    return error.masked_fill(~(4 * reach**2 < limits.max), torch.inf)
