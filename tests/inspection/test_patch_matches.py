import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._images._geometry import plan_geometry
from skpatchcore._images._input import check_images
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects
from skpatchcore.inspection import PatchMatchDisplay, animate_patch_matches
from skpatchcore.inspection._patch_boxes import PatchPlaces, find_matches, patch_box
from skpatchcore.inspection._patch_matches import window

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

FEATURES = PatchFeatureTransformer("gabor", ("fine",), image_size=64, patch_size=1)


@pytest.fixture(scope="module")
def surfaces():
    return make_surface_defects(6, 1, 2, image_size=64, random_state=0)


@pytest.fixture(scope="module")
def train(surfaces):
    return surfaces.data[:6]


@pytest.fixture(scope="module")
def detector(train):
    sampler = CoresetSampler(method="none")
    return PatchCoreDetector(FEATURES, sampler, random_state=0).fit(train)


def test_a_box_is_where_the_patch_was_before_resizing_and_cropping():
    # 100 x 200 becomes 50 x 100, of which the middle 40 x 40 is seen, in 4 x 5 patches.
    geometry = plan_geometry((100, 200), 50, 40)
    first = patch_box(geometry, (4, 5), (0, 0), 1.0)
    np.testing.assert_allclose(first, [10, 60, 30, 76])
    last = patch_box(geometry, (4, 5), (3, 4), 1.0)
    np.testing.assert_allclose(last, [70, 124, 90, 140])
    larger = patch_box(geometry, (4, 5), (3, 4), 3.0)
    np.testing.assert_allclose(larger, [50, 108, 110, 156])


def test_what_is_shown_of_a_image_stays_inside_it():
    assert window(4, 6, 3, 10) == (2, 8)
    assert window(0, 2, 3, 10) == (0, 6)
    assert window(-1, 1, 3, 10) == (0, 6)
    assert window(8, 10, 3, 10) == (4, 10)
    assert window(4, 6, 30, 10) == (0, 10)


def test_a_training_image_matches_itself_patch_for_patch(detector, train):
    """With every patch kept, the oracle is the patch itself."""
    patches = [(2, 3), (7, 0)]
    found = find_matches(detector, train[[4, 1]], train, patches, 2)
    np.testing.assert_array_equal(found.match_images[:, 0], [4, 1])
    np.testing.assert_allclose(found.match_boxes[:, 0], found.boxes)
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=1e-6)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    side = 64 / detector.predict_maps(train[:1], size="grid").shape[1]
    np.testing.assert_allclose(found.boxes[1], [7 * side, 0, 8 * side, side])


def test_boxes_are_those_of_the_fit_if_parameters_are_set_later(train):
    detector = PatchCoreDetector(FEATURES, random_state=0).fit(train)
    expected = find_matches(detector, train[:1], train, [(2, 3)], 1)
    detector.features_.set_params(patch_size=5, patch_stride=2, image_size=32)
    found = find_matches(detector, train[:1], train, [(2, 3)], 1)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.match_boxes, expected.match_boxes)


def test_without_places_the_most_anomalous_patch_is_shown(detector, train, surfaces):
    odd = surfaces.data[-2:]
    found = find_matches(detector, odd, train, None, 1)
    maps = detector.predict_maps(odd, size="grid")
    for values, box, distance in zip(maps, found.boxes, found.distances, strict=True):
        row, column = np.unravel_index(values.argmax(), values.shape)
        side = 64 / len(values)
        np.testing.assert_allclose(box[:2], [row * side, column * side])
        assert distance == pytest.approx(values.max(), rel=1e-6)


def test_matches_of_a_coreset_are_patches_that_were_kept(train, surfaces):
    detector = PatchCoreDetector(FEATURES, CoresetSampler(5), random_state=0)
    detector.fit(train)
    found = find_matches(detector, surfaces.data[-2:], train, None, 5)
    # With five patches kept, all of them are among the five nearest.
    kept = detector.memory_bank_.bank_indices_
    per_image = np.bincount(kept // detector._training_shapes[0].prod(), minlength=6)
    for images in found.match_images:
        np.testing.assert_array_equal(np.bincount(images, minlength=6), per_image)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_conformal_detector_names_images_of_its_own_fit(detector, train, frozen):
    if frozen:
        outer = ConformalDetector(FrozenEstimator(detector), alpha=0.2).fit(train)
    else:
        method = {"method": "split", "calibration_size": 4, "random_state": 0}
        outer = ConformalDetector(detector, alpha=0.2, **method).fit(train)
    kept = np.setdiff1d(range(6), [] if frozen else outer.calibration_indices_)
    found = find_matches(outer, train[kept], train, None, 1)
    np.testing.assert_array_equal(found.match_images[:, 0], kept)
    np.testing.assert_allclose(found.match_boxes[:, 0], found.boxes)


def test_what_has_no_bank_is_refused(train):
    bank = PatchMemoryBank().fit(np.zeros((4, 2)))
    with pytest.raises(TypeError, match=r"detector with predict_maps.*PatchMemoryBank"):
        PatchPlaces(bank, train)
    with pytest.raises(NotFittedError):
        PatchPlaces(PatchCoreDetector(), train)


def test_matches_of_folds_are_those_of_the_nearest_bank(detector, train):
    cross = ConformalDetector(detector, alpha=0.2, cv=3).fit(train)
    found = find_matches(cross, train[:2], train, None, 2)
    own = [e.nearest_patches(train[:2], 2) for e in cross.estimators_]
    places = PatchPlaces(cross, train)
    matches = places.matches(check_images(train).take([0]), 2)
    expected = np.sort([m.distance[0, ..., 0] for m in own], axis=0)[0]
    assert_allclose(matches.distance[..., 0], expected)
    assert (found.match_images >= 0).all()
    # A training image is in the bank of the folds that did not hold it out.
    assert_array_equal(found.match_images[:, 0], [0, 1])


def test_fewer_training_images_than_were_learned_from_are_refused(detector, train):
    with pytest.raises(ValueError, match=r"has 4 images.*fitted on image 5"):
        PatchPlaces(detector, train[:4])


@pytest.fixture
def files(train, tmp_path):
    paths = [tmp_path / f"good_{i}.png" for i in range(6)]
    for pixels, path in zip(train, paths, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_only_training_images_that_match_must_still_be_there(detector, train, files):
    files[0].unlink()
    files[1].write_bytes(b"no image")
    display = PatchMatchDisplay.from_estimator(
        detector, train[2:3], training_images=files, n_neighbors=1
    )
    assert display.axes_[0, 2].get_xlabel() == "from good_2.png"
    for i in (0, 1):
        with pytest.raises(FileNotFoundError, match=rf"image {i} .*good_{i}\.png"):
            PatchMatchDisplay.from_estimator(
                detector, train[i : i + 1], training_images=files, n_neighbors=1
            )


def test_a_sheet_shows_image_patch_and_matches(detector, train, surfaces):
    display = PatchMatchDisplay.from_estimator(
        detector, surfaces.data[-2:], training_images=train, titles=["a", "b"]
    )
    assert display.axes_.shape == (2, 5)
    assert [row[0].get_ylabel() for row in display.axes_] == ["a", "b"]
    assert display.figure_.get_suptitle() == "Patches and the nearest normal patches"
    assert display.axes_[0, 2].get_title().startswith("nearest normal patch\ndistance")
    assert display.axes_[1, 4].get_title().startswith("distance")
    # The axes show the surroundings of the patch, but hold the whole image.
    axes = display.axes_[1, 2]
    assert axes.images[0].get_array().shape == (64, 64, 3)
    assert np.ptp(axes.get_xlim()) == pytest.approx(2.5 * axes.patches[0].get_width())
    whole = display.plot(surroundings=None)
    assert whole.axes_[1, 2].get_xlim() == (-0.5, 63.5)
    display.figure_.canvas.draw()


def test_two_detectors_can_stand_side_by_side(detector, train, surfaces):
    cosine = PatchCoreDetector(FEATURES, metric="cosine", random_state=0).fit(train)
    figure, grid = plt.subplots(1, 2)
    for axes, one in zip(grid, (detector, cosine), strict=True):
        display = PatchMatchDisplay.from_estimator(
            one, surfaces.data[-1:], training_images=train, n_neighbors=1, ax=axes
        )
        assert display.figure_ is figure
        assert display.axes_.shape == (1, 3)


@pytest.mark.parametrize("patch", [(99, 0), (0, -1), (1, 2, 3)])
def test_a_patch_outside_the_grid_is_named(detector, train, patch):
    with pytest.raises(ValueError, match=r"patches\[0\] is .*grid of \d+ x \d+"):
        PatchMatchDisplay.from_estimator(
            detector, train[:1], training_images=train, patches=[patch]
        )


def test_places_that_are_known_can_be_drawn(train):
    places = {
        "training_images": train,
        "match_images": [[3, 0]],
        "match_boxes": [[[0, 0, 8, 8], [8, 8, 16, 16]]],
        "distances": [[1.0, 2.0]],
    }
    display = PatchMatchDisplay.from_predictions(train[:1], [[4, 4, 12, 12]], **places)
    drawn = display.axes_[0, 2].images[0].get_array()
    np.testing.assert_allclose(drawn, train[3] / 255)
    assert display.axes_[0, 3].get_xlabel() == "from image 0"
    with pytest.raises(ValueError, match=r"\(1, 2\), \(1, 2, 4\) and \(1, 1\)"):
        PatchMatchDisplay.from_predictions(
            train[:1], [[4, 4, 12, 12]], **{**places, "distances": [[1.0]]}
        )
    with pytest.raises(ValueError, match=r"surroundings=0\.5"):
        display.plot(surroundings=0.5)


# Animations -------------------------------------------------------------------------


def test_an_animation_walks_over_the_patches(detector, train, surfaces, tmp_path):
    path = animate_patch_matches(
        detector,
        surfaces.data[-1],
        tmp_path / "walk.gif",
        training_images=train,
        max_frames=4,
        fps=2,
    )
    with Image.open(path) as movie:
        assert 2 <= movie.n_frames <= 5
        assert movie.info["duration"] == 500
        frames = []
        for i in range(movie.n_frames):
            movie.seek(i)
            frames.append(np.asarray(movie.convert("RGB")))
    assert all((a != b).any() for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "walk.avi"}, r"'walk\.avi' must end in \.gif or \.mp4"),
        ({"path": "walk.gif", "step": 0}, "step=0 must be positive"),
        ({"path": "walk.gif", "max_frames": 0}, "max_frames=0 must be positive"),
        ({"path": "walk.gif", "fps": 0}, "fps=0 must be positive"),
    ],
)
def test_wrong_settings_of_an_animation_are_named(detector, train, settings, message):
    with pytest.raises(ValueError, match=message):
        animate_patch_matches(detector, train[0], training_images=train, **settings)


def test_without_ffmpeg_a_movie_is_refused(detector, train, tmp_path, monkeypatch):
    from matplotlib.animation import writers

    monkeypatch.setattr(writers, "is_available", lambda name: name != "ffmpeg")
    path = tmp_path / "walk.mp4"
    with pytest.raises(RuntimeError, match=r"walk\.mp4 needs ffmpeg.*\.gif"):
        animate_patch_matches(detector, train[0], path, training_images=train)
    assert not path.exists()
