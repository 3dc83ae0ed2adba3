"""MVTec AD, and everything arranged like it."""

import difflib
import os
import shutil
import tarfile
from functools import partial
from numbers import Integral, Real
from pathlib import Path

from filelock import FileLock
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from skpatchcore.datasets._download import download
from skpatchcore.datasets._listing import (
    Record,
    bunch_of_records,
    check_folder,
    collect_subset,
    list_folders,
    list_pictures,
    match_masks,
)

_CATEGORIES = (
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
)
_DOWNLOADS_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads"
_LICENSE_PAGE = "https://creativecommons.org/licenses/by-nc-sa/4.0/"
# The hash is the one in anomalib's MVTecAD data module, where it stayed the same when
# MVTec moved the file (anomalib issues 3121 and 3608). The link is of July 2026.
_URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
_ARCHIVE_NAME = "mvtec_anomaly_detection.tar.xz"

_DESCR = """\
Category {category} of {data_home}, in the layout of MVTec AD.

MVTec AD is by MVTec Software GmbH, under the licence CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/): not for commercial use. If you use
it, cite

* P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD - A Comprehensive Real-World
  Dataset for Unsupervised Anomaly Detection. CVPR 2019.
* P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. The MVTec Anomaly
  Detection Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly
  Detection. International Journal of Computer Vision 129(4), 2021.
"""


@validate_params(
    {"data_home": [str, os.PathLike]}, prefer_skip_nested_validation=True
)
def mvtec_ad_categories(data_home):
    """List the categories in a folder arranged like MVTec AD.

    Parameters
    ----------
    data_home : str or path-like
        Folder with one subfolder for each category.

    Returns
    -------
    categories : list of str
        The names of all subfolders that contain ``train/good``, sorted.

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
    return [folder.name for folder in list_folders(root) if _is_category(folder)]


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
    that are no pictures, are ignored.

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
        ``train/good``.

    See Also
    --------
    fetch_mvtec_ad : Download MVTec AD first if need be.
    load_image_folder : Load a folder of your own, in a less strict layout.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD -- A Comprehensive
           Real-World Dataset for Unsupervised Anomaly Detection". CVPR 2019.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from skpatchcore.datasets import load_mvtec_ad
    >>> with TemporaryDirectory() as data_home:
    ...     for name in ["train/good/000.png", "test/good/000.png", "test/hole/000.png"]:
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
    list_split = partial(_list_split, folder)
    if subset in ("all", "train") and not list_split("train"):
        raise ValueError(f"Found no pictures in {folder / 'train' / 'good'}.")
    records = collect_subset(subset, list_split, folder)
    descr = _DESCR.format(category=category, data_home=root)
    bunch = bunch_of_records(records, descr, with_cv=subset == "all")
    return (bunch.data, bunch.target) if return_X_y else bunch


@validate_params(
    {
        "category": [StrOptions(set(_CATEGORIES)), None],
        "data_home": [str, os.PathLike, None],
        "accept_license": ["boolean"],
        "subset": [StrOptions({"all", "train", "validation", "test"})],
        "download_if_missing": ["boolean"],
        "return_X_y": ["boolean"],
        "n_retries": [Interval(Integral, 0, None, closed="left")],
        "delay": [Interval(Real, 0, None, closed="left")],
        "url": [str, None],
        "sha256": [str, None],
    },
    prefer_skip_nested_validation=True,
)
def fetch_mvtec_ad(
    category=None,
    *,
    data_home=None,
    accept_license=False,
    subset="all",
    download_if_missing=True,
    return_X_y=False,
    n_retries=3,
    delay=1.0,
    url=None,
    sha256=None,
):
    """Load MVTec AD, and download it first if it is not there yet.

    The archive of all 15 categories has 5.3 GB and needs about as much again while it
    is unpacked; it is removed afterwards. What is there is never downloaded again. A
    download that breaks off, or is stopped by Ctrl-C, goes on where it ended at the next
    call. A category appears in `data_home` only when it is complete, and processes that
    fetch at the same time wait for each other.

    MVTec AD is licensed by MVTec Software GmbH under CC BY-NC-SA 4.0: not for commercial
    use.

    Parameters
    ----------
    category : str, default=None
        One of the 15 categories, ``"bottle"`` for instance. If None, all of them.
    data_home : str or path-like, default=None
        Folder with one subfolder for each category; made if need be. If None, the
        subfolder ``mvtec_ad`` of the folder that the environment variable
        ``SKPATCHCORE_DATA`` names, or else of ``~/skpatchcore_data``.
    accept_license : bool, default=False
        Set to True if you agree to the licence. Needed for downloading only.
    subset : {"all", "train", "validation", "test"}, default="all"
        Which of the splits to load; there are no validation pictures in MVTec AD.
    download_if_missing : bool, default=True
        If False, raise an error instead of downloading.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    n_retries : int, default=3
        How many more times to try when the connection fails or breaks off.
    delay : float, default=1.0
        Seconds to wait before another try; after repeated failures to connect, longer.
    url : str, default=None
        Another place to get the archive from: MVTec's links change now and then.
    sha256 : str, default=None
        SHA-256 hash of the archive, 64 hexadecimal digits. If None, that of the official
        one, at whatever `url`.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        What :func:`load_mvtec_ad` returns for the category. If `category` is None, a
        Bunch of such Bunches, under the names of the categories.

    (data, target) : tuple if ``return_X_y=True``
        What :func:`load_mvtec_ad` returns. If `category` is None, a Bunch of such
        tuples.

    Raises
    ------
    PermissionError
        If the data have to be downloaded and `accept_license` is False.
    FileNotFoundError
        If the data are not there and `download_if_missing` is False.
    FileExistsError
        If a folder with the name of a missing category is in the way.
    OSError
        If the download fails, or its hash is wrong.

    See Also
    --------
    load_mvtec_ad : Load MVTec AD, or other data arranged like it, from a folder.
    make_surface_defects : Generate pictures with defects, without downloading.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD -- A Comprehensive
           Real-World Dataset for Unsupervised Anomaly Detection". CVPR 2019.

    Examples
    --------
    >>> from skpatchcore.datasets import fetch_mvtec_ad
    >>> bottle = fetch_mvtec_ad("bottle", accept_license=True)  # doctest: +SKIP
    >>> bottle.data.shape  # doctest: +SKIP
    (292,)
    """
    root = _resolve_data_home(data_home)
    if _missing_categories(root, category):
        _check_may_download(root, accept_license, download_if_missing)
        _fetch_archive(
            root,
            category,
            url=url or _URL,
            sha256=sha256 or _SHA256,
            n_retries=n_retries,
            delay=delay,
        )
    load = partial(load_mvtec_ad, root, subset=subset, return_X_y=return_X_y)
    if category is not None:
        return load(category)
    return Bunch(**{name: load(name) for name in mvtec_ad_categories(root)})


def _is_category(folder: Path) -> bool:
    return (folder / "train" / "good").is_dir()


def _find_category(root: Path, category: str) -> Path:
    """Return the folder of a category, or say which there are."""
    categories = mvtec_ad_categories(root)
    if category in categories:
        return root / category
    if _is_category(root):
        hint = f"data_home has train/good itself; pass its parent folder, {root.parent}."
    elif not categories:
        hint = "No subfolder has train/good in it."
    else:
        close = difflib.get_close_matches(category, categories)
        guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        hint = f"There are {', '.join(categories)}.{guess}"
    raise ValueError(f"Found no category {category!r} in {root}. {hint}")


def _list_split(folder: Path, split: str) -> list[Record]:
    """Return the pictures of one split, or none if it has no folder."""
    if split != "test":
        good = _rgb_folder(folder / split / "good")
        pictures = list_pictures(good) if good.is_dir() else []
        return [Record(picture, split, "good") for picture in pictures]
    if not (folder / "test").is_dir():
        return []
    kinds = list_folders(folder / "test")
    return [record for kind in kinds for record in _list_test_kind(folder, kind)]


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


def _resolve_data_home(data_home) -> Path:
    if data_home is not None:
        return Path(data_home).expanduser().absolute()
    base = os.environ.get("SKPATCHCORE_DATA") or Path("~", "skpatchcore_data")
    return Path(base).expanduser().absolute() / "mvtec_ad"


def _missing_categories(root: Path, category: str | None) -> list[str]:
    wanted = _CATEGORIES if category is None else (category,)
    return [name for name in wanted if not _is_category(root / name)]


def _check_may_download(root: Path, accept_license: bool, allowed: bool) -> None:
    if not allowed:
        raise FileNotFoundError(
            f"MVTec AD is not in {root}, and download_if_missing is False."
        )
    if not accept_license:
        raise PermissionError(
            f"MVTec AD is not in {root}. It is licensed by MVTec Software GmbH under "
            f"CC BY-NC-SA 4.0, not for commercial use: {_LICENSE_PAGE}. If you agree, "
            "pass accept_license=True and it will be downloaded (5.3 GB)."
        )


def _fetch_archive(root: Path, category: str | None, *, url: str, **options) -> None:
    """Download and unpack the archive, one process at a time."""
    root.mkdir(parents=True, exist_ok=True)
    archive = root / _ARCHIVE_NAME
    with FileLock(root / ".mvtec_ad.lock"):
        missing = _missing_categories(root, category)
        if not missing:
            return  # Another process was faster.
        for name in missing:
            if (root / name).exists():
                raise FileExistsError(
                    f"{root / name} is in the way: it has no train/good, so it is not "
                    "the category of MVTec AD. Move or remove it."
                )
        hint = f"The current link is on {_DOWNLOADS_PAGE}; pass it as url=..."
        download(url, archive, hint=hint, **options)
        _unpack(archive, root)
        archive.unlink()


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside the data; then move whole categories in, each in one step."""
    staging = root / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")
        _move_in(staging, root)
    except tarfile.TarError:
        archive.unlink()  # Its hash is right: the next time it would be no better.
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_in(staging: Path, root: Path) -> None:
    """Move the categories, and the licence that goes with them, out of `staging`."""
    for folder in (staging, *list_folders(staging)):
        for text in folder.glob("*.txt"):
            text.replace(root / text.name)
        for category in list_folders(folder):
            if _is_category(category) and not (root / category.name).exists():
                category.replace(root / category.name)
