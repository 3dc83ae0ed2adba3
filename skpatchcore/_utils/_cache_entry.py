"""File format of a cache entry: JSON and raw arrays with a checksum, no pickle.

A file consists of magic bytes, a SHA-256 checksum, the length of the header, the header
(JSON) and the arrays. The checksum also covers the name of the entry, so that a swapped
file is detected.
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MAGIC = b"skpatchcore cache\n2\n"
_DIGEST_SIZE = 32
_LENGTH_SIZE = 8
_BODY_START = len(_MAGIC) + _DIGEST_SIZE + _LENGTH_SIZE
# Arrays start at multiples of this. torch needs it for tensors that share the memory.
_ALIGNMENT = 64
# Booleans, integers and floats. No other arrays are stored.
_DTYPE_KINDS = "biuf"


class DamagedEntryError(ValueError):
    """A file does not contain the expected entry."""


def write_entry(file: BinaryIO, name: str, value: Any, level: int = 0) -> None:
    """Write an entry to a file.

    Parameters
    ----------
    file : binary file, open for writing
    name : str
        Name of the entry. Pass the same name to `read_entry`.
    value : object
        Arrays, numbers, strings, None, and lists, tuples and dicts of these.
    level : int
        Compression level of zlib from 1 to 9, or 0 for no compression.
    """
    arrays: list[NDArray] = []
    tree = _encode(value, arrays)
    blobs = [_as_bytes(array, level) for array in arrays]
    records = [
        {"dtype": array.dtype.str, "shape": array.shape, "size": len(blob)}
        for array, blob in zip(arrays, blobs, strict=True)
    ]
    header = json.dumps({"tree": tree, "arrays": records, "zlib": level > 0}).encode()
    header += b" " * (-(_BODY_START + len(header)) % _ALIGNMENT)
    parts: list[bytes | memoryview] = [
        len(header).to_bytes(_LENGTH_SIZE, "little"),
        header,
    ]
    for blob in blobs:
        parts += [blob, bytes(-len(blob) % _ALIGNMENT)]
    file.writelines([_MAGIC, _digest(name, *parts), *parts])


def read_entry(file: BinaryIO, name: str) -> Any:
    """Return the value that `write_entry` wrote, with lists in place of tuples.

    Raises
    ------
    DamagedEntryError
        If the file is incomplete or damaged, or contains another entry.
    """
    view = _read_all(file)
    if view[: len(_MAGIC)] != _MAGIC:
        raise DamagedEntryError("it is not in the format of this version")
    start = len(_MAGIC) + _DIGEST_SIZE
    if bytes(view[len(_MAGIC) : start]) != _digest(name, view[start:]):
        raise DamagedEntryError("its checksum does not match")
    try:
        return _parse(view)
    except (KeyError, IndexError, TypeError, ValueError, zlib.error) as error:
        raise DamagedEntryError(f"it is not well-formed ({error})") from error


def is_array(value: Any, dtype: DTypeLike, shape: tuple[int | None, ...]) -> bool:
    """Return whether `value` is an array of this dtype and shape; None is any size."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    )


def are_rows(values: NDArray, n_rows: int) -> bool:
    """Return whether all `values` are row numbers of a matrix with `n_rows` rows."""
    return values.size == 0 or bool(values.min() >= 0 and values.max() < n_rows)


def _read_all(file: BinaryIO) -> memoryview:
    # The arrays of the entry share this memory, which makes them writable.
    data = np.empty(file.seek(0, os.SEEK_END), dtype=np.uint8)
    file.seek(0)
    # Binary files have this method, but the abstract BinaryIO does not list it.
    n_read = cast(io.BufferedReader, file).readinto(data.data)
    return data.data[:n_read]


def _digest(name: str, *parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(f"{name}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


def _encode(value: Any, arrays: list[NDArray]) -> Any:
    """Return `value` as JSON, with its arrays appended to `arrays` and numbered."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _DTYPE_KINDS:
            raise TypeError(f"Cache entries cannot contain arrays of {value.dtype}.")
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(item, arrays) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Cache entries cannot contain a {type(value).__name__}.")


def _as_bytes(array: NDArray, level: int) -> bytes | memoryview:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return zlib.compress(data, level) if level else data


def _parse(view: memoryview) -> Any:
    """Return the value in a file whose checksum is right."""
    length = int.from_bytes(view[_BODY_START - _LENGTH_SIZE : _BODY_START], "little")
    header = json.loads(bytes(view[_BODY_START : _BODY_START + length]))
    body = view[_BODY_START + length :]
    arrays = list(_iter_arrays(body, header["arrays"], header["zlib"]))
    return _decode(header["tree"], arrays)


def _iter_arrays(
    body: memoryview, records: list[dict[str, Any]], compressed: bool
) -> Iterator[NDArray]:
    start = 0
    for record in records:
        dtype, shape = np.dtype(record["dtype"]), tuple(record["shape"])
        if dtype.kind not in _DTYPE_KINDS:
            raise ValueError(f"arrays of {dtype}")
        blob: memoryview | bytearray = body[start : start + record["size"]]
        start += record["size"] + (-record["size"] % _ALIGNMENT)
        if compressed:
            n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
            # Bounded, so that forged data cannot expand to fill the memory.
            blob = bytearray(zlib.decompressobj().decompress(blob, max(n_bytes, 1)))
        yield np.frombuffer(blob, dtype).reshape(shape)


def _decode(tree: Any, arrays: list[NDArray]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    return {key: _decode(item, arrays) for key, item in tree["dict"].items()}
