"""Networks run by OpenVINO and ONNX Runtime give the maps of torch."""

import pickle
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones import _backbone, _engines
from skpatchcore._backbones._engines import EngineError, check_engine
from skpatchcore.persistence import load, save

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

ENGINES = ["openvino", "onnxruntime"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def make(engine, backbone="resnet18", layers=("layer1", "layer2"), **params):
    weights = None if isinstance(backbone, nn.Module) else "random"
    params = {"weights": weights, "image_size": 64, "random_state": 0} | params
    return PatchFeatureTransformer(backbone, layers, engine=engine, **params)


def assert_close(found, expected, bound=1e-4):
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("backbone", "layers", "size"),
    [
        ("resnet18", ("layer1", "layer2"), (64, 96)),
        ("resnet18", (1, 2), 64),
        ("convnext_atto", ("stages.0", "stages.1"), 64),
        ("vit_tiny_patch16_224", ("blocks.1", 2), 224),
        ("hiera_tiny_224", (0,), 224),
    ],
)
def test_features_are_those_of_torch(engine, backbone, layers, size):
    params = {"backbone": backbone, "layers": layers, "image_size": size}
    expected = make("torch", **params).fit_transform(IMAGES)
    found = make(engine, **params).fit(IMAGES)
    # Other numbers of images than the compiled network was recorded with.
    assert_close(found.transform(IMAGES), expected)
    assert_close(found.transform(IMAGES[:1]), expected[:1])


@pytest.mark.parametrize("backbone", ["embedded", "gabor"])
def test_networks_of_this_package_run_in_openvino(backbone):
    layers = ("fine",) if backbone == "gabor" else ("layer2", "layer3")
    params = {"backbone": backbone, "layers": layers, "weights": None}
    expected = make("torch", **params).fit_transform(IMAGES)
    assert_close(make("openvino", **params).fit_transform(IMAGES), expected)


def test_bfloat16_is_close():
    expected = make("torch").fit_transform(IMAGES)
    found = make("openvino", precision="bfloat16").fit_transform(IMAGES)
    assert_close(found, expected, bound=0.1)
    with pytest.raises(ValueError, match="computes in float32 only"):
        make("onnxruntime", precision="bfloat16").fit(IMAGES)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_changes_its_engine_after_the_fit(engine, tmp_path):
    detector = PatchCoreDetector(make("torch"), random_state=0).fit(IMAGES)
    new = 255 - IMAGES
    expected = detector.score_samples(new)
    detector.features_.set_params(engine=engine)
    assert detector.features_._fitted_network().engine == engine
    assert_allclose(detector.score_samples(new), expected, rtol=1e-4)
    with pytest.warns(UserWarning, match=f"does not hold features_.engine='{engine}'"):
        save(detector, tmp_path / "model.skpc", include_backbone=True)
    loaded = load(tmp_path / "model.skpc")
    assert loaded.features_.engine == "torch"
    assert_array_equal(loaded.score_samples(new), expected)
    loaded = load(tmp_path / "model.skpc", engine=engine)
    assert_array_equal(loaded.score_samples(new), detector.score_samples(new))
    copied = pickle.loads(pickle.dumps(detector))
    assert_array_equal(copied.score_samples(new), detector.score_samples(new))


def test_a_network_is_not_compiled_before_the_first_image(tmp_path, monkeypatch):
    detector = PatchCoreDetector(make("torch"), random_state=0).fit(IMAGES)
    save(detector, tmp_path / "model.skpc", include_backbone=True)
    used = []

    def compile_network(engine, network, probes, dtype):
        used.append(tuple(probes.shape[2:]))
        return _engines.compile_network(engine, network, probes, dtype)

    monkeypatch.setattr(_backbone, "compile_network", compile_network)
    loaded = load(tmp_path / "model.skpc", engine="openvino")
    assert used == []
    loaded.predict(IMAGES)
    assert used == [(64, 64)]


def test_auto_is_the_first_engine_that_is_installed(monkeypatch):
    used = []

    def compile_network(engine, *args):
        used.append(engine)
        return _engines.compile_network(engine, *args)

    monkeypatch.setattr(_backbone, "compile_network", compile_network)
    make("auto", weights="random", random_state=1).fit(IMAGES)
    monkeypatch.setattr(_backbone, "installed_engines", lambda dtype: ["onnxruntime"])
    make("auto", weights="random", random_state=2).fit(IMAGES)
    monkeypatch.setattr(_backbone, "installed_engines", lambda dtype: [])
    make("auto", weights="random", random_state=3).fit(IMAGES)
    assert used == ["openvino", "onnxruntime"]


class Branching(nn.Module):
    """Adds something to bright images, which one recorded pass cannot show."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, x):
        return self.layer(x + 1) if x.mean() > 0 else self.layer(x)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_depends_on_values_is_refused(engine):
    features = make(engine, Branching(), ("layer",))
    with pytest.raises(EngineError, match=f"engine='{engine}' .* Branching: .* differ"):
        features.fit(IMAGES)


def test_a_refused_network_is_refused_again():
    features = make("torch", Branching(), ("layer",)).fit(IMAGES)
    features.set_params(engine="openvino")
    for _ in range(2):
        with pytest.raises(EngineError, match="Branching"):
            features.transform(IMAGES)


def test_auto_runs_networks_of_the_users_own_in_torch():
    features = make("auto", Branching(), ("layer",)).fit(IMAGES)
    expected = make("torch", Branching(), ("layer",)).fit(IMAGES)
    assert features.transform(IMAGES).shape == expected.transform(IMAGES).shape
    assert not features._network._engines(torch.float32)


def test_auto_names_an_engine_that_fails(monkeypatch):
    def fail(*args):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(_engines, "_open_vino", fail)
    features = make("auto", random_state=4)
    with pytest.warns(UserWarning, match="ResNet: openvino .* no such operator.$"):
        found = features.fit_transform(IMAGES)
    assert_close(found, make("torch", random_state=4).fit_transform(IMAGES))


@pytest.mark.parametrize(
    ("network", "layer", "name"),
    [("gabor", "fine", "GaborBank"), ("embedded", "layer2", "EmbeddedBackbone")],
)
def test_operators_that_onnx_lacks_are_named(network, layer, name, capfd):
    features = make("onnxruntime", network, (layer,), weights=None)
    with pytest.raises(EngineError, match=f"{name}: .*Set engine='torch'") as raised:
        features.fit(IMAGES)
    assert "Caused by" not in str(raised.value)
    assert "Please" not in str(raised.value)
    # torch prints the graph of a network that it cannot export.
    assert capfd.readouterr().out == ""


def test_an_engine_that_is_not_installed_is_named_before_any_image(monkeypatch):
    monkeypatch.setattr(_engines, "installed_engines", lambda: [])
    with pytest.raises(ImportError, match=r"pip install 'skpatchcore\[onnx\]'"):
        make("onnxruntime").fit([np.full((8, 8), 7.0)])
    with pytest.raises(ImportError, match=r"pip install 'skpatchcore\[openvino\]'"):
        make("openvino").fit([np.full((8, 8), 7.0)])


def test_engines_run_on_cpus_only():
    with pytest.raises(ValueError, match="device is 'cuda'"):
        check_engine("openvino", torch.device("cuda"), torch.float32)
    check_engine("auto", torch.device("cuda"), torch.float32)


def test_few_sizes_are_compiled():
    images = [IMAGES[0][: 64 - 4 * i] for i in range(6)]
    params = {"image_size": None, "output": "mean", "random_state": 5}
    features = make("openvino", **params)
    with pytest.warns(UserWarning, match="more than 4 sizes") as caught:
        found = features.fit_transform(images)
    assert len(caught) == 1
    assert_close(found, make("torch", **params).fit_transform(images))


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_are_limited_as_in_torch(engine):
    images = np.repeat(IMAGES, 2, axis=0)
    params = {"image_size": 384, "layers": ("layer1",), "output": "mean"}
    batches = []
    network = _backbone.Backbone.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _backbone.Backbone,
            "__call__",
            lambda self, batch: batches.append(len(batch)) or network(self, batch),
        )
        make("torch", **params).fit_transform(images)
        expected = batches.copy()
        features = make(engine, **params)
        for use in (features.fit_transform, features.transform):
            batches.clear()
            use(images)
            assert batches == expected
    assert 1 < max(expected) < 9


def test_a_cache_keeps_the_maps_of_engines_apart(tmp_path):
    calls = []
    network = _backbone.Backbone.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _backbone.Backbone,
            "__call__",
            lambda self, batch: calls.append(len(batch)) or network(self, batch),
        )
        for engine in ("torch", "openvino", "openvino"):
            make(engine, memory=tmp_path).fit_transform(IMAGES)
    assert sum(calls) == 2 * len(IMAGES)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_compiled_network(engine):
    features = make(engine).fit(IMAGES)
    expected = features.transform(IMAGES)
    found = [None] * 4

    def run(i):
        found[i] = [features.transform(IMAGES) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for features_of_thread in found:
        assert_array_equal(features_of_thread, [expected] * 5)
