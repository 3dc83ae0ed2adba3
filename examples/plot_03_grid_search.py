"""
========================
Grid search with a cache
========================

Find the best size of the memory bank and the best number of neighbours with a grid
search. With ``memory=``, each image passes through the network only once, and the
coreset of each training set is selected only once, for any number of candidates.
"""

# %%
# The images
# ----------
# The script uses every fifth image of a category of MVTec AD if
# :func:`~skpatchcore.datasets.find_mvtec_ad` finds it. Otherwise it generates images of
# a brushed surface.
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        n_train=40, n_test_good=5, n_test_defective=15, image_size=64, random_state=0
    )
    X, y = dataset.data, dataset.target
else:
    dataset = load_mvtec_ad(data_home, "bottle")
    X, y = dataset.data[::5], dataset.target[::5]
print(f"{np.sum(y == 1)} normal and {np.sum(y == -1)} anomalous images")

# %%
# The network
# -----------
# The embedded network comes with the package. For real parts, use pretrained weights
# such as ``PatchFeatureTransformer("resnet18")``. timm downloads them once.
features = PatchFeatureTransformer("embedded", image_size=96)

# %%
# The search
# ----------
# :class:`~skpatchcore.model_selection.OneClassKFold` trains on normal images only. It
# tests on the held-out normal images and on the anomalous ones. Pass an int as
# `random_state`.
grid = {
    "sampler__fraction": [0.01, 0.03, 0.1, 0.25],
    "n_neighbors": [1, 3, 9],
}
cache = TemporaryDirectory()  # In your own work, use a permanent folder: "cache".
search = GridSearchCV(
    PatchCoreDetector(features, memory=cache.name, random_state=0),
    grid,
    scoring=image_auroc_scorer,
    cv=OneClassKFold(3, shuffle=True, random_state=0),
    error_score="raise",
).fit(X, y)
print(f"best: {search.best_params_}, AUROC {search.best_score_:.3f}")

# %%
# These are the seconds that each candidate took, in the order of the search. Only the
# first candidate runs the network. Later candidates reuse the cached features,
# coresets and neighbours.
times = search.cv_results_["mean_fit_time"] + search.cv_results_["mean_score_time"]
print("seconds per fold:", *(f"{seconds:.2f}" for seconds in times))

# %%
# The results
# -----------
shape = [len(grid[name]) for name in sorted(grid)]
auroc = search.cv_results_["mean_test_score"].reshape(shape)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
image = ax.imshow(auroc, cmap="viridis", aspect="auto")
ax.set(
    title="image AUROC, mean of three folds",
    xlabel="fraction of patches kept",
    ylabel="number of neighbours",
    xticks=range(shape[1]),
    xticklabels=grid["sampler__fraction"],
    yticks=range(shape[0]),
    yticklabels=grid["n_neighbors"],
)
dark = auroc < (auroc.min() + auroc.max()) / 2
for (row, column), value in np.ndenumerate(auroc):
    color = "white" if dark[row, column] else "black"
    ax.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
figure.colorbar(image, label="image AUROC")
plt.show()
cache.cleanup()
