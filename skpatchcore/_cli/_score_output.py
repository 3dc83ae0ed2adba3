"""What ``skpatchcore score`` finds, computes and draws; it writes nothing itself."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

_LABELS = {1: "normal", -1: "anomalous", 0: "unreadable"}


def find_images(paths: Sequence[str]) -> list[str]:
    """Return files as they are and the images in folders.

    Each is listed once, however many paths and links lead to it, under the first of
    `paths` that does.
    """
    resolve, found = Resolver(), {}
    for path in paths:
        inside = _search(Path(path)) if os.path.isdir(path) else [path]
        if not inside:
            raise ValueError(f"Found no images in {path} or its subfolders.")
        for image in inside:
            found.setdefault(resolve(image), str(image))
    return list(found.values())


def _search(root: Path) -> list[Path]:
    """Return the images in a folder, and after them those in its subfolders."""
    folders = walk_folders(root, list_folders)
    images = [path for folder in folders for path in list_images(folder)]

    def order(path: Path) -> list[tuple[bool, str]]:
        *above, name = path.relative_to(root).parts
        return [*((True, part) for part in above), (False, name)]

    return without_aliases(sorted(images, key=order), root)


def png_paths(images: Sequence[str], folder: Path | None) -> list[Path]:
    """Return a file in `folder` for each image, arranged as the images are."""
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
    # By links, a file may be the image that it is drawn from.
    read = {os.path.realpath(source) for source in sources}
    lost = [path for path in paths if os.path.realpath(path) in read]
    if lost:
        raise ValueError(
            f"{min(lost)} would be overwritten; choose another folder than {folder}."
        )
    return paths


def as_csv(images: Sequence[str], results) -> str:
    """Return a table of scores, decisions and labels, a line for each image."""
    columns = ["score", "decision", "p_value"]
    columns = [name for name in columns if name in results]
    table = [["path", *columns, "label"]]
    numbers = zip(*(results[name].tolist() for name in columns), strict=True)
    for i, row, label in zip(results.index, numbers, results.label, strict=True):
        table.append([images[i], *row, _LABELS[label]])
    return format_csv(table)


def as_report(images: Sequence[str], unreadable: Sequence) -> str:
    """Return a table of the images that could not be read, and why."""
    rows = [[images[bad.index], bad.reason] for bad in unreadable]
    return format_csv([["path", "reason"], *rows])


def draw_overlays(
    images: Images, found: Sequence[Inspection]
) -> Iterator[NDArray[np.uint8]]:
    """Yield each image with its anomaly map laid over, all on one colour scale."""
    limits = color_limits(
        found[0].detector.map_threshold_ if found else None,
        [seen.patch_scores for seen in found],
    )
    for seen in found:
        yield blend_overlay(images[seen.index], seen.make_map(), limits)


def draw_masks(found: Sequence[Inspection]) -> Iterator[NDArray[np.uint8]]:
    """Yield for each image 255 where it is anomalous, else 0."""
    for seen in found:
        mask = seen.make_map() > seen.detector.map_threshold_
        yield mask.astype(np.uint8) * 255
