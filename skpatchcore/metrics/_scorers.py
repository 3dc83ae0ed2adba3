"""Scorers for searches and cross-validation."""

from __future__ import annotations

from numpy.typing import ArrayLike

from skpatchcore.metrics._image import (
    average_precision,
    f1_max,
    image_auroc,
    image_metrics,
)
from skpatchcore.metrics._pixel import (
    PixelInput,
    aupro,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
)
from skpatchcore.metrics._scorer_types import (
    DetectionScorer,
    ImageScorer,
    Metrics,
    PixelScorer,
)


def _f1_max_value(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Return the F1 of `f1_max` only, because a scorer returns one number."""
    return f1_max(y_true, y_score, sample_weight=sample_weight).f1


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


_IMAGE_METRICS = Metrics(image_metrics, "image_auroc", "average_precision", "f1_max")
_PIXEL_METRICS = Metrics(
    _pixel_metrics_values,
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_f1_max",
    "aupro",
)

image_auroc_scorer = ImageScorer("image_auroc", Metrics(image_auroc, "image_auroc"))
average_precision_scorer = ImageScorer(
    "average_precision", Metrics(average_precision, "average_precision")
)
f1_max_scorer = ImageScorer("f1_max", Metrics(_f1_max_value, "f1_max"))
pixel_auroc_scorer = PixelScorer("pixel_auroc", Metrics(pixel_auroc, "pixel_auroc"))
pixel_average_precision_scorer = PixelScorer(
    "pixel_average_precision",
    Metrics(pixel_average_precision, "pixel_average_precision"),
)
pixel_f1_max_scorer = PixelScorer(
    "pixel_f1_max", Metrics(_pixel_f1_max_value, "pixel_f1_max")
)
aupro_scorer = PixelScorer("aupro", Metrics(aupro, "aupro"))
pixel_metrics_scorer = PixelScorer("pixel_metrics", _PIXEL_METRICS)
all_metrics_scorer = DetectionScorer("all_metrics", _IMAGE_METRICS, _PIXEL_METRICS)
