"""What becomes of each image of a long run, in order and in bounded memory."""

from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

from skpatchcore._detectors import Inspection, find_detector
from skpatchcore._images import Images, check_images, check_stream, is_stream
from skpatchcore.scoring._unreadable import (
    UnreadableImage,
    find_failures,
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
    *,
    skip: bool = True,
    wanted: Collection[int] | None = None,
) -> Generator[Outcome, None, None]:
    """Yield an inspection or an `UnreadableImage` for each image, in their order.

    Parameters
    ----------
    detector : estimator
        A fitted detector with maps, or what contains one.
    X : iterable of images
        An iterator is consumed as a stream.
    skip : bool
        Whether to continue after an image that cannot be used, rather than raise.
    wanted : set of int or None
        Which images of a sequence to yield; None is all. Scores depend on the other
        images of a batch by rounding. So that they have the same bits as in a run over
        all images, whole windows are inspected, unless none of their images is wanted.
    """
    if is_stream(X):
        windows: Iterator[_Window] = check_stream(X, keep_failures=skip)
    else:
        failures: dict[int, Exception] = {}
        images = check_images(X, failures if skip else None)
        windows = _cut(images, failures)
    return _iter_windows(detector, windows, skip, wanted)


def _cut(images: Images, failures: dict[int, Exception]) -> Iterator[_Window]:
    for first in range(0, len(images), _WINDOW):
        inside = range(first, min(first + _WINDOW, len(images)))
        known = {i - first: failures[i] for i in inside if i in failures}
        yield first, images.take(inside), known


def _iter_windows(
    detector: Any,
    windows: Iterator[_Window],
    skip: bool,
    wanted: Collection[int] | None,
) -> Generator[Outcome, None, None]:
    run = find_detector(detector).inspect
    for first, images, failures in windows:
        rows = [i for i in range(len(images)) if wanted is None or first + i in wanted]
        if len(rows) < len(images):
            # Images that were unreadable in an earlier run mostly still are.
            unknown = [i for i in rows if i not in failures]
            failures |= find_failures(images, unknown)
        if all(i in failures for i in rows):
            for i in rows:
                yield _report(images, failures, first, i)
            continue
        found = iter_readable(run, images, failures) if skip else run(images)
        with closing(found):
            for i, seen in _in_order(found, failures, len(images)):
                if wanted is not None and first + i not in wanted:
                    continue
                if seen is None:
                    yield _report(images, failures, first, i)
                else:
                    yield replace(seen, index=first + i)


def _report(
    images: Images, failures: dict[int, Exception], first: int, i: int
) -> UnreadableImage:
    """Return why image `i` of a window failed, by its number in the run."""
    return report_failure(images, failures, i)._replace(index=first + i)


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
