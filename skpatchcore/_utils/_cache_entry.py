"""The file format of a cache entry: JSON and raw arrays under a checksum, no pickle.

magic, SHA-256, length of the header, header (JSON), arrays. The checksum covers the
name of the entry, too, so that a file in the place of another one is noticed.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"skpatchcore cache\n2\n"
_DIGEST_SIZE = 32
_LENGTH_SIZE = 8
_BODY_START = len(_MAGIC) + _DIGEST_SIZE + _LENGTH_SIZE
# Arrays begin at multiples of this, as torch needs for tensors that share their memory.
_ALIGNMENT = 64
# Booleans and numbers. Anything else has no place in an entry.
_DTYPE_KINDS = "biuf"


class DamagedEntryError(ValueError):
    """A file does not hold the entry that it should."""


def write_entry(file: BinaryIO, name: str, value, level: int = 0) -> None:
    """Write `value`: arrays, numbers, strings, None; lists, tuples and dicts of these.

    Parameters
    ----------
    file : binary file, open for writing
    name : str
        Of the entry. `read_entry` must be given the same.
    value : object
    level : int
        Compression by zlib, 1 to 9; 0 is none.
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
    parts = [len(header).to_bytes(_LENGTH_SIZE, "little"), header]
    for blob in blobs:
        parts += [blob, bytes(-len(blob) % _ALIGNMENT)]
    file.writelines([_MAGIC, _digest(name, *parts), *parts])


def read_entry(file: BinaryIO, name: str):
    """Return what `write_entry` wrote under `name`; tuples come back as lists.

    Raises
    ------
    DamagedEntryError
        If the file is not whole, or is that of another entry.
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


def is_array(value, dtype, shape: tuple[int | None, ...]) -> bool:
    """Return whether `value` is an array of this type and shape; None is any size."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    )


def are_rows(values: NDArray, n_rows: int) -> bool:
    """Return whether all `values` are row numbers of a matrix of `n_rows` rows."""
    return values.size == 0 or (values.min() >= 0 and values.max() < n_rows)


def _read_all(file: BinaryIO) -> memoryview:
    # Writable, and so are the arrays of the entry, which share this memory.
    data = np.empty(file.seek(0, os.SEEK_END), dtype=np.uint8)
    file.seek(0)
    return data.data[: file.readinto(data)]


def _digest(name: str, *parts) -> bytes:
    digest = hashlib.sha256(f"{name}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


def _encode(value, arrays: list[NDArray]):
    """Return `value` as JSON that refers to `arrays`, to which its arrays are added."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _DTYPE_KINDS:
            raise TypeError(f"Cache entries hold no arrays of {value.dtype}.")
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(item, arrays) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Cache entries hold no {type(value).__name__}.")


def _as_bytes(array: NDArray, level: int):
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return zlib.compress(data, level) if level else data


def _parse(view: memoryview):
    """Return the value in a file whose checksum matches."""
    length = int.from_bytes(view[_BODY_START - _LENGTH_SIZE : _BODY_START], "little")
    header = json.loads(bytes(view[_BODY_START : _BODY_START + length]))
    body = view[_BODY_START + length :]
    arrays = list(_iter_arrays(body, header["arrays"], header["zlib"]))
    return _decode(header["tree"], arrays)


def _iter_arrays(body: memoryview, records: list, compressed: bool) -> Iterator:
    start = 0
    for record in records:
        dtype, shape = np.dtype(record["dtype"]), tuple(record["shape"])
        if dtype.kind not in _DTYPE_KINDS:
            raise ValueError(f"arrays of {dtype}")
        blob = body[start : start + record["size"]]
        start += record["size"] + (-record["size"] % _ALIGNMENT)
        if compressed:
            n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
            # No more than there should be, however much the data would expand to.
            blob = bytearray(zlib.decompressobj().decompress(blob, max(n_bytes, 1)))
        yield np.frombuffer(blob, dtype).reshape(shape)


def _decode(tree, arrays: list[NDArray]):
    if isinstance(tree, list):
        return [_decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    return {key: _decode(item, arrays) for key, item in tree["dict"].items()}
