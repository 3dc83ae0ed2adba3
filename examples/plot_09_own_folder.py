"""
==============================
Your own folder, without masks
==============================

Start with a folder of images of good parts. Get a detector with a known false-alarm
rate, and a list of the most suspicious new images. You need neither masks nor defective
images.
"""

# %%
# A folder
# --------
# The script first writes a folder of generated images, or of some images of MVTec AD if
# it finds the data set. If you have your own folder, start at the next section.
import csv
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import (
    find_mvtec_ad,
    load_image_folder,
    load_mvtec_ad,
    make_surface_defects,
)
from skpatchcore.inspection import AnomalyMapDisplay
from skpatchcore.scoring import score_images

temporary = TemporaryDirectory()
root = Path(temporary.name)
data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        30, 8, 6, texture="knurled", image_size=96, random_state=0
    )
    step = 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 5
for folder, split in (("good", "train"), ("new", "test")):
    (root / folder).mkdir()
    for i in np.flatnonzero(dataset.split == split)[::step]:
        path = root / folder / f"part_{i:03}.png"
        if isinstance(dataset.data[i], np.ndarray):
            Image.fromarray(dataset.data[i]).save(path)
        else:
            shutil.copy(dataset.data[i], path)
# One file is truncated, as can happen in practice.
(root / "new" / "part_099.png").write_bytes(b"\x89PNG")

# %%
# Fit and calibrate
# -----------------
# Images directly inside the folder are good parts to fit on.
good = load_image_folder(root / "good")
features = PatchFeatureTransformer("embedded", image_size=96)
detector = ConformalDetector(
    PatchCoreDetector(features, CoresetSampler(0.05), random_state=0),
    alpha=0.1,
    method="refit",
    cv=3,
    random_state=0,
).fit(good.data)

# %%
# Score and sort new images
# -------------------------
# The most suspicious images come first. A p-value is the share of good images that were
# at least as anomalous. With ``on_error="skip"``, an unreadable file is reported and
# does not stop the run.
new = sorted((root / "new").iterdir())
results = score_images(detector, new, on_error="skip")
order = np.argsort(results.score)
for i in order[:6]:
    name = new[results.index[i]].name
    print(f"{name}  score {results.score[i]:7.3f}  p-value {results.p_value[i]:.3f}")
for bad in results.unreadable:
    print(f"unreadable: {new[bad.index].name}")

with open(root / "to_look_at.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["path", "score", "p_value"])
    for i in order:
        table.writerow([new[results.index[i]], results.score[i], results.p_value[i]])

# %%
# Look at the most suspicious images
# ----------------------------------
# Without masks there is no ground truth to compare with. The display outlines the
# predicted defects (segmentation).
suspects = [new[results.index[i]] for i in order[:3]]
display = AnomalyMapDisplay.from_estimator(detector, suspects)
display.figure_.suptitle("The three most suspicious images")
plt.show()
temporary.cleanup()
