"""Find the images of ``skpatchcore fit``, and say what each of them is for."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from skpatchcore._cli._files import hash_file
from skpatchcore._cli._messages import report_unreadable
from skpatchcore._cli._options import split_all

if TYPE_CHECKING:
    from skpatchcore._images import ImagePage

TRAIN, CALIBRATION, DEFECTIVE = "TRAIN", "--calibration-images", "--defective"


class GivenImage(NamedTuple):
    """An image, or one of its pages, and the argument or option that names it.

    `label` is +1 for good and -1 for defective parts.
    """

    source: "str | ImagePage"
    label: int
    role: str = TRAIN


def gather_images(
    train: Sequence[str],
    calibration: str | None = None,
    defective: str | None = None,
    *,
    exclude: Sequence[str] = (),
) -> list[GivenImage]:
    """Return the images in files and folders, each once.

    Raises
    ------
    ValueError
        If a folder has none, if images look like masks of others, or if an image is
        given both as good and as defective, or both for fitting and for calibration.
    """
    from skpatchcore.datasets import Resolver, check_not_masks

    given = [
        GivenImage(path, label) for path, label in _labelled_images(train, exclude)
    ]
    if calibration is not None:
        found = _labelled_images([calibration], exclude)
        given += [GivenImage(path, label, CALIBRATION) for path, label in found]
    if defective is not None:
        given += [
            GivenImage(path, -1, DEFECTIVE)
            for path in _defective_images(Path(defective), exclude)
        ]
    resolve = Resolver()
    known: dict[Any, GivenImage] = {}
    for image in given:
        before = known.setdefault(resolve(str(image.source)), image)
        _check_one_use(before, image, "are the same image")
    # The masks in each folder would be masks of its own images.
    for role in (TRAIN, CALIBRATION, DEFECTIVE):
        check_not_masks(
            Path(str(image.source)) for image in known.values() if image.role == role
        )
    return list(known.values())


def _labelled_images(
    paths: Sequence[str], exclude: Sequence[str]
) -> Iterable[tuple[str, int]]:
    from skpatchcore.datasets import ImageSearch, load_image_folder

    by_itself = ImageSearch(Path(), exclude)
    for path in paths:
        if not os.path.isdir(path):
            yield from [(path, 1)] if by_itself.keeps(Path(path)) else []
        else:
            data, labels = load_image_folder(
                path, subset="train", exclude=list(exclude), return_X_y=True
            )
            yield from zip(data.tolist(), labels.tolist(), strict=True)


def _defective_images(folder: Path, exclude: Sequence[str]) -> list[str]:
    """Return the images in a folder and its subfolders, all of them defective."""
    from skpatchcore.datasets import (
        NORMAL_NAMES,
        ImageSearch,
        describe_passed_over,
        report_passed_over,
    )

    search = ImageSearch(folder, exclude)
    images = search.below(folder)
    if not images:
        raise ValueError(
            f"Found no images of defective parts in {folder} or its subfolders. "
            f"{describe_passed_over([search])}".rstrip()
        )
    for image in images:
        for name in image.relative_to(folder).parts[:-1]:
            if name.lower() in NORMAL_NAMES:
                raise ValueError(
                    f"Expected images of defective parts in {folder}, but the "
                    f"subfolder {name} may show good ones. Pass a folder without it, "
                    f"or leave it out with --exclude {name}."
                )
    report_passed_over([search], stacklevel=2)
    return [str(image) for image in images]


def _check_one_use(first: GivenImage, second: GivenImage, how: str) -> None:
    """Raise if one image is given in two ways that contradict each other."""
    if first.label != second.label:
        raise ValueError(
            f"{first.source} and {second.source} {how}, given as good and as "
            "defective. Remove one of them."
        )
    if CALIBRATION in (first.role, second.role) and first.role != second.role:
        raise ValueError(
            f"{first.source} in {first.role} and {second.source} in {second.role} "
            f"{how}. A threshold needs images that the detector was not fitted on; "
            "remove one of them."
        )


def _leave_out_copies(images: Sequence[GivenImage]) -> list[GivenImage]:
    """Return images without copies of others, and say how many there were.

    A copy adds nothing to a detector. Where images are held out in turn, it would make
    an image look known that is not.
    """
    original = dict(_find_copies(images))
    for copy, first in original.items():
        _check_one_use(first, copy, "have the same contents")
    if original:
        copy, first = next(iter(original.items()))
        click.echo(
            f"Left out {len(original)} of {len(images)} images, which are copies of "
            f"others under another name, such as {copy.source} of {first.source}.",
            err=True,
        )
    return [image for image in images if image not in original]


def _find_copies(
    images: Sequence[GivenImage],
) -> Iterator[tuple[GivenImage, GivenImage]]:
    """Yield each copy with the first image of the same contents."""
    by_size: dict[tuple[int, int], list[GivenImage]] = {}
    for image in images:
        path, page = _place(image.source)
        # What cannot be read is reported later, with its reason.
        if os.path.isfile(path) and (size := os.path.getsize(path)):
            by_size.setdefault((size, page), []).append(image)
    for alike in by_size.values():
        # Images in most formats differ in size, so few files are read twice.
        if len(alike) < 2:
            continue
        firsts: dict[str, GivenImage] = {}
        for image in alike:
            content = hash_file(_place(image.source)[0])
            first = firsts.setdefault(content, image) if content else image
            if first is not image:
                yield image, first


def _place(source: "str | ImagePage") -> tuple[str, int]:
    """Return the file of an image, and the number of the page."""
    if isinstance(source, str):
        return source, 0
    return source.path, source.page


def read_images(
    given: Sequence[GivenImage], pages: str | None, on_error: str
) -> list[GivenImage]:
    """Return the pages of images, without copies of others.

    Unreadable images are left out if they are to be skipped.

    Raises
    ------
    ValueError
        If copies are given in two ways that contradict each other.
    """
    images = [
        image._replace(source=page)
        for image in given
        for page in split_all([str(image.source)], pages)
    ]
    if on_error == "skip":
        images = _leave_out_unreadable(images)
    return _leave_out_copies(images)


def _leave_out_unreadable(images: Sequence[GivenImage]) -> list[GivenImage]:
    from skpatchcore.scoring import unreadable_images

    sources = [image.source for image in images]
    unreadable = unreadable_images(sources, progress=True)
    report_unreadable(unreadable, len(images))
    skipped = {one.index for one in unreadable}
    return [image for i, image in enumerate(images) if i not in skipped]


def choose(
    images: Sequence[GivenImage], *roles: str, label: int | None = None
) -> list[GivenImage]:
    """Return the images of some roles, and of a label if one is given."""
    return [
        image
        for image in images
        if image.role in roles and label in (None, image.label)
    ]
