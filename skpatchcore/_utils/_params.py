"""Meta-estimators: default sub-estimators, inherited parameters, failed fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from sklearn.frozen import FrozenEstimator


class FrozenParams:
    """Estimators that score with the parameters of their `fit`.

    A threshold belongs to the parameters that it was learned with. So a parameter that
    is set after `fit` must not change what the estimator answers until the next `fit`.
    """

    #: Parameters that scores, maps and matches depend on.
    _frozen_names: ClassVar[tuple[str, ...]] = ()
    #: Their values in the last fit.
    _frozen: SimpleNamespace

    def _freeze_params(self) -> None:
        values = {name: getattr(self, name) for name in self._frozen_names}
        self._frozen = SimpleNamespace(**values)


def fitted_params(estimator: Any) -> dict[str, Any]:
    """Return the parameters that a fitted estimator works with."""
    frozen = vars(estimator).get("_frozen", SimpleNamespace())
    return {**estimator.get_params(deep=False), **vars(frozen)}


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


def seed_unset(estimator: Any, random_state: np.random.RandomState) -> Any:
    """Set every `random_state` of `estimator` and its parts that is None.

    scikit-learn's ``PCA``, for one, uses a randomised solver on wide data. Frozen parts
    are fitted already and are not changed.
    """
    if isinstance(estimator, FrozenEstimator) or not hasattr(estimator, "get_params"):
        return estimator
    params = estimator.get_params(deep=True)
    frozen = [f"{k}__" for k, v in params.items() if isinstance(v, FrozenEstimator)]
    unset = [
        name
        for name, value in sorted(params.items())
        if name.rpartition("__")[2] == "random_state"
        and value is None
        and not name.startswith(tuple(frozen))
    ]
    largest = np.iinfo(np.int32).max
    return estimator.set_params(
        **{n: int(random_state.randint(largest)) for n in unset}
    )


def _is_unset(name: str, value: Any) -> bool:
    # A random_state of 0 is a seed like any other; verbose=0 is the default.
    return value is None or (name == "verbose" and not value)
