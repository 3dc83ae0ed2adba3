"""Searches of scikit-learn with a cache: what they compute, and how often."""

import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._backbones._backbone import Backbone
from skpatchcore._bank._search import BankSearch
from skpatchcore._coreset._greedy import GreedyRun
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import (
    average_precision_scorer,
    image_auroc_scorer,
    pixel_auroc_scorer,
)
from skpatchcore.model_selection import OneClassKFold

N_IMAGES = 42
FRACTIONS = [0.05, 0.1, 0.25]
GRID = {"sampler__fraction": FRACTIONS, "n_neighbors": [1, 3, 5]}


def make_surfaces():
    return make_surface_defects(
        n_train=24, n_test_good=6, n_test_defective=12, image_size=64, random_state=0
    )


@pytest.fixture(scope="module")
def surfaces():
    return make_surfaces()


def make_detector(memory=None):
    features = PatchFeatureTransformer(
        "resnet18", ("layer1", "layer2"), weights="random", image_size=32
    )
    return PatchCoreDetector(features, memory=memory, random_state=0)


def make_search(estimator, grid=None, **params):
    params = {"scoring": image_auroc_scorer, "error_score": "raise", **params}
    return GridSearchCV(estimator, grid or GRID, cv=OneClassKFold(3), **params)


@pytest.fixture
def counts(monkeypatch):
    """Count images through a network, greedy runs begun, and picks made."""
    counted = Counter(images=0, runs=0, picks=0)
    forward, extend = Backbone.__call__, GreedyRun.extend

    def count_images(network, batch):
        counted["images"] += len(batch)
        return forward(network, batch)

    def count_picks(run, n_selected):
        n_before = len(run.picks)
        state = extend(run, n_selected)
        counted["runs"] += n_before == 0
        counted["picks"] += len(run.picks) - n_before
        return state

    monkeypatch.setattr(Backbone, "__call__", count_images)
    monkeypatch.setattr(GreedyRun, "extend", count_picks)
    return counted


def scores_of(search):
    return np.array([search.cv_results_[f"split{i}_test_score"] for i in range(3)])


@pytest.fixture(scope="module")
def plain_search(surfaces):
    """The search without a cache, which the others have to agree with."""
    return make_search(make_detector()).fit(surfaces.data, surfaces.target)


def test_every_image_once_and_a_greedy_run_for_each_training_set(
    surfaces, plain_search, tmp_path, counts
):
    search = make_search(make_detector(tmp_path)).fit(surfaces.data, surfaces.target)
    n_patches = [8 * 8 * n for n in (20, 20, 20, 30)]
    expected = [int(0.25 * n) for n in n_patches[:3]]
    expected.append(int(search.best_params_["sampler__fraction"] * n_patches[3]))
    assert counts == {"images": N_IMAGES, "runs": 4, "picks": sum(expected)}
    assert_allclose(scores_of(search), scores_of(plain_search), rtol=1e-6)
    assert_allclose(
        search.best_estimator_.score_samples(surfaces.data),
        plain_search.best_estimator_.score_samples(surfaces.data),
        rtol=1e-5,
    )


def test_every_training_set_is_run_through_at_once_where_the_largest_is_known(
    surfaces, plain_search, tmp_path, counts
):
    detector = make_detector(tmp_path).set_params(sampler__max_fraction=0.25)
    search = make_search(detector).fit(surfaces.data, surfaces.target)
    assert counts["runs"] == 4
    assert counts["picks"] == sum(int(0.25 * 64 * n) for n in (20, 20, 20, 30))
    assert_allclose(scores_of(search), scores_of(plain_search), rtol=1e-6)


def test_a_second_search_in_a_new_process_computes_nothing(
    surfaces, plain_search, tmp_path
):
    cache = tmp_path / "cache"
    make_search(make_detector(cache)).fit(surfaces.data, surfaces.target)
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import numpy as np
        import test_search
        from skpatchcore._backbones._backbone import Backbone
        from skpatchcore._coreset._greedy import GreedyRun

        def never(*args):
            raise AssertionError("computed once more")

        Backbone.__call__ = GreedyRun.extend = never
        surfaces = test_search.make_surfaces()
        search = test_search.make_search(test_search.make_detector({str(cache)!r}))
        search.fit(surfaces.data, surfaces.target)
        np.save({str(tmp_path / "scores.npy")!r}, test_search.scores_of(search))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    found = np.load(tmp_path / "scores.npy")
    assert_allclose(found, scores_of(plain_search), rtol=1e-6)


def test_scores_and_maps_from_one_pass_in_a_pipeline(surfaces, tmp_path, counts):
    """Two response methods, several scorers, one of them per pixel."""
    pipeline = Pipeline([("detector", make_detector(tmp_path))])
    grid = {f"detector__{name}": values for name, values in GRID.items()}
    scoring = {
        "image": image_auroc_scorer,
        "precision": average_precision_scorer,
        "pixel": pixel_auroc_scorer,
    }
    search = make_search(pipeline, grid, scoring=scoring, refit="pixel")
    with sklearn.config_context(enable_metadata_routing=True):
        search.fit(surfaces.data, surfaces.target, masks=surfaces.masks)
    assert counts["images"] == N_IMAGES
    assert counts["runs"] == 4
    assert (search.cv_results_["mean_test_pixel"] > 0.5).all()


def test_the_seed_reaches_a_randomized_projection(surfaces, tmp_path, counts):
    # Otherwise every candidate would have its own features, and its own greedy runs.
    projection = PCA(16, svd_solver="randomized")
    detector = make_detector(tmp_path).set_params(features__projection=projection)
    make_search(detector).fit(surfaces.data, surfaces.target)
    assert counts["runs"] == 4


def test_features_and_bank_as_steps_of_a_pipeline(surfaces, tmp_path, counts):
    detector = make_detector()
    pipeline = make_pipeline(
        detector.features.set_params(memory=tmp_path, random_state=0),
        PatchMemoryBank(memory=tmp_path, random_state=0),
    )
    grid = {f"patchmemorybank__{name}": values for name, values in GRID.items()}
    search = make_search(pipeline, grid).fit(surfaces.data, surfaces.target)
    assert counts["images"] == N_IMAGES
    assert counts["runs"] == 4
    # The refit has learned nothing from anomalies, neither bank nor layer weights.
    normal = surfaces.data[surfaces.target == 1]
    features = clone(search.best_estimator_[0]).fit(normal)
    assert search.best_estimator_[0].layer_weights_ == features.layer_weights_
    assert search.best_estimator_[1].training_scores_.shape == (30,)


def search_in(backend, n_jobs, cache, surfaces):
    with parallel_config(backend=backend, n_jobs=n_jobs):
        return make_search(make_detector(cache)).fit(surfaces.data, surfaces.target)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_share_a_cache(backend, surfaces, plain_search, tmp_path):
    search = search_in(backend, 2, tmp_path, surfaces)
    assert_allclose(scores_of(search), scores_of(plain_search), rtol=1e-6)
    assert search.best_params_ == plain_search.best_params_
    kinds = Counter(path.parts[-3] for path in tmp_path.rglob("output.pkl"))
    assert kinds["maps"] == N_IMAGES
    assert kinds["runs"] == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda detector, grid, **params: RandomizedSearchCV(
            detector, grid, n_iter=4, random_state=0, **params
        ),
        # Training sets hold one class, so scores of theirs would be errors.
        lambda detector, grid, **params: HalvingGridSearchCV(
            detector,
            grid,
            min_resources=40,
            return_train_score=False,
            random_state=0,
            **params,
        ),
    ],
    ids=["randomized", "halving"],
)
def test_other_searches(make, surfaces, tmp_path, counts):
    search = make(
        make_detector(tmp_path),
        GRID,
        cv=OneClassKFold(3, shuffle=True, random_state=0),
        scoring=image_auroc_scorer,
        error_score="raise",
    ).fit(surfaces.data, surfaces.target)
    # A halving search may leave one out.
    assert N_IMAGES - 1 <= counts["images"] <= N_IMAGES
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_cross_validate_returns_estimators_that_share_the_cache(
    surfaces, tmp_path, counts
):
    found = cross_validate(
        make_detector(tmp_path),
        surfaces.data,
        surfaces.target,
        cv=OneClassKFold(3),
        scoring={"auroc": image_auroc_scorer, "precision": average_precision_scorer},
        return_estimator=True,
        error_score="raise",
    )
    for estimator in found["estimator"]:
        estimator.predict_maps(surfaces.data)
    assert counts["images"] == N_IMAGES


def test_conformal_folds_extract_nothing_twice(surfaces, tmp_path, counts):
    detector = ConformalDetector(make_detector(tmp_path), alpha=0.1, random_state=0)
    detector.fit(surfaces.data, surfaces.target)
    assert counts["images"] == np.sum(surfaces.target == 1)
    detector.predict(surfaces.data)
    detector.predict_maps(surfaces.data)
    assert counts["images"] == N_IMAGES


def test_the_official_split_serves_as_cv(surfaces, tmp_path, counts):
    search = GridSearchCV(
        make_detector(tmp_path), GRID, cv=surfaces.cv, scoring=image_auroc_scorer
    ).fit(surfaces.data, surfaces.target)
    assert search.n_splits_ == 1
    assert counts["images"] == N_IMAGES


def test_the_best_estimator_is_a_detector_like_any_other(surfaces, tmp_path):
    grid = {"sampler__fraction": [0.05]}
    search = make_search(make_detector(tmp_path), grid)
    search.fit(surfaces.data, surfaces.target)
    best = search.best_estimator_
    assert_array_equal(best.training_indices_, np.flatnonzero(surfaces.target == 1))
    maps = best.predict_maps(surfaces.data[-2:])
    assert maps.shape == (2, 64, 64)
    restored = pickle.loads(pickle.dumps(best))
    assert_array_equal(restored.predict_maps(surfaces.data[-2:]), maps)
    assert clone(best).get_params()["memory"] == tmp_path
    assert "PatchCoreDetector" in search._repr_html_()


@pytest.mark.parametrize("k", [1, 3, 7])
def test_neighbours_for_every_k_come_from_one_search(k, tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(8, 5, 6)).astype(np.float32)
    bank = PatchMemoryBank(CoresetSampler(0.5, random_state=0), random_state=0)
    cached = clone(bank).set_params(memory=tmp_path)
    cached.fit(X).score_samples(X)
    for estimator in (bank, cached):
        estimator.set_params(n_neighbors=k).fit(X)
    queried, query = [], BankSearch.query
    monkeypatch.setattr(
        BankSearch, "query", lambda *args: queried.append(1) or query(*args)
    )
    expected = bank.score_samples(X)
    assert len(queried) == 1
    # The bank without a cache has searched; the other one has no need to.
    assert_array_equal(cached.score_samples(X), expected)
    assert len(queried) == 1


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("k", [2, 3, 9])
def test_training_scores_for_several_neighbours(metric, k):
    """Found by few searches, they are those of all patches."""
    X = np.random.default_rng(k).normal(size=(20, 30, 5)).astype(np.float32)
    bank = PatchMemoryBank(
        CoresetSampler(0.2, random_state=0), n_neighbors=k, metric=metric
    ).fit(X)
    assert_array_equal(bank.training_scores_, bank.score_samples(X))
