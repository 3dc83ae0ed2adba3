"""
===================
Comparing backbones
===================

Measure which backbone suits your parts: how well it finds defects, and how long it
takes per image. The backbone can be any convolutional network, ViT or Swin of timm. A
small network comes with the package, and a bank of Gabor filters needs no weights.
"""

# %%
# Candidates
# ----------
# With ``pretrained = True``, timm downloads the weights of its networks once. With
# ``False``, the weights are random, so that the script runs offline. Random weights
# show that the code runs, not how good a network is.
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
# The images
# ----------
# The script uses every fifth image of a category of MVTec AD if it finds the data set.
# Otherwise it generates images.
data_home = find_mvtec_ad()
if data_home is None:
    dataset = make_surface_defects(
        16, 6, 16, texture="brushed", image_size=64, random_state=0
    )
    step, image_size = 1, 128
else:
    dataset, step, image_size = load_mvtec_ad(data_home, "bottle"), 5, 128
X, y = dataset.data[::step], dataset.target[::step]
is_train = dataset.split[::step] == "train"

# %%
# Measure
# -------
# The network is built in `fit`. The time per image is that of inference: scoring new
# images.
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
    print(f"{name:16} image AUROC {auroc[-1]:.3f}, {milliseconds[-1]:.1f} ms per image")

# %%
# Compare
# -------
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, values, title, unit, form in (
    (left, auroc, "Detection", "image AUROC", "%.3f"),
    (right, milliseconds, "Inference time", "time per image (ms)", "%.1f"),
):
    bars = ax.bar(list(candidates), values, color="0.7", edgecolor="0.25")
    ax.bar_label(bars, fmt=form, padding=2)
    ax.set(title=title, xlabel="backbone", ylabel=unit)
    ax.margins(y=0.15)
plt.show()
