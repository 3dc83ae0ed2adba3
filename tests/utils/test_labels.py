"""One rule for labels, wherever labels are accepted."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpatchcore import (
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._utils import check_outlier_labels, normal_rows
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.inspection import ScoreDistributionDisplay
from skpatchcore.metrics import f1_max, image_auroc, image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold
from tests.helpers import random_images

ROWS = np.random.default_rng(0).normal(size=(12, 3))
IMAGES = random_images(12, 12, 12)


def features():
    return PatchFeatureTransformer("gabor", ("fine",), image_size=12)


def detector():
    return PatchCoreDetector(features(), random_state=0)


def fitted_detector():
    return LocalOutlierFactor(n_neighbors=3, novelty=True).fit(ROWS)


# What takes labels: a function of y alone.
TAKERS = {
    "bank": lambda y: PatchMemoryBank().fit(ROWS, y),
    "transformer": lambda y: features().fit(IMAGES, y),
    "transformer, fit_transform": lambda y: features().fit_transform(IMAGES, y),
    "detector": lambda y: detector().fit(IMAGES, y),
    "ensemble": lambda y: PatchCoreEnsemble([("one", detector())]).fit(IMAGES, y),
    "calibrated": lambda y: ConformalDetector(PatchMemoryBank(), alpha=0.3).fit(
        ROWS, y
    ),
    "tuned": lambda y: TunedThresholdDetector(PatchMemoryBank()).fit(ROWS, y),
    "splitter": lambda y: list(OneClassKFold(2).split(ROWS, y)),
    "AUROC": lambda y: image_auroc(y, np.arange(12.0)),
    "F1": lambda y: f1_max(y, np.arange(12.0)),
    "scorer": lambda y: image_auroc_scorer(fitted_detector(), ROWS, y),
    "display": lambda y: ScoreDistributionDisplay.from_predictions(y, np.arange(12.0)),
}
# Where other labels than +1 and -1 show how to convert them.
WRONG = {
    "0 and 1": ([0, 1], r"got 0, 1\. If 1 stands for anom.* np\.where\(\w+ == 1, -1,"),
    "booleans": ([False, True], r"got False, True\. If 1 stands for anomalous"),
    "1 and 2": ([1, 2], r"got 1, 2\. If 1 stands for normal.*\(\w+ == 1, 1, -1\)"),
    "four numbers": ([0, 1, 2, 3], r"got 0, 1, 2, 3\..*\(\w+ == 0, 1, -1\)"),
    "unlabelled": ([-1, 0, 1], r"got -1, 0, 1\. If 1 stands for normal"),
    "-1 and 0": ([-1, 0], r"got -1, 0\. .*np\.where"),
    "words": (["bad", "good"], r"\(\w+ == 'good', 1, -1\)"),
    "bytes": ([b"bad", b"good"], r"got b'bad', b'good'\. .*np\.where"),
    "numbers as words": (["-1", "1"], r"\(\w+ == '1', 1, -1\)"),
    "None": ([None, 1, -1], "contains None: 4 of 12 samples have no label"),
    "NaN": ([1.0, np.nan], "contains NaN: 6 of 12 .* the first is sample 1"),
}
# Numbers that may stand for classes.
CLASSES = {"0 and 1", "1 and 2", "four numbers"}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", WRONG)
def test_other_labels_are_refused_with_a_conversion(taker, kind):
    labels, message = WRONG[kind]
    y = np.resize(np.array(labels, dtype=None if None not in labels else object), 12)
    if taker == "bank" and kind in CLASSES:
        # scikit-learn's checks pass such labels of classes to outlier detectors.
        with pytest.warns(UserWarning, match=f"y was ignored.*{message}"):
            assert len(TAKERS[taker](y).training_scores_) == 12
        return
    with pytest.raises(ValueError, match=message):
        TAKERS[taker](y)


@pytest.mark.parametrize("taker", TAKERS)
def test_labels_of_another_length_are_refused(taker):
    with pytest.raises(ValueError, match=r"y has 8 labels, but X has 12|inconsistent"):
        TAKERS[taker](np.resize([1, -1], 8))


@pytest.mark.parametrize("labels", [["good", 1], [0, "1"], [True, 2], [0.5, -0.5]])
def test_a_bank_refuses_mixtures_with_numbers(labels):
    with pytest.raises(ValueError, match="y must contain the labels"):
        TAKERS["bank"](np.resize(np.array(labels, dtype=object), 12))


LEARNERS = ["bank", "transformer", "detector", "ensemble", "calibrated"]


@pytest.mark.parametrize("taker", LEARNERS)
def test_nothing_is_learned_without_a_normal_sample(taker):
    with pytest.raises(ValueError, match=r"All 12 samples are labelled -1.*Add normal"):
        TAKERS[taker](-np.ones(12))


@pytest.mark.parametrize("label", [0, 1, 2, True, "good"])
def test_samples_with_one_label_are_all_normal(label):
    assert_array_equal(check_outlier_labels([label] * 3), [1, 1, 1])
    assert_array_equal(normal_rows([label] * 3, 3), [0, 1, 2])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_one_missing_label_is_no_label(missing):
    with pytest.raises(ValueError, match="have no label"):
        check_outlier_labels(np.array([missing, missing], dtype=object))


def test_labels_of_any_type_become_integers():
    for y in ([1.0, -1.0], pd.Series([1, -1], dtype="Int64"), [[1], [-1]]):
        labels = check_outlier_labels(y)
        assert labels.dtype == np.int64
        assert_array_equal(labels, [1, -1])


def test_the_conversion_that_a_message_shows_is_accepted():
    y = np.array([0, 0, 1])
    assert_array_equal(check_outlier_labels(np.where(y == 1, -1, 1)), [1, 1, -1])


# Steps of pipelines ------------------------------------------------------------------

Y = np.repeat([1, -1], [8, 4])


def test_a_step_in_between_learns_from_defective_rows():
    """As the guide says, since scikit-learn passes it all rows."""
    pipeline = make_pipeline(StandardScaler(), PatchMemoryBank()).fit(ROWS, Y)
    assert_allclose(pipeline[0].mean_, ROWS.mean(axis=0))


@pytest.mark.parametrize("kind", ["calibrated", "tuned"])
def test_a_pipeline_in_a_calibrator_learns_from_normal_rows_only(kind):
    pipeline = make_pipeline(StandardScaler(), PatchMemoryBank())
    if kind == "tuned":
        fitted = TunedThresholdDetector(pipeline, cv=2).fit(ROWS, Y).estimator_
    else:
        detector = ConformalDetector(pipeline, alpha=0.3, method="refit")
        (fitted,) = detector.fit(ROWS, Y).estimators_
    assert_allclose(fitted[0].mean_, ROWS[:8].mean(axis=0))


def test_a_projection_learns_from_normal_images_only():
    transformer = features().set_params(projection=StandardScaler())
    labelled, without = (
        clone(transformer).fit(IMAGES, Y),
        clone(transformer).fit(IMAGES[:8]),
    )
    assert_allclose(labelled.projection_.mean_, without.projection_.mean_)
