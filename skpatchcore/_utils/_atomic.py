"""Write files atomically, complete or not at all, or let them grow line by line."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

_STANDARD_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
# Linux follows at most 40 links in a path.
_MAX_LINKS = 40
# Names have at most 255 bytes; a temporary name is valid wherever the target's is.
_KEPT_CHARACTERS = 40
# Data for a device or pipe are buffered in memory up to this size, then on disk.
_SPOOLED_BYTES = 64 * 2**20
# Write errors that the system reports without a file name.
_NAMELESS = {
    *(errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC),
    getattr(errno, "EDQUOT", errno.ENOSPC),
}


@contextmanager
def atomic_write(
    path: str | os.PathLike,
    mode: str = "wb",
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    newline: str | None = "",
) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the block ends without error.

    The data are written to a temporary file in the same folder and flushed to disk.
    Then the file is renamed in one step. After any error, including an interrupt, the
    temporary file is removed and an existing file at `path` is unchanged.

    Parameters
    ----------
    path : str or path-like
        File to write. Symbolic links are followed to their target, which may not exist
        yet. An existing file keeps its permissions, and its owner where the system
        permits; a new one obeys the umask. Other hard links to an existing file keep
        the old contents; extended attributes are not copied. Devices, pipes and
        names of open files (``/dev/stdout``, ``/dev/fd/3``) are not replaced: the data
        are written to them once the block has ended without error.

    mode : {"wb", "w"}, default="wb"
        Bytes or text.

    encoding, errors, newline
        As in :func:`open`, for text. By default line ends are written unchanged.

    Yields
    ------
    file : file object
        Open for writing, and seekable.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If `path` is a folder.
    PermissionError
        If `path` or its folder is read-only. A file without any write permission is
        treated as protected, even for the superuser.
    ValueError
        If `path` is empty or contains a null character.
    OSError
        If the file cannot be written for another reason. All of these errors name
        `path`, not the temporary file.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode={mode!r}; expected 'wb' or 'w'.")
    name = _check_name(path)
    with _naming(name), (_in_place if _is_special(name) else _renamed)(name) as file:
        if mode == "wb":
            yield file
            return
        text = io.TextIOWrapper(file, encoding, errors, newline)
        try:
            yield text
        finally:
            text.detach()  # Flushes as well.


class GrowingFile:
    """A file in which everything written so far is in the hands of the system.

    Use it for results that a later kill of the process must not take away. An existing
    file keeps its permissions, links are followed, and devices, pipes and names of open
    files are written in place. No temporary file is used, so readers see the file grow,
    and its last line may be incomplete after a kill.

    Parameters
    ----------
    path : str or path-like
        File to write.
    append : bool
        Whether to keep what the file contains.

    Raises
    ------
    OSError, ValueError
        As `atomic_write`.
    """

    def __init__(self, path: str | os.PathLike, *, append: bool = False):
        self._name = _check_name(path)
        if _is_special(self._name):
            self._file = _open_special(self._name, buffering=0)
        else:
            _check_target(self._name)
            mode = "ab" if append else "wb"
            self._file = open(self._name, mode, buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Write all data, without buffering them."""
        view = memoryview(data)
        with _naming(self._name):
            while view:
                view = view[self._file.write(view) :]

    def close(self) -> None:
        """Bring a regular file to the disk, and close it."""
        with _naming(self._name), self._file:
            if not _is_special(self._name):
                os.fsync(self._file.fileno())


def is_special(path: str | os.PathLike) -> bool:
    """Return whether a path names a device, a pipe or an open file."""
    return _is_special(_check_name(path))


def check_writable(path: str | os.PathLike) -> None:
    """Raise the foreseeable errors of `atomic_write` early, before a long run."""
    name = _check_name(path)
    if not _is_special(name):
        _check_target(name)


def move_into_place(part: str | os.PathLike, path: str | os.PathLike) -> None:
    """Rename a finished file to its final name in the same folder, in one step.

    Use it for files that are written over several runs, such as downloads. Existing
    files and errors are treated as by `atomic_write`.
    """
    name = _check_name(path)
    _check_target(name)
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    target = os.path.realpath(name)
    os.replace(part, target)
    _sync_folder(target)


@contextmanager
def _renamed(name: str) -> Iterator[IO[bytes]]:
    existing = _check_target(name)
    target = os.path.realpath(name)
    temporary = _temporary_name(target)
    try:
        # Private until it has the permissions of the file that it replaces.
        with _create(temporary, name, 0o666 if existing is None else 0o600) as file:
            if existing is not None:
                _copy_owner_and_mode(file.fileno(), existing)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target)


@contextmanager
def _in_place(name: str) -> Iterator[IO[bytes]]:
    """Buffer the data, then write them to a device, a pipe or an open file."""
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as collected:
        yield collected
        collected.seek(0)
        with _open_special(name) as file:
            shutil.copyfileobj(collected, file)


def _open_special(name: str, buffering: int = -1) -> Any:
    number = _descriptor(name)
    if number is None:
        return open(name, "wb", buffering)
    # Earlier printed output comes first. A duplicated descriptor continues at the
    # current position; reopening a redirected file by name would truncate it.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return open(os.dup(number), "wb", buffering)


def _is_special(name: str) -> bool:
    """Return whether `name` can be written to but not replaced."""
    if _descriptor(name) is not None:
        return True
    status = _stat(name)
    return status is not None and not (
        stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    )


def _descriptor(name: str) -> int | None:
    """Return the file descriptor that a path, or a link to it, names, if any."""
    own = rf"/(?:dev|proc/(?:self|{os.getpid()}))/fd/(\d+)"
    for _ in range(_MAX_LINKS):
        folder, base = os.path.split(os.path.abspath(name))
        name = os.path.join(os.path.realpath(folder), base)
        if name in _STANDARD_STREAMS:
            return _STANDARD_STREAMS[name]
        if match := re.fullmatch(own, name):
            return int(match[1])
        try:
            name = os.path.join(os.path.dirname(name), os.readlink(name))
        except OSError:
            break
    return None


def _check_name(path: str | os.PathLike) -> str:
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise ValueError(
            f"Could not write {name!r}: a path must not be empty or contain a null "
            "character."
        )
    return name


def _check_target(name: str) -> os.stat_result | None:
    """Check that `name` may be written; return the status of an existing file."""
    existing = _stat(name)
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise _error(errno.EISDIR, "it is a folder; pass the name of a file", name)
    if existing is not None and not _is_writable(name, existing):
        mode = stat.S_IMODE(existing.st_mode)
        reason = f"the file is read-only (mode {mode:04o}); make it writable, or choose"
        raise _error(errno.EACCES, f"{reason} another name", name)
    folder = os.path.dirname(os.path.realpath(name))
    status = _stat(folder)
    if status is None:
        reason = f"the folder {folder!r} does not exist; create it first"
        raise _error(errno.ENOENT, reason, name)
    if not stat.S_ISDIR(status.st_mode):
        raise _error(errno.ENOTDIR, f"{folder!r} is a file, not a folder", name)
    # On Windows, the read-only attribute of a folder does not protect its contents.
    if os.name == "posix" and not _is_writable(folder, status):
        reason = f"the folder {folder!r} is read-only; choose another one"
        raise _error(errno.EACCES, reason, name)
    return existing


def _is_writable(name: str, status: os.stat_result) -> bool:
    # os.access alone is not enough: it is always true for the superuser.
    return bool(status.st_mode & 0o222) and os.access(name, os.W_OK)


def _stat(name: str) -> os.stat_result | None:
    try:
        return os.stat(name)
    except FileNotFoundError:
        return None


def _error(number: int | None, reason: str, name: str) -> OSError:
    """Return an error that names the file; Python picks the subclass by `number`."""
    return OSError(number, f"Could not write the file: {reason}", name)


def _temporary_name(target: str) -> str:
    folder, base = os.path.split(target)
    unique = f".{base[:_KEPT_CHARACTERS]}.{secrets.token_hex(8)}.tmp"
    return os.path.join(folder, unique)


def _create(temporary: str, name: str, mode: int) -> IO[bytes]:
    try:
        return open(
            temporary, "xb", opener=lambda path, flags: os.open(path, flags, mode)
        )
    except OSError as error:
        raise _error(error.errno, str(error.strerror), name) from error


def _copy_owner_and_mode(descriptor: int, existing: os.stat_result) -> None:
    if os.name != "posix":
        return
    new = os.fstat(descriptor)
    # Separately: the system may permit keeping the group of a file but not its owner.
    for owner in ((existing.st_uid, -1), (-1, existing.st_gid)):
        if owner not in ((new.st_uid, -1), (-1, new.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, *owner)
    os.fchmod(descriptor, stat.S_IMODE(existing.st_mode))


def _sync_folder(target: str) -> None:
    """Flush the new name to disk, where folders can be opened."""
    if os.name != "posix":
        return
    # The file is complete, so nothing is lost if folders cannot be synced.
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Add the file name to write errors, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _NAMELESS and error.filename is None:
            error.filename = name
        raise
