"""
===========
Quick start
===========

Fit on pictures of good surfaces only, then find defects in others.
"""

# %%
# Procedural pictures of a wooden surface stand in for a camera; or, if there is one, a
# class of MVTec AD, of it every third picture. The test pictures come with the true
# defects as masks.

import numpy as np

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import AnomalyMapDisplay
from skpatchcore.metrics import image_auroc

data_home = find_mvtec_ad()
if data_home is None:
    pictures, step = make_surface_defects(24, 5, 10, texture="wood", random_state=0), 1
else:
    pictures, step = load_mvtec_ad(data_home, "bottle"), 3
train, test = (np.flatnonzero(pictures.split == s)[::step] for s in ("train", "test"))

# %%
# The embedded network comes with the package. For real parts take one that was trained
# on photographs, ``PatchFeatureTransformer("wide_resnet50_2.tv_in1k")``, and as
# pictures a list of paths.
features = PatchFeatureTransformer("embedded", image_size=128)
detector = PatchCoreDetector(features, random_state=0).fit(pictures.data[train])

scores = detector.score_samples(pictures.data[test])
print(f"image AUROC: {image_auroc(pictures.target[test], scores):.3f}")

# %%
# Where are the defects? Maps are higher where a picture is more anomalous.
worst = test[np.argsort(scores)[:3]]
AnomalyMapDisplay.from_estimator(
    detector,
    pictures.data[worst],
    masks=pictures.masks[worst],
    titles=pictures.defect_types[worst],
)
