"""Estimators that hold others: defaults, inherited parameters, fits that fail."""

from contextlib import contextmanager


@contextmanager
def unchanged_on_error(estimator):
    """Give `estimator` its attributes back if the block fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def with_defaults(estimator, params: dict, **defaults) -> dict:
    """Add to `params` the sub-estimators that they are for, where these are None."""
    missing = {
        name: default()
        for name, default in defaults.items()
        if any(key.startswith(f"{name}__") for key in params)
        and params.get(name, getattr(estimator, name)) is None
    }
    return {**params, **missing}


def inherit_params(estimator, **params):
    """Set those of `params` that `estimator` has and leaves at None, or silent."""
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


def _is_unset(name: str, value) -> bool:
    # 0 is a seed like any other, but no verbosity.
    return value is None or (name == "verbose" and not value)
