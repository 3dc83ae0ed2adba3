import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images import check_images
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects
from skpatchcore.inspection import AnomalyMapDisplay, _colors
from skpatchcore.inspection._axes import row_titles
from skpatchcore.inspection._overlays import (
    blend_overlay,
    color_limits,
    draw_overlay,
    threshold_limits,
)

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def images():
    """Two images of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((20, 24), (16, 30))]


@pytest.fixture
def maps(images):
    rng = np.random.default_rng(1)
    return [rng.random(image.shape[:2]) for image in images]


class Ramp:
    """An estimator whose maps rise from 0 on the left to 1 on the right."""

    map_threshold_ = 0.6

    def predict_maps(self, X):
        return [np.tile(np.linspace(0, 1, x.shape[1]), (x.shape[0], 1)) for x in X]


def titles_of(display):
    return [row[0].get_ylabel() for row in display.axes_]


def legend_of(display):
    legend = display.axes_[-1, -1].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_a_sheet_has_a_row_for_each_image(images):
    display = AnomalyMapDisplay.from_estimator(Ramp(), images)
    assert display.axes_.shape == (2, 4)
    assert display.figure_ is display.axes_[1, 3].figure
    assert [axes.get_title() for axes in display.axes_[0]] == [
        "input",
        "anomaly map",
        "overlay",
        "defect",
    ]
    assert titles_of(display) == ["image 0", "image 1"]
    assert display.figure_.get_suptitle() == "Anomaly maps"
    display.figure_.canvas.draw()


def test_all_maps_share_one_scale_with_the_threshold_in_its_middle(images):
    display = AnomalyMapDisplay.from_estimator(Ramp(), images)
    for row in display.axes_:
        assert row[1].images[0].get_clim() == pytest.approx((0.3, 0.9))
    ticks = [label.get_text() for label in display.colorbar_.ax.get_yticklabels()]
    assert ticks == ["0.3", "0.6\nthreshold", "0.9"]
    assert display.colorbar_.extend == "both"


def test_without_a_threshold_the_scale_is_the_range_of_the_maps(images, maps):
    display = AnomalyMapDisplay.from_predictions(images, maps)
    low, high = display.axes_[0, 1].images[0].get_clim()
    assert low == min(m.min() for m in maps)
    assert high == max(m.max() for m in maps)
    assert display.axes_.shape == (2, 3)  # Nothing to outline.


@pytest.fixture(scope="module")
def calibrated():
    """A calibrated detector, and its training images."""
    train = make_surface_defects(6, 0, 0, image_size=32, random_state=0).data
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    detector = PatchCoreDetector(features, random_state=0)
    conformal = ConformalDetector(detector, alpha=0.2, cv=2, random_state=0)
    return conformal.fit(train), train


def test_calibrated_maps_are_on_one_scale_for_all_detectors(calibrated):
    detector, train = calibrated
    display = AnomalyMapDisplay.from_estimator(detector, train[:2])
    np.testing.assert_array_equal(
        display.maps, detector.predict_maps(train[:2], normalized=True)
    )
    assert display.axes_[0, 1].images[0].get_clim() == (1 / 8, 7 / 8)
    ticks = [label.get_text() for label in display.colorbar_.ax.get_yticklabels()]
    assert ticks == ["0.125\ntypical\nnormal", "0.5\nthreshold", "0.875"]
    assert display.colorbar_.ax.get_ylabel() == "calibrated score"


def test_a_given_threshold_is_on_the_scale_of_the_detector(calibrated):
    detector, train = calibrated
    display = AnomalyMapDisplay.from_estimator(detector, train[:2], threshold=0.3)
    np.testing.assert_array_equal(display.maps, detector.predict_maps(train[:2]))
    limits = display.axes_[0, 1].images[0].get_clim()
    assert limits == pytest.approx((0.15, 0.45))


def test_the_ground_truth_can_be_shown_alone(images, maps):
    mask = np.zeros((20, 24), bool)
    mask[:5, :5] = True
    display = AnomalyMapDisplay.from_predictions(
        images, maps, masks=[mask, None], columns=["truth"]
    )
    np.testing.assert_array_equal(display.axes_[0, 0].images[0].get_array(), mask)
    assert not display.axes_[1, 0].images[0].get_array().any()
    with pytest.raises(ValueError, match="'truth', but masks is None"):
        AnomalyMapDisplay.from_predictions(images, maps, columns=["truth"])


def test_limits_and_colours_can_be_chosen(images, maps):
    display = AnomalyMapDisplay.from_predictions(
        images, maps, threshold=0.5, vmin=0, vmax=2, cmap="viridis", colorbar=False
    )
    drawn = display.axes_[1, 1].images[0]
    assert drawn.get_clim() == (0, 2)
    assert drawn.get_cmap().name == "viridis"
    assert display.colorbar_ is None


def test_masks_are_shown_with_predictions(images, maps):
    mask = np.zeros((20, 24), bool)
    mask[:5, :5] = True
    display = AnomalyMapDisplay.from_predictions(
        images, maps, masks=[mask, None], threshold=0.5, titles=["bad", "good"]
    )
    assert legend_of(display) == ["true", "predicted"]
    assert titles_of(display) == ["bad", "good"]
    tint = display.axes_[0, 3].images[1].get_array()
    np.testing.assert_array_equal(tint[..., 3] > 0, mask)
    # The outline leaves the limits of the image as they are.
    assert display.axes_[0, 3].get_xlim() == (-0.5, 23.5)
    assert display.axes_[0, 3].get_ylim() == (19.5, -0.5)


def test_the_legend_names_only_what_is_known(images, maps):
    no_defects = AnomalyMapDisplay.from_predictions(images, maps, masks=[None, None])
    assert legend_of(no_defects) == ["true"]
    predicted = AnomalyMapDisplay.from_predictions(images, maps, threshold=2.0)
    assert legend_of(predicted) == ["predicted"]


def test_all_inputs_of_estimators_can_be_drawn(images, maps, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "nut.png")
    mixed = [tmp_path / "nut.png", Image.fromarray(images[1]), images[1] / 255]
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((20, 24), 255, np.uint8)).save(mask)
    display = AnomalyMapDisplay.from_predictions(
        mixed, [*maps, maps[1]], masks=[mask, None, None]
    )
    name = f"{tmp_path.name}/nut.png"
    assert titles_of(display) == [name, "image 1", "image 2"]
    for row in display.axes_[1:]:
        np.testing.assert_allclose(row[0].images[0].get_array(), images[1] / 255)


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("/data/test/scratch/000.png", "scratch/000.png"),
        (Path("scratch", "000.png"), "scratch/000.png"),
        ("000.png", "000.png"),
        (np.zeros((2, 2)), "image 7"),
    ],
)
def test_rows_name_folder_and_file(source, title):
    assert row_titles([None] * 7 + [source])[7] == title


def test_pixels_without_a_score_are_not_coloured(images, maps):
    maps[0][:, :4] = np.nan
    display = AnomalyMapDisplay.from_predictions(images, maps, threshold=0.5)
    overlay = display.axes_[0, 2].images[0].get_array()
    np.testing.assert_allclose(overlay[:, :4], images[0][:, :4] / 255)
    display.figure_.canvas.draw()


def test_one_axes_is_divided_among_the_images(images, maps):
    figure, (left, right) = plt.subplots(1, 2)
    display = AnomalyMapDisplay.from_predictions(images, maps, ax=left)
    assert display.figure_ is figure
    assert figure.get_suptitle() == ""
    assert display.axes_.shape == (2, 3)
    assert not left.axison
    assert right.axison


def test_axes_outside_a_grid_cannot_be_divided(images, maps):
    ax = plt.figure().add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match="cannot be divided"):
        AnomalyMapDisplay.from_predictions(images, maps, ax=ax)


def test_given_axes_are_used(images, maps):
    _, axes = plt.subplots(2, 2)
    display = AnomalyMapDisplay.from_predictions(
        images, maps, ax=axes, columns=["input", "overlay"]
    )
    assert (display.axes_ == axes).all()
    with pytest.raises(ValueError, match="2 images x 1 columns = 2"):
        display.plot(axes, columns=["map"])


def test_a_sheet_can_be_drawn_again(images, maps):
    display = AnomalyMapDisplay(images, maps)
    first = display.plot().figure_
    assert display.plot(columns=["map"]).figure_ is not first
    assert display.axes_.shape == (2, 1)


@pytest.mark.parametrize("columns", [["image"], [], "map"])
def test_unknown_columns_are_named(images, maps, columns):
    with pytest.raises(ValueError, match=r"columns=.*input, map, overlay, mask"):
        AnomalyMapDisplay(images, maps).plot(columns=columns)


def test_a_map_of_another_size_than_its_image_is_named(images, maps):
    maps[1] = maps[1][::2, ::2]
    with pytest.raises(ValueError, match=r"maps\[1\].*image 1 is 16 x 30"):
        AnomalyMapDisplay.from_predictions(images, maps)


def test_as_many_maps_as_images_are_needed(images, maps):
    with pytest.raises(ValueError, match="inconsistent numbers"):
        AnomalyMapDisplay.from_predictions(images, maps[:1])


def test_an_estimator_without_maps_is_refused(images):
    with pytest.raises(TypeError, match="Expected a detector with predict_maps"):
        AnomalyMapDisplay.from_estimator(object(), images)


def test_a_missing_matplotlib_is_named_with_its_remedy(images, maps, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"skpatchcore\[plot\]"):
        AnomalyMapDisplay(images, maps).plot()


def test_an_overlay_of_low_values_is_the_image():
    image = np.random.default_rng(0).random((4, 5, 3))
    low = blend_overlay(image, np.full((4, 5), 0.5), (0.5, 1.5))
    np.testing.assert_array_equal(low, np.rint(255 * image))
    assert low.dtype == np.uint8
    high = blend_overlay(np.zeros((4, 5, 3)), np.full((4, 5), 9.0), (0.5, 1.5))
    assert (high[..., :2] > 150).all()


def test_overlays_without_matplotlib_have_its_colours():
    values = np.linspace(0, 1, 50).reshape(5, 10)
    image = np.zeros((5, 10, 3))
    display = AnomalyMapDisplay.from_predictions([image], [values], vmin=0, vmax=1)
    with_matplotlib = display.axes_[0, 2].images[0].get_array()
    own = blend_overlay(image, values, (0, 1)) / 255
    np.testing.assert_allclose(own, with_matplotlib, atol=0.04)


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_overlays_have_the_colours_of_the_display(is_calibrated):
    images = random_images(12, 24, 24)
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=24)
    detector = PatchCoreDetector(features, random_state=0)
    if is_calibrated:
        detector = ConformalDetector(
            detector, alpha=0.3, method="refit", random_state=0
        )
    detector.fit(images)
    new = random_images(2, 24, 24, seed=1)
    display = AnomalyMapDisplay.from_estimator(detector, new, columns=["overlay"])
    pixels = check_images(new)
    for seen, axes in zip(detector.inspect(new), display.axes_[:, 0], strict=True):
        overlay = draw_overlay(pixels[seen.index], seen) / 255
        # The colours of `blend_overlay` are those of matplotlib up to 0.04.
        np.testing.assert_allclose(overlay, axes.images[0].get_array(), atol=0.04)


def test_an_overlay_depends_on_the_model_and_on_its_image_only():
    images = random_images(8, 24, 24)
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=24)
    detector = PatchCoreDetector(features, random_state=0).fit(images)
    # Such a threshold is learned from identical images.
    for threshold in (detector.map_threshold_, 0.0):
        detector.map_threshold_ = threshold
        new = check_images([np.full((24, 24, 3), 255, np.uint8), images[0]])
        (alone,) = detector.inspect([new.sources[1]])
        _, together = detector.inspect(new)
        first, second = (draw_overlay(new[1], one) for one in (alone, together))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("threshold", [0.0, 1e-3, 7.0])
def test_the_scale_of_a_threshold_is_a_range(threshold):
    low, high = threshold_limits(threshold)
    assert low <= threshold < high
    above = np.float32([[threshold + 1e-2 * (threshold or 1)]])
    image = np.zeros((1, 1, 3))
    assert blend_overlay(image, above, (low, high)).any()


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_limits_of_constant_maps_are_still_a_range(threshold):
    low, high = color_limits(threshold, [np.full((2, 2), 3.0), np.full((2, 2), np.nan)])
    assert (low, high) == (3.0, 4.0)


def lightness(color) -> float:
    """CIELAB lightness of a colour: what is left of it in greyscale."""
    channels = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize(
    ("one", "other"), [("NORMAL", "ANOMALOUS"), ("TRUE_MASK", "PREDICTED_MASK")]
)
def test_opposites_are_distinct_in_greyscale(one, other):
    difference = lightness(getattr(_colors, one)) - lightness(getattr(_colors, other))
    assert abs(difference) > 25
