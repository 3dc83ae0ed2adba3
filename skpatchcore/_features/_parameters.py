"""Checks of parameters beyond their types and ranges."""

from numbers import Integral
from typing import Any

import numpy as np


def check_sizes(params: Any) -> None:
    """Raise a ValueError unless patch size, layers and image sizes are valid."""
    if params.patch_size % 2 == 0:
        raise ValueError(f"patch_size must be odd, got {params.patch_size}.")
    if len(params.layers) == 0 or isinstance(params.layers, str):
        raise ValueError(
            "layers must be a non-empty sequence of names or ints, got "
            f"{params.layers!r}."
        )
    for layer in params.layers:
        if not isinstance(layer, str | Integral) or isinstance(layer, bool):
            raise ValueError(f"layers must hold names or ints, got {layer!r}.")
    for name in ("image_size", "crop_size"):
        value = getattr(params, name)
        if isinstance(value, (tuple, list)) and (
            len(value) != 2
            or not all(isinstance(v, Integral) and int(v) >= 1 for v in value)
        ):
            raise ValueError(
                f"{name} must be an int or (height, width) of positive ints, got "
                f"{value!r}."
            )


def explicit_layer_weights(layer_weights: Any, layers: Any) -> tuple[float, ...]:
    """Return the given weights, or ones if weights are learned or equal."""
    if layer_weights is None or isinstance(layer_weights, str):
        return (1.0,) * len(layers)
    try:
        values = tuple(float(value) for value in layer_weights)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(layers) or not all(0 < v < np.inf for v in values):
        raise ValueError(
            f"layer_weights must hold a positive number for each of the {len(layers)} "
            f"layers, got {layer_weights!r}."
        )
    return values
