"""
====================
MVTec AD, end to end
====================

Run the whole benchmark on the categories of MVTec AD that you have: fit, calibrate,
measure and plot, down to a table of results. With all 15 categories, this is the
benchmark of the PatchCore paper (Roth et al., CVPR 2022). If you have none, the script
generates images instead.
"""

# %%
# Data
# ----
# :func:`~skpatchcore.datasets.fetch_mvtec_ad` downloads categories to the folder in
# which :func:`~skpatchcore.datasets.find_mvtec_ad` looks for them. MVTec AD is by MVTec
# Software GmbH (Bergmann et al., CVPR 2019), under the licence CC BY-NC-SA 4.0, which
# does not permit commercial use.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import (
    find_mvtec_ad,
    load_mvtec_ad,
    make_surface_defects,
    mvtec_ad_categories,
    read_masks,
)
from skpatchcore.inspection import AnomalyMapDisplay, ScoreDistributionDisplay
from skpatchcore.metrics import average_precision, image_auroc, pixel_metrics

data_home = find_mvtec_ad()
if data_home is None:
    categories, step = ["brushed", "wood"], 1
else:
    # Every sixth image saves time. For the benchmark, set the step to 1.
    categories, step = mvtec_ad_categories(data_home), 6


def load(category):
    if data_home is None:
        return make_surface_defects(
            21, 5, 8, texture=category, image_size=64, random_state=0
        )
    return load_mvtec_ad(data_home, category)


# %%
# The detector
# ------------
# This detector uses the embedded network, which comes with the package. The paper uses
# ``PatchFeatureTransformer("wide_resnet50_2.tv_in1k", image_size=256, crop_size=224)``.
# timm downloads its weights once.
features = PatchFeatureTransformer("embedded", image_size=128)
detector = PatchCoreDetector(features, CoresetSampler(0.1), random_state=0)

# %%
# Fit and measure each category
# -----------------------------
# Both the detector and the threshold are learned from good images only. The threshold
# is meant to flag at most 5 % of new good images.
results, figures = {}, {}
for category in categories:
    dataset = load(category)
    X, y, masks = (
        values[::step] for values in (dataset.data, dataset.target, dataset.masks)
    )
    is_train = dataset.split[::step] == "train"
    calibrated = ConformalDetector(
        detector, alpha=0.05, method="refit", cv=3, random_state=0
    ).fit(X[is_train])
    X, y, masks = X[~is_train], y[~is_train], masks[~is_train]
    scores, maps = calibrated.score_samples(X), calibrated.predict_maps(X)
    flagged = scores < calibrated.offset_
    pixels = pixel_metrics(read_masks(masks, X), maps)
    results[category] = {
        "image AUROC": image_auroc(y, scores),
        "image AP": average_precision(y, scores),
        "pixel AUROC": pixels.auroc,
        "AUPRO": pixels.aupro,
        "false alarms": np.mean(flagged[y == 1]),
        "found": np.mean(flagged[y == -1]),
    }
    figures[category] = (calibrated, X, y, masks, scores)

# %%
# Results
# -------
# ``skpatchcore benchmark DATA_ROOT --report`` writes such a table as CSV, JSON,
# Markdown and LaTeX, together with published results, and an HTML page for each
# category.
columns = list(next(iter(results.values())))
print(" " * 12, *(f"{name:>12}" for name in columns))
for category, row in results.items():
    print(f"{category:12}", *(f"{value:12.3f}" for value in row.values()))
mean = np.mean([list(row.values()) for row in results.values()], axis=0)
print(f"{'mean':12}", *(f"{value:12.3f}" for value in mean))

# %%
# Plots
# -----
# For each category, plot the scores, and the most and least anomalous of its defective
# images.
for category, (calibrated, X, y, masks, scores) in figures.items():
    display = ScoreDistributionDisplay.from_predictions(
        y, scores, threshold=calibrated.offset_, alpha=calibrated.alpha
    )
    display.figure_.suptitle(f"{category}: scores of the test images")
    defective = np.flatnonzero(y == -1)
    shown = defective[np.argsort(scores[defective])[[0, -1]]]
    display = AnomalyMapDisplay.from_estimator(calibrated, X[shown], masks=masks[shown])
    display.figure_.suptitle(f"{category}: most and least anomalous defective image")
    plt.show()
