"""The threshold of ``skpatchcore fit``: calibrated, tuned, or rated by one half."""

import csv
import io
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.frozen import FrozenEstimator

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    calibration,
)
from skpatchcore._cli import _commands as cli
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.persistence import load

SMALL = ("--backbone", "gabor", "--layers", "fine", "--image-size", "16")
SMALL = (*SMALL, "--coreset-fraction", "40")


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def fit(folder, *args):
    return run("fit", folder / "good", "--model", folder / "m.skpc", *SMALL, *args)


def said(result) -> str:
    """Return standard output without line breaks."""
    return " ".join(result.stdout.split())


def write(folder, n, *, seed=0, spot=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = rng.integers(90, 160, (16, 16, 3), np.uint8)
        pixels[4 : 4 + spot, 4 : 4 + spot] = 255
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "good", 20)
    write(tmp_path / "check", 10, seed=1)
    write(tmp_path / "bad" / "spot", 4, seed=2, spot=6)
    return tmp_path


@pytest.fixture
def good(folder):
    return sorted(map(str, (folder / "good").iterdir()))


@pytest.fixture
def check(folder):
    return sorted(map(str, (folder / "check").iterdir()))


@pytest.fixture
def detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16)
    return PatchCoreDetector(features, CoresetSampler(40), random_state=0)


@pytest.fixture
def no_work(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("too late")

    monkeypatch.setattr(PatchFeatureTransformer, "fit", fail)


# A false-alarm rate -------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "refit", "cross", "split", "jackknife+"])
def test_alpha_calibrates_as_in_python(folder, good, check, detector, method):
    how = ["--calibration", method] if method else []
    result = fit(folder, "--alpha", "0.1", *how)
    assert result.exit_code == 0, result.output
    expected = ConformalDetector(
        detector, alpha=0.1, method=method or "refit", random_state=0
    ).fit(good)
    loaded = load(folder / "m.skpc")
    assert loaded.offset_ == pytest.approx(expected.offset_)
    n = len(expected.calibration_scores_)
    text = said(result)
    assert f"calibrated for 10 % false alarms on {n} good images" in text
    smallest = {10: "9.1", 20: "4.77"}[n]
    assert f"they support is {smallest} %" in text
    if method == "split":
        assert "for 95 % of such sets, it is between" in text
    else:
        share = calibration.held_out_share(expected)
        assert calibration.held_out_share(loaded) == share
        assert f"Out of sample: {share.n_flagged} of 20 good images flagged" in text
    scored = run("score", folder / "check", "--model", folder / "m.skpc")
    rows = list(csv.DictReader(io.StringIO(scored.stdout)))
    p_values = [float(row["p_value"]) for row in rows]
    np.testing.assert_allclose(p_values, expected.predict_pvalue(check))
    flagged = [row["label"] == "anomalous" for row in rows]
    assert flagged == [p <= 0.1 for p in p_values]
    last = f"10 scored, {sum(flagged)} anomalous, 0 unreadable"
    assert scored.stderr.splitlines()[-1] == last


def test_images_of_another_folder_calibrate_alone(folder, good, check, detector):
    result = fit(folder, "--alpha", "0.1", "--calibration-images", folder / "check")
    assert result.exit_code == 0, result.output
    assert "Fitting on 20 images, calibrating on 10 others ..." in result.stderr
    frozen = FrozenEstimator(detector.fit(good))
    expected = ConformalDetector(frozen, alpha=0.1).fit(check)
    loaded = load(folder / "m.skpc")
    assert loaded.offset_ == pytest.approx(expected.offset_)
    assert loaded.map_threshold_ == pytest.approx(expected.map_threshold_)
    assert "calibrated for 10 % false alarms on 10 good images" in said(result)
    assert "False alarms: at most 10 % on average" in said(result)


@pytest.mark.parametrize("name", ["check", "bad"])
def test_defects_that_calibrate_are_noticed(folder, name):
    options = ["--alpha", "0.2", "--calibration-images", folder / name]
    result = fit(folder, *options)
    assert result.exit_code == 0, result.output
    noticed = "4 of 4 images in --calibration-images score lower" in result.stderr
    assert noticed == (name == "bad")


def test_one_detector_in_the_file_is_the_default(folder):
    fit(folder, "--alpha", "0.1")
    assert len(load(folder / "m.skpc").estimators_) == 1
    result = fit(folder, "--alpha", "0.1", "--calibration", "cross")
    assert "features in 5 detectors after" in result.stdout
    assert result.stdout.startswith("Kept 200 patches of ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "0.01"], "--alpha 0.01 needs at least 99 normal samples"),
        (["--alpha", "0.05", "--calibration", "split"], "needs at least 19"),
        (
            ["--alpha", "0.05", "--calibration-images", "check"],
            "--alpha 0.05 needs at least 19 normal samples to calibrate on, got 10",
        ),
        (
            ["--alpha", "0.05", "--group-pattern", r"(\d\d)\.png"],
            "--alpha 0.05 needs at least 19 groups of normal samples",
        ),
    ],
)
def test_a_rate_that_the_images_do_not_support_is_refused_before_any_work(
    folder, monkeypatch, no_work, options, message
):
    monkeypatch.chdir(folder)
    options = [option.replace(r"(\d\d)", r"(\d)") for option in options]
    result = fit(folder, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (folder / "m.skpc").exists()


def test_fewer_images_than_folds_are_held_out_one_by_one(tmp_path):
    write(tmp_path / "good", 3)
    result = fit(tmp_path, "--alpha", "0.3", "--coreset-fraction", "0.5")
    assert result.exit_code == 0, result.output
    assert "Out of sample: not measured" in result.stdout


def test_a_configuration_file_sets_the_rate(folder):
    (folder / "part.yaml").write_text("alpha: 0.1\ncalibration: split\n")
    result = fit(folder, "--config", folder / "part.yaml")
    assert result.exit_code == 0, result.output
    assert load(folder / "m.skpc").method == "split"


# Several images of one part -----------------------------------------------------------


@pytest.mark.parametrize("by", ["pattern", "list"])
def test_images_of_one_part_are_held_out_together(folder, good, detector, by):
    groups = [path[-7:-5] for path in good]  # 00 and 01, of 10 images each
    if by == "list":
        rows = [f"{path},{i // 2}" for i, path in enumerate(good)]
        (folder / "parts.csv").write_text("\n".join(["path,serial", *rows]))
        options = ["--group-list", folder / "parts.csv", "--group-column", "serial"]
        groups = np.arange(20) // 2
    else:
        options = ["--group-pattern", r"(\d\d)\d\.png$"]
    result = fit(folder, "--alpha", "0.4", *options)
    assert result.exit_code == 0, result.output
    n_groups = len(set(groups))
    expected = ConformalDetector(
        detector, alpha=0.4, method="refit", cv=min(5, n_groups), random_state=0
    ).fit(good, groups=groups)
    assert load(folder / "m.skpc").offset_ == pytest.approx(expected.offset_)
    assert f"on 20 good images of {n_groups} parts" in said(result)


def test_a_part_does_not_both_fit_and_calibrate(folder, no_work):
    options = ["--alpha", "0.1", "--calibration-images", folder / "check"]
    result = fit(folder, *options, "--group-pattern", r"\d+\.png$")
    assert result.exit_code == 2
    assert f"{folder}/check/000.png in --calibration-images shows the part" in (
        result.stderr
    )
    result = run("fit", "--help")
    assert "--group-pattern" in result.stdout


def test_images_of_one_part_are_noticed_in_the_words_of_the_command(tmp_path):
    write(tmp_path / "good", 12)
    for path in sorted((tmp_path / "good").iterdir()):
        with Image.open(path) as image:
            image.point(lambda value: value + 1).save(path.with_stem(f"{path.stem}_b"))
    result = fit(tmp_path, "--alpha", "0.1")
    (warning,) = [one for one in result.stderr.splitlines() if "Warning" in one]
    assert "Pass --group-pattern; see" in warning
    assert "groups=" not in warning
    result = fit(tmp_path, "--alpha", "0.1", "--group-pattern", r"(\d+)(_b)?\.png")
    assert "Warning" not in result.stderr
    assert "on 24 good images of 12 parts" in said(result)


# Which images -------------------------------------------------------------------------


def test_an_image_does_not_both_fit_and_calibrate(folder, no_work):
    (folder / "check" / "again.png").symlink_to(folder / "good" / "003.png")
    result = fit(folder, "--alpha", "0.1", "--calibration-images", folder / "check")
    assert result.exit_code == 1
    assert f"Error: {folder}/good/003.png in TRAIN and " in result.stderr
    assert f"{folder}/check/again.png in --calibration-images are the same" in (
        result.stderr
    )


def test_an_image_is_not_both_good_and_defective(folder, no_work):
    (folder / "bad" / "again.png").symlink_to(folder / "good" / "003.png")
    result = fit(folder, "--defective", folder / "bad")
    assert "given as good and as defective" in result.stderr


@pytest.mark.parametrize("option", ["--calibration-images", "--defective"])
def test_a_copy_under_another_name_is_the_same_image(folder, no_work, option):
    name = "check" if "cal" in option else "bad"
    shutil.copy(folder / "good" / "003.png", folder / name / "copy.png")
    alpha = ["--alpha", "0.1"] if name == "check" else []
    result = fit(folder, *alpha, option, folder / name)
    assert result.exit_code == 1
    assert f"{folder}/{name}/copy.png" in result.stderr
    assert "have the same contents" in result.stderr


def test_copies_among_the_training_images_are_left_out(folder, tmp_path):
    for name in ("003", "004"):
        shutil.copy(folder / "good" / f"{name}.png", folder / "good" / f"z{name}.png")
    result = fit(folder, "--alpha", "0.05")
    assert result.exit_code == 0, result.output
    assert "Left out 2 of 22 images, which are copies of others" in result.stderr
    assert f"such as {folder}/good/z003.png of {folder}/good/003.png." in result.stderr
    assert "on 20 images" in result.stderr
    with_copies = load(folder / "m.skpc").calibration_scores_
    for path in (folder / "good").glob("z*.png"):
        path.unlink()
    fit(folder, "--alpha", "0.05")
    assert_array_equal(load(folder / "m.skpc").calibration_scores_, with_copies)


def test_copies_alone_do_not_calibrate(tmp_path):
    write(tmp_path / "good", 1)
    for i in range(20):
        shutil.copy(tmp_path / "good" / "000.png", tmp_path / "good" / f"copy{i}.png")
    result = fit(tmp_path, "--alpha", "0.05")
    assert result.exit_code == 1
    assert "Left out 20 of 21 images" in result.stderr


def test_the_smallest_rate_is_one_that_is_accepted(folder):
    # 1/21 is 0.047619: rounded to the nearest, it would be refused.
    assert "smallest rate that they support is 4.77 %." in said(
        fit(folder, "--alpha", "0.05")
    )
    (folder / "good" / "000.png").unlink()
    (folder / "good" / "001.png").unlink()
    result = fit(folder, "--alpha", "0.05")  # 1/19 is 0.0526316.
    assert "The smallest alpha they support is 1/19 = 0.05264." in result.stderr
    result = fit(folder, "--alpha", "0.05264")
    assert "The smallest rate that they support is 5.27 %." in said(result)
    result = fit(folder, "--alpha", "0.0527")
    assert result.exit_code == 0, result.output


def test_photos_of_one_part_are_refused_by_the_number_of_parts(folder, no_work):
    options = ["--alpha", "0.05", "--group-pattern", "good"]
    result = fit(folder, *options)
    assert "groups of normal samples to calibrate on, got 1:" in result.stderr


@pytest.mark.parametrize("given", ["5", "5%", "0,05"])
def test_a_rate_in_per_cent_is_refused_with_the_remedy(folder, no_work, given):
    result = fit(folder, "--alpha", given)
    assert result.exit_code == 2
    assert "Write 5 % as 0.05." in result.stderr


def test_shares_are_written_without_exponents(folder):
    result = fit(folder, "--defective", folder / "bad")
    assert "4 of 4 defective ones found (100 %, 95 % confidence" in said(result)
    assert "to 100 %)" in said(result)


@pytest.mark.parametrize("option", ["--calibration-images", "--defective"])
def test_masks_are_refused_everywhere(folder, no_work, option):
    (name,) = {"check", "bad"} & {"check" if "cal" in option else "bad"}
    write(folder / name / "more", 2)
    Image.new("L", (16, 16)).save(folder / name / "more" / "000_mask.png")
    alpha = ["--alpha", "0.1"] if name == "check" else []
    result = fit(folder, *alpha, option, folder / name)
    assert result.exit_code == 1
    assert "000_mask.png" in result.stderr


@pytest.mark.parametrize(
    ("option", "inside", "message"),
    [
        ("--calibration-images", "scrap", "the subfolder scrap may show defects"),
        ("--defective", "Good", "the subfolder Good may show good ones"),
        ("--defective", None, "Found no images of defective parts"),
    ],
)
def test_folders_of_the_other_kind_are_refused(
    tmp_path, folder, no_work, option, inside, message
):
    other = tmp_path / "other"
    other.mkdir()
    if inside:
        write(other / inside, 2)
        write(other / "day", 2)
    alpha = ["--alpha", "0.1"] if option == "--calibration-images" else []
    result = fit(folder, *alpha, option, other)
    assert result.exit_code == 1
    assert message in result.stderr


def test_unreadable_images_are_left_out_of_each_set(folder):
    for name in ("good", "check"):
        (folder / name / "x.png").write_bytes(b"no image in " + name.encode())
    options = ["--alpha", "0.1", "--calibration-images", folder / "check"]
    assert fit(folder, *options).exit_code == 1
    result = fit(folder, *options, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert "2 of 32 were unreadable." in result.stderr
    assert "Fitting on 20 images, calibrating on 10 others ..." in result.stderr
    result = fit(folder, *options, "--exclude", "x.png")
    assert result.exit_code == 0, result.output


def test_pages_calibrate_too(folder):
    pages = [Image.open(path) for path in sorted((folder / "check").iterdir())]
    (folder / "stack").mkdir()
    pages[0].save(folder / "stack" / "s.tif", save_all=True, append_images=pages[1:])
    options = ["--alpha", "0.1", "--calibration-images", folder / "stack"]
    assert "got 1" in fit(folder, *options).stderr
    result = fit(folder, *options, "--pages", "all")
    assert "calibrating on 10 others" in result.stderr
    # A pattern sees the number of a page.
    options = [*options[2:], "--alpha", "0.4", "--pages", "all"]
    result = fit(folder, *options, "--group-pattern", r"([0-3])\]|good")
    assert "finds no group in" in result.stderr


def test_defective_training_images_are_counted(folder):
    write(folder / "all" / "train" / "good", 10)
    write(folder / "all" / "train" / "dent", 2, seed=3)
    arguments = ("fit", folder / "all", "--model", folder / "m.skpc", *SMALL)
    # Their parts are not asked for.
    result = run(*arguments, "--group-pattern", r"good/(\d+)")
    assert "Fitting on 10 images, leaving out 2 defective ones ..." in result.stderr


# Options that contradict each other ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "0.1", "--defective", "bad"], "--alpha and --defective"),
        (["--calibration", "cross"], "--calibration needs --alpha"),
        (["--calibration-images", "check"], "--calibration-images needs --alpha"),
        (
            ["--alpha", "0.1", "--calibration", "cross", "--calibration-images", "bad"],
            "--calibration cross says",
        ),
        (["--alpha", "0.1", "--contamination", "auto"], "--contamination has no"),
        (["--alpha", "1"], "Invalid value for '--alpha'"),
        (["--group-pattern", "a", "--group-list", "m.csv"], "not both"),
    ],
)
def test_options_without_effect_are_refused(
    folder, monkeypatch, no_work, options, message
):
    monkeypatch.chdir(folder)
    (folder / "m.csv").touch()
    result = fit(folder, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["check/000.png", "bad/spot/000.png", "g.csv"])
def test_the_model_does_not_replace_what_is_read(folder, no_work, name):
    (folder / "g.csv").write_text("path,group")
    options = {
        "c": ["--alpha", "0.1", "--calibration-images", folder / "check"],
        "b": ["--defective", folder / "bad"],
        "g": ["--group-list", folder / "g.csv"],
    }[name[0]]
    result = fit(folder, *options, "--model", folder / name)
    assert result.exit_code == 2
    assert "would overwrite" in result.stderr


# Known defects ------------------------------------------------------------------------


def test_defects_tune_the_threshold_as_in_python(folder, good, detector):
    result = fit(folder, "--defective", folder / "bad")
    assert result.exit_code == 0, result.output
    bad = sorted(map(str, (folder / "bad" / "spot").iterdir()))
    y = np.repeat([1, -1], [20, 4])
    cv = OneClassKFold(5, shuffle=True, random_state=0)
    expected = TunedThresholdDetector(detector, cv=cv).fit(good + bad, y)
    assert load(folder / "m.skpc").offset_ == pytest.approx(expected.offset_)
    normal, anomalous = calibration.tuned_shares(expected, y)
    assert calibration.tuned_shares(load(folder / "m.skpc"), y) == (normal, anomalous)
    text = said(result)
    assert f"F1 {expected.best_score_:.3f}; {normal.n_flagged} of 20 good" in text
    assert f"{anomalous.n_flagged} of 4 defective ones found" in text
    scored = run("score", folder / "bad", "--model", folder / "m.skpc")
    assert scored.stdout.startswith("path,score,decision,label,sha256,run\n")


def test_a_single_good_part_cannot_tune(folder):
    options = ["--defective", folder / "bad", "--group-pattern", "good|spot"]
    result = fit(folder, *options)
    assert result.exit_code == 1
    assert "good images of at least 2 parts, found 1" in result.stderr


# Without a rate -----------------------------------------------------------------------


def test_the_last_line_rates_the_default_threshold(folder, good, detector):
    result = fit(folder)
    share = calibration.share_of_other_half(detector, good, random_state=0)
    assert result.stdout.splitlines()[-1] == (
        "No false-alarm rate is known for this threshold: with half of the images, it "
        f"flagged {share.n_flagged} of the 10 others ({share}). To set one, add "
        "--alpha."
    )


@pytest.mark.parametrize(
    ("n", "options"),
    [(2, ("--coreset-fraction", "0.5")), (5, ("--coreset-fraction", "19"))],
    ids=["too few", "too few for the options"],
)
def test_what_cannot_be_rated_is_not(tmp_path, n, options):
    write(tmp_path / "good", n)
    result = fit(tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        "No false-alarm rate is known for this threshold. To set one, add --alpha."
    )


def test_ctrl_c_while_the_threshold_is_rated_keeps_the_model(folder, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "share_of_other_half", interrupt)
    result = fit(folder)
    assert result.exit_code == 130
    assert result.stderr.endswith("Interrupted\n")
    assert load(folder / "m.skpc").memory is None


def test_rating_changes_nothing_in_the_model(folder, good, detector):
    fit(folder)
    expected = detector.fit(good)
    loaded = load(folder / "m.skpc")
    assert loaded.offset_ == pytest.approx(expected.offset_)
    np.testing.assert_array_equal(
        loaded.memory_bank_.bank_indices_, expected.memory_bank_.bank_indices_
    )
