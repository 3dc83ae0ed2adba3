"""Load a user's own folder of images."""

import os
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from skpatchcore._utils import StrOptions, validate_params
from skpatchcore.datasets._aliases import without_aliases
from skpatchcore.datasets._listing import (
    Record,
    bunch_of_records,
    check_folder,
    collect_subset,
    list_distinct_folders,
    list_folders,
    list_images,
    match_masks,
)

_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
_MASK_NAMES = ("ground_truth", "masks")
_NORMAL_NAMES = ("good", "ok", "normal")
_LAYOUT = """\
Arrange the folder in one of two ways:
    folder/*.png             images of good parts only
or
    folder/train/good/*.png  images of good parts
    folder/test/good/*.png   more images of good parts (or ok/, normal/)
    folder/test/<kind>/*.png defective parts, one subfolder for each kind of defect"""
_DESCR = """\
Images in {path}
{n_train} training, {n_validation} validation and {n_test} test images.
"""


@validate_params(
    {
        "path": [str, os.PathLike],
        "subset": [StrOptions({"all", "train", "validation", "test"})],
        "return_X_y": ["boolean"],
    }
)
def load_image_folder(
    path: str | os.PathLike, *, subset: str = "all", return_X_y: bool = False
) -> Any:
    """Load your own images from a folder.

    In the simplest layout, the folder directly contains images of good parts. All of
    them are normal training images. To measure a detector as well, create the
    subfolders ``train/``, ``test/`` and, optionally, ``validation/`` (or ``valid/``,
    ``val/``), each with a subfolder for each kind of image. The subfolders ``good``,
    ``ok`` and ``normal`` (upper or lower case) contain normal images; all others are
    kinds of defects. Images directly in ``train/`` are normal. Hidden files and files
    that are not images are ignored.

    Segmentation masks are optional. Put them in ``ground_truth/<kind>/`` or
    ``masks/<kind>/``, with one file for each defective image. The file has the same
    name up to the extension, with or without ``_mask`` at the end.

    Symbolic links are followed, and each image or folder is listed once. If it has
    several names, a folder counts as normal if one of them is; otherwise the name that
    is not a link counts, or else the first. Hard links are separate images. Broken
    links are listed, and reported when the image is read.

    Parameters
    ----------
    path : str or path-like
        The folder.
    subset : {"all", "train", "validation", "test"}, default="all"
        Which split to load.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split, kind and file name, with:

        data : ndarray of str, shape (n_images,), dtype object
            Absolute paths of the images.
        target : ndarray of shape (n_images,), dtype int64
            +1 for normal and -1 for anomalous images. Defective images in ``train/``
            are included; the detectors leave them out in ``fit(X, y)``.
        masks : ndarray of str or None, shape (n_images,), dtype object
            Absolute paths of the masks. None for images without a mask or a defect.
            :func:`read_masks` reads them.
        defect_types : ndarray of str, shape (n_images,), dtype object
            ``"good"``, or the name of the subfolder.
        split : ndarray of str, shape (n_images,), dtype object
            ``"train"``, ``"validation"`` or ``"test"``.
        cv : list of one (train_indices, test_indices)
            The split by folders, for ``cross_validate(cv=...)``. Only with
            ``subset="all"``, and only if there are test images.
        DESCR : str
            The folder, and the number of images in each split.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    NotADirectoryError
        If `path` is a file.
    ValueError
        If the folder has another layout, has no normal training images (with ``subset``
        "all" or "train") or no images in the requested split, if a mask could belong to
        two images, or if links list an image both as good and as defective.

    Warns
    -----
    UserWarning
        If some images of a kind of defect have masks and others do not.

    See Also
    --------
    load_mvtec_ad : Load a category in the layout of MVTec AD, with stricter checks.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from skpatchcore.datasets import load_image_folder
    >>> with TemporaryDirectory() as folder:
    ...     for name in ["train/good/1.png", "test/ok/2.png", "test/dent/3.png"]:
    ...         file = Path(folder, name)
    ...         file.parent.mkdir(parents=True)
    ...         Image.new("RGB", (32, 32)).save(file)
    ...     dataset = load_image_folder(folder)
    >>> dataset.target
    array([ 1, -1,  1])
    >>> dataset.defect_types.tolist()
    ['good', 'dent', 'good']
    """
    root = check_folder(path, "path")
    records = collect_subset(subset, partial(_list_split, root), root)
    _check_masks(records)
    bunch = bunch_of_records(records, _describe(root, records), subset == "all")
    return (bunch.data, bunch.target) if return_X_y else bunch


def _list_split(root: Path, split: str) -> list[Record]:
    """Return the images of one split, or an empty list if it has no folder."""
    if split == "train":
        return _list_training(root)
    folder = _find_folder(root, _SPLIT_NAMES[split])
    if folder is None:
        return []
    loose = list_images(folder)
    if loose:
        raise ValueError(
            f"Found images directly in {folder}, for example {loose[0].name}. They "
            f"could be good or defective. Move them to {folder / 'good'}, or to "
            f"{folder / '<kind>'} for each kind of defect."
        )
    return _list_kinds(root, split, folder)


def _list_training(root: Path) -> list[Record]:
    """Return the training images. At least one must be good."""
    folder = _find_folder(root, _SPLIT_NAMES["train"])
    if folder is not None:
        records = _list_good(folder, "train") + _list_kinds(root, "train", folder)
    else:
        records = _list_good(root, "train") if _is_flat(root) else []
    if all(record.defect_type != "good" for record in records):
        kinds = ", ".join(sorted({record.defect_type for record in records}))
        found = f"only defective training images ({kinds})" if kinds else "none"
        raise ValueError(
            f"Expected training images of good parts in {root}; found {found}. "
            f"{_LAYOUT}"
        )
    return records


def _list_kinds(root: Path, split: str, folder: Path) -> list[Record]:
    kinds = list_distinct_folders(folder, _NORMAL_NAMES)
    return [record for kind in kinds for record in _list_kind(root, split, kind)]


def _list_good(folder: Path, split: str) -> list[Record]:
    return [Record(image, split, "good") for image in list_images(folder)]


def _list_kind(root: Path, split: str, folder: Path) -> list[Record]:
    """Return the images of one kind, with their masks if it is a defect."""
    if folder.name.lower() in _NORMAL_NAMES:
        return _list_good(folder, split)
    images = list_images(folder)
    mask_root = _find_folder(root, _MASK_NAMES)
    if mask_root is None:
        return [Record(image, split, folder.name) for image in images]
    masks = match_masks(images, mask_root / folder.name)
    return [
        Record(image, split, folder.name, mask)
        for image, mask in zip(images, masks, strict=True)
    ]


def _find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the subfolder that has one of the names, in upper or lower case."""
    named = [folder for folder in list_folders(root) if folder.name.lower() in names]
    found = without_aliases(named, root)
    if len(found) > 1:
        listed = " and ".join(folder.name for folder in found)
        raise ValueError(
            f"Found {listed} in {root}; expected only one of them. Merge them."
        )
    return found[0] if found else None


def _is_flat(root: Path) -> bool:
    split_names = [name for names in _SPLIT_NAMES.values() for name in names]
    return not any(folder.name.lower() in split_names for folder in list_folders(root))


def _check_masks(records: list[Record]) -> None:
    """Reject a mask that fits two images; warn if only some of a kind have one."""
    claims = Counter(record.mask for record in records if record.mask)
    for mask, n_claims in claims.items():
        if n_claims > 1:
            claimants = " and ".join(str(r.path) for r in records if r.mask == mask)
            raise ValueError(
                f"{mask} could be the mask of {claimants}. Give these images different "
                "names, and name a mask after each of them."
            )
    masked_kinds = {record.defect_type for record in records if record.mask}
    lacking = [r for r in records if r.defect_type in masked_kinds and not r.mask]
    if lacking:
        warnings.warn(
            f"{len(lacking)} defective images have no mask, although others of their "
            f"kind have one; for example {lacking[0].path}. read_masks treats them as "
            "free of defects. Add the masks, or leave these images out of pixel-level "
            "metrics.",
            stacklevel=4,  # The caller of load_image_folder, which is decorated.
        )


def _describe(root: Path, records: list[Record]) -> str:
    counts = Counter(record.split for record in records)
    return _DESCR.format(
        path=root, **{f"n_{split}": counts[split] for split in _SPLIT_NAMES}
    )
