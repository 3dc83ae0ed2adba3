"""Forged model files: no code runs, no file is opened, all values are checked."""

import copy
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import SparseRandomProjection

from helpers import assert_rejected, params_of, seal, unzip, write_zip
from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._cli._commands import main
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence import load, save
from skpatchcore.persistence._archive import _describe
from skpatchcore.persistence._schema import LEFT_OUT, PARAMS

N_CASES = int(os.environ.get("SKPATCHCORE_FUZZ_CASES", "100"))
X = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)


def make(features=None, **params):
    given = {"layers": ("fine",), "image_size": 16} | (features or {})
    transformer = PatchFeatureTransformer("gabor", **given)
    return PatchCoreDetector(transformer, **{"random_state": 0} | params).fit(X)


# Members of files by the identity of the detector, which is kept alive.
SAVED = {}


def members_of(detector, path):
    if id(detector) not in SAVED:
        save(detector, path)
        SAVED[id(detector)] = detector, unzip(path)
    return SAVED[id(detector)][1]


def forged(detector, change, path):
    """Return a signed file of `detector`, its description and arrays changed."""
    members = members_of(detector, path)
    manifest = json.loads(members["model.json"])
    arrays = safetensors.numpy.load(members["arrays.safetensors"])
    change(manifest["detector"], arrays)
    return write_zip(path, seal(manifest, safetensors.numpy.save(arrays)))


@pytest.fixture(scope="module")
def detector():
    return make()


@pytest.fixture(scope="module")
def sparse():
    return make({"projection": SparseRandomProjection(3)})


@pytest.fixture(scope="module")
def scaled_pca():
    return make({"projection": make_pipeline(StandardScaler(), PCA(3))})


def at(record, *names):
    """Return the description of the part under fitted attributes of these names."""
    for name in names:
        record = record["estimator"]["fitted"][name]
    return record


# No code runs, and no file is opened.


def test_no_forged_value_opens_a_file_or_unpickles(tmp_path):
    script = Path(__file__).with_name("forge_models.py")
    result = subprocess.run(
        [sys.executable, script, str(N_CASES), "0", str(tmp_path / "forge")],
        cwd=script.parents[1],
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["violations"] == []
    # Some files load, so the use after loading is watched too.
    assert min(found["outcomes"]["refused"], found["outcomes"]["loaded"]) >= 5


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Return a model file that names a cache in its folder, with harmful pickles."""
    monkeypatch.chdir(tmp_path)
    cached = make(memory="shipped_along")
    cached.predict(X)
    entries = list(Path("shipped_along").rglob("output.pkl"))
    assert entries
    for entry in entries:
        entry.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))

    def name_the_cache(record, arrays):
        for part in (
            record,
            at(record, "memory_bank_"),
            at(record, "memory_bank_", "sampler_"),
            at(record, "features_"),
        ):
            params_of(part)["memory"] = "shipped_along"

    return forged(cached, name_the_cache, tmp_path / "forged.skpc")


def test_a_cache_that_a_file_names_is_not_opened(shipped):
    assert_rejected(shipped, r"no parameters \['memory'\]")
    assert not Path("executed").exists()


def test_the_command_does_not_open_a_cache_that_a_file_names(shipped):
    Image.fromarray(X[0]).save("new.png")
    result = CliRunner().invoke(main, ["score", "--model", str(shipped), "new.png"])
    assert result.exit_code == 1
    assert "no parameters ['memory']" in result.stderr
    assert not Path("executed").exists()


@pytest.mark.parametrize("cls", PARAMS, ids=lambda cls: cls.__name__)
def test_no_class_stores_parameters_of_a_machine(cls):
    assert not LEFT_OUT & PARAMS[cls].keys()


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_a_pipeline_in_a_projection_stores_no_parameters_of_a_machine(
    name, scaled_pca, tmp_path
):
    def change(record, arrays):
        params_of(at(record, "features_", "projection_"))[name] = "shipped_along"

    path = forged(scaled_pca, change, tmp_path / "m")
    assert_rejected(path, rf"Pipeline has no parameters \['{name}'\]")


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp/model",
        "timm:resnet18",
        "resnet18.hf-hub:a/b",
        "resnet18./../../model",
        "resnet18\n",
        "https://example.com/resnet18",
        "résnet18",
        "r" * 101,
        7,
        None,
        ["resnet18"],
        {"tuple": ["resnet18"]},
    ],
    ids=repr,
)
@pytest.mark.parametrize("part", ["features", "features_"])
def test_a_network_must_be_a_name_in_timms_registry(
    name, part, detector, tmp_path, monkeypatch
):
    monkeypatch.setattr("skpatchcore.persistence._networks.Backbone", None)
    monkeypatch.setattr("skpatchcore._features._transformer.load_backbone", None)

    def change(record, arrays):
        group = "fitted" if part == "features_" else "params"
        params_of(record["estimator"][group][part])["backbone"] = name

    path = forged(detector, change, tmp_path / "m")
    assert_rejected(path, "backbone of .* must be a model name of timm's registry")


@pytest.mark.parametrize(
    "weights",
    [
        "own.safetensors",
        "/etc/passwd",
        "//host/share/weights.pth",
        {"path": "own.safetensors"},
        {"weights_file": "folder/own.safetensors"},
        {"weights_file": ".."},
        {"weights_file": "/"},
        {"weights_file": ""},
        {"weights_file": 3},
        3,
    ],
    ids=repr,
)
def test_a_path_of_weights_is_refused(weights, detector, tmp_path, monkeypatch):
    monkeypatch.setattr("skpatchcore._backbones._backbone.load_weights", None)

    def change(record, arrays):
        params_of(at(record, "features_"))["weights"] = weights

    path = forged(detector, change, tmp_path / "m")
    assert_rejected(path, "weights|unknown kind|'weights_file'")


def test_a_name_of_weights_is_never_opened(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.pth").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))

    def change(record, arrays):
        params = params_of(at(record, "features_"))
        params |= {"backbone": "resnet18", "weights": {"weights_file": "own.pth"}}

    path = forged(detector, change, tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"'own\.pth'.*weights="):
        load(path)
    assert not Path("executed").exists()


# Parameters of a machine are left out.


def everything(cache):
    """Return a detector with all parameters that belong to a machine."""
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=16, memory=cache, device="cpu"
    )
    sampler = CoresetSampler(memory=cache, device=torch.device("cpu"))
    return PatchCoreDetector(
        features, sampler, memory=cache, device="cpu", random_state=0
    ).fit(X)


def test_device_and_cache_are_left_out_and_the_device_is_named(tmp_path):
    detector = everything(tmp_path / "cache")
    with pytest.warns(
        UserWarning,
        match=r"features_.device='cpu', memory_bank_.device='cpu'.*device=\.\.\.",
    ):
        save(detector, tmp_path / "m")
    text = unzip(tmp_path / "m")["model.json"].decode()
    for word in ("cache", 'memory"', "device", "cpu"):
        assert word not in text
    loaded = load(tmp_path / "m", device="cpu")
    for part in (loaded, loaded.features_, loaded.memory_bank_):
        assert part.memory is None
        assert part.device == "cpu"
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_a_cache_of_a_pipeline_is_left_out(tmp_path):
    pipeline = make_pipeline(StandardScaler(), PCA(3), memory=str(tmp_path / "cache"))
    detector = make({"projection": pipeline})
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.features_.projection_.memory is None
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_an_output_container_of_a_projection_is_left_out(tmp_path):
    pca = PCA(3).set_output(transform="pandas")
    detector = make({"projection": pca})
    save(detector, tmp_path / "m")
    loaded = load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_a_function_is_an_error_when_saving(detector, tmp_path):
    tuned = TunedThresholdDetector(FrozenEstimator(detector), scoring=lambda y, z: 1.0)
    tuned.fit(X[:4], [1, 1, -1, -1])
    with pytest.raises(TypeError, match="scoring is <function"):
        save(tuned, tmp_path / "m")


def test_a_parameter_of_a_newer_scikit_learn_is_left_at_its_default(
    tmp_path, monkeypatch
):
    class Newer(PCA):
        def __init__(self, n_components=None, *, alpha=1):
            super().__init__(n_components)
            self.alpha = alpha

    monkeypatch.setitem(PARAMS, Newer, PARAMS[PCA])
    from skpatchcore.persistence import _schema as _model_schema

    monkeypatch.setitem(_model_schema.FITTED, Newer, _model_schema.FITTED[PCA])
    with pytest.raises(TypeError, match=r"alpha=2 is a parameter that this version"):
        save(make({"projection": Newer(3, alpha=2)}), tmp_path / "m")


# Numbers.

HUGE = 10**19
BANK = ("memory_bank_",)
FEATURES = ("features_",)
PARAMETERS = [
    ((), "smoothing", [2**31, -1, True, "4", None, 1025]),
    ((), "n_neighbors", [True, 0, 1.0, HUGE, "1"]),
    ((), "contamination", [True, 0, 0.51, -0.1]),
    ((), "reduction", [True, 0.0, 1.5, "min"]),
    ((), "random_state", [-1, 2**32, 0.5, True]),
    ((), "verbose", [1, -1]),
    ((), "outlier_fraction", [0, 1, True, -0.5]),
    ((), "augmentation", ["os.system", ["flip", 1], {"tuple": [["flip"]]}]),
    (BANK, "n_neighbors", [True, 0, 1.0, HUGE]),
    (BANK, "reweight", [1, True, 2.0]),
    (BANK, "position_window", [[3, 3], {"tuple": [3, 3.0]}, True]),
    (BANK, "algorithm", ["os", 1, True]),
    ((*BANK, "sampler_"), "fraction", [True, 0, 0.0, 1.5]),
    ((*BANK, "sampler_"), "n_starts", [True, 0, 2.0]),
    (FEATURES, "image_size", [True, 0, 2**17, 16.0, [16], [2**16, 2**16], [16, True]]),
    (FEATURES, "crop_size", [True, [0, 16], {"tuple": [16, 16, 16]}]),
    (FEATURES, "patch_size", [True, 2, 0, 3.0, 1025, 2**31 + 1]),
    (FEATURES, "patch_stride", [True, 0, 2**17]),
    (FEATURES, "descriptor", [True, 0, 2**17, "mean"]),
    (FEATURES, "batch_size", [True, 0, 32.0, HUGE]),
    (FEATURES, "layers", [[], ["fine"] * 257, ["x" * 257], [True], [0.5], "fine"]),
    (FEATURES, "layer_weights", [[True], [0], [-1.0], ["1"], []]),
    (FEATURES, "projection", [True, 0, 2**21, 3.0]),
]
ATTRIBUTES = [
    ((), "offset_", [HUGE, 0, True, None, "0", {"tuple": [0.0]}]),
    ((), "map_threshold_", [1, False, None]),
    ((), "foreground_", [0, [1], {"tuple": [1.0, 1.0]}]),
    (BANK, "offset_", [HUGE, 1, True]),
    (BANK, "patch_threshold_", [1, True]),
    (BANK, "n_features_in_", [True, 0, 21.0, HUGE]),
    (BANK, "_index_seed", [-1, True, 2**31, 0.5]),
    (BANK, "_training_sketches", [0, None, [0.0] * 7]),
    ((*BANK, "sampler_"), "n_features_in_", [True, 3, 0]),
    (FEATURES, "_seed", [-1, True, 2**31, 0.5]),
    (FEATURES, "n_patch_features_", [True, 0, 42.0]),
    (FEATURES, "grid_shape_", [[2, 2], {"tuple": [2, 0]}, {"tuple": [True, 2]}]),
    (FEATURES, "layer_weights_", [{"tuple": [True]}, {"tuple": [0.0]}, [1.0]]),
]
NUMBERS = [
    (group, where, name, value)
    for group, rows in (("params", PARAMETERS), ("fitted", ATTRIBUTES))
    for where, name, values in rows
    for value in values
]


@pytest.mark.parametrize(
    ("group", "where", "name", "value"),
    NUMBERS,
    ids=[f"{'.'.join((*w, n))}={v!r:.30}" for _, w, n, v in NUMBERS],
)
def test_a_number_of_another_type_or_out_of_range_is_refused(
    group, where, name, value, detector, tmp_path
):
    def change(record, arrays):
        at(record, *where)["estimator"][group][name] = value

    assert_rejected(forged(detector, change, tmp_path / "m"), name)


def scaled(name, factor):
    return lambda arrays: arrays.update({name: arrays[name] * np.float32(factor)})


WRONG_ARRAYS = {
    "bank of infinities": scaled("memory_bank_.bank_", np.inf),
    "scores that are no numbers": lambda a: a.update(
        {"memory_bank_.training_scores_": np.full(9, np.nan)}
    ),
    "rows before the first": lambda a: a.update(
        training_indices_=a["training_indices_"] - 1
    ),
    "grids larger than any": lambda a: a.update(
        _training_shapes=a["_training_shapes"] * 2**20
    ),
    "radii below 0": scaled("memory_bank_.sampler_.radii_", -1),
    "patches of infinite length": lambda a: a.update(
        _training_aspects=a["_training_aspects"] * np.inf
    ),
    "integers of other sizes": lambda a: a.update(
        training_indices_=a["training_indices_"].astype(np.int32)
    ),
    "bools": lambda a: a.update(_training_aspects=a["_training_aspects"] > 0),
}


@pytest.mark.parametrize("change", WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_arrays_out_of_range_are_refused(change, detector, tmp_path):
    path = forged(detector, lambda record, arrays: change(arrays), tmp_path / "m")
    assert_rejected(path, "must be")


def test_a_cosine_bank_has_rows_of_unit_length(tmp_path):
    detector = make(metric="cosine")
    path = forged(
        detector,
        lambda record, arrays: scaled("memory_bank_.bank_", 2)(arrays),
        tmp_path / "m",
    )
    assert_rejected(path, "unit length")


def test_a_bank_must_match_its_metric(detector, tmp_path):
    def change(record, arrays):
        params_of(at(record, "memory_bank_"))["metric"] = "cosine"

    path = forged(detector, change, tmp_path / "m")
    assert_rejected(path, "unit length")


def test_windows_that_would_fill_the_memory_are_refused(tmp_path):
    detector = make({"descriptor": 20})

    def change(record, arrays):
        params_of(at(record, "features_"))["patch_size"] = 1023

    path = forged(detector, change, tmp_path / "m")
    assert_rejected(path, "patch_size=1023 makes windows of")


def test_matches_must_refer_to_rows_of_the_fit(detector, tmp_path):
    conformal = ConformalDetector(detector, alpha=0.2, method="split", random_state=0)
    conformal.fit(X)

    def change(record, arrays):
        for name in ("_training_rows", "_training_folds"):
            arrays[name] = arrays[name][:1]

    path = forged(conformal, change, tmp_path / "m")
    assert_rejected(path, "exceed _training_rows")


@pytest.mark.parametrize("folds", [[0, 0, 1, 0], [0, 0, 1, 2]])
def test_training_folds_must_refer_to_estimators_in_order(folds, detector, tmp_path):
    conformal = ConformalDetector(detector, alpha=0.2, cv=2, random_state=0).fit(X)

    def change(record, arrays):
        arrays["_training_folds"] = np.resize(folds, len(arrays["_training_folds"]))

    path = forged(conformal, change, tmp_path / "m")
    assert_rejected(path, "_training_folds must ascend, and refer to estimators_")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f, a: f.update(scale_=None), "does not work|scale_"),
        (lambda f, a: f.update(n_samples_seen_=True), "n_samples_seen_"),
        (lambda f, a: f.update(mean_={"array": "short"}), "mean_ has shape"),
        (lambda f, a: a[f["scale_"]["array"]].fill(0), "scale_ must be positive"),
        (lambda f, a: a[f["mean_"]["array"]].fill(np.nan), "mean_ of StandardScaler"),
        (lambda f, a: f.update(n_features_in_=2**40), "n_features_in_"),
    ],
    ids=range(6),
)
def test_numbers_of_a_step_of_a_projection_are_checked(
    change, match, scaled_pca, tmp_path
):
    def forge(record, arrays):
        for name in arrays:
            arrays[name] = arrays[name].copy()
        arrays["short"] = np.zeros(2)
        pipeline = at(record, "features_", "projection_")
        scaler = params_of(pipeline)["steps"][0]["tuple"][1]
        change(scaler["estimator"]["fitted"], arrays)

    assert_rejected(forged(scaled_pca, forge, tmp_path / "m"), match)


# Objects in wrong places.


def description(cls, **params):
    return {"estimator": {"class": cls, "params": params, "fitted": {}}}


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (FEATURES, "projection", description("CoresetSampler")),
        (FEATURES, "projection", description("PatchMemoryBank")),
        (FEATURES, "projection", description("PatchCoreDetector")),
        (FEATURES, "projection", [description("PCA")]),
        (BANK, "sampler", description("PCA")),
        (BANK, "sampler", description("FrozenEstimator", estimator=None)),
        ((), "features", description("PatchMemoryBank")),
        ((), "features", description("Pipeline", steps=[])),
        ((), "sampler", {"splitter": {"class": "KFold", "params": {}}}),
        ((), "n_neighbors", description("PCA")),
        ((), "sampler", {"splitter": {"class": "KFold", "params": {"n_splits": True}}}),
    ],
    ids=str,
)
def test_objects_in_the_wrong_place_are_refused(where, name, value, detector, tmp_path):
    def change(record, arrays):
        params_of(at(record, *where))[name] = value

    assert_rejected(
        forged(detector, change, tmp_path / "m"), "must be|no .* in a model"
    )


@pytest.fixture(scope="module")
def frozen():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16).fit(X)
    return PatchCoreDetector(FrozenEstimator(features), random_state=0).fit(X)


def unfit(inner):
    inner["estimator"]["fitted"] = {}


def narrow(inner):
    inner["estimator"]["fitted"]["layer_weights_"] = {"tuple": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (unfit, "PatchFeatureTransformer 'features' is not fitted"),
        (narrow, "layer_weights_ must be"),
        (lambda inner: inner.update(description("PCA")), "is a frozen PCA"),
        (
            lambda inner: inner.update(description("PatchCoreDetector")),
            "must be an obj",
        ),
        (lambda inner: inner.update(description("CoresetSampler")), "must be"),
    ],
    ids=["not fitted", "other layers", "projection", "detector", "sampler"],
)
def test_frozen_features_are_checked(change, match, frozen, tmp_path):
    def forge(record, arrays):
        change(params_of(params_of(record)["features"])["estimator"])

    assert_rejected(forged(frozen, forge, tmp_path / "m"), match)


def test_features_may_only_be_missing_if_they_are_frozen(detector, tmp_path):
    def forge(record, arrays):
        del record["estimator"]["fitted"]["features_"]

    path = forged(detector, forge, tmp_path / "m")
    assert_rejected(path, "features_' is not fitted|features_ are missing")


def test_a_calibrator_within_a_projection_is_refused(detector, tmp_path):
    conformal = ConformalDetector(FrozenEstimator(detector), alpha=0.2).fit(X)

    def change(record, arrays):
        inner = params_of(params_of(record)["estimator"])["estimator"]
        at(inner, "features_")["estimator"]["fitted"]["projection_"] = copy.deepcopy(
            record
        )

    path = forged(conformal, change, tmp_path / "m")
    assert_rejected(path, "projection_ of PatchFeatureTransformer must be")


def test_a_fitted_part_of_another_class_is_refused(detector, tmp_path):
    X = np.random.default_rng(0).normal(size=(20, 3))
    conformal = ConformalDetector(PatchMemoryBank(), alpha=0.2, method="refit").fit(X)

    def change(record, arrays):
        params_of(record)["estimator"] = description("PatchCoreDetector")

    path = forged(conformal, change, tmp_path / "m")
    assert_rejected(path, "fitted PatchMemoryBank for its estimator, a PatchCoreDet")


@pytest.mark.parametrize("depth", [40, 200, 5000])
def test_deep_descriptions_are_refused(depth, detector, tmp_path):
    save(detector, tmp_path / "m")
    members = unzip(tmp_path / "m")
    manifest = json.loads(members["model.json"])
    text = seal({**manifest, "detector": "DEEP"}, members["arrays.safetensors"])
    opening = '{"estimator": {"class": "FrozenEstimator", "fitted": {}, "params": '
    deep = f'{opening}{{"estimator": ' * depth + "null" + "}}}" * depth
    forged = {**text, "model.json": text["model.json"].replace('"DEEP"', deep)}
    assert_rejected(write_zip(tmp_path / "m", forged), "nested|recursion|must be")


@pytest.mark.parametrize("name", ["__class__", "__dict__", "fit", "_network", "_index"])
@pytest.mark.parametrize("group", ["params", "fitted"])
@pytest.mark.parametrize("where", [(), BANK, FEATURES], ids=str)
def test_unknown_attribute_names_are_refused(name, group, where, detector, tmp_path):
    def change(record, arrays):
        at(record, *where)["estimator"][group][name] = 1

    assert_rejected(forged(detector, change, tmp_path / "m"), rf"\['{name}'\]")


# JSON.


@pytest.fixture(scope="module")
def members(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m"
    save(detector, path)
    return unzip(path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"smoothing": 4.0', f'"smoothing": 1{"0" * 400}', "too many digits"),
        ('"smoothing": 4.0', f'"smoothing": 1{"0" * 5000}', "too many digits"),
        ('"smoothing": 4.0', '"smoothing": NaN', "NaN"),
        ('"smoothing": 4.0', '"smoothing": -Infinity', "-Infinity"),
        ('"smoothing": 4.0', '"smoothing": 1e400', "1e400"),
        ('"smoothing": 4.0', '"smoothing": 4.0, "smoothing": 5.0', "'smoothing' twice"),
        ('"auto"', '"\\ud800"', "not Unicode"),
        ('"smoothing": 4.0', '"\\udfff": 4.0', "not Unicode"),
        ('"smoothing"', '"smoothing\\u0000"', "no parameters"),
    ],
    ids=[
        *("long", "longer", "NaN", "infinite", "overflow", "twice"),
        *("surrogate", "surrogate key", "null character"),
    ],
)
def test_ambiguous_json_is_refused(old, new, match, members, tmp_path):
    text = members["model.json"].decode()
    assert old in text
    changed = {**members, "model.json": text.replace(old, new, 1)}
    assert_rejected(write_zip(tmp_path / "m", changed), match)


def test_errors_shorten_long_values_to_one_line(detector, tmp_path):
    def change(record, arrays):
        params_of(record)["metric"] = "long\n" * 100_000

    path = forged(detector, change, tmp_path / "m")
    with pytest.raises(ValueError, match="metric of PatchCoreDetector") as caught:
        load(path)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


# The zip.


@pytest.mark.parametrize("kind", [0o120777, 0o040755, 0o010644], ids=oct)
def test_links_and_folders_in_the_zip_are_refused(kind, members, tmp_path):
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = kind << 16
            archive.writestr(info, data)
    assert_rejected(path, "is a link or folder")


@pytest.mark.parametrize("bit", [0, 6, 5], ids=["encrypted", "strongly", "patched"])
def test_encrypted_members_are_refused(bit, members, tmp_path):
    path = write_zip(tmp_path / "m", members)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(signature) + offset
        (flags,) = struct.unpack_from("<H", data, place)
        struct.pack_into("<H", data, place, flags | 1 << bit)
    path.write_bytes(data)
    assert_rejected(path, "encrypted|encryption|patched|Overlapped")


def test_names_with_a_null_character_are_refused(members, tmp_path):
    pairs = [*members.items(), ("model.jsonX", members["model.json"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_zip(tmp_path / "m", pairs)
    path.write_bytes(path.read_bytes().replace(b"model.jsonX", b"model.json\0"))
    assert_rejected(path, "same name|differ")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_compressed_description_is_refused(compression, members, tmp_path):
    path = write_zip(tmp_path / "m", members, compression)
    assert_rejected(path, "compressed")


# Arrays.


def with_header(members, shapes, data=b""):
    """Return members whose arrays have the given safetensors header."""
    header = json.dumps(shapes).encode()
    arrays = struct.pack("<Q", len(header)) + header + data
    return seal(json.loads(members["model.json"]), arrays)


@pytest.mark.parametrize(
    ("shape", "dtype", "offsets"),
    [
        ([2**62, 2**62], "F32", [0, 0]),
        ([0, 2**62], "F32", [0, 0]),
        ([2**40], "F64", [0, 2**43]),
        ([1], "F32", [0, 2**40]),
        ([1], "BF16", [0, 2]),
        ([1], "F8_E4M3", [0, 1]),
    ],
    ids=str,
)
def test_arrays_of_odd_headers_are_refused(shape, dtype, offsets, members, tmp_path):
    described = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    path = write_zip(tmp_path / "m", with_header(members, {"x": described}, b"\0" * 2))
    assert_rejected(path, "Could not load the model file")


@pytest.mark.parametrize("length", [2**63, 2**32, 0])
def test_headers_of_odd_lengths_are_refused(length, members, tmp_path):
    arrays = struct.pack("<Q", length) + b"{}"
    path = write_zip(tmp_path / "m", seal(json.loads(members["model.json"]), arrays))
    assert_rejected(path, "Could not load the model file")


@pytest.mark.parametrize(
    "strides",
    [[2**40, 1], [2**25, 2**25], [1], [1, 1, 1], [True, 1], [1.0, 1], "ab", [None, 1]],
    ids=str,
)
def test_strides_that_span_too_much_are_refused(strides, detector, tmp_path):
    def change(record, arrays):
        fitted = at(record, "memory_bank_")["estimator"]["fitted"]
        fitted["bank_"] = {
            "strided": {"array": "memory_bank_.bank_", "strides": strides}
        }

    path = forged(detector, change, tmp_path / "m")
    assert_rejected(path, "strides|span")


@pytest.mark.parametrize(
    "shape",
    [[2**40, 42], [3, 2**40], [3], [True, 42], [3.0, 42], [-1, 42], [3, 42, 1]],
    ids=str,
)
def test_sparse_matrices_of_odd_shapes_are_refused(shape, sparse, tmp_path):
    def change(record, arrays):
        projection = at(record, "features_", "projection_")
        projection["estimator"]["fitted"]["components_"]["csr"]["shape"] = shape

    assert_rejected(forged(sparse, change, tmp_path / "m"), "CSR|shape")


@pytest.mark.parametrize("part", ["indices", "indptr"])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, bool])
def test_sparse_matrices_of_odd_places_are_refused(part, dtype, sparse, tmp_path):
    def change(record, arrays):
        projection = at(record, "features_", "projection_")
        csr = projection["estimator"]["fitted"]["components_"]["csr"]
        name = csr[part]["array"]
        arrays[name] = arrays[name].astype(dtype)

    assert_rejected(forged(sparse, change, tmp_path / "m"), "integer places")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    features = PatchFeatureTransformer(
        "resnet18", ("maxpool",), weights="random", image_size=16
    )
    detector = PatchCoreDetector(features, random_state=0).fit(X)
    save(detector, tmp_path / "m", include_backbone=True)
    members = unzip(tmp_path / "m")
    state = safetensors.torch.load(members["backbone.safetensors"])
    state["bn1.weight"][0] = torch.nan
    changed = safetensors.torch.save(state)
    manifest = json.loads(members["model.json"])
    manifest["members"]["backbone.safetensors"] = _describe(changed)
    members |= {
        "model.json": json.dumps(manifest),
        "backbone.safetensors": changed,
    }
    assert_rejected(write_zip(tmp_path / "m", members), "'bn1.weight' .* not finite")


@pytest.mark.parametrize(
    "hashes", [[], ["0" * 64] * 2, ["0" * 63], ["G" * 64], [7], "0" * 64], ids=repr
)
def test_odd_hashes_of_networks_are_refused(hashes, members, tmp_path):
    manifest = json.loads(members["model.json"]) | {"backbone_sha256": hashes}
    path = write_zip(tmp_path / "m", seal(manifest, members["arrays.safetensors"]))
    assert_rejected(path, "backbone_sha256")


# Splitters and searches inside calibrations.


@pytest.mark.parametrize(
    "params",
    [
        *({"n_splits": True}, {"n_splits": 1}, {"n_splits": 2.0}, {"shuffle": 1}),
        *({"__class__": 1}, {"random_state": -1}, {"groups": 1}),
    ],
    ids=str,
)
def test_parameters_of_splitters_are_checked(params, detector, tmp_path):
    conformal = ConformalDetector(detector, alpha=0.2, cv=KFold(3)).fit(X)

    def change(record, arrays):
        params_of(record)["cv"]["splitter"]["params"] |= params

    path = forged(conformal, change, tmp_path / "m")
    assert_rejected(path, f"{next(iter(params))}")


def test_folds_given_as_rows_round_trip(detector, tmp_path):
    folds = list(KFold(3).split(X))
    conformal = ConformalDetector(detector, alpha=0.2, cv=folds).fit(X)
    save(conformal, tmp_path / "m")
    loaded = load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict_pvalue(X), conformal.predict_pvalue(X))
    np.testing.assert_array_equal(loaded.cv[1][0], folds[1][0])
