"""Metrics of anomaly detection, for images and for pixels.

Which way is up
    *Image-level* metrics take what an outlier detector of scikit-learn gives: labels
    +1 (normal) and -1 (anomalous), and scores from ``score_samples`` or
    ``decision_function``, where **higher is more normal**. *Pixel-level* metrics take
    anomaly maps, where **higher is more anomalous**. The anomalous class is the one
    to be found everywhere: precision, recall, F1 and average precision are its own.

Why not the scorers named ``"roc_auc"`` and ``"average_precision"``
    They take the larger label for the class to be found and a larger score for more
    of it. With labels +1/-1 that is the *normal* class: ``"roc_auc"`` happens to be
    the same for both classes, but ``"average_precision"`` rates how well normal
    images are found, which is near 1 as soon as most images are normal. With
    labels 0/1, 1 for anomalous, label and score point in opposite directions and
    ``"roc_auc"`` silently becomes 1 - AUROC. Use `image_auroc_scorer`,
    `average_precision_scorer` and `f1_max_scorer` in ``cross_validate`` and
    ``GridSearchCV``; they refuse labels other than +1/-1.

Scorers of anomaly maps
    `pixel_auroc_scorer`, `pixel_average_precision_scorer`, `pixel_f1_max_scorer` and
    `aupro_scorer` compare ``estimator.predict_maps(X)`` with ``masks``, which are
    anything that `skpatchcore.datasets.read_masks` reads. Masks reach them by metadata
    routing, and need no request of yours. `pixel_metrics_scorer` gives all four from
    one pass over the images: the one to use where more than one is wanted.

Examples
--------
A useless detector: the "anomalies" have the distribution of the normal samples.

>>> import numpy as np
>>> from sklearn.metrics import get_scorer
>>> from sklearn.neighbors import LocalOutlierFactor
>>> from skpatchcore.metrics import average_precision_scorer, image_auroc_scorer
>>> X = np.random.default_rng(0).normal(size=(500, 2))
>>> y = np.repeat([1, -1], [450, 50])
>>> detector = LocalOutlierFactor(novelty=True).fit(X[:250])
>>> X, y = X[250:], y[250:]
>>> round(image_auroc_scorer(detector, X, y), 2)
0.52
>>> round(average_precision_scorer(detector, X, y), 2)
0.26
>>> round(float(get_scorer("average_precision")(detector, X, y)), 2)
0.78

All pixel-level metrics of the official split of a data set:

>>> from sklearn import config_context
>>> from sklearn.model_selection import cross_validate
>>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
>>> from skpatchcore.datasets import make_surface_defects
>>> from skpatchcore.metrics import pixel_metrics_scorer
>>> surfaces = make_surface_defects(
...     n_train=4, n_test_good=1, n_test_defective=2, image_size=64, random_state=0
... )
>>> features = PatchFeatureTransformer("gabor", ("fine", "coarse"), image_size=64)
>>> with config_context(enable_metadata_routing=True):
...     result = cross_validate(
...         PatchCoreDetector(features, random_state=0),
...         surfaces.data,
...         surfaces.target,
...         cv=surfaces.cv,
...         scoring=pixel_metrics_scorer,
...         params={"masks": surfaces.masks},
...     )
>>> [name for name in sorted(result) if name.startswith("test_")]
['test_aupro', 'test_pixel_auroc', 'test_pixel_average_precision', 'test_pixel_f1_max']
"""

from skpatchcore.metrics._image import average_precision, f1_max, image_auroc
from skpatchcore.metrics._pixel import (
    aupro,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
)
from skpatchcore.metrics._scorers import (
    aupro_scorer,
    average_precision_scorer,
    f1_max_scorer,
    image_auroc_scorer,
    pixel_auroc_scorer,
    pixel_average_precision_scorer,
    pixel_f1_max_scorer,
    pixel_metrics_scorer,
)

__all__ = [
    "aupro",
    "aupro_scorer",
    "average_precision",
    "average_precision_scorer",
    "f1_max",
    "f1_max_scorer",
    "image_auroc",
    "image_auroc_scorer",
    "pixel_auroc",
    "pixel_auroc_scorer",
    "pixel_average_precision",
    "pixel_average_precision_scorer",
    "pixel_f1_max",
    "pixel_f1_max_scorer",
    "pixel_metrics",
    "pixel_metrics_scorer",
]
