"""A fitted detector as JSON and arrays, and back."""

import inspect
import math
import os
from numbers import Integral
from pathlib import PurePath
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from torch import nn

from skpatchcore._backbones import WeightsNotStored
from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import PatchCoreEnsemble, has_maps, is_frozen, unwrap
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._utils import FrozenParams, fitted_params
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence._archive import entry
from skpatchcore.persistence._arrays import ArrayReader, ArrayWriter
from skpatchcore.persistence._schema import (
    ESTIMATORS,
    FITTED,
    LEFT_OUT,
    OPTIONAL,
    PARAMS,
    PROJECTIONS,
    SPLITTERS,
    check_values,
)
from skpatchcore.persistence._values import Text, in_short

_SPLITTERS = {cls.__name__: cls for cls in SPLITTERS}
_FILE_NAME = Text("a file name without folders", r"(?!\.{1,2}$)[^/\\\0]+")
# Detectors around detectors; no sensible one comes near.
_MAX_DEPTH = 100


class Writer:
    """Turns objects into JSON, and puts the arrays it refers to into `arrays`.

    Non-JSON values are encoded as ``{kind: payload}``. Parameters that belong to a
    machine are left out; `devices` holds those of the parts that score, by their place.
    """

    def __init__(self) -> None:
        self._aside = ArrayWriter()
        self.arrays = self._aside.arrays
        self.devices: dict[str, str] = {}

    def encode(self, value: Any, where: str, *, fitted: bool = False) -> Any:
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
            return self._aside.keep(value, where) if numeric else value.tolist()
        if issparse(value) and value.format == "csr":
            return self._aside.keep_csr(value, where)
        value = _without_wrappers(value)
        if type(value) in FITTED:
            return {"estimator": self._encode_estimator(value, where, fitted)}
        raise TypeError(
            f"{where} is {value!r}, of {type(value)}, which a model file cannot hold. "
            f"It holds numbers, names, arrays and {', '.join(ESTIMATORS)}."
        )

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
        # Parameters that were set after the fit do not change what a detector answers.
        params = (
            fitted_params(estimator) if fitted else estimator.get_params(deep=False)
        )
        for name, value in params.items():
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
    """Turns the JSON of `Writer` back into objects, and takes what it uses of `arrays`.

    `overrides` replaces parameters of estimators by name. A dict in it holds a value
    for each member of an ensemble, by the member's name.
    """

    def __init__(self, arrays: dict[str, np.ndarray], overrides: dict):
        self.overrides = overrides
        self._depth = 0
        self._decoders = {
            **ArrayReader(arrays).decoders,
            "tuple": self._decode_tuple,
            "module": self._decode_module,
            "weights_file": self._decode_weights_file,
            "names": self._decode_names,
            "splitter": self._decode_splitter,
            "estimator": self._decode_estimator,
        }

    def decode(self, value: Any) -> Any:
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
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in self._decoders:
            raise ValueError(f"no such kind of object: {in_short(sorted(value))}.")
        return self._decoders[kind](content)

    def _decode_tuple(self, content):
        if not isinstance(content, list):
            raise ValueError(f"a tuple must be a list, got {in_short(content)}.")
        return tuple(map(self.decode, content))

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
        if entry(content, "class", str) == PatchCoreEnsemble.__name__:
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
        everyone = in_short(list(dict.fromkeys(known)))
        weights = self.overrides.get("weights")
        if not isinstance(weights, dict | None):
            raise ValueError(
                f"weights={str(weights)!r} is one file, but this is an ensemble of "
                f"{everyone}; give a dict of files by member."
            )
        for name, value in self.overrides.items():
            if isinstance(value, dict) and not value.keys() <= set(known):
                raise ValueError(
                    f"{name} is for {sorted(value)}, but the members of the ensemble "
                    f"are {everyone}."
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

    def _restore(self, estimator: Any, fitted: dict) -> None:
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
        if fitted and isinstance(estimator, FrozenParams):
            estimator._freeze_params()
        if fitted and cls is TunedThresholdDetector and "estimator_" not in fitted:
            estimator.estimator_ = estimator.estimator
        if fitted and cls is ConformalDetector and "estimators_" not in fitted:
            estimator.estimators_ = [estimator.estimator]


def _is_file(weights: Any) -> bool:
    """Return whether `weights` names a file, rather than what has none."""
    if isinstance(weights, WeightsNotStored):
        return False
    return isinstance(weights, str | os.PathLike) and weights != "random"


def _is_default(cls: type, name: str, value: Any) -> bool:
    default = inspect.signature(cls).parameters[name].default
    return value is default or (type(value) is type(default) and value == default)


def _without_wrappers(value: Any) -> Any:
    """Return the detector in a pipeline or a search; anything else as it is.

    Only the detector is needed to score. Frozen estimators stay, since they show that a
    detector was not fitted by the one that wraps it.
    """
    if isinstance(value, FrozenEstimator) or not has_maps(value):
        return value
    inner, steps = unwrap(value)
    if steps:
        return value
    # A pipeline may hold a frozen detector.
    frozen = is_frozen(value) and not is_frozen(inner)
    return FrozenEstimator(inner) if frozen else inner


def _scores_with_given(estimator: Any) -> bool:
    """Return whether a detector scores with the very estimator that it was given."""
    state = vars(estimator)
    if state.get("estimator") is None:
        return False
    given = state["estimator"]
    return state.get("estimator_") is given or state.get("estimators_") == [given]
