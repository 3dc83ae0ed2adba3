"""Find the masks of images by their names, and images that are masks of others."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from skpatchcore._images import open_image
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
# The fewest grey levels that 90 % of the pixels of a photograph have. Those of a mask
# have one level for each class, and a few more around them if it is a JPEG file.
_SHARE, _N_LEVELS = 0.9, 16
# Formats of masks that have the name of their image: lossless, and in common use.
_MASK_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff", ".pbm", ".pgm"}
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
        if (named := _find_named(stem, keys))
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


def check_not_masks(images: Iterable[Path]) -> None:
    """Raise an error if some of the images are masks of others."""
    found = describe_masks(list(images))
    if found:
        raise ValueError(f"{found} A detector would learn them as good parts.")


def describe_masks(images: Sequence[Path]) -> str:
    """Return which images are masks of others, and how to leave them out.

    They are, if they have the name of another image in their folder and words that mark
    masks, or the same name and another suffix, and do not look like photographs.
    """
    pairs = _pairs(images)
    if not pairs:
        return ""
    named = [f"{mask.name} of {image.name}" for mask, image, _ in pairs]
    patterns = sorted({pattern for _, _, pattern in pairs})
    given = patterns[0] if len(patterns) == 1 else patterns
    return (
        f"{len(pairs)} of {len(images)} images look like masks of others: "
        f"{in_short(named)}, in {pairs[0][0].parent}. Leave them out with "
        f"exclude={given!r} (--exclude on the command line), or move them to another "
        "folder, such as ground_truth/."
    )


def fold(name: str) -> str:
    """Return a name without differences of case and of Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def in_short(names: Sequence[str]) -> str:
    """Return the first few names, and how many others there are."""
    rest = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _pairs(images: Sequence[Path]) -> list[tuple[Path, Path, str]]:
    """Return masks, each with its image in the same folder and a pattern like it."""
    by_name: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in images:
        by_name[path.parent][fold(path.stem)].append(path)
    pairs = []
    for mask in images:
        siblings = by_name[mask.parent]
        named = _find_named(mask.stem, siblings)
        if named and not _is_photograph(mask):
            pairs.append((mask, siblings[named[0]][0], f"{named[1]}.*"))
    return pairs + _same_stems(by_name.values())


def _same_stems(
    folders: Iterable[Mapping[str, Sequence[Path]]],
) -> list[tuple[Path, Path, str]]:
    """Return the same for masks that differ from their image in the suffix only."""
    pairs = []
    groups = [group for folder in folders for group in folder.values()]
    for group in (set(group) for group in groups if len(group) > 1):
        photographs = sorted(path for path in group if _is_photograph(path))
        masks = sorted(path for path in group if _is_photograph(path) is False)
        masks = [mask for mask in masks if mask.suffix.lower() in _MASK_SUFFIXES]
        if photographs:
            pairs += [(mask, photographs[0], f"*{mask.suffix}") for mask in masks]
    return pairs


def _find_named(stem: str, keys: Container[str]) -> tuple[str, str] | None:
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


def _is_photograph(path: Path) -> bool | None:
    """Return whether an image has many grey levels; None if it is unreadable."""
    try:
        with open_image(path) as image:
            counts = np.sort(image.convert("L").histogram())[::-1]
    except Exception:  # Unreadable files are reported when they are read.
        return None
    shares = np.cumsum(counts) / counts.sum()
    return bool(np.searchsorted(shares, _SHARE) + 1 > _N_LEVELS)
