"""
==================
Backbones compared
==================

Any convolutional network, ViT or Swin of timm can describe patches; a small network
comes with the package, and a bank of Gabor filters needs no weights at all. Which one
fits your parts is for measurement to say: how well it finds defects, and what a picture
costs.
"""

# %%
# Candidates
# ----------
# With ``pretrained = True``, timm downloads the weights of its networks once. Without,
# they are random, so that this runs offline: that shows what the same code does, not
# how good a network is.
import time

import matplotlib.pyplot as plt

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import image_auroc

pretrained = False
weights, note = (None, "") if pretrained else ("random", "\n(random)")
candidates = {
    "gabor": ("gabor", ("fine", "coarse"), None),
    "embedded": ("embedded", ("layer2", "layer3"), None),
    f"resnet18{note}": ("resnet18", ("layer2", "layer3"), weights),
    f"mobilenetv2{note}": ("mobilenetv2_100", ("blocks.2", "blocks.4"), weights),
}

# %%
# Pictures
# --------
# A class of MVTec AD, if there is one, of it every fifth picture; else procedural ones.
data_home = find_mvtec_ad()
if data_home is None:
    pictures = make_surface_defects(
        16, 6, 16, texture="brushed", image_size=64, random_state=0
    )
    step, image_size = 1, 128
else:
    pictures, step, image_size = load_mvtec_ad(data_home, "bottle"), 5, 128
X, y = pictures.data[::step], pictures.target[::step]
is_train = pictures.split[::step] == "train"

# %%
# Measure
# -------
# The network is built in `fit`; what a picture costs is the time to score new ones.
auroc, milliseconds = [], []
for name, layers, of_name in candidates.values():
    features = PatchFeatureTransformer(
        name, layers, weights=of_name, image_size=image_size, random_state=0
    )
    detector = PatchCoreDetector(features, CoresetSampler(0.05), random_state=0)
    detector.fit(X[is_train])
    started = time.perf_counter()
    scores = detector.score_samples(X[~is_train])
    milliseconds.append(1e3 * (time.perf_counter() - started) / len(scores))
    auroc.append(image_auroc(y[~is_train], scores))
    print(f"{name:16} image AUROC {auroc[-1]:.3f}, {milliseconds[-1]:.1f} ms a picture")

# %%
# Compare
# -------
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, values, text, form in (
    (left, auroc, "image AUROC", "%.3f"),
    (right, milliseconds, "milliseconds a picture", "%.1f"),
):
    bars = ax.bar(list(candidates), values, color="0.7", edgecolor="0.25")
    ax.bar_label(bars, fmt=form, padding=2)
    ax.set_ylabel(text)
    ax.margins(y=0.15)
plt.show()
