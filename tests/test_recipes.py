"""The published recipes against their definitions, written out anew here.

Sources: the code of the paper's authors, and anomalib 2.
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._features._descriptors import describe

RECIPES = {"authors": 1024, "anomalib": "concat"}


# Definitions ------------------------------------------------------------------------


def interpolation_matrix(n_out, n_in):
    """Bilinear interpolation along one axis, pixel centres at half integers."""
    source = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, None)
    low = np.floor(source).astype(int)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out), low), 1 - (source - low))
    np.add.at(matrix, (np.arange(n_out), np.minimum(low + 1, n_in - 1)), source - low)
    return matrix


def upsample(planes, grid):
    """Planes (..., h, w) to (..., *grid)."""
    rows = interpolation_matrix(grid[0], planes.shape[-2])
    columns = interpolation_matrix(grid[1], planes.shape[-1])
    return rows @ planes @ columns.T


def windows(features, size=3):
    """Windows (n, c, size, size, h, w) of maps (n, c, h, w) between zeros."""
    margin = size // 2
    padded = np.pad(features, [(0, 0), (0, 0), (margin, margin), (margin, margin)])
    h, w = features.shape[-2:]
    rows = [
        np.stack([padded[:, :, i : i + h, j : j + w] for j in range(size)], axis=2)
        for i in range(size)
    ]
    return np.stack(rows, axis=2)


def adaptive_mean(vectors, length):
    """Mean of `length` slices of the last axis, which overlap where they must."""
    n = vectors.shape[-1]
    slices = [
        vectors[..., i * n // length : -(-(i + 1) * n // length)].mean(axis=-1)
        for i in range(length)
    ]
    return np.stack(slices, axis=-1)


def anomalib_descriptor(layers):
    """Means of windows, brought to the first layer's grid and concatenated."""
    grid = layers[0].shape[-2:]
    means = [windows(layer).mean(axis=(2, 3)) for layer in layers]
    return np.concatenate([upsample(mean, grid) for mean in means], axis=1)


def authors_descriptor(layers, length=1024):
    """In the authors' order: unfold, resize each plane, pool each layer, pool again."""
    grid = layers[0].shape[-2:]
    pooled = []
    for layer in layers:
        resized = upsample(windows(layer), grid)
        flat = np.moveaxis(resized, (4, 5), (1, 2)).reshape(len(layer), *grid, -1)
        pooled.append(adaptive_mean(flat, length))
    stacked = np.stack(pooled, axis=3)
    descriptors = adaptive_mean(stacked.reshape(*stacked.shape[:3], -1), length)
    return np.moveaxis(descriptors, 3, 1)


def closed_form(layers):
    """What the authors' pooling amounts to for layers of 512 and 1024 channels."""
    second, third = layers
    first_half = (windows(second).sum(axis=(2, 3)) + second) / 10
    means = upsample(windows(third).mean(axis=(2, 3)), second.shape[-2:])
    return np.concatenate([first_half, (means[:, ::2] + means[:, 1::2]) / 2], axis=1)


DEFINITIONS = {"authors": authors_descriptor, "anomalib": anomalib_descriptor}


def random_layers(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def descriptors(layers, descriptor):
    return describe(
        [torch.from_numpy(layer) for layer in layers],
        patch_size=3,
        patch_stride=1,
        descriptor=descriptor,
        layer_weights=(1.0,) * len(layers),
    ).numpy()


# Descriptors ------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 512, 6, 6), (2, 1024, 3, 3)],
        [(1, 512, 5, 8), (1, 1024, 3, 4)],
        [(2, 40, 6, 4), (2, 30, 3, 2), (2, 7, 2, 1)],
        [(1, 512, 4, 4)],
    ],
    ids=str,
)
def test_descriptors_of_random_maps_equal_their_definition(recipe, shapes):
    layers = random_layers(*shapes)
    found = descriptors(layers, RECIPES[recipe])
    assert_allclose(found, DEFINITIONS[recipe](layers), rtol=1e-5, atol=1e-5)


def test_the_authors_descriptor_has_a_closed_form_for_512_and_1024_channels():
    layers = random_layers((2, 512, 6, 6), (2, 1024, 3, 3))
    expected = closed_form(layers)
    assert_allclose(authors_descriptor(layers), expected, atol=1e-6)
    assert_allclose(descriptors(layers, 1024), expected, rtol=1e-5, atol=1e-5)


# The whole way on a network ---------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """The paper's architecture, randomly initialised."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("wide_resnet50_2", pretrained=False).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def layers(network, images):
    """Layers 2 and 3, computed step by step from ImageNet's normalisation on."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalized = ((images / 255 - mean) / std).astype(np.float32)
    x = torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        second = network.layer2(network.layer1(x))
        third = network.layer3(second)
    return second.numpy(), third.numpy()


@pytest.fixture(scope="module")
def patches(layers):
    """Patches (n, h, w, d) of each recipe by its definition."""
    return {
        recipe: np.moveaxis(definition(layers), 1, 3)
        for recipe, definition in DEFINITIONS.items()
    }


def make_features(network, recipe, **params):
    return PatchFeatureTransformer(
        network,
        ("layer2", "layer3"),
        image_size=None,
        descriptor=RECIPES[recipe],
        layer_weights=None,
        **params,
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_features_of_a_wide_resnet_equal_their_definition(
    network, images, patches, recipe
):
    found = make_features(network, recipe).fit_transform(images)
    expected = patches[recipe]
    assert found.shape == (4, 8, 8, 1024 if recipe == "authors" else 1536)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_authors_scores_and_maps_equal_their_definition(network, images, patches):
    """Squared distance to the nearest patch; maximum; bilinear, then Gaussian of 4."""
    detector = PatchCoreDetector(
        make_features(network, "authors"),
        CoresetSampler(0.1, projection_dim=128, n_starts=10),
        metric="sqeuclidean",
        smoothing=4.0,
        random_state=0,
    ).fit(images[:2])
    patches = patches["authors"].reshape(-1, 1024)
    bank = patches[detector.memory_bank_.bank_indices_]
    assert len(bank) == 12
    grids = cdist(patches, bank, "sqeuclidean").min(axis=1).reshape(4, 8, 8)
    scale = grids.max()
    # Images of the fit get their training scores.
    scores = detector.score_samples(images[2:])
    assert_allclose(-scores / scale, grids[2:].max(axis=(1, 2)) / scale, atol=1e-5)
    expected = np.array([gaussian_filter(upsample(g, (64, 64)), 4) for g in grids])
    for size in ("original", "resized"):
        maps = detector.predict_maps(images, size=size)
        assert_allclose(maps / scale, expected / scale, atol=1e-5)


def test_the_scores_of_anomalib_equal_their_definition(network, images, patches):
    """The farthest patch's distance, times 1 - softmax of the distances to 9 others."""
    detector = PatchCoreDetector(
        make_features(network, "anomalib"),
        CoresetSampler(0.3),
        reweight=9,
        random_state=0,
    ).fit(images[:2])
    patches = patches["anomalib"].reshape(4, 64, 1536)
    bank = patches.reshape(-1, 1536)[detector.memory_bank_.bank_indices_]
    expected = []
    for image in patches[2:]:
        distances = cdist(image, bank)
        patch = distances.min(axis=1).argmax()
        match = distances[patch].argmin()
        support = np.argsort(cdist(bank[match][None], bank)[0])[:9]
        exponentials = np.exp(distances[patch, support])
        weight = 1 - exponentials[0] / exponentials.sum()
        expected.append(weight * distances[patch, match])
    found = -detector.score_samples(images[2:])
    assert_allclose(
        found / max(expected), np.array(expected) / max(expected), atol=1e-5
    )
