"""Masks among the images that a user passes are refused by fits, and said by others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from skpatchcore import (
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.datasets import ImagePage
from skpatchcore.scoring import score_images


def write(root, *names, mask=False):
    """Write photographs, or masks, and return their paths."""
    rng = np.random.default_rng(len(names))
    paths = []
    for name in names:
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        if mask:
            pixels = (pixels[..., 0] > 200).astype(np.uint8) * 255
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    return paths


def make_features():
    return PatchFeatureTransformer("gabor", ("fine",), image_size=32)


def make_detector():
    return PatchCoreDetector(make_features(), random_state=0)


FITS = {
    "detector": lambda X: make_detector().fit(X),
    "ensemble": lambda X: PatchCoreEnsemble(
        [("one", make_detector())], cv=2, random_state=0
    ).fit(X),
    "transformer": lambda X: make_features().fit(X),
    "fit_transform": lambda X: make_features().fit_transform(X),
    "pipeline": lambda X: make_pipeline(make_features(), PatchMemoryBank()).fit(X),
    "conformal": lambda X: ConformalDetector(
        make_detector(), alpha=0.2, random_state=0
    ).fit(X),
    "tuned": lambda X: TunedThresholdDetector(make_detector(), cv=2).fit(
        X, [1] * (len(X) - 2) + [-1, -1]
    ),
}
GOOD = [f"1000{i}.png" for i in range(6)]


# Where a fold is scored before another one is fitted on a mask and its image.
@pytest.mark.filterwarnings("ignore:.* They are scored like images")
@pytest.mark.parametrize("fit", FITS)
def test_no_fit_learns_masks(tmp_path, fit):
    images = write(tmp_path, *GOOD)
    masks = write(tmp_path, *(f"1000{i}_GT.png" for i in range(6)), mask=True)
    with pytest.raises(ValueError, match=r"images look like masks of others: .*_GT\.p"):
        FITS[fit](images + masks)


@pytest.mark.parametrize(
    "mask", ["10000_GT.png", "10000_label.png", "10000_mask.png", "10000.bmp"]
)
def test_the_error_names_the_pair_and_the_remedy(tmp_path, mask):
    paths = write(tmp_path, *GOOD) + write(tmp_path, mask, mask=True)
    with pytest.raises(ValueError, match="would learn them as good") as caught:
        make_detector().fit(paths)
    assert f"1 of 7 images look like masks of others: {mask} of 10000.png, in" in str(
        caught.value
    )
    assert "Leave them out of X" in str(caught.value)


@pytest.mark.parametrize("folder", ["ground_truth", "masks", "GT"])
def test_folders_of_masks_are_recognised(tmp_path, folder):
    paths = write(tmp_path, *(f"train/good/{name}" for name in GOOD))
    paths += write(tmp_path, "test/dent/0.png", "test/dent/1.png")
    names = f"{folder}/dent/0_mask.png", f"{folder}/dent/1.png", f"{folder}/dent/9.png"
    masks = write(tmp_path, *names, mask=True)
    with pytest.raises(ValueError, match="3 of 11 images look like masks") as caught:
        make_detector().fit(paths + masks)
    message = str(caught.value)
    assert f"{folder}/dent/0_mask.png of test/dent/0.png, " in message
    assert f"{folder}/dent/1.png of test/dent/1.png, " in message
    assert f"{folder}/dent/9.png, in {tmp_path}. " in message
    assert f"exclude={folder!r}" in message


def test_the_name_of_a_folder_of_all_images_says_nothing(tmp_path):
    binary = write(tmp_path, *(f"gt/a/{name}" for name in GOOD[:3]), mask=True)
    make_detector().fit(binary + write(tmp_path, *(f"gt/b/{n}" for n in GOOD)))


def test_photographs_in_a_folder_named_like_masks_are_images(tmp_path):
    paths = write(tmp_path, *(f"gt/{name}" for name in GOOD[:3]))
    make_detector().fit(paths + write(tmp_path, *(f"other/{name}" for name in GOOD)))


def test_photographs_with_marked_names_are_images(tmp_path):
    make_detector().fit(write(tmp_path, *GOOD, "10000_label.png", "10001_mask.png"))


def test_masks_labelled_as_anomalous_are_left_out(tmp_path):
    paths = write(tmp_path, *GOOD) + write(tmp_path, "10000_GT.png", mask=True)
    y = [1] * 6 + [-1]
    make_detector().fit(paths, y)
    make_features().fit(paths, y)


def test_paths_of_all_kinds_are_recognised(tmp_path):
    (mask,) = write(tmp_path, "10000_GT.png", mask=True)
    paths = write(tmp_path, *GOOD)
    for given in (mask, Path(mask), np.str_(mask), ImagePage(mask, 0)):
        with pytest.raises(ValueError, match=r"10000_GT\.png of 10000\.png"):
            make_detector().fit([*paths, given])


def test_relative_and_absolute_paths_are_told_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a/0.png", "a/1.png")
    write(tmp_path, "a/0_mask.png", "a/1_mask.png", mask=True)
    relative = ["a/0.png", "a/0_mask.png"]
    absolute = [str(tmp_path / "a" / name) for name in ("1.png", "1_mask.png")]
    with pytest.raises(ValueError, match=r"2 of 4 images .* a/0_mask\.png of a/0"):
        make_detector().fit(relative + absolute)


SCORES = {
    "score_samples": lambda detector, X: detector.score_samples(X),
    "predict": lambda detector, X: detector.predict(X),
    "predict_maps": lambda detector, X: detector.predict_maps(X),
    "predict_masks": lambda detector, X: detector.predict_masks(X),
    "inspect": lambda detector, X: list(detector.inspect(X)),
    "nearest_patches": lambda detector, X: detector.nearest_patches(X),
    "score_images": score_images,
    "skipping": lambda detector, X: score_images(detector, X, on_error="skip"),
    "transform": lambda detector, X: detector.features_.transform(X),
}


@pytest.mark.parametrize("score", SCORES)
def test_masks_among_new_images_are_said_once(tmp_path, score):
    detector = make_detector().fit(write(tmp_path, *GOOD))
    new = write(tmp_path / "new", "0.png", "1.png")
    new += write(tmp_path / "new", "0_mask.png", mask=True)
    with pytest.warns(UserWarning, match=r"0_mask\.png of 0\.png, .* are scored") as w:
        SCORES[score](detector, new)
    assert len(w) == 1


def test_an_ensemble_says_it_once_for_all_members(tmp_path):
    members = [("one", make_detector()), ("two", make_detector())]
    ensemble = PatchCoreEnsemble(members, cv=2, random_state=0)
    ensemble.fit(write(tmp_path, *GOOD))
    new = write(tmp_path / "new", "0.png")
    new += write(tmp_path / "new", "0_mask.png", mask=True)
    for method in ("predict", "nearest_patches"):
        with pytest.warns(UserWarning, match=r"0_mask\.png of 0\.png") as caught:
            getattr(ensemble, method)(new)
        assert len(caught) == 1
