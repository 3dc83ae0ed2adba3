"""Results published on MVTec AD, to compare with those of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Numbers of training and test images (Bergmann et al., 2021). A folder "screw" with
# other numbers is not the category of MVTec AD.
_COUNTS = {
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "carpet": (280, 117),
    "grid": (264, 78),
    "hazelnut": (391, 110),
    "leather": (245, 124),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "tile": (230, 117),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "wood": (247, 79),
    "zipper": (240, 151),
}
CATEGORIES = tuple(_COUNTS)


class Published(NamedTuple):
    """Results of one setting. `setting` lacks values that the source does not state."""

    name: str
    source: str
    url: str
    setting: Mapping
    # By metric and category. The category is "mean" if the source states only means.
    values: Mapping[str, Mapping[str, float]]


def _by_category(**metrics: str) -> dict[str, dict[str, float]]:
    return {
        metric: dict(zip(CATEGORIES, map(float, values.split()), strict=True))
        for metric, values in metrics.items()
    }


def _means(**metrics: float) -> dict[str, dict[str, float]]:
    return {metric: {"mean": value} for metric, value in metrics.items()}


_PAPER = (
    "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, "
    "Tables 1 to 3 (means over the 15 categories)",
    "https://arxiv.org/abs/2106.08265",
)
_AMAZON = "https://github.com/amazon-science/patchcore-inspection/blob/main/models"
_ANOMALIB = (
    "README of PatchCore in anomalib, seed 42",
    "https://github.com/openvinotoolkit/anomalib/blob/main/src/anomalib/models/image/"
    "patchcore/README.md",
)
_WIDE = {"backbone": "wide_resnet50_2", "layers": ("layer2", "layer3")}
_AT_224 = {**_WIDE, "image_size": 256, "crop_size": 224}

PUBLISHED = (
    Published(
        "paper",
        *_PAPER,
        {**_AT_224, "coreset_fraction": 0.25},
        _means(image_auroc=0.991, pixel_auroc=0.981, aupro=0.934),
    ),
    Published(
        "paper",
        *_PAPER,
        {**_AT_224, "coreset_fraction": 0.1},
        _means(image_auroc=0.990, pixel_auroc=0.981, aupro=0.935),
    ),
    Published(
        "paper",
        *_PAPER,
        {**_AT_224, "coreset_fraction": 0.01},
        _means(image_auroc=0.990, pixel_auroc=0.980, aupro=0.931),
    ),
    Published(
        "Amazon",
        "patchcore-inspection, results.csv of IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1 "
        "(its README rounds to 99.2 and 98.1 %)",
        f"{_AMAZON}/IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1/results.csv",
        {**_AT_224, "coreset_fraction": 0.1},
        _by_category(
            image_auroc="1.000 0.997 0.979 0.986 0.979 1.000 1.000 0.999 0.967 0.988 "
            "0.995 1.000 0.999 0.991 0.995",
            pixel_auroc="0.985 0.984 0.990 0.991 0.988 0.987 0.993 0.983 0.978 0.995 "
            "0.957 0.986 0.961 0.951 0.989",
        ),
    ),
    Published(
        "Amazon",
        "patchcore-inspection, results.csv of "
        "IM320_WR50_L2-3_P001_D1024-1024_PS-3_AN-1",
        f"{_AMAZON}/IM320_WR50_L2-3_P001_D1024-1024_PS-3_AN-1/results.csv",
        {**_WIDE, "image_size": 366, "crop_size": 320, "coreset_fraction": 0.01},
        _by_category(
            image_auroc="0.999 0.986 0.980 0.985 0.992 1.000 1.000 1.000 0.991 0.989 "
            "0.990 1.000 0.993 0.994 0.997",
            pixel_auroc="0.986 0.975 0.989 0.991 0.993 0.988 0.994 0.983 0.970 0.996 "
            "0.965 0.988 0.899 0.960 0.993",
        ),
    ),
    Published(
        "anomalib",
        *_ANOMALIB,
        _WIDE,
        _by_category(
            image_auroc="1.000 0.990 0.982 0.984 0.959 1.000 1.000 0.994 0.924 0.960 "
            "1.000 0.933 1.000 0.989 0.982",
            pixel_auroc="0.984 0.988 0.988 0.988 0.968 0.987 0.991 0.989 0.980 0.989 "
            "0.961 0.988 0.981 0.934 0.983",
            image_f1="1.000 0.968 0.982 0.971 0.974 1.000 1.000 0.984 0.940 0.943 "
            "1.000 0.938 1.000 0.967 0.979",
        ),
    ),
    Published(
        "anomalib",
        *_ANOMALIB,
        {**_WIDE, "backbone": "resnet18"},
        _by_category(
            image_auroc="1.000 0.986 0.965 0.970 0.947 1.000 1.000 0.991 0.916 0.943 "
            "0.997 0.931 0.996 0.997 0.953",
            pixel_auroc="0.981 0.984 0.986 0.986 0.955 0.986 0.990 0.986 0.974 0.991 "
            "0.943 0.988 0.974 0.933 0.983",
            image_f1="1.000 0.978 0.969 0.949 0.946 1.000 1.000 0.989 0.940 0.932 "
            "0.982 0.935 0.974 0.992 0.967",
        ),
    ),
)


def comparable(settings: Mapping, rows: Sequence[Mapping]) -> list[Published]:
    """Return the published results that are comparable with a run.

    Network, layers and coreset must be the same as in the run if the source states
    them. A category must have as many images as in MVTec AD. Resizing and cropping may
    differ; `differences` lists how.
    """
    backbone = str(settings.get("backbone", "")).partition(".")[0]
    if settings.get("weights") == "random" or not any(map(_is_mvtec, rows)):
        return []
    of_run = {**settings, "backbone": backbone}
    needed = ("backbone", "layers", "coreset_fraction")
    return [
        one
        for one in PUBLISHED
        if all(_same(of_run, one.setting, name) for name in needed)
    ]


def differences(published: Published, settings: Mapping) -> str:
    """Return which settings differ from those of a run, or are not stated."""
    notes = []
    for name in ("image_size", "crop_size", "coreset_fraction"):
        if name not in published.setting:
            notes.append(f"{name} not stated")
        elif not _same(settings, published.setting, name):
            ours = settings.get(name)
            notes.append(f"{name} {published.setting[name]}, this run {ours}")
    return "; ".join(notes)


def published_value(
    published: Published, metric: str, category: str, rows: Sequence[Mapping]
) -> float | None:
    """Return a value or None. The category "mean" averages the categories of `rows`."""
    values = published.values.get(metric, {})
    if category != "mean":
        is_there = any(row["category"] == category and _is_mvtec(row) for row in rows)
        return values.get(category) if is_there else None
    names = [row["category"] for row in rows]
    if not all(map(_is_mvtec, rows)):
        return None
    if "mean" in values:
        return values["mean"] if set(names) == set(CATEGORIES) else None
    if not set(names) <= set(values):
        return None
    return sum(values[name] for name in names) / len(names)


def _is_mvtec(row: Mapping) -> bool:
    return _COUNTS.get(row["category"]) == (row["n_train"], row["n_test"])


def _same(settings: Mapping, setting: Mapping, name: str) -> bool:
    if name not in setting:
        return True
    ours, theirs = settings.get(name), setting[name]
    return (tuple(ours) if isinstance(ours, list) else ours) == theirs
