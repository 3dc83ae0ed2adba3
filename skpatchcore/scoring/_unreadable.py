"""Runs over many images that outlive those which cannot be read."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from skpatchcore._detectors import Inspection, Inspections
from skpatchcore._images import Images

# After an image fails, this many of the next ones are tried before the run goes on, so
# that a folder full of broken files does not restart it for each of them.
_LOOK_AHEAD = 64


class UnreadableImage(NamedTuple):
    """An image that could not be used, and why.

    Parameters
    ----------
    index : int
        Position of the image in `X`.
    image : str
        Its name in messages: its position, and its path if it has one.
    reason : str
        What is wrong with it.
    """

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody needs.
    image: str
    reason: str


def iter_readable(
    run: Callable[[Images], Inspections],
    images: Images,
    failures: dict[int, Exception],
) -> Generator[Inspection, None, None]:
    """Yield what `run` finds in the images that can be read.

    Images in `failures` are left out. Others that fail are added to it, and the run is
    started again with the images that it had not reached. At most the batches that were
    being assembled are read twice.
    """
    index_of = {name: i for i, name in enumerate(images.names)}
    waiting = [i for i in range(len(images)) if i not in failures]
    while waiting:
        done: set[int] = set()
        try:
            with closing(run(images.take(np.array(waiting)))) as inspections:
                for seen in inspections:
                    index = waiting[seen.index]
                    done.add(index)
                    yield replace(seen, index=index)
        except (OSError, ValueError) as error:
            failed = index_of.get(getattr(error, "image", ""))
            if failed is None:
                raise
            failures[failed] = error
            following = waiting[waiting.index(failed) + 1 :]
            failures.update(find_failures(images, following[:_LOOK_AHEAD]))
        waiting = [i for i in waiting if i not in done and i not in failures]


def find_failures(
    images: Images, indices: Iterable[int], *, progress: bool = False
) -> dict[int, Exception]:
    """Return what is wrong with those images that cannot be read.

    With `progress`, a terminal shows a bar.
    """
    failures: dict[int, Exception] = {}
    for i in tqdm(indices, desc="reading", disable=None if progress else True):
        try:
            images[i]
        except (OSError, ValueError) as error:
            failures[i] = error
    return failures


def report_failures(
    images: Images, failures: dict[int, Exception]
) -> list[UnreadableImage]:
    """Return which images failed and why, in their order."""
    return [report_failure(images, failures, i) for i in sorted(failures)]


def report_failure(
    images: Images, failures: dict[int, Exception], i: int
) -> UnreadableImage:
    """Return why image `i` failed."""
    return UnreadableImage(i, images.names[i], str(failures[i]))
