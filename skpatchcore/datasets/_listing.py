"""Find images and their masks in folders, and present them as a Bunch."""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skpatchcore.datasets._aliases import Resolver, contains, without_aliases

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "validation", "test")


class Record(NamedTuple):
    """One image on disk. `mask` is None if it has no mask or needs none."""

    path: Path
    split: str
    defect_type: str
    mask: Path | None = None


def list_images(folder: Path) -> list[Path]:
    """Return the images directly inside a folder, each once, sorted by name."""
    return without_aliases(_named_as_images(folder), folder)


def list_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, including links to them, sorted."""
    return [Path(entry.path) for entry in _visible(folder) if _is_folder(entry)]


def list_distinct_folders(folder: Path, preferred: Collection[str] = ()) -> list[Path]:
    """Return the subfolders of a folder, each once, sorted by name.

    If links give a subfolder several names, a name in `preferred` (in lower case)
    counts first. Links to the folder itself, or to a folder around it, are left out.
    """
    folders = [path for path in list_folders(folder) if not contains(path, folder)]
    return without_aliases(
        folders, folder, rank=lambda path: path.name.lower() not in preferred
    )


def check_folder(path: str | os.PathLike, parameter: str) -> Path:
    """Return `path` as an absolute path after checking that it is a folder."""
    # Symbolic links are kept: data versioning tools link to files named by their hash.
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(f"{parameter}={os.fspath(path)!r} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{parameter}={os.fspath(path)!r} is a file; expected a folder."
        )
    return folder


def match_masks(images: Sequence[Path], folder: Path) -> list[Path | None]:
    """Return each image's mask in a folder: ``<stem>_mask.*``, else ``<stem>.*``.

    A subfolder ``<stem>`` is also accepted: in MVTec LOCO AD, it has one mask for each
    defect.
    """
    if not folder.is_dir():
        return [None] * len(images)
    masks = {path.name: path for path in list_folders(folder)}
    # Including links, through which several images may share a mask.
    masks |= {path.stem: path for path in _named_as_images(folder)}
    return [masks.get(f"{p.stem}_mask", masks.get(p.stem)) for p in images]


def collect_subset(
    subset: str, list_split: Callable[[str], list[Record]], source: Path
) -> list[Record]:
    """Return the records of all splits, or of a single one that must not be empty.

    Each image is in only one split, even if several links lead to it.
    """
    splits = SPLITS if subset == "all" else (subset,)
    records = [record for split in splits for record in list_split(split)]
    if subset != "all" and not records:
        raise ValueError(f"subset={subset!r}: found no {subset} images in {source}.")
    _check_labels(records)
    kept = set(without_aliases([record.path for record in records], source))
    return [record for record in records if record.path in kept]


def _check_labels(records: Sequence[Record]) -> None:
    """Reject an image that is good under one name and defective under another."""
    resolve = Resolver()
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(resolve(record.path), record)
        if (other.defect_type == "good") != (record.defect_type == "good"):
            raise ValueError(
                f"{other.path} and {record.path} are the same image (one is a link), "
                "but one is listed as good and the other as defective. Remove one."
            )


def bunch_of_records(records: Sequence[Record], descr: str, with_cv: bool) -> Bunch:
    """Return the Bunch of images on disk, as absolute paths."""
    return make_bunch(
        object_array([str(record.path) for record in records]),
        object_array([record.mask and str(record.mask) for record in records]),
        defect_types=[record.defect_type for record in records],
        split=[record.split for record in records],
        descr=descr,
        with_cv=with_cv,
    )


def make_bunch(
    data: NDArray,
    masks: NDArray,
    *,
    defect_types: Sequence[str],
    split: Sequence[str],
    descr: str,
    with_cv: bool,
) -> Bunch:
    """Return the Bunch of a loader; `target` and `cv` are derived from the rest."""
    kinds, splits = object_array(defect_types), object_array(split)
    bunch = Bunch(
        data=data,
        target=np.where(kinds == "good", 1, -1).astype(np.int64),
        masks=masks,
        defect_types=kinds,
        split=splits,
        DESCR=descr,
    )
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    if with_cv and len(train) and len(test):
        bunch.cv = [(train, test)]
    return bunch


def object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return a 1-D object array, even if the values are sequences."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _named_as_images(folder: Path) -> list[Path]:
    """Return the files of a folder that have the suffix of an image, sorted."""
    return [
        Path(entry.path)
        for entry in _visible(folder)
        if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and _may_be_read(entry)
    ]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    # By name, because Windows paths are compared without regard to case.
    return sorted(visible, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises an error for circular links; os.path.isdir returns False.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file, or a link to one or to nothing."""
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)
