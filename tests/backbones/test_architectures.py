"""Networks of all families return maps that are aligned with the image."""

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore._backbones._hooks import read_layers
from skpatchcore._backbones._layers import resolve_layers
from skpatchcore._backbones._layouts import Probe
from skpatchcore._backbones._network_input import fit_to_patches
from skpatchcore._backbones._probes import learn_layouts

# One small network per family: its name, the levels to read, and the image size.
SMALL = {
    "convnext_atto": ((1, 2), (64, 96)),
    "cspresnet50": ((2, 3), (64, 96)),
    "davit_tiny": ((1, 2), (96, 128)),
    "deit_tiny_distilled_patch16_224": ((3, 6), (96, 128)),
    "densenet121": ((2, 3), (64, 96)),
    "dla34": ((3, 4), (64, 96)),
    "edgenext_xx_small": ((1, 2), (64, 96)),
    "efficientnet_b0": ((2, 3), (64, 96)),
    "efficientvit_b0": ((1, 2), (64, 96)),
    "eva02_tiny_patch14_224": ((3, 6), (98, 140)),
    "fastvit_t8": ((1, 2), (64, 96)),
    "focalnet_tiny_srf": ((1, 2), (64, 96)),
    "ghostnet_050": ((2, 3), (64, 96)),
    "hgnet_tiny": ((1, 2), (64, 96)),
    "hrnet_w18_small": ((1, 2), (64, 96)),
    "inception_next_tiny": ((1, 2), (64, 96)),
    "mambaout_femto": ((1, 2), (64, 96)),
    "mobilenetv2_100": ((2, 3), (64, 96)),
    "mobilenetv3_small_050": ((2, 3), (64, 96)),
    "mobileone_s0": ((2, 3), (64, 96)),
    "mobilevit_xxs": ((1, 2), (64, 96)),
    "mvitv2_tiny": ((0, 1), (64, 96)),
    "nextvit_small": ((1, 2), (64, 96)),
    "nf_resnet26": ((2, 3), (64, 96)),
    "poolformer_s12": ((1, 2), (64, 96)),
    "pvt_v2_b0": ((1, 2), (64, 96)),
    "regnetx_002": ((2, 3), (64, 96)),
    "repvit_m0_9": ((1, 2), (64, 96)),
    "resnet18": ((2, 3), (64, 96)),
    "resnetv2_50x1_bit": ((2, 3), (64, 96)),
    "rexnet_100": ((2, 3), (64, 96)),
    "selecsls42": ((1, 2), (64, 96)),
    "sequencer2d_s": ((0, 1), (64, 96)),
    "starnet_s1": ((1, 2), (64, 96)),
    "swin_tiny_patch4_window7_224": ((1, 2), (112, 168)),
    "swinv2_cr_tiny_224": ((1, 2), (112, 168)),
    "tiny_vit_5m_224": ((1, 2), (112, 168)),
    "vit_small_patch14_reg4_dinov2": ((3, 6), (98, 140)),
    "vit_small_patch16_dinov3": ((3, 6), (96, 128)),
    "vit_tiny_patch16_224": ((3, 6), (96, 128)),
    "vit_tiny_r_s16_p8_224": ((3, 6), (96, 160)),
    "vovnet39a": ((2, 3), (64, 96)),
    "xcit_nano_12_p16_224": ((3, 6), (96, 128)),
}
# The modules of these levels, if timm declares other names.
MODULES = {
    "hrnet_w18_small": ("incre_modules.0", "incre_modules.1"),
    "mvitv2_tiny": ("stages.0", "stages.1"),
}
# Networks for images of one size.
FIXED = {
    "beit_base_patch16_224": (1, 3),
    "cait_xxs24_224": (1, 3),
    "convit_tiny": (1, 3),
    "gmlp_ti16_224": (1, 3),
    "levit_128s": (0, 1),
    "pit_ti_224": (0, 1),
    "resmlp_12_224": (1, 3),
    "tnt_s_legacy_patch16_224": (1, 3),
    "volo_d1_224": (0, 1),
}
# The names of Amazon's patchcore-inspection (src/patchcore/backbones.py, commit
# 8a7748c) and what timm calls these networks today.
AMAZON = {
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext101": "resnext101_32x8d.tv_in1k",
    "resnet200": "resnet200",
    "resnest50": "resnest50d_4s2x40d.in1k",
    "resnetv2_50_bit": "resnetv2_50x3_bit.goog_in21k_ft_in1k",
    "resnetv2_50_21k": "resnetv2_50x3_bit.goog_in21k",
    "resnetv2_101_bit": "resnetv2_101x3_bit.goog_in21k_ft_in1k",
    "resnetv2_101_21k": "resnetv2_101x3_bit.goog_in21k",
    "resnetv2_152_bit": "resnetv2_152x4_bit.goog_in21k_ft_in1k",
    "resnetv2_152_21k": "resnetv2_152x4_bit.goog_in21k",
    "resnetv2_152_384": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    "resnetv2_101": "resnetv2_101.a1h_in1k",
    "vgg11": "vgg11.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
    "vgg19_bn": "vgg19_bn.tv_in1k",
    "wideresnet50": "wide_resnet50_2.tv_in1k",
    "wideresnet101": "wide_resnet101_2.tv_in1k",
    "mnasnet_100": "mnasnet_100.rmsp_in1k",
    "mnasnet_a1": "semnasnet_100.rmsp_in1k",
    "mnasnet_b1": "mnasnet_100.rmsp_in1k",
    "densenet121": "densenet121.ra_in1k",
    "densenet201": "densenet201.tv_in1k",
    "inception_v4": "inception_v4.tf_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "vit_r50": "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "vit_deit_base": "deit_base_patch16_224.fb_in1k",
    "vit_deit_distilled": "deit_base_distilled_patch16_224.fb_in1k",
    "vit_swin_base": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "vit_swin_large": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.ns_jft_in1k",
    "efficientnet_b5": "tf_efficientnet_b5.ns_jft_in1k",
    "efficientnet_b3": "tf_efficientnet_b3.ns_jft_in1k",
    "efficientnet_b1": "tf_efficientnet_b1.ns_jft_in1k",
    "efficientnetv2_m": "tf_efficientnetv2_m.in21k_ft_in1k",
    "efficientnetv2_l": "tf_efficientnetv2_l.in21k_ft_in1k",
    "efficientnet_b3a": "efficientnet_b3.ra2_in1k",
}
N_AMAZON_NAMES = 41
# Not in timm: torchvision has alexnet, `backbone=torchvision.models.alexnet(...)`.
NOT_IN_TIMM = {"alexnet", "bninception"}


def make(name: str, layers, **params) -> PatchFeatureTransformer:
    return PatchFeatureTransformer(
        name, layers, weights="random", random_state=0, image_size=None, **params
    )


def corner_marks(size) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey image, and four with a mark of noise in a corner each."""
    height, width = size
    h, w = height // 4, width // 4
    rng = np.random.default_rng(0)
    grey = np.full((height, width, 3), 0.5, np.float32)
    marked = np.repeat(grey[None], 4, axis=0)
    for k, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        rows = slice(-h, None) if top else slice(h)
        columns = slice(-w, None) if left else slice(w)
        marked[k, rows, columns] = rng.uniform(size=(h, w, 3))
    return grey, marked


def assert_marks_are_found(features: PatchFeatureTransformer, size) -> None:
    grey, marked = corner_marks(size)
    features.fit([grey])
    maps = features.transform([grey, *marked])
    changes = np.linalg.norm(maps[1:] - maps[0], axis=-1)
    h, w = changes.shape[1:]
    assert abs(h * size[1] / size[0] - w) <= 1.5
    for k, change in enumerate(changes):
        row, column = np.unravel_index(change.argmax(), (h, w))
        assert ((row + 0.5) / h > 0.5, (column + 0.5) / w > 0.5) == divmod(k, 2)


def assert_levels_are_modules(name: str, levels, size) -> None:
    """Compare what timm returns for levels with what hooks read, bit for bit."""
    load = {"weights": "random", "seed": 0, "device": "cpu", "precision": "float32"}
    by_level = load_backbone(name, levels, **load)
    names = MODULES.get(name) or resolve_layers(by_level.module, levels, own=True)
    by_name = load_backbone(name, names, **load)
    assert by_level.layers == levels
    assert by_name.layers == names
    if name != "selecsls42":
        # Its levels run a module without weights that is defined after other modules.
        assert by_level.state_key == by_name.state_key
    batch = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(by_level(batch), by_name(batch), strict=True):
        assert torch.equal(found, expected)


# Tests of one network follow each other, so that it is built once.
@pytest.mark.parametrize("name", SMALL, scope="module")
def test_a_mark_in_a_corner_is_found_there(name):
    layers, size = SMALL[name]
    assert_marks_are_found(make(name, layers), size)


@pytest.mark.parametrize("name", SMALL, scope="module")
def test_levels_are_the_maps_of_their_modules(name):
    assert_levels_are_modules(name, *SMALL[name])


@pytest.mark.parametrize("name", FIXED, scope="module")
def test_levels_are_the_maps_of_their_modules_at_one_size(name):
    assert_levels_are_modules(name, FIXED[name], (224, 224))


@pytest.mark.parametrize("name", FIXED, scope="module")
def test_networks_of_one_size_raise_an_error_for_other_sizes(name):
    features = make(name, FIXED[name])
    assert_marks_are_found(features, (224, 224))
    with pytest.raises(ValueError, match=r"224, 224\)|224 pixels|224 x 224|one size"):
        features.fit([np.zeros((160, 160, 3), np.uint8)])


def test_errors_that_size_does_not_explain_are_not_changed():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    features = PatchFeatureTransformer(nn.Sequential(Broken()), ("0",), image_size=32)
    with pytest.raises(RuntimeError, match=r"^out of order"):
        features.fit([np.zeros((64, 64, 3), np.uint8)])


def test_networks_that_mix_all_patches_give_maps():
    features = make("mixer_s16_224", (1,))
    images = np.zeros((1, 224, 224, 3), np.uint8)
    assert features.fit_transform(images).shape == (1, 14, 14, 512)


def test_hiera_works_with_ints():
    """Its tokens are grouped by windows, and timm puts them in order."""
    features = make("hiera_tiny_224", (0, 1))
    assert_marks_are_found(features, (224, 224))
    assert features.grid_shape_ == (56, 56)


@pytest.mark.parametrize("layers", [("blocks.2",), ("blocks.2", 2)])
def test_hiera_is_refused_by_module_names(layers):
    with pytest.raises(ValueError, match=r"numbers as layers.*layers=\(1, 2\)"):
        make("hiera_tiny_224", layers).fit([np.zeros((224, 224, 3), np.uint8)])


def test_the_table_of_old_names_is_complete():
    assert len(AMAZON.keys() | NOT_IN_TIMM) == N_AMAZON_NAMES


@pytest.mark.parametrize("name", sorted(set(AMAZON.values())))
def test_networks_of_other_names_give_maps(name):
    """Run without weights and arithmetic, on torch's device for shapes."""
    assert name in timm.list_models() + timm.list_pretrained()
    with torch.device("meta"):
        module = timm.create_model(name).eval()
        batch = torch.zeros(2, 3, 224, 224)
    layers = resolve_layers(module, (1, 2), own=True)
    layouts = learn_layouts(module, layers, (224, 224))
    outputs = read_layers(module, layers, batch)
    for layer in layers:
        found = layouts[layer].arrange(Probe(2, (224, 224), outputs[layer]))
        assert found.ndim == 4
        assert found.shape[2] == found.shape[3] <= 112


def test_networks_of_torchvision_work_as_modules():
    alexnet = pytest.importorskip("torchvision.models").alexnet()
    features = PatchFeatureTransformer(alexnet, ("features.5", "features.12"))
    images = np.zeros((1, 96, 128, 3), np.uint8)
    features.set_params(image_size=None)
    assert features.fit_transform(images).shape == (1, 5, 7, 192 + 256)


# Levels and blocks.


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ((0, 3), ("blocks.0", "blocks.3")),
        ((-1,), ("blocks.11",)),
        (("blocks.6", 2), ("blocks.6", "blocks.2")),
        ((np.int64(4),), ("blocks.4",)),
        (("norm",), ("norm",)),
    ],
)
def test_ints_are_blocks_of_a_vision_transformer(layers, names):
    module = timm.create_model("vit_tiny_patch16_224")
    assert resolve_layers(module, layers, own=True) == names


def test_ints_are_levels_of_timm():
    module = timm.create_model("resnet18")
    assert resolve_layers(module, (2, -2), own=True) == ("layer2", "layer3")
    module = timm.create_model("swin_tiny_patch4_window7_224")
    assert resolve_layers(module, (1,), own=True) == ("layers.1",)


def test_ints_alone_are_read_by_timm():
    module = timm.create_model("resnet18")
    assert resolve_layers(module, (2, np.int64(-2)), own=False) == (2, 3)
    assert resolve_layers(module, ("layer1", 2), own=False) == ("layer1", "layer2")


def test_levels_come_in_the_order_asked_for():
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    by_level, by_name = (
        make("resnet18", layers, layer_weights=(3, 1, 2)).fit_transform(images)
        for layers in ((3, 1, 3), ("layer3", "layer1", "layer3"))
    )
    assert_array_equal(by_level, by_name)


def test_hooks_of_a_module_are_called_for_ints_too():
    """The network is the user's own, and its pass is more than its levels."""
    module, sizes = timm.create_model("resnet18"), []
    module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    features = PatchFeatureTransformer(module, (1,), image_size=64)
    features.fit([np.zeros((64, 64, 3), np.uint8)])
    assert sizes


def test_wrong_ints_are_refused_with_the_levels_that_exist():
    grey = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"contains 7, but the network has 5 .*: act1"):
        make("resnet18", (7,)).fit(grey)
    with pytest.raises(ValueError, match="does not declare feature levels"):
        PatchFeatureTransformer(nn.Sequential(nn.Conv2d(3, 4, 3)), (0,)).fit(grey)
    for wrong in (1.5, None, True):
        with pytest.raises(ValueError, match=r"names or ints, got"):
            make("resnet18", (wrong,)).fit(grey)


def test_more_layers_of_any_strides():
    features = make("resnet18", (1, 2, 3, 4), layer_weights=(1, 2, 0.5, 1))
    grey = np.zeros((1, 64, 96, 3), np.uint8)
    assert features.fit_transform(grey).shape == (1, 16, 24, 64 + 128 + 256 + 512)


# Tokens.


class Tokens(nn.Module):
    """Returns patches as tokens, after a number of other tokens."""

    def __init__(self, n_prefix, declared=None):
        super().__init__()
        self.n_prefix = n_prefix
        self.blocks = nn.ModuleList([nn.Identity()])
        if declared is not None:
            self.num_prefix_tokens = declared

    def forward(self, x):
        x = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        prefix = x.new_full((len(x), self.n_prefix, x.shape[2]), 99.0)
        return self.blocks[0](torch.cat([prefix, x], dim=1))


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (40, 24), (4, 32), (56, 56)])
@pytest.mark.parametrize(
    ("n_prefix", "declared"), [(0, None), (1, None), (2, 2), (5, 5), (0, 1), (5, None)]
)
def test_tokens_become_rows(size, n_prefix, declared):
    x = torch.randn(2, 3, *size)
    module = Tokens(n_prefix, declared)
    layout = learn_layouts(module, ("blocks.0",), size)["blocks.0"]
    found = layout.arrange(Probe(2, size, module(x)))
    assert_allclose(found, nn.functional.avg_pool2d(x, 4))


def test_images_are_resized_to_whole_patches():
    module = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
    assert fit_to_patches(module, torch.zeros(1, 3, 200, 250)).shape[2:] == (192, 256)
    assert fit_to_patches(module, torch.zeros(1, 3, 5, 16)).shape[2:] == (16, 16)
    batch = torch.zeros(1, 3, 32, 48)
    assert fit_to_patches(module, batch) is batch
    assert fit_to_patches(nn.Identity(), torch.zeros(1, 3, 5, 7)).shape[2:] == (5, 7)


# Vision transformers end to end.


@pytest.mark.parametrize("size", [224, 448, (224, 320)])
def test_scores_of_a_transformer_do_not_depend_on_the_batch(assets, size):
    path = assets / "weights" / "vit_tiny_patch16_224_augreg_in21k_ft_in1k.safetensors"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 64, 90, 3), np.uint8)
    features = PatchFeatureTransformer(
        "vit_tiny_patch16_224", (1, 2), weights=path, image_size=size
    )
    detector = PatchCoreDetector(features, random_state=0).fit(images[:1])
    together = detector.score_samples(images[1:])
    alone = [detector.score_samples(image[None])[0] for image in images[1:]]
    assert_allclose(together, alone, rtol=1e-5)


def test_weights_of_another_grid_are_resampled(assets, tmp_path):
    """Position embeddings of 14 x 14 patches go into a network made for 24 x 24."""
    path = assets / "weights" / "vit_tiny_patch16_224_augreg_in21k_ft_in1k.safetensors"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 224, 224, 3), np.uint8)
    maps = [
        PatchFeatureTransformer(name, (1,), weights=path, image_size=None)
        .fit_transform(images)
        .ravel()
        for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_384")
    ]
    assert np.corrcoef(maps)[0, 1] > 0.99
