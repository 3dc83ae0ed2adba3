"""
==============================
A handful of pictures to begin
==============================

On the first day of a line there are four pictures of good parts, not four hundred. How
much do more pictures help, and what can be made of those that are there?
"""

# %%
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
# ``augmentation`` makes further references of each picture: the patches of a mirrored
# picture are learned beside those of the picture itself. Thresholds and training scores
# are those of the pictures as they were given, and
# :meth:`~skpatchcore.PatchCoreDetector.nearest_patches` still names these and a place
# in them.
#
# With few pictures the bank is small anyway, so a coreset of a quarter of the patches
# is cheap. With a cache, each picture passes the network once.
options = {
    "as they are": None,
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
# References that were made help where they show what normal pictures vary in, and widen
# the bank for nothing elsewhere. The light on these surfaces varies a little; mirrored
# ones teach little that the texture does not show by itself. Where parts always lie the
# same way, turned references even make a part that lies wrong look normal: measure it
# on defects of your own, as here.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in curves.items():
    mean, spread = values.mean(axis=0), values.std(axis=0)
    (line,) = ax.plot(shots, mean, marker="o", label=name)
    ax.fill_between(
        shots, mean - spread, mean + spread, color=line.get_color(), alpha=0.1
    )
    print(f"{name:12}", " ".join(f"{value:.3f}" for value in mean))
ax.set(
    xscale="log",
    xticks=shots,
    xticklabels=shots,
    xlabel="pictures to learn from",
    ylabel="image AUROC, mean of two draws",
    title="Learning curves",
)
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# Where the object fills only the middle of the picture, ``foreground="auto"`` leaves
# the background out, and with it whatever lies there; on a surface that fills the
# picture it warns and looks at everything.
