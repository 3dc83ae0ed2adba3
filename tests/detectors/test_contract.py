"""Every detector of images, alone and wrapped, works with everything that takes one."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skpatchcore
from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
)
from skpatchcore._cli._commands import main
from skpatchcore._detectors import ImageDetector, Inspection
from skpatchcore._detectors._find import find_detector, is_frozen, unwrap
from skpatchcore._images import Geometry
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.metrics import aupro_scorer, image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.persistence import load, save
from skpatchcore.scoring import score_images

N_GOOD, N_DEFECTIVE, SIDE = 8, 2, 24


def plain(layer="fine", **params):
    features = PatchFeatureTransformer("gabor", (layer,), image_size=SIDE)
    return PatchCoreDetector(features, CoresetSampler(0.3), random_state=0, **params)


def ensemble():
    members = [("fine", plain()), ("coarse", plain("coarse"))]
    return PatchCoreEnsemble(members, cv=2, random_state=0)


def search(detector):
    return GridSearchCV(
        detector,
        {"smoothing": [0.0, 2.0]},
        cv=OneClassKFold(2),
        scoring=image_auroc_scorer,
    )


def calibrated(detector, method="refit"):
    return ConformalDetector(detector, alpha=0.3, method=method, cv=2, random_state=0)


DETECTORS = {
    "detector": plain,
    "ensemble": ensemble,
    "calibrated detector": lambda: calibrated(plain()),
    "calibrated detector, folds": lambda: calibrated(plain(), "cross"),
    "calibrated ensemble": lambda: calibrated(ensemble()),
    "calibrated ensemble, folds": lambda: calibrated(ensemble(), "cross"),
    "calibrated pipeline": lambda: calibrated(Pipeline([("detector", plain())])),
    "tuned detector": lambda: TunedThresholdDetector(plain(), cv=2),
    "tuned ensemble": lambda: TunedThresholdDetector(ensemble(), cv=2),
    "tuned calibrated detector": lambda: TunedThresholdDetector(
        calibrated(plain()), cv=2
    ),
    "pipeline": lambda: Pipeline([("detector", plain())]),
    "search": lambda: search(plain()),
    "search in a pipeline": lambda: Pipeline([("search", search(plain()))]),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.integers(100, 130, (N_GOOD + N_DEFECTIVE, SIDE, SIDE, 3)).astype(np.uint8)
    masks = np.zeros(X.shape[:3], dtype=bool)
    masks[-N_DEFECTIVE:, 8:14, 9:15] = True
    X[masks] = 250
    y = np.repeat([1, -1], [N_GOOD, N_DEFECTIVE])
    return X, y, [mask if mask.any() else None for mask in masks]


@pytest.fixture(scope="module", params=DETECTORS)
def fitted(request, data):
    X, y, _ = data
    return DETECTORS[request.param]().fit(X, y)


def test_methods_agree_with_one_pass(fitted, data):
    X, _, _ = data
    found = find_detector(fitted)
    seen = sorted(found.inspect(X), key=lambda one: one.index)
    assert [one.index for one in seen] == list(range(len(X)))
    assert_allclose([one.score for one in seen], fitted.score_samples(X))
    assert_array_equal([one.label for one in seen], fitted.predict(X))
    maps = found.detector.predict_maps(X)
    assert_array_equal([one.map for one in seen], maps)
    masks = found.detector.predict_masks(X)
    assert_array_equal(masks, maps > found.detector.map_threshold_)
    assert_array_equal([one.mask for one in seen], masks)
    assert_allclose([one.peak for one in seen], maps.max(axis=(1, 2)), rtol=1e-6)


def test_regions_are_the_parts_of_the_mask(fitted, data):
    X, _, _ = data
    found = find_detector(fitted)
    for seen in found.inspect(X[-N_DEFECTIVE:]):
        assert seen.map_threshold == found.detector.map_threshold_
        assert sum(region.area for region in seen.regions) == seen.mask.sum() > 0
        assert seen.regions[0].peak == pytest.approx(seen.map.max())
        largest = max(region.area for region in seen.regions)
        kept = seen.find_regions(min_area=largest)
        assert {region.area for region in kept} == {largest}


def test_decisions_follow_from_scores(fitted, data):
    X, _, _ = data
    decision = fitted.decision_function(X)
    offset = find_detector(fitted).detector.offset_
    assert_allclose(decision, fitted.score_samples(X) - offset)
    assert_array_equal(fitted.predict(X), np.where(decision >= 0, 1, -1))


def test_calibrated_results_are_there_or_none(fitted, data):
    X, _, _ = data
    found = find_detector(fitted)
    seen = next(found.inspect(X[-1:]))
    if not found.detector._is_calibrated:
        assert seen.p_value is None
        assert seen.anomaly_score is None
        with pytest.raises(ValueError, match="normalized=True needs held-out scores"):
            found.detector.predict_maps(X[:1], normalized=True)
        return
    assert 0 < seen.p_value <= 1
    assert 0 <= seen.anomaly_score <= 1
    maps = found.detector.predict_maps(X[-1:], normalized=True)
    assert (maps.min() >= 0) & (maps.max() <= 1)


def test_matches_name_training_images(fitted, data):
    X, _, _ = data
    matches = find_detector(fitted).detector.nearest_patches(X[:3], 2)
    parts = [matches] if "distance" in matches else matches.values()
    for part in parts:
        assert part.image.shape == part.distance.shape
        assert part.distance.shape[0] == 3
        assert part.distance.shape[-1] == 2
        # Defective images were not learned from.
        assert set(np.unique(part.image)) <= set(range(N_GOOD))
        assert (np.diff(part.distance, axis=-1) >= 0).all()


def test_displays_show_it(fitted, data):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from skpatchcore.inspection import (
        AnomalyMapDisplay,
        PatchMatchDisplay,
        ScoreDistributionDisplay,
    )

    X, y, masks = data
    shown = AnomalyMapDisplay.from_estimator(fitted, X[-2:], masks=masks[-2:])
    assert shown.calibrated == find_detector(fitted).detector._is_calibrated
    PatchMatchDisplay.from_estimator(fitted, X[-1:], training_images=X)
    ScoreDistributionDisplay.from_estimator(fitted, X, y)
    plt.close("all")


def test_long_runs_score_it(fitted, data):
    X, _, _ = data
    results = score_images(
        fitted, [X[0] / 255.0, np.full((SIDE, SIDE), np.nan), X[-1]], on_error="skip"
    )
    assert_array_equal(results.index, [0, 2])
    assert_allclose(results.score, fitted.score_samples(X[[0, -1]]), rtol=1e-5)
    assert ("p_value" in results) == find_detector(fitted).detector._is_calibrated


def test_pixel_scorers_rate_it(fitted, data):
    X, y, masks = data
    assert 0 <= aupro_scorer(fitted, X, y, masks=masks) <= 1


def test_files_and_the_command_take_it(fitted, data, tmp_path):
    X, _, _ = data
    save(fitted, tmp_path / "model.skpc")
    again = load(tmp_path / "model.skpc")
    assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, pixels in zip(paths, X[-2:], strict=True):
        Image.fromarray(pixels).save(path)
    overlays, masks = tmp_path / "overlays", tmp_path / "masks"
    arguments = ["score", "--model", tmp_path / "model.skpc", *paths]
    arguments += ["--overlays", overlays, "--masks", masks]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert_allclose([float(row["score"]) for row in rows], fitted.score_samples(X[-2:]))
    assert len(list(overlays.iterdir())) == len(list(masks.iterdir())) == 2


# Unwrapping -------------------------------------------------------------------------


def test_frozen_detectors_are_unwrapped(data):
    X, _, _ = data
    detector = plain().fit(X[:N_GOOD])
    assert find_detector(FrozenEstimator(detector)).detector is detector
    assert_array_equal(
        score_images(FrozenEstimator(detector), X).score, detector.score_samples(X)
    )


def test_steps_before_a_detector_transform_its_images(data):
    X, y, masks = data
    dark = FunctionTransformer(lambda images: [image / 2 for image in images])
    pipeline = make_pipeline(dark, plain()).fit(X / 255.0, y)
    found = find_detector(pipeline)
    assert_allclose(
        [one.score for one in found.inspect(X / 255.0)],
        pipeline.score_samples(X / 255.0),
    )
    results = score_images(pipeline, X / 255.0)
    assert_allclose(results.score, pipeline.score_samples(X / 255.0))
    assert 0 <= aupro_scorer(pipeline, X / 255.0, y, masks=masks) <= 1
    with pytest.raises(TypeError, match="cannot be located in images that Function"):
        found.references()


def test_a_detector_of_vectors_has_no_maps():
    X = np.random.default_rng(0).normal(size=(20, 2))
    detector = calibrated(IsolationForest(random_state=0)).fit(X)
    for name in ("inspect", "predict_maps", "predict_masks", "nearest_patches"):
        assert not hasattr(detector, name)
    with pytest.raises(TypeError, match="Expected a detector with predict_maps"):
        find_detector(detector)
    assert unwrap(FrozenEstimator(detector)) == (detector, [])


def test_an_unfitted_search_is_unwrapped_to_what_it_will_fit():
    assert find_detector(search(plain())).detector.smoothing == 4.0


# Corners ----------------------------------------------------------------------------


def test_one_line_of_the_package_asks_for_a_type():
    asks = re.compile(
        r"isinstance\(.*"
        r"(ConformalDetector|TunedThresholdDetector|PatchCoreEnsemble|Pipeline)"
    )
    package = Path(skpatchcore.__file__).parent
    found = [
        (path.name, line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if asks.search(line)
    ]
    assert found == [("_find.py", "if isinstance(estimator, Pipeline):")]


@pytest.mark.parametrize("name", DETECTORS)
def test_an_unfitted_detector_is_named(name, data):
    X, _, _ = data
    unfitted = DETECTORS[name]()
    found = find_detector(unfitted)
    kind = type(found.detector).__name__
    with pytest.raises(NotFittedError, match=f"This {kind} instance is not fitted yet"):
        found.inspect(X)
    for method in ("predict_maps", "predict_masks", "nearest_patches"):
        with pytest.raises(NotFittedError, match=f"This {kind} instance"):
            getattr(found.detector, method)(X)
    with pytest.raises(NotFittedError):
        score_images(unfitted, X)


def test_transformers_are_given_images_as_the_user_gives_them(data):
    X, y, _ = data
    scale = FunctionTransformer(lambda images: images / 255)
    pipeline = make_pipeline(scale, plain()).fit(X, y)
    expected = plain().fit(X, y).score_samples(X)
    assert_allclose(pipeline.score_samples(X), expected, rtol=1e-5)
    assert_allclose(score_images(pipeline, X).score, expected, rtol=1e-5)
    whole = calibrated(make_pipeline(scale, plain())).fit(X, y)
    assert_allclose(score_images(whole, X).score, whole.score_samples(X), rtol=1e-5)


def test_transformers_that_lose_images_are_refused(data):
    X, _, _ = data
    pipeline = make_pipeline(FunctionTransformer(lambda images: images[1:]), plain())
    pipeline.fit(X[:4])
    with pytest.raises(ValueError, match="made 9 images of 10; they must return one"):
        score_images(pipeline, X)


def test_errors_behind_transformers_name_images_of_the_run(data):
    X, y, _ = data
    pipeline = make_pipeline(FunctionTransformer(lambda images: images), plain())
    pipeline.fit(X / 255.0, y)
    new = X[:6] / 255.0
    new[[1, 4]] = np.nan
    results = score_images(pipeline, new, on_error="skip")
    assert_array_equal(results.index, [0, 2, 3, 5])
    assert [image.index for image in results.unreadable] == [1, 4]
    assert_allclose(results.score, pipeline.score_samples(new[[0, 2, 3, 5]]), rtol=1e-5)


def wrappers_of_frozen(detector):
    frozen = FrozenEstimator(detector)
    return {
        "calibrated": calibrated(frozen),
        "calibrated pipeline": calibrated(Pipeline([("detector", frozen)])),
        "tuned pipeline": TunedThresholdDetector(
            Pipeline([("detector", frozen)]), cv=2
        ),
        "tuned calibrated": TunedThresholdDetector(calibrated(frozen), cv=2),
        "calibrated tuned": calibrated(TunedThresholdDetector(frozen)),
        "frozen tuned": FrozenEstimator(TunedThresholdDetector(frozen)),
    }


@pytest.mark.parametrize("name", wrappers_of_frozen(plain()))
def test_frozen_detectors_keep_the_numbers_of_their_own_fit(name, data, tmp_path):
    X, _, _ = data
    detector = plain().fit(X[:N_GOOD])
    # Of another `X`, in which rows that are learned come last.
    new, labels = np.concatenate([X[-2:], X[:6]]), np.repeat([-1, 1], [2, 6])
    fitted = wrappers_of_frozen(detector)[name]
    fitted = fitted.estimator if isinstance(fitted, FrozenEstimator) else fitted
    fitted.fit(new, labels)
    save(fitted, tmp_path / "model.skpc")
    expected = detector.nearest_patches(new, 1).image
    for one in (fitted, load(tmp_path / "model.skpc")):
        assert is_frozen(one)
        assert_array_equal(one.nearest_patches(new, 1).image, expected)
        assert [reference.rows for reference in one._references()] == [None]


def test_a_member_may_have_any_name(data):
    X, y, _ = data
    named = PatchCoreEnsemble(
        [("distance", plain()), ("image", plain("coarse"))], cv=2, random_state=0
    )
    detector = calibrated(named, "cross").fit(X, y)
    matches = detector.nearest_patches(X[:2], 1)
    assert set(np.unique(matches.distance.image)) <= set(range(N_GOOD))
    assert matches.image.distance.shape == (*matches.image.row.shape[:3], 1)


@pytest.mark.parametrize("method", ["refit", "cross"])
def test_peaks_of_members_that_see_images_in_other_sizes(method, data):
    X, y, _ = data
    large = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    members = [("small", plain()), ("large", plain().set_params(features=large))]
    detector = calibrated(PatchCoreEnsemble(members, cv=2, random_state=0), method)
    detector.fit(X, y)
    peaks = [seen.peak for seen in detector.inspect(X)]
    assert_allclose(peaks, detector.predict_maps(X).max(axis=(1, 2)), rtol=1e-6)


def test_a_threshold_for_maps_exists_only_with_maps():
    X = np.random.default_rng(0).normal(size=(20, 2))
    y = np.repeat([1, -1], 10)
    tuned = TunedThresholdDetector(IsolationForest(random_state=0)).fit(X, y)
    assert not hasattr(tuned, "map_threshold_")


def test_parameters_set_after_fit_change_no_answer(data):
    X, y, _ = data
    for fitted in (
        calibrated(plain()).fit(X, y),
        TunedThresholdDetector(plain(), cv=2).fit(X, y),
    ):
        expected = fitted.nearest_patches(X[:1]).image
        for other in (IsolationForest(), FrozenEstimator(plain())):
            fitted.set_params(estimator=other)
            assert_array_equal(fitted.nearest_patches(X[:1]).image, expected)


class Watched(ImageDetector, BaseEstimator):
    """Notes when its inspections are closed."""

    offset_, map_threshold_ = -1.0, 1.0

    def __init__(self):
        self.closed = 0

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def _map(self, seen, size, border="nearest"):
        return seen.patch_scores

    def _inspect(self, images):
        same = Geometry((1, 1), (1, 1), (0, 0), (1, 1))
        self.running = self.run(images, same)
        return self.running

    def run(self, images, geometry):
        try:
            for i in range(len(images)):
                yield Inspection(i, -float(i), np.full((1, 1), i), geometry, self)
        finally:
            self.closed += 1


def test_inspections_are_closed_on_early_exit(data):
    X, _, _ = data
    detector = Watched()
    tuned = TunedThresholdDetector(FrozenEstimator(detector))
    tuned.fit(X, np.repeat([1, -1], 5))
    detector.closed = 0
    inspections = tuned.inspect(X)
    assert next(inspections).index == 0
    inspections.close()
    assert detector.closed == 1
    detector._map = None
    with pytest.raises(TypeError):
        tuned.predict_maps(X)
    assert detector.closed == 2
