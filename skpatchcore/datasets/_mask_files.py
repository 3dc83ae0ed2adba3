"""Find the masks of images by their names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from skpatchcore.datasets._image_search import image_files, list_folders

# Next to train/ and test/, a folder of one of these names holds masks.
MASK_ROOTS = ("ground_truth", "groundtruth", "gt", "masks", "mask", "labels", "label")
# What marks a mask before the name of its image, and after it: words and a number.
_SEPARATOR = re.compile("[-_. ]")
_BEFORE = re.compile("mask|gt|label|seg|ground[-_. ]?truth", re.IGNORECASE)
_WORD = (
    "(?:masks?|gt|ground[-_. ]?truth|label(?:s|l?ed)?|seg(?:mentations?|mented)?|"
    "anno(?:tations?|tated)?|binary|defects?|colou?r[-_. ]?masks?)"
)
_AFTER = re.compile(
    rf"{_WORD}(?:[-_. ]{_WORD})*(?P<number>[-_. ]?[0-9]+)?", re.IGNORECASE
)
_N_NAMED = 5


def match_masks(images: Sequence[Path], folder: Path) -> list[Path | None]:
    """Return the mask of each image in a folder, None where there is none.

    It is called ``<stem>_mask.*``, else ``<stem>.*``; else the only one that has the
    same name but for upper and lower case, Unicode form, and words that mark masks,
    such as ``_GT``, ``_mask_1`` or ``mask_``. A subfolder ``<stem>`` is also accepted:
    in MVTec LOCO AD, it has one mask for each defect.
    """
    masks = {path.name: path for path in list_folders(folder)}
    # Including links, through which several images may share a mask.
    masks |= {path.stem: path for path in image_files(folder)}
    exact = [masks.get(f"{p.stem}_mask", masks.get(p.stem)) for p in images]
    others = {stem: mask for stem, mask in masks.items() if mask not in exact}
    keys = {fold(path.stem) for path in images}
    similar = _only_ones(
        (named[0], mask)
        for stem, mask in others.items()
        if (named := find_named(stem, keys))
    )
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
    found = (_find_kind(root, kind) for root in mask_roots)
    return next(filter(None, found), None)


def _find_kind(mask_root: Path, kind: Path) -> Path | None:
    """Return the subfolder with the masks of a kind.

    Upper and lower case, Unicode forms, singular and plural count as the same if only
    one folder fits and, for singular and plural, there is no other kind of its name.
    Without subfolders, `mask_root` itself contains the masks of all kinds.
    """
    folders = list_folders(mask_root)
    if not folders:
        return mask_root if image_files(mask_root) else None
    exact = {folder.name: folder for folder in folders}
    similar = _only_ones((fold(folder.name), folder) for folder in folders)
    name = fold(kind.name)
    others = {fold(path.name) for path in list_folders(kind.parent)}
    plural = _only_ones(
        (name, folder)
        for folder in folders
        if (other := fold(folder.name)) not in others
        and (other in _plurals(name) or name in _plurals(other))
    )
    return exact.get(kind.name) or similar.get(name) or plural.get(name)


def _plurals(name: str) -> tuple[str, str]:
    return f"{name}s", f"{name}es"


def all_masks(mask_root: Path) -> list[Path]:
    """Return the masks of defects below a folder: files, or folders for an image."""
    masks = image_files(mask_root)
    for kind in list_folders(mask_root):
        if kind.name.lower() != "good":
            masks += [*list_folders(kind), *image_files(kind)]
    return masks


def fold(name: str) -> str:
    """Return a name without differences of case and of Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def in_short(names: Sequence[str]) -> str:
    """Return the first few names, and how many others there are."""
    rest = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def find_named(stem: str, keys: Container[str]) -> tuple[str, str] | None:
    """Return the key of the image that a mask is named after, and a shell pattern.

    Several parts of the name could be that of an image. The longest in `keys` counts.
    """
    parts = []
    for separator in _SEPARATOR.finditer(stem):
        before, after = stem[: separator.start()], stem[separator.end() :]
        if mark := _AFTER.fullmatch(after):
            word = after[: mark.start("number")] + "*" if mark["number"] else after
            parts.append((fold(before), f"*{separator[0]}{word}"))
        if _BEFORE.fullmatch(before):
            parts.append((fold(after), f"{before}{separator[0]}*"))
    parts.sort(key=lambda part: -len(part[0]))
    return next((part for part in parts if part[0] in keys), None)


def _only_ones(pairs: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return a dict without the keys that several paths have."""
    groups = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return {key: paths[0] for key, paths in groups.items() if len(paths) == 1}
