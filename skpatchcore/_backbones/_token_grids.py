"""Grids of rows and columns that a number of tokens may form, given the image size."""

import math
from collections.abc import Iterator, Sequence

#: A grid differs from the quotient of size and stride by less than this number of
#: positions, because strides, padding and pooling round.
ROUNDING = 2
# Most tokens before the patch tokens, if a network does not declare their number: a
# class token, a distillation token, registers, prompts.
_MOST_PREFIX_TOKENS = 16


def find_stride(
    counts: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    prefixes: Sequence[int] | None,
    ratio: tuple[int, int],
) -> tuple[int, tuple[int, int]] | None:
    """Return the number of tokens before the patch tokens, and the stride of patches.

    The stride is the integer one for which the grids come closest to size / stride, for
    all sizes. Return None if no stride fits.

    Parameters
    ----------
    counts : sequence of int
        Number of tokens for an image of each of `sizes` (h, w), in pixels.
    prefixes : sequence of int or None
        Possible numbers of tokens before the patch tokens, likely ones first.
    ratio : (int, int)
        Height and width of a patch. Strides have the same proportions.
    """
    if prefixes is None:
        prefixes = range(_MOST_PREFIX_TOKENS + 1)
    unit = [side // math.gcd(*ratio) for side in ratio]
    best, least = None, float(ROUNDING)
    for n_prefix in prefixes:
        for k in _likely_factors(counts[0] - n_prefix, sizes[0], unit):
            stride = (k * unit[0], k * unit[1])
            off = max(
                min(near_grids(n - n_prefix, divide(size, stride)).values(), default=2)
                for n, size in zip(counts, sizes, strict=True)
            )
            if off < least:
                best, least = (n_prefix, stride), off
    return best


def _likely_factors(n: int, size: Sequence[int], unit: Sequence[int]) -> range:
    """Return the factors k for which an image may have `n` patches of k * `unit`."""
    if n < 1:
        return range(0)
    k = math.sqrt(size[0] * size[1] / (n * unit[0] * unit[1]))
    return range(max(1, int(k / 2)), int(2 * k) + 2)


def near_grids(n: int, expected: Sequence[float]) -> dict[tuple[int, int], float]:
    """Return grids of `n` tokens near `expected` rows and columns, and their misfit."""
    rows = range(max(1, int(expected[0]) - 1), int(expected[0]) + ROUNDING + 1)
    grids = [(h, n // h) for h in rows if n >= h and n % h == 0]
    misfits = {
        grid: max(abs(a - e) for a, e in zip(grid, expected, strict=True))
        for grid in grids
    }
    return {grid: off for grid, off in misfits.items() if off < ROUNDING}


def all_grids(n: int) -> Iterator[tuple[int, int]]:
    """Yield all grids (rows, columns) of `n` tokens."""
    yield from ((h, n // h) for h in range(1, n + 1) if n % h == 0)


def misfit(grid: Sequence[int], size: Sequence[float]) -> float:
    """Return by how many positions `grid` differs from the proportions of `size`."""
    scale = max(divide(grid, size))
    return max(abs(full * scale - n) for n, full in zip(grid, size, strict=True))


def divide(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the quotients of two pairs."""
    return a[0] / b[0], a[1] / b[1]
