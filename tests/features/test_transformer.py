"""Patch features: windows, weights, projections and shapes."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.pipeline import make_pipeline
from sklearn.random_projection import GaussianRandomProjection
from torch import nn

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._features._patch_grids import PatchGrids, collect_grids
from skpatchcore._images._input import check_images
from skpatchcore._utils._patches import draw_evenly
from skpatchcore.scoring import score_images

OUTPUTS = ["map", "flat", "mean"]


# Images, a network and definitions ------------------------------------------------


class TwoLayers(nn.Module):
    """Layers of 4 channels at stride 4 and of 6 at stride 8."""

    pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 4, 4, stride=4)
            self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def images(n=5, height=24, width=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, 3), np.uint8)


def make_features(layers=("first", "second"), **params):
    params = {"image_size": None, "layer_weights": None, "random_state": 0} | params
    return PatchFeatureTransformer(TwoLayers(), layers, **params)


def layer_maps(X, layer):
    """Return maps (n, h, w, c), computed directly with the network."""
    net = TwoLayers().eval()
    x = torch.from_numpy(X.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.inference_mode():
        first = net.first(x)
        maps = first if layer == "first" else net.second(torch.relu(first))
    return maps.permute(0, 2, 3, 1).numpy()


def window_means(maps, patch_size, stride, center_counts=1):
    """Return means over zero-padded windows, computed one position at a time."""
    n, h, w, c = maps.shape
    margin = patch_size // 2
    rows, columns = np.arange(0, h, stride), np.arange(0, w, stride)
    means = np.zeros((n, len(rows), len(columns), c))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            window = maps[
                :,
                max(0, row - margin) : row + margin + 1,
                max(0, column - margin) : column + margin + 1,
            ]
            total = window.sum(axis=(1, 2)) + (center_counts - 1) * maps[:, row, column]
            means[:, i, j] = total / (patch_size**2 + center_counts - 1)
    return means


def effective_rank(block):
    """Return the exponential of the entropy of normalised eigenvalues."""
    eigenvalues = np.linalg.eigvalsh(np.cov(block.astype(np.float64).T))
    shares = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return np.exp(-(shares * np.log(shares)).sum())


def total_variance(block):
    return block.astype(np.float64).var(axis=0).sum()


# Windows ----------------------------------------------------------------------------


@pytest.mark.parametrize("patch_stride", [1, 2])
@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("descriptor", ["concat", "centered"])
def test_features_are_means_over_windows(descriptor, patch_size, patch_stride):
    X = images()
    features = make_features(
        ("first",),
        descriptor=descriptor,
        patch_size=patch_size,
        patch_stride=patch_stride,
    )
    twice = 2 if descriptor == "centered" else 1
    expected = window_means(layer_maps(X, "first"), patch_size, patch_stride, twice)
    assert_allclose(features.fit_transform(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch_stride", [1, 2])
def test_only_the_first_layer_counts_the_centre_twice(patch_stride):
    X = images()
    plain, centered = (
        make_features(descriptor=descriptor, patch_stride=patch_stride).fit_transform(X)
        for descriptor in ("concat", "centered")
    )
    assert_array_equal(centered[..., 4:], plain[..., 4:])
    expected = window_means(layer_maps(X, "first"), 3, patch_stride, 2)
    assert_allclose(centered[..., :4], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("patch_stride", [1, 2])
@pytest.mark.parametrize("length", [5, 8, 40])
def test_an_int_descriptor_is_the_number_of_features(length, patch_size, patch_stride):
    features = make_features(
        descriptor=length, patch_size=patch_size, patch_stride=patch_stride
    )
    grid = (6, 8) if patch_stride == 1 else (3, 4)
    assert features.fit_transform(images()).shape == (5, *grid, length)


def test_layers_are_in_order_and_on_the_grid_of_the_first():
    X = images()
    forth = make_features().fit_transform(X)
    back = make_features(("second", "first")).fit_transform(X)
    assert forth.shape == (5, 6, 8, 10)
    assert back.shape == (5, 3, 4, 10)
    second_alone = make_features(("second",)).fit_transform(X)
    assert_allclose(back[..., :6], second_alone, rtol=1e-6)


# Weights of layers ------------------------------------------------------------------


def test_layer_weights_scale_features_and_distances():
    X = images()
    plain = make_features(descriptor="concat").fit_transform(X)
    weighted = make_features(descriptor="concat", layer_weights=(2, 0.5))
    found = weighted.fit_transform(X)
    assert weighted.layer_weights_ == (2.0, 0.5)
    assert_allclose(found[..., :4], 2 * plain[..., :4], rtol=1e-6)
    assert_allclose(found[..., 4:], 0.5 * plain[..., 4:], rtol=1e-6)
    squared = np.square(plain[0, 0, 0] - plain[1, 2, 3]).astype(np.float64)
    expected = 4 * squared[:4].sum() + 0.25 * squared[4:].sum()
    distance = np.square(found[0, 0, 0] - found[1, 2, 3]).astype(np.float64).sum()
    assert distance == pytest.approx(expected, rel=1e-5)


def test_layer_weights_of_a_pooled_descriptor_act_before_the_last_pooling():
    X = images()
    first, second, both = (
        make_features(descriptor=6, layer_weights=weights).fit_transform(X)
        for weights in [(1, 1e-9), (1e-9, 1), (2, 3)]
    )
    assert_allclose(both, 2 * first + 3 * second, rtol=1e-4, atol=1e-5)


def test_automatic_weights_equalise_variances_and_favour_full_ranks():
    X = images(8)
    plain = make_features().fit_transform(X).reshape(-1, 10)
    features = make_features(layer_weights="auto")
    found = features.fit_transform(X).reshape(-1, 10)
    blocks = plain[:, :4], plain[:, 4:]
    ratio = effective_rank(blocks[1]) / effective_rank(blocks[0])
    balance = np.sqrt(total_variance(blocks[0]) / total_variance(blocks[1]))
    expected = (1.0, balance * np.clip(ratio, 0.5, 1))
    assert_allclose(features.layer_weights_, expected, rtol=1e-5)
    assert_allclose(found, plain * np.repeat(expected, [4, 6]), rtol=1e-5)


def test_automatic_weights_are_learned_once_and_kept():
    X, new = images(8), images(3, seed=1)
    features = make_features(layer_weights="auto").fit(X)
    learned = features.layer_weights_
    plain = make_features().fit(X).transform(new)
    expected = plain * np.repeat(learned, [4, 6])
    assert_allclose(features.transform(new), expected, rtol=1e-5)
    assert features.layer_weights_ == learned
    again = make_features(layer_weights="auto")
    assert_allclose(again.fit_transform(X), features.transform(X), rtol=1e-6)


def test_layers_have_equal_weights_if_one_does_not_vary():
    """The first layer of a uniform image; the second one depends on the border."""
    X = np.full((3, 24, 32, 3), 100, np.uint8)
    features = make_features(layer_weights="auto", patch_size=1)
    assert total_variance(layer_maps(X, "first").reshape(-1, 4)) < 1e-12
    assert total_variance(layer_maps(X, "second").reshape(-1, 6)) > 1e-6
    assert features.fit(X).layer_weights_ == (1.0, 1.0)


def test_layers_have_equal_weights_for_none_and_int_descriptors():
    assert make_features().fit(images()).layer_weights_ == (1.0, 1.0)
    pooled = make_features(descriptor=6, layer_weights="auto").fit(images())
    assert pooled.layer_weights_ == (1.0, 1.0)


# Projections ------------------------------------------------------------------------


def test_an_int_is_a_random_projection_that_depends_on_the_seed():
    X, new = images(), images(3, seed=1)
    plain = make_features().fit(X).transform(new)
    features = make_features(projection=3).fit(X)
    found = features.transform(new)
    assert found.shape == (3, 6, 8, 3)
    assert isinstance(features.projection_, GaussianRandomProjection)
    random_state = np.random.RandomState(0)
    random_state.randint(np.iinfo(np.int32).max)
    expected = GaussianRandomProjection(3, random_state=random_state)
    expected = expected.fit_transform(plain.reshape(-1, 10))
    assert_allclose(found.reshape(-1, 3), expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(make_features(projection=3).fit(X).transform(new), found)
    other = make_features(projection=3, random_state=1).fit(X).transform(new)
    assert not np.allclose(other, found)


def test_a_transformer_is_fitted_only_on_training_patches():
    X, new = images(), images(3, seed=1)
    plain = make_features().fit(X)
    pca = PCA(4).fit(plain.transform(X).reshape(-1, 10))
    given = PCA(4)
    features = make_features(projection=given).fit(X)
    assert_allclose(features.projection_.components_, pca.components_, atol=1e-6)
    expected = pca.transform(plain.transform(new).reshape(-1, 10))
    found = features.transform(new)
    assert_allclose(found.reshape(-1, 4), expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(given, "components_")
    assert found.dtype == np.float32


def test_a_projection_of_very_many_patches_is_fitted_on_evenly_drawn_ones(monkeypatch):
    monkeypatch.setattr("skpatchcore._features._transformer.MAX_PROJECTION_PATCHES", 50)
    X = images()
    patches = make_features().fit_transform(X).reshape(-1, 10)
    features = make_features(projection=PCA(2)).fit(X)
    sizes = np.full(len(X), len(patches) // len(X))
    expected = PCA(2).fit(patches[draw_evenly(sizes, 50)])
    assert_allclose(features.projection_.components_, expected.components_, atol=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("layer_weights", [None, "auto"])
@pytest.mark.parametrize("projection", [None, 3, PCA(3)], ids=str)
def test_fit_transform_equals_fit_then_transform(projection, layer_weights, output):
    X = images()
    params = {"projection": projection, "layer_weights": layer_weights}
    at_once = make_features(output=output, **params).fit_transform(X)
    in_turn = make_features(output=output, **params).fit(X).transform(X)
    assert_allclose(at_once, in_turn, rtol=1e-4, atol=1e-5)
    assert at_once.dtype == in_turn.dtype == np.float32


# Outputs ----------------------------------------------------------------------------


def test_outputs_are_views_of_the_same_features():
    X = images()
    by_output = {
        output: make_features(output=output).fit_transform(X) for output in OUTPUTS
    }
    assert by_output["map"].shape == (5, 6, 8, 10)
    assert_array_equal(by_output["flat"], by_output["map"].reshape(5, -1))
    expected = by_output["map"].reshape(5, -1, 10).mean(axis=1)
    assert_allclose(by_output["mean"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("projection", [None, 3])
@pytest.mark.parametrize("output", ["flat", "mean"])
def test_there_is_a_name_for_every_feature_of_a_row(output, projection):
    features = make_features(output=output, projection=projection).fit(images())
    d = projection or 10
    assert features.n_patch_features_ == d
    assert features.grid_shape_ == (6, 8)
    names = features.get_feature_names_out()
    assert len(names) == (6 * 8 * d if output == "flat" else d)
    assert names[1] == "patchfeaturetransformer1"


def test_mean_features_may_be_data_frames_in_a_pipeline():
    pytest.importorskip("pandas")
    X = images(12)
    features = make_features(output="mean")
    pipeline = make_pipeline(features, IsolationForest(n_estimators=10))
    pipeline.set_output(transform="pandas").fit(X)
    frame = pipeline[0].transform(X)
    assert list(frame.columns) == list(features.get_feature_names_out())
    assert frame.shape == (12, 10)
    assert list(pipeline[1].feature_names_in_) == list(frame.columns)
    assert pipeline.predict(X).shape == (12,)


# Other channels than RGB.


class Mix(nn.Module):
    """Passes the last three of `n` bands to a network for colour images."""

    pretrained_cfg = {"mean": (0.0,), "std": (1.0,)}

    def __init__(self, n):
        super().__init__()
        self.mix = nn.Conv2d(n, 3, 1, bias=False)
        self.mix.weight.data = torch.eye(n)[-3:, :, None, None]
        self.net = TwoLayers()

    def forward(self, x):
        return self.net(self.mix(x))


def bands(n_bands, n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 24, 32, n_bands), np.uint8)


def mixed(module, **params):
    params = {"image_size": None, "layer_weights": None} | params
    return PatchFeatureTransformer(module, ("net.first",), **params)


@pytest.mark.parametrize("n_bands", [4, 6, 12])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_network_may_take_more_channels(n_bands, as_tensor):
    X = bands(n_bands)
    expected = make_features(layers=("first",)).fit_transform(X[..., -3:])
    given = torch.from_numpy(X).permute(0, 3, 1, 2) if as_tensor else X
    assert_allclose(mixed(Mix(n_bands)).fit_transform(given), expected, rtol=1e-5)


def test_a_network_may_take_one_channel():
    grey = bands(1)[..., 0]
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4))
    features = PatchFeatureTransformer(module, ("0",), image_size=None)
    expected = features.fit_transform(grey)
    assert expected.shape == (4, 6, 8, 4)
    colored = np.repeat(grey[..., None], 3, axis=3)
    assert_allclose(features.transform(colored), expected, rtol=1e-4, atol=1e-5)


def test_bands_go_through_a_detector(tmp_path):
    X = bands(6)
    detector = PatchCoreDetector(
        mixed(Mix(6), memory=tmp_path), augmentation="flip", random_state=0
    )
    scores = detector.fit(X).score_samples(X)
    assert_array_equal(detector.score_samples(X), scores)
    assert (detector.score_samples(bands(6, seed=1)) < scores.max()).all()


@pytest.mark.parametrize(("n_bands", "n_taken"), [(3, 6), (5, 6), (6, 4), (6, 3)])
def test_other_channels_than_those_of_the_network_are_refused(n_bands, n_taken):
    message = f"image 0 has {n_bands} channels, but the network takes {n_taken}"
    with pytest.raises(ValueError, match=rf"{message}.*in_chans"):
        mixed(Mix(n_taken)).fit(bands(n_bands))


def test_a_network_may_declare_its_channels():
    class Bands(Mix):
        """Takes six channels, of which its first convolution sees three."""

        in_chans = 6

        def forward(self, x):
            return super().forward(x[:, 3:])

    X = bands(6)
    expected = make_features(layers=("first",)).fit_transform(X[..., 3:])
    assert_allclose(mixed(Bands(3)).fit_transform(X), expected, rtol=1e-5)


def test_an_image_of_other_channels_is_skipped():
    X = bands(6)
    detector = PatchCoreDetector(mixed(Mix(6)), random_state=0).fit(X)
    found = score_images(detector, [X[0], bands(3)[0], X[1]], on_error="skip")
    assert found.index.tolist() == [0, 2]
    assert "has 3 channels" in found.unreadable[0].reason


# Containers.


def test_maps_stay_arrays_if_tables_are_data_frames():
    pytest.importorskip("pandas")
    X = images(6)
    expected = make_features().fit_transform(X)
    for features in (make_features(), make_features().set_output(transform="pandas")):
        with sklearn.config_context(transform_output="pandas"):
            assert_array_equal(features.fit_transform(X), expected)
            assert_array_equal(features.transform(X), expected)
    assert not hasattr(features, "get_feature_names_out")


def test_a_pipeline_with_a_memory_bank_works_if_tables_are_data_frames():
    pytest.importorskip("pandas")
    X = images(6)
    pipeline = make_pipeline(make_features(), PatchMemoryBank(random_state=0))
    expected = pipeline.fit(X).score_samples(X)
    with sklearn.config_context(transform_output="pandas"):
        assert_array_equal(pipeline.fit(X).score_samples(X), expected)
    pipeline.set_output(transform="pandas")
    assert_array_equal(pipeline.fit(X).score_samples(X), expected)


@pytest.mark.parametrize("output", ["map", "flat"])
def test_images_of_unequal_grids_need_output_mean(output):
    X = [*images(2), *images(2, height=40)]
    with pytest.raises(ValueError, match=r"\[\[6, 8\], \[10, 8\]\].*Set image_size="):
        make_features(output=output).fit_transform(X)


def test_images_of_unequal_grids_have_means():
    X = [*images(2), *images(1, height=40), *images(2, seed=1)]
    found = make_features(output="mean", batch_size=2).fit_transform(X)
    for row, image in zip(found, X, strict=True):
        alone = make_features(output="mean").fit_transform([image])
        assert_allclose(row, alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_batches_of_unequal_grids_are_gathered_in_order(as_tensor):
    grids = {i: np.full((2 + i % 2, 3, 4), i, np.float32) for i in range(5)}
    batches = [
        (indices, np.stack([grids[i] for i in indices]), [f"g{i}" for i in indices])
        for indices in ([1, 3], [0, 4], [2])
    ]
    if as_tensor:
        batches = [(i, torch.from_numpy(values), g) for i, values, g in batches]
    gathered = collect_grids(iter(batches), 5)
    assert isinstance(gathered, PatchGrids)
    assert_array_equal(gathered.shapes, [[2, 3], [3, 3], [2, 3], [3, 3], [2, 3]])
    assert_array_equal(gathered.offsets, [0, 6, 15, 21, 30, 36])
    assert gathered.geometries == ["g0", "g1", "g2", "g3", "g4"]
    expected = np.concatenate([grids[i].reshape(-1, 4) for i in range(5)])
    assert_array_equal(gathered.patches, expected)


# Passes through the network ---------------------------------------------------------


@pytest.fixture
def count_passes(batch_sizes):
    return lambda: sum(batch_sizes)


@pytest.mark.parametrize("layer_weights", [None, "auto"])
@pytest.mark.parametrize("projection", [None, 3, PCA(3)], ids=str)
def test_fit_transform_passes_every_image_once(count_passes, projection, layer_weights):
    features = make_features(projection=projection, layer_weights=layer_weights)
    features.fit_transform(images(7))
    assert count_passes() == 7
    features.transform(images(2))
    assert count_passes() == 9


@pytest.mark.parametrize("projection", [None, 3])
def test_fit_passes_one_image_if_there_is_nothing_to_learn(count_passes, projection):
    make_features(projection=projection).fit(images(7))
    assert count_passes() == 1


@pytest.mark.parametrize(
    "params", [{"projection": PCA(3)}, {"layer_weights": "auto"}], ids=str
)
def test_fit_passes_all_images_if_it_learns_from_them(count_passes, params):
    make_features(**params).fit(images(7))
    assert count_passes() == 7


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_the_batch_size_does_not_change_results(batch_size):
    X = images(7)
    expected = make_features().fit_transform(X)
    found = make_features(batch_size=batch_size).fit_transform(X)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_image_has_the_same_features_alone_and_in_a_batch():
    X = images(7)
    features = make_features(layer_weights="auto", projection=3).fit(X)
    together = features.transform(X)
    alone = np.concatenate([features.transform(x[None]) for x in X])
    assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("verbose", "shown"), [(0, False), (1, True)])
def test_verbose_shows_a_bar_over_images(capsys, verbose, shown):
    make_features(verbose=verbose, batch_size=2).fit_transform(images(7))
    assert ("7/7" in capsys.readouterr().err) is shown


def test_the_given_network_is_not_changed():
    net = TwoLayers().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    PatchFeatureTransformer(net, ("first",), image_size=None).fit_transform(images())
    assert net.training
    assert not net.first._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


# Memory -----------------------------------------------------------------------------


class Deep(nn.Module):
    """32 channels at full resolution, in two layers: far more than the image."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 16, 1)
            self.second = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        return self.second(self.first(x))


N_DEEP, SIDE = 120, 48
DEEP_BYTES = N_DEEP * SIDE**2 * 32 * 4


def deep_features(**params):
    params = {"image_size": None, "random_state": 0, "device": "cpu"} | params
    return PatchFeatureTransformer(Deep(), ("first", "second"), **params)


def peak_of(function):
    """Return the result of `function`, and the peak memory of NumPy in bytes."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def small_samples(monkeypatch):
    monkeypatch.setattr("skpatchcore._features._transformer.MAX_BALANCE_PATCHES", 1000)
    monkeypatch.setattr(
        "skpatchcore._features._transformer.MAX_PROJECTION_PATCHES", 1000
    )
    monkeypatch.setattr("skpatchcore._features._projection._PROJECTION_BYTES", 2**20)


LABELS = {"no labels": None, "a defect": [1] * (N_DEEP - 1) + [-1]}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    "params", [{"layer_weights": None}, {}, {"projection": PCA(2)}], ids=str
)
def test_features_are_stored_only_once(small_samples, params, labels):
    X = images(N_DEEP, SIDE, SIDE)
    features = deep_features(**params)
    found, peak = peak_of(lambda: features.fit_transform(X, LABELS[labels]))
    assert found.size == DEEP_BYTES / 4 * (2 / 32 if "projection" in params else 1)
    assert DEEP_BYTES < peak < 1.3 * DEEP_BYTES


def test_a_random_projection_needs_no_more_memory(small_samples):
    """This also holds for a fit that discards the features."""
    decoded = check_images(images(N_DEEP, SIDE, SIDE))
    features = deep_features(projection=24)
    grids, peak = peak_of(lambda: features._fit_extract(decoded))
    assert grids.patches.shape == (N_DEEP * SIDE**2, 24)
    assert peak < 1.3 * DEEP_BYTES
    found = features.fit_transform(images(N_DEEP, SIDE, SIDE))
    assert_array_equal(found.reshape(-1, 24), grids.patches)
    assert found.base is None or found.base.nbytes == found.nbytes


@pytest.mark.parametrize("projection", [1, 3, 10, 12])
def test_projections_in_place_equal_those_of_copies(projection, monkeypatch):
    X = images()
    at_once = make_features(projection=projection)
    with warnings.catch_warnings():
        # More dimensions than features.
        warnings.simplefilter("ignore", DataDimensionalityWarning)
        expected = at_once.fit(X).transform(X)
        monkeypatch.setattr(
            "skpatchcore._features._projection._PROJECTION_BYTES", 7 * 10 * 4
        )
        found = make_features(projection=projection).fit_transform(X)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_that_a_projection_was_fitted_on_are_not_changed():
    """A transformer may keep the training patches themselves."""

    class Keeping(PCA):
        def fit(self, X, y=None):
            self.seen_, self.expected_ = X, X.copy()
            return super().fit(X)

        def fit_transform(self, X, y=None):
            return self.fit(X).transform(X)

    features = make_features(projection=Keeping(2))
    features.fit_transform(images())
    kept = features.projection_
    assert_array_equal(kept.seen_, kept.expected_)


@pytest.mark.parametrize("n", [7, 200])
def test_a_sample_contains_only_patches_of_the_given_images(n):
    shapes = np.array([[2, 3], [1, 4], [3, 3], [2, 2]])
    sizes = shapes.prod(axis=1)
    patches = np.arange(sizes.sum() * 2, dtype=np.float32).reshape(-1, 2)
    grids = PatchGrids(patches, shapes, [])
    parts = np.split(patches, sizes.cumsum()[:-1])
    for rows in (None, np.arange(4), np.array([0, 2, 3]), np.array([3, 1])):
        whole = np.concatenate([parts[i] for i in (range(4) if rows is None else rows)])
        sample = grids.sample(rows, n)
        assert len(sample) <= n
        step = draw_evenly(sizes if rows is None else sizes[rows], n)
        assert_array_equal(sample, whole[step])


# State ------------------------------------------------------------------------------


def test_a_network_given_by_name_is_left_out_of_pickles_and_built_again():
    features = PatchFeatureTransformer(
        "resnet18", ("layer1",), weights="random", image_size=32, random_state=3
    )
    X = images(2, 32, 32)
    expected = features.fit_transform(X)
    stored = pickle.dumps(features)
    assert len(stored) < 20_000
    assert_allclose(pickle.loads(stored).transform(X), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"patch_size": 4}, "patch_size must be odd"),
        ({"layers": ("third",)}, "no layer 'third'"),
        ({"projection": PCA(100)}, "n_components"),
    ],
)
def test_a_failed_fit_leaves_the_earlier_one_usable(other, message):
    X = images()
    features = make_features(layer_weights=(2, 1), projection=3).fit(X)
    expected = features.transform(X)
    before = features.get_params()
    features.set_params(layers=("second",), layer_weights=None).set_params(**other)
    with pytest.raises(ValueError, match=message):
        features.fit(X)
    features.set_params(**before)
    assert_array_equal(features.transform(X), expected)


SET_AFTER_FIT = [
    {"patch_size": 5},
    {"patch_stride": 2},
    {"image_size": 16},
    {"crop_size": 16},
    {"descriptor": 3},
    {"layers": ("second",), "layer_weights": (2,)},
    {"backbone": nn.Conv2d(3, 4, 4, stride=4)},
    {"backbone": "gabor", "layers": ("fine",), "weights": "random"},
    {"projection": 2},
    {"layer_weights": (5, 1)},
    {"output": "mean"},
    {"output": "flat"},
    {"precision": "bfloat16"},
    {"random_state": 7},
    {"memory": None, "batch_size": 1, "device": "cpu", "verbose": 0},
]


@pytest.mark.parametrize("fit", ["fit", "fit_transform"])
@pytest.mark.parametrize("params", SET_AFTER_FIT, ids=str)
def test_parameters_set_after_the_fit_change_no_features(params, fit):
    X = images()
    features = make_features()
    getattr(features, fit)(X)
    expected = features.transform(X)
    features.set_params(**params)
    # Batches of another size round differently.
    atol = 1e-6 * np.abs(expected).max()
    for answering in (features, pickle.loads(pickle.dumps(features))):
        assert_allclose(answering.transform(X), expected, rtol=0, atol=atol)


def test_the_next_fit_uses_the_parameters_that_were_set():
    X = images()
    features = make_features().fit(X).set_params(patch_size=5, output="mean")
    expected = make_features(patch_size=5, output="mean").fit_transform(X)
    assert_array_equal(features.fit_transform(X), expected)
    assert_array_equal(features.transform(X), expected)


def test_parameters_set_after_the_fit_change_no_scores_of_a_pipeline():
    X, new = images(), images(3, seed=1)
    pipeline = make_pipeline(make_features(), PatchMemoryBank(random_state=0)).fit(X)
    expected = pipeline.decision_function(new)
    pipeline.set_params(patchfeaturetransformer__patch_size=5)
    assert_array_equal(pipeline.decision_function(new), expected)


def test_a_failed_fit_transform_does_not_change_what_transform_returns():
    X = images()
    features = make_features().fit(X)
    expected = features.transform(X)
    features.set_params(patch_size=5, output="flat")
    with pytest.raises(ValueError, match="different shapes"):
        features.fit_transform([X[0], X[1][:16]])
    assert_array_equal(features.transform(X), expected)


@pytest.mark.parametrize("output", ["flat", "mean"])
def test_an_output_set_after_the_fit_changes_no_names(output):
    features = make_features(output=output).fit(images())
    names = features.get_feature_names_out()
    features.set_params(output="map")
    assert_array_equal(features.get_feature_names_out(), names)
    features = make_features().fit(images()).set_params(output=output)
    assert not hasattr(features, "get_feature_names_out")


def test_a_container_chosen_after_the_fit_waits_for_an_output_that_is_a_table():
    pytest.importorskip("pandas")
    X = images()
    features = make_features().fit(X).set_params(output="mean")
    features.set_output(transform="pandas")
    assert isinstance(features.transform(X), np.ndarray)
    assert list(features.fit_transform(X).columns) == list(
        features.get_feature_names_out()
    )


def test_pickles_without_the_parameters_of_the_fit_use_those_that_are_set():
    """Earlier versions made such pickles."""
    X = images()
    features = make_features().fit(X)
    expected = features.transform(X)
    del features._frozen
    assert_array_equal(pickle.loads(pickle.dumps(features)).transform(X), expected)


def test_an_unfitted_transformer_is_an_error():
    with pytest.raises(ValueError, match="not fitted yet"):
        make_features().transform(images())


# Mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"patch_size": 2}, "patch_size must be odd, got 2"),
        ({"layers": ()}, "layers must be a non-empty sequence of names"),
        ({"layer_weights": (1,)}, "a positive number for each of the 2 layers"),
        ({"layer_weights": (1, 0)}, "a positive number for each of the 2 layers"),
        ({"layer_weights": (1, np.inf)}, "a positive number for each of the 2 layers"),
        ({"image_size": (10, 10, 3)}, "image_size must be an int or"),
        ({"crop_size": (10, -1)}, "crop_size must be an int or"),
        ({"crop_size": 1000}, "crop_size=.* is larger than image 0"),
        ({"layers": ("first", "third")}, "no layer 'third'"),
    ],
)
def test_wrong_parameters_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        make_features(**params).fit(images())


def test_weights_are_only_for_networks_by_name():
    with pytest.raises(
        ValueError, match="can only be used with a backbone given by name"
    ):
        make_features(weights="random").fit(images())
