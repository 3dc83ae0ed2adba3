"""Files with several pages are an error unless a page is named."""

import copy
import pickle
import re

import joblib
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images import ImagePage, image_size, split_pages
from skpatchcore._images._input import check_images, image_contents
from skpatchcore.datasets import ImagePage as PublicImagePage
from skpatchcore.scoring import score_images
from tests.helpers import random_images

PAGES = random_images(3, 32, 40, seed=7)
FORMATS = {
    "TIFF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
}


def save_pages(path, file_format, **options):
    first, *others = map(Image.fromarray, PAGES)
    first.save(path, file_format, save_all=True, append_images=others, **options)
    return path


@pytest.fixture
def stack(tmp_path):
    return save_pages(tmp_path / "stack.tif", "TIFF")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_of_several_pages_is_an_error_that_counts_them(tmp_path, file_format):
    path = save_pages(tmp_path / "stack", file_format, **FORMATS[file_format])
    images = check_images([path])
    with pytest.raises(ValueError, match=r"image 0 \(.*stack\): it has 3 pages") as e:
        images[0]
    assert "ImagePage(path, page) with a page from 0 to 2" in str(e.value)


@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("page", range(3))
def test_a_page_is_decoded(tmp_path, file_format, page):
    path = save_pages(tmp_path / "stack", file_format, **FORMATS[file_format])
    assert_array_equal(
        check_images([ImagePage(path, page)])[0], check_images(PAGES)[page]
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_pages_are_listed(tmp_path, file_format):
    path = save_pages(tmp_path / "stack", file_format, **FORMATS[file_format])
    assert split_pages(path) == [ImagePage(path, i) for i in range(3)]


def test_a_file_of_one_page_is_listed_as_its_path(tmp_path):
    path = tmp_path / "one.tif"
    Image.fromarray(PAGES[0]).save(path)
    assert split_pages(path) == [str(path)]


@pytest.mark.parametrize("content", [None, b"", b"no image", b"II*\0\xff\xff\xff\xff"])
def test_a_file_that_cannot_be_read_is_listed_as_its_path(tmp_path, content):
    path = tmp_path / "bad.tif"
    if content is not None:
        path.write_bytes(content)
    assert split_pages(path) == [str(path)]


def test_the_only_page_may_be_named(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(PAGES[0]).save(path)
    assert_array_equal(
        check_images([ImagePage(path, 0)])[0], PAGES[0] / np.float32(255)
    )


def test_a_page_that_does_not_exist_is_an_error(stack):
    images = check_images([ImagePage(stack, 3)])
    with pytest.raises(
        ValueError, match=r"stack\.tif\[3\].* pages is 3; pages are 0 to 2"
    ):
        images[0]


def test_a_second_page_of_a_file_with_one_is_an_error(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(PAGES[0]).save(path)
    message = r"it has no page 1: the number of pages is 1; pass its path"
    with pytest.raises(ValueError, match=message):
        check_images([ImagePage(path, 1)])[0]


@pytest.mark.parametrize("page", [-1, 1.0, "1", None])
def test_the_number_of_a_page_is_checked(page):
    with pytest.raises(ValueError, match="expected an int from 0"):
        ImagePage("stack.tif", page)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tif\[1\]\) does not exist"):
        check_images([ImagePage(tmp_path / "gone.tif", 1)])


def test_a_single_page_must_be_in_a_list(stack):
    with pytest.raises(TypeError, match="wrap it in a list"):
        check_images(ImagePage(stack, 1))


def test_pages_are_values():
    page = ImagePage("a/stack.tif", 1)
    assert PublicImagePage is ImagePage
    assert page == copy.copy(page) == pickle.loads(pickle.dumps(page))
    assert len({page, ImagePage("a/stack.tif", 1), ImagePage("a/stack.tif", 2)}) == 2
    assert str(page) == "a/stack.tif[1]"
    assert check_images(np.array([page] * 2, dtype=object), {}).sources == [page] * 2


def test_16_bit_pages_keep_their_precision(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (3, 20, 30, 3), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    image = check_images([ImagePage(tmp_path / "deep.tif", 2)])[0]
    assert_array_equal(image, check_images(deep)[2])


def test_smaller_copies_and_masks_in_a_tiff_are_not_pages(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(PAGES[0], photometric="rgb")
        file.write(PAGES[0][::2, ::2], photometric="rgb", subfiletype=1)
        file.write(PAGES[1], photometric="rgb")
        file.write(PAGES[1][..., 0] > 9, photometric="minisblack", subfiletype=4)
    assert split_pages(path) == [ImagePage(path, 0), ImagePage(path, 1)]
    assert_array_equal(check_images([ImagePage(path, 1)])[0], check_images(PAGES)[1])


def test_views_of_a_stereo_camera_are_pages(tmp_path):
    path = save_pages(tmp_path / "stereo.jpg", "MPO")
    content = path.read_bytes()
    # The kind of the second view, "undefined", becomes "disparity".
    first = content.index(b"\x00\x00\x03\x00", content.index(b"MPF\0") + 50)
    second = first + 16
    assert content[second : second + 4] == b"\0\0\0\0"
    path.write_bytes(content[:second] + b"\2\0\2\0" + content[second + 4 :])
    assert len(split_pages(path)) == 3


def test_an_opened_file_of_several_pages_is_an_error(stack):
    with Image.open(stack) as opened:
        with pytest.raises(ValueError, match=r"3 pages .* pass image\.copy\(\)"):
            check_images([opened])[0]
        opened.seek(1)
        assert_array_equal(check_images([opened])[0], check_images(PAGES)[1])
        opened.seek(0)
        first = opened.copy()
    assert_array_equal(check_images([first])[0], check_images(PAGES)[0])


def test_the_size_of_a_page_is_that_of_the_image(stack):
    assert image_size(ImagePage(stack, 1)) == (32, 40)


def test_the_contents_of_a_page_are_its_pixels(stack):
    """The cache may know the page as an array, or from another file."""
    images = check_images([ImagePage(stack, i) for i in range(3)])
    for i in range(3):
        assert_array_equal(image_contents(images, i), PAGES[i])


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    return PatchCoreDetector(features, random_state=0).fit(PAGES[:1])


@pytest.mark.parametrize("cached", [False, True])
def test_a_page_scores_like_its_pixels(detector, stack, tmp_path, cached):
    detector = copy.deepcopy(detector)
    if cached:
        memory = joblib.Memory(tmp_path / "cache", verbose=0)
        detector.features_.set_params(memory=memory)
    pages = [ImagePage(stack, i) for i in range(3)]
    expected = detector.score_samples(PAGES)
    for _ in range(2):
        assert_allclose(detector.score_samples(pages), expected, rtol=1e-5)


def test_a_defect_on_a_later_page_is_not_missed(detector, stack):
    X = [stack, ImagePage(stack, 0), ImagePage(stack, 1)]
    results = score_images(detector, X, on_error="skip")
    assert results.index.tolist() == [1, 2]
    (bad,) = results.unreadable
    assert re.search(r"image 0 \(.*stack\.tif\): it has 3 pages", bad.reason)
