"""Check the files and folders of a command before it starts to work.

No target may replace another one or an input, and all must be writable.
"""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from skpatchcore._cli._types import CONFIG_FILE

# The option or argument that names a file, and the file.
NamedPath = tuple[str, str | Path]


def check_targets(
    files: Sequence[NamedPath],
    folders: Sequence[NamedPath] = (),
    *,
    inside: Iterable[NamedPath] = (),
    read: Iterable[NamedPath] = (),
) -> None:
    """Raise if a target cannot be written, or collides with another one or an input.

    Links count as the file that they lead to. Devices such as ``/dev/null`` may occur
    several times.

    Parameters
    ----------
    files, folders : sequence of (name, path)
        What will be written, with the option that says so.
    inside : iterable of (name, path)
        Files that will be written in `folders`.
    read : iterable of (name, path)
        Inputs: files, and folders that are searched for images. The configuration file
        need not be listed.
    """
    inside, read = list(inside), [*read, *_config_file()]
    _check_nested(files, folders)
    _check_folders(folders, [(n, p) for n, p in read if os.path.isdir(p)])
    _check_overwrites([*files, *inside], [(n, p) for n, p in read if os.path.isfile(p)])
    existing = [(name, path) for name, path in inside if os.path.lexists(path)]
    for _, path in [*files, *existing]:
        _check_writable(Path(path))
    for _, path in folders:
        _check_writable(Path(path) / "any name", shown=Path(path))


def hash_file(path: str) -> str:
    """Return the SHA-256 hash of a file; empty if it cannot be read."""
    try:
        # A pipe of this name could make the run wait for ever.
        if not Path(path).is_file():
            return ""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _config_file() -> list[NamedPath]:
    context = click.get_current_context(silent=True)
    path = context.meta.get(CONFIG_FILE) if context else None
    return [("--config", path)] if path else []


def _check_nested(files: Sequence[NamedPath], folders: Sequence[NamedPath]) -> None:
    """Reject folders written by two options, and files in the place of a folder."""
    places: dict[str, str] = {}
    for name, path in folders:
        other = places.setdefault(_place(path), name)
        if other != name:
            raise _collision(other, name, path)
    for name, path in files:
        if _is_device(path):
            continue
        place = _place(path)
        for other, target in [*folders, *files]:
            if _place(target) != place and _is_inside(_place(target), place):
                raise _collision(other, name, path)
        if place in places:
            raise _collision(places[place], name, path)


def _check_folders(folders: Sequence[NamedPath], searched: Sequence[NamedPath]) -> None:
    """Reject folders in which the next run would find its own output as images."""
    for name, path in folders:
        for reader, root in searched:
            if _is_inside(_place(path), _place(root)):
                raise click.UsageError(
                    f"{name} {path} is inside {reader} {root}, so the next run would "
                    f"read these files as images. Choose a folder outside for {name}."
                )


def _check_overwrites(written: Iterable[NamedPath], read: Iterable[NamedPath]) -> None:
    """Reject a file that is written twice, or both read and written."""
    readers = {_place(path): name for name, path in read}
    writers: dict[str, str] = {}
    for name, path in written:
        if _is_device(path):
            continue
        place = _place(path)
        if place in readers:
            raise click.UsageError(
                f"{name} would overwrite {path}, which {readers[place]} reads. Choose "
                f"another path for {name}."
            )
        if place in writers:
            raise _collision(writers[place], name, path)
        writers[place] = name


def _collision(first: str, second: str, path: str | Path) -> click.UsageError:
    if first == second:
        return click.UsageError(
            f"{first} would write {path} for two images. Rename one of them."
        )
    return click.UsageError(
        f"{first} and {second} would both write {path}. Choose another path for "
        f"{second}."
    )


def _check_writable(path: Path, shown: Path | None = None) -> None:
    """Raise an error that names the path given if a file cannot be created there."""
    from skpatchcore._utils import check_writable

    first = path  # The first part of the path that does not exist yet.
    while not os.path.lexists(first.parent) and first.parent != first:
        first = first.parent
    try:
        if not first.parent.is_dir():
            text = f"Could not write the file: {first.parent} is a file, not a folder"
            raise OSError(errno.ENOTDIR, text)
        check_writable(first)
        if not _is_device(first):
            # Some file systems refuse what the permissions allow.
            with tempfile.TemporaryFile(dir=first.parent):
                pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, reason, str(shown or path)) from error


def _place(path: str | Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _is_inside(place: str, folder: str) -> bool:
    return place == folder or Path(place).is_relative_to(folder)


def _is_device(path: str | Path) -> bool:
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
