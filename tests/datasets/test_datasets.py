"""Loaders with small temporary folders, and downloads from a local server."""

import hashlib
import io
import os
import tarfile
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.random import RandomState
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import cross_validate

from skpatchcore.datasets import (
    _download,
    _mvtec_fetch,
    fetch_mvtec_ad,
    find_mvtec_ad,
    load_image_folder,
    load_mvtec_ad,
    make_surface_defects,
    mvtec_ad_categories,
    read_masks,
)
from skpatchcore.datasets._defects import DEFECTS, paint_defect
from skpatchcore.datasets._surface_defects import expose
from skpatchcore.datasets._textures import TEXTURES, render_texture

BOTTLE = [
    "train/good/000.png",
    "train/good/001.png",
    "test/good/000.png",
    "test/broken/000.png",
    "test/broken/001.png",
    "test/stain/000.png",
    "ground_truth/broken/000_mask.png",
    "ground_truth/broken/001_mask.png",
    "ground_truth/stain/000_mask.png",
]
ARCHIVE = _mvtec_fetch._ARCHIVE_NAME
CHUNK = _download._CHUNK_SIZE
# Hashes of ten images of each texture. If these change, users' results change.
CHECKSUMS = {
    "brick": 3946545633,
    "brushed": 1632728078,
    "cast": 449084967,
    "knurled": 371649354,
    "wood": 2577703357,
    "woven": 3780895877,
}


# Folders ----------------------------------------------------------------------------


def write_files(root: Path, names, size=(24, 16)) -> Path:
    """Write images (width, height), and empty files for names of other types."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".bmp", ".webp", ".tif"):
            Image.new("L", size, 255).save(path)
        else:
            path.touch()
    return root


def relative(paths, root: Path) -> list:
    return [p and Path(p).relative_to(root).as_posix() for p in paths]


@pytest.fixture
def data_home(tmp_path):
    write_files(tmp_path / "bottle", BOTTLE)
    write_files(tmp_path / "cable", ["train/good/0.png"])
    write_files(tmp_path / "notes", ["readme.txt"])
    return tmp_path


# What every loader returns ------------------------------------------------------------


@pytest.fixture(params=["load_mvtec_ad", "load_image_folder", "make_surface_defects"])
def load(request, data_home):
    return {
        "load_mvtec_ad": lambda **kw: load_mvtec_ad(data_home, "bottle", **kw),
        "load_image_folder": lambda **kw: load_image_folder(data_home / "bottle", **kw),
        "make_surface_defects": lambda **kw: make_surface_defects(
            2, 1, 3, image_size=32, random_state=0, **kw
        ),
    }[request.param]


def test_bunch_has_one_entry_for_each_image(load):
    bunch = load()
    columns = ["data", "target", "masks", "defect_types", "split"]
    assert {*columns, "cv", "DESCR"} == set(bunch)
    assert [len(bunch[column]) for column in columns] == [6] * 5
    assert bunch.target.dtype == np.int64
    assert bunch.defect_types.dtype == bunch.split.dtype == object
    assert len(bunch.DESCR.splitlines()) > 1


def test_target_is_minus_one_for_all_but_good(load):
    bunch = load()
    assert_array_equal(bunch.target == 1, bunch.defect_types == "good")
    assert set(bunch.target) == {1, -1}


def test_cv_is_the_split_ready_for_cross_validate(load):
    bunch = load()
    [(train, test)] = bunch.cv
    assert_array_equal(np.flatnonzero(bunch.split == "train"), train)
    assert_array_equal(np.flatnonzero(bunch.split == "test"), test)
    model = DummyClassifier(strategy="constant", constant=1)
    X = np.zeros((len(bunch.data), 1))
    scores = cross_validate(model, X, bunch.target, cv=bunch.cv)
    assert scores["test_score"] == [np.mean(bunch.target[test] == 1)]


def test_return_X_y_gives_data_and_target(load):
    X, y = load(return_X_y=True)
    bunch = load()
    assert_array_equal(X, bunch.data)
    assert_array_equal(y, bunch.target)


def test_masks_fit_read_masks(load):
    bunch = load()
    masks = read_masks(bunch.masks, bunch.data)
    assert [mask.any() for mask in masks] == [t == -1 for t in bunch.target]


@pytest.mark.parametrize("loader", [load_mvtec_ad, load_image_folder])
def test_unknown_subset_is_refused(loader):
    arguments = ["x", "y"] if loader is load_mvtec_ad else ["x"]
    with pytest.raises(ValueError, match="subset"):
        loader(*arguments, subset="val")


# load_mvtec_ad ------------------------------------------------------------------------


def test_mvtec_is_sorted_by_split_kind_and_name(data_home):
    bunch = load_mvtec_ad(data_home, "bottle")
    assert relative(bunch.data, data_home / "bottle") == [
        "train/good/000.png",
        "train/good/001.png",
        "test/broken/000.png",
        "test/broken/001.png",
        "test/good/000.png",
        "test/stain/000.png",
    ]
    assert relative(bunch.masks, data_home / "bottle") == [
        None,
        None,
        "ground_truth/broken/000_mask.png",
        "ground_truth/broken/001_mask.png",
        None,
        "ground_truth/stain/000_mask.png",
    ]
    assert bunch.split.tolist() == ["train"] * 2 + ["test"] * 4


def test_mvtec_paths_are_absolute(data_home, monkeypatch):
    monkeypatch.chdir(data_home)
    bunch = load_mvtec_ad(".", "bottle")
    assert all(os.path.isabs(path) for path in bunch.data)
    assert all(type(path) is str for path in bunch.data)


@pytest.mark.parametrize(("subset", "n_images"), [("train", 2), ("test", 4)])
def test_mvtec_subset_is_one_split_without_cv(data_home, subset, n_images):
    bunch = load_mvtec_ad(data_home, "bottle", subset=subset)
    assert bunch.split.tolist() == [subset] * n_images
    assert "cv" not in bunch


def test_mvtec_validation_images_are_in_neither_part_of_cv(data_home):
    write_files(data_home / "bottle", ["validation/good/000.png"])
    bunch = load_mvtec_ad(data_home, "bottle")
    assert bunch.split.tolist() == ["train"] * 2 + ["validation"] + ["test"] * 4
    assert 2 not in np.concatenate(bunch.cv[0])
    assert len(load_mvtec_ad(data_home, "bottle", subset="validation").data) == 1


@pytest.mark.parametrize("subset", ["validation", "test"])
def test_mvtec_names_a_split_that_is_missing(data_home, subset):
    with pytest.raises(ValueError, match=f"found no {subset} images in .*cable"):
        load_mvtec_ad(data_home, "cable", subset=subset)


def test_mvtec_without_test_images_has_no_cv(data_home):
    assert "cv" not in load_mvtec_ad(data_home, "cable")


def test_mvtec_ignores_hidden_files_and_other_files(data_home):
    extra = ["train/good/Thumbs.db", "train/good/._000.png", "test/.cache/000.png"]
    write_files(data_home / "bottle", extra)
    with pytest.warns(UserWarning, match=r"Passed over 1 file: 1 hidden in bottle"):
        assert len(load_mvtec_ad(data_home, "bottle").data) == 6


def test_mvtec_knows_the_image_formats_in_any_case(data_home):
    names = [
        f"train/good/x{i}.{s}" for i, s in enumerate(["JPG", "bmp", "WebP", "tif"])
    ]
    write_files(data_home / "cable", names)
    assert len(load_mvtec_ad(data_home, "cable").data) == 5


def test_mvtec_keeps_broken_links_in_the_list(data_home):
    (data_home / "cable/train/good/1.png").symlink_to("gone")
    assert len(load_mvtec_ad(data_home, "cable").data) == 2


def test_mvtec_3d_original_layout_is_read(tmp_path):
    write_files(
        tmp_path / "tire",
        [
            "train/good/rgb/000.png",
            "train/good/xyz/000.tiff",
            "validation/good/rgb/000.png",
            "test/good/rgb/000.png",
            "test/good/gt/000.png",
            "test/hole/rgb/000.png",
            "test/hole/gt/000.png",
        ],
    )
    bunch = load_mvtec_ad(tmp_path, "tire")
    assert relative(bunch.data, tmp_path / "tire")[-1] == "test/hole/rgb/000.png"
    assert relative(bunch.masks, tmp_path / "tire") == [
        *[None] * 3,
        "test/hole/gt/000.png",
    ]


def test_mvtec_loco_masks_of_an_image_are_combined(tmp_path):
    loco = tmp_path / "pushpins"
    write_files(loco, ["train/good/000.png", "test/logical/000.png"])
    for i in range(2):
        mask = np.zeros((16, 24), np.uint8)
        mask[i] = 255
        path = loco / f"ground_truth/logical/000/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    bunch = load_mvtec_ad(tmp_path, "pushpins", subset="test")
    [mask] = read_masks(bunch.masks, bunch.data)
    assert_array_equal(np.flatnonzero(mask.any(axis=1)), [0, 1])


def test_mvtec_without_ground_truth_has_no_masks(data_home):
    write_files(data_home / "cable", ["test/cut/0.png"])
    assert load_mvtec_ad(data_home, "cable").masks.tolist() == [None, None]


def test_mvtec_names_the_image_whose_mask_is_missing(data_home):
    (data_home / "bottle/ground_truth/broken/001_mask.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"broken.001\.png has no mask.*001_mask"
    ):
        load_mvtec_ad(data_home, "bottle")
    assert len(load_mvtec_ad(data_home, "bottle", subset="train").data) == 2


def test_mvtec_names_an_empty_train_good(data_home):
    (data_home / "cable/train/good/0.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*cable.train.good"):
        load_mvtec_ad(data_home, "cable")


def test_mvtec_suggests_the_closest_category(data_home):
    with pytest.raises(
        ValueError, match=r"in it are bottle, cable\. Did you mean 'bot"
    ):
        load_mvtec_ad(data_home, "botle")


def test_mvtec_suggests_the_parent_of_a_category(data_home):
    with pytest.raises(ValueError, match=f"parent folder, {data_home}"):
        load_mvtec_ad(data_home / "bottle", "bottle")


def test_mvtec_refuses_a_path_as_category(data_home):
    with pytest.raises(ValueError, match="no category"):
        load_mvtec_ad(data_home / "bottle", "../bottle")


def test_mvtec_data_home_missing_or_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_home=.*nowhere.*not exist"):
        load_mvtec_ad(tmp_path / "nowhere", "bottle")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        mvtec_ad_categories(tmp_path / "file")


def test_categories_are_the_folders_with_train_good(data_home):
    assert mvtec_ad_categories(str(data_home)) == ["bottle", "cable"]


@pytest.mark.parametrize(
    ("data_home", "category", "counts"),
    [
        ("mvtec_ad", "bottle", {("train", 1): 209, ("test", 1): 20, ("test", -1): 63}),
        (
            "mvtec_3d",
            "tire",
            {
                ("train", 1): 210,
                ("validation", 1): 29,
                ("test", 1): 25,
                ("test", -1): 87,
            },
        ),
    ],
)
def test_real_categories_have_their_official_counts(
    assets, data_home, category, counts
):
    bunch = load_mvtec_ad(assets / "data" / data_home, category)
    assert Counter(zip(bunch.split, bunch.target.tolist(), strict=True)) == counts
    defective = np.flatnonzero(bunch.target == -1)
    masks = read_masks(bunch.masks[defective], bunch.data[defective])
    assert all(mask.any() for mask in masks)


# load_image_folder --------------------------------------------------------------------


def test_flat_folder_is_all_good_training_images(tmp_path):
    write_files(tmp_path, ["b.png", "a.JPG", "day1/c.png"])
    bunch = load_image_folder(tmp_path)
    assert relative(bunch.data, tmp_path) == ["a.JPG", "b.png", "day1/c.png"]
    assert bunch.target.tolist() == [1, 1, 1]
    assert set(bunch.split) == {"train"}
    assert "cv" not in bunch


@pytest.mark.parametrize("normal", ["good", "OK", "Normal"])
def test_normal_folders_have_three_names_in_any_case(tmp_path, normal):
    write_files(tmp_path, [f"train/{normal}/0.png", f"test/{normal}/0.png"])
    bunch = load_image_folder(tmp_path)
    assert bunch.target.tolist() == [1, 1]
    assert bunch.defect_types.tolist() == ["good", "good"]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val"])
def test_validation_folder_has_three_names(tmp_path, validation):
    write_files(tmp_path, ["train/0.png", f"{validation}/dent/0.png"])
    bunch = load_image_folder(tmp_path)
    assert bunch.split.tolist() == ["train", "validation"]
    assert bunch.target.tolist() == [1, -1]


def test_defects_in_train_are_kept_as_anomalous(tmp_path):
    write_files(tmp_path, ["train/0.png", "train/good/1.png", "train/dent/2.png"])
    bunch = load_image_folder(tmp_path, subset="train")
    assert bunch.target.tolist() == [1, -1, 1]
    assert bunch.defect_types.tolist() == ["good", "dent", "good"]


@pytest.mark.parametrize("mask_root", ["ground_truth", "masks"])
@pytest.mark.parametrize("mask", ["0_mask.png", "0.bmp"])
def test_masks_match_by_stem(tmp_path, mask_root, mask):
    names = ["train/0.png", "test/good/0.png", "test/dent/0.jpg"]
    write_files(tmp_path, [*names, f"{mask_root}/dent/{mask}"])
    bunch = load_image_folder(tmp_path, subset="test")
    assert relative(bunch.masks, tmp_path) == [f"{mask_root}/dent/{mask}", None]


def test_some_masks_missing_is_a_warning_that_names_the_images(tmp_path):
    names = ["train/0.png", "test/dent/0.png", "test/dent/1.png", "masks/dent/0.png"]
    write_files(tmp_path, names)
    message = r"1 defective image without a mask: 1 of 2 in dent \(1\.png\)"
    with pytest.warns(UserWarning, match=message) as record:
        load_image_folder(tmp_path)
    assert record[0].filename == __file__


def test_a_mask_of_two_images_is_refused(tmp_path):
    names = ["train/0.png", "test/dent/0.png", "test/dent/0.jpg", "masks/dent/0.png"]
    write_files(tmp_path, names)
    with pytest.raises(ValueError, match=r"could be the mask of .*0\.jpg and .*0\.png"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("split", ["test", "val"])
def test_unsorted_test_images_are_refused_with_advice(tmp_path, split):
    write_files(tmp_path, ["train/0.png", f"{split}/0.png", f"{split}/good/1.png"])
    with pytest.raises(ValueError, match=r"for example 0\.png\. .*Move them to .*good"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["notes.txt"],
        ["test/good/0.png"],
        ["train/notes.txt"],
        ["0.png", "test/good/0.png"],
    ],
)
def test_no_training_images_is_an_error_that_shows_the_layout(tmp_path, names):
    write_files(tmp_path, names)
    with pytest.raises(
        ValueError, match=r"found none\.[\s\S]*Arrange[\s\S]*train/good"
    ):
        load_image_folder(tmp_path)


def test_only_defective_training_images_is_an_error(tmp_path):
    write_files(tmp_path, ["train/dent/0.png", "train/crack/0.png"])
    with pytest.raises(ValueError, match=r"only defective .*\(crack, dent\)"):
        load_image_folder(tmp_path)


def test_test_images_alone_can_be_loaded(tmp_path):
    write_files(tmp_path, ["test/good/0.png"])
    assert load_image_folder(tmp_path, subset="test").target.tolist() == [1]
    with pytest.raises(ValueError, match="found no validation images"):
        load_image_folder(tmp_path, subset="validation")


def test_two_folders_for_one_split_are_refused(tmp_path):
    write_files(tmp_path, ["train/0.png", "val/good/0.png", "valid/good/0.png"])
    with pytest.raises(ValueError, match="Found val and valid in"):
        load_image_folder(tmp_path)


def test_image_folder_missing_or_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path=.*nowhere"):
        load_image_folder(tmp_path / "nowhere")
    write_files(tmp_path, ["0.png"])
    with pytest.raises(NotADirectoryError, match=r"path=.*0\.png.*is a file"):
        load_image_folder(tmp_path / "0.png")


# read_masks ---------------------------------------------------------------------------


def save_mask(path: Path, mode: str) -> np.ndarray:
    """Save a mask whose second row is defective, with the values usual for its mode."""
    defective = np.zeros((16, 24), bool)
    defective[1] = True
    gray = Image.fromarray(255 * defective.astype(np.uint8))
    image = {
        "1": lambda: gray.convert("1"),
        "L": lambda: gray,
        "labels": lambda: Image.fromarray(3 * defective.astype(np.uint8)),
        "I;16": lambda: Image.fromarray(3 * defective.astype(np.uint16)),
        "LA": lambda: gray.convert("LA"),
        "RGB": lambda: Image.merge("RGB", [gray, Image.new("L", gray.size), gray]),
        "RGBA": lambda: gray.convert("RGBA"),
        # The palette begins with white, so that the index of black is not 0.
        "P": lambda: Image.fromarray(1 - defective.astype(np.uint8), "P"),
    }[mode]()
    if mode == "P":
        image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)
    return defective


@pytest.mark.parametrize("mode", ["1", "L", "labels", "I;16", "LA", "RGB", "RGBA", "P"])
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_masks_of_all_modes_are_read(tmp_path, mode):
    expected = save_mask(tmp_path / "mask.png", mode)
    [mask] = read_masks([tmp_path / "mask.png"], [np.zeros((16, 24, 3))])
    assert mask.dtype == bool
    assert_array_equal(mask, expected)


def test_jpeg_masks_are_cut_half_way(tmp_path):
    expected = np.zeros((16, 24), bool)
    expected[:8] = True
    Image.fromarray(255 * expected.astype(np.uint8)).save(
        tmp_path / "m.jpg", quality=20
    )
    [mask] = read_masks([str(tmp_path / "m.jpg")], [np.zeros((16, 24, 3))])
    assert_array_equal(mask, expected)


def test_no_mask_is_all_false_in_the_size_of_each_image(tmp_path):
    write_files(tmp_path, ["0.png"])
    images = [tmp_path / "0.png", np.zeros((5, 7)), Image.new("RGB", (9, 8))]
    masks = read_masks([None] * 3, images)
    assert [mask.shape for mask in masks] == [(16, 24), (5, 7), (8, 9)]
    assert not any(mask.any() for mask in masks)


def test_size_is_that_after_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (24, 16)).save(tmp_path / "turned.jpg", exif=exif)
    [mask] = read_masks([None], [tmp_path / "turned.jpg"])
    assert mask.shape == (24, 16)


def test_boolean_arrays_pass_through():
    given = np.random.RandomState(0).uniform(size=(2, 5, 7)) > 0.5
    assert_array_equal(read_masks(given, np.zeros((2, 5, 7, 3))), given)


def test_size_mismatch_names_both_files_and_sizes(tmp_path):
    write_files(tmp_path, ["image.png"])
    write_files(tmp_path, ["mask.png"], size=(24, 17))
    message = r"mask 0 \(.*mask\.png\) .*\(17, 24\).*image\.png\) has \(16, 24\)"
    with pytest.raises(ValueError, match=message):
        read_masks([tmp_path / "mask.png"], [tmp_path / "image.png"])


def test_as_many_masks_as_images():
    with pytest.raises(ValueError, match="1 masks for 2 images"):
        read_masks([None], np.zeros((2, 5, 7, 3)))


# fetch_mvtec_ad -----------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serve one file, as well or as badly as the server is told to."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        start = int(asked[6:-1]) if asked and server.knows_ranges else 0
        size = len(server.payload)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + server.shift
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        n_sent = server.drops.pop(0) if server.drops else size
        self.wfile.write(server.payload[start:][:n_sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Return a function that serves bytes and returns the server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(payload):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.payload, server.ranges = payload, []
        server.drops, server.failures = [], []
        server.knows_ranges, server.shift = True, 0
        server.url = f"http://127.0.0.1:{server.server_port}/mvtec.tar.xz"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def make_archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.RandomState(seed).randint(256, size=(64, 64, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive():
    """Two categories, 220 kB: noise does not compress."""
    files = {f"bottle/{name}": png(i) for i, name in enumerate(BOTTLE)}
    files |= {f"pill/{name}": png(100 + i) for i, name in enumerate(BOTTLE)}
    return make_archive(files | {"license.txt": b"CC BY-NC-SA 4.0"})


@pytest.fixture
def server(serve, archive):
    return serve(archive)


def fetch(server, data_home, category="bottle", **options):
    settings = {
        "accept_license": True,
        "delay": 0.0,
        "url": server.url,
        "sha256": hashlib.sha256(server.payload).hexdigest(),
    }
    return fetch_mvtec_ad(category, data_home=data_home, **settings | options)


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_fetch_unpacks_all_and_loads_one(server, tmp_path):
    bunch = fetch(server, tmp_path / "new" / "home")
    assert len(bunch.data) == 6
    assert all(Path(path).is_file() for path in bunch.data)
    assert visible(tmp_path / "new" / "home") == ["bottle", "license.txt", "pill"]
    assert not (tmp_path / "new/home/.unpacking").exists()


def test_fetch_passes_subset_and_return_X_y_on(server, tmp_path):
    X, y = fetch(server, tmp_path, subset="test", return_X_y=True)
    assert len(X) == len(y) == 4


def test_fetch_needs_the_licence_to_be_accepted(server, tmp_path):
    with pytest.raises(PermissionError, match=r"CC BY-NC-SA 4\.0.*accept_license=True"):
        fetch(server, tmp_path / "home", accept_license=False)
    assert server.ranges == []
    assert not (tmp_path / "home").exists()


def test_fetch_does_not_download_when_forbidden(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="download_if_missing"):
        fetch(server, tmp_path, download_if_missing=False)
    assert server.ranges == []


def test_fetch_takes_what_is_there_without_licence_or_request(server, data_home):
    bunch = fetch(server, data_home, accept_license=False, download_if_missing=False)
    assert len(bunch.data) == 6
    assert server.ranges == []


def test_fetch_leaves_a_category_that_is_there_as_it_is(server, data_home):
    before = (data_home / "bottle/train/good/000.png").read_bytes()
    fetch(server, data_home, "pill")
    assert (data_home / "bottle/train/good/000.png").read_bytes() == before


def test_fetch_goes_on_where_the_connection_broke(server, tmp_path):
    server.drops = [6 * CHUNK, 3 * CHUNK]
    fetch(server, tmp_path)
    assert server.ranges == [None, f"bytes={6 * CHUNK}-", f"bytes={9 * CHUNK}-"]


def test_fetch_keeps_the_part_for_the_next_call(server, tmp_path):
    server.drops = [6 * CHUNK, 1 * CHUNK]
    message = rf"broke 2 times\. {7 * CHUNK} bytes are kept"
    with pytest.raises(OSError, match=message):
        fetch(server, tmp_path, n_retries=1)
    assert (tmp_path / f"{ARCHIVE}.part").stat().st_size == 7 * CHUNK
    fetch(server, tmp_path)
    assert server.ranges[-1] == f"bytes={7 * CHUNK}-"
    assert visible(tmp_path) == ["bottle", "license.txt", "pill"]


def test_fetch_starts_anew_at_a_server_without_ranges(server, tmp_path):
    server.drops, server.knows_ranges = [6 * CHUNK], False
    assert len(fetch(server, tmp_path).data) == 6


def test_fetch_starts_anew_when_the_server_continues_elsewhere(server, tmp_path):
    server.drops, server.shift = [6 * CHUNK], 7
    assert len(fetch(server, tmp_path).data) == 6
    assert server.ranges == [None, f"bytes={6 * CHUNK}-", None]


def test_fetch_accepts_a_part_that_is_complete(server, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.payload)
    assert len(fetch(server, tmp_path).data) == 6
    assert server.ranges == [f"bytes={len(server.payload)}-"]


def test_fetch_starts_anew_when_the_part_is_too_long(server, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.payload + b"x")
    assert len(fetch(server, tmp_path).data) == 6
    assert server.ranges[1:] == [None]


def test_fetch_removes_a_file_with_the_wrong_hash(server, tmp_path):
    with pytest.raises(OSError, match=r"SHA-256 hash .* expected 0000"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert visible(tmp_path) == []


def test_fetch_keeps_the_part_at_ctrl_c(server, tmp_path, monkeypatch):
    class Interrupted(_download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_download, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path)
    n_bytes = (tmp_path / f"{ARCHIVE}.part").stat().st_size
    assert 0 < n_bytes < len(server.payload)
    fetch(server, tmp_path)
    assert server.ranges[-1] == f"bytes={n_bytes}-"


def test_fetch_retries_while_a_server_fails(server, tmp_path):
    server.failures = [503, 502]
    assert len(fetch(server, tmp_path).data) == 6


def test_fetch_says_where_to_look_when_the_link_is_dead(server, tmp_path):
    server.failures = [404]
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.payload[:9])
    with pytest.raises(OSError, match=r"404.*mvtec-ad/downloads.*url="):
        fetch(server, tmp_path)
    assert (tmp_path / f"{ARCHIVE}.part").stat().st_size == 9


def test_fetch_reports_an_unreachable_server(serve, tmp_path):
    server = serve(b"")
    server.server_close()
    with pytest.raises(OSError, match="Could not download http"):
        fetch(server, tmp_path, n_retries=1)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "bottle/../../evil.txt"])
def test_fetch_refuses_an_archive_that_writes_elsewhere(serve, tmp_path, name):
    server = serve(make_archive({"bottle/train/good/0.png": b"", name: b"evil"}))
    home = tmp_path / "home"
    if name.startswith("/"):
        # The leading slash is dropped, so the file is unpacked inside and ignored.
        assert len(fetch(server, home).data) == 1
        assert not Path(name).exists()
    else:
        with pytest.raises(OSError, match=r"Could not unpack .*evil\.txt"):
            fetch(server, home)
        assert visible(home) == []
    assert not list(tmp_path.glob("evil.txt"))


def test_fetch_interrupted_while_unpacking_shows_no_category(
    server, tmp_path, monkeypatch
):
    class Interrupted(_mvtec_fetch.tqdm):
        def __iter__(self):
            for i, member in enumerate(super().__iter__()):
                if i == 5:
                    raise KeyboardInterrupt
                yield member

    with monkeypatch.context() as patch:
        patch.setattr(_mvtec_fetch, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path)
    assert mvtec_ad_categories(tmp_path) == []
    assert len(fetch(server, tmp_path).data) == 6
    assert len(server.ranges) == 1


def test_fetch_removes_the_remains_of_a_killed_process(server, tmp_path):
    write_files(tmp_path, [".unpacking/bottle/train/good/stale.png"])
    bunch = fetch(server, tmp_path)
    assert not any("stale" in path for path in bunch.data)


def test_fetch_finds_categories_one_level_down(serve, tmp_path):
    server = serve(make_archive({"mvtec/bottle/train/good/0.png": png(0)}))
    assert relative(fetch(server, tmp_path).data, tmp_path) == [
        "bottle/train/good/0.png"
    ]


def test_simultaneous_fetches_download_once(server, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        bunches = list(pool.map(lambda _: fetch(server, tmp_path), range(3)))
    assert [len(bunch.data) for bunch in bunches] == [6] * 3
    assert server.ranges == [None]


def test_fetch_names_a_folder_that_blocks_a_category(server, tmp_path):
    write_files(tmp_path, ["bottle/notes.txt"])
    with pytest.raises(FileExistsError, match="bottle exists, but it has no"):
        fetch(server, tmp_path)
    assert server.ranges == []


def test_fetch_of_an_archive_without_the_category_lists_the_others(server, tmp_path):
    with pytest.raises(
        ValueError, match=r"no category 'screw'.*categories in it are bottle, pill"
    ):
        fetch(server, tmp_path, "screw")


def test_fetch_refuses_an_unknown_category_before_downloading(server, tmp_path):
    with pytest.raises(ValueError, match="'category' parameter"):
        fetch(server, tmp_path, "botle")
    assert server.ranges == []


def test_fetch_of_all_categories_returns_a_bunch_for_each(serve, tmp_path):
    names = _mvtec_fetch._CATEGORIES
    server = serve(make_archive({f"{n}/train/good/0.png": b"" for n in names}))
    bunches = fetch(server, tmp_path, None)
    assert tuple(bunches) == names
    assert len(bunches.zipper.data) == 1
    fetch(server, tmp_path, None, accept_license=False)
    assert len(server.ranges) == 1


def test_fetch_finds_its_default_home(server, data_home, monkeypatch):
    data_home.rename(data_home.parent / "mvtec_ad")
    monkeypatch.setenv("SKPATCHCORE_DATA", str(data_home.parent))
    assert len(fetch_mvtec_ad("bottle").data) == 6
    monkeypatch.delenv("SKPATCHCORE_DATA")
    monkeypatch.setenv("HOME", str(data_home.parent / "nobody"))
    monkeypatch.setenv("USERPROFILE", str(data_home.parent / "nobody"))
    with pytest.raises(PermissionError, match=r"nobody.skpatchcore_data.mvtec_ad\."):
        fetch_mvtec_ad("bottle")


# make_surface_defects -----------------------------------------------------------------


def test_surface_defects_have_the_documented_shapes():
    bunch = make_surface_defects(3, 2, 4, image_size=48, random_state=0)
    assert bunch.data.shape == (9, 48, 48, 3)
    assert bunch.data.dtype == np.uint8
    assert bunch.masks.shape == (9, 48, 48)
    assert bunch.masks.dtype == bool
    assert_array_equal(bunch.masks.any(axis=(1, 2)), bunch.target == -1)


def test_surface_defects_are_sorted_by_split_and_kind():
    bunch = make_surface_defects(2, 2, 9, image_size=32, random_state=0)
    assert bunch.split.tolist() == ["train"] * 2 + ["test"] * 11
    assert bunch.defect_types[2:].tolist() == sorted(bunch.defect_types[2:])
    assert Counter(bunch.defect_types[2:]) == dict.fromkeys(DEFECTS, 1) | {
        "good": 2,
        "crack": 2,
    }


def test_same_seed_gives_the_same_images_and_another_seed_others():
    first, again = (make_surface_defects(2, 1, 2, random_state=0) for _ in range(2))
    other = make_surface_defects(2, 1, 2, random_state=1)
    assert_array_equal(first.data, again.data)
    assert_array_equal(first.masks, again.masks)
    assert (first.data != other.data).any(axis=(1, 2, 3)).all()


def test_random_state_instance_gives_new_images_at_each_call():
    rng = RandomState(0)
    first, second = (make_surface_defects(1, 0, 0, random_state=rng) for _ in range(2))
    assert (first.data != second.data).any()


def test_training_images_do_not_depend_on_the_test_images():
    few = make_surface_defects(3, 0, 1, random_state=0)
    many = make_surface_defects(3, 5, 4, random_state=0)
    assert_array_equal(few.data[:3], many.data[:3])


@pytest.mark.parametrize("texture", TEXTURES)
def test_images_are_the_same_on_every_platform(texture):
    bunch = make_surface_defects(
        1, 1, 8, texture=texture, image_size=64, random_state=0
    )
    assert zlib.crc32(bunch.data) == CHECKSUMS[texture]


@pytest.mark.parametrize("texture", TEXTURES)
def test_good_images_differ_but_look_similar(texture):
    images = make_surface_defects(
        8, 0, 0, texture=texture, image_size=64, random_state=0
    ).data.astype(float)
    colors = images.mean(axis=(1, 2))
    assert np.ptp(colors, axis=0).max() < 50
    for i in range(7):
        assert np.abs(images[i] - images[i + 1]).mean() > 2


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_mask_has_the_pixels_that_the_defect_changed(texture, defect):
    clean = render_texture(texture, 64, RandomState(0))
    for seed in range(5):
        painted, mask = paint_defect(clean, defect, RandomState(seed))
        before = expose(clean, RandomState(9)).astype(int)
        after = expose(painted, RandomState(9)).astype(int)
        changed = (before != after).any(axis=2)
        assert not (changed & ~mask).any()
        assert changed[mask].mean() > 0.6
        assert 0 < mask.mean() < 0.3


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_painted_on_images_of_any_shape(defect):
    surface = np.full((40, 90, 3), 0.5)
    for seed in range(20):
        painted, mask = paint_defect(surface, defect, RandomState(seed))
        assert painted.shape == surface.shape
        assert mask.shape == (40, 90)
        assert mask.any()
        assert 0 <= painted.min() <= painted.max() <= 1


def test_larger_images_show_the_same_scene():
    # In a statistical sense: position and kind are drawn before the size is used.
    small, large = (
        make_surface_defects(
            1, 0, 16, defects=["stain"], image_size=size, random_state=0
        ).masks.mean()
        for size in (32, 96)
    )
    assert small == pytest.approx(large, rel=0.5)


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_train": 0},
        {"n_test_good": -1},
        {"image_size": 16},
        {"texture": "marble"},
        {"defects": "scratch"},
        {"defects": []},
        {"defects": ["scratch", "hole"]},
    ],
)
def test_bad_parameters_are_named(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        make_surface_defects(**parameters)


def test_a_category_is_found_in_the_folder_of_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("SKPATCHCORE_DATA", str(tmp_path))
    assert find_mvtec_ad("nut") is None
    (tmp_path / "mvtec_ad" / "nut" / "train" / "good").mkdir(parents=True)
    assert find_mvtec_ad("nut") == tmp_path / "mvtec_ad"
    assert find_mvtec_ad("bolt") is None


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_a_category_is_found_at_home(value, tmp_path, monkeypatch):
    if value is None:
        monkeypatch.delenv("SKPATCHCORE_DATA", raising=False)
    else:
        monkeypatch.setenv("SKPATCHCORE_DATA", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    home = tmp_path / "skpatchcore_data" / "mvtec_ad"
    (home / "nut" / "train" / "good").mkdir(parents=True)
    assert find_mvtec_ad("nut") == home
