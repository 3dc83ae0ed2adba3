"""
==========================
Threshold and false alarms
==========================

How many good parts will be rejected? The threshold of a fit is too low for new
pictures: training patches lie in the memory bank or near it. A
:class:`~skpatchcore.calibration.ConformalDetector` scores each training picture by a
detector that has not seen it, and states a rate.
"""

# %%
# Pictures
# --------
# Many good ones, as in production; a class of MVTec AD if there is one, of it every
# third picture.

import matplotlib.pyplot as plt

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import ScoreDistributionDisplay

data_home = find_mvtec_ad()
if data_home is None:
    pictures = make_surface_defects(
        40, 60, 20, texture="brushed", image_size=64, random_state=0
    )
    step = 1
else:
    pictures, step = load_mvtec_ad(data_home, "bottle"), 3
X, y = pictures.data[::step], pictures.target[::step]
is_train = pictures.split[::step] == "train"

# %%
# The threshold of a fit
# ----------------------
# Meant to flag five percent of the training pictures, it flags most of the new ones.
features = PatchFeatureTransformer("embedded", image_size=128)
detector = PatchCoreDetector(
    features, CoresetSampler(0.1), contamination=0.05, random_state=0
)
detector.fit(X[is_train])

# %%
# A threshold from pictures held out
# ----------------------------------
# Only good pictures are needed. With method "refit" new pictures are scored by a single
# detector, as fast as before.
calibrated = ConformalDetector(detector, alpha=0.05, method="refit", random_state=0)
calibrated.fit(X[is_train])

# %%
# What comes of it
# ----------------
# The rate is given with its 95 % interval: a few dozen good pictures say little about
# one percent.
figure, axes = plt.subplots(2, 1, figsize=(7, 7.5), sharex=True, layout="constrained")
titles = ("threshold of the fit", "threshold from pictures held out")
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
# How many pictures does a rate take? At least ``1 / alpha - 1``, or nothing could be
# flagged; the smallest rate that these support:
print(f"{calibrated.min_alpha_:.3f}")
