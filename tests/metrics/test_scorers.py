"""Scorers of anomaly maps, and how scikit-learn passes masks to them."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn import clone, config_context
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import (
    NotFittedError,
    UndefinedMetricWarning,
    UnsetMetadataPassedError,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    LearningCurveDisplay,
    cross_val_score,
    cross_validate,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.datasets import make_surface_defects
from skpatchcore.metrics import (
    all_metrics_scorer,
    aupro,
    aupro_scorer,
    average_precision,
    average_precision_scorer,
    f1_max,
    f1_max_scorer,
    image_auroc,
    image_auroc_scorer,
    pixel_auroc,
    pixel_auroc_scorer,
    pixel_average_precision,
    pixel_average_precision_scorer,
    pixel_f1_max,
    pixel_f1_max_scorer,
    pixel_metrics_scorer,
)
from skpatchcore.model_selection import OneClassKFold

SCORERS = {
    "pixel_auroc": (pixel_auroc_scorer, pixel_auroc),
    "pixel_average_precision": (
        pixel_average_precision_scorer,
        pixel_average_precision,
    ),
    "pixel_f1_max": (pixel_f1_max_scorer, lambda *args: pixel_f1_max(*args).f1),
    "aupro": (aupro_scorer, aupro),
}
IMAGE_SCORERS = {
    "image_auroc": (image_auroc_scorer, image_auroc),
    "average_precision": (average_precision_scorer, average_precision),
    "f1_max": (f1_max_scorer, lambda *args, **kw: f1_max(*args, **kw).f1),
}
EVERY_SCORER = {
    **{name: scorer for name, (scorer, _) in (SCORERS | IMAGE_SCORERS).items()},
    "pixel_metrics": pixel_metrics_scorer,
    "all_metrics": all_metrics_scorer,
}
CV = OneClassKFold(3)


class BrightnessDetector(OutlierMixin, BaseEstimator):
    """Return brightness times `sign` as the anomaly map."""

    def __init__(self, sign=1):
        self.sign = sign

    def fit(self, X, y=None):
        self.n_maps_ = 0
        return self

    def predict_maps(self, X):
        self.n_maps_ += 1
        return np.stack([self.sign * (x.astype(float)) for x in X])

    def decision_function(self, X):
        return -self.predict_maps(X).max(axis=(1, 2))


@pytest.fixture
def images():
    """Return nine dark images and six with a brighter square, hidden in noise."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 160, (15, 12, 16), np.uint8)
    masks = np.zeros(X.shape, dtype=bool)
    masks[9:, 3:7, 2:9] = True
    X[masks] += 80
    return X, np.repeat([1, -1], [9, 6]), masks


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


# One call ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_scorer_equals_its_metric(images, name):
    X, y, masks = images
    scorer, metric = SCORERS[name]
    detector = BrightnessDetector().fit(X)
    value = scorer(detector, X, y, masks=masks)
    assert isinstance(value, float)
    assert value == metric(masks, detector.predict_maps(X))
    assert scorer(detector, X, masks=masks) == value


def test_all_metrics_come_from_one_pass(images):
    X, y, masks = images
    detector = BrightnessDetector().fit(X)
    values = pixel_metrics_scorer(detector, X, y, masks=masks)
    assert detector.n_maps_ == 1
    assert values == {
        name: metric(masks, detector.predict_maps(X))
        for name, (_, metric) in SCORERS.items()
    }


def test_masks_are_paths_arrays_or_none(images, tmp_path):
    X, y, masks = images
    files = [tmp_path / f"{i}.png" for i in range(len(X))]
    for mask, file in zip(masks, files, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    mixed = [*[None] * 9, *files[9:12], *map(str, files[12:14]), masks[14]]
    detector = BrightnessDetector().fit(X)
    expected = aupro_scorer(detector, X, y, masks=masks)
    assert aupro_scorer(detector, X, y, masks=mixed) == expected


@pytest.mark.parametrize("scorer", [s for s, _ in SCORERS.values()])
def test_the_error_of_missing_masks_says_how_to_pass_them(images, scorer):
    X, y, _ = images
    message = f"{scorer!r} needs the ground-truth masks.*enable_metadata_routing=True"
    with pytest.raises(ValueError, match=message):
        scorer(BrightnessDetector().fit(X), X, y)


def test_masks_that_do_not_fit_are_refused(images):
    X, y, masks = images
    detector = BrightnessDetector().fit(X)
    with pytest.raises(ValueError, match="Got 14 masks for 15 images"):
        aupro_scorer(detector, X, y, masks=masks[1:])
    with pytest.raises(ValueError, match="Mask and image differ in size: mask 0"):
        aupro_scorer(detector, X, y, masks=masks[:, 1:])


# Images and pixels ------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_SCORERS)
def test_an_image_scorer_equals_its_metric(images, name):
    X, y, _ = images
    scorer, metric = IMAGE_SCORERS[name]
    detector = BrightnessDetector().fit(X)
    assert scorer(detector, X, y) == metric(y, detector.decision_function(X))


@pytest.mark.parametrize("name", IMAGE_SCORERS)
def test_a_weight_of_2_counts_an_image_twice(images, name):
    X, y, _ = images
    scorer, _ = IMAGE_SCORERS[name]
    detector = BrightnessDetector().fit(X)
    weights = np.arange(len(X)) % 3
    repeated = np.repeat(np.arange(len(X)), weights)
    weighted = scorer(detector, X, y, sample_weight=weights)
    assert weighted == pytest.approx(scorer(detector, X[repeated], y[repeated]))
    with config_context(enable_metadata_routing=True):
        routed = clone(scorer).set_score_request(sample_weight=True)
        everything = [(np.arange(len(X)), np.arange(len(X)))]
        (by_routing,) = cross_val_score(
            BrightnessDetector(),
            X,
            y,
            scoring=routed,
            cv=everything,
            params={"sample_weight": weights},
            error_score="raise",
        )
    assert by_routing == weighted


def test_image_scorers_share_the_scores_of_a_fold(images):
    X, y, _ = images
    scoring = {name: scorer for name, (scorer, _) in IMAGE_SCORERS.items()}
    result = cross_validate(
        BrightnessDetector(), X, y, cv=CV, scoring=scoring, return_estimator=True
    )
    assert [detector.n_maps_ for detector in result["estimator"]] == [1, 1, 1]


def test_image_and_pixel_metrics_come_from_one_call(images):
    X, y, masks = images
    detector = BrightnessDetector().fit(X)
    values = all_metrics_scorer(detector, X, y, masks=masks)
    apart = {
        name: scorer(detector, X, y) for name, (scorer, _) in IMAGE_SCORERS.items()
    }
    assert values == apart | pixel_metrics_scorer(detector, X, y, masks=masks)
    weights = np.arange(15) % 3
    weighted = all_metrics_scorer(detector, X, y, masks=masks, sample_weight=weights)
    assert weighted["image_auroc"] == image_auroc_scorer(
        detector, X, y, sample_weight=weights
    )
    assert weighted["aupro"] == values["aupro"]


def test_all_metrics_of_a_detector_need_one_pass_over_its_images():
    surfaces = make_surface_defects(6, 2, 2, image_size=32, random_state=0)
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    detector = PatchCoreDetector(features, random_state=0)
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            detector,
            {"smoothing": [0.0, 4.0]},
            scoring=all_metrics_scorer,
            refit="image_auroc",
            cv=surfaces.cv,
            error_score="raise",
        ).fit(surfaces.data, surfaces.target, masks=surfaces.masks)
    assert set(IMAGE_SCORERS) | set(SCORERS) <= {
        name.removeprefix("mean_test_") for name in search.cv_results_
    }
    test = np.arange(6, len(surfaces.data))
    X, y = surfaces.data[test], surfaces.target[test]
    masks = [surfaces.masks[i] for i in test]
    seen = []
    found = search.best_estimator_
    inspect = found._inspect
    found._inspect = lambda given: seen.extend(range(len(given))) or inspect(given)
    values = all_metrics_scorer(search, X, y, masks=masks)
    assert seen == list(range(len(X)))
    assert values["image_auroc"] == image_auroc_scorer(search, X, y)
    assert values["aupro"] == aupro_scorer(search, X, y, masks=masks)


# Folds with one class ---------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_SCORER)
def test_a_metric_that_is_not_defined_is_nan_with_a_warning(images, name):
    X, y, masks = images
    scorer, detector = EVERY_SCORER[name], BrightnessDetector().fit(X)
    given = {"masks": masks[:9]} if hasattr(scorer, "requests") else {}
    n_warnings = 2 if name == "all_metrics" else 1
    with pytest.warns(
        UndefinedMetricWarning, match="not defined, set to NaN"
    ) as caught:
        value = scorer(detector, X[:9], y[:9], **given)
    assert len(caught) == n_warnings
    assert np.isnan(list(value.values()) if isinstance(value, dict) else value).all()


def test_folds_with_one_class_do_not_end_a_cross_validation(images):
    X, y, _ = images
    order = np.r_[0:6, 9:12, 6:9, 12:15]
    with pytest.warns(UndefinedMetricWarning, match="contains no .* image .* among 3"):
        scores = cross_val_score(
            BrightnessDetector(),
            X[order],
            y[order],
            scoring=image_auroc_scorer,
            cv=KFold(5),
            error_score="raise",
        )
    assert np.isnan(scores).all()


def test_wrong_labels_are_still_an_error(images):
    X, y, masks = images
    detector = BrightnessDetector().fit(X)
    for scorer, given in (
        (image_auroc_scorer, {}),
        (all_metrics_scorer, {"masks": masks}),
    ):
        with pytest.raises(ValueError, match="If 1 stands for anomalous"):
            scorer(detector, X, y == -1, **given)


@pytest.mark.parametrize("name", [*IMAGE_SCORERS, "all_metrics"])
@pytest.mark.parametrize("labels", [[1, 1, 1], [1, -1, 1]])
def test_labels_of_another_length_are_an_error_before_any_work(images, name, labels):
    X, _, masks = images
    scorer, detector = EVERY_SCORER[name], BrightnessDetector().fit(X)
    given = {"masks": masks} if hasattr(scorer, "requests") else {}
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[15, 3\]"):
        scorer(detector, X, labels, **given)
    assert detector.n_maps_ == 0


# Names ------------------------------------------------------------------------------


def test_learning_curves_show_the_name_of_a_metric(images):
    plt = pytest.importorskip("matplotlib.pyplot")
    X, y, _ = images
    # Training folds have one class.
    with pytest.warns(UndefinedMetricWarning):
        display = LearningCurveDisplay.from_estimator(
            BrightnessDetector(),
            X,
            y,
            cv=CV,
            train_sizes=[0.5, 1.0],
            scoring=image_auroc_scorer,
            score_type="test",
            error_score="raise",
        )
    assert display.ax_.get_ylabel() == "Image auroc"
    plt.close("all")


# Estimators -------------------------------------------------------------------------


def shift(X):
    return X // 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda detector: make_pipeline(detector),
        lambda detector: make_pipeline(FunctionTransformer(shift), detector),
        lambda detector: make_pipeline("passthrough", None, detector),
        lambda detector: make_pipeline("passthrough", make_pipeline(detector)),
        lambda detector: GridSearchCV(
            make_pipeline(detector),
            {"brightnessdetector__sign": [1]},
            scoring=image_auroc_scorer,
            cv=CV,
        ),
    ],
    ids=["alone", "transformer", "passthrough", "nested", "search"],
)
def test_maps_are_found_in_pipelines_and_searches(images, wrap):
    X, y, masks = images
    wrapped = wrap(BrightnessDetector()).fit(X, y)
    expected = aupro_scorer(BrightnessDetector().fit(X), X, masks=masks)
    assert aupro_scorer(wrapped, X, y, masks=masks) == pytest.approx(expected, abs=0.01)


def test_a_pipeline_transforms_before_its_last_step(images):
    X, y, masks = images
    pipeline = make_pipeline(FunctionTransformer(np.invert), BrightnessDetector())
    value = pixel_auroc_scorer(pipeline.fit(X), X, y, masks=masks)
    straight = pixel_auroc_scorer(BrightnessDetector().fit(X), X, y, masks=masks)
    assert value == pytest.approx(1 - straight)


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (LocalOutlierFactor(), "LocalOutlierFactor"),
        (make_pipeline("passthrough", LocalOutlierFactor()), "LocalOutlierFactor"),
    ],
    ids=["detector", "pipeline"],
)
def test_an_estimator_without_maps_is_refused(images, estimator, name):
    X, y, masks = images
    with pytest.raises(
        TypeError, match=rf"(?s)Expected a detector with predict.*{name}"
    ):
        aupro_scorer(estimator, X, y, masks=masks)


def test_an_unfitted_search_is_refused(images):
    X, y, masks = images
    with pytest.raises(NotFittedError):
        aupro_scorer(GridSearchCV(BrightnessDetector(), {}), X, y, masks=masks)


# Routing ----------------------------------------------------------------------------


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("name", SCORERS)
def test_masks_are_routed_to_each_fold(images, name):
    X, y, masks = images
    scorer, metric = SCORERS[name]
    detector = BrightnessDetector()
    expected = [
        metric(masks[test], detector.fit(X).predict_maps(X[test]))
        for _, test in CV.split(X, y)
    ]
    listed = [mask if mask.any() else None for mask in masks]
    for given in (masks, listed):
        settings = {"cv": CV, "scoring": scorer, "params": {"masks": given}}
        assert cross_val_score(detector, X, y, **settings).tolist() == expected

        search = GridSearchCV(detector, {"sign": [-1, 1]}, scoring=scorer, cv=CV)
        search.fit(X, y, masks=given)
        assert search.best_params_ == {"sign": 1}
        assert search.best_score_ == pytest.approx(np.mean(expected))


@pytest.mark.usefixtures("routing")
def test_a_halving_search_routes_masks(images):
    X, y, masks = images
    search = HalvingGridSearchCV(
        BrightnessDetector(),
        {"sign": [-1, 1]},
        min_resources=15,
        scoring=aupro_scorer,
        cv=CV,
        return_train_score=False,
        error_score="raise",
    )
    assert search.fit(X, y, masks=masks).best_params_ == {"sign": 1}


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_scorers_of_images_and_pixels_work_together(images, n_jobs):
    X, y, masks = images
    scoring = {name: scorer for name, (scorer, _) in SCORERS.items()}
    scoring["image_auroc"] = image_auroc_scorer
    settings = {"cv": CV, "params": {"masks": masks}, "error_score": "raise"}
    detector = BrightnessDetector()
    result = cross_validate(detector, X, y, scoring=scoring, n_jobs=n_jobs, **settings)
    assert {f"test_{name}" for name in scoring} <= set(result)
    at_once = cross_validate(
        detector, X, y, scoring=pixel_metrics_scorer, n_jobs=n_jobs, **settings
    )
    for name in SCORERS:
        assert at_once[f"test_{name}"].tolist() == result[f"test_{name}"].tolist()


@pytest.mark.usefixtures("routing")
def test_a_search_refits_by_one_of_all_metrics(images):
    X, y, masks = images
    search = GridSearchCV(
        BrightnessDetector(),
        {"sign": [-1, 1]},
        scoring=pixel_metrics_scorer,
        refit="aupro",
        cv=CV,
        error_score="raise",
    ).fit(X, y, masks=masks)
    assert search.best_params_ == {"sign": 1}
    assert search.best_score_ == search.cv_results_["mean_test_aupro"].max()


@pytest.mark.usefixtures("routing")
def test_masks_may_have_another_name(images):
    X, y, masks = images
    scorer = clone(aupro_scorer)
    assert scorer.set_score_request(masks="truth") is scorer
    for scoring in (scorer, {"aupro": scorer}):
        settings = {"cv": CV, "scoring": scoring, "error_score": "raise"}
        cross_validate(BrightnessDetector(), X, y, params={"truth": masks}, **settings)
        with pytest.raises(TypeError, match="masks"):
            cross_validate(
                BrightnessDetector(), X, y, params={"masks": masks}, **settings
            )
    with pytest.raises(ValueError, match="given value is: `not a name`"):
        scorer.set_score_request(masks="not a name")
    scorer.set_score_request(masks=None)
    with pytest.raises(UnsetMetadataPassedError, match="masks"):
        cross_val_score(
            BrightnessDetector(), X, y, scoring=scorer, cv=CV, params={"masks": masks}
        )


def test_without_routing_the_message_says_what_to_do(images):
    X, y, _ = images
    with pytest.raises(ValueError, match=r"set_config\(enable_metadata_routing=True\)"):
        cross_validate(
            BrightnessDetector(), X, y, cv=CV, scoring=aupro_scorer, error_score="raise"
        )
    with pytest.raises(RuntimeError, match=r"set_config\(enable_metadata_routing=True"):
        aupro_scorer.set_score_request(masks=True)


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize(
    "copy", [clone, lambda s: pickle.loads(pickle.dumps(s))], ids=["clone", "pickle"]
)
def test_copies_keep_the_request_and_do_not_change_the_original(images, copy):
    X, _, masks = images
    renamed = copy(copy(pixel_metrics_scorer).set_score_request(masks="truth"))
    requested = renamed.get_metadata_routing().score.requests
    assert requested == {"masks": "truth"}
    assert pixel_metrics_scorer.get_metadata_routing().score.requests == {"masks": True}
    detector = BrightnessDetector().fit(X)
    assert renamed(detector, X, masks=masks) == pixel_metrics_scorer(
        detector, X, masks=masks
    )


def test_scorers_show_their_names():
    for name, scorer in EVERY_SCORER.items():
        assert repr(scorer) == f"{name}_scorer"
        assert scorer.__name__ == name
    search = GridSearchCV(BrightnessDetector(), {}, scoring=pixel_metrics_scorer)
    assert "scoring=pixel_metrics_scorer" in repr(clone(search))


# The real detector ------------------------------------------------------------------


@pytest.mark.usefixtures("routing")
def test_smoothing_is_searched_by_pixel_metrics():
    surfaces = make_surface_defects(
        n_train=6, n_test_good=0, n_test_defective=4, image_size=64, random_state=0
    )
    features = PatchFeatureTransformer("gabor", ("fine", "coarse"), image_size=64)
    detector = PatchCoreDetector(features, random_state=0)
    settings = {"scoring": pixel_metrics_scorer, "refit": "aupro", "cv": surfaces.cv}
    plain, piped = (
        GridSearchCV(estimator, grid, error_score="raise", **settings).fit(
            surfaces.data, surfaces.target, masks=surfaces.masks
        )
        for estimator, grid in (
            (detector, {"smoothing": [0.0, 4.0]}),
            (
                make_pipeline(FunctionTransformer(), detector),
                {"patchcoredetector__smoothing": [0.0, 4.0]},
            ),
        )
    )
    for name in SCORERS:
        key = f"mean_test_{name}"
        assert piped.cv_results_[key].tolist() == plain.cv_results_[key].tolist()
    assert plain.best_score_ > 0.3
    # Refitted on the same images, because the anomalies are left out.
    test = surfaces.split == "test"
    score = aupro_scorer(piped, surfaces.data[test], masks=surfaces.masks[test])
    assert score == pytest.approx(plain.best_score_)
