"""What the embedded backbone is trained with, and that training goes on unchanged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from joblib import parallel_config
from numpy.random import RandomState
from scipy.special import logsumexp

import pack
import train
from skpatchcore import PatchFeatureTransformer
from skpatchcore._backbones.embedded._byte_planes import join_bytes
from skpatchcore._backbones.embedded._network import MEAN, STD, WEIGHTS_PATH
from skpatchcore._backbones.embedded._trunk import Trunk
from skpatchcore.datasets import _textures
from training import export, losses, patterns, trainer, views
from training.images import ImageStore, draw_image, is_scene
from training.scenes import draw_scene, draw_texture

SIZE = 48


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _pairs(n=3, size=32, n_points=6, seed=0):
    images = np.stack([draw_image(0, i, SIZE) for i in range(n)])
    return views.draw_pairs(torch.from_numpy(images), size, n_points, _generator(seed))


# Images ---------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", patterns.PATTERNS, ids=lambda p: p.__name__)
def test_patterns_fill_the_range_of_tones_and_differ(pattern):
    tones = [patterns.stretch(pattern(RandomState(i), SIZE)) for i in range(4)]
    for tone in tones:
        assert tone.shape == (SIZE, SIZE)
        assert tone.dtype == np.float32
        assert tone.min() >= 0
        assert tone.max() <= 1
        assert tone.std() > 0.01
    assert not np.array_equal(tones[0], tones[1])


@pytest.mark.parametrize("draw", [draw_texture, draw_scene])
def test_images_are_colours_in_range(draw):
    for seed in range(20):
        image = draw(RandomState(seed), SIZE)
        assert image.shape == (SIZE, SIZE, 3)
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.std() > 0.005


def test_images_follow_from_seed_and_number_alone():
    # Whatever was drawn before, in whatever thread.
    numbers = [5, 0, 3, 2, 4, 1] * 2
    with ThreadPoolExecutor(3) as pool:
        drawn = list(pool.map(lambda i: draw_image(7, i, SIZE), numbers))
    for number, image in zip(numbers, drawn, strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, draw_image(7, number, SIZE))
    assert not np.array_equal(draw_image(7, 0, SIZE), draw_image(8, 0, SIZE))


def test_no_pattern_is_a_surface_of_the_test_set():
    trained = {pattern.__name__ for pattern in patterns.PATTERNS}
    assert trained.isdisjoint(f"_{name}" for name in _textures.TEXTURES)


def test_store_holds_the_images_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("training.images.SHARD_LENGTH", 4)
    with parallel_config("threading"):
        store = ImageStore(tmp_path, 10, seed=1, size=SIZE, n_jobs=2)
    assert len(store) == 10
    for number, image in zip([9, 0, 4], store[np.array([9, 0, 4])], strict=True):
        np.testing.assert_array_equal(image, draw_image(1, number, SIZE))


def test_store_draws_nothing_again_but_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("training.images.SHARD_LENGTH", 4)
    ImageStore(tmp_path, 8, seed=1, size=SIZE)
    first, second = sorted(tmp_path.iterdir())
    second.unlink()
    stamp = first.stat().st_mtime_ns
    ImageStore(tmp_path, 8, seed=1, size=SIZE)
    assert first.stat().st_mtime_ns == stamp
    assert sorted(tmp_path.iterdir()) == [first, second]


# Views ------------------------------------------------------------------------------


def test_points_of_two_views_show_the_same_place():
    # On a smooth image, what the views show at corresponding points is alike, and
    # is what the image shows at the place.
    v, u = np.mgrid[:SIZE, :SIZE] / SIZE
    tones = [u, v, 0.5 + 0.4 * np.sin(5 * u) * np.cos(4 * v)]
    image = torch.from_numpy(np.rint(255 * np.stack(tones, -1)).astype(np.uint8))
    pairs = views.draw_pairs(image[None].repeat(8, 1, 1, 1), 32, 10, _generator())
    frames = torch.stack([pairs.points[0], pairs.points[1], pairs.places / (SIZE / 2)])
    assert pairs.valid.float().mean() > 0.8
    frames_of = views._draw_frames(8, SIZE, 32, _generator())
    source = image.permute(2, 0, 1)[None].repeat(8, 1, 1, 1).float() / 255
    plain = [views._cut(source, frame, 32) for frame in frames_of]
    shown = [
        torch.nn.functional.grid_sample(x, points[:, None], align_corners=False)[
            :, :, 0
        ]
        for x, points in zip([*plain, source], frames, strict=True)
    ]
    # Places beyond the image's rim are mirrored in views, and left out here.
    inside = (frames[2].abs() < 0.95).all(dim=-1) & pairs.valid
    for view in shown[:2]:
        error = (view - shown[2]).abs().amax(dim=1)
        assert error[inside].max() < 0.03


def test_valid_points_lie_within_both_views():
    pairs = _pairs(n=8, n_points=40)
    inside = (pairs.points.abs() <= 1 - 2 * views.MARGIN + 1e-4).all(dim=-1).all(dim=0)
    assert torch.equal(inside, pairs.valid)
    assert 0 < inside.float().mean() < 1


def test_views_follow_from_the_generator():
    for first, again in zip(_pairs(), _pairs(), strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(_pairs().views, _pairs(seed=1).views)


# Losses -----------------------------------------------------------------------------


def _contrast_by_definition(vectors, negatives, valid, temperature):
    first, second = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines, rows = first @ second.T / temperature, np.flatnonzero(valid)
    terms = []
    for i in rows:
        others = [j for j in rows if negatives[i, j] and j != i]
        terms += [
            logsumexp(one_way[[i, *others]]) - one_way[i]
            for one_way in (cosines[i], cosines[:, i])
        ]
    return np.mean(terms)


def test_contrast_is_info_nce_both_ways():
    rng = RandomState(0)
    vectors = rng.standard_normal((2, 12, 5))
    upper = np.triu(rng.rand(12, 12) < 0.6)
    negatives, valid = upper | upper.T, rng.rand(12) < 0.8
    loss = losses.contrast(*map(torch.from_numpy, (vectors, negatives, valid)), 0.2)
    expected = _contrast_by_definition(vectors, negatives, valid, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_negatives_of_one_image_are_far_points_of_scenes():
    places = torch.tensor([[[0.0, 0], [5, 0], [90, 0]]]).repeat(2, 1, 1)
    negatives = losses.allowed_negatives(places, torch.tensor([False, True]))
    expected = torch.ones(6, 6, dtype=torch.bool)
    # The first image is a texture.
    expected[:3, :3] = False
    for i, j in [(3, 3), (4, 4), (5, 5), (3, 4), (4, 3)]:
        expected[i, j] = False
    assert torch.equal(negatives, expected)


def test_total_loss_is_that_of_its_three_parts():
    pairs, rng = _pairs(n=4), RandomState(1)
    fine = torch.from_numpy(rng.standard_normal((8, 6, 4, 4)))
    coarse = torch.from_numpy(rng.standard_normal((8, 10, 2, 2)))
    scenes = is_scene(torch.arange(4))
    pairs = pairs._replace(points=pairs.points.double())
    loss = losses.total_loss(fine, coarse, pairs, scenes, 0.1)

    def standardized(x):
        flat = x.reshape(-1, x.shape[-1])
        x = (x - flat.mean(0)) / (flat.std(0) + 1e-3)
        return x / np.sqrt(x.shape[-1])

    samples = [
        standardized(losses._sample(layer, pairs.points).numpy())
        for layer in (fine, coarse)
    ]
    negatives = losses.allowed_negatives(pairs.places, scenes).numpy()
    valid = pairs.valid.flatten().numpy()
    whole = standardized(coarse.mean(dim=(2, 3)).reshape(2, 4, -1).numpy())
    expected = (
        _contrast_by_definition(np.concatenate(samples, -1), negatives, valid, 0.1)
        + 0.4 * _contrast_by_definition(samples[0], negatives, valid, 0.1)
        + 0.5 * _contrast_by_definition(whole, ~np.eye(4, dtype=bool), np.ones(4), 0.1)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_samples_are_neighbourhood_means_at_their_points():
    layer = torch.arange(36.0).reshape(1, 1, 6, 6).repeat(2, 1, 1, 1)
    # The centre of the position (row 2, column 3), counted in halves of the side.
    at = torch.tensor([(2 * 3 + 1) / 6 - 1, (2 * 2 + 1) / 6 - 1])
    sample = losses._sample(layer, at.expand(2, 1, 1, 2))
    expected = layer[0, 0, 1:4, 2:5].mean()
    torch.testing.assert_close(sample.flatten(), expected.expand(2))


# Training ---------------------------------------------------------------------------


def test_learning_rate_warms_up_stays_and_goes_down_to_zero():
    rates = [trainer.learning_rate(step, 1000, 0.2) for step in range(1001)]
    peak = trainer.LEARNING_RATE
    assert rates[0] == pytest.approx(peak / trainer.WARM_UP_STEPS)
    assert rates[300] == rates[800] == peak
    assert rates[900] == pytest.approx(peak / 2)
    assert rates[1000] == 0


def test_temperature_goes_down_evenly():
    heats = [trainer.temperature(step, 100) for step in (0, 50, 100)]
    assert heats == pytest.approx([0.15, 0.125, 0.10])


def _train(folder: Path, *options):
    settings = {
        "--images": 8,
        "--image-size": SIZE,
        "--view-size": 32,
        "--batch-size": 4,
        "--steps": 4,
        "--device": "cpu",
    }
    arguments = [str(part) for pair in settings.items() for part in pair]
    arguments += [str(folder), *map(str, options)]
    result = CliRunner().invoke(train.main, arguments, catch_exceptions=False)
    if result.exit_code != 0:
        raise RuntimeError(result.output)


def _tensors(value) -> list:
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [torch.as_tensor(value)] if not isinstance(value, str | type(None)) else []


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path):
    _train(tmp_path / "whole")
    _train(tmp_path / "resumed", "--stop-at", 2)
    with (tmp_path / "resumed" / "log.tsv").open("a") as log:
        # As if killed after a step that no checkpoint has.
        log.write("3\t0.1234\t0.0\n")
    _train(tmp_path / "resumed")
    whole, resumed = (
        _tensors(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True))
        for name in ("whole", "resumed")
    )
    assert len(whole) == len(resumed) > 100
    for first, second in zip(whole, resumed, strict=True):
        assert torch.equal(first, second)
    files = [tmp_path / name / "embedded.safetensors" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [(tmp_path / name / "log.tsv").read_text() for name in ("whole", "resumed")]
    curves = [[line.split("\t")[:2] for line in log.splitlines()] for log in logs]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", 1), "begun with {'seed': 0"),
        (("--image-size", SIZE + 8), "in another folder"),
        (("--steps", 1), "at step 2, beyond the end of 1 steps"),
    ],
    ids=str,
)
def test_a_run_that_does_not_go_on_like_the_one_begun_is_refused(
    tmp_path, options, message
):
    _train(tmp_path, "--stop-at", 2)
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match=message):
        _train(tmp_path, *options)
    assert sorted(tmp_path.rglob("*")) == files


def test_a_damaged_checkpoint_is_named(tmp_path):
    _train(tmp_path, "--stop-at", 1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=r"checkpoint.pt is no checkpoint, or a"):
        _train(tmp_path)


@pytest.mark.parametrize(
    "option", ["--steps", "--batch-size", "--images", "--save-every", "--jobs"]
)
def test_none_at_all_is_refused(tmp_path, option):
    with pytest.raises(RuntimeError, match=f"Invalid value for '{option}'"):
        _train(tmp_path, option, 0)


def test_checkpoints_are_kept_as_often_as_asked(tmp_path):
    _train(tmp_path, "--keep-every", 2, "--stop-at", 3, "--save-every", 3)
    kept = torch.load(tmp_path / "checkpoint-000002.pt", weights_only=True)
    latest = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (kept["step"], latest["step"]) == (2, 3)


def test_average_follows_the_weights():
    run = trainer.Trainer(100, 0.2, 0, torch.device("cpu"), 160)
    pairs, scenes = _pairs(n=4), is_scene(torch.arange(4))
    seen = []
    for _ in range(3):
        run.learn(pairs, scenes)
        seen.append(run.network.stem[0].weight.detach().clone())
    # Over the first steps it is their plain mean.
    expected = torch.stack(seen).mean(dim=0)
    torch.testing.assert_close(run.average.stem[0].weight, expected)


def test_training_lowers_the_loss():
    run = trainer.Trainer(1000, 0.2, 0, torch.device("cpu"), 160)
    pairs, scenes = _pairs(n=8), is_scene(torch.arange(8))
    curve = [run.learn(pairs, scenes) for _ in range(12)]
    assert curve[-1] < 0.8 * curve[0]


# The weights of the package ---------------------------------------------------------


def _noise(n):
    return RandomState(0).randint(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def _trained_trunk():
    """Return a trunk whose norms are no longer what they are before training."""
    torch.manual_seed(0)
    trunk = Trunk()
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.5, 0.5)
    return trunk.eval()


def test_folded_trunk_computes_what_the_trained_one_does():
    trunk, x = _trained_trunk(), torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        pairs = zip(trunk(x), export.fold(trunk)(x), strict=True)
        for expected, folded in pairs:
            torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)


def test_readouts_standardise_channels_of_the_images_given():
    trunk, images = _trained_trunk(), _noise(20)
    network = export.make_embedded(trunk, images)
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        x = (x - MEAN) / STD
        fine, coarse = trunk(x)
        grid = fine.shape[-2:]
        shallow = trunk.stage1(trunk.stem(x))
        shallow = torch.nn.functional.adaptive_avg_pool2d(shallow, grid)
        maps = torch.cat([fine, network.filters(x, grid), shallow], dim=1), coarse
    for layer, readout in zip(maps, (network.layer2, network.layer3), strict=True):
        values = layer.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(
            readout.center.double(), values.mean(dim=1), rtol=1e-4, atol=1e-4
        )
        deviation = values.std(dim=1, correction=0)
        torch.testing.assert_close(
            readout.factor.double(), 1 / (deviation + 1e-3), rtol=1e-3, atol=1e-3
        )


def test_float16_weights_change_no_score_by_more_than_their_rounding(tmp_path):
    trunk, images = _trained_trunk(), _noise(4)
    network = export.make_embedded(trunk, images)
    export.save_weights(network, tmp_path / "half.safetensors")
    scores = []
    for weights in (None, tmp_path / "half.safetensors"):
        backbone = network if weights is None else "embedded"
        features = PatchFeatureTransformer(backbone, weights=weights, image_size=64)
        scores.append(features.fit(images).transform(images))
    np.testing.assert_allclose(*scores, atol=5e-3)


def test_pack_turns_a_trained_file_into_that_of_the_package(tmp_path):
    trained, packed = tmp_path / "trained.safetensors", tmp_path / "packed.safetensors"
    weights = join_bytes(safetensors.torch.load_file(WEIGHTS_PATH))
    safetensors.torch.save_file(weights, trained)
    pack.pack(trained, packed)
    assert packed.read_bytes() == WEIGHTS_PATH.read_bytes()
