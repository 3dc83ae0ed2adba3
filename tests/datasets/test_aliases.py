"""With any links, each image is listed once, and listing ends."""

import os
import socket

import numpy as np
import pytest
from PIL import Image

from skpatchcore._cli._score_output import find_images
from skpatchcore._cli._training_images import gather_images
from skpatchcore.datasets import (
    load_image_folder,
    load_mvtec_ad,
    mvtec_ad_categories,
    read_masks,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")


@pytest.fixture
def root(tmp_path):
    """Write 40 images in nested folders."""
    for i in range(40):
        save(tmp_path / "images" / f"day{i % 4}" / f"{i:02}.png")
    return tmp_path / "images"


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 255).save(path)
    return path


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def names(paths, root):
    return [os.path.relpath(path, root) for path in paths]


# Searched folders ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Passed over . files?. . broken links")
@pytest.mark.parametrize(
    "links",
    [
        {"latest": "."},
        {"latest": ".", "other": "."},
        {"day0/latest": "..", "day1/latest": "..", "latest": "."},
        {"latest": "day0"},
        {"a": "day0", "day0/b": "../day1", "day1/c": "../day0"},
        {"up": ".."},
        {"all": "/"},
        {"a": "b", "b": "a"},
        {"self": "self"},
        {"gone": "nowhere"},
        {"00.png": "day0/00.png", "zz.png": "day0/00.png"},
    ],
)
def test_links_add_nothing_and_the_search_ends(root, links):
    expected = find_images([str(root)])
    assert len(expected) == 40
    for name, target in links.items():
        link(root / name, target)
    assert find_images([str(root)]) == expected


def test_images_of_a_folder_come_before_those_of_deeper_ones(root):
    save(root / "zz.png")
    found = names(find_images([str(root)]), root)
    assert found[0] == "zz.png"
    assert found[1:] == sorted(found[1:])


def test_links_out_of_the_folder_are_followed(root, tmp_path):
    save(tmp_path / "store" / "sub" / "a.png")
    save(tmp_path / "b.png")
    link(root / "out", tmp_path / "store")
    link(root / "out2", tmp_path / "store")
    link(root / "b.png", "../b.png")
    found = names(find_images([str(root)]), root)
    assert len(found) == 42
    assert {"out/sub/a.png", "b.png"} <= set(found)


def test_a_broken_link_is_listed_to_be_reported(root):
    link(root / "gone1.png", "nowhere.png")
    link(root / "gone2.png", "nowhere.png")
    link(root / "circle.png", "circle.png")
    found = names(find_images([str(root)]), root)
    assert found[:3] == ["circle.png", "gone1.png", "gone2.png"]
    assert len(found) == 43


def test_hard_links_are_separate_images(root):
    os.link(root / "day0" / "00.png", root / "day0" / "again.png")
    assert len(find_images([str(root)])) == 41


def test_a_folder_given_by_a_link_is_searched(root, tmp_path):
    given = link(tmp_path / "given", "images")
    found = find_images([str(given)])
    assert len(found) == 40
    assert all(path.startswith(str(given)) for path in found)


def test_several_names_of_a_folder_given_count_once(root, tmp_path, monkeypatch):
    link(tmp_path / "given", "images")
    monkeypatch.chdir(tmp_path)
    first = os.path.join("images", "day3", "03.png")
    found = find_images(
        [first, "given", "images", str(root), "images/day0/../day1", "."]
    )
    assert found[0] == first
    assert len(found) == 40


def test_only_regular_files_are_images(root):
    os.mkfifo(root / "fifo.png")
    (root / "folder.png").mkdir()
    link(root / "zero.png", "/dev/zero")
    link(root / "pipe.png", "fifo.png")
    folder = os.getcwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(folder)
    message = r"Passed over 4 files: 4 pipes or devices in images\."
    with pytest.warns(UserWarning, match=message):
        assert len(find_images([str(root)])) == 40


def test_images_in_a_folder_with_the_name_of_an_image_are_found(root):
    save(root / "folder.png" / "a.png")
    assert "folder.png/a.png" in names(find_images([str(root)]), root)


# Training images given to the command -------------------------------------------------


def test_training_images_count_once(root, tmp_path):
    day = root / "day0"
    link(tmp_path / "again", day)
    images = gather_images([str(day), str(tmp_path / "again"), str(day / "00.png")])
    assert len(images) == 10


def test_a_training_image_is_not_good_and_defective(tmp_path):
    save(tmp_path / "train" / "good" / "0.png")
    bad = save(tmp_path / "train" / "dent" / "1.png")
    with pytest.raises(
        ValueError, match=r"dent/1\.png are the same image, given as good"
    ):
        gather_images([str(tmp_path), str(bad)])


# Loaders ------------------------------------------------------------------------------


@pytest.fixture
def category(tmp_path):
    folder = tmp_path / "data" / "nut"
    for i in range(3):
        save(folder / "train" / "good" / f"{i}.png")
        save(folder / "test" / "good" / f"{i}.png")
        save(folder / "test" / "dent" / f"{i}.png")
        save(folder / "ground_truth" / "dent" / f"{i}_mask.png")
    return folder


LOADERS = {
    "mvtec": lambda folder: load_mvtec_ad(folder.parent, folder.name),
    "folder": load_image_folder,
}
LINKS = {
    "to itself": {"latest": ".", "train/latest": ".", "test/latest": "."},
    "upwards": {"train/latest": "..", "test/latest": "../..", "test/top": "/"},
    "to a kind": {"test/again": "dent", "test/newest": "good", "train/all": "good"},
    "in a folder": {"train/good/latest": ".", "test/dent/latest": "."},
    "to images": {"train/good/0a.png": "0.png", "test/dent/last.png": "2.png"},
    "to other splits": {"train/good/a.png": "../../test/good/0.png"},
    "in circles": {"test/a": "b", "test/b": "a"},
}


@pytest.mark.filterwarnings("ignore:Passed over 2 files. 2 broken links")
@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_list_each_image_once(category, links, loader):
    before = LOADERS[loader](category)
    for name, target in LINKS[links].items():
        link(category / name, target)
    after = LOADERS[loader](category)
    for column in ("data", "target", "masks", "defect_types", "split"):
        assert after[column].tolist() == before[column].tolist()


@pytest.mark.parametrize("loader", LOADERS)
def test_an_image_is_not_good_and_defective_by_a_link(category, loader):
    link(category / "test" / "dent" / "9.png", "../good/0.png")
    link(category / "ground_truth" / "dent" / "9_mask.png", "0_mask.png")
    with pytest.raises(
        ValueError, match=r"dent/9\.png .*good/0\.png are the same image"
    ):
        LOADERS[loader](category)


@pytest.mark.parametrize("loader", LOADERS)
def test_images_linked_from_a_store_are_read_under_their_names(
    category, tmp_path, loader
):
    before = names(LOADERS[loader](category).data, category)
    for i, path in enumerate(sorted(category.rglob("*.png"))):
        stored = tmp_path / "store" / f"{i:064x}"
        stored.parent.mkdir(exist_ok=True)
        path.rename(stored)
        path.symlink_to(stored)
    bunch = LOADERS[loader](category)
    assert names(bunch.data, category) == before
    assert len(read_masks(bunch.masks, bunch.data)) == 9


@pytest.mark.parametrize("loader", LOADERS)
def test_images_may_share_a_mask_by_a_link(category, loader):
    mask = category / "ground_truth" / "dent" / "1_mask.png"
    mask.unlink()
    mask.symlink_to("0_mask.png")
    masks = LOADERS[loader](category).masks
    assert sum(mask is not None for mask in masks) == 3


def test_a_split_may_be_a_link(category):
    (category / "test").rename(category / "images_2026")
    link(category / "test", "images_2026")
    assert len(load_image_folder(category).data) == 9
    assert len(load_mvtec_ad(category.parent, "nut").data) == 9


def test_a_link_that_is_called_good_is_good(category):
    (category / "test" / "good").rename(category / "test" / "batch7")
    link(category / "test" / "good", "batch7")
    kinds = load_image_folder(category, subset="test").defect_types
    assert np.unique(kinds.astype(str), return_counts=True)[1].tolist() == [3, 3]
    assert set(kinds) == {"good", "dent"}


def test_one_split_under_two_names_is_no_contradiction(category):
    link(category / "val", "test")
    link(category / "valid", "test")
    assert len(load_image_folder(category).data) == 9


def test_links_to_categories_are_not_listed_but_can_be_loaded(category):
    link(category.parent / "latest", "nut")
    link(category.parent / "self", ".")
    assert mvtec_ad_categories(category.parent) == ["nut"]
    assert len(load_mvtec_ad(category.parent, "latest").data) == 9
    with pytest.raises(ValueError, match="Found no category"):
        load_mvtec_ad(category, "../nut")


def test_loaders_ignore_special_files(category):
    os.mkfifo(category / "train" / "good" / "fifo.png")
    (category / "train" / "good" / "folder.png").mkdir()
    with pytest.warns(UserWarning, match="1 pipes or devices in nut/train/good"):
        assert len(load_image_folder(category).data) == 9
