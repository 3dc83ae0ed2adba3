"""Find the images of ``skpatchcore score``, and format and draw its results."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skpatchcore._benchmark import format_csv
from skpatchcore._detectors import Inspection
from skpatchcore._images import Images
from skpatchcore.datasets import (
    Resolver,
    list_folders,
    list_images,
    walk_folders,
    without_aliases,
)
from skpatchcore.inspection import blend_overlay, color_limits
from skpatchcore.scoring import UnreadableImage

_LABELS = {1: "normal", -1: "anomalous", 0: "unreadable"}


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the given files, and the images in the given folders.

    Each image is listed once, even if several paths or links lead to it. It is listed
    under the first of them.
    """
    resolve = Resolver()
    found: dict[Any, str] = {}
    for path in paths:
        is_folder = os.path.isdir(path)
        inside: Sequence[str | Path] = _search(Path(path)) if is_folder else [path]
        if not inside:
            raise ValueError(f"Found no images in {path} or its subfolders.")
        for image in inside:
            found.setdefault(resolve(image), str(image))
    return list(found.values())


def _search(root: Path) -> list[Path]:
    """Return the images in a folder, followed by those in its subfolders."""
    folders = walk_folders(root, list_folders)
    images = [path for folder in folders for path in list_images(folder)]

    def order(path: Path) -> list[tuple[bool, str]]:
        *above, name = path.relative_to(root).parts
        return [*((True, part) for part in above), (False, name)]

    return without_aliases(sorted(images, key=order), root)


def png_paths(images: Sequence[str], folder: Path | None) -> list[Path]:
    """Return a PNG file in `folder` for each image, in the same subfolders."""
    if folder is None:
        return []
    sources = [Path(os.path.abspath(image)) for image in images]
    root = os.path.commonpath([source.parent for source in sources])
    relative = [source.relative_to(root) for source in sources]
    counts = Counter(path.with_suffix(".png") for path in relative)
    names = [
        path.with_suffix(".png")
        if counts[path.with_suffix(".png")] == 1
        else path.with_name(f"{path.name}.png")
        for path in relative
    ]
    paths = [Path(os.path.abspath(folder)) / name for name in names]
    # A link in the folder may lead to an image.
    read = {os.path.realpath(source) for source in sources}
    lost = [path for path in paths if os.path.realpath(path) in read]
    if lost:
        raise ValueError(
            f"{min(lost)} is an input image and would be overwritten. Choose another "
            f"folder than {folder}."
        )
    return paths


def as_csv(images: Sequence[str], results: Bunch) -> str:
    """Return a CSV table with the score, decision and label of each image."""
    columns = ["score", "decision", "p_value"]
    columns = [name for name in columns if name in results]
    table: list[list] = [["path", *columns, "label"]]
    numbers = zip(*(results[name].tolist() for name in columns), strict=True)
    for i, row, label in zip(results.index, numbers, results.label, strict=True):
        table.append([images[i], *row, _LABELS[label]])
    return format_csv(table)


def as_report(images: Sequence[str], unreadable: Sequence[UnreadableImage]) -> str:
    """Return a CSV table of the unreadable images, with reasons."""
    rows = [[images[bad.index], bad.reason] for bad in unreadable]
    return format_csv([["path", "reason"], *rows])


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
