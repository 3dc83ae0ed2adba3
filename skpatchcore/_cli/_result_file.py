"""A file of results that grows image by image, and that a later run can continue.

Rows are written to the file itself, not to a temporary one, so that they survive if
the run is killed. A killed run may leave an incomplete row. It has no line break at its
end, and is dropped when the run is resumed.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple, Self

import click

from skpatchcore._cli._messages import print_bytes
from skpatchcore._cli._result_formats import (
    UNREADABLE,
    CocoFormat,
    Identity,
    ResultFormat,
    coco_parts,
    split_coco,
)
from skpatchcore._utils import GrowingFile, atomic_write, check_writable, is_special

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None


class _Place(NamedTuple):
    """Where a record is in a file of records, and the position of its image."""

    start: int
    length: int
    position: int


class ResultFile:
    """The target of a run: a file, a device, or standard output.

    Use it in a ``with`` block, and `append` a record for each image.

    Parameters
    ----------
    output : Path or None
        None is standard output.
    form : ResultFormat
        How images become records.
    paths : sequence of str
        All images of the run, in the order of their records.
    """

    def __init__(self, output: Path | None, form: ResultFormat, paths: Sequence[str]):
        self._output, self._form = output, form
        self._position_of = {path: i for i, path in enumerate(paths)}
        self._is_coco = isinstance(form, CocoFormat)
        self._records = records_path(output, "coco" if self._is_coco else "lines")
        self._continued = False
        self._is_sorted = True
        self._last = -1
        self._cleanup = contextlib.ExitStack()
        self._lock = contextlib.ExitStack()

    def resume(self, run: str, is_done: Callable[[Identity], bool]) -> dict[str, str]:
        """Keep the records of an earlier run that are still valid.

        Records of images that are not part of this run are kept as well. A record that
        was half written is dropped.

        Parameters
        ----------
        run : str
            What the records must have been written by.
        is_done : callable
            Whether an image of this run needs no record again.

        Returns
        -------
        labels : dict
            The label of each image of this run whose record was kept, by path.

        Raises
        ------
        click.UsageError
            If the file is of another kind, or was written by another model.
        """
        try:
            return self._resume(run, is_done)
        except BaseException:
            self._lock.close()
            raise

    def _resume(self, run: str, is_done: Callable[[Identity], bool]) -> dict[str, str]:
        assert self._records is not None
        self._restore_records()
        if self._records.exists():
            self._hold()
        if not self._records.exists() or self._is_only_header():
            return {}
        labels: dict[str, str] = {}
        kept: list[_Place] = []
        with open(self._records, "rb") as file:
            for start, record in self._iter_records(file):
                of, label = self._read(record)
                self._check_run(of, run)
                position = self._position_of.get(of.path, -1)
                if position >= 0:
                    # What made an image unreadable may have passed.
                    if label == UNREADABLE or of.path in labels or not is_done(of):
                        continue
                    labels[of.path] = label
                kept.append(_Place(start, len(record), position))
        n_bytes = len(self._form.header) + sum(place.length for place in kept)
        if n_bytes < os.path.getsize(self._records):
            self._rewrite(kept)
            self._hold()
        positions = [place.position for place in kept]
        self._is_sorted = positions == sorted(positions)
        self._last = max(positions, default=-1)
        self._continued = True
        return labels

    def __enter__(self) -> Self:
        if self._is_coco and self._records is None:
            folder = self._cleanup.enter_context(tempfile.TemporaryDirectory())
            self._records = Path(folder, "records.jsonl")
        if self._records is None:
            self._file: GrowingFile | _StandardOutput = _StandardOutput()
        else:
            self._records.parent.mkdir(parents=True, exist_ok=True)
            self._hold()
            self._file = GrowingFile(self._records, append=self._continued)
        if not self._continued:
            self._file.write(self._form.header)
        return self

    def _hold(self) -> None:
        """Keep other runs from writing the records until this one ends.

        Two runs of a timer that overlap would otherwise mix their rows, or lose those
        of one of them. A kill releases the lock.
        """
        assert self._records is not None
        if fcntl is None or is_special(self._records):
            return
        check_writable(self._records)
        self._lock.close()
        file = open(self._records, "ab")  # noqa: SIM115
        self._lock.enter_context(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise click.ClickException(
                f"{self._output} is being written by another run. Wait until it has "
                "ended, or choose another --output."
            ) from None
        except OSError:
            pass  # The file system has no locks.

    @property
    def is_shown(self) -> bool:
        """Whether records are shown in a terminal."""
        return self._output is None and sys.stdout.isatty()

    def append(self, path: str, record: bytes) -> None:
        """Write the record of an image; a kill of the process cannot undo it."""
        position = self._position_of[path]
        self._is_sorted &= position > self._last
        self._last = max(position, self._last)
        self._file.write(record)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock, self._cleanup:
            self._file.close()
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        """Bring the records into the order of their images; write a COCO file."""
        if self._records is None:
            return
        if not self._is_sorted:
            with open(self._records, "rb") as file:
                places = [
                    _Place(start, len(record), self._find(record))
                    for start, record in self._iter_records(file)
                ]
            self._rewrite(sorted(places, key=lambda place: place.position))
        if self._is_coco:
            with open(self._records, "rb") as records:
                if self._output is None:
                    for part in coco_parts(records):
                        print_bytes(part)
                else:
                    with atomic_write(self._output) as document:
                        document.writelines(coco_parts(records))
            self._records.unlink()

    def _restore_records(self) -> None:
        """Split a finished COCO file into records, to continue it."""
        assert self._records is not None
        if self._records == self._output or self._records.exists():
            return
        assert self._output is not None
        if self._output.exists():
            try:
                with (
                    open(self._output, "rb") as file,
                    atomic_write(self._records) as to,
                ):
                    to.writelines(split_coco(file))
            except ValueError as error:
                raise self._refusal(str(error)) from None

    def _is_only_header(self) -> bool:
        """Return whether the run ended before the first line was complete."""
        assert self._records is not None
        with open(self._records, "rb") as file:
            start = file.read(len(self._form.header) + 1)
        if start.startswith(self._form.header):
            return False
        if self._form.header.startswith(start):
            return True
        expected = self._form.header.decode().strip()
        raise self._refusal(f"its first line is not that of such a table, {expected!r}")

    def _iter_records(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the start of each whole record, and the record."""
        start = len(self._form.header)
        file.seek(start)
        record = b""
        for line in file:
            record += line
            if record.endswith(b"\n") and self._form.is_whole(record):
                yield start, record
                start, record = start + len(record), b""

    def _find(self, record: bytes) -> int:
        return self._position_of.get(self._read(record)[0].path, -1)

    def _read(self, record: bytes) -> tuple[Identity, str]:
        try:
            return self._form.read(record)
        except (ValueError, KeyError, TypeError):
            shown = record[:60].decode("utf-8", "replace").strip()
            raise self._refusal(f"its line {shown!r} is not a result") from None

    def _check_run(self, of: Identity, run: str) -> None:
        if of.run != run:
            raise click.UsageError(
                f"Could not resume {self._output}: {of.path} was scored with another "
                "model or another --min-area. Choose another --output, or leave "
                "--resume out to score all images again."
            )

    def _refusal(self, reason: str) -> click.UsageError:
        return click.UsageError(
            f"Could not resume {self._output}: {reason}. Only a file that score wrote "
            "in the same format, for a model of the same kind and with the same "
            "options, can be continued. Choose another --output, or leave --resume out."
        )

    def _rewrite(self, places: Sequence[_Place]) -> None:
        """Replace the file by some of its records, in one step."""
        assert self._records is not None
        # The old file is closed before it is replaced, which Windows requires.
        with atomic_write(self._records) as new, open(self._records, "rb") as old:
            new.write(self._form.header)
            for start, length, _ in places:
                old.seek(start)
                new.write(old.read(length))


class _StandardOutput:
    """Standard output with the methods of `GrowingFile`."""

    def write(self, data: bytes) -> None:
        """Print and flush."""
        print_bytes(data)

    def close(self) -> None:
        """Do nothing: others may print later."""


def records_path(output: Path | None, name: str) -> Path | None:
    """Return the file that records are written to in a format.

    None is standard output, or for COCO a temporary file.

    A COCO file is a document that is complete or not there. Until it is complete, its
    records are in a file next to it.
    """
    if name != "coco":
        return output
    if output is None or is_special(output):
        return None
    return output.with_name(f"{output.name}.partial.jsonl")
