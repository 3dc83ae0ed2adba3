"""Draw the figures of a report, without pyplot, which may need a window system."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
)

from skpatchcore._images import check_images
from skpatchcore.inspection import (
    GUIDE,
    NEUTRAL,
    THRESHOLD,
    AnomalyMapDisplay,
    PatchMatchDisplay,
    ScoreDistributionDisplay,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Corner: TypeAlias = Literal["lower left", "lower right"]
_Layout: TypeAlias = Literal["constrained", "compressed"]
# Width in inches of a row of images.
_ROW_WIDTH = 10.5
# Options of scikit-learn's curves.
_CURVE: dict[str, Any] = {
    "name": "test images",
    "plot_chance_level": True,
    "chance_level_kw": {"color": GUIDE, "linestyle": ":"},
}


def _new_figure(
    width: float, height: float, layout: _Layout = "constrained"
) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _new_row(image: Any, n_images: int) -> "Figure":
    """Return a figure for a row of images, with the height that they need."""
    height, width = check_images([image])[0].shape[:2]
    image_width = _ROW_WIDTH / (n_images + 1)
    return _new_figure(
        _ROW_WIDTH, image_width * min(height / width, 2) + 0.9, "compressed"
    )


def draw_roc(target: np.ndarray, scores: np.ndarray, offset: float) -> "Figure":
    """Draw the ROC curve: defective images found against good ones flagged."""
    figure, ax = _new_curve()
    RocCurveDisplay.from_predictions(
        target, -scores, pos_label=-1, drop_intermediate=False, ax=ax, **_CURVE
    )
    flagged = scores < offset
    rates = [np.mean(flagged[target == label]) for label in (1, -1)]
    _mark_threshold(ax, *rates)
    ax.set(
        title="ROC curve",
        xlabel="share of good images flagged (false alarms)",
        ylabel="share of defective images found",
    )
    return _squared(figure, ax, "lower right")


def draw_precision_recall(
    target: np.ndarray, scores: np.ndarray, offset: float
) -> "Figure":
    """Draw precision (share of flagged images that are defective) against recall."""
    figure, ax = _new_curve()
    PrecisionRecallDisplay.from_predictions(
        target, -scores, pos_label=-1, ax=ax, **_CURVE
    )
    flagged = scores < offset
    if flagged.any():
        found = np.mean(flagged[target == -1])
        _mark_threshold(ax, found, np.mean(target[flagged] == -1))
    ax.set(
        title="Precision-recall curve",
        xlabel="share of defective images found (recall)",
        ylabel="share of defective among flagged (precision)",
    )
    return _squared(figure, ax, "lower left")


def _new_curve() -> "tuple[Figure, Axes]":
    """Return a figure and its axes, in which the first line has the curve colour."""
    figure = _new_figure(4, 4)
    ax = figure.subplots()
    # How to pass a colour to scikit-learn's displays differs between its versions.
    ax.set_prop_cycle(color=[NEUTRAL])
    return figure, ax


def _mark_threshold(ax: "Axes", x: float, y: float) -> None:
    (mark,) = ax.plot([x], [y], color=THRESHOLD, linestyle="none", label="threshold")
    mark.set(marker="D", markersize=7, markeredgecolor="white")


def _squared(figure: "Figure", ax: "Axes", legend: _Corner) -> "Figure":
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    ax.grid(alpha=0.3)
    ax.legend(loc=legend)
    return figure


def draw_densities(
    validation: np.ndarray,
    target: np.ndarray,
    scores: np.ndarray,
    offset: float,
    alpha: float,
) -> "Figure":
    """Draw scores of held-out training images (top) and of test images (bottom)."""
    figure = _new_figure(6.5, 6.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    ScoreDistributionDisplay.from_predictions(
        np.ones(len(validation), int), validation, threshold=offset, alpha=alpha, ax=top
    )
    ScoreDistributionDisplay.from_predictions(
        target, scores, threshold=offset, alpha=alpha, ax=bottom
    )
    top.set_xlabel("")
    for ax, title in ((top, "held-out training"), (bottom, "test")):
        ax.set_ylabel(f"{title} images\ndensity (peak = 1)")
    return figure


def draw_confusion(counts: np.ndarray) -> "Figure":
    """Draw the confusion matrix: true class (rows) and decision (columns)."""
    figure = _new_figure(3.6, 3.2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=["good", "defective"])
    limits = {"vmin": 0, "vmax": 1}
    display.plot(ax=figure.subplots(), cmap="Greys", colorbar=False, im_kw=limits)
    for text, count, share in zip(
        display.text_.flat, counts.flat, shares.flat, strict=True
    ):
        text.set_text(f"{count}\n{100 * share:.3g} %")
    display.ax_.set(
        title="Test images at the threshold",
        xlabel="decision",
        ylabel="true class",
        xticklabels=["passed", "flagged"],
    )
    return figure


def draw_map_row(
    image: Any, anomaly_map: np.ndarray, mask: Any, *, masks_known: bool
) -> "Figure":
    """Draw an image, its calibrated map, the overlay and the outlines in a row."""
    figure = _new_row(image, 4)
    display = AnomalyMapDisplay.from_predictions(
        [image],
        [anomaly_map],
        masks=[mask] if masks_known else None,
        threshold=0.5,
        titles=[""],
        calibrated=True,
        ax=figure.subplots(1, 4),
    )
    return display.figure_


def draw_match_row(image: Any, training_images: Sequence, places: dict) -> "Figure":
    """Draw the most anomalous patch and its nearest normal patches in a row."""
    n_neighbors = len(places["distances"])
    figure = _new_row(image, 2 + n_neighbors)
    display = PatchMatchDisplay.from_predictions(
        [image],
        [places["boxes"]],
        training_images=training_images,
        match_images=[places["match_images"]],
        match_boxes=[places["match_boxes"]],
        distances=[places["distances"]],
        titles=[""],
        ax=figure.subplots(1, 2 + n_neighbors),
    )
    return display.figure_
