"""Turn the JSON and arrays of a model file back into a detector."""

from copy import copy
from typing import Any

import numpy as np

from skpatchcore._backbones import WeightsNotStored
from skpatchcore._detectors import PatchCoreDetector, PatchCoreEnsemble
from skpatchcore._features import thaw
from skpatchcore._utils import FrozenParams
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence._archive import entry
from skpatchcore.persistence._arrays import ArrayReader
from skpatchcore.persistence._schema import (
    ESTIMATORS,
    FITTED,
    OPTIONAL,
    PARAMS,
    SPLITTERS,
    check_values,
)
from skpatchcore.persistence._values import Text, in_short

_SPLITTERS = {cls.__name__: cls for cls in SPLITTERS}
_FILE_NAME = Text("a file name without folders", r"(?!\.{1,2}$)[^/\\\0]+")
# Limit on nested objects. No sensible detector comes near.
_MAX_DEPTH = 100


class Reader:
    """Turns the JSON of `Writer` back into objects, and removes used arrays.

    `overrides` replaces parameters of estimators by name. A dict in it has a value for
    each member of an ensemble, by the name of the member.
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

    def _decode_object(self, value: dict) -> Any:
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in self._decoders:
            raise ValueError(f"unknown kind of object: {in_short(sorted(value))}.")
        return self._decoders[kind](content)

    def _decode_tuple(self, content: Any) -> tuple:
        if not isinstance(content, list):
            raise ValueError(f"a tuple must be a list, got {in_short(content)}.")
        return tuple(map(self.decode, content))

    def _decode_module(self, name: Any) -> Any:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{in_short(name)} is not the class of a module.")
        if "backbone" not in self.overrides:
            raise ValueError(
                f"its network was given as a module, {name:.80}; pass one with the "
                "same weights to load(..., backbone=module)."
            )
        return self.overrides["backbone"]

    def _decode_weights_file(self, name: Any) -> WeightsNotStored:
        if not _FILE_NAME.accepts(name):
            raise ValueError(
                f"weights_file must be {_FILE_NAME}, got {in_short(name)}."
            )
        return WeightsNotStored(name)

    def _decode_names(self, content: Any) -> np.ndarray:
        if not isinstance(content, list) or not all(type(n) is str for n in content):
            raise ValueError(f"names must be a list of strings, got {content!r:.80}.")
        return np.array(content, dtype=object)

    def _decode_splitter(self, content: Any) -> Any:
        cls, params = self._described(content, _SPLITTERS, "splitter")
        return cls(**params)

    def _decode_estimator(self, content: Any) -> Any:
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

    def _described(
        self, content: Any, classes: dict[str, type], what: str
    ) -> tuple[Any, dict[str, Any]]:
        """Return the class in a description, and its parameters after checks."""
        name, params = entry(content, "class", str), entry(content, "params", dict)
        if name not in classes:
            raise ValueError(
                f"{what} {in_short(name)} is unknown; expected {', '.join(classes)}."
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

    def _decode_members(self, content: dict) -> dict:
        """Return the description of an ensemble after decoding its members."""
        params = dict(entry(content, "params", dict))
        fitted = dict(entry(content, "fitted", dict))
        pairs = [entry(p, "tuple", list) for p in entry(params, "estimators", list)]
        # Members may have been replaced or dropped after the fit.
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
                f"{everyone}; pass a dict of files by member."
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

    def _decode_member(self, name: str, value: Any) -> Any:
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
                f"{cls.__name__} has missing or unknown fitted attributes: "
                f"{in_short(sorted(odd))}."
            )
        values = {name: self.decode(value) for name, value in fitted.items()}
        check_values(cls, values, kinds)
        for name, value in values.items():
            setattr(estimator, name, value)
        if fitted and isinstance(estimator, FrozenParams):
            estimator._freeze_params()
        if fitted and cls is PatchCoreDetector and "features_" not in fitted:
            estimator.features_ = thaw(estimator.features)
        # A copy: the parameter of the frozen estimator may be set after loading.
        if fitted and cls is TunedThresholdDetector and "estimator_" not in fitted:
            estimator.estimator_ = copy(estimator.estimator)
        if fitted and cls is ConformalDetector and "estimators_" not in fitted:
            estimator.estimators_ = [copy(estimator.estimator)]
