"""Encoded images in memory: bytes are images wherever the path of a file is one."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images import check_images, image_contents
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import read_masks
from skpatchcore.inspection import AnomalyMapDisplay
from skpatchcore.scoring import find_unreadable, score_images

SIDE = 24


def encode(pixels, image_format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def read_to_the_end(data):
    file = io.BytesIO(data)
    file.read()
    return file


PIXELS = random_images(8, SIDE, SIDE)
DATA = [encode(pixels) for pixels in PIXELS]
FORMS = {
    "bytes": lambda: DATA,
    "BytesIO": lambda: list(map(io.BytesIO, DATA)),
    "BytesIO at its end": lambda: list(map(read_to_the_end, DATA)),
    "bytearray": lambda: list(map(bytearray, DATA)),
    "memoryview": lambda: list(map(memoryview, DATA)),
    "generator": lambda: (data for data in DATA),
    "object array": lambda: np.array(DATA, dtype=object),
    "pandas": lambda: pd.Series(DATA),
    "DataFrame": lambda: pd.DataFrame({"image": DATA}),
    "polars": lambda: pl.Series(DATA),
    "pyarrow": lambda: pa.array(DATA),
}


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=SIDE)
    return PatchCoreDetector(features, random_state=0).fit(DATA)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_decoded(form):
    images = check_images(FORMS[form]())
    assert_array_equal(list(images), PIXELS.astype(np.float32) / np.float32(255))
    assert images.names[3] == "image 3"


def test_fit_and_scores_are_those_of_pixels(detector):
    fitted = PatchCoreDetector(detector.features, random_state=0).fit(PIXELS)
    assert_array_equal(detector.training_scores_, fitted.training_scores_)
    new = random_images(3, SIDE, SIDE, seed=1)
    encoded = [encode(pixels) for pixels in new]
    assert_array_equal(detector.score_samples(encoded), fitted.score_samples(new))
    assert_array_equal(detector.predict_maps(encoded), fitted.predict_maps(new))
    matches = detector.nearest_patches(map(io.BytesIO, encoded))
    assert_array_equal(matches.image, fitted.nearest_patches(new).image)


def test_calibration_and_displays_accept_them(detector):
    calibrated = ConformalDetector(detector, alpha=0.3, method="refit", random_state=0)
    calibrated.fit(DATA)
    display = AnomalyMapDisplay.from_estimator(calibrated, DATA[:2], masks=None)
    assert display.axes_.shape == (2, 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_all_bits_are_kept(bits, tmp_path):
    dtype = np.dtype(f"u{bits // 8}")
    pixels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * (2**bits // SIDE**2)
    path = tmp_path / "image.tif"
    Image.fromarray(pixels.astype(dtype)).save(path)
    (found,), (expected,) = (check_images([x]) for x in (path.read_bytes(), path))
    assert_array_equal(found, expected)


def test_unreadable_bytes_are_named(detector):
    bad = [DATA[0], DATA[1][:50], b"", b"no image"]
    unreadable = find_unreadable(bad)
    assert [one.index for one in unreadable] == [1, 2, 3]
    assert [one.image for one in unreadable] == ["image 1", "image 2", "image 3"]
    assert "the file is empty" in unreadable[1].reason
    results = score_images(detector, bad, on_error="skip")
    assert results.index.tolist() == [0]


def test_pages_in_bytes_are_refused_with_advice():
    data = encode(
        PIXELS[0], "TIFF", save_all=True, append_images=[Image.fromarray(PIXELS[1])]
    )
    (unreadable,) = find_unreadable([data])
    assert "it has 2 pages" in unreadable.reason
    assert "PIL.Image.open" in unreadable.reason
    assert "ImagePage" not in unreadable.reason


@pytest.mark.parametrize("form", ["bytes", "BytesIO", "bytearray"])
def test_a_single_image_is_refused_in_short(form):
    (image, *_) = FORMS[form]()
    with pytest.raises(TypeError, match=r"single .*wrap it in a list") as caught:
        check_images(image)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("form", ["BytesIO", "file"])
def test_a_file_is_not_a_stream_of_its_lines(form, detector, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(DATA[0])
    for use in (find_unreadable, detector.inspect, detector.predict):
        file = io.BytesIO(DATA[0]) if form == "BytesIO" else path.open("rb")
        with file, pytest.raises(TypeError, match="in a list"):
            use(file)


def test_fixed_length_bytes_of_numpy_are_refused():
    # NumPy drops zeros at their end.
    with pytest.raises(ValueError, match="object array"):
        check_images(np.array(DATA))


def test_a_path_of_bytes_is_refused_even_where_failures_are_kept(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(DATA[0])
    with pytest.raises(TypeError, match=r"os\.fsdecode"):
        find_unreadable([os.fsencode(path)])


def test_a_cached_file_is_found_again_by_its_bytes(tmp_path):
    path = Path(tmp_path, "image.png")
    path.write_bytes(DATA[0])
    keys = [image_contents(check_images([x]), 0) for x in (path, DATA[0])]
    assert keys[0] == keys[1] == DATA[0]


def test_the_cache_serves_bytes(tmp_path, detector):
    features = PatchFeatureTransformer(
        "gabor", ("fine",), image_size=SIDE, memory=tmp_path / "cache"
    )
    cached = features.fit(DATA).transform(DATA)
    assert_array_equal(features.transform(map(io.BytesIO, DATA)), cached)
    assert_array_equal(detector.features_.transform(DATA), cached)


def test_masks_may_be_encoded():
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[3:5, 7:9] = 255
    data = encode(mask)
    masks = read_masks([data, io.BytesIO(data), None], [DATA[0], PIXELS[1], DATA[2]])
    assert_array_equal(masks[0], mask > 0)
    assert_array_equal(masks[1], mask > 0)
    assert not masks[2].any()
    with pytest.raises(ValueError, match="differ in size"):
        read_masks([data], [encode(PIXELS[0][:8])])
