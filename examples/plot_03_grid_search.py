"""
===============================
A grid for the price of one fit
===============================

How large must the memory bank be, and how many neighbours should be averaged? A grid
search answers. With ``memory=`` every picture passes the network once, and the coreset
of a training set is chosen once, whatever the number of candidates.
"""

# %%
# The pictures
# ------------
# A class of MVTec AD, if :func:`~skpatchcore.datasets.find_mvtec_ad` finds it. Else
# procedural pictures of a brushed surface. Every fifth picture is enough to see the
# point.
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
    pictures = make_surface_defects(
        n_train=40, n_test_good=5, n_test_defective=15, image_size=64, random_state=0
    )
    X, y = pictures.data, pictures.target
else:
    pictures = load_mvtec_ad(data_home, "bottle")
    X, y = pictures.data[::5], pictures.target[::5]
print(f"{np.sum(y == 1)} normal and {np.sum(y == -1)} anomalous pictures")

# %%
# The network
# -----------
# The embedded network comes with the package. For real parts use pretrained weights:
# ``PatchFeatureTransformer("resnet18")``, which timm downloads once.
features = PatchFeatureTransformer("embedded", image_size=96)

# %%
# The search
# ----------
# :class:`~skpatchcore.model_selection.OneClassKFold` trains on normal pictures alone
# and tests on held-out ones and the anomalies. Give an int as `random_state`.
grid = {
    "sampler__fraction": [0.01, 0.03, 0.1, 0.25],
    "n_neighbors": [1, 3, 9],
}
cache = TemporaryDirectory()  # for work of your own, a folder that stays: "cache"
search = GridSearchCV(
    PatchCoreDetector(features, memory=cache.name, random_state=0),
    grid,
    scoring=image_auroc_scorer,
    cv=OneClassKFold(3, shuffle=True, random_state=0),
    error_score="raise",
).fit(X, y)
print(f"best: {search.best_params_}, AUROC {search.best_score_:.3f}")

# %%
# What each candidate cost, in the order of the search: the first paid for the network,
# later ones cut coresets and neighbours from what is there.
times = search.cv_results_["mean_fit_time"] + search.cv_results_["mean_score_time"]
print("seconds a fold:", *(f"{seconds:.2f}" for seconds in times))

# %%
# The map of the grid
# -------------------
shape = [len(grid[name]) for name in sorted(grid)]
auroc = search.cv_results_["mean_test_score"].reshape(shape)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
image = ax.imshow(auroc, cmap="viridis", aspect="auto")
ax.set(
    title="image AUROC",
    xlabel="fraction of patches kept",
    ylabel="neighbours",
    xticks=range(shape[1]),
    xticklabels=grid["sampler__fraction"],
    yticks=range(shape[0]),
    yticklabels=grid["n_neighbors"],
)
dark = auroc < (auroc.min() + auroc.max()) / 2
for (row, column), value in np.ndenumerate(auroc):
    color = "white" if dark[row, column] else "black"
    ax.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
figure.colorbar(image)
plt.show()
cache.cleanup()
