"""Networks of fitted features that are built again, for example after unpickling."""

import os
from typing import Any

from skpatchcore._backbones import Backbone
from skpatchcore._utils import fitted_params


def with_absolute_path(weights: Any) -> tuple[Any, str | None]:
    """Return `weights` and, if it is a relative path, the absolute one."""
    if weights in (None, "random") or os.path.isabs(weights):
        return weights, None
    return weights, os.path.abspath(weights)


def check_unchanged(features: Any, network: Backbone) -> None:
    """Raise a ValueError if a network that was built again is not that of the fit."""
    # Pickles of earlier versions have no key.
    expected = vars(features).get("_network_key")
    if expected is None or network.state_key == expected:
        return
    backbone = fitted_params(features)["backbone"]
    if network.own:
        name, reason = type(backbone).__name__, "state (weights, hooks, ...)"
        remedy = "Use the module as it was in the fit"
    else:
        name, reason = backbone, "weights"
        remedy = (
            "Restore the weights of the fit (random and pretrained ones may change "
            "with the versions of torch and timm)"
        )
    raise ValueError(
        f"The {reason} of the network {name!r} changed after this "
        f"{type(features).__name__} was fitted and pickled or copied. {remedy}, or "
        "fit again."
    )
