"""Fit and evaluate detectors on categories in the layout of MVTec AD."""

import csv
import difflib
import io
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch
from tabulate import tabulate

from skpatchcore import __version__
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._images import check_images, resize_masks
from skpatchcore.datasets import load_mvtec_ad, mvtec_ad_categories, read_masks
from skpatchcore.datasets._listing import check_folder
from skpatchcore.datasets._mvtec import is_category
from skpatchcore.metrics import average_precision, f1_max, image_auroc, pixel_metrics

IMAGE_COLUMNS = ("image_auroc", "image_ap", "image_f1")
PIXEL_COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro")
COLUMNS = (
    "category",
    "n_train",
    "n_test",
    *IMAGE_COLUMNS,
    *PIXEL_COLUMNS,
    "fit_seconds",
    "predict_seconds",
)
_PACKAGES = ("numpy", "scikit-learn", "timm", "torch")


def build_detector(settings: Mapping) -> PatchCoreDetector:
    """Return the unfitted detector that flat settings describe.

    Parameters
    ----------
    settings : mapping of str
        Parameters of `PatchFeatureTransformer` and `PatchCoreDetector` by their own
        names, those of `CoresetSampler` with ``coreset_`` in front. What both share,
        ``device`` for instance, is the detector's.

    Returns
    -------
    detector : PatchCoreDetector
    """
    of_detector = PatchCoreDetector().get_params(deep=False).keys()
    of_features = PatchFeatureTransformer().get_params(deep=False).keys() - of_detector
    features, sampler, rest = {}, {}, {}
    for name, value in settings.items():
        if name in of_features:
            features[name] = value
        elif name.startswith("coreset_"):
            sampler[name.removeprefix("coreset_")] = value
        else:
            rest[name] = value
    return PatchCoreDetector(
        PatchFeatureTransformer(**features), CoresetSampler(**sampler), **rest
    )


def choose_categories(data_root, wanted: Sequence[str] | None) -> list[str]:
    """Return the categories of a folder, or those wanted if they are there."""
    root = check_folder(data_root, "DATA_ROOT")
    if is_category(root):
        raise ValueError(
            f"{data_root} is itself a category: it has train/good. Give its parent "
            f"folder, and --categories {root.name}."
        )
    there = mvtec_ad_categories(root)
    if not there:
        raise ValueError(
            f"Found no category in {data_root}: expected subfolders that have "
            "train/good in them, as MVTec AD has."
        )
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        close = difflib.get_close_matches(unknown[0], there)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"Found no category {unknown[0]!r} in {data_root}.{guess} There are "
            f"{', '.join(there)}."
        )
    return list(wanted) if wanted else there


def try_settings(
    detector: PatchCoreDetector, data_root, categories: Sequence[str]
) -> None:
    """Fail now if no category can succeed, and build the network before time counts."""
    for part in (detector, detector.features, detector.sampler):
        part._validate_params()
    features = clone(detector.features).set_params(
        device=detector.device, random_state=detector.random_state
    )
    for category in categories:
        try:
            train = load_mvtec_ad(data_root, category, subset="train")
            images = [check_images(train.data[:1])[0]]
        except (OSError, ValueError):
            continue  # Its own fault, which will be reported with it.
        features.fit(images)
        return


def evaluate_category(detector: PatchCoreDetector, data_root, category: str) -> dict:
    """Fit on the training split of a category and measure on its test split.

    Parameters
    ----------
    detector : PatchCoreDetector
        What to fit, in place.
    data_root : str or path-like
        Folder with one subfolder for each category.
    category : str
        Name of the category.

    Returns
    -------
    row : dict
        A value for each of `COLUMNS`. Pixel-level ones are those of published codes,
        measured at the network's input, or None if there are no masks. Seconds include
        reading the pictures.
    """
    train = load_mvtec_ad(data_root, category, subset="train")
    test = load_mvtec_ad(data_root, category, subset="test")
    started = time.perf_counter()
    detector.fit(train.data, train.target)
    fitted = time.perf_counter()
    scores, maps = score_and_map(detector, test.data, size="resized")
    predicted = time.perf_counter()
    return {
        "category": category,
        "n_train": len(train.data),
        "n_test": len(test.data),
        **measure_pictures(test.target, scores),
        **measure_pixels(test, maps, detector.features_),
        "fit_seconds": fitted - started,
        "predict_seconds": predicted - fitted,
    }


def score_and_map(
    detector: PatchCoreDetector, pictures, *, size: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return ``score_samples`` and the maps of pictures, from one pass over them."""
    images = check_images(pictures)
    scores, maps = np.empty(len(images)), [None] * len(images)
    for seen in detector._inspect(images):
        scores[seen.index] = seen.score
        maps[seen.index] = detector._map(seen, size)
    return scores, maps


def measure_pictures(target: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the image-level columns."""
    return {
        "image_auroc": image_auroc(target, scores),
        "image_ap": average_precision(target, scores),
        "image_f1": f1_max(target, scores).f1,
    }


def measure_pixels(
    test: Bunch, maps: Sequence[np.ndarray], features: PatchFeatureTransformer
) -> dict[str, float | None]:
    """Return the pixel-level columns, without defective pictures that have no mask."""
    masked = np.array([mask is not None for mask in test.masks])
    usable = np.flatnonzero(masked | (test.target == 1))
    if not masked.any():
        return dict.fromkeys(PIXEL_COLUMNS)
    sizes = (features.image_size, features.crop_size)
    # One by one: masks of large pictures are only held at the network's input size.
    masks = [
        resize_masks(read_masks([test.masks[i]], [test.data[i]]), *sizes)[0]
        for i in usable
    ]
    report = pixel_metrics(masks, [maps[i] for i in usable])
    values = (report.auroc, report.average_precision, report.f1, report.aupro)
    return dict(zip(PIXEL_COLUMNS, values, strict=True))


def mean_row(rows: Sequence[Mapping]) -> dict:
    """Return the row of means, each over the categories that have a value."""
    mean = {"category": "mean"}
    for column in COLUMNS[1:]:
        values = [row[column] for row in rows if row[column] is not None]
        mean[column] = float(np.mean(values)) if values else None
    return mean


def write_results(folder, rows: Sequence[Mapping], settings: Mapping) -> None:
    """Write rows and their mean to results.csv and results.json, replacing both."""
    folder, rows = Path(folder), [*rows, mean_row(rows)]
    buffer = io.StringIO()
    # None becomes an empty field.
    table = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    report = {"results": rows, "settings": dict(settings), "versions": versions()}
    replace_text(folder / "results.csv", buffer.getvalue())
    replace_text(folder / "results.json", json.dumps(report, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file under another name first, so that it is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    installed = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "skpatchcore": __version__,
        "python": platform.python_version(),
        **installed,
    }


def format_table(rows: Sequence[Mapping], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows as a table for people to read."""
    cells = [[_format_cell(column, row[column]) for column in columns] for row in rows]
    headers = [_header(column) for column in columns]
    align = ["left" if column == "category" else "right" for column in columns]
    return tabulate(
        cells, headers, tablefmt="simple", colalign=align, disable_numparse=True
    )


def _header(column: str) -> str:
    for short in ("auroc", "aupro", "ap", "f1"):
        column = column.replace(f"_{short}", f"\n{short.upper()}")
    return {"aupro": "\nAUPRO"}.get(column, column.replace("_", "\n"))


def _format_cell(column: str, value) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column.startswith("n_"):
        return f"{value:.0f}"
    return f"{value:.1f}" if column.endswith("_seconds") else f"{value:.3f}"
