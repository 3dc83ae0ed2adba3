"""
===========================================
Choosing the coreset fraction by its radius
===========================================

Choose how many patches a memory bank must keep, without any defective image. The cover
radius is the largest distance from a training patch to the nearest patch kept. The
greedy picks are a prefix sequence, so one run shows the radius of every smaller
coreset.
"""

# %%
# Patch features of normal images
# -------------------------------
# The script uses every fifth image of a category of MVTec AD if it finds the data set.
# Otherwise it generates images.

import matplotlib.pyplot as plt
import numpy as np

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore.datasets import find_mvtec_ad, load_mvtec_ad, make_surface_defects
from skpatchcore.inspection import CoresetCurveDisplay
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

transformer = PatchFeatureTransformer("embedded", image_size=128)
train = transformer.fit_transform(X[is_train])
test = transformer.transform(X[~is_train])
patches = train.reshape(-1, train.shape[-1])
print("patches:", patches.shape)

# %%
# One run
# -------
# Patches selected at random leave distant patches uncovered. Greedy picks reach the
# same radius with far fewer patches.
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for method, line in (("random", "--"), ("greedy", "-")):
    sampler = CoresetSampler(0.5, method=method, random_state=0).fit(patches)
    display = CoresetCurveDisplay.from_estimator(
        sampler,
        name=method,
        ax=ax,
        linestyle=line,
        mark=0.1 if method == "greedy" else None,
    )
ax.set_title("Cover radius of two selection methods")
plt.show()

# %%
# Effect on detection
# -------------------
# Where the curve is flat, a larger bank costs time and changes little. If you have
# defective images, you can check this: see the image AUROC on the right.
fractions = [0.002, 0.01, 0.03, 0.1, 0.3]
auroc = []
for fraction in fractions:
    bank = PatchMemoryBank(CoresetSampler(fraction), random_state=0).fit(train)
    auroc.append(image_auroc(y[~is_train], bank.score_samples(test)))
    print(f"{fraction:5} of the patches: image AUROC {auroc[-1]:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
CoresetCurveDisplay.from_estimator(sampler, ax=left)
right.plot(np.array(fractions) * len(patches), auroc, "o-", color="0.25")
left.set_title("Cover radius")
right.set(
    title="Image AUROC", xscale="log", xlabel="patches kept", ylabel="image AUROC"
)
right.set_xlim(left.get_xlim())
right.grid(alpha=0.3)
plt.show()
