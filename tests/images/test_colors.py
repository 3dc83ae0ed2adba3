"""Images whose red and blue are swapped are recognised, and others are not."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._images._batches import iter_batches
from skpatchcore._images._colors import learn_cast, warn_if_swapped
from skpatchcore._images._input import check_images
from skpatchcore.calibration import ConformalDetector
from skpatchcore.persistence import load, save

WOOD = (150, 110, 70)


def colored_images(n, color=WOOD, seed=0):
    """Return noise around a colour whose mean varies a little between images."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 20, (n, 32, 32, 1)) + rng.normal(0, 2, (n, 1, 1, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


def swap(images):
    return images[..., ::-1]


def make_detector(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32, **params)
    return PatchCoreDetector(features, random_state=0)


@pytest.fixture(scope="module")
def detector():
    return make_detector().fit(colored_images(12))


SWAPPED = r"{} of {} images fit .* better with red and blue swapped"


def test_swapped_arrays_are_said_with_a_count_and_the_remedy(detector):
    X = np.concatenate([swap(colored_images(4, seed=1)), colored_images(2, seed=2)])
    with pytest.warns(UserWarning, match=SWAPPED.format(4, 6)) as caught:
        detector.predict(X)
    assert len(caught) == 1
    assert "cv2.COLOR_BGR2RGB" in str(caught[0].message)


def test_images_in_the_right_order_are_not_warned_of(detector):
    detector.predict(colored_images(6, seed=1))


def test_files_are_compared_with_swapped_training_images(tmp_path):
    detector = make_detector().fit(swap(colored_images(12)))
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for pixels, path in zip(colored_images(3, seed=1), paths, strict=True):
        Image.fromarray(pixels).save(path)
    with pytest.warns(UserWarning, match=SWAPPED.format(3, 3)):
        detector.predict(paths)


@pytest.mark.parametrize("color", [(128, 128, 128), (128, 140, 127)])
def test_parts_without_a_colour_cast_are_not_warned_of(color):
    detector = make_detector().fit(colored_images(12, color))
    detector.predict(swap(colored_images(6, color, seed=1)))


def test_parts_of_all_colours_are_not_warned_of():
    rng = np.random.default_rng(0)
    colors = [colored_images(1, rng.integers(0, 256, 3)) for _ in range(12)]
    detector = make_detector().fit(np.concatenate(colors))
    detector.predict(swap(colored_images(6, seed=1)))


FITS = {
    "detector": lambda X: make_detector().fit(X),
    "transformer": lambda X: make_detector().features.fit_transform(X),
    "pipeline": lambda X: make_pipeline(
        make_detector().features, PatchMemoryBank(random_state=0)
    ).fit(X),
}


@pytest.mark.parametrize("n_swapped", [2, 6, 9])
@pytest.mark.parametrize("fit", FITS)
def test_training_images_in_both_orders_are_said(fit, n_swapped):
    X = colored_images(12)
    X[:n_swapped] = swap(X[:n_swapped])
    said = f"{min(n_swapped, 12 - n_swapped)} of 12 training images look like the oth"
    with pytest.warns(UserWarning, match=said) as caught:
        FITS[fit](X)
    assert len(caught) == 1


def test_anomalous_images_do_not_count_as_training_images():
    X = colored_images(12)
    X[:6] = swap(X[:6])
    y = np.repeat([-1, 1], 6)
    make_detector().features.fit_transform(X, y)
    make_detector().fit(X, y)


@pytest.mark.parametrize("n_swapped", [1, 3])
def test_few_training_images_are_not_taken_for_swapped(n_swapped):
    X = colored_images(5)
    X[:n_swapped] = swap(X[:n_swapped])
    make_detector().fit(X)


def test_a_pipeline_says_that_images_are_swapped():
    pipeline = make_pipeline(
        make_detector().features, PatchMemoryBank(random_state=0)
    ).fit(colored_images(12))
    pipeline.predict(colored_images(6, seed=1))
    with pytest.warns(UserWarning, match=SWAPPED.format(4, 4)) as caught:
        pipeline.predict(swap(colored_images(4, seed=1)))
    assert len(caught) == 1


def test_a_transformer_that_saw_one_image_compares_with_none():
    features = make_detector().features.set_params(layer_weights=(1,))
    features.fit(swap(colored_images(12))).transform(colored_images(4))


def test_a_later_fit_forgets_the_cast():
    features = make_detector().features.set_params(layer_weights=(1,))
    features.fit_transform(swap(colored_images(12)))
    features.fit(colored_images(12)).transform(colored_images(4))


def test_frozen_features_keep_their_cast_in_a_file(tmp_path):
    features = make_detector().features
    features.fit_transform(colored_images(12))
    detector = PatchCoreDetector(FrozenEstimator(features), random_state=0)
    save(detector.fit(colored_images(12)), tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc").features.estimator
    assert_array_equal(loaded._color_cast, features._color_cast)


def test_other_light_is_not_mistaken_for_a_swap(detector):
    for color in [(110, 110, 110), (70, 90, 250), (200, 110, 20), (160, 110, 100)]:
        detector.predict(colored_images(4, color, seed=1))


def test_a_minority_of_swapped_images_is_not_warned_of(detector):
    X = [*swap(colored_images(2, seed=1)), *colored_images(3, seed=2)]
    detector.predict(X)


def test_a_cache_changes_no_answer(tmp_path):
    fits = [
        make_detector(memory=memory).fit(colored_images(6))
        for memory in (None, str(tmp_path), str(tmp_path))
    ]
    casts = [fit._color_cast.tolist() for fit in fits]
    assert casts[0] == casts[1] == casts[2]
    for fit in fits:
        with pytest.warns(UserWarning, match=SWAPPED.format(3, 3)):
            fit.predict(swap(colored_images(3, seed=1)))


def test_augmentation_does_not_change_the_cast():
    plain, turned = (
        make_detector().set_params(augmentation=name).fit(colored_images(4))
        for name in (None, "brightness")
    )
    assert plain._color_cast.tolist() == turned._color_cast.tolist()


def test_a_loaded_detector_warns(detector, tmp_path):
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    with pytest.warns(UserWarning, match=SWAPPED.format(3, 3)):
        loaded.predict(swap(colored_images(3, seed=1)))


def test_several_detectors_inside_say_it_once():
    calibrated = ConformalDetector(make_detector(), alpha=0.2, cv=3, random_state=0)
    calibrated.fit(colored_images(12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        calibrated.predict(swap(colored_images(3, seed=1)))
    assert sum("swapped" in str(one.message) for one in caught) == 1


def test_the_cast_is_red_minus_blue():
    images = check_images(np.full((1, 8, 8, 3), (255, 0, 51), np.uint8))
    ((_, _, (geometry,)),) = iter_batches(images, None, None, 1)
    assert geometry.cast == pytest.approx(0.8)


def test_no_images_are_no_reason_to_warn():
    warn_if_swapped(check_images(colored_images(1)), [], learn_cast([0.2, 0.2]))
