"""Only regular files in safe formats are opened as images."""

import io
import os
import socket
import stat

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from skpatchcore._images._errors import UnreadableImageError
from skpatchcore._images._files import (
    accepted_formats,
    accepted_suffixes,
    open_image,
    open_regular,
    refused_suffixes,
)
from skpatchcore._images._input import check_images, image_contents
from skpatchcore.datasets import read_masks
from skpatchcore.scoring import find_unreadable

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


# Formats ------------------------------------------------------------------------------


BY_SUFFIX = {"PCX": ".pcx", "SGI": ".rgb", "QOI": ".qoi", "ICO": ".ico", "TGA": ".TGA"}


def save_by_suffix(path, name):
    options = {"sizes": [(16, 16)]} if name == "ICO" else {}
    try:
        Image.new("RGB", (16, 16), (10, 20, 30)).save(path, name, **options)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {name}")


@pytest.mark.parametrize("name", BY_SUFFIX)
def test_formats_without_a_safe_signature_are_read_by_their_suffix(tmp_path, name):
    path = tmp_path / f"image{BY_SUFFIX[name]}"
    save_by_suffix(path, name)
    pixels = check_images([path])[0] * 255
    np.testing.assert_allclose(pixels, np.full((16, 16, 3), (10, 20, 30)))
    assert path.suffix.lower() in accepted_suffixes()


@pytest.mark.parametrize("name", BY_SUFFIX)
def test_the_content_counts_before_such_a_suffix(tmp_path, name):
    path = tmp_path / f"image{BY_SUFFIX[name]}"
    Image.new("RGB", (16, 16), (10, 20, 30)).save(path, "PNG")
    assert np.rint(check_images([path])[0][0, 0] * 255).tolist() == [10, 20, 30]
    path.write_text("no image\n" * 100)
    with pytest.raises(UnreadableImageError, match=r"cannot identify .* TGA, PCX, SGI"):
        check_images([path])[0]


def test_an_icon_of_several_sizes_is_an_error(tmp_path):
    path = tmp_path / "image.ico"
    Image.new("RGB", (32, 32)).save(path, "ICO", sizes=[(16, 16), (32, 32)])
    with Image.open(path) as opened:
        for given in (path, opened):
            with pytest.raises(UnreadableImageError, match="it has icons of 2 sizes"):
                check_images([given])[0]


def test_sgi_files_of_16_bits_are_an_error(tmp_path):
    path = tmp_path / "image.sgi"
    Image.new("L", (16, 16), 7).save(path, "SGI", bpc=2)
    with pytest.raises(UnreadableImageError, match="it has 16 bits per channel"):
        check_images([path])[0]


@pytest.mark.parametrize("name", ["EPS", "PCX", "SGI", "ICO", "TGA"])
def test_other_formats_are_refused_regardless_of_their_name(tmp_path, name):
    path = tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(path, name)
    with pytest.raises(UnreadableImageError, match=r"cannot identify .* PNG, JPEG"):
        check_images([path])[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda path: check_images([path])[0],
        lambda path: read_masks([path], [np.zeros((16, 16))]),
        lambda path: read_masks([None], [path]),
    ],
)
def test_postscript_starts_no_program(tmp_path, monkeypatch, read):
    def fail(*args, **options):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    path = tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(path, "EPS")
    with pytest.raises(OSError, match="cannot identify"):
        read(path)


@pytest.mark.parametrize("name", accepted_formats())
def test_formats_on_the_list_are_read(tmp_path, name):
    path = tmp_path / "image"
    try:
        Image.new("RGB", (16, 16), "white").save(path, name)
    except OSError:
        pytest.skip(f"this Pillow does not write {name}")
    np.testing.assert_allclose(check_images([path])[0], 1, atol=0.02)


def test_formats_that_start_programs_are_not_on_the_list():
    assert not {"EPS", "WMF", "FPX", "PDF"} & set(accepted_formats())
    assert not {".eps", ".ps", ".wmf"} & accepted_suffixes()
    assert {".eps", ".ps", ".wmf", ".psd", ".heic"} <= refused_suffixes()


# Special files ------------------------------------------------------------------------


def make_fifo(path):
    os.mkfifo(path)
    return path


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


SPECIAL = {
    "a named pipe": make_fifo,
    "a socket": make_socket,
    "a device": lambda path: "/dev/zero",
}


@posix
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_refused_without_being_opened(
    tmp_path, monkeypatch, image, kind
):
    monkeypatch.chdir(tmp_path)  # Names of sockets are short.
    special = SPECIAL[kind]("special.png")
    unreadable = find_unreadable([image, special])
    assert [one.index for one in unreadable] == [1]
    assert f"image 1 ({special}) is {kind}" in unreadable[0].reason


@posix
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
def test_special_files_are_refused_when_they_are_opened(tmp_path, kind):
    special = SPECIAL[kind](tmp_path / "special.png")
    for opened in (open_regular, lambda path: open_image(path).__enter__()):
        with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
            opened(special)


@posix
def test_a_file_that_became_a_pipe_is_unreadable(image):
    images = check_images([image])
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(UnreadableImageError, match="it is a named pipe"):
        images[0]
    with pytest.raises(UnreadableImageError, match="it is a named pipe"):
        image_contents(images, 0)


@posix
def test_masks_and_sizes_are_not_read_from_pipes(tmp_path):
    fifo = make_fifo(tmp_path / "fifo.png")
    with pytest.raises(OSError, match="it is a named pipe"):
        read_masks([fifo], [np.zeros((8, 8))])
    with pytest.raises(OSError, match="it is a named pipe"):
        read_masks([None], [fifo])


@posix
def test_huge_files_are_refused_before_they_are_read(image):
    os.truncate(image, 3 * 2**30)  # Takes no space.
    images = check_images([image])
    with pytest.raises(UnreadableImageError, match="3221225472 bytes; the limit is"):
        images[0]
    with pytest.raises(UnreadableImageError, match="the limit is"):
        image_contents(images, 0)


# Names --------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "gone.png", "does not exist"),
        (lambda folder: folder / "image.png" / "x.png", "does not exist"),
        (lambda folder: link(folder, "gone"), "is a broken link"),
        (lambda folder: link(folder, "link.png"), "Too many levels of symbolic links"),
        (lambda folder: "a\0b.png", "null"),
        (lambda folder: "a" * 300 + ".png", "name too long"),
        (lambda folder: folder, "is a folder"),
    ],
)
def test_errors_name_unreadable_paths_and_the_reason(tmp_path, image, make, reason):
    unreadable = find_unreadable([image, make(tmp_path)])
    assert [one.index for one in unreadable] == [1]
    assert reason.lower() in unreadable[0].reason.lower()
    assert "image 1 (" in unreadable[0].reason


def link(folder, target):
    (folder / "link.png").symlink_to(target)
    return folder / "link.png"


def test_a_path_of_bytes_is_refused_with_advice(image):
    with pytest.raises(TypeError, match=r"image 0 is a path.*os\.fsdecode"):
        check_images([os.fsencode(image)])


@posix
def test_an_entry_of_a_folder_of_bytes_is_a_path(image):
    (entry,) = os.scandir(os.fsencode(image.parent))
    assert check_images([entry])[0].shape == (8, 8, 3)


@posix
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="needs another user")
def test_a_file_that_may_not_be_read_is_unreadable(image):
    image.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        check_images([image])[0]


def test_an_opened_file_does_not_outlive_an_error(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"no image")
    n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        with pytest.raises(UnreadableImageError):
            check_images([path])[0]
    if n_open:
        assert len(os.listdir("/proc/self/fd")) == n_open


def test_an_image_in_memory_is_read(image):
    with Image.open(io.BytesIO(image.read_bytes())) as opened:
        assert check_images([opened])[0].shape == (8, 8, 3)


@posix
def test_reading_changes_no_mode(image):
    before = stat.S_IMODE(image.stat().st_mode)
    check_images([image])[0]
    assert stat.S_IMODE(image.stat().st_mode) == before
