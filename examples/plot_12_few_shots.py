"""
====================================
Few-shot: starting with a few images
====================================

Start with only a few images of good parts, as on the first day of a production line.
Measure how much each further image helps, and whether augmentation helps.
"""

# %%
# The images
# ----------
# The script generates images of cast iron.
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import image_auroc

surfaces = make_surface_defects(
    n_train=16,
    n_test_good=8,
    n_test_defective=16,
    texture="cast",
    image_size=64,
    random_state=0,
)
((train, test),) = surfaces.cv

# %%
# One curve for each option
# -------------------------
# ``augmentation`` adds transformed copies of each image as reference images. With
# ``"flip"``, for example, the detector also learns the patches of the mirrored image.
# Thresholds and training scores come from the original images only.
# :meth:`~skpatchcore.PatchCoreDetector.nearest_patches` still returns an original image
# and a position in it.
#
# With few images the bank is small, so a coreset of a quarter of the patches is cheap.
# With a cache, each image passes through the network only once.
options = {
    "none": None,
    "flip": "flip",
    "brightness": "brightness",
}
shots, n_draws = (1, 4, 16), 2
curves = {name: np.empty((n_draws, len(shots))) for name in options}
cache = TemporaryDirectory()
features = PatchFeatureTransformer("embedded", image_size=96, memory=cache.name)
for name, augmentation in options.items():
    for draw in range(n_draws):
        order = np.random.default_rng(draw).permutation(train)
        for i, n in enumerate(shots):
            detector = PatchCoreDetector(
                features,
                CoresetSampler(0.25),
                augmentation=augmentation,
                random_state=0,
            ).fit(surfaces.data[order[:n]])
            scores = detector.score_samples(surfaces.data[test])
            curves[name][draw, i] = image_auroc(surfaces.target[test], scores)
cache.cleanup()

# %%
# What helps
# ----------
# Augmentation helps if it shows a variation that normal images have. Otherwise it only
# enlarges the bank. The light on these surfaces varies a little. Mirrored images add
# little that the texture does not show already. If your parts are always aligned,
# rotated references can even make a misplaced part look normal. Measure the effect on
# your own defects, as here.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in curves.items():
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    (line,) = ax.plot(shots, mean, marker="o", label=name)
    ax.fill_between(
        shots, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.1
    )
    print(f"{name:12}", " ".join(f"{value:.3f}" for value in mean))
ax.set(
    xscale="log",
    xticks=shots,
    xticklabels=shots,
    xlabel="number of training images",
    ylabel="image AUROC",
    title="Learning curves, mean of two draws",
)
ax.minorticks_off()
ax.legend(title="augmentation\n(band: ± 1 standard deviation)")
plt.show()

# %%
# If the object fills only the middle of the image, ``foreground="auto"`` ignores the
# background and any defect in it. On a surface that fills the image, it issues a
# warning and uses all patches.
