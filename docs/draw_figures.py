"""Draw the figures of the user guide and the README from generated surfaces::

python docs/draw_figures.py [FOLDER]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Rectangle
from PIL import Image, ImageColor
from sklearn.decomposition import PCA

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._cli._demo import draw_sheet, run_demo
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects
from skpatchcore.inspection._colors import PREDICTED_MASK, TRUE_MASK

# Each colour has one meaning in all figures; markers keep them distinct in greyscale.
GOOD, DEFECT, PICKED, LINE = "#3b75af", "#d95f02", "#111111", "#666666"
HEAT = "inferno"
DPI = 110


def make_images(**settings):
    surfaces = make_surface_defects(
        40, 20, 20, texture="wood", random_state=0, **settings
    )
    ((train, test),) = surfaces.cv
    return surfaces, train, test


def make_features(**settings):
    return PatchFeatureTransformer(
        "gabor", ("fine", "coarse"), image_size=128, **settings
    )


def draw_patches(surfaces, train, test):
    """Draw an image, its grid of patches, and the patch features as colours."""
    features = make_features()
    patches = features.fit_transform(surfaces.data[train])
    defective = test[surfaces.target[test] == -1][3]
    grid = features.transform(surfaces.data[[defective]])[0]
    n_features = grid.shape[-1]
    colours = PCA(3, random_state=0).fit(patches.reshape(-1, n_features))
    shown = colours.transform(grid.reshape(-1, n_features))
    shown = shown.reshape(*grid.shape[:2], 3)
    low, high = np.percentile(shown, [1, 99], axis=(0, 1))
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    axes[0].imshow(surfaces.data[defective])
    axes[0].set_title("input image")
    axes[1].imshow(surfaces.data[defective])
    step = surfaces.data.shape[1] / len(grid)
    for i in range(1, len(grid)):
        axes[1].axhline(i * step - 0.5, color="white", linewidth=0.6)
        axes[1].axvline(i * step - 0.5, color="white", linewidth=0.6)
    axes[1].set_title(f"{len(grid)} × {len(grid)} patches")
    axes[2].imshow(np.clip((shown - low) / (high - low), 0, 1))
    axes[2].set_title(f"{n_features} features per patch, as colours")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure


def draw_coreset(surfaces, train, test):
    """Draw patches, the greedy picks that cover them, and the falling cover radius."""
    patches = make_features().fit_transform(surfaces.data[train])
    plane = PCA(2, random_state=0).fit_transform(patches.reshape(-1, patches.shape[-1]))
    plane = plane[::8]
    sampler = CoresetSampler(300, random_state=0).fit(plane)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
    for ax, n_picks in zip(axes, (10, 40), strict=False):
        picks = plane[sampler.sample_indices_[:n_picks]]
        ax.scatter(*plane.T, s=3, color=GOOD, alpha=0.5, linewidths=0)
        for pick in picks:
            radius = sampler.radii_[n_picks - 1]
            ax.add_patch(Circle(pick, radius, fill=False, color=LINE, linewidth=0.7))
        ax.scatter(*picks.T, s=26, color=PICKED, marker="x")
        ax.set(title=f"{n_picks} greedy picks cover all", xticks=[], yticks=[])
        ax.set(xlabel="first principal component", ylabel="second principal component")
        ax.set_aspect("equal", adjustable="datalim")
    counts = np.arange(1, len(sampler.radii_) + 1)
    axes[2].loglog(counts, sampler.radii_, color=PICKED)
    axes[2].set(
        title="cover radius",
        xlabel="number of greedy picks (log scale)",
        ylabel="feature distance (log scale)",
    )
    axes[2].grid(alpha=0.3)
    return figure


def draw_maps(surfaces, train, test):
    """Draw patch distances, the anomaly map, and the matched normal patch."""
    detector = PatchCoreDetector(make_features(), random_state=0)
    detector.fit(surfaces.data[train])
    scores = detector.score_samples(surfaces.data[test])
    image = surfaces.data[test[np.argmin(scores)]]
    distances = detector.predict_maps(image[None], size="grid")[0]
    match = detector.nearest_patches(image[None])
    row, column = np.unravel_index(distances.argmax(), distances.shape)
    step = len(image) / len(distances)
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    axes[0].imshow(image)
    axes[0].add_patch(frame(row, column, step))
    axes[0].set_title("new image, most anomalous patch", fontsize="medium")
    axes[1].imshow(distances, cmap=HEAT)
    axes[1].set_title("distance of each patch", fontsize="medium")
    drawn = axes[2].imshow(detector.predict_maps(image[None])[0], cmap=HEAT)
    axes[2].set_title("anomaly map", fontsize="medium")
    figure.colorbar(drawn, ax=axes[2], shrink=0.8, label="feature distance")
    source = int(match.image[0, row, column, 0])
    axes[3].imshow(surfaces.data[train][source])
    there = match.row[0, row, column, 0], match.column[0, row, column, 0]
    axes[3].add_patch(frame(*there, step))
    axes[3].set_title(f"nearest patch, good image {source}", fontsize="medium")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure


def frame(row, column, step):
    corner = (column - 1) * step - 0.5, (row - 1) * step - 0.5
    return Rectangle(corner, 3 * step, 3 * step, fill=False, color="white", linewidth=2)


def draw_threshold(surfaces, train, test):
    """Draw scores of training, new good and defective images, and two thresholds."""
    detector = PatchCoreDetector(make_features(), CoresetSampler(0.1), random_state=0)
    calibrated = ConformalDetector(detector, alpha=0.05, method="refit", random_state=0)
    calibrated.fit(surfaces.data[train])
    fitted = calibrated.estimators_[0]
    labels = surfaces.target[test]
    scores = -fitted.score_samples(surfaces.data[test])
    groups = {
        "training images": (-fitted.training_scores_, GOOD, "|"),
        "new good images": (scores[labels == 1], GOOD, "o"),
        "defective images": (scores[labels == -1], DEFECT, "^"),
    }
    figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    jitter = np.random.default_rng(0)
    for height, (values, color, marker) in enumerate(reversed(groups.values())):
        y = height + jitter.uniform(-0.18, 0.18, len(values))
        ax.scatter(values, y, s=40, color=color, marker=marker, alpha=0.8)
    training = "threshold from training scores"
    ax.axvline(-fitted.offset_, color=LINE, linestyle=":", label=training)
    held_out = "threshold calibrated for 5 % false alarms"
    ax.axvline(-calibrated.offset_, color=PICKED, label=held_out)
    ax.set(yticks=range(3), yticklabels=list(groups)[::-1], ylim=(-0.5, 2.5))
    ax.set_xlabel("anomaly score (negative of score_samples)")
    ax.set_title("scores of training images and of new images")
    ax.legend(loc="upper right")
    return figure


def save_demo_sheet(path):
    """Save the sheet of the demonstration smaller and with 256 colours."""
    with TemporaryDirectory() as scratch:
        sheet = Path(scratch, "sheet.png")
        draw_sheet(run_demo(), sheet)
        with Image.open(sheet) as opened:
            size = round(0.7 * opened.width), round(0.7 * opened.height)
            image = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    # Outlines have few pixels: a palette made of the image alone lacks their colours.
    outlines = [
        channel
        for color in (TRUE_MASK, PREDICTED_MASK, "white", "black")
        for channel in ImageColor.getrgb(color)
    ]
    others = image.quantize(252, Image.Quantize.FASTOCTREE).getpalette()[: 3 * 252]
    palette = Image.new("P", (1, 1))
    palette.putpalette(outlines + others)
    small = image.quantize(palette=palette, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main(folder: Path) -> None:
    images = make_images()
    for name in ("patches", "coreset", "maps", "threshold"):
        figure = globals()[f"draw_{name}"](*images)
        figure.savefig(folder / f"guide_{name}.png", dpi=DPI)
        plt.close(figure)
    save_demo_sheet(folder / "demo_sheet.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
