"""Load MVTec AD and data sets in its folder layout."""

import os
from pathlib import Path
from typing import Any

from skpatchcore._utils import StrOptions, did_you_mean, validate_params
from skpatchcore.datasets._image_search import (
    MASK_SUBFOLDERS,
    ImageSearch,
    check_folder,
    describe_passed_over,
    find_folder,
    list_distinct_folders,
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

_DESCR = """\
Category {category} of {data_home}, in the layout of MVTec AD.

MVTec AD is by MVTec Software GmbH, under the licence CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/), which does not permit commercial
use. If you use it, cite

* P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD - A Comprehensive
  Real-World Dataset for Unsupervised Anomaly Detection. CVPR 2019.
* P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. The MVTec Anomaly
  Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly
  Detection. International Journal of Computer Vision 129(4), 2021.
"""


@validate_params({"data_home": [str, os.PathLike]})
def mvtec_ad_categories(data_home: str | os.PathLike) -> list[str]:
    """List the categories in a folder that has the layout of MVTec AD.

    Parameters
    ----------
    data_home : str or path-like
        Folder with one subfolder for each category.

    Returns
    -------
    list of str
        The names of all subfolders that contain ``train/good``, sorted. Links to one of
        them are left out.

    Raises
    ------
    FileNotFoundError
        If `data_home` does not exist.
    NotADirectoryError
        If `data_home` is a file.

    See Also
    --------
    load_mvtec_ad : Load one of the categories.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skpatchcore.datasets import mvtec_ad_categories
    >>> with TemporaryDirectory() as data_home:
    ...     Path(data_home, "screw", "train", "good").mkdir(parents=True)
    ...     Path(data_home, "bottle", "train", "good").mkdir(parents=True)
    ...     mvtec_ad_categories(data_home)
    ['bottle', 'screw']
    """
    root = check_folder(data_home, "data_home")
    folders = list_distinct_folders(root)
    return [folder.name for folder in folders if is_category(folder)]


def resolve_data_home(data_home: str | os.PathLike | None = None) -> Path:
    """Return the folder of MVTec AD: `data_home`, or the default folder."""
    if data_home is not None:
        return Path(data_home).expanduser().absolute()
    base = os.environ.get("SKPATCHCORE_DATA") or Path("~", "skpatchcore_data")
    return Path(base).expanduser().absolute() / "mvtec_ad"


def find_mvtec_ad(category: str = "bottle") -> Path | None:
    """Find MVTec AD on this machine.

    Use it in scripts that must run with and without the data set. It looks in the
    default folder of :func:`fetch_mvtec_ad`: the subfolder ``mvtec_ad`` of the folder
    that the environment variable ``SKPATCHCORE_DATA`` names, or of
    ``~/skpatchcore_data`` if the variable is not set.

    Parameters
    ----------
    category : str, default="bottle"
        Category that must exist, with its ``train/good``.

    Returns
    -------
    data_home : Path or None
        Folder to pass to :func:`load_mvtec_ad`. None if the category does not exist.

    See Also
    --------
    fetch_mvtec_ad : Download the data set if it is missing.

    Examples
    --------
    >>> from skpatchcore.datasets import find_mvtec_ad
    >>> find_mvtec_ad("no such category") is None
    True
    """
    root = resolve_data_home()
    return root if is_category(root / category) else None


@validate_params(
    {
        "data_home": [str, os.PathLike],
        "category": [str],
        "subset": [StrOptions({"all", "train", "validation", "test"})],
        "return_X_y": ["boolean"],
    }
)
def load_mvtec_ad(
    data_home: str | os.PathLike,
    category: str,
    *,
    subset: str = "all",
    return_X_y: bool = False,
) -> Any:
    """Load a category of MVTec AD, or of a data set with the same layout.

    The layout is ``<data_home>/<category>/`` with ``train/good/``,
    ``validation/good/`` (optional), ``test/<kind>/`` and
    ``ground_truth/<kind>/<stem>_mask.png``. The function also reads MVTec 3D-AD, which
    has its images in ``test/<kind>/rgb/`` and its masks in ``test/<kind>/gt/``, and
    MVTec LOCO AD, which has a folder of masks for each image. The folder of masks may
    have the same other names as for :func:`load_image_folder`. Of MVTec AD 2, it loads
    ``test_public/``, with its ``ground_truth/``, as test images; the images in
    ``test_private/`` have no labels. Folders are searched, files passed over and
    symbolic links treated as by :func:`load_image_folder`.

    Parameters
    ----------
    data_home : str or path-like
        Folder with one subfolder for each category.
    category : str
        Name of the category, for example ``"bottle"``. :func:`mvtec_ad_categories`
        lists the categories in a folder.
    subset : {"all", "train", "validation", "test"}, default="all"
        Which split to load. MVTec 3D-AD and MVTec LOCO AD have validation images; MVTec
        AD does not.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split, kind and file name, with:

        data : ndarray of str, shape (n_images,), dtype object
            Absolute paths of the images.
        target : ndarray of shape (n_images,), dtype int64
            +1 for normal and -1 for anomalous images.
        masks : ndarray of str or None, shape (n_images,), dtype object
            Absolute paths of the masks (in MVTec LOCO AD, of folders of masks). None
            for good images, and for all images if there is no ground truth.
            :func:`read_masks` reads them.
        defect_types : ndarray of str, shape (n_images,), dtype object
            ``"good"``, or the name of the subfolder of ``test/``.
        split : ndarray of str, shape (n_images,), dtype object
            ``"train"``, ``"validation"`` or ``"test"``.
        cv : list of one (train_indices, test_indices)
            The official split, for ``cross_validate(cv=...)``. Only with
            ``subset="all"``, and only if there are test images.
        DESCR : str
            Origin, licence and citation.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If `data_home` does not exist, or if a defective image has no mask although
        there is a folder of masks for its kind.
    NotADirectoryError
        If `data_home` is a file.
    ValueError
        If the category does not exist, if there are no images in the requested split
        or in ``train/good``, if images are masks of others in the same folder, if a
        mask could belong to two images, or if links list an image both as good and as
        defective.

    Warns
    -----
    UserWarning
        If files are passed over. If there are masks, but none for a kind of defect, or
        if a mask has no image.

    See Also
    --------
    fetch_mvtec_ad : Download MVTec AD if it is missing.
    load_image_folder : Load your own folder, in a more flexible layout.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD -- A
           Comprehensive Real-World Dataset for Unsupervised Anomaly Detection". CVPR
           2019.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from skpatchcore.datasets import load_mvtec_ad
    >>> with TemporaryDirectory() as data_home:
    ...     for name in ["train/good/0.png", "test/good/0.png", "test/hole/0.png"]:
    ...         file = Path(data_home, "hazelnut", name)
    ...         file.parent.mkdir(parents=True)
    ...         Image.new("RGB", (32, 32)).save(file)
    ...     hazelnut = load_mvtec_ad(data_home, "hazelnut")
    >>> hazelnut.target
    array([ 1,  1, -1])
    >>> hazelnut.cv
    [(array([0]), array([1, 2]))]
    """
    root = check_folder(data_home, "data_home")
    folder = find_category(root, category)
    category_folder = _Category(folder)
    records = collect_subset(subset, category_folder.list_split, folder)
    report_passed_over([category_folder.search], stacklevel=3)  # Decorated: the caller.
    check_masks(
        records,
        category_folder.mask_roots if subset in ("all", "test") else [],
        is_complete=True,
        stacklevel=3,
    )
    descr = _DESCR.format(category=category, data_home=root)
    bunch = bunch_of_records(records, descr, with_cv=subset == "all")
    return (bunch.data, bunch.target) if return_X_y else bunch


def is_category(folder: Path) -> bool:
    """Return whether a folder has the layout of a category of MVTec AD."""
    return (folder / "train" / "good").is_dir()


def find_category(root: Path, category: str) -> Path:
    """Return the folder of a category, or raise an error that lists the categories."""
    categories = mvtec_ad_categories(root)
    # A link to another category is accepted, although the list leaves it out.
    is_name = os.path.basename(category) == category not in ("", os.curdir, os.pardir)
    if category in categories or (is_name and is_category(root / category)):
        return root / category
    if is_category(root):
        hint = (
            f"data_home itself contains train/good; pass its parent folder, "
            f"{root.parent}."
        )
    elif not categories:
        hint = "No subfolder contains train/good."
    else:
        guess = did_you_mean(category, categories)
        hint = f"The categories in it are {', '.join(categories)}.{guess}"
    raise ValueError(f"Found no category {category!r} in {root}. {hint}")


class _Category:
    """The images of a category, and their masks."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.search = ImageSearch(folder)
        self.test = _test_folder(folder)
        # MVTec AD 2 has the masks of its public test images next to them.
        own = find_folder(folder, MASK_ROOTS)
        inner = find_folder(self.test, MASK_SUBFOLDERS) if self.test.is_dir() else None
        self.mask_roots = [root for root in (own, inner) if root]

    def list_split(self, split: str) -> list[Record]:
        """Return the images of one split. Only the training split must have some."""
        if split == "test":
            return self._list_test()
        good = rgb_folder(self.folder / split / "good")
        images = self.search.below(good) if good.is_dir() else []
        if split == "train" and not images:
            found = describe_passed_over([self.search])
            raise ValueError(
                f"Found no images in {good}; expected images of good parts."
                f"{' ' * bool(found)}{found}"
            )
        return [Record(image, split, "good") for image in images]

    def _list_test(self) -> list[Record]:
        kinds = (
            list_distinct_folders(self.test, ("good",)) if self.test.is_dir() else []
        )
        return [
            record
            for kind in kinds
            if kind not in self.mask_roots
            for record in self._list_test_kind(kind)
        ]

    def _list_test_kind(self, kind: Path) -> list[Record]:
        """Return the test images of one kind, with their masks if it is a defect."""
        images = self.search.below(rgb_folder(kind))
        mask_folder = find_mask_folder(self.mask_roots, kind)
        if kind.name == "good" or mask_folder is None:
            return [Record(image, "test", kind.name) for image in images]
        masks = match_masks(images, mask_folder)
        for image, mask in zip(images, masks, strict=True):
            if mask is None:
                raise FileNotFoundError(
                    f"{image} has no mask; expected {image.stem}_mask.png in "
                    f"{mask_folder}. Add the mask, or remove that folder to load the "
                    "kind without masks."
                )
        return [
            Record(image, "test", kind.name, mask)
            for image, mask in zip(images, masks, strict=True)
        ]


def _test_folder(folder: Path) -> Path:
    """Return the folder of labelled test images. MVTec AD 2 calls it test_public."""
    test, public = folder / "test", folder / "test_public"
    if test.is_dir() and public.is_dir():
        raise ValueError(
            f"Found test and test_public in {folder}; expected only one of them. Move "
            "one of them to another folder."
        )
    return public if public.is_dir() else test
