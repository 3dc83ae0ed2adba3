"""scikit-learn's own checks, through the real code of all estimators."""

import numpy as np
import pytest
import sklearn
from sklearn.ensemble import IsolationForest
from sklearn.utils import estimator_checks
from sklearn.utils._testing import SkipTest, ignore_warnings
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data
from torch import nn

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._images import Images
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector


class Identity(nn.Identity):
    """A backbone whose only layer map is the image itself."""

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


class RowImages(Images):
    """Rows of numbers as images one pixel high, three numbers to a pixel."""

    def __getitem__(self, index):
        row = self._sources[index]
        return np.pad(row, (0, -len(row) % 3)).reshape(1, -1, 3)

    def take(self, indices):
        return RowImages(self._sources[indices])


class RowsAsImages:
    """Estimators of images, given matrices of numbers."""

    def _as_images(self, X, *, reset):
        return RowImages(validate_data(self, X, dtype=np.float32, reset=reset))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        tags.input_tags.string = False
        return tags


class RowTransformer(RowsAsImages, PatchFeatureTransformer):
    def _validate_images(self, X, *, reset):
        return self._as_images(X, reset=reset)


class ScoredRows(RowsAsImages):
    """Detectors, whose other methods rely on these."""

    def fit(self, X, y=None):
        return super().fit(self._as_images(X, reset=True), y)

    def score_samples(self, X):
        return super().score_samples(self._as_images(X, reset=False))


class RowDetector(ScoredRows, PatchCoreDetector):
    def inspect(self, X):
        return super().inspect(self._as_images(X, reset=False))


class RowEnsemble(ScoredRows, PatchCoreEnsemble):
    pass


class MappedLabels:
    """Estimators that are given +1 and -1 where the checks have labels of classes.

    The third of the samples with the largest label is anomalous.
    """

    def fit(self, X, y=None):
        return super().fit(X, as_outlier_labels(y))


class LabelledTransformer(MappedLabels, RowTransformer):
    def fit_transform(self, X, y=None):
        return super().fit_transform(X, as_outlier_labels(y))


class LabelledDetector(MappedLabels, RowDetector):
    pass


class LabelledEnsemble(MappedLabels, RowEnsemble):
    pass


class LabelledConformal(MappedLabels, ConformalDetector):
    pass


class LabelledTuned(MappedLabels, TunedThresholdDetector):
    """In the checks that have no labels for outlier detectors, outliers are far out."""

    def fit(self, X, y=None):
        if y is None:
            y = np.linalg.norm(X - np.mean(X, axis=0), axis=1)
        return super().fit(X, y)


def as_outlier_labels(y):
    if y is None:
        return None
    order = np.argsort(np.asarray(y), kind="stable")
    labels = np.ones(len(order), dtype=int)
    labels[order[len(order) - len(order) // 3 :]] = -1
    return labels


def labelled(estimator):
    """Return an estimator with mapped labels, if it takes labels."""
    for cls in MappedLabels.__subclasses__():
        if cls.__bases__[1] is type(estimator):
            return cls(**estimator.get_params(deep=False))
    return estimator


def row_transformer():
    return RowTransformer(
        Identity(), ("",), image_size=None, patch_size=1, output="mean"
    )


def conformal(estimator, method):
    # The checks have ten samples and up, which support this level and no lower one.
    return ConformalDetector(estimator, alpha=0.2, method=method, random_state=0)


def tuned(estimator):
    # Some checks have no more than three samples of a kind.
    return TunedThresholdDetector(estimator, cv=2)


def row_ensemble():
    detector = PatchCoreDetector(row_transformer())
    # "auto" puts the threshold below all training scores, where the checks want some.
    return RowEnsemble(
        [("one", detector), ("other", "drop")], cv=2, contamination=0.1, random_state=0
    )


# Every sampler, filter and metric, and neighbours among all rows.
BANKS = {
    "bank_random": {"sampler": CoresetSampler(method="random")},
    "bank_none": {"sampler": CoresetSampler(method="none")},
    "bank_all": {"sampler": CoresetSampler(1.0)},
    "bank_half": {"sampler": CoresetSampler(0.5)},
    "bank_sample": {"outlier_filter": "sample"},
    "bank_lof": {"outlier_filter": "lof"},
    "bank_nearest": {"outlier_filter": "nearest"},
    "bank_gaussian": {"outlier_filter": "gaussian"},
    "bank_sqeuclidean": {"metric": "sqeuclidean"},
    "bank_cosine": {"metric": "cosine", "reduction": 0.5},
    "bank_neighbors": {"sampler": CoresetSampler(1.0), "n_neighbors": 3},
}
# Counts of scikit-learn 1.9; a release may add checks, never take all away.
ESTIMATORS = {
    "sampler": (CoresetSampler(), 41),
    "bank": (PatchMemoryBank(), 47),
    **{name: (PatchMemoryBank(**params), 47) for name, params in BANKS.items()},
    "transformer": (row_transformer(), 47),
    "detector": (RowDetector(row_transformer()), 47),
    "conformal_forest": (
        conformal(IsolationForest(n_estimators=5, random_state=0), "cross"),
        45,
    ),
    "conformal_bank": (conformal(PatchMemoryBank(random_state=0), "split"), 46),
    "conformal_bank_refit": (conformal(PatchMemoryBank(random_state=0), "refit"), 46),
    "conformal_bank_cross": (conformal(PatchMemoryBank(random_state=0), "cross"), 46),
    "conformal_detector": (
        conformal(RowDetector(row_transformer(), random_state=0), "cross"),
        46,
    ),
    "ensemble": (row_ensemble(), 46),
    "tuned_forest": (tuned(IsolationForest(n_estimators=5, random_state=0)), 45),
    "tuned_bank": (tuned(PatchMemoryBank(random_state=0)), 46),
}
CHECKS = [
    pytest.param(estimator, check, id=f"{name}-{check.func.__name__}-{i}")
    for name, (original, _) in ESTIMATORS.items()
    for i, (estimator, check) in enumerate(
        estimator_checks_generator(labelled(original), legacy=True)
    )
]
# Those that scikit-learn runs only on its own estimators.
OWN_CHECKS = [
    "check_param_validation",
    "check_dataframe_column_names_consistency",
    "check_inplace_ensure_writeable",
]
OUTPUT_CHECKS = [
    "check_get_feature_names_out_error",
    "check_global_output_transform_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
]


@ignore_warnings(category=(FutureWarning, UserWarning))
def run(check, *args):
    try:
        check(*args)
    except SkipTest as skipped:
        pytest.fail(f"not run: {skipped}")


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_estimator_check(estimator, check):
    run(check, estimator)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("check", OWN_CHECKS)
def test_check_of_scikit_learn_itself(name, check):
    estimator = labelled(ESTIMATORS[name][0])
    run(getattr(estimator_checks, check), type(estimator).__name__, estimator)


@pytest.mark.parametrize("check", OUTPUT_CHECKS)
def test_output_of_transformer(check):
    estimator = labelled(row_transformer())
    run(getattr(estimator_checks, check), "LabelledTransformer", estimator)


def test_labels_are_required_where_defects_are_needed():
    estimator = tuned(PatchMemoryBank())
    run(estimator_checks.check_requires_y_none, "TunedThresholdDetector", estimator)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_as_many_checks_as_scikit_learn_has(name):
    """A wrong tag would make the suite shrink to a single check and look green."""
    original, expected = ESTIMATORS[name]
    collected = len(list(estimator_checks_generator(labelled(original), legacy=True)))
    # scikit-learn 1.6 has one check fewer.
    assert collected >= expected - sklearn.__version__.startswith("1.6.")
