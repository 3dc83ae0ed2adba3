"""Find the images of ``skpatchcore score``, and name the files that it draws."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skpatchcore._images import ImagePage
from skpatchcore.datasets import (
    ImageSearch,
    Resolver,
    describe_masks,
    describe_passed_over,
    image_suffixes,
    report_passed_over,
)


def find_images(paths: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
    """Return the given files, and the images in the given folders.

    Each image is listed once, even if several paths or links lead to it. It is listed
    under the first of them. Warnings count the files that were passed over, and images
    that look like masks.
    """
    resolve = Resolver()
    found: dict[Any, str] = {}
    by_itself = ImageSearch(Path(), exclude)
    searches = [by_itself]
    for path in paths:
        if os.path.isdir(path):
            searches.append(ImageSearch(Path(path), exclude))
            inside = searches[-1].below(Path(path))
            if not inside:
                raise ValueError(_describe_empty(path, searches[-1]))
        else:
            inside = [Path(path)] if by_itself.keeps(Path(path)) else []
        for image in inside:
            found.setdefault(resolve(image), str(image))
    if not found:
        raise ValueError("Found no images: --exclude leaves out all files given.")
    report_passed_over(searches, stacklevel=2)
    if masks := describe_masks([Path(image) for image in found.values()]):
        warnings.warn(f"{masks} They are scored like images.", stacklevel=2)
    return list(found.values())


def _describe_empty(path: str, search: ImageSearch) -> str:
    suffixes = ", ".join(sorted(image_suffixes()))
    parts = [f"Found no images in {path} or its subfolders."]
    if search.excluded:
        parts.append(f"--exclude leaves out {len(search.excluded)} files.")
    if passed_over := describe_passed_over([search]):
        parts.append(f"{passed_over} Convert images to one of {suffixes}.")
    return " ".join(parts)


def png_paths(
    images: Sequence[str | ImagePage], arguments: Sequence[str], folder: Path | None
) -> list[Path]:
    """Return a PNG file in `folder` for each image, in the same subfolders.

    Its name is that of the image, with ``.png`` appended if it ends otherwise. It
    depends on the image and on the command's arguments only, not on other images that
    happen to be there, so a later run gives the same image the same name.
    """
    if folder is None:
        return []
    # Absolute without resolving links, so that names are those that the user sees.
    given = [os.path.abspath(path) for path in arguments]
    tops = [path if os.path.isdir(path) else os.path.dirname(path) for path in given]
    root = os.path.commonpath(tops)
    names = [os.path.relpath(os.path.abspath(str(image)), root) for image in images]
    target = os.path.abspath(folder)
    return [
        Path(target, name if name.endswith(".png") else f"{name}.png") for name in names
    ]
