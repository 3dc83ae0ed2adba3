"""
==============================
Your own folder, without masks
==============================

All that is needed are pictures of good parts in a folder. This is how one gets from
there to a detector with a known rate of false alarms, and to a list of what to look at
first. No defect has to be outlined by hand, or to be there at all.
"""

# %%
# A folder
# --------
# Here it is written first, with procedural pictures, or some of a class of MVTec AD if
# there is one. With your own, start at the next section.
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
from skpatchcore.scoring import score_pictures

temporary = TemporaryDirectory()
root = Path(temporary.name)
data_home = find_mvtec_ad()
if data_home is None:
    pictures = make_surface_defects(
        30, 8, 6, texture="knurled", image_size=96, random_state=0
    )
    step = 1
else:
    pictures, step = load_mvtec_ad(data_home, "bottle"), 5
for folder, split in (("good", "train"), ("new", "test")):
    (root / folder).mkdir()
    for i in np.flatnonzero(pictures.split == split)[::step]:
        path = root / folder / f"part_{i:03}.png"
        if isinstance(pictures.data[i], np.ndarray):
            Image.fromarray(pictures.data[i]).save(path)
        else:
            shutil.copy(pictures.data[i], path)
# One did not arrive as a whole, as happens.
(root / "new" / "part_099.png").write_bytes(b"\x89PNG")

# %%
# Learn and calibrate
# -------------------
# The pictures directly inside a folder are good parts to learn from.
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
# Sort what is new
# ----------------
# The most suspicious first. A p-value says how many of the good pictures were as odd;
# a file that cannot be read is reported, and does not end the run.
new = sorted((root / "new").iterdir())
results = score_pictures(detector, new, on_error="skip")
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
# Look at them
# ------------
# Without masks there is no truth to compare with; what is predicted is outlined.
suspects = [new[results.index[i]] for i in order[:3]]
AnomalyMapDisplay.from_estimator(detector, suspects)
plt.show()
temporary.cleanup()
