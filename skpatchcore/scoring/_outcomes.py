"""What becomes of each image of a long run, in order and in bounded memory."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

from skpatchcore._detectors import Inspection, find_detector
from skpatchcore._images import Images, check_images, check_stream, is_stream
from skpatchcore.scoring._unreadable import (
    UnreadableImage,
    iter_readable,
    report_failure,
)

# What was seen in an image, or why it could not be used.
Outcome: TypeAlias = Inspection | UnreadableImage

# If sizes differ, the results of so many images may have to wait for an earlier one.
_WINDOW = 256
# The number of the first image, images, and errors of single ones by position.
_Window = tuple[int, Images, dict[int, Exception]]


def iter_outcomes(
    detector: Any,
    X: Any,
    failures: dict[int, Exception] | None = None,
    *,
    skip: bool = True,
) -> Generator[Outcome, None, None]:
    """Yield an inspection or an `UnreadableImage` for each image, in their order.

    Parameters
    ----------
    detector : estimator
        A fitted detector with maps, or what contains one.
    X : iterable of images
        An iterator is consumed as a stream.
    failures : dict or None
        Errors of images of a sequence that are known already, by index.
    skip : bool
        Whether to continue after an image that cannot be used, rather than raise.
    """
    if is_stream(X):
        windows: Iterator[_Window] = check_stream(X, keep_failures=skip)
    else:
        known = {} if failures is None else failures
        images = check_images(X, known if skip else None)
        windows = _cut(images, known)
    return _iter_windows(detector, windows, skip)


def _cut(images: Images, failures: dict[int, Exception]) -> Iterator[_Window]:
    for first in range(0, len(images), _WINDOW):
        inside = range(first, min(first + _WINDOW, len(images)))
        known = {i - first: failures[i] for i in inside if i in failures}
        yield first, images.take(inside), known


def _iter_windows(
    detector: Any, windows: Iterator[_Window], skip: bool
) -> Generator[Outcome, None, None]:
    run = find_detector(detector).inspect
    for first, images, failures in windows:
        inspections = iter_readable(run, images, failures) if skip else run(images)
        with closing(inspections):
            for i, seen in _in_order(inspections, failures, len(images)):
                if seen is None:
                    failure = report_failure(images, failures, i)
                    yield failure._replace(index=first + i)
                else:
                    yield replace(seen, index=first + i)


def _in_order(
    inspections: Iterator[Inspection], failures: dict[int, Exception], n: int
) -> Iterator[tuple[int, Inspection | None]]:
    """Yield each number up to `n` with its inspection, or None if it is in `failures`.

    `failures` grows while the inspections are computed.
    """
    early: dict[int, Inspection] = {}
    following = 0
    for seen in inspections:
        early[seen.index] = seen
        while following in early or following in failures:
            yield following, early.pop(following, None)
            following += 1
    for i in range(following, n):
        yield i, early.pop(i, None)
