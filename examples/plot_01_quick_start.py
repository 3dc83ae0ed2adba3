"""
===========
Quick start
===========

Fit on pictures of good surfaces only, then find defects in others.
"""

# %%
# Procedural pictures of a wooden surface stand in for a camera. The test pictures come
# with the true defects as masks.
import numpy as np

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import make_surface_defects
from skpatchcore.inspection import AnomalyMapDisplay
from skpatchcore.metrics import image_auroc

surfaces = make_surface_defects(24, 5, 10, texture="wood", random_state=0)
((train, test),) = surfaces.cv

# %%
# A bank of Gabor filters needs no download. For real parts take a pretrained network,
# ``PatchFeatureTransformer("wide_resnet50_2.tv_in1k")``, and as pictures a list of
# paths.
features = PatchFeatureTransformer("gabor", ("fine", "coarse"), image_size=128)
detector = PatchCoreDetector(features, random_state=0).fit(surfaces.data[train])

scores = detector.score_samples(surfaces.data[test])
print(f"image AUROC: {image_auroc(surfaces.target[test], scores):.3f}")

# %%
# Where are the defects? Maps are higher where a picture is more anomalous.
worst = test[np.argsort(scores)[:3]]
AnomalyMapDisplay.from_estimator(
    detector,
    surfaces.data[worst],
    masks=surfaces.masks[worst],
    titles=surfaces.defect_types[worst],
)
