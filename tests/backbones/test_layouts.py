"""The channel axis in the output of a layer, for images of any size."""

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from torch import nn

from skpatchcore import PatchFeatureTransformer
from skpatchcore._backbones._hooks import read_layers
from skpatchcore._backbones._layers import resolve_layers
from skpatchcore._backbones._layouts import Hints, Probe, find_layout
from skpatchcore._backbones._network_input import whole_size
from skpatchcore._backbones._probes import learn_layouts

SIZES = ((224, 336), (448, 560))
# Maps with a stride of 8 have 31 to 34 rows or columns for these sides.
SIDES = (248, 255, 256, 257, 264, 272)


def probes(shape_of, sizes=SIZES):
    """Return probes of a layer whose output for two images is `shape_of(h, w)`."""
    return [Probe(2, size, torch.empty(2, *shape_of(*size))) for size in sizes]


def find(shape_of, sizes=SIZES, **hints):
    return find_layout(probes(shape_of, sizes), Hints(**hints), "x")


class Reader(nn.Module):
    """A layer with 32 channels and a stride of 8 pixels, in a given order of axes."""

    def __init__(self, order=(0, 1, 2, 3)):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 8, stride=8, padding=4)
        self.last = nn.Identity()
        self.order = order

    def forward(self, x):
        return self.last(self.conv(x).permute(self.order))


@pytest.mark.parametrize("height", SIDES)
@pytest.mark.parametrize("width", SIDES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["first", "last"])
def test_channels_are_found_even_if_there_are_as_many_rows(order, height, width):
    module, size = Reader(order), (height, width)
    layout = learn_layouts(module, ("last",), size)["last"]
    batch = torch.rand(1, 3, *size)
    found = layout.arrange(Probe(1, size, module(batch)))
    assert torch.equal(found, module.conv(batch))


def test_features_of_an_image_with_as_many_rows_as_channels():
    features = PatchFeatureTransformer(
        "mobilenetv2_100", ("blocks.2",), weights="random", image_size=(256, 257)
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 256, 257, 3), np.uint8)
    assert features.fit_transform(image).shape == (1, 32, 33, 32)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("mobilenetv2_100", (2,)),
        ("resnet18", (1, 2)),
        ("swin_tiny_patch4_window7_224", (0, 1)),
        ("mvitv2_tiny", ("stages.0",)),
        ("vit_tiny_patch16_224", (0, 2)),
    ],
)
def test_the_number_of_channels_is_the_same_for_all_sizes(name, levels):
    """A sample of the networks in tests/benchmarks/bench_layouts.py."""
    with torch.device("meta"):
        options = {"dynamic_img_size": True} if "patch" in name else {}
        module = timm.create_model(name, **options).eval()
    layers = resolve_layers(module, levels, own=True)
    layouts = learn_layouts(module, layers, (256, 257))
    for size in [(192, 384), (256, 257), (320, 193)]:
        size = whole_size(module, size)
        with torch.device("meta"):
            outputs = read_layers(module, layers, torch.zeros(1, 3, *size))
        for layer in layers:
            found = layouts[layer].arrange(Probe(1, size, outputs[layer]))
            assert found.shape[1] == layouts[layer].n_channels
            down, across = np.divide(size, found.shape[2:])
            # Rows and columns are not swapped, and differ by rounding only.
            assert_allclose(down, across, rtol=0.2)


# Maps.


@pytest.mark.parametrize("c", [1, 28, 42, 56, 70, 300])
def test_channels_are_the_axis_that_stays(c):
    assert find(lambda h, w: (c, h // 8, w // 8)).channel_axis == 1
    assert find(lambda h, w: (h // 8, w // 8, c)).channel_axis == 3


def test_maps_are_square_if_a_network_resizes_all_images():
    assert find(lambda h, w: (64, 7, 7)).channel_axis == 1
    assert find(lambda h, w: (7, 7, 64)).channel_axis == 3
    assert find(lambda h, w: (64, 1, 1)).n_channels == 64


def test_maps_of_a_network_of_one_size_have_its_proportions():
    assert find(lambda h, w: (15, 14, 14), [(224, 224)]).channel_axis == 1
    assert find(lambda h, w: (14, 14, 15), [(224, 224)]).channel_axis == 3
    assert find(lambda h, w: (64, 14, 20), [(224, 320)]).channel_axis == 1
    assert find(lambda h, w: (14, 20, 64), [(224, 320)]).channel_axis == 3


def test_an_ambiguous_axis_is_an_error_that_names_output_fmt():
    with pytest.raises(ValueError, match=r"'x' returned \(2, 14, 14, 14\).*output_fmt"):
        find(lambda h, w: (14, 14, 14), [(224, 224)])
    found = find(lambda h, w: (14, 14, 14), [(224, 224)], channel_axis=3)
    assert found.channel_axis == 3


def test_networks_may_declare_the_channel_axis():
    module = nn.Identity()
    assert Hints.of(module).channel_axis is None
    module.output_fmt = "NHWC"
    assert Hints.of(module).channel_axis == 3
    swin = timm.create_model("swin_tiny_patch4_window7_224")
    assert Hints.of(swin).channel_axis == 3


@pytest.mark.parametrize(
    "shape_of",
    [
        lambda h, w: (7,),
        lambda h, w: (h // 8, w // 8, h * w),
        lambda h, w: (64, h // 8, w // 8, 1),
        lambda h, w: (1000 + h, 8),
    ],
    ids=["vector", "no channels", "five axes", "tokens of no grid"],
)
def test_outputs_that_are_not_maps_are_refused(shape_of):
    with pytest.raises(ValueError, match=r"Layer 'x' returned .*expected a map"):
        find(shape_of)


def test_tokens_before_images_are_refused():
    outputs = [Probe(2, s, torch.empty(s[0] * s[1] // 256, 2, 64)) for s in SIZES]
    with pytest.raises(ValueError, match="expected a map"):
        find_layout(outputs, Hints(), "x")


def test_the_first_map_of_several_outputs_is_read():
    several = [
        Probe(2, probe.size, ["text", torch.empty(2, 5), probe.output])
        for probe in probes(lambda h, w: (9, h // 8, w // 8))
    ]
    assert find_layout(several, Hints()).part == 2


# Tokens.


@pytest.mark.parametrize("stride", [4, 7, 8, 14, 16, 28, 32])
@pytest.mark.parametrize("n_prefix", [0, 1, 2, 4, 5, 10])
def test_tokens_before_patch_tokens_are_counted(stride, n_prefix):
    layout = find(lambda h, w: (n_prefix + (h // stride) * (w // stride), 192))
    assert (layout.n_prefix, layout.channel_axis) == (n_prefix, 2)
    for size in [(stride, 3 * stride), (224, 224), (256, 257), (640, 320)]:
        rows, columns = size[0] // stride, size[1] // stride
        tokens = torch.empty(1, n_prefix + rows * columns, 192)
        found = layout.arrange(Probe(1, size, tokens))
        assert found.shape == (1, 192, rows, columns)


def test_tokens_may_come_last():
    layout = find(lambda h, w: (64, (h // 8) * (w // 8)))
    x = torch.randn(1, 64, 4, 6)
    assert torch.equal(layout.arrange(Probe(1, (32, 48), x.flatten(2))), x)


def test_patches_need_not_be_square():
    layout = find(lambda h, w: ((h // 8) * (w // 16), 64), ratio=(8, 16))
    found = layout.arrange(Probe(1, (64, 64), torch.empty(1, 32, 64)))
    assert found.shape == (1, 64, 8, 4)


def test_tokens_of_a_network_of_one_size():
    layout = find(lambda h, w: (197, 196), [(224, 224)])
    found = layout.arrange(Probe(1, (224, 224), torch.empty(1, 197, 196)))
    assert found.shape == (1, 196, 14, 14)
    layout = find(lambda h, w: (50, 64))
    found = layout.arrange(Probe(1, (90, 120), torch.empty(1, 50, 64)))
    assert found.shape == (1, 64, 7, 7)


# Outputs that differ from those of the probes.


def test_channels_that_change_are_an_error():
    layout = find(lambda h, w: (32, h // 8, w // 8))
    with pytest.raises(ValueError, match=r"\(1, 33, 8, 8\) for images of 64 x 64"):
        layout.arrange(Probe(1, (64, 64), torch.empty(1, 33, 8, 8)), "x")
    with pytest.raises(ValueError, match="32 channels in axis 1 of 4"):
        layout.arrange(Probe(1, (64, 64), torch.empty(1, 32, 8)), "x")


def test_tokens_that_fill_no_grid_are_an_error():
    layout = find(lambda h, w: ((h // 16) * (w // 16), 64))
    with pytest.raises(
        ValueError, match="'x' returned 17 tokens for images of 64 x 64"
    ):
        layout.arrange(Probe(1, (64, 64), torch.empty(1, 17, 64)), "x")
