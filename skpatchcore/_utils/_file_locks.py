"""Locks on files that end with the process, where the file system has any."""

import contextlib
import functools
import os
import tempfile
import warnings
from collections.abc import Iterator

import filelock

try:
    import fcntl
except ImportError:  # Windows, whose locks work on every file system.
    fcntl = None


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file for as long as the block lasts; yield whether it is held.

    Where files cannot be locked, a warning says so, once for each folder, and the block
    is entered without: what it does must be safe, if wasteful, to be done twice.

    Parameters
    ----------
    path : str or path-like
        File to lock. Its folder is created if need be.
    wait : bool
        Whether to wait for whoever holds the lock, instead of yielding False.
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

    Tried out here, because versions of filelock differ in what they do where flock is
    refused: up to 3.20 they try again for ever, and from 3.24 on some refusals make
    them create a file instead, which a killed process leaves behind.
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
