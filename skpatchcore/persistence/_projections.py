"""Check that the parts of a projection from a model file are consistent."""

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from skpatchcore.persistence._schema import FITTED

# Shapes, for d input features and k output features.
_PCA = {
    "components_": "kd",
    "mean_": "d",
    "explained_variance_": "k",
    "explained_variance_ratio_": "k",
    "singular_values_": "k",
    "var_": "d",
}
_RANDOM = {"components_": "kd", "inverse_components_": "dk"}
_SHAPES = {
    PCA: _PCA,
    IncrementalPCA: _PCA,
    TruncatedSVD: _PCA,
    GaussianRandomProjection: _RANDOM,
    SparseRandomProjection: _RANDOM,
    StandardScaler: {"mean_": "d", "scale_": "d", "var_": "d"},
    Normalizer: {},
}
# Numbers that must equal the number of output features.
_LENGTHS = ("n_components_", "_n_features_out")


def check_projection(projection: Any, n_features: int) -> None:
    """Raise a ValueError unless a projection returns `n_features` features."""
    n_given = _check_step(projection, None)
    try:
        patch = np.zeros((1, n_given), np.float32)
        projected = projection.transform(patch)
    except Exception as error:
        raise ValueError(f"its projection does not work: {error}") from error
    if projected.shape != (1, n_features):
        raise ValueError(
            f"its projection returns shape {projected.shape}, not {n_features} "
            "features."
        )


def _check_step(step: Any, n_given: int | None) -> int:
    """Check a projection or one of its steps; return its number of input features.

    `n_given` is the number of features from the previous step, None for the first step.
    """
    if isinstance(step, FrozenEstimator):
        return _check_step(step.estimator, n_given)
    if hasattr(step, "steps"):
        return _check_steps(step.steps, n_given)
    if type(step) not in _SHAPES:
        raise ValueError(f"a {type(step).__name__} cannot be a projection.")
    missing = FITTED[type(step)].keys() - vars(step).keys()
    if missing:
        raise ValueError(
            f"its projection {type(step).__name__} is not fitted: "
            f"{sorted(missing)} are missing."
        )
    if n_given not in (None, step.n_features_in_):
        raise ValueError(
            f"its projection does not work: {type(step).__name__} expects "
            f"{step.n_features_in_} features, but gets {n_given}."
        )
    _check_shapes(step)
    return step.n_features_in_


def _check_steps(steps: list[tuple[str, Any]], n_given: int | None) -> int:
    """Check the steps of a pipeline in order."""
    first = None
    for _, step in steps:
        if step is None or isinstance(step, str):
            continue
        taken = _check_step(step, n_given)
        first = taken if first is None else first
        n_given = _n_out(step)
    if first is None:
        raise ValueError("its projection is a Pipeline without a fitted step.")
    return first


def _n_out(step: Any) -> int:
    """Return the number of output features of a step that was checked."""
    if isinstance(step, FrozenEstimator):
        return _n_out(step.estimator)
    if hasattr(step, "steps"):
        steps = [one for _, one in step.steps if one is not None]
        return _n_out([one for one in steps if not isinstance(one, str)][-1])
    components = getattr(step, "components_", None)
    return step.n_features_in_ if components is None else components.shape[0]


def _check_shapes(step: Any) -> None:
    sizes = {"d": step.n_features_in_}
    for name, letters in _SHAPES[type(step)].items():
        array: Any = getattr(step, name, None)
        if not (isinstance(array, np.ndarray) or issparse(array)):
            continue
        for letter, size in zip(letters, array.shape, strict=True):
            sizes.setdefault(letter, size)
        if array.shape != tuple(sizes[letter] for letter in letters):
            raise ValueError(
                f"its projection's {name} has shape {array.shape} where {sizes}."
            )
    for name in _LENGTHS:
        if name in vars(step) and getattr(step, name) != sizes.get("k"):
            raise ValueError(f"its projection's {name} is not {sizes.get('k')}.")
    scale = getattr(step, "scale_", None)
    if scale is not None and not (scale > 0).all():
        raise ValueError("its projection's scale_ must be positive.")
