"""Tables of pandas, polars and PyArrow."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpatchcore._utils._compat import safe_indexing


def refuse_lazy(X: Any) -> None:
    """Raise an error if `X` is a table whose values are not computed yet."""
    if callable(getattr(X, "collect", None)) and not hasattr(X, "__len__"):
        raise TypeError(
            f"Got X of type {type(X).__name__}, which has no values before they are "
            "collected. Pass X.collect()."
        )


def take_rows(rows: Any, indices: NDArray[np.int64]) -> Any:
    """Return rows of an array, table or column; tables and columns keep their types."""
    if hasattr(rows, "to_pylist"):
        # Of PyArrow. scikit-learn does not keep the types of arrays and batches.
        return rows.take(indices)
    if hasattr(rows, "columns") or hasattr(rows, "to_list"):
        return safe_indexing(rows, indices)
    return np.asarray(rows)[indices]
