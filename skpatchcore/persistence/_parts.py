"""Check that the memory bank and the features of a detector are consistent."""

from operator import attrgetter
from typing import Any

import numpy as np

from skpatchcore._bank import PatchMemoryBank
from skpatchcore._features import PatchFeatureTransformer, check_sizes
from skpatchcore._neighbors import check_window
from skpatchcore._utils import resolve_device
from skpatchcore.persistence._projections import check_projection
from skpatchcore.persistence._schema import FITTED

# Pixels that an image may be resized to: 3 GB as the network's input.
_LARGEST_AREA = 2**28
# Tolerance for the length of normalised rows, which is 1.
_LENGTH_TOLERANCE = 1e-3


def check_fitted(part: Any, where: str = "") -> None:
    """Raise a ValueError if an estimator lacks a fitted attribute."""
    missing = FITTED[type(part)].keys() - vars(part).keys()
    if missing:
        name = type(part).__name__ + (f" {where!r}" if where else "")
        raise ValueError(f"{name} is not fitted: {sorted(missing)} are missing.")


def _at(part: Any, where: str) -> Any:
    """Return the value at a dotted path, or None."""
    try:
        return attrgetter(where)(part)
    except AttributeError:
        return None


def check_arrays(part: Any, expected: dict[str, tuple[str, str]]) -> dict[str, int]:
    """Check dtypes and shapes; return the size of each letter."""
    sizes = {"2": 2, "6": 6}
    for where, (dtype, letters) in expected.items():
        array = _at(part, where)
        wanted = f"{where} must be {dtype} of shape ({', '.join(letters)})"
        if str(getattr(array, "dtype", None)) not in dtype.split(" or "):
            raise ValueError(f"{wanted}, got {getattr(array, 'dtype', array)!r:.80}.")
        for letter, size in zip(letters, array.shape, strict=False):
            sizes.setdefault(letter, size)
        if array.shape != tuple(sizes.get(letter, 0) for letter in letters):
            raise ValueError(f"{wanted}, got {array.shape} where {sizes}.")
    return sizes


def check_bank(bank: PatchMemoryBank, sizes: dict[str, int]) -> None:
    """Raise a ValueError unless a bank is consistent; `sizes` from `check_arrays`."""
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
    """Check that rows for cosine distances have unit length or are zero."""
    if bank.metric != "cosine":
        return
    squared = np.einsum("ij,ij->i", bank.bank_, bank.bank_, dtype=np.float64)
    if not ((squared == 0) | (abs(squared - 1) <= _LENGTH_TOLERANCE)).all():
        raise ValueError("bank_ must have rows of unit length for metric='cosine'.")


def _check_outliers(bank) -> None:
    if hasattr(bank, "outlier_indices_") == (bank.outlier_filter is None):
        raise ValueError("outlier_indices_ and outlier_filter contradict each other.")
    if bank.outlier_filter is None:
        return
    check_arrays(bank, {"outlier_indices_": ("int64", "o")})
    if (
        bank.outlier_indices_.min(initial=0) < 0
        or np.isin(bank.outlier_indices_, bank.bank_indices_).any()
    ):
        raise ValueError("outlier_indices_ are negative, or rows of the bank.")


def _check_positions(bank, n_bank: int) -> None:
    window, grid = bank.position_window, getattr(bank, "position_grid_", None)
    if (window is None) != (grid is None and not hasattr(bank, "_bank_positions")):
        raise ValueError("position_grid_ and position_window contradict each other.")
    if window is None:
        return
    check_window(window)
    if grid is None:
        raise ValueError("position_grid_ is missing.")
    check_arrays(bank, {"_bank_positions": ("int32", "p2")})
    rows, positions = bank._bank_positions.T
    if not ((rows < n_bank) & (positions < grid[0] * grid[1])).all():
        raise ValueError("_bank_positions exceed bank_ or position_grid_.")


def check_features(features: PatchFeatureTransformer, n_features: int) -> None:
    """Raise a ValueError unless features are consistent and `n_features` long."""
    check_sizes(features)
    for name in ("image_size", "crop_size"):
        value = getattr(features, name)
        if isinstance(value, tuple | list) and value[0] * value[1] > _LARGEST_AREA:
            raise ValueError(
                f"{name}={value!r} has more than {_LARGEST_AREA} pixels, the limit for "
                "a model file."
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
    if np.shape(getattr(features, "_color_cast", (0.0, 0.0))) != (2,):
        raise ValueError("_color_cast must be a mean and a standard deviation.")
    if features.projection_ is not None:
        check_projection(features.projection_, n_features)
