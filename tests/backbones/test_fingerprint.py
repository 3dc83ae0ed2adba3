"""Descriptions of networks given as modules: what must count, and what must not."""

import collections
import copy
import functools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones._description import Description
from skpatchcore._backbones._fingerprint import fingerprint_module
from skpatchcore.persistence import ModelFileError, load, save

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


class Scaled(nn.Module):
    """A convolution of a scaled image; subclasses decide where the scale comes from."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3))
            self.conv.bias.zero_()

    def scale(self):
        return 1.0

    def forward(self, x):
        return self.conv(x * self.scale())


def hooked(scale):
    module = Scaled()
    module.conv.register_forward_hook(lambda _module, _args, output: output * scale)
    return module


def pre_hooked(scale):
    module = Scaled()
    module.register_forward_pre_hook(lambda _module, args: (args[0] * scale,))
    return module


def hooked_by_partial(scale):
    module = Scaled()
    module.conv.register_forward_hook(functools.partial(multiply, scale))
    return module


def multiply(scale, _module, _args, output):
    return output * scale


class Buffered(Scaled):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("factor", torch.tensor(scale), persistent=False)

    def scale(self):
        return self.factor


class Holding(Scaled):
    """The scale is in an object that is an attribute of the network."""

    def __init__(self, value, read):
        super().__init__()
        self.value, self.read = value, read

    def scale(self):
        return self.read(self.value)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Forgetful:
    """An object whose pickles lack the scale."""

    def __init__(self, scale):
        self.scale = scale

    def __getstate__(self):
        return {}

    def __deepcopy__(self, memo):
        return Forgetful(self.scale)


class Listing(list):
    pass


Pair = collections.namedtuple("Pair", ["name", "scale"])


def read_key(value):
    return value["scale"]


def read_attribute(value):
    return value.scale


def read_only_item(value):
    return next(iter(value))


def call(value):
    return value()


def identity(value):
    return value


def returning(scale):
    return lambda: scale


def with_default(scale):
    def scaled(scale=scale):
        return scale

    return scaled


def by_class(scale):
    return type("Net", (Scaled,), {"scale": lambda self: scale})()


def by_class_attribute(scale):
    cls = type("Net", (Scaled,), {"factor": scale, "scale": lambda self: self.factor})
    return cls()


def by_instance_method(scale):
    module = Scaled()
    module.scale = lambda: scale
    return module


def in_interpreter(template):
    """Return networks of a class that is executed as text, with the scale inserted."""

    def make(scale):
        names = {"__name__": "__main__", "Scaled": Scaled, "types": types}
        exec(textwrap.dedent(template.replace("SCALE", str(scale))), names)
        return names["Net"]()

    return make


REDEFINED = """
    class Net(Scaled):
        def scale(self):
            return SCALE
"""
GLOBAL = """
    factor = SCALE
    class Net(Scaled):
        def scale(self):
            return factor
"""
GLOBAL_IN_HELPER = """
    factors = {"a": SCALE}
    def helper():
        return [factors["a"] for _ in range(1)][0]
    class Net(Scaled):
        def scale(self):
            return helper()
"""
GLOBAL_MODULE = """
    config = types.ModuleType("config_of_mine")
    config.factor = SCALE
    class Net(Scaled):
        def scale(self):
            return config.factor
"""
NETWORKS = {
    "hook": hooked,
    "pre-hook": pre_hooked,
    "hook that is a partial": hooked_by_partial,
    "non-persistent buffer": Buffered,
    "dict": lambda s: Holding({"scale": s}, read_key),
    "nested dict": lambda s: Holding(
        [{"a": {"scale": s}}], lambda v: v[0]["a"]["scale"]
    ),
    "ordered dict": lambda s: Holding(collections.OrderedDict(scale=s), read_key),
    "set": lambda s: Holding({s}, read_only_item),
    "frozenset": lambda s: Holding(frozenset([s]), read_only_item),
    "deque": lambda s: Holding(collections.deque([s]), read_only_item),
    "list of a class": lambda s: Holding(Listing([s]), read_only_item),
    "named tuple": lambda s: Holding(Pair("a", s), read_attribute),
    "namespace": lambda s: Holding(types.SimpleNamespace(scale=s), read_attribute),
    "slots": lambda s: Holding(Slotted(s), read_attribute),
    "left out of pickles": lambda s: Holding(Forgetful(s), read_attribute),
    "partial": lambda s: Holding(functools.partial(identity, s), call),
    "closure": lambda s: Holding(returning(s), call),
    "default": lambda s: Holding(with_default(s), call),
    "bound method": lambda s: Holding({"scale": s}.copy, lambda v: v()["scale"]),
    "NumPy scalar": lambda s: Holding(np.float32(s), float),
    "NumPy array": lambda s: Holding(np.array([s]), lambda v: float(v[0])),
    "array of objects": lambda s: Holding(np.array([s, "a"], object), read_only_item),
    "tensor": lambda s: Holding(torch.tensor(s), identity),
    "complex": lambda s: Holding(complex(s), lambda v: v.real),
    "bytes": lambda s: Holding(str(s).encode(), float),
    "cached function": lambda s: Holding(functools.lru_cache(returning(s)), call),
    "class": by_class,
    "class attribute": by_class_attribute,
    "method of the instance": by_instance_method,
    "class redefined": in_interpreter(REDEFINED),
    "global": in_interpreter(GLOBAL),
    "global of a helper": in_interpreter(GLOBAL_IN_HELPER),
    "module's attribute": in_interpreter(GLOBAL_MODULE),
}


def features(module, memory=None):
    transformer = PatchFeatureTransformer(
        module, ("conv",), image_size=16, memory=memory, layer_weights=None
    )
    return transformer.fit_transform(IMAGES)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_with_one_difference_share_no_entries(make, tmp_path):
    first, second = make(0.1), make(3.0)
    assert Description(first).key != Description(second).key
    # With a cache, images pass the network in other batches, which round differently.
    for module in (first, second):
        assert_allclose(
            features(module, tmp_path), features(module), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_copies_are_the_same_network(make):
    module = make(0.1)
    description = Description(module)
    assert not description.gaps
    for copied in (copy.copy(module), copy.deepcopy(module), make(0.1)):
        assert Description(copied).key == description.key
        assert Description(copied).state == description.state


@pytest.mark.parametrize(
    "name", ["non-persistent buffer", "dict", "set", "named tuple", "partial", "slots"]
)
def test_pickled_copies_are_the_same_network(name):
    made = {"dict": read_key, "set": read_only_item, "partial": call}
    module = NETWORKS[name](0.1)
    if name in made:
        assert module.read is made[name]
    copied = pickle.loads(pickle.dumps(module))
    assert Description(copied).key == Description(module).key


SCRIPT = """
import collections, functools, types
import torch
from torch import nn
from skpatchcore._backbones._description import Description

SCALES = {"a", "b", "c", "d"}

class Net(nn.Module):
    names = frozenset(["x", "y", "z"])

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 3)
        self.options = {"layers", "depth", 3, None, (1, "b")}
        self.read = functools.partial(sorted, key=lambda name: len(name))
        self.register_forward_hook(lambda _m, _a, out: out)

    def forward(self, x):
        return self.conv(x) if "a" in SCALES and x in {"k", "l", "m"} else x

description = Description(Net())
print(description.key, description.state, description.gaps)
"""


def test_the_same_network_is_the_same_in_every_process():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": ":".join(sys.path),
                "PYTHONHASHSEED": seed,
            },
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert first.endswith(" []\n")


def test_comments_and_positions_of_code_do_not_matter():
    make = in_interpreter(REDEFINED)
    moved = in_interpreter("\n\n# A comment.\n" + textwrap.dedent(REDEFINED))
    assert Description(make(0.1)).key == Description(moved(0.1)).key


def test_code_is_not_part_of_the_state():
    first, second = in_interpreter(REDEFINED)(0.1), in_interpreter(REDEFINED)(3.0)
    assert Description(first).state == Description(second).state


def test_additional_methods_are_not_part_of_the_state():
    first = in_interpreter(REDEFINED)(0.1)
    more = in_interpreter(REDEFINED + "        def more(self):\n            pass\n")(
        0.1
    )
    assert Description(first).state == Description(more).state
    assert Description(first).key != Description(more).key


def test_a_method_added_to_a_class_of_torch_counts(monkeypatch):
    module = nn.Sequential(nn.Conv2d(3, 2, 3))
    before = Description(module).key
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, x: 2 * self[0](x))
    assert Description(module).key != before


def test_a_value_that_code_also_reads_is_part_of_the_state():
    shared = {"scale": 1.0}
    module = Holding(shared, lambda value: shared["scale"])
    before = Description(module).state
    shared["scale"] = 2.0
    assert Description(module).state != before


def test_training_mode_and_gradients_do_not_matter():
    module = Scaled()
    key = Description(module).key
    assert Description(module.eval().requires_grad_(False)).key == key
    assert Description(module.to(memory_format=torch.channels_last)).key == key


def test_cyclic_and_shared_references_are_described():
    module = Scaled()
    module.itself = [module]
    module.tied = module.conv.weight
    description = Description(module)
    assert not description.gaps
    assert Description(copy.deepcopy(module)).key == description.key


def test_a_hook_for_all_modules_counts():
    module = Scaled()
    before = fingerprint_module(module)
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert fingerprint_module(module) != before
    finally:
        handle.remove()
    assert fingerprint_module(module) == before


def test_locks_and_loggers_do_not_matter():
    names = {"lock": threading.Lock(), "logger": __import__("logging").getLogger("a")}
    assert not Description(names).gaps


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((i for i in range(3)), "builtins.generator"),
        (torch.zeros(3, device="meta"), "torch.Tensor: not a dense tensor"),
        (torch.eye(2).to_sparse(), "torch.Tensor: not a dense tensor"),
    ],
)
def test_objects_that_cannot_be_described_are_named(value, kind):
    (gap,) = Description({"a": [value]}).gaps
    assert gap.startswith(f"['a'][0] ({kind}")


class Unruly:
    @property
    def __class__(self):
        raise RuntimeError("not to be looked at")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_objects_that_raise_on_access_are_named():
    (gap,) = Description({"a": Unruly()}).gaps
    assert "RuntimeError: not to be looked at" in gap
    assert any("RecursionError" in gap for gap in Description(nested(2000)).gaps)


class Reading(Scaled):
    """A network whose scale is stored outside the network."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def scale(self):
        with open(self.path) as file:
            return float(file.read())


def test_a_network_with_something_indescribable_is_not_cached(tmp_path):
    module = Scaled()
    module.conv.generate = torch.randn(3).to_sparse()
    transformer = PatchFeatureTransformer(
        module, ("conv",), image_size=16, memory=tmp_path, layer_weights=None
    )
    with pytest.warns(UserWarning, match=r"not cached.*conv\.generate \(torch\.Tensor"):
        found = transformer.fit_transform(IMAGES)
    assert_array_equal(found, features(module))
    assert not list(tmp_path.rglob("output.pkl"))


def test_a_network_that_depends_on_a_file_is_noticed(tmp_path):
    path = tmp_path / "scale.txt"
    path.write_text("0.1")
    features(Reading(path), tmp_path / "cache")
    path.write_text("3.0")
    expected = features(Reading(path))
    with pytest.warns(UserWarning, match="maps of Reading differ from those"):
        found = features(Reading(path), tmp_path / "cache")
    assert_array_equal(found, expected)


class Counting(Scaled):
    """A network that changes with every pass, without an effect on its output."""

    def __init__(self):
        super().__init__()
        self.n_passed = 0

    def scale(self):
        self.n_passed += 1
        return 1.0


def test_a_network_that_changes_as_it_runs_is_found_again(tmp_path):
    module = Counting()
    features(module, tmp_path)
    (folder,) = tmp_path.rglob("maps")
    n_entries = len(list(folder.iterdir()))
    features(module, tmp_path)
    assert len(list(folder.iterdir())) == n_entries


# Pickles and model files ------------------------------------------------------------


def fitted(backbone, layers, weights=None):
    transformer = PatchFeatureTransformer(
        backbone, layers, weights=weights, image_size=32, random_state=0
    )
    return transformer.fit(IMAGES)


def save_weights(path, seed):
    import timm

    torch.manual_seed(seed)
    torch.save(timm.create_model("resnet18").state_dict(), path)


@pytest.mark.parametrize("copied_first", [False, True])
def test_a_pickle_notices_that_its_weights_file_was_replaced(tmp_path, copied_first):
    path = tmp_path / "weights.pth"
    save_weights(path, 0)
    stamp = path.stat()
    transformer = fitted("resnet18", ("layer1",), path)
    expected = transformer.transform(IMAGES)
    stored = pickle.dumps(transformer)
    if copied_first:
        # A pickle of an unpickled estimator whose network was never built.
        stored = pickle.dumps(pickle.loads(stored))
    assert_array_equal(pickle.loads(stored).transform(IMAGES), expected)
    other = tmp_path / "other.pth"
    save_weights(other, 1)
    # The time stamp does not show the change.
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, path)
    with pytest.raises(ValueError, match="network 'resnet18' changed after"):
        pickle.loads(stored).transform(IMAGES)
    assert_array_equal(transformer.transform(IMAGES), expected)


def test_a_pickle_needs_only_the_weights_of_the_layers_read(tmp_path):
    path = tmp_path / "weights.pth"
    save_weights(path, 0)
    transformer = fitted("resnet18", ("layer1",), path)
    expected = transformer.transform(IMAGES)
    stored = pickle.dumps(transformer)
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("layer4")}, path)
    assert_array_equal(pickle.loads(stored).transform(IMAGES), expected)


def test_a_copy_notices_that_a_module_was_changed_after_the_fit():
    module = Buffered(0.1)
    transformer = fitted(module, ("conv",))
    unchanged = copy.deepcopy(transformer)
    assert_array_equal(unchanged.transform(IMAGES), transformer.transform(IMAGES))
    module.factor.fill_(3.0)
    with pytest.raises(ValueError, match=r"state .* of the network 'Buffered' changed"):
        copy.deepcopy(transformer).transform(IMAGES)


def test_a_pickle_of_a_network_that_changes_as_it_runs_works():
    transformer = fitted(Counting(), ("conv",))
    expected = transformer.transform(IMAGES)
    found = pickle.loads(pickle.dumps(transformer)).transform(IMAGES)
    assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "name", ["hook", "non-persistent buffer", "dict", "set", "namespace", "closure"]
)
def test_a_model_file_refuses_another_module(name, tmp_path):
    make = NETWORKS[name]
    features = PatchFeatureTransformer(make(0.1), ("conv",), image_size=16)
    detector = PatchCoreDetector(features, random_state=0).fit(IMAGES)
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc", backbone=make(0.1))
    assert_array_equal(loaded.score_samples(IMAGES), detector.score_samples(IMAGES))
    with pytest.raises(ModelFileError, match="module with other settings or hooks"):
        load(tmp_path / "model.skpc", backbone=make(3.0))
