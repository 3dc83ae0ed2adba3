"""
==================
Saving and serving
==================

A fitted model is one small file without pickles, which executes nothing when it is
opened. Learn on one machine, judge parts on another.
"""

# %%
# Learn
# -----
# From procedural pictures, or every fifth one of a class of MVTec AD if there is one.
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.persistence import load, save

data_home = find_mvtec_ad()
if data_home is None:
    pictures = make_surface_defects(
        24, 6, 12, texture="brushed", image_size=64, random_state=0
    )
    step = 1
else:
    pictures, step = load_mvtec_ad(data_home, "bottle"), 5
train, test = (np.flatnonzero(pictures.split == s)[::step] for s in ("train", "test"))
features = PatchFeatureTransformer("embedded", image_size=128)
detector = ConformalDetector(
    PatchCoreDetector(features, CoresetSampler(0.1), random_state=0),
    alpha=0.05,
    method="refit",
    cv=3,
    random_state=0,
).fit(pictures.data[train])

# %%
# Save
# ----
# Bank, parameters and threshold. The weights of a network are left out unless asked
# for (``include_backbone=True``); their hash is kept, and checked when a model is
# loaded.
temporary = TemporaryDirectory()
path = Path(temporary.name, "steel.skpc")
save(detector, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")

# %%
# Serve
# -----
# Load once, judge many times. Scores are the same, bit for bit.
model = load(path)
scores = model.score_samples(pictures.data[test])
np.testing.assert_array_equal(scores, detector.score_samples(pictures.data[test]))


def judge(picture):
    """Return what a web service or a machine controller wants to know."""
    p_value = float(model.predict_pvalue([picture])[0])
    return {"passed": p_value > model.alpha, "p_value": round(p_value, 3)}


photo = Path(temporary.name, "photo.png")
if data_home is None:
    Image.fromarray(pictures.data[test[-1]]).save(photo)
else:
    shutil.copy(pictures.data[test[-1]], photo)
print(judge(photo))

# %%
# The command does the same without any Python:
#
# .. code-block:: console
#
#    $ skpatchcore fit good_parts --model steel.skpc
#    $ skpatchcore score --model steel.skpc new_parts --overlays overlays
#
# How long it takes
# -----------------
# Each call takes the way through decoding, network and search. For more than a few
# pictures pass them together.
milliseconds = []
for picture in pictures.data[test]:
    started = time.perf_counter()
    judge(picture)
    milliseconds.append(1e3 * (time.perf_counter() - started))
print(f"median {np.median(milliseconds):.0f} ms a picture, one at a time")
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.hist(milliseconds, bins=15, color="0.7", edgecolor="0.25")
ax.set(xlabel="milliseconds from picture to verdict", ylabel="pictures")
plt.show()
temporary.cleanup()
