"""Defect regions of masks, against scikit-image and by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import label, regionprops

from skpatchcore._detectors._regions import find_regions, trace_outlines


def random_map(seed, shape=(40, 53), smoothing=1.5):
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, smoothing) if smoothing else noise


def shoelace(polygon):
    x, y = np.asarray(polygon).T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def fill(polygon, shape):
    """Return the pixels whose centre is inside a polygon of pixel corners."""
    # Centres of pixels are at integers in scikit-image.
    return polygon2mask(shape, np.asarray(polygon)[:, ::-1] - 0.5)


MAPS = {
    "smooth": (0.2, 1.5),
    "many small": (0.5, 0.5),
    "noise, which touches at corners": (0.3, 0.0),
    "nearly all, with holes": (-0.5, 0.5),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("seed", range(3))
def test_regions_are_those_of_scikit_image(name, seed):
    threshold, smoothing = MAPS[name]
    values = random_map(seed, smoothing=smoothing)
    threshold *= values.std()
    found = find_regions(values, threshold)
    numbers = label(values > threshold, connectivity=2)
    expected = sorted(regionprops(numbers, values), key=lambda one: -one.intensity_max)
    assert len(found) == len(expected) >= 1
    for region, other in zip(found, expected, strict=True):
        top, left, bottom, right = other.bbox
        assert region.box == (left, top, right - left, bottom - top)
        assert region.area == other.area
        assert_allclose(
            [region.peak, region.mean], [other.intensity_max, other.intensity_mean]
        )
        assert 1 - len(region.holes) == other.euler_number


@pytest.mark.parametrize("name", MAPS)
def test_outlines_less_holes_are_the_mask(name):
    threshold, smoothing = MAPS[name]
    values = random_map(7, smoothing=smoothing)
    threshold *= values.std()
    rebuilt = np.zeros(values.shape, dtype=int)
    for region in find_regions(values, threshold):
        assert shoelace(region.polygon) + sum(map(shoelace, region.holes)) == (
            region.area
        )
        rebuilt += fill(region.polygon, values.shape)
        for hole in region.holes:
            assert shoelace(hole) < 0
            rebuilt -= fill(hole, values.shape)
        x, y, width, height = region.box
        assert_array_equal(region.polygon.min(axis=0), [x, y])
        assert_array_equal(region.polygon.max(axis=0), [x + width, y + height])
    assert_array_equal(rebuilt, values > threshold)


def test_a_pixel_is_a_square_of_corners():
    values = np.zeros((4, 5))
    values[1, 3] = 2.0
    (region,) = find_regions(values, 1.0)
    assert region.box == (3, 1, 1, 1)
    assert region.polygon.tolist() == [[3, 1], [4, 1], [4, 2], [3, 2]]
    assert (region.area, region.peak, region.mean) == (1, 2.0, 2.0)


def test_pixels_that_touch_at_a_corner_are_one_region():
    (region,) = find_regions(np.eye(3), 0.5)
    assert region.area == 3
    assert len(region.polygon) == 12
    assert region.holes == ()


def test_a_hole_is_an_outline_of_its_own():
    values = np.ones((3, 4))
    values[1, 1:3] = 0
    (region,) = find_regions(values, 0.5)
    assert region.area == 10
    assert region.polygon.tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]
    (hole,) = region.holes
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [3, 1], [3, 2]]


def test_the_highest_peak_comes_first_and_small_regions_are_left_out():
    values = np.zeros((5, 9))
    values[0, 0], values[2, 2:5], values[4, 6:8] = 3.0, 2.0, 4.0
    assert [one.peak for one in find_regions(values, 1.0)] == [4.0, 3.0, 2.0]
    assert [one.area for one in find_regions(values, 1.0, min_area=2)] == [2, 3]
    assert find_regions(values, 1.0, min_area=4) == []


def test_nan_is_in_no_region():
    values = np.full((3, 3), np.nan)
    assert find_regions(values, 0.0) == []
    values[0, 0] = 1.0
    assert [one.area for one in find_regions(values, 0.0)] == [1]


@pytest.mark.parametrize("min_area", [0, -1, 1.5, True, "2", None])
def test_a_wrong_area_is_refused(min_area):
    with pytest.raises(ValueError, match=r"min_area=.*expected an integer"):
        find_regions(np.ones((2, 2)), 0.5, min_area)


def test_a_region_as_a_dict_is_of_plain_numbers():
    (region,) = find_regions(np.ones((2, 3), np.float32), 0.5)
    assert region.as_dict() == {
        "box": [0, 0, 3, 2],
        "polygon": [[0, 0], [3, 0], [3, 2], [0, 2]],
        "holes": [],
        "area": 6,
        "peak": 1.0,
        "mean": 1.0,
    }


def test_corners_are_only_where_an_outline_turns():
    for loop in trace_outlines(random_map(3) > 0):
        steps = np.sign(np.roll(loop, -1, axis=0) - loop)
        assert (np.abs(steps).sum(axis=1) == 1).all()
        assert (steps != np.roll(steps, 1, axis=0)).all()
