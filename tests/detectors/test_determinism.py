"""The same seed gives the same bank, scores and maps."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects

IMAGES = make_surface_defects(12, 3, 3, image_size=64, random_state=0).data
GOOD, NEW = IMAGES[:12], IMAGES[12:]
# What docs/user_guide.md promises for a network in single precision.
NETWORK_BOUND = 1e-5


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_detector(batch_size=32, **params):
    features = PatchFeatureTransformer(
        "resnet18", weights="random", image_size=64, batch_size=batch_size
    )
    return PatchCoreDetector(features, random_state=0, **params)


def results_of(detector):
    return {
        "bank": detector.memory_bank_.bank_,
        "places": detector.memory_bank_.bank_indices_,
        "training scores": detector.training_scores_,
        "scores": detector.score_samples(NEW),
        "maps": detector.predict_maps(NEW),
    }


@pytest.mark.parametrize("params", [{}, {"sampler": CoresetSampler(0.1, n_starts=3)}])
def test_two_fits_are_the_same_bit_for_bit(params):
    first, second = (results_of(make_detector(**params).fit(GOOD)) for _ in range(2))
    for name, values in first.items():
        assert_array_equal(second[name], values, name)


def test_two_calibrations_are_the_same_bit_for_bit():
    first, second = (
        ConformalDetector(make_detector(), alpha=0.2, cv=3, random_state=0).fit(GOOD)
        for _ in range(2)
    )
    assert_array_equal(first.calibration_scores_, second.calibration_scores_)
    assert_array_equal(first.predict_pvalue(NEW), second.predict_pvalue(NEW))
    assert_array_equal(first.predict_maps(NEW), second.predict_maps(NEW))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_fitted_detector_moves_by_rounding_of_the_network_alone(
    batch_size, n_threads, set_threads
):
    set_threads(1)
    detector = make_detector().fit(GOOD)
    expected = {
        "features": detector.features_.transform(NEW),
        "scores": detector.score_samples(NEW),
        "maps": detector.predict_maps(NEW),
    }
    detector.features_.batch_size = batch_size
    set_threads(n_threads)
    found = {
        "features": detector.features_.transform(NEW),
        "scores": detector.score_samples(NEW),
        "maps": detector.predict_maps(NEW),
    }
    for name, values in expected.items():
        largest = np.abs(values).max()
        assert_allclose(found[name], values, rtol=0, atol=NETWORK_BOUND * largest)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_from_given_features_on_threads_change_nothing_but_rounding(
    metric, set_threads
):
    X = np.random.default_rng(0).normal(size=(30, 49, 64)).astype(np.float32)
    banks = []
    for n_threads in (1, 2):
        set_threads(n_threads)
        bank = PatchMemoryBank(CoresetSampler(0.1), metric=metric, random_state=0)
        bank.fit(X)
        banks.append((bank.bank_indices_, bank.training_scores_, bank.score_samples(X)))
    for one, other in zip(*banks, strict=True):
        assert_allclose(one, other, rtol=1e-6, atol=1e-12)
