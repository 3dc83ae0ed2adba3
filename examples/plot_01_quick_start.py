"""
===========
Quick start
===========

Fit a detector on images of good surfaces, then find the defects in new images.
"""

# %%
# The data
# --------
# The script generates images of a wooden surface. If it finds MVTec AD on this machine,
# it uses every third image of the category ``bottle`` instead. The test images come
# with masks of the true defects.

import numpy as np

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import AnomalyMapDisplay
from skpatchcore.metrics import image_auroc

data_home = find_mvtec_ad()
if data_home is None:
    dataset, step = make_surface_defects(24, 5, 10, texture="wood", random_state=0), 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 3
train, test = (np.flatnonzero(dataset.split == s)[::step] for s in ("train", "test"))

# %%
# Fit and score
# -------------
# The embedded network comes with the package. For real parts, use a network that was
# trained on photographs, such as
# ``PatchFeatureTransformer("wide_resnet50_2.tv_in1k")``, and pass the images as a list
# of paths.
features = PatchFeatureTransformer("embedded", image_size=128)
detector = PatchCoreDetector(features, random_state=0).fit(dataset.data[train])

scores = detector.score_samples(dataset.data[test])
print(f"image AUROC: {image_auroc(dataset.target[test], scores):.3f}")

# %%
# Find the defects
# ----------------
# An anomaly map (heat map) is higher where the image is more anomalous.
worst = test[np.argsort(scores)[:3]]
display = AnomalyMapDisplay.from_estimator(
    detector,
    dataset.data[worst],
    masks=dataset.masks[worst],
    titles=dataset.defect_types[worst],
)
display.figure_.suptitle("The three most anomalous test images")
