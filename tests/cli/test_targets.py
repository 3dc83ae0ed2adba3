"""Targets are checked before the first image, and names of PNG files are stable."""

import os
import stat

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._cli import _commands as cli
from skpatchcore._cli._files import check_targets
from skpatchcore._cli._score_output import png_paths
from skpatchcore.persistence import save

SMALL = ("--backbone", "gabor", "--layers", "fine", "--image-size", "16")


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def make_pixels(n):
    return np.random.default_rng(0).integers(90, 160, (n, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16)
    detector = PatchCoreDetector(features, random_state=0).fit(make_pixels(4))
    path = tmp_path_factory.mktemp("model") / "model.skpc"
    save(detector, path)
    return path


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, pixels in enumerate(make_pixels(2)):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


@pytest.fixture
def no_work(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("too late")

    monkeypatch.setattr(PatchCoreDetector, "fit", fail)
    monkeypatch.setattr(PatchCoreDetector, "_inspect", fail)


# Collisions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlays", "mm", "--masks", "mm"), "--overlays and --masks"),
        (("--overlays", "mm", "--masks", "./x/../mm"), "--overlays and --masks"),
        (("--overlays", "mm", "--masks", "link"), "--overlays and --masks"),
        (("--output", "mm", "--masks", "mm"), "--masks and --output"),
        (("--output", "mm", "--masks", "mm/sub"), "--masks and --output"),
        (("--output", "mm", "--report", "mm/r.csv"), "--report and --output"),
        (("--output", "mm/0.png", "--masks", "mm"), "--output and --masks"),
        (("--report", "model.skpc"), "which --model reads"),
        (("--output", "part.yaml"), "which --config reads"),
        (("--masks", "images/m"), "is inside IMAGES"),
        (("--masks", "images"), "is inside IMAGES"),
    ],
)
def test_targets_that_collide_are_refused(
    model, images, tmp_path, no_work, options, message
):
    (tmp_path / "x").mkdir()
    (tmp_path / "part.yaml").write_text("on-error: skip")
    (tmp_path / "model.skpc").write_bytes(model.read_bytes())
    (tmp_path / "link").symlink_to("mm")
    before = sorted(tmp_path.rglob("*"))
    arguments = ("images", "--model", "model.skpc", "--config", "part.yaml")
    result = run("score", *arguments, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_benchmark_does_not_write_into_its_data(tmp_path):
    (tmp_path / "nut" / "train" / "good").mkdir(parents=True)
    result = run("benchmark", tmp_path, "--output", tmp_path / "nut" / "out", *SMALL)
    assert result.exit_code == 2
    assert "is inside DATA_ROOT" in result.stderr


def test_targets_side_by_side_are_accepted(tmp_path):
    files = [("--output", tmp_path / "a" / "s.csv"), ("--report", tmp_path / "a.csv")]
    folders = [("--overlays", tmp_path / "a"), ("--masks", tmp_path / "a" / "m")]
    check_targets(files, folders)


# Writable -----------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize(
    ("command", "target"),
    [
        (("fit", "images", "--model"), "ro/x.skpc"),
        (("score", "images", "--model", "MODEL", "--output"), "ro/x.csv"),
        (("score", "images", "--model", "MODEL", "--output"), "ro/sub/x.csv"),
        (("score", "images", "--model", "MODEL", "--report"), "ro/sub/x.csv"),
        (("score", "images", "--model", "MODEL", "--masks"), "ro"),
        (("score", "images", "--model", "MODEL", "--masks"), "ro/sub/sub"),
        (("score", "images", "--model", "MODEL", "--overlays"), "ro/sub"),
        (("benchmark", "data", *SMALL, "--output"), "ro"),
        (("benchmark", "data", *SMALL, "--output"), "ro/sub"),
        (("demo", "--output"), "ro/sub"),
    ],
)
def test_read_only_folders_are_refused_before_the_work(
    model, images, tmp_path, no_work, command, target
):
    (tmp_path / "ro").mkdir(mode=0o555)
    (tmp_path / "data").mkdir()
    result = run(*(model if word == "MODEL" else word for word in command), target)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"Error: {target}")
    assert "Could not write the file: the folder" in result.stderr
    assert f"{str(tmp_path / 'ro')!r} is read-only" in result.stderr
    assert ".tmp" not in result.stderr


def test_a_folder_below_a_file_is_refused_before_the_work(
    model, images, tmp_path, no_work
):
    (tmp_path / "file").write_bytes(b"old")
    result = run("score", "images", "--model", model, "--masks", "file/masks")
    assert result.exit_code == 1
    assert "is a file, not a folder" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_read_only_pngs_are_refused_before_the_work(model, images, tmp_path, no_work):
    old = tmp_path / "masks" / "1.png"
    old.parent.mkdir()
    old.write_bytes(b"old")
    old.chmod(stat.S_IRUSR)
    result = run("score", "images", "--model", model, "--masks", "masks")
    assert (result.exit_code, str(old) in result.stderr) == (1, True)


# Names of overlays and masks ----------------------------------------------------------


def written(model, *arguments):
    result = run("score", *arguments, "--model", model, "--masks", "masks")
    assert result.exit_code == 0, result.output


def test_names_do_not_depend_on_other_images(model, images, tmp_path):
    folder = tmp_path / "day1"
    images.rename(folder)
    (tmp_path / "new").mkdir()
    folder.rename(tmp_path / "new" / "day1")
    written(model, "new")
    assert (tmp_path / "masks" / "day1" / "0.png").is_file()
    pixels = Image.fromarray(make_pixels(1)[0])
    for name in ("day1/0.jpg", "day1/0.PNG", "2.bmp"):
        pixels.save(tmp_path / "new" / name)
    written(model, "new")
    names = sorted(
        path.relative_to(tmp_path / "masks").as_posix()
        for path in (tmp_path / "masks").rglob("*.png")
    )
    assert names == [
        *("2.bmp.png", "day1/0.PNG.png", "day1/0.jpg.png"),
        *("day1/0.png", "day1/1.png"),
    ]


def test_names_of_several_folders_begin_with_the_folder(tmp_path):
    paths = [tmp_path / "a" / "0.png", tmp_path / "b" / "0.png"]
    for path in paths:
        path.parent.mkdir()
    given = [str(path.parent) for path in paths]
    target = tmp_path / "m"
    assert png_paths(list(map(str, paths)), given, target) == [
        *(target / "a" / "0.png", target / "b" / "0.png")
    ]


def test_two_images_for_one_name_are_refused(model, images):
    pixels = Image.fromarray(make_pixels(1)[0])
    pixels.save(images / "0.jpg")
    pixels.save(images / "0.jpg.png")
    result = run("score", "images", "--model", model, "--masks", "masks")
    assert result.exit_code == 2
    assert "--masks would write" in result.stderr
    assert "for two images. Rename one of them." in result.stderr
