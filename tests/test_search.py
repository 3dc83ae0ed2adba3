"""Searches of scikit-learn with a cache: what they compute, and how often."""

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
)

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
)
from skpatchcore._backbone import Backbone
from skpatchcore._coreset import GreedyRun
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold

N_PICTURES = 42
FRACTIONS = [0.05, 0.1, 0.25]
GRID = {"sampler__fraction": FRACTIONS, "n_neighbors": [1, 3, 5]}


@pytest.fixture(scope="module")
def surfaces():
    return make_surface_defects(
        n_train=24, n_test_good=6, n_test_defective=12, image_size=64, random_state=0
    )


def make_detector(memory=None):
    features = PatchFeatureTransformer(
        "resnet18", ("layer1", "layer2"), weights="random", image_size=64
    )
    return PatchCoreDetector(features, CoresetSampler(), memory=memory, random_state=0)


def make_search(estimator, grid=None, **params):
    params = {"scoring": image_auroc_scorer, "error_score": "raise", **params}
    return GridSearchCV(estimator, grid or GRID, cv=OneClassKFold(3), **params)


@pytest.fixture
def counts(monkeypatch):
    """Count pictures through a network, greedy runs begun, and picks made."""
    counted = Counter(pictures=0, runs=0, picks=0)
    forward, extend = Backbone.__call__, GreedyRun.extend

    def count_pictures(network, batch):
        counted["pictures"] += len(batch)
        return forward(network, batch)

    def count_picks(run, n_selected):
        n_before = len(run.picks)
        state = extend(run, n_selected)
        counted["runs"] += n_before == 0
        counted["picks"] += len(run.picks) - n_before
        return state

    monkeypatch.setattr(Backbone, "__call__", count_pictures)
    monkeypatch.setattr(GreedyRun, "extend", count_picks)
    return counted


def scores_of(search):
    return np.array([search.cv_results_[f"split{i}_test_score"] for i in range(3)])


@pytest.fixture(scope="module")
def plain_search(surfaces):
    """The search without a cache, which the others have to agree with."""
    return make_search(make_detector()).fit(surfaces.data, surfaces.target)


def test_every_picture_once_and_a_greedy_run_for_each_training_set(
    surfaces, plain_search, tmp_path, counts
):
    search = make_search(make_detector(tmp_path)).fit(surfaces.data, surfaces.target)
    n_patches = [16 * 16 * n for n in (20, 20, 20, 30)]
    expected = [int(0.25 * n) for n in n_patches[:3]]
    expected.append(int(search.best_params_["sampler__fraction"] * n_patches[3]))
    assert counts == {"pictures": N_PICTURES, "runs": 4, "picks": sum(expected)}
    assert_allclose(scores_of(search), scores_of(plain_search), rtol=1e-6)
    assert_allclose(
        search.best_estimator_.score_samples(surfaces.data),
        plain_search.best_estimator_.score_samples(surfaces.data),
        rtol=1e-5,
    )
    assert counts["pictures"] == N_PICTURES
