"""Download MVTec AD."""

import os
import shutil
import tarfile
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

from sklearn.utils import Bunch
from tqdm.auto import tqdm

from skpatchcore._utils import Interval, StrOptions, file_lock, validate_params
from skpatchcore.datasets._download import download
from skpatchcore.datasets._mvtec import (
    is_category,
    load_mvtec_ad,
    mvtec_ad_categories,
    resolve_data_home,
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
# The hash is the one in the MVTecAD data module of anomalib. It did not change when
# MVTec moved the file (anomalib issues 3121 and 3608). The link is from July 2026.
_URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
_DAMAGED_HEADERS: tuple[type[tarfile.TarError], ...] = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]  # Missing in typeshed.
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]  # Missing in typeshed.
)
_ARCHIVE_NAME = "mvtec_anomaly_detection.tar.xz"


@validate_params(
    {
        "category": [StrOptions(set(_CATEGORIES)), None],
        "data_home": [str, os.PathLike, None],
        "accept_license": ["boolean"],
        "subset": [StrOptions({"all", "train", "test"})],
        "download_if_missing": ["boolean"],
        "return_X_y": ["boolean"],
        "n_retries": [Interval(Integral, 0, None, closed="left")],
        "delay": [Interval(Real, 0, None, closed="left")],
        "url": [str, None],
        "sha256": [str, None],
    }
)
def fetch_mvtec_ad(
    category: str | None = None,
    *,
    data_home: str | os.PathLike | None = None,
    accept_license: bool = False,
    subset: str = "all",
    download_if_missing: bool = True,
    return_X_y: bool = False,
    n_retries: int = 3,
    delay: float = 1.0,
    url: str | None = None,
    sha256: str | None = None,
) -> Any:
    """Load MVTec AD, and download it first if it is missing.

    The archive of all 15 categories has 5.3 GB. Unpacking it needs about as much disk
    space again; then it is removed. Existing categories are never downloaded again. If
    a download is interrupted, by a broken connection or Ctrl-C, the next call resumes
    it. A category appears in `data_home` only when it is complete. Processes that
    download at the same time wait for each other.

    MVTec AD is licensed by MVTec Software GmbH under CC BY-NC-SA 4.0, which does not
    permit commercial use.

    Parameters
    ----------
    category : str, default=None
        One of the 15 categories, for example ``"bottle"``. If None, load all of them.
    data_home : str or path-like, default=None
        Folder with one subfolder for each category. It is created if it does not exist.
        If None, use the subfolder ``mvtec_ad`` of the folder that the environment
        variable ``SKPATCHCORE_DATA`` names, or of ``~/skpatchcore_data`` if the
        variable is not set.
    accept_license : bool, default=False
        Set to True if you agree to the licence. Only needed for downloading.
    subset : {"all", "train", "test"}, default="all"
        Which split to load.
    download_if_missing : bool, default=True
        If False, raise an error instead of downloading.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    n_retries : int, default=3
        How often to retry when the connection fails or breaks.
    delay : float, default=1.0
        Seconds to wait before a retry. The delay increases after repeated failures to
        connect.
    url : str, default=None
        Address of the archive, in case the built-in one has expired: MVTec changes it
        occasionally. If None, use the built-in one.
    sha256 : str, default=None
        SHA-256 hash of the archive, 64 hexadecimal digits. If None, use that of the
        official archive, also with another `url`.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        The result of :func:`load_mvtec_ad` for the category. If `category` is None, a
        Bunch of such Bunches, with the categories as keys.

    (data, target) : tuple if ``return_X_y=True``
        The result of :func:`load_mvtec_ad`. If `category` is None, a Bunch of such
        tuples.

    Raises
    ------
    PermissionError
        If the data set must be downloaded and `accept_license` is False.
    FileNotFoundError
        If the data set is missing and `download_if_missing` is False.
    FileExistsError
        If there is a folder with the name of a missing category.
    NotADirectoryError
        If `data_home` is a file.
    OSError
        If the download fails, its hash is wrong, or the archive cannot be unpacked. An
        interrupted download is kept; a wrong or damaged archive is removed.
    ValueError
        If the archive does not contain the category.

    See Also
    --------
    load_mvtec_ad : Load MVTec AD, or a data set with the same layout, from a folder.
    make_surface_defects : Generate images with defects, without downloading.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD -- A
           Comprehensive Real-World Dataset for Unsupervised Anomaly Detection". CVPR
           2019.

    Examples
    --------
    >>> from skpatchcore.datasets import fetch_mvtec_ad
    >>> bottle = fetch_mvtec_ad("bottle", accept_license=True)  # doctest: +SKIP
    >>> bottle.data.shape  # doctest: +SKIP
    (292,)
    """
    root = resolve_data_home(data_home)
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


def _missing_categories(root: Path, category: str | None) -> list[str]:
    wanted = _CATEGORIES if category is None else (category,)
    return [name for name in wanted if not is_category(root / name)]


def _check_may_download(root: Path, accept_license: bool, allowed: bool) -> None:
    if not allowed:
        raise FileNotFoundError(
            f"MVTec AD is not in {root}, and download_if_missing is False. Pass True "
            "to download it, or another data_home."
        )
    if not accept_license:
        raise PermissionError(
            f"MVTec AD is not in {root}. It is licensed by MVTec Software GmbH under "
            f"CC BY-NC-SA 4.0, not for commercial use: {_LICENSE_PAGE}. If you agree, "
            "pass accept_license=True to download it (5.3 GB)."
        )


def _fetch_archive(
    root: Path,
    category: str | None,
    *,
    url: str,
    sha256: str,
    n_retries: int,
    delay: float,
) -> None:
    """Download and unpack the archive, one process at a time."""
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"data_home={str(root)!r} is a file, not a folder.")
    root.mkdir(parents=True, exist_ok=True)
    archive = root / _ARCHIVE_NAME
    with file_lock(root / ".mvtec_ad.lock", wait=True):
        missing = _missing_categories(root, category)
        if not missing:
            return  # Another process has downloaded it in the meantime.
        _check_not_in_the_way(root, missing)
        hint = f"Find the current link on {_DOWNLOADS_PAGE}, and pass it as url=..."
        download(
            url, archive, sha256=sha256, n_retries=n_retries, delay=delay, hint=hint
        )
        _unpack(archive, root)
        archive.unlink()


def _check_not_in_the_way(root: Path, missing: list[str]) -> None:
    for name in missing:
        if (root / name).exists():
            raise FileExistsError(
                f"{root / name} exists, but it has no train/good, so it is not the "
                "category of MVTec AD. Move or remove it."
            )


class _Member(tarfile.TarInfo):
    """A member of an archive whose header must be complete.

    `tarfile` itself interprets a damaged header after the first member as the end.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Return the next member."""
        try:
            return super().fromtarfile(tar)
        except _DAMAGED_HEADERS as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def _unpack(archive: Path, root: Path) -> None:
    """Unpack to a temporary folder, then move each category in one step."""
    staging = root / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
            members = tqdm(tar, desc="unpacking", unit=" files", disable=None)
            tar.extractall(staging, members, filter="data")
        _move_in(staging, root)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error of the disk, not of the archive.
        archive.unlink()  # Its hash is right, so unpacking it again would not help.
        # A damaged archive raises errors of tarfile, of four decompressors, and of
        # Python: TarError, LZMAError, zlib.error, EOFError, ValueError, ...
        raise OSError(
            f"Could not unpack {archive.name}: {' '.join(str(error).split())}. It was "
            "removed. The archive at the source is damaged, or is not MVTec AD. Pass "
            "another url."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_in(staging: Path, root: Path) -> None:
    """Move the categories, and the licence next to them, out of `staging`."""
    # Some archives have a folder around all categories.
    markers = [*staging.glob("*/train/good"), *staging.glob("*/*/train/good")]
    categories = [marker.parents[1] for marker in markers]
    texts = [
        text for home in {c.parent for c in categories} for text in home.glob("*.txt")
    ]
    for path in (*texts, *categories):
        if not (root / path.name).exists():
            path.replace(root / path.name)
