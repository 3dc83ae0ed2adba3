"""Results that are written image by image, and runs that are interrupted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._cli import _commands as cli
from skpatchcore._images import Images
from skpatchcore.persistence import load, save
from skpatchcore.scoring import score_images

SIDE = 32
FORMATS = ["csv", "jsonl", "json"]


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # Its scores depend on the other images of a batch, by rounding.
    features = PatchFeatureTransformer("embedded", image_size=SIDE, batch_size=8)
    detector = PatchCoreDetector(features, random_state=0)
    path = tmp_path_factory.mktemp("model") / "model.skpc"
    save(detector.fit(random_images(12, SIDE, SIDE)), path)
    return path


def write_images(folder, n, bad=()):
    folder.mkdir()
    # Images of two sizes are not inspected in order.
    sizes = [(SIDE, SIDE), (SIDE, 2 * SIDE)]
    for i in range(n):
        pixels = random_images(1, *sizes[i % 5 == 3], seed=i)[0]
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    for i in bad:
        (folder / f"{i:03}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images", 40, bad=[7, 20])


@pytest.fixture(scope="module")
def undisturbed(model, images, tmp_path_factory):
    """The results of a run in each format, and of masks and overlays."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for suffix in FORMATS:
        result = score(model, images, folder, suffix)
        assert result.exit_code == 0, result.output
    return folder


def score(model, images, folder, suffix="csv", *options):
    given = ("--on-error", "skip", "--min-area", "5", *options)
    output = folder / f"out.{suffix}"
    return run("score", images, "--model", model, "--output", output, *given)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def records_of(folder, suffix):
    name = "out.json.partial.jsonl" if suffix == "json" else f"out.{suffix}"
    return folder / name


def interrupted(model, images, folder, suffix, monkeypatch, n, error=KeyboardInterrupt):
    """Score, but let the decoding of the image after `n` end the run."""
    from skpatchcore._cli import _score_run

    original, seen = _score_run.hash_file, []

    def fail(path):
        if Path(path).parent == images:
            seen.append(path)
            if len(seen) > n:
                raise error
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(_score_run, "hash_file", fail)
        return score(model, images, folder, suffix)


# Order and contents -------------------------------------------------------------------


def test_rows_are_in_the_order_of_the_images(undisturbed, images):
    paths = [row["path"] for row in rows_of(undisturbed / "out.csv")]
    assert paths == [str(images / f"{i:03}.png") for i in range(40) if i not in (7, 20)]


def test_all_formats_agree_with_python(undisturbed, model, images):
    paths = sorted(images.glob("*.png"))
    options = {"regions": True, "min_area": 5, "maps": True}
    results = score_images(load(model), paths, on_error="skip", **options)
    rows = rows_of(undisturbed / "out.csv")
    lines = lines_of(undisturbed / "out.jsonl")
    coco = json.loads((undisturbed / "out.json").read_text("ascii"))
    assert len(rows) == len(lines) == len(coco["images"]) == len(results.score) == 38
    for i, (row, line, image) in enumerate(
        zip(rows, lines, coco["images"], strict=True)
    ):
        regions = results.regions[i]
        assert float(row["score"]) == pytest.approx(results.score[i], rel=1e-5)
        assert row["score"] == str(line["score"]) == str(image["score"])
        assert row["label"] == line["label"] == image["label"]
        assert row["path"] == line["path"] == image["file_name"]
        assert row["sha256"] == line["sha256"] == image["sha256"]
        assert int(row["n_regions"]) == len(line["regions"]) == len(regions)
        assert int(row["region_area"]) == sum(one.area for one in regions)
        assert (line["height"], line["width"]) == results.map[i].shape
        assert line["map_peak"] == pytest.approx(float(results.map[i].max()), rel=1e-5)
        own = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        for a, region, other in zip(own, line["regions"], regions, strict=True):
            assert a["bbox"] == region["box"] == list(other.box)
            assert a["area"] == region["area"] == other.area
            assert a["segmentation"] == [np.ravel(region["polygon"]).tolist()]
            assert region["polygon"] == other.polygon.tolist()
            assert (a["score"], a["mean"]) == (region["peak"], region["mean"])
    assert sum(len(one) for one in results.regions) > 0
    ids = [a["id"] for a in coco["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_a_calibrated_model_gives_p_values_and_readable_scores(tmp_path, images):
    from skpatchcore.calibration import ConformalDetector

    features = PatchFeatureTransformer("gabor", ("fine",), image_size=SIDE)
    detector = PatchCoreDetector(features, random_state=0)
    detector = ConformalDetector(detector, alpha=0.2, method="refit", random_state=0)
    save(detector.fit(random_images(12, SIDE, SIDE)), tmp_path / "model.skpc")
    for suffix in FORMATS:
        score(tmp_path / "model.skpc", images, tmp_path, suffix)
    expected = score_images(detector, sorted(images.glob("*.png")), on_error="skip")
    rows = rows_of(tmp_path / "out.csv")
    line = lines_of(tmp_path / "out.jsonl")[0]
    image = json.loads((tmp_path / "out.json").read_text("ascii"))["images"][0]
    for name in ("p_value", "anomaly_score"):
        values = [float(row[name]) for row in rows]
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)
        assert line[name] == image[name] == values[0]


def test_the_suffix_or_the_option_decides_about_the_format(model, images, tmp_path):
    arguments = ("score", images / "000.png", "--model", model)
    for name, options in [("a.ndjson", ()), ("b.txt", ("--format", "jsonl"))]:
        run(*arguments, "--output", tmp_path / name, *options)
        assert json.loads((tmp_path / name).read_text("ascii"))["label"]
    result = run(*arguments, "--format", "coco")
    assert json.loads(result.stdout)["categories"][0]["name"] == "defect"
    result = run(*arguments, "--format", "jsonl")
    assert json.loads(result.stdout)["regions"] is not None
    run(*arguments, "--output", tmp_path / "c.txt")
    assert len(rows_of(tmp_path / "c.txt")) == 1


def test_unreadable_images_are_lines_of_json(model, images, tmp_path):
    result = score(model, images, tmp_path, "jsonl", "--on-error", "nan")
    assert result.exit_code == 0, result.output
    lines = lines_of(tmp_path / "out.jsonl")
    assert [lines[i]["label"] for i in (7, 20)] == ["unreadable"] * 2
    assert "cannot identify it" in lines[7]["reason"]
    assert len(lines) == 40


def test_unreadable_images_cannot_be_listed_in_coco(model, images, tmp_path):
    result = score(model, images, tmp_path, "json", "--on-error", "nan")
    assert result.exit_code == 2
    assert "--report" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_results_of_an_earlier_run_are_kept_until_the_model_is_loaded(
    images, tmp_path
):
    (tmp_path / "out.csv").write_bytes(b"old")
    (tmp_path / "model.skpc").write_bytes(b"no model")
    result = score(tmp_path / "model.skpc", images, tmp_path)
    assert result.exit_code == 1
    assert (tmp_path / "out.csv").read_bytes() == b"old"


# Interrupted runs ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("n", [0, 1, 19, 37])
def test_an_interrupted_run_keeps_its_rows_and_is_resumed(
    model, images, undisturbed, tmp_path, monkeypatch, suffix, n
):
    result = interrupted(model, images, tmp_path, suffix, monkeypatch, n)
    assert result.exit_code == 130
    assert f"Stopped: {n} scored" in result.stderr
    assert "--resume" in result.stderr
    lines = records_of(tmp_path, suffix).read_bytes().splitlines()
    assert len(lines) == n + (suffix == "csv")
    result = score(model, images, tmp_path, suffix, "--resume")
    assert result.exit_code == 0, result.output
    assert f"Resumed: {n} of 40 images were done." in result.stderr
    assert "38 scored" in result.stderr.splitlines()[-1]
    name = f"out.{suffix}"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_rows_reach_standard_output_before_an_interrupt(model, images, monkeypatch):
    from skpatchcore._cli import _score_run

    names = iter(range(100))

    def fail(path):
        if Path(path).parent == images and next(names) == 3:
            raise KeyboardInterrupt
        return "0"

    monkeypatch.setattr(_score_run, "hash_file", fail)
    result = run("score", images, "--model", model, "--on-error", "skip")
    assert result.exit_code == 130
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == [
        "path",
        *(str(images / f"00{i}.png") for i in range(3)),
    ]
    assert "--resume" not in result.stderr


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_half_written_row_is_dropped(
    model, images, undisturbed, tmp_path, monkeypatch, suffix
):
    interrupted(model, images, tmp_path, suffix, monkeypatch, 3)
    records = records_of(tmp_path, suffix)
    whole = records.read_bytes()
    for n_bytes in (1, 5, len(whole) - 1):
        records.write_bytes(whole[:-n_bytes])
        result = score(model, images, tmp_path, suffix, "--resume")
        assert result.exit_code == 0, result.output
        name = f"out.{suffix}"
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
        (tmp_path / name).unlink()


def test_a_row_cut_at_a_line_break_in_its_name_is_dropped(model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    try:
        for name in ("a.png", "line\nbreak.png"):
            Image.fromarray(random_images(1, SIDE, SIDE)[0]).save(folder / name)
    except OSError:
        pytest.skip("this file system accepts no line breaks in names")
    score(model, folder, tmp_path)
    whole = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").write_bytes(whole[: whole.index(b"line\n") + 5])
    result = score(model, folder, tmp_path, "csv", "--resume")
    assert "Resumed: 1 of 2 images" in result.stderr
    assert (tmp_path / "out.csv").read_bytes() == whole


def test_an_error_in_the_middle_keeps_the_rows(model, images, tmp_path, monkeypatch):
    result = interrupted(
        model, images, tmp_path, "csv", monkeypatch, 5, error=OSError("disk")
    )
    assert result.exit_code == 1
    assert len(rows_of(tmp_path / "out.csv")) == 5


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_finished_run_is_continued_with_new_images(
    model, tmp_path, monkeypatch, suffix
):
    folder = write_images(tmp_path / "images", 6)
    score(model, folder, tmp_path, suffix)
    Image.fromarray(random_images(1, SIDE, SIDE, seed=9)[0]).save(folder / "000a.png")
    result = score(model, folder, tmp_path, suffix, "--resume")
    assert "Resumed: 6 of 7 images were done." in result.stderr
    text = (tmp_path / f"out.{suffix}").read_text("utf-8")
    names = ["000.png", "000a.png", "001.png"]
    places = [text.index(str(folder / name)) for name in names]
    assert places == sorted(places)
    assert not records_of(tmp_path, "json").exists()


def test_a_changed_image_is_scored_again(model, tmp_path):
    folder = write_images(tmp_path / "images", 4)
    score(model, folder, tmp_path)
    before = rows_of(tmp_path / "out.csv")
    stat = os.stat(folder / "001.png")
    shutil.copy(folder / "002.png", folder / "001.png")
    # Neither the name nor the time tells.
    os.utime(folder / "001.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = score(model, folder, tmp_path, "csv", "--resume")
    assert "Resumed: 3 of 4 images were done." in result.stderr
    after = rows_of(tmp_path / "out.csv")
    assert [row["path"] for row in after] == [row["path"] for row in before]
    assert after[1]["score"] == pytest.approx(after[2]["score"])
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]


def test_a_file_is_read_once_for_all_its_pages(model, tmp_path, monkeypatch):
    from skpatchcore._cli import _score_run

    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        pages = [Image.fromarray(page) for page in random_images(5, SIDE, SIDE)]
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    original, read = _score_run.hash_file, []
    monkeypatch.setattr(
        _score_run, "hash_file", lambda path: read.append(path) or original(path)
    )
    result = score(model, folder, tmp_path, "csv", "--pages", "all")
    assert result.exit_code == 0, result.output
    hashes = [row["sha256"] for row in rows_of(tmp_path / "out.csv")]
    expected = [original(str(folder / name)) for name in ("a.tif", "b.tif")]
    assert hashes == list(np.repeat(expected, 5))
    assert [Path(path).name for path in read[1:]] == ["a.tif", "b.tif"]


def test_an_image_that_has_become_readable_is_scored(model, tmp_path):
    folder = write_images(tmp_path / "images", 4, bad=[1])
    score(model, folder, tmp_path, "csv", "--on-error", "nan")
    assert rows_of(tmp_path / "out.csv")[1]["label"] == "unreadable"
    shutil.copy(folder / "002.png", folder / "001.png")
    score(model, folder, tmp_path, "csv", "--on-error", "nan", "--resume")
    rows = rows_of(tmp_path / "out.csv")
    assert rows[1]["score"] == rows[2]["score"]
    assert len(rows) == 4


def test_rows_of_other_images_are_kept(model, tmp_path):
    first, second = write_images(tmp_path / "a", 2), write_images(tmp_path / "b", 3)
    score(model, first, tmp_path)
    score(model, second, tmp_path, "csv", "--resume")
    paths = [row["path"] for row in rows_of(tmp_path / "out.csv")]
    assert paths == [
        *map(str, sorted(first.iterdir())),
        *map(str, sorted(second.iterdir())),
    ]


def test_missing_masks_are_drawn_again(model, tmp_path):
    folder = write_images(tmp_path / "images", 3)
    masks = ("--masks", tmp_path / "masks", "--overlays", tmp_path / "overlays")
    score(model, folder, tmp_path, "csv", *masks)
    (tmp_path / "masks" / "001.png").unlink()
    result = score(model, folder, tmp_path, "csv", *masks, "--resume")
    assert "Resumed: 2 of 3 images were done." in result.stderr
    assert (tmp_path / "masks" / "001.png").is_file()
    assert len(rows_of(tmp_path / "out.csv")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-area", "6"), "another model or another --min-area"),
        (("--format", "jsonl"), "its line 'path,score,decision,label,n_reg"),
        (("--format", "coco"), "it is not a JSON document"),
    ],
)
def test_other_results_are_not_continued(model, tmp_path, options, message):
    folder = write_images(tmp_path / "images", 2)
    score(model, folder, tmp_path)
    before = (tmp_path / "out.csv").read_bytes()
    result = score(model, folder, tmp_path, "csv", "--resume", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (tmp_path / "out.csv").read_bytes() == before


def test_the_default_area_is_1(model, tmp_path):
    folder = write_images(tmp_path / "images", 2)
    arguments = ("score", folder, "--model", model, "--output", tmp_path / "a.jsonl")
    run(*arguments)
    result = run(*arguments, "--min-area", "1", "--resume")
    assert "Resumed: 2 of 2 images" in result.stderr


def test_another_file_is_not_continued(model, tmp_path):
    folder = write_images(tmp_path / "images", 1)
    (tmp_path / "out.csv").write_bytes(b"a,b\n1,2\n")
    result = score(model, folder, tmp_path, "csv", "--resume")
    assert result.exit_code == 2
    assert "its first line is not that of such a table" in result.stderr
    assert (tmp_path / "out.csv").read_bytes() == b"a,b\n1,2\n"


@pytest.mark.parametrize("output", [(), ("--output", "/dev/null")])
def test_there_must_be_a_file_to_resume(model, images, output):
    if output and not os.path.exists("/dev/null"):
        pytest.skip("needs a device")
    result = run("score", images, "--model", model, "--resume", *output)
    assert result.exit_code == 2
    assert "--resume needs a file of earlier results" in result.stderr


def test_an_image_that_vanishes_before_its_overlay_is_unreadable(
    model, tmp_path, monkeypatch
):
    folder = write_images(tmp_path / "images", 3)
    original = Images.__getitem__

    def vanish(self, i):
        pixels = original(self, i)
        if self.names[i].endswith("001.png)"):
            (folder / "001.png").unlink(missing_ok=True)
        return pixels

    monkeypatch.setattr(Images, "__getitem__", vanish)
    result = score(model, folder, tmp_path, "csv", "--overlays", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1].startswith("2 scored")
    assert len(rows_of(tmp_path / "out.csv")) == 2


def test_an_image_that_changes_while_it_is_scored_is_scored_again(
    model, tmp_path, monkeypatch
):
    folder = write_images(tmp_path / "images", 3)
    original = Images.__getitem__
    other = Image.fromarray(random_images(1, SIDE, SIDE, seed=99)[0])

    def replace(self, i):
        pixels = original(self, i)
        if self.names[i].endswith("001.png)"):
            other.save(folder / "001.png")
        return pixels

    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", replace)
        score(model, folder, tmp_path, "csv")
    rows = rows_of(tmp_path / "out.csv")
    assert [row["sha256"] == "" for row in rows] == [False, True, False]
    result = score(model, folder, tmp_path, "csv", "--resume")
    assert "Resumed: 2 of 3" in result.stderr
    resumed = (tmp_path / "out.csv").read_bytes()
    score(model, folder, tmp_path, "csv")
    assert (tmp_path / "out.csv").read_bytes() == resumed


@pytest.mark.parametrize("n", [0, 1])
def test_results_that_are_replaced_are_announced(model, tmp_path, n):
    folder = write_images(tmp_path / "images", 1)
    for _ in range(n):
        score(model, folder, tmp_path, "csv")
    stderr = score(model, folder, tmp_path, "csv").stderr
    assert stderr.count("Replacing") == n
    resumed = score(model, folder, tmp_path, "csv", "--resume").stderr
    assert "Replacing" not in resumed


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX locks")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("options", [(), ("--resume",)], ids=["new", "resume"])
def test_a_run_that_overlaps_with_another_is_refused(
    model, images, tmp_path, suffix, options, monkeypatch
):
    from skpatchcore._cli import _score_run

    original, second = _score_run.hash_file, []

    def overlap(path):
        if Path(path).name == "010.png" and not second:
            second.append(None)
            second[0] = score(model, images, tmp_path, suffix, *options)
        return original(path)

    monkeypatch.setattr(_score_run, "hash_file", overlap)
    first = score(model, images, tmp_path, suffix, "--on-error", "skip")
    assert second[0].exit_code == 1
    assert "is being written by another run" in second[0].stderr
    assert first.exit_code == 0, first.output
    assert first.stderr.splitlines()[-1].startswith("38 scored")
    after = (tmp_path / f"out.{suffix}").read_bytes()
    clean = tmp_path / "clean"
    clean.mkdir()
    score(model, images, clean, suffix)
    assert (clean / f"out.{suffix}").read_bytes() == after


# Kills --------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_killed_run_is_resumed(model, tmp_path, number):
    folder = write_images(tmp_path / "images", 300)
    clean = tmp_path / "clean"
    clean.mkdir()
    score(model, folder, clean)
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "skpatchcore", "score", str(folder)]
    command += ["--model", str(model), "--output", str(output), "--min-area", "5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 60
        while not output.exists() or output.read_bytes().count(b"\n") < 30:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.send_signal(getattr(signal, number))
        _, stderr = child.communicate(timeout=60)
    expected = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
    assert child.returncode == expected[number]
    if number != "SIGKILL":
        assert b"Stopped: " in stderr
    n_rows = output.read_bytes().count(b"\n") - 1
    assert 29 <= n_rows < 300
    result = score(model, folder, tmp_path, "csv", "--resume")
    assert f"Resumed: {n_rows} of 300" in result.stderr
    assert output.read_bytes() == (clean / "out.csv").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_terminated_fit_leaves_no_temporary_files(tmp_path, number):
    folder = write_images(tmp_path / "images", 300)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "skpatchcore", "fit", str(folder), "--alpha"]
    command += ["0.05", "--model", str(tmp_path / "m.skpc"), "--backbone", "embedded"]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        deadline = time.monotonic() + 60
        while not any(path.is_dir() for path in scratch.glob("skpatchcore*/*")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.send_signal(getattr(signal, number))
        child.communicate(timeout=60)
    assert child.returncode == 128 + getattr(signal, number)
    assert not list(scratch.glob("skpatchcore*"))
    assert not (tmp_path / "m.skpc").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_nohup_protects_a_run(model, images, tmp_path):
    command = [sys.executable, "-m", "skpatchcore", "score", str(images), "--model"]
    command += [str(model), "--output", str(tmp_path / "out.csv"), "--on-error", "skip"]

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with subprocess.Popen(command, preexec_fn=ignore) as child:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.csv").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.send_signal(signal.SIGHUP)
        assert child.wait(60) == 0
    assert len(rows_of(tmp_path / "out.csv")) == 38
