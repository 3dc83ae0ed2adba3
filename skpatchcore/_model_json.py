"""A fitted detector as JSON and arrays, and back."""

import math
import os
from numbers import Integral

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    LeaveOneOut,
    StratifiedGroupKFold,
    StratifiedKFold,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from torch import nn

from skpatchcore._coreset import CoresetSampler
from skpatchcore._detector import PatchCoreDetector
from skpatchcore._ensemble import PatchCoreEnsemble
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._memory_bank import PatchMemoryBank
from skpatchcore._model_file import entry
from skpatchcore.calibration import (
    _MAY_BE_MISSING,
    ConformalDetector,
    TunedThresholdDetector,
)
from skpatchcore.model_selection import OneClassKFold

# What a fitted estimator of ours consists of beside its parameters.
_FITTED = {
    ConformalDetector: {
        *("calibration_scores_", "calibration_indices_", "calibration_folds_"),
        *("offset_", "min_alpha_", "_training_rows"),
    },
    TunedThresholdDetector: {"offset_", "best_score_"},
    FrozenEstimator: set(),
    PatchCoreEnsemble: {
        *("estimators_", "score_weights_", "map_weights_", "held_out_scores_"),
        *("training_scores_", "training_indices_", "offset_", "map_threshold_"),
        "_member_names",
    },
    PatchCoreDetector: {
        *("features_", "memory_bank_", "training_indices_", "_training_shapes"),
        *("training_scores_", "offset_", "map_threshold_"),
        *("foreground_", "_augmentation", "_training_aspects"),
    },
    PatchFeatureTransformer: {
        *("layer_weights_", "projection_", "n_patch_features_", "grid_shape_", "_seed")
    },
    PatchMemoryBank: {
        *("sampler_", "bank_", "bank_indices_", "training_scores_", "offset_"),
        *("patch_threshold_", "n_features_in_", "_index_seed", "_normalized"),
    },
    CoresetSampler: {"sample_indices_", "radii_", "n_features_in_"},
}
# And what it may have besides.
_OPTIONAL = {
    ConformalDetector: {"estimators_", *_MAY_BE_MISSING},
    TunedThresholdDetector: {"estimator_", "n_features_in_", "feature_names_in_"},
    PatchMemoryBank: {
        *("feature_names_in_", "outlier_indices_", "position_grid_", "_bank_cells")
    },
    CoresetSampler: {"feature_names_in_"},
}
_RANDOM_PROJECTIONS = (GaussianRandomProjection, SparseRandomProjection)
_DECOMPOSITIONS = (PCA, IncrementalPCA, TruncatedSVD)
_SCALERS = (Normalizer, StandardScaler)
_PROJECTIONS = (*_RANDOM_PROJECTIONS, *_DECOMPOSITIONS, *_SCALERS, Pipeline)
_CLASSES = {cls.__name__: cls for cls in (*_FITTED, *_PROJECTIONS)}
_SPLITTERS = {
    cls.__name__: cls
    for cls in (
        *(KFold, LeaveOneOut, StratifiedKFold, OneClassKFold),
        *(GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold),
    )
}
# Caches belong to a machine, not to a model.
_NOT_STORED = {"memory"}


class Writer:
    """Turns objects into JSON, and puts the arrays it refers to aside.

    What JSON cannot say is an object of one key, which tells what it is.
    """

    def __init__(self):
        self.arrays = {}
        # By identity; the array is kept so that no other one takes its identity.
        self._kept = {}

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
        if type(value) in _SPLITTERS.values():
            params = {n: self.encode(v, f"{where}.{n}") for n, v in vars(value).items()}
            return {"splitter": {"class": type(value).__name__, "params": params}}
        if isinstance(value, np.ndarray) and value.dtype == object:
            return {"names": self.encode(value.tolist(), where)}
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
        _, where = self._kept.setdefault(id(array), (array, where))
        self.arrays[where] = np.ascontiguousarray(array.T if transposed else array)
        return {"transposed": where} if transposed else {"array": where}

    def _encode_estimator(self, estimator, where, fitted):
        cls = type(estimator)
        params = estimator.get_params(deep=False)
        state = vars(estimator) if fitted else {}
        names = _FITTED.get(cls, state.keys() - params) if fitted else set()
        names = names | (_OPTIONAL.get(cls, set()) & state.keys())
        # What was given to our estimators was cloned; a Pipeline fits its own steps.
        keep = fitted and (cls not in _FITTED or cls is FrozenEstimator)
        if fitted and _scores_with_given(estimator):
            keep, names = True, names - {"estimator_", "estimators_"}
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

    Parameters of estimators that `overrides` names get its values; in a member of an
    ensemble, a dict stands for what it holds under the member's name.
    """

    def __init__(self, arrays: dict[str, np.ndarray], overrides: dict):
        self.arrays = arrays
        self.overrides = overrides
        self._taken = {}

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
            "names": self._decode_names,
            "splitter": self._decode_splitter,
            "estimator": self._decode_estimator,
        }
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in decoders:
            raise ValueError(f"no such kind of object: {sorted(value)}.")
        return decoders[kind](content)

    def _take(self, name):
        if not isinstance(name, str) or name not in self.arrays.keys() | self._taken:
            raise ValueError(f"there is no array {name!r}.")
        if name in self.arrays:
            # A copy is aligned, and writable as fitted arrays are.
            self._taken[name] = self.arrays.pop(name).copy()
        return self._taken[name]

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

    def _decode_names(self, content):
        if not isinstance(content, list) or not all(type(n) is str for n in content):
            raise ValueError(f"names must be a list of them, got {content!r:.80}.")
        return np.array(content, dtype=object)

    def _decode_splitter(self, content):
        name, params = entry(content, "class", str), entry(content, "params", dict)
        if name not in _SPLITTERS:
            raise ValueError(f"splitter {name!r} is none of {', '.join(_SPLITTERS)}.")
        return _SPLITTERS[name](**params)

    def _decode_estimator(self, content):
        name = entry(content, "class", str)
        if name not in _CLASSES:
            raise ValueError(f"class {name!r} is none of {', '.join(_CLASSES)}.")
        cls = _CLASSES[name]
        if cls is PatchCoreEnsemble:
            content = self._decode_members(content)
        params = entry(content, "params", dict)
        known = set(cls._get_param_names())
        if not params.keys() <= known:
            raise ValueError(
                f"{name} has no parameters {sorted(params.keys() - known)}."
            )
        params = {name: self.decode(value) for name, value in params.items()}
        params |= {name: self.overrides[name] for name in known & self.overrides.keys()}
        estimator = cls(**params)
        if hasattr(cls, "_parameter_constraints"):
            estimator._validate_params()
        self._restore(estimator, entry(content, "fitted", dict))
        return estimator

    def _decode_members(self, content):
        """Return an ensemble's description, its members decoded with what is theirs."""
        params = dict(entry(content, "params", dict))
        fitted = dict(entry(content, "fitted", dict))
        pairs = [entry(p, "tuple", list) for p in entry(params, "estimators", list)]
        # Members may have been replaced or dropped since the fit.
        names = entry(fitted, "_member_names", list) if fitted else []
        known = [*(pair[0] for pair in pairs if len(pair) == 2), *names]
        if len(known) < len(pairs) + len(names) or not all(
            isinstance(name, str) for name in known
        ):
            raise ValueError("estimators must be names and detectors.")
        weights = self.overrides.get("weights")
        if not isinstance(weights, dict | None):
            raise ValueError(
                f"weights={str(weights)!r} is one file, but this is an ensemble of "
                f"{list(dict.fromkeys(known))}; give a dict of files by member."
            )
        for name, value in self.overrides.items():
            if isinstance(value, dict) and not value.keys() <= set(known):
                raise ValueError(
                    f"{name} is for {sorted(value)}, but the members of the ensemble "
                    f"are {list(dict.fromkeys(known))}."
                )
        params["estimators"] = [(n, self._decode_member(n, e)) for n, e in pairs]
        if "estimators_" in fitted:
            members = zip(names, entry(fitted, "estimators_", list), strict=True)
            fitted["estimators_"] = [self._decode_member(*pair) for pair in members]
        return content | {"params": params, "fitted": fitted}

    def _decode_member(self, name: str, value):
        everyone = self.overrides
        self.overrides = {
            key: given[name] if isinstance(given, dict) else given
            for key, given in everyone.items()
            if not isinstance(given, dict) or name in given
        }
        try:
            return self.decode(value)
        finally:
            self.overrides = everyone

    def _restore(self, estimator, fitted: dict) -> None:
        cls = type(estimator)
        odd = fitted.keys() ^ _FITTED.get(cls, fitted.keys())
        odd -= _OPTIONAL.get(cls, set())
        if fitted and odd:
            raise ValueError(f"{cls.__name__} lacks, or does not have, {sorted(odd)}.")
        for name, value in fitted.items():
            # Nothing that a class defines may be replaced by data.
            if hasattr(cls, name) or name in cls._get_param_names():
                raise ValueError(f"{name!r} is no fitted attribute of {cls.__name__}.")
            setattr(estimator, name, self.decode(value))
        if fitted and cls is TunedThresholdDetector and "estimator_" not in fitted:
            estimator.estimator_ = estimator.estimator
        if fitted and cls is ConformalDetector and "estimators_" not in fitted:
            estimator.estimators_ = [estimator.estimator]


def _scores_with_given(estimator) -> bool:
    """Return whether a detector scores with the very estimator that it was given."""
    if isinstance(estimator, TunedThresholdDetector):
        return estimator.estimator_ is estimator.estimator
    if isinstance(estimator, ConformalDetector):
        return estimator.estimators_ == [estimator.estimator]
    return False
