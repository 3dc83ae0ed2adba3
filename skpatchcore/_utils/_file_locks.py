"""File locks that end with the process, on file systems that support them."""

import contextlib
import functools
import os
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType

import filelock

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows. Its locks work on every file system.
    fcntl = None


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, *, wait: bool) -> Iterator[bool]:
    """Lock a file while the block runs; yield whether the block may do the work.

    If the file system does not support locks, warn once for each folder and yield True.
    So the work in the block must be safe, even if wasteful, when two processes do it.

    Parameters
    ----------
    path : str or path-like
        File to lock. Its folder is created if it does not exist.
    wait : bool
        Whether to wait until the lock is free. If False and another process holds it,
        yield False.
    """
    with contextlib.ExitStack() as stack:
        yield _acquire(os.fspath(path), wait, stack)


def _acquire(path: str, wait: bool, stack: contextlib.ExitStack) -> bool:
    folder = os.path.dirname(os.path.abspath(path))
    if not _can_lock(folder):
        return True
    try:
        lock = filelock.FileLock(path)
        stack.enter_context(lock.acquire(timeout=-1 if wait else 0))
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        _warn(folder, error)
    return True


@functools.lru_cache(maxsize=64)
def _can_lock(folder: str) -> bool:
    """Return whether files in `folder` can be locked; warn if not.

    This is tested here, because filelock does not report all refusals of flock: up to
    3.20 it retries for ever, and from 3.24 on it sometimes creates a lock file instead,
    which a killed process leaves behind.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        if fcntl is not None:
            with tempfile.TemporaryFile(dir=folder) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _warn(folder, error)
        return False
    return True


def _warn(folder: str, error: Exception) -> None:
    warnings.warn(
        f"Files in {folder!r} cannot be locked ({error}). Results are not affected, "
        "but processes that share this folder may do the same work twice. Choose a "
        "folder on a file system with locks to avoid that.",
        stacklevel=2,
    )
