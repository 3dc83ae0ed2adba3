"""Conformal p-values and thresholds from scores of normal samples held out."""

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skpatchcore._utils import ceil_fraction

# Groups get integer weights as long as their unit is no larger than this.
_LARGEST_UNIT = 2**32


class Ranking:
    """Scores in ascending order, and the total weight of those below any number."""

    def __init__(self, scores: NDArray, weights: NDArray):
        order = np.argsort(scores, kind="stable")
        self.scores = scores[order]
        self.cumulative = np.concatenate([[0], np.cumsum(weights[order])])

    def at_most(self, scores: NDArray) -> NDArray:
        """Return the total weight of the ranked scores that are at most `scores`."""
        return self.cumulative[np.searchsorted(self.scores, scores, side="right")]


@dataclass(frozen=True)
class Calibration:
    """Scores of normal samples by estimators that had not seen them.

    Scores of any shape can be held against them: those of samples, or of pixels.
    Higher is more normal.

    Every group weighs the same, and its samples share that weight equally [1]_. A
    sample drawn at random from a new group then has a p-value of at most t with a
    probability of at most t, if groups are exchangeable. Samples without groups are
    groups of one.

    .. [1] Lee, Y., Barber, R. F., Willett, R. "Distribution-free inference with
       hierarchical data", 2023, arXiv:2306.06342.
    """

    scores: NDArray  # (n,), float64
    folds: NDArray  # (n,), which estimator gave each score
    groups: NDArray | None = None  # (n,), int, from 0; which group each is of

    @property
    def n_units(self) -> int:
        """The number of exchangeable units: samples, or groups of them."""
        return len(self.scores if self.groups is None else np.unique(self.groups))

    @cached_property
    def _weights(self) -> tuple[NDArray, int]:
        """Return an integer for each score, and what those of a group add up to.

        Integers add up exactly in any order, so `predict` and p-values cannot differ
        by rounding. If the sizes of groups have too large a common multiple, weights
        are rounded up, and so are p-values.
        """
        if self.groups is None:
            return np.ones(len(self.scores), dtype=np.int64), 1
        sizes = np.bincount(self.groups)
        unit = min(math.lcm(*map(int, np.unique(sizes[sizes > 0]))), _LARGEST_UNIT)
        return -(-unit // sizes[self.groups]), unit

    @cached_property
    def _ranking(self) -> Ranking:
        return Ranking(self.scores, self._weights[0])

    def _ranking_of(self, fold: int) -> Ranking:
        rows = self.folds == fold
        return Ranking(self.scores[rows], self._weights[0][rows])

    @cached_property
    def _levels(self) -> NDArray:
        """The p-values of scores that are above 0, 1, ..., n of the ranked ones."""
        cumulative, unit = self._ranking.cumulative, self._weights[1]
        return np.minimum((unit + cumulative) / (unit * (self.n_units + 1)), 1)

    def offset(self, alpha: float) -> float:
        """Return the score below which the p-value is at most `alpha`."""
        n_supported = np.searchsorted(self._levels, alpha, side="right")
        return float(self._ranking.scores[n_supported - 1])

    def scale(self, offset: float) -> float:
        """Return how far a typical normal sample is from `offset`; 1 if it is not."""
        return float(np.median(np.abs(self.scores - offset))) or 1.0

    def p_values(self, scores: NDArray) -> NDArray:
        """Return (1 + weight of calibration scores <= score) / (n_groups + 1)."""
        n_at_most = np.searchsorted(self._ranking.scores, scores, side="right")
        return self._levels[n_at_most]

    def pool(self, fold_scores: Sequence[NDArray]) -> NDArray:
        """Merge the scores of new samples by every estimator into one.

        The p-value of cross-conformal prediction compares each calibration score with
        the new score by the same estimator. The merged score is the mean, moved where
        that falls outside it into the gap between calibration scores that has this
        p-value: so one number a sample carries the p-value, and one threshold decides.

        The gap can be missing, if calibration scores of several estimators tie, or
        groups of unequal sizes weigh their samples differently. The next one above is
        taken, and the p-value is then larger, never smaller.

        Parameters
        ----------
        fold_scores : sequence of n_estimators ndarray, of one shape

        Returns
        -------
        scores : ndarray of that shape, float64
            With one estimator, its own.
        """
        weight = sum(
            self._ranking_of(fold).at_most(scores)
            for fold, scores in enumerate(fold_scores)
        )
        place = np.searchsorted(self._ranking.cumulative, weight, side="left")
        edges = np.concatenate([[-np.inf], self._ranking.scores, [np.inf]])
        lower = edges[place]
        upper = np.nextafter(edges[place + 1], -np.inf)
        mean = sum(fold_scores) / len(fold_scores)
        return np.clip(mean, lower, np.maximum(lower, upper))


def n_supported(alpha: float, n: int) -> int:
    """Return how many of the p-values 1/(n+1), 2/(n+1), ..., 1 are at most `alpha`."""
    # The quotients as p_values rounds them: 0.29 * 100 is less than 29, 29/100 is not.
    return int(np.searchsorted(np.arange(1, n + 2) / (n + 1), alpha, side="right"))


def n_needed(alpha: float) -> int:
    """Return how many calibration samples or groups support `alpha`."""
    return ceil_fraction(1 / alpha, 1) - 1


def check_supported(alpha: float, n: int, grouped: bool = False) -> None:
    """Raise if `n` calibration samples or groups are too few to flag anything."""
    if n_supported(alpha, n) > 0:
        return
    what = "groups of normal samples" if grouped else "normal samples"
    raise ValueError(
        f"alpha={alpha} needs at least {n_needed(alpha)} {what} to "
        f"calibrate on, got {n}: no p-value could be that small, so nothing would ever "
        f"be flagged. The smallest alpha they support is 1/{n + 1} = "
        f"{round_up(1 / (n + 1), 4)}."
    )


def round_up(value: float, n_digits: int) -> str:
    """Return a positive number in so many digits, not less than it is.

    The smallest alpha must not be refused when a user passes what a message says.
    """
    context = decimal.Context(prec=n_digits, rounding=decimal.ROUND_CEILING)
    # The shortest text of the float, so that 0.05 stays 0.05.
    return f"{context.create_decimal(repr(value)).normalize():f}"


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
