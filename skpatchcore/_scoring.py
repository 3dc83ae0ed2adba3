"""What ``skpatchcore score`` finds, computes and draws; it writes nothing itself."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from skpatchcore._images import check_images
from skpatchcore.datasets._listing import list_folders, list_pictures
from skpatchcore.inspection import blend_overlay, color_limits


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


def inspect_pictures(detector, pictures: Sequence[str]) -> list:
    """Return what the detector sees in each picture, in their order."""
    # With disable=None, only a terminal gets to see the bar.
    with tqdm(total=len(pictures), desc="pictures", disable=None) as bar:
        found = []
        for seen in detector._inspect(check_images(pictures)):
            found.append(seen)
            bar.update()
    return sorted(found, key=lambda seen: seen.index)


def as_csv(detector, pictures: Sequence[str], found: Sequence) -> str:
    """Return a table of scores, decisions and labels, a line for each picture."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["path", "score", "decision", "label"])
    for path, seen in zip(pictures, found, strict=True):
        decision = seen.score - detector.offset_
        label = "normal" if decision >= 0 else "anomalous"
        table.writerow([path, float(seen.score), float(decision), label])
    return buffer.getvalue()


def draw_overlays(
    detector, pictures: Sequence[str], found: Sequence
) -> Iterator[np.ndarray]:
    """Yield each picture with its anomaly map laid over, all on one colour scale."""
    images = check_images(pictures)
    limits = color_limits(
        detector.map_threshold_, [seen.patch_scores for seen in found]
    )
    for seen in found:
        anomaly_map = detector._map(seen, "original")
        yield blend_overlay(images[seen.index], anomaly_map, limits)


def draw_masks(detector, found: Sequence) -> Iterator[np.ndarray]:
    """Yield for each picture 255 where it is anomalous, else 0."""
    for seen in found:
        mask = detector._map(seen, "original") > detector.map_threshold_
        yield mask.astype("uint8") * 255
