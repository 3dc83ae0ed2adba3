"""Load a user's own folder of images."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skpatchcore._utils import StrOptions, validate_params
from skpatchcore.datasets._image_search import (
    MASK_SUBFOLDERS,
    ImageSearch,
    check_folder,
    describe_passed_over,
    find_folder,
    image_files,
    image_files_below,
    list_distinct_folders,
    list_folders,
    report_passed_over,
)
from skpatchcore.datasets._listing import (
    Record,
    bunch_of_records,
    check_masks,
    collect_subset,
)
from skpatchcore.datasets._mask_files import (
    MASK_ROOTS,
    find_mask_folder,
    match_masks,
    rgb_folder,
)

_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    # MVTec AD 2 also has test images without labels, in test_private.
    "test": ("test", "test_public"),
}
NORMAL_NAMES = ("good", "ok", "normal")
# A folder whose images are all of good parts has no subfolder of these names.
_DEFECTIVE_NAMES = {
    *("anomalous", "anomaly", "bad", "broken", "defect", "defective", "defects"),
    *("faulty", "ko", "ng", "nok", "not_ok", "reject", "rejected", "scrap"),
}
_LAYOUT = """\
Arrange the folder in one of two ways:
    folder/*.png             images of good parts only, also in subfolders
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
        "exclude": [str, list, tuple, None],
        "pages": [StrOptions({"all"}), None],
        "return_X_y": ["boolean"],
    }
)
def load_image_folder(
    path: str | os.PathLike,
    *,
    subset: str = "all",
    exclude: str | Sequence[str] | None = None,
    pages: str | None = None,
    return_X_y: bool = False,
) -> Any:
    """Load your own images from a folder.

    In the simplest layout, the folder and its subfolders contain images of good parts.
    All of them are normal training images. To measure a detector as well, create the
    subfolders ``train/``, ``test/`` (or ``test_public/``) and, optionally,
    ``validation/`` (or ``valid/``, ``val/``), each with a subfolder for each kind of
    image. The subfolders ``good``, ``ok`` and ``normal`` (upper or lower case) contain
    normal images; all others are kinds of defects. Images directly in ``train/`` are
    normal. A folder is searched with its subfolders, except for those that hold masks.
    A file is an image if its suffix is one of a format that can be read. Hidden files
    are ignored. Images among them, and all other files that are left out, are counted
    in a warning.

    Segmentation masks are optional. Put them in ``ground_truth/<kind>/``, with one file
    for each defective image. The file has the same name up to the extension, with or
    without a word such as ``_mask``, ``_GT`` or ``mask_``. The folder may also be named
    ``masks``, ``gt`` or ``labels``, and it may be in ``test/``. Upper and lower case do
    not matter where only one name fits.

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
    exclude : str or list of str, default=None
        Shell patterns, such as ``"*_GT.png"`` or ``"raw"``, of files to leave out. A
        pattern is compared with the name of a file, with its path relative to `path`,
        and with the name of each folder on this path.
    pages : {"all"} or None, default=None
        If "all", list each page of a file with several pages, such as a TIFF stack, as
        an image of its own (:class:`ImagePage`). If None, such a file is listed once,
        and is an error when it is read.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split, kind and file name, with:

        data : ndarray of str or ImagePage, shape (n_images,), dtype object
            Absolute paths of the images.
        target : ndarray of shape (n_images,), dtype int64
            +1 for normal and -1 for anomalous images. Defective images in ``train/``
            are included; the detectors leave them out in ``fit(X, y)``.
        masks : ndarray of str, ImagePage or None, shape (n_images,), dtype object
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
        "all" or "train") or no images in the requested split, if images are masks of
        others in the same folder, if a mask could belong to two images, or if links
        list an image both as good and as defective.

    Warns
    -----
    UserWarning
        If files are passed over. If there is a folder of masks, but a defective image
        has no mask, or a mask has no image.

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
    folder = _Folder(root, [exclude] if isinstance(exclude, str) else exclude or ())
    records = collect_subset(subset, folder.list_split, root)
    folder.pass_over_others()
    report_passed_over([folder.search], stacklevel=3)  # The caller of the decorated.
    is_complete = subset == "all"
    check_masks(records, folder.mask_roots, is_complete=is_complete, stacklevel=3)
    bunch = bunch_of_records(
        records, _describe(root, records), is_complete, all_pages=pages == "all"
    )
    return (bunch.data, bunch.target) if return_X_y else bunch


class _Folder:
    """A user's folder: its images, and where their masks are."""

    def __init__(self, root: Path, exclude: Sequence[str]):
        self.root = root
        self.search = ImageSearch(root, exclude)
        own = None if _is_flat(root) else find_folder(root, MASK_ROOTS)
        self.mask_roots = [own] if own else []

    def list_split(self, split: str) -> list[Record]:
        """Return the images of one split, or an empty list if it has no folder."""
        if split == "train":
            return self._list_training()
        folder = find_folder(self.root, _SPLIT_NAMES[split])
        if folder is None:
            return []
        loose = self.search.directly_in(folder)
        if loose:
            raise ValueError(
                f"Found images directly in {folder}, for example {loose[0].name}. They "
                f"could be good or defective. Move them to {folder / 'good'}, or to "
                f"{folder / '<kind>'} for each kind of defect."
            )
        return self._list_kinds(split, folder)

    def _list_training(self) -> list[Record]:
        """Return the training images. At least one must be good."""
        folder = find_folder(self.root, _SPLIT_NAMES["train"])
        if folder is not None:
            loose = self.search.directly_in(folder)
            records = [Record(image, "train", "good") for image in loose]
            records += self._list_kinds("train", folder)
        else:
            records = self._list_flat() if _is_flat(self.root) else []
        if all(record.defect_type != "good" for record in records):
            kinds = ", ".join(sorted({record.defect_type for record in records}))
            found = f"only defective training images ({kinds})" if kinds else "none"
            passed_over = describe_passed_over([self.search])
            raise ValueError(
                f"Expected training images of good parts in {self.root}; found "
                f"{found}. {passed_over}{' ' * bool(passed_over)}{_LAYOUT}"
            )
        return records

    def _list_flat(self) -> list[Record]:
        """Return the images of a folder without splits, all of them good."""
        images = self.search.below(self.root)
        folders = {name for i in images for name in i.relative_to(self.root).parts[:-1]}
        by_name = {name.lower(): name for name in folders}
        suspects = _DEFECTIVE_NAMES & by_name.keys()
        tops = {
            i.relative_to(self.root).parts[0] for i in images if i.parent != self.root
        }
        if any(name.lower() in NORMAL_NAMES for name in tops):
            suspects |= {name.lower() for name in tops} - set(NORMAL_NAMES)
        if suspects:
            named = " and ".join(sorted(by_name[name] for name in suspects))
            raise ValueError(
                f"Expected training images of good parts in {self.root}, but the "
                f"subfolder {named} may show defects. {_LAYOUT}"
            )
        return [Record(image, "train", "good") for image in images]

    def _list_kinds(self, split: str, folder: Path) -> list[Record]:
        own = find_folder(folder, MASK_SUBFOLDERS)
        if own is not None:
            self.mask_roots.append(own)
        kinds = list_distinct_folders(folder, NORMAL_NAMES)
        return [
            record
            for kind in kinds
            if kind != own
            for record in self._list_kind(split, kind)
        ]

    def _list_kind(self, split: str, folder: Path) -> list[Record]:
        """Return the images of one kind, with their masks if it is a defect."""
        images = self.search.below(rgb_folder(folder))
        if folder.name.lower() in NORMAL_NAMES:
            return [Record(image, split, "good") for image in images]
        mask_folder = find_mask_folder(self.mask_roots, folder)
        masks: list[Path | None] = [None] * len(images)
        if mask_folder is not None:
            masks = match_masks(images, mask_folder)
        return [
            Record(image, split, folder.name, mask)
            for image, mask in zip(images, masks, strict=True)
        ]

    def pass_over_others(self) -> None:
        """Remember the images that are in no split and in no folder of masks."""
        if _is_flat(self.root):
            return
        self.search.pass_over(image_files(self.root))
        known = (*sum(_SPLIT_NAMES.values(), ()), *MASK_ROOTS)
        for folder in list_distinct_folders(self.root, known):
            if folder.name.lower() not in known:
                self.search.pass_over(image_files_below(folder))


def _is_flat(root: Path) -> bool:
    split_names = [name for names in _SPLIT_NAMES.values() for name in names]
    return not any(folder.name.lower() in split_names for folder in list_folders(root))


def _describe(root: Path, records: list[Record]) -> str:
    counts = Counter(record.split for record in records)
    return _DESCR.format(
        path=root, **{f"n_{split}": counts[split] for split in _SPLIT_NAMES}
    )
