"""
=====================================================
Extracting features once to compare several detectors
=====================================================

Extract patch features once, then compare detectors on them. Patch features are plain
arrays, so you can use any detector that accepts arrays. Here
:class:`~skpatchcore.PatchMemoryBank` looks at every patch. An
:class:`~sklearn.ensemble.IsolationForest` and a :class:`~sklearn.svm.OneClassSVM` get
one vector per image, the mean over its patches.
"""

# %%
# The images
# ----------
# The script uses every third image of a category of MVTec AD if it finds the data set.
# Otherwise it generates images.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.metrics import RocCurveDisplay
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import image_auroc

data_home = find_mvtec_ad()
if data_home is None:
    dataset, step = make_surface_defects(texture="cast", random_state=0), 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 3
train, test = (np.flatnonzero(dataset.split == s)[::step] for s in ("train", "test"))

# %%
# Extract
# -------
# A :class:`~skpatchcore.PatchFeatureTransformer` learns the weights of its layers, so
# fit it on the training images only.
transformer = PatchFeatureTransformer("embedded", image_size=128)
patches = {"train": transformer.fit_transform(dataset.data[train])}
patches["test"] = transformer.transform(dataset.data[test])
means = {name: features.mean(axis=(1, 2)) for name, features in patches.items()}
print("patches:", patches["train"].shape, " means:", means["train"].shape)

# %%
# Compare
# -------
detectors = {
    "memory bank, 1 % of patches": PatchMemoryBank(
        CoresetSampler(0.01), random_state=0
    ),
    "memory bank, 10 % of patches": PatchMemoryBank(
        CoresetSampler(0.1), random_state=0
    ),
    "memory bank, 10 %, top 2 % averaged": PatchMemoryBank(
        CoresetSampler(0.1), reduction=0.02, random_state=0
    ),
    "isolation forest on means": IsolationForest(random_state=0),
    "one-class SVM on means": make_pipeline(StandardScaler(), OneClassSVM(nu=0.05)),
}
labels = dataset.target[test]
scores = {}
for name, detector in detectors.items():
    data = patches if isinstance(detector, PatchMemoryBank) else means
    scores[name] = detector.fit(data["train"]).decision_function(data["test"])
    print(f"{name:36} image AUROC {image_auroc(labels, scores[name]):.3f}")

# %%
# A defect is small. It hardly changes the mean over an image, but it changes the most
# distant patch.
#
# Scores are higher for more normal images, so the normal class is the positive one.
# ``RocCurveDisplay.from_estimator`` rejects outlier detectors, so the script uses
# ``from_predictions``.
figure, ax = plt.subplots(figsize=(5, 5), layout="constrained")
lines = ("-", "--", "-.", ":", (0, (1, 4)))
shades = plt.colormaps["cividis"](np.linspace(0, 0.8, len(scores)))
for (name, values), line, color in zip(scores.items(), lines, shades, strict=True):
    RocCurveDisplay.from_predictions(
        labels,
        values,
        name=name,
        ax=ax,
        curve_kwargs={"linestyle": line, "color": color},
    )
ax.set(
    title="ROC curves, test images",
    xlabel="share of defective images accepted",
    ylabel="share of good images accepted",
)
plt.show()
assert np.isfinite(list(scores.values())).all()
