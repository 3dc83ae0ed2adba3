"""
===================
Comparing backbones
===================

Measure which backbone suits your parts: how well it finds defects, and how long
inference takes per image. The backbone can be any convolutional network, ViT or Swin of
timm. A small network comes with the package, and a bank of Gabor filters needs no
weights.
"""

# %%
# Candidates
# ----------
# With ``pretrained = True``, timm downloads the weights of its networks once. With
# ``False``, the script runs offline, and the networks of timm have random weights. They
# take the same time, but their AUROC would be meaningless, so it is left out.
import time

import matplotlib.pyplot as plt

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.metrics import image_auroc

pretrained = False
candidates = {
    "gabor": ("fine", "coarse"),
    "embedded": ("layer2", "layer3"),
    "mobilenetv2_100": ("blocks.2", "blocks.4"),
    "resnet18": ("layer2", "layer3"),
}
untrained = set() if pretrained else {"mobilenetv2_100", "resnet18"}

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
auroc, milliseconds = {}, {}
for name, layers in candidates.items():
    features = PatchFeatureTransformer(
        name,
        layers,
        weights="random" if name in untrained else None,
        image_size=image_size,
        random_state=0,
    )
    detector = PatchCoreDetector(features, CoresetSampler(0.05), random_state=0)
    detector.fit(X[is_train])
    started = time.perf_counter()
    scores = detector.score_samples(X[~is_train])
    milliseconds[name] = 1e3 * (time.perf_counter() - started) / len(scores)
    print(f"{name:16} {milliseconds[name]:5.1f} ms per image", end="")
    if name not in untrained:
        auroc[name] = image_auroc(y[~is_train], scores)
        print(f", image AUROC {auroc[name]:.3f}", end="")
    print()

# %%
# Compare
# -------
# A network without a bar on the left has random weights.
names = list(candidates)
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3), sharey=True, layout="constrained"
)
for ax, values, title, unit, form in (
    (left, auroc, "Detection", "image AUROC", "%.3f"),
    (right, milliseconds, "Inference time", "time per image (ms)", "%.1f"),
):
    rows = [names.index(name) for name in values]
    bars = ax.barh(rows, list(values.values()), color="0.7", edgecolor="0.25")
    ax.bar_label(bars, fmt=form, padding=3)
    ax.set(title=title, xlabel=unit)
    ax.margins(x=0.2)
left.set(ylabel="backbone", yticks=range(len(names)), yticklabels=names)
left.invert_yaxis()
plt.show()
