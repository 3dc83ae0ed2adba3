"""Fit and evaluate detectors on categories in the layout of MVTec AD."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch
from tqdm.auto import tqdm

from skpatchcore._benchmark._tables import PIXEL_COLUMNS
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detectors import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._images import check_images, resize_masks
from skpatchcore.datasets import (
    check_folder,
    find_category,
    is_category,
    load_mvtec_ad,
    mvtec_ad_categories,
    read_masks,
)
from skpatchcore.metrics import average_precision, f1_max, image_auroc, pixel_metrics


def build_detector(settings: Mapping) -> PatchCoreDetector:
    """Build an unfitted detector from flat settings.

    Parameters
    ----------
    settings : mapping of str
        Parameters of `PatchFeatureTransformer` and `PatchCoreDetector` under their own
        names, and those of `CoresetSampler` with the prefix ``coreset_``. A parameter
        that both of the former have, such as ``device``, is set on the detector.

    Returns
    -------
    detector : PatchCoreDetector
        The unfitted detector.
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


def choose_categories(data_root: str | Path, wanted: Sequence[str] | None) -> list[str]:
    """Return the wanted categories, or all in a folder; raise if one is missing."""
    root = check_folder(data_root, "DATA_ROOT")
    if is_category(root):
        raise ValueError(
            f"{data_root} itself is a category: it contains train/good. Pass its "
            f"parent folder, and --categories {root.name}."
        )
    available = mvtec_ad_categories(root)
    if not available:
        raise ValueError(
            f"Found no category in {data_root}. Expected subfolders that contain "
            "train/good, as in MVTec AD."
        )
    for name in wanted or ():
        find_category(root, name)
    return list(wanted) if wanted else available


def try_settings(
    detector: PatchCoreDetector, data_root: str | Path, categories: Sequence[str]
) -> None:
    """Fail early on invalid settings, and build the network before timing starts."""
    for part in (detector, detector.features, detector.sampler):
        part._validate_params()
    features = clone(detector.features).set_params(
        device=detector.device, random_state=detector.random_state
    )
    for category in categories:
        try:
            images = [check_images(training_set(data_root, category).data[:1])[0]]
        except (OSError, ValueError):
            continue  # Reported when this category is evaluated.
        features.fit(images)
        return


def find_groups(
    find: Callable[[Any], np.ndarray],
    data_root: str | Path,
    categories: Sequence[str],
) -> dict[str, np.ndarray]:
    """Return the group of each training image, by category."""
    groups = {}
    for category in categories:
        try:
            images = training_set(data_root, category).data
        except (OSError, ValueError):
            continue  # Reported when this category is evaluated.
        groups[category] = find(images)
    return groups


def training_set(data_root: str | Path, category: str) -> Bunch:
    """Load the training split, without the warnings that the evaluation repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_mvtec_ad(data_root, category, subset="train")


class Evaluation(NamedTuple):
    """Results of a fitted detector on the test images of a category.

    `row` has a value for each of `COLUMNS`. As in published code, pixel-level metrics
    are measured at the network's input size; they are None if there are no masks.
    Seconds include reading the images.
    """

    row: dict
    detector: PatchCoreDetector
    train: Bunch
    test: Bunch
    scores: np.ndarray  # (n,), as score_samples


def evaluate_category(
    detector: PatchCoreDetector, data_root: str | Path, category: str
) -> Evaluation:
    """Fit on the training split of a category and measure on its test split.

    Parameters
    ----------
    detector : PatchCoreDetector
        Detector to fit, in place.
    data_root : str or path-like
        Folder with one subfolder for each category.
    category : str
        Name of the category.

    Returns
    -------
    evaluation : Evaluation
        The fitted detector and its results.
    """
    train = load_mvtec_ad(data_root, category, subset="train")
    test = load_mvtec_ad(data_root, category, subset="test")
    started = time.perf_counter()
    detector.fit(train.data, train.target)
    fitted = time.perf_counter()
    scores, maps = score_and_map(detector, test.data, size="resized")
    predicted = time.perf_counter()
    row = {
        "category": category,
        "n_train": len(train.data),
        "n_test": len(test.data),
        **measure_images(test.target, scores),
        **measure_pixels(test, maps, detector.features_),
        "fit_seconds": fitted - started,
        "predict_seconds": predicted - fitted,
    }
    return Evaluation(row, detector, train, test, scores)


def score_and_map(
    detector: PatchCoreDetector, images: Any, *, size: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return ``score_samples`` and the maps of images, from one pass over them."""
    images = check_images(images)
    scores = np.empty(len(images))
    maps = {}
    for seen in detector._inspect(images):
        scores[seen.index] = seen.score
        maps[seen.index] = detector._map(seen, size)
    return scores, [maps[i] for i in range(len(images))]


def measure_images(target: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the image-level columns."""
    return {
        "image_auroc": image_auroc(target, scores),
        "image_ap": average_precision(target, scores),
        "image_f1": f1_max(target, scores).f1,
    }


def measure_pixels(
    test: Bunch, maps: Sequence[np.ndarray], features: PatchFeatureTransformer
) -> dict[str, float | None]:
    """Return the pixel-level columns, leaving out defective images without a mask."""
    masked = np.array([mask is not None for mask in test.masks])
    usable = np.flatnonzero(masked | (test.target == 1)).tolist()
    if not masked.any():
        return dict.fromkeys(PIXEL_COLUMNS)
    sizes = (features.image_size, features.crop_size)
    # One by one, so that only masks at the network's input size are kept in memory.
    masks = [
        resize_masks(read_masks([test.masks[i]], [test.data[i]]), *sizes)[0]
        for i in tqdm(usable, desc="masks", disable=not features.verbose)
    ]
    report = pixel_metrics(masks, [maps[i] for i in usable])
    values = (report.auroc, report.average_precision, report.f1, report.aupro)
    return dict(zip(PIXEL_COLUMNS, values, strict=True))
