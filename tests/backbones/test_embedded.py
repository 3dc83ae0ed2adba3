"""The embedded backbone: its weights, layers and filters."""

import hashlib
import socket
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore._backbones._gabor import GaborScales
from skpatchcore._backbones.embedded import _network
from skpatchcore._backbones.embedded._byte_planes import join_bytes, split_bytes
from skpatchcore._backbones.embedded._filters import ColorsAndEnergies
from skpatchcore.datasets import make_surface_defects
from skpatchcore.persistence import load, save

# The SHA-256 of the file that docs/embedded_backbone/model_card.md describes.
WEIGHTS_SHA256 = "ad01ed0184444c8126b66263b57abcedffdaf3e039c85237a92106c047a51d19"
LAYERS = ("layer2", "layer3")


def _load(**params):
    defaults = dict(weights=None, seed=0, device="cpu", precision="float32")
    return load_backbone("embedded", LAYERS, **{**defaults, **params})


def _images(n, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def test_weights_are_those_of_the_model_card():
    contents = _network.WEIGHTS_PATH.read_bytes()
    assert len(contents) <= 6_000_000
    trained = safetensors.torch.save(join_bytes(safetensors.torch.load(contents)))
    assert hashlib.sha256(trained).hexdigest() == WEIGHTS_SHA256


def test_weights_take_less_of_an_archive_than_unpacked_ones():
    contents = _network.WEIGHTS_PATH.read_bytes()
    trained = safetensors.torch.save(join_bytes(safetensors.torch.load(contents)))
    assert len(zlib.compress(contents)) < 0.94 * len(zlib.compress(trained))


def test_joined_bytes_are_the_split_weights():
    bits = torch.arange(2**16).to(torch.uint16).view(torch.float16)
    weights = {"all": bits.reshape(2, 8, -1), "one": bits[5]}
    joined = join_bytes(split_bytes(weights))
    for name, values in weights.items():
        assert joined[name].shape == values.shape
        assert torch.equal(joined[name].view(torch.int16), values.view(torch.int16))


def test_no_network_and_no_other_file_is_needed(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    features = PatchFeatureTransformer("embedded", image_size=64).fit(_images(2))
    assert features.transform(_images(2)).shape == (2, 8, 8, 501)
    assert not any(tmp_path.iterdir())


def test_layers_have_strides_of_8_and_16_pixels():
    fine, coarse = _load()(torch.rand(1, 3, 96, 64))
    assert fine.shape == (1, 245, 12, 8)
    assert coarse.shape == (1, 256, 6, 4)


def test_the_pass_stops_before_stage_3_if_only_layer2_is_read():
    network = _network.load_embedded()
    backbone = load_backbone(
        network, ("layer2",), weights=None, seed=0, device="cpu", precision="float32"
    )
    # A third stage that fails shows whether it runs.
    backbone.module.trunk.stage3 = None
    (fine,) = backbone(torch.rand(1, 3, 64, 64))
    assert fine.shape == (1, 245, 8, 8)


def test_default_layers_of_the_transformer_are_those_of_the_backbone():
    assert PatchFeatureTransformer("embedded").layers == LAYERS


def test_random_weights_follow_the_seed():
    first, again, other = (_load(weights="random", seed=s).module for s in (0, 0, 1))
    weight = first.trunk.stem[0].weight
    assert torch.equal(weight, again.trunk.stem[0].weight)
    assert not torch.equal(weight, other.trunk.stem[0].weight)
    assert not torch.equal(weight, _load().module.trunk.stem[0].weight)


def test_weights_of_a_file_replace_those_of_the_package(tmp_path):
    network = _network.random_embedded(3)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    loaded = _load(weights=tmp_path / "mine.safetensors").module
    expected = network.trunk.stem[0].weight
    assert torch.equal(loaded.trunk.stem[0].weight, expected)


def test_vectors_have_a_fixed_length_for_each_of_their_parts():
    fine, coarse = _load()(torch.rand(2, 3, 64, 64))
    ones = torch.ones(2, 8, 8)
    learned, filters, shallow = fine.split([128, 69, 48], dim=1)
    torch.testing.assert_close(learned.norm(dim=1), ones)
    torch.testing.assert_close(filters.norm(dim=1), 0.5**0.5 * ones)
    torch.testing.assert_close(shallow.norm(dim=1), 0.5**0.5 * ones)
    torch.testing.assert_close(coarse.norm(dim=1), 0.6 * torch.ones(2, 4, 4))


def test_weights_of_other_layers_are_learned():
    features = PatchFeatureTransformer(
        "embedded", ("filters", "trunk.stage3"), image_size=64
    ).fit(_images(3))
    assert features.layer_weights_[1] != 1


def test_only_the_network_weighs_its_own_layers(monkeypatch):
    images, seen = _images(5), []
    forward = _network.EmbeddedBackbone.forward

    def count(network, batch):
        seen.append(len(batch))
        return forward(network, batch)

    monkeypatch.setattr(_network.EmbeddedBackbone, "forward", count)
    features = PatchFeatureTransformer("embedded", image_size=64).fit(images)
    assert features.layer_weights_ == (1.0, 1.0)
    assert sum(seen) == 1
    features.set_params(layer_weights=[1, 2]).fit(images)
    assert features.layer_weights_ == (1.0, 2.0)


def test_filters_are_those_of_the_gabor_bank_on_halved_images():
    images = torch.rand(2, 3, 64, 48)
    found = ColorsAndEnergies()(images, (8, 6))
    halved = torch.nn.functional.avg_pool2d(images, 2)
    # Colours of the first octave of the bank, and six energies for each.
    expected = GaborScales(range(1), stride=1)(halved)
    expected = torch.nn.functional.adaptive_avg_pool2d(expected, (8, 6))
    torch.testing.assert_close(found[:, 6:27], expected, rtol=1e-4, atol=1e-5)
    # The finest energies use brightness, at every second pixel.
    whole = GaborScales(range(1), stride=1)(images)[:, 3:9, ::2, ::2]
    expected = torch.nn.functional.adaptive_avg_pool2d(whole, (8, 6))
    torch.testing.assert_close(found[:, :6], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 9), (33, 70), (128, 95)])
def test_images_of_any_size_have_layers_that_fit_together(shape):
    fine, coarse = _load()(torch.rand(1, 3, *shape))
    assert fine.shape[-2:] == tuple(-(-size // 8) for size in shape)
    assert coarse.shape[-2:] == tuple(-(-size // 16) for size in shape)
    assert fine.isfinite().all()


def test_detector_survives_saving_and_loading(tmp_path):
    surfaces = make_surface_defects(4, 2, 2, image_size=64, random_state=0)
    features = PatchFeatureTransformer("embedded", image_size=64)
    detector = PatchCoreDetector(features, CoresetSampler(0.1), random_state=0)
    detector.fit(surfaces.data[:4])
    save(detector, tmp_path / "model.skpc")
    assert (tmp_path / "model.skpc").stat().st_size < 1_000_000
    loaded = load(tmp_path / "model.skpc")
    np.testing.assert_array_equal(
        loaded.score_samples(surfaces.data), detector.score_samples(surfaces.data)
    )


def test_finds_defects_of_a_texture_it_was_not_trained_with():
    surfaces = make_surface_defects(16, 8, 16, texture="wood", random_state=0)
    features = PatchFeatureTransformer("embedded", image_size=128)
    detector = PatchCoreDetector(features, CoresetSampler(0.05), random_state=0)
    detector.fit(surfaces.data[:16])
    scores = detector.score_samples(surfaces.data[16:])
    defective = surfaces.target[16:] == -1
    assert np.median(scores[defective]) < scores[~defective].min()
