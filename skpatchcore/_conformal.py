"""Conformal p-values and thresholds from scores of normal samples held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skpatchcore._fractions import ceil_fraction


@dataclass(frozen=True)
class Calibration:
    """Scores of normal samples by estimators that had not seen them.

    Scores of any shape can be held against them: those of samples, or of pixels.
    Higher is more normal.
    """

    scores: NDArray  # (n,), float64
    folds: NDArray  # (n,), which estimator gave each score

    @cached_property
    def ranked(self) -> NDArray:
        """The scores, ascending."""
        return np.sort(self.scores)

    def offset(self, alpha: float) -> float:
        """Return the score below which the p-value is at most `alpha`."""
        return float(self.ranked[n_supported(alpha, len(self.scores)) - 1])

    def scale(self, offset: float) -> float:
        """Return how far a typical normal sample is from `offset`; 1 if it is not."""
        return float(np.median(np.abs(self.scores - offset))) or 1.0

    def p_values(self, scores: NDArray) -> NDArray:
        """Return (1 + number of calibration scores <= score) / (n + 1)."""
        n_at_most = np.searchsorted(self.ranked, scores, side="right")
        return (1 + n_at_most) / (len(self.ranked) + 1)

    def pool(self, fold_scores: Sequence[NDArray]) -> NDArray:
        """Merge the scores of new samples by every estimator into one.

        The p-value of cross-conformal prediction compares each calibration score with
        the new score by the same estimator. The merged score is the mean, moved where
        that falls outside it into the gap between calibration scores that has this
        p-value: so one number a sample carries the p-value, and one threshold decides.

        If calibration scores of several estimators tie, the gap can be missing; the
        next one above is taken, and the p-value is then larger, never smaller.

        Parameters
        ----------
        fold_scores : sequence of n_estimators ndarray, of one shape

        Returns
        -------
        scores : ndarray of that shape, float64
            With one estimator, its own.
        """
        n_at_most = sum(
            np.searchsorted(np.sort(self.scores[self.folds == fold]), scores, "right")
            for fold, scores in enumerate(fold_scores)
        )
        edges = np.concatenate([[-np.inf], self.ranked, [np.inf]])
        lower = edges[n_at_most]
        upper = np.nextafter(edges[n_at_most + 1], -np.inf)
        mean = sum(fold_scores) / len(fold_scores)
        return np.clip(mean, lower, np.maximum(lower, upper))


def n_supported(alpha: float, n: int) -> int:
    """Return how many of the p-values 1/(n+1), 2/(n+1), ..., 1 are at most `alpha`."""
    # The quotients as p_values rounds them: 0.29 * 100 is less than 29, 29/100 is not.
    return int(np.searchsorted(np.arange(1, n + 2) / (n + 1), alpha, side="right"))


def check_supported(alpha: float, n: int) -> None:
    """Raise if `n` calibration scores are too few for anything to be flagged."""
    if n_supported(alpha, n) > 0:
        return
    n_needed = ceil_fraction(1 / alpha, 1) - 1
    raise ValueError(
        f"alpha={alpha} needs at least {n_needed} normal samples to "
        f"calibrate on, got {n}: no p-value could be that small, so nothing would ever "
        f"be flagged. The smallest alpha they support is 1/{n + 1} = {1 / (n + 1):.4g}."
    )


def anomaly_score(anomaly: NDArray, threshold: float, scale: float) -> NDArray:
    """Map numbers to [0, 1], strictly increasing, and `threshold` to 1/2.

    With x the distance to the threshold in units of `scale`: 1 / (2 (1 - x)^2) below
    and 1/2 + L / (2 (L + log 2)) above, where L = log(1 + x). Neither side saturates as
    an exponential or a tanh would: values within 1e150 scales of the threshold stay
    apart if they differ by more than 1e-9 of 1 + abs(x). NaN stays NaN.
    """
    # Beyond the range of floats the ends of [0, 1] are right.
    with np.errstate(over="ignore"):
        x = (np.asarray(anomaly, dtype=np.float64) - threshold) / scale
        below = 0.5 / np.square(1 - np.minimum(x, 0))
    logs = np.log1p(np.clip(x, 0, np.finfo(np.float64).max))
    above = 0.5 + 0.5 * logs / (logs + np.log(2))
    # A value just above the threshold must not round to 1/2.
    return np.where(x > 0, np.maximum(above, np.nextafter(0.5, 1)), below)
