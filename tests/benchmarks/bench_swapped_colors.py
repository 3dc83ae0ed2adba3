"""How well images with red and blue swapped are recognised, by limits chosen elsewhere.

Run as ``python tests/benchmarks/bench_swapped_colors.py``. Classes are in the
folder ``data`` of the assets (``SKPATCHCORE_ASSETS``, or ``../shared/assets`` next to
the checkout). Training images give the cast, the other images are scored one by one, as
they are and swapped.

The limits of the package were chosen on these classes. So each class is also rated with
limits that are chosen on the others, for the largest mean of the share recognised minus
the share mistaken. Several settings are often equally good there, and all are rated.
Last, a share of the training images is swapped, to see whether a fit notices it.
"""

import itertools
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from skpatchcore._images import check_images, iter_batches, warn_if_mixed
from skpatchcore._images._colors import LIMITS, Limits, are_swapped, learn_cast
from skpatchcore.datasets import load_mvtec_ad, mvtec_ad_categories

# Both are of the same pills.
SAME = [{"pill", "pill_highres"}]
GRID = [
    Limits(*numbers)
    for numbers in itertools.product(
        (0.0025, 0.005, 0.01, 0.015, 0.02), (2, 3, 4, 5, 6), (1.5, 2, 3, 4, 6)
    )
]
SHARES = (0.02, 0.1, 0.5)
# Fits of a few training images in the right order, and of some that are swapped.
N_SMALL, N_DRAWS = (6, 10, 20), 500


def assets() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "assets"
    return Path(os.environ.get("SKPATCHCORE_ASSETS", beside))


def casts_of(home: Path, category: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the casts of training images, and those of the others."""
    data = load_mvtec_ad(home, category)
    images = check_images(data.data)
    casts = np.zeros(len(images))
    for indices, _, geometries in iter_batches(images, 256, 224, 8):
        casts[indices] = [geometry.cast for geometry in geometries]
    return casts[data.split == "train"], casts[data.split != "train"]


def rate(casts, limits=LIMITS) -> tuple[float, float]:
    """Return the shares of swapped images recognised, and of others mistaken."""
    learned, new = casts
    mean, deviation = learn_cast(learned)
    shares = [
        are_swapped(given, mean, deviation, limits).mean() for given in (-new, new)
    ]
    return shares[0], shares[1]


def best(classes) -> list[Limits]:
    """Return the limits that are best on some classes, all of them if several are."""
    gains = [
        np.mean([np.subtract(*rate(casts, limits)) for casts in classes])
        for limits in GRID
    ]
    return [
        limits for limits, gain in zip(GRID, gains, strict=True) if gain == max(gains)
    ]


def is_noticed(casts) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_mixed(check_images(np.zeros((1, 8, 8, 3), np.uint8)), casts)
    return bool(caught)


def swap_some(casts, n, rng):
    casts = casts.copy()
    casts[rng.choice(len(casts), n, replace=False)] *= -1
    return casts


def print_ratings(found) -> None:
    print("class               n new   chosen on all      chosen on the other classes")
    print("                            found  mistaken    n equal  found      mistaken")
    for name, casts in found.items():
        same = next((names for names in SAME if name in names), {name})
        limits = best([casts for other, casts in found.items() if other not in same])
        rated = np.array([rate(casts, one) for one in limits])
        (low, small), (high, large) = rated.min(axis=0), rated.max(axis=0)
        hits, errors = rate(casts)
        print(
            f"{name:20}{len(casts[1]):4}{hits:10.3f}{errors:10.3f}{len(limits):10}"
            f"   {low:.3f}-{high:.3f}  {small:.3f}-{large:.3f}"
        )


def print_mixed(found) -> None:
    rng = np.random.default_rng(0)
    print("\nshare of fits that are noticed, by the share of training images swapped")
    for name, (learned, _) in found.items():
        cells = [f"0: {is_noticed(learned):d}"]
        for n in N_SMALL:
            drawn = (rng.choice(learned, n, replace=False) for _ in range(N_DRAWS))
            cells.append(f"0 of {n}: {np.mean([is_noticed(x) for x in drawn]):.3f}")
        for share in SHARES:
            n = max(1, round(share * len(learned)))
            fits = (swap_some(learned, n, rng) for _ in range(N_DRAWS))
            cells.append(f"{share}: {np.mean([is_noticed(x) for x in fits]):.3f}")
        for n in N_SMALL:
            drawn = (rng.choice(learned, n, replace=False) for _ in range(N_DRAWS))
            noticed = [is_noticed(swap_some(x, n // 2, rng)) for x in drawn]
            cells.append(f"half of {n}: {np.mean(noticed):.3f}")
        print(f"{name:20}", ", ".join(cells))


def main() -> None:
    homes = sorted(path for path in (assets() / "data").iterdir() if path.is_dir())
    pairs = [(home, name) for home in homes for name in mvtec_ad_categories(home)]
    found = {name: casts_of(home, name) for home, name in pairs}
    print_ratings(found)
    print_mixed(found)


if __name__ == "__main__":
    sys.exit(main())
