"""
=======================
A scikit-learn pipeline
=======================

Put your own step between feature extraction and detection.
A :class:`~skpatchcore.PatchCoreDetector` consists of two estimators that you can also
use separately. :class:`~skpatchcore.PatchFeatureTransformer` turns images into patch
features, and :class:`~skpatchcore.PatchMemoryBank` detects outliers among them. In a
:class:`~sklearn.pipeline.Pipeline`, other steps can go between the two.
"""

# %%
# The images
# ----------
# The script uses every fifth image of a category of MVTec AD if
# :func:`~skpatchcore.datasets.find_mvtec_ad` finds it. Otherwise it generates images of
# cast iron.

import matplotlib.pyplot as plt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.metrics import RocCurveDisplay
from sklearn.pipeline import Pipeline

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import image_auroc

data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        24, 8, 16, texture="cast", image_size=64, random_state=0
    )
    step = 1
else:
    dataset, step = load_mvtec_ad(data_home, "bottle"), 5
X, y = dataset.data[::step], dataset.target[::step]
is_train = dataset.split[::step] == "train"

# %%
# Two steps
# ---------
# Patch features are an array of shape (n, h, w, d). The bank accepts this array
# directly.
steps = [
    ("features", PatchFeatureTransformer("embedded", image_size=128)),
    ("bank", PatchMemoryBank(CoresetSampler(0.1), random_state=0)),
]
pipeline = Pipeline(steps).fit(X[is_train])
scores = {"two steps": pipeline.score_samples(X[~is_train])}

# %%
# A step in between
# -----------------
# The transformers of scikit-learn work on rows. Here each row is a patch, so the step
# flattens the feature maps, reduces them and restores their shape. An ordinary class is
# enough.


class PatchPCA(TransformerMixin, BaseEstimator):
    """Principal components of patch features."""

    def __init__(self, n_components=16):
        self.n_components = n_components

    def fit(self, X, y=None):
        self.pca_ = PCA(self.n_components, random_state=0)
        self.pca_.fit(X.reshape(-1, X.shape[-1]))
        return self

    def transform(self, X):
        reduced = self.pca_.transform(X.reshape(-1, X.shape[-1]))
        return reduced.reshape(*X.shape[:-1], -1)


pipeline = Pipeline([steps[0], ("pca", PatchPCA()), steps[1]])
# Nested parameters work as in any pipeline, also in a grid search.
pipeline.set_params(pca__n_components=48, bank__n_neighbors=3)
pipeline.fit(X[is_train])
scores["with principal components"] = pipeline.score_samples(X[~is_train])

# %%
# The results
# -----------
# Scores are higher for more normal images, so the normal class is the positive one.
# ``RocCurveDisplay.from_estimator`` rejects outlier detectors, so the script uses
# ``from_predictions``.
figure, ax = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
lines = ({"color": "0.2"}, {"color": "0.5", "linestyle": "--"})
for (name, values), line in zip(scores.items(), lines, strict=True):
    print(f"{name:26} image AUROC {image_auroc(y[~is_train], values):.3f}")
    RocCurveDisplay.from_predictions(
        y[~is_train], values, name=name, ax=ax, curve_kwargs=line
    )
ax.set(
    title="ROC curves, test images",
    xlabel="share of defective images accepted",
    ylabel="share of good images accepted",
)
plt.show()
