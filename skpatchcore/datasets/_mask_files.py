"""Find the masks of images by their names, and images that are masks of others."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from skpatchcore._images import open_image
from skpatchcore.datasets._image_search import image_files, list_folders

# Next to train/ and test/, a folder of one of these names holds masks.
MASK_ROOTS = ("ground_truth", "groundtruth", "gt", "masks", "mask", "labels", "label")
_WORD = "(?:mask|gt|label|seg|ground_?truth)"
_SEPARATOR = "[-_. ]"
_MARKED = re.compile(
    f"{_WORD}{_SEPARATOR}(?P<after>.+)|(?P<before>.+){_SEPARATOR}{_WORD}",
    re.IGNORECASE,
)
# The fewest grey levels that 90 % of the pixels of a photograph have. Those of a mask
# have one level for each class, and a few more around them if it is a JPEG file.
_SHARE, _N_LEVELS = 0.9, 16
_N_NAMED = 5


def match_masks(images: Sequence[Path], folder: Path) -> list[Path | None]:
    """Return the mask of each image in a folder, None where there is none.

    It is called ``<stem>_mask.*``, else ``<stem>.*``; else the only one that has the
    same name but for upper and lower case, Unicode form, and one word that marks masks,
    such as ``_GT`` or ``mask_``. A subfolder ``<stem>`` is also accepted: in MVTec LOCO
    AD, it has one mask for each defect.
    """
    masks = {path.name: path for path in list_folders(folder)}
    # Including links, through which several images may share a mask.
    masks |= {path.stem: path for path in image_files(folder)}
    exact = [masks.get(f"{p.stem}_mask", masks.get(p.stem)) for p in images]
    others = {stem: mask for stem, mask in masks.items() if mask not in exact}
    similar = _only_ones((_image_key(stem), mask) for stem, mask in others.items())
    same = _only_ones((fold(stem), mask) for stem, mask in others.items())
    return [
        mask or same.get(fold(image.stem)) or similar.get(fold(image.stem))
        for image, mask in zip(images, exact, strict=True)
    ]


def rgb_folder(kind: Path) -> Path:
    """Return the folder of the images of a kind. MVTec 3D-AD has one more level."""
    return kind / "rgb" if (kind / "rgb").is_dir() else kind


def find_mask_folder(mask_roots: Sequence[Path], kind: Path) -> Path | None:
    """Return the folder with the masks of a kind of defect, if there is one."""
    if (kind / "rgb").is_dir():  # As in MVTec 3D-AD.
        return kind / "gt" if (kind / "gt").is_dir() else None
    found = (_find_kind(root, kind.name) for root in mask_roots)
    return next(filter(None, found), None)


def _find_kind(mask_root: Path, kind: str) -> Path | None:
    """Return the subfolder with the masks of a kind.

    Upper and lower case and Unicode forms count as the same if only one folder fits.
    Without subfolders, `mask_root` itself contains the masks of all kinds.
    """
    folders = list_folders(mask_root)
    if not folders:
        return mask_root if image_files(mask_root) else None
    exact = {folder.name: folder for folder in folders}
    similar = _only_ones((fold(folder.name), folder) for folder in folders)
    return exact.get(kind) or similar.get(fold(kind))


def all_masks(mask_root: Path) -> list[Path]:
    """Return the masks of defects below a folder: files, or folders for an image."""
    masks = image_files(mask_root)
    for kind in list_folders(mask_root):
        if kind.name.lower() != "good":
            masks += [*list_folders(kind), *image_files(kind)]
    return masks


def check_not_masks(images: Iterable[Path]) -> None:
    """Raise an error if some of the images are masks of others."""
    found = describe_masks(list(images))
    if found:
        raise ValueError(f"{found} A detector would learn them as good parts.")


def describe_masks(images: Sequence[Path]) -> str:
    """Return which images are masks of others, and how to leave them out.

    They are, if they have the name of another image in their folder and a word that
    marks masks, and do not look like photographs.
    """
    pairs = _pairs(images)
    if not pairs:
        return ""
    named = [f"{mask.name} of {image.name}" for mask, image in pairs]
    pattern = ",".join(sorted({_pattern(mask) for mask, _ in pairs}))
    return (
        f"{len(pairs)} of {len(images)} images look like masks of others: "
        f"{in_short(named)}, in {pairs[0][0].parent}. Leave them out with "
        f"exclude={pattern!r} (--exclude on the command line), or move them to another "
        "folder, such as ground_truth/."
    )


def fold(name: str) -> str:
    """Return a name without differences of case and of Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def in_short(names: Sequence[str]) -> str:
    """Return the first few names, and how many others there are."""
    rest = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _pairs(images: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return pairs of a mask and its image in the same folder."""
    by_name = {(path.parent, fold(path.stem)): path for path in images}
    marked = [path for path in images if _MARKED.fullmatch(path.stem)]
    named = [
        (path, by_name.get((path.parent, _image_key(path.stem)))) for path in marked
    ]
    return [
        (mask, image)
        for mask, image in named
        if image is not None and not _is_photograph(mask)
    ]


def _pattern(mask: Path) -> str:
    """Return a shell pattern that fits masks that are marked in the same way."""
    match = _MARKED.fullmatch(mask.stem)
    stem = (match["after"] or match["before"]) if match else mask.stem
    return f"{mask.stem.replace(stem, '*', 1)}.*"


def _image_key(stem: str) -> str:
    """Return the folded stem of the image that a mask is named after."""
    match = _MARKED.fullmatch(stem)
    return fold(match["after"] or match["before"] if match else stem)


def _only_ones(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return a dict without the keys that several paths have."""
    groups = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return {key: paths[0] for key, paths in groups.items() if len(paths) == 1}


def _is_photograph(path: Path) -> bool:
    try:
        with open_image(path) as image:
            counts = np.sort(image.convert("L").histogram())[::-1]
    except Exception:  # Unreadable files are reported when they are read.
        return False
    shares = np.cumsum(counts) / counts.sum()
    return bool(np.searchsorted(shares, _SHARE) + 1 > _N_LEVELS)
