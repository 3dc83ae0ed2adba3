"""Which files of a folder are images, and what is said about the others."""

import numpy as np
import pytest
from PIL import Image

from skpatchcore._cli._score_output import find_images
from skpatchcore._cli._training_images import gather_images
from skpatchcore.datasets import load_image_folder, load_mvtec_ad


def write(root, *names):
    """Write images with a few grey levels, and empty files of other types."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".pgm", ".gif", ".jfif", ".jp2", ".tga", ".pcx"):
            kinds = {".jfif": "JPEG"}
            Image.new("L", (8, 8), 255).save(path, kinds.get(path.suffix))
        else:
            path.touch()
    return root


def write_photograph(path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def names(paths, root):
    return [path.replace(f"{root}/", "") for path in paths]


# One rule for all loaders and commands ------------------------------------------------

LISTERS = {
    "fit": lambda root: [i.source for i in gather_images([str(root)])],
    "score": lambda root: find_images([str(root)]),
    "load_image_folder": lambda root: load_image_folder(root).data.tolist(),
}


@pytest.mark.parametrize("lister", LISTERS)
def test_folders_are_searched_with_their_subfolders(tmp_path, lister):
    write(tmp_path, "b.png", "day2/c.png", "day1/deep/a.png")
    found = names(LISTERS[lister](tmp_path), tmp_path)
    assert found == ["b.png", "day1/deep/a.png", "day2/c.png"]


@pytest.mark.parametrize("lister", LISTERS)
def test_suffixes_are_those_of_formats_that_can_be_read(tmp_path, lister):
    written = ["a.png", "b.pgm", "c.gif", "d.jfif", "e.jp2", "f.tga", "g.pcx"]
    write(tmp_path, *written)
    assert names(LISTERS[lister](tmp_path), tmp_path) == written


@pytest.mark.parametrize("lister", LISTERS)
def test_files_passed_over_are_counted_by_suffix_and_folder(tmp_path, lister):
    root = write(
        tmp_path / "parts", "a.png", "1.psd", "2.psd", "day1/raw", "day1/n.txt"
    )
    message = (
        r"Passed over 4 files: 2 \.psd in parts, 1 \.txt in parts/day1, 1 without a "
        r"suffix in parts/day1\. \.psd may be images, but only common formats are read"
    )
    with pytest.warns(UserWarning, match=message):
        assert len(LISTERS[lister](root)) == 1


def test_the_loader_of_categories_searches_subfolders_and_counts_others(tmp_path):
    write(tmp_path / "nut", "train/good/a.png", "train/good/day1/b.png")
    write(tmp_path / "nut", "train/good/c.raw", "test/dent/x/0.png")
    with pytest.warns(UserWarning, match=r"1 \.raw in nut/train/good") as record:
        bunch = load_mvtec_ad(tmp_path, "nut")
    assert record[0].filename == __file__
    assert bunch.defect_types.tolist() == ["good", "good", "dent"]


@pytest.mark.parametrize("lister", LISTERS)
def test_hidden_files_other_than_images_are_not_mentioned(tmp_path, lister):
    write(tmp_path, "a.png", ".DS_Store", ".git/config", "Thumbs.db", "desktop.ini")
    assert len(LISTERS[lister](tmp_path)) == 1


@pytest.mark.parametrize("lister", LISTERS)
def test_hidden_images_are_counted(tmp_path, lister):
    root = write(tmp_path / "nut", "a.png", ".b.png", "._c.png", ".h/deep/d.png")
    message = "3 files: 2 hidden in nut, 1 hidden in nut/.h/deep"
    with pytest.warns(UserWarning, match=message):
        assert len(LISTERS[lister](root)) == 1


def test_hidden_images_can_be_excluded(tmp_path):
    write(tmp_path, "a.png", "._c.png", ".h/d.png")
    assert len(load_image_folder(tmp_path, exclude=["._*", ".h"]).data) == 1


@pytest.mark.parametrize("lister", LISTERS)
def test_folders_of_masks_are_passed_over(tmp_path, lister):
    root = write(tmp_path / "nut", "a.png", "ground_truth/dent/0.png", "gt/1.png")
    with pytest.warns(UserWarning, match="1 masks in nut/ground_truth/dent"):
        assert len(LISTERS[lister](root)) == 1


def test_images_beside_the_splits_are_counted(tmp_path):
    root = write(tmp_path / "nut", "train/0.png", "extra/1.png", "2.png")
    with pytest.warns(UserWarning, match=r"1 \.png in nut, 1 \.png in nut/extra"):
        assert len(load_image_folder(root).data) == 1


@pytest.mark.parametrize("lister", ["fit", "score"])
def test_a_folder_of_unknown_files_is_described(tmp_path, lister):
    root = write(tmp_path / "new", "1.heic", "2.heic")
    with pytest.raises(ValueError, match=r"Passed over 2 files: 2 \.heic in new"):
        LISTERS[lister](root)


# Which folders may be learned from ----------------------------------------------------


@pytest.mark.parametrize(
    "files", [["good/0.png", "dent/1.png"], ["0.png", "a/NG/1.png"]]
)
def test_subfolders_that_may_show_defects_are_refused(tmp_path, files):
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=r"subfolder (dent|NG) may show defects"):
        load_image_folder(tmp_path)


def test_a_folder_of_good_images_alone_may_be_called_good(tmp_path):
    write(tmp_path, "good/0.png", "good/day1/1.png")
    assert load_image_folder(tmp_path).target.tolist() == [1, 1]


# Masks among images -------------------------------------------------------------------

MASKS = [
    "1_GT.png",
    "1_label.png",
    "1_mask.png",
    "mask_1.png",
    "1-gt.png",
    "1.Mask.png",
]
READERS = {**LISTERS, "load_mvtec_ad": None}
READERS["load_mvtec_ad"] = lambda root: load_mvtec_ad(root.parents[2], "nut").data
del READERS["score"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_among_good_images_are_refused(tmp_path, reader, mask):
    root = write(tmp_path / "nut" / "train" / "good", "1.png", "2.png", mask)
    with pytest.raises(ValueError, match=rf"1 of 3 images .*{mask} of 1\.png") as error:
        READERS[reader](root)
    assert f"exclude='{mask.replace('1', '*').removesuffix('.png')}.*'" in str(
        error.value
    )


NUMBERED = {"1_GT1.png": "*_GT*.*", "1_mask_1.png": "*_mask*.*"}
WORDS = ["masks", "segmentation", "annotation", "anno", "binary", "defect", "labelled"]
WORDS = {f"1_{word}.png": f"*_{word}.*" for word in [*WORDS, "color_mask", "gt_mask"]}


@pytest.mark.parametrize(("mask", "pattern"), [*NUMBERED.items(), *WORDS.items()])
def test_masks_are_recognised_by_many_words(tmp_path, mask, pattern):
    write(tmp_path, "1.png", mask)
    with pytest.raises(ValueError, match=rf"{mask} of 1\.png") as error:
        load_image_folder(tmp_path)
    assert f"exclude={pattern!r}" in str(error.value)
    assert len(load_image_folder(tmp_path, exclude=pattern).data) == 1


def test_the_longest_name_that_is_an_image_counts(tmp_path):
    write(tmp_path, "1_defect.png", "1_defect_GT.png")
    with pytest.raises(ValueError, match=r"1_defect_GT\.png of 1_defect\.png"):
        load_image_folder(tmp_path)


def test_masks_with_another_suffix_are_refused(tmp_path):
    write(tmp_path, "0.png")
    write_photograph(tmp_path / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.png of 0\.jpg.*exclude='\*\.png'"):
        load_image_folder(tmp_path)


def test_two_photographs_may_differ_in_the_suffix_only(tmp_path):
    write_photograph(tmp_path / "0.jpg")
    write_photograph(tmp_path / "0.png")
    assert len(load_image_folder(tmp_path).data) == 2


def test_several_patterns_are_a_list_in_python(tmp_path):
    write(tmp_path, "1.png", "1_GT.png", "1_mask.png")
    with pytest.raises(ValueError, match="2 of 3 images") as error:
        load_image_folder(tmp_path)
    assert "exclude=['*_GT.*', '*_mask.*'] (--exclude" in str(error.value)


def test_masks_among_images_to_score_are_named(tmp_path):
    write(tmp_path, "1.png", "1_GT.png")
    with pytest.warns(
        UserWarning, match=r"1 of 2 images .*1_GT\.png of 1.* are scored"
    ):
        assert len(find_images([str(tmp_path)])) == 2


def test_a_photograph_is_not_a_mask_whatever_its_name(tmp_path):
    write(tmp_path, "part.png")
    write_photograph(tmp_path / "part_label.png")
    assert len(load_image_folder(tmp_path).data) == 2


def test_jpeg_masks_are_recognised(tmp_path):
    write(tmp_path, "1.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 11:40] = 255
    Image.fromarray(mask).save(tmp_path / "1_mask.jpg", quality=75)
    with pytest.raises(ValueError, match=r"1_mask\.jpg of 1\.png"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "pattern", ["*_GT.*", ["*_GT.png", "nothing"], "day1", "day1/*"]
)
def test_files_are_excluded_by_pattern(tmp_path, pattern):
    write(tmp_path, "1.png", "day1/2.png", "day1/2_GT.png")
    if isinstance(pattern, list):
        with pytest.warns(UserWarning, match="No file matches the pattern nothing"):
            bunch = load_image_folder(tmp_path, exclude=pattern)
    else:
        bunch = load_image_folder(tmp_path, exclude=pattern)
    kept = ["1.png"] if "day1" in pattern[:4] else ["1.png", "day1/2.png"]
    assert names(bunch.data, tmp_path) == kept
