"""Exact counts of one ranking of scores, for all metrics at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc
from sklearn.utils import Bunch


@dataclass(frozen=True)
class _Ranking:
    """Normal and anomalous items, ranked by a score that is higher for anomalous.

    Hits and overlap grow only at the score of an anomalous item, so the counts at
    those scores say everything: normal items are sorted but never ranked one by one.
    """

    normal: NDArray  # (n_normal,), ascending
    scores: NDArray  # (m,), distinct scores of anomalous items, descending
    hits: NDArray  # (m,), anomalous items at or above each score
    overlap: NDArray  # (m,), mean share of a region at or above each score
    false_alarms: NDArray  # (m,), normal items at or above each score
    false_alarms_above: NDArray  # (m,), normal items strictly above each score

    def auroc(self) -> float:
        """Probability that an anomalous item outranks a normal one, ties half."""
        n_normal, n_anomalous = self.normal.size, int(self.hits[-1])
        twice_outranked = 2 * n_normal - self.false_alarms - self.false_alarms_above
        twice_wins = int(np.diff(self.hits, prepend=0) @ twice_outranked)
        return twice_wins / (2 * n_normal * n_anomalous)

    def average_precision(self) -> float:
        """Mean precision at the score of each anomalous item."""
        precision = self.hits / (self.hits + self.false_alarms)
        return float(np.diff(self.hits, prepend=0) @ precision / self.hits[-1])

    def best_f1(self) -> Bunch:
        """Largest F1; the first of equals has the fewest false alarms."""
        f1 = 2 * self.hits / (self.hits[-1] + self.hits + self.false_alarms)
        best = int(np.argmax(f1))
        hits, false_alarms = int(self.hits[best]), int(self.false_alarms[best])
        # The next score below the best is a normal item's: one that brings hits alone
        # would have raised F1.
        return Bunch(
            f1=float(f1[best]),
            threshold=self.threshold_below(best),
            precision=hits / (hits + false_alarms),
            recall=hits / int(self.hits[-1]),
        )

    def threshold_below(self, index: int) -> float:
        """Midway from ``scores[index]`` to the next normal score below, or -inf."""
        normal_below = self.normal[: self.normal.size - self.false_alarms[index]]
        if normal_below.size == 0:
            return -np.inf
        lower, upper = normal_below[-1], self.scores[index]
        # In the dtype of the scores, or comparing a float32 map would round it again;
        # NumPy 1 would make float32 * 0.5 a float64.
        half = self.scores.dtype.type(0.5)
        middle = half * lower + half * upper
        return float(middle if lower <= middle < upper else lower)

    def aupro(self, max_fpr: float) -> float:
        """Normalised area under overlap against false positives, up to `max_fpr`."""
        # Two corners for each score, just above and at it: the curve is flat up to the
        # first, and slopes between them where the score ties with normal items.
        false_positives = np.stack([self.false_alarms_above, self.false_alarms], axis=1)
        overlap = np.stack([np.r_[0, self.overlap[:-1]], self.overlap], axis=1)
        x = np.r_[0, false_positives.ravel(), self.normal.size]
        y = np.r_[0, overlap.ravel(), 1]
        limit = max_fpr * self.normal.size
        inside = x <= limit
        at_limit = np.interp(limit, x, y)
        return float(auc(np.r_[x[inside], limit], np.r_[y[inside], at_limit]) / limit)


def _rank(normal: NDArray, anomalous: NDArray, region_sizes: NDArray) -> _Ranking:
    """Rank items; ``region_sizes[i]`` counts the items in the region of anomaly i."""
    normal = np.sort(normal)
    order = np.argsort(anomalous)[::-1]
    ranked = anomalous[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    scores = ranked[last_of_tie]
    overlap = np.cumsum(1 / region_sizes[order])[last_of_tie]
    return _Ranking(
        normal=normal,
        scores=scores,
        hits=last_of_tie + 1,
        # The last sum is the number of regions, but for rounding.
        overlap=overlap / overlap[-1],
        false_alarms=normal.size - np.searchsorted(normal, scores, side="left"),
        false_alarms_above=normal.size - np.searchsorted(normal, scores, side="right"),
    )


def _as_floating(values: NDArray) -> NDArray:
    """Keep a floating dtype as it is, turn any other one into float64."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)
