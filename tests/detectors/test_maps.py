"""Anomaly maps: their sizes, what they hold, and that they point at the defect."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._detectors._maps import anomaly_map, resize_map, seen_pixels
from skpatchcore._images._geometry import plan_geometry


def bilinear(values, size):
    """Resize with pixel centres at half integers, the edge repeated beyond the rim."""
    for axis, length in enumerate(size):
        n = values.shape[axis]
        center = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
        low = np.floor(center).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = np.expand_dims(center - low, 1 - axis)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def random_grid(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


grids = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(0, 1000, width=32),
)
lengths = st.integers(10, 60)
shapes = st.tuples(lengths, lengths)
image_sizes = st.one_of(st.integers(10, 60), shapes)
crops = st.one_of(st.none(), st.integers(1, 10), st.tuples(*[st.integers(1, 10)] * 2))
smoothings = st.sampled_from([0, 0.5, 4.0])
map_sizes = st.sampled_from(["original", "resized", "grid"])


@pytest.mark.parametrize("size", [(5, 9), (17, 40), (64, 64), (3, 2), (1, 1)])
def test_up_sampling_is_bilinear(size):
    grid = random_grid((5, 9))
    resized = resize_map(grid, size)
    assert resized.dtype == np.float32
    assert_allclose(resized, bilinear(grid, size), atol=1e-6)


def test_up_sampling_agrees_with_scipy():
    grid = random_grid((5, 9))
    zoomed = ndimage.zoom(grid, 8, order=1, mode="nearest", grid_mode=True)
    assert_allclose(resize_map(grid, (40, 72)), zoomed, atol=1e-6)


def test_sizes_of_maps():
    geometry = plan_geometry((90, 130), 64, (48, 40))
    grid = random_grid((6, 5))
    shapes = {
        size: anomaly_map(grid, geometry, size=size).shape
        for size in ("original", "resized", "grid")
    }
    assert shapes == {"original": (90, 130), "resized": (48, 40), "grid": (6, 5)}


def test_grid_is_neither_smoothed_nor_resized():
    grid = random_grid((6, 5))
    geometry = plan_geometry((90, 130), 64, 48)
    values = anomaly_map(grid, geometry, size="grid", smoothing=4.0)
    assert_array_equal(values, grid.astype(np.float32))


@pytest.mark.parametrize("smoothing", [0, 1.5, 4.0])
def test_smoothing_is_in_pixels_of_the_network_s_input(smoothing):
    geometry = plan_geometry((90, 130), 64, None)
    grid = random_grid((8, 11))
    expected = bilinear(grid, geometry.resized)
    if smoothing:
        expected = ndimage.gaussian_filter(expected, smoothing)
    resized = anomaly_map(grid, geometry, size="resized", smoothing=smoothing)
    assert_allclose(resized, expected, atol=1e-5)
    original = anomaly_map(grid, geometry, smoothing=smoothing)
    assert_allclose(original, bilinear(expected, (90, 130)), atol=1e-5)


def test_crop_is_put_back_where_it_was_taken():
    geometry = plan_geometry((31, 44), None, (20, 24))
    assert geometry.offset == (6, 10)
    grid = random_grid((5, 6))
    seen = anomaly_map(grid, geometry, size="resized", smoothing=2.0)
    whole = anomaly_map(grid, geometry, smoothing=2.0)
    assert_array_equal(whole[6:26, 10:34], seen)
    rows = np.clip(np.arange(31) - 6, 0, 19)
    columns = np.clip(np.arange(44) - 10, 0, 23)
    assert_array_equal(whole, seen[np.ix_(rows, columns)])


@settings(deadline=None)
@given(shape=shapes, image_size=image_sizes, crop=crops, smoothing=smoothings)
def test_nan_marks_just_what_the_crop_did_not_look_at(
    shape, image_size, crop, smoothing
):
    geometry = plan_geometry(shape, image_size, crop)
    grid = random_grid((4, 3))
    filled = anomaly_map(grid, geometry, smoothing=smoothing)
    marked = anomaly_map(grid, geometry, smoothing=smoothing, border="nan")
    assert filled.shape == marked.shape == shape
    assert np.isfinite(filled).all()
    # The centre of a pixel, in pixels of the resized image.
    inside = np.ones(shape, bool)
    for axis in (0, 1):
        center = (np.arange(shape[axis]) + 0.5) * geometry.resized[axis] / shape[axis]
        start, length = geometry.offset[axis], geometry.crop[axis]
        kept = (start <= center) & (center < start + length)
        inside &= np.expand_dims(kept, 1 - axis)
    assert_array_equal(np.isfinite(marked), inside)
    assert_array_equal(marked[inside], filled[inside])


def test_nan_leaves_a_rectangle():
    """Blending a mask instead would round its corners."""
    seen = seen_pixels(plan_geometry((640, 640), 64, 48))
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    assert len(rows) == len(columns) == 480
    assert seen[np.ix_(rows, columns)].all()


@pytest.mark.parametrize("shape", [(96, 140), (33, 47)])
def test_rim_repeats_the_edge_of_the_crop(shape):
    geometry = plan_geometry(shape, 64, 40)
    whole = anomaly_map(random_grid((5, 5)), geometry, smoothing=1.0)
    seen = seen_pixels(geometry)
    (top, *_, bottom), (left, *_, right) = (
        np.flatnonzero(seen.any(axis=1 - axis)) for axis in (0, 1)
    )
    assert 0 < top < bottom < shape[0] - 1
    assert 0 < left < right < shape[1] - 1
    for rim in (whole[:top], whole[bottom + 1 :]):
        assert_allclose(rim, np.broadcast_to(rim[0], rim.shape), rtol=1e-6)
    for rim in (whole[:, :left].T, whole[:, right + 1 :].T):
        assert_allclose(rim, np.broadcast_to(rim[0], rim.shape), rtol=1e-6)


@settings(deadline=None)
@given(
    value=st.floats(0, 1e4, width=32),
    grid_shape=st.tuples(*[st.integers(1, 9)] * 2),
    shape=shapes,
    image_size=image_sizes,
    crop=crops,
    size=map_sizes,
    smoothing=smoothings,
)
def test_constant_grid_gives_constant_map(
    value, grid_shape, shape, image_size, crop, size, smoothing
):
    geometry = plan_geometry(shape, image_size, crop)
    values = anomaly_map(
        np.full(grid_shape, value), geometry, size=size, smoothing=smoothing
    )
    assert values.dtype == np.float32
    assert_allclose(values, value, rtol=1e-5)


@settings(deadline=None)
@given(
    grid=grids,
    shape=shapes,
    image_size=image_sizes,
    crop=crops,
    size=map_sizes,
    smoothing=smoothings,
)
def test_map_stays_within_the_range_of_its_grid(
    grid, shape, image_size, crop, size, smoothing
):
    geometry = plan_geometry(shape, image_size, crop)
    values = anomaly_map(grid, geometry, size=size, smoothing=smoothing)
    slack = 1e-5 * grid.max()
    assert values.min() >= grid.min() - slack
    assert values.max() <= grid.max() + slack


@settings(deadline=None)
@given(grid=grids, shape=shapes, image_size=image_sizes, smoothing=smoothings)
def test_mirrored_grid_gives_mirrored_map(grid, shape, image_size, smoothing):
    geometry = plan_geometry(shape, image_size, None)
    values = anomaly_map(grid, geometry, smoothing=smoothing)
    mirrored = anomaly_map(grid[::-1, ::-1], geometry, smoothing=smoothing)
    assert_allclose(mirrored[::-1, ::-1], values, rtol=1e-4, atol=1e-3)


@settings(deadline=None)
@given(shape=shapes, image_size=image_sizes, crop=st.one_of(st.none(), st.just((8, 9))))
def test_geometry_round_trip(shape, image_size, crop):
    """A map of where each pixel came from, sent back, is where each pixel is."""
    geometry = plan_geometry(shape, image_size, crop)
    for axis in (0, 1):
        scale = geometry.resized[axis] / shape[axis]
        start, length = geometry.offset[axis], geometry.crop[axis]
        came_from = (np.arange(length) + start + 0.5) / scale
        grid = np.broadcast_to(np.expand_dims(came_from, 1 - axis), geometry.crop)
        whole = anomaly_map(grid, geometry, smoothing=0, border="nan")
        expected = np.expand_dims(np.arange(shape[axis]) + 0.5, 1 - axis)
        # The edge is repeated over the outer half of the outermost pixel.
        off = np.abs(whole - expected)[np.isfinite(whole)]
        assert off.max(initial=0) <= 0.5 / scale + 1e-3


def textures(n, shape, seed):
    return np.random.default_rng(seed).integers(100, 130, (n, *shape, 3), np.uint8)


def make_detector(image_size=64, crop_size=None, **params):
    features = PatchFeatureTransformer(
        "resnet18",
        ("layer1", "layer2"),
        weights="random",
        image_size=image_size,
        crop_size=crop_size,
        random_state=0,
    )
    return PatchCoreDetector(features, random_state=0, **params)


@pytest.mark.parametrize(
    ("shape", "image_size", "crop_size"),
    [
        pytest.param((64, 64), 64, None, id="as it is"),
        pytest.param((48, 80), 64, None, id="not square"),
        pytest.param((96, 128), 64, 48, id="cropped"),
        pytest.param((32, 40), 64, None, id="image smaller than the input"),
        pytest.param((160, 130), 64, None, id="image larger than the input"),
        pytest.param((80, 80), (64, 96), None, id="stretched"),
        pytest.param((80, 100), (64, 96), (48, 56), id="stretched and cropped"),
    ],
)
def test_map_lights_up_at_the_defect(shape, image_size, crop_size):
    detector = make_detector(image_size, crop_size, smoothing=2.0)
    detector.fit(textures(4, shape, seed=0))
    height, width = shape
    # Both corners of the defect, in the quarters of the image that a crop keeps.
    for top, left in [(0.3, 0.3), (0.3, 0.6), (0.55, 0.35), (0.6, 0.6)]:
        image = textures(1, shape, seed=1)
        rows = slice(int(top * height), int(top * height) + height // 10)
        columns = slice(int(left * width), int(left * width) + height // 10)
        image[0, rows, columns] = 255
        (values,) = detector.predict_maps(image)
        assert values.shape == shape
        peak = np.unravel_index(values.argmax(), shape)
        resized = plan_geometry(shape, image_size, crop_size).resized
        for found, planted, length, input_length in zip(
            peak, (rows, columns), shape, resized, strict=True
        ):
            # A patch of layer 1 is 4 pixels of the input wide.
            patch = 4 * length / input_length
            assert planted.start - patch <= found < planted.stop + patch


@pytest.fixture(scope="module")
def cropping_detector():
    return make_detector(64, 48).fit(textures(3, (70, 90), seed=0))


def test_maps_of_unequal_images_have_each_its_own_size(cropping_detector):
    shapes = [(70, 90), (64, 64), (40, 100), (64, 64)]
    images = [textures(1, shape, seed=2)[0] for shape in shapes]
    maps = cropping_detector.predict_maps(images)
    assert isinstance(maps, list)
    assert [values.shape for values in maps] == shapes
    masks = cropping_detector.predict_masks(images)
    assert [mask.shape for mask in masks] == shapes
    for image, values in zip(images, maps, strict=True):
        (alone,) = cropping_detector.predict_maps([image])
        assert_allclose(alone, values, rtol=1e-4)
    # The crop makes inputs and grids equal.
    assert cropping_detector.predict_maps(images, size="resized").shape == (4, 48, 48)
    assert cropping_detector.predict_maps(images, size="grid").shape == (4, 12, 12)


def test_maps_of_equal_images_are_one_array(cropping_detector):
    maps = cropping_detector.predict_maps(textures(2, (70, 90), seed=2))
    assert maps.shape == (2, 70, 90)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()


def test_rim_of_cropped_images_is_marked_on_request(cropping_detector):
    images = textures(2, (70, 90), seed=2)
    maps = cropping_detector.predict_maps(images, border="nan")
    seen = seen_pixels(plan_geometry((70, 90), 64, 48))
    assert 0 < seen.sum() < seen.size
    assert_array_equal(np.isfinite(maps), np.broadcast_to(seen, maps.shape))


@pytest.mark.parametrize("size", ["original", "resized", "grid"])
def test_without_a_crop_there_is_no_nan(size):
    detector = make_detector(32).fit(textures(3, (40, 48), seed=0))
    maps = detector.predict_maps(textures(2, (40, 48), seed=2), size=size, border="nan")
    assert np.isfinite(maps).all()


def test_grid_holds_the_score_of_the_image(cropping_detector):
    images = textures(3, (70, 90), seed=2)
    grids = cropping_detector.predict_maps(images, size="grid")
    assert_allclose(
        -grids.max(axis=(1, 2)), cropping_detector.score_samples(images), rtol=1e-5
    )


def test_masks_are_maps_beyond_the_threshold(cropping_detector):
    images = textures(2, (70, 90), seed=2)
    maps = cropping_detector.predict_maps(images)
    threshold = float(np.median(maps))
    masks = cropping_detector.predict_masks(images, threshold=threshold)
    assert masks.dtype == bool
    assert_array_equal(masks, maps > threshold)
    assert_array_equal(
        cropping_detector.predict_masks(images),
        maps > cropping_detector.map_threshold_,
    )
