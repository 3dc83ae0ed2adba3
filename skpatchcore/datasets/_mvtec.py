"""Folders arranged like MVTec AD."""

import difflib
import os
from functools import partial
from pathlib import Path

from sklearn.utils._param_validation import StrOptions, validate_params

from skpatchcore.datasets._listing import (
    Record,
    bunch_of_records,
    check_folder,
    collect_subset,
    list_distinct_folders,
    list_pictures,
    match_masks,
)

_DESCR = """\
Category {category} of {data_home}, in the layout of MVTec AD.

MVTec AD is by MVTec Software GmbH, under the licence CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/): not for commercial use. If you use
it, cite

* P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD - A Comprehensive
  Real-World Dataset for Unsupervised Anomaly Detection. CVPR 2019.
* P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. The MVTec Anomaly
  Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly
  Detection. International Journal of Computer Vision 129(4), 2021.
"""


@validate_params({"data_home": [str, os.PathLike]}, prefer_skip_nested_validation=True)
def mvtec_ad_categories(data_home: str | os.PathLike) -> list[str]:
    """List the categories in a folder arranged like MVTec AD.

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


def find_mvtec_ad(category: str = "bottle") -> Path | None:
    """Find MVTec AD in the usual places, for scripts that run with and without it.

    These are ``mvtec_ad`` in the folder that the environment variable
    ``SKPATCHCORE_DATA`` names, by default ``~/skpatchcore_data``, and ``data/mvtec_ad``
    in that of ``SKPATCHCORE_ASSETS``.

    Parameters
    ----------
    category : str, default="bottle"
        Category that has to be there.

    Returns
    -------
    data_home : Path or None
        Folder for :func:`load_mvtec_ad`; None if there is none.

    See Also
    --------
    fetch_mvtec_ad : Downloads it.

    Examples
    --------
    >>> from skpatchcore.datasets import find_mvtec_ad
    >>> find_mvtec_ad("no such category") is None
    True
    """
    folders = [
        Path(os.environ.get("SKPATCHCORE_DATA", "~/skpatchcore_data"), "mvtec_ad"),
        Path(os.environ.get("SKPATCHCORE_ASSETS", "no assets"), "data", "mvtec_ad"),
    ]
    folders = [folder.expanduser() for folder in folders]
    return next((f for f in folders if (f / category / "train").is_dir()), None)


@validate_params(
    {
        "data_home": [str, os.PathLike],
        "category": [str],
        "subset": [StrOptions({"all", "train", "validation", "test"})],
        "return_X_y": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def load_mvtec_ad(data_home, category, *, subset="all", return_X_y=False):
    """Load a category of MVTec AD, or of a data set arranged like it.

    The layout is ``<data_home>/<category>/`` with ``train/good/``,
    ``validation/good/`` (if any), ``test/<kind>/`` and
    ``ground_truth/<kind>/<stem>_mask.png``. MVTec 3D-AD, which has its pictures in
    ``test/<kind>/rgb/`` and its masks in ``test/<kind>/gt/``, and MVTec LOCO AD, which
    has a folder of masks for each picture, are read as well. Hidden files, and files
    that are no pictures, are ignored. Symbolic links are treated as by
    :func:`load_image_folder`.

    Parameters
    ----------
    data_home : str or path-like
        Folder with one subfolder for each category.
    category : str
        Name of the category, ``"bottle"`` for instance; :func:`mvtec_ad_categories`
        lists those there are.
    subset : {"all", "train", "validation", "test"}, default="all"
        Which of the splits to load. MVTec AD has no validation pictures; MVTec 3D-AD
        and MVTec LOCO AD have.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split, kind and file name, with:

        data : ndarray of str, shape (n_pictures,), dtype object
            Absolute paths of the pictures.
        target : ndarray of shape (n_pictures,), dtype int64
            +1 for normal and -1 for anomalous pictures.
        masks : ndarray of str or None, shape (n_pictures,), dtype object
            Absolute paths of the masks (of a folder of masks in MVTec LOCO AD); None
            for good pictures, and for all if there is no ground truth.
            :func:`read_masks` reads them.
        defect_types : ndarray of str, shape (n_pictures,), dtype object
            ``"good"``, or the name of the subfolder of ``test/``.
        split : ndarray of str, shape (n_pictures,), dtype object
            ``"train"``, ``"validation"`` or ``"test"``.
        cv : list of one (train_indices, test_indices)
            The official split, for ``cross_validate(cv=...)``. Only for
            ``subset="all"``, and only if there are test pictures.
        DESCR : str
            Origin, licence and what to cite.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If `data_home` does not exist, or a defective picture has no mask although
        there is a folder of masks for its kind.
    NotADirectoryError
        If `data_home` is a file.
    ValueError
        If there is no such category, or no picture in the split asked for or in
        ``train/good``, or links list an image both as good and as defective.

    See Also
    --------
    fetch_mvtec_ad : Download MVTec AD first if need be.
    load_image_folder : Load a folder of your own, in a less strict layout.

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
    folder = _find_category(root, category)
    records = collect_subset(subset, partial(_list_split, folder), folder)
    descr = _DESCR.format(category=category, data_home=root)
    bunch = bunch_of_records(records, descr, with_cv=subset == "all")
    return (bunch.data, bunch.target) if return_X_y else bunch


def is_category(folder: Path) -> bool:
    """Tell if a folder is arranged like a category of MVTec AD."""
    return (folder / "train" / "good").is_dir()


def _find_category(root: Path, category: str) -> Path:
    """Return the folder of a category, or say which there are."""
    categories = mvtec_ad_categories(root)
    # A link to another category has a name, too, which the list leaves out.
    is_name = os.path.basename(category) == category not in ("", os.curdir, os.pardir)
    if category in categories or (is_name and is_category(root / category)):
        return root / category
    if is_category(root):
        hint = (
            f"data_home has train/good itself; pass its parent folder, {root.parent}."
        )
    elif not categories:
        hint = "No subfolder has train/good in it."
    else:
        close = difflib.get_close_matches(category, categories)
        guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        hint = f"There are {', '.join(categories)}.{guess}"
    raise ValueError(f"Found no category {category!r} in {root}. {hint}")


def _list_split(folder: Path, split: str) -> list[Record]:
    """Return the pictures of one split; it may be missing, but for training."""
    if split == "test":
        test = folder / "test"
        kinds = list_distinct_folders(test, ("good",)) if test.is_dir() else []
        return [record for kind in kinds for record in _list_test_kind(folder, kind)]
    good = _rgb_folder(folder / split / "good")
    pictures = list_pictures(good) if good.is_dir() else []
    if split == "train" and not pictures:
        raise ValueError(f"Found no pictures in {good}.")
    return [Record(picture, split, "good") for picture in pictures]


def _list_test_kind(folder: Path, kind: Path) -> list[Record]:
    """Return the test pictures of one kind, with their masks if it is a defect."""
    pictures = list_pictures(_rgb_folder(kind))
    mask_folder = _mask_folder(folder, kind)
    if kind.name == "good" or not mask_folder.is_dir():
        return [Record(picture, "test", kind.name) for picture in pictures]
    masks = match_masks(pictures, mask_folder)
    for picture, mask in zip(pictures, masks, strict=True):
        if mask is None:
            raise FileNotFoundError(
                f"{picture} has no mask: expected {picture.stem}_mask.png in "
                f"{mask_folder}. (Without that folder, masks would be None.)"
            )
    return [
        Record(picture, "test", kind.name, mask)
        for picture, mask in zip(pictures, masks, strict=True)
    ]


def _rgb_folder(kind: Path) -> Path:
    """Return where the pictures of a kind are: MVTec 3D-AD has one level more."""
    return kind / "rgb" if (kind / "rgb").is_dir() else kind


def _mask_folder(folder: Path, kind: Path) -> Path:
    in_3d_layout = (kind / "rgb").is_dir()
    return kind / "gt" if in_3d_layout else folder / "ground_truth" / kind.name
