"""Augmented reference images: pixels, provenance, caches and thresholds."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import rotate
from sklearn.base import clone
from torch import nn

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images._augmentation import AUGMENTATIONS, Augmented, find_transforms
from skpatchcore._images._input import check_images
from skpatchcore.persistence import load, save

ROTATIONS, FLIPS = AUGMENTATIONS["rotate"], AUGMENTATIONS["flip"]


class Colors(nn.Module):
    """The mean colour of every 4 x 4 pixels."""

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 4)


def make_detector(**params):
    features = PatchFeatureTransformer(
        Colors(),
        ("",),
        image_size=None,
        patch_size=1,
        descriptor="concat",
        layer_weights=None,
    )
    params = {"sampler": CoresetSampler(1.0), "random_state": 0} | params
    return PatchCoreDetector(features, **params)


def brighten(image):
    return np.minimum(1, image + 0.1)


@pytest.fixture(scope="module")
def X():
    """Return two images in which each block of 4 x 4 pixels has its own colour."""
    blocks = np.random.default_rng(0).integers(0, 180, (2, 8, 12, 3))
    return np.kron(blocks, np.ones((1, 4, 4, 1))).astype(np.uint8)


# Images ---------------------------------------------------------------------------


def test_rotations_and_reflections_only_move_pixels():
    image = np.random.default_rng(0).random((6, 6, 3), dtype=np.float32)
    for transform, degrees in zip(ROTATIONS, range(45, 360, 45), strict=True):
        made = transform(image)
        assert made.dtype == np.float32
        assert made.shape == image.shape
        if degrees % 90 == 0:
            assert_allclose(made, np.rot90(image, degrees // 90), atol=1e-6)
        else:
            # SciPy rotates in the same direction.
            expected = rotate(image, degrees, (0, 1), False, order=1, mode="reflect")
            assert_allclose(made, expected.clip(0, 1), atol=1e-5)
    left_right, top_bottom = (flip(image) for flip in FLIPS)
    assert_allclose(left_right, image[:, ::-1], atol=1e-6)
    assert_allclose(top_bottom, image[::-1], atol=1e-6)


def test_brightness_is_clipped():
    image = np.full((2, 2, 3), 0.9, np.float32)
    darker, brighter = (gain(image) for gain in AUGMENTATIONS["brightness"])
    assert_allclose(darker, 0.72)
    assert_allclose(brighter, 1)


def test_given_images_come_first(X):
    images = Augmented(check_images(X), find_transforms(["flip", brighten]))
    assert len(images) == 8
    assert_allclose(images[1], X[1] / 255, atol=1e-6)
    assert_allclose(images[3], X[1, :, ::-1] / 255, atol=1e-6)
    assert_allclose(images[6], X[0] / 255 + 0.1, atol=1e-6)
    with pytest.raises(IndexError):
        images[8]


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (
            ["turn"],
            "augmentation contains 'turn'; expected a function or one of rotate",
        ),
        (lambda image: image[1:], r"has shape \(31, 48, 3\); expected"),
        (lambda image: image * 2, "of image 0 contains NaN or values outside"),
        (lambda image: image * np.nan, "contains NaN"),
        (lambda image: "image", "of image 0 did not return an array of numbers"),
        (lambda image: [[1], [1, 2]], "of image 0 did not return an array of numbers"),
        (lambda image: image[99], "of image 0 failed: IndexError: index"),
    ],
)
def test_wrong_augmentations_are_refused(X, augmentation, message):
    with pytest.raises(ValueError, match=message):
        make_detector(augmentation=augmentation).fit(X)


# Detectors --------------------------------------------------------------------------


def test_functions_may_work_in_place(X):
    def darken(image):
        image *= 0.5
        return image

    found = make_detector(augmentation=darken).fit(X)
    expected = make_detector(augmentation=lambda image: image * 0.5).fit(X)
    assert_array_equal(found.memory_bank_.bank_, expected.memory_bank_.bank_)


def test_functions_may_return_views(X):
    found = make_detector(augmentation=np.fliplr).fit(X)
    expected = make_detector(augmentation=lambda image: np.fliplr(image).copy()).fit(X)
    assert_array_equal(found.memory_bank_.bank_, expected.memory_bank_.bank_)


def test_rotations_of_images_resized_to_another_aspect_are_traced_back(X):
    """Patches of 4 x 4 pixels of the input cover 2 x 4 pixels of the image."""
    squeezed = np.ascontiguousarray(X[:1, ::2])
    detector = make_detector(augmentation="rotate")
    detector.set_params(features__image_size=X.shape[1:3]).fit(squeezed)
    height, width = squeezed.shape[1:3]
    turned = ROTATIONS[1](squeezed[0] / np.float32(255))
    matches = detector.nearest_patches(turned[None], 1)
    assert matches.distance.max() < 1e-5
    rows, columns = np.mgrid[: X.shape[1] // 4, : X.shape[2] // 4]
    up, right = rows * 2 + 1 - height / 2, columns * 4 + 2 - width / 2
    # A rotation by 90 degrees in pixels of the image, mapped back to its grid.
    row = (right + height / 2 - 1) / 2
    column = (-up + width / 2 - 2) / 4
    inside = (row >= 0) & (row < rows.shape[0])
    assert inside.any()
    assert (matches.transform[0, ..., 0][inside] == 2).all()
    assert np.abs(matches.row[0, ..., 0] - row)[inside].max() <= 0.5
    assert np.abs(matches.column[0, ..., 0] - column)[inside].max() <= 0.5


@pytest.mark.parametrize("name", ["rotate", "flip"])
def test_patches_are_traced_back_to_their_origin(X, name):
    """Rotated images match rotated references, at positions in the given images."""
    detector = make_detector(augmentation=name).fit(X)
    grid = X[1, 2::4, 2::4]
    for i, transform in enumerate(AUGMENTATIONS[name], start=1):
        made = transform(X[1] / np.float32(255))
        matches = detector.nearest_patches(made[None], 1)
        assert matches.distance.max() < 1e-5
        if not np.isin(transform.matrix, (-1, 0, 1)).all():
            # The others are at the border, where mirrored pixels look the same.
            assert (matches.transform == i).mean() > 0.8
            continue
        # The colour of a patch identifies its position, for each of its copies.
        found = grid[matches.row[0, ..., 0], matches.column[0, ..., 0]]
        inside = (matches.image == 1)[0, ..., 0]
        if transform.matrix[0, 0] != 0 or name == "flip":
            assert inside.all()
        assert_allclose(found[inside], 255 * made[2::4, 2::4][inside], atol=0.01)


def test_given_images_match_themselves(X):
    detector = make_detector(augmentation=["rotate", "brightness"]).fit(X)
    matches = detector.nearest_patches(X, 1)
    rows, columns = np.mgrid[:8, :12]
    known = matches.transform[..., 0] == 0
    assert known.mean() > 0.6
    for i in range(2):
        assert_array_equal(matches.image[i, ..., 0], i)
        assert_array_equal(matches.row[i, ..., 0][known[i]], rows[known[i]])
        assert_array_equal(matches.column[i, ..., 0][known[i]], columns[known[i]])


def test_thresholds_come_from_the_given_images(X):
    params = {"sampler": CoresetSampler(20), "contamination": 0.5}
    detector = make_detector(augmentation="rotate", **params).fit(X)
    assert_array_equal(detector.training_indices_, [0, 1])
    assert_allclose(detector.training_scores_, detector.score_samples(X), rtol=1e-5)
    assert detector.offset_ == np.quantile(detector.training_scores_, 0.5)
    assert detector.map_threshold_ == -detector.offset_


def test_rotated_parts_are_normal_only_if_references_were_rotated(X):
    turned = np.rot90(X[:, :, 8:40], axes=(1, 2))
    square = X[:, :, 8:40]
    assert make_detector().fit(square).score_samples(turned).max() == (
        pytest.approx(0, abs=1e-5)
    )
    half = np.kron(np.eye(2)[None, :, :, None], np.ones((2, 16, 16, 3)))
    gradient = (half * np.arange(32)[None, :, None, None] * 6).astype(np.uint8)
    turned = np.rot90(gradient, axes=(1, 2))
    plain, made = (
        make_detector(augmentation=name).fit(gradient) for name in (None, "rotate")
    )
    assert made.score_samples(turned).max() == pytest.approx(0, abs=1e-5)
    assert plain.memory_bank_.bank_.shape[0] * 8 == made.memory_bank_.bank_.shape[0]


def test_augmented_images_pass_the_network_once_with_a_cache(X, tmp_path, batch_sizes):
    detector = make_detector(augmentation="flip", memory=str(tmp_path)).fit(X)
    assert sum(batch_sizes) == 6
    clone(detector).set_params(n_neighbors=2).fit(X)
    detector.score_samples(X)
    # Each of the two networks is checked by the first image that the cache knows.
    assert sum(batch_sizes) == 6 + 2
    again = make_detector(augmentation="flip").fit(X)
    assert_array_equal(again.memory_bank_.bank_, detector.memory_bank_.bank_)


def test_model_files_remember_where_patches_come_from(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (2, 32, 32, 3), np.uint8)
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=None)
    detector = PatchCoreDetector(features, augmentation=["flip", "rotate"]).fit(X)
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    found, expected = (d.nearest_patches(X[:1]) for d in (loaded, detector))
    for name in expected:
        assert_array_equal(found[name], expected[name])
    with pytest.raises(TypeError, match="augmentation is <function brighten"):
        save(clone(detector).set_params(augmentation=brighten).fit(X), tmp_path / "f")
