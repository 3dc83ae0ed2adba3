"""Exact counts from one ranking of scores, from which all metrics follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc
from sklearn.utils import Bunch


@dataclass(frozen=True)
class Ranking:
    """Normal and anomalous items, ranked by a score that is higher for anomalous ones.

    Hits and overlap change only at the scores of anomalous items. So the counts at
    these scores are sufficient, and normal items are only sorted.

    Counts are integers, and so exact. With weights, they are sums of weights.
    """

    normal: NDArray  # (n_normal,), ascending
    n_normal: int | float  # of all normal items
    scores: NDArray  # (m,), distinct scores of anomalous items, descending
    hits: NDArray  # (m,), anomalous items at or above each score
    overlap: NDArray  # (m,), mean share of a region at or above each score
    false_alarms: NDArray  # (m,), normal items at or above each score
    false_alarms_above: NDArray  # (m,), normal items strictly above each score

    def auroc(self) -> float:
        """Return the probability that an anomalous item ranks higher (ties half)."""
        n_anomalous = self.hits[-1].item()
        outranked = 2 * self.n_normal - self.false_alarms - self.false_alarms_above
        twice_wins = (np.diff(self.hits, prepend=0) @ outranked).item()
        return twice_wins / (2 * self.n_normal * n_anomalous)

    def average_precision(self) -> float:
        """Return the precision at the score of each anomalous item, averaged."""
        precision = self.hits / (self.hits + self.false_alarms)
        return float(np.diff(self.hits, prepend=0) @ precision / self.hits[-1])

    def best_f1(self) -> Bunch:
        """Return the largest F1. Among equal ones, it has the fewest false alarms."""
        f1 = 2 * self.hits / (self.hits[-1] + self.hits + self.false_alarms)
        best = int(np.argmax(f1))
        hits, false_alarms = self.hits[best].item(), self.false_alarms[best].item()
        # The next lower score belongs to a normal item: if it belonged only to
        # anomalous ones, including it would increase F1.
        return Bunch(
            f1=float(f1[best]),
            threshold=self.threshold_below(best),
            precision=hits / (hits + false_alarms),
            recall=hits / self.hits[-1].item(),
        )

    def threshold_below(self, index: int) -> float:
        """Return the middle of ``scores[index]`` and the next lower normal score.

        If no normal score is lower, return -inf.
        """
        n_below = np.searchsorted(self.normal, self.scores[index], side="left")
        normal_below = self.normal[:n_below]
        if normal_below.size == 0:
            return -np.inf
        lower, upper = normal_below[-1], self.scores[index]
        # In the dtype of the scores, so that comparing a float32 map with the threshold
        # does not round it. In NumPy 1, float32 * 0.5 would be a float64.
        half = self.scores.dtype.type(0.5)
        middle = half * lower + half * upper
        return float(middle if lower <= middle < upper else lower)

    def aupro(self, max_fpr: float) -> float:
        """Return the area under the overlap curve up to `max_fpr`, divided by it."""
        # Each score gives two corners, just above it and at it. The curve is flat up to
        # the first corner, and slopes between them if normal items have the same score.
        false_positives = np.stack([self.false_alarms_above, self.false_alarms], axis=1)
        overlap = np.stack([np.r_[0, self.overlap[:-1]], self.overlap], axis=1)
        x = np.r_[0, false_positives.ravel(), self.n_normal]
        y = np.r_[0, overlap.ravel(), 1]
        limit = max_fpr * self.n_normal
        inside = x <= limit
        at_limit = np.interp(limit, x, y)
        return float(auc(np.r_[x[inside], limit], np.r_[y[inside], at_limit]) / limit)


def rank(
    normal: NDArray,
    anomalous: NDArray,
    region_sizes: NDArray,
    *,
    weights: tuple[NDArray, NDArray] | None = None,
) -> Ranking:
    """Rank items. ``region_sizes[i]`` counts the items in the region of anomaly i.

    `weights` are positive numbers for normal and for anomalous items.
    """
    order = np.argsort(anomalous)[::-1]
    ranked = anomalous[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    scores = ranked[last_of_tie]
    if weights is None:
        normal = np.sort(normal)
        hits = last_of_tie + 1
        shares = 1 / region_sizes[order]
    else:
        ascending = np.argsort(normal, kind="stable")
        normal = normal[ascending]
        hits = np.cumsum(weights[1][order])[last_of_tie]
        n_below = np.concatenate([[0.0], np.cumsum(weights[0][ascending])])
        shares = weights[1][order] / region_sizes[order]
    overlap = np.cumsum(shares)[last_of_tie]
    below = [np.searchsorted(normal, scores, side) for side in ("left", "right")]
    n_normal: int | float = normal.size
    if weights is not None:
        below, n_normal = [n_below[index] for index in below], n_below[-1].item()
    return Ranking(
        normal=normal,
        n_normal=n_normal,
        scores=scores,
        hits=hits,
        # The last sum is the number of regions, except for rounding.
        overlap=overlap / overlap[-1],
        false_alarms=n_normal - below[0],
        false_alarms_above=n_normal - below[1],
    )


class UndefinedMetricError(ValueError):
    """A metric needs normal and anomalous items, but there are only those of a kind."""


def as_floating(values: NDArray) -> NDArray:
    """Keep a floating dtype, and convert any other one to float64."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)
