"""Networks: layers, weights, devices, precision, threads and side effects."""

import copy
import pickle
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from torch import nn

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones._backbone import _build_cached, cast_weights, load_backbone
from skpatchcore._backbones._hooks import read_layers
from skpatchcore._utils._device import choose_dtype, has_float16_units, resolve_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


class Tiny(nn.Module):
    """Works in place on the output of `first`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.pair = Pair()
        self.head = nn.Linear(8, 2)
        self.unused = nn.Identity()

    def forward(self, x):
        x = self.first(x)
        x.mul_(-7).add_(100)
        x = self.second(self.norm(x))
        self.pair(x)
        return self.head(x.mean(dim=(2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Dangerous:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def make_tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny()


def n_hooks(module):
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for part in module.modules()
    )


def transformer(backbone="resnet18", layers=("layer1", "layer2"), **params):
    params = {"image_size": 32, "random_state": 0, "layer_weights": None, **params}
    return PatchFeatureTransformer(backbone, layers, **params)


def random_resnet(layers=("layer1", "layer2"), **params):
    return transformer(layers=layers, weights="random", **params)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def resnet(timm):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return timm.create_model("resnet18")


@pytest.fixture(scope="module")
def state(resnet):
    return resnet.state_dict()


@pytest.fixture(scope="module")
def expected(resnet):
    return transformer(resnet).fit_transform(IMAGES)


def without(state, *prefixes):
    return {key: v for key, v in state.items() if not key.startswith(prefixes)}


# Layers and hooks


def test_maps_equal_the_outputs_of_the_layers():
    module = make_tiny().eval()
    batch = torch.rand(2, 3, 16, 16)
    maps = read_layers(module, ["second", "first"], batch)
    first = module.first(batch)
    second = module.second(module.norm(first * -7 + 100))
    assert_allclose(maps["first"].detach(), first.detach(), rtol=1e-6)
    assert_allclose(maps["second"].detach(), second.detach(), rtol=1e-5)


def test_maps_are_in_the_order_of_the_layers_and_normalized():
    module = make_tiny()
    load = {"weights": None, "seed": 0, "device": "cpu", "precision": "auto"}
    batch = torch.rand(2, 3, 16, 16)
    second, first = load_backbone(module, ("second", "first"), **load)(batch)
    assert second.shape == (2, 8, 4, 4)
    assert first.shape == (2, 4, 8, 8)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    assert_allclose(first, module.first((batch - mean) / std).detach(), atol=1e-5)


def test_a_network_may_have_its_own_mean_and_deviation():
    module = make_tiny()
    module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    load = {"weights": None, "seed": 0, "device": "cpu", "precision": "auto"}
    batch = torch.rand(2, 3, 16, 16)
    (first,) = load_backbone(module, ("first",), **load)(batch)
    assert_allclose(first, module.first((batch - 0.5) / 0.25).detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "run"),
    [
        (("first",), {"first"}),
        (("second",), {"first", "norm", "second"}),
        (("second", "first"), {"first", "norm", "second"}),
    ],
)
def test_the_pass_stops_after_the_last_layer(layers, run):
    module, names = make_tiny(), []
    for name, child in module.named_children():
        child.register_forward_hook(lambda *_, name=name: names.append(name))
    transformer(module, layers).fit(IMAGES)
    assert set(names) == run


def test_layer4_of_a_resnet_never_runs(resnet):
    resnet, n_runs = copy.deepcopy(resnet), {"layer3": 0, "layer4": 0}

    def count(name):
        n_runs[name] += 1

    for name in n_runs:
        child = resnet.get_submodule(name)
        child.register_forward_pre_hook(lambda *_, name=name: count(name))
    transformer(resnet, ("layer2", "layer3")).fit_transform(IMAGES)
    assert n_runs["layer3"] > 0
    assert n_runs["layer4"] == 0


def test_no_hook_is_left_after_a_pass():
    features = random_resnet().fit(IMAGES)
    features.transform(IMAGES)
    assert n_hooks(features._network.module) == 0


def test_a_hook_that_an_interrupt_left_behind_does_nothing(monkeypatch):
    module, batch = make_tiny(), torch.zeros(1, 3, 8, 8)
    expected = read_layers(module, ["first", "second"], batch)
    register = nn.Module.register_forward_hook

    def interrupted(self, hook):
        register(self, hook)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "register_forward_hook", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_layers(module, ["first"], batch)
    found = read_layers(module, ["first", "second"], batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_hook_is_left_after_a_failure():
    module = make_tiny()
    with pytest.raises(RuntimeError):
        read_layers(module, ["first", "second"], torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match=r"never calls the layers \['unused'\]"):
        read_layers(module, ["first", "unused"], torch.zeros(1, 3, 8, 8))
    assert n_hooks(module) == 0


def test_layers_without_maps_are_named():
    with pytest.raises(ValueError, match=r"'head' returned \(2, 2\).*expected a map"):
        transformer(make_tiny(), ("first", "head")).fit(IMAGES)


def test_the_first_map_of_several_outputs_is_used():
    of_pair, of_second = (
        transformer(make_tiny(), (layer,)).fit_transform(IMAGES)
        for layer in ("pair", "second")
    )
    assert_array_equal(of_pair, of_second)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, clone], ids=["copy", "clone"])
def test_copies_are_independent(duplicate):
    features = random_resnet()
    expected = features.fit_transform(IMAGES)
    other = duplicate(features).fit(255 - IMAGES)
    other.transform(255 - IMAGES)
    assert_array_equal(features.transform(IMAGES), expected)


@pytest.mark.parametrize("backbone", ["resnet18", "module"])
def test_pickled_features_give_the_same(backbone):
    named = backbone == "resnet18"
    features = (
        random_resnet() if named else transformer(make_tiny(), ("first", "second"))
    )
    expected = features.fit_transform(IMAGES)
    pickled = pickle.dumps(features)
    # The pickle contains a network given as a module, but not one given by name.
    assert len(pickled) < 20_000
    assert_array_equal(pickle.loads(pickled).transform(IMAGES), expected)


def test_a_given_module_is_not_changed():
    module = make_tiny().train()
    module.first.weight.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    transformer(module, ("first", "second")).fit_transform(IMAGES)
    assert all(part.training for part in module.modules())
    assert not module.first.weight.requires_grad
    assert module.second.weight.requires_grad
    assert next(module.parameters()).device == torch.device("cpu")
    assert n_hooks(module) == 0
    for key, value in module.state_dict().items():
        assert_array_equal(value, before[key])


def test_training_a_module_later_does_not_change_fitted_features():
    module = make_tiny()
    features = transformer(module, ("first",))
    expected = features.fit_transform(IMAGES)
    with torch.no_grad():
        module.first.weight.zero_()
    assert_array_equal(features.transform(IMAGES), expected)


def test_the_global_random_state_is_not_changed():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    _build_cached.cache_clear()
    random_resnet().fit(IMAGES)
    assert_array_equal(torch.rand(4), expected)


# The cache


def test_clones_share_one_network():
    features = random_resnet().fit(IMAGES)
    other = clone(features).set_params(layers=("layer2",), batch_size=1).fit(IMAGES)
    assert other._network.module is features._network.module
    unpickled = pickle.loads(pickle.dumps(features))
    unpickled.transform(IMAGES)
    assert unpickled._network.module is features._network.module


def test_random_weights_depend_only_on_random_state():
    first, same, other = (
        random_resnet(random_state=seed).fit_transform(IMAGES) for seed in (0, 0, 1)
    )
    assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_a_weights_file_that_changes_is_read_again(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    trunk = without(state, "layer2", "layer3", "layer4", "fc")
    save_file(trunk, path)
    features = transformer(layers=("layer1",), weights=path)
    before = features.fit_transform(IMAGES)
    save_file({key: value * 2 for key, value in trunk.items()}, path)
    assert not np.allclose(features.fit_transform(IMAGES), before)


# Weights


def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


WEIGHTS = {
    "whole.safetensors": lambda s: s,
    "whole.pth": lambda s: s,
    "trunk.safetensors": lambda s: without(s, "fc"),
    "up to layer2.safetensors": lambda s: without(s, "layer3", "layer4", "fc"),
    "up to layer2.pth": lambda s: without(s, "layer3", "layer4", "fc"),
    "no counters.pth": lambda s: {k: v for k, v in s.items() if "tracked" not in k},
    "checkpoint.pth": lambda s: {"state_dict": s, "epoch": 3},
    "model.pth": lambda s: {"model": s},
    "model_state_dict.pth": lambda s: {
        "model_state_dict": s,
        "optimizer_state_dict": {"state": {0: {"step": torch.ones(())}}},
        "epoch": 3,
    },
    "net.pth": lambda s: {"net": s},
    "nested.pth": lambda s: {"checkpoint": {"weights": s}},
    "lightning.pth": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "part of a module.pth": lambda s: {
        **{f"encoder.net.{k}": v for k, v in s.items()},
        "decoder.weight": torch.zeros(3, 3),
    },
    "parallel model_state_dict.pth": lambda s: {"model_state_dict": prefixed(s)},
    "compiled.safetensors": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "parallel.pth": lambda s: prefixed(s),
    "parallel checkpoint.pth": lambda s: {"state_dict": prefixed(s)},
    "head of 7 classes.pth": lambda s: {**s, "fc.weight": torch.zeros(7, 512)},
    "foreign head.pth": lambda s: {
        **without(s, "fc"),
        "head.weight": torch.zeros(7, 512),
        "classifier.layers.0.bias": torch.zeros(7),
    },
    "doubles.pth": lambda s: {
        k: v.double() if v.is_floating_point() else v for k, v in s.items()
    },
}


def save_weights(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_files_of_all_kinds(name, state, expected, tmp_path):
    path = tmp_path / name
    save_weights(WEIGHTS[name](state), path)
    found = transformer(weights=path).fit_transform(IMAGES)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(transformer(weights=str(path)).fit_transform(IMAGES), found)


def make_dangerous(path, _):
    torch.save({"conv1.weight": Dangerous(str(path.parent / "written"))}, path)


def make_foreign(name):
    def make(path, timm):
        foreign = timm.create_model(name).state_dict()
        save_weights(without(foreign, "layer3", "layer4", "fc"), path)

    return make


WRONG_WEIGHTS = {
    "resnet34.safetensors": (make_foreign("resnet34"), r"layer1\.2.*another network\?"),
    "resnet50.safetensors": (make_foreign("resnet50"), r"layer1\.0.*another network\?"),
    "without conv1.pth": (
        lambda path, timm: save_weights(
            without(timm.create_model("resnet18").state_dict(), "conv1", "layer3"), path
        ),
        r"1 parameters are missing in the file.*: conv1\.weight\.",
    ),
    "nothing in common.pth": (
        lambda path, timm: torch.save({"embedding.weight": torch.zeros(3)}, path),
        "no parameter",
    ),
    "no tensors.pth": (
        lambda path, timm: torch.save({"conv1.weight": [1, 2]}, path),
        "contains no state dict",
    ),
    "student and teacher.pth": (
        lambda path, timm: save_weights(
            dict.fromkeys(
                ("student", "teacher"), timm.create_model("resnet18").state_dict()
            ),
            path,
        ),
        "several networks that fit the backbone: student, teacher",
    ),
    "a list.pth": (
        lambda path, timm: torch.save([torch.zeros(3)], path),
        "Could not read|contains no state dict",
    ),
    "empty.pth": (lambda path, timm: torch.save({}, path), "contains no state dict"),
    "text.pth": (lambda path, timm: path.write_text("hello"), "Could not read"),
    "text.safetensors": (
        lambda path, timm: path.write_text("hello"),
        "Could not read",
    ),
    "no bytes.pth": (lambda path, timm: path.write_bytes(b""), "Could not read"),
    "module.pth": (
        lambda path, timm: torch.save(nn.Linear(2, 2), path),
        "Could not read",
    ),
    "dangerous.pth": (make_dangerous, "Could not read"),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_are_refused_by_name(name, timm, tmp_path):
    make, message = WRONG_WEIGHTS[name]
    path = tmp_path / name
    make(path, timm)
    with pytest.raises(ValueError, match=message) as raised:
        transformer(weights=path).fit(IMAGES)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_weights_must_be_a_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights='.*' is not a file"):
        transformer(weights=tmp_path / name).fit(IMAGES)


def test_a_relative_path_counts_from_the_folder_of_the_fit(
    state, tmp_path, monkeypatch
):
    (tmp_path / "fit").mkdir()
    monkeypatch.chdir(tmp_path / "fit")
    save_file(state, "weights.safetensors")
    features = transformer(weights="weights.safetensors")
    expected = features.fit_transform(IMAGES)
    pickled = pickle.dumps(features)
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(pickled)
    assert_array_equal(found.transform(IMAGES), expected)
    assert found.weights == "weights.safetensors"


def test_a_path_that_is_set_after_the_fit_counts(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(state, "old.safetensors")
    features = transformer(weights="old.safetensors")
    expected = features.fit_transform(IMAGES)
    found = pickle.loads(pickle.dumps(features))
    Path("old.safetensors").rename("new.safetensors")
    with pytest.raises(FileNotFoundError, match=r"If it was moved.*features_\.set_par"):
        found.transform(IMAGES)
    found.set_params(weights="new.safetensors")
    assert_array_equal(found.transform(IMAGES), expected)


@pytest.mark.parametrize("weights", ["other.safetensors", "missing", "random", None])
def test_weights_set_after_the_fit_do_not_replace_those_of_the_fit(
    weights, state, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_file(state, "of_fit.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, "other.safetensors")
    features = transformer(weights="of_fit.safetensors")
    expected = features.fit_transform(IMAGES)
    features.set_params(weights=weights)
    assert_array_equal(pickle.loads(pickle.dumps(features)).transform(IMAGES), expected)


def test_other_weights_are_refused_if_the_file_of_the_fit_is_missing(state, tmp_path):
    paths = [tmp_path / "of_fit.safetensors", tmp_path / "other.safetensors"]
    for i, path in enumerate(paths):
        save_file({key: value + i for key, value in state.items()}, path)
    features = transformer(weights=paths[0]).fit(IMAGES).set_params(weights=paths[1])
    found = pickle.loads(pickle.dumps(features))
    paths[0].unlink()
    with pytest.raises(ValueError, match="weights of the network 'resnet18' changed"):
        found.transform(IMAGES)


def test_weights_for_a_module_are_refused():
    with pytest.raises(ValueError, match="weights='random' can only be used"):
        transformer(make_tiny(), ("first",), weights="random").fit(IMAGES)


def test_weights_for_a_network_without_parameters_are_refused(state, tmp_path):
    save_file(state, tmp_path / "resnet18.safetensors")
    features = transformer(
        "gabor", ("fine",), weights=tmp_path / "resnet18.safetensors"
    )
    with pytest.raises(ValueError, match=r"resnet18\.safetensors'.*no parameter"):
        features.fit(IMAGES)


# Names


@pytest.mark.parametrize(
    ("layer", "close"), [("layer22", "layer2"), ("layer2.conv1", r"layer2\.0\.conv1")]
)
def test_an_unknown_layer_is_refused_with_suggestions(layer, close):
    with pytest.raises(
        ValueError, match=rf"no layer '{layer}'\. Did you mean .*'{close}'"
    ):
        random_resnet(layers=("layer1", layer)).fit(IMAGES)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet19", "resnet18"),
        ("wide_resnet50", "wide_resnet50_2"),
        ("embeded", "embedded"),
    ],
)
def test_an_unknown_backbone_is_refused_with_suggestions(name, close, timm):
    message = rf"backbone='{name}' is not a timm model\. Did you mean .*'{close}'"
    with pytest.raises(ValueError, match=message):
        transformer(name, weights="random").fit(IMAGES)


def test_pretrained_weights_that_cannot_be_loaded_are_an_error(timm, monkeypatch):
    def create_model(*args, pretrained, **kwargs):
        assert pretrained
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: nullcontext())
    message = (
        "load pretrained weights for 'resnet26': no route to host.*"
        "pass a local file with weights="
    )
    with pytest.raises(OSError, match=message):
        transformer("resnet26").fit(IMAGES)


@pytest.fixture
def offline(monkeypatch):
    """Make all host names unknown; return the list of hosts that are looked up."""
    asked = []

    def fail(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    _build_cached.cache_clear()
    return asked


def test_without_a_connection_there_are_no_retries(offline):
    message = "weights for 'resnet26': https://.* cannot be reached.*Offline"
    with pytest.raises(OSError, match=message):
        transformer("resnet26").fit(IMAGES)
    assert len(offline) == 1


def test_without_a_connection_weights_come_from_the_cache(
    state, expected, offline, tmp_path, monkeypatch
):
    hub = pytest.importorskip("huggingface_hub")
    save_file(state, tmp_path / "cached.safetensors")

    def find(repository, file):
        assert repository.startswith("timm/resnet18.")
        return str(tmp_path / "cached.safetensors")

    monkeypatch.setattr(hub, "try_to_load_from_cache", find)
    assert_array_equal(transformer("resnet18").fit_transform(IMAGES), expected)
    assert len(offline) == 1


def test_no_network_is_reached_with_a_local_file(state, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    _build_cached.cache_clear()
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    transformer(weights=path).fit(IMAGES)
    random_resnet().fit(IMAGES)
    detector = PatchCoreDetector(transformer("resnet18.tv_in1k", weights=path))
    detector.fit(IMAGES).predict(IMAGES)


# Devices, precision and threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_is_refused_if_there_is_no_gpu(device):
    with pytest.raises(ValueError, match=r"device=.*cuda.*requested, but no CUDA GPU"):
        random_resnet(device=device).fit(IMAGES)


@pytest.mark.parametrize("device", ["nonsense", "cpu:x", ""])
def test_unknown_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"device='{device}' is not a torch device"):
        random_resnet(device=device).fit(IMAGES)


def test_the_meta_device_is_refused():
    with pytest.raises(ValueError, match="device='meta' cannot be used here"):
        random_resnet(device="meta").fit(IMAGES)


def test_default_device():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device(None).type == expected
    assert resolve_device("cpu") == resolve_device(torch.device("cpu"))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_close(precision):
    exact = random_resnet().fit_transform(IMAGES)
    half = random_resnet(precision=precision).fit_transform(IMAGES)
    assert half.dtype == np.float32
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    # bfloat16 keeps 8 bits: each of the ten layers may be off by 1/256.
    assert 0 < error < 0.03


@pytest.mark.parametrize(
    ("available", "chosen"), [(False, "float32"), (True, "float16")]
)
def test_auto_precision_is_float16_if_there_are_units_for_it(
    available, chosen, monkeypatch
):
    monkeypatch.setattr(
        "skpatchcore._utils._device.has_float16_units", lambda device: available
    )
    automatic = random_resnet().fit(IMAGES)
    asked_for = random_resnet(precision=chosen).fit(IMAGES)
    assert automatic._network.dtype == getattr(torch, chosen)
    assert automatic._network.fingerprint == asked_for._network.fingerprint
    found = automatic.transform(IMAGES)
    assert_array_equal(found, asked_for.transform(IMAGES))
    exact = random_resnet(precision="float32").fit(IMAGES)
    same_arithmetic = automatic._network.fingerprint == exact._network.fingerprint
    assert same_arithmetic is not available


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("available", [False, True])
def test_an_explicit_precision_is_always_used(precision, available, monkeypatch):
    monkeypatch.setattr(
        "skpatchcore._utils._device.has_float16_units", lambda device: available
    )
    dtype = choose_dtype(precision, torch.device("cpu"))
    assert dtype == getattr(torch, precision)


@pytest.mark.parametrize("supported", [False, True])
def test_units_of_a_processor_are_found_by_torch(supported, monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "_is_amx_fp16_supported", lambda: supported, raising=False
    )
    assert has_float16_units(torch.device("cpu")) is supported
    monkeypatch.delattr(torch.cpu, "_is_amx_fp16_supported")
    assert not has_float16_units(torch.device("cpu"))
    assert not has_float16_units(torch.device("mps"))


@pytest.mark.parametrize(
    ("capability", "expected"), [((6, 1), False), ((7, 0), True), ((9, 0), True)]
)
def test_units_of_a_gpu_depend_on_its_generation(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_float16_units(torch.device("cuda")) is expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_cast_once_give_the_results_of_autocast(dtype, resnet):
    module = copy.deepcopy(resnet).eval().requires_grad_(False)
    twin = cast_weights(module, dtype)
    assert cast_weights(module, dtype) is twin
    assert twin.conv1.weight.dtype == twin.fc.bias.dtype == dtype
    assert module.conv1.weight.dtype == torch.float32
    # Norms stay in float32, and only the cast weights are copied.
    assert twin.bn1.running_var.data_ptr() == module.bn1.running_var.data_ptr()
    batch = torch.rand(2, 3, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        expected, found = (
            read_layers(net, ["layer1", "layer2"], batch) for net in (module, twin)
        )
    for layer in expected:
        assert torch.equal(found[layer], expected[layer])


def test_weights_that_a_layer_transforms_are_not_cast():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight)

    module = nn.Sequential(Standardized(3, 4, 3), nn.Conv2d(4, 4, 1))
    twin = cast_weights(module, torch.bfloat16)
    assert twin[0].weight is module[0].weight
    assert twin[1].weight.dtype == torch.bfloat16


def test_full_precision_needs_no_twin():
    module = make_tiny()
    assert cast_weights(module, torch.float32) is module


class Loud(nn.Module):
    """Multiplies its input by 100 000, which exceeds the range of float16."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1e5)

    def forward(self, x):
        return self.conv(x)


def test_values_beyond_float16_are_computed_in_float32():
    half, exact = (
        transformer(Loud(), ("conv",), precision=precision).fit_transform(IMAGES)
        for precision in ("float16", "float32")
    )
    assert np.abs(exact).max() > 65504
    assert_array_equal(half, exact)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_all_layers_keep_channels_last(precision):
    features = random_resnet(precision=precision).fit(IMAGES)
    last = []

    def look(_module, args, output):
        last.append(output.is_contiguous(memory_format=torch.channels_last))

    network = features._network
    module = cast_weights(network.module, network.dtype)
    names = ["conv1", "bn1", "maxpool", "layer1.0.conv2", "layer1", "layer2.0.bn1"]
    handles = [module.get_submodule(n).register_forward_hook(look) for n in names]
    try:
        maps = network(torch.rand(2, 3, 32, 32))
    finally:
        for handle in handles:
            handle.remove()
    assert last == [True] * len(names)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


def test_four_threads_predict_the_same_as_one():
    detector = PatchCoreDetector(random_resnet(), random_state=0).fit(IMAGES)
    parts = [np.roll(IMAGES, i, axis=1) for i in range(12)]
    sequential = [detector.score_samples(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        parallel = list(threads.map(detector.score_samples, parts))
    assert_allclose(parallel, sequential, rtol=1e-5)


def test_threads_may_read_different_layers_of_one_network():
    choices = [("layer1",), ("layer2",), ("layer3",), ("layer1", "layer3")] * 3
    fitted = [random_resnet(layers).fit(IMAGES) for layers in choices]
    assert len({id(features._network.module) for features in fitted}) == 1
    sequential = [features.transform(IMAGES) for features in fitted]
    with ThreadPoolExecutor(4) as threads:
        parallel = list(threads.map(lambda f: f.transform(IMAGES), fitted))
    for ours, expected in zip(parallel, sequential, strict=True):
        assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_cuda_gives_the_features_of_the_cpu():
    on_cpu, on_gpu = (
        random_resnet(device=device, precision="float32").fit_transform(IMAGES)
        for device in ("cpu", "cuda")
    )
    # Convolutions may run in TF32, which keeps 10 bits of the fraction.
    error = np.linalg.norm(on_gpu - on_cpu) / np.linalg.norm(on_cpu)
    assert error < 5e-3


@needs_cuda
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_close_on_cuda(precision):
    exact, half = (
        random_resnet(device="cuda", precision=p).fit_transform(IMAGES)
        for p in ("float32", precision)
    )
    assert np.linalg.norm(half - exact) / np.linalg.norm(exact) < 0.03


@needs_cuda
def test_scores_on_cuda_are_those_of_the_cpu():
    scores = [
        PatchCoreDetector(random_resnet(), device=device, random_state=0)
        .fit(IMAGES)
        .score_samples(255 - IMAGES)
        for device in ("cpu", "cuda")
    ]
    assert_allclose(*scores, rtol=0.02)


@needs_cuda
def test_a_given_module_stays_on_its_device():
    module = make_tiny()
    transformer(module, ("first",), device="cuda").fit(IMAGES)
    assert next(module.parameters()).device == torch.device("cpu")


@needs_cuda
def test_random_weights_do_not_change_the_random_state_of_the_gpu():
    torch.cuda.manual_seed(3)
    expected = torch.rand(4, device="cuda").cpu()
    torch.cuda.manual_seed(3)
    _build_cached.cache_clear()
    random_resnet().fit(IMAGES)
    assert_array_equal(torch.rand(4, device="cuda").cpu(), expected)


# Published weights


def test_published_trunk_weights(assets, timm):
    path = assets / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    features = transformer(weights=path, layers=("layer2",), patch_size=1)
    found = features.fit_transform(IMAGES)
    module = timm.create_model("resnet18").eval()
    module.load_state_dict(load_file(path), strict=False)
    mean, std = (
        np.array(values, np.float32)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    batch = ((IMAGES / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        x = module.act1(module.bn1(module.conv1(torch.from_numpy(batch))))
        expected = module.layer2(module.layer1(module.maxpool(x)))
    assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_a_layer_after_the_trunk_is_refused(assets):
    path = assets / "weights" / "resnet18_tv_in1k_trunk.safetensors"
    with pytest.raises(ValueError, match=r"\['layer2', 'fc'\].*: fc\.bias, fc\.weight"):
        transformer(weights=path, layers=("layer2", "fc")).fit(IMAGES)


def test_another_published_network(assets):
    path = assets / "weights" / "mobilenetv2_100_tv_in1k.safetensors"
    features = transformer("mobilenetv2_100", ("blocks.1", "blocks.2"), weights=path)
    assert features.fit_transform(IMAGES).shape == (3, 8, 8, 24 + 32)
    with pytest.raises(ValueError, match="another network"):
        transformer("resnet18", weights=path).fit(IMAGES)


def test_a_vision_transformer(assets):
    path = assets / "weights" / "vit_tiny_patch16_224_augreg_in21k_ft_in1k.safetensors"
    features = transformer(
        "vit_tiny_patch16_224", ("blocks.3",), weights=path, image_size=224
    )
    maps = features.fit_transform(IMAGES[:1])
    assert maps.shape == (1, 14, 14, 192)
