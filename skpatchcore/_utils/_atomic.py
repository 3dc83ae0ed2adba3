"""Write files so that each appears as a whole or not at all."""

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
from typing import IO

_STANDARD_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
# Linux follows at most 40 links in a path.
_MAX_LINKS = 40
# Names have at most 255 bytes; a temporary name is valid wherever the target's is.
_KEPT_CHARACTERS = 40
# What is written to a device or pipe waits in memory up to this size, then on disk.
_SPOOLED_BYTES = 64 * 2**20
# Errors of writing, which come without the name of a file.
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
) -> Iterator[IO]:
    """Open a file for writing that replaces `path` when the block ends without error.

    The data go to a temporary file in the same folder, reach the disk, and get their
    name in one step. After any error, interrupts included, the temporary file is
    removed and what was at `path` is unchanged.

    Parameters
    ----------
    path : str or path-like
        File to write. Symbolic links are followed to their target, which may not exist
        yet. An existing file keeps its permissions, and its owner where the system
        permits; a new one obeys the umask. Other hard links to an existing file keep
        the old contents; extended attributes are not carried over. Devices, pipes and
        names of open files (``/dev/stdout``, ``/dev/fd/3``) are written to, not
        replaced, once the block has ended without error.

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
        refused to the superuser, too: somebody protected it.
    ValueError
        If `path` is empty or contains a null character.
    OSError
        If the file cannot be written for another reason. All of these name `path`, not
        the temporary file.
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


def check_writable(path: str | os.PathLike) -> None:
    """Raise the errors of `atomic_write` that can be foreseen, before a long run."""
    name = _check_name(path)
    if not _is_special(name):
        _check_target(name)


def move_into_place(part: str | os.PathLike, path: str | os.PathLike) -> None:
    """Give a finished file its final name, in the same folder, as `atomic_write` does.

    For files that are written over several runs, such as downloads.
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
        # Until it has the permissions of the file that it replaces, nobody else may
        # look into it.
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
    """Collect what is written, and pass it on to a device, a pipe or an open file."""
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as collected:
        yield collected
        collected.seek(0)
        with _open_special(name) as file:
            shutil.copyfileobj(collected, file)


def _open_special(name: str) -> IO[bytes]:
    number = _descriptor(name)
    if number is None:
        return open(name, "wb")
    # What was printed before comes first. A duplicate goes on at the current position:
    # opened by its name, a file that the shell has opened would be emptied.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return open(os.dup(number), "wb")


def _is_special(name: str) -> bool:
    """Return whether something is written to, but cannot be replaced."""
    if _descriptor(name) is not None:
        return True
    status = _stat(name)
    return status is not None and not (
        stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    )


def _descriptor(name: str) -> int | None:
    """Return the number of the open file that a path, or a link to it, stands for."""
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
    """Return the status of an existing file after checks that it may be replaced."""
    existing = _stat(name)
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise _error(errno.EISDIR, "it is a folder; give the name of a file", name)
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
    # On Windows, this attribute of a folder does not protect what is inside.
    if os.name == "posix" and not _is_writable(folder, status):
        reason = f"the folder {folder!r} is read-only; choose another one"
        raise _error(errno.EACCES, reason, name)
    return existing


def _is_writable(name: str, status: os.stat_result) -> bool:
    # The superuser may write anywhere; a file that nobody may write is protected.
    return bool(status.st_mode & 0o222) and os.access(name, os.W_OK)


def _stat(name: str) -> os.stat_result | None:
    try:
        return os.stat(name)
    except FileNotFoundError:
        return None


def _error(number: int, reason: str, name: str) -> OSError:
    """Return the subclass of OSError that belongs to a number."""
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
    # One by one: a member of a group may keep the group of a file, not its owner.
    for owner in ((existing.st_uid, -1), (-1, existing.st_gid)):
        if owner not in ((new.st_uid, -1), (-1, new.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(descriptor, *owner)
    os.fchmod(descriptor, stat.S_IMODE(existing.st_mode))


def _sync_folder(target: str) -> None:
    """Let the new name reach the disk where folders can be opened."""
    if os.name != "posix":
        return
    # The file is in place: a file system that cannot do this makes no error.
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the file in errors of writing, a full disk for one."""
    try:
        yield
    except OSError as error:
        if error.errno in _NAMELESS and error.filename is None:
            error.filename = name
        raise
