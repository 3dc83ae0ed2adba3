"""Whatever is wrong with an input, the message names the culprit."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
PATCHES = np.random.default_rng(0).normal(size=(20, 6))


def make_features(**params):
    defaults = {"backbone": "gabor", "layers": ("fine",), "image_size": 32}
    return PatchFeatureTransformer(**defaults | params)


def make_detector(**params):
    names = make_features().get_params()
    names = [name for name in params if name in names and name != "random_state"]
    return PatchCoreDetector(
        make_features(**{name: params.pop(name) for name in names}),
        **{"random_state": 0} | params,
    )


@pytest.fixture(scope="module")
def fitted():
    return make_detector().fit(IMAGES)


def score(make_X):
    """A case where images to score are wrong; `make_X` may write to a folder."""
    return lambda fitted, folder: fitted.score_samples(make_X(folder))


def fit(X=IMAGES, y=None, **params):
    """A case where a parameter or a label is wrong."""
    return lambda fitted, folder: make_detector(**params).fit(X, y)


def fit_bank(X=PATCHES, **params):
    return lambda fitted, folder: PatchMemoryBank(**params).fit(X)


def fit_sampler(X=PATCHES, **params):
    return lambda fitted, folder: CoresetSampler(**params).fit(X)


def unfitted(method, estimator=None, X=IMAGES):
    estimator = make_detector() if estimator is None else estimator
    return lambda fitted, folder: getattr(estimator, method)(X)


def paths(folder, second=None):
    """Three files, the second of them broken, if `second` says what it holds."""
    found = [folder / f"{i}.png" for i in range(3)]
    for path in found:
        Image.fromarray(IMAGES[0]).save(path)
    if second is not None:
        found[1].write_bytes(second(found[1].read_bytes()))
    return found


def with_value(value, dtype=float):
    """Images in [0, 1] but for one pixel of the one at 2."""
    X = (IMAGES / 255).astype(dtype)
    X[2, 5, 6, 0] = value
    return X


def closed_image(folder):
    image = Image.open(paths(folder)[0])
    image.close()
    return image


def with_other_sizes():
    return [*IMAGES[:2], IMAGES[2, :, :16]]


def fit_weights(write):
    """A case where a file of weights is wrong; `write` fills it."""

    def call(fitted, folder):
        path = folder / "weights.pth"
        write(path)
        make_features(backbone="resnet18", weights=path).fit(IMAGES)

    return call


# What scikit-learn raises for a parameter out of bounds is both.
Invalid = (TypeError, ValueError)
MODULE = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))

WRONG_IMAGES = {
    "a number": (lambda _: 5, TypeError, "X of type int. Expected a list"),
    "None": (lambda _: None, TypeError, "X of type NoneType. Expected a list"),
    "a dict": (lambda _: {"data": IMAGES}, TypeError, "X of type dict; .*`.data`"),
    "a set": (lambda f: set(paths(f)), TypeError, "X of type set"),
    "a single str": (
        lambda f: str(paths(f)[0]),
        TypeError,
        r"single str as X; wrap it in a list: \['.*0\.png'\]",
    ),
    "a single Path": (lambda f: paths(f)[0], TypeError, "single (Posix|Windows)Path"),
    "bytes": (lambda f: paths(f)[0].read_bytes()[:9], TypeError, "single bytes as X"),
    "a single PIL image": (
        lambda _: Image.fromarray(IMAGES[0]),
        TypeError,
        "single Image as X",
    ),
    "an empty list": (lambda _: [], ValueError, "Found 0 images in X"),
    "an empty array": (lambda _: IMAGES[:0], ValueError, "Found 0 images in X"),
    "an empty Series": (
        lambda _: pd.Series([], dtype=object),
        ValueError,
        "Found 0 images in X",
    ),
    "flattened images": (
        lambda _: IMAGES.reshape(4, -1),
        ValueError,
        r"shape \(4, 3072\).*PatchMemoryBank",
    ),
    "a single array": (
        lambda _: IMAGES[0],
        ValueError,
        r"shape \(32, 32, 3\), which looks like a single image; pass X\[np\.newaxis",
    ),
    "five dimensions": (
        lambda _: IMAGES[np.newaxis],
        ValueError,
        r"array of shape \(1, 4, 32, 32, 3\)",
    ),
    "NaN": (lambda _: with_value(np.nan), ValueError, "image 2 contains NaN or inf"),
    "infinity": (
        lambda _: with_value(-np.inf),
        ValueError,
        "image 2 contains NaN or",
    ),
    "infinity in float16": (
        lambda _: with_value(np.inf, np.float16),
        ValueError,
        "image 2 contains NaN or infinity",
    ),
    "floats up to 255": (
        lambda _: IMAGES.astype(float),
        ValueError,
        r"image 0 contains floats from 0 to 255; expected \[0, 1\]",
    ),
    "one float too large": (
        lambda _: with_value(1.5),
        ValueError,
        r"image 2 contains floats from 0 to 1\.5; expected \[0, 1\]",
    ),
    "one float too small": (
        lambda _: with_value(-1),
        ValueError,
        "image 2 contains floats from -1 to 1; expected",
    ),
    "int64": (
        lambda _: IMAGES.astype(np.int64),
        ValueError,
        "image 0 has dtype int64; expected uint8, uint16 or float",
    ),
    "uint32": (
        lambda _: IMAGES.astype("u4"),
        ValueError,
        "image 0 has dtype uint32",
    ),
    "bool": (lambda _: IMAGES > 99, ValueError, "image 0 has dtype bool; expected"),
    "complex": (
        lambda _: IMAGES.astype(complex),
        ValueError,
        "image 0 has dtype complex128; expected",
    ),
    "five channels": (
        lambda _: np.concatenate([IMAGES] * 2, axis=-1)[..., :5],
        ValueError,
        r"image 0 has 5 channels, but the network takes 3",
    ),
    "an array with channels first": (
        lambda _: list(np.moveaxis(IMAGES, -1, 1)),
        ValueError,
        r"image 0 has shape \(3, 32, 32\); expected \(h, w\) or \(h, w, c\)",
    ),
    "a tensor with channels last": (
        lambda _: torch.from_numpy(IMAGES),
        ValueError,
        r"X is a tensor of shape \(4, 32, 32, 3\).*channels first",
    ),
    "tensors with channels last": (
        lambda _: [*np.moveaxis(IMAGES[:1], -1, 1), torch.from_numpy(IMAGES[0])],
        ValueError,
        r"image 1 is a tensor of shape \(32, 32, 3\).*channels first",
    ),
    "an int tensor": (
        lambda _: torch.zeros((2, 3, 8, 8), dtype=torch.int64),
        ValueError,
        "image 0 has dtype int64",
    ),
    "images without pixels": (
        lambda _: IMAGES[:, :0],
        ValueError,
        r"image 0 has no pixels: shape \(0, 32, 3\)",
    ),
    "a PIL image without pixels": (
        lambda _: [Image.fromarray(IMAGES[0]), Image.new("RGB", (0, 5))],
        ValueError,
        "image 1 has no pixels",
    ),
    "a vector": (
        lambda _: [IMAGES[0], IMAGES[1].ravel()],
        ValueError,
        r"image 1 has shape \(3072,\)",
    ),
    "nested lists": (
        lambda _: IMAGES.tolist(),
        TypeError,
        "image 0 is of type list. Expected",
    ),
    "a number among images": (
        lambda _: [IMAGES[0], 3],
        TypeError,
        "image 1 is of type int. Expected",
    ),
    "a missing value": (
        lambda f: pd.Series([*map(str, paths(f)), None]),
        ValueError,
        "image 3 is missing: X has (NaN|None) in its place",
    ),
    "two columns of paths": (
        lambda f: pd.DataFrame({"a": paths(f), "b": paths(f)}),
        ValueError,
        r"table of 2 columns \('a', 'b'\).*X\['a'\]",
    ),
    "a missing file": (
        lambda f: [paths(f)[0], f / "gone.png"],
        FileNotFoundError,
        r"image 1 \(.*gone\.png\) does not exist",
    ),
    "a folder": (
        lambda f: [paths(f)[0], f],
        FileNotFoundError,
        r"image 1 \(.*\) is a folder, not an image",
    ),
    "a truncated file": (
        lambda f: paths(f, second=lambda data: data[: len(data) // 2]),
        (OSError, ValueError),
        r"Could not read image 1 \(.*1\.png\): .*truncated",
    ),
    "a text file": (
        lambda f: paths(f, second=lambda _: b"no image"),
        (OSError, ValueError),
        r"Could not read image 1 \(.*1\.png\): cannot identify",
    ),
    "an empty file": (
        lambda f: paths(f, second=lambda _: b""),
        (OSError, ValueError),
        r"Could not read image 1 \(.*1\.png\): the file is empty",
    ),
    "a closed PIL image": (
        lambda f: [IMAGES[0], closed_image(f)],
        ValueError,
        "Could not read image 1: ",
    ),
    "more than 16 bits": (
        lambda _: [Image.fromarray(IMAGES[0, ..., 0].astype(np.int32) * 1000)],
        ValueError,
        "Could not read image 0: it contains integers from .* to .*; expected 8 or 16",
    ),
}

WRONG_PARAMETERS = {
    # of the features
    "unknown backbone": (
        fit(backbone="resnet19"),
        ValueError,
        "backbone='resnet19' is not a timm model. Did you mean .*resnet18",
    ),
    "backbone of another type": (fit(backbone=18), Invalid, "'backbone' parameter"),
    "unknown layer": (
        fit(layers=("fine", "coarser")),
        ValueError,
        r"no layer 'coarser'\. Did you mean 'coarse'",
    ),
    "no layer": (fit(layers=()), ValueError, r"layers must be a non-empty.*got \(\)"),
    "layers as a str": (fit(layers="fine"), Invalid, "'layers' parameter.*'fine'"),
    "layers that are numbers": (
        fit(layers=(2, 3)),
        ValueError,
        "contains the number 2",
    ),
    "missing weights": (
        fit(backbone="resnet18", weights="gone.pth"),
        FileNotFoundError,
        "weights='gone.pth' is not a file",
    ),
    "unreadable weights": (
        fit_weights(lambda path: path.write_text("no weights")),
        ValueError,
        r"Could not read weights='.*weights\.pth'",
    ),
    "weights of another network": (
        fit_weights(lambda path: torch.save({"query.bias": torch.ones(3)}, path)),
        ValueError,
        r"weights='.*\.pth' contains no parameter .* query\.bias.*another network",
    ),
    "weights of another type": (fit(weights=3), Invalid, "'weights' parameter.*3"),
    "weights with a module": (
        fit(backbone=MODULE, layers=("0",), weights="random"),
        ValueError,
        "weights='random' can only be used with a backbone given by name",
    ),
    "even patch_size": (fit(patch_size=2), ValueError, "patch_size must be odd, got 2"),
    "patch_size 0": (fit(patch_size=0), Invalid, "'patch_size' parameter.*Got 0"),
    "patch_stride 0": (fit(patch_stride=0), Invalid, "'patch_stride' parameter"),
    "image_size 0": (fit(image_size=0), Invalid, "'image_size' parameter.*Got 0"),
    "image_size of three": (
        fit(image_size=(1, 2, 3)),
        ValueError,
        r"image_size must be .*got \(1, 2, 3\)",
    ),
    "image_size of floats": (
        fit(image_size=(32.0, 32)),
        ValueError,
        r"image_size must be .*got \(32\.0, 32\)",
    ),
    "image_size as a str": (fit(image_size="big"), Invalid, "'image_size' parameter"),
    "crop_size 0": (fit(crop_size=(8, 0)), ValueError, r"crop_size must .*\(8, 0\)"),
    "crop_size too large": (
        fit(crop_size=40),
        ValueError,
        r"crop_size=\(40, 40\) is larger than image 0, which is 32 x 32 after",
    ),
    "crop_size too large for one": (
        fit([IMAGES[0], IMAGES[1, :16]], image_size=None, crop_size=20),
        ValueError,
        r"crop_size=\(20, 20\) is larger than image 1, which is 16 x 32",
    ),
    "too many layer_weights": (
        fit(layer_weights=(1, 0.5)),
        ValueError,
        r"layer_weights must hold .* each of the 1 layers, got \(1, 0\.5\)",
    ),
    "layer_weights 0": (
        fit(layer_weights=[0]),
        ValueError,
        r"layer_weights .*got \[0\]",
    ),
    "negative layer_weights": (
        fit(layer_weights=[-1]),
        ValueError,
        r"layer_weights must hold a positive number.*got \[-1\]",
    ),
    "layer_weights as a word": (
        fit(layer_weights="equal"),
        Invalid,
        "'layer_weights' parameter.*'equal'",
    ),
    "descriptor 0": (fit(descriptor=0), Invalid, "'descriptor' parameter.*Got 0"),
    "projection 0": (fit(projection=0), Invalid, "'projection' parameter.*Got 0"),
    "projection as a str": (fit(projection="pca"), Invalid, "'projection' parameter"),
    "projection to too many": (
        fit(projection=PCA(5000)),
        ValueError,
        "n_components=5000 must be between",
    ),
    "batch_size 0": (fit(batch_size=0), Invalid, "'batch_size' parameter.*Got 0"),
    "unknown precision": (fit(precision="int8"), Invalid, "'precision' parameter"),
    "unknown output": (fit(output="grid"), Invalid, "'output' parameter.*'grid'"),
    "unknown device": (
        fit(device="nonsense"),
        ValueError,
        "device='nonsense' is not a torch device",
    ),
    "unequal sizes as one map": (
        lambda _, folder: make_features(image_size=None).fit_transform(
            with_other_sizes()
        ),
        ValueError,
        r"patch grids of different shapes, \[\[4, 2\], \[4, 4\]\]\. Set image_size",
    ),
    # of the sampler
    "fraction 0.0": (fit_sampler(fraction=0.0), Invalid, "'fraction' parameter"),
    "fraction 0": (fit_sampler(fraction=0), Invalid, "'fraction' parameter.*Got 0"),
    "fraction 1.5": (fit_sampler(fraction=1.5), Invalid, "'fraction' parameter"),
    "negative fraction": (fit_sampler(fraction=-0.1), Invalid, "'fraction' parameter"),
    "fraction as a str": (
        fit_sampler(fraction="all"),
        Invalid,
        "'fraction' parameter",
    ),
    "fraction beyond the rows": (
        fit_sampler(fraction=21),
        ValueError,
        "fraction=21 rows were requested, but X has only n_samples = 20",
    ),
    "fraction beyond the patches": (
        fit(sampler=CoresetSampler(99999)),
        ValueError,
        "fraction=99999 rows were requested, but X has only",
    ),
    "unknown method": (fit_sampler(method="best"), Invalid, "'method' parameter"),
    "no starts": (fit_sampler(n_starts=0), Invalid, "'n_starts' parameter.*Got 0"),
    "projection_dim 0": (fit_sampler(projection_dim=0), Invalid, "'projection_dim'"),
    "NaN in a matrix": (fit_sampler(PATCHES * np.nan), ValueError, "X contains NaN"),
    # of the bank
    "sampler of another type": (fit(sampler=0.1), Invalid, "'sampler' parameter"),
    "features of another type": (
        lambda *_: PatchCoreDetector("gabor").fit(IMAGES),
        Invalid,
        "'features' param",
    ),
    "n_neighbors 0": (fit(n_neighbors=0), Invalid, "'n_neighbors' parameter.*Got 0"),
    "n_neighbors 1.5": (fit(n_neighbors=1.5), Invalid, "'n_neighbors' parameter"),
    "n_neighbors beyond the bank": (
        fit_bank(n_neighbors=3),
        ValueError,
        "n_neighbors=3 needs more neighbours than the bank has rows, 2,",
    ),
    "reweight 1": (fit(reweight=1), Invalid, "'reweight' parameter.*Got 1"),
    "reweight beyond the bank": (
        fit_bank(reweight=9),
        ValueError,
        "reweight=9 needs more neighbours than the bank has rows, 2,",
    ),
    "reweight with a mean": (
        fit_bank(reweight=2, reduction=0.5),
        ValueError,
        r"reweight=2 .* got reduction=0\.5 and",
    ),
    "reweight with neighbors": (
        fit_bank(reweight=2, n_neighbors=2),
        ValueError,
        "reweight=2 .* n_neighbors=2",
    ),
    "reduction 0": (fit(reduction=0), Invalid, "'reduction' parameter.*Got 0"),
    "reduction 2": (fit(reduction=2), Invalid, "'reduction' parameter.*Got 2"),
    "unknown reduction": (fit(reduction="mean"), Invalid, "'reduction' parameter"),
    "unknown metric": (fit(metric="manhattan"), Invalid, "'metric' parameter.*manh"),
    "unknown algorithm": (fit(algorithm="tree"), Invalid, "'algorithm' parameter"),
    "contamination 0.7": (fit(contamination=0.7), Invalid, r"'contamination'.*0\.7"),
    "contamination 0": (fit(contamination=0.0), Invalid, "'contamination' parameter"),
    "negative smoothing": (fit(smoothing=-1), Invalid, "'smoothing' parameter.*-1"),
    "unknown random_state": (fit(random_state="x"), Invalid, "'random_state' param"),
    "unknown device of the bank": (
        fit_bank(device="nonsense"),
        ValueError,
        "device='nonsense' is not a torch device",
    ),
    "a vector of patches": (fit_bank(PATCHES[0]), ValueError, "Expected 2D array"),
    "infinity in patches": (
        fit_bank(np.full((2, 3, 4), np.inf)),
        ValueError,
        "X contains infinity",
    ),
    "other features than in fit": (
        lambda fitted, folder: PatchMemoryBank().fit(PATCHES).predict(PATCHES[:, :5]),
        ValueError,
        "X has 5 features, but PatchMemoryBank is expecting 6",
    ),
    "maps of other features than in fit": (
        lambda fitted, folder: (
            PatchMemoryBank()
            .fit(make_features().fit_transform(IMAGES))
            .predict(make_features(layers=("fine", "coarse")).fit_transform(IMAGES))
        ),
        ValueError,
        "X has 84 features, but PatchMemoryBank is expecting 42",
    ),
}

WRONG_LABELS = {
    "too few": (fit(y=[1, 1, -1]), ValueError, "y has 3 labels, but X has 4 samples"),
    "all anomalous": (
        fit(y=[-1] * 4),
        ValueError,
        r"All 4 samples are labelled -1.*Add normal samples, labelled \+1",
    ),
    "words": (
        fit(y=["good", "good", "good", "bad"]),
        ValueError,
        r"y must contain the labels \+1 .* got 'bad', 'good'\. If 'good' stands for",
    ),
    "NaN in y": (fit(y=[1, 1, 1, np.nan]), ValueError, "y contains NaN"),
    "two columns": (
        fit(y=np.ones((4, 2))),
        ValueError,
        "y should be a 1d array",
    ),
    "a single label": (fit(y=1), Invalid, "y|Singleton"),
    "of the bank": (
        lambda fitted, folder: PatchMemoryBank().fit(PATCHES, [1, -1]),
        ValueError,
        "y has 2 labels, but X has 20 samples",
    ),
}

WRONG_CALLS = {
    "size of maps": (
        lambda fitted, folder: fitted.predict_maps(IMAGES, size="full"),
        Invalid,
        "'size' parameter of .*predict_maps.*'full'",
    ),
    "border of maps": (
        lambda fitted, folder: fitted.predict_maps(IMAGES, border=0),
        Invalid,
        "'border' parameter of .*predict_maps",
    ),
    "size of masks": (
        lambda fitted, folder: fitted.predict_masks(IMAGES, size="full"),
        Invalid,
        "'size' parameter of .*'full'",
    ),
    "threshold of masks": (
        lambda fitted, folder: fitted.predict_masks(IMAGES, threshold="high"),
        Invalid,
        "'threshold' parameter of .*predict_masks.*'high'",
    ),
    "more neighbors than the bank has": (
        lambda fitted, folder: fitted.nearest_patches(IMAGES, 99999),
        ValueError,
        r"n_neighbors=99999 .* bank",
    ),
    "no neighbor": (
        lambda fitted, folder: fitted.nearest_patches(IMAGES, 0),
        Invalid,
        "n_neighbors.*0",
    ),
    "half a neighbor": (
        lambda fitted, folder: fitted.nearest_patches(IMAGES, 1.5),
        Invalid,
        "n_neighbors.*1.5",
    ),
    "no neighbor in the bank": (
        lambda fitted, folder: PatchMemoryBank().fit(PATCHES).kneighbors(PATCHES, 0),
        Invalid,
        "n_neighbors.*0",
    ),
    **{
        f"PatchCoreDetector.{method} before fit": (
            unfitted(method),
            NotFittedError,
            "This PatchCoreDetector instance is not fitted yet",
        )
        for method in (
            "score_samples",
            "decision_function",
            "predict",
            "predict_maps",
            "predict_masks",
            "nearest_patches",
        )
    },
    **{
        f"PatchMemoryBank.{method} before fit": (
            unfitted(method, PatchMemoryBank(), PATCHES),
            NotFittedError,
            "This PatchMemoryBank instance is not fitted yet",
        )
        for method in (
            "score_samples",
            "decision_function",
            "predict",
            "score_patches",
            "kneighbors",
        )
    },
    "transform before fit": (
        unfitted("transform", make_features()),
        NotFittedError,
        "This PatchFeatureTransformer instance is not fitted yet",
    ),
}


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        pytest.param(call, exception, message, id=name)
        for name, (call, exception, message) in {
            **{
                name: (score(make_X), *expected)
                for name, (make_X, *expected) in WRONG_IMAGES.items()
            },
            **WRONG_PARAMETERS,
            **WRONG_LABELS,
            **WRONG_CALLS,
        }.items()
    ],
)
def test_wrong_input_is_refused_by_name(call, exception, message, fitted, tmp_path):
    with pytest.raises(exception, match=message):
        call(fitted, tmp_path)


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_fit_refuses_what_scoring_refuses(name, tmp_path):
    make_X, exceptions, message = WRONG_IMAGES[name]
    with pytest.raises(exceptions, match=message):
        make_detector().fit(make_X(tmp_path))


def test_a_broken_image_keeps_its_number_when_anomalies_are_left_out(tmp_path):
    X = paths(tmp_path, second=lambda _: b"no image")
    with pytest.raises(OSError, match=r"Could not read image 1 \(.*1\.png\)"):
        make_detector().fit(X, [-1, 1, 1])


def test_a_broken_image_left_out_does_no_harm(tmp_path):
    X = paths(tmp_path, second=lambda _: b"no image")
    detector = make_detector().fit(X, [1, -1, 1])
    assert detector.training_indices_.tolist() == [0, 2]


def test_a_failed_fit_leaves_the_detector_as_it_was(tmp_path):
    detector = make_detector().fit(IMAGES)
    expected = detector.score_samples(IMAGES)
    broken = paths(tmp_path, second=lambda _: b"no image")
    with pytest.raises(OSError, match="Could not read"):
        detector.fit(broken)
    np.testing.assert_array_equal(detector.score_samples(IMAGES), expected)
