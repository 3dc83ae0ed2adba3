"""Masks are matched with images by name, and what has no partner is named."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from skpatchcore.datasets import load_image_folder, load_mvtec_ad, read_masks

pd = pytest.importorskip("pandas")
NFC, NFD = (unicodedata.normalize(form, "Kr\u00e4tzer") for form in ("NFC", "NFD"))


def write(root, *names):
    for name in names:
        path = root / "nut" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255).save(path)
    return root


LOADERS = {
    "folder": lambda root, **kw: load_image_folder(root / "nut", **kw),
    "mvtec": lambda root, **kw: load_mvtec_ad(root, "nut", **kw),
}


def masks_of(root, loader="folder"):
    bunch = LOADERS[loader](root)
    return [m and m.partition("/nut/")[2] for m in bunch.masks[bunch.target == -1]]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "mask",
    [
        *("0_GT.png", "mask_0.png", "0_label.png", "0-Mask.png", "0.seg.png"),
        *("0_mask_1.png", "0_binary.png", "0_annotation.png", "0_gt_mask.png"),
    ],
)
def test_masks_are_marked_by_words(tmp_path, loader, mask):
    write(tmp_path, "train/good/0.png", "test/dent/0.png", "test/dent/1.png")
    write(tmp_path, f"ground_truth/dent/{mask}", "ground_truth/dent/1.png")
    assert masks_of(tmp_path, loader) == [
        f"ground_truth/dent/{mask}",
        "ground_truth/dent/1.png",
    ]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("kind", "folder"), [("scratch", "Scratch"), (NFC, NFD), (NFD, NFC)]
)
def test_kinds_match_in_any_case_and_unicode_form(tmp_path, loader, kind, folder):
    write(tmp_path, "train/good/0.png", f"test/{kind}/{kind}.png")
    write(tmp_path, f"ground_truth/{folder}/{folder}_mask.png")
    expected = f"ground_truth/{folder}/{folder}_mask.png"
    assert masks_of(tmp_path, loader) == [expected]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("kind", "folder"), [("scratch", "scratches"), ("Dents", "dent"), ("hole", "holes")]
)
def test_kinds_match_in_singular_and_plural(tmp_path, loader, kind, folder):
    write(tmp_path, "train/good/0.png", f"test/{kind}/0.png")
    write(tmp_path, f"masks/{folder}/0.png")
    assert masks_of(tmp_path, loader) == [f"masks/{folder}/0.png"]


def test_masks_of_another_kind_are_not_taken_for_its_singular(tmp_path):
    write(tmp_path, "train/0.png", "test/dent/0.png", "test/dents/0.png")
    write(tmp_path, "masks/dents/0.png")
    with pytest.warns(UserWarning, match=r"1 of 1 in dent \(0\.png\)"):
        assert masks_of(tmp_path) == [None, "masks/dents/0.png"]


def test_a_number_leaves_two_masks_ambiguous(tmp_path):
    write(tmp_path, "train/0.png", "test/dent/0.png")
    write(tmp_path, "masks/dent/0_mask_1.png", "masks/dent/0_mask_2.png")
    with pytest.warns(UserWarning, match="No image belongs to 2 masks"):
        assert masks_of(tmp_path) == [None]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "root", ["mask", "GT", "label", "labels", "Masks", "Ground_Truth", "test/gt"]
)
def test_folders_of_masks_have_several_names(tmp_path, loader, root):
    write(tmp_path, "train/good/0.png", "test/dent/0.png", f"{root}/dent/0.png")
    assert masks_of(tmp_path, loader) == [f"{root}/dent/0.png"]


def test_masks_may_lie_in_one_folder_for_all_kinds(tmp_path):
    write(tmp_path, "train/0.png", "test/dent/1.png", "test/hole/2.png")
    write(tmp_path, "masks/1.png", "masks/2.png")
    assert masks_of(tmp_path) == ["masks/1.png", "masks/2.png"]


@pytest.mark.parametrize("loader", LOADERS)
def test_the_layout_of_mvtec_3d_ad_is_read(tmp_path, loader):
    write(tmp_path, "train/good/rgb/0.png", "train/good/xyz/0.tiff")
    write(tmp_path, "test/dent/rgb/0.png", "test/dent/xyz/0.tiff", "test/dent/gt/0.png")
    assert masks_of(tmp_path, loader) == ["test/dent/gt/0.png"]


def test_two_masks_of_the_same_name_are_not_guessed_between(tmp_path):
    write(tmp_path, "train/0.png", "test/dent/0.png")
    write(tmp_path, "masks/dent/0_GT.png", "masks/dent/0_label.png")
    with pytest.warns(UserWarning, match="1 of 1 in dent .*No image belongs to 2"):
        assert masks_of(tmp_path) == [None]


def test_every_kind_and_image_without_a_mask_is_named(tmp_path):
    images = [f"test/{kind}/{i}.png" for kind in ("bent", "dent") for i in range(3)]
    write(tmp_path, "train/0.png", *images)
    write(tmp_path, "masks/dent/0.png", "masks/dent/7.png", "masks/rust/0.png")
    kinds = r"3 of 3 in bent \(0\.png, 1\.png, 2\.png\); 2 of 3 in dent"
    with pytest.warns(UserWarning, match=f"5 defective images .*: {kinds}") as record:
        bunch = load_image_folder(tmp_path / "nut")
    (message,) = [str(warning.message) for warning in record]
    assert "2 of 3 in dent (1.png, 2.png)." in message
    assert "No image belongs to 2 masks: dent/7.png, rust/0.png." in message
    assert sum(mask is not None for mask in bunch.masks) == 1


def test_a_category_names_kinds_without_masks(tmp_path):
    write(tmp_path, "train/good/0.png", "test/dent/0.png", "test/bent/0.png")
    write(tmp_path, "ground_truth/dent/0_mask.png")
    with pytest.warns(UserWarning, match=r"1 of 1 in bent \(0\.png\)") as record:
        load_mvtec_ad(tmp_path, "nut")
    assert record[0].filename == __file__


@pytest.mark.parametrize("loader", LOADERS)
def test_without_any_masks_nothing_is_said(tmp_path, loader):
    write(tmp_path, "train/good/0.png", "test/dent/0.png")
    assert masks_of(tmp_path, loader) == [None]


@pytest.mark.parametrize("loader", LOADERS)
def test_public_test_images_of_mvtec_ad_2_are_loaded(tmp_path, loader):
    write(tmp_path, "train/good/0.png", "validation/good/0.png")
    write(tmp_path, "test_public/good/0.png", "test_public/bad/1_dark.png")
    write(tmp_path, "test_public/ground_truth/bad/1_dark_mask.png")
    bunch = LOADERS[loader](tmp_path)
    assert bunch.split.tolist() == ["train", "validation", "test", "test"]
    assert bunch.target.tolist() == [1, 1, -1, 1]
    assert bunch.masks[2].endswith("test_public/ground_truth/bad/1_dark_mask.png")


def test_two_folders_of_test_images_are_refused(tmp_path):
    write(tmp_path, "train/good/0.png", "test/good/0.png", "test_public/good/0.png")
    with pytest.raises(ValueError, match="Found test and test_public in"):
        load_mvtec_ad(tmp_path, "nut")


# What counts as no mask ---------------------------------------------------------------


class ArrowScalar:
    """A scalar as in PyArrow, which is not required."""

    def __init__(self, value):
        self.value = value

    def as_py(self):
        return self.value

    def __repr__(self):
        return f"ArrowScalar({self.value})"


TABLE_NULLS = [pd.NA, pd.NaT, np.datetime64("NaT"), ArrowScalar(None)]


@pytest.mark.parametrize(
    "missing", [None, "", " ", float("nan"), np.float32("nan"), *TABLE_NULLS], ids=repr
)
def test_missing_values_of_tables_are_no_mask(missing):
    (mask,) = read_masks([missing], np.zeros((1, 4, 5)))
    assert mask.shape == (4, 5)
    assert not mask.any()


@pytest.mark.parametrize("null", ["None", "nan"])
def test_a_file_may_be_called_like_a_missing_value(tmp_path, monkeypatch, null):
    write(tmp_path, "m.png")
    monkeypatch.chdir(tmp_path / "nut")
    (tmp_path / "nut" / "m.png").rename(null)
    for path in (null, type(tmp_path)(null)):
        (mask,) = read_masks([path], np.zeros((1, 8, 8)))
        assert mask.all()


def test_null_scalars_of_pyarrow_are_no_mask():
    pa = pytest.importorskip("pyarrow")
    nulls = [pa.array([None])[0], pa.array(["a", None])[1]]
    assert not np.any(read_masks(nulls, np.zeros((2, 4, 5))))


def test_a_column_with_missing_masks_is_read(tmp_path):
    write(tmp_path, "m.png")
    table = pd.DataFrame({"mask": [str(tmp_path / "nut" / "m.png"), pd.NA]})
    masks = read_masks(table["mask"], np.zeros((2, 8, 8)))
    assert [mask.any() for mask in masks] == [True, False]


@pytest.mark.parametrize("path", [".", "./", "PATH"])
def test_the_current_folder_is_not_a_mask(tmp_path, monkeypatch, path):
    write(tmp_path, "m.png")
    monkeypatch.chdir(tmp_path / "nut")
    given = type(tmp_path)("") if path == "PATH" else path
    with pytest.raises(ValueError, match="Mask 0 is the current folder"):
        read_masks([given], np.zeros((1, 8, 8)))
