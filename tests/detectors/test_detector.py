"""The detector end to end, on small images and a small network."""

import pickle
import tracemalloc
from contextlib import closing

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_html_repr
from torch import nn

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._detectors._base import gather
from skpatchcore._features._patch_grids import collect_grids
from skpatchcore._images import plan_geometry
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import aupro, image_auroc, image_auroc_scorer, pixel_auroc

# Each takes another way through the memory bank.
SETTINGS = [
    {},
    {"metric": "sqeuclidean"},
    {"metric": "cosine"},
    {"n_neighbors": 3},
    {"reduction": 0.1},
    {"reweight": 4},
]


# Images, a network and definitions ------------------------------------------------


class TwoLayers(nn.Module):
    """Layers of 6 channels at stride 4 and of 8 at stride 8."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 6, 4, stride=4)
            self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def images(n=6, height=24, width=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, 3), np.uint8)


def unequal_images():
    return [*images(3), *images(2, 40, 32, seed=1), *images(2, 24, 48, seed=2)]


def make_detector(fraction=0.3, **params):
    features = PatchFeatureTransformer(
        TwoLayers(), ("first", "second"), image_size=None
    )
    params = {"sampler": CoresetSampler(fraction), "random_state": 0} | params
    return PatchCoreDetector(features, **params)


def small_resnet(**params):
    return PatchFeatureTransformer(
        "resnet18", weights="random", image_size=64, random_state=0, **params
    )


@pytest.fixture(scope="module")
def surfaces():
    return make_surface_defects(
        n_train=12,
        n_test_good=6,
        n_test_defective=8,
        defects=["crack", "foreign", "scratch", "spot"],
        image_size=64,
        random_state=0,
    )


@pytest.fixture
def count_passes(batch_sizes):
    return lambda: sum(batch_sizes)


# Parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"reweight": 4, "n_neighbors": 2}, "is defined for"),
        ({"position_window": 2}, "expected an odd number"),
        ({"augmentation": ["spin"]}, "augmentation contains 'spin'"),
    ],
)
def test_parameters_at_odds_are_found_before_images_are_read(params, message):
    with pytest.raises(ValueError, match=message):
        make_detector(**params).fit(["no such image.png"])


# End to end -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(surfaces):
    detector = PatchCoreDetector(small_resnet(), random_state=0)
    return detector.fit(surfaces.data, surfaces.target)


def test_defective_images_score_lower_than_good_ones(fitted, surfaces):
    test = surfaces.split == "test"
    scores = fitted.score_samples(surfaces.data[test])
    # Chance is 0.5; a ResNet-18 without training reaches more on plain defects.
    assert image_auroc(surfaces.target[test], scores) > 0.8
    assert image_auroc(surfaces.target[test], scores) == roc_auc_score(
        surfaces.target[test], scores
    )


def test_maps_are_higher_on_defects(fitted, surfaces):
    test = surfaces.split == "test"
    maps = fitted.predict_maps(surfaces.data[test])
    assert maps.shape == (14, 64, 64)
    assert maps.dtype == np.float32
    assert pixel_auroc(surfaces.masks[test], maps) > 0.8
    assert aupro(surfaces.masks[test], maps) > 0.3


def test_predictions_follow_the_decision(fitted, surfaces):
    decision, labels = (
        method(surfaces.data) for method in (fitted.decision_function, fitted.predict)
    )
    assert_array_equal(labels, np.where(decision >= 0, 1, -1))
    scores = fitted.score_samples(surfaces.data)
    assert_array_equal(decision, scores - fitted.offset_)
    assert scores.dtype == np.float64
    assert set(labels) == {1, -1}


def test_masks_are_maps_above_the_threshold(fitted, surfaces):
    X = surfaces.data[-3:]
    masks = fitted.predict_masks(X)
    assert masks.dtype == bool
    assert_array_equal(masks, fitted.predict_maps(X) > fitted.map_threshold_)
    middle = float(np.median(fitted.predict_maps(X, size="grid")))
    for size in ("original", "resized", "grid"):
        found = fitted.predict_masks(X, threshold=middle, size=size)
        assert_array_equal(found, fitted.predict_maps(X, size=size) > middle)


def test_the_map_threshold_lets_99_of_100_training_images_pass(fitted):
    """Their largest patch distances are their scores, without what they added."""
    largest = np.quantile(-fitted.training_scores_, 0.99)
    assert fitted.map_threshold_ == pytest.approx(largest, rel=1e-5)


# Composition ------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_scores_are_those_of_a_bank_on_features_extracted_before(settings):
    X, new = images(), images(3, seed=1)
    detector = make_detector(**settings).fit(X)
    features = clone(detector.features).set_params(random_state=0)
    bank = PatchMemoryBank(CoresetSampler(0.3), random_state=0, **settings)
    bank.fit(features.fit_transform(X))
    patches = features.transform(new)
    assert_allclose(detector.score_samples(new), bank.score_samples(patches))
    assert detector.offset_ == pytest.approx(bank.offset_)
    assert detector.map_threshold_ == pytest.approx(bank.patch_threshold_)
    grids = detector.predict_maps(new, size="grid")
    assert_allclose(grids, bank.score_patches(patches), rtol=1e-5)
    assert_allclose(detector.training_scores_, bank.training_scores_, rtol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_scores_are_the_scores_of_the_training_images(settings):
    X = images()
    detector = make_detector(**settings).fit(X)
    assert_allclose(detector.training_scores_, detector.score_samples(X), rtol=1e-5)


def test_sub_estimators_default_to_instances_of_their_own():
    detector = PatchCoreDetector()
    assert detector.features is None
    assert detector.sampler is None
    features = detector._make_features()
    assert type(features) is PatchFeatureTransformer
    assert features.get_params() == PatchFeatureTransformer().get_params()
    sampler = make_detector(sampler=None).fit(images()).memory_bank_.sampler_
    assert type(sampler) is CoresetSampler
    assert sampler.fraction == CoresetSampler().fraction


def test_the_sub_estimators_given_are_left_as_they_were():
    detector = make_detector(verbose=1)
    detector.fit(images())
    assert detector.features.random_state is None
    assert detector.features.verbose == detector.sampler.verbose == 0
    assert not hasattr(detector.features, "projection_")
    assert not hasattr(detector.sampler, "sample_indices_")


@pytest.mark.parametrize("own", [0, 7])
def test_sub_estimators_keep_seeds_of_their_own(own):
    detector = make_detector(sampler=CoresetSampler(0.3, random_state=own))
    detector.set_params(features__random_state=own, features__projection=4)
    detector.fit(images())
    assert detector.features_.random_state == own
    assert detector.memory_bank_.sampler_.random_state == own


def test_verbose_shows_bars_over_images_and_picks(capsys):
    make_detector(fraction=20, verbose=1).fit(images())
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "20/20" in shown


# Reproducibility --------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_int_seed_gives_the_same_detector_bit_for_bit(settings):
    X, new = images(), images(3, seed=1)
    first, again = (make_detector(**settings).fit(X) for _ in range(2))
    assert_array_equal(first.memory_bank_.bank_, again.memory_bank_.bank_)
    assert_array_equal(first.score_samples(new), again.score_samples(new))
    assert_array_equal(first.predict_maps(new), again.predict_maps(new))
    assert first.offset_ == again.offset_


def test_another_seed_gives_another_bank():
    X, sampler = images(), CoresetSampler(0.3, method="random")
    first, other = (
        make_detector(sampler=sampler, random_state=seed).fit(X) for seed in (0, 1)
    )
    assert not np.array_equal(
        first.memory_bank_.bank_indices_, other.memory_bank_.bank_indices_
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_image_scores_the_same_alone_and_in_any_batch(settings):
    X = images(9, seed=1)
    detector = make_detector(**settings).fit(images())
    together, maps = detector.score_samples(X), detector.predict_maps(X)
    alone = np.concatenate([detector.score_samples(x[None]) for x in X])
    assert_allclose(alone, together, rtol=1e-5)
    for order in (np.arange(9)[::-1], np.random.default_rng(0).permutation(9)):
        assert_allclose(detector.score_samples(X[order]), together[order], rtol=1e-5)
        assert_allclose(detector.predict_maps(X[order]), maps[order], rtol=1e-4)
    detector.features_.batch_size = 2
    assert_allclose(detector.score_samples(X), together, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_restored_detector_scores_bit_for_bit_the_same(settings, tmp_path):
    X, new = images(), images(3, seed=1)
    detector = make_detector(**settings).fit(X)
    joblib.dump(detector, tmp_path / "detector.joblib")
    for restored in (
        pickle.loads(pickle.dumps(detector)),
        joblib.load(tmp_path / "detector.joblib"),
    ):
        assert_array_equal(restored.score_samples(new), detector.score_samples(new))
        assert_array_equal(restored.predict_maps(new), detector.predict_maps(new))
        matches = restored.nearest_patches(new)
        assert_array_equal(matches.image, detector.nearest_patches(new).image)


def test_a_pickle_does_not_hold_a_network_given_by_name():
    detector = PatchCoreDetector(small_resnet(layers=("layer1",)), CoresetSampler(20))
    detector.fit(images(2, 64, 64))
    # The weights of the layers read alone are 600 KB, the bank 5 KB.
    assert len(pickle.dumps(detector)) < 50_000


# Labels and training ----------------------------------------------------------------


def test_images_labelled_anomalous_are_left_out(count_passes):
    X, y = images(8), np.array([1, -1, 1, 1, -1, 1, 1, 1])
    detector = make_detector().fit(X, y)
    assert count_passes() == 6
    expected = make_detector().fit(X[y == 1])
    assert_array_equal(detector.training_indices_, [0, 2, 3, 5, 6, 7])
    assert_array_equal(detector.memory_bank_.bank_, expected.memory_bank_.bank_)
    assert detector.offset_ == expected.offset_


def test_only_anomalies_leave_nothing_to_learn_from():
    with pytest.raises(ValueError, match="All 6 samples are labelled -1"):
        make_detector().fit(images(), -np.ones(6))


@pytest.mark.parametrize("y", [None, [1, 1, 1, 1, -1, 1]])
def test_fit_predict_equals_fit_then_predict(y):
    X = images()
    fitted = make_detector(contamination=0.3).fit(X, y)
    found = make_detector(contamination=0.3).fit_predict(X, y)
    assert_array_equal(found, fitted.predict(X))


def test_fit_predict_passes_every_image_once(count_passes):
    make_detector().fit_predict(images())
    assert count_passes() == 6


@pytest.mark.parametrize(
    "params", [{}, {"features__projection": PCA(3)}, {"features__layer_weights": None}]
)
def test_fit_passes_every_image_once_and_so_does_every_method(count_passes, params):
    X = images()
    detector = make_detector().set_params(**params).fit(X)
    assert count_passes() == 6
    methods = ("score_samples", "predict", "predict_maps", "nearest_patches")
    for i, name in enumerate(methods, start=2):
        getattr(detector, name)(X)
        assert count_passes() == 6 * i


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_neighbors": 10_000}, "n_neighbors=10000"),
        ({"features__layers": ("third",)}, "no layer 'third'"),
        ({"sampler__fraction": 10_000}, "fraction=10000"),
        ({"metric": "hamming"}, "'metric' parameter"),
        ({"features__patch_size": 2}, "patch_size must be odd"),
    ],
)
def test_a_failed_fit_leaves_the_earlier_one_usable(params, message):
    X, new = images(), images(3, seed=1)
    detector = make_detector().fit(X)
    expected = detector.score_samples(new)
    before = detector.get_params()
    detector.set_params(**params)
    with pytest.raises(ValueError, match=message):
        detector.fit(images(seed=2))
    detector.set_params(**before)
    assert_array_equal(detector.score_samples(new), expected)
    assert_array_equal(detector.fit(X).score_samples(new), expected)


# Where a patch comes from -----------------------------------------------------------


def features_of(detector, image):
    """Patch features (h, w, d) of one image, by the fitted transformer."""
    return detector.features_.transform([image])[0]


def assert_matches_are_true(detector, X, new, metric="euclidean"):
    """Every match is a training patch at exactly the distance told."""
    matches = detector.nearest_patches(new, n_neighbors=2)
    grids = detector.predict_maps(new, size="grid")
    for i, image in enumerate(new):
        patches = features_of(detector, image)
        # Arrays of different shapes come as lists.
        place = matches.image[i], matches.row[i], matches.column[i]
        distance = matches.distance[i]
        assert distance.shape == (*patches.shape[:2], 2)
        assert_allclose(distance[..., 0], grids[i], rtol=1e-5, atol=1e-6)
        assert np.all(distance[..., 0] <= distance[..., 1])
        for index in np.ndindex(distance.shape):
            number, row, column = (int(part[index]) for part in place)
            match = features_of(detector, X[number])[row, column]
            vectors = patches[index[:2]][None], match[None]
            found = cdist(*(v.astype(np.float64) for v in vectors), metric)
            assert distance[index] == pytest.approx(found[0, 0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_nearest_patches_are_training_patches_at_their_distance(metric):
    X, new = images(), images(2, seed=1)
    assert_matches_are_true(make_detector(metric=metric).fit(X), X, new, metric)


def test_nearest_patches_of_unequal_images_with_some_left_out():
    X = unequal_images()
    y = np.array([-1, 1, 1, -1, 1, 1, 1])
    detector = make_detector(fraction=0.5).fit(X, y)
    new = [*images(1, 24, 32, seed=5), *images(1, 40, 24, seed=6)]
    assert_matches_are_true(detector, X, new)
    matches = detector.nearest_patches(X)
    seen = np.concatenate([part.ravel() for part in matches.image])
    assert set(seen) <= {1, 2, 4, 5, 6}


@pytest.mark.parametrize("unequal", [False, True])
def test_training_patches_in_the_bank_match_themselves(unequal):
    X = unequal_images() if unequal else images()
    y = np.where(np.arange(len(X)) == 1, -1, 1)
    sampler = CoresetSampler(method="none")
    detector = make_detector(sampler=sampler).fit(X, y)
    matches = detector.nearest_patches(X)
    for i in np.flatnonzero(y == 1):
        h, w = matches.distance[i].shape[:2]
        # Batches of other sizes may round the network's sums differently.
        assert matches.distance[i].max() < 1e-5
        assert_array_equal(matches.image[i], np.full((h, w, 1), i))
        rows, columns = np.mgrid[:h, :w]
        assert_array_equal(matches.row[i][..., 0], rows)
        assert_array_equal(matches.column[i][..., 0], columns)
    assert matches.distance[1].min() > 0


def test_nearest_patches_come_as_arrays_where_grids_agree():
    detector = make_detector(n_neighbors=2).fit(images())
    matches = detector.nearest_patches(images(3, seed=1))
    assert sorted(matches) == ["column", "distance", "image", "row", "transform"]
    for name, values in matches.items():
        assert values.shape == (3, 6, 8, 2)
        assert values.dtype == (np.float64 if name == "distance" else np.int64)


# Sizes ------------------------------------------------------------------------------


def test_images_of_unequal_sizes_are_fitted_scored_and_mapped():
    X = unequal_images()
    detector = make_detector().fit(X)
    scores = detector.score_samples(X)
    assert_allclose(scores, detector.training_scores_, rtol=1e-5)
    maps, masks = detector.predict_maps(X), detector.predict_masks(X)
    assert [m.shape for m in maps] == [x.shape[:2] for x in X]
    assert [m.shape for m in masks] == [x.shape[:2] for x in X]
    for image, score, found in zip(X, scores, maps, strict=True):
        assert detector.score_samples([image])[0] == pytest.approx(score, rel=1e-5)
        assert_allclose(detector.predict_maps([image])[0], found, rtol=1e-4)


def test_new_images_may_have_another_size_than_those_learned_from():
    detector = make_detector().fit(images())
    assert detector.predict_maps(images(2, 40, 56)).shape == (2, 40, 56)


def test_a_crop_leaves_a_rim_that_is_filled_or_marked():
    detector = make_detector().set_params(features__crop_size=16).fit(images())
    X = images(2, seed=1)
    filled = detector.predict_maps(X)
    marked = detector.predict_maps(X, border="nan")
    assert filled.shape == marked.shape == (2, 24, 32)
    assert np.isfinite(filled).all()
    seen = np.zeros((24, 32), bool)
    seen[4:20, 8:24] = True
    assert_array_equal(np.isnan(marked), np.broadcast_to(~seen, (2, 24, 32)))
    assert_array_equal(filled[:, seen], marked[:, seen])
    assert detector.predict_maps(X, size="resized").shape == (2, 16, 16)


def test_smoothing_evens_maps_out_and_0_does_not():
    X = images(2, seed=1)
    rough, smooth = (
        make_detector(smoothing=smoothing).fit(images()).predict_maps(X)
        for smoothing in (0, 4)
    )
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(smooth)).mean()


@pytest.mark.parametrize("params", [{"size": "large"}, {"border": "zero"}])
def test_a_wrong_choice_for_maps_is_named(params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        make_detector().fit(images()).predict_maps(images(), **params)


# scikit-learn's tools ---------------------------------------------------------------


def test_nested_parameters_are_set_and_used():
    detector = make_detector()
    detector.set_params(features__layers=("first",), sampler__fraction=17)
    detector.fit(images())
    assert detector.memory_bank_.bank_.shape == (17, 6)
    assert detector.get_params()["features__layers"] == ("first",)


def test_a_grid_over_nested_parameters(surfaces):
    search = GridSearchCV(
        make_detector(),
        {"features__layers": [("first",), ("second",)], "sampler__fraction": [5, 0.1]},
        scoring=image_auroc_scorer,
        cv=surfaces.cv,
        error_score="raise",
    )
    search.fit(surfaces.data, surfaces.target)
    assert search.best_score_ > 0.6
    assert len(search.cv_results_["params"]) == 4
    # Refitting has left the defective images out.
    learned = search.best_estimator_.training_indices_
    assert_array_equal(learned, np.flatnonzero(surfaces.target == 1))
    assert search.best_estimator_.predict_maps(surfaces.data[:2]).shape == (2, 64, 64)


def test_cross_validation(surfaces):
    result = cross_validate(
        PatchCoreDetector(small_resnet(layers=("layer2",)), random_state=0),
        surfaces.data,
        surfaces.target,
        scoring={"ours": image_auroc_scorer, "sklearn": "roc_auc"},
        cv=surfaces.cv,
        error_score="raise",
        return_estimator=True,
    )
    assert result["test_ours"] > 0.6
    assert_allclose(result["test_ours"], result["test_sklearn"])
    assert isinstance(result["estimator"][0], PatchCoreDetector)


def test_the_detector_is_the_last_step_of_a_pipeline():
    X = images()
    pipeline = make_pipeline(FunctionTransformer(lambda x: 255 - x), make_detector())
    pipeline.fit(X)
    expected = make_detector().fit(255 - X).score_samples(255 - X)
    assert_array_equal(pipeline.score_samples(X), expected)
    noisy = images(6, seed=3) // 4
    scores = pipeline.decision_function(np.concatenate([X, noisy]))
    assert roc_auc_score([1] * 6 + [-1] * 6, scores) > 0.9
    assert pipeline[-1].predict_maps(255 - X).shape == (6, 24, 32)


def test_a_clone_has_the_parameters_and_nothing_learned():
    detector = make_detector(metric="cosine").fit(images())
    copy = clone(detector)
    assert not hasattr(copy, "memory_bank_")
    assert copy.metric == "cosine"
    assert copy.sampler.fraction == 0.3
    new = images(2, seed=1)
    scores = copy.fit(images()).score_samples(new)
    assert_array_equal(scores, detector.score_samples(new))


def test_it_shows_as_html_and_as_text():
    for detector in (PatchCoreDetector(), make_detector().fit(images())):
        assert "PatchCoreDetector" in estimator_html_repr(detector)
        assert "PatchCoreDetector" in repr(detector)


def test_an_unfitted_detector_says_so():
    for name in ("score_samples", "predict", "predict_maps", "nearest_patches"):
        with pytest.raises(ValueError, match="not fitted yet"):
            getattr(make_detector(), name)(images())


# Memory -----------------------------------------------------------------------------


def peak_of(function):
    """Return what `function` gives and the most that NumPy held meanwhile, in bytes."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def streaming():
    detector = make_detector(0.01, device="cpu").set_params(features__batch_size=4)
    return detector.fit(images(6, 64, 96))


def test_scores_are_predicted_in_the_memory_of_a_few_images(streaming):
    X = images(160, 64, 96)
    streaming.score_samples(X[:20])
    _, few = peak_of(lambda: streaming.score_samples(X[:20]))
    _, many = peak_of(lambda: streaming.score_samples(X))
    # Eight times the images: their features alone would be 3 MB more.
    assert many - few < 300_000


@pytest.mark.parametrize("method", ["predict_maps", "predict_masks"])
@pytest.mark.parametrize("size", ["original", "resized"])
def test_maps_are_held_once(streaming, method, size):
    X = images(160, 64, 96)
    predict = getattr(streaming, method)
    predict(X[:20], size=size)
    _, few = peak_of(lambda: predict(X[:20], size=size))
    maps, peak = peak_of(lambda: predict(X, size=size))
    assert peak < few + 1.1 * maps.nbytes


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 1, 4, 0, 2)])
@pytest.mark.parametrize("odd", [None, 0, 1, 4])
def test_arrays_aregathered_into_one_if_they_can_be(order, odd):
    arrays = [np.full((2 + (i == odd), 3), i, np.float32) for i in range(5)]
    found = gather(((i, arrays[i]) for i in order), 5)
    assert isinstance(found, np.ndarray if odd is None else list)
    for ours, expected in zip(found, arrays, strict=True):
        assert ours.dtype == np.float32
        assert_array_equal(ours, expected)


# Features ---------------------------------------------------------------------------


class WiderFeatures(PatchFeatureTransformer):
    """A subclass with a parameter of its own."""

    def __init__(self, backbone="gabor", layers=("fine",), *, image_size=None, extra=1):
        super().__init__(backbone, layers, image_size=image_size)
        self.extra = extra


class ColorGrids(BaseEstimator):
    """Keeps to the protocol, without a network: mean colours of 8 x 8 pixels."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X

    def _fit_extract(self, images):
        with closing(self._iter_projected(images)) as batches:
            return collect_grids(batches, len(images))

    def _iter_projected(self, images):
        for i, image in enumerate(images):
            h, w = (side // 8 for side in image.shape[:2])
            means = image[: 8 * h, : 8 * w].reshape(h, 8, w, 8, 3).mean(axis=(1, 3))
            yield [i], means[None], [plan_geometry(image.shape[:2], None, None)]


def test_subclasses_of_features_are_accepted():
    detector = PatchCoreDetector(WiderFeatures(extra=3), random_state=0)
    detector.fit(images())
    assert detector.features_.extra == 3


def test_other_estimators_may_keep_the_protocol():
    X = images()
    detector = PatchCoreDetector(ColorGrids(), random_state=0).fit(X)
    assert detector.predict_maps(X).shape == X.shape[:3]
    assert detector.nearest_patches(X[:1]).distance.shape == (1, 3, 4, 1)


def test_frozen_features_are_not_fitted_again():
    X = images()
    features = PatchFeatureTransformer(
        "gabor", ("fine", "coarse"), image_size=None, projection=PCA(5)
    ).fit(X)
    projection, weights = features.projection_, features.layer_weights_
    frozen = PatchCoreDetector(FrozenEstimator(features), random_state=0).fit(X[:3])
    assert features.projection_ is projection
    assert features.layer_weights_ == weights
    expected = PatchMemoryBank(random_state=0).fit(
        features.transform(X[:3]).reshape(-1, 5)
    )
    assert frozen.memory_bank_.bank_.shape == expected.bank_.shape
    copied = pickle.loads(pickle.dumps(frozen))
    assert_array_equal(copied.score_samples(X), frozen.score_samples(X))


def test_frozen_features_must_be_fitted():
    with pytest.raises(NotFittedError):
        PatchCoreDetector(FrozenEstimator(PatchFeatureTransformer("gabor"))).fit(
            images()
        )


@pytest.mark.parametrize(
    "features",
    [
        make_pipeline(PatchFeatureTransformer("gabor", ("fine",))),
        FrozenEstimator(PCA()),
        PCA(),
        PatchFeatureTransformer,
    ],
)
def test_other_features_are_refused_before_an_image_is_read(features, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"")
    with pytest.raises(TypeError, match="features"):
        PatchCoreDetector(features).fit([path])


# Parameters set after the fit, and training images among those to score ---------------


@pytest.mark.parametrize(
    "params",
    [
        {"smoothing": 9.0},
        {"metric": "sqeuclidean", "reduction": 0.5},
        {"n_neighbors": 3},
        {"reweight": 4},
        {"position_window": 1},
        {"foreground": "auto", "augmentation": "flip", "outlier_filter": "lof"},
        {"sampler__fraction": 0.9, "contamination": 0.5},
        {"features__layers": ("first",), "features__projection": 2},
        {"verbose": 0, "device": "cpu", "random_state": 5},
    ],
    ids=str,
)
def test_parameters_set_after_the_fit_change_no_answer(params):
    new = images(3, seed=1)
    detector = make_detector().fit(images())

    def answers():
        maps, matches = detector.predict_maps(new), detector.nearest_patches(new)
        return [detector.decision_function(new), maps, detector.predict_masks(new)] + [
            matches[name] for name in ("image", "row", "column", "distance")
        ]

    before = answers()
    detector.set_params(**params)
    for found, expected in zip(answers(), before, strict=True):
        assert_array_equal(found, expected)


def test_training_images_have_their_training_scores_in_any_batch():
    X, new = images(), images(3, seed=1)
    detector = make_detector().fit(X)
    mixed = detector.score_samples(np.concatenate([new, X[::-1]]))
    assert_array_equal(mixed[3:], detector.training_scores_[::-1])
    assert detector.score_samples(X[2:3]) == detector.training_scores_[2]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rounding_in_another_batch_does_not_hide_a_training_image(batch_size):
    X = images(6)
    detector = PatchCoreDetector(small_resnet(), random_state=0).fit(X)
    detector.features_.set_params(batch_size=batch_size)
    assert_array_equal(detector.score_samples(X), detector.training_scores_)


def test_a_training_image_with_a_small_defect_is_a_new_image():
    X = images(6)
    detector = make_detector().fit(X)
    changed = X[:1].copy()
    changed[0, :2, :2] = 255 - changed[0, :2, :2]
    expected = -detector.predict_maps(changed, size="grid").max()
    assert detector.score_samples(changed)[0] == pytest.approx(expected)


def test_an_unusual_training_image_is_flagged():
    X = images(12)
    X[5] = 0
    detector = make_detector(0.1, contamination=0.1)
    labels = detector.fit_predict(X)
    assert labels[5] == -1
    assert_array_equal(detector.predict(X), labels)


def test_copies_made_by_an_augmentation_do_not_vouch_for_their_image():
    """With all patches kept, an image would be at distance 0 from its mirror image."""
    X = images(5)
    X = np.concatenate([X, X[..., ::-1, :]], axis=2)
    detector = make_detector(1.0, augmentation="flip").fit(X)
    assert detector.training_scores_.max() < -1e-3


def test_a_seed_reaches_a_projection_with_a_randomised_solver():
    def fitted(seed):
        features = make_detector().features
        projection = make_pipeline(PCA(3, svd_solver="randomized"))
        features.set_params(projection=projection)
        return PatchCoreDetector(features, random_state=seed).fit(images())

    one, again, other = fitted(0), fitted(0), fitted(1)
    assert_array_equal(one.memory_bank_.bank_, again.memory_bank_.bank_)
    seeds = [d.features_.projection_[0].random_state for d in (one, again, other)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_projection_keeps_its_own_seed():
    detector = make_detector().set_params(features__projection=PCA(3, random_state=7))
    assert detector.fit(images()).features_.projection_.random_state == 7
