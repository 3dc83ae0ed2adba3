"""Check that the parts of a detector from a model file are consistent."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import (
    PatchCoreDetector,
    PatchCoreEnsemble,
    has_maps,
    unwrap,
)
from skpatchcore._features import PatchFeatureTransformer, thaw
from skpatchcore._images import find_transforms
from skpatchcore.calibration import (
    ConformalDetector,
    TunedThresholdDetector,
    n_supported,
    scoring_part,
)
from skpatchcore.persistence._parts import (
    check_arrays,
    check_bank,
    check_features,
    check_fitted,
)
from skpatchcore.persistence._schema import DETECTORS

# Dtypes and shapes of arrays. A letter is the same number in all arrays of a detector:
# m rows of the bank, d features, n images. The range of each number was checked when it
# was read.
_BANK_ARRAYS = {
    "bank_": ("float32", "md"),
    "bank_indices_": ("int64", "m"),
    "sampler_.sample_indices_": ("int64", "m"),
    "sampler_.radii_": ("float64", "m"),
    "training_scores_": ("float64", "n"),
    "_training_sketches": ("float64", "n7"),
}
_DETECTOR_ARRAYS = {
    **{f"memory_bank_.{name}": expected for name, expected in _BANK_ARRAYS.items()},
    "training_scores_": ("float64", "n"),
    "training_indices_": ("int64", "n"),
    "_training_shapes": ("int64", "p2"),
    "_training_aspects": ("float64", "p"),
    "_color_cast": ("float64", "2"),
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


def image_detectors(detector: Any) -> Iterator[PatchCoreDetector]:
    """Yield the fitted `PatchCoreDetector` objects inside a detector, in order."""
    if isinstance(detector, PatchCoreDetector):
        yield detector
    for part in _parts(detector):
        yield from image_detectors(part)


def check_detector(detector: Any) -> None:
    """Raise a ValueError unless all parts of a detector are consistent."""
    if not isinstance(detector, DETECTORS):
        raise ValueError(f"it holds a {type(detector).__name__}, not a detector.")
    _check_part(detector)


def _parts(detector: Any) -> list:
    inner, _ = unwrap(detector)
    if inner is not detector:
        return [inner]
    if hasattr(detector, "estimator_"):
        return [detector.estimator_]
    return getattr(detector, "estimators_", [])


def _check_part(detector: Any) -> None:
    checks = {
        PatchCoreDetector: _check_image_detector,
        PatchCoreEnsemble: _check_ensemble,
        PatchMemoryBank: _check_lone_bank,
        TunedThresholdDetector: _check_tuned,
        ConformalDetector: _check_conformal,
        FrozenEstimator: lambda frozen: None,
    }
    if type(detector) not in checks:
        raise ValueError(f"{type(detector).__name__} is not a detector.")
    check_fitted(detector)
    checks[type(detector)](detector)
    for part in _parts(detector):
        _check_part(part)


def _check_image_detector(detector: Any) -> None:
    _check_given_features(detector.features)
    if type(detector.features_) is not PatchFeatureTransformer:
        raise ValueError("PatchCoreDetector is not fitted: features_ are missing.")
    check_fitted(detector.features_, "features_")
    check_fitted(detector.memory_bank_, "memory_bank_")
    check_fitted(detector.memory_bank_.sampler_, "sampler_")
    sizes = check_arrays(detector, _DETECTOR_ARRAYS)
    check_bank(detector.memory_bank_, sizes)
    _check_provenance(detector, sizes)
    check_features(detector.features_, sizes["d"])


def _check_given_features(features: Any) -> None:
    """Check that frozen features can be used for another fit."""
    if not isinstance(features, FrozenEstimator):
        return
    inner = thaw(features)
    if type(inner) is not PatchFeatureTransformer:
        raise ValueError(
            f"features is a frozen {type(inner).__name__} instead of a "
            "PatchFeatureTransformer."
        )
    check_fitted(inner, "features")
    check_features(inner, inner.n_patch_features_)


def _check_provenance(detector: Any, sizes: dict[str, int]) -> None:
    """Check that each row of the bank refers to a patch of a training image."""
    places, shapes = detector.memory_bank_.bank_indices_, detector._training_shapes
    if shapes.min() < 1 or places.max() >= shapes.prod(1).sum():
        raise ValueError("bank_indices_ exceed the patches of the training images.")
    if not (detector._training_aspects > 0).all():
        raise ValueError("_training_aspects must be positive.")
    n_made = 1 + len(find_transforms(detector._augmentation))
    if sizes["p"] != sizes["n"] * n_made:
        raise ValueError(f"there are {sizes['p']} grids, not {n_made} per image.")
    foreground = detector.foreground_
    if foreground is not None and foreground[0].shape != (sizes["d"],):
        raise ValueError("foreground_ must be a direction (d,) and a threshold.")


def _check_ensemble(ensemble: Any) -> None:
    members, names = ensemble.estimators_, ensemble._member_names
    if len(set(names)) != len(members):
        raise ValueError("_member_names must have a name for each of estimators_.")
    for given in (names, [name for name, _ in ensemble.estimators]):
        ensemble._validate_names(given)
    sizes = check_arrays(ensemble, _ENSEMBLE_ARRAYS)
    if sizes["m"] != len(members):
        raise ValueError(f"{len(members)} members, but {sizes['m']} weights.")
    for name in ("score_weights_", "map_weights_"):
        if not (getattr(ensemble, name) > 0).all():
            raise ValueError(f"{name} must be positive, got {getattr(ensemble, name)}.")


def _check_lone_bank(bank: Any) -> None:
    check_fitted(bank.sampler_, "sampler_")
    # Features from elsewhere may have another precision.
    expected = {**_BANK_ARRAYS, "bank_": ("float32 or float64", "md")}
    check_bank(bank, check_arrays(bank, expected))
    _check_names(bank)


def _check_tuned(detector: Any) -> None:
    _check_same_class(detector, [detector.estimator_])
    _check_training_rows(detector.estimator_, detector._learned_rows())
    if hasattr(detector, "tuning_scores_"):
        check_arrays(detector, {"tuning_scores_": ("float64", "n")})
    _check_names(detector)


def _check_same_class(detector: Any, estimators: list) -> None:
    """Check that fitted estimators have the class of the parameter `estimator`."""
    given = detector.estimator
    if type(detector) is ConformalDetector:
        given = scoring_part(given)
    for one in estimators:
        if type(one) is not type(given):
            raise ValueError(
                f"{type(detector).__name__} holds a fitted {type(one).__name__} for "
                f"its estimator, a {type(given).__name__}."
            )


def _check_conformal(detector: Any) -> None:
    _check_same_class(detector, detector.estimators_)
    expected = dict(_CALIBRATION_ARRAYS)
    if has_maps(detector.estimators_[0]):
        expected["_calibration_peaks"] = ("float64", "n")
    for name in ("calibration_groups_", "calibration_splits_"):
        if hasattr(detector, name):
            expected[name] = ("int64", "n")
    _check_groups(check_arrays(detector, expected)["n"], detector)
    n, alpha = detector._calibration.n_units, detector.alpha_
    folds = detector.calibration_folds_
    if n_supported(alpha, n) == 0:
        raise ValueError(f"alpha_={alpha} has too few calibration_scores_.")
    if folds.min() < 0 or folds.max() >= len(detector.estimators_):
        raise ValueError("calibration_folds_ exceed the number of estimators_.")
    offset = detector._calibration.offset(alpha)
    if (detector.offset_, detector.min_alpha_) != (offset, 1 / (n + 1)):
        raise ValueError("offset_ or min_alpha_ does not match calibration_scores_.")
    if "_calibration_peaks" in expected:
        threshold = -detector._map_calibration.offset(alpha)
        if getattr(detector, "map_threshold_", None) != threshold:
            raise ValueError("map_threshold_ does not match the calibration.")
    _check_training_folds(detector)
    _check_names(detector)


def _check_groups(n: int, detector: Any) -> None:
    """Check that calibration groups are numbered without gaps."""
    groups = getattr(detector, "calibration_groups_", np.arange(n))
    # Checked before counting, which takes memory in proportion to the largest number.
    if not ((groups >= 0) & (groups < n)).all() or not np.bincount(groups).all():
        raise ValueError("calibration_groups_ must be numbers from 0, without gaps.")


def _check_training_folds(detector: Any) -> None:
    """Check that matches refer to rows of the training data."""
    folds, n_folds = detector._training_folds, len(detector.estimators_)
    if np.any(np.diff(folds) < 0) or folds.max(initial=-1) >= n_folds:
        raise ValueError("_training_folds must ascend, and refer to estimators_.")
    for estimator, rows in zip(
        detector.estimators_, detector._fold_rows(), strict=True
    ):
        _check_training_rows(estimator, rows)


def _check_training_rows(estimator: Any, rows: NDArray | None) -> None:
    learned = getattr(estimator, "training_indices_", None)
    if rows is None or learned is None:
        return
    if learned.max(initial=-1) >= len(rows):
        raise ValueError("training_indices_ exceed _training_rows.")


def _check_names(detector: Any) -> None:
    names = getattr(detector, "feature_names_in_", None)
    if names is None:
        return
    if len(names) != getattr(detector, "n_features_in_", None):
        raise ValueError("feature_names_in_ must have one name per feature.")
