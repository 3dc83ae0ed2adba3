"""One fitted detector, asked from several threads at once."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.frozen import FrozenEstimator

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector

N_CALLS = 12


@pytest.fixture(autouse=True)
def one_thread():
    """Of torch, for each call: the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_images(seed, n=6):
    return random_images(n, 32, 32, seed)


def make_detector(**params):
    features = PatchFeatureTransformer(
        "resnet18", ("layer1", "layer2"), weights="random", image_size=32, batch_size=2
    )
    return PatchCoreDetector(features, random_state=0, **params)


def fit_detector(tmp_path):
    return make_detector().fit(make_images(0))


def fit_cached(tmp_path):
    return make_detector(memory=str(tmp_path / "cache")).fit(make_images(0))


def fit_conformal(tmp_path):
    detector = ConformalDetector(make_detector(), alpha=0.2, cv=2, random_state=0)
    return detector.fit(make_images(0))


def fit_tuned(tmp_path):
    detector = fit_detector(tmp_path)
    return TunedThresholdDetector(FrozenEstimator(detector)).fit(
        make_images(0, 4), [1, 1, 1, -1]
    )


# The network and the index of a copy are built at first use, by whoever comes first.
MAKERS = [
    fit_detector,
    fit_cached,
    fit_conformal,
    fit_tuned,
    lambda tmp_path: pickle.loads(pickle.dumps(fit_detector(tmp_path))),
]
NAMES = ["detector", "cached", "conformal", "tuned", "unpickled"]


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_scores_and_maps_are_those_of_one_thread(make, tmp_path):
    detector = make(tmp_path)
    reference = pickle.loads(pickle.dumps(detector))
    if hasattr(reference, "features_"):
        # Else the others would find everything in the cache.
        reference.features_.memory = reference.memory_bank_.memory = None
    batches = [make_images(seed, 1 + seed % 4) for seed in range(N_CALLS)]
    names = ["score_samples", "decision_function", "predict", "predict_maps"]
    names = [name for name in names if hasattr(detector, name)]
    expected = [
        getattr(reference, names[i % len(names)])(X) for i, X in enumerate(batches)
    ]
    with ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(
                lambda i: getattr(detector, names[i % len(names)])(batches[i]),
                range(N_CALLS),
            )
        )
    for one, other in zip(found, expected, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", ["torch", "faiss", "pynndescent"])
def test_a_bank_answers_several_threads(algorithm):
    X = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    bank = PatchMemoryBank(algorithm=algorithm, n_neighbors=2, random_state=0).fit(X)
    expected = bank.score_samples(X)
    bank = pickle.loads(pickle.dumps(bank))
    with ThreadPoolExecutor(6) as threads:
        for scores in threads.map(bank.score_samples, [X] * N_CALLS):
            assert_array_equal(scores, expected)
