"""
=================================
Explaining a score: where and why
=================================

Show where an image is anomalous, and why. An anomaly map (heat map) shows where. The
matched normal patches show why: they are the most similar patches seen in training.
"""

# %%
# A calibrated detector
# ---------------------
# The script uses every fourth image of a category of MVTec AD if it finds the data set.
# Otherwise it generates images of wood.
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import (
    AnomalyMapDisplay,
    PatchMatchDisplay,
    animate_patch_matches,
)

data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        24, 2, 8, texture="wood", image_size=96, random_state=0
    )
    step, image_size = 1, 96
else:
    dataset, step, image_size = load_mvtec_ad(data_home, "bottle"), 4, 128
X, masks = dataset.data[::step], dataset.masks[::step]
is_train = dataset.split[::step] == "train"
train = X[is_train]

features = PatchFeatureTransformer("embedded", image_size=image_size)
detector = PatchCoreDetector(features, CoresetSampler(0.05), random_state=0)
calibrated = ConformalDetector(
    detector, alpha=0.05, method="refit", cv=3, random_state=0
)
calibrated.fit(train)

# %%
# Where
# -----
# All maps share one colour scale, which comes from the calibration: 1/8 is the typical
# maximum of a good image's map, and 1/2 is the threshold. So a good image stays dark
# instead of showing its own noise in full colour.
test = np.flatnonzero(~is_train)
decision = calibrated.decision_function(X[test])
shown = test[np.argsort(decision)[[0, 2, -1]]]
display = AnomalyMapDisplay.from_estimator(calibrated, X[shown], masks=masks[shown])
display.figure_.suptitle("Where: two defective images and the most normal one")
plt.show()

# %%
# Why
# ---
# For each image, the display shows the most anomalous patch and the nearest patches in
# the memory bank, cut out of the training images that they come from. A bank stores
# only the positions of its patches, so pass the training images again.
display = PatchMatchDisplay.from_estimator(calibrated, X[shown], training_images=train)
display.figure_.suptitle("Why: the most anomalous patches and their nearest matches")
plt.show()

# %%
# Euclidean and cosine
# --------------------
# Compare two detectors by drawing each into its own axes. The nearest patches in one
# metric are not always the nearest in the other.
cosine = PatchCoreDetector(
    features, CoresetSampler(0.05), metric="cosine", random_state=0
).fit(train)
figure, axes = plt.subplots(2, 1, figsize=(9, 5.7), layout="constrained")
figure.suptitle("Nearest matches by Euclidean and by cosine distance")
for ax, one, title in zip(
    axes, (calibrated, cosine), ("euclidean", "cosine"), strict=True
):
    PatchMatchDisplay.from_estimator(
        one, X[shown[:1]], training_images=train, titles=[title], ax=ax
    )
plt.show()

# %%
# An animation of all patches
# ---------------------------
# For a talk or a report, an animation shows the match of each patch. A ``.gif`` needs
# no further software; an ``.mp4`` needs ffmpeg.
with TemporaryDirectory() as folder:
    path = animate_patch_matches(
        calibrated,
        X[shown[0]],
        Path(folder, "walk.gif"),
        training_images=train,
        max_frames=4,
    )
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
