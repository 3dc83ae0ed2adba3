"""Images that come from an iterator, such as a camera."""

import io
import itertools
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageSequence
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._detectors import find_detector
from skpatchcore._images import check_images
from skpatchcore._images._streams import iter_windows
from skpatchcore.calibration import ConformalDetector
from skpatchcore.scoring import find_unreadable, score_images

SIDE = 16
IMAGES = random_images(100, SIDE, SIDE)


def make_detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=SIDE)
    return PatchCoreDetector(features, random_state=0)


@pytest.fixture(scope="module")
def detector():
    return make_detector().fit(IMAGES[:10])


def counted(images, taken):
    for image in images:
        taken.append(len(taken))
        yield image


def test_a_stream_gives_what_a_sequence_gives(detector):
    found = list(detector.inspect(iter(IMAGES)))
    assert [seen.index for seen in found] == list(range(100))
    assert_allclose([seen.score for seen in found], detector.score_samples(IMAGES))
    assert_allclose([seen.map for seen in found], detector.predict_maps(IMAGES))


def test_a_stream_without_end_is_read_as_it_is_used(detector):
    taken = []
    stream = counted(itertools.cycle(IMAGES), taken)
    seen = list(itertools.islice(detector.inspect(stream), 70))
    assert [one.index for one in seen] == list(range(70))
    assert len(taken) <= 96


def test_images_of_several_sizes_come_in_order(detector):
    rng = np.random.default_rng(0)
    sizes = rng.integers(SIDE, 3 * SIDE, (50, 2))
    images = [random_images(1, h, w, seed=i)[0] for i, (h, w) in enumerate(sizes)]
    found = list(detector.inspect(iter(images)))
    assert [seen.map.shape for seen in found] == [image.shape[:2] for image in images]
    expected = detector.score_samples(images)
    assert_allclose([seen.score for seen in found], expected, rtol=1e-5)


def test_a_slow_stream_is_not_waited_for():
    def camera():
        for image in IMAGES[:6]:
            time.sleep(0.04)
            yield image

    assert max(map(len, iter_windows(camera()))) <= 3


def test_after_a_pause_no_image_waits_for_the_next():
    def line():
        for image in IMAGES[:6]:
            time.sleep(0.06)
            yield image
            # A second part follows closely, and then nothing for a while.
            yield image

    assert list(map(len, iter_windows(line()))) == [1] * 12


def test_a_fast_stream_is_batched_again_after_a_pause():
    def stream():
        time.sleep(0.6)
        yield from IMAGES

    lengths = list(map(len, iter_windows(stream(), patience=0.5)))
    assert max(lengths[:32]) == 1
    assert max(lengths) > 10


def test_windows_are_bounded_by_number_and_bytes():
    windows = iter_windows(iter(IMAGES), patience=60)
    assert list(map(len, windows)) == [32, 32, 32, 4]
    n_bytes = 5 * IMAGES[0].nbytes
    windows = iter_windows(iter(IMAGES), patience=60, most_bytes=n_bytes)
    assert set(map(len, windows)) == {5}


@pytest.mark.parametrize("kind", ["array", "tensor", "bytearray"])
@pytest.mark.parametrize("use", ["inspect", "predict"])
def test_a_buffer_may_be_used_for_each_image(detector, kind, use):
    buffer = np.empty((SIDE, SIDE, 3), np.uint8)
    given = {
        "array": buffer,
        "tensor": torch.from_numpy(buffer).permute(2, 0, 1),
        "bytearray": bytearray(),
    }[kind]

    def camera():
        for image in IMAGES[:5]:
            buffer[:] = image
            if kind == "bytearray":
                given[:] = png(image)
            yield given

    if use == "inspect":
        scores = [seen.score for seen in detector.inspect(camera())]
    else:
        scores = detector.score_samples(camera())
    assert len(set(scores)) == 5
    assert_allclose(scores, detector.score_samples(IMAGES[:5]))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_frames_of_an_animation_are_distinct(tmp_path):
    path = tmp_path / "animation.png"
    frames = [Image.fromarray(image) for image in IMAGES[:4]]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as animation:
        images = check_images(ImageSequence.Iterator(animation))
        found = np.stack([images[i] for i in range(4)])
    assert_array_equal(np.rint(255 * found), IMAGES[:4])


def test_images_before_a_failure_of_the_stream_are_inspected(detector):
    def camera():
        yield from IMAGES[:3]
        raise ConnectionError("cable")

    found = []
    with pytest.raises(ConnectionError, match="cable"):
        found.extend(detector.inspect(camera()))
    assert [seen.index for seen in found] == [0, 1, 2]


def test_a_used_generator_is_refused(detector):
    stream = iter(IMAGES[:2])
    assert len(list(detector.inspect(stream))) == 2
    with pytest.raises(ValueError, match="Found 0 images"):
        next(detector.inspect(stream))


def test_errors_name_the_number_in_the_stream(detector):
    bad = np.full((SIDE, SIDE), np.nan)
    stream = itertools.chain(IMAGES[:40], [bad])
    with pytest.raises(ValueError, match="image 40 contains NaN"):
        list(detector.inspect(stream))


def test_score_images_goes_on_in_a_stream(detector):
    bad = np.full((SIDE, SIDE), np.nan)
    images = [*IMAGES[:33], bad, *IMAGES[33:40], "missing.png"]
    results = score_images(detector, iter(images), on_error="nan")
    expected = score_images(detector, images, on_error="nan")
    assert_array_equal(results.index, np.arange(42))
    assert_allclose(results.score, expected.score)
    assert results.unreadable == expected.unreadable
    assert [one.index for one in results.unreadable] == [33, 41]


def test_unreadable_images_of_a_stream_are_found():
    bad = np.full((SIDE, SIDE), np.nan)
    images = [*IMAGES[:33], bad, *IMAGES[33:40], "missing.png"]
    assert find_unreadable(iter(images)) == find_unreadable(images)
    assert [one.index for one in find_unreadable(iter(images))] == [33, 41]


def test_transformers_before_the_detector_see_windows(detector):
    brighter = FunctionTransformer(lambda X: np.clip(np.asarray(X) + 9, 0, 255))
    pipeline = make_pipeline(brighter, make_detector()).fit(IMAGES[:10])
    taken = []
    found = find_detector(pipeline).inspect(counted(IMAGES, taken))
    first = next(found)
    assert len(taken) <= 32
    assert_allclose(first.score, pipeline.score_samples(IMAGES[:1])[0])
    assert [seen.index for seen in found] == list(range(1, 100))


def test_calibrated_detectors_read_streams(detector):
    calibrated = ConformalDetector(
        make_detector(), alpha=0.3, method="cross", cv=2, random_state=0
    ).fit(IMAGES[:12])
    found = list(calibrated.inspect(iter(IMAGES[:40])))
    assert_allclose(
        [one.p_value for one in found], calibrated.predict_pvalue(IMAGES[:40])
    )
