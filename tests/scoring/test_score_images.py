"""Long runs over images of which some cannot be read."""

import csv
import io
import itertools
import pickle
import struct
import weakref
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._cli import _commands as cli
from skpatchcore._images._errors import UnreadableImageError
from skpatchcore._images._input import Images
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence import save
from skpatchcore.scoring import find_unreadable, score_images

SIZE = 16


def make_images(n, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(90, 160, (n, size, size, 3), np.uint8)


def png_bytes(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """Return a small PNG that claims to be of 60 000 x 60 000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + png_bytes(make_images(1)[0])[33:]


WHOLE = png_bytes(make_images(1)[0])
BAD = {
    "empty": b"",
    "text": b"no image",
    "truncated": WHOLE[:-60],
    "header alone": WHOLE[:33],
    "garbled": WHOLE[:60] + bytes(40) + WHOLE[100:],
    "bomb": bomb(),
    "other format": b"%PDF-1.4 " + WHOLE,
}


def make_detector(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=SIZE, **params)
    return PatchCoreDetector(features, random_state=0)


@pytest.fixture(scope="module")
def detector():
    return make_detector().fit(make_images(12))


def write_images(folder, n, bad: dict[int, bytes]) -> list[str]:
    """Write n images, those in `bad` with other contents; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(n)]
    for i, (path, pixels) in enumerate(zip(paths, make_images(n, seed=1), strict=True)):
        path.write_bytes(bad.get(i, png_bytes(pixels)))
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def folder_of_500(tmp_path_factory):
    """A folder of 500 images, 7 of them bad; their paths, and which are bad."""
    numbers = [0, 31, 32, 77, 78, 300, 499]
    bad = dict(zip(numbers, BAD.values(), strict=True))
    folder = tmp_path_factory.mktemp("night") / "images"
    return folder, write_images(folder, 500, bad), numbers


# A folder of 500 images with 7 bad ones ---------------------------------------------


def test_skip_scores_493_of_500_and_names_7(detector, folder_of_500):
    _, paths, bad = folder_of_500
    results = score_images(detector, paths, on_error="skip")
    assert len(results.score) == 493
    assert_array_equal(results.index, np.delete(np.arange(500), bad))
    good = [paths[i] for i in results.index]
    assert_allclose(results.score, detector.score_samples(good), rtol=1e-5)
    assert_array_equal(results.decision, results.score - detector.offset_)
    assert_array_equal(results.label, np.where(results.decision >= 0, 1, -1))
    assert [one.index for one in results.unreadable] == bad
    for one in results.unreadable:
        assert one.image == f"image {one.index} ({paths[one.index]})"
        assert one.image in one.reason
    assert "decompression bomb" in results.unreadable[5].reason


def test_nan_keeps_rows(detector, folder_of_500):
    _, paths, bad = folder_of_500
    results = score_images(detector, paths, on_error="nan")
    assert_array_equal(results.index, np.arange(500))
    for name in ("score", "decision"):
        assert_array_equal(np.flatnonzero(np.isnan(results[name])), bad)
    assert_array_equal(np.flatnonzero(results.label == 0), bad)
    assert [one.index for one in results.unreadable] == bad


@pytest.mark.parametrize("hole", [None, float("nan"), ""], ids=str)
def test_nan_keeps_rows_without_an_image(detector, tmp_path, hole):
    pixels = make_images(2, seed=3)
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    results = score_images(detector, [paths[0], hole, paths[1]], on_error="nan")
    assert_array_equal(results.index, [0, 1, 2])
    assert_array_equal(results.label == 0, [False, True, False])
    assert_allclose(results.score[[0, 2]], detector.score_samples(pixels))
    assert [one.index for one in results.unreadable] == [1]
    assert "image 1 is missing" in results.unreadable[0].reason


def test_raise_names_the_first(detector, folder_of_500):
    _, paths, _ = folder_of_500
    with pytest.raises(UnreadableImageError, match=r"image 0 \(.*000\.png\)"):
        score_images(detector, paths)


def test_maps_and_regions_come_on_request(detector):
    pixels = make_images(3, size=40, seed=1)
    pixels[0, 5:12, 5:12] = 255
    pixels[0, 30:38, 20:36] = 0
    images = [pixels[0], b"no image", pixels[1], pixels[2]]
    results = score_images(detector, images, on_error="nan", maps=True, regions=True)
    assert results.map[1] is None
    assert results.regions[1] == []
    expected = detector.predict_maps(pixels)
    assert_allclose([results.map[i] for i in (0, 2, 3)], expected, rtol=1e-5)
    areas = [sum(r.area for r in results.regions[i]) for i in (0, 2, 3)]
    masks = expected > detector.map_threshold_
    assert areas == masks.sum(axis=(1, 2)).tolist()
    assert areas[0] > 0
    largest = max(r.area for r in results.regions[0])
    options = {"on_error": "skip", "regions": True}
    for min_area, n in ((largest, 1), (largest + 1, 0)):
        found = score_images(detector, images, **options, min_area=min_area)
        assert len(found.regions[0]) == n
    for name in ("map", "regions"):
        assert name not in score_images(detector, images, on_error="skip")


def test_rows_without_an_image_have_lists_of_their_own(detector):
    images = [b"no image", b"another"]
    results = score_images(detector, images, on_error="nan", regions=True)
    assert results.regions == [[], []]
    assert results.regions[0] is not results.regions[1]


def test_results_without_images_have_their_types(detector):
    results = score_images(detector, ["missing.png"], on_error="skip", maps=True)
    assert results.label.dtype == results.index.dtype == np.int64
    assert results.score.dtype == np.float64
    assert (len(results.score), results.map) == (0, [])


@pytest.mark.parametrize("min_area", [0, 1.5, None])
def test_a_wrong_area_is_refused_before_the_work(detector, min_area):
    with pytest.raises(ValueError, match="min_area"):
        score_images(detector, make_images(1), min_area=min_area)


def test_only_a_few_inspections_are_kept(detector):
    grids = []

    def watched():
        for image in itertools.repeat(make_images(1)[0], 300):
            yield image
            assert sum(grid() is not None for grid in grids) <= 64

    original = PatchCoreDetector._inspect

    def inspect(self, images):
        for seen in original(self, images):
            grids.append(weakref.ref(seen.patch_scores))
            yield seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchCoreDetector, "_inspect", inspect)
        assert len(score_images(detector, watched()).score) == 300


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def read_table(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "noise.skpc"
    save(detector, path)
    return path


def test_command_skips_and_reports(model, folder_of_500, tmp_path):
    folder, paths, bad = folder_of_500
    report = tmp_path / "reports" / "bad.csv"
    result = run(
        *("score", folder, "--model", model, "--on-error", "skip", "--report", report),
        *("--masks", tmp_path / "masks", "--overlays", tmp_path / "overlays"),
    )
    assert result.exit_code == 0, result.output
    assert len(read_table(result.stdout)) == 493
    assert "7 of 500 were unreadable." in result.stderr
    rows = read_table(report.read_text())
    assert [row["path"] for row in rows] == [paths[i] for i in bad]
    assert all(row["reason"].startswith("Could not read image") for row in rows)
    for name in ("masks", "overlays"):
        written = sorted(path.name for path in (tmp_path / name).iterdir())
        assert written == [f"{i:03}.png" for i in range(500) if i not in bad]


def test_command_lists_unreadable_images(model, folder_of_500):
    folder, _, bad = folder_of_500
    result = run("score", folder, "--model", model, "--on-error", "nan")
    rows = read_table(result.stdout)
    assert [i for i, row in enumerate(rows) if row["label"] == "unreadable"] == bad
    assert {row["score"] for row in rows if row["label"] == "unreadable"} == {"nan"}


def test_command_fits_without_unreadable_images(tmp_path):
    paths = write_images(tmp_path / "good", 6, {2: b"no image"})
    settings = ("--backbone", "gabor", "--layers", "fine", "--image-size", SIZE)
    args = ("fit", tmp_path / "good", "--model", tmp_path / "m.skpc", *settings)
    result = run(*args)
    assert (result.exit_code, "002.png" in result.stderr) == (1, True)
    result = run(*args, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert "1 of 6 were unreadable" in result.stderr
    assert "Fitting on 5 images" in result.stderr
    assert [one.index for one in find_unreadable(paths)] == [2]


# Which images, and how often ------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_every_kind_of_bad_image_is_survived(cached, tmp_path):
    detector = make_detector(
        crop_size=8, memory=tmp_path / "cache" if cached else None
    ).set_params(features__image_size=None)
    good = make_images(4)
    detector.fit(good)
    path = tmp_path / "missing.png"
    X = [
        good[0],
        np.full((SIZE, SIZE), np.nan),
        str(path),
        np.full((SIZE, SIZE), 7.0),
        np.zeros((SIZE, 4), np.uint8),
        np.zeros((SIZE, SIZE, 9), np.uint8),
        good[1],
    ]
    for _ in range(2):
        results = score_images(detector, X, on_error="skip")
        assert_array_equal(results.index, [0, 6])
        assert_allclose(results.score, detector.score_samples(good[:2]), rtol=1e-5)
        reasons = [one.reason for one in results.unreadable]
        expected = ["NaN", "does not exist", "floats from 7", "crop_size", "9 channels"]
        assert len(reasons) == 5
        assert all(e in reason for e, reason in zip(expected, reasons, strict=True))


def test_nothing_readable_is_no_error(detector):
    X = [np.full((SIZE, SIZE), np.nan)] * 3
    results = score_images(detector, X, on_error="skip")
    assert len(results.score) == len(results.label) == 0
    assert len(results.unreadable) == 3


def test_what_is_no_image_at_all_is_a_mistake_of_the_caller(detector):
    with pytest.raises(TypeError, match="image 1 is of type int"):
        score_images(detector, [make_images(1)[0], 3], on_error="skip")


def test_errors_that_no_image_is_to_blame_for_are_raised(detector, monkeypatch):
    def fail(*args):
        raise ValueError("a mistake of ours")

    copied = pickle.loads(pickle.dumps(detector))
    monkeypatch.setattr(copied.memory_bank_, "_score", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        score_images(copied, make_images(2), on_error="skip")


@pytest.mark.parametrize("every", [1, 2, 3, 50])
def test_images_are_read_a_few_times_however_many_are_bad(every, detector, monkeypatch):
    X = list(make_images(300, seed=2) / np.float32(255))
    for i in range(0, 300, every):
        X[i] = np.full((SIZE, SIZE, 3), np.nan, np.float32)
    read = Images.__getitem__
    n_reads = 0

    def count(images, i):
        nonlocal n_reads
        n_reads += 1
        return read(images, i)

    monkeypatch.setattr(Images, "__getitem__", count)
    results = score_images(detector, X, on_error="skip")
    assert len(results.unreadable) == len(range(0, 300, every))
    assert n_reads <= 5 * 300


# Detectors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrapped(detector):
    good = make_images(20, seed=3)
    defective = good.copy()
    defective[:, 4:9, 4:9] = 255
    X, y = np.concatenate([good, defective]), np.repeat([1, -1], 20)
    frozen = FrozenEstimator(detector)
    tuned = TunedThresholdDetector(frozen).fit(X, y)
    params = {"alpha": 0.1, "random_state": 0}
    return {
        "plain": detector,
        "cross": ConformalDetector(make_detector(), cv=3, **params).fit(good),
        "frozen": ConformalDetector(frozen, **params).fit(good),
        "tuned": tuned,
        "tuned within": ConformalDetector(FrozenEstimator(tuned), **params).fit(good),
    }


NAMES = ["plain", "cross", "frozen", "tuned", "tuned within"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_methods(name, wrapped):
    detector, new = wrapped[name], make_images(40, seed=4)
    new[::2, 3:9, 3:9] = 200
    results = score_images(detector, new)
    assert_allclose(results.score, detector.score_samples(new), rtol=1e-5)
    assert_array_equal(results.label, detector.predict(new))
    if hasattr(detector, "predict_pvalue"):
        assert_array_equal(results.p_value, detector.predict_pvalue(new))
    else:
        assert "p_value" not in results


@pytest.mark.parametrize("on_error", ["skip", "nan"])
@pytest.mark.parametrize("name", NAMES)
def test_columns_do_not_depend_on_which_images_are_readable(name, on_error, wrapped):
    detector, bad = wrapped[name], np.full((SIZE, SIZE), np.nan)
    results = score_images(detector, [bad], on_error=on_error)
    readable = score_images(detector, make_images(1))
    assert results.keys() == readable.keys()
    for column in results.keys() - {"unreadable"}:
        assert len(results[column]) == (on_error == "nan")
        assert results[column].dtype == readable[column].dtype


@pytest.mark.parametrize("name", NAMES)
def test_command_takes_every_kind_of_detector(name, wrapped, tmp_path):
    write_images(tmp_path / "new", 4, {1: b""})
    save(wrapped[name], tmp_path / "m.skpc")
    result = run(
        *("score", tmp_path / "new", "--model", tmp_path / "m.skpc"),
        *("--on-error", "nan", "--masks", tmp_path / "masks"),
        *("--overlays", tmp_path / "overlays"),
    )
    assert result.exit_code == 0, result.output
    rows = read_table(result.stdout)
    assert [row["label"] == "unreadable" for row in rows] == [False, True, False, False]
    good = [row["path"] for row in rows if row["label"] != "unreadable"]
    assert_allclose(
        [float(row["score"]) for row in rows if row["label"] != "unreadable"],
        wrapped[name].score_samples(good),
        rtol=1e-5,
    )
    if hasattr(wrapped[name], "predict_masks"):
        expected = wrapped[name].predict_masks(good)
        for path, mask in zip(good, expected, strict=True):
            name = path.rpartition("/")[2]
            with Image.open(tmp_path / "masks" / name) as written:
                assert_array_equal(np.asarray(written) > 0, mask)


def test_other_detectors_are_refused(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 4))
    bank = PatchMemoryBank(random_state=0).fit(X)
    forest = ConformalDetector(IsolationForest(), alpha=0.2).fit(X)
    for detector in (bank, forest):
        with pytest.raises(TypeError, match="Expected a detector with predict_maps"):
            score_images(detector, make_images(1))
    save(bank, tmp_path / "m.skpc")
    write_images(tmp_path / "new", 1, {})
    result = run("score", tmp_path / "new", "--model", tmp_path / "m.skpc")
    assert "Error: Expected a detector with predict_maps" in result.stderr
