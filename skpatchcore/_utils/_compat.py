"""Private names of scikit-learn and joblib, imported here and nowhere else.

If a release moves one of these names, only this module has to change. The decorators
are wrapped in functions with types, because scikit-learn has no type hints: a type
checker treats a method behind an untyped decorator as `Any`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from joblib.disk import memstr_to_bytes
from sklearn.base import _fit_context
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
    "StrOptions",
    "available_if",
    "check_method_params",
    "fit_context",
    "memstr_to_bytes",
    "num_samples",
    "safe_indexing",
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
