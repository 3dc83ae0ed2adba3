"""A fitted detector as JSON and arrays, and back."""

import functools
import math
import os
from numbers import Integral, Real

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from torch import nn

from skpatchcore._coreset import CoresetSampler
from skpatchcore._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._memory_bank import PatchMemoryBank
from skpatchcore._model_file import entry

# What a fitted estimator of ours consists of beside its parameters.
_FITTED = {
    PatchCoreDetector: {
        *("features_", "memory_bank_", "training_indices_", "_training_shapes"),
        *("training_scores_", "offset_", "map_threshold_"),
    },
    PatchFeatureTransformer: {
        *("layer_weights_", "projection_", "n_patch_features_", "grid_shape_", "_seed")
    },
    PatchMemoryBank: {
        *("sampler_", "bank_", "bank_indices_", "training_scores_", "offset_"),
        *("patch_threshold_", "n_features_in_", "_index_seed"),
    },
    CoresetSampler: {"sample_indices_", "radii_", "n_features_in_"},
}
_RANDOM_PROJECTIONS = (GaussianRandomProjection, SparseRandomProjection)
_DECOMPOSITIONS = (PCA, IncrementalPCA, TruncatedSVD)
_SCALERS = (Normalizer, StandardScaler)
_PROJECTIONS = (*_RANDOM_PROJECTIONS, *_DECOMPOSITIONS, *_SCALERS, Pipeline)
_CLASSES = {cls.__name__: cls for cls in (*_FITTED, *_PROJECTIONS)}
# Caches belong to a machine, not to a model.
_NOT_STORED = {"memory"}

# Types of a fitted detector's attributes, and dtypes and shapes of its arrays, where a
# letter is the same number everywhere: m rows of the bank, d features, n pictures.
_TYPES = {
    "features_": PatchFeatureTransformer,
    "features_._seed": Integral,
    "features_.layer_weights_": tuple,
    "features_.n_patch_features_": Integral,
    "features_.grid_shape_": tuple,
    "memory_bank_": PatchMemoryBank,
    "memory_bank_.sampler_": CoresetSampler,
    "memory_bank_._index_seed": Integral,
    "memory_bank_.offset_": Real,
    "memory_bank_.patch_threshold_": Real,
    "offset_": Real,
    "map_threshold_": Real,
}
_ARRAY_SHAPES = {
    "memory_bank_.bank_": ("float32", "md"),
    "memory_bank_.bank_indices_": ("int64", "m"),
    "memory_bank_.sampler_.sample_indices_": ("int64", "m"),
    "memory_bank_.sampler_.radii_": ("float64", "m"),
    "memory_bank_.training_scores_": ("float64", "n"),
    "training_scores_": ("float64", "n"),
    "training_indices_": ("int64", "n"),
    "_training_shapes": ("int64", "n2"),
}


class Writer:
    """Turns objects into JSON, and puts the arrays it refers to aside.

    What JSON cannot say is an object of one key, which tells what it is.
    """

    def __init__(self):
        self.arrays = {}

    def encode(self, value, where: str, *, fitted: bool = False):
        """Return JSON for `value`, found at `where`; `fitted` goes for estimators."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, np.random.RandomState):
            return None
        if isinstance(value, str | Integral):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, torch.device | os.PathLike):
            return str(value)
        if isinstance(value, list | tuple):
            items = [
                self.encode(item, f"{where}.{i}", fitted=fitted)
                for i, item in enumerate(value)
            ]
            return items if isinstance(value, list) else {"tuple": items}
        return self._encode_object(value, where, fitted)

    def _encode_object(self, value, where, fitted):
        if isinstance(value, nn.Module):
            return {"module": type(value).__name__}
        if isinstance(value, np.ndarray):
            numeric = value.dtype.kind in "biuf" and value.ndim > 0
            return self._keep(value, where) if numeric else value.tolist()
        if issparse(value) and value.format == "csr":
            names = ("data", "indices", "indptr")
            parts = {n: self._keep(getattr(value, n), f"{where}.{n}") for n in names}
            return {"csr": {**parts, "shape": list(value.shape)}}
        if type(value) in _CLASSES.values():
            return {"estimator": self._encode_estimator(value, where, fitted)}
        raise TypeError(
            f"{where} is {value!r}, of {type(value)}, which a model file cannot hold; "
            f"beside numbers, names and arrays it holds {', '.join(_CLASSES)}."
        )

    def _keep(self, array, where):
        # Matrix products of the transposed layout round differently.
        transposed = array.ndim == 2 and array.strides[0] < array.strides[1]
        array = array.T if transposed else array
        self.arrays[where] = np.ascontiguousarray(array)
        return {"transposed": where} if transposed else {"array": where}

    def _encode_estimator(self, estimator, where, fitted):
        cls = type(estimator)
        params = estimator.get_params(deep=False)
        # What was given to our estimators was cloned; a Pipeline fits its own steps.
        keep = fitted and cls not in _FITTED
        state = vars(estimator) if fitted else {}
        names = _FITTED.get(cls, state.keys() - params) if fitted else ()
        prefix = f"{where}." if where else ""
        return {
            "class": cls.__name__,
            "params": {
                name: self.encode(value, f"{prefix}{name}", fitted=keep)
                for name, value in params.items()
                if name not in _NOT_STORED
            },
            "fitted": {
                name: self.encode(state[name], f"{prefix}{name}", fitted=True)
                for name in sorted(names)
            },
        }


class Reader:
    """Turns the JSON of `Writer` back into objects, and takes `arrays` away for it.

    Parameters of estimators that `overrides` names get its values.
    """

    def __init__(self, arrays: dict[str, np.ndarray], overrides: dict):
        self.arrays = arrays
        self.overrides = overrides

    def decode(self, value):
        """Return the object that `value` describes."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        decoders = {
            "tuple": lambda items: tuple(map(self.decode, items)),
            "array": self._take,
            "transposed": lambda name: self._take(name).T,
            "csr": self._decode_csr,
            "module": self._decode_module,
            "estimator": self._decode_estimator,
        }
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in decoders:
            raise ValueError(f"no such kind of object: {sorted(value)}.")
        return decoders[kind](content)

    def _take(self, name):
        if not isinstance(name, str) or name not in self.arrays:
            raise ValueError(f"there is no array {name!r}, or it is referred to twice.")
        # A copy is aligned, and writable as fitted arrays are.
        return self.arrays.pop(name).copy()

    def _decode_csr(self, content):
        parts = [
            self.decode(entry(content, n, dict)) for n in ("data", "indices", "indptr")
        ]
        matrix = csr_matrix(tuple(parts), shape=entry(content, "shape", list))
        # SciPy's kernels trust indices; out of range they would read foreign memory.
        matrix.check_format(full_check=True)
        return matrix

    def _decode_module(self, name):
        if "backbone" not in self.overrides:
            raise ValueError(
                f"its network was given as a module, {name}; pass one with the same "
                "weights to load(..., backbone=module)."
            )
        return self.overrides["backbone"]

    def _decode_estimator(self, content):
        name = entry(content, "class", str)
        if name not in _CLASSES:
            raise ValueError(f"class {name!r} is none of {', '.join(_CLASSES)}.")
        cls = _CLASSES[name]
        params = entry(content, "params", dict)
        known = set(cls._get_param_names())
        if not params.keys() <= known:
            raise ValueError(
                f"{name} has no parameters {sorted(params.keys() - known)}."
            )
        params = {name: self.decode(value) for name, value in params.items()}
        params |= {name: self.overrides[name] for name in known & self.overrides.keys()}
        estimator = cls(**params)
        estimator._validate_params()
        self._restore(estimator, entry(content, "fitted", dict))
        return estimator

    def _restore(self, estimator, fitted: dict) -> None:
        cls = type(estimator)
        odd = fitted.keys() ^ _FITTED.get(cls, fitted.keys())
        if fitted and odd:
            raise ValueError(f"{cls.__name__} lacks, or does not have, {sorted(odd)}.")
        for name, value in fitted.items():
            # Nothing that a class defines may be replaced by data.
            if hasattr(cls, name) or name in cls._get_param_names():
                raise ValueError(f"{name!r} is no fitted attribute of {cls.__name__}.")
            setattr(estimator, name, self.decode(value))


def check_detector(detector) -> None:
    """Raise a ValueError unless all parts of a detector from a file fit together."""
    if not isinstance(detector, PatchCoreDetector):
        raise ValueError("it holds no PatchCoreDetector.")
    for where, kind in _TYPES.items():
        if not isinstance(_at(detector, where), kind):
            raise ValueError(f"{where} is missing, or is not of {kind.__name__}.")
    sizes = _check_arrays(detector)
    _check_values(detector)
    _check_features(detector.features_, sizes["d"])
    bank = detector.memory_bank_
    if bank.n_features_in_ != sizes["d"]:
        raise ValueError(
            f"bank_ has {sizes['d']} columns, n_features_in_ is {bank.n_features_in_}."
        )
    bank._check_bank_size(sizes["m"])


def _at(detector, where: str):
    """Return what is at a dotted path, or None."""
    names = where.split(".")
    return functools.reduce(lambda o, name: getattr(o, name, None), names, detector)


def _check_arrays(detector) -> dict[str, int]:
    """Check dtypes and shapes; return the sizes that the letters stand for."""
    sizes = {"2": 2}
    for where, (dtype, letters) in _ARRAY_SHAPES.items():
        array = _at(detector, where)
        expected = f"{where} must be {dtype} of shape ({', '.join(letters)})"
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise ValueError(f"{expected}, got {getattr(array, 'dtype', array)!r:.80}.")
        for letter, size in zip(letters, array.shape, strict=False):
            sizes.setdefault(letter, size)
        if array.shape != tuple(sizes.get(letter, 0) for letter in letters):
            raise ValueError(f"{expected}, got {array.shape} where {sizes}.")
    return sizes


def _check_values(detector) -> None:
    bank, shapes = detector.memory_bank_, detector._training_shapes
    for where in ("memory_bank_.bank_", "memory_bank_.training_scores_"):
        if not np.isfinite(_at(detector, where)).all():
            raise ValueError(f"{where} has values that are not finite.")
    places = bank.bank_indices_
    if shapes.min() < 1 or places.min() < 0 or places.max() >= shapes.prod(1).sum():
        raise ValueError("bank_indices_ point to no patch of the training pictures.")


def _check_features(features, n_features: int) -> None:
    weights = features.layer_weights_
    if len(weights) != len(features.layers) or not all(w > 0 for w in weights):
        raise ValueError(f"layer_weights_ must be positive, for each layer: {weights}.")
    if features.n_patch_features_ != n_features:
        raise ValueError(
            f"bank_ has {n_features} columns, but n_patch_features_ is "
            f"{features.n_patch_features_}."
        )
    if features.projection_ is None:
        return
    try:
        patch = np.zeros((1, features.projection_.n_features_in_), np.float32)
        shape = features.projection_.transform(patch).shape
    except Exception as error:
        raise ValueError(f"its projection does not work: {error}") from error
    if shape != (1, n_features):
        raise ValueError(f"its projection gives {shape}, not {n_features} features.")
