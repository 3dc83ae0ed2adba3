"""A fitted detector as JSON and arrays, and back."""

import inspect
import math
import os
from numbers import Integral
from pathlib import PurePath

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse import csr_matrix, issparse
from sklearn.frozen import FrozenEstimator
from torch import nn

from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._memory_bank import PatchMemoryBank
from skpatchcore._model_file import entry
from skpatchcore._model_schema import (
    ESTIMATORS,
    FITTED,
    LEFT_OUT,
    OPTIONAL,
    PARAMS,
    PROJECTIONS,
    SPLITTERS,
    check_values,
)
from skpatchcore._model_values import Text, in_short
from skpatchcore._weights import WeightsNotStored
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector

_SPLITTERS = {cls.__name__: cls for cls in SPLITTERS}
_FILE_NAME = Text("a file name without folders", r"(?!\.{1,2}$)[^/\\\0]+")
# Detectors round detectors; no sensible one comes near.
_MAX_DEPTH = 100
# Elements that arrays with gaps between their elements may span, in one file: 512 MB of
# float64, of which only pages with elements in them are ever touched.
_MAX_SPAN = 2**26
# Longest side of a CSR matrix that is read; its shape takes no bytes in a file.
_MAX_CSR_SIDE = 2**20


class Writer:
    """Turns objects into JSON, and puts the arrays it refers to aside.

    What JSON cannot say is an object of one key, which tells what it is. Parameters
    that belong to a machine are left out; `devices` notes those of the parts that
    score, by their places.
    """

    def __init__(self):
        self.arrays = {}
        self.devices: dict[str, str] = {}
        self._span = 0
        # Descriptions by identity; the array is kept so that no other one takes its
        # identity.
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
        if isinstance(value, WeightsNotStored):
            return {"weights_file": value.name}
        if type(value) in SPLITTERS:
            params = {
                name: self.encode(getattr(value, name), f"{where}.{name}")
                for name in PARAMS[type(value)]
            }
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
        if type(value) in FITTED:
            return {"estimator": self._encode_estimator(value, where, fitted)}
        raise TypeError(
            f"{where} is {value!r}, of {type(value)}, which a model file cannot hold; "
            f"beside numbers, names and arrays it holds {', '.join(ESTIMATORS)}."
        )

    def _keep(self, array, where):
        """Put an array aside, and return how to lay it out again.

        BLAS, and loops where it cannot be used, round differently for other layouts.
        """
        if id(array) not in self._kept:
            aside, described = self._lay_aside(array, where)
            self.arrays[where] = aside
            self._kept[id(array)] = array, described
        return self._kept[id(array)][1]

    def _lay_aside(self, array, where) -> tuple[np.ndarray, dict]:
        """Return the elements in C order and native bytes, and their description."""
        strides, transposed = _element_strides(array), False
        described = {"array": where}
        if strides is None:
            # NumPy copies it for each product. Projections multiply with the
            # transpose, and the copy of that is in C order.
            transposed = array.ndim == 2 and min(array.shape) > 1
        elif array.flags.c_contiguous:
            pass
        elif array.ndim == 2 and array.flags.f_contiguous:
            transposed = True
        elif self._may_span(array.shape, strides):
            described = {"strided": {"array": where, "strides": list(strides)}}
        else:
            # Only the gaps are given up, which products do not see.
            transposed = array.ndim == 2 and _runs_down(array)
        native = array.dtype.newbyteorder("=")
        aside = array.T if transposed else array
        described = {"transposed": where} if transposed else described
        return np.ascontiguousarray(aside, dtype=native), described

    def _may_span(self, shape, strides) -> bool:
        """Count the elements that an array with gaps spans, if there is room left."""
        span = _span(shape, strides)
        if self._span + span > _MAX_SPAN:
            return False
        self._span += span
        return True

    def _encode_estimator(self, estimator, where, fitted):
        cls = type(estimator)
        state = vars(estimator) if fitted else {}
        names = (FITTED[cls].keys() | OPTIONAL.get(cls, {}).keys()) & state.keys()
        # What was given to our estimators was cloned; a Pipeline fits its own steps.
        keep = fitted and cls in (FrozenEstimator, *PROJECTIONS)
        if fitted and _scores_with_given(estimator):
            keep, names = True, names - {"estimator_", "estimators_"}
        prefix = f"{where}." if where else ""
        return {
            "class": cls.__name__,
            "params": {
                name: self.encode(value, f"{prefix}{name}", fitted=keep)
                for name, value in self._portable_params(estimator, prefix, fitted)
            },
            "fitted": {
                name: self.encode(state[name], f"{prefix}{name}", fitted=True)
                for name in sorted(names)
            },
        }

    def _portable_params(self, estimator, prefix: str, fitted: bool):
        """Yield names and values of the parameters that do not belong to a machine."""
        cls = type(estimator)
        for name, value in estimator.get_params(deep=False).items():
            if name == "weights" and _is_file(value):
                yield name, WeightsNotStored(PurePath(value).name)
            elif name in PARAMS[cls]:
                yield name, value
            elif name in LEFT_OUT:
                scores = fitted and cls in (PatchFeatureTransformer, PatchMemoryBank)
                if scores and name == "device" and value is not None:
                    self.devices[f"{prefix}{name}"] = str(value)
            elif not _is_default(cls, name, value):
                # A newer scikit-learn may have it.
                raise TypeError(
                    f"{prefix}{name}={value!r} is a parameter that this version of "
                    "skpatchcore does not store. Leave it at its default."
                )


class Reader:
    """Turns the JSON of `Writer` back into objects, and takes `arrays` away for it.

    Parameters of estimators that `overrides` names get its values; in a member of an
    ensemble, a dict stands for what it holds under the member's name.
    """

    def __init__(self, arrays: dict[str, np.ndarray], overrides: dict):
        self.arrays = arrays
        self.overrides = overrides
        self._taken = {}
        self._strided = {}
        self._span = self._depth = 0

    def decode(self, value):
        """Return the object that `value` describes."""
        if not isinstance(value, dict | list):
            return value
        if self._depth >= _MAX_DEPTH:
            raise ValueError(f"its objects are nested more than {_MAX_DEPTH} deep.")
        self._depth += 1
        try:
            if isinstance(value, list):
                return [self.decode(item) for item in value]
            return self._decode_object(value)
        finally:
            self._depth -= 1

    def _decode_object(self, value: dict):
        decoders = {
            "tuple": self._decode_tuple,
            "array": self._take,
            "transposed": lambda name: self._take(name).T,
            "strided": self._decode_strided,
            "csr": self._decode_csr,
            "module": self._decode_module,
            "weights_file": self._decode_weights_file,
            "names": self._decode_names,
            "splitter": self._decode_splitter,
            "estimator": self._decode_estimator,
        }
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in decoders:
            raise ValueError(f"no such kind of object: {in_short(sorted(value))}.")
        return decoders[kind](content)

    def _decode_tuple(self, content):
        if not isinstance(content, list):
            raise ValueError(f"a tuple must be a list, got {in_short(content)}.")
        return tuple(map(self.decode, content))

    def _take(self, name):
        if not isinstance(name, str) or name not in self.arrays.keys() | self._taken:
            raise ValueError(f"there is no array {in_short(name)}.")
        if name in self.arrays:
            # A copy is aligned, and writable as fitted arrays are.
            self._taken[name] = self.arrays.pop(name).copy()
        return self._taken[name]

    def _decode_strided(self, content):
        """Return an array whose elements lie as far apart as they did."""
        values = self._take(entry(content, "array", str))
        strides = entry(content, "strides", list)
        if len(strides) != values.ndim or not all(
            type(step) is int and abs(step) <= _MAX_SPAN for step in strides
        ):
            raise ValueError(f"strides {in_short(strides)} are not those of an array.")
        key = (content["array"], *strides)
        if key not in self._strided:
            self._span += _span(values.shape, strides)
            if self._span > _MAX_SPAN:
                raise ValueError(f"its arrays span more than {_MAX_SPAN} elements.")
            self._strided[key] = _lay_out(values, strides)
        return self._strided[key]

    def _decode_csr(self, content):
        data, indices, indptr = (
            self.decode(entry(content, n, dict)) for n in ("data", "indices", "indptr")
        )
        shape = entry(content, "shape", list)
        if len(shape) != 2 or not all(
            type(n) is int and 1 <= n <= _MAX_CSR_SIDE for n in shape
        ):
            raise ValueError(f"{in_short(shape)} is not the shape of a CSR matrix.")
        if not _is_array(data, "biuf") or not all(
            _is_array(part, "i") for part in (indices, indptr)
        ):
            raise ValueError("a CSR matrix must consist of numbers and integer places.")
        matrix = csr_matrix((data, indices, indptr), shape=shape)
        # SciPy's kernels trust indices; out of range they would read foreign memory.
        matrix.check_format(full_check=True)
        return matrix

    def _decode_module(self, name):
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{in_short(name)} is not the class of a module.")
        if "backbone" not in self.overrides:
            raise ValueError(
                f"its network was given as a module, {name:.80}; pass one with the "
                "same weights to load(..., backbone=module)."
            )
        return self.overrides["backbone"]

    def _decode_weights_file(self, name):
        if not _FILE_NAME.accepts(name):
            raise ValueError(
                f"weights_file must be {_FILE_NAME}, got {in_short(name)}."
            )
        return WeightsNotStored(name)

    def _decode_names(self, content):
        if not isinstance(content, list) or not all(type(n) is str for n in content):
            raise ValueError(f"names must be a list of them, got {content!r:.80}.")
        return np.array(content, dtype=object)

    def _decode_splitter(self, content):
        cls, params = self._described(content, _SPLITTERS, "splitter")
        return cls(**params)

    def _decode_estimator(self, content):
        if isinstance(content, dict) and content.get("class") == "PatchCoreEnsemble":
            content = self._decode_members(content)
        cls, params = self._described(content, ESTIMATORS, "class")
        known = set(cls._get_param_names())
        params |= {name: self.overrides[name] for name in known & self.overrides.keys()}
        estimator = cls(**params)
        if hasattr(cls, "_parameter_constraints"):
            estimator._validate_params()
        self._restore(estimator, entry(content, "fitted", dict))
        return estimator

    def _described(self, content, classes: dict[str, type], what: str):
        """Return the class of a description, and its parameters, all allowed ones."""
        name, params = entry(content, "class", str), entry(content, "params", dict)
        if name not in classes:
            raise ValueError(
                f"{what} {in_short(name)} is none of {', '.join(classes)}."
            )
        cls = classes[name]
        unknown = params.keys() - PARAMS[cls].keys()
        if unknown:
            raise ValueError(
                f"{name} has no parameters {in_short(sorted(unknown))} in a model file."
            )
        params = {key: self.decode(value) for key, value in params.items()}
        check_values(cls, params, PARAMS[cls])
        return cls, params

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
        kinds = FITTED[cls] | OPTIONAL.get(cls, {})
        odd = (fitted.keys() - kinds.keys()) | (FITTED[cls].keys() - fitted.keys())
        if fitted and odd:
            raise ValueError(
                f"{cls.__name__} lacks, or does not have, the fitted attributes "
                f"{in_short(sorted(odd))}."
            )
        values = {name: self.decode(value) for name, value in fitted.items()}
        check_values(cls, values, kinds)
        for name, value in values.items():
            setattr(estimator, name, value)
        if fitted and cls is TunedThresholdDetector and "estimator_" not in fitted:
            estimator.estimator_ = estimator.estimator
        if fitted and cls is ConformalDetector and "estimators_" not in fitted:
            estimator.estimators_ = [estimator.estimator]


def _is_file(weights) -> bool:
    """Return whether `weights` names a file, rather than what has none."""
    if isinstance(weights, WeightsNotStored):
        return False
    return isinstance(weights, str | os.PathLike) and weights != "random"


def _is_default(cls: type, name: str, value) -> bool:
    default = inspect.signature(cls.__init__).parameters[name].default
    return value is default or (type(value) is type(default) and value == default)


def _is_array(value, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in kinds


def _element_strides(array: np.ndarray) -> tuple[int, ...] | None:
    """Return strides in elements; None if no product could use the array as it is."""
    uneven = any(stride % array.itemsize for stride in array.strides)
    if uneven or not array.flags.aligned or not array.dtype.isnative:
        return None
    return tuple(stride // array.itemsize for stride in array.strides)


def _runs_down(matrix: np.ndarray) -> bool:
    """Return whether elements of a column are nearer to each other than of a row."""
    return abs(matrix.strides[0]) < abs(matrix.strides[1])


def _span(shape, strides) -> int:
    """Return how many elements lie between the first and the last one, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True))


def _lay_out(values: np.ndarray, strides) -> np.ndarray:
    """Copy `values` to an array of the same shape with `strides`, in elements."""
    base = np.zeros(max(1, _span(values.shape, strides)), values.dtype)
    # Along axes that run backwards, the first element is the one farthest behind.
    start = sum(
        (n - 1) * -s for n, s in zip(values.shape, strides, strict=True) if s < 0 < n
    )
    array = as_strided(
        base[start:], values.shape, [step * values.itemsize for step in strides]
    )
    array[...] = values
    return array


def _scores_with_given(estimator) -> bool:
    """Return whether a detector scores with the very estimator that it was given."""
    if isinstance(estimator, TunedThresholdDetector):
        return estimator.estimator_ is estimator.estimator
    if isinstance(estimator, ConformalDetector):
        return estimator.estimators_ == [estimator.estimator]
    return False
