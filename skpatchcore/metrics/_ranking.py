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
    """

    normal: NDArray  # (n_normal,), ascending
    scores: NDArray  # (m,), distinct scores of anomalous items, descending
    hits: NDArray  # (m,), anomalous items at or above each score
    overlap: NDArray  # (m,), mean share of a region at or above each score
    false_alarms: NDArray  # (m,), normal items at or above each score
    false_alarms_above: NDArray  # (m,), normal items strictly above each score

    def auroc(self) -> float:
        """Return the probability that an anomalous item ranks higher (ties half)."""
        n_normal, n_anomalous = self.normal.size, int(self.hits[-1])
        twice_outranked = 2 * n_normal - self.false_alarms - self.false_alarms_above
        twice_wins = int(np.diff(self.hits, prepend=0) @ twice_outranked)
        return twice_wins / (2 * n_normal * n_anomalous)

    def average_precision(self) -> float:
        """Return the precision at the score of each anomalous item, averaged."""
        precision = self.hits / (self.hits + self.false_alarms)
        return float(np.diff(self.hits, prepend=0) @ precision / self.hits[-1])

    def best_f1(self) -> Bunch:
        """Return the largest F1. Among equal ones, it has the fewest false alarms."""
        f1 = 2 * self.hits / (self.hits[-1] + self.hits + self.false_alarms)
        best = int(np.argmax(f1))
        hits, false_alarms = int(self.hits[best]), int(self.false_alarms[best])
        # The next lower score belongs to a normal item: if it belonged only to
        # anomalous ones, including it would increase F1.
        return Bunch(
            f1=float(f1[best]),
            threshold=self.threshold_below(best),
            precision=hits / (hits + false_alarms),
            recall=hits / int(self.hits[-1]),
        )

    def threshold_below(self, index: int) -> float:
        """Return the middle of ``scores[index]`` and the next lower normal score.

        If no normal score is lower, return -inf.
        """
        normal_below = self.normal[: self.normal.size - self.false_alarms[index]]
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
        x = np.r_[0, false_positives.ravel(), self.normal.size]
        y = np.r_[0, overlap.ravel(), 1]
        limit = max_fpr * self.normal.size
        inside = x <= limit
        at_limit = np.interp(limit, x, y)
        return float(auc(np.r_[x[inside], limit], np.r_[y[inside], at_limit]) / limit)


def rank(normal: NDArray, anomalous: NDArray, region_sizes: NDArray) -> Ranking:
    """Rank items. ``region_sizes[i]`` counts the items in the region of anomaly i."""
    normal = np.sort(normal)
    order = np.argsort(anomalous)[::-1]
    ranked = anomalous[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    scores = ranked[last_of_tie]
    overlap = np.cumsum(1 / region_sizes[order])[last_of_tie]
    return Ranking(
        normal=normal,
        scores=scores,
        hits=last_of_tie + 1,
        # The last sum is the number of regions, except for rounding.
        overlap=overlap / overlap[-1],
        false_alarms=normal.size - np.searchsorted(normal, scores, side="left"),
        false_alarms_above=normal.size - np.searchsorted(normal, scores, side="right"),
    )


def as_floating(values: NDArray) -> NDArray:
    """Keep a floating dtype, and convert any other one to float64."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)
