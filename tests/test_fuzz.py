"""Damaged model files and images: a documented error, or the right result.

Every test makes ``SKPATCHCORE_FUZZ_CASES`` cases, by default a few; see
docs/benchmarks.md for what came of long runs.
"""

import copy
import io
import json
import os
import resource
import signal
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator

from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._images._errors import UnreadableImageError
from skpatchcore._images._input import Images
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence import ModelFileError, load, save
from skpatchcore.persistence._archive import _describe

N_CASES = int(os.environ.get("SKPATCHCORE_FUZZ_CASES", "100"))
# Of the processor, not of a clock that goes on while others work.
SECONDS = 20
EXTRA_BYTES = 3 * 2**30

fuzz = settings(
    max_examples=N_CASES,
    deadline=None,
    database=None,
    derandomize=N_CASES <= 100,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def make_images(n, seed=0):
    return random_images(n, 16, 16, seed)


NEW = make_images(1, seed=1)


class Hang(BaseException):
    """No ``except Exception`` catches it."""


@pytest.fixture(autouse=True, scope="module")
def guards():
    """End what takes too long or too much memory; never reach the network."""

    def ring(*args):
        raise Hang

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, ring)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, before[1]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    torch.set_num_threads(n_threads)
    signal.signal(signal.SIGPROF, handler)


# Damage -----------------------------------------------------------------------------

INTERESTING = st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "delete", "repeat", "insert", "cut", "number"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        INTERESTING | st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, edits) -> bytes:
    data = bytearray(data)
    for kind, where, length, value in edits:
        place = int(where * len(data))
        # Half of the edits go to the first and last bytes: headers and directories.
        if value % 4 == 0:
            place = int(where * min(len(data), 128))
        elif value % 4 == 1:
            place = max(0, len(data) - 1 - int(where * 256))
        if kind == "set" and data:
            data[place] = value
        elif kind == "flip" and data:
            data[place] ^= 1 << value % 8
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = bytes([value]) * length
        elif kind == "cut":
            del data[place:]
        elif kind == "number":
            data[place : place + 4] = bytes([value] * 4)
    return bytes(data)


# Model files ------------------------------------------------------------------------


def make_detector(**params):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=16, **params)
    return PatchCoreDetector(features, random_state=0).fit(make_images(8))


def make_models():
    X = np.random.default_rng(0).normal(size=(30, 4))
    detector = make_detector()
    conformal = ConformalDetector(detector, alpha=0.2, cv=3, random_state=0)
    images = [*make_images(3), *NEW]
    return {
        "plain": detector,
        "network": make_detector(),
        "projection": make_detector(projection=PCA(4)),
        "conformal": conformal.fit(make_images(8)),
        "tuned": TunedThresholdDetector(FrozenEstimator(detector)).fit(
            images, [1, 1, 1, -1]
        ),
        "bank": PatchMemoryBank(random_state=0).fit(X),
    }


class Model:
    """A saved detector: its bytes, its members, and what it answers."""

    def __init__(self, name, detector, folder):
        self.path = folder / f"{name}.skpc"
        save(detector, self.path, include_backbone=name == "network")
        self.data = self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            self.members = {n: archive.read(n) for n in archive.namelist()}
        self.manifest = json.loads(self.members["model.json"])
        self.new = NEW if name != "bank" else np.ones((1, 4))
        self.score = detector.score_samples(self.new)
        self.decision = detector.decision_function(self.new)

    def sealed(self, **changed) -> bytes:
        """Return a file with other members whose checksums are right."""
        members = {**self.members, **changed}
        manifest = json.loads(members.pop("model.json"))
        if isinstance(manifest, dict) and isinstance(manifest.get("members"), dict):
            manifest["members"] |= {n: _describe(data) for n, data in members.items()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in {"model.json": json.dumps(manifest), **members}.items():
                archive.writestr(name, data)
        return buffer.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [Model(*item, folder) for item in make_models().items()]


def load_or_none(data: bytes, path):
    """Return the detector; None for errors that are documented."""
    path = path.with_name("damaged.skpc")
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return load(path)
    except (ModelFileError, FileNotFoundError) as error:
        event(f"refused: {type(error.__cause__).__name__}")
        return None
    except OSError as error:
        # Of weights that would have to be downloaded.
        assert "Could not load pretrained weights" in str(error)  # noqa: PT017
        event("refused: weights")
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@fuzz
@given(number=st.integers(0, 5), edits=EDITS)
def test_damaged_model_files_are_rejected_or_give_the_same_scores(
    number, edits, models
):
    model = models[number]
    loaded = load_or_none(damage(model.data, edits), model.path)
    if loaded is not None:
        event("loaded")
        np.testing.assert_array_equal(loaded.score_samples(model.new), model.score)
        np.testing.assert_array_equal(
            loaded.decision_function(model.new), model.decision
        )


def assert_usable(detector, model):
    """A forged model may be another one, but it works, or says what it misses."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        scores = detector.score_samples(model.new)
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        event(f"loaded, no score: {type(error).__name__} {str(error)[:70]}")
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    event("loaded")
    assert scores.shape == (1,)


@fuzz
@given(number=st.integers(0, 5), edits=EDITS, of_network=st.booleans())
def test_damaged_arrays_under_right_checksums(number, edits, of_network, models):
    model = models[number]
    name = "backbone.safetensors" if of_network else "arrays.safetensors"
    name = name if name in model.members else "arrays.safetensors"
    data = model.sealed(**{name: damage(model.members[name], edits)})
    loaded = load_or_none(data, model.path)
    if loaded is not None:
        assert_usable(loaded, model)


NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 2**31, -(2**63), 2**64, 10**30, 0.5, 1e308])
TEXTS = st.sampled_from(
    [
        *("", "x", "random", "fine", "cuda", "cpu", "gabor", "../x", "/etc/passwd"),
        *("training_scores_", "memory_bank_.bank_", "PCA", "FrozenEstimator", "KFold"),
    ]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
KINDS = ["tuple", "array", "transposed", "csr", "module", "estimator", "names"]
VALUES = LEAVES | st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KINDS, "splitter", "class"]), inner)
    ),
    max_leaves=5,
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["replace", "remove", "add", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        VALUES,
    ),
    min_size=1,
    max_size=3,
)


def places(tree):
    """Return (container, key) of everything in a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def change(manifest, changes):
    manifest = copy.deepcopy(manifest)
    for kind, where, other, value in changes:
        # The last places are those of the detector; the first, of checksums.
        found = places(manifest)
        container, key = found[int(where * len(found))]
        if kind == "replace":
            container[key] = value
        elif kind == "remove":
            container.pop(key)
        elif kind == "add" and isinstance(container, dict):
            container["more" if other < 0.5 else str(value)] = value
        elif kind == "swap":
            source, source_key = found[int(other * len(found))]
            container[key] = copy.deepcopy(source[source_key])
        if not places(manifest):
            break
    return manifest


@fuzz
@given(number=st.integers(0, 5), changes=CHANGES)
def test_forged_descriptions_of_models(number, changes, models):
    model = models[number]
    text = json.dumps(change(model.manifest, changes))
    data = model.sealed(**{"model.json": text.encode()})
    loaded = load_or_none(data, model.path)
    if loaded is not None:
        assert_usable(loaded, model)


# Images ---------------------------------------------------------------------------


def make_files() -> list[tuple[str, bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    color = Image.fromarray(pixels)
    gray, deep = color.convert("L"), Image.fromarray(pixels[..., 0].astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees.
    kinds = [
        *[(color, name, {}) for name in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")],
        *[(color, name, {}) for name in ("WEBP", "JPEG2000", "TGA", "ICO", "PCX")],
        (color, "JPEG", {"exif": exif, "progressive": True}),
        (color, "TIFF", {"compression": "tiff_lzw"}),
        (color, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (color, "WEBP", {"lossless": True}),
        (color.convert("P"), "PNG", {"transparency": 3}),
        (color.convert("RGBA"), "PNG", {"exif": exif}),
        (color.convert("CMYK"), "JPEG", {}),
        (gray, "PNG", {}),
        (gray.convert("1"), "TIFF", {"compression": "group4"}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
    ]
    files = []
    for image, name, options in kinds:
        file = io.BytesIO()
        image.save(file, name, **options)
        files.append((name, file.getvalue()))
    return files


FILES = make_files()


@fuzz
@given(number=st.integers(0, len(FILES) - 1), edits=EDITS)
def test_damaged_images_are_read_or_named(number, edits, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damage(FILES[number][1], edits))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Images([str(path)])[0]
    except UnreadableImageError as error:
        event(f"refused: {type(error.__cause__).__name__}")
        assert f"image 0 ({path})" in str(error)  # noqa: PT017
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert image.dtype == np.float32
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.min() >= 0
    assert image.max() <= 1


ARRAYS = st.tuples(
    st.lists(st.integers(0, 9), min_size=0, max_size=4),
    st.sampled_from(
        ["u1", "u2", "u4", "i2", "f2", "f4", "f8", ">f4", ">u2", "?", "c8"]
    ),
    st.sampled_from([0.0, 1.0, -1.0, 255.0, np.nan, np.inf]),
    st.sampled_from(["C", "F", "reversed", "strided", "read-only"]),
)


def make_array(shape, dtype, value, layout):
    with np.errstate(invalid="ignore"):
        array = np.full(shape, value).astype(dtype)
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return array[::-1] if array.ndim else array
    if layout == "strided":
        return np.repeat(array, 2, axis=0)[::2] if array.ndim else array
    array.flags.writeable = layout != "read-only"
    return array


@fuzz
@given(array=ARRAYS, as_list=st.booleans())
def test_arrays_of_any_shape_dtype_and_layout_are_scored_or_refused(
    array, as_list, fitted
):
    X = make_array(*array)
    expected = [X] if as_list else X
    before = X.copy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".* transparent pixels", UserWarning)
            scores = fitted.score_samples(expected)
    except (ValueError, TypeError) as error:
        assert str(error)  # noqa: PT017
        return
    assert scores.shape == (len(expected),)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(X, before)


@pytest.fixture(scope="module")
def fitted():
    return make_detector()
