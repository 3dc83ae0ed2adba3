"""
==================
Saving and serving
==================

Save a fitted detector, deploy it on another machine and inspect parts there. A model is
one small file. It contains no pickles and runs no code when it is opened.
"""

# %%
# Fit
# ---
# The script uses every fifth image of a category of MVTec AD if it finds the data set.
# Otherwise it generates images.
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
    dataset = make_surface_defects(
        24, 6, 12, texture="brushed", image_size=64, random_state=0
    )
    step = 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 5
train, test = (np.flatnonzero(dataset.split == s)[::step] for s in ("train", "test"))
features = PatchFeatureTransformer("embedded", image_size=128)
detector = ConformalDetector(
    PatchCoreDetector(features, CoresetSampler(0.1), random_state=0),
    alpha=0.05,
    method="refit",
    cv=3,
    random_state=0,
).fit(dataset.data[train])

# %%
# Save
# ----
# The file holds the memory bank, the parameters and the threshold. It leaves out the
# weights of the network unless you pass ``include_backbone=True``. It stores their
# hash, which is checked when the model is loaded.
temporary = TemporaryDirectory()
path = Path(temporary.name, "steel.skpc")
save(detector, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")

# %%
# Serve
# -----
# Load the model once and use it many times. The scores are bit-identical.
model = load(path)
scores = model.score_samples(dataset.data[test])
np.testing.assert_array_equal(scores, detector.score_samples(dataset.data[test]))


def judge(image):
    """Return the answer for a web service or a machine controller."""
    p_value = float(model.predict_pvalue([image])[0])
    return {"passed": p_value > model.alpha, "p_value": round(p_value, 3)}


photo = Path(temporary.name, "photo.png")
if data_home is None:
    Image.fromarray(dataset.data[test[-1]]).save(photo)
else:
    shutil.copy(dataset.data[test[-1]], photo)
print(judge(photo))

# %%
# The command line does the same without Python code:
#
# .. code-block:: console
#
#    $ skpatchcore fit good_parts --model steel.skpc
#    $ skpatchcore score --model steel.skpc new_parts --overlays overlays
#
# Inference time
# --------------
# Each call decodes the image, runs the network and searches the memory bank. If you
# have more than a few images, pass them together.
milliseconds = []
for image in dataset.data[test]:
    started = time.perf_counter()
    judge(image)
    milliseconds.append(1e3 * (time.perf_counter() - started))
print(f"median {np.median(milliseconds):.0f} ms per image, one at a time")
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.hist(milliseconds, bins=15, color="0.7", edgecolor="0.25")
ax.set(
    title="Inference time, one image at a time",
    xlabel="time per image (ms)",
    ylabel="number of images",
)
plt.show()
temporary.cleanup()
