"""The same image gets the same score in every form."""

import contextlib
import copy
import io
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._images._batches import iter_batches
from skpatchcore._images._errors import UnreadableImageError
from skpatchcore._images._geometry import (
    plan_geometry,
    resize_and_crop,
    resize_masks,
    resized_shape,
)
from skpatchcore._images._input import Images, check_images

N_IMAGES = 4
# The rounding of the network in float32.
RTOL = 1e-5
Transpose = Image.Transpose


def make_images(n, shape, seed):
    """Return images of 8 x 8 blocks of one colour, which JPEG stores unblurred."""
    height, width = shape
    blocks = np.random.default_rng(seed).integers(
        0, 256, (n, height // 8, width // 8, 3), dtype=np.uint8
    )
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def to_gray(images):
    return images[..., 1]


def as_rgb(gray):
    return np.repeat(gray[..., np.newaxis], 3, axis=-1)


def channels_first(images):
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy())


def encode(image, file_format, **options):
    """Return `image` as a file in memory, opened."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Image.open(file)


def objects(items, shape=None):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array if shape is None else array.reshape(shape)


def memory_mapped(images, folder):
    path = folder / "images.npy"
    np.save(path, images)
    return np.load(path, mmap_mode="r")


def read_only(images):
    images = images.copy()
    images.flags.writeable = False
    return images


def save_all(images, folder, suffix, **options):
    paths = [str(folder / f"{i}{suffix}") for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(path, **options)
    return paths


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


def decoded(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def detector():
    features = PatchFeatureTransformer(
        "resnet18", weights="random", image_size=64, random_state=0
    )
    return PatchCoreDetector(features, random_state=0).fit(
        make_images(4, (64, 64), seed=0)
    )


@pytest.fixture(scope="module", params=[(64, 64), (40, 56)], ids=["fits", "resized"])
def images(request):
    return make_images(N_IMAGES, request.param, seed=1)


@pytest.fixture(scope="module")
def expected(detector, images):
    return detector.score_samples(images)


@pytest.fixture(scope="module")
def expected_gray(detector, images):
    return detector.score_samples(as_rgb(to_gray(images)))


COLOR_CONTAINERS = {
    "str paths": lambda p, folder: save_all(p, folder, ".png"),
    "Paths": lambda p, folder: [Path(path) for path in save_all(p, folder, ".png")],
    "tuple": lambda p, folder: tuple(save_all(p, folder, ".png")),
    "generator": lambda p, folder: (path for path in save_all(p, folder, ".png")),
    "object array of str": lambda p, folder: objects(save_all(p, folder, ".png")),
    "object array of Path": lambda p, folder: objects(
        [Path(path) for path in save_all(p, folder, ".png")]
    ),
    "column of paths": lambda p, folder: objects(save_all(p, folder, ".png"), (-1, 1)),
    "str array": lambda p, folder: np.array(save_all(p, folder, ".png")),
    "Series": lambda p, folder: pd.Series(save_all(p, folder, ".png"), dtype=object),
    "Series of strings": lambda p, folder: pd.Series(save_all(p, folder, ".png")),
    "DataFrame": lambda p, folder: pd.DataFrame({"path": save_all(p, folder, ".png")}),
    "Series of arrays": lambda p, folder: pd.Series(list(p)),
    "PIL images": lambda p, folder: [Image.fromarray(a) for a in p],
    "Series of PIL images": lambda p, folder: pd.Series(
        [Image.fromarray(a) for a in p]
    ),
    "lazy PIL images": lambda p, folder: [encode(Image.fromarray(a), "PNG") for a in p],
    "uint8": lambda p, folder: p.copy(),
    "uint16": lambda p, folder: p.astype(np.uint16) * 257,
    "big-endian uint16": lambda p, folder: (p.astype(np.uint16) * 257).astype(">u2"),
    "float32": lambda p, folder: (p / 255).astype(np.float32),
    "float64": lambda p, folder: p / 255,
    "big-endian float64": lambda p, folder: (p / 255).astype(">f8"),
    "list of arrays": lambda p, folder: list(p),
    "object array of arrays": lambda p, folder: objects(list(p)),
    "uint8 tensor": lambda p, folder: channels_first(p),
    "uint16 tensor": lambda p, folder: channels_first(p.astype(np.uint16) * 257),
    "float tensor": lambda p, folder: channels_first(p) / 255,
    "double tensor": lambda p, folder: channels_first(p).double() / 255,
    "tensor with gradient": lambda p, folder: (
        channels_first(p) / 255
    ).requires_grad_(),
    "list of tensors": lambda p, folder: list(channels_first(p)),
    "object array of tensors": lambda p, folder: objects(list(channels_first(p))),
    "not contiguous": lambda p, folder: p.repeat(2, axis=1).repeat(3, axis=2)[
        :, ::2, ::3
    ],
    "negative strides": lambda p, folder: p[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "Fortran order": lambda p, folder: np.asfortranarray(p),
    "read-only": lambda p, folder: read_only(p),
    "read-only float32": lambda p, folder: read_only((p / 255).astype(np.float32)),
    "memory map": memory_mapped,
    "forms mixed": lambda p, folder: [
        save_all(p[:1], folder, ".png")[0],
        Image.fromarray(p[1]),
        p[2] / 255,
        channels_first(p)[3],
    ],
}


@pytest.mark.parametrize("form", COLOR_CONTAINERS)
def test_same_score_from_any_container(detector, images, expected, form, tmp_path):
    X = COLOR_CONTAINERS[form](images, tmp_path)
    assert_allclose(detector.score_samples(X), expected, rtol=RTOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_score_nearly_the_same(detector, images, expected, dtype):
    X = (channels_first(images) / 255).to(dtype)
    assert_allclose(detector.score_samples(X), expected, rtol=0.05)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".bmp", {}),
        (".ppm", {}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".webp", {"lossless": True}),
    ],
    ids=lambda value: str(value),
)
def test_same_score_from_any_lossless_file(
    detector, images, expected, suffix, options, tmp_path
):
    paths = save_all(images, tmp_path, suffix, **options)
    assert_allclose(detector.score_samples(paths), expected, rtol=RTOL)


def test_progressive_jpeg_scores_like_baseline_jpeg(detector, images, tmp_path):
    baseline = save_all(images, tmp_path, ".jpg", quality=90)
    progressive = save_all(images, tmp_path, ".jpeg", quality=90, progressive=True)
    assert_allclose(
        detector.score_samples(progressive),
        detector.score_samples(baseline),
        rtol=RTOL,
    )


GRAY_CONTAINERS = {
    "(n, h, w)": lambda g, folder: g,
    "(n, h, w, 1)": lambda g, folder: g[..., np.newaxis],
    "(n, h, w, 2)": lambda g, folder: np.stack([g, np.full_like(g, 255)], axis=-1),
    "float": lambda g, folder: g / 255,
    "uint16": lambda g, folder: g.astype(np.uint16) * 257,
    "list of (h, w)": lambda g, folder: list(g),
    "tensor (n, h, w)": lambda g, folder: torch.from_numpy(g.copy()),
    "tensor (n, 1, h, w)": lambda g, folder: torch.from_numpy(g[:, np.newaxis].copy()),
    "list of tensors (h, w)": lambda g, folder: list(torch.from_numpy(g.copy())),
    "PIL L": lambda g, folder: [Image.fromarray(a) for a in g],
    "PIL F": lambda g, folder: [Image.fromarray((a / 255).astype("f4")) for a in g],
    "PIL I": lambda g, folder: [Image.fromarray(a.astype("i4") * 257) for a in g],
    "PIL I;16": lambda g, folder: [to_16_bits(a, "I;16") for a in g],
    "PIL I;16B": lambda g, folder: [to_16_bits(a, "I;16B") for a in g],
    "L PNG": lambda g, folder: save_all(g, folder, ".png"),
    "L BMP": lambda g, folder: save_all(g, folder, ".bmp"),
    "L TIFF": lambda g, folder: save_all(g, folder, ".tif"),
    "LA PNG": lambda g, folder: save_all(
        np.stack([g, np.full_like(g, 255)], axis=-1), folder, ".png"
    ),
    "16-bit PNG": lambda g, folder: save_all(
        [to_16_bits(a, "I;16") for a in g], folder, ".png"
    ),
    "16-bit TIFF": lambda g, folder: save_all(
        [to_16_bits(a, "I;16") for a in g], folder, ".tif"
    ),
    "big-endian 16-bit TIFF": lambda g, folder: save_all(
        [to_16_bits(a, "I;16B") for a in g], folder, ".tif"
    ),
    "float TIFF": lambda g, folder: save_all(
        [(a / 255).astype(np.float32) for a in g], folder, ".tif"
    ),
}


def to_16_bits(gray, mode):
    array = gray.astype(">u2" if mode.endswith("B") else "<u2") * 257
    return Image.frombytes(mode, gray.shape[::-1], array.tobytes())


@pytest.mark.parametrize("form", GRAY_CONTAINERS)
def test_grey_images_score_like_equal_colour_images(
    detector, images, expected_gray, form, tmp_path
):
    X = GRAY_CONTAINERS[form](to_gray(images), tmp_path)
    assert_allclose(detector.score_samples(X), expected_gray, rtol=RTOL)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_files_are_black_and_white(detector, images, suffix, tmp_path):
    bits = to_gray(images) > 127
    paths = save_all([Image.fromarray(b) for b in bits], tmp_path, suffix)
    assert mode_of(paths[0]) == "1"
    black_and_white = np.where(bits, 255, 0).astype(np.uint8)
    assert_allclose(
        detector.score_samples(paths),
        detector.score_samples(black_and_white),
        rtol=RTOL,
    )


def test_palette_files_have_the_colours_of_the_palette(detector, images, tmp_path):
    opened = [Image.fromarray(image).quantize(16) for image in images]
    paths = save_all(opened, tmp_path, ".png")
    assert mode_of(paths[0]) == "P"
    colors = [np.asarray(one.convert("RGB")) for one in opened]
    assert_allclose(
        detector.score_samples(paths), detector.score_samples(colors), rtol=RTOL
    )


# Transparency -------------------------------------------------------------------------

ALPHA_FORMS = {
    "array": lambda rgba, folder: rgba,
    "float array": lambda rgba, folder: rgba / 255,
    "uint16 array": lambda rgba, folder: rgba.astype(np.uint16) * 257,
    "tensor": lambda rgba, folder: channels_first(rgba),
    "PIL": lambda rgba, folder: [Image.fromarray(a) for a in rgba],
    ".png": lambda rgba, folder: save_all(rgba, folder, ".png"),
    ".tif": lambda rgba, folder: save_all(rgba, folder, ".tif"),
    ".webp": lambda rgba, folder: save_all(
        rgba, folder, ".webp", lossless=True, exact=True
    ),
}


def with_alpha(images, alpha):
    return np.concatenate([images, alpha[..., np.newaxis]], axis=-1)


@pytest.mark.parametrize("form", ALPHA_FORMS)
def test_transparent_pixels_are_shown_on_black(detector, images, form, tmp_path):
    alpha = np.random.default_rng(2).integers(0, 256, images.shape[:-1], np.uint8)
    X = ALPHA_FORMS[form](with_alpha(images, alpha), tmp_path)
    on_black = (images / 255) * (alpha / 255)[..., np.newaxis]
    expected = detector.score_samples(on_black)
    with pytest.warns(UserWarning, match="4 images have transparent pixels"):
        assert_allclose(detector.score_samples(X), expected, rtol=RTOL)


@pytest.mark.parametrize("form", ALPHA_FORMS)
def test_opaque_images_score_like_those_without_alpha(
    detector, images, expected, form, tmp_path
):
    opaque = with_alpha(images, np.full(images.shape[:-1], 255, np.uint8))
    X = ALPHA_FORMS[form](opaque, tmp_path)
    assert_allclose(detector.score_samples(X), expected, rtol=RTOL)


@pytest.mark.filterwarnings("ignore:.*transparent pixels:UserWarning")
def test_colours_hidden_by_alpha_do_not_change_the_score(detector, images):
    alpha = np.zeros(images.shape[:-1], np.uint8)
    alpha[:, 8:] = 255
    hidden = images.copy()
    hidden[:, :8] = 255 - hidden[:, :8]
    assert_array_equal(
        detector.score_samples(with_alpha(images, alpha)),
        detector.score_samples(with_alpha(hidden, alpha)),
    )


def test_transparency_is_said_once_with_a_count_and_a_name(images, tmp_path):
    alpha = np.full(images.shape[:-1], 255, np.uint8)
    alpha[1:3, 0, 0] = 254
    checked = check_images(save_all(with_alpha(images, alpha), tmp_path, ".png"))
    with pytest.warns(UserWarning, match=r"2 images .* example image 1 \(.*1\.png"):
        list(iter_batches(checked, 32, None, 2))
    list(iter_batches(checked.take([1, 2]), 32, None, 2))  # No further warning.


# Colour models and orientation --------------------------------------------------------


def test_cmyk_jpeg_scores_like_its_rgb_colours(detector, images, tmp_path):
    converted = [Image.fromarray(image).convert("CMYK") for image in images]
    paths = save_all(converted, tmp_path, ".jpg", quality=100, subsampling=0)
    assert mode_of(paths[0]) == "CMYK"
    assert_allclose(check_images(paths)[0], images[0] / 255, atol=0.02)
    colors = [decoded(path) for path in paths]
    assert_allclose(
        detector.score_samples(paths), detector.score_samples(colors), rtol=RTOL
    )


# EXIF 2.32, tag 0x0112: what was done to the upright image before it was stored.
STORED_AS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def save_rotated(array, path, orientation, **options):
    image = Image.fromarray(array)
    if orientation > 1:
        image = image.transpose(STORED_AS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize("lazy", [False, True], ids=["path", "PIL"])
def test_all_orientations_of_a_jpeg_score_like_the_upright_one(
    detector, images, lazy, tmp_path
):
    paths = [
        save_rotated(
            images[0],
            tmp_path / f"{orientation}.jpg",
            orientation,
            quality=100,
            subsampling=0,
        )
        for orientation in STORED_AS
    ]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Image.open(path)) for path in paths]
        scores = detector.score_samples(opened if lazy else paths)
    assert_allclose(scores, scores[0], rtol=RTOL)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".png", "RGB"),
        (".png", "L"),
        (".png", "I;16"),
        (".tif", "RGB"),
        (".tif", "L"),
        (".tif", "I;16"),
        (".webp", "RGB"),
    ],
)
@pytest.mark.parametrize("orientation", STORED_AS)
def test_orientation_is_undone_pixel_for_pixel(orientation, suffix, kind, tmp_path):
    """If opened by its path, a rotated grey TIFF is garbled by Pillow."""
    array = make_images(1, (40, 56), seed=3)[0]
    if kind != "RGB":
        array = to_gray(array)
    if kind == "I;16":
        array = array.astype(np.uint16) * 257
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save_rotated(array, tmp_path / f"x{suffix}", orientation, **options)
    assert_array_equal(check_images([path])[0], check_images([array])[0])


@pytest.fixture(scope="module")
def odd_sizes():
    rng = np.random.default_rng(4)
    shapes = [(33, 47), (64, 64), (90, 31), (64, 64), (20, 24), (128, 65), (33, 47)]
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mixed_sizes_keep_their_order_and_scores(detector, odd_sizes, batch_size):
    one_by_one = [detector.score_samples([image])[0] for image in odd_sizes]
    detector = copy.deepcopy(detector)
    detector.features_.set_params(batch_size=batch_size)
    assert_allclose(detector.score_samples(odd_sizes), one_by_one, rtol=RTOL)


def test_all_images_of_different_sizes(detector):
    rng = np.random.default_rng(5)
    images = [
        rng.integers(0, 256, (32, 32 + 2 * i, 3), dtype=np.uint8) for i in range(11)
    ]
    one_by_one = [detector.score_samples([image])[0] for image in images]
    detector = copy.deepcopy(detector)
    detector.features_.set_params(batch_size=2)
    assert_allclose(detector.score_samples(images), one_by_one, rtol=RTOL)


def test_fit_on_mixed_sizes(odd_sizes):
    features = PatchFeatureTransformer(
        "resnet18", weights="random", image_size=32, batch_size=2
    )
    detector = PatchCoreDetector(features, random_state=0).fit(odd_sizes)
    assert_allclose(
        detector.score_samples(odd_sizes), detector.training_scores_, rtol=RTOL
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch(detector, batch_size):
    images = make_images(30, (64, 64), seed=6)
    expected = detector.score_samples(images)
    detector = copy.deepcopy(detector)
    detector.features_.set_params(batch_size=batch_size)
    assert_allclose(detector.score_samples(images), expected, rtol=RTOL)


def test_a_single_image(detector, images, expected):
    assert_allclose(detector.score_samples(images[:1]), expected[:1], rtol=RTOL)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (9, 3), (64, 1)])
def test_tiny_images_are_accepted(detector, shape):
    image = np.full((*shape, 3), 200, dtype=np.uint8)
    assert np.isfinite(detector.score_samples([image])).all()


def test_images_are_not_changed(detector, images):
    X = (images / 255).astype(np.float32)
    before = X.copy()
    detector.score_samples(X)
    assert_array_equal(X, before)


class CountedImages(list):
    n_read = 0

    def __getitem__(self, index):
        self.n_read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_batches_contain_each_image_once_and_one_size(odd_sizes, batch_size):
    seen = []
    images = [image.astype(np.float32) for image in odd_sizes]
    for indices, batch, geometries in iter_batches(images, None, None, batch_size):
        assert len(indices) == len(batch) == len(geometries) <= batch_size
        for i, tensor, geometry in zip(indices, batch, geometries, strict=True):
            assert geometry.original == images[i].shape[:2]
            assert_array_equal(tensor.numpy(), images[i].transpose(2, 0, 1))
        seen.extend(indices)
    assert sorted(seen) == list(range(len(images)))


def test_few_images_are_in_memory_at_once():
    images = CountedImages(np.zeros((8, 8 + i, 3), dtype=np.float32) for i in range(40))
    n_yielded, n_ahead = 0, max(2, torch.get_num_threads())
    for indices, _, _ in iter_batches(images, None, None, 2):
        assert images.n_read - n_yielded <= 8 + n_ahead
        n_yielded += len(indices)
    assert n_yielded == 40


def test_large_images_are_not_read_far_ahead(monkeypatch):
    """The limit permits four images, each in memory twice with three floats."""
    monkeypatch.setattr("skpatchcore._images._batches._AHEAD_BYTES", 4 * 40 * 40 * 24)
    images = CountedImages([np.zeros((40, 40, 3), dtype=np.float32)] * 40)
    with contextlib.closing(iter_batches(images, None, None, 1)) as batches:
        for n_yielded, _ in enumerate(batches):
            assert images.n_read - n_yielded <= 1 + 4


def sequential_inputs(images, image_size, crop_size):
    """Return the input of the network, one image at a time, with channels first."""
    for image in images:
        geometry = plan_geometry(image.shape[:2], image_size, crop_size)
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        yield resize_and_crop(tensor, geometry)


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize(
    ("image_size", "crop_size"), [(None, None), (37, None), (48, 21), ((50, 40), 33)]
)
def test_reading_ahead_changes_no_bit(
    odd_sizes, image_size, crop_size, batch_size, n_threads, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.get_num_threads", lambda: n_threads)
    paths = save_all([*odd_sizes, to_gray(odd_sizes[0][None])[0]], tmp_path, ".png")
    images = check_images(paths)
    expected = list(sequential_inputs(images, image_size, crop_size))
    seen = []
    for indices, batch, _ in iter_batches(images, image_size, crop_size, batch_size):
        seen += indices
        for i, tensor in zip(indices, batch, strict=True):
            assert_array_equal(tensor, expected[i])
    assert sorted(seen) == list(range(len(paths)))


def test_the_batch_size_may_depend_on_the_input_size(odd_sizes):
    images = [image.astype(np.float32) for image in odd_sizes * 4]
    sizes_of_batches = {}
    for indices, batch, _ in iter_batches(
        images, None, None, lambda size: 1 + size[0] // 32
    ):
        height = batch.shape[2]
        assert len(indices) <= 1 + height // 32
        sizes_of_batches.setdefault(height, set()).add(len(indices))
    assert max(sizes_of_batches[64]) == 3
    assert max(sizes_of_batches[128]) > 1


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_first_of_several_bad_images_is_named(batch_size, tmp_path):
    paths = save_all(make_images(12, (64, 64), seed=9), tmp_path, ".png")
    for i in (5, 6, 11):
        Path(paths[i]).write_bytes(Path(paths[i]).read_bytes()[:100])
    batches = iter_batches(check_images(paths), 32, None, batch_size)
    before = [i for _ in range(5 // batch_size) for i in next(batches)[0]]
    assert before == list(range(5 - 5 % batch_size))
    with pytest.raises(UnreadableImageError, match=r"image 5 \(.*5\.png\)"):
        next(batches)
    assert not n_reading()


def n_reading():
    names = [thread.name for thread in threading.enumerate()]
    return sum(name.startswith("skpatchcore-read-ahead") for name in names)


def test_no_thread_is_left_by_an_error_of_the_network(detector):
    def fail(*_):
        assert n_reading()
        raise MemoryError

    handle = detector.features_._network.module.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError) as raised:
            detector.score_samples(make_images(40, (64, 64), seed=10))
    finally:
        handle.remove()
    # The traceback still refers to every frame.
    assert raised.tb
    assert not n_reading()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupt_leaves_no_thread(detector):
    def interrupt(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    handle = detector.features_._network.module.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            detector.predict_maps(make_images(40, (64, 64), seed=10))
    finally:
        handle.remove()
    assert raised.tb
    assert not n_reading()


def test_one_lazy_pil_image_many_times(detector, images, tmp_path):
    (path,) = save_all(images[:1], tmp_path, ".png")
    with Image.open(path) as image:
        scores = detector.score_samples([image] * 12)
    assert_allclose(scores, detector.score_samples([path] * 12), rtol=RTOL)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_for_a_gpu_are_in_pinned_memory(odd_sizes):
    images = [image.astype(np.float32) for image in odd_sizes]
    plain = iter_batches(images, 32, 24, 3)
    pinned = iter_batches(images, 32, 24, 3, pinned=True)
    for (_, expected, _), (_, batch, _) in zip(plain, pinned, strict=True):
        assert batch.is_pinned()
        assert_array_equal(batch, expected)


sizes = st.integers(1, 160)


@settings(deadline=None)
@given(shape=st.tuples(sizes, sizes), image_size=st.integers(1, 80))
def test_resized_shape_equals_that_of_torchvision(shape, image_size):
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = torch.zeros((1, *shape))
    expected = functional.resize(image, image_size).shape[1:]
    assert resized_shape(shape, image_size) == tuple(expected)


@pytest.mark.parametrize(
    ("shape", "image_size", "expected"),
    [
        ((40, 56), 64, (64, 89)),
        ((56, 40), 64, (89, 64)),
        ((64, 64), 64, (64, 64)),
        ((900, 899), 256, (256, 256)),
        ((33, 1000), 32, (32, 969)),
        ((40, 56), (10, 20), (10, 20)),
        ((40, 56), [10, 20], (10, 20)),
        ((40, 56), None, (40, 56)),
    ],
)
def test_resized_shape(shape, image_size, expected):
    assert resized_shape(shape, image_size) == expected


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    crop=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_crop_equals_that_of_torchvision(shape, crop):
    functional = pytest.importorskip("torchvision.transforms.functional")
    numbered = torch.arange(shape[0] * shape[1]).reshape(1, *shape)
    ours = resize_and_crop(numbered, plan_geometry(shape, None, crop))
    assert_array_equal(ours, functional.center_crop(numbered, crop))


@pytest.mark.parametrize(
    ("shape", "crop_size", "offset"),
    [
        ((64, 89), 48, (8, 20)),
        ((65, 65), (64, 63), (0, 1)),
        ((67, 65), 64, (2, 0)),
        ((64, 64), 64, (0, 0)),
    ],
)
def test_crop_offset(shape, crop_size, offset):
    assert plan_geometry(shape, None, crop_size).offset == offset


@pytest.mark.parametrize("size", [(24, 24), (64, 31), (101, 140), (1, 1)])
def test_resizing_equals_the_bilinear_filter_of_pillow(size):
    image = np.random.default_rng(7).random((50, 70)).astype(np.float32)
    geometry = plan_geometry(image.shape, size, None)
    resized = resize_and_crop(torch.from_numpy(image)[None], geometry)[0]
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    assert_allclose(resized, np.asarray(pillow), atol=1e-5)


@settings(deadline=None)
@given(
    mask=hnp.arrays(
        bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
    ),
    factor=st.sampled_from([1, 3, 5]),
)
def test_enlarged_masks_are_reduced_to_the_original(mask, factor):
    grown = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    (shrunk,) = resize_masks([grown], image_size=mask.shape)
    assert shrunk.dtype == bool
    assert_array_equal(shrunk, mask)


@pytest.mark.parametrize(("image_size", "crop_size"), [(32, None), (64, 48), (21, 15)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, float])
def test_masks_stay_where_their_images_are(image_size, crop_size, dtype):
    mask = np.zeros((63, 99), dtype=dtype)
    mask[21:42, 36:60] = 1
    (resized,) = resize_masks([mask], image_size, crop_size)
    geometry = plan_geometry(mask.shape, image_size, crop_size)
    image = torch.from_numpy(mask.astype(np.float32))[None]
    soft = resize_and_crop(image, geometry)[0].numpy()
    assert resized.dtype == bool
    assert resized.shape == soft.shape
    for axis in (0, 1):
        ours, theirs = (
            np.average(np.arange(values.shape[axis]), weights=values.sum(1 - axis))
            for values in (resized, soft)
        )
        assert abs(ours - theirs) < 0.5


def test_masks_of_any_size():
    shapes = [(40, 56), (56, 40), (32, 32)]
    masks = resize_masks([np.ones(shape, bool) for shape in shapes], 32, 24)
    assert [mask.shape for mask in masks] == [(24, 24)] * 3
    assert all(mask.all() for mask in masks)


# Thin images --------------------------------------------------------------------------

THIN = np.zeros((1, 20_000, 3), np.uint8)


@pytest.fixture
def no_resizing_of_thin_images(monkeypatch):
    """Fail before memory is allocated."""
    real = torch.nn.functional.interpolate

    def interpolate(tensor, size, *args, **options):
        assert size[0] * size[1] < 1e8
        return real(tensor, size, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)


THIN_FORMS = {
    "file": lambda folder: save_all([THIN], folder, ".png")[0],
    "upright": lambda folder: THIN.transpose(1, 0, 2),
    "array": lambda folder: THIN,
    "float array": lambda folder: THIN / 255,
    "grey array": lambda folder: THIN[..., 0],
    "PIL": lambda folder: Image.fromarray(THIN),
    "lazy PIL": lambda folder: encode(Image.fromarray(THIN), "PNG"),
    "tensor": lambda folder: channels_first(THIN[None])[0],
}


@pytest.mark.parametrize("form", THIN_FORMS)
@pytest.mark.parametrize("crop_size", [None, 64])
def test_a_thin_image_is_refused_before_it_is_resized(
    form, crop_size, tmp_path, no_resizing_of_thin_images
):
    images = check_images([np.zeros((64, 64, 3)), THIN_FORMS[form](tmp_path)])
    batches = iter_batches(images, 256, crop_size, 1)
    next(batches)
    with pytest.raises(UnreadableImageError) as caught:
        next(batches)
    message = str(caught.value)
    expected = ("image 1", "256", "5120000", "1310720000 pixels (15.7 GB)")
    assert all(part in message for part in expected)
    assert f"may have {64 * 256**2} pixels" in message
    assert "(height, width)" in message


def test_a_thin_mask_is_refused_like_its_image(no_resizing_of_thin_images):
    with pytest.raises(UnreadableImageError, match="mask 0 is 1 x 20000"):
        resize_masks([THIN[..., 0]])


@pytest.mark.parametrize("image_size", [None, (64, 64), 4])
def test_a_thin_image_of_moderate_size_is_read(image_size):
    ((_, batch, _),) = iter_batches(check_images([THIN]), image_size, None, 1)
    assert batch[0].numel() < 1e6


def test_the_limit_is_that_of_pillow(monkeypatch):
    shape = (1, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_999)
    with pytest.raises(UnreadableImageError, match="may have 4999 pixels"):
        plan_geometry(shape, 10, None)
    for limit in (5_000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert plan_geometry(shape, 10, None).resized == (10, 500)


@pytest.mark.parametrize("short", [128, 256, 512])
def test_images_are_not_enlarged_beyond_64_squares(short):
    longest = 64 * max(short, 256) ** 2 // short**2
    assert plan_geometry((1, longest), short, None).resized == (short, short * longest)
    with pytest.raises(UnreadableImageError, match="Enlarged images may have"):
        plan_geometry((1, longest + 1), short, None)


def test_images_that_are_not_enlarged_are_accepted(monkeypatch):
    """An array is already in memory; only enlarging it is limited."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for image_size in (None, 50, (50, 50), 20):
        assert plan_geometry((50, 50), image_size, None)


def test_images_that_resizing_enlarges_are_not_read_far_ahead(monkeypatch):
    """The limit permits four images at their enlarged size."""
    monkeypatch.setattr("skpatchcore._images._batches._AHEAD_BYTES", 4 * 40 * 400 * 24)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    images = CountedImages([np.zeros((4, 40, 3), dtype=np.float32)] * 60)
    with contextlib.closing(iter_batches(images, 40, None, 32)) as batches:
        for n_yielded, _ in enumerate(batches):
            assert images.n_read - 32 * (n_yielded + 1) <= 1 + 4


def test_reading_ahead_slows_down_as_soon_as_an_image_is_large(monkeypatch):
    """Images that were submitted while images were small wait."""
    monkeypatch.setattr("skpatchcore._images._batches._AHEAD_BYTES", 2 * 40 * 400 * 24)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    small, thin = (np.zeros((4, n, 3), dtype=np.float32) for n in (4, 40))
    images = CountedImages([small] * 30 + [thin] * 50)
    with contextlib.closing(iter_batches(images, 40, None, 20)) as batches:
        next(batches)
        time.sleep(0.1)
        # Two threads may have started before the first image turned out to be large.
        assert images.n_read <= 30 + 2


# Damaged files -----------------------------------------------------------------------


def test_selected_images_keep_their_names():
    images = check_images(
        np.zeros((5, 8, 8, 3)) + np.array([0, 0, 0, 9, 0])[:, None, None, None]
    )
    with pytest.raises(ValueError, match="image 3 contains floats"):
        images.take([4, 3])[1]


BROKEN = {
    "PNG": {},
    "JPEG": {},
    "BMP": {},
    "GIF": {},
    "PPM": {},
    "WEBP": {},
    "JPEG2000": {},
}


@pytest.mark.parametrize("file_format", BROKEN)
def test_a_damaged_file_loads_or_is_named(file_format, tmp_path):
    """Pillow raises many types of errors for damaged files; users get one."""
    rng = np.random.default_rng(8)
    file = io.BytesIO()
    Image.fromarray(make_images(1, (16, 24), seed=8)[0]).save(file, file_format)
    path = tmp_path / "damaged"
    n_refused = 0
    for length in rng.integers(1, len(file.getvalue()), 40):
        damaged = bytearray(file.getvalue()[: length if length % 2 else None])
        for position in rng.integers(0, min(len(damaged), 60), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Images([str(path)])[0]
                assert image.dtype == np.float32
            except UnreadableImageError as error:
                n_refused += 1
                assert f"image 0 ({path})" in str(error)  # noqa: PT017
    assert n_refused
