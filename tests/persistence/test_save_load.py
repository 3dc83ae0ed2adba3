"""Model files: round trips, damage, tampering, atomic writes; and pickles."""

import copy
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    LeaveOneOut,
    StratifiedKFold,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.random_projection import SparseRandomProjection
from torch import nn

from helpers import assert_rejected, params_of, seal, unzip, write_zip
from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.datasets import load_mvtec_ad, make_surface_defects
from skpatchcore.persistence import ModelFileError, load, save
from skpatchcore.persistence import _archive as _model_file
from skpatchcore.persistence import _schema as _model_schema
from skpatchcore.persistence._arrays import ArrayWriter

IMAGES = make_surface_defects(6, 1, 1, image_size=64, random_state=0).data
TRAIN, TEST = IMAGES[:6], IMAGES[6:]
UNEQUAL = [*TRAIN[:3], *(image[:48] for image in TRAIN[3:])]


def make(features=None, images=TRAIN, **params):
    """Return a fitted detector with a small random network."""
    given = {"weights": "random", "image_size": 32, "layers": ("layer1", "layer2")}
    transformer = PatchFeatureTransformer("resnet18", **given | (features or {}))
    return PatchCoreDetector(transformer, **{"random_state": 0} | params).fit(images)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread, because for small matrices more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector():
    return make({"layers": ("layer1",)}, n_neighbors=2)


@pytest.fixture(scope="module")
def members(detector, tmp_path_factory):
    """Return the members of the file of `detector` by name."""
    path = tmp_path_factory.mktemp("models") / "model.skpc"
    save(detector, path)
    return unzip(path)


def assert_same(loaded, detector, images=TEST):
    np.testing.assert_array_equal(
        loaded.score_samples(images), detector.score_samples(images)
    )
    np.testing.assert_array_equal(
        loaded.predict_maps(images), detector.predict_maps(images)
    )
    found, expected = (d.nearest_patches(images) for d in (loaded, detector))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    for name in ("offset_", "map_threshold_"):
        assert getattr(loaded, name) == getattr(detector, name)
    for name in ("training_scores_", "training_indices_", "_training_shapes"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(detector, name))


ROUND_TRIPS = {
    "plain": {},
    "random projection": {"features": {"projection": 8}},
    "PCA": {"features": {"projection": PCA(6, whiten=True, svd_solver="full")}},
    "sparse projection": {"features": {"projection": SparseRandomProjection(9)}},
    "pipeline": {"features": {"projection": make_pipeline(StandardScaler(), PCA(5))}},
    "cosine": {"metric": "cosine", "n_neighbors": 3, "reduction": 0.2},
    "reweight": {"reweight": 3, "contamination": 0.2, "smoothing": 0},
    "crop": {"features": {"crop_size": (40, 36), "image_size": (48, 44)}},
    "authors' descriptor": {"features": {"descriptor": 20, "layer_weights": None}},
    "list and array": {
        "features": {"layers": ["layer2", "layer1"], "layer_weights": np.ones(2)}
    },
    "levels": {"features": {"layers": (1, -3)}},
    "random subset": {"sampler": CoresetSampler(30, method="random", device="cpu")},
    "every patch": {"sampler": CoresetSampler(method="none")},
    "RandomState": {"random_state": np.random.RandomState(1)},
    "unequal sizes": {"features": {"image_size": None}, "images": UNEQUAL},
    "outlier filter": {"outlier_filter": "lof", "outlier_fraction": 0.3},
    "window": {"position_window": (3, 5), "n_neighbors": 2},
    "window of unequal sizes": {
        "features": {"image_size": None},
        "images": UNEQUAL,
        "position_window": 3,
        "outlier_filter": "nearest",
    },
}


@pytest.mark.parametrize("params", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_is_exact(params, tmp_path):
    detector = make(**params)
    save(detector, tmp_path / "first.skpc")
    loaded = load(tmp_path / "first.skpc")
    assert_same(loaded, detector)
    save(loaded, tmp_path / "second.skpc")
    first, second = (tmp_path / f"{name}.skpc" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_parameters_survive(tmp_path):
    detector = make({"projection": PCA(5), "layers": ["layer1"]}, n_neighbors=2)
    save(detector, str(tmp_path / "model"))
    loaded = load(str(tmp_path / "model"))
    for name in ("features", "features_"):
        assert repr(getattr(loaded, name)) == repr(getattr(detector, name))
    assert repr(loaded) == repr(detector)
    assert repr(loaded.memory_bank_) == repr(detector.memory_bank_)
    assert not hasattr(loaded.features, "projection_")
    assert loaded.fit(TRAIN).score_samples(TEST).shape == (2,)


def test_the_sampler_keeps_picks_and_radii_but_no_values_per_patch(detector, tmp_path):
    save(detector, tmp_path / "model.skpc")
    sampler = load(tmp_path / "model.skpc").memory_bank_.sampler_
    expected = detector.memory_bank_.sampler_
    np.testing.assert_array_equal(sampler.sample_indices_, expected.sample_indices_)
    np.testing.assert_array_equal(sampler.radii_, expected.radii_)
    assert not hasattr(sampler, "min_distances_")


def test_every_fitted_attribute_is_stored_or_known_to_be_left_out(detector):
    parts = [
        detector,
        detector.features_,
        detector.memory_bank_,
        detector.memory_bank_.sampler_,
    ]
    for part in parts:
        learned = part.__getstate__().keys() - part.get_params() - {"_sklearn_version"}
        left_out = learned - set(_model_schema.FITTED[type(part)])
        left_out -= set(_model_schema.OPTIONAL.get(type(part), {}))
        assert left_out <= {
            *("min_distances_", "nearest_picks_", "_n_channels"),
            # The file contains the parameters of the fit in place of others.
            "_frozen",
            # The file contains another hash of the network.
            "_network_key",
            # The file contains only the name of the weights file.
            "_weights_at_fit",
        }


def test_random_state_instances_become_none(tmp_path):
    detector = make(random_state=np.random.RandomState(1))
    save(detector, tmp_path / "model.skpc")
    assert load(tmp_path / "model.skpc").random_state is None


def test_arrays_are_writable_and_keep_their_layout(tmp_path):
    detector = make({"projection": PCA(6, svd_solver="full")})
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    assert loaded.memory_bank_.bank_.flags.writeable
    for name in ("C_CONTIGUOUS", "F_CONTIGUOUS"):
        flags = [
            d.features_.projection_.components_.flags[name] for d in (loaded, detector)
        ]
        assert flags[0] == flags[1]


def gapped(array, order):
    """Return a view of `array` with gaps between its columns or rows."""
    wider = np.zeros([n + 3 for n in array.shape], array.dtype, order)
    wider[: len(array), : array.shape[1]] = array
    return wider[: len(array), : array.shape[1]]


def packed(array):
    """Return a view whose elements have odd addresses."""
    records = np.zeros(array.shape, [("gap", "u1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "C with gaps": lambda a: gapped(a, "C"),
    "Fortran with gaps": lambda a: gapped(a, "F"),
    "every second": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "rows backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "columns backwards": lambda a: np.asfortranarray(a[:, ::-1])[:, ::-1],
    "odd addresses": packed,
    "big-endian": lambda a: np.ascontiguousarray(a).astype(a.dtype.newbyteorder(">")),
}


@pytest.fixture(scope="module", params=[1, 4], ids=["one component", "several"])
def projected(request):
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=64, projection=PCA(request.param)
    )
    return PatchCoreDetector(features, random_state=0).fit(TRAIN)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_projections_score_bit_for_bit(layout, dtype, projected, tmp_path):
    projection = projected.features_.projection_
    components = np.ascontiguousarray(projection.components_)
    projection.components_ = layout(components.astype(dtype))
    projection.mean_ = np.repeat(projection.mean_.astype(dtype), 2)[::2]
    save(projected, tmp_path / "m")
    assert_same(load(tmp_path / "m"), projected)
    save(load(tmp_path / "m"), tmp_path / "again")
    assert unzip(tmp_path / "again") == unzip(tmp_path / "m")


@pytest.mark.parametrize(
    "projection",
    [
        PCA(3, svd_solver="arpack", random_state=0),
        PCA("mle", svd_solver="full"),
        PCA(3, svd_solver="covariance_eigh", whiten=True),
        IncrementalPCA(3),
        TruncatedSVD(3, algorithm="arpack", random_state=0),
        make_pipeline(FrozenEstimator(PCA(3).fit(np.eye(42) + TRAIN[0, :42, :42, 0]))),
    ],
    ids=str,
)
def test_projections_of_every_solver_round_trip(projection, tmp_path):
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=64, projection=projection
    )
    detector = PatchCoreDetector(features, random_state=0).fit(TRAIN)
    save(detector, tmp_path / "m")
    assert_same(load(tmp_path / "m"), detector)


def frozen_features(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32, **params)
    return FrozenEstimator(features.fit(TRAIN))


@pytest.mark.parametrize("projection", [None, PCA(3, svd_solver="full")], ids=str)
def test_frozen_features_round_trip(projection, tmp_path):
    frozen = frozen_features(projection=projection)
    detector = PatchCoreDetector(frozen, random_state=0).fit(TRAIN)
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert_same(loaded, detector)
    assert loaded.features_ is loaded.features.estimator
    save(loaded, tmp_path / "again")
    assert unzip(tmp_path / "again") == unzip(tmp_path / "m")


def test_frozen_features_are_not_fitted_again_after_loading(tmp_path):
    detector = PatchCoreDetector(frozen_features(), random_state=0).fit(TRAIN)
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    weights = loaded.features_.layer_weights_
    assert_same(loaded.fit(TRAIN[:4]), detector.fit(TRAIN[:4]))
    assert loaded.features_.layer_weights_ is weights


def test_frozen_features_that_were_replaced_are_stored_too(tmp_path):
    detector = PatchCoreDetector(frozen_features(), random_state=0).fit(TRAIN)
    expected = detector.score_samples(TEST)
    detector.set_params(features=frozen_features(patch_size=1))
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_samples(TEST), expected)
    assert loaded.fit(TRAIN).features_.patch_size == 1


FEATURES_SET_AFTER_FIT = [
    {"patch_size": 5, "image_size": 48, "crop_size": 16, "output": "mean"},
    {"layers": ("fine", "coarse"), "layer_weights": (1, 2), "projection": 3},
    {"backbone": "resnet18", "layers": ("layer1",), "weights": "random"},
    {"backbone": nn.Conv2d(3, 4, 4, stride=4), "layers": ("",)},
]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("params", FEATURES_SET_AFTER_FIT, ids=str)
def test_a_file_holds_the_parameters_that_the_features_were_fitted_with(
    params, frozen, include, tmp_path
):
    given = frozen_features()
    features = given if frozen else given.estimator
    detector = PatchCoreDetector(features, random_state=0).fit(TRAIN)
    before = detector.features_.get_params()
    save(detector, tmp_path / "before", include_backbone=include)
    detector.features_.set_params(**params)
    save(detector, tmp_path / "after", include_backbone=include)
    loaded = load(tmp_path / "after")
    assert_same(loaded, detector)
    assert_same(loaded, load(tmp_path / "before"))
    found = loaded.features_.get_params()
    assert {name: found[name] for name in params} == {
        name: before[name] for name in params
    }


def test_features_keep_their_answers_when_parameters_are_set_after_loading(tmp_path):
    detector = PatchCoreDetector(frozen_features(), random_state=0).fit(TRAIN)
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    loaded.features_.set_params(patch_size=5, image_size=48)
    assert_same(loaded, detector)
    assert_same(pickle.loads(pickle.dumps(loaded)), detector)


def test_a_frozen_projection_can_be_used_after_loading(tmp_path):
    frozen = FrozenEstimator(PCA(3).fit(np.eye(42)))
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=32, projection=make_pipeline(frozen)
    )
    detector = PatchCoreDetector(features, random_state=0).fit(TRAIN)
    save(detector, tmp_path / "m")
    assert_same(load(tmp_path / "m").fit(TRAIN), detector)


def test_a_bank_in_fortran_order_scores_bit_for_bit(tmp_path):
    X = np.asfortranarray(np.random.default_rng(0).normal(size=(60, 5)))
    bank = PatchMemoryBank(random_state=0).fit(X)
    bank.bank_ = np.asfortranarray(bank.bank_)
    save(bank, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.bank_.flags.f_contiguous
    np.testing.assert_array_equal(loaded.score_samples(X), bank.score_samples(X))


def test_gaps_are_removed_if_they_would_fill_the_memory():
    matrix = np.arange(12.0).reshape(3, 4)
    writer = ArrayWriter(max_span=20)
    assert "strided" in writer.keep(gapped(matrix, "C"), "first")
    assert writer.keep(gapped(matrix, "C"), "second") == {"array": "second"}
    assert writer.keep(gapped(matrix, "F"), "third") == {"transposed": "third"}
    np.testing.assert_array_equal(writer.arrays["third"], matrix.T)


def test_the_file_declares_its_format_and_holds_no_pickle(members):
    manifest = json.loads(members["model.json"])
    assert manifest["format"] == "skpatchcore model"
    assert manifest["format_version"] == 3
    assert set(manifest["versions"]) >= {"skpatchcore", "scikit-learn", "timm", "torch"}
    assert list(members) == ["model.json", "arrays.safetensors"]


# The network.


def test_a_file_with_its_network_needs_no_other_file(detector, tmp_path, monkeypatch):
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    monkeypatch.setattr(PatchFeatureTransformer, "_load", None)
    loaded = load(tmp_path / "model.skpc")
    assert_same(loaded, detector)
    save(loaded, tmp_path / "again.skpc", include_backbone=True)
    assert unzip(tmp_path / "again.skpc") == unzip(tmp_path / "model.skpc")


def test_only_layers_in_use_are_stored(detector, tmp_path):
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    state = safetensors.torch.load(
        unzip(tmp_path / "model.skpc")["backbone.safetensors"]
    )
    assert {name.split(".")[0] for name in state} == {"conv1", "bn1", "layer1"}


@pytest.fixture
def weights_file(tmp_path):
    network = load_backbone(
        "resnet18",
        ("layer1",),
        weights="random",
        seed=5,
        device="cpu",
        precision="auto",
    )
    path = tmp_path / "weights.safetensors"
    state = network.module.state_dict()
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, path)
    return path


def test_local_weights_are_asked_for(weights_file, tmp_path):
    detector = make({"weights": weights_file})
    save(detector, tmp_path / "model.skpc")
    assert str(tmp_path) not in unzip(tmp_path / "model.skpc")["model.json"].decode()
    # The weights file exists, but a model file must not decide which file to open.
    with pytest.raises(
        FileNotFoundError,
        match=r"'weights.safetensors'.* load\(\.\.\., weights=\.\.\.\).*--weights",
    ):
        load(tmp_path / "model.skpc")
    moved = weights_file.rename(tmp_path / "moved.safetensors")
    assert_same(load(tmp_path / "model.skpc", weights=moved), detector)
    assert load(tmp_path / "model.skpc", weights=moved).features.weights == moved


def test_a_relative_path_given_to_load_counts_from_that_folder(
    weights_file, tmp_path, monkeypatch
):
    detector = make({"weights": weights_file})
    save(detector, tmp_path / "model.skpc")
    monkeypatch.chdir(weights_file.parent)
    loaded = load("model.skpc", weights=weights_file.name)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    assert_same(pickle.loads(pickle.dumps(loaded)), detector)


def test_a_stored_network_needs_weights_only_if_it_is_built_again(
    weights_file, tmp_path
):
    detector = make({"weights": weights_file})
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    loaded = load(tmp_path / "model.skpc")
    assert_same(loaded, detector)
    for use in (
        lambda: pickle_copy(loaded).predict(TEST),
        lambda: copy.deepcopy(loaded).fit(TRAIN),
    ):
        with pytest.raises(FileNotFoundError, match="weights=") as caught:
            use()
        assert "'weights.safetensors'" in str(caught.value)
    save(loaded, tmp_path / "again.skpc", include_backbone=True)
    assert unzip(tmp_path / "again.skpc") == unzip(tmp_path / "model.skpc")


def test_stored_network_does_not_need_the_weights_file(weights_file, tmp_path):
    detector = make({"weights": str(weights_file)})
    expected = detector.score_samples(TEST)
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    weights_file.unlink()
    loaded = load(tmp_path / "model.skpc")
    np.testing.assert_array_equal(loaded.score_samples(TEST), expected)


def test_other_weights_are_detected(weights_file, tmp_path):
    detector = make({"weights": weights_file})
    save(detector, tmp_path / "model.skpc")
    with pytest.raises(ModelFileError, match=r"has other weights than in the fit"):
        load(tmp_path / "model.skpc", weights="random")


def test_weights_of_unread_layers_do_not_matter(weights_file, tmp_path):
    detector = make({"weights": weights_file})
    save(detector, tmp_path / "model.skpc")
    state = safetensors.torch.load_file(weights_file)
    trunk = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    safetensors.torch.save_file(trunk, weights_file)
    assert_same(load(tmp_path / "model.skpc", weights=weights_file), detector)


def small_module(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())


def test_network_given_as_module_is_asked_for(tmp_path):
    features = {"backbone": small_module(), "layers": ("1",), "weights": None}
    transformer = PatchFeatureTransformer(**features, image_size=32)
    detector = PatchCoreDetector(transformer, random_state=0).fit(TRAIN)
    save(detector, tmp_path / "model.skpc")
    with pytest.raises(ModelFileError, match=r"Sequential; .* load\(\.\.\., backbone="):
        load(tmp_path / "model.skpc")
    assert_same(load(tmp_path / "model.skpc", backbone=small_module()), detector)
    with pytest.raises(ModelFileError, match="other weights"):
        load(tmp_path / "model.skpc", backbone=small_module(1))
    with pytest.raises(ValueError, match=r"timm name.*Sequential"):
        save(detector, tmp_path / "other.skpc", include_backbone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.skpc"]


def test_device_is_chosen_when_loading(members, tmp_path):
    path = write_zip(tmp_path / "m", members)
    assert load(path).device is None
    loaded = load(path, device="cpu")
    assert (
        loaded.device == loaded.features_.device == loaded.memory_bank_.device == "cpu"
    )
    with pytest.raises(ModelFileError, match="abacus"):
        load(path, device="abacus")


# Thresholds.


def calibrated(estimator=None, **params):
    """Return a fitted ConformalDetector; alpha=0.2 needs three images per fold."""
    given = {"alpha": 0.2, "cv": 3, "random_state": 0} | params
    return ConformalDetector(estimator or make(), **given).fit(TRAIN)


def tuned(**params):
    X = [*TRAIN[:4], *TEST, TEST[1] // 2]
    return TunedThresholdDetector(**params).fit(X, [1, 1, 1, 1, 1, -1, -1])


WITH_THRESHOLDS = {
    "cross": calibrated,
    "split": lambda: calibrated(method="split", calibration_size=4),
    "refit": lambda: calibrated(make(reduction=0.2), method="refit", cv=None),
    "leave one out": lambda: calibrated(cv=LeaveOneOut()),
    "folds": lambda: calibrated(cv=KFold(2, shuffle=True, random_state=3)),
    "frozen": lambda: calibrated(FrozenEstimator(make())),
    "tuned": lambda: tuned(
        estimator=FrozenEstimator(make()), scoring="balanced_accuracy"
    ),
    "tuned by folds": lambda: tuned(estimator=make(), cv=StratifiedKFold(2)),
    "tuned frozen": lambda: tuned(estimator=FrozenEstimator(make())),
    "tuned within": lambda: calibrated(
        FrozenEstimator(tuned(estimator=FrozenEstimator(make())))
    ),
    "other networks": lambda: calibrated(make(random_state=None), random_state=1),
}


@pytest.mark.parametrize("fit", WITH_THRESHOLDS.values(), ids=WITH_THRESHOLDS)
def test_detectors_with_thresholds_round_trip(fit, tmp_path):
    detector = fit()
    save(detector, tmp_path / "first.skpc")
    loaded = load(tmp_path / "first.skpc")
    assert repr(loaded) == repr(detector)
    names = {"score_samples", "decision_function", "predict", "predict_pvalue"}
    names |= {"predict_anomaly_score", "predict_maps", "predict_masks"}
    for name in names & set(dir(type(detector))):
        if hasattr(detector, name):
            found, expected = (getattr(d, name)(TEST) for d in (loaded, detector))
            np.testing.assert_array_equal(found, expected, name)
    left_out = vars(detector).keys() ^ vars(loaded).keys()
    assert not left_out
    save(loaded, tmp_path / "second.skpc")
    first, second = (tmp_path / f"{name}.skpc" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["tuned", "frozen"])
def test_loaded_threshold_can_be_fitted_again(name, tmp_path):
    detector = WITH_THRESHOLDS[name]()
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    y = [1, 1, 1, 1, 1, -1]
    X = [*TRAIN[1:5], *TEST]
    assert loaded.fit(X, y).offset_ == detector.fit(X, y).offset_


def test_a_calibrated_detector_stores_its_network_once(tmp_path, monkeypatch):
    detector = calibrated()
    save(detector, tmp_path / "with.skpc", include_backbone=True)
    save(detector, tmp_path / "without.skpc")
    plain = make()
    save(plain, tmp_path / "plain.skpc", include_backbone=True)
    n_bytes = len(unzip(tmp_path / "plain.skpc")["backbone.safetensors"])
    assert len(unzip(tmp_path / "with.skpc")["backbone.safetensors"]) == n_bytes
    monkeypatch.setattr(PatchFeatureTransformer, "_load", None)
    loaded = load(tmp_path / "with.skpc")
    expected = detector.predict_pvalue(TEST)
    np.testing.assert_array_equal(loaded.predict_pvalue(TEST), expected)


def test_several_networks_are_stored_separately(tmp_path):
    detector = WITH_THRESHOLDS["other networks"]()
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    loaded = load(tmp_path / "model.skpc")
    np.testing.assert_array_equal(
        loaded.score_samples(TEST), detector.score_samples(TEST)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: calibrated_bank(b)])
def test_banks_of_features_round_trip(wrap, dtype, tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 4)).astype(dtype)
    X = pandas.DataFrame(X, columns=list("abcd"))
    bank = wrap(PatchMemoryBank(reweight=2, random_state=0)).fit(X)
    save(bank, tmp_path / "bank.skpc")
    loaded = load(tmp_path / "bank.skpc")
    np.testing.assert_array_equal(loaded.score_samples(X), bank.score_samples(X))
    np.testing.assert_array_equal(loaded.feature_names_in_, list("abcd"))
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(X[["b", "a", "c", "d"]])
    with pytest.raises(ValueError, match="PatchMemoryBank has none"):
        save(bank, tmp_path / "other.skpc", include_backbone=True)


def calibrated_bank(bank):
    return ConformalDetector(bank, alpha=0.2, random_state=0)


def set_offset(fitted, arrays):
    fitted["offset_"] += 1e-9


def raise_scores(fitted, arrays):
    arrays["calibration_scores_"] += 0.1


def lose_scores(fitted, arrays):
    arrays["calibration_scores_"][0] = np.nan


def point_to_no_estimator(fitted, arrays):
    arrays["calibration_folds_"] += 1


def lose_a_split(fitted, arrays):
    arrays["calibration_splits_"] = arrays["calibration_splits_"][1:]


def keep_one_estimator(fitted, arrays):
    del fitted["estimators_"][1:]
    for name in [n for n in arrays if n.startswith(("estimators_.1", "estimators_.2"))]:
        del arrays[name]


def keep_no_estimator(fitted, arrays):
    fitted.pop("estimators_")
    for name in [name for name in arrays if name.startswith("estimators_")]:
        del arrays[name]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_offset, "offset_ or min_alpha_"),
        (raise_scores, "offset_ or min_alpha_"),
        (lose_scores, "calibration_scores_"),
        (point_to_no_estimator, "exceed the number of estimators_"),
        (lose_a_split, "calibration_splits_"),
        (keep_one_estimator, "exceed the number of estimators_"),
        (keep_no_estimator, "exceed the number of estimators_|features_ is missing"),
        (lambda f, a: f.update(map_threshold_=0.0), "map_threshold_"),
        (lambda f, a: f.update(_calibration_peaks=1), "_calibration_peaks"),
        (lambda f, a: f.pop("min_alpha_"), "min_alpha_"),
        (lambda f, a: f.update(estimators_=[1, 1, 1]), "estimators_ of Conformal"),
    ],
)
def test_tampered_calibrations_are_rejected(change, match, tmp_path):
    path = tmp_path / "m"
    save(calibrated(), path)
    members = unzip(path)
    manifest = json.loads(members["model.json"])
    arrays = safetensors.numpy.load(members["arrays.safetensors"])
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(fitted_of(manifest["detector"]), arrays)
    path = write_zip(path, seal(manifest, safetensors.numpy.save(arrays)))
    assert_rejected(path, match)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    "make_one", [make, lambda: calibrated()], ids=["plain", "cross"]
)
def test_a_detector_of_a_gpu_loads_without_a_gpu(make_one, tmp_path):
    detector = make_one()
    save(detector, tmp_path / "m.skpc")
    np.save(tmp_path / "new.npy", TEST)
    code = (
        "import sys, numpy, torch; from skpatchcore.persistence import load\n"
        "assert not torch.cuda.is_available()\n"
        "loaded = load(sys.argv[1] + '/m.skpc')\n"
        "scores = loaded.score_samples(numpy.load(sys.argv[1] + '/new.npy'))\n"
        "numpy.save(sys.argv[1] + '/scores.npy', scores)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        check=True,
    )
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, detector.score_samples(TEST), rtol=1e-3)
    for copied in (pickle_copy(detector), joblib_copy(detector)):
        np.testing.assert_array_equal(
            copied.score_samples(TEST), detector.score_samples(TEST)
        )


def test_size_on_real_images(assets, tmp_path):
    """A file takes at most 64 KB more than the bank (bottle, ResNet-18, 1 %)."""
    data = load_mvtec_ad(assets / "data" / "mvtec_ad", "bottle", subset="train")
    weights = assets / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    features = PatchFeatureTransformer("resnet18", weights=weights)
    detector = PatchCoreDetector(features, CoresetSampler(0.01), random_state=0)
    save(detector.fit(data.data), tmp_path / "bottle.skpc")
    n_bytes = (tmp_path / "bottle.skpc").stat().st_size
    bank = detector.memory_bank_.bank_
    assert len(bank) == 2140
    # Of which 10 kB are six numbers of each training image.
    assert n_bytes - bank.nbytes <= 60 * 1024


def test_shared_arrays_are_stored_once(detector, members, tmp_path):
    names = safetensors.numpy.load(members["arrays.safetensors"]).keys()
    assert len({"training_scores_", "memory_bank_.training_scores_"} & names) == 1
    loaded = load(write_zip(tmp_path / "m", members))
    assert loaded.training_scores_ is loaded.memory_bank_.training_scores_


# What cannot be saved.


def test_unfitted_detector_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        save(PatchCoreDetector(), tmp_path / "model.skpc")
    with pytest.raises(NotFittedError):
        save(PatchMemoryBank(), tmp_path / "model.skpc")
    with pytest.raises(TypeError, match=r"one of PatchCoreDetector.*got CoresetSamp"):
        save(CoresetSampler(), tmp_path / "model.skpc")


class FirstRows(BaseEstimator):
    def fit(self, X):
        self.sample_indices_ = np.arange(9)
        return self


@pytest.mark.parametrize("refit", [True, False])
def test_a_search_without_a_fitted_detector_is_an_error(refit, tmp_path):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    search = GridSearchCV(
        PatchCoreDetector(features), {"n_neighbors": [1]}, refit=refit, cv=2
    )
    with pytest.raises(NotFittedError, match=r"GridSearchCV has no.*refit=True"):
        save(search, tmp_path / "m")


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (
            {"features": {"projection": MaxAbsScaler()}},
            r"projection.*MaxAbsScaler.*PCA",
        ),
        ({"sampler": FirstRows()}, r"sampler.*FirstRows.*CoresetSampler"),
    ],
)
def test_unknown_classes_are_named(params, match, tmp_path):
    with pytest.raises(TypeError, match=match):
        save(make(**params), tmp_path / "model.skpc")
    assert not list(tmp_path.iterdir())


# What cannot be loaded.


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.skpc")


@pytest.mark.parametrize("data", [b"", b"no zip", pickle.dumps({}), b"PK\x05\x06"])
def test_other_files_are_rejected(data, tmp_path):
    path = tmp_path / "model.skpc"
    path.write_bytes(data)
    assert_rejected(path, "not a zip file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.pop("model.json"), "no model.json"),
        (lambda m: m.pop("arrays.safetensors"), "missing or extra members"),
        (lambda m: m.update({"code.pkl": b""}), r"missing or extra.*code\.pkl"),
        (lambda m: m.update({"../arrays.safetensors": b""}), "missing or extra"),
        (lambda m: m.update({"/etc/passwd": b""}), "missing or extra members"),
        (lambda m: m.update({"backbone.safetensors": b""}), "but lists"),
        (lambda m: m.update({"arrays.safetensors": b"other"}), "SHA-256 of arrays"),
        (lambda m: m.update({"model.json": b" " * 2**22 + b"{}"}), "too large"),
    ],
)
def test_wrong_members_are_rejected(change, match, members, tmp_path):
    members = dict(members)
    change(members)
    assert_rejected(write_zip(tmp_path / "m", members), match)


def test_members_with_equal_names_are_rejected(members, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_zip(tmp_path / "m", [*members.items(), *members.items()])
    assert_rejected(path, "same name")


def test_zip_bombs_are_rejected(members, tmp_path):
    bomb = {**members, "arrays.safetensors": bytes(2**24)}
    path = write_zip(tmp_path / "m", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    assert_rejected(path, "compressed")


def test_sizes_beyond_the_file_are_rejected(members, tmp_path):
    path = write_zip(tmp_path / "m", members)
    data = bytearray(path.read_bytes())
    # Both sizes in the last central directory entry, APPNOTE.TXT 4.3.12.
    struct.pack_into("<II", data, data.rindex(b"PK\x01\x02") + 20, 2**30, 2**30)
    path.write_bytes(data)
    assert_rejected(path, "larger than the file|Overlapped|Bad")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "Expecting"),
        ("[]", "'format' must be"),
        ("null", "'format' must be"),
        (b"\xff{}", "codec"),
        ("[" * 100_000, "recursion|nesting|depth"),
        ('{"format": "skpatchcore model", "x": NaN}', "NaN"),
        ('{"format": "skpatchcore model", "x": -Infinity}', "-Infinity"),
        ('{"format": "skpatchcore model", "x": 1e999}', "1e999"),
        ('{"format": "an image"}', "'an image'"),
        ('{"format": "skpatchcore model"}', "'format_version' must be"),
        ('{"format": "skpatchcore model", "format_version": true}', "format_version"),
        (
            '{"format": "skpatchcore model", "format_version": 4}',
            "format version 4, written",
        ),
        ('{"format": "skpatchcore model", "format_version": 3}', "'members' must be"),
    ],
)
def test_malformed_manifests_are_rejected(text, match, members, tmp_path):
    path = write_zip(tmp_path / "m", {**members, "model.json": text})
    assert_rejected(path, match)


def fitted_of(record, *names):
    for name in names:
        record = record["estimator"]["fitted"][name]
    return record["estimator"]["fitted"]


ARRAY = {"array": "memory_bank_.training_scores_"}
TAMPERED = {
    "unknown parameter": (
        lambda d: params_of(d).update(code="x"),
        r"no param.*\['code'\]",
    ),
    "bad parameter": (lambda d: params_of(d).update(n_neighbors=0), "n_neighbors"),
    "unknown metric": (lambda d: params_of(d).update(metric="manhattan"), "metric"),
    "n_neighbors": (
        lambda d: params_of(fitted_of(d)["memory_bank_"]).update(n_neighbors=10**6),
        "more neighbours than the bank",
    ),
    "layers": (
        lambda d: params_of(fitted_of(d)["features_"]).update(layers=["layer9"]),
        "no layer 'layer9'",
    ),
    "backbone": (
        lambda d: params_of(fitted_of(d)["features_"]).update(backbone="resnet9"),
        "not a timm model",
    ),
    "other network": (
        lambda d: params_of(fitted_of(d)["features_"]).update(backbone="resnet10t"),
        "weights than in the fit",
    ),
    "foreign class": (
        lambda d: d["estimator"].update({"class": "LogisticRegression"}),
        "'LogisticRegression' is unknown",
    ),
    "other class": (
        lambda d: d.update(fitted_of(d)["features_"]),
        "holds a PatchFeatureTransformer, not a detector",
    ),
    "class in the wrong place": (
        lambda d: fitted_of(d).update(features_=fitted_of(d)["memory_bank_"]),
        "features_ of PatchCoreDetector must be a PatchFeatureTransformer",
    ),
    "no class": (lambda d: d["estimator"].pop("class"), "'class' must be"),
    "unfitted": (lambda d: d["estimator"].update(fitted={}), "is not fitted"),
    "unfitted part": (
        lambda d: fitted_of(d)["features_"]["estimator"].update(fitted={}),
        "'features_' is not fitted",
    ),
    "missing attribute": (lambda d: fitted_of(d).pop("offset_"), r"\['offset_'\]"),
    "extra attribute": (lambda d: fitted_of(d).update(fit=1), r"\['fit'\]"),
    "no number": (lambda d: fitted_of(d).update(offset_="0"), "offset_ .* must be"),
    "no array": (lambda d: fitted_of(d).update(training_scores_=1), "training_scores_"),
    "array of another place": (
        lambda d: fitted_of(d).update(training_indices_={"array": "elsewhere"}),
        "no array 'elsewhere'",
    ),
    "other array": (
        lambda d: fitted_of(d).update(training_indices_=ARRAY),
        r"training_indices_ .* must be int64 .*got float64 of shape \(6,\)",
    ),
    "unknown kind": (lambda d: fitted_of(d).update(offset_={"eval": "1"}), "'eval'"),
    "empty kind": (lambda d: fitted_of(d).update(offset_={}), "unknown kind"),
    "features": (
        lambda d: fitted_of(d, "memory_bank_").update(n_features_in_=3),
        "n_features_in_ is 3",
    ),
    "patch features": (
        lambda d: fitted_of(d, "features_").update(n_patch_features_=3),
        "n_patch_features_ is 3",
    ),
    "layer weights": (
        lambda d: fitted_of(d, "features_").update(layer_weights_={"tuple": [1, 2]}),
        "layer_weights_ must be positive, for each layer",
    ),
}


@pytest.mark.parametrize(("change", "match"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_manifests_are_rejected(change, match, members, tmp_path):
    manifest = json.loads(members["model.json"])
    change(manifest["detector"])
    path = write_zip(tmp_path / "m", seal(manifest, members["arrays.safetensors"]))
    assert_rejected(path, match)


BANK = "memory_bank_.bank_"
PLACES = "memory_bank_.bank_indices_"
WRONG_ARRAYS = {
    "dtype": (lambda a: {BANK: a[BANK].astype(np.float64)}, "must be float32.*float64"),
    "columns": (lambda a: {BANK: a[BANK][:, :-1].copy()}, "bank_ has 63 columns"),
    "rows": (lambda a: {BANK: a[BANK][:-1].copy()}, r"bank_indices_.*shape \(m\)"),
    "dimensions": (lambda a: {BANK: a[BANK].ravel()}, r"shape \(\?, \?\).*got float32"),
    "empty": (lambda a: {BANK: a[BANK][:0]}, r"bank_indices_.*shape \(m\)"),
    "not a number": (lambda a: {BANK: a[BANK] * np.float32(np.nan)}, "must .* finite"),
    "negative place": (lambda a: {PLACES: a[PLACES] - 10**6}, "indices_ .* from 0 "),
    "place outside": (lambda a: {PLACES: a[PLACES] + 10**6}, "exceed the patches"),
    "grid of nothing": (
        lambda a: {"_training_shapes": 0 * a["_training_shapes"]},
        "_training_shapes .* from 1 to 65536",
    ),
    "flat patches": (
        lambda a: {"_training_aspects": 0 * a["_training_aspects"]},
        "_training_aspects must be positive",
    ),
    "patches of no size": (
        lambda a: {"_training_aspects": np.nan * a["_training_aspects"]},
        "_training_aspects .* must be float64",
    ),
    "more": (lambda a: {"more": np.ones(3)}, r"arrays \['more'\] are not used"),
}


@pytest.mark.parametrize(("change", "match"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_wrong_arrays_are_rejected(change, match, members, tmp_path):
    arrays = safetensors.numpy.load(members["arrays.safetensors"])
    arrays = safetensors.numpy.save(arrays | change(arrays))
    members = seal(json.loads(members["model.json"]), arrays)
    assert_rejected(write_zip(tmp_path / "m", members), match)


PLACED = {"outlier_filter": "nearest", "outlier_fraction": 0.1, "position_window": 3}
WRONG_PLACES = {
    "window": (lambda b, a: params_of(b).update(position_window=2), "odd number"),
    "no window": (
        lambda b, a: params_of(b).update(position_window=None),
        "contradict each other",
    ),
    "no filter": (
        lambda b, a: params_of(b).update(outlier_filter=None),
        "contradict each other",
    ),
    "grid": (lambda b, a: fitted_of(b).update(position_grid_=[8, 8]), "a tuple"),
    "smaller grid": (
        lambda b, a: fitted_of(b).update(position_grid_={"tuple": [1, 1]}),
        "exceed bank_ or position_grid_",
    ),
    "rows": (lambda b, a: a["_bank_positions"].__iadd__(1000), "exceed bank_"),
    "one axis": (
        lambda b, a: a.update(_bank_positions=a["_bank_positions"][:, 0]),
        "shape",
    ),
    "outliers": (
        lambda b, a: a.update(outlier_indices_=a["bank_indices_"][:2].copy()),
        "rows of the bank",
    ),
}


@pytest.mark.parametrize(("change", "match"), WRONG_PLACES.values(), ids=WRONG_PLACES)
def test_wrong_positions_are_rejected(change, match, tmp_path):
    X = np.random.default_rng(0).normal(size=(9, 4, 4, 3)).astype(np.float32)
    save(PatchMemoryBank(random_state=0, **PLACED).fit(X), tmp_path / "m")
    members = unzip(tmp_path / "m")
    manifest = json.loads(members["model.json"])
    arrays = safetensors.numpy.load(members["arrays.safetensors"])
    change(manifest["detector"], arrays)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    members = seal(manifest, safetensors.numpy.save(arrays))
    assert_rejected(write_zip(tmp_path / "m", members), match)


def tamper_projection(path, projection, change):
    """Return a file after `change` of its fitted projection and arrays."""
    save(make({"projection": projection, "layers": ("layer1",)}), path)
    members = unzip(path)
    manifest = json.loads(members["model.json"])
    arrays = safetensors.numpy.load(members["arrays.safetensors"])
    change(fitted_of(manifest["detector"], "features_", "projection_"), arrays)
    return write_zip(path, seal(manifest, safetensors.numpy.save(arrays)))


def widen(fitted, arrays):
    name = fitted["components_"]["transposed"]
    arrays[name] = np.concatenate([arrays[name], arrays[name]], axis=1)


def overflow(fitted, arrays):
    name = next(name for name in arrays if "components_" in name and "ind" not in name)
    arrays[name][0] = 1e38


def point_outside(fitted, arrays):
    name = fitted["components_"]["csr"]["indices"]["array"]
    arrays[name] = arrays[name] + 10**6


@pytest.mark.parametrize(
    ("projection", "change", "match"),
    [
        (
            PCA(3),
            lambda f, a: f.update(transform=1),
            r"unknown fitted attributes.*\['transform'\]",
        ),
        (
            PCA(3),
            lambda f, a: f.update(__class__=1),
            r"unknown fitted attributes.*\['__class__'\]",
        ),
        (
            PCA(3),
            lambda f, a: f.update(whiten=True),
            r"unknown fitted attributes.*\['whiten'\]",
        ),
        (PCA(3), lambda f, a: f.update(mean_="x"), "mean_ of PCA must be"),
        (PCA(3), lambda f, a: f.update(n_features_in_=7), "components_ has shape"),
        (PCA(3), widen, "projection"),
        (PCA(3), overflow, r"components_ of PCA must .* to 1e\+18"),
        (SparseRandomProjection(3), overflow, r"components_ .* must .* to 1e\+18"),
        # SciPy's wording depends on its version.
        (SparseRandomProjection(3), point_outside, "index|indices"),
    ],
)
def test_tampered_projections_are_rejected(projection, change, match, tmp_path):
    path = tamper_projection(tmp_path / "m", projection, change)
    assert_rejected(path, match)


def test_tampered_network_is_rejected(detector, tmp_path):
    path = tmp_path / "m"
    save(detector, path, include_backbone=True)
    members = unzip(path)
    state = safetensors.torch.load(members["backbone.safetensors"])
    for change, match in [
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "other weights"),
        ({"conv1.weight": torch.zeros(1)}, "size mismatch"),
        ({"conv99.weight": torch.zeros(1)}, "conv99"),
    ]:
        changed = safetensors.torch.save(state | change)
        manifest = json.loads(members["model.json"])
        manifest["members"]["backbone.safetensors"] = _model_file._describe(changed)
        text = json.dumps(manifest)
        forged = {"model.json": text, "backbone.safetensors": changed}
        assert_rejected(write_zip(path, members | forged), match)


# Random damage: a file is rejected, or loads as the original.


def assert_equal_or_rejected(data, path, detector):
    path.write_bytes(data)
    try:
        loaded = load(path)
    except ModelFileError:
        return
    scores = loaded.score_samples(TEST[:1])
    np.testing.assert_array_equal(scores, detector.score_samples(TEST[:1]))


def test_flipped_bytes_are_rejected_or_harmless(detector, members, tmp_path):
    original = write_zip(tmp_path / "m", members).read_bytes()
    rng = np.random.default_rng(0)
    start = original.index(b"PK", 4)
    # Zip headers and the directory are small, but damage there matters most.
    places = np.concatenate(
        [
            rng.integers(0, len(original), 60),
            rng.integers(0, 40, 40),
            rng.integers(start, start + 60, 60),
            rng.integers(len(original) - 150, len(original), 140),
        ]
    )
    for place in places:
        data = bytearray(original)
        data[place] ^= 1 << rng.integers(8)
        assert_equal_or_rejected(data, tmp_path / "m", detector)


def test_truncated_files_are_rejected(members, tmp_path):
    original = write_zip(tmp_path / "m", members).read_bytes()
    rng = np.random.default_rng(0)
    lengths = {*range(20), *rng.integers(0, len(original), 60).tolist()}
    for length in lengths | {len(original) - n for n in range(1, 40)}:
        (tmp_path / "m").write_bytes(original[:length])
        with pytest.raises(ModelFileError):
            load(tmp_path / "m")


@pytest.mark.parametrize("name", ["model.json", "arrays.safetensors"])
def test_damage_with_valid_checksums_is_rejected_or_harmless(name, members, tmp_path):
    """If checksums do not reveal the damage, there is still a clear error."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(members[name])
        data[rng.integers(min(len(data), 4000))] ^= 1 << rng.integers(7)
        arrays, manifest = members["arrays.safetensors"], members["model.json"]
        if name == "model.json":
            forged = {name: bytes(data), "arrays.safetensors": arrays}
        else:
            forged = seal(json.loads(manifest), bytes(data))
        try:
            load(write_zip(tmp_path / "m", forged))
        except (ModelFileError, FileNotFoundError):
            continue


# Writing.


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "zipfile.ZipFile.writestr"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_while_writing_keeps_the_old_file(
    step, error, detector, tmp_path, monkeypatch
):
    path = tmp_path / "model.skpc"
    path.write_bytes(b"old")

    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(type(error)):
            save(detector, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.skpc"]
    assert path.read_bytes() == b"old"


def test_existing_file_is_replaced(detector, tmp_path):
    path = tmp_path / "model.skpc"
    path.write_bytes(b"old")
    save(detector, path)
    assert_same(load(path), detector)
    assert [file.name for file in tmp_path.iterdir()] == ["model.skpc"]


def test_a_missing_folder_is_an_error(detector, tmp_path):
    with pytest.raises(FileNotFoundError):
        save(detector, tmp_path / "nowhere" / "model.skpc")


# Pickles.


def joblib_copy(estimator):
    buffer = io.BytesIO()
    joblib.dump(estimator, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


def pickle_copy(estimator):
    return pickle.loads(pickle.dumps(estimator))


COPIES = [pickle_copy, joblib_copy, copy.deepcopy]


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_of_a_detector_score_the_same(duplicate, detector):
    assert_same(duplicate(detector), detector)


@pytest.mark.parametrize("algorithm", ["torch", "faiss", "pynndescent"])
@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_of_a_bank_score_the_same(duplicate, algorithm):
    X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    bank = PatchMemoryBank(algorithm=algorithm, reweight=3, random_state=0).fit(X)
    copied = duplicate(bank)
    np.testing.assert_array_equal(copied.score_samples(X), bank.score_samples(X))


def test_pickles_hold_the_bank_and_no_network(detector):
    detector.score_samples(TEST)
    sampler = detector.memory_bank_.sampler_
    arrays = (
        detector.memory_bank_.bank_,
        sampler.min_distances_,
        sampler.nearest_picks_,
    )
    n_bytes = sum(array.nbytes for array in arrays)
    assert len(pickle.dumps(detector)) < 1.2 * n_bytes + 20_000
    assert len(pickle.dumps(detector.memory_bank_)) < 1.2 * n_bytes + 20_000


def test_unpickled_detector_is_saved_like_the_original(detector, members, tmp_path):
    save(pickle_copy(detector), tmp_path / "model.skpc")
    assert unzip(tmp_path / "model.skpc") == members


@pytest.mark.parametrize("include_backbone", [False, True])
def test_detector_on_filters_without_weights_round_trips(tmp_path, include_backbone):
    features = PatchFeatureTransformer("gabor", ("fine", "coarse"), image_size=64)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    detector = PatchCoreDetector(features, random_state=0).fit(images)
    save(detector, tmp_path / "gabor.skpc", include_backbone=include_backbone)
    loaded = load(tmp_path / "gabor.skpc")
    assert (loaded.score_samples(images) == detector.score_samples(images)).all()


# Ensembles --------------------------------------------------------------------------


def gabor(layer):
    features = PatchFeatureTransformer("gabor", (layer,), image_size=32)
    return PatchCoreDetector(features, CoresetSampler(0.2))


def resnet(weights):
    features = PatchFeatureTransformer(
        "resnet18", ("layer1",), weights=weights, image_size=32
    )
    return PatchCoreDetector(features, CoresetSampler(0.2))


def assert_same_ensemble(loaded, ensemble):
    np.testing.assert_array_equal(
        loaded.score_samples(TEST), ensemble.score_samples(TEST)
    )
    np.testing.assert_array_equal(
        loaded.predict_maps(TEST), ensemble.predict_maps(TEST)
    )
    np.testing.assert_array_equal(loaded.predict(TEST), ensemble.predict(TEST))
    assert loaded.map_threshold_ == ensemble.map_threshold_
    assert list(loaded.named_estimators_) == list(ensemble.named_estimators_)


@pytest.fixture(scope="module")
def ensemble():
    members = [
        ("fine", gabor("fine")),
        ("none", "drop"),
        ("network", resnet("random")),
    ]
    return PatchCoreEnsemble(members, cv=2, random_state=0).fit(TRAIN)


@pytest.mark.parametrize("include_backbone", [False, True])
def test_ensembles_round_trip(ensemble, include_backbone, tmp_path):
    save(ensemble, tmp_path / "model.skpc", include_backbone=include_backbone)
    loaded = load(tmp_path / "model.skpc")
    assert_same_ensemble(loaded, ensemble)
    assert loaded.get_params()["none"] == "drop"
    save(loaded, tmp_path / "again.skpc", include_backbone=include_backbone)
    assert unzip(tmp_path / "again.skpc") == unzip(tmp_path / "model.skpc")


def test_members_changed_after_the_fit_do_not_change_the_file(ensemble, tmp_path):
    changed = copy.deepcopy(ensemble).set_params(fine="drop", none=gabor("coarse"))
    save(changed, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    assert_same_ensemble(loaded, ensemble)
    assert [name for name, _ in loaded._members()] == ["none", "network"]


def test_an_ensemble_in_a_conformal_detector_round_trips(ensemble, tmp_path):
    detector = ConformalDetector(FrozenEstimator(ensemble), alpha=0.2).fit(TRAIN)
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    np.testing.assert_array_equal(
        loaded.predict_pvalue(TEST), detector.predict_pvalue(TEST)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"outlier_filter": "lof"},
        {"position_window": 3},
        {"n_neighbors": 10**6},
        {"reduction": "bad"},
        {"metric": "cosine"},
        {"verbose": 1},
    ],
    ids=str,
)
def test_a_file_holds_the_parameters_of_the_fit(params, tmp_path):
    path = tmp_path / "bank.skpc"
    X = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype(np.float32)
    bank = PatchMemoryBank(random_state=0).fit(X)
    save(bank, path)
    before = path.read_bytes()
    save(bank.set_params(**params), path)
    assert path.read_bytes() == before
    np.testing.assert_array_equal(load(path).score_samples(X), bank.training_scores_)


def test_a_loaded_bank_keeps_the_parameters_of_its_fit(tmp_path):
    X = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype(np.float32)
    bank = PatchMemoryBank(random_state=0).fit(X)
    save(bank, tmp_path / "bank.skpc")
    loaded = load(tmp_path / "bank.skpc").set_params(n_neighbors=2, reduction=0.5)
    new = X + 1
    np.testing.assert_array_equal(loaded.score_samples(new), bank.score_samples(new))


def test_a_bank_with_a_frozen_sampler_round_trips(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    sampler = FrozenEstimator(CoresetSampler(0.5, random_state=0).fit(X))
    bank = PatchMemoryBank(sampler, random_state=0).fit(X)
    save(bank, tmp_path / "bank.skpc")
    loaded = load(tmp_path / "bank.skpc")
    np.testing.assert_array_equal(loaded.score_samples(X), bank.training_scores_)
    new = X + 1
    np.testing.assert_array_equal(loaded.score_samples(new), bank.score_samples(new))


def test_a_model_that_could_not_be_loaded_replaces_no_file(tmp_path):
    path = tmp_path / "bank.skpc"
    X = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype(np.float32)
    bank = PatchMemoryBank(random_state=0).fit(X)
    save(bank, path)
    before = path.read_bytes()
    bank.bank_indices_ = bank.bank_indices_[:-1]
    with pytest.raises(ValueError, match="could not be loaded"):
        save(bank, path)
    assert path.read_bytes() == before


def test_weights_and_networks_of_an_ensemble_are_given_by_member(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
    own = PatchFeatureTransformer(network, ("1",), image_size=32)
    state = load_backbone(
        "resnet18", ("layer1",), weights="random", seed=3, device=None, precision="auto"
    ).module.state_dict()
    file = tmp_path / "resnet.safetensors"
    state = {key: value.contiguous() for key, value in state.items()}
    safetensors.torch.save_file(state, file)
    members = [("given", PatchCoreDetector(own)), ("named", resnet(str(file)))]
    ensemble = PatchCoreEnsemble(members, cv=2, random_state=0).fit(TRAIN)
    save(ensemble, tmp_path / "model.skpc")
    moved = file.rename(tmp_path / "moved.safetensors")
    where = {"weights": {"named": moved}, "backbone": {"given": network}}
    assert_same_ensemble(load(tmp_path / "model.skpc", **where), ensemble)
    with pytest.raises(ModelFileError, match=r"pass one .* to load"):
        load(tmp_path / "model.skpc", weights={"named": moved})
    with pytest.raises(ModelFileError, match=r"weights is for \['other'\]"):
        load(tmp_path / "model.skpc", weights={"other": moved})
    with pytest.raises(ModelFileError, match=r"is one file, .*; pass a dict"):
        load(tmp_path / "model.skpc", weights=moved)
    with pytest.raises(TypeError, match="Pass a dict of files"):
        load(tmp_path / "model.skpc", weights=moved, backbone={"given": network})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fitted: fitted.update(score_weights_={"array": "x"}), "no array"),
        (lambda fitted: fitted.update(offset_="far"), "offset_ .* must be a float"),
        (lambda fitted: fitted["estimators_"].pop(), "shorter"),
        (lambda fitted: fitted.update(_member_names=["fine"] * 2), "a name for each"),
        (lambda fitted: fitted.update(_member_names=["fine", 3]), "must be names"),
        (lambda fitted: fitted.update(estimators_=[None, None]), "a PatchCoreDetector"),
        (lambda fitted: fitted.pop("map_weights_"), "missing or unknown"),
    ],
)
def test_forged_ensembles_are_refused(ensemble, change, message, tmp_path):
    save(ensemble, tmp_path / "model.skpc")
    members = unzip(tmp_path / "model.skpc")
    manifest = json.loads(members["model.json"])
    change(manifest["detector"]["estimator"]["fitted"])
    write_zip(tmp_path / "forged.skpc", seal(manifest, members["arrays.safetensors"]))
    with pytest.raises(ModelFileError, match=message):
        load(tmp_path / "forged.skpc")


def test_a_file_does_not_hold_whether_progress_was_shown(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    bank = PatchMemoryBank(CoresetSampler(verbose=1), random_state=0, verbose=1)
    save(bank.fit(X), tmp_path / "bank.skpc")
    assert b"verbose" not in unzip(tmp_path / "bank.skpc")["model.json"]
    loaded = load(tmp_path / "bank.skpc")
    assert loaded.verbose == loaded.sampler_.verbose == 0


def test_smoothing_set_after_the_fit_does_not_get_into_the_file(tmp_path):
    detector = gabor("fine").fit(TRAIN)
    maps = detector.predict_maps(TEST)
    save(detector.set_params(smoothing=9.0), tmp_path / "model.skpc")
    np.testing.assert_array_equal(
        load(tmp_path / "model.skpc").predict_maps(TEST), maps
    )
