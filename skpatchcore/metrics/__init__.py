"""Measure how well a detector finds anomalous images and locates defects.

Signs of scores
    *Image-level* metrics accept the output of scikit-learn's outlier detectors: labels
    +1 (normal) and -1 (anomalous), and scores from ``score_samples`` or
    ``decision_function``, where **higher is more normal**. *Pixel-level* metrics accept
    anomaly maps (heat maps), where **higher is more anomalous**. The positive class is
    always the anomalous one: precision, recall, F1 and average precision refer to it.

Why not the scorers named ``"roc_auc"`` and ``"average_precision"``
    These scorers treat the larger label as the positive class, and expect higher scores
    for it. With labels +1/-1 that is the *normal* class. ``"roc_auc"`` is then still
    correct, because it is the same for both classes. But ``"average_precision"``
    measures how well normal images are found, which is near 1 whenever most images are
    normal. With labels 0/1, where 1 is anomalous, labels and scores have opposite
    directions, and ``"roc_auc"`` silently becomes 1 - AUROC. Use `image_auroc_scorer`,
    `average_precision_scorer` and `f1_max_scorer` in ``cross_validate`` and
    ``GridSearchCV``. They reject labels other than +1/-1.

Scorers of anomaly maps
    `pixel_auroc_scorer`, `pixel_average_precision_scorer`, `pixel_f1_max_scorer` and
    `aupro_scorer` compare ``estimator.predict_maps(X)`` with ``masks``, in any form
    that `skpatchcore.datasets.read_masks` accepts. The masks are passed by metadata
    routing; you do not have to request them. If you need more than one of these
    metrics, use `pixel_metrics_scorer`: it returns all four from one pass over the
    images. `all_metrics_scorer` returns those of images as well.

Folds with one class
    A scorer returns NaN, with a warning, if the test images or pixels are all normal or
    all anomalous. The metrics themselves raise an error.

Examples
--------
The "anomalies" have the same distribution as the normal samples, so no detector can
find them:

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

All pixel-level metrics on the official split of a data set:

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
    all_metrics_scorer,
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
    "all_metrics_scorer",
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
