"""Turn a fitted detector into JSON and arrays."""

import inspect
import math
import os
from collections.abc import Iterator
from numbers import Integral
from pathlib import PurePath
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from torch import nn

from skpatchcore._backbones import WeightsNotStored
from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import has_maps, is_frozen, unwrap
from skpatchcore._features import PatchFeatureTransformer, thaw
from skpatchcore._utils import fitted_params
from skpatchcore.persistence._arrays import ArrayWriter
from skpatchcore.persistence._schema import (
    ESTIMATORS,
    FITTED,
    LEFT_OUT,
    OPTIONAL,
    PARAMS,
    PROJECTIONS,
    SPLITTERS,
)


class Writer:
    """Turns objects into JSON, and collects the arrays that it refers to in `arrays`.

    Non-JSON values are encoded as ``{kind: payload}``. Parameters that belong to a
    machine are left out. `machine` holds the devices and engines of the parts that
    score, by path.
    """

    def __init__(self) -> None:
        self._aside = ArrayWriter()
        self.arrays = self._aside.arrays
        self.machine: dict[str, str] = {}

    def encode(self, value: Any, where: str, *, fitted: bool = False) -> Any:
        """Return JSON for `value`, found at `where`.

        With `fitted`, estimators include their fitted attributes.
        """
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

    def _encode_object(self, value: Any, where: str, fitted: bool) -> Any:
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

    def _encode_estimator(
        self, estimator: Any, where: str, fitted: bool
    ) -> dict[str, Any]:
        cls = type(estimator)
        state = vars(estimator) if fitted else {}
        names = (FITTED[cls].keys() | OPTIONAL.get(cls, {}).keys()) & state.keys()
        # Our estimators fit clones of their parameters. A Pipeline fits its own steps,
        # and a FrozenEstimator is useless without fitted attributes.
        keep = cls is FrozenEstimator or (fitted and cls in PROJECTIONS)
        if fitted and _scores_with_given(estimator):
            keep, names = True, names - {"estimator_", "estimators_"}
        if fitted and _uses_frozen_features(estimator):
            names = names - {"features_"}
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

    def _portable_params(
        self, estimator: Any, prefix: str, fitted: bool
    ) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of parameters that do not belong to a machine."""
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
                chosen = name in ("device", "engine") and value not in (None, "torch")
                if scores and chosen:
                    self.machine[f"{prefix}{name}"] = str(value)
            elif not _is_default(cls, name, value):
                # A newer version of scikit-learn may have more parameters.
                raise TypeError(
                    f"{prefix}{name}={value!r} is a parameter that this version of "
                    "skpatchcore does not store. Leave it at its default."
                )


def _is_file(weights: Any) -> bool:
    """Return whether `weights` is the path of a file."""
    if isinstance(weights, WeightsNotStored):
        return False
    return isinstance(weights, str | os.PathLike) and weights != "random"


def _is_default(cls: type, name: str, value: Any) -> bool:
    default = inspect.signature(cls).parameters[name].default
    return value is default or (type(value) is type(default) and value == default)


def _without_wrappers(value: Any) -> Any:
    """Return the detector in a pipeline or a search, and anything else unchanged.

    Only the detector is needed to score. Frozen estimators stay, because they show that
    a detector was not fitted by its wrapper.
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
    """Return whether a detector scores with the frozen one that it was given."""
    state = vars(estimator)
    given = state.get("estimator")
    scoring = state.get("estimators_", [state.get("estimator_")])
    frozen = all(isinstance(one, FrozenEstimator) for one in (given, *scoring))
    return frozen and [one.estimator for one in scoring] == [given.estimator]


def _uses_frozen_features(estimator: Any) -> bool:
    """Return whether a detector uses the frozen features that it was given."""
    state = vars(estimator)
    given = state.get("features")
    return isinstance(given, FrozenEstimator) and state.get("features_") is thaw(given)
