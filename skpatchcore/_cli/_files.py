"""Refuse to write a file that the same command reads or writes elsewhere."""

import os
from collections.abc import Iterable
from pathlib import Path

import click

# The option or argument that names a file, and the file.
NamedPath = tuple[str, str | Path]


def check_overwrites(written: Iterable[NamedPath], read: Iterable[NamedPath]) -> None:
    """Raise if a file is written twice, or is both read and written.

    Links count as the file that they lead to. Devices such as ``/dev/null`` may occur
    several times.
    """
    readers = {os.path.realpath(path): name for name, path in read}
    writers: dict[str, str] = {}
    for name, path in written:
        if os.path.exists(path) and not os.path.isfile(path):
            continue
        place = os.path.realpath(path)
        if place in readers:
            raise click.UsageError(
                f"{name} would overwrite {path}, which {readers[place]} reads. Choose "
                f"another path for {name}."
            )
        if place in writers:
            raise click.UsageError(
                f"{writers[place]} and {name} would both write {path}. Choose another "
                f"path for {name}."
            )
        writers[place] = name
