"""Foreground masks: the component, the threshold, safeguards, and what is scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.filters import threshold_otsu
from sklearn.decomposition import PCA

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._detectors._foreground import (
    Foreground,
    at_border,
    first_component,
    fit_foreground,
    otsu,
)
from skpatchcore._images._augmentation import Augmented, find_transforms
from skpatchcore._images._input import check_images
from skpatchcore.persistence import load, save


def scene(n, seed=0, size=96):
    """Return images of a textured disc on dark ground."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] - size / 2
    disc = np.hypot(rows, columns) < size / 3.2
    X = rng.integers(0, 20, (n, size, size, 3))
    X[:, disc] = rng.integers(160, 230, (n, disc.sum(), 3))
    return X.astype(np.uint8)


def detector(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=None)
    return PatchCoreDetector(features, CoresetSampler(0.3), random_state=0, **params)


@pytest.fixture(scope="module")
def fitted():
    return detector(foreground="auto").fit(scene(4))


# Kernels ----------------------------------------------------------------------------


def test_first_component_is_that_of_pca():
    X = np.random.default_rng(0).normal(size=(200, 6)) * [1, 5, 2, 1, 1, 1] + 30
    expected = PCA(1, svd_solver="full").fit(X).components_[0]
    found = first_component(X.astype(np.float32))
    assert_allclose(np.abs(found @ expected), 1, rtol=1e-5)
    assert found[np.abs(found).argmax()] > 0


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(4, 50))
@settings(max_examples=30, deadline=None)
def test_otsu_separates_what_is_apart(seed, share, gap):
    rng = np.random.default_rng(seed)
    upper = rng.random(400) < share
    upper[:2] = [True, False]
    values = rng.uniform(-1, 1, 400) + gap * upper
    threshold, separation = otsu(values)
    assert_array_equal(values > threshold, upper)
    side = np.where(upper, values[upper].mean(), values[~upper].mean())
    assert separation == pytest.approx(side.var() / values.var(), abs=0.02)


def test_otsu_is_that_of_scikit_image():
    values = np.random.default_rng(0).normal(size=5000) ** 3
    width = np.ptp(values) / 256
    # There the threshold is the middle of a bin, here its upper end.
    assert otsu(values)[0] == pytest.approx(threshold_otsu(values) + width / 2)


def test_one_hump_is_not_separated():
    rng = np.random.default_rng(0)
    assert otsu(rng.normal(size=20_000))[1] == pytest.approx(2 / np.pi, abs=0.02)
    assert otsu(rng.random(20_000))[1] == pytest.approx(0.75, abs=0.01)
    assert otsu(np.ones(10))[1] == 0


def test_rim_is_the_outermost_patch_and_a_share_of_the_side():
    shapes = np.array([[20, 40], [2, 2]])
    rim = at_border(shapes, 0.1)
    expected = np.ones((20, 40), bool)
    expected[3:17, 5:35] = False
    assert_array_equal(rim[:800].reshape(20, 40), expected)
    assert rim[800:].all()
    assert at_border(shapes, 0)[:800].sum() == 2 * 20 + 2 * 40 - 4


def test_masks_are_grown_and_filled_and_never_empty():
    foreground = Foreground(np.ones(1, np.float32), 0.5)
    grid = np.zeros((9, 9, 1), np.float32)
    assert foreground.mask(grid).all()
    grid[4, 4] = 1
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    assert_array_equal(foreground.mask(grid), expected)
    # A ring of patches round one that is not foreground by itself.
    grid[3:6, 3:6], grid[4, 4] = 1, 0
    assert foreground.mask(grid)[2:7, 2:7].all()


# Detectors --------------------------------------------------------------------------


def test_the_object_is_found_whatever_its_brightness(fitted):
    for X in (scene(3, 1), 255 - scene(3, 1)):
        found = detector(foreground="auto").fit(X)
        grids = found.features_.transform(X)
        kept = np.stack([Foreground(*found.foreground_).mask(grid) for grid in grids])
        assert kept[:, 4:8, 4:8].all()
        assert not kept[:, 0].any()
        assert not kept[:, :, -1].any()


def test_background_is_neither_learned_nor_scored(fitted):
    X = scene(2, 5)
    maps = fitted.predict_maps(X, size="grid")
    assert (maps[:, 0] == 0).all()
    assert (maps[:, 4:8, 4:8] > 0).all()
    # A scrap in the corner does not count; the same on the object does.
    scrap, defect = X.copy(), X.copy()
    scrap[:, 1:5, 1:5] = defect[:, 46:50, 46:50] = [60, 0, 0]
    assert_allclose(fitted.score_samples(scrap), fitted.score_samples(X), rtol=1e-5)
    assert (fitted.score_samples(defect) < fitted.score_samples(X)).all()
    assert_allclose(fitted.score_samples(X), -maps.max(axis=(1, 2)), rtol=1e-5)


def test_matches_are_places_in_the_whole_grid(fitted):
    X = scene(4)
    matches = fitted.nearest_patches(X, 1)
    known = matches.distance[..., 0] < 1e-6
    # Bank rows find themselves where they stood.
    assert known.sum() >= len(fitted.memory_bank_.bank_)
    rows, columns = np.mgrid[:12, :12]
    for i in range(4):
        assert_array_equal(matches.image[i, ..., 0][known[i]], i)
        assert_array_equal(matches.row[i, ..., 0][known[i]], rows[known[i]])
        assert_array_equal(matches.column[i, ..., 0][known[i]], columns[known[i]])


def test_training_scores_are_those_of_the_object(fitted):
    assert_allclose(fitted.training_scores_, fitted.score_samples(scene(4)), rtol=1e-5)
    alone = [fitted.score_samples(one[None])[0] for one in scene(2, 5)]
    assert_allclose(alone, fitted.score_samples(scene(2, 5)), rtol=1e-6)


def test_textures_are_looked_at_as_a_whole():
    X = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    with pytest.warns(UserWarning, match="no foreground that stands out"):
        found = detector(foreground="auto").fit(X)
    assert found.foreground_ is None
    expected = detector().fit(X)
    assert_array_equal(found.score_samples(X), expected.score_samples(X))


def test_equal_patches_have_no_foreground():
    with pytest.warns(UserWarning, match="no foreground"):
        found = fit_foreground(np.ones((32, 3), np.float32), np.array([[4, 4]] * 2))
    assert found is None


def test_model_files_keep_the_foreground(fitted, tmp_path):
    save(fitted, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    X = scene(2, 5)
    assert_array_equal(loaded.predict_maps(X), fitted.predict_maps(X))
    found, expected = (d.nearest_patches(X) for d in (loaded, fitted))
    assert_array_equal(found.row, expected.row)


# With other options -----------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("outlier_filter", [None, "sample", "lof"])
@pytest.mark.parametrize("augmentation", [None, "flip"])
def test_options_go_together(window, outlier_filter, augmentation, tmp_path):
    X = scene(6)
    found = detector(
        foreground="auto",
        augmentation=augmentation,
        outlier_filter=outlier_filter,
        position_window=window,
    ).fit(X)
    assert_allclose(found.training_scores_, found.score_samples(X), rtol=1e-6)
    assert found.offset_ <= found.training_scores_.max()
    # The bank holds patches of the object that are no outliers, whoever made them.
    made = Augmented(check_images(X), find_transforms(augmentation))
    grids = found.features_.transform([made[i] for i in range(len(made))])
    bank = found.memory_bank_
    patches = grids.reshape(-1, grids.shape[-1])
    assert_allclose(patches[bank.bank_indices_], bank.bank_, atol=1e-5)
    inside = np.stack([Foreground(*found.foreground_).mask(grid) for grid in grids])
    assert inside.reshape(-1)[bank.bank_indices_].all()
    outliers = getattr(bank, "outlier_indices_", np.array([], dtype=np.int64))
    assert (len(outliers) > 0) == (outlier_filter is not None)
    assert not np.isin(bank.bank_indices_, outliers).any()
    save(found, tmp_path / "model.skpc")
    again = load(tmp_path / "model.skpc")
    assert_array_equal(again.score_samples(X), found.score_samples(X))
    assert_array_equal(
        again.nearest_patches(X[:1]).row, found.nearest_patches(X[:1]).row
    )


def test_what_was_made_of_an_outlier_does_not_vouch_for_it():
    X = scene(8)
    X[3, 40:60, 40:60] = [250, 0, 0]
    options = {"outlier_filter": "sample", "outlier_fraction": 0.1}
    for augmentation in (None, "rotate"):
        found = detector(augmentation=augmentation, **options).fit(X)
        kinds = found._training_shapes.prod(axis=1).cumsum()
        outliers = np.searchsorted(kinds, found.memory_bank_.outlier_indices_, "right")
        assert set(outliers % len(X)) == {3}
        assert len(set(outliers)) == len(kinds) / len(X)
