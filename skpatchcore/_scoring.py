"""What ``skpatchcore score`` finds, computes and draws; it writes nothing itself."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from skpatchcore._images import check_images
from skpatchcore._inspections import map_of, map_threshold
from skpatchcore.datasets._listing import list_folders, list_pictures
from skpatchcore.inspection._overlays import blend_overlay, color_limits

_LABELS = {1: "normal", -1: "anomalous", 0: "unreadable"}


def find_pictures(paths: Sequence[str]) -> list[str]:
    """Return files as they are and the pictures in folders, each once."""

    def search(folder: Path) -> Iterator[Path]:
        yield from list_pictures(folder)
        for subfolder in list_folders(folder):
            yield from search(subfolder)

    found = []
    for path in paths:
        inside = map(str, search(Path(path))) if os.path.isdir(path) else [path]
        before = len(found)
        found.extend(inside)
        if len(found) == before:
            raise ValueError(f"Found no pictures in {path} or its subfolders.")
    return list(dict.fromkeys(found))


def png_paths(pictures: Sequence[str], folder: Path | None) -> list[Path]:
    """Return a file in `folder` for each picture, arranged as the pictures are."""
    if folder is None:
        return []
    sources = [Path(os.path.abspath(picture)) for picture in pictures]
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
    lost = set(paths) & set(sources)
    if lost:
        raise ValueError(
            f"{min(lost)} would be overwritten; choose another folder than {folder}."
        )
    return paths


def as_csv(pictures: Sequence[str], results) -> str:
    """Return a table of scores, decisions and labels, a line for each picture."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    columns = ["score", "decision", "p_value"]
    columns = [name for name in columns if name in results]
    table.writerow(["path", *columns, "label"])
    numbers = zip(*(results[name].tolist() for name in columns), strict=True)
    for i, row, label in zip(results.index, numbers, results.label, strict=True):
        table.writerow([pictures[i], *row, _LABELS[label]])
    return buffer.getvalue()


def as_report(pictures: Sequence[str], unreadable: Sequence) -> str:
    """Return a table of the pictures that could not be read, and why."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["path", "reason"])
    table.writerows([pictures[bad.index], bad.reason] for bad in unreadable)
    return buffer.getvalue()


def draw_overlays(
    detector, pictures: Sequence[str], found: Sequence
) -> Iterator[np.ndarray]:
    """Yield each picture with its anomaly map laid over, all on one colour scale."""
    images = check_images([pictures[seen.index] for seen in found])
    limits = color_limits(
        map_threshold(detector), [seen.patch_scores for seen in found]
    )
    for image, seen in zip(images, found, strict=True):
        yield blend_overlay(image, map_of(detector, seen, "original"), limits)


def draw_masks(detector, found: Sequence) -> Iterator[np.ndarray]:
    """Yield for each picture 255 where it is anomalous, else 0."""
    for seen in found:
        mask = map_of(detector, seen, "original") > map_threshold(detector)
        yield mask.astype("uint8") * 255
