"""A user's own folder of pictures."""

import os
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

from sklearn.utils._param_validation import StrOptions, validate_params

from skpatchcore.datasets._aliases import without_aliases
from skpatchcore.datasets._listing import (
    Record,
    bunch_of_records,
    check_folder,
    collect_subset,
    list_distinct_folders,
    list_folders,
    list_pictures,
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
    folder/*.png             pictures of good parts only
or
    folder/train/good/*.png  pictures of good parts
    folder/test/good/*.png   more of them (or ok/, normal/)
    folder/test/<kind>/*.png defective parts, one subfolder for each kind of defect"""
_DESCR = """\
Pictures of {path}
{n_train} training, {n_validation} validation and {n_test} test pictures.
"""


@validate_params(
    {
        "path": [str, os.PathLike],
        "subset": [StrOptions({"all", "train", "validation", "test"})],
        "return_X_y": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def load_image_folder(path, *, subset="all", return_X_y=False):
    """Load your own pictures from a folder.

    The simplest layout is a folder with pictures of good parts directly inside: all are
    normal training pictures. To measure a detector as well, arrange ``train/``,
    ``test/`` and, if you like, ``validation/`` (or ``valid/``, ``val/``), with a
    subfolder for each kind of picture. The subfolders ``good``, ``ok`` and ``normal``
    (in any case) are normal, all others are kinds of defects. Pictures directly in
    ``train/`` are normal. Hidden files, and files that are no pictures, are ignored.

    Symbolic links are followed, and each image or folder is listed once. If it has
    several names, a folder counts as normal if one of them is; otherwise the name that
    is not a link counts, or else the first. Hard links are separate images. Broken
    links are listed, and reported when the image is read.

    Masks are optional: ``ground_truth/<kind>/`` or ``masks/<kind>/`` with a file for
    each defective picture, of the same name up to the extension, with or without
    ``_mask`` at the end.

    Parameters
    ----------
    path : str or path-like
        The folder.
    subset : {"all", "train", "validation", "test"}, default="all"
        Which of the splits to load.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split, kind and file name, with:

        data : ndarray of str, shape (n_pictures,), dtype object
            Absolute paths of the pictures.
        target : ndarray of shape (n_pictures,), dtype int64
            +1 for normal and -1 for anomalous pictures. Defective pictures in
            ``train/`` are kept; the detectors leave them out in ``fit(X, y)``.
        masks : ndarray of str or None, shape (n_pictures,), dtype object
            Absolute paths of the masks; None where there is none, or no defect.
            :func:`read_masks` reads them.
        defect_types : ndarray of str, shape (n_pictures,), dtype object
            ``"good"``, or the name of the subfolder.
        split : ndarray of str, shape (n_pictures,), dtype object
            ``"train"``, ``"validation"`` or ``"test"``.
        cv : list of one (train_indices, test_indices)
            The split by folders, for ``cross_validate(cv=...)``. Only for
            ``subset="all"``, and only if there are test pictures.
        DESCR : str
            Where the pictures come from.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    NotADirectoryError
        If `path` is a file.
    ValueError
        If the folder is arranged in another way, has no normal training pictures (for
        ``subset`` "all" or "train") or no pictures in the split asked for, or if two
        pictures would share a mask, or links list an image both as good and as
        defective.

    Warns
    -----
    UserWarning
        If a kind of defect has masks, but not for each of its pictures.

    See Also
    --------
    load_mvtec_ad : Load a category in the layout of MVTec AD, more strictly.

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
    ...     pictures = load_image_folder(folder)
    >>> pictures.target
    array([ 1, -1,  1])
    >>> pictures.defect_types.tolist()
    ['good', 'dent', 'good']
    """
    root = check_folder(path, "path")
    records = collect_subset(subset, partial(_list_split, root), root)
    _check_masks(records)
    bunch = bunch_of_records(records, _describe(root, records), subset == "all")
    return (bunch.data, bunch.target) if return_X_y else bunch


def _list_split(root: Path, split: str) -> list[Record]:
    """Return the pictures of one split, or none if it has no folder."""
    if split == "train":
        return _list_training(root)
    folder = _find_folder(root, _SPLIT_NAMES[split])
    if folder is None:
        return []
    loose = list_pictures(folder)
    if loose:
        raise ValueError(
            f"Found pictures directly in {folder}, {loose[0].name} for one: they could "
            f"be good or defective. Move them to {folder / 'good'}, or to "
            f"{folder / '<kind>'} for each kind of defect."
        )
    return _list_kinds(root, split, folder)


def _list_training(root: Path) -> list[Record]:
    """Return the pictures to train with, at least one of them good."""
    folder = _find_folder(root, _SPLIT_NAMES["train"])
    if folder is not None:
        records = _list_good(folder, "train") + _list_kinds(root, "train", folder)
    else:
        records = _list_good(root, "train") if _is_flat(root) else []
    if all(record.defect_type != "good" for record in records):
        kinds = ", ".join(sorted({record.defect_type for record in records}))
        found = f"only defective training pictures ({kinds})" if kinds else "none"
        raise ValueError(
            f"Expected training pictures of good parts in {root}; found {found}. "
            f"{_LAYOUT}"
        )
    return records


def _list_kinds(root: Path, split: str, folder: Path) -> list[Record]:
    kinds = list_distinct_folders(folder, _NORMAL_NAMES)
    return [record for kind in kinds for record in _list_kind(root, split, kind)]


def _list_good(folder: Path, split: str) -> list[Record]:
    return [Record(picture, split, "good") for picture in list_pictures(folder)]


def _list_kind(root: Path, split: str, folder: Path) -> list[Record]:
    """Return the pictures of one kind, with their masks if it is a defect."""
    if folder.name.lower() in _NORMAL_NAMES:
        return _list_good(folder, split)
    pictures = list_pictures(folder)
    mask_root = _find_folder(root, _MASK_NAMES)
    if mask_root is None:
        return [Record(picture, split, folder.name) for picture in pictures]
    masks = match_masks(pictures, mask_root / folder.name)
    return [
        Record(picture, split, folder.name, mask)
        for picture, mask in zip(pictures, masks, strict=True)
    ]


def _find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the subfolder that has one of the names, in any case."""
    named = [folder for folder in list_folders(root) if folder.name.lower() in names]
    found = without_aliases(named, root)
    if len(found) > 1:
        listed = " and ".join(folder.name for folder in found)
        raise ValueError(f"Found {listed} in {root}; expected only one of them.")
    return found[0] if found else None


def _is_flat(root: Path) -> bool:
    split_names = [name for names in _SPLIT_NAMES.values() for name in names]
    return not any(folder.name.lower() in split_names for folder in list_folders(root))


def _check_masks(records: list[Record]) -> None:
    """Refuse a mask of two pictures; warn where some of a kind have none."""
    claims = Counter(record.mask for record in records if record.mask)
    for mask, n_claims in claims.items():
        if n_claims > 1:
            claimants = " and ".join(str(r.path) for r in records if r.mask == mask)
            raise ValueError(
                f"{mask} could be the mask of {claimants}; rename all but one of them."
            )
    masked_kinds = {record.defect_type for record in records if record.mask}
    lacking = [r for r in records if r.defect_type in masked_kinds and not r.mask]
    if lacking:
        warnings.warn(
            f"{len(lacking)} defective pictures have no mask although others of their "
            f"kind have, {lacking[0].path} for one. read_masks takes them as free of "
            "defects: add the masks, or leave them out of pixel-level metrics.",
            stacklevel=4,  # The caller of load_image_folder, which is decorated.
        )


def _describe(root: Path, records: list[Record]) -> str:
    counts = Counter(record.split for record in records)
    return _DESCR.format(
        path=root, **{f"n_{split}": counts[split] for split in _SPLIT_NAMES}
    )
