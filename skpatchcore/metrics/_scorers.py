"""Scorers for searches and cross-validation."""

from __future__ import annotations

from numpy.typing import ArrayLike
from sklearn.metrics import make_scorer

from skpatchcore.metrics._image import average_precision, f1_max, image_auroc
from skpatchcore.metrics._pixel import (
    PixelInput,
    aupro,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
)
from skpatchcore.metrics._pixel_scorer import PixelScorer


def _f1_max_value(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Return the F1 of `f1_max` only, because a scorer returns one number."""
    return f1_max(y_true, y_score).f1


def _pixel_f1_max_value(masks: PixelInput, maps: PixelInput) -> float:
    return pixel_f1_max(masks, maps).f1


def _pixel_metrics_values(masks: PixelInput, maps: PixelInput) -> dict[str, float]:
    """Return all pixel-level metrics by name, for multi-metric scoring."""
    report = pixel_metrics(masks, maps)
    return {
        "pixel_auroc": report.auroc,
        "pixel_average_precision": report.average_precision,
        "pixel_f1_max": report.f1,
        "aupro": report.aupro,
    }


image_auroc_scorer = make_scorer(image_auroc, response_method="decision_function")


average_precision_scorer = make_scorer(
    average_precision, response_method="decision_function"
)


f1_max_scorer = make_scorer(_f1_max_value, response_method="decision_function")


pixel_auroc_scorer = PixelScorer("pixel_auroc_scorer", pixel_auroc)


pixel_average_precision_scorer = PixelScorer(
    "pixel_average_precision_scorer", pixel_average_precision
)


pixel_f1_max_scorer = PixelScorer("pixel_f1_max_scorer", _pixel_f1_max_value)


aupro_scorer = PixelScorer("aupro_scorer", aupro)


pixel_metrics_scorer = PixelScorer("pixel_metrics_scorer", _pixel_metrics_values)
