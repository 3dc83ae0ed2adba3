"""Find the images of ``skpatchcore score``, and format and draw its results."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skpatchcore._benchmark import format_csv
from skpatchcore._detectors import Inspection
from skpatchcore._images import ImagePage, Images
from skpatchcore.datasets import (
    ImageSearch,
    Resolver,
    describe_masks,
    describe_passed_over,
    image_suffixes,
    report_passed_over,
)
from skpatchcore.inspection import blend_overlay, color_limits
from skpatchcore.scoring import UnreadableImage

_LABELS = {1: "normal", -1: "anomalous", 0: "unreadable"}


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


def as_csv(images: Sequence[str | ImagePage], results: Bunch) -> str:
    """Return a CSV table with the score, decision and label of each image."""
    columns = ["score", "decision", "p_value"]
    columns = [name for name in columns if name in results]
    table: list[list] = [["path", *columns, "label"]]
    numbers = zip(*(results[name].tolist() for name in columns), strict=True)
    for i, row, label in zip(results.index, numbers, results.label, strict=True):
        table.append([str(images[i]), *row, _LABELS[label]])
    return format_csv(table)


def as_report(
    images: Sequence[str | ImagePage], unreadable: Sequence[UnreadableImage]
) -> str:
    """Return a CSV table of the unreadable images, with reasons."""
    rows = [[str(images[bad.index]), bad.reason] for bad in unreadable]
    return format_csv([["path", "reason"], *rows])


def summarize(results: Bunch, n_unreadable: int) -> str:
    """Return the last line of a run."""
    n_anomalous = int(np.sum(results.label == -1))
    n_scored = n_anomalous + int(np.sum(results.label == 1))
    return f"{n_scored} scored, {n_anomalous} anomalous, {n_unreadable} unreadable"


def draw_overlays(
    images: Images, found: Sequence[Inspection]
) -> Iterator[NDArray[np.uint8]]:
    """Yield each image overlaid with its anomaly map, all on one colour scale."""
    limits = color_limits(
        found[0].detector.map_threshold_ if found else None,
        [seen.patch_scores for seen in found],
    )
    for seen in found:
        yield blend_overlay(images[seen.index], seen.make_map(), limits)


def draw_masks(found: Sequence[Inspection]) -> Iterator[NDArray[np.uint8]]:
    """Yield the mask of each image: 255 where it is anomalous, 0 elsewhere."""
    for seen in found:
        mask = seen.make_map() > seen.detector.map_threshold_
        yield mask.astype(np.uint8) * 255
