"""
=============
Where and why
=============

A number convinces nobody on the shop floor. Maps show where a picture is anomalous, and
the matched normal patches show why: this is the most similar that was seen in training.
"""

# %%
# A calibrated detector
# ---------------------
# A class of MVTec AD, if there is one, of it every fourth picture; else procedural
# pictures of wood.
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
    pictures = make_surface_defects(
        24, 2, 8, texture="wood", image_size=96, random_state=0
    )
    step, image_size = 1, 96
else:
    pictures, step, image_size = load_mvtec_ad(data_home, "bottle"), 4, 128
X, masks = pictures.data[::step], pictures.masks[::step]
is_train = pictures.split[::step] == "train"
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
# One colour scale for all, anchored in the calibration: 1/8 is the peak of a typical
# good picture, 1/2 the threshold. So a good picture stays dark instead of showing its
# own noise in full colour.
test = np.flatnonzero(~is_train)
decision = calibrated.decision_function(X[test])
shown = test[np.argsort(decision)[[0, 2, -1]]]
AnomalyMapDisplay.from_estimator(calibrated, X[shown], masks=masks[shown])
plt.show()

# %%
# Why
# ---
# The most anomalous patch of each, and the nearest patches in the memory bank, cut out
# of the pictures that they come from. A bank keeps only where its patches were, so it
# is given the training pictures again.
PatchMatchDisplay.from_estimator(calibrated, X[shown], training_images=train)
plt.show()

# %%
# Euclidean and cosine
# --------------------
# Two detectors side by side: each is drawn into axes of its own. What is near in one
# metric need not be in the other.
cosine = PatchCoreDetector(
    features, CoresetSampler(0.05), metric="cosine", random_state=0
).fit(train)
figure, axes = plt.subplots(2, 1, figsize=(9, 5.4), layout="constrained")
for ax, one, title in zip(
    axes, (calibrated, cosine), ("euclidean", "cosine"), strict=True
):
    PatchMatchDisplay.from_estimator(
        one, X[shown[:1]], training_images=train, titles=[title], ax=ax
    )
plt.show()

# %%
# A walk over the picture
# -----------------------
# For a talk or a report: an animation that shows each patch's match. A ``.gif`` needs
# nothing else, an ``.mp4`` needs ffmpeg.
with TemporaryDirectory() as folder:
    path = animate_patch_matches(
        calibrated,
        X[shown[0]],
        Path(folder, "walk.gif"),
        training_images=train,
        max_frames=4,
    )
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
