"""Detectors in pipelines and searches are scored and saved, if they are fitted."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._detectors import find_detector
from skpatchcore.calibration import ConformalDetector
from skpatchcore.inspection import AnomalyMapDisplay, PatchMatchDisplay
from skpatchcore.persistence import load, save
from skpatchcore.scoring import score_images

X = np.random.default_rng(0).integers(90, 160, (6, 16, 16, 3), np.uint8)


def make_search(detector, **params):
    return GridSearchCV(
        detector,
        {"n_neighbors": [2]},
        scoring=lambda estimator, X, y=None: float(estimator.score_samples(X).mean()),
        cv=2,
        **params,
    )


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16)
    return PatchCoreDetector(features, CoresetSampler(0.5), random_state=0).fit(X)


def use(name, estimator, path):
    if name == "score":
        return score_images(estimator, X).score
    save(estimator, path)
    return load(path).score_samples(X)


@pytest.mark.parametrize("name", ["score", "save"])
def test_a_pipeline_or_search_stands_for_its_detector(detector, tmp_path, name):
    pipeline = make_pipeline(detector)
    expected = detector.score_samples(X)
    assert_array_equal(use(name, pipeline, tmp_path / "m.skpc"), expected)
    search = make_search(detector).fit(X)
    expected = search.best_estimator_.score_samples(X)
    assert_array_equal(use(name, search, tmp_path / "m.skpc"), expected)


@pytest.mark.parametrize("name", ["score", "save"])
def test_the_detector_given_to_a_search_is_not_its_result(detector, tmp_path, name):
    for search in (make_search(detector), make_search(detector, refit=False).fit(X)):
        for estimator in (search, make_pipeline(search)):
            with pytest.raises(NotFittedError, match="has no best_estimator_"):
                use(name, estimator, tmp_path / "m.skpc")


USES = {
    "score_images": lambda estimator, path: score_images(estimator, X),
    "save": lambda estimator, path: save(estimator, path),
    "maps": lambda estimator, path: AnomalyMapDisplay.from_estimator(estimator, X),
    "matches": lambda estimator, path: PatchMatchDisplay.from_estimator(
        estimator, X, training_images=X
    ),
}
HOLDERS = {
    "pipeline": lambda pipeline: pipeline,
    "search": lambda pipeline: GridSearchCV(
        pipeline,
        {"patchmemorybank__n_neighbors": [1]},
        scoring=lambda estimator, X, y=None: 0.0,
        cv=2,
    ),
    "conformal": lambda pipeline: ConformalDetector(
        pipeline, alpha=0.5, cv=2, random_state=0
    ),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("use", USES)
def test_a_pipeline_with_features_is_referred_to_the_detector(tmp_path, use, holder):
    if use in ("maps", "matches"):
        pytest.importorskip("matplotlib")
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16)
    bank = PatchMemoryBank(CoresetSampler(0.5), random_state=0)
    estimator = HOLDERS[holder](make_pipeline(features, bank)).fit(X)
    with pytest.raises(TypeError, match=r"Use PatchCoreDetector\(features, sampler, "):
        USES[use](estimator, tmp_path / "m.skpc")
    assert not list(tmp_path.iterdir())


def test_a_bank_without_features_is_not_referred_to_the_detector():
    bank = PatchMemoryBank(random_state=0).fit(np.arange(40.0).reshape(10, 4))
    with pytest.raises(TypeError, match="Expected a detector") as caught:
        find_detector(make_pipeline("passthrough", bank))
    assert "PatchCoreDetector(features" not in str(caught.value)
