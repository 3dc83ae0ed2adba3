"""Which grid a number of tokens fills, given the size of the image they are of."""

import math
from collections.abc import Iterator, Sequence

#: Grids are off the quotient of size and stride by less than this, in positions: what
#: strides, paddings and pooling round.
ROUNDING = 2
# Tokens before those of patches, where a network does not say how many there are: a
# class token, one for distillation, registers, prompts.
_MOST_PREFIX_TOKENS = 16


def find_stride(
    counts: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    prefixes: Sequence[int] | None,
    ratio: tuple[int, int],
) -> tuple[int, tuple[int, int]] | None:
    """Return how many tokens come before those of patches, and the stride of these.

    That is the whole stride for which the grids of all sizes are nearest to their
    quotients; None if there is no such stride.

    Parameters
    ----------
    counts : sequence of int
        Tokens for images of each of `sizes` (h, w), in pixels.
    prefixes : sequence of int or None
        How many there may be before those of patches, likely ones first.
    ratio : (int, int)
        Height and width of a patch; its proportions are those of strides.
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
    """Return for which k patches of k times `unit` pixels may be `n` in an image."""
    if n < 1:
        return range(0)
    k = math.sqrt(size[0] * size[1] / (n * unit[0] * unit[1]))
    return range(max(1, int(k / 2)), int(2 * k) + 2)


def near_grids(n: int, expected: Sequence[float]) -> dict[tuple[int, int], float]:
    """Return the grids of `n` tokens near `expected` rows and columns: by how much."""
    rows = range(max(1, int(expected[0]) - 1), int(expected[0]) + ROUNDING + 1)
    grids = [(h, n // h) for h in rows if n >= h and n % h == 0]
    misfits = {
        grid: max(abs(a - e) for a, e in zip(grid, expected, strict=True))
        for grid in grids
    }
    return {grid: off for grid, off in misfits.items() if off < ROUNDING}


def all_grids(n: int) -> Iterator[tuple[int, int]]:
    """Yield all shapes of `n` tokens in rows."""
    yield from ((h, n // h) for h in range(1, n + 1) if n % h == 0)


def misfit(grid: Sequence[int], size: Sequence[float]) -> float:
    """Return by how many positions `grid` differs from the proportions of `size`."""
    scale = max(divide(grid, size))
    return max(abs(full * scale - n) for n, full in zip(grid, size, strict=True))


def divide(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the quotients of two pairs."""
    return a[0] / b[0], a[1] / b[1]
