"""Meta-estimators: default sub-estimators, inherited parameters, failed fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """Restore the attributes of `estimator` if the block fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def with_defaults(
    estimator: Any, params: dict[str, Any], **defaults: Callable[[], Any]
) -> dict[str, Any]:
    """Add default sub-estimators to `params` for nested parameters that need them.

    If `params` contains ``name__parameter`` and the sub-estimator ``name`` is None, it
    becomes ``defaults[name]()``.
    """
    missing = {
        name: default()
        for name, default in defaults.items()
        if any(key.startswith(f"{name}__") for key in params)
        and params.get(name, getattr(estimator, name)) is None
    }
    return {**params, **missing}


def inherit_params(estimator: Any, **params: Any) -> Any:
    """Set those of `params` that `estimator` has but leaves unset (None, or silent)."""
    if not hasattr(estimator, "get_params"):
        return estimator
    own = estimator.get_params(deep=False)
    unset = {
        name: value
        for name, value in params.items()
        if name in own and value is not None and _is_unset(name, own[name])
    }
    if unset:
        estimator.set_params(**unset)
    return estimator


def _is_unset(name: str, value: Any) -> bool:
    # A random_state of 0 is a seed like any other; verbose=0 is the default.
    return value is None or (name == "verbose" and not value)
