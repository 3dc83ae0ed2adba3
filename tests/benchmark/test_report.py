"""Reports of a benchmark, opened in a real browser where there is one."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from PIL import Image

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._benchmark import _report_figures as figures
from skpatchcore._benchmark._evaluate import evaluate_category
from skpatchcore._benchmark._report import closest_calls, judge, misjudged
from skpatchcore._cli import _commands as cli
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import make_surface_defects

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

# The scratches have no masks, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:1 defective image without a mask")
# Half of the good images may be flagged: some are, and the report has what to show.
ALPHA = 0.5
FEATURES = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
OPTIONS = (
    *("--report", "--alpha", str(ALPHA), "--backbone", "gabor", "--layers", "fine"),
    *("--image-size", "32", "--coreset-fraction", "50"),
)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    # What users write is no HTML.
    root = tmp_path_factory.mktemp("data") / "a <b> & c"
    surfaces = make_surface_defects(
        8, 3, 2, defects=["spot", "scratch"], image_size=32, random_state=0
    )
    for i, kind in enumerate(surfaces.defect_types):
        path = root / "steel" / surfaces.split[i] / kind / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(surfaces.data[i]).save(path)
        if kind == "spot":  # Scratches have no masks: they are not known.
            mask = Image.fromarray(surfaces.masks[i].astype(np.uint8) * 255)
            path = root / "steel" / "ground_truth" / kind / f"{i:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
    return root


@pytest.fixture(scope="module")
def evaluation(data_root):
    detector = PatchCoreDetector(FEATURES, CoresetSampler(50), random_state=0)
    return evaluate_category(detector, data_root, "steel")


@pytest.fixture(scope="module")
def judgement(evaluation):
    return judge(evaluation, ALPHA)


@pytest.fixture(scope="module")
def command(data_root, tmp_path_factory):
    """The outcome of the command, and its output folder."""
    folder = tmp_path_factory.mktemp("output")
    arguments = ["benchmark", str(data_root), "--output", str(folder), *OPTIONS]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    return result, folder


@pytest.fixture(scope="module")
def report(command):
    return command[1] / "reports" / "steel.html"


# The threshold ----------------------------------------------------------------------


def test_the_threshold_is_that_of_a_refitted_conformal_detector(evaluation, judgement):
    detector = PatchCoreDetector(FEATURES, CoresetSampler(50), random_state=0)
    conformal = ConformalDetector(
        detector, alpha=ALPHA, method="refit", cv=5, random_state=0
    ).fit(evaluation.train.data)
    assert judgement.offset == conformal.offset_
    assert judgement.map_threshold == conformal.map_threshold_
    labels = conformal.predict(evaluation.test.data)
    np.testing.assert_array_equal(judgement.flagged, labels == -1)


def test_a_rate_that_the_images_do_not_support_is_refused(evaluation):
    with pytest.raises(ValueError, match=r"needs at least 999 normal samples .* got 8"):
        judge(evaluation, 0.001)


def test_the_command_refuses_such_a_rate_before_anything_is_computed(
    data_root, tmp_path
):
    arguments = ["benchmark", str(data_root), "--output", str(tmp_path), *OPTIONS]
    result = CliRunner().invoke(cli.main, [*arguments, "--alpha", "0.01"])
    assert result.exit_code == 1
    assert (
        "Error: --alpha 0.01 needs at least 99 good training images for the threshold "
        "of a report; there are fewer in 1 of 1 categories (steel: 8). Add images, "
        "pass --alpha 0.1112 or more"
    ) in result.stderr
    assert "[1/1]" not in result.stderr
    assert not list(tmp_path.iterdir())
    pattern = ["--alpha", "0.2", "--group-pattern", r"[0-2]\.png$|."]
    result = CliRunner().invoke(cli.main, [*arguments, *pattern])
    assert "4 parts with good training images" in result.stderr


def test_groups_of_training_images_are_held_out_and_counted(evaluation):
    groups = np.arange(8) // 2
    judgement = judge(evaluation, 0.3, groups)
    assert_array_equal(np.bincount(judgement.held_out.groups), [2, 2, 2, 2])
    with pytest.raises(ValueError, match=r"at least 9 groups .* got 4"):
        judge(evaluation, 0.1, groups)


def test_the_command_finds_groups_by_a_pattern(data_root, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "skpatchcore._benchmark.write_report",
        lambda *args, groups, **params: given.append(groups) or tmp_path,
    )
    arguments = ["benchmark", str(data_root), "--output", str(tmp_path), *OPTIONS]
    result = CliRunner().invoke(
        cli.main, [*arguments, "--group-pattern", r"(\d)\.png$"]
    )
    assert result.exit_code == 0, result.output
    assert given[0].tolist() == list("01234567")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "--group-pattern", "("], "'(' is not a regular expression"),
        (["--report", "--group-pattern", "part"], "finds no group in"),
        (["--report", "--group-list", __file__], "has no column"),
        (["--report", "--group-pattern", "a", "--group-list", __file__], "not both"),
        (["--group-pattern", "a"], "Add --report"),
        (["--alpha", "0.2"], "Add --report"),
    ],
)
def test_wrong_groups_are_named_before_anything_is_computed(
    data_root, tmp_path, options, message
):
    arguments = ["benchmark", str(data_root), "--output", str(tmp_path)]
    network = ["--backbone", "gabor", "--image-size", "32"]
    result = CliRunner().invoke(cli.main, [*arguments, *network, *options])
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_misjudged_images_and_close_calls_are_those_of_the_threshold(
    evaluation, judgement
):
    wrong, close = (f(evaluation, judgement) for f in (misjudged, closest_calls))
    predicted = np.where(evaluation.scores < judgement.offset, -1, 1)
    expected = np.flatnonzero(predicted != evaluation.test.target)
    assert sorted(wrong) == expected.tolist()
    assert wrong
    distance = np.abs(evaluation.scores - judgement.offset)
    assert (np.diff(distance[wrong]) <= 0).all()
    assert not set(wrong) & set(close)
    for label in (1, -1):
        right = (predicted == label) & (evaluation.test.target == label)
        nearest = np.argsort(np.where(right, distance, np.inf))[: min(2, right.sum())]
        assert set(nearest) <= set(close)


# The figures ------------------------------------------------------------------------


def test_the_confusion_table_shows_counts_and_shares():
    (ax,) = figures.draw_confusion(np.array([[27, 3], [0, 0]])).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["27\n90 %", "3\n10 %", "0\n0 %", "0\n0 %"]


@pytest.mark.parametrize(
    ("draw", "threshold"),
    [(figures.draw_roc, (0.25, 0.5)), (figures.draw_precision_recall, (0.5, 0.5))],
)
def test_curves_pass_through_the_threshold(draw, threshold):
    target, scores = np.array([1, 1, 1, 1, -1, -1]), np.array([5, 4, 3, 1, 2, 0.5])
    (ax,) = draw(target, scores, 1.5).axes
    curve, *_, mark = ax.get_lines()
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == threshold
    assert threshold in set(zip(curve.get_xdata(), curve.get_ydata(), strict=True))


# The files --------------------------------------------------------------------------


def test_a_report_is_one_file_that_needs_no_other(report):
    text = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 5e6
    loaded = re.findall(r'(?:src|srcset|href)="([^"]{0,20})', text)
    assert loaded
    assert all(source.startswith("data:") for source in loaded)
    assert "<script" not in text
    assert "a &lt;b&gt; &amp; c" in text


def test_the_images_of_a_report_are_in_its_folder(report, evaluation, judgement):
    names = {path.name for path in (report.parent / "steel").iterdir()}
    shown = misjudged(evaluation, judgement) + closest_calls(evaluation, judgement)
    assert names == {
        *("roc.png", "precision_recall.png", "densities.png", "confusion.png"),
        "misjudged.csv",
        *(f"{i:04}_{what}.jpg" for i in shown for what in ("maps", "matches")),
    }


def test_misjudged_images_are_listed_with_what_they_matched(
    report, evaluation, judgement
):
    with open(report.parent / "steel" / "misjudged.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    wrong = misjudged(evaluation, judgement)
    assert [line["path"] for line in lines] == [evaluation.test.data[i] for i in wrong]
    for i, line in zip(wrong, lines, strict=True):
        good = evaluation.test.target[i] == 1
        assert line["verdict"] == ("false alarm" if good else "missed")
        assert float(line["score"]) == evaluation.scores[i]
        # With k = 1 and the maximum, the distance of the worst patch is the score.
        assert float(line["distance"]) == pytest.approx(-evaluation.scores[i], rel=1e-6)
        assert line["nearest_image"] in set(evaluation.train.data)


def test_the_command_prints_the_path_of_the_report(command, report):
    result, _ = command
    assert f"Report: {report}\n" in result.stdout
    assert "at most 50 % of new good images (false alarms), the requested rate" in (
        report.read_text(encoding="utf-8")
    )
    assert "%|" not in result.stderr  # No bars where no terminal is.


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_missing_packages_are_named_before_anything_is_computed(
    data_root, tmp_path, monkeypatch, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    arguments = ["benchmark", str(data_root), "--report", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    assert f"need {missing}" in result.stderr
    assert "skpatchcore[plot]" in result.stderr
    assert "[1/1]" not in result.stderr


def test_a_benchmark_saves_its_models(data_root, tmp_path, evaluation):
    from skpatchcore.persistence import load

    models = tmp_path / "models"
    arguments = ["benchmark", str(data_root), "--output", str(tmp_path / "out")]
    arguments += [*OPTIONS[3:], "--save-models", str(models)]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    assert f"Model: {models / 'steel.skpc'}\n" in result.stdout
    scores = load(models / "steel.skpc").score_samples(evaluation.test.data)
    np.testing.assert_allclose(scores, evaluation.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-models", "out"], "--output and --save-models"),
        (["--save-models", "DATA/steel"], "is inside DATA_ROOT"),
        (["--save-models", "file/models"], "not a folder"),
    ],
)
def test_models_that_cannot_be_saved_are_named_before_anything_is_computed(
    data_root, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    options = [option.replace("DATA", str(data_root)) for option in options]
    arguments = ["benchmark", str(data_root), "--output", "out", *OPTIONS[3:]]
    result = CliRunner().invoke(cli.main, [*arguments, *options])
    assert result.exit_code != 0
    assert message in result.stderr
    assert "[1/1]" not in result.stderr


# In a browser -----------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
# A page tells what a person would see of it to a frame, which may be narrower than a
# browser's window: no driver is needed.
FRAME = """<!doctype html><link rel="icon" href="data:,"><body><script>
addEventListener("message", event => {
  document.body.dataset.seen = JSON.stringify(event.data);
});
</script><iframe src="probed.html" width="%d" height="900" frameborder="0"></iframe>"""
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  const root = document.documentElement;
  parent.postMessage({
    width: innerWidth,
    images: images.length,
    broken: images.filter(p => !p.complete || p.naturalWidth === 0).length,
    hidden: images.filter(p => p.getBoundingClientRect().width < 100).length,
    overflow: root.scrollWidth - root.clientWidth,
  }, "*");
});
</script>"""


def look_at(page: Path, width: int, folder: Path) -> tuple[dict, list[str]]:
    """Return what a frame of this width shows of a page, and its console messages.

    No network can be reached from it.
    """
    probed, frame = folder / "probed.html", folder / "frame.html"
    probed.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    frame.write_text(FRAME % width, encoding="utf-8")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--no-first-run"),
            *(f"--disable-{feature}" for feature in quiet),
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--window-size=1400,1000",
            "--virtual-time-budget=10000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (seen,) = re.findall(r'data-seen="([^"]*)"', done.stdout)
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(seen.replace("&quot;", '"')), said


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_report_is_whole_in_a_browser(report, tmp_path, width):
    alone = tmp_path / "alone.html"  # Without its folder.
    shutil.copy(report, alone)
    seen, said = look_at(alone, width, tmp_path)
    assert said == []
    assert seen["width"] == width
    assert seen["images"] == len(list((report.parent / "steel").glob("*.[jp][pn]g")))
    assert (seen["broken"], seen["hidden"], seen["overflow"]) == (0, 0, 0)


@needs_browser
def test_the_browser_notices_broken_pages(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(
        '<img src="gone.png"><script>console.error("no!")</script>'
        '<div style="width: 5000px">wide</div>'
    )
    seen, said = look_at(page, 390, tmp_path)
    assert any("no!" in line for line in said)
    assert seen["broken"] == 1
    assert seen["overflow"] > 4000
