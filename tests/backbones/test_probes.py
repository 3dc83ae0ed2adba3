"""Probes find the layouts of a network without changing it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from skpatchcore import PatchFeatureTransformer
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore._backbones._layouts import Probe
from skpatchcore._backbones._probes import learn_layouts
from skpatchcore._features._batch_limit import BatchLimit
from skpatchcore._features._extraction import iter_layer_maps

# 32 rows, 33 columns, and the same number of channels as one of the two.
SIZE = (256, 264)
SHAPES_ONLY = torch.device("meta")


class Counting(nn.Module):
    """Stores its input in all ways that a module can."""

    devices: tuple = ()

    def __init__(self, n_channels=33):
        super().__init__()
        self.conv = nn.Conv2d(3, n_channels, 8, stride=8)
        self.register_buffer("n_runs", torch.zeros(()))
        self.scale = torch.ones(n_channels, 1, 1)
        self.last = None

    def forward(self, x):
        type(self).devices += (x.device,)
        self.n_runs += 1
        self.last = x
        noise = torch.rand(()) + torch.rand_like(x)
        return self.conv(x + 0 * noise) * self.scale


class NeedsNumbers(Counting):
    def forward(self, x):
        return super().forward(x) if float(x.mean()) < 9 else x


class Recurrent(Counting):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(33, 33)

    def forward(self, x):
        x = super().forward(x)
        return x + self.lstm(x.flatten(2).permute(0, 2, 1))[0].mean()


class OneSize(Counting):
    """Accepts only images of 64 x 64 pixels, without declaring it."""

    def forward(self, x):
        assert x.shape[2:] == (64, 64)
        return super().forward(x)


class ImagesOnly(Counting):
    """Refuses blank images."""

    def forward(self, x):
        if x.device != SHAPES_ONLY and bool((x[:, :, 1:] == x[:, :, :-1]).all()):
            raise RuntimeError("blank")
        return super().forward(x).contiguous() if float(x.max()) else x


@pytest.fixture(autouse=True)
def _forget():
    Counting.devices = ()
    yield
    for kind in (NeedsNumbers, Recurrent, OneSize, ImagesOnly):
        kind.devices = ()


@pytest.mark.parametrize("kind", [Counting, NeedsNumbers, Recurrent])
def test_a_probe_does_not_change_the_network(kind):
    module = kind().eval()
    module.conv.train()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    layout = learn_layouts(module, ("",), SIZE)[""]
    assert (layout.channel_axis, layout.n_channels) == (1, 33)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.last is None
    assert module.conv.training
    assert not module.training
    assert not any(part._forward_hooks for part in module.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_no_arithmetic_is_done_if_shapes_are_enough():
    learn_layouts(Counting().eval(), ("conv",), SIZE)
    assert Counting.devices == (SHAPES_ONLY,) * 2


def test_code_that_needs_numbers_runs_with_weights():
    learn_layouts(NeedsNumbers().eval(), ("conv",), SIZE)
    assert NeedsNumbers.devices[-2:] == (torch.device("cpu"),) * 2


def test_recurrent_networks_are_not_run_step_by_step():
    learn_layouts(Recurrent().eval(), ("conv",), SIZE)
    assert SHAPES_ONLY not in Recurrent.devices


def test_a_layer_is_probed_once():
    module = Counting().eval()
    learn_layouts(module, ("conv",), SIZE)
    n_runs = len(Counting.devices)
    learn_layouts(module, ("conv",), (64, 64))
    assert len(Counting.devices) == n_runs


def test_a_network_of_one_size_is_probed_at_the_size_of_the_images():
    layouts = learn_layouts(OneSize().eval(), ("conv",), (64, 64))
    assert layouts["conv"].channel_axis == 1
    assert learn_layouts(OneSize().eval(), ("conv",), (32, 64)) == {}


def make(module, **params):
    return PatchFeatureTransformer(module, ("conv",), image_size=None, **params)


def test_errors_of_a_network_of_one_size_are_kept():
    with pytest.raises(AssertionError):
        make(OneSize()).fit(np.zeros((1, 32, 64, 3), np.uint8))


def test_the_first_images_serve_as_a_probe_if_all_probes_fail():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert make(ImagesOnly()).fit_transform(images).shape == (2, 8, 8, 33)


@pytest.mark.parametrize("n_channels", [32, 33])
@pytest.mark.parametrize("kind", [Counting, NeedsNumbers])
def test_features_have_the_channels_of_the_layer(kind, n_channels):
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    features = make(kind(n_channels)).fit_transform(images)
    assert features.shape == (1, 32, 33, n_channels)


def test_channels_that_change_between_images_are_an_error():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Identity()

        def forward(self, x):
            return self.conv(x if x.shape[3] % 2 == 0 else torch.cat([x, x], dim=1))

    features = make(Changing()).fit(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"'conv' returned \(1, 6, 32, 33\).*3 channels"
    ):
        features.transform(np.zeros((1, 32, 33, 3), np.uint8))


def test_probes_do_not_count_as_memory_of_images():
    load = {"weights": None, "seed": 0, "device": "cpu", "precision": "float32"}
    network = load_backbone(Counting(), ("conv",), **load)
    images = np.zeros((3, 64, 64, 3), np.float32)
    measured = []
    for _ in range(2):
        limit = BatchLimit(32, network.device)
        list(
            iter_layer_maps(
                images, network, image_size=None, crop_size=None, limit=limit
            )
        )
        measured.append(limit((64, 64)))
    assert measured[0] == measured[1]
    assert SHAPES_ONLY in Counting.devices


def test_layouts_found_by_probes_fit_later_images():
    module = Counting().eval()
    layout = learn_layouts(module, ("conv",), SIZE)["conv"]
    batch = torch.rand(1, 3, *SIZE)
    found = layout.arrange(Probe(1, SIZE, module.conv(batch)))
    assert torch.equal(found, module.conv(batch))
