import numpy as np
import pytest
from PIL import Image
from sklearn.utils import Bunch

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._benchmark import _evaluate as benchmark
from skpatchcore._benchmark._tables import PIXEL_COLUMNS

FEATURES = PatchFeatureTransformer(
    "resnet18", ("layer1",), weights="random", image_size=32, random_state=0
)


def write_images(folder, n=2, size=(32, 32), seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


def test_settings_reach_the_estimator_that_has_them():
    detector = benchmark.build_detector(
        {
            "layers": ("layer1",),
            "coreset_fraction": 7,
            "device": "cpu",
            "metric": "cosine",
        }
    )
    assert detector.features.layers == ("layer1",)
    assert detector.features.device is None
    assert detector.sampler.fraction == 7
    assert (detector.device, detector.metric) == ("cpu", "cosine")


def test_without_settings_the_detector_is_the_default_one():
    default = PatchCoreDetector(PatchFeatureTransformer(), CoresetSampler())
    assert repr(benchmark.build_detector({})) == repr(default)


def test_a_setting_that_nobody_has_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        benchmark.build_detector({"colour": "red"})


def test_categories_are_all_or_those_wanted(tmp_path):
    for name in ("nut", "bolt"):
        (tmp_path / name / "train" / "good").mkdir(parents=True)
    assert benchmark.choose_categories(tmp_path, None) == ["bolt", "nut"]
    assert benchmark.choose_categories(tmp_path, ["nut"]) == ["nut"]
    with pytest.raises(ValueError, match=r"'nuts'.*bolt, nut. Did you mean 'nut'\?"):
        benchmark.choose_categories(tmp_path, ["nut", "nuts"])


def test_a_category_in_place_of_its_parent_is_explained(tmp_path):
    (tmp_path / "nut" / "train" / "good").mkdir(parents=True)
    with pytest.raises(ValueError, match="parent folder, and --categories nut"):
        benchmark.choose_categories(tmp_path / "nut", None)


def test_a_folder_without_categories_is_explained(tmp_path):
    with pytest.raises(ValueError, match="train/good"):
        benchmark.choose_categories(tmp_path, None)


def test_settings_are_tried_on_the_first_category_that_can_be_read(tmp_path):
    (tmp_path / "bolt" / "train" / "good").mkdir(parents=True)
    write_images(tmp_path / "nut" / "train" / "good")
    benchmark.try_settings(PatchCoreDetector(FEATURES, CoresetSampler()), tmp_path, [])
    wrong = PatchFeatureTransformer("resnet18", ("layer9",), weights="random")
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        benchmark.try_settings(
            PatchCoreDetector(wrong, CoresetSampler()), tmp_path, ["bolt", "nut"]
        )


def test_settings_out_of_range_are_found_without_any_image(tmp_path):
    detector = PatchCoreDetector(FEATURES, CoresetSampler(2.0))
    with pytest.raises(ValueError, match="fraction"):
        benchmark.try_settings(detector, tmp_path, [])


def test_scores_and_maps_of_one_pass_are_those_of_the_public_methods():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), np.uint8)
    detector = PatchCoreDetector(FEATURES, CoresetSampler(20), random_state=0)
    detector.fit(images[:2])
    scores, maps = benchmark.score_and_map(detector, images, size="resized")
    np.testing.assert_array_equal(scores, detector.score_samples(images))
    np.testing.assert_array_equal(
        np.stack(maps), detector.predict_maps(images, size="resized")
    )


def test_pixels_are_measured_at_the_size_of_the_networks_input():
    mask = np.zeros((64, 64), bool)
    mask[20:30, 20:30] = True
    test = Bunch(
        data=np.zeros((2, 64, 64, 3), np.uint8),
        target=np.array([1, -1]),
        masks=[None, mask],
    )
    # Half the size, then a crop that takes 4 pixels off every side.
    maps = np.zeros((2, 24, 24))
    maps[1, 6:11, 6:11] = 1
    features = PatchFeatureTransformer(image_size=32, crop_size=24)
    values = benchmark.measure_pixels(test, maps, features)
    assert set(values) == set(PIXEL_COLUMNS)
    assert set(values.values()) == {1.0}


def test_defective_images_without_a_mask_are_left_out_of_pixel_metrics():
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    test = Bunch(
        data=np.zeros((3, 8, 8, 3), np.uint8),
        target=np.array([1, -1, -1]),
        masks=[None, mask, None],
    )
    maps = np.stack([np.zeros((8, 8)), mask.astype(float), np.ones((8, 8))])
    features = PatchFeatureTransformer(image_size=None)
    assert benchmark.measure_pixels(test, maps, features)["pixel_auroc"] == 1
    test.masks = [None] * 3
    values = benchmark.measure_pixels(test, maps, features)
    assert values == dict.fromkeys(PIXEL_COLUMNS)
