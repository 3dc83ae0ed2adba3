"""False alarms where several images show one part, with and without ``groups``.

Run as ``python tests/benchmarks/bench_groups.py [PARTS [REPETITIONS]]``.

Every repetition draws good parts, 16 patches of 8 random numbers each. An image of a
part is its patches plus noise with a quarter of their standard deviation. Half of the
"mixed" parts have 1 image and half have 10. ConformalDetector is fitted on PARTS parts
for a rate of 5 %, and judges 50 new ones: the share of their images that is flagged,
averaged over parts, and the share of the parts with at least one flagged image.
"""

import sys
import warnings

import numpy as np
import torch

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore.calibration import ConformalDetector
from skpatchcore.calibration._p_values import Calibration

ALPHA = 0.05
N_NEW = 50
N_PATCHES, N_DIMENSIONS, NOISE = 16, 8, 0.25
FRAMES = {"1": [1], "5": [5], "10": [10], "mixed": [1, 10]}


def draw(rng, n_parts: int, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, patches, d), and the part that each of them shows."""
    parts = rng.normal(size=(n_parts, N_PATCHES, N_DIMENSIONS))
    part_of = np.repeat(np.arange(n_parts), np.resize(frames, n_parts))
    images = parts[part_of]
    return images + NOISE * rng.normal(size=images.shape), part_of


def judge(p_values, new_parts) -> tuple[float, float]:
    """Return the shares of images, averaged over parts, and of parts flagged."""
    flagged = p_values <= ALPHA
    shares = np.bincount(new_parts, flagged) / np.bincount(new_parts)
    return shares.mean(), np.mean(shares > 0)


def rates(frames: list[int], n_parts: int, seed: int, *, grouped: bool) -> list:
    """Return, for each method, the false alarms, and whether there was a warning."""
    rng = np.random.default_rng(seed)
    X, parts = draw(rng, n_parts, frames)
    new, new_parts = draw(rng, N_NEW, frames)
    groups = parts if grouped else None
    bank = PatchMemoryBank(CoresetSampler(0.1, random_state=seed))
    found = []
    for method in ("split", "cross"):
        detector = ConformalDetector(
            bank, alpha=ALPHA, method=method, random_state=seed
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            detector.fit(X, groups=groups)
        p_values = detector.predict_pvalue(new)
        found.append([*judge(p_values, new_parts), len(caught) > 0])
    # method="refit" would fit the same estimators once more.
    held_out = detector._calibration
    calibration = Calibration(
        held_out.scores, np.zeros_like(held_out.folds), held_out.groups
    )
    p_values = calibration.p_values(bank.fit(X).score_samples(new))
    found.append([*judge(p_values, new_parts), len(caught) > 0])
    return found


def main(n_parts: str = "40", repetitions: str = "50") -> None:
    torch.set_num_threads(1)
    print("images a part  groups  method   images flagged    parts flagged  warned")
    for name, frames in FRAMES.items():
        for grouped in (False, True):
            seeds = range(int(repetitions))
            found = np.array(
                [rates(frames, int(n_parts), seed, grouped=grouped) for seed in seeds]
            )
            errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
            for method, (image, part, warned), error in zip(
                ("split", "cross", "refit"), found.mean(axis=0), errors, strict=True
            ):
                print(
                    f"{name:>13s}  {'yes' if grouped else 'no':>6s}  {method:6s} "
                    f"{image:7.1%} ± {error[0]:.1%}  {part:7.1%} ± {error[1]:.1%}  "
                    f"{warned:6.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
