"""Arrays of a model file, stored and restored with their memory layout."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse import csr_matrix

from skpatchcore.persistence._archive import entry
from skpatchcore.persistence._values import in_short

# Elements that arrays with gaps may span in a file: 512 MB of float64, of which only
# memory pages that contain elements are used.
_MAX_SPAN = 2**26
# Longest side of a CSR matrix that is read, because a shape takes no bytes in a file.
_MAX_CSR_SIDE = 2**20


class ArrayWriter:
    """Collects arrays under names, each once, and describes their layout.

    The layout is kept, because BLAS, and the loops that NumPy uses in its place, round
    differently for other layouts.

    Parameters
    ----------
    max_span : int
        Elements that all arrays with gaps may span together. Beyond it, gaps are
        removed, which does not change products.
    """

    def __init__(self, max_span: int = _MAX_SPAN):
        self.arrays: dict[str, np.ndarray] = {}
        self._left = max_span
        # Descriptions by identity. The array is kept, so that its identity is not used
        # again.
        self._kept: dict[int, tuple[np.ndarray, dict]] = {}

    def keep(self, array: np.ndarray, where: str) -> dict:
        """Store an array and return a description of its layout."""
        if id(array) not in self._kept:
            self.arrays[where], described = self._lay_aside(array, where)
            self._kept[id(array)] = array, described
        return self._kept[id(array)][1]

    def keep_csr(self, matrix: csr_matrix, where: str) -> dict:
        """Store the parts of a CSR matrix and return their description."""
        names = ("data", "indices", "indptr")
        parts = {n: self.keep(getattr(matrix, n), f"{where}.{n}") for n in names}
        return {"csr": {**parts, "shape": list(matrix.shape)}}

    def _lay_aside(self, array: np.ndarray, where: str) -> tuple[np.ndarray, dict]:
        """Return the elements, in C order and native bytes, and their description."""
        strides, transposed = _element_strides(array), False
        described: dict[str, Any] = {"array": where}
        if strides is None:
            # NumPy copies such an array for each product. Projections multiply by the
            # transpose, whose copy is in C order.
            transposed = array.ndim == 2 and min(array.shape) > 1
        elif array.flags.c_contiguous:
            pass
        elif array.ndim == 2 and array.flags.f_contiguous:
            transposed = True
        elif _span(array.shape, strides) <= self._left:
            self._left -= _span(array.shape, strides)
            described = {"strided": {"array": where, "strides": list(strides)}}
        else:
            transposed = array.ndim == 2 and _runs_down(array)
        native = array.dtype.newbyteorder("=")
        aside = array.T if transposed else array
        described = {"transposed": where} if transposed else described
        return np.ascontiguousarray(aside, dtype=native), described


class ArrayReader:
    """Restores arrays from their descriptions, and removes them from `arrays`."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.decoders = {
            "array": self._take,
            "transposed": lambda name: self._take(name).T,
            "strided": self._take_strided,
            "csr": self._take_csr,
        }
        self._taken: dict[str, np.ndarray] = {}
        self._strided: dict[tuple, np.ndarray] = {}
        self._left = _MAX_SPAN

    def _take(self, name) -> np.ndarray:
        if not isinstance(name, str) or name not in self.arrays.keys() | self._taken:
            raise ValueError(f"there is no array {in_short(name)}.")
        if name in self.arrays:
            # A copy is aligned and, like fitted arrays, writable.
            self._taken[name] = self.arrays.pop(name).copy()
        return self._taken[name]

    def _take_strided(self, content) -> np.ndarray:
        """Return an array with its original strides."""
        values = self._take(entry(content, "array", str))
        strides = entry(content, "strides", list)
        if len(strides) != values.ndim or not all(
            type(step) is int and abs(step) <= _MAX_SPAN for step in strides
        ):
            raise ValueError(f"strides {in_short(strides)} are not those of an array.")
        key = (content["array"], *strides)
        if key not in self._strided:
            self._left -= _span(values.shape, strides)
            if self._left < 0:
                raise ValueError(f"its arrays span more than {_MAX_SPAN} elements.")
            self._strided[key] = _lay_out(values, strides)
        return self._strided[key]

    def _take_csr(self, content) -> csr_matrix:
        data, indices, indptr = (
            self._take_part(entry(content, name, dict))
            for name in ("data", "indices", "indptr")
        )
        shape = entry(content, "shape", list)
        if len(shape) != 2 or not all(
            type(n) is int and 1 <= n <= _MAX_CSR_SIDE for n in shape
        ):
            raise ValueError(f"{in_short(shape)} is not the shape of a CSR matrix.")
        if data.dtype.kind not in "biuf" or not all(
            part.dtype.kind == "i" for part in (indices, indptr)
        ):
            raise ValueError("a CSR matrix must consist of numbers and integer places.")
        matrix = csr_matrix((data, indices, indptr), shape=shape)
        # SciPy does not check indices, so invalid ones would read other memory.
        matrix.check_format(full_check=True)
        return matrix

    def _take_part(self, description: dict) -> np.ndarray:
        kind, content = next(iter(description.items()), (None, None))
        if len(description) != 1 or kind not in ("array", "strided"):
            raise ValueError(f"{in_short(description)} is not a part of a CSR matrix.")
        return self.decoders[kind](content)


def _element_strides(array: np.ndarray) -> tuple[int, ...] | None:
    """Return strides in elements, or None if products cannot use the array directly."""
    uneven = any(stride % array.itemsize for stride in array.strides)
    if uneven or not array.flags.aligned or not array.dtype.isnative:
        return None
    return tuple(stride // array.itemsize for stride in array.strides)


def _runs_down(matrix: np.ndarray) -> bool:
    """Return whether columns are closer together in memory than rows."""
    return abs(matrix.strides[0]) < abs(matrix.strides[1])


def _span(shape, strides) -> int:
    """Return the number of elements from the first to the last one, with gaps."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True))


def _lay_out(values: np.ndarray, strides) -> np.ndarray:
    """Copy `values` to an array of the same shape with these strides, in elements."""
    base = np.zeros(max(1, _span(values.shape, strides)), values.dtype)
    # Along axes with negative strides, the first element has the largest address.
    start = sum(
        (n - 1) * -s for n, s in zip(values.shape, strides, strict=True) if s < 0 < n
    )
    array = as_strided(
        base[start:], values.shape, [step * values.itemsize for step in strides]
    )
    array[...] = values
    return array
