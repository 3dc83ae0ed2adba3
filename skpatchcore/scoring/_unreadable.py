"""Runs over many images that outlive those which cannot be read."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from tqdm.auto import tqdm

from skpatchcore._images import Images

# Once an image fails, so many of the next ones are tried before the run goes on: of a
# folder full of broken files, it need not stumble over each.
_LOOK_AHEAD = 64


class UnreadableImage(NamedTuple):
    """An image that could not be used: its number in `X`, its name, and why."""

    index: int
    image: str
    reason: str


def iter_readable(
    run: Callable[[Images], Iterator], images: Images, failures: dict[int, Exception]
) -> Iterator:
    """Yield what `run` does for images, of those that can be read.

    What it yields has an `index`. Images in `failures` are left out, others that fail
    are put there, and the run is started again with those that it had not come to. They
    are few: at most the batches that were being put together.
    """
    number_of = {name: i for i, name in enumerate(images.names)}
    waiting = [i for i in range(len(images)) if i not in failures]
    while waiting:
        done = set()
        try:
            for seen in run(images.take(waiting)):
                done.add(waiting[seen.index])
                yield replace(seen, index=waiting[seen.index])
        except (OSError, ValueError) as error:
            i = number_of.get(getattr(error, "image", None))
            if i is None:
                raise
            failures[i] = error
            following = waiting[waiting.index(i) + 1 :]
            failures.update(find_failures(images, following[:_LOOK_AHEAD]))
        waiting = [i for i in waiting if i not in done and i not in failures]


def find_failures(
    images: Images, indices, *, progress: bool = False
) -> dict[int, Exception]:
    """Return what is wrong with those images that cannot be read.

    With `progress`, a terminal gets to see a bar.
    """
    failures = {}
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
    return [
        UnreadableImage(i, images.names[i], str(failures[i])) for i in sorted(failures)
    ]
