"""Whether the parts of a detector that was read from a file fit together."""

from collections.abc import Iterator
from operator import attrgetter

import numpy as np
from sklearn.frozen import FrozenEstimator

from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import (
    PatchCoreDetector,
    PatchCoreEnsemble,
    has_maps,
    unwrap,
)
from skpatchcore._features import check_sizes
from skpatchcore._images import find_transforms
from skpatchcore._neighbors import check_window
from skpatchcore._utils import resolve_device
from skpatchcore.calibration import (
    ConformalDetector,
    TunedThresholdDetector,
    n_supported,
    scoring_part,
)
from skpatchcore.persistence._projections import check_projection
from skpatchcore.persistence._schema import DETECTORS, FITTED

# Dtypes and shapes of arrays, where a letter is the same number in all arrays of a
# detector: m rows of the bank, d features, n images. What each number may be on its
# own was checked when it was read.
_BANK_ARRAYS = {
    "bank_": ("float32", "md"),
    "bank_indices_": ("int64", "m"),
    "sampler_.sample_indices_": ("int64", "m"),
    "sampler_.radii_": ("float64", "m"),
    "training_scores_": ("float64", "n"),
    "_training_sketches": ("float64", "n6"),
}
_DETECTOR_ARRAYS = {
    **{f"memory_bank_.{name}": expected for name, expected in _BANK_ARRAYS.items()},
    "training_scores_": ("float64", "n"),
    "training_indices_": ("int64", "n"),
    "_training_shapes": ("int64", "p2"),
    "_training_aspects": ("float64", "p"),
}
_CALIBRATION_ARRAYS = {
    "calibration_scores_": ("float64", "n"),
    "calibration_indices_": ("int64", "n"),
    "calibration_folds_": ("int64", "n"),
    "_training_rows": ("int64", "r"),
    "_training_folds": ("int64", "r"),
}
_ENSEMBLE_ARRAYS = {
    "score_weights_": ("float64", "m"),
    "map_weights_": ("float64", "m"),
    "held_out_scores_": ("float64", "n"),
    "training_scores_": ("float64", "n"),
    "training_indices_": ("int64", "n"),
}
# Pixels that an image may be resized to: 3 GB as the network's input.
_LARGEST_AREA = 2**28
# How far the length of a normalised row may be from 1.
_LENGTH_TOLERANCE = 1e-3


def image_detectors(detector) -> Iterator[PatchCoreDetector]:
    """Yield the fitted detectors on images that a detector consists of, in order."""
    if isinstance(detector, PatchCoreDetector):
        yield detector
    for part in _parts(detector):
        yield from image_detectors(part)


def check_detector(detector) -> None:
    """Raise a ValueError unless all parts of a detector from a file fit together."""
    if not isinstance(detector, DETECTORS):
        raise ValueError(f"it holds a {type(detector).__name__} instead of a detector.")
    _check_part(detector)


def _parts(detector) -> list:
    inner, _ = unwrap(detector)
    if inner is not detector:
        return [inner]
    if hasattr(detector, "estimator_"):
        return [detector.estimator_]
    return getattr(detector, "estimators_", [])


def _check_part(detector) -> None:
    checks = {
        PatchCoreDetector: _check_image_detector,
        PatchCoreEnsemble: _check_ensemble,
        PatchMemoryBank: _check_lone_bank,
        TunedThresholdDetector: _check_tuned,
        ConformalDetector: _check_conformal,
        FrozenEstimator: lambda frozen: None,
    }
    if type(detector) not in checks:
        raise ValueError(f"{type(detector).__name__} is not a detector of images.")
    _check_fitted(detector)
    checks[type(detector)](detector)
    for part in _parts(detector):
        _check_part(part)


def _check_fitted(part, where: str = "") -> None:
    missing = FITTED[type(part)].keys() - vars(part).keys()
    if missing:
        name = type(part).__name__ + (f" {where!r}" if where else "")
        raise ValueError(f"{name} is not fitted: {sorted(missing)} are missing.")


def _check_image_detector(detector) -> None:
    _check_fitted(detector.features_, "features_")
    _check_fitted(detector.memory_bank_, "memory_bank_")
    _check_fitted(detector.memory_bank_.sampler_, "sampler_")
    sizes = _check_arrays(detector, _DETECTOR_ARRAYS)
    _check_bank(detector.memory_bank_, sizes)
    _check_provenance(detector, sizes)
    _check_features(detector.features_, sizes["d"])


def _check_provenance(detector, sizes: dict[str, int]) -> None:
    """Check that every bank row leads to a patch of a training image."""
    places, shapes = detector.memory_bank_.bank_indices_, detector._training_shapes
    if shapes.min() < 1 or places.max() >= shapes.prod(1).sum():
        raise ValueError("bank_indices_ point to no patch of the training images.")
    if not (detector._training_aspects > 0).all():
        raise ValueError("_training_aspects must be positive.")
    n_made = 1 + len(find_transforms(detector._augmentation))
    if sizes["p"] != sizes["n"] * n_made:
        raise ValueError(f"{sizes['p']} grids are not {n_made} for each image.")
    foreground = detector.foreground_
    if foreground is not None and foreground[0].shape != (sizes["d"],):
        raise ValueError("foreground_ must be a direction (d,) and a threshold.")


def _check_ensemble(ensemble) -> None:
    members, names = ensemble.estimators_, ensemble._member_names
    if len(set(names)) != len(members):
        raise ValueError("_member_names must be a name for each of estimators_.")
    for given in (names, [name for name, _ in ensemble.estimators]):
        ensemble._validate_names(given)
    sizes = _check_arrays(ensemble, _ENSEMBLE_ARRAYS)
    if sizes["m"] != len(members):
        raise ValueError(f"{len(members)} members have {sizes['m']} weights.")
    for name in ("score_weights_", "map_weights_"):
        if not (getattr(ensemble, name) > 0).all():
            raise ValueError(f"{name} must be positive, got {getattr(ensemble, name)}.")


def _check_lone_bank(bank) -> None:
    _check_fitted(bank.sampler_, "sampler_")
    # A bank of other features than ours has their precision.
    expected = {**_BANK_ARRAYS, "bank_": ("float32 or float64", "md")}
    _check_bank(bank, _check_arrays(bank, expected))
    _check_names(bank)


def _check_tuned(detector) -> None:
    _check_same_class(detector, [detector.estimator_])
    _check_training_rows(detector.estimator_, detector._learned_rows())
    _check_names(detector)


def _check_same_class(detector, estimators: list) -> None:
    """Check that what scores is of the class of what was given to be fitted."""
    given = detector.estimator
    if type(detector) is ConformalDetector:
        given = scoring_part(given)
    for one in estimators:
        if type(one) is not type(given):
            raise ValueError(
                f"{type(detector).__name__} holds a fitted {type(one).__name__} for "
                f"its estimator, a {type(given).__name__}."
            )


def _check_conformal(detector) -> None:
    _check_same_class(detector, detector.estimators_)
    expected = dict(_CALIBRATION_ARRAYS)
    if has_maps(detector.estimators_[0]):
        expected["_calibration_peaks"] = ("float64", "n")
    if hasattr(detector, "calibration_groups_"):
        expected["calibration_groups_"] = ("int64", "n")
    n = _n_units(_check_arrays(detector, expected)["n"], detector)
    folds = detector.calibration_folds_
    if n_supported(detector.alpha, n) == 0:
        raise ValueError(f"alpha={detector.alpha} has too few calibration_scores_.")
    if folds.min() < 0 or folds.max() >= len(detector.estimators_):
        raise ValueError("calibration_folds_ point to none of estimators_.")
    offset = detector._calibration.offset(detector.alpha)
    if (detector.offset_, detector.min_alpha_) != (offset, 1 / (n + 1)):
        raise ValueError("offset_ or min_alpha_ is not that of calibration_scores_.")
    if "_calibration_peaks" in expected:
        threshold = -detector._map_calibration.offset(detector.alpha)
        if getattr(detector, "map_threshold_", None) != threshold:
            raise ValueError("map_threshold_ is not that of the calibration.")
    _check_training_folds(detector)
    _check_names(detector)


def _n_units(n: int, detector) -> int:
    """Return how many calibration samples there are, or groups of them."""
    groups = getattr(detector, "calibration_groups_", np.arange(n))
    # Bounded before anything is counted: a large number would take as much memory.
    if not ((groups >= 0) & (groups < n)).all() or not np.bincount(groups).all():
        raise ValueError("calibration_groups_ must be numbers from 0, without gaps.")
    return int(groups.max(initial=-1)) + 1


def _check_training_folds(detector) -> None:
    """Check that matches lead to rows of what the detector was fitted on."""
    folds, n_folds = detector._training_folds, len(detector.estimators_)
    if np.any(np.diff(folds) < 0) or folds.max(initial=-1) >= n_folds:
        raise ValueError("_training_folds must ascend, and point to estimators_.")
    for estimator, rows in zip(
        detector.estimators_, detector._fold_rows(), strict=True
    ):
        _check_training_rows(estimator, rows)


def _check_training_rows(estimator, rows) -> None:
    learned = getattr(estimator, "training_indices_", None)
    if rows is None or learned is None:
        return
    if learned.max(initial=-1) >= len(rows):
        raise ValueError("training_indices_ point to none of _training_rows.")


def _at(detector, where: str):
    """Return what is at a dotted path, or None."""
    try:
        return attrgetter(where)(detector)
    except AttributeError:
        return None


def _check_arrays(detector, expected: dict[str, tuple[str, str]]) -> dict[str, int]:
    """Check dtypes and shapes; return the size of each letter."""
    sizes = {"2": 2, "6": 6}
    for where, (dtype, letters) in expected.items():
        array = _at(detector, where)
        wanted = f"{where} must be {dtype} of shape ({', '.join(letters)})"
        if str(getattr(array, "dtype", None)) not in dtype.split(" or "):
            raise ValueError(f"{wanted}, got {getattr(array, 'dtype', array)!r:.80}.")
        for letter, size in zip(letters, array.shape, strict=False):
            sizes.setdefault(letter, size)
        if array.shape != tuple(sizes.get(letter, 0) for letter in letters):
            raise ValueError(f"{wanted}, got {array.shape} where {sizes}.")
    return sizes


def _check_names(detector) -> None:
    names = getattr(detector, "feature_names_in_", None)
    if names is None:
        return
    if len(names) != getattr(detector, "n_features_in_", None):
        raise ValueError("feature_names_in_ are not one name for each feature.")


def _check_bank(bank, sizes: dict[str, int]) -> None:
    if sizes["m"] == 0:
        raise ValueError("bank_ has no rows.")
    for part in (bank, bank.sampler_):
        if part.n_features_in_ != sizes["d"]:
            raise ValueError(
                f"bank_ has {sizes['d']} columns, n_features_in_ is "
                f"{part.n_features_in_}."
            )
    _check_lengths(bank)
    _check_outliers(bank)
    _check_positions(bank, sizes["m"])
    bank._check_bank_size(sizes["m"], sizes["n"])
    resolve_device(bank.device)


def _check_lengths(bank) -> None:
    """Check that rows compared by the cosine have unit length, or are zero."""
    if bank.metric != "cosine":
        return
    squared = np.einsum("ij,ij->i", bank.bank_, bank.bank_, dtype=np.float64)
    if not ((squared == 0) | (abs(squared - 1) <= _LENGTH_TOLERANCE)).all():
        raise ValueError("bank_ must have rows of unit length for metric='cosine'.")


def _check_outliers(bank) -> None:
    if hasattr(bank, "outlier_indices_") == (bank.outlier_filter is None):
        raise ValueError("outlier_indices_ and outlier_filter do not go together.")
    if bank.outlier_filter is None:
        return
    _check_arrays(bank, {"outlier_indices_": ("int64", "o")})
    if (
        bank.outlier_indices_.min(initial=0) < 0
        or np.isin(bank.outlier_indices_, bank.bank_indices_).any()
    ):
        raise ValueError("outlier_indices_ point into the bank, or to no patch.")


def _check_positions(bank, n_bank: int) -> None:
    window, grid = bank.position_window, getattr(bank, "position_grid_", None)
    if (window is None) != (grid is None and not hasattr(bank, "_bank_positions")):
        raise ValueError("position_grid_ and position_window do not go together.")
    if window is None:
        return
    check_window(window)
    if grid is None:
        raise ValueError("position_grid_ is missing.")
    _check_arrays(bank, {"_bank_positions": ("int32", "p2")})
    rows, positions = bank._bank_positions.T
    if not ((rows < n_bank) & (positions < grid[0] * grid[1])).all():
        raise ValueError("_bank_positions point outside bank_ or position_grid_.")


def _check_features(features, n_features: int) -> None:
    check_sizes(features)
    for name in ("image_size", "crop_size"):
        value = getattr(features, name)
        if isinstance(value, tuple | list) and value[0] * value[1] > _LARGEST_AREA:
            raise ValueError(
                f"{name}={value!r} are more than {_LARGEST_AREA} pixels, the most that "
                "a model file may ask for."
            )
    if len(features.layer_weights_) != len(features.layers):
        raise ValueError(
            f"layer_weights_ must be positive, for each layer: "
            f"{features.layer_weights_!r:.80}."
        )
    if features.n_patch_features_ != n_features:
        raise ValueError(
            f"bank_ has {n_features} columns, but n_patch_features_ is "
            f"{features.n_patch_features_}."
        )
    if features.projection_ is not None:
        check_projection(features.projection_, n_features)
