"""
==========================
Threshold and false alarms
==========================

Set a threshold with a known false-alarm rate, that is, the share of good parts that are
rejected. The threshold from a plain fit states no rate, because the memory bank was
made to cover the training images.
A :class:`~skpatchcore.calibration.ConformalDetector` scores each training image with a
detector that was not fitted on it, and states the rate.
"""

# %%
# The images
# ----------
# The script generates images. Most of them are good, as in production. If it finds
# MVTec AD, it uses every third image of a category instead.

import matplotlib.pyplot as plt

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import ScoreDistributionDisplay

data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        40, 60, 20, texture="brushed", image_size=64, random_state=0
    )
    step = 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 3
X, y = dataset.data[::step], dataset.target[::step]
is_train = dataset.split[::step] == "train"

# %%
# Threshold from training scores
# ------------------------------
# This threshold is set to flag 5 % of the training images. It flags more of the new
# ones.
features = PatchFeatureTransformer("embedded", image_size=128)
detector = PatchCoreDetector(
    features, CoresetSampler(0.1), contamination=0.05, random_state=0
)
detector.fit(X[is_train])

# %%
# Threshold from held-out images
# ------------------------------
# Calibration needs good images only. With ``method="refit"``, a single detector scores
# new images, as fast as before.
calibrated = ConformalDetector(detector, alpha=0.05, method="refit", random_state=0)
calibrated.fit(X[is_train])

# %%
# The results
# -----------
# The legend states the false-alarm rate with its 95 % confidence interval. A few dozen
# good images say little about a rate of 1 %.
figure, axes = plt.subplots(2, 1, figsize=(7, 7.5), sharex=True, layout="constrained")
titles = ("threshold from training scores", "threshold from held-out images")
for ax, one, title in zip(axes, (detector, calibrated), titles, strict=True):
    display = ScoreDistributionDisplay.from_estimator(
        one, X[~is_train], y[~is_train], ax=ax
    )
    ax.set_ylabel(f"{title}\n{ax.get_ylabel()}")
    print(
        f"{title:33} {display.false_alarm_rate_:.1%} false alarms, "
        f"{display.miss_rate_:.1%} missed"
    )
plt.show()

# %%
# How many images do you need for a given rate? At least ``1 / alpha - 1``; with fewer,
# nothing could be flagged. This is the smallest rate that these images support:
print(f"{calibrated.min_alpha_:.3f}")
