"""Containers of images that users pass: lists, columns, arrays and tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skpatchcore._images._pages import as_encoded
from skpatchcore._images._streams import is_stream, iter_owned
from skpatchcore._utils import refuse_lazy

EXPECTED = (
    "Expected a list or 1-D array of paths, PIL images or encoded images (bytes or "
    "BytesIO with the contents of a file), an array (n, h, w) or "
    "(n, h, w, c) of uint8, uint16 or float in [0, 1], a list of such arrays "
    "(h, w[, c]), or torch tensors (n[, c], h, w)."
)
# With two or four channels, the last one is alpha, unless the network takes as many.
_CHANNELS = (1, 2, 3, 4)


def may_be_channels(n: int, height: int, width: int) -> bool:
    """Return whether an image of a size may have `n` channels.

    More than four, of a multispectral camera, must be fewer than rows and columns:
    otherwise the axes are more likely to be in another order.
    """
    return n in _CHANNELS or 0 < n < min(height, width)


def as_sources(X: Any) -> Sequence[Any]:
    """Return one entry for each image: a path, page, PIL image, array or bytes."""
    if isinstance(X, torch.Tensor):
        return _split_array(_tensor_to_numpy(X, "X", batched=True))
    X = _single_column(X)
    if isinstance(X, np.ndarray) and X.dtype.kind == "S":
        raise ValueError(
            f"Got an array of dtype {X.dtype}, in which NumPy drops zeros at the end "
            "of bytes; pass encoded images in a list or an object array."
        )
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUT":
        return _split_array(X)
    if isinstance(X, np.ndarray):
        # One column of paths, as a ColumnTransformer passes it.
        X = X.ravel() if X.ndim == 2 and X.shape[1] == 1 else X
        if X.ndim != 1:
            raise ValueError(
                f"Got an array of {X.dtype} objects of shape {X.shape}. {EXPECTED}"
            )
        X = X.tolist()
    if not hasattr(X, "__iter__") and not hasattr(X, "__getitem__"):
        raise TypeError(f"Got X of type {type(X).__name__}. {EXPECTED}")
    items = list(iter_owned(X) if is_stream(X) else X)
    for i, item in enumerate(items):
        if isinstance(item, torch.Tensor):
            items[i] = _tensor_to_numpy(item, f"image {i}", batched=False)
        else:
            items[i] = as_encoded(item)
    return items


def _single_column(X: Any) -> Any:
    """Return the values of a column of pandas, polars or pyarrow; X if it is none.

    Raises
    ------
    ValueError
        If X is a table of several columns.
    """
    refuse_lazy(X)
    names = _column_names(X)
    if names is not None:
        if len(names) != 1:
            raise ValueError(_describe_columns(names))
        X = X[names[0]]
    for method in ("to_list", "to_pylist"):
        # pyarrow's own iterator returns scalars of pyarrow.
        if hasattr(X, method):
            return getattr(X, method)()
    return X


def _describe_columns(names: list[Any]) -> str:
    """Return what to say about a table that is not a single column."""
    if not names:
        return f"Got a table without columns. {EXPECTED}"
    listed = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
    return (
        f"Got a table of {len(names)} columns ({listed}); expected one column of "
        f"images. Select it, for example X[{names[0]!r}]. Reshape flattened images to "
        "an array (n, h, w)."
    )


def _column_names(X: Any) -> list[Any] | None:
    """Return the names of the columns of a table; None if X is not a table."""
    # The columns of a pyarrow table are its values; of the others, their names.
    names = getattr(X, "column_names", getattr(X, "columns", None))
    return None if names is None else list(names)


def _split_array(X: NDArray) -> list[NDArray]:
    if X.ndim == 3 and X.shape[-1] in (3, 4):
        raise ValueError(
            f"Got an array of shape {X.shape}, which looks like a single image; pass "
            "X[np.newaxis] or [X]."
        )
    if X.ndim not in (3, 4):
        raise ValueError(
            f"Got an array of shape {X.shape} and dtype {X.dtype}. {EXPECTED} "
            "Reshape your data if it holds flattened images; patch vectors belong in "
            "PatchMemoryBank."
        )
    return list(X)


def _tensor_to_numpy(tensor: torch.Tensor, name: str, *, batched: bool) -> NDArray:
    """Convert a tensor with channels first to an array with channels last."""
    if tensor.ndim == 3 + batched and not may_be_channels(*tensor.shape[-3:]):
        raise ValueError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}, which means "
            f"{tensor.shape[-3]} channels. Tensors must have their channels first: "
            "permute the axes if the channels are last, or pass X.numpy()."
        )
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.moveaxis(array, -3, -1) if array.ndim == 3 + batched else array
