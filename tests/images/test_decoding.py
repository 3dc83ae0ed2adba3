"""PIL images that the user has opened are decoded like their files, or refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from skpatchcore._images import image_size
from skpatchcore._images._input import check_images
from tests.images.awkward_files import COLORS, FILES, GREY_16, NAMES, png_16

SUFFIXES = (".png", ".tif", ".jpg", ".JPG", ".webp", ".pgm", ".ppm", ".jp2", ".pfm")
SPECIAL = [one.name for one in NAMES]
OPENED = [
    one for one in FILES if one.name.endswith(SUFFIXES) and one.name not in SPECIAL
]


@pytest.mark.parametrize("loaded", [False, True], ids=["lazy", "loaded"])
@pytest.mark.parametrize("one", OPENED, ids=lambda one: ascii(one.name)[1:40])
def test_an_opened_file_is_decoded_right_or_refused(one, loaded, tmp_path):
    path = tmp_path / "image"
    one.write(path)
    try:
        image = Image.open(path)
    except (OSError, ValueError, Image.DecompressionBombError):
        pytest.skip("Pillow does not open it")
    with image:
        if loaded:
            # Of what is loaded, only a TIFF tells how deep its file was.
            if "16" in one.name and image.format != "TIFF" and image.mode != "I;16":
                return
            try:
                image.load()
            except (OSError, SyntaxError):
                return
        try:
            decoded = check_images([image])[0]
        except (OSError, ValueError) as error:
            assert "image 0" in str(error)  # noqa: PT017
            return
    assert one.expected is not None
    assert_allclose(decoded, one.expected, atol=one.tolerance, rtol=0)


def test_16_bit_colours_that_pillow_has_opened_are_refused_with_the_remedy():
    file = io.BytesIO(png_16(np.dstack([GREY_16] * 3), 2))
    with (
        Image.open(file) as image,
        pytest.raises(ValueError, match="pass the path of the file"),
    ):
        check_images([image])[0]


SIZED = [one for one in FILES if one.expected is not None and one.name != "link.png"]


@pytest.mark.parametrize("one", SIZED, ids=lambda one: ascii(one.name)[1:40])
def test_the_size_is_that_of_the_decoded_image(one, tmp_path):
    # Formats without a signature are known by their suffix.
    path = (tmp_path / "image").with_suffix(Path(one.name).suffix)
    one.write(path)
    assert image_size(path) == one.expected.shape[:2]


def test_the_size_of_an_opened_image_is_after_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(COLORS).save(file, "JPEG", exif=exif)
    with Image.open(file) as image:
        assert image_size(image) == COLORS.shape[1::-1]
