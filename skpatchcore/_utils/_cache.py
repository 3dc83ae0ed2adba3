"""Cache results on disk across fits: layer maps, greedy orders, neighbours."""

import contextlib
import functools
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Memory

from skpatchcore._utils._cache_entry import DamagedEntryError, read_entry, write_entry
from skpatchcore._utils._compat import (
    HasMethods,
    memstr_to_bytes,
    move_item,
    open_item,
    store_contains,
)
from skpatchcore._utils._file_locks import file_lock
from skpatchcore._utils._locks import fork_safe_lock
from skpatchcore._utils._threads import map_threads

#: scikit-learn parameter constraint of `memory`, the same for every estimator.
MEMORY_CONSTRAINT = [str, HasMethods(["__fspath__"]), HasMethods(["cache"]), None]

# Part of every key. Raise it when the contents of an entry, or their computation,
# change.
_FORMAT = "2"
# joblib recognises entries by this file name when it measures and reduces a store. The
# file is not a pickle.
_FILE_NAME = "output.pkl"
# How often to retry when another process deletes the folder of an entry.
_N_ATTEMPTS = 3
_DEFAULT_LEVEL = 3
_DEFAULT_LIMIT = "20G"
# The store is measured again once this share of its limit has been written. It is then
# reduced so that the same amount fits before the next measurement.
_MEASURED_SHARE = 1 / 16


class BoundedMemory(Memory):
    """A :class:`joblib.Memory` with a limit on the size of skpatchcore's entries.

    Use it to choose another limit than the default of 20 GB, which applies if an
    estimator gets a folder or a :class:`joblib.Memory` as `memory`. Beyond the limit,
    the least recently used entries are deleted. Anything else that is cached in the
    same folder is not touched.

    Parameters
    ----------
    location : str or path-like
        Folder of the cache. It is created if it does not exist. Any number of processes
        may share it.

    bytes_limit : int or str, default="20G"
        Largest total size of skpatchcore's entries: a positive number of bytes, or a
        number with the unit K, M or G.

    compress : bool or int, default=False
        Whether to compress entries, or the compression level from 1 to 9. A compressed
        cache is smaller but slower.

    Attributes
    ----------
    bytes_limit : int
        The limit in bytes.

    Raises
    ------
    ValueError
        If `bytes_limit` is not a positive size.

    See Also
    --------
    joblib.Memory : The methods ``clear()`` and ``reduce_size()`` work here, too.

    Examples
    --------
    >>> from skpatchcore import BoundedMemory, PatchCoreDetector
    >>> memory = BoundedMemory("cache", bytes_limit="5G")  # doctest: +SKIP
    >>> detector = PatchCoreDetector(memory=memory)  # doctest: +SKIP
    """

    def __init__(
        self,
        location: str | os.PathLike,
        *,
        bytes_limit: int | str = _DEFAULT_LIMIT,
        compress: bool | int = False,
    ):
        super().__init__(os.fspath(location), verbose=0, compress=compress)
        self.bytes_limit = _as_bytes(bytes_limit)


class Cache:
    """A folder of results, each stored under a kind and a key from `content_key`.

    Writing is atomic: an entry is complete or missing. A damaged entry is deleted with
    a warning, and counts as missing.
    """

    def __init__(self, memory: Memory):
        backend = memory.store_backend
        # A Path, because joblib appends a folder of its own to a string.
        own = Memory(
            Path(backend.location) / "skpatchcore", backend=memory.backend, verbose=0
        )
        self._store = own.store_backend
        self._level = _compression_level(memory.compress)
        # Before joblib 1.5, Memory has this attribute as well, and it may be None.
        limit = getattr(memory, "bytes_limit", None)
        self._limit = _as_bytes(_DEFAULT_LIMIT if limit is None else limit)

    def get(
        self, kind: str, key: str, is_valid: Callable[..., bool] | None = None
    ) -> Any:
        """Return an entry, or None if it is missing.

        An entry for which `is_valid` returns False counts as damaged.
        """
        path = self._path(kind, key)
        if not store_contains(self._store, path):
            return None
        try:
            with open_item(self._store, path, "rb") as file:
                value = read_entry(file, f"{kind}/{key}")
            if is_valid is not None and not is_valid(value):
                raise DamagedEntryError("its contents do not fit")
        except FileNotFoundError:
            # Another process has just deleted it to free space.
            return None
        except (OSError, DamagedEntryError) as error:
            self._store.clear_location(os.path.dirname(path))
            self._warn_of_damage(f"{kind}/{key}", error)
            return None
        with contextlib.suppress(OSError):
            # Many file systems do not record the last access themselves.
            os.utime(path)
        return value

    def get_all(
        self,
        kind: str,
        keys: Sequence[str],
        is_valid: Callable[..., bool] | None = None,
    ) -> list[Any]:
        """Return the entry of each key, or None if it is missing; read by threads."""
        get = functools.partial(self.get, kind, is_valid=is_valid)
        return list(map_threads(get, keys, torch.device("cpu")))

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store an entry. If it cannot be written, warn instead of raising."""
        try:
            self._write(kind, key, value)
        except OSError as error:
            # On a full disk, a partial file would keep occupying space.
            self._store.clear_location(os.path.dirname(self._path(kind, key)))
            warnings.warn(
                f"Could not write to the cache {self._store.location!r}: "
                f"{error.strerror or error}. Results are not affected, but they will "
                "be computed again next time. Free space on the disk, or pass another "
                "folder as memory.",
                stacklevel=2,
            )
        if _growth.add(self._store.location, _n_bytes(value), self._limit):
            self._store.enforce_store_limits(int(self._limit * (1 - _MEASURED_SHARE)))

    def _path(self, kind: str, key: str) -> str:
        return os.path.join(self._store.location, kind, key, _FILE_NAME)

    def _write(self, kind: str, key: str, value: Any) -> None:
        path = self._path(kind, key)
        temporary = f"{path}.{uuid.uuid4().hex}"
        for attempts_left in reversed(range(_N_ATTEMPTS)):
            self._store.create_location(os.path.dirname(path))
            try:
                with open_item(self._store, temporary, "wb") as file:
                    write_entry(file, f"{kind}/{key}", value, self._level)
                move_item(self._store, temporary, path)
            except FileNotFoundError:
                # Another process has deleted the folder to free space.
                if not attempts_left:
                    raise
            else:
                return

    def _warn_of_damage(self, entry: str, error: Exception) -> None:
        warnings.warn(
            f"The entry {entry} of the cache {self._store.location!r} could not be "
            f"used: {error}. It is computed again. If this happens often, check the "
            "disk, or pass another folder as memory.",
            stacklevel=3,
        )

    @contextlib.contextmanager
    def claim(self, keys: Sequence[str], *, wait: bool) -> Iterator[list[str]]:
        """Lock `keys` and yield those that no other process holds; with `wait`, all.

        The locks are released when the block, or the process, ends.
        """
        folder = os.path.join(self._store.location, "locks")
        with contextlib.ExitStack() as stack:
            claimed = []
            # Always in the same order, so that two processes cannot deadlock.
            for stripe in sorted({key[:2] for key in keys}):
                path = os.path.join(folder, f"{stripe}.lock")
                if stack.enter_context(file_lock(path, wait=wait)):
                    claimed += [key for key in keys if key[:2] == stripe]
            yield claimed


class _Growth:
    """Bytes that this process has written to each store since it was last measured."""

    def __init__(self) -> None:
        self._n_bytes: dict[str, int] = {}
        self._lock = fork_safe_lock()

    def add(self, location: str, n_bytes: int, limit: int) -> bool:
        """Count an entry; return whether it is time to measure the store."""
        with self._lock:
            # Also at the first entry: earlier processes may have filled the store.
            so_far = self._n_bytes.get(location, limit) + n_bytes
            due = so_far > _MEASURED_SHARE * limit
            self._n_bytes[location] = 0 if due else so_far
        return due


_growth = _Growth()


def check_cache(memory: Any) -> Cache | None:
    """Return the cache for the parameter `memory` of an estimator, if any.

    Raises
    ------
    TypeError
        If `memory` is neither a folder nor a joblib.Memory nor None.
    """
    if memory is None:
        return None
    if isinstance(memory, str | os.PathLike):
        memory = _make_memory(os.fspath(memory))
    if not isinstance(memory, Memory):
        raise TypeError(
            f"memory={memory!r} is of type {type(memory).__name__}; expected a folder, "
            "a joblib.Memory or None."
        )
    return None if memory.store_backend is None else Cache(memory)


def _make_memory(folder: str) -> Memory:
    try:
        return Memory(folder, verbose=0)
    except OSError as error:
        # With the number, Python raises PermissionError, NotADirectoryError, ...
        raise OSError(
            error.errno,
            f"memory={folder!r} cannot be used as a cache: {error.strerror}. Pass a "
            "folder that can be created and written to, or None",
        ) from error


def content_key(*parts: Any) -> str:
    """Return a hash of the contents of `parts`, as 32 hexadecimal digits.

    Parts are arrays, bytes, strings, numbers, None, and tuples and lists of these.
    Equal contents give equal keys in every process.
    """
    digest = hashlib.sha256(_FORMAT.encode())
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:32]


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        # Arrays that are 0-d or not contiguous cannot be viewed as bytes.
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        digest.update(f"{part.dtype.str}{part.shape}{data.size}:".encode())
        digest.update(data)
    elif isinstance(part, bytes):
        digest.update(f"bytes{len(part)}:".encode())
        digest.update(part)
    elif isinstance(part, tuple | list):
        digest.update(f"sequence{len(part)}:".encode())
        for item in part:
            _update(digest, item)
    else:
        text = f"{type(part).__name__}{part!r}".encode()
        digest.update(f"{len(text)}:".encode() + text)


def _n_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        value = tuple(value.values())
    return sum(map(_n_bytes, value)) if isinstance(value, tuple | list) else 0


def _compression_level(compress: Any) -> int:
    """Translate the `compress` of :class:`joblib.Memory` into a level of zlib."""
    if isinstance(compress, tuple):
        # In joblib, a pair of a method and a level.
        compress = compress[-1]
    if isinstance(compress, bool | str):
        return _DEFAULT_LEVEL if compress else 0
    return int(compress)


def _as_bytes(limit: int | str) -> int:
    try:
        n_bytes = memstr_to_bytes(limit) if isinstance(limit, str) else int(limit)
    except (TypeError, ValueError):
        n_bytes = 0
    if n_bytes < 1:
        raise ValueError(
            f"bytes_limit={limit!r}; expected a positive number of bytes, or a string "
            "such as '500M' or '20G'."
        )
    return n_bytes
