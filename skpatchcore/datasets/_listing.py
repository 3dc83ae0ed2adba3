"""Find pictures and their masks in folders, and present them as a Bunch."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.utils import Bunch

PICTURE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
SPLITS = ("train", "validation", "test")


class Record(NamedTuple):
    """One picture on disk; `mask` is None where there is none or none is needed."""

    path: Path
    split: str
    defect_type: str
    mask: Path | None = None


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures directly inside a folder, sorted by name."""
    return [
        path
        for path in _visible(folder)
        # Broken links count: leaving out what is not there would go unnoticed.
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir()
    ]


def list_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted by name."""
    return [path for path in _visible(folder) if path.is_dir()]


def check_folder(path, parameter: str) -> Path:
    """Return `path` as an absolute folder, or say what is wrong with it."""
    # Symbolic links are kept: data versioning tools link to files named by their hash.
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(f"{parameter}={os.fspath(path)!r} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{parameter}={os.fspath(path)!r} is a file; expected a folder."
        )
    return folder


def match_masks(pictures: Sequence[Path], folder: Path) -> list[Path | None]:
    """Return each picture's mask in a folder: ``<stem>_mask.*``, else ``<stem>.*``.

    A subfolder ``<stem>`` counts as well: MVTec LOCO AD has one mask a defect there.
    """
    if not folder.is_dir():
        return [None] * len(pictures)
    masks = {path.name: path for path in list_folders(folder)}
    masks |= {path.stem: path for path in list_pictures(folder)}
    return [masks.get(f"{p.stem}_mask", masks.get(p.stem)) for p in pictures]


def collect_subset(
    subset: str, list_split: Callable[[str], list[Record]], source: Path
) -> list[Record]:
    """Return the records of all splits, or of one, which then may not be empty."""
    if subset == "all":
        return [record for split in SPLITS for record in list_split(split)]
    records = list_split(subset)
    if not records:
        raise ValueError(f"subset={subset!r}: found no {subset} pictures in {source}.")
    return records


def bunch_of_records(records: Sequence[Record], descr: str, with_cv: bool) -> Bunch:
    """Return the Bunch of pictures on disk, as absolute paths."""
    return make_bunch(
        object_array([str(record.path) for record in records]),
        object_array([record.mask and str(record.mask) for record in records]),
        defect_types=[record.defect_type for record in records],
        split=[record.split for record in records],
        descr=descr,
        with_cv=with_cv,
    )


def make_bunch(
    data: np.ndarray,
    masks: np.ndarray,
    *,
    defect_types: Sequence[str],
    split: Sequence[str],
    descr: str,
    with_cv: bool,
) -> Bunch:
    """Return what every loader returns; `target` and `cv` follow from the rest."""
    defect_types, split = object_array(defect_types), object_array(split)
    bunch = Bunch(
        data=data,
        target=np.where(defect_types == "good", 1, -1).astype(np.int64),
        masks=masks,
        defect_types=defect_types,
        split=split,
        DESCR=descr,
    )
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    if with_cv and len(train) and len(test):
        bunch.cv = [(train, test)]
    return bunch


def object_array(values: Sequence) -> np.ndarray:
    """Return a 1-D object array, whatever the values are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _visible(folder: Path) -> list[Path]:
    # Paths themselves sort differently on Windows, where case does not count.
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: path.name)
