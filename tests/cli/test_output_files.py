"""Files that the commands write: devices, names of any bytes, and refused paths."""

import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._benchmark._tables import COLUMNS, format_csv, write_results
from skpatchcore._cli import _commands as cli
from skpatchcore.persistence import _save_load as persistence
from skpatchcore.scoring import find_unreadable, score_images

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
SMALL = ("--backbone", "gabor", "--layers", "fine", "--image-size", "16")
# Valid in Latin-1, not in UTF-8.
ODD = os.fsdecode(b"stra\xdfe")


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def make_pixels(n, seed=0):
    return np.random.default_rng(seed).integers(90, 160, (n, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16)
    return PatchCoreDetector(features, random_state=0).fit(make_pixels(8))


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.skpc"
    persistence.save(detector, path)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(make_pixels(3, seed=1)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# Devices and permissions --------------------------------------------------------------


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_scores_can_be_written_to_a_device(model, images, option):
    result = run("score", images, "--model", model, option, "/dev/null")
    assert result.exit_code == 0, result.output
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_scores_can_be_written_to_standard_output_by_name(model, images, capfd):
    args = ["score", images, "--model", model, "--output", "/dev/stdout"]
    cli.main(list(map(str, args)), standalone_mode=False)
    assert len(list(csv.DictReader(io.StringIO(capfd.readouterr().out)))) == 3


def test_a_model_keeps_its_mode_and_its_link(detector, tmp_path):
    (tmp_path / "v1.skpc").write_bytes(b"old")
    (tmp_path / "v1.skpc").chmod(0o600)
    (tmp_path / "latest.skpc").symlink_to("v1.skpc")
    persistence.save(detector, tmp_path / "latest.skpc")
    assert (tmp_path / "latest.skpc").is_symlink()
    assert stat.S_IMODE((tmp_path / "v1.skpc").stat().st_mode) == 0o600
    persistence.load(tmp_path / "v1.skpc")


def test_a_model_can_be_written_to_a_pipe(detector, model, tmp_path):
    reader, writer = os.pipe()
    child = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    persistence.save(detector, f"/dev/fd/{writer}")
    os.close(writer)
    data, _ = child.communicate(timeout=20)
    assert data == model.read_bytes()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("fit", "IMAGES", "--model", "PATH", *SMALL), "read-only.skpc"),
        (("score", "IMAGES", "--model", "MODEL", "--output", "PATH"), "scores.csv"),
        (("score", "IMAGES", "--model", "MODEL", "--report", "PATH"), "report.csv"),
    ],
)
def test_read_only_files_are_refused_before_the_work(
    model, images, tmp_path, monkeypatch, command, name
):
    def fail(*args, **options):
        raise AssertionError("too late")

    monkeypatch.setattr(PatchCoreDetector, "fit", fail)
    monkeypatch.setattr(PatchCoreDetector, "_inspect", fail)
    path = tmp_path / name
    path.write_bytes(b"old")
    path.chmod(0o444)
    given = {"IMAGES": images, "MODEL": model, "PATH": path}
    result = run(*(given.get(word, word) for word in command))
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: {path}: Could not write the file: the file"
    )
    assert "read-only" in result.stderr
    assert path.read_bytes() == b"old"


def test_masks_and_overlays_replace_old_files_as_a_whole(model, images, tmp_path):
    old = tmp_path / "masks" / "0.png"
    old.parent.mkdir()
    old.write_bytes(b"old")
    old.chmod(0o640)
    result = run("score", images, "--model", model, "--masks", old.parent)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert sorted(path.name for path in old.parent.iterdir()) == [
        *("0.png", "1.png", "2.png")
    ]
    with Image.open(old) as mask:
        assert mask.size == (16, 16)


# One file for two purposes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "a.csv", "--report", "b.csv"), None),
        (("--output", "/dev/null", "--report", "/dev/null"), None),
        (("--output", "a.csv", "--report", "a.csv"), "--output and --report"),
        (("--output", "a.csv", "--report", "sub/../a.csv"), "--output and --report"),
        (("--output", "model.skpc"), "--output would overwrite"),
        (("--report", "images/0.png"), "--report would overwrite"),
        (("--overlays", "o", "--masks", "o"), "--overlays and --masks"),
        (("--overlays", "o", "--masks", "link"), "--overlays and --masks"),
    ],
)
def test_score_refuses_to_write_a_file_that_has_another_purpose(
    model, images, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.skpc")
    os.symlink("o", "link")
    os.mkdir("sub")
    before = {path: path.read_bytes() for path in images.iterdir()}
    result = run("score", images, "--model", "model.skpc", *options)
    if message is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2
    assert message in result.stderr
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    assert (tmp_path / "model.skpc").read_bytes() == model.read_bytes()


def test_fit_refuses_to_replace_an_image_by_its_model(images):
    before = (images / "0.png").read_bytes()
    result = run("fit", images, "--model", images / "0.png", *SMALL)
    assert result.exit_code == 2
    assert "--model would overwrite" in result.stderr
    assert (images / "0.png").read_bytes() == before


def test_fit_refuses_to_replace_the_weights_by_its_model(images, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    result = run("fit", images, "--model", weights, "--weights", weights, *SMALL)
    assert result.exit_code == 2
    assert "which --weights reads" in result.stderr
    assert weights.read_bytes() == b"weights"


# Names --------------------------------------------------------------------------------


@pytest.fixture
def odd_images(images):
    names = [ODD, "line\nbreak", "carriage\rreturn", 'quote"', "comma,", " space", "ä"]
    found = {}
    for name, pixels in zip(names, make_pixels(len(names), seed=2), strict=True):
        path = str(images / f"{name}.png")
        try:
            Image.fromarray(pixels).save(path)
        except OSError:
            pytest.skip("this file system accepts valid names only")
        found[path] = pixels
    return found


def read(text):
    return [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))]


def test_names_of_any_bytes_are_kept_in_a_file_of_scores(model, odd_images, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "scores.csv"
    result = run("score", folder, "--model", model, "--output", output)
    assert result.exit_code == 0, result.output
    text = output.read_bytes().decode("utf-8", "surrogateescape")
    assert set(odd_images) <= set(read(text))
    assert len(read(text)) == 10


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp437"])
def test_names_of_any_bytes_are_kept_on_standard_output(
    model, odd_images, tmp_path, monkeypatch, encoding
):
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding, "strict", newline="")
    monkeypatch.setattr(sys, "stdout", stdout)
    args = ["score", str(tmp_path / "images"), "--model", str(model)]
    cli.main(args, standalone_mode=False)
    stdout.flush()
    text = written.getvalue().decode("utf-8", "surrogateescape")
    assert set(odd_images) <= set(read(text))


def test_names_of_any_bytes_are_kept_in_a_report(model, images, tmp_path):
    path = images / f"{ODD}.png"
    path.write_bytes(b"no image")
    report = tmp_path / "report.csv"
    args = ("score", images, "--model", model, "--on-error", "skip")
    result = run(*args, "--report", report, "--masks", tmp_path / "masks")
    assert result.exit_code == 0, result.output
    text = report.read_bytes().decode("utf-8", "surrogateescape")
    assert read(text) == [str(path)]


def test_a_model_of_any_name_is_written_and_named(images, tmp_path):
    path = tmp_path / f"{ODD}.skpc"
    result = CliRunner().invoke(
        cli.main, ["fit", str(images), "--model", str(path), *SMALL]
    )
    assert result.exit_code == 0, result.output
    assert os.fsencode(path.name) in result.stdout_bytes
    persistence.load(path)


def test_results_keep_names_of_any_bytes(tmp_path):
    row = {"category": ODD, **dict.fromkeys(COLUMNS[1:], 0.5)}
    table, report, markdown, latex = write_results(tmp_path, [row], {"data_root": ODD})
    assert os.fsencode(ODD) in table.read_bytes()
    content = json.loads(report.read_text(encoding="ascii"))
    assert content["results"][0]["category"] == content["settings"]["data_root"] == ODD
    for document in (markdown, latex):
        assert "stra" in document.read_text(encoding="utf-8")


def test_fields_are_quoted_where_readers_need_it():
    rows = [["a\rb", "c\nd", 'e"f', "g,h", "\r\n"], [None, 1.5, "", "i", "-"]]
    text = format_csv(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        *(rows[0], ["", "1.5", "", "i", "-"])
    ]
    assert text.endswith("\n,1.5,,i,-\n")


# Thin images --------------------------------------------------------------------------


@pytest.fixture
def thin(images):
    path = images / "thin.png"
    Image.new("RGB", (20_000, 1)).save(path)
    return path


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """A detector whose image_size turns a thin image into 184 million pixels."""
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=96)
    detector = PatchCoreDetector(features, random_state=0).fit(make_pixels(2))
    path = tmp_path_factory.mktemp("model") / "large.skpc"
    persistence.save(detector, path)
    return path


def test_a_thin_image_does_not_end_a_run(large_model, thin, tmp_path):
    report = tmp_path / "report.csv"
    args = ("score", thin.parent, "--model", large_model, "--on-error", "nan")
    result = run(*args, "--report", report)
    assert result.exit_code == 0, result.output
    labels = [r["label"] for r in csv.DictReader(io.StringIO(result.stdout))]
    assert labels.count("unreadable") == 1
    (row,) = csv.DictReader(io.StringIO(report.read_text()))
    assert row["path"] == str(thin)
    assert "enlarge it to 96 x 1920000" in row["reason"]


def test_a_thin_image_ends_a_run_with_a_reason(large_model, thin):
    result = run("score", thin.parent, "--model", large_model)
    assert result.exit_code == 1
    assert "Enlarged images may have" in result.stderr
    assert str(thin) in result.stderr


def test_thin_arrays_are_skipped_as_files_are(large_model):
    detector = persistence.load(large_model)
    arrays = [np.zeros((16, 16)), np.zeros((20_000, 1)), np.zeros((16, 16))]
    results = score_images(detector, arrays, on_error="skip")
    assert results.index.tolist() == [0, 2]
    assert "1920000 x 96" in results.unreadable[0].reason


def test_a_thin_image_is_readable_in_itself(thin):
    assert find_unreadable([thin]) == []
