"""What the commands say: about images, options, weights and settings in files."""

import csv
import io
import warnings

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from skpatchcore._cli import _commands as cli
from skpatchcore._cli._messages import use_option_names
from skpatchcore.datasets import ImagePage

SMALL = ("--backbone", "gabor", "--layers", "fine", "--image-size", "16")
OF_FIT = cli.fit.params


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def save_images(folder, *names):
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 160, (16, 16, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    good = save_images(folder / "good", *(f"{i}.png" for i in range(4)))
    result = run("fit", good, "--model", folder / "m.skpc", *SMALL)
    assert result.exit_code == 0, result.output
    return folder / "m.skpc"


# Unreadable images --------------------------------------------------------------------


def test_one_damaged_file_does_not_cost_the_scores_of_the_others(model, tmp_path):
    images = save_images(tmp_path / "new", "0.png", "2.png")
    (images / "1.png").write_bytes(b"no image")
    output = tmp_path / "s.csv"
    result = run("score", images, "--model", model, "--output", output)
    assert result.exit_code == 1
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["path"] for row in rows] == [f"{images}/0.png", f"{images}/2.png"]
    assert f"Unreadable: Could not read image 1 ({images}/1.png)" in result.stderr
    assert result.stderr.endswith(", 1 unreadable\n")


@pytest.mark.parametrize("mode", ["skip", "nan"])
def test_unreadable_files_that_were_expected_are_no_failure(model, tmp_path, mode):
    images = save_images(tmp_path / "new", "0.png")
    (images / "1.png").write_bytes(b"no image")
    result = run("score", images, "--model", model, "--on-error", mode)
    assert result.exit_code == 0
    assert result.stderr.endswith(", 1 unreadable\n")


def test_the_last_line_counts_the_images(model, tmp_path):
    images = save_images(tmp_path / "new", "0.png", "1.png")
    Image.new("RGB", (16, 16)).save(images / "2.png")
    result = run("score", images, "--model", model)
    labels = [row["label"] for row in csv.DictReader(io.StringIO(result.stdout))]
    n_anomalous = labels.count("anomalous")
    assert n_anomalous
    last = f"3 scored, {n_anomalous} anomalous, 0 unreadable"
    assert result.stderr.splitlines()[-1] == last


# Which images -------------------------------------------------------------------------


def test_masks_among_the_images_are_refused_until_they_are_excluded(tmp_path):
    good = save_images(tmp_path / "good", "1.png", "2.png")
    for name in ("1_GT.png", "2_GT.png"):
        Image.new("L", (16, 16)).save(good / name)
    args = ("fit", good, "--model", tmp_path / "m.skpc", *SMALL)
    result = run(*args)
    assert result.exit_code == 1
    assert (
        "2 of 4 images look like masks of others: 1_GT.png of 1.png, " in result.stderr
    )
    assert "Leave them out with --exclude '*_GT.*', or move" in result.stderr
    result = run(*args, "--exclude", "*_GT.*")
    assert result.exit_code == 0, result.output
    assert "Fitting on 2 images" in result.stderr


def test_several_kinds_of_masks_are_excluded_by_one_option(tmp_path):
    good = save_images(tmp_path / "good", "1.png", "2.png")
    for name in ("1_GT.png", "2_mask.png"):
        Image.new("L", (16, 16)).save(good / name)
    result = run("fit", good, "--model", tmp_path / "m.skpc", *SMALL)
    assert "with --exclude '*_GT.*,*_mask.*', or move" in result.stderr


def test_excluded_files_are_not_scored(model, tmp_path):
    images = save_images(tmp_path / "new", "0.png", "0_GT.png", "raw/1.png")
    result = run("score", images, "--model", model, "--exclude", "*_GT.*,raw")
    assert result.stderr.splitlines()[-1].startswith("1 scored")


def test_files_given_one_by_one_are_excluded_too(model, tmp_path):
    images = save_images(tmp_path / "new", "0.png", "1.png", "0_GT.png")
    files = sorted(images.iterdir())
    result = run("score", *files, "--model", model, "--exclude", "*_GT.*")
    assert result.stderr.splitlines()[-1].startswith("2 scored")
    args = ("fit", *files, "--model", tmp_path / "m.skpc", *SMALL)
    assert "Fitting on 2 images" in run(*args, "--exclude", "*_GT.*").stderr
    result = run("score", *files, "--model", model, "--exclude", "*")
    assert "--exclude leaves out all files given" in result.stderr


def test_one_image_is_refused_before_the_fit(tmp_path):
    good = save_images(tmp_path / "good", "1.png")
    result = run("fit", good, "--model", tmp_path / "m.skpc", *SMALL)
    assert result.exit_code == 1
    assert "at least 2 images of good parts, found 1" in result.stderr


def test_folders_of_unknown_files_are_described(model, tmp_path):
    for name in ("1.heic", "2.heic"):
        (tmp_path / name).touch()
    result = run("score", tmp_path, "--model", model)
    assert result.exit_code == 1
    assert "Passed over 2 files: 2 .heic in" in result.stderr
    assert "Convert images to one of .apng, " in result.stderr


def write_stack(path, n):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    pages = [
        Image.fromarray(rng.integers(90, 160, (16, 16), np.uint8)) for _ in range(n)
    ]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path.parent


def test_pages_are_listed_on_request(tmp_path):
    good = write_stack(tmp_path / "good" / "stack.tif", 3)
    args = ("fit", good, "--model", tmp_path / "m.skpc", *SMALL, "--pages", "all")
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert "Fitting on 3 images" in result.stderr
    masks = tmp_path / "masks"
    args = ("score", good, "--model", tmp_path / "m.skpc", "--masks", masks)
    result = run(*args, "--pages", "all")
    assert result.exit_code == 0, result.output
    paths = [row["path"] for row in csv.DictReader(io.StringIO(result.stdout))]
    assert paths == [f"{good / 'stack.tif'}[{i}]" for i in range(3)]
    names = sorted(path.name for path in masks.iterdir())
    assert names == [f"stack.tif[{i}].png" for i in range(3)]
    result = run(*args)
    assert result.exit_code == 1
    assert "--pages all" in result.stderr
    assert "ImagePage" not in result.stderr


def test_the_loader_lists_pages_with_those_of_masks(tmp_path):
    from skpatchcore.datasets import load_image_folder, read_masks

    write_stack(tmp_path / "train" / "good" / "a.tif", 2)
    write_stack(tmp_path / "test" / "dent" / "b.tif", 2)
    write_stack(tmp_path / "masks" / "dent" / "b.tif", 2)
    bunch = load_image_folder(tmp_path, pages="all")
    path = str(tmp_path / "test" / "dent" / "b.tif")
    assert bunch.data[2:].tolist() == [ImagePage(path, 0), ImagePage(path, 1)]
    assert bunch.target.tolist() == [1, 1, -1, -1]
    assert bunch.masks[3] == ImagePage(str(tmp_path / "masks" / "dent" / "b.tif"), 1)
    assert len(read_masks(bunch.masks, bunch.data)) == 4
    write_stack(tmp_path / "masks" / "dent" / "b.tif", 3)
    with pytest.raises(ValueError, match=r"has 2 pages, but its mask .* has 3"):
        load_image_folder(tmp_path, pages="all")


def test_large_images_are_read_on_request(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    images = save_images(tmp_path / "new", "0.png")
    result = run("score", images, "--model", model)
    assert result.exit_code == 1
    assert "raise --max-pixels" in result.stderr
    result = run("score", images, "--model", model, "--max-pixels", "1000")
    assert result.exit_code == 0, result.output
    assert Image.MAX_IMAGE_PIXELS == 40


# Words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Pass its new path: weights= of the features, a.set_params(weights=...) "
            "after a fit, or --weights on the command line.",
            "Pass its new path: --weights.",
        ),
        ("weights='a.pth' is not a file.", "--weights a.pth is not a file."),
        ("weights='a b' is not", "--weights 'a b' is not"),
        (
            "Use backbone='embedded', or pass a local file with weights=.",
            "Use --backbone embedded, or pass a local file with --weights.",
        ),
        ("crop_size=(500, 400) is", "--crop-size 500,400 is"),
        ("layers=['a', 'b'] are", "--layers a,b are"),
        ("image_size=256 is", "--image-size 256 is"),
        ("subset='all': x=3", "subset='all': x=3"),
        ("image 3 (/data/layers=2/a.png) is", "image 3 (/data/layers=2/a.png) is"),
        (
            "Pass the path to load(..., weights=...), or with --weights on the command "
            "line; or save the detector with include_backbone=True.",
            "Pass the path with --weights",
        ),
    ],
)
def test_parameters_in_messages_become_options(text, expected):
    assert use_option_names(text, OF_FIT) == expected


def test_warnings_name_options_too(tmp_path, model):
    images = save_images(tmp_path / "new", "1.png")
    Image.new("L", (16, 16)).save(images / "1_GT.png")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("score", images, "--model", model)
    assert "Leave them out with --exclude '*_GT.*', or move them" in result.stderr


def test_words_are_those_of_the_command_that_runs(tmp_path):
    good = save_images(tmp_path / "good", "1.png", "2.png")
    args = ("--backbone", "resnet18", "--weights", tmp_path / "gone.pth")
    result = run("fit", good, "--model", tmp_path / "m.skpc", *args)
    assert f"Error: --weights {tmp_path / 'gone.pth'} is not a file" in result.stderr


def test_networks_without_the_default_layers_are_told_of_the_option(tmp_path):
    good = save_images(tmp_path / "good", "1.png", "2.png")
    args = ("--backbone", "mobilenetv3_small_100", "--weights", "random")
    result = run("fit", good, "--model", tmp_path / "m.skpc", *args)
    assert result.exit_code == 1
    assert "has no layer 'layer2'" in result.stderr
    assert "Choose others with --layers" in result.stderr
    assert "named_modules" not in result.stderr


# Settings in files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("None", "contains only 'None'"),
        ("lots", "contains only 'lots'"),
        ("0", "contains only '0'"),
        ("", "contains nothing"),
        ("n-neighbors: lots", "'n-neighbors': 'lots' is not a valid integer"),
        ("n-neighbors: None", "'n-neighbors' has no value"),
        ("n-neighbors: null", "'n-neighbors' has no value"),
        ("n-neighbors: 0", "'n-neighbors': 0 is not in the range"),
        ("layers: None", "'layers' has no value"),
        ("model: null", "'model' has no value"),
        ("verbose: lots", "'verbose': 'lots' is not a valid integer"),
        ("include-backbone: lots", "'include-backbone': 'lots' is not a valid boolean"),
        ("include-backbone: 3", "'include-backbone': '3' is not a valid boolean"),
        ("coreset-fraction: 0", "'coreset-fraction': 0.0 is not in the range"),
        ("coreset-fraction: lots", "'lots' is not a valid number"),
        ("smoothing: -1", "'smoothing': -1.0 is not in the range"),
        ("metric: null", "'metric' has no value"),
    ],
)
def test_settings_that_cannot_be_used_are_named_with_their_file(
    tmp_path, text, message
):
    path = tmp_path / "part.yaml"
    path.write_text(text)
    result = run("fit", tmp_path, "--config", path)
    assert result.exit_code == 2
    assert f"{path}" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("weights: None", "weights", None),
        ("coreset-method: none", "coreset_method", "none"),
        ("include-backbone: yes", "include_backbone", True),
        ("verbose: 2", "verbose", 2),
        ("exclude: ['*_GT.*', raw]", "exclude", ("*_GT.*", "raw")),
        ("image-size: 64", "image_size", 64),
    ],
)
def test_settings_are_read(tmp_path, text, name, value):
    path = tmp_path / "part.yaml"
    path.write_text(text)
    args = [str(tmp_path), "--model", "m.skpc", "--config", str(path)]
    with cli.fit.make_context("fit", args) as context:
        assert isinstance(context, click.Context)
        assert context.params[name] == value
