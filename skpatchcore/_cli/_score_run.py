"""Score images one after the other, and write each result as soon as it is known."""

import contextlib
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from skpatchcore._benchmark import NAME_BYTES, format_csv
from skpatchcore._cli._files import hash_file
from skpatchcore._cli._messages import count_unreadable, print_unreadable
from skpatchcore._cli._result_file import ResultFile
from skpatchcore._cli._result_formats import (
    LABELS,
    UNREADABLE,
    Identity,
    ResultFormat,
)
from skpatchcore._images import ImagePage, Images, UnreadableImageError
from skpatchcore._utils import GrowingFile, atomic_write
from skpatchcore.inspection import draw_overlay
from skpatchcore.scoring import Outcome, UnreadableImage, iter_outcomes

# Part of the identity of a run: raise it if the same model gives other results.
_RESULTS_VERSION = 1


def identify_run(model: Path, name: str, min_area: int | None) -> str:
    """Return a hash of all that results in a format depend on, except for the image."""
    if name != "csv":
        min_area = min_area or 1
    content = hash_file(str(model))
    text = f"{_RESULTS_VERSION} {content} {min_area}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ScoreRun:
    """A run of the command.

    Parameters
    ----------
    paths : sequence of str or ImagePage
        All images.
    form : ResultFormat
        How results are written.
    run : str
        What `identify_run` returns.
    overlays, masks : sequence of Path
        A PNG file for each image; empty if none are drawn.
    lists_unreadable : bool
        Whether unreadable images are listed among the results.
    """

    def __init__(
        self,
        paths: Sequence[str | ImagePage],
        form: ResultFormat,
        run: str,
        *,
        overlays: Sequence[Path] = (),
        masks: Sequence[Path] = (),
        lists_unreadable: bool = False,
    ):
        self._paths, self._form, self._run = paths, form, run
        self._overlays, self._masks = overlays, masks
        self._lists_unreadable = lists_unreadable
        self._counts: Counter[str] = Counter()
        self._todo = set(range(len(paths)))
        self._stamps = [_stamp(_file_of(path)) for path in paths]
        self._hashed = ("", "")

    @property
    def n_unreadable(self) -> int:
        """How many images were unreadable so far."""
        return self._counts[UNREADABLE]

    def summarize(self) -> str:
        """Return the counts of the images that are done, in words."""
        n_scored = sum(self._counts[label] for label in LABELS.values())
        return (
            f"{n_scored} scored, {self._counts[LABELS[-1]]} anomalous, "
            f"{self.n_unreadable} unreadable"
        )

    def write(
        self, detector: Any, output: Path | None, report: Path | None, *, resume: bool
    ) -> None:
        """Score images, write the results, and say how many there are of each kind."""
        results = ResultFile(output, self._form, list(map(str, self._paths)))
        if resume:
            self._resume(results)
        elif output is not None and output.is_file() and output.stat().st_size:
            click.echo(
                f"Replacing {output}. To keep its results, add --resume next time.",
                err=True,
            )
        try:
            with results, contextlib.closing(Report(report)) as bad:
                self._score(detector, results, bad)
        except (KeyboardInterrupt, SystemExit):
            click.echo(f"Stopped: {self.summarize()}", err=True)
            if output is not None:
                click.echo("To score the rest, add --resume.", err=True)
            raise
        count_unreadable(self.n_unreadable, len(self._paths))
        click.echo(self.summarize(), err=True)

    def _resume(self, results: ResultFile) -> None:
        """Skip the images whose results are in a file, and still valid."""
        names = [str(path) for path in self._paths]
        position_of = {name: i for i, name in enumerate(names)}

        def is_done(of: Identity) -> bool:
            i = position_of[of.path]
            pngs = [drawn[i] for drawn in (self._overlays, self._masks) if drawn]
            return (
                of.sha256 != ""
                and of.sha256 == self._identify(i).sha256
                and all(png.is_file() for png in pngs)
            )

        labels = results.resume(self._run, is_done)
        self._todo = {i for i, name in enumerate(names) if name not in labels}
        self._counts.update(labels.values())
        click.echo(
            f"Resumed: {len(labels)} of {len(names)} images were done.", err=True
        )

    def _score(self, detector: Any, results: ResultFile, report: "Report") -> None:
        """Score the images that are not done, in their order."""
        # Rows and a bar would mix in a terminal.
        hidden = True if results.is_shown else None
        bar = tqdm(total=len(self._todo), desc="images", disable=hidden)
        outcomes = iter_outcomes(detector, self._paths, wanted=self._todo)
        with contextlib.closing(outcomes), bar:
            for outcome in outcomes:
                i = outcome.index
                drawn = self._draw(i, outcome)
                if isinstance(drawn, UnreadableImage):
                    with bar.external_write_mode(sys.stderr):
                        print_unreadable(drawn)
                    report.append(str(self._paths[i]), drawn.reason)
                label = LABELS.get(getattr(drawn, "label", 0), UNREADABLE)
                if label != UNREADABLE or self._lists_unreadable:
                    of = self._identify(i)
                    results.append(of.path, self._form.record(drawn, of))
                self._counts[label] += 1
                bar.update()

    def _identify(self, i: int) -> Identity:
        path = self._paths[i]
        file = _file_of(path)
        # The pages of a file follow each other: read it once, not for each page.
        if not isinstance(path, ImagePage) or file != self._hashed[0]:
            self._hashed = (file, hash_file(file))
        content = self._hashed[1]
        if _stamp(file) != self._stamps[i]:
            # The score may be that of the contents before: it needs to be repeated.
            content = ""
        return Identity(str(path), content, self._run)

    def _draw(self, i: int, outcome: Outcome) -> Outcome:
        """Write the PNG files of an image, before its row says that it is done.

        Return the outcome, or why the image could not be read again.
        """
        if isinstance(outcome, UnreadableImage):
            return outcome
        if self._overlays:
            name = f"image {i} ({self._paths[i]})"
            try:
                pixels = Images([self._paths[i]], [name])[0]
            except UnreadableImageError as error:
                return UnreadableImage(i, name, str(error))
            _save_png(draw_overlay(pixels, outcome), self._overlays[i])
        if self._masks:
            _save_png(outcome.mask.astype(np.uint8) * 255, self._masks[i])
        return outcome


class Report:
    """A CSV table of the unreadable images, with reasons; without a path, nothing."""

    def __init__(self, path: Path | None):
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = GrowingFile(path)
        self.append("path", "reason")

    def append(self, path: str, reason: str) -> None:
        """Add a row."""
        if self._file is not None:
            row = format_csv([[path, reason]])
            self._file.write(row.encode("utf-8", NAME_BYTES))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _file_of(path: str | ImagePage) -> str:
    return path.path if isinstance(path, ImagePage) else path


def _stamp(file: str) -> tuple[int, ...] | None:
    """Return what changes when a file is written or replaced; None without a file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _save_png(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
