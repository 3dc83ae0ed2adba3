"""Every awkward file is read right, or named in a message."""

import csv
import os
import re

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._cli import main
from skpatchcore._images._files import accepted_formats
from skpatchcore._images._input import check_images
from skpatchcore.datasets import load_image_folder
from skpatchcore.persistence import save
from skpatchcore.scoring import score_images
from tests.images.awkward_files import (
    COLORS,
    FILES,
    PAGE,
    make_tables,
    with_table,
    write_all,
)

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX files"),
    # Of transparent pixels, and of what a folder contains besides images.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("awkward") / "files")


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=(48, 64))
    good = [np.roll(COLORS, 8 * i, 1) for i in range(4)]
    return PatchCoreDetector(features, random_state=0).fit(good)


@pytest.fixture(scope="module")
def expected_scores(detector):
    readable = [one for one in FILES if one.expected is not None]
    scores = detector.score_samples([one.expected for one in readable])
    return {one.name: s for one, s in zip(readable, scores, strict=True)}


def assert_scored(name, score, expected_scores):
    (one,) = (one for one in FILES if one.name == name)
    exact = one.tolerance < 0.01
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if exact else {"atol": 0.2}
    assert_allclose(score, expected_scores[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("one", FILES, ids=lambda one: ascii(one.name)[1:40])
def test_a_file_is_decoded_right_or_named(one, tmp_path):
    path = tmp_path / one.name
    if one.name == "link.png":
        Image.fromarray(COLORS).save(tmp_path / "plain.png")
    one.write(path)
    if one.expected is None:
        with pytest.raises((OSError, ValueError), match=re.escape(str(path))):
            check_images([path])[0]
        return
    image = check_images([path])[0]
    assert image.dtype == np.float32
    assert image.shape == one.expected.shape
    assert_allclose(image, one.expected, atol=one.tolerance, rtol=0)


def test_score_images_scores_the_readable_and_names_the_others(
    written, detector, expected_scores
):
    paths = list(written)
    results = score_images(detector, paths, on_error="skip")
    for i, score in zip(results.index, results.score, strict=True):
        assert_scored(written[paths[i]].name, score, expected_scores)
    bad = {paths[one.index]: one for one in results.unreadable}
    assert {path for path in written if written[path].expected is None} == set(bad)
    for path, one in bad.items():
        assert path in one.reason


@pytest.mark.filterwarnings("ignore:Passed over")
def test_the_loader_lists_files_that_are_read_right_or_named(
    written, detector, expected_scores
):
    folder = os.path.dirname(next(iter(written)))
    paths = load_image_folder(folder, subset="train").data
    assert len(paths) > 40
    results = score_images(detector, paths, on_error="skip")
    for i, score in zip(results.index, results.score, strict=True):
        name = os.path.basename(paths[i])
        assert_scored(name, score, expected_scores)
    assert all(paths[one.index] in one.reason for one in results.unreadable)


@pytest.fixture(scope="module")
def scored(written, detector, tmp_path_factory):
    """Score all files by the command; return what it wrote."""
    folder = tmp_path_factory.mktemp("scored")
    model, table, report = (str(folder / n) for n in ("m.skpc", "s.csv", "bad.csv"))
    save(detector, model)
    files = [path for path in written if os.path.isfile(path)]
    arguments = ["score", "--model", model, "--on-error", "skip", "--output", table]
    arguments += ["--report", report, os.path.dirname(files[0]), *files]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    tables = []
    for path in (table, report):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            tables.append({row["path"]: row for row in csv.DictReader(file)})
    return (*tables, result.output)


@pytest.mark.filterwarnings("ignore:Passed over")
def test_the_command_scores_or_reports_every_file(written, scored, expected_scores):
    scores, bad, output = scored
    for path, one in written.items():
        if path in scores:
            assert_scored(one.name, float(scores[path]["score"]), expected_scores)
        elif path in bad:
            assert one.expected is None
        else:
            # Listed under another name of it, or passed over, which is said.
            is_link = os.path.islink(path) and os.path.isfile(path)
            assert is_link or not os.path.isfile(path) or one.name in output


@pytest.mark.parametrize(
    "name", ["stack.tif", "truncated.png", "huge.png", "uint_32.tif", "text.png"]
)
def test_fit_names_an_unreadable_file(name, written, tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(COLORS, 8 * i, 1)).save(folder / f"{i}.png")
    (one,) = (one for one in FILES if one.name == name)
    one.write(folder / name)
    arguments = ["fit", str(folder), "--model", str(tmp_path / "m.skpc")]
    result = CliRunner().invoke(main, [*arguments, "--backbone", "gabor"])
    assert result.exit_code != 0
    assert name in result.output


@pytest.mark.skipif("AVIF" not in accepted_formats(), reason="needs AVIF")
def test_the_tables_in_the_documentation_are_current():
    """Apart from the messages, which may be Pillow's."""
    page = PAGE.read_text("utf-8")
    current = with_table(page, make_tables())
    assert without_messages(page) == without_messages(current)


def without_messages(page):
    return re.sub(r"(?<=`\) \|).*$", "", page, flags=re.M)
