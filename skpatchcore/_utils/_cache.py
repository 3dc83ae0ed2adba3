"""Results that outlive a fit, on disk: layer maps, greedy orders, neighbours."""

import contextlib
import functools
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from joblib import Memory

from skpatchcore._utils._cache_entry import DamagedEntryError, read_entry, write_entry
from skpatchcore._utils._compat import HasMethods, memstr_to_bytes
from skpatchcore._utils._file_locks import file_lock
from skpatchcore._utils._locks import fork_safe_lock
from skpatchcore._utils._threads import map_threads

#: What `memory` may be on every estimator, in scikit-learn's language.
MEMORY_CONSTRAINT = [str, HasMethods(["__fspath__"]), HasMethods(["cache"]), None]

# Part of every key: raise it when what an entry holds, or how it is made, changes.
_FORMAT = "2"
# The name by which joblib knows an entry when it measures and cuts a store. What is in
# the file is no pickle.
_FILE_NAME = "output.pkl"
# How often to start over when others delete the folder of an entry meanwhile.
_N_ATTEMPTS = 3
_DEFAULT_LEVEL = 3
_DEFAULT_LIMIT = "20G"
# The store is measured when so much of its limit has been written since the last time,
# and cut to what leaves room for as much again.
_MEASURED_SHARE = 1 / 16


class BoundedMemory(Memory):
    """A :class:`joblib.Memory` that says how large skpatchcore's part of it may grow.

    Estimators take a folder, a :class:`joblib.Memory` or this as `memory`; for the
    first two the limit is 20 GB. Beyond it, the entries that were not used for longest
    are deleted. Other things cached in the same folder are left alone.

    Parameters
    ----------
    location : str or path-like
        Folder of the cache. It is created where it is not there, and may be shared by
        any number of processes.

    bytes_limit : int or str, default="20G"
        Largest total size of skpatchcore's entries: bytes, or a number with the unit
        K, M or G.

    compress : bool or int, default=False
        Whether, and how hard (1 to 9), to compress entries. A smaller cache is slower.

    Attributes
    ----------
    bytes_limit : int
        The limit in bytes.

    See Also
    --------
    joblib.Memory : Its methods ``clear()`` and ``reduce_size()`` work here, too.

    Examples
    --------
    >>> from skpatchcore import BoundedMemory, PatchCoreDetector
    >>> memory = BoundedMemory("cache", bytes_limit="5G")  # doctest: +SKIP
    >>> detector = PatchCoreDetector(memory=memory)  # doctest: +SKIP
    """

    def __init__(self, location, *, bytes_limit=_DEFAULT_LIMIT, compress=False):
        super().__init__(os.fspath(location), verbose=0, compress=compress)
        self.bytes_limit = _as_bytes(bytes_limit)


class Cache:
    """A folder of results, each under a kind and a key made by `content_key`.

    Writing is atomic: an entry is whole or not there. A damaged entry is deleted, with
    a warning, and counts as not there.
    """

    def __init__(self, memory: Memory):
        backend = memory.store_backend
        # A Path, since joblib extends a string by a folder of its own.
        own = Memory(
            Path(backend.location) / "skpatchcore", backend=memory.backend, verbose=0
        )
        self._store = own.store_backend
        self._level = _compression_level(memory.compress)
        # Before joblib 1.5 its own Memory has a limit, too, which may be None.
        limit = getattr(memory, "bytes_limit", None)
        self._limit = _as_bytes(_DEFAULT_LIMIT if limit is None else limit)

    def get(self, kind: str, key: str, is_valid: Callable[..., bool] | None = None):
        """Return an entry, or None.

        An entry for which `is_valid` returns False counts as damaged.
        """
        path = self._path(kind, key)
        if not self._store._item_exists(path):
            return None
        try:
            with self._store._open_item(path, "rb") as file:
                value = read_entry(file, f"{kind}/{key}")
            if is_valid is not None and not is_valid(value):
                raise DamagedEntryError("its contents do not fit")
        except FileNotFoundError:
            # Deleted just now, to make room.
            return None
        except (OSError, DamagedEntryError) as error:
            self._store.clear_location(os.path.dirname(path))
            self._warn_of_damage(f"{kind}/{key}", error)
            return None
        with contextlib.suppress(OSError):
            # Many file systems do not keep the time of the last access by themselves.
            os.utime(path)
        return value

    def get_all(
        self,
        kind: str,
        keys: Sequence[str],
        is_valid: Callable[..., bool] | None = None,
    ) -> list:
        """Return an entry, or None, for each of `keys`: read by threads."""
        get = functools.partial(self.get, kind, is_valid=is_valid)
        return list(map_threads(get, keys, torch.device("cpu")))

    def put(self, kind: str, key: str, value) -> None:
        """Store an entry; where it cannot be written there is a warning, no error."""
        try:
            self._write(kind, key, value)
        except OSError as error:
            # What was written before the disk was full takes its space.
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

    def _write(self, kind: str, key: str, value) -> None:
        path = self._path(kind, key)
        temporary = f"{path}.{uuid.uuid4().hex}"
        for attempts_left in reversed(range(_N_ATTEMPTS)):
            self._store.create_location(os.path.dirname(path))
            try:
                with self._store._open_item(temporary, "wb") as file:
                    write_entry(file, f"{kind}/{key}", value, self._level)
                self._store._move_item(temporary, path)
            except FileNotFoundError:
                # Somebody who makes room has deleted the folder.
                if not attempts_left:
                    raise
            else:
                return

    def _warn_of_damage(self, entry: str, error: Exception) -> None:
        warnings.warn(
            f"The entry {entry} of the cache {self._store.location!r} could not be "
            f"used: {error}. It is computed again. If this happens often, check the "
            "disk, or use another folder as memory.",
            stacklevel=3,
        )

    @contextlib.contextmanager
    def claim(self, keys: Sequence[str], *, wait: bool) -> Iterator[list[str]]:
        """Yield those of `keys` that nobody else is at work on; with `wait` all.

        Nobody else gets them until the block ends, or the process does.
        """
        folder = os.path.join(self._store.location, "locks")
        with contextlib.ExitStack() as stack:
            claimed = []
            # In this order everywhere, so that two who wait never wait for each other.
            for stripe in sorted({key[:2] for key in keys}):
                path = os.path.join(folder, f"{stripe}.lock")
                if stack.enter_context(file_lock(path, wait=wait)):
                    claimed += [key for key in keys if key[:2] == stripe]
            yield claimed


class _Growth:
    """What this process has written to each store since its size was last measured."""

    def __init__(self):
        self._n_bytes: dict[str, int] = {}
        self._lock = fork_safe_lock()

    def add(self, location: str, n_bytes: int, limit: int) -> bool:
        """Account for an entry; return whether it is time to measure the store."""
        with self._lock:
            # At the first entry too: nobody knows what others have left.
            so_far = self._n_bytes.get(location, limit) + n_bytes
            due = so_far > _MEASURED_SHARE * limit
            self._n_bytes[location] = 0 if due else so_far
        return due


_growth = _Growth()


def check_cache(memory) -> Cache | None:
    """Return the cache that the parameter `memory` asks for, if any.

    Raises
    ------
    TypeError
        If `memory` is no folder and no joblib.Memory.
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
        # The number makes it a PermissionError, NotADirectoryError, ...
        raise OSError(
            error.errno,
            f"memory={folder!r} cannot be used as a cache: {error.strerror}. Pass a "
            "folder that can be created and written to, or None",
        ) from error


def content_key(*parts) -> str:
    """Return 32 hex digits that stand for the contents of `parts`.

    Arrays, bytes, strings, numbers, None, and tuples and lists of these. Equal contents
    give equal keys in every process.
    """
    digest = hashlib.sha256(_FORMAT.encode())
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:32]


def _update(digest, part) -> None:
    if isinstance(part, np.ndarray):
        # 0-d arrays have no buffer of bytes, nor have those that are not contiguous.
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


def _n_bytes(value) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        value = tuple(value.values())
    return sum(map(_n_bytes, value)) if isinstance(value, tuple | list) else 0


def _compression_level(compress) -> int:
    """Return zlib's level for what :class:`joblib.Memory` takes as `compress`."""
    if isinstance(compress, tuple):
        # joblib's pair of a method and a level.
        compress = compress[-1]
    if isinstance(compress, bool | str):
        return _DEFAULT_LEVEL if compress else 0
    return int(compress)


def _as_bytes(limit) -> int:
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
