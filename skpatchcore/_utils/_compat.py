"""Private names of scikit-learn and joblib, imported here and nowhere else.

If a release moves one of these names, only this module has to change. The decorators
are wrapped in functions with types, because scikit-learn has no type hints: a type
checker treats a method behind an untyped decorator as `Any`.
"""

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from joblib.disk import memstr_to_bytes
from sklearn.base import _fit_context
from sklearn.metrics._scorer import _Scorer as ScikitLearnScorer
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import _param_validation
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils import metaestimators as _metaestimators
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    RealNotInt,
    StrOptions,
)
from sklearn.utils.metaestimators import _BaseComposition as BaseComposition
from sklearn.utils.validation import _check_method_params as check_method_params
from sklearn.utils.validation import _num_samples as num_samples

__all__ = [
    "BaseComposition",
    "BaseSearchCV",
    "HasMethods",
    "Interval",
    "RealNotInt",
    "ScikitLearnScorer",
    "StrOptions",
    "available_if",
    "check_method_params",
    "fit_context",
    "memstr_to_bytes",
    "move_item",
    "num_samples",
    "open_item",
    "safe_indexing",
    "store_contains",
    "validate_params",
]

F = TypeVar("F", bound=Callable[..., Any])


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[F], F]:
    """Validate an estimator's parameters before its `fit` runs."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


def validate_params(constraints: dict[str, Any]) -> Callable[[F], F]:
    """Validate the named arguments of a function or method when it is called."""
    return _param_validation.validate_params(
        constraints, prefer_skip_nested_validation=True
    )


def available_if(check: Callable[[Any], bool]) -> Callable[[F], F]:
    """Hide a method from instances for which `check` is false."""
    return _metaestimators.available_if(check)


def store_contains(store: Any, path: str) -> bool:
    """Return whether a file exists in a store of joblib."""
    return bool(store._item_exists(path))


def open_item(store: Any, path: str, mode: str) -> BinaryIO:
    """Open a file in a store of joblib."""
    file: BinaryIO = store._open_item(path, mode)
    return file


def move_item(store: Any, source: str, target: str) -> None:
    """Rename a file in a store of joblib, in one step."""
    store._move_item(source, target)
